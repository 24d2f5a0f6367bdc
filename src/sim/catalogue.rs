//! The systems that there are, and how each behaves when it is activated.

use std::sync::LazyLock;

use super::chance::Chance;
use crate::nix::StorePath;

/// A system, by its place in the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct System(pub(super) u8);

/// What runs in the beginning.
pub(super) const FIRST: System = System(0);

/// Revisions of the flake: the systems 1 and upward.
pub(super) const REVISIONS: u8 = 4;

/// What people switch to, behind the revisions.
pub(super) const PERSONS: u8 = 3;

/// How a system behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Behaviour {
    /// It works.
    Good,
    /// It works, and its activation cuts every connection: sshd and the network are restarted.
    CutsConnections,
    /// `switch-to-configuration` exits with this; from 2 on it has switched all the same, except with 100.
    Exits(i32),
    /// The activation never ends; it has switched by then, or not.
    Hangs(bool),
    /// The activation is killed half way.
    Dies,
    /// The host loses power while it is activated.
    Crashes,
    /// The activation ends in emergency mode.
    Emergency,
    /// Nobody gets through to the host, connections that are open included.
    Deaf,
    /// Connections that are open go on, new ones are refused: a firewall.
    RefusesNew,
    /// A unit starts over and over.
    CrashLoop,
    /// The boot loader cannot be installed: the boot partition is full.
    BootFails,
    /// It cannot be built.
    DoesNotBuild,
}

impl Behaviour {
    /// Whether a host lands it.
    pub(super) fn lands(self) -> bool {
        matches!(self, Self::Good | Self::CutsConnections)
    }

    /// Of a revision.
    pub(super) fn random(chance: &mut Chance) -> Self {
        match chance.below(28) {
            0 => Self::Exits(1),
            1 => Self::Exits(2),
            2 => Self::Exits(4),
            3 => Self::Exits(100),
            4 => Self::Hangs(false),
            5 => Self::Hangs(true),
            6 => Self::Dies,
            7 => Self::Crashes,
            8 => Self::Emergency,
            9 | 10 => Self::Deaf,
            11 | 12 => Self::RefusesNew,
            13 => Self::CrashLoop,
            14 => Self::BootFails,
            15 => Self::DoesNotBuild,
            16..=18 => Self::CutsConnections,
            _ => Self::Good,
        }
    }
}

static PATHS: LazyLock<Vec<StorePath>> = LazyLock::new(|| {
    let path = |place: u8| format!("/nix/store/{}-nixos-system-{}", place.to_string().repeat(32), System(place).name());
    (0..=REVISIONS + PERSONS).filter_map(|place| path(place).parse().ok()).collect()
});

impl System {
    /// Its store path.
    pub(super) fn path(self) -> &'static StorePath {
        &PATHS[usize::from(self.0)]
    }

    /// The system with this store path.
    pub(super) fn of(path: &str) -> Option<Self> {
        PATHS.iter().position(|known| known.as_str() == path).and_then(|place| u8::try_from(place).ok()).map(System)
    }

    /// What people call it in a transcript.
    pub(super) fn name(self) -> String {
        match self.0 {
            0 => "first".into(),
            place if place <= REVISIONS => format!("rev{place}"),
            place => format!("byhand{}", place - REVISIONS),
        }
    }

    /// Whether a person made it, not the flake.
    pub(super) fn is_by_hand(self) -> bool {
        self.0 > REVISIONS
    }

    /// The Git revision that it comes from.
    pub(super) fn revision(self) -> String {
        format!("{:02x}", self.0).repeat(20)
    }

    /// The system that comes from a Git revision.
    pub(super) fn of_revision(revision: &str) -> Option<Self> {
        (1..=REVISIONS).map(System).find(|system| system.revision() == revision)
    }
}
