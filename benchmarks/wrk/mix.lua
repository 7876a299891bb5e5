-- Of ten requests four list, five read one of the first `args[1]` notes and one creates a note.
local headers = { ["Content-Type"] = "application/json" }
local body = '{"text": "Note 0: buy milk, eggs and bread", "completed": false}'
local create, list
local one = {}
local turn = 0

function init(args)
  create = wrk.format("POST", "/notes/", headers, body)
  list = wrk.format("GET", "/notes/")
  for id = 1, tonumber(args[1]) do
    one[id] = wrk.format("GET", "/notes/" .. id)
  end
end

function request()
  turn = turn + 1
  if turn % 10 == 0 then
    return create
  elseif turn % 2 == 0 then
    return list
  end
  return one[turn % #one + 1]
end
