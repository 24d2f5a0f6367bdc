//! Strings of somebody who means harm, in every field that is a string; and secrets, looked for wherever they must not be.

use std::collections::BTreeSet;

use nixos_host_e2e::Scenario;
use nixos_host_e2e::scenario::{SSH_SECRET, condition, merge};
use nixos_host_e2e::until;
use serde_json::{Value, json};

use crate::cases::nowhere;
use crate::{SOON, message};

/// The fields that are strings, as JSON pointers; `%` in what stands behind it is where the hostile string goes.
const FIELDS: [(&str, &str); 52] = [
    ("/metadata/name", "%"),
    ("/metadata/annotations/reconcile.fluxcd.io~1requestedAt", "%"),
    ("/spec/flake/url", "%"),
    ("/spec/flake/url", "git+ssh://%/fleet.git"),
    ("/spec/flake/url", "git+https://git.example.test:1/%"),
    ("/spec/flake/url", "git+https://git.example.test:1/x?dir=%"),
    ("/spec/flake/url", "github:%/x"),
    ("/spec/flake/url", "path:/%"),
    ("/spec/flake/rev", "%"),
    ("/spec/flake/ref", "%"),
    ("/spec/flake/attribute", "%"),
    ("/spec/flake/credentialsRef/name", "%"),
    ("/spec/flake/verify/sshKeys/0", "%"),
    ("/spec/flake/verify/sshKeys/0", "ssh-ed25519 AAAA%"),
    ("/spec/flake/verify/gpgKeysRef/name", "%"),
    ("/spec/connection/addresses/0", "%"),
    ("/spec/connection/user", "%"),
    ("/spec/connection/sshKeyRef/name", "%"),
    ("/spec/connection/hostKeys/0", "%"),
    ("/spec/connection/hostKeys/0", "ssh-ed25519 %"),
    ("/spec/connection/hostKeyPolicy", "%"),
    ("/spec/connection/jump/addresses/0", "%"),
    ("/spec/connection/jump/user", "%"),
    ("/spec/connection/jump/sshKeyRef/name", "%"),
    ("/spec/connection/jump/hostKeys/0", "%"),
    ("/spec/connection/jump/hostKeys/0", "ssh-ed25519 %"),
    ("/spec/connection/jump/hostKeyPolicy", "%"),
    ("/spec/healthChecks/0/name", "%"),
    ("/spec/healthChecks/0/from", "%"),
    ("/spec/healthChecks/0/timeout", "%"),
    ("/spec/healthChecks/0/interval", "%"),
    ("/spec/healthChecks/0/onFailure", "%"),
    ("/spec/healthChecks/0/units/0", "%"),
    ("/spec/healthChecks/0/units/0", "%.service"),
    ("/spec/healthChecks/0/tcp/address", "%"),
    ("/spec/healthChecks/0/http/scheme", "%"),
    ("/spec/healthChecks/0/http/address", "%"),
    ("/spec/healthChecks/0/http/host", "%"),
    ("/spec/healthChecks/0/http/path", "/%"),
    ("/spec/healthChecks/0/http/bodyContains", "%"),
    ("/spec/healthChecks/0/command/0", "%"),
    ("/spec/interval", "%"),
    ("/spec/build/location", "%"),
    ("/spec/build/timeout", "%"),
    ("/spec/activation/mode", "%"),
    ("/spec/activation/activateWithin", "%"),
    ("/spec/activation/commitWithin", "%"),
    ("/spec/activation/settle", "%"),
    ("/spec/activation/onFailedUnits", "%"),
    ("/spec/activation/reboot", "%"),
    ("/spec/activation/rebootWithin", "%"),
    ("/spec/onDrift", "%"),
];

/// Whatever runs one of these makes the file `canary`. Without blanks, which are refused early in many places.
fn strings(canary: &str) -> Vec<String> {
    let touch = format!("touch${{IFS}}{canary}");
    vec![
        format!("$({touch})"),
        format!("`{touch}`"),
        format!("x;{touch};\"';{touch}"),
        format!("main\ntouch {canary}"),
        format!("-oProxyCommand={touch}"),
        format!("--upload-pack={touch}"),
        format!("ext::sh -c touch% {canary}"),
        format!("${{builtins.readFile({canary})}}\"+abort(\"x"),
        "../../kube-system/secrets/x".to_owned(),
        "\u{1b}[2J\u{7}\u{0}".to_owned(),
        "ß漢字🦀\u{202e}txt".to_owned(),
        "A".repeat(10_240),
    ]
}

/// Whether a program may have been given this: the full name of a branch or tag, which is a pattern for git and nothing for anybody else, or an
/// URL in which nothing is left that a shell or an option parser would see.
fn harmless(word: &str) -> bool {
    let name = ["refs/heads/", "refs/tags/"].iter().any(|start| word.starts_with(start));
    name || ["https://git.example.test:1/", "git+https://git.example.test:1/", "path:/"].iter().any(|start| word.starts_with(start))
        && word.chars().all(|c| c.is_ascii_alphanumeric() || "%/:.?=&_~+@,-".contains(c))
}

/// What may be said of a hostile string: that it is wrong, or that there is no such thing. Never a fault of the controller's own.
const REASONS: [&str; 10] = [
    "InvalidFlakeReference",
    "InvalidSpec",
    "SecretNotFound",
    "AttributeNotFound",
    "RefNotFound",
    "RepositoryUnreachable",
    "RepositoryNotFound",
    "NotAFlake",
    "Unreachable",
    "ResolveFailed",
];

/// A health check that has this field.
fn check(field: &str) -> Value {
    let kind = match field.split('/').next().unwrap() {
        "units" => json!({"units": ["ssh.service"]}),
        "http" => json!({"http": {"scheme": "HTTP", "port": 8080, "address": "localhost", "host": "x", "path": "/", "bodyContains": "x"}}),
        "command" => json!({"command": ["true"]}),
        _ => json!({"tcp": {"port": 22, "address": "localhost"}}),
    };
    let mut check = json!({"name": "x", "from": "Host", "timeout": "1s", "interval": "1s", "onFailure": "Report"});
    merge(&mut check, &kind);
    check
}

/// One NixOSHost for each field and each string.
fn hostile(scenario: &Scenario, canary: &str) -> Vec<Value> {
    let strings = strings(canary);
    let jump = json!({"addresses": ["127.0.0.1"], "port": 1, "user": "root", "sshKeyRef": {"name": SSH_SECRET}, "hostKeys": [scenario.hosts[0].host_key()], "hostKeyPolicy": "Pinned"});
    let mut items = Vec::new();
    for (row, (pointer, around)) in FIELDS.iter().enumerate() {
        for (column, string) in strings.iter().enumerate() {
            let full = json!({
                "metadata": {"annotations": {"reconcile.fluxcd.io/requestedAt": "now"}},
                "spec": {
                    "flake": {"rev": null, "credentialsRef": null},
                    "connection": {"user": "root", "hostKeyPolicy": "Pinned"},
                    "build": {"location": "Controller", "timeout": "1m"}, "onDrift": "Correct",
                    "activation": {"mode": "Switch", "activateWithin": "1m", "commitWithin": "1m", "onFailedUnits": "Revert", "reboot": "Never", "rebootWithin": "5m"},
                },
            });
            let mut item = nowhere(scenario, &format!("hostile-{row}-{column}"), &full);
            if around.starts_with("path:") {
                merge(&mut item, &json!({"spec": {"flake": {"ref": null}}}));
            }
            if pointer.starts_with("/spec/connection/jump") {
                merge(&mut item, &json!({"spec": {"connection": {"jump": jump}}}));
            }
            if let Some(field) = pointer.strip_prefix("/spec/healthChecks/0/") {
                merge(&mut item, &json!({"spec": {"healthChecks": [check(field)]}}));
            }
            if *pointer == "/spec/flake/rev" {
                merge(&mut item, &json!({"spec": {"flake": {"ref": null, "rev": "x"}}}));
            }
            if *pointer == "/spec/flake/credentialsRef/name" {
                merge(&mut item, &json!({"spec": {"flake": {"credentialsRef": {"name": "x"}}}}));
            }
            if pointer.starts_with("/spec/flake/verify/sshKeys") {
                merge(&mut item, &json!({"spec": {"flake": {"verify": {"sshKeys": ["x"]}}}}));
            }
            if pointer.starts_with("/spec/flake/verify/gpgKeysRef") {
                merge(&mut item, &json!({"spec": {"flake": {"verify": {"gpgKeysRef": {"name": "x"}}}}}));
            }
            *item.pointer_mut(pointer).unwrap_or_else(|| panic!("there is no {pointer}")) = around.replace('%', string).into();
            items.push(item);
        }
    }
    items
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_strings_are_refused_or_reported_and_nothing_runs() {
    let scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    let canary = format!("/tmp/pwned-{:016x}", rand::random::<u64>());
    let items = hostile(&scenario, &canary);
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    let output = scenario.kubectl.attempt_apply(&list);
    let refused = items.len() - output.stdout.lines().filter(|line| line.ends_with("serverside-applied")).count();
    assert!(refused > items.len() / 2, "the API server refuses most: {refused} of {}\n{}", items.len(), output.stderr);
    let objects = until("each that was accepted to be reported", SOON, || async {
        let list = scenario.kubectl.get(&["nixoshosts"]);
        let objects = list["items"].as_array().unwrap().clone();
        let open: Vec<&Value> =
            objects.iter().filter(|object| condition(object, "Ready").is_none_or(|ready| ready["status"] != "False")).collect();
        if open.is_empty() { Ok(objects) } else { Err(format!("{} are open, such as {}", open.len(), open[0])) }
    })
    .await;
    assert_eq!(objects.len(), items.len() - refused);
    for object in &objects {
        let (reason, text) = (&condition(object, "Ready").unwrap()["reason"], message(object, "Ready"));
        assert!(REASONS.iter().any(|good| reason == good), "{reason}: {text}: {}", object["spec"]);
        assert!(text.len() <= 8192 && !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    }
    let seen: BTreeSet<&str> = objects.iter().map(|object| condition(object, "Ready").unwrap()["reason"].as_str().unwrap()).collect();
    assert!(seen.contains("InvalidFlakeReference") && seen.contains("AttributeNotFound"), "they got as far as the controller: {seen:?}");
    scenario.apply(0, &json!({}));
    scenario.landed(0, &rev, SOON).await;
    let controller = scenario.controller();
    assert!(!std::path::Path::new(&canary).exists(), "something ran");
    let words = controller.executions().all().concat();
    let given: Vec<&String> = words.iter().filter(|word| word.contains(&canary) && !harmless(word)).collect();
    assert_eq!(given, Vec::<&String>::new(), "no program was given any of it");
    assert_eq!(controller.metric("nixos_host_passes_total", &["outcome=\"panicked\""]), 0.0);
    assert!(!controller.log().contains("panicked"), "{}", controller.log());
    scenario.finish().await;
}

/// Health checks that a host may have.
const MOST_CHECKS: usize = 16;

/// The health checks with a hostile string that the API server takes.
fn accepted_checks(scenario: &Scenario, canary: &str) -> Vec<Value> {
    let mut checks = Vec::new();
    // A NUL no command line can carry: the controller refuses it
    for string in strings(canary).into_iter().filter(|string| !string.contains('\0')) {
        checks.push(json!({"command": [string]}));
        checks.push(json!({"command": ["true", string]}));
        checks.push(json!({"units": [string]}));
        checks.push(json!({"units": [format!("{string}.service")]}));
        checks.push(json!({"http": {"port": 22, "path": format!("/{string}")}}));
        checks.push(json!({"http": {"port": 22, "bodyContains": string}}));
    }
    for (number, check) in checks.iter_mut().enumerate() {
        merge(check, &json!({"name": format!("check-{number}"), "timeout": "2s", "retries": 0, "onFailure": "Report"}));
    }
    let items: Vec<Value> = checks
        .iter()
        .map(|check| nowhere(scenario, check["name"].as_str().unwrap(), &json!({"spec": {"suspend": true, "healthChecks": [check]}})))
        .collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    scenario.kubectl.attempt_apply(&list);
    let there = scenario.kubectl.get(&["nixoshosts"]);
    let names: BTreeSet<&str> = there["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
    checks.retain(|check| names.contains(check["name"].as_str().unwrap()));
    scenario.kubectl.run(&["delete", "nixoshosts", "--all", "--timeout=60s"]);
    checks
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_strings_in_health_checks_are_words_and_nothing_else_on_the_machine() {
    let mut scenario = Scenario::builder().start().await;
    let canary = format!("/tmp/pwned-{:016x}", rand::random::<u64>());
    let checks = accepted_checks(&scenario, &canary);
    let kinds = ["command", "units", "http"].map(|kind| checks.iter().filter(|check| check.get(kind).is_some()).count());
    eprintln!("accepted, of each kind: {kinds:?}");
    assert!(kinds[0] >= 10 && kinds[1] == 0 && kinds[2] >= 5, "commands and paths are free, units are not: {kinds:?}");
    for (landing, some) in (0..).zip(checks.chunks(MOST_CHECKS)) {
        let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(landing));
        scenario.apply(0, &json!({"spec": {"healthChecks": some, "activation": {"commitWithin": "1m"}}}));
        scenario.request(0);
        until("it to land", SOON, || async {
            let object = scenario.get(0);
            let landed = object["status"]["flake"]["applied"]["rev"] == rev.as_str() && condition(&object, "Reconciling").is_none();
            if landed { Ok(()) } else { Err(object["status"].to_string()) }
        })
        .await;
    }
    assert!(!std::path::Path::new(&canary).exists(), "something ran in the controller's world");
    assert!(!scenario.hosts[0].exec(&["test", "-e", &canary]).status.success(), "something ran on the machine");
    scenario.hosts[0].shell(&format!("touch${{IFS}}{canary}"));
    assert!(scenario.hosts[0].exec(&["test", "-e", &canary]).status.success(), "the strings are ones that a shell would run");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_longer_than_a_status_takes_is_handled_once() {
    let scenario = Scenario::builder().start().await;
    let token = "x".repeat(300);
    let patch = json!({
        "metadata": {"annotations": {"reconcile.fluxcd.io/requestedAt": token}},
        "spec": {"flake": {"attribute": "nope"}, "interval": "5s"},
    });
    scenario.apply(0, &patch);
    let object = scenario.condition(0, "Ready", "False", Some("AttributeNotFound"), SOON).await;
    assert_eq!(object["status"]["lastHandledReconcileAt"], token[..256]);
    scenario.controller().executions().clear();
    let passes = || scenario.controller().metric("nixos_host_passes_total", &[]);
    let begun = passes();
    nixos_host_e2e::wait::until_true("two more passes", SOON, || passes() >= begun + 2.0).await;
    assert_eq!(scenario.controller().executions().count("nix", &["eval"]), 0, "what was rejected is not tried again");
    scenario.finish().await;
}
