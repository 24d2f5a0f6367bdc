//! `make bench`: the controller beside a plain shell script, in one run, on hosts of the same kind.
//!
//! Run inside `e2e/world/enter`, as a release build. `ROWS=build,copy` takes only the rows whose names begin so.
#![allow(clippy::expect_used, clippy::panic, reason = "a measurement that cannot go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "the controller's rules on processes and clocks are not those of what measures it")]

mod changes;
mod copies;
mod first;
mod footprint;
mod machine;
mod sides;
mod table;

use std::time::Instant;

use sides::{Ours, Theirs};
use table::{render, say};

/// Samples a row, unless it says otherwise.
pub(crate) const RUNS: u32 = 5;

/// The names of the rows, in the order of the table.
const ROWS: [&str; 9] = ["build", "settle", "prebuilt", "nochange", "first", "copy-large", "copy-small", "memory", "processes"];

#[tokio::main]
async fn main() {
    let began = Instant::now();
    let asked = std::env::var("ROWS").unwrap_or_default();
    let wanted = |row: &str| asked.is_empty() || asked.split([',', ' ']).any(|part| !part.is_empty() && row.starts_with(part));
    assert!(ROWS.iter().any(|row| wanted(row)), "no row is named {asked}; there are {}", ROWS.join(", "));
    let machine = machine::describe(&asked);
    let mut rows = Vec::new();
    if ["build", "settle", "prebuilt", "nochange"].iter().any(|row| wanted(row)) {
        say("starting a control plane, two times eight hosts and two repositories");
        let (mut ours, mut theirs) = (Ours::start().await, Theirs::start().await);
        rows.extend(changes::rows(&mut ours, &mut theirs, &wanted).await);
    }
    if wanted("first") {
        rows.push(first::row().await);
    }
    if wanted("copy-large") {
        rows.push(copies::large().await);
    }
    if wanted("copy-small") {
        rows.push(copies::small().await);
    }
    if wanted("memory") || wanted("processes") {
        rows.extend(footprint::rows(&wanted).await);
    }
    let missed = rows.iter().filter(|row| row.met() == Some(false)).count();
    say(&format!("\n{}", render(&rows)));
    say(&format!("{machine}; {:.0} min in all", began.elapsed().as_secs_f64() / 60.0));
    if missed > 0 {
        say(&format!("{missed} of {} goals missed", rows.len()));
    }
}
