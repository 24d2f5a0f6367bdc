//! The API: what is refused and how, outages of its server, objects that do not decode; and the controller's orderly end.

use std::path::PathBuf;
use std::time::Duration;

use nixos_host_e2e::flake::fleet::{Build, activation};
use nixos_host_e2e::scenario::{condition, merge, name};
use nixos_host_e2e::wait::{throughout, until, until_true};
use nixos_host_e2e::{Controller, Scenario};
use serde_json::{Value, json};

use crate::{SOON, doing};

fn manifest(patch: &Value) -> String {
    let mut manifest = json!({
        "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": {"name": "web"},
        "spec": {"flake": {"url": "github:example/fleet"}, "connection": {"addresses": ["web.example.test"], "sshKeyRef": {"name": "fleet"}}},
    });
    merge(&mut manifest, patch);
    manifest.to_string()
}

/// What is wrong, and what the API server says about it.
fn refusals() -> Vec<(Value, &'static str)> {
    let rev = "0123456789abcdef0123456789abcdef01234567";
    let activation = |patch: Value| json!({"spec": {"activation": patch}});
    let connection = |patch: Value| json!({"spec": {"connection": patch}});
    let check = |patch: Value| {
        let mut check = json!({"name": "web"});
        merge(&mut check, &patch);
        json!({"spec": {"healthChecks": [check]}})
    };
    vec![
        (json!({"spec": {"flake": {"rev": rev, "ref": "main"}}}), "at most one of rev and ref"),
        (json!({"spec": {"flake": {"rev": "main"}}}), "spec.flake.rev in body should match"),
        (json!({"spec": {"flake": {"url": null}}}), "spec.flake.url: Required value"),
        (json!({"spec": {"flake": {"verify": {}}}}), "name at least one key, in sshKeys or by gpgKeysRef"),
        (
            json!({"spec": {"flake": {"verify": {"sshKeys": ["ssh-ed25519 AAAAx"]}}}}),
            "only commits that git itself fetches can be verified",
        ),
        (json!({"spec": {"flake": {"verify": {"sshKeys": ["* ssh-ed25519 AAAAx"]}}}}), "spec.flake.verify.sshKeys[0] in body should match"),
        (json!({"spec": {"interval": "1s"}}), "interval: from 5s to 24h"),
        (json!({"spec": {"interval": "48h"}}), "interval: from 5s to 24h"),
        (json!({"spec": {"interval": "soon"}}), "spec.interval in body should match"),
        (json!({"spec": {"build": {"timeout": "0s"}}}), "timeout: from 1s to 24h"),
        (activation(json!({"activateWithin": "1s"})), "activateWithin: from 5s to 2h"),
        (activation(json!({"commitWithin": "2h"})), "commitWithin: from 10s to 1h"),
        (activation(json!({"settle": "1h"})), "settle: at most 30m"),
        (activation(json!({"mode": "Reboot"})), "spec.activation.mode: Unsupported value"),
        (connection(json!({"addresses": []})), "spec.connection.addresses in body should have at least 1 items"),
        (connection(json!({"addresses": ["-oProxyCommand=x"]})), "spec.connection.addresses[0] in body should match"),
        (connection(json!({"port": 65536})), "spec.connection.port in body should be less than or equal to 65535"),
        (connection(json!({"user": "Root"})), "spec.connection.user in body should match"),
        (connection(json!({"sshKeyRef": {"name": "../x"}})), "spec.connection.sshKeyRef.name in body should match"),
        (check(json!({})), "exactly one of units, tcp, http and command"),
        (check(json!({"tcp": {"port": 1}, "command": ["true"]})), "exactly one of units, tcp, http and command"),
        (check(json!({"from": "Controller", "command": ["true"]})), "units and command are asked from the Host only"),
        (check(json!({"from": "Controller", "units": ["a.service"]})), "units and command are asked from the Host only"),
        (check(json!({"from": "Controller", "tcp": {"port": 1, "address": "10.0.0.1"}})), "the address that SSH reached"),
        (check(json!({"from": "Controller", "http": {"address": "10.0.0.1"}})), "the address that SSH reached"),
        (check(json!({"tcp": {"port": 1}, "timeout": "6m"})), "timeout: from 1s to 5m"),
        (check(json!({"tcp": {"port": 1}, "interval": "10ms"})), "interval: from 1s to 5m"),
        (check(json!({"tcp": {"port": 1}, "retries": 101})), "retries in body should be less than or equal to 100"),
        (check(json!({"tcp": {"port": 0}})), "port in body should be greater than or equal to 1"),
        (check(json!({"http": {"path": "/a b"}})), "path in body should match"),
        (check(json!({"http": {"statuses": [99]}})), "should be greater than or equal to 200"),
        (check(json!({"units": ["nginx"]})), "units[0] in body should match"),
        (check(json!({"units": []})), "units in body should have at least 1 items"),
        (check(json!({"command": [""]})), "command: the program has no name"),
        (
            json!({"spec": {"healthChecks": [{"name": "a", "tcp": {"port": 1}}, {"name": "a", "tcp": {"port": 2}}]}}),
            "duplicate entries for key",
        ),
        (json!({"metadata": {"name": "x".repeat(64)}}), "metadata.name: at most 63 characters"),
        (json!({"spec": {"reboot": true}}), ".spec.reboot: field not declared in schema"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_accepted_and_what_is_wrong_is_refused_with_a_reason() {
    let scenario = Scenario::builder().hosts(0).without_controller().start().await;
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crd/examples");
    let examples: Vec<PathBuf> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!examples.is_empty(), "there are examples");
    for example in examples {
        scenario.kubectl.run(&["apply", "--server-side", "--dry-run=server", "-f", &example.to_string_lossy()]);
    }
    let dry = |text: &str| scenario.kubectl.attempt_with_input(&["apply", "--server-side", "--dry-run=server", "-f", "-"], text);
    let good = dry(&manifest(&json!({})));
    assert!(good.status.success(), "{}", good.stderr);
    for (patch, says) in refusals() {
        let output = dry(&manifest(&patch));
        assert!(!output.status.success() && output.stderr.contains(says), "{patch} should be refused with {says:?}: {}", output.stderr);
    }
    scenario.finish().await;
}

/// A change of the spec is seen and reported within 10 s.
async fn heard(scenario: &Scenario, interval: &str) {
    scenario.apply(0, &json!({"spec": {"interval": interval}}));
    scenario.condition(0, "Ready", "True", None, Duration::from_secs(10)).await;
}

async fn lives(controller: &Controller, seconds: u64) {
    throughout("the controller to live on", Duration::from_secs(seconds), || async {
        match (controller.ended(), controller.health("livez")) {
            (None, Some((200, _))) => Ok(()),
            (ended, health) => Err(format!("ended: {ended:?}, /livez: {health:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_was_dead_or_frozen_is_heard_again_within_ten_seconds() {
    let scenario = Scenario::builder().own_control_plane().start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s"}}));
    scenario.landed(0, &rev, SOON).await;
    scenario.plane.kill_api_server();
    lives(scenario.controller(), 20).await;
    let ended = || scenario.controller().metric("nixos_host_passes_total", &["outcome=\"ended\""]);
    let before = ended();
    scenario.plane.start_api_server();
    scenario.plane.ready().await;
    // Also without a change of the spec
    until_true("a pass to come to its end", Duration::from_secs(10), || ended() > before).await;
    heard(&scenario, "6s").await;
    scenario.plane.freeze_api_server();
    lives(scenario.controller(), 20).await;
    scenario.plane.thaw_api_server();
    scenario.plane.ready().await;
    heard(&scenario, "7s").await;
    assert_eq!(scenario.get(0)["status"]["history"].as_array().unwrap().len(), 1, "nothing was landed again");
    let statuses = scenario.oracle().statuses(&name(0));
    assert!(
        statuses.iter().all(|status| !status.to_string().contains("InternalError")),
        "an outage is no fault of the resource: {statuses:?}"
    );
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_does_not_decode_harms_only_itself() {
    let mut scenario = Scenario::builder().hosts(2).own_control_plane().start().await;
    let rev = scenario.repository.head();
    // As if the CRD were newer than the controller
    let maximum = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/connection/properties/port/maximum";
    let patch = json!([{"op": "remove", "path": maximum}]).to_string();
    scenario.kubectl.run(&["patch", "crd", "nixoshosts.nixoshost.dev", "--type=json", "--patch", &patch]);
    let mut odd = scenario.manifest(1);
    odd["spec"]["connection"]["port"] = 100_000.into();
    until("the API server to take such a port", SOON, || async {
        let output = scenario.kubectl.attempt_apply(&odd.to_string());
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    })
    .await;
    let undecodable = || scenario.controller().metric("nixos_host_undecodable_total", &[]);
    until_true("the object to be counted as one that does not decode", SOON, || undecodable() >= 1.0).await;
    assert!(scenario.controller().log().contains(&name(1)), "the log names it");
    // That was its first generation, and there is another one below
    let told = || {
        let events = scenario.kubectl.get(&["events", "--field-selector", &format!("reason=InvalidSpec,involvedObject.name={}", name(1))]);
        events["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["message"].as_str().unwrap().contains("spec.connection.port: invalid value"))
            .count()
    };
    until_true("an Event to say what cannot be read", SOON, || told() == 1).await;
    scenario.apply(0, &json!({}));
    scenario.landed(0, &rev, SOON).await;
    assert!(condition(&scenario.get(1), "Ready").is_none(), "nothing was said about what could not be read");
    scenario.apply(1, &json!({"spec": {"interval": "5s", "connection": {"port": 22}}}));
    let before = scenario.landed(1, &rev, SOON).await;
    // One that was known is no longer driven by what it said before
    let seen = undecodable();
    odd["spec"]["interval"] = "5s".into();
    let output = scenario.kubectl.attempt_apply(&odd.to_string());
    assert!(output.status.success(), "{}", output.stderr);
    until_true("the object to be counted once more", SOON, || undecodable() > seen).await;
    let next = scenario.repository.commit(|fleet| (1..=2).for_each(|host| fleet.host(&format!("web-{host}")).rev = Some(2)));
    scenario.apply(0, &json!({"spec": {"interval": "5s"}}));
    scenario.landed(0, &next, SOON).await;
    throughout("what cannot be read to be left alone", Duration::from_secs(10), || async {
        let current = scenario.hosts[1].current_system();
        if current == before { Ok(()) } else { Err(current) }
    })
    .await;
    assert_eq!(told(), 2, "once for each generation");
    scenario.kubectl.run(&["delete", "nixoshost", &name(1), "--timeout=15s"]);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_during_a_build_ends_it_and_the_next_controller_goes_on() {
    let mut scenario = Scenario::builder().start().await;
    scenario.repository.commit(|fleet| fleet.host("web-1").build = Some(Build { fail: false, sleep: 600 }));
    scenario.apply(0, &json!({}));
    doing(&scenario, 0, "Building").await;
    let realising = until("the build to run", SOON, || async {
        let all = scenario.controller().executions().all();
        let found = all.into_iter().find(|words| words.contains(&"--realise".to_owned()));
        found.and_then(|words| words.last().cloned()).ok_or_else(|| "no nix-store --realise".to_owned())
    })
    .await;
    assert!(running(&realising), "{realising} is being built");
    let (status, _) = scenario.controller().terminate(Duration::from_secs(30));
    assert!(status.success(), "{status}");
    until_true("its build to be gone", Duration::from_secs(5), || !running(&realising)).await;
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").build = None);
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}

/// Whether any process was told to build this derivation.
fn running(derivation: &str) -> bool {
    let lines = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| std::fs::read(entry.path().join("cmdline")).unwrap_or_default());
    lines.map(|line| String::from_utf8_lossy(&line).into_owned()).any(|line| line.contains(derivation))
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_during_a_landing_finishes_it_or_leaves_it_to_the_next_controller() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").snippet("slow", activation::sleep(6));
    });
    scenario.apply(0, &json!({}));
    doing(&scenario, 0, "Activating").await;
    let (status, _) = scenario.controller().terminate(Duration::from_secs(30));
    assert!(status.success(), "{status}");
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    let history = scenario.get(0)["status"]["history"].clone();
    assert_eq!(history.as_array().unwrap().len(), 1, "it landed once: {history}");
    assert_eq!(history[0]["outcome"], "Succeeded");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_restored_from_an_older_backup_is_believed_about_the_wish_and_the_host_about_what_runs() {
    let mut scenario = Scenario::builder().own_control_plane().start().await;
    let first = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s", "activation": {"settle": "0s"}}}));
    scenario.landed(0, &first, SOON).await;
    scenario.plane.snapshot();
    let second = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    let landed = scenario.landed(0, &second, SOON).await;
    scenario.plane.restore();
    scenario.restored().await;
    until("the status to say what runs", SOON, || async {
        let object = scenario.get(0);
        let (ready, current) = (condition(&object, "Ready").cloned().unwrap_or_default(), &object["status"]["system"]["current"]);
        let drifted = condition(&object, "Drifted").is_some_and(|drifted| drifted["status"] == "True");
        if ready["status"] == "True" && *current == landed.as_str() && !drifted { Ok(()) } else { Err(object["status"].to_string()) }
    })
    .await;
    assert_eq!(scenario.hosts[0].current_system(), landed, "it was not touched");
    // Versions are older than those that the controller has seen: what changes now is seen all the same
    let third = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(3));
    scenario.apply(0, &json!({"spec": {"interval": "1h", "flake": {"rev": third, "ref": null}}}));
    scenario.landed(0, &third, SOON).await;
    scenario.finish().await;
}
