//! The controller is killed during each stage and started again: the host lands, once.

use nixos_host_e2e::flake::fleet::{Build, Evaluation, Fill, Packages, activation};
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Knobs, Scenario};
use serde_json::json;

use crate::{SOON, doing};

/// Kills the controller while the host is at `stage` of a landing that `slow` makes slow there.
async fn killed_while(stage: &str, patch: &serde_json::Value, slow: impl FnOnce(&mut Knobs)) -> Scenario {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, patch);
    scenario.landed(0, &first, SOON).await;
    let rev = scenario.repository.commit(|fleet| slow(fleet.host("web-1")));
    scenario.request(0);
    doing(&scenario, 0, stage).await;
    scenario.controller().kill();
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    let object = scenario.get(0);
    let landings = object["status"]["history"].as_array().unwrap().len();
    assert_eq!(landings, 2, "it landed once: {}", object["status"]["history"]);
    scenario
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_evaluating() {
    let scenario = killed_while("Evaluating", &json!({}), |knobs| {
        knobs.rev = Some(2);
        knobs.evaluation = Some(Evaluation { spin: 3000, ..Evaluation::default() });
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
    scenario.hosts[0].slow_link("40mbit");
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").own = Some(Packages { count: 20, kib: 1024, kind: Fill::Random, rev: 2, changed: 20 });
    });
    scenario.request(0);
    doing(&scenario, 0, "Copying").await;
    scenario.controller().kill();
    scenario.hosts[0].full_speed();
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(scenario.get(0)["status"]["history"].as_array().unwrap().len(), 2);
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
    scenario.controller().kill();
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(scenario.get(0)["status"]["history"].as_array().unwrap().len(), 2, "it landed once");
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
    scenario.controller().kill();
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(scenario.get(0)["status"]["history"].as_array().unwrap().len(), 2, "it landed once");
    scenario.finish().await;
}
