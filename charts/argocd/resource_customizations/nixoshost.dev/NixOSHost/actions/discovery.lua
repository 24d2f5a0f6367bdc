local suspended = obj.spec.suspend == true

local stalled = false
for _, condition in ipairs(obj.status ~= nil and obj.status.conditions or {}) do
  if condition.type == "Stalled" and condition.status == "True" then
    stalled = true
  end
end

-- Something else was landed before what runs: as in rollback/action.lua.
local flake = obj.status ~= nil and obj.status.flake or {}
local applied = flake.applied ~= nil and flake.applied.rev or nil
local running, rollback = false, false
for _, landing in ipairs(applied ~= nil and obj.status.history or {}) do
  if landing.outcome == "Succeeded" and landing.rev == applied then
    running = true
  elseif landing.outcome == "Succeeded" and landing.rev ~= nil and running then
    rollback = true
  end
end

return {
  reconcile = { disabled = suspended },
  retry = { disabled = suspended or not stalled, displayName = "Retry what was rejected" },
  suspend = { disabled = suspended },
  resume = { disabled = not suspended },
  rollback = { disabled = suspended or not rollback, displayName = "Roll back to the previous system" },
}
