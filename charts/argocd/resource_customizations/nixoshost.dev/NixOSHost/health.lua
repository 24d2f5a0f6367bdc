-- NixOSHost follows kstatus: Ready is always there; Reconciling and Stalled only while they are true.
-- https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md

-- A machine of which nothing has been known for so many seconds is Degraded, although the controller keeps trying.
local grace = 600

local os = require("os")

local conditions = {}
for _, condition in ipairs(obj.status ~= nil and obj.status.conditions or {}) do
  conditions[condition.type] = condition
end

local function holds(type, status)
  return conditions[type] ~= nil and conditions[type].status == status
end

local function health(status, message)
  return { status = status, message = message }
end

-- The moment that many seconds ago as conditions write it: texts of this form compare as times do. os.date knows local time only.
local function ago(seconds)
  local offset = os.time(os.date("*t")) - os.time(os.date("!*t"))
  return os.date("%Y-%m-%dT%H:%M:%SZ", os.time() - offset - seconds)
end

if obj.metadata.deletionTimestamp ~= nil then
  return health("Progressing", "being deleted; the machine stays as it is")
end
if obj.spec.suspend then
  return health("Suspended", "spec.suspend is true: nothing is done")
end
-- Until the controller has seen this spec, its conditions speak of another one: a sync wave must not pass on them.
if conditions.Ready == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "waiting for the controller to see this spec")
end

local ready = conditions.Ready
local said = ready.reason .. ": " .. ready.message
if holds("Stalled", "True") then
  return health("Degraded", said)
end
if holds("Ready", "False") and ready.reason == "Braked" then
  return health("Suspended", said)
end
if holds("Reconciling", "True") then
  -- UpToDate is Unknown from the first look that failed on, also while the next one is under way; Ready and Reachable change with each look.
  local lost = not holds("Reachable", "True") or holds("Ready", "False")
  if lost and holds("UpToDate", "Unknown") and conditions.UpToDate.lastTransitionTime < ago(grace) then
    local why = holds("Ready", "False") and said or "looking at the machine again"
    return health("Degraded", "nothing known since " .. conditions.UpToDate.lastTransitionTime .. "; " .. why)
  end
  return health("Progressing", holds("Ready", "False") and said or conditions.Reconciling.reason .. ": " .. conditions.Reconciling.message)
end
if holds("Ready", "True") then
  return health("Healthy", ready.message)
end
return health("Degraded", said)
