//! Strings of somebody who means harm, in every field that is a string; and secrets, looked for wherever they must not be.

use std::collections::BTreeSet;

use nixos_host_e2e::Scenario;
use nixos_host_e2e::scenario::{SSH_SECRET, condition, merge};
use nixos_host_e2e::until;
use serde_json::{Value, json};

use crate::cases::nowhere;
use crate::{SOON, message};

/// The fields that are strings, as JSON pointers; `%` in what stands behind it is where the hostile string goes.
const FIELDS: [(&str, &str); 31] = [
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
    ("/spec/interval", "%"),
    ("/spec/build/location", "%"),
    ("/spec/build/timeout", "%"),
    ("/spec/activation/mode", "%"),
    ("/spec/activation/activateWithin", "%"),
    ("/spec/activation/settle", "%"),
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

/// One NixOSHost for each field and each string.
fn hostile(scenario: &Scenario, canary: &str) -> Vec<Value> {
    let strings = strings(canary);
    let jump = json!({"addresses": ["127.0.0.1"], "port": 1, "user": "root", "sshKeyRef": {"name": SSH_SECRET}, "hostKeys": [scenario.hosts[0].host_key()]});
    let mut items = Vec::new();
    for (row, (pointer, around)) in FIELDS.iter().enumerate() {
        for (column, string) in strings.iter().enumerate() {
            let full = json!({
                "metadata": {"annotations": {"reconcile.fluxcd.io/requestedAt": "now"}},
                "spec": {
                    "flake": {"rev": null, "credentialsRef": null},
                    "connection": {"user": "root", "hostKeyPolicy": "Pinned"},
                    "build": {"location": "Controller", "timeout": "1m"}, "activation": {"mode": "Switch", "activateWithin": "1m"}, "onDrift": "Correct",
                },
            });
            let mut item = nowhere(scenario, &format!("hostile-{row}-{column}"), &full);
            if around.starts_with("path:") {
                merge(&mut item, &json!({"spec": {"flake": {"ref": null}}}));
            }
            if pointer.starts_with("/spec/connection/jump") {
                merge(&mut item, &json!({"spec": {"connection": {"jump": jump}}}));
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
