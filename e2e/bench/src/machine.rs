//! What the figures were taken on.

use std::process::Command;

use nixos_host_e2e::process::run;

/// Machine, versions and load, as lines of Markdown.
pub(crate) fn describe(rows: &str) -> String {
    let cpu = field("/proc/cpuinfo", "model name");
    let memory = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1_048_576.0;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let kernel = said("uname", &["-r"]);
    let revision = said("git", &["-C", env!("CARGO_MANIFEST_DIR"), "-c", "safe.directory=*", "describe", "--always", "--dirty"]);
    let rows = if rows.is_empty() { String::new() } else { format!(" ROWS={rows}") };
    format!(
        "`make bench{rows}` at {revision}: {cores} × {cpu}, {memory:.0} GiB, Linux {kernel}, load before {load}; {}, kube-apiserver {}, {}; release build; medians of {} interleaved runs unless said",
        said("nix", &["--version"]),
        said("kube-apiserver", &["--version"]).trim_start_matches("Kubernetes "),
        said("ssh", &["-V"]).split(',').next().unwrap_or_default(),
        crate::RUNS,
    )
}

fn field(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = run(Command::new(program).args(arguments));
    (output.stdout + &output.stderr).trim().to_owned()
}
