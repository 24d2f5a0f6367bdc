//! A person at the host's console, with `nixos-rebuild`.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::switch::Goal;
use super::{Author, Gone};
use crate::sim::Sim;
use crate::sim::catalogue::{PERSONS, REVISIONS, System};
use crate::sim::fault::Event;

impl Sim {
    /// A person begins to do something.
    pub(super) fn person(self: &Arc<Self>, event: Event) {
        let by_hand = self.chance(|chance| chance.below(u64::from(PERSONS)));
        let system = System(REVISIONS + 1 + u8::try_from(by_hand).unwrap_or_default());
        let (sim, boot) = (Arc::clone(self), self.see(|machine| machine.boot));
        if self.see(|machine| !machine.up || machine.stopping || machine.emergency) {
            return;
        }
        self.say(|| format!("person: {event:?} to {}", system.name()));
        self.host(|machine| machine.store.insert(system));
        tokio::spawn(async move { sim.rebuild(boot, system, event).await });
    }

    /// `nixos-rebuild`, with its order: profile, boot loader, activation.
    async fn rebuild(self: &Arc<Self>, boot: u32, system: System, event: Event) -> Result<(), Gone> {
        let goal = match event {
            Event::PersonSwitches => Goal::Switch,
            Event::PersonBoots => Goal::Boot,
            _ => Goal::Test,
        };
        if goal != Goal::Test {
            self.step(boot, "person: nix-env --set").await?;
            self.host(|machine| machine.set_profile(system));
        }
        let killed = CancellationToken::new();
        let taken = self.host(|machine| {
            let free = machine.activation.is_none();
            if free {
                machine.activation = Some(killed.clone());
            }
            !free
        });
        if taken {
            self.say(|| "person: is told that another activation runs".into());
            return Ok(());
        }
        let code = self.switch_to_configuration(boot, system, goal, &Author::Person, &killed).await;
        self.say(|| format!("person: switch-to-configuration ended with {code:?}"));
        self.host(|machine| {
            if machine.boot == boot {
                machine.activation = None;
            }
        });
        Ok(())
    }
}
