//! Drift: a person switches the machine by hand.

use nixos_host_e2e::Scenario;
use nixos_host_e2e::wait::{throughout, until};
use serde_json::json;

use crate::SOON;

/// Lands, then lets a person put the host's first generation back.
async fn drifted(policy: &str) -> (Scenario, String, String) {
    let scenario = Scenario::builder().start().await;
    let base = scenario.hosts[0].current_system();
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s", "onDrift": policy}}));
    let toplevel = scenario.landed(0, &rev, SOON).await;
    scenario.hosts[0].shell(&format!("nix-env -p /nix/var/nix/profiles/system --set {base} && {base}/bin/switch-to-configuration switch"));
    (scenario, base, toplevel)
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_corrected() {
    let (scenario, _, toplevel) = drifted("Correct").await;
    until("the desired system to be back", SOON, || async {
        let host = &scenario.hosts[0];
        let found = (host.current_system(), host.boot_default());
        if found == (toplevel.clone(), toplevel.clone()) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let object = scenario.condition(0, "Drifted", "False", None, SOON).await;
    assert_eq!(object["status"]["history"].as_array().unwrap().len(), 2);
    scenario.ready(0, SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_only_reported_if_so_asked_until_there_is_a_new_revision() {
    let (mut scenario, base, _) = drifted("Report").await;
    let object = scenario.condition(0, "Drifted", "True", Some("Drift"), SOON).await;
    assert_eq!(object["status"]["system"]["current"], base);
    assert_eq!(object["status"]["flake"]["applied"], serde_json::Value::Null, "what runs is not what was applied");
    scenario.condition(0, "Ready", "False", Some("Drift"), SOON).await;
    throughout("the person's system to be left alone", std::time::Duration::from_secs(12), || async {
        let found = scenario.hosts[0].current_system();
        if found == base { Ok(()) } else { Err(found) }
    })
    .await;
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}
