//! What landing.sh does when it is asked: the same words, the same answers.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::landing::Ordered;
use super::{Author, Gone};
use crate::sim::catalogue::{Behaviour, System};
use crate::sim::{Sim, Variant, when};

/// What the host said.
#[derive(Debug, Clone)]
pub(in crate::sim) struct Answer {
    pub(in crate::sim) code: u32,
    pub(in crate::sim) text: String,
    /// What it said of itself, if it did.
    pub(in crate::sim) look: Option<Look>,
}

/// What runs on a host, as it said itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sim) struct Look {
    pub(in crate::sim) current: System,
    /// A landing is on its way: what runs may not stay.
    pub(in crate::sim) probation: bool,
}

fn refused(code: &str, why: &str, exit: u32) -> Answer {
    Answer { code: exit, text: format!("landing: refused: {code}: {why}\n"), look: None }
}

impl Sim {
    /// Runs the script with these words.
    pub(in crate::sim) async fn script(self: &Arc<Self>, words: &[String]) -> Result<Answer, Gone> {
        let boot = self.see(|machine| machine.boot);
        self.alive(boot)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["status"] => Ok(self.status("")),
            ["verify", ..] => Ok(self.verify()),
            ["log"] => Ok(Answer { code: 0, text: "activating\n".into(), look: None }),
            ["wait", id] => self.wait(boot, id).await,
            ["land", id, epoch, new, mode, activate, commit, ..] => match Ordered::parse([id, epoch, new, mode, activate, commit]) {
                Some(order) => self.land(boot, order).await,
                None => Ok(refused("invalid", "it is not a NixOS system", 65)),
            },
            [verb @ ("commit" | "revert"), id, epoch] => self.ask(boot, verb, id, epoch.parse().unwrap_or_default()).await,
            _ => Ok(Answer { code: 64, text: String::new(), look: None }),
        }
    }

    fn status(&self, more: &str) -> Answer {
        self.told(&[], more)
    }

    /// While a landing waits for the controller.
    fn brief_status(&self, more: &str) -> Answer {
        self.told(&["booted", "profile", "generation", "boot_default"], more)
    }

    /// The status but for what is left out.
    fn told(&self, left_out: &[&str], more: &str) -> Answer {
        let (mut text, look) = self.see(|machine| {
            let files = &machine.files;
            let active = !machine.landings.is_empty();
            let remembered = files.new.filter(|_| self.variant == Some(Variant::AnswersFromMemory));
            let path = |system: System| system.path().as_str();
            let word = |system: Option<System>| system.map(path).unwrap_or_default();
            let left = (files.state == "activated").then(|| files.deadline.saturating_sub(self.now()));
            let lines = [
                ("protocol", "1"),
                ("current", path(remembered.unwrap_or(machine.current))),
                ("booted", path(machine.booted)),
                ("profile", path(machine.profile)),
                ("generation", &machine.generations.len().to_string()),
                ("boot_default", path(machine.boot_default)),
                ("nixos_version", "26.05"),
                ("architecture", "x86_64-linux"),
                ("nix", "/bin/nix-store"),
                ("kernel", "6.12"),
                ("boot_id", &format!("boot-{}", machine.boot)),
                ("machine_id", "5d1f"),
                ("landing", if active { "active" } else { "" }),
                ("landing_id", &files.id),
                ("landing_epoch", &files.epoch.to_string()),
                ("landing_state", files.state),
                ("landing_rc", &files.rc.map(|rc| rc.to_string()).unwrap_or_default()),
                ("landing_code", files.code),
                ("landing_why", &files.why),
                ("landing_old", word(files.old)),
                ("landing_new", word(files.new)),
                ("landing_left", &left.map(|left| left.as_secs().to_string()).unwrap_or_default()),
            ];
            let text: String =
                lines.iter().filter(|(key, _)| !left_out.contains(key)).flat_map(|(key, value)| [key, "=", value, "\n"]).collect();
            let ended = matches!(files.state, "committed" | "reverted" | "superseded" | "failed");
            let probation = active && !ended && files.new == Some(machine.current);
            (text, Look { current: machine.current, probation })
        });
        text.push_str(more);
        Answer { code: 0, text, look: Some(look) }
    }

    fn verify(&self) -> Answer {
        let restarts = self.now().as_millis();
        let behaviour = self.see(|machine| self.behaviour(machine.current));
        match behaviour {
            Behaviour::CrashLoop => self.brief_status(&format!("failed=\nrestarts=web.service:{restarts}\n")),
            Behaviour::Exits(4) => self.brief_status("failed=web.service\nrestarts=\njournal=web.service: no such file\n"),
            _ => self.brief_status("failed=\nrestarts=\n"),
        }
    }

    /// Until something is up to the controller, or the landing has ended; 20 seconds at most.
    async fn wait(self: &Arc<Self>, boot: u32, id: &str) -> Result<Answer, Gone> {
        let settled = |sim: &Self| {
            sim.see(|machine| {
                let state = machine.files.state;
                machine.files.id != id
                    || machine.landings.is_empty()
                    || matches!(state, "activated" | "committed" | "reverted" | "superseded" | "failed")
            })
        };
        self.until(boot, Duration::from_secs(20), settled).await?;
        let waits = self.see(|machine| machine.files.id == id && !machine.landings.is_empty() && machine.files.state == "activated");
        Ok(if waits { self.brief_status("") } else { self.status("") })
    }

    /// Waits for something to be so on the host, `within` at most.
    pub(in crate::sim) async fn until(&self, boot: u32, within: Duration, so: impl Fn(&Self) -> bool) -> Result<(), Gone> {
        let waiting = when(&self.changed, || match self.alive(boot) {
            Ok(()) if !so(self) => None,
            alive => Some(alive),
        });
        tokio::time::timeout(within, waiting).await.unwrap_or_else(|_| self.alive(boot))
    }

    async fn land(self: &Arc<Self>, boot: u32, order: Ordered) -> Result<Answer, Gone> {
        if order.mode == "reboot" {
            let now = self.now();
            self.monitor(|monitor| monitor.broken(now, 'a', "a reboot is ordered, and activation.reboot is Never"));
        }
        if self.see(|machine| machine.files.id == order.id) {
            return match self.fence(order.epoch) {
                Some(refusal) => Ok(refusal),
                None => self.wait(boot, &order.id).await,
            };
        }
        if let Some(refusal) = self.preflight(&order) {
            return Ok(refusal);
        }
        self.step(boot, "land: preflight").await?;
        let id = order.id.clone();
        let killed = CancellationToken::new();
        let taken = self.host(|machine| {
            let taken = !machine.landings.is_empty() && self.variant != Some(Variant::NoLock);
            if !taken {
                machine.files.refused = None;
                machine.landings.push((id.clone(), killed.clone()));
            }
            taken
        });
        if taken {
            return if self.see(|machine| machine.files.id == id) {
                self.wait(boot, &id).await
            } else {
                Ok(refused("busy", "another landing is running", 75))
            };
        }
        let sim = Arc::clone(self);
        tokio::spawn(async move { sim.service(boot, order, killed).await });
        let begun = |sim: &Self| sim.see(|machine| machine.files.id == id || machine.files.refused.is_some());
        self.until(boot, Duration::from_secs(10), begun).await?;
        match self.see(|machine| machine.files.refused.clone()) {
            Some((code, why)) => Ok(refused(&code, &why, 75)),
            None => self.wait(boot, &id).await,
        }
    }

    /// An older epoch is refused; a newer one is remembered.
    fn fence(&self, epoch: u64) -> Option<Answer> {
        let known = self.see(|machine| machine.files.epoch);
        if epoch < known && self.variant != Some(Variant::NoFence) {
            return Some(refused("fenced", &format!("epoch {epoch} is older than {known}"), 77));
        }
        let now = self.now();
        self.monitor(|monitor| monitor.takes_orders(now, epoch));
        self.host(|machine| machine.files.epoch = epoch);
        None
    }

    fn preflight(&self, order: &Ordered) -> Option<Answer> {
        self.see(|machine| {
            let crash_brings_back = machine.boot_default == machine.current || machine.boot_default == machine.profile;
            if !machine.store.contains(&order.new) {
                Some(refused("invalid", "it is not in the store", 65))
            } else if machine.stopping || machine.emergency {
                Some(refused("not-ready", "the host is stopping or in maintenance", 75))
            } else if !machine.landings.is_empty() && self.variant != Some(Variant::NoLock) {
                Some(refused("busy", &format!("another landing is running: {}", machine.files.id), 75))
            } else if machine.lock.is_some() && self.variant != Some(Variant::NoLock) {
                Some(refused("busy", "another switch-to-configuration is running", 75))
            } else if machine.activation.is_some() && self.variant != Some(Variant::NoLock) {
                Some(refused("busy", "a nixos-rebuild is running", 75))
            } else if order.mode == "booted" && (machine.current != order.new || machine.booted != order.new) {
                Some(refused("not-booted", "it was not booted", 75))
            } else if !crash_brings_back && order.mode != "boot" {
                Some(refused("boot-default", "a crash now would not bring the current system back", 78))
            } else {
                None
            }
        })
    }

    async fn ask(self: &Arc<Self>, boot: u32, verb: &str, id: &str, epoch: u64) -> Result<Answer, Gone> {
        let here = self.see(|machine| machine.files.id.clone());
        if here != id {
            return Ok(refused("other", &format!("the landing here is {here}"), 75));
        }
        if let Some(refusal) = self.fence(epoch) {
            return Ok(refusal);
        }
        self.step(boot, &format!("is asked to {verb}")).await?;
        self.host(|machine| {
            let request = if verb == "commit" { &mut machine.files.commit } else { &mut machine.files.revert };
            id.clone_into(request);
        });
        let ended = |sim: &Self| {
            sim.see(|machine| machine.landings.is_empty() || matches!(machine.files.state, "committed" | "reverted" | "superseded"))
        };
        self.until(boot, Duration::from_secs(400), ended).await?;
        Ok(self.status(""))
    }
}

impl Author {
    /// The landing with this ID.
    pub(super) fn landing(id: &str) -> Self {
        Self::Landing(id.to_owned())
    }
}
