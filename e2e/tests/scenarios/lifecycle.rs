//! Suspending, resuming, deleting, and two resources for one machine.

use std::time::Duration;

use nixos_host_e2e::Scenario;
use nixos_host_e2e::flake::fleet::Build;
use nixos_host_e2e::scenario::{condition, name};
use nixos_host_e2e::wait::{until, until_true};
use serde_json::json;

use crate::{SOON, doing};

/// A fleet whose build takes longer than any test waits.
fn slow(scenario: &mut Scenario, seconds: u32) {
    scenario.repository.commit(|fleet| fleet.host("web-1").build = Some(Build { fail: false, sleep: seconds }));
}

#[tokio::test(flavor = "multi_thread")]
async fn suspend_stops_before_the_next_stage_and_resume_goes_on() {
    let mut scenario = Scenario::builder().start().await;
    let before = scenario.hosts[0].current_system();
    slow(&mut scenario, 300);
    scenario.apply(0, &json!({}));
    doing(&scenario, 0, "Building").await;
    scenario.apply(0, &json!({"spec": {"suspend": true}}));
    scenario.condition(0, "Ready", "False", Some("Suspended"), Duration::from_secs(5)).await;
    let ended = || scenario.controller().metric("nixos_host_builds_in_flight", &[]) == 0.0;
    until_true("the build to be ended", Duration::from_secs(5), ended).await;
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").build = None);
    assert_eq!(scenario.hosts[0].current_system(), before);
    scenario.apply(0, &json!({"spec": {"suspend": false}}));
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_spec_cancels_what_is_in_flight() {
    let mut scenario = Scenario::builder().start().await;
    let good = scenario.repository.head();
    slow(&mut scenario, 300);
    scenario.apply(0, &json!({}));
    doing(&scenario, 0, "Building").await;
    scenario.apply(0, &json!({"spec": {"flake": {"rev": good, "ref": null}}}));
    scenario.landed(0, &good, Duration::from_secs(30)).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_stops_the_work_drops_the_roots_and_leaves_the_machine_as_it_is() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({}));
    let toplevel = scenario.landed(0, &rev, SOON).await;
    let roots = format!("/nix/var/nix/gcroots/nixos-host-controller/{}", scenario.namespace);
    let count = || std::fs::read_dir(&roots).map_or(0, Iterator::count);
    assert!(count() > 0, "the host's systems are rooted");
    assert!(scenario.controller().metrics().contains(&format!("name=\"{}\"", name(0))));
    slow(&mut scenario, 300);
    scenario.request(0);
    doing(&scenario, 0, "Building").await;
    scenario.kubectl.run(&["delete", "nixoshost", &name(0), "--timeout=15s"]);
    assert_eq!(count(), 0, "the roots are dropped");
    assert!(!scenario.controller().metrics().contains(&format!("name=\"{}\"", name(0))), "its series are gone");
    assert_eq!(scenario.hosts[0].current_system(), toplevel, "the machine is as it was");
    assert_eq!(scenario.hosts[0].boot_default(), toplevel);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_resource_for_the_same_machine_is_told_and_does_not_fight() {
    let scenario = Scenario::builder().hosts(2).start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s"}}));
    let toplevel = scenario.landed(0, &rev, SOON).await;
    let (address, key) = (scenario.hosts[0].address(), scenario.hosts[0].host_key().to_owned());
    scenario.apply(1, &json!({"spec": {"interval": "5s", "connection": {"addresses": [address], "hostKeys": [key]}}}));
    let object = scenario.condition(1, "Ready", "False", Some("MachineConflict"), SOON).await;
    assert!(condition(&object, "Ready").unwrap()["message"].as_str().unwrap().contains(&format!("{}/{}", scenario.namespace, name(0))));
    assert_eq!(object["status"]["flake"]["applied"], serde_json::Value::Null);
    until_true("some more passes", SOON, || scenario.controller().metric("nixos_host_passes_total", &[]) > 8.0).await;
    assert_eq!(scenario.hosts[0].current_system(), toplevel);
    scenario.kubectl.run(&["delete", "nixoshost", &name(0), "--timeout=15s"]);
    until("the second one to take over", SOON, || async {
        let object = scenario.get(1);
        if condition(&object, "Ready").is_some_and(|ready| ready["status"] == "True") { Ok(()) } else { Err(object["status"].to_string()) }
    })
    .await;
    scenario.finish().await;
}
