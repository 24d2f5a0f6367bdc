//! The two sides: the controller with eight hosts, and the script with eight others that run the like. Nothing is shared but the machine,
//! so that neither finds built or fetched what the other one did.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use nixos_host_e2e::{
    Host, Repository, Scenario,
    controller::Options,
    flake::{
        Server,
        fleet::{Fill, Fleet, Packages, units},
        server::authority,
    },
    process::{output, run},
    scenario::{condition, name},
    world::{KeyPair, fresh_directory, write},
};
use serde_json::{Value, json};

/// Hosts on each side.
pub(crate) const HOSTS: usize = 8;

/// Nothing waits this long when all is well.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// A fleet at a revision: 40 packages that all hosts have, two of which change, a package of each host's own that changes, and a unit that is restarted.
pub(crate) fn fleet(fleet: &mut Fleet, revision: u32) {
    let packages = |count, kib, changed| Some(Packages { count, kib, kind: Fill::Random, rev: revision, changed });
    for knobs in fleet.hosts.values_mut() {
        knobs.shared = packages(40, 64, 2);
        knobs.own = packages(4, 16, 1);
        knobs.rev = Some(revision);
        knobs.unit("web.service", units::running(revision));
    }
}

/// The controller and its hosts.
pub(crate) struct Ours {
    /// Control plane, hosts, repository, controller.
    pub(crate) scenario: Scenario,
    requests: u32,
}

impl Ours {
    /// Hosts on the base system, no NixOSHost yet.
    pub(crate) async fn start() -> Self {
        let options = Options { count_executions: false, ..options() };
        let scenario = Scenario::builder().hosts(HOSTS).fleet(|all| fleet(all, 0)).controller(options).start().await;
        Self { scenario, requests: 0 }
    }

    /// All NixOSHosts, at one revision.
    fn manifests(&self, rev: &str, settle: &str) -> String {
        let items: Vec<Value> = (0..HOSTS)
            .map(|index| {
                let mut manifest = self.scenario.manifest(index);
                let spec = &mut manifest["spec"];
                spec["flake"] = json!({ "url": self.scenario.server.https_url("fleet.git"), "rev": rev });
                spec["activation"] = json!({ "settle": settle });
                spec["interval"] = json!("24h");
                manifest
            })
            .collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
    }

    /// `kubectl apply` of a revision for all hosts; seconds until all are Ready on it.
    pub(crate) async fn apply(&self, rev: &str, settle: &str) -> f64 {
        let manifests = self.manifests(rev, settle);
        let began = Instant::now();
        self.scenario.kubectl.apply(&manifests);
        self.wait(|status| status.pointer("/flake/applied/rev").and_then(Value::as_str) == Some(rev)).await;
        let took = began.elapsed().as_secs_f64();
        check(&self.scenario.hosts, &self.scenario.repository, rev);
        took
    }

    /// `kubectl annotate` of all hosts with a request; seconds until each was looked at anew.
    pub(crate) async fn look(&mut self) -> f64 {
        self.requests += 1;
        let token = format!("request-{}", self.requests);
        let began = Instant::now();
        let annotation = format!("reconcile.fluxcd.io/requestedAt={token}");
        self.scenario.kubectl.run(&["annotate", "--overwrite", "nixoshosts", "--all", &annotation]);
        self.wait(|status| status["lastHandledReconcileAt"] == *token).await;
        began.elapsed().as_secs_f64()
    }

    async fn wait(&self, holds: impl Fn(&Value) -> bool) {
        let began = Instant::now();
        let waits = |index: &usize| {
            let object = self.scenario.oracle().latest(&name(*index)).unwrap_or_default();
            !(holds(&object["status"]) && condition(&object, "Ready").is_some_and(|ready| ready["status"] == "True"))
        };
        let mut waiting: Vec<usize> = (0..HOSTS).collect();
        while !waiting.is_empty() {
            assert!(began.elapsed() < LONG, "hosts {waiting:?} did not get there:\n{}", self.scenario.report());
            tokio::time::sleep(Duration::from_millis(10)).await;
            waiting.retain(waits);
        }
    }

    /// Another commit; its revision.
    pub(crate) fn commit(&mut self, revision: u32) -> String {
        self.scenario.repository.commit(|all| fleet(all, revision))
    }
}

/// The options of every controller here: what `NHC_LOG` says, nothing local.
pub(crate) fn options() -> Options {
    Options { allow_local_flakes: false, ..Options::default() }
}

/// The script and its hosts.
pub(crate) struct Theirs {
    hosts: Vec<Host>,
    repository: Repository,
    server: Server,
    ssh_options: String,
}

impl Theirs {
    /// Hosts on the base system.
    pub(crate) async fn start() -> Self {
        let hosts: Vec<_> = (0..HOSTS).map(|_| Host::start()).collect();
        let repository = Repository::create(|all| {
            for index in 0..HOSTS {
                all.host(&name(index));
            }
            fleet(all, 0);
        });
        let server = Server::start(repository.directory(), None).await;
        for host in &hosts {
            host.up().await;
        }
        let ssh_options = ssh_options(&hosts);
        Self { hosts, repository, server, ssh_options }
    }

    /// Runs the script for a revision; the seconds that it takes.
    pub(crate) fn deploy(&self, rev: &str) -> f64 {
        let url = format!("{}?rev={rev}", self.server.https_url("fleet.git"));
        let hosts = self.hosts.iter().enumerate().map(|(index, host)| format!("{}={}", name(index), host.address()));
        let mut command = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("plain-deploy"));
        command.arg(url).args(hosts).env("NIX_SSHOPTS", &self.ssh_options);
        for variable in ["NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"] {
            command.env(variable, authority());
        }
        let began = Instant::now();
        let output = run(&mut command);
        let took = began.elapsed().as_secs_f64();
        assert!(output.status.success(), "plain-deploy failed:\n{}{}", output.stdout, output.stderr);
        check(&self.hosts, &self.repository, rev);
        took
    }

    /// Another commit; its revision.
    pub(crate) fn commit(&mut self, revision: u32) -> String {
        self.repository.commit(|all| fleet(all, revision))
    }

    /// The hosts.
    pub(crate) fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What a revision is built from.
    pub(crate) fn repository(&self) -> &Repository {
        &self.repository
    }
}

/// Reads on the hosts that each runs what the revision evaluates to.
fn check(hosts: &[Host], repository: &Repository, rev: &str) {
    let mut command = Command::new("nix");
    command.args(["eval", "--json", "--option", "eval-cache", "false", "--apply"]);
    command.arg("builtins.mapAttrs (name: system: system.config.system.build.toplevel.outPath)");
    command.arg(format!("{}?rev={rev}#nixosConfigurations", repository.file_url()));
    let expected: Value = serde_json::from_str(&output(&mut command)).expect("nix eval --json prints JSON");
    for (index, host) in hosts.iter().enumerate() {
        assert_eq!(expected[name(index)], *host.current_system(), "{} does not run {rev}", name(index));
    }
}

/// Options for OpenSSH with which these hosts are reached without a question; the hosts accept the key from now on.
pub(crate) fn ssh_options(hosts: &[Host]) -> String {
    let (_, directory) = fresh_directory("bench");
    let key = KeyPair::generate(directory.join("key"));
    let known: Vec<_> = hosts.iter().map(|host| format!("{} {}", host.address(), host.host_key())).collect();
    write(directory.join("known_hosts"), known.join("\n") + "\n");
    for host in hosts {
        host.authorize("root", &key.public);
    }
    let (key, known) = (key.file.display().to_string(), directory.join("known_hosts").display().to_string());
    format!("-F /dev/null -i {key} -o IdentitiesOnly=yes -o UserKnownHostsFile={known} -o LogLevel=ERROR")
}

/// Builds all configurations of a revision without leaving an evaluation behind that either side would find.
pub(crate) fn prebuild(repository: &Repository, rev: &str) {
    let mut command = Command::new("nix");
    command.args(["build", "--no-link", "--quiet", "--option", "eval-cache", "false"]);
    command.args(
        (0..HOSTS)
            .map(|index| format!("{}?rev={rev}#nixosConfigurations.{}.config.system.build.toplevel", repository.file_url(), name(index))),
    );
    output(&mut command);
}

/// Waits until the machine has done what it was still doing: the next sample is not to pay for the last one.
pub(crate) async fn calm() {
    let _ = run(&mut Command::new("sync"));
    tokio::time::sleep(Duration::from_millis(300)).await;
}
