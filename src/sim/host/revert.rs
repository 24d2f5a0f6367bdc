//! The way back: what `ExecStopPost=` does on the host, as in landing.sh.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::switch::Goal;
use super::{Author, Files, Gone};
use crate::sim::catalogue::System;
use crate::sim::{Sim, Variant};

/// How long the old system waits for somebody else's switch.
const PATIENCE: Duration = Duration::from_secs(240);

/// One way back.
struct Back {
    boot: u32,
    by: Author,
    old: System,
    new: System,
}

impl Sim {
    /// Whatever ended the landing, unless it committed the host goes back.
    pub(super) async fn revert(self: &Arc<Self>, boot: u32, id: &str) -> Result<(), Gone> {
        let files = self.see(|machine| machine.files.clone());
        if files.id != id || !matches!(files.state, "armed" | "activating" | "activated" | "reverting" | "committing") {
            return Ok(());
        }
        let (Some(old), Some(new), Some(profile)) = (files.old, files.new, files.profile) else { return Ok(()) };
        let old = if self.variant == Some(Variant::RevertsToProfile) { self.see(|machine| machine.profile) } else { old };
        let back = Back { boot, by: Author::landing(id), old, new };
        self.end_activation(boot, &files).await?;
        if !self.ours(&back) {
            return Ok(());
        }
        self.host(|machine| {
            if machine.files.code.is_empty() {
                machine.files.code = "killed";
                machine.files.why = "the landing was stopped or killed".into();
            }
            machine.files.state = "reverting";
        });
        self.step(boot, "revert: begun").await?;
        if profile != new && self.see(|machine| machine.profile == new) {
            self.host(|machine| machine.set_profile(profile));
            self.step(boot, "revert: profile").await?;
        }
        let began = files.state == "committing";
        if began {
            self.back(&back, Goal::Boot).await?;
        }
        // There is no way to the old kernel but by a boot.
        if !self.see(|machine| machine.stopping) && files.mode != "booted" {
            self.bring_home(&back, &files, began).await?;
        }
        self.step(boot, "revert: ended").await
    }

    /// The activation is ended, whoever switched meanwhile, but not a person's that has taken its place.
    async fn end_activation(self: &Arc<Self>, boot: u32, files: &Files) -> Result<(), Gone> {
        if files.state == "activating" && files.rc.is_none() {
            if let Some(killed) = self.host(|machine| machine.activation.take()) {
                killed.cancel();
            }
            self.step(boot, "revert: activation killed").await?;
        }
        Ok(())
    }

    async fn bring_home(self: &Arc<Self>, back: &Back, files: &Files, began: bool) -> Result<(), Gone> {
        if files.mode != "boot" {
            if self.see(|machine| machine.emergency) {
                tokio::time::sleep(Duration::from_secs(4)).await;
                self.alive(back.boot)?;
                self.host(|machine| {
                    machine.emergency = false;
                    machine.links = CancellationToken::new();
                });
            }
            if !self.back(back, Goal::Test).await? {
                return Ok(());
            }
        }
        let (home, boots) = self.see(|machine| (machine.current == back.old, machine.boot_default == back.old));
        self.host(|machine| {
            if began && !boots {
                machine.files.why.push_str("; the boot default could not be set back");
                machine.files.state = "failed";
            } else if home {
                machine.files.state = "reverted";
                machine.unroot();
            }
        });
        Ok(())
    }

    /// A system that is neither of this landing's is somebody else's, and is left alone.
    fn ours(&self, back: &Back) -> bool {
        let ours = self.see(|machine| machine.current == back.old || machine.current == back.new);
        if !ours {
            self.host(|machine| {
                machine.files.code = "superseded";
                machine.files.why = "somebody else switched".into();
                machine.files.state = "superseded";
            });
        }
        ours
    }

    /// The old system's switch-to-configuration, once nobody else's holds the lock.
    async fn back(self: &Arc<Self>, back: &Back, goal: Goal) -> Result<bool, Gone> {
        let (end, mut failures) = (self.now() + PATIENCE, 0);
        while self.ours(back) {
            let never = CancellationToken::new();
            match self.switch_to_configuration(back.boot, back.old, goal, &back.by, &never).await? {
                Some(0 | 2 | 4) => return Ok(true),
                Some(11) if self.now() < end => {}
                _ => {
                    failures += 1;
                    if failures == 3 || self.now() >= end {
                        return Ok(false);
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(false)
    }

    /// If even the revert did not come through: boot the old system.
    pub(super) fn last(self: &Arc<Self>, boot: u32, id: &str) -> Result<(), Gone> {
        self.alive(boot)?;
        let (files, default, stopping) = self.see(|machine| (machine.files.clone(), machine.boot_default, machine.stopping));
        if files.id != id || matches!(files.state, "committed" | "reverted" | "superseded" | "failed" | "") || stopping {
            return Ok(());
        }
        if Some(default) != files.old {
            self.host(|machine| machine.files.state = "failed");
        } else if files.mode == "boot" {
            self.host(|machine| machine.files.state = "reverted");
        } else {
            self.reboot();
        }
        Ok(())
    }
}
