//! Machines that mean harm cost a slot for a while, and nobody else anything.

use nixos_host_e2e::host::hostile::{Harm, Hostile};
use nixos_host_e2e::scenario::condition;
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Scenario, until};
use serde_json::json;

use crate::cases::nowhere;
use crate::{SOON, message};

/// What is said of each.
fn said(harm: Harm) -> (&'static str, &'static str) {
    match harm {
        Harm::Silence | Harm::Drip | Harm::KeyExchange => ("Unreachable", "fell silent while exchanging keys"),
        Harm::Banner => ("Unreachable", "speaking SSH with"),
        Harm::NoChannels => ("HostError", "opening a channel"),
        Harm::Output => ("HostError", "wrote more than 1048576 bytes"),
        Harm::Errors => ("HostError", "wrote more than 67108864 bytes"),
        Harm::Nonsense => ("CopyFailed", "does not keep to the protocol"),
        Harm::NoAnswer => ("Unreachable", "did not end within"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_that_mean_harm_are_given_up_in_bounded_time_and_memory_while_others_land() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &json!({}));
    scenario.landed(0, &rev, SOON).await;
    let before = scenario.controller().peak_memory_kib();
    let mut all = Vec::new();
    for harm in Harm::ALL {
        let hostile = Hostile::start(harm).await;
        let (address, name) = (hostile.address(), format!("{harm:?}").to_lowercase());
        let there = json!({"addresses": [address.ip().to_string()], "port": address.port(), "hostKeys": [hostile.host_key()]});
        scenario.kubectl.apply(&nowhere(&scenario, &name, &json!({"spec": {"connection": there}})).to_string());
        all.push((harm, name, hostile));
    }
    until_true("each to have been called", SOON, || all.iter().all(|(_, _, hostile)| hostile.calls() > 0)).await;
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(1));
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;
    for (harm, name, _hostile) in &all {
        let (reason, text) = said(*harm);
        // The one that never answers has a minute to
        until(&format!("{name} to be {reason}"), SOON * 2, || async {
            let object = scenario.kubectl.get(&["nixoshost", name]);
            let there =
                condition(&object, "Ready").is_some_and(|ready| ready["reason"] == reason) && message(&object, "Ready").contains(text);
            if there { Ok(()) } else { Err(object["status"].to_string()) }
        })
        .await;
    }
    let facts = &scenario.kubectl.get(&["nixoshost", "nonsense"])["status"]["facts"];
    assert_eq!(facts["bootId"].as_str().unwrap().len(), 64, "what a host says goes no further than it may");
    let after = scenario.controller().peak_memory_kib();
    assert!(after < before + 64 * 1024, "{before} KiB before, {after} KiB after");
    scenario.finish().await;
}
