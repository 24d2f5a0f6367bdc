//! What the chart's dashboards show: each variable and each query, asked as Grafana asks.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use nixos_host_e2e::prometheus::{Prometheus, Series, chart_texts};
use nixos_host_e2e::until;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// Seconds that are shown.
const RANGE: u64 = 300;

/// Colours of thresholds and mappings with which nothing is wrong.
const CALM: [&str; 2] = ["green", "blue"];

/// The dashboards, with values for their variables.
pub(crate) struct Shown<'p> {
    prometheus: &'p Prometheus,
    chosen: [(&'static str, String); 2],
    dashboards: Vec<(String, Value)>,
}

/// A panel that shows data, with what its variables stand for.
struct Panel {
    dashboard: String,
    model: Value,
    variables: Vec<(String, String)>,
}

impl<'p> Shown<'p> {
    /// One host is chosen; of all other variables, everything.
    pub(crate) fn new(prometheus: &'p Prometheus, namespace: &str, host: &str) -> Self {
        let dashboards = chart_texts("dashboards").into_iter().map(|(name, text)| (name, serde_json::from_str(&text).unwrap()));
        Self { prometheus, chosen: [("namespace", namespace.to_owned()), ("host", host.to_owned())], dashboards: dashboards.collect() }
    }

    /// The panels; every variable offers what is chosen, or at least something.
    fn panels(&self) -> Vec<Panel> {
        let mut panels = Vec::new();
        for (name, dashboard) in &self.dashboards {
            let mut variables = vec![("__rate_interval".to_owned(), "2m".to_owned()), ("__range".to_owned(), format!("{RANGE}s"))];
            for variable in list(&dashboard["templating"]["list"]).iter().filter(|variable| variable["type"] == "query") {
                let query = filled(variable["query"]["query"].as_str().unwrap(), &variables);
                let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).unwrap();
                let (matching, label) = inside.rsplit_once(',').unwrap();
                let offered = self.prometheus.label_values(label.trim(), matching);
                let own = variable["name"].as_str().unwrap().to_owned();
                let chosen = self.chosen.iter().find(|(name, _)| *name == own).map(|(_, value)| value.clone());
                assert!(!offered.is_empty() && chosen.iter().all(|chosen| offered.contains(chosen)), "{name}: ${own} offers {offered:?}");
                let all = variable["includeAll"] == true;
                variables.push((own, if all { variable["allValue"].as_str().unwrap().to_owned() } else { chosen.unwrap() }));
            }
            for panel in list(&dashboard["panels"]).into_iter().filter(|panel| panel["targets"].is_array()) {
                panels.push(Panel { dashboard: name.clone(), model: panel, variables: variables.clone() });
            }
        }
        panels
    }

    /// What each query of a panel gives.
    fn answers(&self, panel: &Panel) -> Vec<(Value, Vec<Series>)> {
        let ask = |target: &Value| {
            let query = filled(target["expr"].as_str().unwrap(), &panel.variables);
            if target["instant"] == true { self.prometheus.query(&query) } else { self.prometheus.range(&query, RANGE) }
        };
        list(&panel.model["targets"]).into_iter().map(|target| (target.clone(), ask(&target))).collect()
    }

    /// Every query of every panel gives a value that is a number; but those of panels with these titles.
    pub(crate) async fn all_have_data_but(&self, empty: &[&str]) {
        for panel in self.panels().iter().filter(|panel| !empty.contains(&panel.title())) {
            until(&format!("data in {}: {}", panel.dashboard, panel.title()), SOON, || async {
                let has = |series: &Vec<Series>| series.iter().flat_map(|series| &series.values).any(|(_, value)| value.is_finite());
                let lacking: Vec<_> = self.answers(panel).into_iter().filter(|(_, series)| !has(series)).collect();
                if lacking.is_empty() { Ok(()) } else { Err(format!("{lacking:?}")) }
            })
            .await;
        }
    }

    /// The titles of the panels of single values that are in an alarming colour.
    fn alarming(&self) -> BTreeSet<String> {
        let panels = self.panels();
        // How full the disk of the machine is that runs this test is no matter of the test
        let stats = panels.iter().filter(|panel| panel.model["type"] == "stat" && panel.title() != "Store free");
        let alarming = stats.filter(|panel| {
            let values = self.answers(panel).into_iter().flat_map(|(_, series)| series).filter_map(|series| Some(series.values.last()?.1));
            values.map(|value| colour(&panel.model["fieldConfig"]["defaults"], value)).any(|colour| !CALM.contains(&&*colour))
        });
        alarming.map(|panel| panel.title().to_owned()).collect()
    }

    /// No single value is in an alarming colour.
    pub(crate) async fn nothing_is_alarming(&self) {
        self.alarms(&[]).await;
    }

    /// Of the single values of the fleet's and the controller's dashboards, exactly these are in an alarming colour.
    pub(crate) async fn alarms(&self, titles: &[&str]) {
        let expected: BTreeSet<String> = titles.iter().map(|&title| title.to_owned()).collect();
        until(&format!("{titles:?} in an alarming colour"), SOON, || async {
            let mut found = self.alarming();
            if !expected.is_empty() {
                // With a broken host chosen and few hosts, these follow
                found.retain(|title| !["Ready", "Up to date"].contains(&&**title));
            }
            if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// Writes what all panels show to the directory `DASHBOARD_DATA`, for docs/dashboards/draw.
    pub(crate) fn save_if_asked(&self) {
        let Some(directory) = std::env::var_os("DASHBOARD_DATA").map(PathBuf::from) else { return };
        let target = |(target, series): (Value, Vec<Series>)| {
            let series: Vec<Value> = series.iter().map(|series| json!({ "labels": series.labels, "values": series.values })).collect();
            json!({ "refId": target["refId"], "series": series })
        };
        for (name, _) in &self.dashboards {
            let panels = self.panels().into_iter().filter(|panel| panel.dashboard == *name);
            let panels: Vec<Value> = panels
                .map(
                    |panel| json!({ "id": panel.model["id"], "targets": self.answers(&panel).into_iter().map(target).collect::<Vec<_>>() }),
                )
                .collect();
            std::fs::write(directory.join(name), serde_json::to_string(&panels).unwrap()).unwrap();
        }
    }
}

impl Panel {
    fn title(&self) -> &str {
        self.model["title"].as_str().unwrap()
    }
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().unwrap().clone()
}

/// A query with its variables filled in.
fn filled(query: &str, variables: &[(String, String)]) -> String {
    let query = variables.iter().fold(query.to_owned(), |query, (name, value)| query.replace(&format!("${name}"), value));
    assert!(!query.contains('$'), "a variable is not known: {query}");
    query
}

/// The colour that Grafana gives a value: of the mapping that names it, else of the last threshold that it reaches.
fn colour(defaults: &Value, value: f64) -> String {
    let mapped =
        defaults["mappings"].as_array().unwrap().iter().find_map(|mapping| mapping["options"][value.to_string()]["color"].as_str());
    let steps = list(&defaults["thresholds"]["steps"]);
    let reached = steps.iter().rev().find(|step| step["value"].as_f64().is_none_or(|from| value >= from));
    mapped.or_else(|| reached?["color"].as_str()).unwrap().to_owned()
}
