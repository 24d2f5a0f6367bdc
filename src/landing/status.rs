//! What the host says of itself and of the landing on it: the `key=value` lines of `landing.sh status`, parsed. PURE.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::nix::StorePath;

/// What one look at a host found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostStatus {
    /// What runs: the resolved `/run/current-system`. `None` where there is none: not NixOS.
    pub current: Option<StorePath>,
    /// What was booted.
    pub booted: Option<StorePath>,
    /// The newest generation of the system profile.
    pub profile: Option<StorePath>,
    /// Its number.
    pub generation: Option<i64>,
    /// What the boot loader starts next; `None` for a boot loader that cannot be read.
    pub boot_default: Option<StorePath>,
    /// What was booted, the profile and the boot default were not looked at: they cannot have moved since the last look, because a landing waits
    /// for the controller.
    pub brief: bool,
    /// The running system's `nixos-version`.
    pub nixos_version: Option<String>,
    /// The running system's Nix system, such as `x86_64-linux`.
    pub architecture: Option<String>,
    /// Whether there is a `nix-store` command.
    pub has_nix: bool,
    /// The running kernel's release.
    pub kernel: Option<String>,
    /// A new one each boot.
    pub boot_id: Option<String>,
    /// A digest of the machine's id.
    pub machine: Option<String>,
    /// The current system has another kernel, initrd or other kernel parameters than were booted.
    pub reboot_required: bool,
    /// The newest epoch that it knows of: an older one may not order anything.
    pub epoch: Option<u64>,
    /// The last landing since the host booted, in flight or ended.
    pub landing: Option<Landing>,
}

/// A landing on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landing {
    /// Its identity.
    pub id: String,
    /// Whether its service still runs.
    pub active: bool,
    /// How far it is.
    pub state: LandingState,
    /// Exit code of `switch-to-configuration test`, once there is one.
    pub exit: Option<i32>,
    /// Why it ended without a commit, as a word: see [`super::outcome`].
    pub code: String,
    /// The same for people.
    pub why: String,
    /// What ran before.
    pub old: Option<StorePath>,
    /// What was to land.
    pub new: Option<StorePath>,
    /// While it waits for a commit: for how long.
    pub left: Option<Duration>,
}

/// How far a landing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LandingState {
    /// Everything recorded, nothing touched.
    Armed,
    /// `switch-to-configuration test` runs.
    Activating,
    /// The new system is active; the host waits for a commit.
    Activated,
    /// The new system gets an entry in the boot menu.
    Staging,
    /// The host shuts down; the next boot, and only that one, starts the new system.
    Rebooting,
    /// The profile and the boot default are being moved.
    Committing,
    /// Done: the new system stays.
    Committed,
    /// The host goes back.
    Reverting,
    /// Done: the old system runs.
    Reverted,
    /// Somebody else switched the host; it was left alone.
    Superseded,
    /// The revert did not come through, and a reboot would not help.
    Failed,
}

impl LandingState {
    const ALL: [Self; 11] = [
        Self::Armed,
        Self::Activating,
        Self::Activated,
        Self::Staging,
        Self::Rebooting,
        Self::Committing,
        Self::Committed,
        Self::Reverting,
        Self::Reverted,
        Self::Superseded,
        Self::Failed,
    ];

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// As the host says it.
    fn as_str(self) -> &'static str {
        match self {
            Self::Armed => "armed",
            Self::Activating => "activating",
            Self::Activated => "activated",
            Self::Staging => "staging",
            Self::Rebooting => "rebooting",
            Self::Committing => "committing",
            Self::Committed => "committed",
            Self::Reverting => "reverting",
            Self::Reverted => "reverted",
            Self::Superseded => "superseded",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing more happens by itself.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Committed | Self::Reverted | Self::Superseded | Self::Failed)
    }
}

impl fmt::Display for LandingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a verification found on top of the status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verification {
    /// The status at that moment.
    pub host: HostStatus,
    /// `maintenance` in emergency and rescue mode; after a boot what `systemctl is-system-running` says, `starting` for example; otherwise empty.
    pub running: String,
    /// Units that failed or wait for a restart now, and did not before the landing.
    pub failed: Vec<String>,
    /// Restarts so far, by unit, if they were asked for.
    pub restarts: BTreeMap<String, u64>,
    /// The last journal lines of the failed units, each with its unit's name.
    pub journal: Vec<String>,
}

/// What a system needs that is about to land.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    /// Another kernel, initrd or other kernel parameters than were booted.
    pub reboot: bool,
    /// Units that have failed before.
    pub failed: Vec<String>,
}

impl Needs {
    /// Reads the output of `needs`.
    pub fn parse(text: &str) -> Result<Self, NotTheProtocol> {
        HostStatus::parse(text)?;
        let failed = text.lines().filter_map(|line| line.strip_prefix("failed=")).flat_map(str::split_whitespace);
        Ok(Self { reboot: text.lines().any(|line| line == "reboot=required"), failed: failed.take(20).map(str::to_owned).collect() })
    }
}

/// The output is not of this protocol: something else answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the host's answer is not that of the landing script: {0:?}")]
pub struct NotTheProtocol(String);

// What a host that means no harm stays below, and what the schema of the status takes: a stranger's text goes no further than this.
const LONGEST_FACT: usize = 64;
const LONGEST_VERSION: usize = 128;
const LONGEST_WORD: usize = 256;
const LONGEST_LINE: usize = 600;
const MOST_UNITS: usize = 64;
const MOST_LINES: usize = 64;
const MOST_GENERATIONS: i64 = 9_007_199_254_740_991;

/// The beginning of `text`, at most `most` bytes, without control characters.
fn printable(text: &str, most: usize) -> String {
    let mut clean = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if clean.len() + c.len_utf8() > most {
            break;
        }
        clean.push(c);
    }
    clean
}

/// The marker that the script ran at all.
const MARKER: &str = "protocol=1";

impl HostStatus {
    /// Reads the output of `status`, `land`, `commit` and `revert`.
    pub fn parse(text: &str) -> Result<Self, NotTheProtocol> {
        if !text.lines().any(|line| line == MARKER) {
            return Err(NotTheProtocol(text.chars().take(200).collect()));
        }
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        let word = |key: &str| fields.get(key).copied().filter(|value| !value.is_empty());
        let bounded = |key: &str, most| word(key).map(|value| printable(value, most));
        let path = |key: &str| word(key).and_then(|value| value.parse::<StorePath>().ok());
        let state = word("landing_state").and_then(LandingState::parse);
        let landing = word("landing_id").zip(state).map(|(id, state)| Landing {
            id: printable(id, LONGEST_WORD),
            active: word("landing") == Some("active"),
            state,
            exit: word("landing_rc").and_then(|rc| rc.parse().ok()),
            code: printable(word("landing_code").unwrap_or_default(), LONGEST_WORD),
            why: printable(word("landing_why").unwrap_or_default(), LONGEST_WORD),
            old: path("landing_old"),
            new: path("landing_new"),
            left: word("landing_left").and_then(|left| left.parse().ok()).map(Duration::from_secs),
        });
        Ok(Self {
            current: path("current"),
            booted: path("booted"),
            profile: path("profile"),
            generation: word("generation").and_then(|number| number.parse().ok()).filter(|number| (0..=MOST_GENERATIONS).contains(number)),
            boot_default: path("boot_default"),
            brief: !fields.contains_key("boot_default"),
            nixos_version: bounded("nixos_version", LONGEST_VERSION),
            architecture: bounded("architecture", LONGEST_FACT),
            has_nix: word("nix").is_some(),
            kernel: bounded("kernel", LONGEST_VERSION),
            boot_id: bounded("boot_id", LONGEST_FACT),
            machine: word("machine_id").map(machine),
            reboot_required: word("reboot") == Some("required"),
            epoch: word("landing_epoch").and_then(|epoch| epoch.parse().ok()),
            landing,
        })
    }
}

impl HostStatus {
    /// Where it is brief: with what it leaves out, as an earlier look found it.
    #[must_use]
    pub fn after(self, earlier: Option<&Self>) -> Self {
        let Some(Self { booted, profile, generation, boot_default, .. }) = earlier.filter(|_| self.brief).cloned() else { return self };
        Self { booted, profile, generation, boot_default, ..self }
    }
}

/// The digest by which two resources are known to name one machine. The id itself is for the machine alone (machine-id(5)): it goes no further.
fn machine(id: &str) -> String {
    let hash = Sha256::digest(format!("nixos-host-controller {id}"));
    let first: [u8; 16] = std::array::from_fn(|index| hash[index]);
    format!("{:032x}", u128::from_be_bytes(first))
}

impl Verification {
    /// Reads the output of `verify`.
    pub fn parse(text: &str) -> Result<Self, NotTheProtocol> {
        let lines = |key: &'static str| text.lines().filter_map(move |line| line.strip_prefix(key));
        let words = |key: &'static str| lines(key).flat_map(str::split_whitespace);
        Ok(Self {
            host: HostStatus::parse(text)?,
            running: printable(words("running=").next().unwrap_or_default(), LONGEST_FACT),
            failed: words("failed=").take(MOST_UNITS).map(|unit| printable(unit, LONGEST_WORD)).collect(),
            restarts: words("restarts=")
                .filter_map(|word| word.rsplit_once(':'))
                .filter_map(|(unit, n)| Some((printable(unit, LONGEST_WORD), n.parse().ok()?)))
                .take(MOST_UNITS)
                .collect(),
            journal: lines("journal=").take(MOST_LINES).map(|line| printable(line, LONGEST_LINE)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-nixos-system-web-26.05";

    fn text(landing: &str) -> String {
        format!(
            "protocol=1\ncurrent={RUNNING}\nbooted={RUNNING}\nprofile={RUNNING}\ngeneration=4\nboot_default=Unknown\nnixos_version=26.05.test\narchitecture=x86_64-linux\nnix=/run/current-system/sw/bin/nix-store\nmachine_id=5d1f\n{landing}"
        )
    }

    #[test]
    fn a_host_without_a_landing_is_read() {
        let host = HostStatus::parse(&text("landing=inactive\nlanding_id=\nlanding_state=\n")).unwrap();
        assert_eq!(host.current.unwrap().as_str(), RUNNING);
        assert_eq!((host.generation, host.boot_default, host.landing, host.has_nix), (Some(4), None, None, true));
        // printf 'nixos-host-controller 5d1f' | sha256sum | cut -c 1-32
        assert_eq!(host.machine.as_deref(), Some("63eaaa90e2b415c1ced6cd6de731c727"));
    }

    #[test]
    fn a_brief_look_leaves_out_what_an_earlier_one_found() {
        const NEW: &str = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-nixos-system-web-26.11";
        let earlier = HostStatus::parse(&text("")).unwrap();
        let brief = HostStatus::parse(&format!("protocol=1\ncurrent={NEW}\nnix=\n")).unwrap();
        assert_eq!((brief.brief, &brief.profile, brief.generation), (true, &None, None));
        let both = brief.after(Some(&earlier));
        assert_eq!(both.current.unwrap().as_str(), NEW);
        assert_eq!((both.booted, both.profile, both.generation), (earlier.booted.clone(), earlier.profile.clone(), Some(4)));
        let whole = HostStatus { generation: None, ..earlier.clone() };
        assert_eq!(whole.clone().after(Some(&earlier)), whole, "a whole look says all that there is");
    }

    #[test]
    fn a_landing_is_read_with_why_it_ended() {
        let host = HostStatus::parse(&text(&format!("landing=inactive\nlanding_id=a-b-1\nlanding_epoch=1700000000000\nlanding_state=reverted\nlanding_rc=2\nlanding_code=activation-failed\nlanding_why=exited with 2\nlanding_old={RUNNING}\n"))).unwrap();
        assert_eq!(host.epoch, Some(1_700_000_000_000));
        let landing = host.landing.unwrap();
        assert_eq!((landing.state, landing.active, landing.exit), (LandingState::Reverted, false, Some(2)));
        assert_eq!((landing.code.as_str(), landing.why.as_str()), ("activation-failed", "exited with 2"));
        assert!(landing.state.is_final() && landing.left.is_none());
    }

    #[test]
    fn a_landing_says_how_long_it_waits() {
        let landing = |left: &str| {
            let host = HostStatus::parse(&text(&format!("landing=active\nlanding_left={left}\nlanding_id=a\nlanding_state=activated\n")));
            host.unwrap().landing.unwrap()
        };
        assert_eq!((landing("37").left, landing("37").state.to_string()), (Some(Duration::from_secs(37)), "activated".to_owned()));
        assert_eq!([landing("").left, landing("-3").left, landing("soon").left], [None; 3]);
        for state in LandingState::ALL {
            assert_eq!(LandingState::parse(state.as_str()), Some(state));
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        assert!(HostStatus::parse("Welcome to BusyBox\n").is_err());
        assert!(HostStatus::parse("").is_err());
    }

    #[test]
    fn a_host_that_is_not_nixos_has_no_current_system() {
        let host = HostStatus::parse("protocol=1\ncurrent=/run/current-system\nnix=\n").unwrap();
        assert_eq!((host.current, host.has_nix), (None, false));
    }

    #[test]
    fn what_a_system_needs_is_read() {
        let needs = Needs::parse("protocol=1\nreboot=required\nfailed=a.service b.mount\n").unwrap();
        assert_eq!(needs, Needs { reboot: true, failed: vec!["a.service".into(), "b.mount".into()] });
        assert_eq!(Needs::parse("protocol=1\nfailed=\n"), Ok(Needs::default()));
        assert!(Needs::parse("reboot=required\n").is_err());
    }

    #[test]
    fn absurd_values_are_cut_to_what_a_status_takes() {
        let long = "\u{1b}ü".repeat(500_000);
        let facts = ["nixos_version", "architecture", "kernel", "boot_id", "landing_id", "landing_why"];
        let facts = facts.map(|key| format!("{key}={long}")).join("\n");
        let other = "generation=-1\nlanding_state=reverted\nlanding_rc=99999999999999999999";
        let host = HostStatus::parse(&format!("protocol=1\ncurrent=/nix/store/{long}\n{other}\n{facts}\n")).unwrap();
        assert_eq!((host.current, host.generation), (None, None));
        assert_eq!([host.nixos_version, host.kernel].map(Option::unwrap), [(); 2].map(|()| "ü".repeat(64)));
        assert_eq!([host.architecture, host.boot_id].map(Option::unwrap), [(); 2].map(|()| "ü".repeat(32)));
        let landing = host.landing.unwrap();
        assert!(landing.id.len() <= 256 && landing.why.len() <= 256 && landing.exit.is_none());
        let units = format!("protocol=1\nfailed={}\n{}", "a.service ".repeat(10_000), "journal=x\n".repeat(10_000));
        let found = Verification::parse(&units).unwrap();
        assert_eq!((found.failed.len(), found.journal.len()), (MOST_UNITS, MOST_LINES));
    }

    #[test]
    fn a_verification_lists_units_with_their_journal() {
        let found = Verification::parse(&text(
            "running=degraded\nfailed=web.service db.service \nrestarts=web.service:3 \njournal=web.service: bad = config\n",
        ))
        .unwrap();
        assert_eq!((found.running.as_str(), found.failed), ("degraded", vec!["web.service".to_owned(), "db.service".to_owned()]));
        assert_eq!(found.restarts["web.service"], 3);
        assert_eq!(found.journal, ["web.service: bad = config"]);
    }
}
