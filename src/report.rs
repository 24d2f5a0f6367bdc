//! What a status says, made of what a pass found. PURE: the only place that makes conditions.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use nixos_host_api::{
    AppliedFlake, Class, Facts, FlakeStatus, HistoryEntry, Mode, NixOSHostStatus, Outcome, Reason, StageRecord, SystemStatus, condition,
};

use crate::landing::HostStatus;
use crate::nix::{LockedFlake, StorePath};
use crate::pipeline::{Ended, Findings, Verdict};
use crate::stage::{Failure, bounded};

/// Where a pass is, or how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// A stage is at work.
    Doing(Reason, String),
    /// Nothing is wrong.
    Settled(Verdict),
    /// Something is wrong; the text says when it is tried again.
    Failed(Failure, String),
    /// `spec.suspend` is true.
    Suspended,
    /// Nothing is done for any host, for this reason.
    Braked(String),
}

/// What a status is made of.
#[derive(Debug)]
pub struct Report<'r> {
    /// The status at the beginning of the pass.
    pub previous: &'r NixOSHostStatus,
    /// The conditions that were written last, perhaps in this pass: what transitions are measured by.
    pub written: &'r [Condition],
    /// `metadata.generation` of the resource that the pass is for.
    pub generation: i64,
    /// The `requestedAt` that the pass has handled.
    pub requested_at: Option<&'r str>,
    /// Whether the host key is kept: with TrustOnFirstUse.
    pub trusts_first_use: bool,
    /// The same for the jump host's.
    pub trusts_jump: bool,
    /// `spec.activation.mode`.
    pub mode: Mode,
    /// What was found.
    pub findings: &'r Findings,
    /// Where the pass is.
    pub state: State,
    /// For conditions that change now, and for landings that ended.
    pub now: Timestamp,
}

const HISTORY: usize = 10;
const MAX_HISTORY_MESSAGE: usize = 2000;
const MAX_CONDITION_MESSAGE: usize = 8192;

impl Report<'_> {
    /// The whole status.
    pub fn status(&self) -> NixOSHostStatus {
        let system = self.system();
        let flake = self.flake(&system);
        NixOSHostStatus {
            observed_generation: Some(self.generation),
            conditions: self.conditions(&system),
            revision: self.revision(&system),
            last_handled_reconcile_at: self
                .requested_at
                .filter(|_| self.handled())
                .map(str::to_owned)
                .or_else(|| self.previous.last_handled_reconcile_at.clone()),
            facts: self.facts(),
            host_key: kept(self.trusts_first_use, self.findings.host_key.as_ref(), self.previous.host_key.as_ref()),
            jump_host_key: kept(self.trusts_jump, self.findings.jump_host_key.as_ref(), self.previous.jump_host_key.as_ref()),
            stages: self.findings.records.as_slice().to_vec(),
            history: self.history(),
            flake: (flake != FlakeStatus::default()).then_some(flake),
            system: (system != SystemStatus::default()).then_some(system),
        }
    }

    /// Whether the request for this pass is done with: at its end, and from the moment on in which it began a landing, since one request means
    /// one try. A pass that was cut off before leaves it to the next one, as suspend and the brake do.
    fn handled(&self) -> bool {
        let landing = |stages: &[StageRecord]| stages.iter().find_map(|stage| stage.landing.clone()).map(|landing| landing.id);
        match self.state {
            State::Settled(_) | State::Failed(..) => true,
            State::Suspended | State::Braked(_) => false,
            State::Doing(..) => {
                let now = landing(self.findings.records.as_slice());
                now.is_some() && now != landing(&self.previous.stages)
            }
        }
    }

    /// What the host said in this pass.
    fn host(&self) -> Option<&HostStatus> {
        self.findings.host.as_ref()?.as_ref().ok()
    }

    fn system(&self) -> SystemStatus {
        let before = self.previous.system.clone().unwrap_or_default();
        let desired = self.findings.evaluated.as_ref().map(|evaluated| evaluated.out.to_string()).or(before.desired.clone());
        let landed = self.findings.landed.as_ref().map(StorePath::to_string).or(before.landed.clone());
        let Some(host) = self.host() else { return SystemStatus { desired, landed, ..before } };
        let text = |path: &Option<StorePath>| path.as_ref().map(StorePath::to_string);
        let short = |path: &Option<StorePath>| path.as_ref().map(|path| path.hash_part().chars().take(7).collect());
        SystemStatus {
            desired,
            landed,
            current: text(&host.current),
            booted: text(&host.booted),
            boot_default: text(&host.boot_default).or_else(|| Some("Unknown".into())),
            short: short(&host.current),
            booted_short: short(&host.booted),
            generation: host.generation,
        }
    }

    /// Whether a landing is on its way on the host: what runs is on probation.
    fn landing(&self) -> bool {
        self.host().and_then(|host| host.landing.as_ref()).is_some_and(|landing| landing.active && !landing.state.is_final())
    }

    /// Whether what runs is what is landing: it may have been applied earlier, and may go all the same. Also where the landing's service is gone without a
    /// last word (the machine shuts down, perhaps), unless what runs boots too.
    fn probation(&self) -> bool {
        let Some((host, landing)) = self.host().and_then(|host| Some((host, host.landing.as_ref()?))) else { return false };
        let runs = landing.new.is_some() && landing.new == host.current;
        !landing.state.is_final() && runs && (landing.active || host.boot_default != host.current)
    }

    /// Whether the wanted system runs, as read from the host.
    fn runs_desired(&self, system: &SystemStatus) -> bool {
        let desired = self.findings.evaluated.as_ref().map(|evaluated| evaluated.out.as_str());
        self.host().is_some() && desired.is_some() && system.current.as_deref() == desired
    }

    /// `applied` is what runs and was landed, as read from the host: the wanted flake if its system runs, the one before if that still runs,
    /// else nothing.
    fn flake(&self, system: &SystemStatus) -> FlakeStatus {
        let before = self.previous.flake.clone().unwrap_or_default();
        let attempted = self.findings.locked.as_ref().map(applied_flake).or(before.attempted.clone());
        let runs_before = self.previous.system.as_ref().is_some_and(|previous| previous.current == system.current);
        let applied = match () {
            () if self.runs_desired(system) && !self.landing() && !self.probation() => attempted.clone(),
            () if runs_before && !self.probation() => before.applied,
            () => None,
        };
        FlakeStatus { attempted, applied, followed: self.findings.followed.clone() }
    }

    /// What runs, for people: also while it is on probation.
    fn revision(&self, system: &SystemStatus) -> Option<String> {
        if self.runs_desired(system) {
            return self.findings.locked.as_ref().map(LockedFlake::short);
        }
        let runs_before = self.previous.system.as_ref().is_some_and(|previous| previous.current == system.current);
        self.previous.revision.clone().filter(|_| runs_before)
    }

    fn facts(&self) -> Option<Facts> {
        let Some(host) = self.host() else { return self.previous.facts.clone() };
        Some(Facts {
            nixos_version: host.nixos_version.clone(),
            kernel: host.kernel.clone(),
            architecture: host.architecture.clone(),
            boot_id: host.boot_id.clone(),
            machine: host.machine.clone(),
        })
    }

    fn history(&self) -> Vec<HistoryEntry> {
        let new = self.findings.ended.iter().rev().map(|ended| self.entry(ended));
        new.chain(self.previous.history.iter().cloned()).take(HISTORY).collect()
    }

    fn entry(&self, ended: &Ended) -> HistoryEntry {
        let outcome = match &ended.failure {
            None => Outcome::Succeeded,
            Some(failure) if failure.is_rejection() => Outcome::Rejected,
            Some(_) => Outcome::Failed,
        };
        HistoryEntry {
            system: ended.system.to_string(),
            revision: ended.revision.clone(),
            rev: ended.rev.clone(),
            mode: ended.mode,
            outcome,
            reason: ended.failure.as_ref().map_or(Reason::Succeeded, |failure| failure.reason).as_str().into(),
            message: ended.failure.as_ref().map(|failure| bounded(&failure.message, MAX_HISTORY_MESSAGE)),
            time: Time(seconds(self.now)),
        }
    }

    // ---- conditions ----

    fn conditions(&self, system: &SystemStatus) -> Vec<Condition> {
        let mut conditions = vec![self.ready(system)];
        conditions.extend(self.reconciling());
        conditions.extend(self.stalled());
        conditions.push(self.reachable());
        conditions.push(self.up_to_date(system));
        conditions.extend(self.drifted(system));
        conditions.push(self.reboot_required());
        // Their order counts: the same ones in another order would be a write.
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        conditions
    }

    fn ready(&self, system: &SystemStatus) -> Condition {
        let runs = self.revision(system).unwrap_or_else(|| "another system".into());
        match &self.state {
            State::Doing(..) => self.condition(condition::READY, "Unknown", Reason::Progressing, "work is going on; see Reconciling"),
            State::Settled(Verdict::UpToDate(note)) if note.is_empty() => {
                self.condition(condition::READY, "True", Reason::Succeeded, &format!("runs {runs}"))
            }
            State::Settled(Verdict::UpToDate(note)) => {
                self.condition(condition::READY, "True", Reason::Succeeded, &format!("runs {runs}, kept although {note}"))
            }
            State::Settled(Verdict::RebootPending) => self.condition(
                condition::READY,
                "True",
                Reason::RebootPending,
                "the desired system is the boot default and runs from the next boot on",
            ),
            State::Settled(Verdict::DryRun(text)) => {
                self.condition(condition::READY, "True", Reason::DryRun, &format!("a switch would do this:\n{text}"))
            }
            State::Settled(Verdict::Drift) => self.condition(
                condition::READY,
                "False",
                Reason::Drift,
                "somebody switched the machine, and onDrift is Report: it is left alone",
            ),
            State::Failed(failure, _) => self.condition(condition::READY, "False", failure.reason, &failure.message),
            State::Braked(why) => self.condition(
                condition::READY,
                "False",
                Reason::Braked,
                &format!("{why}; nothing is done, and what is said of the machine is from the last look"),
            ),
            State::Suspended => self.condition(
                condition::READY,
                "False",
                Reason::Suspended,
                "spec.suspend is true: nothing is done; what is said of the machine is from the last look",
            ),
        }
    }

    fn reconciling(&self) -> Option<Condition> {
        match &self.state {
            State::Doing(stage, message) => Some(self.condition(condition::RECONCILING, "True", *stage, message)),
            State::Failed(failure, retry) if failure.reason.class() == Class::Transient => {
                Some(self.condition(condition::RECONCILING, "True", Reason::ProgressingWithRetry, retry))
            }
            _ => None,
        }
    }

    fn stalled(&self) -> Option<Condition> {
        match &self.state {
            State::Failed(failure, retry) if matches!(failure.reason.class(), Class::NeedsPerson | Class::Rejected) => {
                let message = format!("{} {retry}", failure.reason.cure());
                Some(self.condition(condition::STALLED, "True", failure.reason, message.trim()))
            }
            _ => None,
        }
    }

    fn reachable(&self) -> Condition {
        match &self.findings.host {
            Some(Ok(_)) => self.condition(condition::REACHABLE, "True", Reason::Answered, "answered over SSH"),
            Some(Err(failure)) if answered(failure.reason) => {
                self.condition(condition::REACHABLE, "True", Reason::Answered, "answered over SSH, but see Ready")
            }
            Some(Err(failure)) => self.condition(condition::REACHABLE, "False", failure.reason, &failure.message),
            None => self.condition(condition::REACHABLE, "Unknown", Reason::NotObserved, "not looked at yet, suspended or braked"),
        }
    }

    fn up_to_date(&self, system: &SystemStatus) -> Condition {
        let kind = condition::UP_TO_DATE;
        if self.host().is_none() {
            return self.condition(kind, "Unknown", Reason::NotObserved, "the machine could not be looked at");
        }
        let Some(evaluated) = &self.findings.evaluated else {
            return self.condition(kind, "Unknown", Reason::NotObserved, "what the machine should run is not known yet");
        };
        if self.runs_desired(system) {
            return self.condition(kind, "True", Reason::Succeeded, "runs the desired system");
        }
        let pending = self.mode == Mode::Boot && system.boot_default.as_deref() == Some(evaluated.out.as_str());
        let reason = if pending { Reason::RebootPending } else { Reason::OutOfDate };
        self.condition(kind, "False", reason, &format!("should run {}", evaluated.out.name()))
    }

    fn reboot_required(&self) -> Condition {
        let kind = condition::REBOOT_REQUIRED;
        match self.host() {
            None => self.condition(kind, "Unknown", Reason::NotObserved, "the machine could not be looked at"),
            Some(host) if host.reboot_required => {
                let message = "the current system has another kernel, initrd or other kernel parameters than were booted";
                self.condition(kind, "True", Reason::RebootRequired, message)
            }
            Some(_) => self.condition(kind, "False", Reason::NoRebootRequired, "the machine has booted what its current system boots"),
        }
    }

    fn drifted(&self, system: &SystemStatus) -> Option<Condition> {
        let landed = system.landed.as_ref()?;
        if self.host().is_none() {
            return Some(self.condition(condition::DRIFTED, "Unknown", Reason::NotObserved, "the machine could not be looked at"));
        }
        let runs = if self.mode == Mode::Boot { &system.boot_default } else { &system.current };
        let drifted = runs.as_ref() != Some(landed) && runs.as_deref() != Some("Unknown") && !self.landing();
        Some(if drifted {
            let message = format!("runs {}, last landed was {landed}", runs.as_deref().unwrap_or("nothing known"));
            self.condition(condition::DRIFTED, "True", Reason::Drift, &message)
        } else {
            self.condition(condition::DRIFTED, "False", Reason::NoDrift, "runs what was last landed, or is landing it")
        })
    }

    /// A condition whose transition time is kept while its status is the same.
    fn condition(&self, kind: &str, status: &str, reason: Reason, message: &str) -> Condition {
        let before = self.written.iter().find(|condition| condition.type_ == kind && condition.status == status);
        Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.as_str().into(),
            message: bounded(message, MAX_CONDITION_MESSAGE),
            observed_generation: Some(self.generation),
            last_transition_time: before.map_or_else(|| Time(seconds(self.now)), |condition| condition.last_transition_time.clone()),
        }
    }
}

/// Whether a look at the host that failed for this reason got as far as an SSH session.
fn answered(reason: Reason) -> bool {
    !matches!(reason, Reason::Unreachable | Reason::HostKeyMissing | Reason::HostKeyMismatch | Reason::AuthenticationFailed)
}

fn applied_flake(locked: &LockedFlake) -> AppliedFlake {
    AppliedFlake { url: locked.reference.clone(), rev: locked.rev.clone(), nar_hash: locked.nar_hash.clone() }
}

/// As the API server stores it: whole seconds.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// The host key that goes into the status: the one that was seen last, if keys are taken on trust at all.
fn kept(trusts: bool, seen: Option<&String>, before: Option<&String>) -> Option<String> {
    seen.or(before).filter(|_| trusts).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::landing::{Landing, LandingState};
    use crate::stage::Records;
    use crate::world::nix::Evaluated;

    const OLD: &str = "/nix/store/00000000000000000000000000000000-nixos-system-web-old";
    const NEW: &str = "/nix/store/11111111111111111111111111111111-nixos-system-web-new";

    fn locked(rev: &str) -> LockedFlake {
        LockedFlake {
            reference: format!("git+https://example.org/infra?rev={rev}"),
            rev: Some(rev.into()),
            followed: Some("main".into()),
            nar_hash: "sha256-x".into(),
            fingerprint: rev.into(),
            last_modified: 0,
        }
    }

    fn host(current: &str) -> HostStatus {
        let path = Some(current.parse().unwrap());
        HostStatus {
            current: path.clone(),
            boot_default: path,
            nixos_version: Some("26.05".into()),
            has_nix: true,
            ..HostStatus::default()
        }
    }

    /// What is found on a host that runs `current` and should run [`NEW`] of revision `bbbbbbb…`.
    fn findings(current: Result<&str, Reason>) -> Findings {
        let evaluated = Evaluated {
            drv: format!("{NEW}.drv").parse().unwrap(),
            out: NEW.parse().unwrap(),
            system: None,
            nixos_version: None,
            kernel_version: None,
            host_name: None,
            cached: false,
        };
        Findings {
            host: Some(current.map(host).map_err(|reason| Failure::new(reason, "no answer"))),
            locked: Some(locked("bbbbbbbbb")),
            evaluated: Some(evaluated),
            landed: Some(OLD.parse().unwrap()),
            ..Findings::default()
        }
    }

    fn status(previous: &NixOSHostStatus, findings: &Findings, state: State, second: i64) -> NixOSHostStatus {
        report(previous, findings, state, second).status()
    }

    fn report<'r>(previous: &'r NixOSHostStatus, findings: &'r Findings, state: State, second: i64) -> Report<'r> {
        Report {
            previous,
            written: &previous.conditions,
            generation: 3,
            requested_at: None,
            trusts_first_use: false,
            trusts_jump: false,
            mode: Mode::Switch,
            findings,
            state,
            now: Timestamp::from_second(second).unwrap(),
        }
    }

    fn said(status: &NixOSHostStatus) -> Vec<String> {
        status.conditions.iter().map(|found| format!("{}={} {}", found.type_, found.status, found.reason)).collect()
    }

    #[test]
    fn what_runs_is_applied_only_if_it_was_read_back() {
        let landed = status(&NixOSHostStatus::default(), &findings(Ok(NEW)), State::Settled(Verdict::UpToDate(String::new())), 1);
        assert_eq!(landed.flake.as_ref().unwrap().applied, landed.flake.as_ref().unwrap().attempted);
        assert_eq!(landed.revision.as_deref(), Some("main@bbbbbbb"));
        let old = status(
            &NixOSHostStatus::default(),
            &findings(Ok(OLD)),
            State::Failed(Failure::new(Reason::BuildFailed, "x"), String::new()),
            1,
        );
        assert_eq!((old.flake.unwrap().applied, old.revision), (None, None), "what was never landed by us has no revision");
    }

    #[test]
    fn a_request_is_done_with_when_a_landing_begins_or_the_pass_ends() {
        let landing = |id: &str| nixos_host_api::LandingRef { id: id.into(), system: NEW.into(), ..Default::default() };
        let with = |id: &str| {
            let mut records = Records::default();
            records.began("Activate", "k".into(), landing(id));
            records
        };
        let handled = |before: &NixOSHostStatus, records: Records, state: State| {
            let findings = Findings { records, ..findings(Ok(OLD)) };
            let mut report = report(before, &findings, state, 1);
            report.requested_at = Some("again");
            report.status().last_handled_reconcile_at.is_some()
        };
        let (none, begun) = (NixOSHostStatus::default(), NixOSHostStatus { stages: with("a").as_slice().to_vec(), ..Default::default() });
        let doing = || State::Doing(Reason::Building, String::new());
        assert!(!handled(&none, Records::default(), doing()), "who comes after a crash finds it again");
        assert!(!handled(&none, with("a"), State::Suspended) && !handled(&none, with("a"), State::Braked(String::new())));
        assert!(handled(&none, with("a"), doing()), "one request, one landing");
        assert!(!handled(&begun, with("a"), doing()), "that one was begun before");
        assert!(handled(&begun, with("b"), doing()));
        assert!(handled(&none, Records::default(), State::Settled(Verdict::UpToDate(String::new()))));
    }

    #[test]
    fn a_system_on_probation_runs_and_is_neither_applied_nor_drift() {
        let mut found = findings(Ok(NEW));
        let landing = Landing {
            id: "a".into(),
            active: true,
            state: LandingState::Activated,
            exit: Some(0),
            code: String::new(),
            why: String::new(),
            old: None,
            new: NEW.parse().ok(),
            left: None,
        };
        let dead = Landing { active: false, state: LandingState::Reverting, ..landing.clone() };
        found.host = Some(Ok(HostStatus { landing: Some(landing), ..host(NEW) }));
        let now = status(&NixOSHostStatus::default(), &found, State::Doing(Reason::Verifying, String::new()), 1);
        assert_eq!((now.flake.as_ref().unwrap().applied.as_ref(), now.revision.as_deref()), (None, Some("main@bbbbbbb")));
        assert!(said(&now).contains(&"Drifted=False NoDrift".to_owned()), "{:?}", said(&now));
        // The machine shuts down in the middle of the revert: whether this stays is not to be seen
        found.host = Some(Ok(HostStatus { landing: Some(dead.clone()), boot_default: OLD.parse().ok(), ..host(NEW) }));
        let now = status(&NixOSHostStatus::default(), &found, State::Doing(Reason::Verifying, String::new()), 1);
        assert_eq!(now.flake.unwrap().applied, None);
        found.host = Some(Ok(HostStatus { landing: Some(dead), boot_default: NEW.parse().ok(), ..host(NEW) }));
        let now = status(&NixOSHostStatus::default(), &found, State::Doing(Reason::Verifying, String::new()), 1);
        assert!(now.flake.unwrap().applied.is_some(), "but where it boots it stays");
    }

    #[test]
    fn what_was_applied_stays_applied_while_it_runs_and_goes_with_it() {
        let failed = || State::Failed(Failure::new(Reason::BuildFailed, "x"), String::new());
        let mut first = findings(Ok(NEW));
        let landed = status(&NixOSHostStatus::default(), &first, State::Settled(Verdict::UpToDate(String::new())), 1);
        first.evaluated.as_mut().unwrap().out = OLD.parse().unwrap();
        first.locked = Some(locked("ccccccccc"));
        let next = status(&landed, &first, failed(), 2);
        assert_eq!(next.flake.as_ref().unwrap().applied.as_ref().unwrap().rev.as_deref(), Some("bbbbbbbbb"));
        assert_eq!(next.revision.as_deref(), Some("main@bbbbbbb"));
        first.host = Some(Ok(host("/nix/store/22222222222222222222222222222222-by-hand")));
        assert_eq!(status(&next, &first, failed(), 3).flake.unwrap().applied, None, "somebody switched it");
    }

    #[test]
    fn the_conditions_of_each_state() {
        let none = NixOSHostStatus::default();
        let all = |found: Findings, state| said(&status(&none, &found, state, 1)).join(", ");
        expect_test::expect![
            "Drifted=False NoDrift, Reachable=True Answered, Ready=Unknown Progressing, RebootRequired=False NoRebootRequired, Reconciling=True Building, UpToDate=False OutOfDate"
        ]
        .assert_eq(&all(findings(Ok(OLD)), State::Doing(Reason::Building, "3 of 4".into())));
        expect_test::expect!["Drifted=Unknown NotObserved, Reachable=False Unreachable, Ready=False Unreachable, RebootRequired=Unknown NotObserved, Reconciling=True ProgressingWithRetry, UpToDate=Unknown NotObserved"]
            .assert_eq(&all(findings(Err(Reason::Unreachable)), State::Failed(Failure::new(Reason::Unreachable, "no answer"), "soon".into())));
        expect_test::expect![
            "Drifted=False NoDrift, Reachable=True Answered, Ready=False UnitsFailed, RebootRequired=False NoRebootRequired, Stalled=True UnitsFailed, UpToDate=False OutOfDate"
        ]
        .assert_eq(&all(findings(Ok(OLD)), State::Failed(Failure::new(Reason::UnitsFailed, "web"), "held".into())));
        expect_test::expect!["Drifted=Unknown NotObserved, Reachable=True Answered, Ready=False PrivilegeRefused, RebootRequired=Unknown NotObserved, Stalled=True PrivilegeRefused, UpToDate=Unknown NotObserved"]
            .assert_eq(&all(findings(Err(Reason::PrivilegeRefused)), State::Failed(Failure::new(Reason::PrivilegeRefused, "sudo"), "soon".into())));
        expect_test::expect![
            "Reachable=Unknown NotObserved, Ready=False Suspended, RebootRequired=Unknown NotObserved, UpToDate=Unknown NotObserved"
        ]
        .assert_eq(&all(Findings::default(), State::Suspended));
        expect_test::expect![
            "Reachable=Unknown NotObserved, Ready=False Braked, RebootRequired=Unknown NotObserved, UpToDate=Unknown NotObserved"
        ]
        .assert_eq(&all(Findings::default(), State::Braked("bad kernel".into())));
    }

    #[test]
    fn the_same_findings_later_are_the_same_status() {
        let (found, state) = (findings(Ok(NEW)), || State::Settled(Verdict::UpToDate(String::new())));
        let first = status(&NixOSHostStatus::default(), &found, state(), 100);
        assert_eq!(status(&first, &found, state(), 200), first);
    }

    #[test]
    fn a_landing_goes_to_the_top_of_a_bounded_history() {
        let mut found = findings(Ok(NEW));
        let mut now = NixOSHostStatus::default();
        for second in 0..15 {
            let failure = (second % 2 == 1).then(|| Failure::new(Reason::ActivationFailed, "x"));
            found.ended =
                vec![Ended { system: NEW.parse().unwrap(), revision: format!("main@{second}"), rev: None, mode: Mode::Switch, failure }];
            now = status(&now, &found, State::Settled(Verdict::UpToDate(String::new())), second);
        }
        assert_eq!(now.history.len(), HISTORY);
        assert_eq!((now.history[0].revision.as_str(), now.history[0].outcome), ("main@14", Outcome::Succeeded));
        assert_eq!((now.history[1].reason.as_str(), now.history[1].outcome), ("ActivationFailed", Outcome::Rejected));
    }
}
