//! What is counted, as Prometheus reads it.
//!
//! Names, labels and meanings are in [`catalogue`], once. Series of single hosts are made at each scrape from the objects themselves, so that those of
//! a deleted host, or of a revision it no longer runs, go with it.

pub mod catalogue;
mod hosts;
pub mod queue;
mod register;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nixos_host_api::{NixOSHost, Outcome, Reason};
use prometheus::{Gauge, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::world::own::{Room, Usage};
use queue::Queues;
use register::{counter, counters, gauge, gauges, histograms, request_seconds};

/// All series of the controller. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Who waits, and who works.
    pub queues: Queues,
    passes: IntCounterVec,
    pass_seconds: HistogramVec,
    reconciles: IntCounterVec,
    reconcile_errors: IntCounter,
    reconcile_panics: IntCounter,
    reconcile_seconds: HistogramVec,
    active_workers: IntGauge,
    workers: IntGauge,
    retries: IntCounter,
    landings: IntCounterVec,
    landing_seconds: HistogramVec,
    stage_seconds: HistogramVec,
    copied: IntCounter,
    health_checks: IntCounterVec,
    evaluations: IntGauge,
    builds: IntGauge,
    processes: IntGauge,
    slots: IntGaugeVec,
    watch_age: IntGauge,
    undecodable: IntCounter,
    leader: IntGauge,
    leadership: IntGaugeVec,
    braked: IntGauge,
    disk_free: IntGaugeVec,
    disk_size: IntGaugeVec,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    cpu: prometheus::Counter,
    memory: IntGauge,
    files: IntGauge,
    started: Gauge,
    last_watch: Arc<Mutex<Option<Instant>>>,
    last_turn: Arc<Mutex<Option<Instant>>>,
}

/// The `controller` of controller-runtime's series.
const CONTROLLER: &str = "nixoshost";

/// What came of a pass, and when the next one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Nothing is to be done.
    Done,
    /// Another one at once.
    Requeue,
    /// Another one after a while.
    RequeueAfter,
    /// Kubernetes could not be spoken to.
    KubernetesError,
    /// It panicked.
    Panicked,
}

impl Metrics {
    /// An empty set of series.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let all = &registry;
        let metrics = Self {
            queues: Queues::new(all)?,
            passes: counters(all, &catalogue::PASSES)?,
            pass_seconds: histograms(all, &catalogue::PASS_SECONDS)?,
            reconciles: counters(all, &catalogue::RECONCILES)?,
            reconcile_errors: counters(all, &catalogue::RECONCILE_ERRORS)?.with_label_values(&[CONTROLLER]),
            reconcile_panics: counters(all, &catalogue::RECONCILE_PANICS)?.with_label_values(&[CONTROLLER]),
            reconcile_seconds: histograms(all, &catalogue::RECONCILE_SECONDS)?,
            active_workers: gauges(all, &catalogue::ACTIVE_WORKERS)?.with_label_values(&[CONTROLLER]),
            workers: gauges(all, &catalogue::WORKERS)?.with_label_values(&[CONTROLLER]),
            retries: counters(all, &catalogue::QUEUE_RETRIES)?.with_label_values(&[CONTROLLER]),
            landings: counters(all, &catalogue::LANDINGS)?,
            landing_seconds: histograms(all, &catalogue::LANDING_SECONDS)?,
            stage_seconds: histograms(all, &catalogue::STAGE_SECONDS)?,
            copied: counter(all, &catalogue::COPIED)?,
            health_checks: counters(all, &catalogue::HEALTH_CHECKS)?,
            evaluations: gauge(all, &catalogue::EVALUATIONS)?,
            builds: gauge(all, &catalogue::BUILDS)?,
            processes: gauge(all, &catalogue::PROCESSES)?,
            slots: gauges(all, &catalogue::SLOTS)?,
            watch_age: gauge(all, &catalogue::WATCH_AGE)?,
            undecodable: counter(all, &catalogue::UNDECODABLE)?,
            leader: gauge(all, &catalogue::LEADER)?,
            leadership: gauges(all, &catalogue::LEADERSHIP)?,
            braked: gauge(all, &catalogue::BRAKED)?,
            disk_free: gauges(all, &catalogue::DISK_FREE)?,
            disk_size: gauges(all, &catalogue::DISK_SIZE)?,
            requests: counters(all, &catalogue::REQUESTS)?,
            request_seconds: request_seconds(all)?,
            cpu: counter(all, &catalogue::CPU_SECONDS)?,
            memory: gauge(all, &catalogue::MEMORY)?,
            files: gauge(all, &catalogue::OPEN_FILES)?,
            started: gauge(all, &catalogue::STARTED)?,
            last_watch: Arc::default(),
            last_turn: Arc::default(),
            registry,
        };
        metrics.begin()?;
        Ok(metrics)
    }

    /// What is there from the start: a series that appears with its first event hides that event from `increase()`.
    fn begin(&self) -> prometheus::Result<()> {
        let info: IntGaugeVec = gauges(&self.registry, &catalogue::BUILD_INFO)?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        self.landings.with_label_values(&["Succeeded", Reason::Succeeded.as_str()]);
        for outcome in [Outcome::Succeeded, Outcome::Failed, Outcome::Rejected] {
            self.landing_seconds.with_label_values(&[&*format!("{outcome:?}")]);
        }
        for outcome in ["ended", "kubernetes_error", "panicked"] {
            self.passes.with_label_values(&[outcome]);
        }
        for result in ["success", "requeue", "requeue_after", "error"] {
            self.reconciles.with_label_values(&[CONTROLLER, result]);
        }
        for outcome in ["passed", "failed"] {
            self.health_checks.with_label_values(&[outcome]);
        }
        self.reconcile_seconds.with_label_values(&[CONTROLLER]);
        Ok(())
    }

    /// A pass ended.
    pub fn pass(&self, ended: Ended, took: Duration) {
        let (outcome, result) = match ended {
            Ended::Done => ("ended", "success"),
            Ended::Requeue => ("ended", "requeue"),
            Ended::RequeueAfter => ("ended", "requeue_after"),
            Ended::KubernetesError => ("kubernetes_error", "error"),
            Ended::Panicked => ("panicked", "error"),
        };
        self.passes.with_label_values(&[outcome]).inc();
        self.pass_seconds.with_label_values(&[outcome]).observe(took.as_secs_f64());
        self.reconciles.with_label_values(&[CONTROLLER, result]).inc();
        self.reconcile_seconds.with_label_values(&[CONTROLLER]).observe(took.as_secs_f64());
        if result == "error" {
            self.reconcile_errors.inc();
            self.retries.inc();
        }
        if ended == Ended::Panicked {
            self.reconcile_panics.inc();
        }
    }

    /// A landing ended: with `None` it was committed.
    pub fn landing(&self, failure: Option<Reason>, took: Duration) {
        let outcome = match failure.map(Reason::class) {
            None => Outcome::Succeeded,
            Some(nixos_host_api::Class::Rejected) => Outcome::Rejected,
            Some(_) => Outcome::Failed,
        };
        let outcome = format!("{outcome:?}");
        self.landings.with_label_values(&[&*outcome, failure.unwrap_or(Reason::Succeeded).as_str()]).inc();
        self.landing_seconds.with_label_values(&[&*outcome]).observe(took.as_secs_f64());
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

    /// The API server answered a request with a status code, or nothing did.
    pub fn request(&self, method: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests.with_label_values(&[&*code, method]).inc();
        self.request_seconds.with_label_values(&[method]).observe(took.as_secs_f64());
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

    /// What watches did something, if only to find that the API server does not answer.
    pub fn watch_turned(&self, now: Instant) {
        *self.last_turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// How long ago what watches last did something.
    pub fn watch_idle(&self, now: Instant) -> Option<Duration> {
        let turned = *self.last_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = turned.map(|turned| now.saturating_duration_since(turned));
        idle.into_iter().chain(self.watch_age(now)).min()
    }

    /// What runs at the moment: evaluations, builds, processes.
    pub fn in_flight(&self, evaluations: u64, builds: u64, processes: u64) {
        for (gauge, value) in [(&self.evaluations, evaluations), (&self.builds, builds), (&self.processes, processes)] {
            gauge.set(whole(value));
        }
    }

    /// How many slots there are of a kind.
    pub fn slots(&self, name: &str, slots: usize) {
        self.slots.with_label_values(&[name]).set(whole(slots as u64));
    }

    /// Whether this replica leads, by which Lease if there is an election, and whether the brake of all hosts is set.
    pub fn governed(&self, leads: bool, lease: Option<&str>, braked: bool) {
        self.leader.set(leads.into());
        self.braked.set(braked.into());
        if let Some(lease) = lease {
            self.leadership.with_label_values(&[lease]).set(leads.into());
        }
    }

    /// The room in a directory; it is not told while it is not known.
    pub fn room(&self, directory: &str, room: Option<Room>) {
        for (gauge, bytes) in [(&self.disk_free, room.map(|room| room.free)), (&self.disk_size, room.map(|room| room.size))] {
            match bytes {
                Some(bytes) => gauge.with_label_values(&[directory]).set(whole(bytes)),
                None => drop(gauge.remove_label_values(&[directory])),
            }
        }
    }

    /// What the controller itself uses.
    pub fn usage(&self, usage: Usage) {
        self.cpu.inc_by((usage.cpu - self.cpu.get()).max(0.0));
        self.memory.set(whole(usage.memory));
        self.files.set(whole(usage.files));
        self.started.set(usage.started);
    }

    /// The text that Prometheus scrapes: `known` hosts have a worker each, `hosts` are those that this replica speaks of.
    pub fn render<'h>(&self, now: Instant, known: usize, hosts: impl Iterator<Item = &'h NixOSHost>) -> prometheus::Result<String> {
        let age = self.watch_age(now).map_or(-1, |age| whole(age.as_secs()));
        self.watch_age.set(age);
        self.workers.set(whole(known as u64));
        self.active_workers.set(whole(self.queues.hosts.working() as u64));
        self.queues.at(now);
        let mut families = hosts::families(hosts);
        families.extend(self.registry.gather());
        TextEncoder::new().encode_to_string(&families)
    }
}

/// Prometheus' gauges are signed.
fn whole(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
