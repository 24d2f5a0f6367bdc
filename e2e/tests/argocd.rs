//! A real Argo CD, its health checks, actions, diffs and sync waves, with the values of `charts/argocd`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods, missing_docs, reason = "tests")]
#![allow(clippy::needless_pass_by_value, reason = "json!(…) at the place of use reads better than &json!(…)")]

use std::{path::Path, time::Duration};

use nixos_host_e2e::argocd::{Application, ArgoCd, overrides};
use nixos_host_e2e::flake::fleet::activation;
use nixos_host_e2e::scenario::{condition, merge, name};
use nixos_host_e2e::world::write;
use nixos_host_e2e::{Scenario, until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);

/// Seconds before a machine of which nothing is known is Degraded: here; ten minutes in the chart.
const GRACE: u32 = 8;

/// The NixOSHost of host `index` at a revision, as a file in Git.
fn pinned(scenario: &Scenario, index: usize, rev: &str, patch: &Value) -> Value {
    let mut manifest = scenario.manifest(index);
    merge(&mut manifest, &json!({ "spec": { "flake": { "ref": null, "rev": rev }, "interval": "5s" } }));
    merge(&mut manifest, patch);
    manifest
}

fn put(work: &Path, manifest: &Value) {
    let name = manifest["metadata"]["name"].as_str().unwrap();
    write(work.join(format!("{name}.json")), serde_json::to_string_pretty(manifest).unwrap());
}

/// With `DUMP=1` the object goes to the scripts' test data.
fn dump(scenario: &Scenario, to: &str) {
    if std::env::var_os("DUMP").is_some() {
        let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/argocd/resource_customizations/nixoshost.dev/NixOSHost");
        write(Path::new(scripts).join(to), scenario.kubectl.run(&["get", "nixoshost", "web-1", "-o", "yaml"]) + "\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_lives_under_argo_cd() {
    let mut scenario = Scenario::builder().own_control_plane().start().await;
    let argocd = ArgoCd::start(&scenario.plane, GRACE).await;
    let first = scenario.repository.head();
    let application = argocd.application("life", &scenario.namespace, &json!({ "prune": true }), &json!({}));

    comes_up(&scenario, &application, &first).await;
    fails_and_is_tried_again(&mut scenario, &application).await;
    let (second, git) = lands_the_next(&mut scenario, &application).await;
    obeys_a_person(&scenario, &application, &first).await;
    // With self-heal Git wins again
    application.patch(&json!({ "syncPolicy": { "automated": { "selfHeal": true } } }));
    scenario.landed(0, &second, SOON).await;
    application.synced(&git, SOON).await;
    is_told_from_one_that_does_not_answer(&scenario, &application, &second).await;
    is_pruned_and_stays_as_it_is(&scenario, &application).await;
    drop(argocd);
    scenario.finish().await;
}

/// A commit is synced, and the host comes up; the spec changes, and it is not Healthy before it runs that.
async fn comes_up(scenario: &Scenario, application: &Application<'_>, first: &str) {
    let rev = application.commit(|work| put(work, &pinned(scenario, 0, first, &json!({}))));
    application.synced(&rev, SOON).await;
    application.health("web-1", "Progressing", "", SOON).await;
    dump(scenario, "testdata/progressing.yaml");
    application.health("web-1", "Healthy", &first[..7], SOON).await;
    dump(scenario, "testdata/healthy.yaml");
}

/// One that fails is Degraded in our words, and is tried again when asked.
async fn fails_and_is_tried_again(scenario: &mut Scenario, application: &Application<'_>) {
    let bad = scenario.repository.commit(|fleet| {
        fleet.host("web-1").snippet("broken", activation::FAIL);
    });
    application.commit(|work| put(work, &pinned(scenario, 0, &bad, &json!({}))));
    application.health("web-1", "Degraded", "this snippet fails on purpose", SOON).await;
    dump(scenario, "testdata/degraded.yaml");
    let failed = scenario.get(0)["status"]["history"].as_array().unwrap().len();
    act(application, "retry");
    until("another try", SOON, || async {
        let history = scenario.get(0)["status"]["history"].clone();
        if history.as_array().unwrap().len() > failed { Ok(()) } else { Err(history.to_string()) }
    })
    .await;
}

/// The next one lands; its revision, and that of the manifest.
async fn lands_the_next(scenario: &mut Scenario, application: &Application<'_>) -> (String, String) {
    let second = scenario.repository.commit(|fleet| {
        fleet.host("web-1").activation = None;
        fleet.host("web-1").rev = Some(2);
    });
    let git = application.commit(|work| put(work, &pinned(scenario, 0, &second, &json!({}))));
    application.health("web-1", "Healthy", &second[..7], SOON).await;
    dump(scenario, "actions/testdata/landed.yaml");
    (second, git)
}

/// What a person does; in the end the host runs the first revision again.
async fn obeys_a_person(scenario: &Scenario, application: &Application<'_>, first: &str) {
    act(application, "reconcile");
    until("the request to be handled", SOON, || async {
        let handled = scenario.get(0)["status"]["lastHandledReconcileAt"].as_str().unwrap_or_default().to_owned();
        if handled.starts_with("By Argo CD at: 20") { Ok(()) } else { Err(handled) }
    })
    .await;
    act(application, "suspend");
    application.health("web-1", "Suspended", "", SOON).await;
    scenario.condition(0, "Ready", "False", Some("Suspended"), SOON).await;
    dump(scenario, "testdata/suspended.yaml");
    act(application, "resume");
    application.health("web-1", "Healthy", "", SOON).await;
    act(application, "rollback");
    scenario.landed(0, first, SOON).await;
    application.health("web-1", "Healthy", &first[..7], SOON).await;
    dump(scenario, "actions/testdata/rolled-back.yaml");
}

/// Nobody answers: still Progressing, then Degraded; and back.
async fn is_told_from_one_that_does_not_answer(scenario: &Scenario, application: &Application<'_>, second: &str) {
    application.health("web-1", "Healthy", &second[..7], SOON).await;
    scenario.hosts[0].blackhole();
    scenario.request(0);
    application.health("web-1", "Progressing", "", SOON).await;
    application.health("web-1", "Degraded", "nothing known since", SOON).await;
    scenario.condition(0, "Reachable", "False", None, SOON).await;
    dump(scenario, "testdata/unreachable.yaml");
    scenario.hosts[0].unblackhole();
    application.health("web-1", "Healthy", &second[..7], SOON).await;
}

/// What is gone from Git is pruned.
async fn is_pruned_and_stays_as_it_is(scenario: &Scenario, application: &Application<'_>) {
    let system = scenario.hosts[0].current_system();
    application.commit(|work| {
        std::fs::remove_file(work.join("web-1.json")).unwrap();
        let stays = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "stays" } });
        put(work, &stays);
    });
    until("the NixOSHost to be pruned", SOON, || async {
        let output = scenario.kubectl.attempt(&["get", "nixoshost", "web-1"]);
        if output.stderr.contains("NotFound") { Ok(()) } else { Err(output.stdout) }
    })
    .await;
    assert_eq!(scenario.hosts[0].current_system(), system);
}

/// Runs an action on web-1 through Argo CD's API.
fn act(application: &Application<'_>, action: &str) {
    let output = application.action(action, "web-1");
    assert!(output.status.success(), "{action}: {}{}", output.stdout, output.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_wave_waits_until_the_first_is_healthy_on_the_new_revision() {
    let mut scenario = Scenario::builder().hosts(2).own_control_plane().start().await;
    let argocd = ArgoCd::start(&scenario.plane, GRACE).await;
    let application = argocd.application("waves", &scenario.namespace, &json!({}), &json!({}));
    let commit = |scenario: &Scenario, rev: &str| {
        application.commit(|work| {
            for index in 0..2 {
                let wave = json!({ "metadata": { "annotations": { "argocd.argoproj.io/sync-wave": (index + 1).to_string() } } });
                put(work, &pinned(scenario, index, rev, &wave));
            }
        })
    };
    let first = scenario.repository.head();
    commit(&scenario, &first);
    for index in 0..2 {
        application.health(&name(index), "Healthy", &first[..7], SOON).await;
    }
    // web-1 takes a while: long enough to be seen Healthy on what it ran before, if that were possible
    let second = scenario.repository.commit(|fleet| {
        fleet.host("web-1").rev = Some(2);
        fleet.host("web-1").snippet("slow", "sleep 6\n");
        fleet.host("web-2").rev = Some(2);
    });
    commit(&scenario, &second);
    until("the second wave to begin", SOON, || async {
        // In this order: what the second one is told was decided before the first is looked at
        let (later, earlier) = (scenario.get(1), scenario.get(0));
        if later["spec"]["flake"]["rev"] != second.as_str() {
            return Err(earlier["status"]["flake"].to_string());
        }
        let ready = condition(&earlier, "Ready").unwrap();
        assert_eq!(earlier["status"]["flake"]["applied"]["rev"], second.as_str(), "the first wave was not landed: {ready}");
        Ok(())
    })
    .await;
    for index in 0..2 {
        scenario.landed(index, &second, SOON).await;
    }
    drop(argocd);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_examples_say_is_what_is_stored() {
    let scenario = Scenario::builder().hosts(0).own_control_plane().start().await;
    let argocd = ArgoCd::start(&scenario.plane, GRACE).await;
    let ways = [("client-side", json!({})), ("server-side", json!({ "argocd.argoproj.io/compare-options": "ServerSideDiff=true" }))];
    for (way, annotations) in ways {
        let namespace = scenario.plane.namespace();
        let application = argocd.application(way, &namespace, &json!({}), &annotations);
        let rev = application.commit(|work| {
            for example in ["complete", "minimal", "pinned"] {
                let from = format!("{}/../crd/examples/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
                std::fs::copy(from, work.join(format!("{example}.yaml"))).unwrap();
            }
        });
        let synced = application.synced(&rev, SOON).await;
        assert_eq!(synced["status"]["resources"].as_array().map(Vec::len), Some(3), "{way}");
        // It stays so when it is compared once more, with what the API server and Argo CD made of it
        application.refresh();
        until("another comparison", SOON, || async {
            let now = application.get();
            let again = now["status"]["reconciledAt"] != synced["status"]["reconciledAt"];
            if again { Ok(now) } else { Err(now["status"]["reconciledAt"].to_string()) }
        })
        .await;
        application.synced(&rev, Duration::ZERO).await;
    }
    drop(argocd);
    scenario.finish().await;
}

/// Where the scripts and their tests are.
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/argocd/resource_customizations/nixoshost.dev/NixOSHost");

fn tests_of(file: &str) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(Path::new(SCRIPTS).join(file)).unwrap()).unwrap()
}

#[test]
fn the_health_script_says_what_its_tests_expect() {
    for test in tests_of("health_test.yaml")["tests"].as_array().unwrap() {
        let input = test["inputPath"].as_str().unwrap();
        let (status, message) = (test["healthStatus"]["status"].as_str().unwrap(), test["healthStatus"]["message"].as_str().unwrap());
        assert_eq!(overrides(&["health"], &Path::new(SCRIPTS).join(input)), format!("STATUS: {status}\nMESSAGE: {message}"), "{input}");
    }
}

#[test]
fn the_actions_do_what_their_tests_expect() {
    let (tests, directory) = (tests_of("actions/action_test.yaml"), Path::new(SCRIPTS).join("actions"));
    let file = |test: &Value, field: &str| directory.join(test[field].as_str().unwrap());
    for test in tests["discoveryTests"].as_array().unwrap() {
        let mut expected: Vec<_> = test["result"]
            .as_array()
            .unwrap()
            .iter()
            .map(|action| format!("{} {}", action["name"].as_str().unwrap(), action["disabled"]))
            .collect();
        expected.sort();
        let listed = overrides(&["list-actions"], &file(test, "inputPath"));
        let listed: Vec<_> = listed.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(listed, expected, "{}", test["inputPath"]);
    }
    for test in tests["actionTests"].as_array().unwrap() {
        let (input, action) = (file(test, "inputPath"), test["action"].as_str().unwrap());
        let said = overrides(&["run-action", action], &input);
        let (before, after) = (std::fs::read_to_string(input).unwrap(), std::fs::read_to_string(file(test, "expectedOutputPath")).unwrap());
        let only = |these: &str, those: &str| -> Vec<String> {
            these.lines().filter(|line| !those.lines().any(|other| other == *line)).map(timeless).collect()
        };
        let marked = |mark: &str| -> Vec<String> { said.lines().filter_map(|line| line.strip_prefix(mark)).map(timeless).collect() };
        // A revision that stands elsewhere too is no line of its own: what is there must be what the action did
        let (gone, new) = (marked("< "), marked("> "));
        assert!(gone.len() + new.len() > 0, "{action} changes something: {said}");
        assert!(
            only(&before, &after).iter().all(|line| gone.contains(line)) && only(&after, &before).iter().all(|line| new.contains(line)),
            "{action}: {said}"
        );
        assert!(
            gone.iter().all(|line| timeless(&before).contains(line.as_str()))
                && new.iter().all(|line| timeless(&after).contains(line.as_str())),
            "{action}: {said}"
        );
    }
}

/// Without the moment at which an action was run.
fn timeless(text: &str) -> String {
    match text.split_once("By Argo CD at: ") {
        Some((before, after)) => format!("{before}By Argo CD at: {}", &after["0001-01-01T00:00:00".len()..]),
        None => text.to_owned(),
    }
}
