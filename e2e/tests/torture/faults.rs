//! What is broken, at which moment, and the configurations that are landed meanwhile.

use std::time::Duration;

use nixos_host_e2e::flake::fleet::{Fill, Fleet, Packages, activation};

use crate::Torture;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Copy,
    Activate,
    Verify,
    Commit,
}

pub(crate) const STAGES: [Stage; 4] = [Stage::Copy, Stage::Activate, Stage::Verify, Stage::Commit];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    ControllerKilled,
    LinkCut,
    LinkBlackholed,
    SshdStopped,
    PowerCut,
    Reboot,
    PersonSwitches,
    ApiServerKilled,
    ApiServerHangs,
    DiskFull,
    BootFull,
    /// The new system itself: which one, in the order of [`SYSTEMS`].
    System(usize),
}

pub(crate) const FAULTS: [Fault; 9] = [
    Fault::ControllerKilled,
    Fault::LinkCut,
    Fault::LinkBlackholed,
    Fault::SshdStopped,
    Fault::PowerCut,
    Fault::Reboot,
    Fault::PersonSwitches,
    Fault::ApiServerKilled,
    Fault::ApiServerHangs,
];

/// Configurations that break something themselves, and whether they may stay: the one whose activation stops sshd has it again at its end.
pub(crate) const SYSTEMS: [(&str, bool); 6] = [
    ("hangs", false),
    ("fails", false),
    ("kills-its-session", true),
    ("without-sshd", false),
    ("wrong-firewall", false),
    ("without-network", false),
];
/// Configurations that are all right, and take their time.
pub(crate) const GOOD: [&str; 4] = ["good-0", "good-1", "good-2", "good-3"];

/// Configurations whose copy takes its time: a host gets each of them once.
pub(crate) const LARGE: [&str; 8] = ["large-0", "large-1", "large-2", "large-3", "large-4", "large-5", "large-6", "large-7"];

/// A unit that does one thing while it runs, and undoes it.
fn while_it_runs(start: &str, stop: &str) -> String {
    format!("[Service]\nType=oneshot\nRemainAfterExit=true\nExecStart={start}\nExecStop={stop}\n")
}

pub(crate) fn fleet(fleet: &mut Fleet) {
    for (rev, good) in (0..).zip(GOOD) {
        fleet.host(good).snippet("slow", activation::sleep(3)).rev = Some(rev);
    }
    for (rev, large) in (0..).zip(LARGE) {
        fleet.host(large).own = Some(Packages { count: 8, kib: 1024, kind: Fill::Random, rev, changed: 8 });
    }
    fleet.host("hangs").snippet("trial", activation::HANG);
    fleet.host("fails").snippet("trial", activation::FAIL);
    fleet.host("kills-its-session").snippet("trial", activation::STOP_SSHD);
    let mask = (
        "/usr/bin/systemctl mask --runtime --now ssh.service",
        "/bin/sh -c 'systemctl unmask --runtime ssh.service; systemctl start --no-block ssh.service'",
    );
    fleet.host("without-sshd").unit("trial.service", while_it_runs(mask.0, mask.1));
    let route = ("/usr/sbin/ip route replace blackhole 10.77.0.1", "/usr/sbin/ip route del blackhole 10.77.0.1");
    fleet.host("wrong-firewall").unit("trial.service", while_it_runs(route.0, route.1));
    let link = ("/usr/sbin/ip link set eth0 down", "/usr/sbin/ip link set eth0 up");
    fleet.host("without-network").unit("trial.service", while_it_runs(link.0, link.1));
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

impl Torture {
    /// Breaks something, and mends it where that is not the host's own task.
    pub(crate) async fn strike(&self, index: usize, fault: Fault) {
        let host = self.host(index);
        match fault {
            Fault::ControllerKilled => {
                let _one = self.shared.lock().await;
                self.scenario.controller().kill();
                seconds(1).await;
                self.scenario.controller().start_again();
                self.scenario.controller().ready().await;
            }
            Fault::LinkCut => (host.cut_link(), seconds(6).await, host.heal_link()).2,
            Fault::LinkBlackholed => (host.blackhole(), seconds(6).await, host.unblackhole()).2,
            Fault::SshdStopped => (host.stop_sshd(), seconds(6).await, drop(host.exec(&["systemctl", "start", "ssh.service"]))).2,
            Fault::PowerCut => (host.power_cut(), host.power_on()).1,
            Fault::Reboot => host.reboot().await,
            Fault::PersonSwitches => {
                host.switch(&self.base(index), "test");
            }
            Fault::ApiServerKilled => {
                let _one = self.shared.lock().await;
                self.scenario.plane.kill_api_server();
                seconds(3).await;
                self.scenario.plane.start_api_server();
                self.scenario.plane.ready().await;
            }
            Fault::ApiServerHangs => {
                let _one = self.shared.lock().await;
                self.scenario.plane.freeze_api_server();
                seconds(5).await;
                self.scenario.plane.thaw_api_server();
            }
            Fault::DiskFull => (host.small_filesystem("/nix", 2), seconds(8).await, host.large_filesystem("/nix")).2,
            Fault::BootFull => {
                host.small_filesystem("/boot", 1);
                host.fill("/boot");
                seconds(8).await;
                // Space is freed; the disk is not another one, on which a landing that had ended in spite of it would not be
                host.room_again("/boot");
            }
            Fault::System(_) => {}
        }
    }

    /// The base system, which every host has.
    pub(crate) fn base(&self, index: usize) -> String {
        self.host(index).output(&["readlink", "-f", "/nix/var/nix/profiles/system-1-link"])
    }

    /// A word of the landing's state; nothing while it is off. Read from outside: a process in the host would be too slow for a short moment.
    pub(crate) fn word(&self, index: usize, word: &str) -> String {
        let Some(init) = self.host(index).init() else { return String::new() };
        let file = format!("/proc/{init}/root/run/nixos-host-controller/{word}");
        std::fs::read_to_string(file).unwrap_or_default().trim().to_owned()
    }

    pub(crate) fn is_at(&self, index: usize, stage: Stage) -> bool {
        let host = self.host(index);
        let word = match stage {
            // What takes the paths runs on the host
            Stage::Copy => {
                return host.init().is_some() && host.exec(&["sh", "-c", "grep -qas '[-]-serve' /proc/[0-9]*/cmdline"]).status.success();
            }
            Stage::Activate => "activating",
            Stage::Verify => "activated",
            Stage::Commit => "committing",
        };
        self.word(index, "state") == word
    }

    /// The landing of `new` has ended well: none of its stages will be seen any more.
    pub(crate) fn is_over(&self, index: usize, new: &str) -> bool {
        self.word(index, "state") == "committed" && self.word(index, "new") == new
    }
}
