//! Hosts that share a flake share the work: one evaluation for all of them.

use nixos_host_e2e::Scenario;
use nixos_host_e2e::controller::Options;
use nixos_host_e2e::flake::fleet::{Evaluation, EvaluationError, position};
use nixos_host_e2e::scenario::name;
use serde_json::{Value, json};

use crate::{SOON, message};

#[tokio::test(flavor = "multi_thread")]
async fn of_eight_hosts_of_one_flake_seven_land_by_one_evaluation_and_the_one_that_does_not_evaluate_says_where() {
    // So much memory is one process at a time, and room for eight hosts in it
    let options = Options { arguments: vec!["--evaluate-memory".into(), "1190".into()], ..Options::default() };
    let builder = Scenario::builder().hosts(8).without_controller().fleet(|fleet| {
        // The last one: the process that it ends has done all others
        fleet.host("web-8").evaluation_error(EvaluationError::Assertion);
    });
    let mut scenario = builder.start().await;
    let rev = scenario.repository.head();
    let items: Vec<Value> = (0..8).map(|index| scenario.manifest(index)).collect();
    scenario.kubectl.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    scenario.start_controller(options).await;
    for index in 0..7 {
        scenario.landed(index, &rev, SOON).await;
    }
    let object = scenario.condition(7, "Ready", "False", Some("EvaluationFailed"), SOON).await;
    let text = message(&object, "Ready");
    let position = position(r#"throw "\nFailed assertions"#);
    assert!(text.contains("nixosConfigurations.web-8") && text.contains(&format!("- web needs a certificate (at {position})")), "{text}");
    assert_eq!(object["status"]["flake"]["attempted"]["rev"], rev);
    let evaluations = asked(&scenario);
    let times = |host: &str| evaluations.iter().filter(|names| names.contains(&host.to_owned())).count();
    for index in 0..8 {
        assert_eq!(times(&name(index)), 1, "{} was evaluated once: {evaluations:?}", name(index));
    }
    assert_eq!(evaluations.len(), 1, "one process evaluated all of them: {evaluations:?}");
    let count = |program: &str, words: &[&str]| scenario.controller().executions().count(program, words);
    assert_eq!(count("git", &["ls-remote"]), 1, "one look at the remote for all");
    assert_eq!(count("nix", &["flake", "metadata"]), 1, "the revision was locked once for all");
    scenario.finish().await;
}

/// The hosts that each evaluating process was asked for.
fn asked(scenario: &Scenario) -> Vec<Vec<String>> {
    let all = scenario.controller().executions().all();
    let evaluations = all.into_iter().filter(|words| words.first().is_some_and(|word| word == "nix") && words.contains(&"eval".to_owned()));
    let hosts = |words: Vec<String>| {
        let expression = words.iter().position(|word| word == "--apply").map(|place| words[place + 1].clone()).unwrap();
        (0..8).map(name).filter(|host| expression.contains(&format!("\\\"{host}\\\""))).collect()
    };
    evaluations.map(hosts).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_that_is_too_large_or_too_slow_says_so_and_the_others_of_its_flake_land() {
    let builder = Scenario::builder().hosts(3).without_controller().fleet(|fleet| {
        fleet.host("web-1").evaluation = Some(Evaluation { memory: 2000, ..Evaluation::default() });
        fleet.host("web-2").evaluation = Some(Evaluation { spin: 1_000_000, ..Evaluation::default() });
    });
    let mut scenario = builder.start().await;
    let rev = scenario.repository.head();
    for index in 0..3 {
        scenario.apply(index, &json!({}));
    }
    let arguments = ["--evaluate-memory=1024", "--evaluate-timeout=10"].map(str::to_owned).to_vec();
    scenario.start_controller(Options { arguments, ..Options::default() }).await;
    for (index, reason, says) in [(0, "EvaluationOutOfMemory", "MiB"), (1, "EvaluationTimedOut", "the evaluation was not done within 10s")]
    {
        let object = scenario.condition(index, "Ready", "False", Some(reason), SOON).await;
        assert!(message(&object, "Ready").contains(says), "{}", message(&object, "Ready"));
    }
    scenario.landed(2, &rev, SOON).await;
    scenario.finish().await;
}
