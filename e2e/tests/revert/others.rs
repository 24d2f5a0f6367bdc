//! A person switches the same machine.

use std::time::Duration;

use crate::machine::Machine;

const LOCK: &str = "/run/nixos/switch-to-configuration.lock";

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_runs_already_is_not_disturbed() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    let lock = machine.host.hold_switch_lock();
    let output = machine.land("a", &new, 60, 60);
    assert!(output.stdout.contains("refused: busy: another switch-to-configuration is running"), "{}", output.stdout);
    drop(lock);
    machine.is_on(&machine.old).await;
    assert_eq!(machine.word("id"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_switches_during_probation_is_refused_and_the_landing_commits() {
    let machine = Machine::start().await;
    let (new, other) = (machine.receive("plain"), machine.receive("other"));
    machine.activated("a", &new, 60);
    for goal in ["test", "switch", "boot"] {
        assert_eq!(machine.host.switch(&other, goal).code(), 11, "{goal}");
    }
    assert_eq!(machine.ask(&["commit", "a", "1"]).code(), 0);
    machine.ended("committed", "").await;
    machine.is_on(&new).await;
    assert_eq!(machine.host.switch(&other, "test").code(), 0, "the lock is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_somebody_takes_at_the_deadline_is_waited_for() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 2);
    // Queues behind the landing, and has the lock as soon as that gives it up
    machine.host.shell(&format!("systemd-run --quiet --unit=person flock {LOCK} sleep 6"));
    machine.is("reverting").await;
    machine.reverted("not-committed").await;
    assert_eq!(machine.host.unit_state("person.service"), "inactive", "it waited until the person was done");
}

/// Somebody who does not know the lock, or has removed it.
fn switch_without_lock(machine: &Machine, system: &str) {
    machine.host.output(&["rm", "-f", LOCK]);
    assert_eq!(machine.host.switch(system, "test").code(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_who_switches_all_the_same_is_left_alone() {
    let machine = Machine::start().await;
    let (new, other) = (machine.receive("plain"), machine.receive("other"));
    for id in ["before-commit", "before-deadline"] {
        assert_eq!(machine.host.switch(&machine.old, "test").code(), 0);
        machine.activated(id, &new, if id == "before-commit" { 60 } else { 3 });
        switch_without_lock(&machine, &other);
        if id == "before-commit" {
            machine.ask(&["commit", id, "1"]);
        }
        machine.ended("superseded", "superseded").await;
        let host = &machine.host;
        assert_eq!([host.current_system(), host.boot_default(), host.profile()], [other.clone(), machine.old.clone(), machine.old.clone()]);
    }
    assert_eq!(machine.host.boots(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_that_a_person_has_set_is_not_set_back() {
    let machine = Machine::start().await;
    let (new, other) = (machine.receive("plain"), machine.receive("other"));
    machine.activated("a", &new, 60);
    // What nixos-rebuild does first; its switch is then refused
    machine.host.output(&["nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", &other]);
    machine.ask(&["revert", "a", "1"]);
    machine.ended("reverted", "asked").await;
    let host = &machine.host;
    assert_eq!([host.current_system(), host.boot_default(), host.profile()], [machine.old.clone(), machine.old.clone(), other]);
    tokio::time::timeout(Duration::from_secs(60), host.up()).await.unwrap();
}
