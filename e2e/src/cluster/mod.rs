//! A cluster of one node: a real kubelet, containerd, kube-proxy, scheduler and controller-manager on a real control plane, so that pods are pods.
//!
//! The node is this world, and its address the bridge's: pods reach hosts and git servers as any machine of that network does. All of its processes,
//! pods too, end with the world.

mod configuration;
pub mod image;
pub mod volume;

use std::{
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

pub use self::{image::Image, volume::Volume};
use crate::{
    control_plane::ControlPlane,
    kubectl::Kubectl,
    process::{Daemon, mortal, output},
    wait::until_true,
    world::{BRIDGE_ADDRESS, cgroup, free_port, fresh_directory, run_directory, write},
};

/// The name of the node.
pub const NODE: &str = "node-1";

/// What the node's programs write to by fixed names: kept off the machine's own.
const PRIVATE: [&str; 3] = ["/var/lib/kubelet", "/var/lib/cni", "/var/log/containers"];

/// A control plane with a node; one to a world. All of it ends when it is dropped.
pub struct Cluster {
    /// Its control plane.
    pub plane: Arc<ControlPlane>,
    directory: PathBuf,
    kubelet: Mutex<Option<Daemon>>,
    /// The others; they end with this.
    daemons: Vec<Daemon>,
}

impl Cluster {
    /// Starts it, and waits until the node is ready for pods.
    pub async fn start() -> Self {
        let plane = Arc::new(ControlPlane::start_for_pods().await);
        std::fs::copy(plane.kubeconfig(), run_directory().join("kubeconfig")).expect("cannot write the world's kubeconfig");
        // Where the disks of hosts are, overlays can be made: those of containers too
        let directory = run_directory().join("hosts/node");
        write(directory.join("cni/10-pods.conflist"), configuration::network());
        write(directory.join("containerd.toml"), configuration::containerd(&directory));
        write(directory.join("kubelet.yaml"), configuration::kubelet(&directory, &node_cgroup()));
        for path in PRIVATE {
            std::fs::create_dir_all(path).unwrap_or_else(|error| panic!("cannot make {path}: {error}"));
            output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", path]));
        }
        // The first `ip netns add` would do this, over the network namespaces of pods, which then could not be removed
        output(Command::new("mount").args(["--bind", "--make-shared", "/run/netns", "/run/netns"]));
        output(Command::new("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
        let mut cluster = Self { plane, directory, kubelet: Mutex::default(), daemons: Vec::new() };
        cluster.start_daemons();
        until_true("containerd to answer", Duration::from_secs(60), || {
            cluster.ctr(&["version"]).status().is_ok_and(|status| status.success())
        })
        .await;
        cluster.import(&Image::pause());
        cluster.start_kubelet();
        cluster.kubectl("default").run(&["wait", "--for=create", &format!("node/{NODE}"), "--timeout=120s"]);
        cluster.ready();
        cluster
    }

    fn start_daemons(&mut self) {
        let kubeconfig = format!("--kubeconfig={}", self.plane.kubeconfig().display());
        let mut containerd = mortal("containerd");
        containerd.arg("--config").arg(self.directory.join("containerd.toml"));
        let mut manager = mortal("kube-controller-manager");
        manager.args([&kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1"]);
        manager.arg(format!("--secure-port={}", free_port()));
        manager.arg("--service-account-private-key-file").arg(self.plane.certificate("service-accounts.key"));
        manager.arg("--root-ca-file").arg(self.plane.certificate("apiserver.crt"));
        let mut scheduler = mortal("kube-scheduler");
        scheduler.args([&kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1"]);
        scheduler.arg(format!("--secure-port={}", free_port()));
        let mut proxy = mortal("kube-proxy");
        proxy.args([&kubeconfig, "--hostname-override", NODE, "--proxy-mode=iptables", "--conntrack-max-per-core=0"]);
        proxy.arg(format!("--metrics-bind-address=127.0.0.1:{}", free_port()));
        proxy.arg(format!("--healthz-bind-address=127.0.0.1:{}", free_port()));
        let commands =
            [("containerd", containerd), ("kube-controller-manager", manager), ("kube-scheduler", scheduler), ("kube-proxy", proxy)];
        self.daemons = commands.into_iter().map(|(name, command)| Daemon::start(name, command, &self.log_file(name))).collect();
    }

    /// Starts the kubelet, if it was killed.
    pub fn start_kubelet(&self) {
        let mut command = mortal("kubelet");
        command.arg("--config").arg(self.directory.join("kubelet.yaml"));
        command.arg("--kubeconfig").arg(self.plane.kubeconfig());
        command.arg("--root-dir").arg(self.directory.join("kubelet"));
        command.arg("--cert-dir").arg(self.directory.join("pki"));
        command.args(["--hostname-override", NODE, "--node-ip", BRIDGE_ADDRESS]);
        *self.kubelet.lock().expect("no test panics with the lock held") =
            Some(Daemon::start("kubelet", command, &self.log_file("kubelet")));
    }

    /// Kills the kubelet (SIGKILL). Pods go on running, and nobody starts again what ends in them.
    pub fn kill_kubelet(&self) {
        *self.kubelet.lock().expect("no test panics with the lock held") = None;
    }

    /// Waits until the node is ready.
    pub fn ready(&self) {
        self.kubectl("default").run(&["wait", "--for=condition=Ready", &format!("node/{NODE}"), "--timeout=120s"]);
    }

    /// kubectl in `namespace`, as administrator.
    pub fn kubectl(&self, namespace: &str) -> Kubectl {
        self.plane.kubectl(namespace)
    }

    /// Gives an image to the node: no registry is asked for it.
    pub fn import(&self, image: &Image) {
        output(self.ctr(&["images", "import"]).arg(&image.file));
    }

    /// containerd's client, with these arguments.
    pub fn ctr(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command.args(["--address", configuration::SOCKET, "--namespace", "k8s.io"]).args(arguments);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    }

    /// Where the kubelet looks for seccomp profiles of type `Localhost`.
    pub fn seccomp_profiles(&self) -> PathBuf {
        self.directory.join("kubelet/seccomp")
    }

    /// Where a program of the node logs.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }
}

/// The cgroup of all pods, below the world's own in every tree that the machine has. `enter` removes it.
fn node_cgroup() -> String {
    let (_, number) = fresh_directory("nodes");
    let run = cgroup();
    let [parent, run] = [run.parent(), Some(run.as_path())]
        .map(|path| path.and_then(|path| path.file_name()).expect("the world's cgroup has a parent").to_string_lossy().into_owned());
    let name = format!("/{parent}/{run}/node-{}", number.file_name().expect("it has a number").to_string_lossy());
    for tree in cgroup_trees() {
        let path = tree.join(name.trim_start_matches('/'));
        std::fs::create_dir_all(&path).unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
    }
    name
}

/// Each of version 1's trees, or version 2's one.
fn cgroup_trees() -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("a process can read its mounts");
    let trees = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        (path.starts_with("/sys/fs/cgroup") && kind.starts_with("cgroup")).then(|| path.into())
    });
    trees.collect()
}
