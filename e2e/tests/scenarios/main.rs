//! The scenarios, on a real API server and real hosts. Each is told in its test's name; `e2e/README.md` says how to run one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stderr,
    missing_docs,
    reason = "tests"
)]
#![allow(clippy::cast_precision_loss, clippy::float_cmp, reason = "Prometheus counts in floats")]
#![allow(clippy::needless_pass_by_value, reason = "json!(…) at the place of use reads better than &json!(…)")]

mod api;
mod brake;
mod building;
mod cancel;
mod cases;
mod crashes;
mod docs;
mod drift;
mod election;
mod following;
mod health;
mod hostile;
mod inputs;
mod landing;
mod lifecycle;
mod machines;
mod meanwhile;
mod modes;
mod neighbours;
mod reaching;
mod reboot;
mod rejection;
mod rights;
mod secrets;
mod sharing;
mod trust;

use std::time::Duration;

use nixos_host_e2e::scenario::name;
use nixos_host_e2e::{Scenario, until};
use serde_json::Value;

/// Long enough for a loaded machine; nothing waits this long when all is well.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// The record of a stage in a status.
pub(crate) fn stage<'o>(object: &'o Value, name: &str) -> &'o Value {
    let stages = object["status"]["stages"].as_array().expect("there are stages");
    stages.iter().find(|record| record["name"] == name).unwrap_or_else(|| panic!("no record of {name} in {stages:?}"))
}

/// Waits until host number `index` is being worked on by a stage: the reason of Reconciling.
pub(crate) async fn doing(scenario: &Scenario, index: usize, stage: &str) {
    until(&format!("{} to be {stage}", name(index)), SOON, || async {
        let object = scenario.get(index);
        let reason = nixos_host_e2e::scenario::condition(&object, "Reconciling").map(|found| found["reason"].clone()).unwrap_or_default();
        if reason == stage { Ok(()) } else { Err(object["status"].to_string()) }
    })
    .await;
}

/// The message of a condition.
pub(crate) fn message(object: &Value, kind: &str) -> String {
    nixos_host_e2e::scenario::condition(object, kind).and_then(|found| found["message"].as_str()).unwrap_or_default().to_owned()
}
