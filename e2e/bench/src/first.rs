//! From `kubectl apply` of a NixOSHost to the first command on its host, by the host's own journal.

use std::time::{Duration, SystemTime};

use nixos_host_e2e::{Host, Scenario, controller::Options, until};
use serde_json::json;

use crate::{
    RUNS,
    sides::{LONG, calm, options},
    table::{Goal, Row, Rows, say},
};

/// Measures the row, from the start of kubectl, which needs a part of it itself.
pub(crate) async fn measure(into: Rows) {
    let options = Options { count_executions: false, ..options() };
    let scenario = Scenario::builder().controller(options).start().await;
    let mut row = Row {
        what: "`kubectl apply` to the first command on the host".into(),
        unit: "s",
        ours: vec![],
        theirs: vec![],
        goal: Goal::AtMost(0.5),
    };
    for run in 0..RUNS {
        let began = now();
        scenario.apply(0, &json!({ "spec": { "interval": "24h" } }));
        let returned = now();
        let first =
            until("a command on the host", LONG, || async { first_command(&scenario.hosts[0], began).ok_or_else(String::new) }).await;
        say(&format!("first command {}: {:.2} s after kubectl began, {:.2} s after it ended", run + 1, first - began, first - returned));
        row.ours.push(first - began);
        scenario.ready(0, LONG).await;
        scenario.kubectl.run(&["delete", "nixoshost", "--all"]);
        calm().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    into.push(row);
}

/// When sshd began the first session since then, in seconds since 1970.
fn first_command(host: &Host, since: f64) -> Option<f64> {
    let since = format!("--since=@{since:.6}");
    let shown = host.output(&["journalctl", "--no-pager", "--quiet", "--output=short-unix", "--identifier=sshd", &since]);
    let line = shown.lines().find(|line| line.contains("Starting session: "))?;
    line.split(' ').next()?.parse().ok()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
