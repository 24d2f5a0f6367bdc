//! A controller that has no more rights than it was granted.

use std::time::Duration;

use nixos_host_e2e::Scenario;
use nixos_host_e2e::controller::Options;
use nixos_host_e2e::wait::{throughout, until_true};
use serde_json::json;

use crate::{SOON, message};

/// What a controller needs, as `kubectl` writes it: verbs, resource, and the one object if it is one.
const RIGHTS: [(&str, &str, Option<&str>); 6] = [
    ("get,list,watch,patch", "nixoshosts.nixoshost.dev", None),
    ("patch", "nixoshosts.nixoshost.dev/status", None),
    ("get", "secrets", None),
    ("create", "events.events.k8s.io", None),
    ("create", "leases.coordination.k8s.io", None),
    ("get,update", "leases.coordination.k8s.io", Some("nixos-host-controller")),
];

fn grant(scenario: &Scenario, number: usize, (verbs, resource, name): (&str, &str, Option<&str>)) {
    let role = format!("controller-{number}");
    let (verbs, resource) = (format!("--verb={verbs}"), format!("--resource={resource}"));
    let name = name.map(|name| format!("--resource-name={name}"));
    let mut arguments = vec!["create", "role", &role, &verbs, &resource];
    arguments.extend(name.as_deref());
    scenario.kubectl.run(&arguments);
    scenario.kubectl.run(&["create", "rolebinding", &role, &format!("--role={role}"), "--user=limited"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_lands_while_the_brake_may_not_be_read_and_with_just_the_rights_it_needs_a_controller_works() {
    let mut scenario = Scenario::builder().without_controller().start().await;
    let rev = scenario.repository.head();
    for (number, right) in RIGHTS.into_iter().enumerate() {
        grant(&scenario, number, right);
    }
    let before = scenario.hosts[0].current_system();
    scenario.apply(0, &json!({}));
    let options = Options { user: Some("limited".into()), arguments: vec!["--leader-elect".into()], ..Options::default() };
    scenario.start_controller(options).await;
    let object = scenario.condition(0, "Ready", "False", Some("Braked"), SOON).await;
    let text = message(&object, "Ready");
    assert!(text.contains("is not known") && text.contains("forbidden"), "{text}");
    assert_eq!(scenario.hosts[0].current_system(), before);
    grant(&scenario, RIGHTS.len(), ("get", "configmaps", Some("nixos-host-controller-brake")));
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_may_not_be_read_is_named_and_a_refusal_that_passes_is_not_spoken_of() {
    let mut scenario = Scenario::builder().hosts(2).without_controller().start().await;
    let rev = scenario.repository.head();
    scenario.kubectl.secret("locked", "Opaque", &[("ssh-privatekey", &scenario.key.private())]);
    let brake = ("get", "configmaps", Some("nixos-host-controller-brake"));
    let manifest = scenario.manifest(0);
    let readable = ("get", "secrets", manifest["spec"]["connection"]["sshKeyRef"]["name"].as_str());
    let rights = RIGHTS.into_iter().filter(|(_, resource, _)| *resource != "secrets").chain([brake, readable]);
    let count = rights.clone().count();
    for (number, right) in rights.enumerate() {
        grant(&scenario, number, right);
    }
    scenario.apply(0, &json!({}));
    scenario.apply(1, &json!({"spec": {"connection": {"sshKeyRef": {"name": "locked"}}}}));
    scenario.start_controller(Options { user: Some("limited".into()), ..Options::default() }).await;
    let object = scenario.condition(1, "Stalled", "True", Some("Forbidden"), SOON).await;
    let text = message(&object, "Ready");
    for part in ["spec.connection.sshKeyRef", "Secret \"locked\"", "may not be read by the controller", "limited"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    scenario.landed(0, &rev, SOON).await;
    grant(&scenario, count, ("get", "secrets", Some("locked")));
    scenario.landed(1, &rev, SOON).await;

    let may = || scenario.kubectl.attempt(&["auth", "can-i", "get", "secret/locked", "--as=limited"]).stdout.starts_with("yes");
    let refusals = || scenario.controller().log().matches("asking once more").count();
    let before = refusals();
    scenario.kubectl.run(&["delete", "rolebinding", &format!("controller-{count}")]);
    until_true("the right to be gone", SOON, || !may()).await;
    scenario.request(1);
    until_true("the Secret to be refused", SOON, || refusals() > before).await;
    scenario.kubectl.run(&["create", "rolebinding", "again", &format!("--role=controller-{count}"), "--user=limited"]);
    throughout("the host to be ready", Duration::from_secs(8), || async {
        let object = scenario.get(1);
        match nixos_host_e2e::scenario::condition(&object, "Ready") {
            Some(ready) if ready["status"] == "True" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    scenario.finish().await;
}
