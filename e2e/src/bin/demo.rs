//! `make demo`: what the controller does, on a real control plane and three real hosts, told step by step with the commands that show it.
#![allow(clippy::print_stdout, reason = "this is what it is for")]
#![allow(clippy::expect_used, reason = "a demo that cannot go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "the controller's rule on clocks is not the demo's")]

use std::time::{Duration, Instant};

use nixos_host_e2e::{
    Scenario,
    controller::Options,
    flake::fleet::{activation, units},
    scenario::{condition, name},
    until,
};
use serde_json::Value;

const NAMESPACE: &str = "infra";
const HOSTS: usize = 3;
/// What is shown of a host while it changes.
const COLUMNS: &str = "custom-columns=HOST:.metadata.name,READY:.status.conditions[?(@.type==\"Ready\")].status,\
                       DOING:.status.conditions[?(@.type==\"Reconciling\")].reason,REVISION:.status.revision";
const LIMIT: Duration = Duration::from_secs(120);

/// Tells what is done next.
fn step(text: &str) {
    println!("\n\x1b[1m▸ {text}\x1b[0m");
}

/// Shows a command as a person would type it.
fn typed(command: &str) {
    println!("\x1b[2m$ {command}\x1b[0m");
}

struct Demo(Scenario);

impl Demo {
    /// Runs kubectl and shows both, command and answer.
    fn kubectl(&self, arguments: &[&str]) {
        typed(&format!("kubectl -n {NAMESPACE} {}", arguments.join(" ")));
        println!("{}", self.0.kubectl.run(arguments));
    }

    fn host_line(&self, index: usize) {
        typed(&format!("ssh root@{} readlink /run/current-system", self.0.hosts[index].address()));
        println!("{}", self.0.hosts[index].ssh(&["readlink", "/run/current-system"]).stdout.trim());
    }

    /// The NixOSHost of a host as a file, the way it lies in a git repository.
    fn manifest(&self, index: usize) -> String {
        let host = &self.0.hosts[index];
        format!(
            "apiVersion: nixoshost.dev/v1alpha1\nkind: NixOSHost\nmetadata: {{ name: {name} }}\nspec:\n  flake:\n    url: {url}\n    ref: main\n  \
             connection:\n    addresses: [{address}]\n    sshKeyRef: {{ name: fleet-ssh }}\n    hostKeys: [\"{key}\"]\n  activation: {{ settle: 1s }}\n",
            name = name(index),
            url = self.0.server.https_url("fleet.git"),
            address = host.address(),
            key = host.host_key(),
        )
    }

    /// Shows conditions as they turn, until every host has landed a revision.
    async fn watch_until_landed(&self, rev: &str) {
        typed(&format!("kubectl -n {NAMESPACE} get nixoshosts --watch -o '{COLUMNS}'"));
        let mut watch = self.0.kubectl.command(&["get", "nixoshosts", "--watch", "-o", COLUMNS]);
        let mut watch = watch.spawn().expect("cannot start kubectl");
        until("the hosts to land", LIMIT, || async {
            let landed = |object: &Value| {
                object.pointer("/status/flake/applied/rev").and_then(Value::as_str) == Some(rev)
                    && condition(object, "Ready").is_some_and(|ready| ready["status"] == "True")
            };
            if (0..HOSTS).all(|index| landed(&self.0.get(index))) { Ok(()) } else { Err("see above".to_owned()) }
        })
        .await;
        let _ = (watch.kill(), watch.wait());
    }

    fn push(&mut self, message: &str, edit: impl FnOnce(&mut nixos_host_e2e::Fleet)) -> String {
        let rev = self.0.repository.commit(edit);
        typed(&format!("git commit -am '{message}' && git push    # {}", &rev[..7]));
        self.kubectl(&["annotate", "nixoshost", "--all", "--overwrite", &format!("reconcile.fluxcd.io/requestedAt={}", &rev[..7])]);
        rev
    }

    async fn failing_activation(&mut self) {
        self.push("Renew the certificates", |fleet| {
            fleet.host("web-2").snippet("certificates", activation::FAIL);
        });
        self.0.condition(1, "Ready", "False", None, LIMIT).await;
        self.kubectl(&["get", "nixoshosts"]);
        let path = "jsonpath={range .status.conditions[*]}{.type}={.status}  {.reason}: {.message}{\"\\n\"}{end}";
        self.kubectl(&["get", "nixoshost", "web-2", "-o", path]);
    }
}

#[tokio::main]
async fn main() {
    let began = Instant::now();
    step("Starting etcd, kube-apiserver, three NixOS-shaped hosts, a git server with their flake, and the controller");
    let scenario = Scenario::builder()
        .hosts(HOSTS)
        .namespace(NAMESPACE)
        .controller(Options { count_executions: false, ..Options::default() })
        .fleet(|fleet| {
            for host in fleet.hosts.values_mut() {
                host.unit("web.service", units::running(1));
            }
        })
        .start()
        .await;
    let mut demo = Demo(scenario);
    println!("up after {:.1} s; the CRD is installed (kubectl apply --server-side -f crd/manifests)", began.elapsed().as_secs_f32());

    step("A NixOSHost names a machine and the flake revision that it should run");
    println!("{}", demo.manifest(0));
    let manifests = (0..HOSTS).map(|index| demo.manifest(index)).collect::<Vec<_>>().join("---\n");
    typed(&format!("kubectl -n {NAMESPACE} apply --server-side -f hosts.yaml"));
    println!("{}", demo.0.kubectl.apply(&manifests).trim());
    let rev = demo.0.repository.head();
    demo.watch_until_landed(&rev).await;
    demo.kubectl(&["get", "nixoshosts", "-o", "wide"]);
    demo.host_line(0);

    step("A commit is pushed: all three follow, at once because they are asked to (otherwise at their interval)");
    let rev = demo.push("A new web server", |fleet| {
        for host in fleet.hosts.values_mut() {
            host.unit("web.service", units::running(2));
        }
    });
    demo.watch_until_landed(&rev).await;
    demo.kubectl(&["get", "nixoshosts"]);

    step("A commit is pushed whose activation fails on web-2: that host is back on the system before, and says why");
    demo.failing_activation().await;
    demo.host_line(1);

    println!("\nall of it in {:.0} s", began.elapsed().as_secs_f32());
    if std::env::var_os("KEEP").is_some_and(|keep| keep != "0") {
        let joined = format!("e2e/world/join kubectl -n {NAMESPACE} get nixoshosts");
        step(&format!("Left running. In another terminal: {joined}. Here: Ctrl-C ends it"));
        let _ = tokio::signal::ctrl_c().await;
    }
    step("Cleaning up");
    demo.0.finish().await;
}
