//! What is wrong with a machine, or with the way to it: each has its own reason, and the machine lands by itself once the cause is gone.

use nixos_host_e2e::flake::fleet::{Fill, Packages};
use nixos_host_e2e::host::Shape;
use nixos_host_e2e::scenario::{condition, name};
use nixos_host_e2e::{Host, Scenario, until};
use serde_json::{Value, json};

use crate::cases::{case, each_says_so, nowhere};
use crate::{SOON, message};

fn connection(patch: Value) -> Value {
    json!({"spec": {"connection": patch}})
}

/// A host key of nobody.
const OTHER_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_a_machine_has_a_reason_for_each_fault_and_lands_once_it_is_healed() {
    let scenario = Scenario::builder().hosts(3).start().await;
    let rev = scenario.repository.head();
    let hosts = &scenario.hosts;
    hosts[0].stop_sshd();
    hosts[2].replace_authorized_keys("root", &[]);
    scenario.apply(0, &json!({}));
    scenario.apply(1, &connection(json!({"hostKeys": null})));
    scenario.apply(2, &json!({}));
    let mut cases = vec![
        case(&name(0), "Unreachable", &[&format!("{}:22 refuses connections", hosts[0].address())], json!({})),
        case(&name(1), "HostKeyMissing", &["no host key is pinned", "spec.connection.hostKeys", "TrustOnFirstUse"], json!({})),
        case(&name(2), "AuthenticationFailed", &["let root in", "spec.connection.sshKeyRef", "authorized keys"], json!({})),
    ];
    each_says_so(&scenario, &cases).await;
    scenario.apply(1, &connection(json!({"hostKeys": [OTHER_KEY]})));
    cases[1] = case(&name(1), "HostKeyMismatch", &[&hosts[1].address(), "was expected", "was seen", "spec.connection.hostKeys"], json!({}));
    each_says_so(&scenario, &cases).await;
    slower_and_slower(&scenario).await;
    hosts[0].start_sshd();
    hosts[2].authorize("root", &scenario.key.public);
    scenario.apply(1, &json!({}));
    for index in 0..3 {
        scenario.landed(index, &rev, SOON).await;
    }
    scenario.finish().await;
}

/// `web-1` is tried again after a delay that grows. Each try writes one status, in which only the count and the delay are new.
async fn slower_and_slower(scenario: &Scenario) {
    let delay = |status: &Value| {
        let object = json!({"status": status});
        message(&object, "Reconciling").split_once("tried again about ").map(|(_, delay)| delay.to_owned())
    };
    let failures = until("the third try", SOON, || async {
        let failures: Vec<Value> = scenario
            .oracle()
            .statuses(&name(0))
            .into_iter()
            .skip_while(|status| condition(&json!({"status": status}), "Ready").is_none_or(|ready| ready["reason"] != "Unreachable"))
            .collect();
        if failures.len() >= 3 { Ok(failures) } else { Err(format!("{failures:?}")) }
    })
    .await;
    let delays: Vec<Option<String>> = failures.iter().take(3).map(delay).collect();
    let expected = ["5s after each try.", "10s after each try.", "20s after each try."].map(|delay| Some(delay.to_owned()));
    assert_eq!(delays, expected, "one status for each try: {failures:?}");
    let still: Vec<Value> = failures.into_iter().take(3).map(without_counters).collect();
    assert!(still.windows(2).all(|pair| pair[0] == pair[1]), "only the count and the delay are new: {still:?}");
}

fn without_counters(mut status: Value) -> Value {
    for stage in status["stages"].as_array_mut().unwrap() {
        stage.as_object_mut().unwrap().remove("failures");
    }
    for condition in status["conditions"].as_array_mut().unwrap() {
        if condition["type"] == "Reconciling" {
            condition.as_object_mut().unwrap().remove("message");
        }
    }
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_cannot_take_a_system_says_why_and_lands_once_it_can() {
    let builder = Scenario::builder().hosts(3).fleet(|fleet| {
        fleet.host("web-2").own = Some(Packages { count: 16, kib: 1024, kind: Fill::Random, rev: 1, changed: 16 });
    });
    let scenario = builder.start().await;
    let debian = Host::start_as(Shape { nixos: false, nix: true });
    let rev = scenario.repository.head();
    let hosts = &scenario.hosts;
    hosts[0].remove_nix();
    hosts[1].small_filesystem("/nix", 6);
    hosts[2].remove_sudo_rule();
    debian.up().await;
    debian.authorize("root", &scenario.key.public);
    scenario.apply(0, &json!({}));
    scenario.apply(1, &json!({}));
    scenario.apply(2, &connection(json!({"user": "deploy"})));
    let other = connection(json!({"addresses": [debian.address()], "port": null, "hostKeys": [debian.host_key()]}));
    scenario.kubectl.apply(&nowhere(&scenario, "debian", &other).to_string());
    let cases = [
        case(&name(0), "NixMissing", &["no nix-store command", "nix.enable = true"], json!({})),
        case(&name(1), "StoreFull", &["nix-collect-garbage -d"], json!({})),
        case(
            &name(2),
            "PrivilegeRefused",
            &["deploy may not become root without a password, by sudo or doas", "security.sudo.wheelNeedsPassword"],
            json!({}),
        ),
        case("debian", "NotNixOS", &["/run/current-system", "does not run NixOS"], json!({})),
    ];
    each_says_so(&scenario, &cases).await;
    assert_eq!(hosts[1].current_system(), hosts[1].boot_default(), "a full store harms nothing");
    hosts[0].restore_nix();
    hosts[1].large_filesystem("/nix");
    hosts[2].restore_sudo_rule();
    for index in 0..3 {
        scenario.landed(index, &rev, SOON).await;
    }
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_that_was_trusted_at_first_use_is_recorded_and_insisted_upon() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    let trusts = connection(json!({"hostKeys": null, "hostKeyPolicy": "TrustOnFirstUse"}));
    scenario.apply(0, &trusts);
    let toplevel = scenario.landed(0, &rev, SOON).await;
    let first = scenario.hosts[0].host_key().to_owned();
    assert_eq!(scenario.get(0)["status"]["hostKey"], first);
    let new = scenario.hosts[0].change_host_key();
    scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    let object = scenario.condition(0, "Ready", "False", Some("HostKeyMismatch"), SOON).await;
    assert_eq!(object["status"]["hostKey"], first, "the recorded key stays");
    assert_eq!(scenario.hosts[0].current_system(), toplevel, "nothing was done to a machine that may be another one");
    // A person has compared the keys, and removes the recorded one
    let removed = r#"[{"op": "remove", "path": "/status/hostKey"}]"#;
    scenario.kubectl.run(&["patch", "nixoshost", &name(0), "--subresource=status", "--type=json", "--patch", removed]);
    let rev = scenario.repository.head();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(scenario.get(0)["status"]["hostKey"], new);
    scenario.finish().await;
}
