//! Following a branch, pinning a revision, and doing nothing.

use std::collections::HashSet;
use std::time::Duration;

use nixos_host_e2e::Scenario;
use nixos_host_e2e::wait::until;
use serde_json::json;

use crate::{SOON, stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_new_commit_is_followed_at_the_interval_and_at_once_when_asked() {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s"}}));
    let old = scenario.landed(0, &first, SOON).await;
    let before: HashSet<String> = scenario.hosts[0].store_paths().into_iter().collect();
    let second = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    let new = scenario.landed(0, &second, SOON).await;
    let sent = scenario.hosts[0].store_paths().into_iter().filter(|path| !before.contains(path)).count();
    let said = stage(&scenario.get(0), "Copy")["message"].as_str().unwrap().to_owned();
    assert!(
        said.starts_with(&format!("{sent} paths sent")) && sent < before.len() / 2,
        "{sent} paths are new on the host, and the status says {said:?}"
    );
    let generations: Vec<String> = scenario.hosts[0].generations().into_iter().map(|(_, system)| system).collect();
    assert!(generations.contains(&old) && generations.contains(&new), "the old generation is kept: {generations:?}");
    scenario.apply(0, &json!({"spec": {"interval": "1h"}}));
    scenario.ready(0, SOON).await;
    let third = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(3));
    let token = scenario.request(0);
    scenario.landed(0, &third, SOON).await;
    assert_eq!(scenario.get(0)["status"]["lastHandledReconcileAt"], token);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_revision_asks_no_network_and_a_revert_needs_no_build_and_no_copy() {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    let pin = |rev: &str| json!({"spec": {"flake": {"rev": rev, "ref": null}, "interval": "5s"}});
    scenario.apply(0, &pin(&first));
    let old = scenario.landed(0, &first, SOON).await;
    let looks = scenario.server.https_requests().len();
    scenario.server.stop();
    let passes = scenario.controller().metric("nixos_host_passes_total", &[]);
    until("five more passes", SOON, || async {
        if scenario.controller().metric("nixos_host_passes_total", &[]) >= passes + 5.0 { Ok(()) } else { Err(String::new()) }
    })
    .await;
    scenario.ready(0, SOON).await;
    scenario.server.resume().await;
    assert_eq!(scenario.server.https_requests().len(), looks, "a pinned revision that is known needs no network");
    let second = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.apply(0, &pin(&second));
    scenario.landed(0, &second, SOON).await;
    let third = scenario.repository.revert();
    scenario.controller().executions().clear();
    scenario.apply(0, &pin(&third));
    assert_eq!(scenario.landed(0, &third, SOON).await, old, "the reverted revision is the old system");
    assert_eq!(scenario.controller().executions().count("nix-store", &["--realise"]), 0, "nothing was built");
    assert!(stage(&scenario.get(0), "Copy")["message"].as_str().unwrap().starts_with("0 paths sent"), "nothing was sent");
    scenario.finish().await;
}

/// What a controller has asked the API server to write: statuses, events, anything.
fn writes(scenario: &Scenario) -> f64 {
    let by = |method: &str| scenario.controller().metric("rest_client_requests_total", &[&format!("method={method:?}")]);
    ["POST", "PUT", "PATCH", "DELETE"].map(by).iter().sum()
}

/// Lets so many passes go by, each of which is one command over one connection and writes nothing.
async fn idles(scenario: &Scenario, times: f64) {
    let (version, events) =
        (scenario.get(0)["metadata"]["resourceVersion"].clone(), scenario.kubectl.run(&["get", "events", "-o", "name"]));
    let passes = || scenario.controller().metric("nixos_host_passes_total", &[]);
    let (begun, written, cursor) = (passes(), writes(scenario), scenario.hosts[0].cursor());
    assert!(written > 0.0, "writes are counted");
    scenario.controller().executions().clear();
    until("more passes", Duration::from_secs(180), || async {
        if passes() >= begun + times { Ok(()) } else { Err(format!("{} passes", passes() - begun)) }
    })
    .await;
    let sessions = scenario.hosts[0].sessions_since(&cursor);
    let done = passes() - begun;
    assert_eq!(scenario.get(0)["metadata"]["resourceVersion"], version, "nothing was written");
    assert_eq!(scenario.kubectl.run(&["get", "events", "-o", "name"]), events, "nothing was told");
    assert_eq!(writes(scenario), written, "nobody was asked to write anything");
    assert!((sessions.execs as f64 - done).abs() <= 1.0, "one command a pass: {} in {done} passes", sessions.execs);
    assert!((sessions.logins as f64 - done).abs() <= 1.0, "one connection a pass: {} in {done} passes", sessions.logins);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_do_is_nothing_done_over_twenty_intervals() {
    let scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s", "flake": {"rev": rev, "ref": null}}}));
    scenario.landed(0, &rev, SOON).await;
    idles(&scenario, 20.0).await;
    assert_eq!(scenario.controller().executions().all(), Vec::<Vec<String>>::new(), "no process of nix, git or ssh was started");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_does_not_move_is_looked_at_and_nothing_else_is_done() {
    let scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s", "flake": {"ref": "main"}}}));
    scenario.landed(0, &rev, SOON).await;
    idles(&scenario, 6.0).await;
    let all = scenario.controller().executions().all();
    let others: Vec<_> = all.iter().filter(|words| !(words[0] == "git" && words.iter().any(|word| word == "ls-remote"))).collect();
    assert!(all.len() >= 5 && others.is_empty(), "a look at the remote each time, and no other process: {all:?}");
    scenario.finish().await;
}
