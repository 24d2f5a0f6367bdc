//! What a scrape of the metrics of a thousand hosts takes.

use std::time::Instant;

use nixos_host_api::NixOSHost;
use nixos_host_controller::metrics::Metrics;
use serde_json::json;

use crate::RUNS;
use crate::table::{Goal, Row, Rows, say};

const HOSTS: u32 = 1000;

/// Measures the row.
pub(crate) fn measure(into: &Rows) {
    let metrics = Metrics::new().expect("the series do not contradict each other");
    let hosts: Vec<NixOSHost> = (0..HOSTS).map(host).collect();
    let ours = (0..RUNS).map(|_| scrape(&metrics, &hosts)).collect();
    into.push(Row {
        what: format!("metrics of {HOSTS} hosts, one scrape"),
        unit: "ms",
        ours,
        theirs: Vec::new(),
        goal: Goal::AtMost(50.0),
    });
}

/// A host of which everything is known.
fn host(number: u32) -> NixOSHost {
    let conditions = ["Ready", "Reconciling", "Stalled", "Reachable", "UpToDate", "Drifted", "RebootRequired"].map(|kind| {
        json!({ "type": kind, "status": "False", "reason": "Succeeded", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" })
    });
    let object = json!({
        "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost",
        "metadata": { "namespace": "infra", "name": format!("web-{number}") },
        "spec": { "flake": { "url": "github:a/b" }, "connection": { "addresses": ["h"], "sshKeyRef": { "name": "k" } } },
        "status": {
            "conditions": conditions,
            "revision": format!("main@{number:07x}"),
            "flake": { "attempted": { "url": "u", "rev": format!("{number:040x}"), "narHash": "h" } },
            "system": { "short": format!("{number:07}") },
            "facts": { "nixosVersion": "26.05", "kernel": "6.12", "architecture": "x86_64-linux" },
            "history": [{
                "system": "s", "revision": "r", "mode": "Switch", "outcome": "Succeeded", "reason": "Succeeded",
                "time": "2026-01-01T00:00:00Z",
            }],
        },
    });
    serde_json::from_value(object).expect("it is a NixOSHost")
}

/// Milliseconds.
fn scrape(metrics: &Metrics, hosts: &[NixOSHost]) -> f64 {
    let began = Instant::now();
    let text = metrics.render(began, hosts.len(), hosts.iter()).expect("the series can be written");
    let took = began.elapsed().as_secs_f64() * 1000.0;
    say(&format!("a scrape of {} lines took {took:.1} ms", text.lines().count()));
    took
}
