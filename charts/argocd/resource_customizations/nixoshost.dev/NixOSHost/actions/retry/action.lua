-- A revision that was rejected is held until somebody asks: the same request as reconcile, offered while the host is stalled.
local os = require("os")
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["reconcile.fluxcd.io/requestedAt"] = "By Argo CD at: " .. os.date("!%Y-%m-%dT%H:%M:%S")
return obj
