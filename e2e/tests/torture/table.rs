//! What came of each fault at each stage.

use std::collections::BTreeMap;

use crate::Trial;
use crate::faults::{Fault, SYSTEMS};

/// The moment was over before it was seen, every time.
pub(crate) const MISSED: &str = "missed";
/// A promise was not kept.
pub(crate) const BROKEN: &str = "BROKEN";

#[derive(Default)]
pub(crate) struct Table(BTreeMap<Trial, BTreeMap<String, usize>>);

impl Table {
    pub(crate) fn record(&mut self, trial: Trial, outcome: String) {
        *self.0.entry(trial).or_default().entry(outcome).or_default() += 1;
    }

    /// How often this came of a fault.
    pub(crate) fn count(&self, outcome: &str) -> usize {
        self.0.values().filter_map(|outcomes| outcomes.get(outcome)).sum()
    }

    /// As rows of Markdown.
    pub(crate) fn print(&self) {
        for ((fault, stage), outcomes) in &self.0 {
            let fault =
                if let Fault::System(number) = fault { format!("new system: {}", SYSTEMS[*number].0) } else { format!("{fault:?}") };
            let outcomes: Vec<_> = outcomes.iter().map(|(outcome, n)| format!("{n} {outcome}")).collect();
            eprintln!("| {fault} | {} | {} |", stage.map_or("–".to_owned(), |stage| format!("{stage:?}")), outcomes.join(", "));
        }
    }
}
