//! Who waits for a slot and who has one, under the names that client-go gives work queues.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::catalogue;
use super::register::{counters, gauges, histograms};
use crate::clock::Clock;

/// The queues of a controller.
#[derive(Debug, Clone)]
pub struct Queues {
    /// Passes: each host has a worker, so nothing waits here.
    pub hosts: Queue,
    /// Looks at hosts.
    pub looks: Queue,
    /// Copies to hosts.
    pub copies: Queue,
    /// Landings.
    pub landings: Queue,
    unfinished: prometheus::GaugeVec,
    longest: prometheus::GaugeVec,
}

/// One queue.
#[derive(Debug, Clone)]
pub struct Queue {
    name: &'static str,
    depth: IntGauge,
    adds: IntCounter,
    waited: Histogram,
    worked: Histogram,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    tickets: u64,
    since: BTreeMap<u64, Instant>,
}

impl Queues {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let depth: IntGaugeVec = gauges(registry, &catalogue::QUEUE_DEPTH)?;
        let adds: IntCounterVec = counters(registry, &catalogue::QUEUE_ADDS)?;
        let waited: HistogramVec = histograms(registry, &catalogue::QUEUE_SECONDS)?;
        let worked: HistogramVec = histograms(registry, &catalogue::QUEUE_WORK_SECONDS)?;
        let queue = |name| Queue {
            name,
            depth: depth.with_label_values(&[name]),
            adds: adds.with_label_values(&[name]),
            waited: waited.with_label_values(&[name]),
            worked: worked.with_label_values(&[name]),
            held: Arc::default(),
        };
        Ok(Self {
            hosts: queue("nixoshost"),
            looks: queue("looks"),
            copies: queue("copies"),
            landings: queue("landings"),
            unfinished: gauges(registry, &catalogue::QUEUE_UNFINISHED)?,
            longest: gauges(registry, &catalogue::QUEUE_LONGEST)?,
        })
    }

    /// Sets what depends on the time.
    pub(super) fn at(&self, now: Instant) {
        for queue in [&self.hosts, &self.looks, &self.copies, &self.landings] {
            let held = queue.held();
            let ages = held.since.values().map(|since| now.saturating_duration_since(*since).as_secs_f64());
            self.longest.with_label_values(&[queue.name]).set(ages.clone().fold(0.0, f64::max));
            self.unfinished.with_label_values(&[queue.name]).set(ages.fold(0.0, |sum, age| sum + age));
        }
    }
}

impl Queue {
    /// Somebody begins to wait.
    pub fn wait(&self, clock: &Clock) -> Waiting {
        self.adds.inc();
        self.depth.inc();
        Waiting { queue: self.clone(), clock: clock.clone(), since: clock.now() }
    }

    /// What is held now.
    pub fn working(&self) -> usize {
        self.held().since.len()
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counted as waiting until it is dropped or has what it waits for.
#[derive(Debug)]
pub struct Waiting {
    queue: Queue,
    clock: Clock,
    since: Instant,
}

impl Waiting {
    /// The wait is over.
    pub fn work(self) -> Working {
        let (now, queue) = (self.clock.now(), self.queue.clone());
        queue.waited.observe(now.saturating_duration_since(self.since).as_secs_f64());
        let ticket = {
            let mut held = queue.held();
            held.tickets += 1;
            let ticket = held.tickets;
            held.since.insert(ticket, now);
            ticket
        };
        Working { queue, clock: self.clock.clone(), ticket }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue.depth.dec();
    }
}

/// Counted as working until it is dropped.
#[derive(Debug)]
pub struct Working {
    queue: Queue,
    clock: Clock,
    ticket: u64,
}

impl Drop for Working {
    fn drop(&mut self) {
        let since = self.queue.held().since.remove(&self.ticket);
        if let Some(since) = since {
            self.queue.worked.observe(self.clock.now().saturating_duration_since(since).as_secs_f64());
        }
    }
}
