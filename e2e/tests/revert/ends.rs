//! What the new system does while it is activated, or what is done to the landing: the host goes back without anybody's help.

use std::time::Duration;

use nixos_host_e2e::wait::until_true;

use crate::machine::{ACTIVATION, LANDING, Machine, SOON, within};

#[tokio::test(flavor = "multi_thread")]
async fn a_landing_that_is_committed_stays() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 30);
    let output = machine.ask(&["commit", "a", "1"]);
    assert!(output.stdout.contains("landing_state=committed"), "{}{}", output.stdout, output.stderr);
    machine.is_on(&new).await;
    assert_eq!(machine.host.generations().len(), 2);
    // To Nix it is a generation like its own: there is nothing left to set, and the one before is where it rolls back to
    let nix_env = |words: &[&str]| machine.host.output(&[&["nix-env", "--profile", "/nix/var/nix/profiles/system"], words].concat());
    nix_env(&["--set", &new]);
    assert_eq!((machine.host.generations().len(), machine.host.profile()), (2, new.clone()));
    nix_env(&["--rollback"]);
    assert_eq!(machine.host.profile(), machine.old);
    nix_env(&["--switch-generation", "2"]);
    // The same again attaches to what has ended; another one goes on from there
    machine.power_cycle().await;
    machine.is_on(&new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_shell_that_nixos_has_it_lands_and_goes_back() {
    let machine = Machine::start().await;
    machine.host.shell("ln -sfn bash /bin/sh");
    let new = machine.receive("plain");
    machine.activated("a", &new, 30);
    let output = machine.ask(&["commit", "a", "1"]);
    assert!(output.stdout.contains("landing_state=committed") && output.stderr.is_empty(), "{}{}", output.stdout, output.stderr);
    machine.is_on(&new).await;
    let other = machine.receive("other");
    machine.activated("b", &other, 2);
    machine.ended("reverted", "not-committed").await;
    machine.is_on(&new).await;
    assert_eq!(machine.host.boots(), 1);
}

async fn nobody_commits(system: &str, activate: u32, code: &str) -> Machine {
    let machine = Machine::start().await;
    let new = machine.receive(system);
    machine.begin("a", &new, activate, 3);
    within(Duration::from_secs(60), machine.reverted(code)).await;
    assert_eq!(machine.host.boots(), 1, "no reboot was needed");
    assert_eq!(machine.host.generations().len(), 1, "the profile never moved");
    assert_eq!(machine.host.failed_units(), [""; 0]);
    machine
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_whose_files_are_gone_is_not_committed_and_not_taken_for_somebody_elses() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 60);
    machine.host.shell(&format!("mv {new} {new}.away; landing commit a 1 >/dev/null 2>&1 &"));
    // There is no switching from nothing: it goes back by a boot
    machine.rebooted(1).await;
    machine.is_on(&machine.old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_that_hangs_is_killed_and_undone() {
    let machine = nobody_commits("hangs", 3, "activation-timeout").await;
    assert_eq!(machine.host.unit_state(ACTIVATION), "inactive");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_that_fails_is_undone() {
    nobody_commits("fails", 60, "activation-failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_with_a_failing_unit_waits_for_the_commit_and_is_undone_without_one() {
    let machine = nobody_commits("unit-fails", 60, "not-committed").await;
    assert_eq!(machine.word("rc"), "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_stops_sshd_is_undone() {
    nobody_commits("stops-sshd", 60, "not-committed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_takes_the_network_away_is_undone() {
    let machine = Machine::start().await;
    let new = machine.receive("cuts-the-link");
    machine.begin("a", &new, 60, 3);
    machine.ended("reverted", "not-committed").await;
    // No unit of the old system's holds the link in this world, so nothing brings it back but this
    machine.host.shell("ip link set eth0 up");
    machine.is_on(&machine.old).await;
}

/// What a failing mount of the new system leads to: all that has default dependencies goes, sshd and the system bus too.
async fn emergency(machine: &Machine) {
    machine.host.shell("systemctl start --no-block --job-mode=replace-irreversibly emergency.target");
    until_true("emergency mode", SOON, || machine.host.unit_state("emergency.target") == "active").await;
    until_true("the system bus to be dead", SOON, || !machine.host.exec(&["busctl", "status"]).status.success()).await;
    assert!(!machine.host.ssh(&["true"]).status.success(), "nobody can reach it");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_emergency_mode_the_host_comes_home_by_itself() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 6);
    emergency(&machine).await;
    assert_eq!(machine.host.switch(&machine.old, "test").code(), 11, "the landing is there, and has the lock");
    within(Duration::from_secs(45), machine.reverted("not-committed")).await;
    let states = ["emergency.target", "default.target", "web.service"].map(|unit| machine.host.unit_state(unit));
    assert_eq!(states, ["inactive", "active", "inactive"]);
    assert_eq!(machine.host.boots(), 1, "no reboot was needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn from_an_emergency_mode_that_does_not_end_the_host_reboots_into_the_old_system() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 6);
    machine.host.shell("mount --bind /bin/false /usr/bin/dbus-daemon");
    emergency(&machine).await;
    within(Duration::from_secs(60), machine.rebooted(1)).await;
    machine.is_on(&machine.old).await;
}

async fn ended_by(command: &str) {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 60);
    machine.host.shell(command);
    machine.reverted("killed").await;
    assert_eq!(machine.host.unit_state("web.service"), "inactive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_landing_that_crashes_is_undone() {
    ended_by(&format!("systemctl kill --kill-who=main --signal=SEGV {LANDING}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_landing_that_is_stopped_is_undone() {
    ended_by(&format!("systemctl stop {LANDING}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_reexec_reset_failed_and_isolate_do_not_harm_it() {
    let machine = Machine::start().await;
    let new = machine.receive("hangs");
    machine.begin("a", &new, 5, 3);
    machine.is("activating").await;
    machine.host.shell("systemctl daemon-reload; systemctl daemon-reexec; systemctl reset-failed; systemctl isolate multi-user.target");
    assert_eq!(machine.word("state"), "activating");
    machine.reverted("activation-timeout").await;
    assert_eq!(machine.host.boots(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_1_that_hangs_is_left_by_a_reboot_into_the_old_system() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 2);
    machine.host.freeze_init();
    within(Duration::from_secs(60), machine.rebooted(1)).await;
    machine.is_on(&machine.old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orderly_reboot_boots_the_old_system() {
    let machine = Machine::start().await;
    for (index, system) in ["plain", "hangs"].into_iter().enumerate() {
        let new = machine.receive(system);
        machine.begin("a", &new, 60, 60);
        let state = if system == "plain" { "activated" } else { "activating" };
        machine.is(state).await;
        if system == "hangs" {
            until_true("the activation to hang", Duration::from_secs(20), || machine.host.unit_state(ACTIVATION) == "active").await;
        }
        within(Duration::from_secs(40), machine.host.reboot()).await;
        assert_eq!(machine.host.boots(), u32::try_from(index).unwrap() + 2);
        machine.is_on(&machine.old).await;
    }
}
