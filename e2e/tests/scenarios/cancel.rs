//! Cancelling: what is in flight ends at once and leaves nothing behind, also for a crowd; and who is not of the crowd does not wait for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::{Patch, PatchParams, PostParams};
use nixos_host_e2e::controller::Options;
use nixos_host_e2e::flake::fleet::{Build, Evaluation, Fill, Packages, activation};
use nixos_host_e2e::oracle::nixos_hosts;
use nixos_host_e2e::process::command_line;
use nixos_host_e2e::scenario::{condition, merge, name};
use nixos_host_e2e::wait::{until, until_true};
use nixos_host_e2e::{Host, Scenario, scenario};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{SOON, doing};

/// What is cancelled is gone within this, as docs/operations.md says.
const GONE: Duration = Duration::from_secs(3);

/// Processes of the controller at work, once there are some of a program.
async fn at_work(scenario: &Scenario, program: &str) -> BTreeMap<i32, String> {
    until(&format!("{program} to run"), SOON, || async {
        let found = scenario.controller().descendants();
        if found.values().any(|line| line.contains(program)) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

/// Waits until these are gone and nothing has taken their place; says how long it took.
async fn gone(scenario: &Scenario, what: &str, begun: Instant, processes: &BTreeMap<i32, String>) {
    let alive = |(pid, line): &(&i32, &String)| !line.is_empty() && command_line(**pid) == **line;
    until_true(&format!("{what} to be gone"), GONE, || processes.iter().filter(alive).count() == 0).await;
    eprintln!("{what}: {} processes gone after {:.1?}", processes.len(), begun.elapsed());
    until_true("no other process to be there", SOON, || scenario.controller().descendants().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspend_a_newer_spec_and_a_deletion_leave_no_process_behind() {
    let mut scenario = Scenario::builder().start().await;
    let good = scenario.repository.head();
    scenario.repository.commit(|fleet| {
        fleet.host("web-1").evaluation = Some(Evaluation { spin: 60_000, ..Evaluation::default() });
    });
    scenario.apply(0, &json!({}));
    doing(&scenario, 0, "Evaluating").await;
    let processes = at_work(&scenario, "nix eval").await;
    scenario.apply(0, &json!({"spec": {"suspend": true}}));
    gone(&scenario, "an evaluation", Instant::now(), &processes).await;
    scenario.condition(0, "Ready", "False", Some("Suspended"), SOON).await;

    scenario.repository.commit(|fleet| {
        let knobs = fleet.host("web-1");
        (knobs.evaluation, knobs.build) = (None, Some(Build { fail: false, sleep: 300 }));
    });
    scenario.apply(0, &json!({}));
    scenario.request(0);
    doing(&scenario, 0, "Building").await;
    let processes = at_work(&scenario, "sleep").await;
    assert!(processes.values().any(|line| line.contains("--realise")), "{processes:?}");
    scenario.apply(0, &json!({"spec": {"flake": {"rev": good, "ref": null}}}));
    gone(&scenario, "a build", Instant::now(), &processes).await;
    scenario.landed(0, &good, SOON).await;

    scenario.hosts[0].slow_link("4mbit");
    scenario.repository.commit(|fleet| {
        let knobs = fleet.host("web-1");
        (knobs.build, knobs.own) = (None, Some(Packages { count: 20, kib: 1024, kind: Fill::Random, rev: 2, changed: 20 }));
    });
    scenario.apply(0, &json!({}));
    scenario.request(0);
    doing(&scenario, 0, "Copying").await;
    let receiving = || scenario.hosts[0].exec(&["pgrep", "-f", "nix-store --serve"]).status.success();
    until_true("the host to receive", SOON, receiving).await;
    let begun = Instant::now();
    scenario.kubectl.run(&["delete", "nixoshost", &name(0), "--timeout=15s"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    until_true("the copy to be gone from the host", GONE, || !receiving()).await;
    eprintln!("a copy: gone after {:.1?}", begun.elapsed());
    scenario.finish().await;
}

/// Whether a host's landing has ended on `system`: it runs, and is what boots next.
fn has_ended_on(host: &Host, state: &str, system: &str) {
    assert_eq!(host.shell("cat /run/nixos-host-controller/state").trim(), state, "{}", host.name());
    // Past its last word nothing of it changes the host, while it closes down
    let unit = host.unit_state("nixos-host-controller-landing.service");
    assert!(["inactive", "deactivating"].contains(&&*unit), "{} is {unit}", host.name());
    assert_eq!([host.current_system(), host.boot_default()], [system, system], "{}", host.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_to_activate_lands_or_goes_back_before_a_suspend_a_newer_spec_or_a_deletion_is_heeded() {
    let mut scenario = Scenario::builder().hosts(4).start().await;
    let first = scenario.repository.head();
    let pin = |rev: &str| json!({"spec": {"flake": {"rev": rev, "ref": null}}});
    for index in 0..4 {
        scenario.apply(index, &pin(&first));
    }
    for index in 0..4 {
        scenario.landed(index, &first, SOON).await;
    }
    let old = scenario.hosts[3].current_system();
    let second = scenario.repository.commit(|fleet| {
        for index in 0..3 {
            fleet.host(&name(index)).snippet("slow", activation::sleep(7));
        }
        fleet.host(&name(3)).snippet("slow", activation::sleep(7) + "\n" + activation::FAIL);
    });
    let new: Vec<String> = (0..3).map(|index| scenario.repository.expected_toplevel(&second, &name(index))).collect();
    let begun = async |index: usize| {
        scenario.apply(index, &pin(&second));
        let activating = || scenario.hosts[index].unit_state("nixos-rebuild-switch-to-configuration") == "active";
        until_true("the activation to have begun", SOON, activating).await;
    };
    let (host, suspend) = (|index: usize| &scenario.hosts[index], json!({"spec": {"suspend": true}}));

    begun(0).await;
    scenario.apply(0, &suspend);
    let object = scenario.condition(0, "Ready", "False", Some("Suspended"), SOON).await;
    has_ended_on(host(0), "committed", &new[0]);
    assert_eq!(outcomes(&object), ["Succeeded", "Succeeded"]);

    begun(1).await;
    scenario.apply(1, &pin(&first));
    scenario.landed(1, &first, SOON).await;
    assert_eq!(outcomes(&scenario.get(1)), ["Succeeded", "Succeeded", "Succeeded"], "what was being activated has landed first");
    assert!(host(1).generations().iter().any(|(_, system)| *system == new[1]));

    begun(2).await;
    scenario.kubectl.run(&["delete", "nixoshost", &name(2), "--timeout=60s"]);
    has_ended_on(host(2), "committed", &new[2]);

    begun(3).await;
    scenario.apply(3, &suspend);
    let object = scenario.condition(3, "Ready", "False", Some("Suspended"), SOON).await;
    has_ended_on(host(3), "reverted", &old);
    assert_eq!(outcomes(&object).len(), 2, "{}", object["status"]["history"]);
    scenario.finish().await;
}

/// How the landings of a host have ended, the last one first.
fn outcomes(object: &Value) -> Vec<&str> {
    object["status"]["history"].as_array().into_iter().flatten().filter_map(|entry| entry["outcome"].as_str()).collect()
}

/// Hosts of one namespace: more than three times as many as are looked at at a time.
const CROWD: usize = 200;

/// A machine that takes connections and says nothing.
async fn tarpit() -> (u16, tokio::sync::watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (count, counted) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
            count.send_replace(held.len());
        }
    });
    (port, counted)
}

/// The hosts of the crowd that have, or lack, a reason of Ready.
async fn ready_for(api: &kube::Api<kube::api::DynamicObject>, reason: &str) -> usize {
    let list = api.list(&kube::api::ListParams::default()).await.unwrap();
    let objects = list.items.into_iter().map(|object| serde_json::to_value(object).unwrap());
    objects.filter(|object: &Value| condition(object, "Ready").is_some_and(|ready| ready["reason"] == reason)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_silent_hosts_holds_up_nobody_else_and_is_suspended_at_once() {
    let everywhere = Options { namespace: Some(String::new()), ..Options::default() };
    let scenario = Scenario::builder().own_control_plane().controller(everywhere).start().await;
    let (port, mut callers) = tarpit().await;
    scenario.plane.create_namespace("crowd");
    let kubectl = scenario.plane.kubectl("crowd");
    kubectl.secret(scenario::SSH_SECRET, "kubernetes.io/ssh-auth", &[("ssh-privatekey", &scenario.key.private())]);
    let api = nixos_hosts(scenario.plane.client().await, "crowd");
    let mut manifest = scenario.manifest(0);
    merge(&mut manifest, &json!({"spec": {"flake": {"attribute": "web-1"}, "connection": {"addresses": ["127.0.0.1"], "port": port}}}));
    let creations = (0..CROWD).map(|number| {
        let mut manifest = manifest.clone();
        manifest["metadata"]["name"] = format!("silent-{number}").into();
        let (api, object) = (api.clone(), serde_json::from_value(manifest).unwrap());
        async move { api.create(&PostParams::default(), &object).await.unwrap() }
    });
    futures::stream::iter(creations).buffer_unordered(16).collect::<Vec<_>>().await;
    tokio::time::timeout(SOON, callers.wait_for(|callers| *callers >= 64)).await.unwrap().unwrap();

    // One slot is 10 s: the handshake's limit. Behind the line it would be 30 s.
    scenario.apply(0, &json!({}));
    let begun = Instant::now();
    scenario.condition(0, "Reachable", "True", None, SOON).await;
    let waited = begun.elapsed();
    eprintln!("another namespace's single host was looked at after {waited:.1?}, with {CROWD} in line");
    assert!(waited < Duration::from_secs(20), "{waited:?}");

    let begun = Instant::now();
    let suspend = Patch::Merge(json!({"spec": {"suspend": true}}));
    let (suspend, parameters) = (&suspend, &PatchParams::default());
    let patches = (0..CROWD).map(|number| {
        let api = api.clone();
        async move { api.patch(&format!("silent-{number}"), parameters, suspend).await.unwrap() }
    });
    futures::stream::iter(patches).buffer_unordered(16).collect::<Vec<_>>().await;
    let asked = begun.elapsed();
    until("all of them to be suspended", SOON, || async {
        let suspended = ready_for(&api, "Suspended").await;
        if suspended == CROWD { Ok(()) } else { Err(format!("{suspended} are")) }
    })
    .await;
    let took = begun.elapsed();
    eprintln!("{CROWD} hosts suspended {took:.1?} after the first was asked, {:.1?} after the last", took.saturating_sub(asked));
    assert!(took.saturating_sub(asked) < Duration::from_secs(5), "{took:?}, {asked:?}");
    let rev = scenario.repository.head();
    scenario.landed(0, &rev, SOON).await;
    scenario.finish().await;
}
