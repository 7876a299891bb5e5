-- For wrk: sends the requests of a workload, and looks at every answer.
-- Arguments: a file that has a note of the table on each line, as JSON; how many of the notes are
-- asked for one by one; what a new note is after its "{" or its id; the kinds of the requests, in
-- their turns.
local PAGE = 20

local notes, ends, ids, new = {}, { [0] = 0 }, 0, ""
local kinds, has, turn = {}, {}, 0
local cache = {}
local threads = {}

-- Globals, as only those can be read from another thread of Lua.
wrong = 0
first_wrong = ""

function setup(thread)
  threads[#threads + 1] = thread
end

function init(args)
  for line in io.lines(args[1]) do
    notes[#notes + 1] = line
    ends[#notes] = ends[#notes - 1] + #line + 1
  end
  ids = tonumber(args[2])
  new = args[3]
  for index = 4, #args do
    kinds[#kinds + 1] = args[index]
    has[args[index]] = true
  end
  math.randomseed(1)
end

local function path_of(kind)
  if kind == "one" then
    return "/notes/" .. math.random(ids)
  elseif kind == "page" then
    return "/notes/?limit=" .. PAGE .. "&after=" .. math.random(0, #notes - PAGE)
  elseif kind == "search" then
    return "/notes/?q=note%20" .. math.random(#notes) .. "%3A"
  end
  return "/notes/"
end

function request()
  local kind = kinds[turn % #kinds + 1]
  turn = turn + 1
  local path = path_of(kind)
  local key = kind == "create" and kind or path
  if not cache[key] then
    local headers = {}
    for name, value in pairs(wrk.headers) do
      headers[name] = value
    end
    if kind == "create" then
      headers["Content-Type"] = "application/json"
      cache[key] = wrk.format("POST", path, headers, "{" .. new)
    else
      cache[key] = wrk.format("GET", path, headers)
    end
  end
  return cache[key]
end

-- Whether the body has as many notes in a row as were asked for. While notes are created, a
-- listing of all may have more behind them. Notes that change keep their length, and may move.
local function is_array(body)
  if has.changing then
    return #body == ends[#notes] + 1 and body:sub(1, 7) == '[{"id":' and body:sub(-2) == "}]"
  end
  local first = tonumber(body:match('^%[{"id":(%d+),'))
  local count = has.page and PAGE or has.search and 1 or #notes
  local last = first and first + count - 1
  if not first or not notes[last] then
    return false
  end
  local length = ends[last] - ends[first - 1] + 1
  if #body ~= length and not (has.create and body:sub(length, length) == ",") then
    return false
  end
  return body:sub(2, #notes[first] + 1) == notes[first]
    and body:sub(length - #notes[last], length - 1) == notes[last]
end

local function is_note(body)
  local id = tonumber(body:match('^{"id":(%d+),'))
  if id and notes[id] then
    return has.one and body == notes[id]
  end
  return id and has.create and body == '{"id":' .. id .. "," .. new
end

function response(status, headers, body)
  local right = body:byte(1) == 91 and is_array(body) or is_note(body)
  if status ~= 200 or not right then
    wrong = wrong + 1
    if wrong == 1 then
      first_wrong = status .. " " .. body:sub(1, 100):gsub("%c", " ")
    end
  end
end

function done(summary, latency, requests)
  for _, thread in ipairs(threads) do
    if thread:get("wrong") > 0 then
      print("Wrong answers: " .. thread:get("wrong") .. ", the first: " .. thread:get("first_wrong"))
    end
  end
end
