//! What must hold after every step, whatever goes wrong.
//!
//! - (a) What runs and what boots next is each the old system, the new one, or what a person put there; a landing makes the new one boot only after it
//!   proved itself, and leaves alone what a person did.
//! - (b) Past `activateWithin`, or `commitWithin` once the activation has ended, and 30 s more, what runs has proved itself reachable.
//! - (c) What status calls current or applied was read from the host (`truth.rs`).
//! - (d) Never two landings, nor two activations, at once; none ordered by a controller that another one has followed.
//! - (e) What did not stay is not activated again unless something changed or somebody asked.
//! - (f) Once nothing goes wrong any more the host ends Ready, or with a true reason (`run.rs`).
//! - (g) Every status write keeps to the rules of kstatus (`truth.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::catalogue::{FIRST, System};
use super::host::landing::Ordered;
use super::host::{Author, Machine};

/// How long the way back may take, on top of the deadlines.
const BACK: Duration = Duration::from_secs(30);

/// What a person does between a check and the deed that it is for cannot be seen by anybody.
const RACE: Duration = Duration::from_secs(1);

/// What of `commitWithin` has passed for a controller to be called late.
const LATE: Duration = Duration::from_secs(10);

/// A landing, as it is known without asking the host's files.
#[derive(Debug, Clone)]
struct Armed {
    order: Ordered,
    old: System,
    default: System,
    at: Duration,
    /// It had proved itself before.
    proved: bool,
    /// When the activation ended.
    activated: Option<Duration>,
}

/// What was tried: a system, and how.
type Try = (System, String, Duration, Duration);

/// How a try went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Begun(Duration),
    Asked,
    Committed,
    Superseded,
    /// Nobody committed: the system's fault only if a controller lived to say so.
    Unattended,
}

/// One of them ended; another one may have the same ID.
fn remove(of: &mut Vec<String>, id: &str) {
    if let Some(place) = of.iter().position(|other| other == id) {
        of.swap_remove(place);
    }
}

/// Watches a run.
#[derive(Debug)]
pub(super) struct Monitor {
    /// What was found wrong first.
    pub(super) violation: Option<(char, String)>,
    /// Landings that were committed, reverted or cut short, for the table of outcomes.
    pub(super) outcomes: BTreeMap<&'static str, u64>,
    /// What some status has called applied.
    pub(super) was_applied: BTreeSet<System>,
    /// Whether the host lost power, was rebooted, or had a landing or an activation killed.
    pub(super) interrupted: bool,
    proved: BTreeSet<System>,
    landing: Option<Armed>,
    landings: Vec<String>,
    activations: Vec<String>,
    epoch: u64,
    anew: Duration,
    /// When the host last told the controller of a term of itself.
    looked: BTreeMap<u64, Duration>,
    person_current: Option<Duration>,
    person_default: Option<Duration>,
    tries: BTreeMap<Try, Tried>,
}

impl Monitor {
    /// Before anything happened.
    pub(super) fn new() -> Self {
        Self {
            violation: None,
            outcomes: BTreeMap::new(),
            was_applied: BTreeSet::new(),
            interrupted: false,
            proved: BTreeSet::from([FIRST]),
            landing: None,
            landings: Vec::new(),
            activations: Vec::new(),
            epoch: 0,
            anew: Duration::ZERO,
            looked: BTreeMap::new(),
            person_current: None,
            person_default: None,
            tries: BTreeMap::new(),
        }
    }

    /// Takes note of what is wrong, if it is the first.
    pub(super) fn broken(&mut self, now: Duration, invariant: char, what: &str) {
        if self.violation.is_none() {
            self.violation = Some((invariant, format!("at {:.3}: {what}", now.as_secs_f64())));
        }
    }

    /// The system answered over a connection that was made after it was activated.
    pub(super) fn proved(&mut self, system: System) {
        self.proved.insert(system);
    }

    /// Whether the system proved itself, or a person answers for it.
    pub(super) fn is_proved(&self, system: System) -> bool {
        self.proved.contains(&system) || system.is_by_hand()
    }

    /// A controller is told what there is on the host.
    pub(super) fn looked(&mut self, now: Duration, epoch: u64) {
        self.looked.insert(epoch, now);
    }

    /// Something changed, or somebody asked: what was rejected may be tried again.
    pub(super) fn anew(&mut self, now: Duration) {
        self.anew = now;
        self.tries.clear();
    }

    /// A controller has heard of a request, which a watch may bring late.
    pub(super) fn asked(&mut self) {
        self.tries.clear();
    }

    /// A landing has written down what it is about to do.
    pub(super) fn armed(&mut self, now: Duration, order: &Ordered, old: System, default: System) {
        self.landings.push(order.id.clone());
        if self.landings.len() > 1 {
            self.broken(now, 'd', &format!("landings {:?} at once", self.landings));
        }
        self.takes_orders(now, order.epoch);
        (self.person_current, self.person_default) = (None, None);
        let mut proved = false;
        if order.mode != "boot" {
            // Also before another landing of it, which somebody overtook.
            let overtaken = self.landing.as_ref().is_some_and(|before| before.proved && before.order.new == order.new);
            proved = self.proved.remove(&order.new) || overtaken;
            self.proved.insert(old);
        }
        self.landing = Some(Armed { order: order.clone(), old, default, at: now, proved, activated: None });
        *self.outcomes.entry("begun").or_default() += 1;
    }

    /// The host does what the controller of a term asks.
    pub(super) fn takes_orders(&mut self, now: Duration, epoch: u64) {
        if epoch < self.epoch {
            self.broken(now, 'd', &format!("the host takes an order of term {epoch}, and term {} was known", self.epoch));
        }
        self.epoch = self.epoch.max(epoch);
    }

    /// A landing begins its activation.
    pub(super) fn activates(&mut self, now: Duration, order: &Ordered) {
        self.activations.push(order.id.clone());
        if self.activations.len() > 1 {
            self.broken(now, 'd', &format!("activations {:?} at once", self.activations));
        }
        let tried = (order.new, order.mode.clone(), order.activate, order.commit);
        let looked = self.looked.get(&order.epoch).copied().unwrap_or_default();
        // Who looked before the other one had begun cannot know of it.
        // Somebody asked while the pass was on its way: that is for the next one.
        let begun = if self.anew > looked { Tried::Asked } else { Tried::Begun(now) };
        if let Some(Tried::Begun(at)) = self.tries.insert(tried, begun)
            && looked > at
        {
            self.broken(now, 'e', &format!("{} is activated again, though it did not stay and nobody asked", order.new.name()));
        }
    }

    /// The activation that a landing began has ended, one way or the other.
    pub(super) fn activation_is_over(&mut self, id: &str) {
        remove(&mut self.activations, id);
    }

    /// The new system is active, and waits for a commit.
    pub(super) fn activated(&mut self, now: Duration) {
        if let Some(landing) = &mut self.landing {
            landing.activated = Some(now);
        }
    }

    /// A landing calls itself committed.
    pub(super) fn committed(&mut self, id: &str) {
        *self.outcomes.entry("committed").or_default() += 1;
        self.ended(id, Tried::Committed);
    }

    /// The landing's service has ended.
    pub(super) fn landing_is_over(&mut self, now: Duration, id: &str, state: &str, code: &str) {
        remove(&mut self.landings, id);
        let activated = self.landing.as_ref().filter(|landing| landing.order.id == id).and_then(|landing| landing.activated);
        match (state, code) {
            ("superseded", _) => self.ended(id, Tried::Superseded),
            // A person took its place, with the system that was there before perhaps.
            ("reverted", _) if self.person_current.is_some() => self.ended(id, Tried::Superseded),
            ("reverted", "not-committed") => self.ended(id, Tried::Unattended),
            // By a controller that came late: it had no time to see the system prove itself.
            ("reverted", "asked") if activated.is_some_and(|at| at + LATE < now) => self.ended(id, Tried::Unattended),
            _ => {}
        }
    }

    /// A status says that the system is held back.
    pub(super) fn rejected(&mut self, now: Duration, system: System) {
        let unattended = self.tries.iter_mut().filter(|((tried, ..), how)| *tried == system && **how == Tried::Unattended);
        unattended.for_each(|(_, how)| *how = Tried::Begun(now));
    }

    /// A status says that the system has landed: also one whose machine restarted before it could say so itself.
    pub(super) fn stayed(&mut self, system: System) {
        self.tries.iter_mut().filter(|((tried, ..), _)| *tried == system).for_each(|(_, how)| *how = Tried::Committed);
    }

    fn ended(&mut self, id: &str, how: Tried) {
        if let Some(Armed { order, at, .. }) = self.landing.as_ref().filter(|landing| landing.order.id == id) {
            let tried = (order.new, order.mode.clone(), order.activate, order.commit);
            // Whoever asked while it was on its way, or was ordered, asked for the next one.
            if self.anew > *at || self.tries.get(&tried) == Some(&Tried::Asked) {
                self.tries.insert(tried, Tried::Asked);
            } else {
                self.tries.insert(tried, how);
            }
        }
    }

    /// Nothing runs there any more.
    pub(super) fn host_went_down(&mut self, now: Duration, id: &str, state: &str, code: &str) {
        if !self.landings.is_empty() {
            *self.outcomes.entry("cut by a reboot").or_default() += 1;
        }
        // It may have had its last word while its service was not gone yet.
        self.landing_is_over(now, id, state, code);
        self.landings.clear();
        self.activations.clear();
        if let Some(landing) = self.landing.take().filter(|landing| landing.proved) {
            self.proved.insert(landing.order.new);
        }
        self.epoch = 0;
        (self.person_current, self.person_default) = (None, None);
    }

    /// The host runs another system.
    pub(super) fn runs(&mut self, now: Duration, before: System, system: System, by: &Author) {
        match by {
            Author::Person => self.person_current = Some(now),
            Author::Boot => {}
            Author::Landing(id) => {
                let Some(landing) = self.landing.clone().filter(|landing| landing.order.id == *id) else { return };
                if system != landing.old && system != landing.order.new {
                    self.broken(now, 'a', &format!("a landing runs {}, neither old nor new", system.name()));
                }
                let taken = self.person_current.is_some_and(|at| at + RACE < now) && before.is_by_hand() && landing.old != before;
                if taken {
                    self.broken(now, 'a', &format!("a landing takes away {}, which a person runs", before.name()));
                }
                if system == landing.old && before == landing.order.new {
                    *self.outcomes.entry("went back").or_default() += 1;
                }
            }
        }
    }

    /// The host will boot another system.
    pub(super) fn boots(&mut self, now: Duration, system: System, by: &Author) {
        match by {
            Author::Person => self.person_default = Some(now),
            Author::Boot => {}
            Author::Landing(id) => {
                let Some(landing) = self.landing.clone().filter(|landing| landing.order.id == *id) else { return };
                let new = system == landing.order.new;
                if new && landing.order.mode != "boot" && !self.is_proved(system) {
                    self.broken(now, 'a', &format!("{} will boot, and did not prove itself", system.name()));
                }
                if !new && system != landing.default && system != landing.old {
                    self.broken(now, 'a', &format!("{} will boot, neither old nor new", system.name()));
                }
            }
        }
    }

    /// Holds the host as it is against what must hold.
    pub(super) fn check(&mut self, now: Duration, machine: &Machine) {
        self.interrupted |= machine.boot > 1 || machine.stopping || matches!(machine.files.code, "killed" | "activation-killed");
        if !machine.store.contains(&machine.boot_default) {
            self.broken(now, 'a', &format!("{} will boot, and is not in the store", machine.boot_default.name()));
        }
        if !machine.up || machine.stopping || self.is_proved(machine.current) {
            return;
        }
        let Some(landing) = &self.landing else {
            self.broken(now, 'b', &format!("{} runs, did not prove itself, and nothing will take it back", machine.current.name()));
            return;
        };
        let until = match landing.activated {
            Some(at) => at + landing.order.commit,
            None => landing.at + landing.order.activate,
        };
        if now > until + BACK {
            self.broken(now, 'b', &format!("{} still runs, and did not prove itself", machine.current.name()));
        }
    }
}
