//! PURE. The series of single hosts, made of their objects.

use std::collections::BTreeMap;

use nixos_host_api::{NixOSHost, NixOSHostStatus, Outcome, Reason, condition};
use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::catalogue::{self, Series};

/// The families of these hosts.
pub(super) fn families<'h>(hosts: impl Iterator<Item = &'h NixOSHost>) -> Vec<MetricFamily> {
    let mut table = Table::default();
    let (none, mut counts) = (NixOSHostStatus::default(), BTreeMap::<(&str, &str), f64>::new());
    for host in hosts {
        let status = host.status.as_ref().unwrap_or(&none);
        table.host(host, status);
        for condition in &status.conditions {
            *counts.entry((&*condition.type_, &*condition.status)).or_default() += 1.0;
        }
    }
    for ((condition, status), count) in counts {
        table.put(&catalogue::HOSTS, [condition, status].map(str::to_owned).into(), count);
    }
    table.0.into_values().collect()
}

/// Metrics by name.
#[derive(Default)]
struct Table(BTreeMap<&'static str, MetricFamily>);

impl Table {
    fn host(&mut self, host: &NixOSHost, status: &NixOSHostStatus) {
        let of: [String; 2] = [host.metadata.namespace.clone().unwrap_or_default(), host.metadata.name.clone().unwrap_or_default()];
        let with = |rest: &[&str]| -> Vec<String> { of.iter().cloned().chain(rest.iter().map(|&label| label.to_owned())).collect() };
        let flag = |value: bool| f64::from(u8::from(value));

        let wanted = status.flake.as_ref().and_then(|flake| flake.attempted.as_ref()?.rev.as_deref()).unwrap_or_default();
        let system = status.system.as_ref().and_then(|system| system.short.as_deref()).unwrap_or_default();
        let wanted = wanted.get(..7).unwrap_or(wanted);
        self.put(&catalogue::INFO, with(&[status.revision.as_deref().unwrap_or_default(), system, wanted]), 1.0);
        if let Some(facts) = &status.facts {
            let facts = [&facts.nixos_version, &facts.kernel, &facts.architecture].map(|fact| fact.as_deref().unwrap_or_default());
            self.put(&catalogue::FACTS, with(&facts), 1.0);
        }
        for condition in &status.conditions {
            self.put(&catalogue::CONDITION, with(&[&condition.type_, &condition.status, &condition.reason]), 1.0);
        }
        self.put(&catalogue::SUSPENDED, of.to_vec(), flag(host.spec.suspend == Some(true)));
        for (series, kind) in [(&catalogue::UP_TO_DATE, condition::UP_TO_DATE), (&catalogue::REACHABLE, condition::REACHABLE)] {
            if let Some(value) = truth(status, kind) {
                self.put(series, of.to_vec(), flag(value));
            }
        }
        let out_of_date = status.conditions.iter().find(|found| found.type_ == condition::UP_TO_DATE && found.status == "False");
        if let Some(since) = out_of_date {
            self.put(&catalogue::OUT_OF_DATE_SINCE, of.to_vec(), seconds(since.last_transition_time.0));
        }
        if let Some(value) = reboot_pending(status) {
            self.put(&catalogue::REBOOT_PENDING, of.to_vec(), flag(value));
        }
        if let Some(last) = status.history.first() {
            self.put(&catalogue::ROLLED_BACK, of.to_vec(), flag(last.outcome != Outcome::Succeeded));
            let how = [&*format!("{:?}", last.outcome), &last.reason];
            self.put(&catalogue::LAST_LANDING, with(&how), seconds(last.time.0));
        }
    }

    fn put(&mut self, series: &'static Series, labels: Vec<String>, value: f64) {
        let family = self.0.entry(series.name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(series.name.to_owned());
            family.set_help(series.meaning.to_owned());
            family.set_field_type(MetricType::GAUGE);
            family
        });
        let pair = |(&name, value): (&&str, String)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            pair
        };
        let mut metric = Metric::from_label(series.labels.iter().zip(labels).map(pair).collect());
        let mut gauge = prometheus::proto::Gauge::default();
        gauge.set_value(value);
        metric.set_gauge(gauge);
        family.mut_metric().push(metric);
    }
}

/// Whether a condition is true; `None` while that is not known.
fn truth(status: &NixOSHostStatus, kind: &str) -> Option<bool> {
    let found = status.conditions.iter().find(|condition| condition.type_ == kind)?;
    (found.status != "Unknown").then_some(found.status == "True")
}

/// Another kernel, or mode Boot.
fn reboot_pending(status: &NixOSHostStatus) -> Option<bool> {
    let boots_next = status.conditions.iter().any(|condition| condition.reason == Reason::RebootPending.as_str());
    if boots_next { Some(true) } else { truth(status, condition::REBOOT_REQUIRED) }
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_second() as f64
}
