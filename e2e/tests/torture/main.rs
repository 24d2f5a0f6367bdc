//! Faults on real hosts, under a real controller: each during each of copy, activation, verification and commit. `make torture HOSTS=8 N=200` does it
//! N times at random, and prints what came of it; `make e2e` does each once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

mod faults;
mod judging;
mod table;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use faults::{FAULTS, Fault, GOOD, LARGE, STAGES, SYSTEMS, Stage};
use nixos_host_e2e::scenario::name;
use nixos_host_e2e::{Host, Scenario};
use serde_json::json;
use table::{BROKEN, MISSED, Table};

const ACTIVATE_WITHIN: u64 = 20;
const COMMIT_WITHIN: u64 = 15;
/// For a stage to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(40);
/// A stage that was over before it was seen is waited for again, with another configuration: so many times in all.
const TRIES: u32 = 3;

/// What is broken, and when; without a stage it is the new system itself.
type Trial = (Fault, Option<Stage>);

struct Torture {
    scenario: Scenario,
    /// Toplevels, by configuration.
    systems: BTreeMap<&'static str, String>,
    queue: Mutex<VecDeque<Trial>>,
    table: Mutex<Table>,
    /// What one host does to all the others, one at a time.
    shared: tokio::sync::Mutex<()>,
}

impl Torture {
    fn host(&self, index: usize) -> &Host {
        &self.scenario.hosts[index]
    }

    /// Asks for a configuration.
    async fn apply(&self, index: usize, configuration: &str) {
        let activation =
            json!({"activateWithin": format!("{ACTIVATE_WITHIN}s"), "commitWithin": format!("{COMMIT_WITHIN}s"), "settle": "3s"});
        let patch = json!({"spec": {"flake": {"attribute": configuration}, "interval": "10s", "activation": activation}});
        let _one = self.shared.lock().await;
        self.scenario.apply(index, &patch);
    }

    /// Waits until the landing of `new` is at this stage; false if that was not seen.
    async fn seen(&self, index: usize, stage: Stage, new: &str) -> bool {
        let began = Instant::now();
        loop {
            if self.is_at(index, stage) {
                return true;
            }
            if self.is_over(index, new) || began.elapsed() > SEEN_WITHIN {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets a configuration land, with a fault in the middle. What came of it; `Err` is a broken promise.
    async fn trial(&self, index: usize, (fault, stage): Trial, configuration: &'static str) -> Result<String, String> {
        let host = self.host(index);
        let (old, new) = (host.current_system(), &self.systems[configuration]);
        if stage == Some(Stage::Copy) {
            host.slow_link("16mbit");
        }
        self.apply(index, configuration).await;
        let seen = match stage {
            None => self.has_begun(index, new).await?,
            Some(stage) => self.seen(index, stage, new).await,
        };
        if seen {
            self.strike(index, fault).await;
        }
        if stage == Some(Stage::Copy) {
            let _ = tokio::task::block_in_place(|| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| host.full_speed())));
        }
        if seen {
            self.answers(index, (fault, stage), &old, new).await?;
        }
        let outcome = self.is_true(index, fault, &old, new).await?;
        match fault {
            Fault::System(number) if SYSTEMS[number].1 != (outcome == "new") => Err(format!("{configuration} came to {outcome}")),
            _ if seen => Ok(outcome),
            _ => Ok(MISSED.to_owned()),
        }
    }

    /// One host's share of the queue.
    async fn work(self: Arc<Self>, index: usize) {
        let (mut turn, mut copies) = (index, 0);
        let mut configuration = |trial: Trial| {
            turn += 1;
            match trial.0 {
                Fault::System(number) => SYSTEMS[number].0,
                _ if trial.1 == Some(Stage::Copy) => {
                    copies += 1;
                    LARGE[(copies - 1) % LARGE.len()]
                }
                _ => GOOD[turn % GOOD.len()],
            }
        };
        loop {
            let Some(trial) = self.queue.lock().unwrap().pop_front() else { return };
            let mut text = MISSED.to_owned();
            for _ in 0..TRIES {
                let (configuration, began) = (configuration(trial), Instant::now());
                text = self.trial(index, trial, configuration).await.unwrap_or_else(|why| {
                    eprintln!("{BROKEN} {} {trial:?}: {why}", name(index));
                    BROKEN.to_owned()
                });
                eprintln!("{} {trial:?} {configuration}: {text}, {:.0?}", name(index), began.elapsed());
                if text != MISSED {
                    break;
                }
            }
            self.table.lock().unwrap().record(trial, text);
        }
    }
}

/// Goes through all trials; what came of them, with no promise broken.
async fn torture(hosts: usize, trials: Vec<Trial>) -> Table {
    let scenario = Scenario::builder().hosts(hosts).own_control_plane().fleet(faults::fleet).start().await;
    let rev = scenario.repository.head();
    let systems = GOOD
        .into_iter()
        .chain(SYSTEMS.map(|(name, _)| name))
        .chain(LARGE)
        .map(|name| (name, scenario.repository.expected_toplevel(&rev, name)))
        .collect();
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
    table.print();
    assert_eq!(table.count(BROKEN), 0, "promises broken; see above");
    torture.scenario.finish().await;
    table
}

fn matrix() -> Vec<Trial> {
    let mut trials: Vec<Trial> = FAULTS.iter().flat_map(|fault| STAGES.map(|stage| (*fault, Some(stage)))).collect();
    trials.push((Fault::DiskFull, Some(Stage::Copy)));
    trials.extend([Stage::Activate, Stage::Verify, Stage::Commit].map(|stage| (Fault::BootFull, Some(stage))));
    trials.extend((0..SYSTEMS.len()).map(|number| (Fault::System(number), None)));
    trials
}

#[tokio::test(flavor = "multi_thread", worker_threads = 12)]
async fn each_fault_at_each_stage_once() {
    let table = torture(8, matrix()).await;
    assert_eq!(table.count(MISSED), 0, "moments that were not seen; see above");
}

/// `HOSTS` and `N` in the environment.
#[tokio::test(flavor = "multi_thread", worker_threads = 24)]
#[ignore = "make torture"]
async fn faults_at_random() {
    let number = |name: &str, default: usize| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (matrix, n) = (matrix(), number("N", 200));
    let trials = (0..n).map(|_| matrix[rand::random_range(0..matrix.len())]).collect();
    let missed = torture(number("HOSTS", 8), trials).await.count(MISSED);
    eprintln!("{missed} of {n} moments were not seen");
    assert!(missed * 10 <= n, "more than a tenth of the faults met nothing");
}
