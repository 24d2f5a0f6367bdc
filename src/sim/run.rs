//! One run: a seed from its beginning to a verdict.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nixos_host_api::{Class, Reason};
use serde_json::Value;

use super::catalogue::Behaviour;
use super::chance::Chance;
use super::fault::Plan;
use super::variants::Variant;
use super::{Sim, lock};

/// What to run.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    /// `None`: as the seed says.
    pub(super) behaviours: Option<Vec<Behaviour>>,
    pub(super) plan: Plan,
    pub(super) variant: Option<Variant>,
    /// Faults come until then.
    pub(super) faults_until: Duration,
    pub(super) told: bool,
}

impl Scenario {
    /// What a seed stands for.
    pub(super) fn of_seed(seed: u64) -> Self {
        let faults_until = Chance::new(seed, 4).millis(20_000, 240_000);
        Self { seed, behaviours: None, plan: Plan::of_seed(seed), variant: None, faults_until, told: false }
    }
}

/// How it went.
#[derive(Debug)]
pub(super) struct Report {
    /// Which invariant was broken, and how.
    pub(super) violation: Option<(char, String)>,
    pub(super) transcript: Vec<String>,
    /// Effects that the run had.
    pub(super) effects: u64,
    /// What it ended with, and what happened on the way.
    pub(super) outcomes: Vec<(String, u64)>,
}

/// Faults are over, and this long nothing must be wrong any more.
const SETTLES_WITHIN: Duration = Duration::from_secs(600);

/// How often the run is looked at when nothing happens.
const LOOK: Duration = Duration::from_secs(1);

/// Runs it, in a time of its own.
pub(super) fn run(scenario: Scenario) -> Report {
    match tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build() {
        Ok(runtime) => runtime.block_on(simulate(scenario)),
        Err(error) => Report { violation: Some(('-', error.to_string())), transcript: Vec::new(), effects: 0, outcomes: Vec::new() },
    }
}

async fn simulate(scenario: Scenario) -> Report {
    let Scenario { seed, behaviours, plan, variant, faults_until, told } = scenario;
    let sim = Sim::new(seed, behaviours, plan, variant, told);
    sim.say(|| format!("systems: {:?}", sim.behaviours));
    sim.start_process();
    while sim.now() < faults_until && sim.goes_on() {
        tokio::time::sleep(LOOK).await;
        sim.check();
    }
    let end = if sim.goes_on() {
        sim.calm();
        sim.settle().await
    } else {
        "a violation".into()
    };
    for process in sim.running() {
        sim.kill(&process);
    }
    let transcript = sim.transcript.as_ref().map(|lines| lock(lines).clone()).unwrap_or_default();
    let mut outcomes: Vec<(String, u64)> =
        sim.monitor(|monitor| monitor.outcomes.iter().map(|(name, n)| (format!("landing: {name}"), *n)).collect());
    outcomes.push((format!("end: {end}"), 1));
    let violation = sim.monitor(|monitor| monitor.violation.take());
    Report { violation, transcript, effects: sim.number.load(Ordering::Relaxed), outcomes }
}

/// How a resource stands.
enum Standing {
    Deleted,
    Ready,
    Not(Reason),
    Busy(String),
}

impl Sim {
    fn goes_on(&self) -> bool {
        self.monitor(|monitor| monitor.violation.is_none())
    }

    /// Waits for the end that must come, and says which it was.
    async fn settle(self: &Arc<Self>) -> String {
        let since = self.now();
        let mut asked = 0;
        // Longer than an interval: what is left of the time before is read anew.
        tokio::time::sleep(Duration::from_secs(75)).await;
        while self.goes_on() {
            self.check();
            let standing = self.standing();
            let late = self.now() > since + SETTLES_WITHIN;
            if !late && self.see(|machine| !machine.landings.is_empty()) {
                // Its last word is said before its service is gone
                tokio::time::sleep(LOOK).await;
                continue;
            }
            match standing {
                Standing::Deleted => return self.finally("deleted", None),
                Standing::Ready => return self.finally("Ready", None),
                Standing::Not(reason) if self.is_final(reason) => return self.finally(reason.as_str(), Some(reason)),
                Standing::Not(reason) if reason.class() == Class::Rejected && asked < 3 => {
                    self.say(|| format!("somebody asks again after {reason}"));
                    asked += 1;
                    self.request();
                    tokio::time::sleep(Duration::from_secs(30)).await;
                }
                Standing::Not(reason) if late => self.ends_badly(&format!("not Ready: {reason}")),
                Standing::Busy(what) if late => self.ends_badly(&what),
                Standing::Not(_) | Standing::Busy(_) => tokio::time::sleep(LOOK).await,
            }
        }
        "a violation".into()
    }

    fn ends_badly(&self, how: &str) {
        let now = self.now();
        let said = format!("{SETTLES_WITHIN:?} after the last fault the host is still {how}");
        self.monitor(|monitor| monitor.broken(now, 'f', &said));
    }

    /// What the status says, for the newest generation and revision.
    fn standing(&self) -> Standing {
        let store = lock(&self.store);
        let Some(object) = &store.object else { return Standing::Deleted };
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
        let Some(ready) = ready.filter(|_| object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation")) else {
            return Standing::Busy("without a status of its generation".into());
        };
        if text("/status/flake/attempted/rev") != self.head().revision() {
            return Standing::Busy("without a status of the revision".into());
        }
        match (ready["status"].as_str(), ready["reason"].as_str().and_then(|reason| reason.parse().ok())) {
            (Some("True"), _) => Standing::Ready,
            (Some("False"), Some(reason)) => Standing::Not(reason),
            _ => Standing::Busy(format!("at work: {ready}")),
        }
    }

    /// Whether this reason may be the last word: it is what the system does, or what a person did.
    fn is_final(&self, reason: Reason) -> bool {
        let behaviour = self.behaviour(self.head());
        let (current, default, profile) = self.see(|machine| (machine.current, machine.boot_default, machine.profile));
        match reason {
            Reason::BuildFailed => behaviour == Behaviour::DoesNotBuild,
            Reason::BootDefaultDiffers => current != default && default != profile,
            _ => reason.class() == Class::Rejected && !behaviour.lands(),
        }
    }

    /// What is said in the end must be so.
    fn finally(self: &Arc<Self>, end: &str, reason: Option<Reason>) -> String {
        let head = self.head();
        let (current, default, up, busy) =
            self.see(|machine| (machine.current, machine.boot_default, machine.up && !machine.stopping, !machine.landings.is_empty()));
        let said = {
            let store = lock(&self.store);
            let said = store.object.as_ref().and_then(|object| object.pointer("/status/system/current")).and_then(Value::as_str);
            said.map(str::to_owned)
        };
        let proved = self.monitor(|monitor| monitor.is_proved(current));
        let problem = match reason {
            _ if end == "deleted" => None,
            _ if !up || !self.answers(true) => Some("the host cannot be reached".to_owned()),
            _ if !proved => Some(format!("{} runs, which did not prove itself", current.name())),
            _ if busy => Some("a landing is on its way".to_owned()),
            _ if said.as_deref() != Some(current.path().as_str()) => Some(format!("{} runs, and the status says {said:?}", current.name())),
            None if current != head || default != head => Some(format!("{} runs and {} boots next", current.name(), default.name())),
            _ => None,
        };
        if let Some(problem) = problem {
            let now = self.now();
            self.monitor(|monitor| monitor.broken(now, 'f', &format!("in the end it is {end}, and {problem}")));
        }
        end.to_owned()
    }
}
