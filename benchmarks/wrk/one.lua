-- One note by id, each request another of the first `args[1]` notes.
local requests = {}
local turn = 0

function init(args)
  for id = 1, tonumber(args[1]) do
    requests[id] = wrk.format("GET", "/notes/" .. id)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end
