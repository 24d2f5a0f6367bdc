//! What the machine refuses: it goes back by itself, and the input is not tried again until somebody asks.

use nixos_host_e2e::flake::fleet::{activation, units};
use nixos_host_e2e::scenario::condition;
use nixos_host_e2e::{Knobs, Scenario};
use serde_json::{Value, json};

use crate::{SOON, message};

/// Lands a good system, then commits a bad one, and waits until the host has refused it. The bad revision and the object.
async fn refused(scenario: &mut Scenario, patch: &Value, reason: &str, spoil: impl FnOnce(&mut Knobs)) -> (String, Value) {
    let first = scenario.repository.head();
    scenario.apply(0, patch);
    let old = scenario.landed(0, &first, SOON).await;
    let generations = scenario.hosts[0].generations().len();
    let bad = scenario.repository.commit(|fleet| spoil(fleet.host("web-1")));
    scenario.request(0);
    let object = scenario.condition(0, "Ready", "False", Some(reason), SOON).await;
    let host = &scenario.hosts[0];
    assert_eq!(host.current_system(), old, "the old system runs");
    assert_eq!(host.boot_default(), old, "the boot default is the old system");
    assert_eq!(host.profile(), old, "the profile is the old system");
    assert_eq!(host.generations().len(), generations, "the boot default never moved: no generation was made");
    assert_eq!(object["status"]["flake"]["applied"]["rev"], first);
    assert_eq!(object["status"]["flake"]["attempted"]["rev"], bad);
    assert_eq!(object["status"]["history"][0]["outcome"], "Rejected");
    assert_eq!(object["status"]["history"][0]["reason"], reason);
    assert_eq!(condition(&object, "Stalled").unwrap()["reason"], reason);
    (bad, object)
}

/// Nothing is tried again over some intervals; it is when asked.
async fn held(scenario: &Scenario) {
    let activations = || scenario.controller().metric("nixos_host_stage_duration_seconds_count", &["stage=\"Activate\""]);
    let passes = || scenario.controller().metric("nixos_host_passes_total", &[]);
    let (tried, begun) = (activations(), passes());
    nixos_host_e2e::wait::until_true("three more passes", SOON, || passes() >= begun + 3.0).await;
    assert_eq!(activations(), tried, "a rejected input is not tried again by itself");
    scenario.request(0);
    nixos_host_e2e::wait::until_true("another try when asked", SOON, || activations() > tried).await;
    scenario.condition(0, "Ready", "False", None, SOON).await;
}

fn often() -> Value {
    json!({"spec": {"interval": "5s"}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_activation_goes_back_is_held_and_the_next_commit_lands() {
    let mut scenario = Scenario::builder().start().await;
    let (_, object) = refused(&mut scenario, &often(), "ActivationFailed", |knobs| {
        knobs.snippet("broken", activation::FAIL);
    })
    .await;
    assert!(message(&object, "Ready").contains("this snippet fails on purpose"), "{}", message(&object, "Ready"));
    held(&scenario).await;
    let good = scenario.repository.commit(|fleet| {
        let knobs = fleet.host("web-1");
        knobs.activation = None;
        knobs.rev = Some(5);
    });
    scenario.landed(0, &good, SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_whose_own_checks_refuse_the_switch_changes_nothing() {
    let mut scenario = Scenario::builder().start().await;
    let (_, object) = refused(&mut scenario, &often(), "PreSwitchCheckFailed", |knobs| {
        knobs.pre_switch_check = Some("echo the disk is not migrated yet >&2; exit 1".to_owned());
        knobs.snippet("never", "touch /root/activated");
    })
    .await;
    assert!(message(&object, "Ready").contains("the disk is not migrated yet"), "{}", message(&object, "Ready"));
    assert!(!scenario.hosts[0].exec(&["test", "-e", "/root/activated"]).status.success(), "nothing was activated");
    held(&scenario).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_that_hangs_is_ended_by_the_host() {
    let mut scenario = Scenario::builder().start().await;
    let patch = json!({"spec": {"activation": {"activateWithin": "5s"}}});
    refused(&mut scenario, &patch, "ActivationTimedOut", |knobs| {
        knobs.snippet("hangs", activation::HANG);
    })
    .await;
    scenario.finish().await;
}

/// A unit that takes the network away for as long as it runs, as a wrong firewall or network configuration does.
const CUTS: &str =
    "[Service]\nType=oneshot\nRemainAfterExit=true\nExecStart=/usr/sbin/ip link set eth0 down\nExecStop=/usr/sbin/ip link set eth0 up\n";

/// A unit that keeps sshd from listening for as long as it runs; connections that are open stay.
const NO_SSHD: &str = "[Service]\nType=oneshot\nRemainAfterExit=true\nExecStart=/usr/bin/systemctl mask --runtime --now ssh.service\n\
    ExecStop=/usr/bin/systemctl unmask --runtime ssh.service\nExecStopPost=/usr/bin/systemctl start --no-block ssh.service\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_cuts_the_network_is_undone_by_the_host_alone() {
    cut_off(|knobs| knobs.unit("cuts.service", CUTS)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_without_sshd_is_undone_by_the_host_alone() {
    cut_off(|knobs| knobs.unit("no-sshd.service", NO_SSHD)).await;
}

async fn cut_off(spoil: impl FnOnce(&mut Knobs) -> &mut Knobs) {
    let mut scenario = Scenario::builder().start().await;
    let patch = json!({"spec": {"activation": {"commitWithin": "10s"}}});
    let first = scenario.repository.head();
    scenario.apply(0, &patch);
    let old = scenario.landed(0, &first, SOON).await;
    scenario.repository.commit(|fleet| {
        spoil(fleet.host("web-1"));
    });
    scenario.request(0);
    let object = scenario.condition(0, "Ready", "False", Some("VerificationFailed"), SOON).await;
    assert_eq!(scenario.hosts[0].current_system(), old);
    assert_eq!(scenario.hosts[0].boot_default(), old);
    assert_eq!(object["status"]["history"][0]["reason"], "VerificationFailed");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_fails_reverts_with_its_journal() {
    let mut scenario = Scenario::builder().start().await;
    let (_, object) = refused(&mut scenario, &often(), "UnitsFailed", |knobs| {
        knobs.unit("cert.service", units::failing());
    })
    .await;
    let text = message(&object, "Ready");
    assert!(text.contains("cert.service") && text.contains("no certificate found"), "{text}");
    held(&scenario).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_crashes_again_and_again_is_found_after_settling() {
    let mut scenario = Scenario::builder().start().await;
    let patch = json!({"spec": {"activation": {"settle": "4s"}}});
    let (_, object) = refused(&mut scenario, &patch, "UnitsFailed", |knobs| {
        knobs.unit("flappy.service", units::crash_looping(1));
    })
    .await;
    assert!(message(&object, "Ready").contains("flappy.service"), "{}", message(&object, "Ready"));
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_units_are_kept_and_named_if_so_asked() {
    let mut scenario = Scenario::builder().start().await;
    scenario.apply(0, &json!({"spec": {"activation": {"onFailedUnits": "Keep"}}}));
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").unit("cert.service", units::failing());
    });
    scenario.landed(0, &rev, SOON).await;
    let text = message(&scenario.get(0), "Ready");
    assert!(text.contains("cert.service") && text.contains("no certificate found"), "{text}");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_loader_that_fails_at_commit_goes_back() {
    let mut scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, &json!({}));
    let old = scenario.landed(0, &first, SOON).await;
    scenario.repository.commit(|fleet| {
        fleet.host("web-1").boot_loader = Some(nixos_host_e2e::flake::fleet::BootLoader { fail: true, ..Default::default() });
    });
    scenario.request(0);
    scenario.condition(0, "Ready", "False", Some("CommitFailed"), SOON).await;
    let host = &scenario.hosts[0];
    assert_eq!((host.current_system(), host.boot_default(), host.profile()), (old.clone(), old.clone(), old));
    scenario.finish().await;
}
