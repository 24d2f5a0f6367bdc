//! What is counted, as Prometheus reads it.
//!
//! Series of single hosts are made from a table at each scrape, so that those of a deleted host, or of a revision it no longer runs, go with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nixos_host_api::{NixOSHostStatus, condition};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// All series of the controller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    passes: IntCounterVec,
    pass_seconds: HistogramVec,
    stage_seconds: HistogramVec,
    copied: IntCounter,
    health_checks: IntCounterVec,
    evaluations: IntGauge,
    builds: IntGauge,
    processes: IntGauge,
    watch_age: IntGauge,
    undecodable: IntCounter,
    leader: IntGauge,
    braked: IntGauge,
    hosts: Hosts,
    last_watch: Arc<Mutex<Option<Instant>>>,
}

/// Seconds, from a look at a host to a long build.
const BUCKETS: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0];

impl Metrics {
    /// An empty set of series.
    pub fn new() -> prometheus::Result<Self> {
        let histogram =
            |name: &str, help: &str, labels: &[&str]| HistogramVec::new(HistogramOpts::new(name, help).buckets(BUCKETS.to_vec()), labels);
        let metrics = Self {
            registry: Registry::new(),
            passes: IntCounterVec::new(Opts::new("nixos_host_passes_total", "Passes over hosts, by how they ended."), &["outcome"])?,
            pass_seconds: histogram("nixos_host_pass_duration_seconds", "How long passes took, by how they ended.", &["outcome"])?,
            stage_seconds: histogram(
                "nixos_host_stage_duration_seconds",
                "How long stages took that did something, by how they ended.",
                &["stage", "outcome"],
            )?,
            copied: IntCounter::new("nixos_host_copied_bytes_total", "Bytes of NARs sent to hosts.")?,
            health_checks: IntCounterVec::new(
                Opts::new("nixos_host_health_checks_total", "Health checks of new systems, by how they ended: passed or failed."),
                &["outcome"],
            )?,
            evaluations: IntGauge::new("nixos_host_evaluations_in_flight", "Evaluations that run now.")?,
            builds: IntGauge::new("nixos_host_builds_in_flight", "Builds that run now.")?,
            processes: IntGauge::new("nixos_host_processes_in_flight", "Processes of nix, git and ssh that run now.")?,
            watch_age: IntGauge::new(
                "nixos_host_watch_age_seconds",
                "Seconds since the watch of NixOSHosts last gave a sign of life; -1 before the first.",
            )?,
            undecodable: IntCounter::new(
                "nixos_host_undecodable_total",
                "NixOSHosts seen that could not be decoded; they alone are not managed.",
            )?,
            leader: IntGauge::new("nixos_host_controller_leader", "1 if this replica leads, 0 while it stands by.")?,
            braked: IntGauge::new(
                "nixos_host_controller_braked",
                "1 while the brake of all hosts is set, or it is not known whether it is; 0 otherwise.",
            )?,
            hosts: Hosts::new()?,
            last_watch: Arc::default(),
        };
        let all: [Box<dyn Collector>; 14] = [
            Box::new(metrics.passes.clone()),
            Box::new(metrics.pass_seconds.clone()),
            Box::new(metrics.stage_seconds.clone()),
            Box::new(metrics.copied.clone()),
            Box::new(metrics.health_checks.clone()),
            Box::new(metrics.evaluations.clone()),
            Box::new(metrics.builds.clone()),
            Box::new(metrics.processes.clone()),
            Box::new(metrics.watch_age.clone()),
            Box::new(metrics.undecodable.clone()),
            Box::new(metrics.leader.clone()),
            Box::new(metrics.braked.clone()),
            Box::new(metrics.hosts.clone()),
            Box::new(build_info()?),
        ];
        all.into_iter().try_for_each(|collector| metrics.registry.register(collector))?;
        Ok(metrics)
    }

    /// A pass ended.
    pub fn pass(&self, outcome: &str, took: Duration) {
        self.passes.with_label_values(&[outcome]).inc();
        self.pass_seconds.with_label_values(&[outcome]).observe(took.as_secs_f64());
    }

    /// A stage ended that did something.
    pub fn stage(&self, stage: &str, outcome: &str, took: Duration) {
        self.stage_seconds.with_label_values(&[stage, outcome]).observe(took.as_secs_f64());
    }

    /// Bytes were sent to a host.
    pub fn copied(&self, bytes: u64) {
        self.copied.inc_by(bytes);
    }

    /// A health check ended.
    pub fn health_check(&self, outcome: &str) {
        self.health_checks.with_label_values(&[outcome]).inc();
    }

    /// An object came that could not be decoded.
    pub fn undecodable(&self) {
        self.undecodable.inc();
    }

    /// The watch gave a sign of life.
    pub fn watch_alive(&self, now: Instant) {
        *self.last_watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// How long ago the watch gave its last sign of life.
    pub fn watch_age(&self, now: Instant) -> Option<Duration> {
        let last = *self.last_watch.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| now.saturating_duration_since(last))
    }

    /// What runs at the moment: evaluations, builds, processes.
    pub fn in_flight(&self, evaluations: u64, builds: u64, processes: u64) {
        for (gauge, value) in [(&self.evaluations, evaluations), (&self.builds, builds), (&self.processes, processes)] {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// Whether this replica leads, and whether the brake of all hosts is set.
    pub fn governed(&self, leads: bool, braked: bool) {
        self.leader.set(leads.into());
        self.braked.set(braked.into());
    }

    /// A host has this status now.
    pub fn host(&self, namespace: &str, name: &str, status: &NixOSHostStatus) {
        self.hosts.put(namespace, name, status);
    }

    /// A host is no longer there.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.hosts.forget(namespace, name);
    }

    /// Another replica looks after the hosts now.
    pub fn forget_all(&self) {
        self.hosts.table.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The text that Prometheus scrapes.
    pub fn render(&self, now: Instant) -> prometheus::Result<String> {
        let age = self.watch_age(now).map_or(-1, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
        self.watch_age.set(age);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn build_info() -> prometheus::Result<IntGauge> {
    let info = IntGauge::with_opts(
        Opts::new("nixos_host_build_info", "The version of the controller.").const_label("version", env!("CARGO_PKG_VERSION")),
    )?;
    info.set(1);
    Ok(info)
}

/// What is told of each host.
#[derive(Debug, Clone, Default)]
struct Host {
    up_to_date: Option<bool>,
    reachable: Option<bool>,
    revision: String,
    system: String,
    conditions: Vec<(String, String)>,
}

type Name = (String, String);

/// The table of hosts.
#[derive(Debug, Clone)]
struct Hosts {
    table: Arc<Mutex<BTreeMap<Name, Host>>>,
    descriptions: Vec<Desc>,
}

const UP_TO_DATE: (&str, &str) =
    ("nixos_host_up_to_date", "1 if the host runs the desired system, 0 if not; absent while that cannot be known.");
const REACHABLE: (&str, &str) = ("nixos_host_reachable", "1 if the host answered at the last look, 0 if not.");
const INFO: (&str, &str) = ("nixos_host_info", "1; the labels say which revision and which system the host runs.");
const BY_CONDITION: (&str, &str) = ("nixos_hosts", "Hosts by condition and its status.");

impl Hosts {
    fn new() -> prometheus::Result<Self> {
        let description = |(name, help): (&str, &str), labels: &[&str]| {
            Desc::new(name.into(), help.into(), labels.iter().map(|label| (*label).to_owned()).collect(), std::collections::HashMap::new())
        };
        let descriptions = vec![
            description(UP_TO_DATE, &["namespace", "name"])?,
            description(REACHABLE, &["namespace", "name"])?,
            description(INFO, &["namespace", "name", "revision", "system"])?,
            description(BY_CONDITION, &["condition", "status"])?,
        ];
        Ok(Self { table: Arc::default(), descriptions })
    }

    fn put(&self, namespace: &str, name: &str, status: &NixOSHostStatus) {
        let truth = |kind: &str| {
            let found = status.conditions.iter().find(|condition| condition.type_ == kind)?;
            (found.status != "Unknown").then_some(found.status == "True")
        };
        let host = Host {
            up_to_date: truth(condition::UP_TO_DATE),
            reachable: truth(condition::REACHABLE),
            revision: status.revision.clone().unwrap_or_default(),
            system: status.system.as_ref().and_then(|system| system.short.clone()).unwrap_or_default(),
            conditions: status.conditions.iter().map(|condition| (condition.type_.clone(), condition.status.clone())).collect(),
        };
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert((namespace.to_owned(), name.to_owned()), host);
    }

    fn forget(&self, namespace: &str, name: &str) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).remove(&(namespace.to_owned(), name.to_owned()));
    }
}

impl Collector for Hosts {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let mut by_condition = BTreeMap::<&(String, String), f64>::new();
        for condition in table.values().flat_map(|host| &host.conditions) {
            *by_condition.entry(condition).or_default() += 1.0;
        }
        let flag = |value: bool| if value { 1.0 } else { 0.0 };
        let of = |name: &Name| vec![("namespace", name.0.clone()), ("name", name.1.clone())];
        let flags = |pick: fn(&Host) -> Option<bool>| {
            table.iter().filter_map(|(name, host)| Some(gauge(of(name), flag(pick(host)?)))).collect::<Vec<_>>()
        };
        let info = table.iter().map(|(name, host)| {
            let mut labels = of(name);
            labels.extend([("revision", host.revision.clone()), ("system", host.system.clone())]);
            gauge(labels, 1.0)
        });
        let counts =
            by_condition.iter().map(|((kind, status), count)| gauge(vec![("condition", kind.clone()), ("status", status.clone())], *count));
        let families = [
            family(UP_TO_DATE, flags(|host| host.up_to_date)),
            family(REACHABLE, flags(|host| host.reachable)),
            family(INFO, info.collect()),
            family(BY_CONDITION, counts.collect()),
        ];
        families.into_iter().filter(|family| !family.get_metric().is_empty()).collect()
    }
}

fn gauge(labels: Vec<(&str, String)>, value: f64) -> Metric {
    let pair = |(name, value): (&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value);
        pair
    };
    let mut gauge = prometheus::proto::Gauge::default();
    gauge.set_value(value);
    let mut metric = Metric::from_label(labels.into_iter().map(pair).collect());
    metric.set_gauge(gauge);
    metric
}

fn family((name, help): (&str, &str), metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(MetricType::GAUGE);
    family.set_metric(metrics);
    family
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

    fn status(revision: &str, up_to_date: &str) -> NixOSHostStatus {
        let condition = Condition {
            type_: condition::UP_TO_DATE.into(),
            status: up_to_date.into(),
            reason: "Succeeded".into(),
            message: String::new(),
            observed_generation: None,
            last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
        };
        NixOSHostStatus { revision: Some(revision.into()), conditions: vec![condition], ..NixOSHostStatus::default() }
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_host_has_one_info_series_and_none_when_it_is_gone() {
        let metrics = Metrics::new().unwrap();
        metrics.host("infra", "web", &status("main@1", "False"));
        metrics.host("infra", "web", &status("main@2", "True"));
        let text = metrics.render(now()).unwrap();
        assert!(text.contains(r#"nixos_host_info{namespace="infra",name="web",revision="main@2",system=""} 1"#), "{text}");
        assert!(text.contains(r#"nixos_host_up_to_date{namespace="infra",name="web"} 1"#) && !text.contains("main@1"), "{text}");
        assert!(text.contains(r#"nixos_hosts{condition="UpToDate",status="True"} 1"#), "{text}");
        metrics.forget("infra", "web");
        assert!(!metrics.render(now()).unwrap().contains("web"));
    }

    #[test]
    fn what_cannot_be_known_has_no_series() {
        let metrics = Metrics::new().unwrap();
        metrics.host("infra", "web", &status("main@1", "Unknown"));
        assert!(!metrics.render(now()).unwrap().contains("nixos_host_up_to_date{"));
    }
}
