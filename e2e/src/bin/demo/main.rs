//! `make demo`: the way of a NixOSHost from `kubectl apply` to a landed system, a commit that three hosts follow, and one that a host refuses.
//!
//! What it shows are real commands with what they really print; what it claims it has read on the hosts themselves. Run inside `e2e/world/enter`.
#![allow(clippy::expect_used, clippy::panic, reason = "a demonstration that cannot go on says so and ends")]
#![allow(clippy::disallowed_methods, clippy::print_stderr, reason = "the controller's rules are not those of what shows it")]

mod fleet;
mod table;
mod terminal;

use std::{io::Write, time::Instant};

use fleet::{Fleet, NAMES, directory, short};
use nixos_host_e2e::world::{run_directory, write};
use table::Table;
use terminal::Terminal;

/// What fails on web-2, as activation scripts do.
const BROKEN: &str = "echo 'cannot migrate the database: no space left on device' >&2; exit 1";

/// The rows of a table of NixOSHosts as they change.
const CHANGES: &str = "kubectl get nixoshosts --watch-only";

#[tokio::main]
async fn main() {
    std::fs::create_dir_all(directory()).expect("cannot make the directory of the demonstration");
    let terminal = Terminal::new(directory());
    explain_failures(terminal.clone());
    let mut demo = Demo { terminal, times: Vec::new(), began: Instant::now(), fleet: None };
    demo.run().await;
}

/// A panic is the end of the demonstration: what happened, in words.
fn explain_failures(terminal: Terminal) {
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let message = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("something that cannot be said");
        terminal.end(false, &format!("The demonstration failed: {message}"));
    }));
}

struct Demo {
    terminal: Terminal,
    times: Vec<(&'static str, f64)>,
    began: Instant,
    fleet: Option<Fleet>,
}

impl Demo {
    async fn run(&mut self) {
        self.terminal
            .title("nixos-host-controller: three machines run what a git repository says, and go back by themselves when that is broken");
        self.terminal
            .note("Everything is real (kube-apiserver, systemd, sshd, Nix, git) and runs in namespaces of its own on this machine.");
        self.start().await;
        self.land().await;
        self.follow().await;
        self.refuse().await;
        if std::env::var("KEEP").is_ok_and(|keep| !matches!(keep.as_str(), "" | "0")) {
            self.keep().await;
        }
        self.clean_up();
    }

    fn fleet(&self) -> &Fleet {
        self.fleet.as_ref().expect("it was started")
    }

    fn took(&mut self, what: &'static str, began: Instant) {
        self.times.push((what, began.elapsed().as_secs_f64()));
    }

    async fn start(&mut self) {
        let began = Instant::now();
        self.terminal.step("Start a control plane, a git server and three hosts");
        self.fleet = Some(Fleet::start(&self.terminal).await);
        self.terminal.step("Teach the API server what a NixOSHost is");
        self.terminal.run("kubectl apply --server-side -f crd/");
        self.fleet().served().await;
        self.terminal.step("Store the SSH key that the hosts accept, and start the controller");
        self.terminal.run("kubectl create secret generic fleet-ssh --type=kubernetes.io/ssh-auth --from-file=ssh-privatekey=fleet-key");
        let busy = self.terminal.busy("starting the controller");
        self.fleet.as_mut().expect("it was started").start_controller().await;
        drop(busy);
        self.terminal.checked("the controller is ready");
        self.took("started", began);
    }

    async fn land(&mut self) {
        self.terminal.step("Say which machine runs what: one NixOSHost each, here the first of three");
        self.terminal.run("head -n 11 hosts.yaml");
        let began = Instant::now();
        self.terminal.run("kubectl apply -f hosts.yaml");
        self.terminal.step("Watch them land: evaluated and built once, copied, activated, verified over a new connection, committed");
        self.watch_until_landed("kubectl get nixoshosts --watch").await;
        self.took("landed", began);
        self.ask_the_hosts();
    }

    async fn follow(&mut self) {
        self.terminal.step("Push a commit: nobody runs kubectl, all three follow the branch");
        self.fleet_mut().edit(|fleet| {
            for name in NAMES {
                fleet.host(name).label = Some("26.05.2".to_owned());
            }
        });
        let began = Instant::now();
        self.terminal.run("git -C fleet commit -qam 'All: NixOS 26.05.2' && git -C fleet push -q origin main");
        self.watch_until_landed(CHANGES).await;
        self.took("followed", began);
        self.ask_the_hosts();
    }

    async fn refuse(&mut self) {
        self.terminal.step("Push a commit whose activation fails on web-2: that host goes back to its old system, the others go on");
        let before = self.fleet().hosts[1].current_system();
        self.fleet_mut().edit(|fleet| {
            for name in NAMES {
                fleet.host(name).label = Some("26.05.3".to_owned());
            }
            fleet.host("web-2").snippet("migrate", BROKEN);
        });
        let began = Instant::now();
        self.terminal.run("git -C fleet commit -qam 'All: NixOS 26.05.3, migrate web-2' && git -C fleet push -q origin main");
        let (watch, busy) = (self.watch(CHANGES), self.terminal.busy("waiting for web-2 to refuse it, and for the others"));
        self.fleet().refused("web-2", "ActivationFailed").await;
        for name in ["web-1", "web-3"] {
            self.fleet().landed(name).await;
        }
        drop(busy);
        drop(watch);
        self.took("went back", began);
        self.terminal.step("Ask why, and what became of it");
        self.terminal.run(r#"kubectl get nixoshost web-2 -o jsonpath='{.status.conditions[?(@.type=="Ready")].message}{"\n"}'"#);
        self.terminal.run(
            r#"kubectl get nixoshost web-2 -o jsonpath='{range .status.history[*]}{.time}  {.revision}  {.outcome}  {.reason}{"\n"}{end}'"#,
        );
        self.went_back(&before);
    }

    /// Reads on web-2 itself that it is where it was, and on the others that they went on.
    fn went_back(&self, before: &str) {
        let fleet = self.fleet();
        let host = &fleet.hosts[1];
        for (what, system) in [("runs", host.current_system()), ("boots", host.boot_default()), ("has as profile", host.profile())] {
            assert_eq!(system, before, "web-2 {what} another system than before the commit");
        }
        let expected: Vec<_> = NAMES.iter().map(|name| if *name == "web-2" { before.to_owned() } else { fleet.expected(name) }).collect();
        self.read(&expected);
        self.terminal.checked("web-2 runs and boots its old system, web-1 and web-3 the new one: read on the hosts themselves");
    }

    fn fleet_mut(&mut self) -> &mut Fleet {
        self.fleet.as_mut().expect("it was started")
    }

    /// Shows each row that changes, from `command` on.
    fn watch(&self, command: &str) -> terminal::Running {
        let mut table = Table::default();
        self.terminal.start(command, move |line| table.row(line))
    }

    async fn watch_until_landed(&self, command: &str) {
        let (_watch, _busy) = (self.watch(command), self.terminal.busy("waiting for all three"));
        for name in NAMES {
            self.fleet().landed(name).await;
        }
    }

    /// Reads on the hosts themselves that each runs and boots what the newest commit evaluates to.
    fn ask_the_hosts(&self) {
        let fleet = self.fleet();
        let expected: Vec<_> = NAMES.iter().map(|name| fleet.expected(name)).collect();
        self.read(&expected);
        for (host, expected) in fleet.hosts.iter().zip(&expected) {
            assert_eq!([&host.profile(), &host.boot_default()], [expected; 2], "profile and boot default of {}", host.name());
        }
        self.terminal.checked("each host runs and boots what `nix eval` gives for this commit: read on the hosts themselves");
    }

    fn read(&self, expected: &[String]) {
        let read = self.terminal.run("for host in web-1 web-2 web-3; do ssh -F ssh.conf $host readlink /run/current-system; done");
        let read: Vec<_> = read.lines().collect();
        assert_eq!(read, expected, "the hosts do not run what they should");
    }

    /// Leaves everything running until somebody ends it.
    async fn keep(&mut self) {
        let run = run_directory();
        write(run.join("demo/kept"), "");
        let name = run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let directory = directory().display().to_string();
        self.terminal.end(true, &self.summary());
        println(&format!(
            "
KEEP=1: everything goes on running. In another shell, in this directory:

   e2e/world/join {name} kubectl get nixoshosts -o wide
   e2e/world/join {name} kubectl describe nixoshost web-2
   e2e/world/join {name} kubectl get events
   e2e/world/join {name} ssh -F {directory}/ssh.conf web-1
   e2e/world/join {name} bash                    # the fleet's work tree is {directory}/fleet: commit and push

Ctrl-C here or `make demo-stop` there ends it and leaves nothing."
        ));
        std::future::pending::<()>().await;
    }

    fn clean_up(&mut self) {
        let began = Instant::now();
        self.terminal.step("Clean up: the NixOSHosts are deleted (which leaves the machines as they are), then everything ends");
        self.terminal.run("kubectl delete -f hosts.yaml");
        let busy = self.terminal.busy("stopping the controller, the hosts and the control plane");
        drop(self.fleet.take());
        drop(busy);
        self.took("cleaned up", began);
        self.terminal.end(true, &self.summary());
    }

    fn summary(&self) -> String {
        let times: Vec<_> = self.times.iter().map(|(what, seconds)| format!("{what} {seconds:.0} s")).collect();
        format!("All as it should be, in {:.0} s: {}", self.began.elapsed().as_secs_f64(), times.join(" · "))
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if let Some(fleet) = self.fleet.as_ref().filter(|_| std::thread::panicking()) {
            eprintln!("\nThe controller's last words:\n{}", fleet.log());
            for host in &fleet.hosts {
                eprintln!("{} runs {}", host.name(), short(&host.current_system()));
            }
        }
    }
}

fn println(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
