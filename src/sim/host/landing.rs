//! The landing's service on the host: step by step as in landing.sh.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::switch::Goal;
use super::{Author, Gone, Lock};
use crate::sim::catalogue::{Behaviour, System};
use crate::sim::{Sim, Variant};

/// What `land` was told.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Ordered {
    pub(in crate::sim) id: String,
    pub(in crate::sim) epoch: u64,
    pub(in crate::sim) new: System,
    pub(in crate::sim) mode: String,
    pub(in crate::sim) activate: Duration,
    pub(in crate::sim) commit: Duration,
}

impl Ordered {
    /// Reads the words; `None` if the system is no system.
    pub(super) fn parse([id, epoch, new, mode, activate, commit]: [&&str; 6]) -> Option<Self> {
        let seconds = |text: &str| text.parse().map(Duration::from_secs).ok();
        Some(Self {
            id: (*id).into(),
            epoch: epoch.parse().ok()?,
            new: System::of(new)?,
            mode: (*mode).into(),
            activate: seconds(activate)?,
            commit: seconds(commit)?,
        })
    }
}

/// The service ended without a commit: why, as a word and for people.
struct Failed(&'static str, String);

/// How a part of the service went.
type Step<T> = Result<Result<T, Failed>, Gone>;

impl Failed {
    fn new(code: &'static str, why: impl Into<String>) -> Self {
        Self(code, why.into())
    }
}

impl Sim {
    /// The service from its start to the end of its `ExecStopPost=`.
    pub(super) async fn service(self: &Arc<Self>, boot: u32, order: Ordered, killed: CancellationToken) -> Result<(), Gone> {
        let ended = killed.run_until_cancelled(self.run(boot, &order)).await;
        match ended {
            Some(Err(Gone)) => return Err(Gone),
            Some(Ok(Err(Failed(code, why)))) => self.host(|machine| {
                machine.files.code = code;
                machine.files.why = why;
            }),
            Some(Ok(Ok(()))) => {}
            None => self.say(|| format!("host: the landing {} is killed", order.id)),
        }
        let disarmed = self.variant == Some(Variant::DisarmedEarly) && self.see(|machine| machine.files.state == "activated");
        if !disarmed {
            self.revert(boot, &order.id).await?;
            self.last(boot, &order.id)?;
        }
        let (now, (state, code)) = (self.now(), self.see(|machine| (machine.files.state, machine.files.code)));
        self.monitor(|monitor| monitor.landing_is_over(now, &order.id, state, code));
        self.host(|machine| {
            let stays = self.variant == Some(Variant::NameStaysTaken) && machine.files.state == "reverted";
            machine.landings.retain(|(id, _)| stays || *id != order.id);
        });
        Ok(())
    }

    async fn run(self: &Arc<Self>, boot: u32, order: &Ordered) -> Step<()> {
        self.step(boot, "landing: fence").await?;
        let booted = order.mode == "booted";
        let (known, old, profile) = self.see(|machine| {
            // The profile was moved before the boot.
            let (old, profile) = if booted { (machine.boot_default, machine.boot_default) } else { (machine.current, machine.profile) };
            (machine.files.epoch, old, profile)
        });
        if order.epoch < known && self.variant != Some(Variant::NoFence) {
            let why = format!("epoch {} is older than {known}", order.epoch);
            self.host(|machine| machine.files.refused = Some(("fenced".into(), why)));
            return Ok(Ok(()));
        }
        self.host(|machine| {
            machine.root("old", old);
            machine.root("new", order.new);
        });
        self.step(boot, "landing: roots").await?;
        let now = self.now();
        self.host(|machine| {
            let files = &mut machine.files;
            (files.code, files.why, files.rc, files.commit, files.revert) = Default::default();
            files.state = "armed";
            (files.epoch, files.mode, files.old, files.new) = (order.epoch, order.mode.clone(), Some(old), Some(order.new));
            (files.profile, files.window, files.deadline) = (Some(profile), order.commit, now + order.activate);
            files.id.clone_from(&order.id);
        });
        let default = self.see(|machine| machine.boot_default);
        self.monitor(|monitor| monitor.armed(now, order, old, default));
        self.step(boot, "landing: armed").await?;
        if order.mode == "boot" {
            return match self.take_lock() {
                Some(lock) => self.commit(boot, order, old, lock).await,
                None => Ok(Err(Failed::new("commit-failed", "another switch-to-configuration is running"))),
            };
        }
        if booted {
            self.host(|machine| machine.files.rc = Some(0));
        } else {
            self.begin_activation(boot, order);
        }
        self.follow(boot, order, old).await
    }

    /// The activation in its own unit, which outlives the service.
    fn begin_activation(self: &Arc<Self>, boot: u32, order: &Ordered) {
        let (sim, order, killed) = (Arc::clone(self), order.clone(), CancellationToken::new());
        let now = self.now();
        self.host(|machine| {
            machine.files.state = "activating";
            if machine.activation.is_some() {
                (machine.files.rc, machine.files.code) = (Some(-1), "activation-failed");
            } else {
                machine.activation = Some(killed.clone());
            }
        });
        if self.see(|machine| machine.files.rc.is_some()) {
            return;
        }
        self.monitor(|monitor| monitor.activates(now, &order));
        tokio::spawn(async move {
            let by = Author::landing(&order.id);
            let goal = if sim.variant == Some(Variant::SwitchInsteadOfTest) { Goal::Switch } else { Goal::Test };
            if goal == Goal::Switch {
                sim.host(|machine| machine.set_profile(order.new));
            }
            let dies = sim.behaviour(order.new) == Behaviour::Dies;
            if dies {
                let killed = killed.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    killed.cancel();
                });
            }
            let code = sim.switch_to_configuration(boot, order.new, goal, &by, &killed).await;
            sim.monitor(|monitor| monitor.activation_is_over(&order.id));
            if sim.alive(boot).is_ok() {
                sim.host(|machine| {
                    machine.files.rc = code.unwrap_or(None).filter(|_| !dies);
                    machine.activation = None;
                });
            }
        });
    }

    /// Follows the activation, then waits for a request or the deadline.
    async fn follow(self: &Arc<Self>, boot: u32, order: &Ordered, old: System) -> Step<()> {
        let mut lock = None;
        loop {
            let (state, rc, activation) = self.see(|machine| (machine.files.state, machine.files.rc, machine.activation.is_some()));
            if state == "activating" || state == "armed" {
                match rc {
                    Some(0 | 4) => {
                        let now = self.now();
                        self.host(|machine| {
                            machine.files.deadline = now + machine.files.window;
                            machine.files.state = "activated";
                        });
                        self.monitor(|monitor| monitor.activated(now));
                        self.step(boot, "landing: activated").await?;
                    }
                    Some(code) => {
                        return Ok(Err(Failed::new("activation-failed", format!("switch-to-configuration test exited with {code}"))));
                    }
                    None if !activation => return Ok(Err(Failed::new("activation-killed", "the activation was killed"))),
                    None => {}
                }
            }
            let (state, files) = self.see(|machine| (machine.files.state, machine.files.clone()));
            if files.revert == order.id {
                return Ok(Err(Failed::new("asked", "the controller asked for the old system")));
            }
            if state == "activated" && lock.is_none() {
                lock = self.take_lock();
            }
            let asked = files.commit == order.id || self.variant == Some(Variant::CommitsUnasked);
            if let Some(lock) = lock.take_if(|_| asked) {
                return self.commit(boot, order, old, lock).await;
            }
            if self.now() >= files.deadline && self.variant != Some(Variant::NoDeadline) {
                return if state == "activated" {
                    Ok(Err(Failed::new(
                        "not-committed",
                        "nobody committed in time: the controller could not reach or verify the new system",
                    )))
                } else {
                    Ok(Err(Failed::new("activation-timeout", "the activation did not end in time")))
                };
            }
            let left = files.deadline.saturating_sub(self.now()).max(Duration::from_millis(100));
            // Nobody rings when the lock is free.
            let left = if state == "activated" && lock.is_none() { left.min(Duration::from_secs(1)) } else { left };
            let before = (files.revert, files.commit, files.rc, activation);
            let moved = |sim: &Self| {
                sim.see(|machine| {
                    let files = &machine.files;
                    (files.revert != before.0, files.commit != before.1, files.rc != before.2, machine.activation.is_some() != before.3)
                        != (false, false, false, false)
                })
            };
            self.until(boot, left, moved).await?;
        }
    }

    /// Profile, then boot loader, then read back.
    async fn commit(self: &Arc<Self>, boot: u32, order: &Ordered, old: System, lock: Lock) -> Step<()> {
        let wanted = if order.mode == "boot" { old } else { order.new };
        if self.see(|machine| machine.current != wanted) {
            return Ok(Err(Failed::new("superseded", "somebody else switched")));
        }
        self.host(|machine| machine.files.state = "committing");
        self.step(boot, "commit: begun").await?;
        if order.mode != "test" {
            self.host(|machine| machine.set_profile(order.new));
            self.step(boot, "commit: profile").await?;
            drop(lock);
            let by = Author::landing(&order.id);
            match self.switch_to_configuration(boot, order.new, Goal::Boot, &by, &CancellationToken::new()).await? {
                Some(0) => {}
                code => return Ok(Err(Failed::new("commit-failed", format!("switch-to-configuration boot exited with {code:?}")))),
            }
            self.step(boot, "commit: sync").await?;
            if self.see(|machine| machine.profile != order.new || machine.boot_default != order.new) {
                return Ok(Err(Failed::new("commit-failed", "the boot default is another one after switch-to-configuration boot")));
            }
        }
        self.monitor(|monitor| monitor.committed(&order.id));
        self.host(|machine| {
            machine.files.state = "committed";
            machine.unroot();
        });
        self.step(boot, "commit: committed").await?;
        Ok(Ok(()))
    }
}
