//! The configuration of the node's programs.

use std::path::Path;

use serde_json::json;

use crate::world::BRIDGE_ADDRESS;

/// Where containerd listens. Each world has a `/run` of its own.
pub(super) const SOCKET: &str = "/run/containerd/containerd.sock";

/// How pods are connected: a bridge of their own, and out of it by the node's address.
pub(super) fn network() -> String {
    let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] });
    let bridge = json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "ipam": ipam });
    let ports = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [bridge, ports] }).to_string()
}

pub(super) fn containerd(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        r#"version = 3
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
path = "{directory}/opt"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.example.test/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
# Where the machine may not lower oom_score_adj, runc dies with "can't get final child's PID from pipe"
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{directory}/cni"
"#
    )
}

pub(super) fn kubelet(directory: &Path, cgroup: &str) -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": BRIDGE_ADDRESS,
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "healthzPort": 0,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup,
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "resolvConf": "",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "podLogsDir": directory.join("pods"),
        "volumePluginDir": directory.join("plugins"),
        // The machine is shared with whoever works on it: its memory and disk are no reason to evict
        "evictionHard": { "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
    })
    .to_string()
}
