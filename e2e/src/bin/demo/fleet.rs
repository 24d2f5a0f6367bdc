//! What the demonstration is about: three hosts, their repository, a control plane and the controller; and what is true of them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nixos_host_e2e::{
    ControlPlane, Controller, Host, Kubectl, Repository,
    controller::Options,
    flake::{Fleet as Knobs, Server},
    scenario::condition,
    until,
    world::{KeyPair, run_directory, write},
};
use serde_json::{Value, json};

use crate::terminal::Terminal;

/// Nothing waits this long when all is well.
const SOON: Duration = Duration::from_secs(120);

/// The names of the hosts: of their NixOSHosts, of their configurations and in `ssh.conf`.
pub(crate) const NAMES: [&str; 3] = ["web-1", "web-2", "web-3"];

/// All of it. Everything ends when it is dropped.
pub(crate) struct Fleet {
    controller: Option<Controller>,
    /// The hosts, in the order of [`NAMES`].
    pub(crate) hosts: Vec<Host>,
    server: Server,
    repository: Repository,
    kubectl: Kubectl,
    plane: Arc<ControlPlane>,
    directory: PathBuf,
}

/// Where the commands that are shown are run.
pub(crate) fn directory() -> PathBuf {
    run_directory().join("demo")
}

impl Fleet {
    /// Boots the hosts and the control plane, makes the repository and what belongs into [`directory`].
    pub(crate) async fn start(terminal: &Terminal) -> Self {
        let directory = directory();
        let busy = terminal.busy("starting");
        let hosts: Vec<_> = NAMES.iter().map(|_| Host::start()).collect();
        let plane = ControlPlane::shared().await;
        terminal.checked("etcd and kube-apiserver");
        let repository = Repository::create(|fleet| {
            for name in NAMES {
                fleet.host(name).label = Some("26.05.1".to_owned());
            }
        });
        repository.git(&["config", "user.name", "demo"]);
        repository.git(&["config", "user.email", "demo@example.test"]);
        let server = Server::start(repository.directory(), None).await;
        terminal.checked(&format!("a git server with a flake of three nixosConfigurations: {}", server.https_url("fleet.git")));
        let key = KeyPair::generate(directory.join("fleet-key"));
        for (host, name) in hosts.iter().zip(NAMES) {
            host.up().await;
            host.authorize("root", &key.public);
            let system = host.current_system();
            terminal.checked(&format!("host {name} at {}, on {}", host.address(), short(&system)));
        }
        drop(busy);
        let kubectl = plane.kubectl("default");
        let fleet = Self { controller: None, hosts, server, repository, kubectl, plane, directory };
        fleet.write_files();
        fleet
    }

    fn write_files(&self) {
        let manifests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crd/manifests");
        let manifests = manifests.canonicalize().expect("the CRD's manifests are part of the project");
        for (target, link) in [(manifests, "crd"), (self.repository.work_tree(), "fleet")] {
            std::os::unix::fs::symlink(target, self.directory.join(link)).expect("cannot make a link");
        }
        let url = self.server.https_url("fleet.git");
        let each =
            |text: &dyn Fn(&str, &Host) -> String| NAMES.iter().zip(&self.hosts).map(|(name, host)| text(name, host)).collect::<String>();
        let hosts = each(&|name, host| manifest(name, host, &url));
        let known = each(&|name, host| format!("{name} {}\n", host.host_key()));
        let ssh = each(&|name, host| format!("Host {name}\n  HostName {}\n  HostKeyAlias {name}\n", host.address()));
        let path = |file: &str| self.directory.join(file).display().to_string();
        let (key, known_hosts) = (path("fleet-key"), path("known_hosts"));
        let common = format!(
            "Host *\n  User root\n  IdentityFile {key}\n  UserKnownHostsFile {known_hosts}\n  IdentitiesOnly yes\n  LogLevel ERROR\n"
        );
        write(&known_hosts, known);
        write(self.directory.join("ssh.conf"), ssh + &common);
        write(self.directory.join("hosts.yaml"), hosts);
    }

    /// Starts the controller, and waits until it is ready.
    pub(crate) async fn start_controller(&mut self) {
        let options = Options { allow_local_flakes: false, count_executions: false, ..Options::default() };
        self.controller.insert(Controller::start(&self.plane.kubeconfig(), options)).ready().await;
    }

    /// Waits until the API server serves NixOSHosts.
    pub(crate) async fn served(&self) {
        nixos_host_e2e::wait::until_true("the CRD to be served", SOON, || self.kubectl.attempt(&["get", "nixoshosts"]).status.success())
            .await;
    }

    /// Writes another fleet into the work tree, for a command to commit.
    pub(crate) fn edit(&mut self, edit: impl FnOnce(&mut Knobs)) {
        let text = std::fs::read_to_string(self.repository.work_tree().join("fleet.json")).expect("the work tree has a fleet");
        let mut fleet: Knobs = serde_json::from_str(&text).expect("fleet.json is a fleet");
        edit(&mut fleet);
        self.repository.write("fleet.json", &serde_json::to_string_pretty(&fleet).expect("a fleet is JSON"));
    }

    /// What a host is to run at the newest commit, by `nix eval`.
    pub(crate) fn expected(&self, name: &str) -> String {
        self.repository.expected_toplevel(&self.repository.head(), name)
    }

    /// Waits until a NixOSHost says of the newest commit that it landed.
    pub(crate) async fn landed(&self, name: &str) {
        let rev = self.repository.head();
        self.wait(&format!("{name} to be Ready on {}", &rev[..7]), name, |object| {
            condition(object, "Ready").is_some_and(|ready| ready["status"] == "True")
                && object.pointer("/status/flake/applied/rev").and_then(Value::as_str) == Some(&rev)
        })
        .await;
    }

    /// Waits until a NixOSHost says of the newest commit that it was refused for `reason`.
    pub(crate) async fn refused(&self, name: &str, reason: &str) {
        let rev = self.repository.head();
        self.wait(&format!("{name} to refuse {} ({reason})", &rev[..7]), name, |object| {
            condition(object, "Ready").is_some_and(|ready| ready["status"] == "False" && ready["reason"] == reason)
                && object.pointer("/status/flake/attempted/rev").and_then(Value::as_str) == Some(&rev)
        })
        .await;
    }

    async fn wait(&self, what: &str, name: &str, holds: impl Fn(&Value) -> bool) {
        until(what, SOON, || async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            let output = self.kubectl.attempt(&["get", "-o", "json", "nixoshost", name]);
            let object: Value = serde_json::from_str(&output.stdout).unwrap_or(json!({}));
            if holds(&object) { Ok(()) } else { Err(object["status"]["conditions"].to_string()) }
        })
        .await;
    }

    /// What the controller has logged last, for whoever has to find out what went wrong.
    pub(crate) fn log(&self) -> String {
        let log = self.controller.as_ref().map(Controller::log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

fn manifest(name: &str, host: &Host, url: &str) -> String {
    let (address, key) = (host.address(), host.host_key());
    format!(
        "apiVersion: nixoshost.dev/v1alpha1
kind: NixOSHost
metadata: {{ name: {name} }}
spec:
  flake: {{ url: '{url}', ref: main }}
  connection:
    addresses: [{address}]
    sshKeyRef: {{ name: fleet-ssh }}
    hostKeys: [{key}]
  interval: 5s                  # how often the host is looked at, and the branch read
  activation: {{ settle: 2s }}    # verified a second time after this, then committed
---
"
    )
}

/// A system's hash and name, without the directory.
pub(crate) fn short(system: &str) -> String {
    let name = system.trim_start_matches("/nix/store/");
    let (hash, name) = name.split_once('-').unwrap_or(("", name));
    format!("{name} ({})", hash.chars().take(7).collect::<String>())
}
