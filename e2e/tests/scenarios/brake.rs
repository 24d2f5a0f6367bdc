//! The brake of all hosts, and what may not be known about it.

use std::time::{Duration, Instant};

use nixos_host_e2e::Scenario;
use nixos_host_e2e::flake::fleet::{Build, activation};
use nixos_host_e2e::wait::{throughout, until_true};
use serde_json::{Value, json};

use crate::{SOON, doing, message};

fn set(scenario: &Scenario, stopped: &str) {
    let data = json!({"stopped": stopped, "reason": "bad kernel"});
    let brake = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "nixos-host-controller-brake"}, "data": data});
    scenario.kubectl.apply(&brake.to_string());
}

fn outcomes(object: &Value) -> Vec<&str> {
    object["status"]["history"]
        .as_array()
        .map(|list| list.iter().filter_map(|entry| entry["outcome"].as_str()).collect())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_brake_stops_what_has_not_begun_to_activate_and_all_goes_on_when_it_is_released() {
    let mut scenario = Scenario::builder().hosts(2).start().await;
    let before = scenario.hosts[1].current_system();
    scenario.repository.commit(|fleet| {
        fleet.host("web-1").snippet("slow", activation::sleep(7));
        fleet.host("web-2").build = Some(Build { fail: false, sleep: 300 });
    });
    scenario.apply(0, &json!({}));
    scenario.apply(1, &json!({}));
    doing(&scenario, 1, "Building").await;
    doing(&scenario, 0, "Activating").await;
    let begun = || scenario.hosts[0].unit_state("nixos-rebuild-switch-to-configuration") == "active";
    until_true("the activation to have begun", SOON, begun).await;
    set(&scenario, "true");
    let now = Instant::now();
    let object = scenario.condition(1, "Ready", "False", Some("Braked"), SOON).await;
    let took = now.elapsed();
    eprintln!("braked after {took:.1?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(
        message(&object, "Ready").contains("bad kernel") && message(&object, "Ready").contains("nixos-host-controller-brake"),
        "{object}"
    );
    until_true("the build to be ended", Duration::from_secs(5), || scenario.controller().descendants().is_empty()).await;
    let object = scenario.condition(0, "Ready", "False", Some("Braked"), SOON).await;
    assert_eq!(outcomes(&object), ["Succeeded"], "what was being activated has landed");
    assert_eq!(scenario.controller().metric("nixos_host_controller_braked", &[]), 1.0);
    let events = scenario.kubectl.run(&["get", "events", "--field-selector=involvedObject.kind=ConfigMap"]);
    assert!(events.contains("BrakeSet") && events.contains("bad kernel"), "{events}");

    scenario.controller().kill();
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").rev = Some(2);
        fleet.host("web-2").build = None;
    });
    let cursors = [scenario.hosts[0].cursor(), scenario.hosts[1].cursor()];
    scenario.controller().start_again();
    scenario.controller().ready().await;
    scenario.request(1);
    throughout("nothing to be done after a restart", Duration::from_secs(4), || async {
        let logins: Vec<_> = scenario.hosts.iter().zip(&cursors).map(|(host, cursor)| host.sessions_since(cursor).logins).collect();
        if logins == [0, 0] { Ok(()) } else { Err(format!("logins: {logins:?}")) }
    })
    .await;
    assert_eq!(scenario.hosts[1].current_system(), before);
    set(&scenario, "false");
    scenario.landed(0, &rev, SOON).await;
    scenario.landed(1, &rev, SOON).await;
    assert_eq!(scenario.controller().metric("nixos_host_controller_braked", &[]), 0.0);
    scenario.finish().await;
}
