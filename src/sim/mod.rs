//! A deterministic simulation: the real controller, with a simulated API server, network, Nix and host, in simulated time.
//!
//! A seed decides everything: how systems behave, how long things take, and what goes wrong at which effect (a request to the API server, a new
//! connection, an SSH command, a path of a copy, a step on the host). After every step the invariants of `invariants.rs` are checked. A run is one
//! thread with its own paused clock, so that the same seed is the same run; `SIM_SEED=n cargo test one_seed -- --nocapture --ignored` tells it step by step.
//!
//! It does not model what only real machines know: systemd, boot loaders, disks that lose writes, SSH itself. landing.sh is written here a second time
//! (`host/`), step by step; that the two agree is for the end-to-end tests on real hosts.

mod api;
mod catalogue;
mod chance;
mod fault;
mod happen;
mod host;
mod invariants;
mod link;
mod nix;
mod process;
mod run;
mod tests;
mod truth;
mod variants;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use api::Store;
use catalogue::{Behaviour, PERSONS, REVISIONS, System};
use chance::Chance;
use fault::{Fault, Place, Plan};
use host::Machine;
use invariants::Monitor;
use process::Process;
use variants::Variant;

/// Everything that is simulated, for one run.
struct Sim {
    began: Instant,
    variant: Option<Variant>,
    behaviours: Vec<Behaviour>,
    plan: Mutex<Plan>,
    number: AtomicU64,
    chance: Mutex<Chance>,
    machine: Mutex<Machine>,
    network: Mutex<Network>,
    changed: Notify,
    store: Mutex<Store>,
    stored: Notify,
    revision: AtomicU64,
    processes: Mutex<Vec<Arc<Process>>>,
    monitor: Mutex<Monitor>,
    quiet: AtomicBool,
    transcript: Option<Mutex<Vec<String>>>,
}

/// The network between controllers and host, and the one to the API server.
#[derive(Debug, Default)]
struct Network {
    /// Nothing gets through until then.
    cut_until: Duration,
    /// The API server refuses everything until then.
    api_down_until: Duration,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sim {
    /// A world in which nothing happened yet.
    fn new(seed: u64, behaviours: Option<Vec<Behaviour>>, plan: Plan, variant: Option<Variant>, told: bool) -> Arc<Self> {
        let mut chance = Chance::new(seed, 2);
        let behaviours = behaviours.unwrap_or_else(|| {
            let revision = |_| Behaviour::random(&mut chance);
            let revisions: Vec<_> = (0..REVISIONS).map(revision).collect();
            let good = std::iter::repeat_n(Behaviour::Good, usize::from(PERSONS));
            std::iter::once(Behaviour::Good).chain(revisions).chain(good).collect()
        });
        Arc::new(Self {
            began: now(),
            variant,
            behaviours,
            plan: Mutex::new(plan),
            number: AtomicU64::new(0),
            chance: Mutex::new(chance),
            machine: Mutex::new(Machine::new()),
            network: Mutex::default(),
            changed: Notify::new(),
            store: Mutex::new(Store::new()),
            stored: Notify::new(),
            revision: AtomicU64::new(1),
            processes: Mutex::default(),
            monitor: Mutex::new(Monitor::new()),
            quiet: AtomicBool::new(false),
            transcript: told.then(Mutex::default),
        })
    }

    /// Simulated time since the beginning.
    fn now(&self) -> Duration {
        now().duration_since(self.began)
    }

    /// Writes a line of the transcript, if there is one.
    fn say(&self, what: impl FnOnce() -> String) {
        if let Some(transcript) = &self.transcript {
            lock(transcript).push(format!("{:>8.3}  {}", self.now().as_secs_f64(), what()));
        }
    }

    /// Lets chance decide.
    fn chance<T>(&self, decide: impl FnOnce(&mut Chance) -> T) -> T {
        decide(&mut lock(&self.chance))
    }

    /// Changes the host, and lets those know who wait for something there.
    fn host<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        let result = change(&mut lock(&self.machine));
        self.changed.notify_waiters();
        result
    }

    /// Looks at the host, as only the simulation can.
    fn see<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&lock(&self.machine))
    }

    fn monitor<T>(&self, note: impl FnOnce(&mut Monitor) -> T) -> T {
        note(&mut lock(&self.monitor))
    }

    fn behaviour(&self, system: System) -> Behaviour {
        self.behaviours[usize::from(system.0)]
    }

    /// The system that the followed branch leads to.
    fn head(&self) -> System {
        System(u8::try_from(self.revision.load(Ordering::Relaxed)).unwrap_or(1))
    }

    /// Counts an effect, and says what goes wrong with it.
    fn fault(&self, place: Place, what: impl Fn() -> String) -> Option<Fault> {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let fault = if self.quiet.load(Ordering::Relaxed) { None } else { lock(&self.plan).at(number, place) };
        self.say(|| match fault {
            Some(fault) => format!("#{number} {}   <<< {fault:?} >>>", what()),
            None => format!("#{number} {}", what()),
        });
        fault
    }

    /// Holds the state of everything against the invariants.
    fn check(&self) {
        let now = self.now();
        let (machine, mut monitor) = (lock(&self.machine), lock(&self.monitor));
        monitor.check(now, &machine);
    }
}

/// Asks again whenever it rings, until there is an answer. (Not a watch channel: whom it wakes first is a matter of chance.)
async fn when<T>(bell: &Notify, mut ask: impl FnMut() -> Option<T>) -> T {
    loop {
        let rings = bell.notified();
        tokio::pin!(rings);
        rings.as_mut().enable();
        match ask() {
            Some(answer) => return answer,
            None => rings.await,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "simulated time: it is paused, and moves only when all wait")]
fn now() -> Instant {
    Instant::now()
}
