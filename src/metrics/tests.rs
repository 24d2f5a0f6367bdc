use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::catalogue::{ALL, Kind};
use super::*;
use crate::clock::Clock;

#[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::needless_pass_by_value, reason = "json!(…) at the place of use reads better than &json!(…)")]
fn host(status: Value) -> NixOSHost {
    serde_json::from_value(json!({
        "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost",
        "metadata": {"name": "web", "namespace": "infra"},
        "spec": {"flake": {"url": "github:a/b"}, "connection": {"addresses": ["h"], "sshKeyRef": {"name": "k"}}},
        "status": status,
    }))
    .unwrap()
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": "1970-01-01T00:01:40Z"})
}

/// A host of which everything is known.
fn known() -> NixOSHost {
    host(json!({
        "revision": "main@1234567",
        "flake": {"attempted": {"url": "u", "rev": "89abcdef0123", "narHash": "h"}},
        "system": {"short": "abc"},
        "facts": {"nixosVersion": "26.05", "kernel": "6.12", "architecture": "x86_64-linux"},
        "conditions": [
            condition("Ready", "False", "ActivationFailed"), condition("UpToDate", "False", "OutOfDate"),
            condition("Reachable", "True", "Answered"), condition("RebootRequired", "True", "RebootRequired"),
        ],
        "history": [{
            "system": "s", "revision": "r", "mode": "Switch", "outcome": "Rejected", "reason": "ActivationFailed",
            "time": "1970-01-01T00:03:20Z",
        }],
    }))
}

fn text(metrics: &Metrics, hosts: &[NixOSHost]) -> String {
    metrics.render(now(), hosts.len(), hosts.iter()).unwrap()
}

#[test]
fn a_host_is_told_as_its_status_says() {
    let text = text(&Metrics::new().unwrap(), &[known()]);
    for line in [
        r#"nixos_host_info{namespace="infra",name="web",revision="main@1234567",system="abc",wanted="89abcde"} 1"#,
        r#"nixos_host_facts_info{namespace="infra",name="web",nixos_version="26.05",kernel="6.12",architecture="x86_64-linux"} 1"#,
        r#"nixos_host_condition{namespace="infra",name="web",condition="Ready",status="False",reason="ActivationFailed"} 1"#,
        r#"nixos_hosts{condition="UpToDate",status="False"} 1"#,
        r#"nixos_host_up_to_date{namespace="infra",name="web"} 0"#,
        r#"nixos_host_out_of_date_since_timestamp_seconds{namespace="infra",name="web"} 100"#,
        r#"nixos_host_reachable{namespace="infra",name="web"} 1"#,
        r#"nixos_host_suspended{namespace="infra",name="web"} 0"#,
        r#"nixos_host_reboot_pending{namespace="infra",name="web"} 1"#,
        r#"nixos_host_rolled_back{namespace="infra",name="web"} 1"#,
        r#"nixos_host_last_landing_timestamp_seconds{namespace="infra",name="web",outcome="Rejected",reason="ActivationFailed"} 200"#,
        r#"controller_runtime_max_concurrent_reconciles{controller="nixoshost"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

#[test]
fn a_host_that_is_gone_has_no_series() {
    let metrics = Metrics::new().unwrap();
    assert!(text(&metrics, &[known()]).contains("web"));
    assert!(!text(&metrics, &[]).contains("web"));
}

#[test]
fn what_cannot_be_known_has_no_series() {
    let unknown = host(
        json!({"conditions": [condition("UpToDate", "Unknown", "NotObserved"), condition("RebootRequired", "Unknown", "NotObserved")]}),
    );
    let text = text(&Metrics::new().unwrap(), &[unknown]);
    for name in ["nixos_host_up_to_date", "nixos_host_out_of_date", "nixos_host_reboot_pending", "nixos_host_rolled_back"] {
        assert!(!text.contains(name), "{name}: {text}");
    }
}

#[test]
fn everything_in_the_catalogue_is_exported_as_it_says_and_nothing_else_is() {
    let metrics = Metrics::new().unwrap();
    metrics.pass(Ended::Panicked, Duration::ZERO);
    metrics.landing(None, Duration::ZERO);
    metrics.stage("Build", "succeeded", Duration::ZERO);
    metrics.request("GET", None, Duration::ZERO);
    metrics.slots("looks", 1);
    metrics.governed(true, Some("lease"), false);
    metrics.room("store", Some(Room { free: 1, size: 2 }));
    metrics.usage(Usage { cpu: 1.0, memory: 1, files: 1, started: 1.0 });
    metrics.queues.at(now());
    let families = [hosts::families([known()].iter()), metrics.registry.gather()].concat();
    let mut exported = BTreeMap::new();
    for family in &families {
        let kind = match family.get_field_type() {
            prometheus::proto::MetricType::COUNTER => Kind::Counter,
            prometheus::proto::MetricType::GAUGE => Kind::Gauge,
            _ => Kind::Histogram,
        };
        for metric in family.get_metric() {
            let labels: BTreeSet<_> = metric.get_label().iter().map(|label| label.name().to_owned()).collect();
            exported.insert(family.name().to_owned(), (format!("{kind:?}"), labels));
        }
    }
    let said = ALL.iter().map(|series| {
        (series.name.to_owned(), (format!("{:?}", series.kind), series.labels.iter().map(|&label| label.to_owned()).collect()))
    });
    assert_eq!(exported.into_iter().collect::<Vec<_>>(), said.collect::<BTreeMap<_, _>>().into_iter().collect::<Vec<_>>());
}

#[test]
fn who_waits_and_who_works_is_counted_until_they_leave() {
    let metrics = Metrics::new().unwrap();
    let begun = now();
    let clock = Clock::new(move || begun, || jiff::Timestamp::UNIX_EPOCH);
    let (first, second) = (metrics.queues.looks.wait(&clock), metrics.queues.looks.wait(&clock));
    let working = first.work();
    let at = |text: &str| metrics.render(begun + Duration::from_secs(3), 0, std::iter::empty()).unwrap().lines().any(|line| line == text);
    assert!(at(r#"workqueue_depth{name="looks"} 1"#) && at(r#"workqueue_longest_running_processor_seconds{name="looks"} 3"#));
    assert!(at(r#"workqueue_adds_total{name="looks"} 2"#) && at(r#"workqueue_work_duration_seconds_count{name="looks"} 0"#));
    drop((second, working));
    assert!(at(r#"workqueue_depth{name="looks"} 0"#) && at(r#"workqueue_unfinished_work_seconds{name="looks"} 0"#));
    assert!(
        at(r#"workqueue_queue_duration_seconds_count{name="looks"} 1"#) && at(r#"workqueue_work_duration_seconds_count{name="looks"} 1"#)
    );
}
