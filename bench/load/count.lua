-- For wrk: stops after a number of responses instead of a time, which wrk cannot do by itself.
--
--   wrk -t1 -d 60 -s count.lua URL -- 10000
--
-- Says "enough" when they have come; whoever runs wrk then interrupts it (SIGINT), and wrk ends in
-- good order. Counts in Lua, once a response: not for measuring speed.

-- The report at the end is the same.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "report.lua")

local left

function init(arguments)
   left = tonumber(arguments[1])
end

function response()
   left = left - 1
   if left == 0 then
      print("enough")
      io.flush()
      wrk.thread:stop()
   end
end
