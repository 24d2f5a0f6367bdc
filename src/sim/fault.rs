//! What goes wrong, and at which effect.

use std::time::Duration;

use super::chance::Chance;

/// Where something can go wrong. Every one has a number, in the order in which a run comes to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A request to the API server.
    Api,
    /// A new connection, or a command over one.
    Ssh,
    /// A path of a closure that is being copied.
    Frame,
    /// Resolve, evaluate or build.
    Nix,
    /// A step of what runs on the host: the landing, an activation, a person's switch.
    Host,
}

/// What goes wrong there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The controller ends before the effect begins.
    CrashBefore,
    /// The controller ends when the effect is done and its answer not yet heard.
    CrashAfter,
    /// The request is lost.
    LostBefore,
    /// The answer is lost.
    LostAfter,
    /// It takes longer.
    Late(Duration),
    /// It is done twice.
    Twice,
    /// No answer for longer than anybody waits.
    Silence,
    /// Something happens meanwhile.
    Meanwhile(Event),
}

/// What happens to a host, to the network or to the resource while something else goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The host loses power, for this long.
    PowerCut(Duration),
    /// Somebody reboots the host.
    Reboot,
    /// The landing's service on the host is killed.
    KillLanding,
    /// The host reloads its service manager.
    DaemonReload,
    /// A person runs `nixos-rebuild switch`.
    PersonSwitches,
    /// A person runs `nixos-rebuild test`.
    PersonTests,
    /// A person runs `nixos-rebuild boot`.
    PersonBoots,
    /// The host's garbage collector runs.
    CollectGarbage,
    /// The network between controller and host is cut for this long; connections are reset.
    LinkCut(Duration),
    /// The same, and nobody is told.
    LinkSilent(Duration),
    /// The API server refuses everything for this long.
    ApiDown(Duration),
    /// All watches end.
    WatchesEnd,
    /// The followed branch moves on.
    NewRevision,
    /// Somebody changes how to land.
    SpecChange,
    /// Somebody asks for a pass.
    Requested,
    /// Somebody suspends the resource for this long.
    Suspend(Duration),
    /// Somebody deletes the resource.
    Delete,
    /// A second controller starts, and believes that it leads; the first one goes on for this long.
    SecondLeader(Duration),
    /// The controller stands still for this long; another one takes over meanwhile.
    Frozen(Duration),
}

/// Which faults a run has.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    /// These, at the effects with these numbers.
    Exactly(Vec<(u64, Fault)>),
    /// Whatever chance says: so many in a thousand effects, and no more than so many in all.
    Random {
        /// Decides.
        chance: Chance,
        /// Faults in a thousand effects.
        in_thousand: u64,
        /// Faults that may still come.
        left: u32,
    },
}

impl Plan {
    /// The plan of a seed.
    pub(super) fn of_seed(seed: u64) -> Self {
        let mut chance = Chance::new(seed, 1);
        let in_thousand = chance.pick(&[8, 25, 60, 120]);
        let left = u32::try_from(chance.below(10)).unwrap_or_default() + 1;
        Self::Random { chance, in_thousand, left }
    }

    /// What goes wrong at this effect.
    pub(super) fn at(&mut self, number: u64, place: Place) -> Option<Fault> {
        match self {
            Self::Exactly(faults) => faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault),
            Self::Random { chance, in_thousand, left } => {
                let hit = *left > 0 && chance.in_thousand(*in_thousand);
                hit.then(|| {
                    *left -= 1;
                    random(chance, place)
                })
            }
        }
    }
}

fn random(chance: &mut Chance, place: Place) -> Fault {
    if place == Place::Host || chance.in_thousand(400) {
        return Fault::Meanwhile(event(chance, place));
    }
    match chance.below(8) {
        0 | 1 => Fault::CrashBefore,
        2 | 3 => Fault::CrashAfter,
        4 => Fault::LostBefore,
        5 => Fault::LostAfter,
        6 => chance.pick(&[Fault::Twice, Fault::Silence]),
        _ => Fault::Late(chance.millis(100, 20_000)),
    }
}

fn event(chance: &mut Chance, place: Place) -> Event {
    let time = chance.millis(1_000, 45_000);
    // What the host does by itself is hit most often by what hits the host.
    match chance.below(if place == Place::Host { 15 } else { 26 }) {
        0..=2 => Event::PowerCut(chance.millis(500, 15_000)),
        3 | 4 => Event::Reboot,
        5 | 6 => Event::KillLanding,
        7..=9 => Event::DaemonReload,
        10 | 11 => Event::PersonSwitches,
        12 => Event::PersonTests,
        13 => Event::PersonBoots,
        14 => Event::CollectGarbage,
        15 => Event::LinkCut(time),
        16 => Event::LinkSilent(time),
        17 => Event::ApiDown(time),
        18 => Event::WatchesEnd,
        19 => Event::NewRevision,
        20 => Event::SpecChange,
        21 => Event::Requested,
        22 => Event::Suspend(time),
        23 if chance.in_thousand(300) => Event::Delete,
        23 | 24 => Event::SecondLeader(time),
        _ => Event::Frozen(time),
    }
}
