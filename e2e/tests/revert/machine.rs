//! A host, the landing script on it, and the systems that land on it here.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use nixos_host_e2e::flake::fleet::{Kernel, activation, units};
use nixos_host_e2e::process::Output;
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Fleet, Host, Repository, until};

pub(crate) const SCRIPT: &str = concat!(include_str!("../../../src/landing/boot.sh"), include_str!("../../../src/landing/landing.sh"));

/// Long enough for a loaded machine; nothing waits this long when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) const LANDING: &str = "nixos-host-controller-landing.service";
pub(crate) const ACTIVATION: &str = "nixos-rebuild-switch-to-configuration.service";

fn fleet(fleet: &mut Fleet) {
    let mut snippet = |host: &str, script: &str| {
        fleet.host(host).snippet("trial", script);
    };
    snippet("hangs", activation::HANG);
    snippet("fails", activation::FAIL);
    snippet("slow", &activation::sleep(4));
    snippet("cuts-the-link", activation::CUT_NETWORK);
    snippet("stops-sshd", activation::STOP_SSHD);
    fleet.host("unit-fails").unit("cert.service", units::failing());
    fleet.host("plain").unit("web.service", units::running(1));
    fleet.host("other").rev = Some(2);
    fleet.host("kernel").kernel = Some(Kernel { rev: 1, ..Kernel::default() });
}

/// The repository of all these, which the tests share: each system is built once.
fn repository() -> MutexGuard<'static, Repository> {
    static REPOSITORY: OnceLock<Mutex<Repository>> = OnceLock::new();
    REPOSITORY.get_or_init(|| Mutex::new(Repository::create(fleet))).lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Machine {
    pub(crate) host: Host,
    /// What it ran at first.
    pub(crate) old: String,
}

impl Machine {
    pub(crate) async fn start() -> Self {
        let host = Host::start();
        host.up().await;
        host.write_file("/root/landing.sh", SCRIPT);
        host.write_file("/usr/bin/landing", "#!/bin/sh\nscript=$(cat /root/landing.sh)\neval \"$script\"\n");
        host.shell("chmod 755 /usr/bin/landing; chmod 711 /root; chmod 644 /root/landing.sh");
        let old = host.current_system();
        Self { host, old }
    }

    /// The system of that name, in the host's store.
    pub(crate) fn receive(&self, name: &str) -> String {
        let repository = repository();
        let system = repository.toplevel(&repository.head(), name);
        drop(repository);
        self.host.receive(&system);
        system
    }

    /// One verb of the script, to its end.
    pub(crate) fn ask(&self, words: &[&str]) -> Output {
        self.host.exec(&[&["/usr/bin/landing"], words].concat())
    }

    /// Lands `new`, until the host needs somebody or has ended it: epoch 1, mode `switch`.
    pub(crate) fn land(&self, id: &str, new: &str, activate: u32, commit: u32) -> Output {
        self.ask(&["land", id, "1", new, "switch", &activate.to_string(), &commit.to_string()])
    }

    /// [`Machine::land`], without waiting.
    pub(crate) fn begin(&self, id: &str, new: &str, activate: u32, commit: u32) {
        self.host.shell(&format!("landing land {id} 1 {new} switch {activate} {commit} >/dev/null 2>&1 &"));
    }

    /// [`Machine::land`] of a system that activates well.
    pub(crate) fn activated(&self, id: &str, new: &str, commit: u32) {
        let output = self.land(id, new, 60, commit);
        assert!(output.stdout.contains("landing_state=activated"), "{}{}", output.stdout, output.stderr);
    }

    /// [`Machine::activated`], and asked to commit, without waiting.
    pub(crate) fn committing(&self, id: &str, new: &str) {
        self.activated(id, new, 60);
        self.host.shell(&format!("landing commit {id} 1 >/dev/null 2>&1 &"));
    }

    /// A word of the landing's state.
    pub(crate) fn word(&self, word: &str) -> String {
        self.host.exec(&["cat", &format!("/run/nixos-host-controller/{word}")]).stdout.trim().to_owned()
    }

    pub(crate) async fn is(&self, state: &str) {
        until(&format!("the landing on {} to be {state}", self.host.name()), SOON, || async {
            let now = self.word("state");
            if now == state { Ok(()) } else { Err(format!("{now}: {}", self.word("why"))) }
        })
        .await;
    }

    /// The landing has ended in `state`, with this word for why.
    pub(crate) async fn ended(&self, state: &str, code: &str) {
        self.is(state).await;
        until_true("the landing's service to be gone", SOON, || self.host.unit_state(LANDING) == "inactive").await;
        assert_eq!(self.word("code"), code, "{}", self.word("why"));
    }

    /// It answers over SSH, and what runs, what boots next and the profile are all `system`.
    pub(crate) async fn is_on(&self, system: &str) {
        self.host.up().await;
        let host = &self.host;
        let found = [host.current_system(), host.boot_default(), host.profile()];
        assert_eq!(found, [(); 3].map(|()| system.to_owned()), "current system, boot default and profile of {}", host.name());
    }

    pub(crate) async fn reverted(&self, code: &str) {
        self.ended("reverted", code).await;
        self.is_on(&self.old).await;
    }

    /// It has booted once more than `boots` times, by itself, and answers.
    pub(crate) async fn rebooted(&self, boots: u32) {
        until_true(&format!("{} to boot", self.host.name()), SOON, || self.host.boots() > boots).await;
        self.host.up().await;
    }

    /// Cuts the power, and gives it again.
    pub(crate) async fn power_cycle(&self) {
        self.host.power_cut();
        self.host.power_on();
        self.host.up().await;
    }

    /// Stops the first call of a tool whose arguments match the pattern, before it or at its end, until the next boot or [`Machine::open`]. The landing
    /// finds the host's tools in `/usr/bin`, and waits there at this exact moment.
    pub(crate) fn gate(&self, moment: Moment) {
        let Moment { tool, arguments, at } = moment;
        let run = if at == At::End { format!("/opt/real/{tool} \"$@\"; status=$?") } else { ":".to_owned() };
        let end = if at == At::End { "exit $status" } else { ":" };
        self.host.write_file(
            "/opt/gate",
            &format!(
                "#!/bin/sh\ncase \"$*\" in {arguments}) if [ -e /run/gate ] && mkdir /run/gate/taken 2>/dev/null; then\n\
                 {run}; : > /run/gate/reached; while [ -e /run/gate ]; do sleep 0.05; done; {end}\n\
                 fi;; esac\nexec /opt/real/{tool} \"$@\"\n"
            ),
        );
        let name = format!("/usr/bin/{tool}");
        self.host.shell(&format!(
            "mkdir -p /opt/real /run/gate; chmod 755 /opt/gate; [ -e /opt/real/{tool} ] || mv {name} /opt/real/{tool}; cp /opt/gate {name}"
        ));
    }

    pub(crate) async fn reaches_the_gate(&self) {
        until_true("the landing to come to the gate", SOON, || self.host.exec(&["test", "-e", "/run/gate/reached"]).status.success()).await;
    }

    pub(crate) fn open(&self) {
        self.host.shell("rm -rf /run/gate");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("===== journal of {}\n{}\n===== console\n{}", self.host.name(), self.host.journal(60), self.host.console());
        }
    }
}

/// How long something takes at most.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> T {
    let began = Instant::now();
    let result = work.await;
    assert!(began.elapsed() < limit, "took {:?}, at most {limit:?} was allowed", began.elapsed());
    result
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Start,
    End,
}

/// A moment in a landing: the call of a tool.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    tool: &'static str,
    /// As in a `case` of sh.
    arguments: &'static str,
    at: At,
}

const fn moment(tool: &'static str, arguments: &'static str, at: At) -> Moment {
    Moment { tool, arguments, at }
}

/// Begun: the service runs, and nothing is recorded yet.
pub(crate) const BEGUN: Moment = moment("ln", "*gcroots/nixos-host-controller/old", At::Start);
/// Armed: the old system is recorded, nothing is touched.
pub(crate) const ARMED: Moment = moment("systemctl", "*default.target", At::Start);
/// Activating, and about to begin.
pub(crate) const STARTING: Moment = moment("systemd-run", "*--unit=nixos-rebuild-switch-to-configuration*", At::Start);
/// Committing, nothing done yet.
pub(crate) const BEFORE_PROFILE: Moment = moment("ln", "*/profiles/system-*-link", At::Start);
/// Committing: there is a new generation, and the profile is the old one.
pub(crate) const AFTER_GENERATION: Moment = moment("ln", "*/profiles/system-*-link", At::End);
/// Committing: the profile is new, the boot default old.
pub(crate) const AFTER_PROFILE: Moment = moment("mv", "*/profiles/system", At::End);
/// Committing: both are new.
pub(crate) const AFTER_BOOT: Moment = moment("timeout", "*'switch-to-configuration boot'", At::End);
/// Committing: both are new and on the disk.
pub(crate) const AFTER_SYNC: Moment = moment("sync", "-f*", At::End);
/// Committed, and about to tidy up.
pub(crate) const AFTER_MARKER: Moment = moment("rm", "*gcroots/nixos-host-controller*", At::Start);
/// Reverting, the new system still runs.
pub(crate) const BEFORE_OLD: Moment = moment("timeout", "*'switch-to-configuration test'", At::Start);
/// Reverting, the old system runs.
pub(crate) const AFTER_OLD: Moment = moment("timeout", "*'switch-to-configuration test'", At::End);
