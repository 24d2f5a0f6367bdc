//! Landing by reboot: once into the new system, which stays only if it has proved itself after the boot.

use nixos_host_e2e::flake::fleet::{BootLoader, Kernel, Loader, units};
use nixos_host_e2e::scenario::merge;
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Knobs, Scenario};
use serde_json::{Value, json};

use crate::{SOON, message};

fn reboots() -> Value {
    json!({"spec": {"interval": "5s", "activation": {"reboot": "IfRequired", "rebootWithin": "30s", "commitWithin": "40s", "settle": "1s"}}})
}

fn merged(mut manifest: Value, patch: Value) -> Value {
    merge(&mut manifest, &patch);
    manifest
}

/// A host that boots by systemd-boot and has landed once; its system.
async fn landed() -> (Scenario, String) {
    let scenario = Scenario::builder()
        .fleet(|fleet| fleet.host("web-1").boot_loader = Some(BootLoader { kind: Loader::SystemdBoot, ..BootLoader::default() }))
        .start()
        .await;
    scenario.apply(0, &reboots());
    let old = scenario.landed(0, &scenario.repository.head(), SOON).await;
    assert_eq!(scenario.hosts[0].boots(), 1, "nothing needed a boot");
    (scenario, old)
}

/// Commits another kernel, and whatever else; the revision and its system.
fn another_kernel(scenario: &mut Scenario, edit: impl FnOnce(&mut Knobs)) -> (String, String) {
    let rev = scenario.repository.commit(|fleet| {
        let knobs = fleet.host("web-1");
        knobs.kernel = Some(Kernel { rev: 7, ..Kernel::default() });
        edit(knobs);
    });
    let toplevel = scenario.repository.toplevel(&rev, "web-1");
    scenario.request(0);
    (rev, toplevel)
}

fn systems(scenario: &Scenario) -> [String; 4] {
    let host = &scenario.hosts[0];
    [host.current_system(), host.booted_system(), host.profile(), host.boot_default()]
}

async fn boots(scenario: &Scenario, count: u32) {
    until_true("the host to boot", SOON, || scenario.hosts[0].boots() == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_kernel_is_booted_once_verified_and_made_the_default() {
    let (mut scenario, _) = landed().await;
    let (rev, new) = another_kernel(&mut scenario, |_| ());
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(systems(&scenario), [&new, &new, &new, &new].map(Clone::clone));
    assert_eq!(scenario.hosts[0].boots(), 2, "one boot for one change");
    scenario.condition(0, "RebootRequired", "False", Some("NoRebootRequired"), SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_to_reboot_it_is_said_that_one_is_required() {
    let mut scenario = Scenario::builder().start().await;
    scenario.apply(0, &json!({"spec": {"interval": "5s"}}));
    scenario.landed(0, &scenario.repository.head(), SOON).await;
    let (rev, _) = another_kernel(&mut scenario, |_| ());
    scenario.landed(0, &rev, SOON).await;
    scenario.condition(0, "RebootRequired", "True", Some("RebootRequired"), SOON).await;
    assert_eq!(scenario.hosts[0].boots(), 1);
    scenario.hosts[0].reboot().await;
    scenario.condition(0, "RebootRequired", "False", Some("NoRebootRequired"), SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kernel_that_does_not_come_up_is_told_and_the_next_power_cycle_boots_the_old_system() {
    let (mut scenario, old) = landed().await;
    another_kernel(&mut scenario, |knobs| knobs.kernel = Some(Kernel { rev: 8, panics: true, ..Kernel::default() }));
    let object = scenario.condition(0, "Ready", "False", Some("RebootHostNotBack"), SOON).await;
    assert!(message(&object, "Ready").contains("the next power cycle boots the old system"), "{}", message(&object, "Ready"));
    scenario.hosts[0].power_cut();
    scenario.hosts[0].power_on();
    let object = scenario.condition(0, "Ready", "False", Some("RebootFailed"), SOON).await;
    assert!(message(&object, "Ready").contains(&old), "it says what came back: {}", message(&object, "Ready"));
    let host = &scenario.hosts[0];
    assert_eq!((host.current_system(), host.boot_default()), (old.clone(), old));
    // A person asks for one more try, and gets one
    let boots = host.boots();
    scenario.request(0);
    scenario.condition(0, "Ready", "False", Some("RebootHostNotBack"), SOON).await;
    host.power_cut();
    host.power_on();
    scenario.condition(0, "Ready", "False", Some("RebootFailed"), SOON).await;
    let passes = || scenario.controller().metric("nixos_host_passes_total", &[]);
    let before = passes();
    until_true("two more passes", SOON, || passes() >= before + 2.0).await;
    assert_eq!(host.boots(), boots + 2, "into the new kernel and back: it is held again");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_that_is_sick_after_the_boot_is_left_by_another_boot_and_held() {
    let (mut scenario, old) = landed().await;
    another_kernel(&mut scenario, |knobs| {
        knobs.unit("web.service", units::failing());
    });
    let object = scenario.condition(0, "Ready", "False", Some("UnitsFailed"), SOON).await;
    assert!(message(&object, "Ready").contains("web.service"), "{}", message(&object, "Ready"));
    boots(&scenario, 3).await;
    scenario.condition(0, "Stalled", "True", Some("UnitsFailed"), SOON).await;
    assert_eq!(systems(&scenario), [&old, &old, &old, &old].map(Clone::clone));
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    assert_eq!(scenario.hosts[0].boots(), 3, "what was rejected is not booted again over two intervals");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_are_asked_after_the_boot_and_one_that_fails_means_another_boot() {
    let (mut scenario, old) = landed().await;
    // Passes before the boot, and where the old kernel runs
    let fails = json!([{"name": "kernel", "retries": 0, "command": ["sh", "-c", "test $(readlink /run/booted-system) = $0", old]}]);
    scenario.apply(0, &merged(reboots(), json!({"spec": {"healthChecks": fails}})));
    let (rev, new) = another_kernel(&mut scenario, |_| ());
    let object = scenario.condition(0, "Ready", "False", Some("HealthCheckFailed"), SOON).await;
    assert!(message(&object, "Ready").contains("health check \"kernel\" failed"), "{}", message(&object, "Ready"));
    boots(&scenario, 3).await;
    scenario.hosts[0].up().await;
    assert_eq!(systems(&scenario), [&old, &old, &old, &old].map(Clone::clone));
    let passes = json!([{"name": "kernel", "retries": 0, "command": ["sh", "-c", "test $(readlink /run/booted-system) = $0", new]}]);
    scenario.apply(0, &merged(reboots(), json!({"spec": {"healthChecks": passes}})));
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(systems(&scenario), [&new, &new, &new, &new].map(Clone::clone));
    assert_eq!(scenario.hosts[0].boots(), 4, "and one that passes lands with one boot");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_loader_without_once_is_refused_and_nothing_moves() {
    let mut scenario = Scenario::builder().start().await;
    scenario.apply(0, &reboots());
    let old = scenario.landed(0, &scenario.repository.head(), SOON).await;
    another_kernel(&mut scenario, |_| ());
    let object = scenario.condition(0, "Ready", "False", Some("RebootUnsupported"), SOON).await;
    assert!(message(&object, "Ready").contains("only systemd-boot and GRUB"), "{}", message(&object, "Ready"));
    assert_eq!(systems(&scenario)[2..], [&old, &old].map(Clone::clone));
    assert_eq!(scenario.hosts[0].boots(), 1);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_while_the_host_reboots_goes_on_with_the_landing() {
    let (mut scenario, _) = landed().await;
    let (rev, new) = another_kernel(&mut scenario, |_| ());
    boots(&scenario, 2).await;
    scenario.controller().kill();
    scenario.hosts[0].up().await;
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(systems(&scenario), [&new, &new, &new, &new].map(Clone::clone));
    assert_eq!(scenario.hosts[0].boots(), 2, "one boot for one change");
    scenario.finish().await;
}
