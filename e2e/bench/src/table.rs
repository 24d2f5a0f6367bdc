//! Samples, their medians, and the table that they become.

use std::fmt::Write as _;
use std::io::{Write as _, stdout};
use std::sync::{Arc, Mutex, PoisonError};

/// What a row is held to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    /// Ours is at most this many times theirs.
    Ratio(f64),
    /// Ours is at most this, in the row's unit.
    AtMost(f64),
    /// Ours takes at most this much more than theirs, in the row's unit.
    Beyond(f64),
    /// For comparison only.
    None,
}

/// One row.
#[derive(Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// `s`, `MiB` or nothing.
    pub(crate) unit: &'static str,
    /// Ours, in the order in which they were taken.
    pub(crate) ours: Vec<f64>,
    /// Theirs; empty when there is nothing to compare with.
    pub(crate) theirs: Vec<f64>,
    /// What it is held to.
    pub(crate) goal: Goal,
}

impl Row {
    fn beyond(&self) -> f64 {
        median(&self.ours) - median(&self.theirs)
    }

    fn ratio(&self) -> Option<f64> {
        (!self.theirs.is_empty()).then(|| median(&self.ours) / median(&self.theirs))
    }

    /// Whether the goal is met; `None` without one.
    pub(crate) fn met(&self) -> Option<bool> {
        match self.goal {
            Goal::Ratio(most) => self.ratio().map(|ratio| ratio <= most),
            Goal::AtMost(most) => Some(median(&self.ours) <= most),
            Goal::Beyond(most) => Some(self.beyond() <= most),
            Goal::None => None,
        }
    }

    fn value(&self, samples: &[f64]) -> String {
        match (samples, self.unit) {
            ([], _) => "–".to_owned(),
            (_, "s") => format!("{:.2} s", median(samples)),
            (_, unit) => format!("{:.0} {unit}", median(samples)).trim_end().to_owned(),
        }
    }

    fn line(&self) -> String {
        let ratio = match self.goal {
            Goal::Beyond(_) => format!("+{:.2} {}", self.beyond(), self.unit),
            _ => self.ratio().map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
        };
        let goal = match self.goal {
            Goal::Ratio(most) => format!("≤ {most} ×"),
            Goal::AtMost(0.0) => "none".to_owned(),
            Goal::AtMost(most) => format!("≤ {most} {}", self.unit),
            Goal::Beyond(most) => format!("≤ +{most} {}", self.unit),
            Goal::None => "–".to_owned(),
        };
        let met = self.met().map_or("–", |met| if met { "yes" } else { "**no**" });
        format!("| {} | {} | {} | {ratio} | {goal} | {met} |", self.what, self.value(&self.ours), self.value(&self.theirs))
    }

    /// All samples, for whoever doubts a median.
    fn samples(&self) -> String {
        let list = |samples: &[f64]| samples.iter().map(|sample| format!("{sample:.2}")).collect::<Vec<_>>().join(" ");
        format!(
            "- {}: ours {}; theirs {}",
            self.what,
            list(&self.ours),
            if self.theirs.is_empty() { "–".into() } else { list(&self.theirs) }
        )
    }
}

/// The rows so far, whatever becomes of those who add to them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rows(Arc<Mutex<Vec<Row>>>);

impl Rows {
    /// Adds a row.
    pub(crate) fn push(&self, row: Row) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(row);
    }

    /// All of them.
    pub(crate) fn take(&self) -> Vec<Row> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The middle of the samples; of an even number, the upper one of the two.
fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The whole table in Markdown, and below it what it was made of.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text =
        "| 8 hosts, settle 0s unless said | controller | script / `nix copy` | ratio | goal | met |\n|---|--:|--:|--:|--:|---|\n"
            .to_owned();
    for row in rows {
        let _ = writeln!(text, "{}", row.line());
    }
    text += "\nAll samples:\n";
    for row in rows {
        let _ = writeln!(text, "{}", row.samples());
    }
    text
}

/// Prints a line; what nobody reads is nobody's loss.
pub(crate) fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_its_goal_is_met() {
        let row = Row { what: "x".into(), unit: "s", ours: vec![3.0, 1.0, 2.0], theirs: vec![4.0, 4.0, 9.0], goal: Goal::Ratio(0.5) };
        assert_eq!(row.line(), "| x | 2.00 s | 4.00 s | 0.50 | ≤ 0.5 × | yes |");
        let row = Row { unit: "", ours: vec![1.0], theirs: vec![], goal: Goal::AtMost(0.0), ..row };
        assert_eq!(row.line(), "| x | 1 | – | – | none | **no** |");
    }
}
