//! The closed list of condition reasons: what each means and what to do. docs/troubleshooting.md is generated from it.

/// Types of conditions.
pub mod condition {
    /// The machine runs, and boots, what the resource asks for. Always there.
    pub const READY: &str = "Ready";
    /// Work is going on or will be tried again. There only while true.
    pub const RECONCILING: &str = "Reconciling";
    /// A person is needed. There only while true.
    pub const STALLED: &str = "Stalled";
    /// The machine answered over SSH at the last look.
    pub const REACHABLE: &str = "Reachable";
    /// The machine runs the desired system, read back from it.
    pub const UP_TO_DATE: &str = "UpToDate";
    /// The machine runs something other than what was last committed.
    pub const DRIFTED: &str = "Drifted";
    /// The machine runs a system with another kernel, initrd or other kernel parameters than it has booted.
    pub const REBOOT_REQUIRED: &str = "RebootRequired";
}

/// What follows from a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// All is as it should be, or on its way.
    Normal,
    /// Tried again by itself, with back-off; likely to pass.
    Transient,
    /// A person has to change something outside the resource (a Secret, a key, the machine): Stalled, and yet tried again with back-off.
    NeedsPerson,
    /// The input is at fault: Stalled, and held until the spec or the revision changes or `reconcile.fluxcd.io/requestedAt` asks.
    Rejected,
}

macro_rules! reasons {
    ($([$about:literal] $($name:ident $class:ident $meaning:literal $cure:literal)*)*) => {
        /// Why a condition is as it is. Stable: people write alerts on these.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $meaning] $name),*),* }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$($(Self::$name),*),*];

            /// All of them by what they are about, in the order of the stages.
            pub const GROUPS: &'static [(&'static str, &'static [Self])] = &[$(($about, &[$(Self::$name),*])),*];

            /// As it stands in a condition.
            pub const fn as_str(self) -> &'static str {
                match self { $($(Self::$name => stringify!($name)),*),* }
            }

            /// What follows from it.
            pub const fn class(self) -> Class {
                match self { $($(Self::$name => Class::$class),*),* }
            }

            /// What it means.
            pub const fn meaning(self) -> &'static str {
                match self { $($(Self::$name => $meaning),*),* }
            }

            /// What to do about it.
            pub const fn cure(self) -> &'static str {
                match self { $($(Self::$name => $cure),*),* }
            }
        }
    };
}

reasons! {
    ["Well, or on its way"]
    Succeeded Normal "The desired system runs, was read back from the machine, and is the boot default (as far as activation.mode goes)." "Nothing."
    Progressing Normal "Work is going on; Reconciling says which stage." "Wait."
    ProgressingWithRetry Normal "A stage failed and is tried again after the delay that the message names." "See the reason of Ready."
    Observing Normal "The machine is being looked at." "Wait."
    Resolving Normal "The flake reference is being resolved to one revision." "Wait."
    Evaluating Normal "Nix evaluates the configuration." "Wait."
    Building Normal "Nix builds the system; the message has the progress." "Wait."
    Copying Normal "The closure is being sent to the machine; the message has the progress." "Wait."
    Activating Normal "The machine activates the new system; it goes back by itself if that takes too long." "Wait."
    Rebooting Normal "The machine boots the new system once; whatever goes wrong, the boot after that is the old one." "Wait."
    Verifying Normal "The new system is being verified over a new connection." "Wait."
    Committing Normal "The new system is being made the boot default." "Wait."
    Suspended Normal "spec.suspend is true: nothing is done." "Set spec.suspend to false."
    Braked Normal "The brake of all hosts is set, or whether it is cannot be known: nothing is done; the message names the ConfigMap." "Set the key stopped of that ConfigMap to false, or delete it."
    Drift Normal "The machine runs something that this resource did not land: a person switched it." "With onDrift: Correct nothing; with Report switch the machine back or change the flake."
    NoDrift Normal "The machine runs what was last committed." "Nothing."
    Answered Normal "The machine answered over SSH." "Nothing."
    OutOfDate Normal "The machine does not run the desired system yet." "See Ready and Reconciling."
    RebootPending Normal "activation.mode is Boot: the desired system is the boot default, and runs from the next boot on." "Reboot the machine when it suits."
    RebootRequired Normal "The current system has another kernel, initrd or other kernel parameters than were booted." "Reboot the machine when it suits, or set activation.reboot: IfRequired for the next landing."
    NoRebootRequired Normal "The machine has booted what the current system would boot." "Nothing."
    DryRun Normal "activation.mode is DryActivate: the message says what would change, nothing was changed." "Set another mode to land it."
    NotObserved Normal "The machine could not be looked at, so this cannot be known now." "See Reachable."

    ["The spec and its Secrets"]
    InvalidSpec Rejected "A field of the spec is wrong in a way that the API server could not see." "Correct the field that the message names."
    InvalidFlakeReference Rejected "spec.flake is not a flake reference that this controller takes." "Correct it as the message says."
    MachineConflict NeedsPerson "Another NixOSHost, older than this one, names a machine with the same machine id." "Delete one of the two; if they are two machines, one was cloned: give it an /etc/machine-id of its own."
    SecretNotFound NeedsPerson "A Secret that the spec refers to does not exist." "Create it in the same namespace."
    SecretInvalid NeedsPerson "A Secret lacks a key, or the key's content cannot be used: empty, garbage, or an encrypted private key." "Correct the key that the message names."
    Forbidden NeedsPerson "The controller may not read something that the spec refers to." "Grant its ServiceAccount the access."

    ["The repository"]
    RefNotFound NeedsPerson "The branch or tag does not exist in the repository." "Correct spec.flake.ref, or push it."
    RevisionNotFound NeedsPerson "The revision does not exist in the repository." "Correct spec.flake.rev, or push it."
    RepositoryUnreachable Transient "The repository's host does not answer." "Wait, or look at network and DNS of the controller."
    RepositoryNotFound NeedsPerson "There is no such repository, or no access to it: hosting services answer alike." "Correct spec.flake.url or the credentials."
    CredentialsRefused NeedsPerson "The repository refused the credentials, or wants some." "Correct the Secret of spec.flake.credentialsRef."
    RepositoryHostKey NeedsPerson "The git server's host key is not in the Secret's known_hosts." "Compare the key, then correct known_hosts."
    DowngradeRefused Rejected "What spec.flake follows was moved back or rewritten: it leads to a revision that does not descend from the one last landed." "Push a commit that descends from it (`git revert`), pin the older one with spec.flake.rev, or set spec.flake.allowDowngrade."
    SignatureRefused Rejected "The commit is not signed, or by none of the keys of spec.flake.verify; nothing of it was read." "Sign it with one of those keys, or correct spec.flake.verify."
    NotAFlake NeedsPerson "There is no flake.nix at that place of the repository." "Correct the url, or its ?dir=."
    LockFileOutOfDate NeedsPerson "flake.lock does not fit flake.nix, and the controller never changes it." "Run `nix flake lock` and commit."
    ResolveFailed Transient "Nix could not fetch or lock the flake." "See the message."

    ["The evaluation"]
    AttributeNotFound Rejected "The flake has no such nixosConfigurations attribute; the message lists those that exist." "Correct spec.flake.attribute."
    NotANixOSSystem Rejected "The attribute is no NixOS system: it has no config.system.build.toplevel." "Correct spec.flake.attribute or the flake."
    EvaluationFailed Rejected "Nix could not evaluate the configuration; the message is Nix's own, with the position." "Correct the configuration and push."
    EvaluationForbidden Rejected "The evaluation wanted something that it may not: a local file, a build, an address outside the allowed ones." "Remove it; import from derivation needs the operator's --allow-import-from-derivation."
    EvaluationTimedOut Transient "The evaluation took longer than it may." "Simplify it, or raise --evaluate-timeout."
    EvaluationOutOfMemory Transient "The evaluation needed more memory than it may." "Raise --evaluate-memory."

    ["The build"]
    BuildFailed Rejected "A derivation did not build; the message has the last lines of its log." "Correct it and push."
    BuildTimedOut Transient "The build took longer than spec.build.timeout." "Raise it, or use a binary cache."
    BuildError Transient "Nix could not build for a reason of the controller's own (disk, daemon, download)." "See the message."
    WrongArchitecture Rejected "The system is for another architecture than the machine, or than anything the controller can build for." "Correct nixpkgs.hostPlatform, the attribute, or the address."

    ["The way to the machine"]
    Unreachable Transient "No address of the machine answers." "See the message for each address; the machine lands by itself once it is back."
    HostKeyMissing NeedsPerson "No host key is pinned, so nothing was sent." "Set connection.hostKeys, or connection.hostKeyPolicy: TrustOnFirstUse."
    HostKeyMismatch NeedsPerson "The machine shows a host key that is not the pinned one: reinstalled, or not the machine you mean." "Compare the keys, then correct connection.hostKeys."
    AuthenticationFailed NeedsPerson "The machine refused the key for this user." "Add the public key to the user's authorized keys, or correct the Secret or the user."
    PrivilegeRefused NeedsPerson "The user is not root and may use neither sudo nor doas without a password." "Allow it (security.sudo.wheelNeedsPassword = false, or noPass in security.doas.extraRules), or connect as root."
    NotNixOS NeedsPerson "The machine has no /run/current-system with a nixos-version." "Correct the address; other systems cannot be managed."
    NixMissing NeedsPerson "The machine has no nix-store command." "Enable nix on the machine (nix.enable)."
    HostNotReady Transient "The machine is starting, stopping or in maintenance." "Wait, or look at the machine."
    HostError Transient "A command on the machine failed." "See the message."
    HostBusy Transient "Another switch or another landing runs on the machine." "Wait until it has ended."
    Fenced Transient "The machine takes orders from a controller with a newer epoch: another one leads, or this one's clock went back." "See that one controller manages the machine: kubectl get lease shows who leads."
    BootDefaultDiffers NeedsPerson "The boot default is neither what runs nor what was committed, so a crash while landing would start something else." "Run `switch-to-configuration boot` of the system that should boot."

    ["The copy"]
    CopyFailed Transient "The closure could not be sent." "See the message; the next try sends what is missing."
    StoreFull NeedsPerson "The machine's disk is full." "Collect garbage there (nix-collect-garbage -d), or enlarge it."
    CopyRefused NeedsPerson "The machine's Nix does not take paths from this user." "Connect as root, or make the user a trusted-user."

    ["The landing"]
    PreSwitchCheckFailed Rejected "The new system's own checks refused the switch; nothing was changed." "See the message: often it needs mode Boot and a reboot."
    ActivationFailed Rejected "The activation failed; the machine went back to the old system." "See the message and correct the configuration."
    ActivationTimedOut Rejected "The activation took longer than activateWithin; the machine went back to the old system." "Correct the configuration, or raise activateWithin."
    UnitsFailed Rejected "Units failed with the new system; the machine went back to the old one, or kept it with onFailedUnits: Keep." "See the units' journal in the message."
    HealthCheckFailed Rejected "One of spec.healthChecks failed with the new system; the machine went back to the old system." "See the message; correct the configuration, or the check."
    VerificationFailed Rejected "The new system was not reachable over a new connection in time; the machine went back to the old system." "Correct network, firewall or sshd of the configuration."
    CommitFailed Rejected "The new system could not be made the boot default; the machine went back to the old system." "See the message: often a full boot partition."
    Interrupted Rejected "The landing was ended in its middle: the machine restarted, or somebody killed it. The old system runs." "If nobody did that, the new system may crash the machine: look at its journal; then ask again with requestedAt."
    RebootUnsupported Rejected "The new system needs a reboot, and the boot loader cannot be told to start it once." "Set activation.reboot: Never and reboot by hand, or use mode Boot."
    RebootFailed Rejected "The machine was rebooted into the new system and came back with the old one." "Look at the machine's console; the new kernel may not start. Ask again with requestedAt."
    RebootHostNotBack Transient "The machine was rebooted into the new system and does not answer since; the next power cycle boots the old one." "Power-cycle the machine, or look at its console."
    Withdrawn Transient "What was landing is not wanted any more: the spec or the revision changed in its middle. The machine went back to the old system." "Nothing: what is wanted now is landed."
    Superseded Transient "Somebody else switched the machine in the middle of the landing; theirs was left alone." "Agree on who manages the machine."
    Unattended Transient "The controller was away while the machine waited for the commit: killed, cut off, or no longer the leader. The machine went back to the old system." "Wait: it is landed again."
    RevertFailed Rejected "The machine could not go back to the old system by itself." "Look at the machine now: journalctl -u nixos-host-controller-landing."
    InternalError Transient "A fault of the controller itself; only this pass was harmed." "Report it with the controller's log."
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text).ok_or(())
    }
}

impl Reason {
    /// The list as Markdown, for docs/troubleshooting.md: a heading each, so that other pages and alerts can lead to it.
    pub fn reference() -> String {
        let entry = |reason: &Self| {
            format!("### {reason}\n\n{}\n\n- **Then**: {}\n- **Do**: {}\n", reason.meaning(), reason.class().after(), reason.cure())
        };
        let group =
            |(about, reasons): &(&str, &[Self])| format!("## {about}\n\n{}", reasons.iter().map(entry).collect::<Vec<_>>().join("\n"));
        Self::GROUPS.iter().map(group).collect::<Vec<_>>().join("\n")
    }
}

impl Class {
    /// What the controller does then, in a few words.
    pub const fn after(self) -> &'static str {
        match self {
            Self::Normal => "nothing is wrong: the controller goes on.",
            Self::Transient => "tried again by itself, after a delay that grows.",
            Self::NeedsPerson => "`Stalled`, and yet tried again, after a delay that grows: it goes on by itself once it is mended.",
            Self::Rejected => "`Stalled`, and held: tried again when the spec or the revision changes, or when it is asked for.",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_camel_case_and_found_by_its_name() {
        for reason in Reason::ALL {
            let name = reason.as_str();
            assert!(name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            assert_eq!(name.parse(), Ok(*reason));
            assert!(reason.meaning().ends_with('.') && reason.cure().ends_with('.'), "{name}");
        }
    }
}
