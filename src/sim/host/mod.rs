//! The simulated host: what it has on its disk, what it has only until the next boot, and how it loses power.

pub(super) mod landing;
pub(super) mod person;
pub(super) mod revert;
pub(super) mod script;
pub(super) mod switch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::catalogue::{Behaviour, FIRST, System};
use super::fault::{Event, Fault, Place};
use super::{Sim, Variant};

/// What ran on the host is gone: it lost power, or the process was killed.
#[derive(Debug)]
pub(super) struct Gone;

/// Who changes something on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Author {
    /// The landing with this ID.
    Landing(String),
    /// A person.
    Person,
    /// The boot loader.
    Boot,
}

/// The lock of switch-to-configuration, until it is dropped: also by the end of the process that has it.
pub(super) struct Lock {
    sim: Arc<Sim>,
    key: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.sim.host(|machine| {
            if machine.lock == Some(self.key) {
                machine.lock = None;
            }
        });
    }
}

/// The files in `/run/nixos-host-controller`: as landing.sh has them.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    pub(super) id: String,
    pub(super) epoch: u64,
    pub(super) mode: String,
    pub(super) state: &'static str,
    pub(super) rc: Option<i32>,
    pub(super) code: &'static str,
    pub(super) why: String,
    pub(super) old: Option<System>,
    pub(super) new: Option<System>,
    pub(super) profile: Option<System>,
    pub(super) deadline: Duration,
    pub(super) window: Duration,
    pub(super) commit: String,
    pub(super) revert: String,
    pub(super) refused: Option<(String, String)>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Machine {
    // On its disk.
    pub(super) profile: System,
    pub(super) generations: Vec<System>,
    pub(super) boot_default: System,
    pub(super) store: BTreeSet<System>,
    pub(super) roots: BTreeSet<(&'static str, System)>,
    // Until it loses power.
    pub(super) boot: u32,
    pub(super) up: bool,
    pub(super) stopping: bool,
    pub(super) emergency: bool,
    pub(super) current: System,
    pub(super) current_since: Duration,
    pub(super) booted: System,
    pub(super) files: Files,
    pub(super) landings: Vec<(String, CancellationToken)>,
    pub(super) activation: Option<CancellationToken>,
    pub(super) lock: Option<u64>,
    pub(super) locks: u64,
    pub(super) links: CancellationToken,
}

impl Machine {
    /// A machine that runs its first system.
    pub(super) fn new() -> Self {
        Self {
            profile: FIRST,
            generations: vec![FIRST],
            boot_default: FIRST,
            store: BTreeSet::from([FIRST]),
            roots: BTreeSet::new(),
            boot: 1,
            up: true,
            stopping: false,
            emergency: false,
            current: FIRST,
            current_since: Duration::ZERO,
            booted: FIRST,
            files: Files::default(),
            landings: Vec::new(),
            activation: None,
            lock: None,
            locks: 0,
            links: CancellationToken::new(),
        }
    }

    /// Root of a generation, as `nix-env --set` makes one.
    pub(super) fn set_profile(&mut self, system: System) {
        self.profile = system;
        if self.generations.last() != Some(&system) {
            self.generations.push(system);
        }
    }

    fn root(&mut self, name: &'static str, system: System) {
        self.roots.retain(|(other, _)| *other != name);
        self.roots.insert((name, system));
    }

    fn unroot(&mut self) {
        self.roots.retain(|(name, _)| *name == "next");
    }
}

impl Sim {
    /// Fails if what runs on the host since this boot is gone.
    pub(super) fn alive(&self, boot: u32) -> Result<(), Gone> {
        self.see(|machine| if machine.up && machine.boot == boot { Ok(()) } else { Err(Gone) })
    }

    /// A step of something that runs on the host: it takes a moment, and anything may happen meanwhile.
    pub(super) async fn step(self: &Arc<Self>, boot: u32, what: &str) -> Result<(), Gone> {
        self.alive(boot)?;
        match self.fault(Place::Host, || format!("host: {what}")) {
            Some(Fault::Meanwhile(event)) => self.happen(event),
            Some(Fault::CrashBefore | Fault::CrashAfter) => self.crash_leader(),
            _ => {}
        }
        self.alive(boot)?;
        let time = self.chance(|chance| chance.millis(5, 150));
        tokio::time::sleep(time).await;
        self.check();
        self.alive(boot)
    }

    /// Whether a new connection, or one that is open, gets through to the host itself.
    pub(super) fn answers(&self, new: bool) -> bool {
        let (up, behaviour) = self.see(|machine| (machine.up && !machine.emergency, self.behaviour(machine.current)));
        up && match behaviour {
            Behaviour::Deaf => false,
            Behaviour::RefusesNew => !new,
            _ => true,
        }
    }

    /// The power goes, and comes back.
    pub(super) fn power_cut(self: &Arc<Self>, away: Duration) {
        let (boot, files) = self.host(|machine| {
            machine.boot += 1;
            machine.up = false;
            machine.stopping = false;
            machine.emergency = false;
            let files = std::mem::take(&mut machine.files);
            machine.landings.clear();
            machine.activation = None;
            machine.lock = None;
            machine.links.cancel();
            (machine.boot, files)
        });
        self.say(|| "host: is down".into());
        let now = self.now();
        self.monitor(|monitor| monitor.host_went_down(now, &files.id, files.state, files.code));
        let sim = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(away).await;
            if sim.see(|machine| machine.boot == boot) {
                sim.boot();
            }
        });
    }

    fn boot(&self) {
        let system = self.see(|machine| machine.boot_default);
        self.host(|machine| {
            machine.up = true;
            machine.booted = system;
            machine.links = CancellationToken::new();
        });
        self.say(|| format!("host: boots {}", system.name()));
        self.set_current(system, &Author::Boot);
        self.check();
    }

    /// An orderly reboot: services are stopped first, the landing among them.
    pub(super) fn reboot(self: &Arc<Self>) {
        let (sim, boot) = (Arc::clone(self), self.see(|machine| machine.boot));
        if !self.see(|machine| machine.up && !machine.stopping) {
            return;
        }
        self.say(|| "host: reboots".into());
        self.host(|machine| {
            machine.stopping = true;
            machine.landings.iter().for_each(|(_, killed)| killed.cancel());
        });
        tokio::spawn(async move {
            let time = sim.chance(|chance| chance.millis(300, 4_000));
            tokio::time::sleep(time).await;
            if sim.alive(boot).is_ok() {
                let away = sim.chance(|chance| chance.millis(500, 8_000));
                sim.power_cut(away);
            }
        });
    }

    /// The garbage collector of the host.
    pub(super) fn collect_garbage(&self) {
        self.say(|| "host: collects garbage".into());
        self.host(|machine| {
            let mut kept: BTreeSet<System> = machine.roots.iter().map(|(_, system)| *system).collect();
            kept.extend(machine.generations.iter().copied().chain([machine.current, machine.booted]));
            // What a person built is kept by the link in the person's directory.
            machine.store.retain(|system| kept.contains(system) || system.is_by_hand());
        });
        self.check();
    }

    /// Takes the lock that every switch-to-configuration takes; nothing if somebody has it.
    pub(super) fn take_lock(self: &Arc<Self>) -> Option<Lock> {
        self.host(|machine| {
            machine.locks += 1;
            let free = machine.lock.is_none();
            machine.lock = machine.lock.or(Some(machine.locks));
            free.then_some(machine.locks)
        })
        .map(|key| Lock { sim: Arc::clone(self), key })
    }

    /// Moves `/run/current-system`.
    pub(super) fn set_current(&self, system: System, by: &Author) {
        let now = self.now();
        let before = self.host(|machine| {
            machine.current_since = now;
            std::mem::replace(&mut machine.current, system)
        });
        self.say(|| format!("host: runs {} ({by:?})", system.name()));
        self.monitor(|monitor| monitor.runs(now, before, system, by));
    }

    /// Moves what the boot loader starts next.
    pub(super) fn set_boot_default(&self, system: System, by: &Author) {
        let now = self.now();
        self.host(|machine| machine.boot_default = system);
        self.say(|| format!("host: will boot {} ({by:?})", system.name()));
        self.monitor(|monitor| monitor.boots(now, system, by));
    }

    /// systemd reloads its units.
    pub(super) fn daemon_reload(&self) {
        let now = self.now();
        self.host(|machine| {
            if self.variant == Some(Variant::DeadlineStartsAnew) && machine.files.state == "activated" {
                machine.files.deadline = now + machine.files.window;
            }
        });
    }

    /// Something has systemd reload its units every few seconds, for a minute.
    fn reload_again_and_again(self: &Arc<Self>) {
        let sim = Arc::clone(self);
        tokio::spawn(async move {
            for _ in 0..12 {
                sim.daemon_reload();
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }

    /// The service of the landing is killed, and nothing else.
    pub(super) fn kill_landing(&self) {
        self.host(|machine| machine.landings.iter().for_each(|(_, killed)| killed.cancel()));
    }

    /// Whether an event concerns a host that is there to be concerned.
    pub(super) fn host_event(self: &Arc<Self>, event: Event) {
        match event {
            Event::PowerCut(away) => self.power_cut(away),
            Event::Reboot => self.reboot(),
            Event::KillLanding => self.kill_landing(),
            Event::DaemonReload => self.reload_again_and_again(),
            Event::PersonSwitches | Event::PersonTests | Event::PersonBoots => self.person(event),
            _ => self.collect_garbage(),
        }
    }
}
