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
mod protocol;
mod scrape;
mod sides;
mod table;

use std::{pin::Pin, time::Instant};

use table::{Rows, render, say};

/// Samples a row, unless it says otherwise.
pub(crate) const RUNS: u32 = 5;

/// The names of the rows, in the order of the table.
const ROWS: [&str; 11] =
    ["build", "settle", "prebuilt", "nochange", "protocol", "first", "copy-large", "copy-small", "memory", "processes", "scrape"];

/// The rows of a group that are to be measured.
pub(crate) type Wanted = Vec<&'static str>;
type Group = fn(Wanted, Rows) -> Pin<Box<dyn Future<Output = ()> + Send>>;

#[tokio::main]
async fn main() {
    let began = Instant::now();
    let asked = std::env::var("ROWS").unwrap_or_default();
    let wanted = |row: &str| asked.is_empty() || asked.split([',', ' ']).any(|part| !part.is_empty() && row.starts_with(part));
    assert!(ROWS.iter().any(|row| wanted(row)), "no row is named {asked}; there are {}", ROWS.join(", "));
    let machine = machine::describe(&asked);
    let rows = Rows::default();
    let groups: [(&[&str], Group); 6] = [
        (&["build", "settle", "prebuilt", "nochange"], |wanted, rows| Box::pin(changes::measure(wanted, rows))),
        (&["protocol"], |_, rows| Box::pin(protocol::measure(rows))),
        (&["first"], |_, rows| Box::pin(first::measure(rows))),
        (&["copy-large", "copy-small"], |wanted, rows| Box::pin(copies::measure(wanted, rows))),
        (&["memory", "processes"], |wanted, rows| Box::pin(footprint::measure(wanted, rows))),
        (&["scrape"], |_, rows| Box::pin(async move { scrape::measure(&rows) })),
    ];
    let mut broken = 0;
    for (names, measure) in groups {
        let wanted: Wanted = names.iter().copied().filter(|row| wanted(row)).collect();
        // What goes wrong in one group has been said by its panic, and costs no other row
        if !wanted.is_empty() && tokio::spawn(measure(wanted, rows.clone())).await.is_err() {
            broken += 1;
        }
    }
    let rows = rows.take();
    let missed = rows.iter().filter(|row| row.met() == Some(false)).count();
    say(&format!("\n{}", render(&rows)));
    say(&format!("{machine}; {:.0} min in all", began.elapsed().as_secs_f64() / 60.0));
    say(&format!("{missed} goals missed, {broken} measurements broken off"));
    std::process::exit(i32::from(broken > 0));
}
