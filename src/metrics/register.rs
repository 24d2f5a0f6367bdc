//! Series of the catalogue as collectors of a registry.

use prometheus::core::{Atomic, Collector, GenericCounter, GenericCounterVec, GenericGauge, GenericGaugeVec};
use prometheus::{HistogramOpts, HistogramVec, Opts, Registry};

use super::catalogue::{self, Series};

/// Seconds, from a look at a host to a long build.
const BUCKETS: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0, 1800.0, 3600.0];

/// Seconds of a request, whose deadline is 15.
const REQUEST_BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0];

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> prometheus::Result<C> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

pub(super) fn counter<P: Atomic + 'static>(registry: &Registry, series: &Series) -> prometheus::Result<GenericCounter<P>> {
    registered(registry, GenericCounter::with_opts(Opts::new(series.name, series.meaning))?)
}

pub(super) fn counters<P: Atomic + 'static>(registry: &Registry, series: &Series) -> prometheus::Result<GenericCounterVec<P>> {
    registered(registry, GenericCounterVec::new(Opts::new(series.name, series.meaning), series.labels)?)
}

pub(super) fn gauge<P: Atomic + 'static>(registry: &Registry, series: &Series) -> prometheus::Result<GenericGauge<P>> {
    registered(registry, GenericGauge::with_opts(Opts::new(series.name, series.meaning))?)
}

pub(super) fn gauges<P: Atomic + 'static>(registry: &Registry, series: &Series) -> prometheus::Result<GenericGaugeVec<P>> {
    registered(registry, GenericGaugeVec::new(Opts::new(series.name, series.meaning), series.labels)?)
}

pub(super) fn histograms(registry: &Registry, series: &Series) -> prometheus::Result<HistogramVec> {
    let options = HistogramOpts::new(series.name, series.meaning).buckets(BUCKETS.to_vec());
    registered(registry, HistogramVec::new(options, series.labels)?)
}

pub(super) fn request_seconds(registry: &Registry) -> prometheus::Result<HistogramVec> {
    let series = catalogue::REQUEST_SECONDS;
    let options = HistogramOpts::new(series.name, series.meaning).buckets(REQUEST_BUCKETS.to_vec());
    registered(registry, HistogramVec::new(options, series.labels)?)
}
