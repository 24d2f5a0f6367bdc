//! The simulated `switch-to-configuration`: its lock, its goals and its exit codes.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Author, Gone};
use crate::sim::Sim;
use crate::sim::catalogue::{Behaviour, System};

/// What to do with a system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) enum Goal {
    /// Run it.
    Test,
    /// Boot it.
    Boot,
    /// Both.
    Switch,
}

/// The exit code of `flock` on a lock that is held.
const LOCKED: i32 = 11;

impl Sim {
    /// Runs `switch-to-configuration` until it ends or is `killed`; `None` then.
    pub(in crate::sim) async fn switch_to_configuration(
        self: &Arc<Self>,
        boot: u32,
        system: System,
        goal: Goal,
        by: &Author,
        killed: &CancellationToken,
    ) -> Result<Option<i32>, Gone> {
        self.step(boot, &format!("{} {goal:?} begins", system.name())).await?;
        let Some(lock) = self.take_lock() else { return Ok(Some(LOCKED)) };
        let ended = killed.run_until_cancelled(self.locked(boot, system, goal, by)).await;
        drop(lock);
        ended.transpose()
    }

    async fn locked(self: &Arc<Self>, boot: u32, system: System, goal: Goal, by: &Author) -> Result<i32, Gone> {
        if goal != Goal::Test {
            self.step(boot, "boot loader").await?;
            if self.behaviour(system) == Behaviour::BootFails {
                return Ok(1);
            }
            // It knows only generations of the profile, says nothing of others, and exits with 0.
            if self.see(|machine| machine.generations.contains(&system)) {
                self.set_boot_default(system, by);
            }
        }
        if goal == Goal::Boot { Ok(0) } else { self.activate(boot, system, by).await }
    }

    async fn activate(self: &Arc<Self>, boot: u32, system: System, by: &Author) -> Result<i32, Gone> {
        let behaviour = self.behaviour(system);
        let coming = self.see(|machine| machine.current != system);
        match behaviour {
            Behaviour::Exits(code @ (1 | 100)) => return Ok(code),
            Behaviour::Hangs(false) => std::future::pending().await,
            _ => {}
        }
        if self.see(|machine| machine.emergency) {
            return Ok(1);
        }
        self.step(boot, "stops units").await?;
        if behaviour == Behaviour::Crashes && coming {
            let away = self.chance(|chance| chance.millis(500, 8_000));
            self.power_cut(away);
            return Err(Gone);
        }
        self.set_current(system, by);
        match behaviour {
            Behaviour::CutsConnections => self.cut_connections(),
            Behaviour::Emergency => self.host(|machine| {
                machine.emergency = true;
                machine.links.cancel();
            }),
            Behaviour::Hangs(true) => std::future::pending().await,
            _ => {}
        }
        self.daemon_reload();
        self.step(boot, "starts units").await?;
        Ok(match behaviour {
            Behaviour::Exits(code) => code,
            Behaviour::Emergency => 4,
            _ => 0,
        })
    }

    /// sshd and the network are restarted: what is connected is not any more.
    fn cut_connections(&self) {
        self.host(|machine| std::mem::take(&mut machine.links).cancel());
    }
}
