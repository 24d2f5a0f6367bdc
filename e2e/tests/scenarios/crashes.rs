//! The controller is killed during each stage and started again: the host lands, once; what was built is not built again, and nothing of the controller that
//! was killed goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use nixos_host_e2e::flake::fleet::{Build, Evaluation, Fill, Packages, activation};
use nixos_host_e2e::process::command_line;
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Knobs, Scenario};
use serde_json::json;

use crate::{SOON, doing};

/// The derivations among the words of a command.
fn derivations<'w>(words: impl IntoIterator<Item = &'w str>) -> BTreeSet<String> {
    words
        .into_iter()
        .filter(|word| word.strip_suffix(".drv").is_some_and(|name| name.starts_with("/nix/store/")))
        .map(str::to_owned)
        .collect()
}

/// What all builds so far, but for the first `skipped` programs that were started, were asked for.
fn realised(scenario: &Scenario, skipped: usize) -> BTreeSet<String> {
    let all = scenario.controller().executions().all();
    let builds = all.iter().skip(skipped).filter(|words| words.iter().any(|word| word == "--realise"));
    builds.flat_map(|words| derivations(words.iter().map(String::as_str))).collect()
}

/// What a controller had done when it was killed.
struct Killed {
    built: BTreeSet<String>,
    programs: usize,
}

/// Kills the controller, and waits until nothing that it has started is left.
async fn kill(scenario: &Scenario) -> Killed {
    let processes = scenario.controller().processes();
    assert!(!processes.is_empty(), "at least one answers for the store");
    let programs = scenario.controller().executions().all().len();
    let unfinished = processes.values().flat_map(|line| derivations(line.split(' ')));
    let built = realised(scenario, 0).difference(&unfinished.collect()).cloned().collect();
    scenario.controller().kill();
    let left = || processes.iter().filter(|(pid, line)| !line.is_empty() && command_line(**pid) == **line).count();
    until_true("all that it had started to be gone", Duration::from_secs(10), || left() == 0).await;
    Killed { built, programs }
}

impl Killed {
    /// The controller that came after has landed `rev`, as the second landing of the host, and built nothing twice.
    async fn and_landed(self, scenario: &mut Scenario, rev: &str) {
        scenario.landed(0, rev, SOON).await;
        let history = scenario.get(0)["status"]["history"].clone();
        assert_eq!(history.as_array().unwrap().len(), 2, "it landed once: {history}");
        assert!(!self.built.is_empty(), "the first landing was built");
        let again = realised(scenario, self.programs);
        assert!(again.is_disjoint(&self.built), "built again: {again:?} of {:?}", self.built);
    }
}

/// Kills the controller while the host is at `stage` of a landing that `slow` makes slow there.
async fn killed_while(stage: &str, patch: &serde_json::Value, slow: impl FnOnce(&mut Knobs)) -> Scenario {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, patch);
    scenario.landed(0, &first, SOON).await;
    let rev = scenario.repository.commit(|fleet| slow(fleet.host("web-1")));
    scenario.request(0);
    doing(&scenario, 0, stage).await;
    let killed = kill(&scenario).await;
    scenario.controller().start_again();
    killed.and_landed(&mut scenario, &rev).await;
    scenario
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_evaluating() {
    let scenario = killed_while("Evaluating", &json!({}), |knobs| {
        knobs.rev = Some(2);
        knobs.evaluation = Some(Evaluation { spin: 30_000, ..Evaluation::default() });
    })
    .await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_building() {
    let scenario = killed_while("Building", &json!({}), |knobs| {
        knobs.rev = Some(2);
        knobs.build = Some(Build { fail: false, sleep: 8 });
    })
    .await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_copying() {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, &json!({}));
    scenario.landed(0, &first, SOON).await;
    scenario.hosts[0].slow_link("16mbit");
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").own = Some(Packages { count: 20, kib: 1024, kind: Fill::Random, rev: 2, changed: 20 });
    });
    scenario.request(0);
    doing(&scenario, 0, "Copying").await;
    let killed = kill(&scenario).await;
    scenario.hosts[0].full_speed();
    scenario.controller().start_again();
    killed.and_landed(&mut scenario, &rev).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_activating() {
    let scenario = killed_while("Activating", &json!({}), |knobs| {
        knobs.snippet("slow", activation::sleep(8));
    })
    .await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_verifying() {
    let scenario = killed_while("Verifying", &json!({"spec": {"activation": {"settle": "12s", "commitWithin": "60s"}}}), |knobs| {
        knobs.rev = Some(2);
    })
    .await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_committing() {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, &json!({}));
    scenario.landed(0, &first, SOON).await;
    // The landing's own PATH finds this one first: the commit takes some seconds.
    scenario.hosts[0].write_file("/usr/sbin/sync", "#!/bin/sh\nsleep 6\nexec /usr/bin/sync \"$@\"\n");
    scenario.hosts[0].shell("chmod 755 /usr/sbin/sync");
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    let state = || scenario.hosts[0].shell("cut -d' ' -f1 /run/nixos-host-controller/state");
    until_true("the host to commit", SOON, || state().trim() == "committing").await;
    let killed = kill(&scenario).await;
    scenario.controller().start_again();
    killed.and_landed(&mut scenario, &rev).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_resolving() {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, &json!({}));
    scenario.landed(0, &first, SOON).await;
    let looks = scenario.controller().executions().count("git", &["ls-remote"]);
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    until_true("a look at the remote to begin", SOON, || scenario.controller().executions().count("git", &["ls-remote"]) > looks).await;
    let killed = kill(&scenario).await;
    scenario.controller().start_again();
    killed.and_landed(&mut scenario, &rev).await;
    scenario.finish().await;
}
