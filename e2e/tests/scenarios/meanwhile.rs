//! What other hands do to a machine before it lands, and in the middle of it: each has its own reason, harms nothing, and what is wanted lands once
//! nothing is in its way.

use std::time::Duration;

use nixos_host_e2e::flake::fleet::{BootLoader, activation};
use nixos_host_e2e::wait::{until, until_true};
use nixos_host_e2e::{Host, Scenario};
use serde_json::{Value, json};

use crate::{SOON, doing, message};

/// The activation, by the unit that it runs in.
const ACTIVATION: &str = "nixos-rebuild-switch-to-configuration.service";

/// rescue.service without a console, which machines in a test have not.
const RESCUE: &str = "mkdir -p /run/systemd/system/rescue.service.d && cd /run/systemd/system/rescue.service.d && \
    printf '[Service]\\nType=exec\\nStandardInput=null\\nExecStartPre=\\nExecStart=\\nExecStart=/bin/sleep infinity\\n' >test.conf && \
    systemctl daemon-reload && systemctl start rescue.service";

/// A resource whose first system has landed; and that system.
async fn landed(patch: &Value) -> (Scenario, String) {
    let scenario = Scenario::builder().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, patch);
    let old = scenario.landed(0, &first, SOON).await;
    (scenario, old)
}

/// How the landings of the host ended, the newest first: the reason, or how well.
fn history(object: &Value) -> Vec<&str> {
    let entries = object["status"]["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(|entry| entry["reason"].as_str().or(entry["outcome"].as_str())).collect()
}

fn is_on(host: &Host, system: &str) {
    let found = [host.current_system(), host.boot_default(), host.profile()];
    assert_eq!(found, [(); 3].map(|()| system.to_owned()), "current system, boot default and profile");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_free_says_why_and_lands_once_it_is() {
    let mut scenario = Scenario::builder().hosts(3).start().await;
    let first = scenario.repository.head();
    let base = scenario.hosts[1].current_system();
    for index in 0..3 {
        scenario.apply(index, &json!({}));
    }
    let mut old = Vec::new();
    for index in 0..3 {
        old.push(scenario.landed(index, &first, SOON).await);
    }
    let rev = scenario.repository.commit(|fleet| fleet.defaults.rev = Some(2));
    let [busy, other, rescue] = &scenario.hosts[..] else { panic!("three hosts") };
    let lock = busy.hold_switch_lock();
    // The profile is what runs, and boots is what was there before: after a crash in the middle it would come up with that
    let profile = |system: &str| other.output(&["nix-env", "-p", "/nix/var/nix/profiles/system", "--set", system]);
    profile(&base);
    assert_eq!(other.switch(&base, "boot").code(), 0);
    profile(&old[1]);
    rescue.shell(RESCUE);
    for (index, reason, says) in [
        (0, "HostBusy", "another switch-to-configuration is running"),
        (1, "BootDefaultDiffers", "would not bring"),
        (2, "HostNotReady", "in maintenance"),
    ] {
        scenario.request(index);
        let object = scenario.condition(index, "Ready", "False", Some(reason), SOON).await;
        assert!(message(&object, "Ready").contains(says), "{}", message(&object, "Ready"));
        assert_eq!(history(&object), ["Succeeded"], "nothing was begun");
        assert_eq!(scenario.hosts[index].current_system(), old[index]);
    }
    let text = message(&scenario.get(1), "Ready");
    assert!(text.contains(&base) && text.contains(&old[1]), "{text}");
    drop(lock);
    assert_eq!(other.switch(&old[1], "boot").code(), 0);
    rescue.shell("systemctl stop rescue.service");
    for index in 0..3 {
        scenario.landed(index, &rev, SOON).await;
    }
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_switches_past_the_lock_in_its_middle_is_left_alone_by_that_landing() {
    let (mut scenario, old) = landed(&json!({})).await;
    scenario.apply(0, &json!({"spec": {"activation": {"settle": "20s"}}}));
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    let state = || scenario.hosts[0].exec(&["cat", "/run/nixos-host-controller/state"]).stdout;
    until_true("the machine to wait for the commit", SOON, || state().trim_end() == "activated").await;
    scenario.hosts[0].output(&["rm", "-f", "/run/nixos/switch-to-configuration.lock"]);
    assert_eq!(scenario.hosts[0].switch(&old, "test").code(), 0);
    let said = until("it to be said", SOON, || async {
        let object = scenario.get(0);
        if history(&object).len() == 2 { Ok(object) } else { Err(object["status"].to_string()) }
    })
    .await;
    assert_eq!(history(&said), ["Superseded", "Succeeded"]);
    // It is not rejected: what is wanted is wanted still
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(history(&scenario.get(0)), ["Succeeded", "Superseded", "Succeeded"]);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_that_is_killed_and_a_machine_that_loses_power_in_it_have_the_old_system_until_somebody_asks_again() {
    let (mut scenario, old) = landed(&json!({"spec": {"interval": "5s"}})).await;
    let slow = |seconds| {
        move |fleet: &mut nixos_host_e2e::Fleet| {
            fleet.host("web-1").snippet("slow", activation::sleep(seconds));
        }
    };
    let activating = || scenario.hosts[0].unit_state(ACTIVATION) == "active";
    scenario.repository.commit(slow(300));
    scenario.request(0);
    until_true("the activation", SOON, activating).await;
    scenario.hosts[0].output(&["systemctl", "kill", "-s", "KILL", ACTIVATION]);
    let object = scenario.condition(0, "Ready", "False", Some("Interrupted"), SOON).await;
    assert!(message(&object, "Ready").contains("the activation was killed; the old system runs again"), "{}", message(&object, "Ready"));
    is_on(&scenario.hosts[0], &old);

    let rev = scenario.repository.commit(slow(8));
    scenario.request(0);
    until_true("the activation", SOON, || scenario.hosts[0].unit_state(ACTIVATION) == "active").await;
    scenario.hosts[0].power_cut();
    scenario.hosts[0].power_on();
    scenario.hosts[0].up().await;
    let object = until("the restart to be told", SOON, || async {
        let object = scenario.get(0);
        if history(&object).len() == 3 { Ok(object) } else { Err(object["status"].to_string()) }
    })
    .await;
    assert_eq!(history(&object), ["Interrupted", "Interrupted", "Succeeded"]);
    assert!(message(&object, "Ready").contains("the machine restarted while"), "{}", message(&object, "Ready"));
    is_on(&scenario.hosts[0], &old);
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_landing_when_something_else_is_wanted_is_withdrawn() {
    let (mut scenario, old) = landed(&json!({})).await;
    scenario.apply(0, &json!({"spec": {"activation": {"settle": "1m", "commitWithin": "2m"}}}));
    scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    until_true("the new system to run", SOON, || scenario.hosts[0].current_system() != old).await;
    doing(&scenario, 0, "Verifying").await;
    // A pass that lives brings it to its end; one whose controller is gone left it to the next
    scenario.controller().kill();
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(3));
    scenario.apply(0, &json!({"spec": {"activation": {"settle": "0s"}}}));
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(history(&scenario.get(0)), ["Succeeded", "Withdrawn", "Succeeded"]);
    scenario.finish().await;
}

/// A unit that makes the boot menu lead to the system that runs, and then keeps it as it is.
const HOLDS_BOOT: &str = "[Service]\nType=oneshot\nRemainAfterExit=true\n\
    ExecStart=/bin/sh -c 'system=$$(readlink -f /run/current-system); sed -i \"s|init=/nix/store/[^ ]*/init|init=$$system/init|\" /boot/extlinux/extlinux.conf'\n\
    ExecStart=/bin/mount --bind -o ro /boot /boot\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_go_back_calls_for_a_person() {
    let (mut scenario, old) = landed(&json!({})).await;
    scenario.repository.commit(|fleet| {
        fleet.host("web-1").unit("holds-boot.service", HOLDS_BOOT).boot_loader = Some(BootLoader { fail: true, ..BootLoader::default() });
    });
    scenario.request(0);
    let object = scenario.condition(0, "Stalled", "True", Some("RevertFailed"), Duration::from_secs(120)).await;
    let text = message(&object, "Ready");
    assert!(text.contains("the boot default could not be set back") && text.contains("the host needs a person"), "{text}");
    assert_eq!(scenario.hosts[0].current_system(), old, "what could be done was done");
    assert_eq!(history(&object), ["RevertFailed", "Succeeded"]);
    // As a person would mend it
    scenario.hosts[0].output(&["umount", "/boot"]);
    assert_eq!(scenario.hosts[0].switch(&old, "boot").code(), 0);
    let rev = scenario.repository.commit(|fleet| {
        let knobs = fleet.host("web-1");
        (knobs.units, knobs.boot_loader, knobs.rev) = (None, None, Some(4));
    });
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}
