//! The power goes, or the landing is killed, at exact moments.

use crate::machine::{
    AFTER_BOOT, AFTER_GENERATION, AFTER_MARKER, AFTER_OLD, AFTER_PROFILE, AFTER_SYNC, ARMED, BEFORE_OLD, BEFORE_PROFILE, LANDING, Machine,
    Moment, STARTING,
};

/// What the host is to be on.
#[derive(Clone, Copy)]
enum System {
    Old,
    New,
    /// Old, with a profile that is new: the next pass mends it.
    OldWithNewProfile,
}

async fn is_on(machine: &Machine, system: System, new: &str) {
    match system {
        System::Old => machine.is_on(&machine.old).await,
        System::New => machine.is_on(new).await,
        System::OldWithNewProfile => {
            let host = &machine.host;
            let old = machine.old.clone();
            assert_eq!([host.current_system(), host.boot_default(), host.profile()], [old.clone(), old, new.to_owned()]);
        }
    }
}

/// How far a landing has got by itself when it comes to its moment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Landing,
    Commit,
    Revert,
}

async fn power_cut(on: On, moment: Moment, system: System) {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    to(&machine, on, moment, &new).await;
    machine.power_cycle().await;
    is_on(&machine, system, &new).await;
}

async fn to(machine: &Machine, on: On, moment: Moment, new: &str) {
    machine.gate(moment);
    match on {
        On::Landing => machine.begin("a", new, 60, 60),
        On::Commit => machine.committing("a", new),
        On::Revert => machine.activated("a", new, 1),
    }
    machine.reaches_the_gate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_when_armed() {
    power_cut(On::Landing, ARMED, System::Old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_before_the_profile_is_set() {
    power_cut(On::Commit, BEFORE_PROFILE, System::Old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_between_generation_and_profile() {
    power_cut(On::Commit, AFTER_GENERATION, System::Old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_between_profile_and_boot_default() {
    power_cut(On::Commit, AFTER_PROFILE, System::OldWithNewProfile).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_after_the_boot_default_is_set() {
    power_cut(On::Commit, AFTER_BOOT, System::New).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_before_the_commit_is_recorded() {
    power_cut(On::Commit, AFTER_SYNC, System::New).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_when_committed() {
    power_cut(On::Commit, AFTER_MARKER, System::New).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_before_the_old_system_is_back() {
    power_cut(On::Revert, BEFORE_OLD, System::Old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cut_when_the_old_system_is_back() {
    power_cut(On::Revert, AFTER_OLD, System::Old).await;
}

async fn killed(on: On, moment: Moment, state: &str) {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    to(&machine, on, moment, &new).await;
    kill(&machine);
    machine.open();
    let (code, system) = if state == "committed" { ("", &new) } else { ("killed", &machine.old) };
    machine.ended(state, code).await;
    machine.is_on(system).await;
    assert_eq!(machine.host.boots(), 1);
}

fn kill(machine: &Machine) {
    machine.host.shell(&format!("systemctl kill --kill-who=main --signal=KILL {LANDING}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_activation_begins() {
    killed(On::Landing, STARTING, "reverted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_mid_activation() {
    let machine = Machine::start().await;
    let new = machine.receive("hangs");
    machine.begin("a", &new, 60, 60);
    machine.is("activating").await;
    kill(&machine);
    machine.reverted("killed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_waits_for_the_commit() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 60);
    kill(&machine);
    machine.reverted("killed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_generation_and_profile() {
    killed(On::Commit, AFTER_GENERATION, "reverted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_profile_and_boot_default() {
    killed(On::Commit, AFTER_PROFILE, "reverted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_boot_default_is_set() {
    killed(On::Commit, AFTER_BOOT, "reverted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_when_committed() {
    killed(On::Commit, AFTER_MARKER, "committed").await;
}
