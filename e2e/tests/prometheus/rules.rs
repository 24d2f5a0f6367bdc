use std::path::PathBuf;
use std::process::Command;

use nixos_host_e2e::process::output;
use nixos_host_e2e::prometheus::{chart_files, program};
use nixos_host_e2e::world::fresh_directory;

#[test]
fn promtool_finds_that_each_alert_fires_when_it_should_and_only_then() {
    let (_, directory) = fresh_directory("promtool");
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/prometheus");
    let mut command = Command::new(program("promtool"));
    command.current_dir(&directory).args(["test", "rules"]);
    for name in ["alerts.yaml", "alerts-of-days.yaml"] {
        std::fs::copy(tests.join(name), directory.join(name)).unwrap();
        command.arg(name);
    }
    // A test file names rules relative to itself
    for rules in ["hosts.yaml", "controller.yaml", "recording.yaml"] {
        std::os::unix::fs::symlink(chart_files("rules").join(rules), directory.join(rules)).unwrap();
    }
    let said = output(&mut command);
    assert_eq!(said.matches("SUCCESS").count(), 2, "{said}");
}
