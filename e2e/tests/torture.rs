//! Faults on real hosts, under a real controller: each during each of copy, activation, verification and commit. `make torture HOSTS=8 N=200` does it
//! N times at random, and prints what came of it; `make e2e` does each once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nixos_host_e2e::flake::fleet::{Fill, Fleet, Packages, activation};
use nixos_host_e2e::scenario::{condition, name};
use nixos_host_e2e::{Host, Scenario};
use serde_json::{Value, json};

const ACTIVATE_WITHIN: u64 = 20;
const COMMIT_WITHIN: u64 = 15;
/// What a host has on top of its own deadlines to be back.
const GRACE: u64 = 30;
/// For the status to agree with the host: an interval, and the delays after failed tries.
const TRUE_WITHIN: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Copy,
    Activate,
    Verify,
    Commit,
}

const STAGES: [Stage; 4] = [Stage::Copy, Stage::Activate, Stage::Verify, Stage::Commit];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    ControllerKilled,
    LinkCut,
    LinkBlackholed,
    SshdStopped,
    PowerCut,
    Reboot,
    PersonSwitches,
    ApiServerKilled,
    ApiServerHangs,
    DiskFull,
    BootFull,
    /// The new system itself: which one, in the order of [`BAD`].
    System(usize),
}

const FAULTS: [Fault; 9] = [
    Fault::ControllerKilled,
    Fault::LinkCut,
    Fault::LinkBlackholed,
    Fault::SshdStopped,
    Fault::PowerCut,
    Fault::Reboot,
    Fault::PersonSwitches,
    Fault::ApiServerKilled,
    Fault::ApiServerHangs,
];

/// Configurations that must not stay.
const BAD: [&str; 6] = ["hangs", "fails", "kills-its-session", "without-sshd", "wrong-firewall", "without-network"];
/// Configurations that are all right, and take their time.
const GOOD: [&str; 4] = ["good-0", "good-1", "good-2", "good-3"];

/// Configurations whose copy takes its time: a host gets each of them once.
const LARGE: [&str; 8] = ["large-0", "large-1", "large-2", "large-3", "large-4", "large-5", "large-6", "large-7"];

/// A unit that does one thing while it runs, and undoes it.
fn while_it_runs(start: &str, stop: &str) -> String {
    format!("[Service]\nType=oneshot\nRemainAfterExit=true\nExecStart={start}\nExecStop={stop}\n")
}

fn fleet(fleet: &mut Fleet) {
    for (rev, good) in (0..).zip(GOOD) {
        fleet.host(good).snippet("slow", activation::sleep(3)).rev = Some(rev);
    }
    for (rev, large) in (0..).zip(LARGE) {
        fleet.host(large).own = Some(Packages { count: 8, kib: 1024, kind: Fill::Random, rev, changed: 8 });
    }
    fleet.host("hangs").snippet("trial", activation::HANG);
    fleet.host("fails").snippet("trial", activation::FAIL);
    fleet.host("kills-its-session").snippet("trial", activation::STOP_SSHD);
    let mask = (
        "/usr/bin/systemctl mask --runtime --now ssh.service",
        "/bin/sh -c 'systemctl unmask --runtime ssh.service; systemctl start --no-block ssh.service'",
    );
    fleet.host("without-sshd").unit("trial.service", while_it_runs(mask.0, mask.1));
    let route = ("/usr/sbin/ip route replace blackhole 10.77.0.1", "/usr/sbin/ip route del blackhole 10.77.0.1");
    fleet.host("wrong-firewall").unit("trial.service", while_it_runs(route.0, route.1));
    let link = ("/usr/sbin/ip link set eth0 down", "/usr/sbin/ip link set eth0 up");
    fleet.host("without-network").unit("trial.service", while_it_runs(link.0, link.1));
}

/// What came of one fault.
#[derive(Default)]
struct Cell {
    outcomes: BTreeMap<String, u32>,
}

type Trial = (Fault, Option<Stage>);

struct Torture {
    scenario: Scenario,
    /// Toplevels, by configuration.
    systems: BTreeMap<&'static str, String>,
    queue: Mutex<VecDeque<Trial>>,
    table: Mutex<BTreeMap<Trial, Cell>>,
    /// What one host does to all the others, one at a time.
    shared: tokio::sync::Mutex<()>,
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

impl Torture {
    fn host(&self, index: usize) -> &Host {
        &self.scenario.hosts[index]
    }

    /// Breaks something, and mends it where that is not the host's own task.
    async fn strike(&self, index: usize, fault: Fault) {
        let host = self.host(index);
        match fault {
            Fault::ControllerKilled => {
                let _one = self.shared.lock().await;
                self.scenario.controller().kill();
                seconds(1).await;
                self.scenario.controller().start_again();
                self.scenario.controller().ready().await;
            }
            Fault::LinkCut => (host.cut_link(), seconds(6).await, host.heal_link()).2,
            Fault::LinkBlackholed => (host.blackhole(), seconds(6).await, host.unblackhole()).2,
            Fault::SshdStopped => (host.stop_sshd(), seconds(6).await, drop(host.exec(&["systemctl", "start", "ssh.service"]))).2,
            Fault::PowerCut => (host.power_cut(), host.power_on()).1,
            Fault::Reboot => host.reboot().await,
            Fault::PersonSwitches => {
                // The base system, which every host has
                let booted = host.output(&["readlink", "-f", "/nix/var/nix/profiles/system-1-link"]);
                host.switch(&booted, "test");
            }
            Fault::ApiServerKilled => {
                let _one = self.shared.lock().await;
                self.scenario.plane.kill_api_server();
                seconds(3).await;
                self.scenario.plane.start_api_server();
                self.scenario.plane.ready().await;
            }
            Fault::ApiServerHangs => {
                let _one = self.shared.lock().await;
                self.scenario.plane.freeze_api_server();
                seconds(5).await;
                self.scenario.plane.thaw_api_server();
            }
            Fault::DiskFull => (host.small_filesystem("/nix", 2), seconds(8).await, host.large_filesystem("/nix")).2,
            Fault::BootFull => {
                host.small_filesystem("/boot", 1);
                host.fill("/boot");
                seconds(8).await;
                // Space is freed; the disk is not another one, on which a landing that had ended in spite of it would not be
                host.room_again("/boot");
            }
            Fault::System(_) => {}
        }
    }

    /// The NixOSHost, once the API server answers.
    fn object(&self, index: usize) -> Option<Value> {
        let output = self.scenario.kubectl.attempt(&["get", "-o", "json", "--request-timeout=5s", "nixoshost", &name(index)]);
        serde_json::from_str(&output.stdout).ok()
    }

    fn is_at(&self, index: usize, stage: Stage) -> bool {
        let host = self.host(index);
        let word = match stage {
            // What takes the paths runs on the host
            Stage::Copy => {
                return host.init().is_some() && host.exec(&["sh", "-c", "grep -qas '[-]-serve' /proc/[0-9]*/cmdline"]).status.success();
            }
            Stage::Activate => "activating",
            Stage::Verify => "activated",
            Stage::Commit => "committing",
        };
        host.init().is_some() && host.exec(&["cat", "/run/nixos-host-controller/state"]).stdout.trim() == word
    }

    /// Lets a configuration land, with a fault in the middle. What came of it; `Err` is a broken promise.
    async fn trial(&self, index: usize, (fault, stage): Trial, configuration: &'static str) -> Result<String, String> {
        let host = self.host(index);
        let (old, new) = (host.current_system(), &self.systems[configuration]);
        if stage == Some(Stage::Copy) {
            host.slow_link("16mbit");
        }
        let activation =
            json!({"activateWithin": format!("{ACTIVATE_WITHIN}s"), "commitWithin": format!("{COMMIT_WITHIN}s"), "settle": "3s"});
        let patch = json!({"spec": {"flake": {"attribute": configuration}, "interval": "10s", "activation": activation}});
        {
            let _one = self.shared.lock().await;
            self.scenario.apply(index, &patch);
        }
        let began = Instant::now();
        let met = match stage {
            None => true,
            Some(stage) => loop {
                if self.is_at(index, stage) {
                    break true;
                }
                if began.elapsed() > Duration::from_secs(40) {
                    break false;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            },
        };
        if met {
            self.strike(index, fault).await;
        }
        if stage == Some(Stage::Copy) {
            let _ = tokio::task::block_in_place(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| host.full_speed())));
        }
        if !met {
            return Ok("missed".to_owned());
        }
        self.answers(index, stage, &old, new).await?;
        self.is_true(index, &old, new).await
    }

    /// Within its own deadlines the host answers, and is on a system that it was or was to be on.
    async fn answers(&self, index: usize, stage: Option<Stage>, old: &str, new: &str) -> Result<(), String> {
        let limit = match stage {
            None | Some(Stage::Activate) => ACTIVATE_WITHIN + COMMIT_WITHIN + GRACE,
            Some(_) => COMMIT_WITHIN + GRACE,
        };
        let began = Instant::now();
        loop {
            let host = self.host(index);
            if host.init().is_some() && host.ssh(&["true"]).status.success() {
                let found = host.ssh(&["readlink", "-f", "/run/current-system"]).stdout;
                let known = [old, new].contains(&found.trim()) || found.contains("nixos-system-base");
                return if known { Ok(()) } else { Err(format!("runs {found:?}, neither {old} nor {new}")) };
            }
            if began.elapsed() > Duration::from_secs(limit) {
                return Err(format!("does not answer after {limit} s"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The status comes to say what the host runs: the new system, or the old one with a reason.
    async fn is_true(&self, index: usize, old: &str, new: &str) -> Result<String, String> {
        let began = Instant::now();
        loop {
            let object = self.object(index).unwrap_or_default();
            let host = self.host(index);
            if let Some(ready) = condition(&object, "Ready").filter(|ready| ready["observedGeneration"] == object["metadata"]["generation"])
                && host.init().is_some()
            {
                let (current, default) = (host.current_system(), host.boot_default());
                if ready["status"] == "True" && current == *new && default == *new && object["status"]["system"]["current"] == current {
                    return Ok("new".to_owned());
                }
                let stalled = condition(&object, "Stalled").is_some();
                if ready["status"] == "False"
                    && stalled
                    && current == *old
                    && object["status"]["system"]["current"] == current
                    && default == *old
                {
                    return Ok(format!("old: {}", ready["reason"].as_str().unwrap_or_default()));
                }
            }
            if began.elapsed() > TRUE_WITHIN {
                let host = self.host(index);
                let facts = format!("current {}, default {}, profile {}", host.current_system(), host.boot_default(), host.profile());
                return Err(format!("after {TRUE_WITHIN:?} {facts}, old {old}, new {new}; status {}", object["status"]));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// One host's share of the queue.
    async fn work(self: Arc<Self>, index: usize) {
        let (mut turn, mut copies) = (index, 0);
        loop {
            let Some(trial) = self.queue.lock().unwrap().pop_front() else { return };
            turn += 1;
            let configuration = match trial.0 {
                Fault::System(bad) => BAD[bad],
                _ if trial.1 == Some(Stage::Copy) => {
                    copies += 1;
                    LARGE[(copies - 1) % LARGE.len()]
                }
                _ => GOOD[turn % GOOD.len()],
            };
            let began = Instant::now();
            let outcome = self.trial(index, trial, configuration).await;
            let text = match &outcome {
                Ok(text) => text.clone(),
                Err(why) => {
                    eprintln!("BROKEN {} {trial:?}: {why}", name(index));
                    "BROKEN".to_owned()
                }
            };
            eprintln!("{} {trial:?} {configuration}: {text}, {:.0?}", name(index), began.elapsed());
            *self.table.lock().unwrap().entry(trial).or_default().outcomes.entry(text).or_default() += 1;
        }
    }
}

async fn torture(hosts: usize, trials: Vec<Trial>) {
    let scenario = Scenario::builder().hosts(hosts).own_control_plane().fleet(fleet).start().await;
    let rev = scenario.repository.head();
    let systems = GOOD.into_iter().chain(BAD).chain(LARGE).map(|name| (name, scenario.repository.expected_toplevel(&rev, name))).collect();
    for host in &scenario.hosts {
        // The landing's own PATH finds this one first: a commit takes some seconds
        host.write_file("/usr/sbin/sync", "#!/bin/sh\nsleep 3\nexec /usr/bin/sync \"$@\"\n");
        host.shell("chmod 755 /usr/sbin/sync");
    }
    let torture = Arc::new(Torture {
        scenario,
        systems,
        queue: Mutex::new(trials.into()),
        table: Mutex::default(),
        shared: tokio::sync::Mutex::default(),
    });
    let tasks: Vec<_> = (0..hosts).map(|index| tokio::spawn(Arc::clone(&torture).work(index))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let torture = Arc::into_inner(torture).expect("all tasks have ended");
    let table = torture.table.into_inner().unwrap();
    for ((fault, stage), cell) in &table {
        let fault = if let Fault::System(bad) = fault { format!("new system: {}", BAD[*bad]) } else { format!("{fault:?}") };
        let outcomes: Vec<_> = cell.outcomes.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
        eprintln!("| {fault} | {} | {} |", stage.map_or("–".to_owned(), |stage| format!("{stage:?}")), outcomes.join(", "));
    }
    let broken: u32 = table.values().filter_map(|cell| cell.outcomes.get("BROKEN")).sum();
    assert_eq!(broken, 0, "promises broken; see above");
    torture.scenario.finish().await;
}

fn matrix() -> Vec<Trial> {
    let mut trials: Vec<Trial> = FAULTS.iter().flat_map(|fault| STAGES.map(|stage| (*fault, Some(stage)))).collect();
    trials.push((Fault::DiskFull, Some(Stage::Copy)));
    trials.extend([Stage::Activate, Stage::Verify, Stage::Commit].map(|stage| (Fault::BootFull, Some(stage))));
    trials.extend((0..BAD.len()).map(|bad| (Fault::System(bad), None)));
    trials
}

#[tokio::test(flavor = "multi_thread", worker_threads = 12)]
async fn each_fault_at_each_stage_once() {
    torture(8, matrix()).await;
}

/// `HOSTS` and `N` in the environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 24)]
#[ignore = "make torture"]
async fn faults_at_random() {
    let number = |name: &str, default: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let matrix = matrix();
    let trials = (0..number("N", 200)).map(|_| matrix[rand::random_range(0..matrix.len())]).collect();
    torture(number("HOSTS", 8), trials).await;
}
