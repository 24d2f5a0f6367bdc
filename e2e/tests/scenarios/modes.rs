//! The activation goals: each moves what it says, and nothing else.

use nixos_host_e2e::Scenario;
use nixos_host_e2e::flake::fleet::units;
use serde_json::json;

use crate::{SOON, message};

#[tokio::test(flavor = "multi_thread")]
async fn dry_activate_reports_what_would_change_and_changes_nothing() {
    let scenario = Scenario::builder()
        .fleet(|fleet| {
            fleet.host("web-1").unit("web.service", units::running(1));
        })
        .start()
        .await;
    let host = &scenario.hosts[0];
    let before = (host.current_system(), host.boot_default(), host.profile());
    scenario.apply(0, &json!({"spec": {"activation": {"mode": "DryActivate"}}}));
    let object = scenario.condition(0, "Ready", "True", Some("DryRun"), SOON).await;
    let text = message(&object, "Ready");
    assert!(text.contains("would start the following units") && text.contains("web.service"), "{text}");
    assert_eq!((host.current_system(), host.boot_default(), host.profile()), before);
    assert_eq!(object["status"]["flake"]["applied"], serde_json::Value::Null, "nothing was applied");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn boot_moves_the_boot_default_only_and_a_reboot_brings_it() {
    let scenario = Scenario::builder().start().await;
    let host = &scenario.hosts[0];
    let before = host.current_system();
    scenario.apply(0, &json!({"spec": {"activation": {"mode": "Boot"}, "interval": "5s"}}));
    let object = scenario.condition(0, "Ready", "True", Some("RebootPending"), SOON).await;
    let toplevel = scenario.repository.expected_toplevel(&scenario.repository.head(), "web-1");
    assert_eq!((host.current_system(), host.boot_default(), host.profile()), (before, toplevel.clone(), toplevel.clone()));
    assert_eq!(object["status"]["flake"]["applied"], serde_json::Value::Null, "it does not run yet");
    host.reboot().await;
    scenario.condition(0, "Ready", "True", Some("Succeeded"), SOON).await;
    assert_eq!(host.current_system(), toplevel);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_moves_the_running_system_only() {
    let scenario = Scenario::builder().start().await;
    let host = &scenario.hosts[0];
    let before = host.boot_default();
    scenario.apply(0, &json!({"spec": {"activation": {"mode": "Test"}}}));
    scenario.condition(0, "Ready", "True", Some("Succeeded"), SOON).await;
    let toplevel = scenario.repository.expected_toplevel(&scenario.repository.head(), "web-1");
    assert_eq!((host.current_system(), host.boot_default(), host.profile()), (toplevel, before.clone(), before));
    scenario.finish().await;
}
