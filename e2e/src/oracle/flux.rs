//! Flux's own linter (`conditions/check` of its runtime module) and kstatus, as programs: `e2e/world/flux`.

use std::{
    collections::BTreeSet,
    io::Write,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::world::cache;

/// What of an object the linter reads; two writes that differ in the rest only are one to it.
///
/// It reads a status for the generation that it speaks of: a spec may change while the end of a pass is being written, and whoever reads that status sees by
/// its `observedGeneration` that it is of the one before.
pub fn line(object: &Value) -> String {
    let generation =
        [&object["metadata"]["generation"], &object["status"]["observedGeneration"]].into_iter().filter_map(Value::as_i64).min();
    let mut metadata = json!({ "name": object["metadata"]["name"], "generation": generation });
    if let Some(time) = object.pointer("/metadata/deletionTimestamp") {
        metadata["deletionTimestamp"] = time.clone();
    }
    json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": metadata,
        "status": { "observedGeneration": object["status"]["observedGeneration"], "conditions": object["status"]["conditions"] },
    })
    .to_string()
}

/// What Flux and kstatus have against objects, each a [`line`].
pub fn violations(lines: &BTreeSet<String>) -> Vec<String> {
    if lines.is_empty() {
        return Vec::new();
    }
    let program = cache().join("flux/flux-lint");
    let mut child = Command::new(&program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} is not set up ({error}): run e2e/world/setup tools", program.display()));
    let mut input = child.stdin.take().expect("standard input is piped");
    let text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
    // It prints while it reads: another thread writes, so that neither waits for the other
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(text.as_bytes()));
        child.wait_with_output().expect("flux-lint can be waited for")
    });
    if output.status.success() {
        return Vec::new();
    }
    vec![format!("- Flux: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))]
}
