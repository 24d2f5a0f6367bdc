//! What the controller needs besides time: memory while it copies 1 GB to eight hosts, and processes of Nix for a pass that finds nothing to do.

use nixos_host_e2e::{
    controller::Options,
    flake::fleet::{Fill, Packages},
};

use crate::{
    Wanted,
    sides::{Ours, options},
    table::{Goal, Row, Rows, say},
};

/// Measures the rows that are wanted.
pub(crate) async fn measure(wanted: Wanted, into: Rows) {
    let mut ours = Ours::start().await;
    let rev = ours.scenario.repository.head();
    ours.apply(&rev, "0s").await;
    // Another controller, whose programs are counted: by wrappers, which a confined evaluation may not run
    ours.scenario.start_controller(Options { allow_local_flakes: true, ..options() }).await;
    // The first pass evaluates; the second asks the local store, by a process that stays
    ours.look().await;
    ours.look().await;
    if wanted.contains(&"processes") {
        into.push(processes(&mut ours).await);
    }
    if wanted.contains(&"memory") {
        into.push(memory(&mut ours).await);
    }
}

async fn processes(ours: &mut Ours) -> Row {
    ours.scenario.controller().executions().clear();
    let began = ours.scenario.controller().metric("nixos_host_passes_total", &[]);
    ours.look().await;
    let passes = ours.scenario.controller().metric("nixos_host_passes_total", &[]) - began;
    assert!(passes >= 8.0, "only {passes} passes");
    let all = ours.scenario.controller().executions().all();
    say(&format!("programs started for {passes} passes: {all:?}"));
    let nix = all.iter().filter(|execution| execution.first().is_some_and(|program| program.starts_with("nix"))).count();
    let nix = u32::try_from(nix).unwrap_or(u32::MAX);
    row("Nix processes for a pass without a change, 8 hosts", "", f64::from(nix), Goal::AtMost(0.0))
}

async fn memory(ours: &mut Ours) -> Row {
    let before = ours.scenario.controller().peak_memory_kib();
    let rev = ours.scenario.repository.commit(|fleet| {
        for knobs in fleet.hosts.values_mut() {
            knobs.shared = Some(Packages { count: 64, kib: 16 * 1024, kind: Fill::Random, rev: 100, changed: 64 });
        }
    });
    say("building 1 GiB and copying it to each of eight hosts");
    let copied = ours.scenario.controller().metric("nixos_host_copied_bytes_total", &[]);
    let took = ours.apply(&rev, "0s").await;
    let copied = ours.scenario.controller().metric("nixos_host_copied_bytes_total", &[]) - copied;
    assert!(copied >= 8e9, "only {copied} bytes were copied");
    let peak = ours.scenario.controller().peak_memory_kib();
    say(&format!("memory: {before} KiB before, {peak} KiB at most; {:.1} GB in {took:.0} s with the build", copied / 1e9));
    let peak = u32::try_from(peak).unwrap_or(u32::MAX);
    row("controller's peak memory, 1 GB to each of 8 hosts", "MiB", f64::from(peak) / 1024.0, Goal::AtMost(64.0))
}

fn row(what: &str, unit: &'static str, ours: f64, goal: Goal) -> Row {
    Row { what: what.to_owned(), unit, ours: vec![ours], theirs: Vec::new(), goal }
}
