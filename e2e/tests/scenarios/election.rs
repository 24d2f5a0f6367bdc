//! Two controllers, of which one leads: fail-over, fencing, and a leader that was only asleep.

use std::time::{Duration, Instant};

use nixos_host_e2e::controller::Options;
use nixos_host_e2e::flake::fleet::activation;
use nixos_host_e2e::host::facts::Sessions;
use nixos_host_e2e::wait::{throughout, until, until_true};
use nixos_host_e2e::{Controller, Scenario};
use serde_json::{Value, json};

use crate::{SOON, doing};

/// In seconds. Shorter ones are lost by accident on a machine that is busy.
const LEASE: u64 = 8;

fn options() -> Options {
    let arguments = ["--leader-elect".to_owned(), format!("--lease-duration={LEASE}")];
    Options { arguments: arguments.into(), ..Options::default() }
}

async fn two(builder: nixos_host_e2e::scenario::Builder) -> Scenario {
    let mut scenario = builder.controller(options()).start().await;
    leads(scenario.controller(), SOON).await;
    scenario.start_another_controller(options()).await;
    scenario
}

fn is_leader(controller: &Controller) -> bool {
    controller.metric("nixos_host_controller_leader", &[]) == 1.0
}

async fn leads(controller: &Controller, deadline: Duration) {
    until_true("the controller to lead", deadline, || is_leader(controller)).await;
}

fn lease(scenario: &Scenario) -> Value {
    scenario.kubectl.get(&["lease", "nixos-host-controller"])
}

/// A time in the Lease: of the leader itself, however late the test hears of it.
fn moment(lease: &Value, name: &str) -> jiff::Timestamp {
    lease["spec"][name].as_str().unwrap().parse().unwrap()
}

fn epoch(scenario: &Scenario) -> u64 {
    lease(scenario)["metadata"]["annotations"]["nixoshost.dev/epoch"].as_str().unwrap().parse().unwrap()
}

/// Writes down each activation on the host, and takes a while.
fn counted(seconds: u32) -> String {
    format!("mkdir -p /var/lib; echo activated >> /var/lib/activations; {}", activation::sleep(seconds))
}

fn activations(scenario: &Scenario) -> usize {
    scenario.hosts[0].shell("cat /var/lib/activations 2>/dev/null || true").lines().count()
}

fn history(scenario: &Scenario) -> usize {
    scenario.get(0)["status"]["history"].as_array().map_or(0, Vec::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_works_and_the_other_takes_over_when_it_is_killed_or_lets_go() {
    let mut scenario = two(Scenario::builder()).await;
    let [first, second] = scenario.controllers() else { panic!("there are two") };
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({}));
    scenario.landed(0, &rev, SOON).await;
    assert!(is_leader(first) && !is_leader(second));
    assert_eq!(second.health("readyz").map(|(status, _)| status), Some(200), "who stands by is ready");
    assert_eq!(second.metric("nixos_host_passes_total", &[]), 0.0, "and does nothing");
    let told = |controller: &Controller| ["nixos_host_info", "leader_election_master_status"].map(|name| controller.metric(name, &[]));
    assert_eq!((told(first), told(second)), ([1.0, 1.0], [0.0, 0.0]), "only the leader tells of hosts");
    assert_eq!(second.executions().count("nix", &["eval"]) + second.executions().count("git", &["ls-remote"]), 0);
    let before = epoch(&scenario);

    first.kill();
    let renewed = moment(&lease(&scenario), "renewTime");
    leads(second, SOON).await;
    let took = moment(&lease(&scenario), "acquireTime").duration_since(renewed);
    eprintln!("fail-over {took:#} after the last renewal, with a lease of {LEASE} s");
    assert!((LEASE as f64..LEASE as f64 + 4.0).contains(&took.as_secs_f64()), "{took:#}");
    assert!(epoch(&scenario) > before);
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;

    let [first, second] = scenario.controllers() else { panic!("there are two") };
    first.start_again();
    first.ready().await;
    let began = Instant::now();
    let (status, _) = second.terminate(SOON);
    leads(first, SOON).await;
    eprintln!("hand-over at SIGTERM: {:.1?}", began.elapsed());
    assert!(status.success() && began.elapsed() < Duration::from_secs(LEASE - 1), "it need not wait for the lease: {:?}", began.elapsed());
    let events = scenario.kubectl.run(&[
        "get",
        "events",
        "--field-selector=involvedObject.kind=Lease",
        "-o",
        "jsonpath={.items[*].note}{.items[*].message}",
    ]);
    assert_eq!(events.matches("became leader").count(), 3, "{events}");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_through_its_lease_finds_the_host_landed_once_by_another_and_touches_nothing() {
    let mut scenario = two(Scenario::builder()).await;
    let first_rev = scenario.repository.head();
    scenario.apply(0, &json!({}));
    scenario.landed(0, &first_rev, SOON).await;
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").snippet("counted", counted(17));
    });
    scenario.request(0);
    doing(&scenario, 0, "Activating").await;
    until_true("the activation to have begun", SOON, || activations(&scenario) == 1).await;
    let [first, second] = scenario.controllers() else { panic!("there are two") };
    first.freeze();
    leads(second, SOON).await;
    assert_eq!(scenario.hosts[0].unit_state("nixos-rebuild-switch-to-configuration"), "active", "it is taken over in the middle");
    scenario.landed(0, &rev, SOON).await;
    let remembered = scenario.hosts[0].shell("cut -d' ' -f1 /run/nixos-host-controller/epoch");
    assert_eq!(remembered.parse(), Ok(epoch(&scenario)), "the host knows who leads now");
    let (cursor, version) = (scenario.hosts[0].cursor(), scenario.get(0)["metadata"]["resourceVersion"].clone());
    first.thaw();
    until_true("the first one to know that it does not lead", SOON, || first.log().contains("stopped leading")).await;
    throughout("what it finds to be left alone", Duration::from_secs(4), || async {
        let seen = (is_leader(first), scenario.hosts[0].sessions_since(&cursor), scenario.get(0)["metadata"]["resourceVersion"].clone());
        if seen == (false, Sessions::default(), version.clone()) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    assert_eq!((activations(&scenario), history(&scenario)), (1, 2), "one activation, one landing");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_api_server_a_leader_stands_down_the_host_goes_back_alone_and_both_go_on_afterwards() {
    let mut scenario = Scenario::builder().own_control_plane().controller(options()).start().await;
    let first = scenario.repository.head();
    let patch = json!({"spec": {"activation": {"settle": "8s", "commitWithin": "12s"}}});
    scenario.apply(0, &patch);
    let old = scenario.landed(0, &first, SOON).await;
    let before = epoch(&scenario);
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").snippet("counted", counted(0));
    });
    scenario.request(0);
    until_true("the new system to be active", SOON, || activations(&scenario) == 1).await;
    scenario.plane.kill_api_server();
    until_true("the leader to stand down", Duration::from_secs(LEASE + 5), || !is_leader(scenario.controller())).await;
    let cursor = scenario.hosts[0].cursor();
    until_true("the host to go back by itself", SOON, || scenario.hosts[0].current_system() == old).await;
    assert_eq!(scenario.hosts[0].sessions_since(&cursor).logins, 0, "it was left alone");
    scenario.plane.start_api_server();
    scenario.plane.ready().await;
    let back = Instant::now();
    leads(scenario.controller(), Duration::from_secs(10)).await;
    let toplevel = scenario.landed(0, &rev, SOON).await;
    eprintln!("landed {:.1?} after the API server was back", back.elapsed());
    assert_eq!(scenario.hosts[0].current_system(), toplevel);
    let history = scenario.get(0)["status"]["history"].clone();
    let reasons: Vec<_> = history.as_array().unwrap().iter().map(|entry| entry["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["Succeeded", "Unattended", "Succeeded"]);
    assert!(epoch(&scenario) > before);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_deleted_or_a_host_that_knows_more_brings_a_higher_epoch() {
    let mut scenario = Scenario::builder().controller(options()).start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({"spec": {"interval": "5s"}}));
    scenario.landed(0, &rev, SOON).await;
    let first = epoch(&scenario);
    scenario.kubectl.run(&["delete", "lease", "nixos-host-controller"]);
    let second = until("the Lease to be there again", SOON, || async {
        let found = scenario.kubectl.attempt(&["get", "lease", "nixos-host-controller"]);
        if found.status.success() { Ok(epoch(&scenario)) } else { Err(found.stderr) }
    })
    .await;
    assert!(second > first, "{second} after {first}");
    leads(scenario.controller(), SOON).await;
    // As if the Lease came from an older backup, and the clock were behind.
    let known = second + 3_600_000;
    scenario.hosts[0].shell(&format!("printf '%-250.250s\\n' {known} 1<>/run/nixos-host-controller/epoch"));
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;
    assert!(epoch(&scenario) > known);
    scenario.finish().await;
}
