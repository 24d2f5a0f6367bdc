//! A real Prometheus that scrapes the controller under test.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    Controller,
    process::{Daemon, mortal, output},
    wait::until_true,
    world::{cache, free_port, fresh_directory, write},
};

/// `prometheus` or `promtool`.
pub fn program(name: &str) -> PathBuf {
    cache().join("prometheus/bin").join(name)
}

/// Where the chart keeps rules (`rules`) and dashboards (`dashboards`).
pub fn chart_files(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/nixos-host-controller/files").join(kind)
}

/// The files there: names and contents.
pub fn chart_texts(kind: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(chart_files(kind)).expect("the chart has such files");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a directory can be read").path()).collect();
    files.sort();
    let name = |file: &Path| file.file_name().expect("a file has a name").to_string_lossy().into_owned();
    files.iter().map(|file| (name(file), std::fs::read_to_string(file).expect("a file can be read"))).collect()
}

/// Prometheus, on a port of its own. It ends when this is dropped.
pub struct Prometheus {
    port: u16,
    _daemon: Daemon,
}

/// One series of an answer: its labels, and values by time in seconds since 1970.
#[derive(Debug, Clone)]
pub struct Series {
    /// The labels.
    pub labels: Value,
    /// The values, oldest first.
    pub values: Vec<(f64, f64)>,
}

impl Prometheus {
    /// Starts it with the chart's rules, which wait only for `wait` before they fire; it scrapes `controller` every second.
    pub async fn start(controller: &Controller, wait: &str) -> Self {
        let (_, directory) = fresh_directory("prometheus");
        for (name, text) in chart_texts("rules") {
            let shortened = text.lines().map(|line| match line.split_once("for: ") {
                Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: {wait}\n"),
                _ => format!("{line}\n"),
            });
            write(directory.join("rules").join(name), shortened.collect::<String>());
        }
        let target = format!("127.0.0.1:{}", controller.metrics_port());
        // As the chart's monitors do: the labels namespace and name are the host's
        let config = serde_json::json!({
            "global": { "scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules/*.yaml"],
            "scrape_configs": [{ "job_name": "nixos-host-controller", "honor_labels": true, "static_configs": [{ "targets": [target] }] }],
        });
        write(directory.join("prometheus.yml"), config.to_string());
        output(Command::new(program("promtool")).args(["check", "config"]).arg(directory.join("prometheus.yml")));
        let port = free_port();
        let mut command = mortal(program("prometheus"));
        command.arg(format!("--config.file={}", directory.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let prometheus = Self { port, _daemon: Daemon::start("prometheus", command, &directory.join("log")) };
        until_true("Prometheus to be ready", Duration::from_secs(60), || {
            crate::controller::http_get(port, "-/ready").is_some_and(|(status, _)| status == 200)
        })
        .await;
        prometheus
    }

    fn ask(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let parameters: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        let (status, body) =
            crate::controller::http_get(self.port, &format!("api/v1/{path}?{}", parameters.join("&"))).expect("it answers");
        assert_eq!(status, 200, "{path} {parameters:?}: {body}");
        serde_json::from_str::<Value>(&body).expect("it answers in JSON")["data"].take()
    }

    /// What a query gives now.
    pub fn query(&self, query: &str) -> Vec<Series> {
        series(&self.ask("query", &[("query", query)]))
    }

    /// What a query gives over the last `seconds`, second by second.
    pub fn range(&self, query: &str, seconds: u64) -> Vec<Series> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs();
        let (start, end) = ((now - seconds).to_string(), now.to_string());
        series(&self.ask("query_range", &[("query", query), ("start", &start), ("end", &end), ("step", "1")]))
    }

    /// The values of a label in the series that match.
    pub fn label_values(&self, label: &str, matching: &str) -> Vec<String> {
        let values = self.ask(&format!("label/{label}/values"), &[("match[]", matching)]);
        serde_json::from_value(values).expect("label values are strings")
    }

    /// The alerts that fire, by name, each with its host if it is about one.
    pub fn firing(&self) -> Vec<(String, String)> {
        let alerts = self.ask("alerts", &[]);
        let firing = alerts["alerts"].as_array().expect("a list").iter().filter(|alert| alert["state"] == "firing");
        let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or_default().to_owned();
        firing.map(|alert| (label(alert, "alertname"), label(alert, "name"))).collect()
    }
}

fn series(data: &Value) -> Vec<Series> {
    let point = |pair: &Value| Some((pair[0].as_f64()?, pair[1].as_str()?.parse().ok()?));
    let one = |result: &Value| Series {
        labels: result["metric"].clone(),
        values: result["values"].as_array().unwrap_or(&vec![result["value"].clone()]).iter().filter_map(point).collect(),
    };
    data["result"].as_array().expect("a vector or a matrix").iter().map(one).collect()
}

fn encoded(text: &str) -> String {
    let byte = |byte: u8| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(byte).collect()
}
