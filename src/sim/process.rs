//! Controller processes: how one starts, stands still, and ends without a word.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use clap::Parser;
use jiff::Timestamp;
use kube::Client;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::api::Server;
use super::chance::Chance;
use super::fault::{Fault, Place};
use super::host::script::Look;
use super::link::Outside;
use super::{Sim, lock};
use crate::clock::Clock;
use crate::controller::args::Args;
use crate::controller::clients::Clients;
use crate::controller::{controller, run_hosts};
use crate::metrics::Metrics;
use crate::world::{Lead, Limits, World};

/// A controller process.
#[derive(Debug)]
pub(super) struct Process {
    /// What it is called in the transcript.
    pub(super) name: String,
    /// Its term.
    pub(super) epoch: u64,
    /// What the host answered it since its pass began.
    pub(super) looks: Mutex<Vec<Look>>,
    pub(super) chance: Mutex<Chance>,
    dead: CancellationToken,
    frozen_until: Mutex<Duration>,
    task: Mutex<Option<AbortHandle>>,
}

/// What becomes of an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is done.
    Goes,
    /// It is done, and nobody is left to hear of it.
    CrashAfter,
    /// The request is lost.
    LostBefore,
    /// The answer is lost.
    LostAfter,
    /// It is done twice.
    Twice,
    /// Nobody answers.
    Silence,
}

/// Simulated time begins then.
const BEGINNING: i64 = 1_800_000_000;

static SHARED: OnceLock<Option<(Args, Metrics)>> = OnceLock::new();

fn shared() -> Option<&'static (Args, Metrics)> {
    // No brake: it is for its own tests.
    let args = || Args::try_parse_from(["sim", "--brake-configmap="]).ok();
    SHARED.get_or_init(|| Some((args()?, Metrics::new().ok()?))).as_ref()
}

impl Process {
    /// Whether it runs.
    pub(super) fn alive(&self) -> bool {
        !self.dead.is_cancelled()
    }

    /// Does not return in a process that is dead, and waits in one that stands still.
    pub(super) async fn gate(&self, sim: &Sim) {
        loop {
            if !self.alive() {
                std::future::pending::<()>().await;
            }
            let until = *lock(&self.frozen_until);
            let now = sim.now();
            if until <= now {
                return;
            }
            tokio::time::sleep(until.saturating_sub(now)).await;
        }
    }
}

impl Sim {
    /// The clocks of this world.
    fn clock(self: &Arc<Self>) -> Clock {
        let (monotonic, wall) = (Arc::downgrade(self), Arc::downgrade(self));
        let since = |sim: Option<Arc<Self>>| sim.map(|sim| sim.now()).unwrap_or_default();
        let began = self.began.into_std();
        Clock::new(
            move || began + since(monotonic.upgrade()),
            move || Timestamp::from_second(BEGINNING).unwrap_or_default() + since(wall.upgrade()),
        )
    }

    /// Starts a controller, whose term is later than all before.
    pub(super) fn start_process(self: &Arc<Self>) {
        let Some((args, metrics)) = shared() else { return };
        let count = lock(&self.processes).len() as u64 + 1;
        let random = self.chance(Chance::next);
        let process = Arc::new(Process {
            name: format!("controller-{count}"),
            epoch: count,
            looks: Mutex::default(),
            chance: Mutex::new(Chance::new(random, 3)),
            dead: CancellationToken::new(),
            frozen_until: Mutex::default(),
            task: Mutex::default(),
        });
        self.say(|| format!("{} starts", process.name));
        let client = Client::new(Server::new(self, &process), "infra");
        let clients = Clients { watches: client.clone(), leases: client.clone(), requests: client, namespace: "infra".into() };
        let outside = Arc::new(Outside { sim: Arc::clone(self), process: Arc::clone(&process) });
        let limits = Limits { looks: 8, copies: 8, landings: 8 };
        let world = World::new(outside, metrics.clone(), self.clock(), Lead::alone(process.epoch, self.clock()), limits);
        let controller = Arc::new(controller(args.clone(), clients, world));
        let task = tokio::spawn(run_hosts(controller, watch::Sender::new(false), CancellationToken::new()));
        *lock(&process.task) = Some(task.abort_handle());
        lock(&self.processes).push(process);
    }

    /// Those that run.
    pub(super) fn running(&self) -> Vec<Arc<Process>> {
        lock(&self.processes).iter().filter(|process| process.alive()).cloned().collect()
    }

    /// A process is gone, with all that it knew.
    pub(super) fn kill(&self, process: &Process) {
        process.dead.cancel();
        if let Some(task) = lock(&process.task).take() {
            task.abort();
        }
        self.say(|| format!("{} is gone", process.name));
    }

    /// A process crashes; another one starts after a while, unless one runs.
    pub(super) fn crash(self: &Arc<Self>, process: &Process) {
        if !process.alive() {
            return;
        }
        self.kill(process);
        let sim = Arc::clone(self);
        let pause = self.chance(|chance| if chance.in_thousand(700) { chance.millis(100, 3_000) } else { chance.millis(3_000, 60_000) });
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if sim.running().is_empty() {
                sim.start_process();
            }
        });
    }

    /// The newest controller crashes.
    pub(super) fn crash_leader(self: &Arc<Self>) {
        if let Some(process) = self.running().last() {
            self.crash(process);
        }
    }

    /// A controller stands still for a while.
    pub(super) fn freeze(&self, process: &Process, time: Duration) {
        *lock(&process.frozen_until) = self.now() + time;
        self.say(|| format!("{} stands still for {time:?}", process.name));
    }

    /// A controller is about to do something outside: counts it, and says what becomes of it.
    pub(super) async fn begin(self: &Arc<Self>, process: &Arc<Process>, place: Place, what: impl Fn() -> String) -> Fate {
        process.gate(self).await;
        let fault = self.fault(place, || format!("{}: {}", process.name, what()));
        let time = self.chance(|chance| chance.millis(1, if place == Place::Nix { 400 } else { 40 }));
        tokio::time::sleep(time).await;
        let fate = match fault {
            None => Fate::Goes,
            Some(Fault::CrashBefore) => {
                self.crash(process);
                Fate::Goes
            }
            Some(Fault::CrashAfter) => Fate::CrashAfter,
            Some(Fault::LostBefore) => Fate::LostBefore,
            Some(Fault::LostAfter) => Fate::LostAfter,
            Some(Fault::Twice) => Fate::Twice,
            Some(Fault::Silence) => Fate::Silence,
            Some(Fault::Late(time)) => {
                tokio::time::sleep(time).await;
                Fate::Goes
            }
            Some(Fault::Meanwhile(event)) => {
                self.happen(event);
                Fate::Goes
            }
        };
        process.gate(self).await;
        fate
    }

    /// The effect is done.
    pub(super) async fn end(self: &Arc<Self>, process: &Arc<Process>, fate: Fate) {
        self.check();
        if fate == Fate::CrashAfter {
            self.crash(process);
        }
        process.gate(self).await;
    }
}
