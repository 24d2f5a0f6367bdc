//! What a scrape of the metrics of a thousand hosts takes.

use std::time::Instant;

use nixos_host_controller::metrics::Metrics;
use serde_json::json;

use crate::RUNS;
use crate::table::{Goal, Row, Rows, say};

const HOSTS: u32 = 1000;

/// Measures the row.
pub(crate) fn measure(into: &Rows) {
    let metrics = Metrics::new().expect("the series do not contradict each other");
    for number in 0..HOSTS {
        let conditions = ["Ready", "Reachable", "UpToDate", "Drifted"].map(|kind| {
            json!({ "type": kind, "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" })
        });
        let status =
            json!({ "conditions": conditions, "revision": format!("main@{number:07x}"), "system": { "short": format!("{number:07}") } });
        metrics.host("infra", &format!("web-{number}"), &serde_json::from_value(status).expect("it is a status"));
    }
    let ours = (0..RUNS).map(|_| scrape(&metrics)).collect();
    into.push(Row {
        what: format!("metrics of {HOSTS} hosts, one scrape"),
        unit: "ms",
        ours,
        theirs: Vec::new(),
        goal: Goal::AtMost(50.0),
    });
}

/// Milliseconds.
fn scrape(metrics: &Metrics) -> f64 {
    let began = Instant::now();
    let text = metrics.render(began).expect("the series can be written");
    let took = began.elapsed().as_secs_f64() * 1000.0;
    say(&format!("a scrape of {} lines took {took:.1} ms", text.lines().count()));
    took
}
