-- Pins the revision that was landed before the one that runs: the newest success in the history after (that is: below) a landing of what runs.
-- A spec that followed a branch is pinned from then on. With self-heal Git wins again at once: revert the commit instead, or turn self-heal off first.
local applied = obj.status.flake.applied.rev
local running, previous = false, nil
for _, landing in ipairs(obj.status.history) do
  if landing.outcome == "Succeeded" and landing.rev ~= nil then
    if landing.rev == applied then
      running = true
    elseif running and previous == nil then
      previous = landing.rev
    end
  end
end
if previous == nil then
  error("no landing before the one of " .. applied .. " is in status.history")
end
obj.spec.flake.rev = previous
obj.spec.flake.ref = nil
return obj
