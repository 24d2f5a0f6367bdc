//! Something is full, or may not be written.

use crate::machine::Machine;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_boot_partition_at_commit_is_undone() {
    let machine = Machine::start().await;
    let new = machine.receive("kernel");
    machine.activated("a", &new, 60);
    machine.host.small_filesystem("/boot", 1);
    machine.host.fill("/boot");
    machine.ask(&["commit", "a", "1"]);
    machine.reverted("commit-failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_that_cannot_be_written_at_commit_are_undone() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 60);
    machine.host.shell("mount --bind /nix/var/nix/profiles /nix/var/nix/profiles && mount -o remount,bind,ro /nix/var/nix/profiles");
    machine.ask(&["commit", "a", "1"]);
    machine.reverted("commit-failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_run_stops_neither_a_revert_nor_a_commit() {
    let machine = Machine::start().await;
    let new = machine.receive("plain");
    machine.activated("a", &new, 60);
    machine.host.fill("/run");
    machine.ask(&["revert", "a", "1"]);
    machine.reverted("asked").await;
    assert_eq!(machine.host.boots(), 1, "no reboot was needed");
    assert_eq!(machine.host.unit_state("web.service"), "inactive", "its units went, too");
    machine.host.unfill("/run");
    machine.activated("b", &new, 60);
    machine.host.fill("/run");
    machine.ask(&["commit", "b", "1"]);
    machine.ended("committed", "").await;
    machine.is_on(&new).await;
}
