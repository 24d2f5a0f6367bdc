//! Every series that the controller exports, once: the code makes them from here, and so is docs/metrics.md.

/// What Prometheus calls a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; begins at 0 with the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, a sum and a count.
    Histogram,
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Series {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says; one sentence, shown as help too.
    pub meaning: &'static str,
    /// How many there can be.
    pub cost: &'static str,
}

macro_rules! series {
    ($($constant:ident $kind:ident $name:literal [$($label:literal),*] $meaning:literal $cost:literal)*) => {
        $(#[doc = $meaning]
        pub const $constant: Series = Series { name: $name, kind: Kind::$kind, labels: &[$($label),*], meaning: $meaning, cost: $cost };)*

        /// All of them, in the order of docs/metrics.md.
        pub const ALL: &[Series] = &[$($constant),*];
    };
}

series! {
    INFO Gauge "nixos_host_info" ["namespace", "name", "revision", "system", "wanted"]
        "1; which revision and which system the host runs, and the revision (7 digits) that was last set out to be landed." "1 per host"
    FACTS Gauge "nixos_host_facts_info" ["namespace", "name", "nixos_version", "kernel", "architecture"]
        "1; what the host said of itself when it was last reached." "1 per host that was reached once"
    CONDITION Gauge "nixos_host_condition" ["namespace", "name", "condition", "status", "reason"]
        "1 for each condition of the host, with its present status and reason." "at most 7 per host"
    HOSTS Gauge "nixos_hosts" ["condition", "status"]
        "Hosts by condition and its status." "at most 21"
    UP_TO_DATE Gauge "nixos_host_up_to_date" ["namespace", "name"]
        "1 if the host runs the desired system, 0 if not; absent while that cannot be known." "1 per host"
    OUT_OF_DATE_SINCE Gauge "nixos_host_out_of_date_since_timestamp_seconds" ["namespace", "name"]
        "Since when, in seconds since 1970, the host has not run what is wanted; absent while it does or that cannot be known." "1 per host"
    REACHABLE Gauge "nixos_host_reachable" ["namespace", "name"]
        "1 if the host answered at the last look, 0 if not; absent before the first look and while nothing is done for it." "1 per host"
    SUSPENDED Gauge "nixos_host_suspended" ["namespace", "name"]
        "1 if spec.suspend is set, 0 if not." "1 per host"
    REBOOT_PENDING Gauge "nixos_host_reboot_pending" ["namespace", "name"]
        "1 if a reboot is needed for the host to run all of its system, 0 if not; absent while that cannot be known." "1 per host"
    ROLLED_BACK Gauge "nixos_host_rolled_back" ["namespace", "name"]
        "1 if the last landing on the host was not committed, 0 if it was; absent before the first one." "1 per host"
    LAST_LANDING Gauge "nixos_host_last_landing_timestamp_seconds" ["namespace", "name", "outcome", "reason"]
        "When the last landing on the host ended, in seconds since 1970, and how." "1 per host"
    LANDINGS Counter "nixos_host_landings_total" ["outcome", "reason"]
        "Landings that ended: outcome Succeeded, Failed (tried again) or Rejected (held), reason as in the conditions." "at most 1 per reason"
    LANDING_SECONDS Histogram "nixos_host_landing_duration_seconds" ["outcome"]
        "From the beginning of the pass that saw a landing end to that end: resolving, evaluating, building and copying included." "3 histograms"
    STAGE_SECONDS Histogram "nixos_host_stage_duration_seconds" ["stage", "outcome"]
        "How long stages took that did something, by how they ended: succeeded or failed." "at most 20 histograms"
    HEALTH_CHECKS Counter "nixos_host_health_checks_total" ["outcome"]
        "Health checks of new systems, by how they ended: passed or failed." "2"
    COPIED Counter "nixos_host_copied_bytes_total" []
        "Bytes of NARs sent to hosts." "1"
    PASSES Counter "nixos_host_passes_total" ["outcome"]
        "Passes over hosts, by how they ended: ended, kubernetes_error or panicked." "3"
    PASS_SECONDS Histogram "nixos_host_pass_duration_seconds" ["outcome"]
        "How long passes took, by how they ended." "3 histograms"
    EVALUATIONS Gauge "nixos_host_evaluations_in_flight" []
        "Evaluations that run now." "1"
    BUILDS Gauge "nixos_host_builds_in_flight" []
        "Builds that run now." "1"
    PROCESSES Gauge "nixos_host_processes_in_flight" []
        "Processes of nix, git and ssh that run now." "1"
    SLOTS Gauge "nixos_host_slots" ["name"]
        "How many looks, copies or landings there may be at a time; who waits for a slot is in workqueue_depth." "3"
    WATCH_AGE Gauge "nixos_host_watch_age_seconds" []
        "Seconds since the watch of NixOSHosts last gave a sign of life; -1 before the first. A healthy one stays below 200." "1"
    UNDECODABLE Counter "nixos_host_undecodable_total" []
        "NixOSHosts seen that could not be decoded; they alone are not managed." "1"
    LEADER Gauge "nixos_host_controller_leader" []
        "1 if this replica leads, 0 while it stands by." "1"
    BRAKED Gauge "nixos_host_controller_braked" []
        "1 while the brake of all hosts is set, or it is not known whether it is; 0 otherwise." "1"
    DISK_FREE Gauge "nixos_host_controller_disk_free_bytes" ["directory"]
        "Free bytes of the file systems of the controller's Nix store (store) and of --data-dir (data)." "2"
    DISK_SIZE Gauge "nixos_host_controller_disk_size_bytes" ["directory"]
        "Sizes of the same file systems." "2"
    BUILD_INFO Gauge "nixos_host_build_info" ["version"]
        "1; the version of the controller." "1"
    RECONCILES Counter "controller_runtime_reconcile_total" ["controller", "result"]
        "Passes by what follows: success (nothing), requeue (at once), requeue_after (after the interval or a back-off) or error." "4"
    RECONCILE_ERRORS Counter "controller_runtime_reconcile_errors_total" ["controller"]
        "Passes that could not speak to Kubernetes, or panicked. What is wrong with a host is no error of a pass: see nixos_host_condition." "1"
    RECONCILE_PANICS Counter "controller_runtime_reconcile_panics_total" ["controller"]
        "Passes that panicked." "1"
    RECONCILE_SECONDS Histogram "controller_runtime_reconcile_time_seconds" ["controller"]
        "How long passes took." "1 histogram"
    ACTIVE_WORKERS Gauge "controller_runtime_active_workers" ["controller"]
        "Passes that run now." "1"
    WORKERS Gauge "controller_runtime_max_concurrent_reconciles" ["controller"]
        "Passes that could run at a time: each host has a worker of its own, so this is the number of hosts." "1"
    QUEUE_DEPTH Gauge "workqueue_depth" ["name"]
        "Passes that wait for a slot to look, copy or land; nixoshost, passes themselves, never wait." "4"
    QUEUE_ADDS Counter "workqueue_adds_total" ["name"]
        "Passes begun (nixoshost), and slots asked for." "4"
    QUEUE_SECONDS Histogram "workqueue_queue_duration_seconds" ["name"]
        "How long slots were waited for." "4 histograms"
    QUEUE_WORK_SECONDS Histogram "workqueue_work_duration_seconds" ["name"]
        "How long slots were held." "4 histograms"
    QUEUE_UNFINISHED Gauge "workqueue_unfinished_work_seconds" ["name"]
        "For how long those slots have been held together that are held now." "4"
    QUEUE_LONGEST Gauge "workqueue_longest_running_processor_seconds" ["name"]
        "For how long the slot has been held that is held longest." "4"
    QUEUE_RETRIES Counter "workqueue_retries_total" ["name"]
        "Passes that could not speak to Kubernetes, or panicked, and were begun again after a back-off." "1"
    REQUESTS Counter "rest_client_requests_total" ["code", "method"]
        "Requests to the API server by status code; <error> for those without an answer." "one per code and method, some 20"
    REQUEST_SECONDS Histogram "rest_client_request_duration_seconds" ["method"]
        "From a request to the head of its answer; a watch lasts no longer by that." "4 histograms"
    LEADERSHIP Gauge "leader_election_master_status" ["name"]
        "1 if this replica holds the Lease of this name, 0 if not; absent without --leader-elect." "1"
    CPU_SECONDS Counter "process_cpu_seconds_total" []
        "Processor time of the controller itself, without nix and git." "1"
    MEMORY Gauge "process_resident_memory_bytes" []
        "Resident memory of the controller itself, without nix and git." "1"
    OPEN_FILES Gauge "process_open_fds" []
        "Open file descriptors." "1"
    STARTED Gauge "process_start_time_seconds" []
        "When the controller started, in seconds since 1970." "1"
}

/// docs/metrics.md.
pub fn page() -> String {
    let row = |series: &Series| {
        let labels: Vec<String> = series.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{:?}", series.kind).to_lowercase();
        format!("| `{}` | {kind} | {} | {} | {} |\n", series.name, labels.join(" "), series.meaning, series.cost)
    };
    let table: String = ALL.iter().map(row).collect();
    format!("{HEAD}{table}{FOOT}")
}

const HEAD: &str = "<!-- Generated from src/metrics/catalogue.rs by `UPDATE=1 cargo test -p nixos-host-controller --lib metrics` -->
# Metrics

`/metrics` on `--metrics-addr` (port 8080), in Prometheus' text format. [Alerts and recording rules](../charts/nixos-host-controller/files/rules) and
[dashboards](dashboards.md) are made of these.

- **Hosts** have at most 16 series each, all gauges, made at each scrape from the objects that the controller watches: what `kubectl get nixoshosts` shows
  and these never differ by more than a watch event, and the series of a deleted host go with it. A thousand hosts are 16,000 lines, made in 25 ms (bench.md).
- **Only the replica that leads** exports series of hosts; one that stands by has `nixos_host_controller_leader 0`. So `sum` counts no host twice.
- **Labels are bounded**: namespaces, names and revisions by the number of hosts, conditions and reasons by a closed list ([troubleshooting.md](troubleshooting.md)), the rest as
  the table says. No label holds a message, an address, a key or anything from a Secret.
- Generic series have the names and meanings of controller-runtime and client-go, so that existing dashboards for operators work. What could not be true here
  is absent: there are no webhooks, and no client-side rate limiter.
- Histograms are classic, with buckets from 50 ms to an hour for work, and from 5 ms to 15 s for requests to the API server.
- Counters of single reasons (`nixos_host_landings_total`) appear with their first event, which `increase()` does not see; alerts on single hosts use gauges.

| name | type | labels | meaning | series |
|---|---|---|---|---|
";

const FOOT: &str = "
`namespace` and `name` are those of the NixOSHost: scrape with `honorLabels: true`, as the chart's monitors do, or they become `exported_namespace` and
`exported_name` behind the scraped pod's own `namespace`.
";

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_page_is_what_the_code_exports() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, page()).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == page(), "docs/metrics.md is stale: run UPDATE=1 cargo test -p nixos-host-controller --lib metrics");
    }

    #[test]
    fn names_follow_the_conventions() {
        let names: HashSet<&str> = ALL.iter().map(|series| series.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is there twice");
        for Series { name, kind, .. } in ALL {
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}: counters and only they end in _total");
            assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name} names its unit");
        }
    }
}
