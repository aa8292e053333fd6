-- For wrk: posts the lines of a file, one after the other; at the end, the figures as one line of
-- JSON. Without a file, it gets the URL. wrk ... -s http_load.lua URL -- [FILE]

local requests, sent = {}, 0

function init(args)
  if args[1] == nil then
    requests[1] = wrk.format("GET")
    return
  end
  for body in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, {["content-type"] = "application/json", ["host"] = wrk.host}, body)
  end
end

function request()
  sent = sent + 1
  return requests[(sent - 1) % #requests + 1]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50": %.6f, "p99": %.6f, "longest": %.6f, "refused": %d, "lost": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, latency.max / 1e6,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout
  ))
end
