//! Hosts break while Prometheus looks.

use std::time::Duration;

use nixos_host_e2e::flake::fleet::activation;
use nixos_host_e2e::prometheus::Prometheus;
use nixos_host_e2e::scenario::name;
use nixos_host_e2e::{Scenario, until};
use serde_json::json;

use crate::dashboards::Shown;

const SOON: Duration = Duration::from_secs(180);

async fn fires(prometheus: &Prometheus, expected: &[(&str, &str)]) {
    until(&format!("{expected:?} to fire, and nothing else"), SOON, || async {
        let mut firing = prometheus.firing();
        // How full the disk of the machine is that runs this test is no matter of the test
        firing.retain(|(alert, _)| alert != "NixOSHostStoreNearlyFull");
        firing.sort();
        let same =
            firing.len() == expected.len() && firing.iter().zip(expected).all(|((alert, host), found)| (&**alert, &**host) == *found);
        if same { Ok(()) } else { Err(format!("{firing:?}")) }
    })
    .await;
}

/// A host that refuses a revision, one that goes away and one with which nothing is wrong; before, meanwhile and after.
#[tokio::test(flavor = "multi_thread")]
async fn alerts_fire_while_hosts_are_broken_and_every_panel_shows_it() {
    let mut scenario = Scenario::builder().hosts(3).start().await;
    let prometheus = Prometheus::start(scenario.controller(), "2s").await;
    let spec = json!({ "spec": { "interval": "5s", "activation": { "settle": "4s" } } });
    let first = scenario.repository.head();
    for index in 0..3 {
        scenario.apply(index, &spec);
        scenario.landed(index, &first, SOON).await;
    }
    let second = scenario.repository.commit(|fleet| {
        (0..3).for_each(|index| fleet.host(&name(index)).rev = Some(2));
    });
    for index in 0..3 {
        scenario.landed(index, &second, SOON).await;
    }
    fires(&prometheus, &[]).await;
    let shown = Shown::new(&prometheus, &scenario.namespace, &name(0));
    shown.all_have_data_but(&["Why hosts are not ready"]).await;
    shown.nothing_is_alarming().await;

    scenario.hosts[1].blackhole();
    let bad = scenario.repository.commit(|fleet| {
        fleet.host("web-1").snippet("broken", activation::FAIL);
    });
    scenario.condition(0, "Ready", "False", Some("ActivationFailed"), SOON).await;
    let expected = [("NixOSHostRevisionRejected", "web-1"), ("NixOSHostRolledBack", "web-1"), ("NixOSHostUnreachable", "web-2")];
    fires(&prometheus, &expected).await;
    assert_eq!(scenario.get(0)["status"]["flake"]["attempted"]["rev"], *bad);
    shown.all_have_data_but(&[]).await;
    shown.alarms(&["Stalled", "Unreachable", "Rolled back"]).await;
    shown.save_if_asked();

    scenario.hosts[1].unblackhole();
    let good = scenario.repository.commit(|fleet| {
        let knobs = fleet.host("web-1");
        knobs.activation = None;
        knobs.rev = Some(3);
    });
    scenario.landed(0, &good, SOON).await;
    scenario.landed(1, &good, SOON).await;
    fires(&prometheus, &[]).await;
    shown.nothing_is_alarming().await;
    scenario.finish().await;
}
