//! A change with its build, one that is built already, and none at all; each on both sides in turn.

use nixos_host_e2e::{Host, world::cgroup};

use crate::{
    RUNS, Wanted,
    sides::{Ours, Theirs, calm, prebuild},
    table::{Goal, Row, Rows, say},
};

/// One kind of change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Build,
    Settle,
    Prebuilt,
    Nothing,
}

impl Kind {
    fn row(self) -> Row {
        let (what, goal) = match self {
            Self::Build => ("change with build", Goal::Ratio(1.0)),
            Self::Settle => ("change with build, default settle (5s)", Goal::None),
            Self::Prebuilt => ("prebuilt change", Goal::Ratio(1.0)),
            Self::Nothing => ("no change", Goal::Ratio(0.25)),
        };
        Row { what: what.to_owned(), unit: "s", ours: Vec::new(), theirs: Vec::new(), goal }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Settle => "settle",
            Self::Prebuilt => "prebuilt",
            Self::Nothing => "nochange",
        }
    }
}

/// Measures the rows that are wanted.
pub(crate) async fn measure(wanted: Wanted, into: Rows) {
    say("starting a control plane, two times eight hosts and two repositories");
    let (mut ours, mut theirs) = (Ours::start().await, Theirs::start().await);
    for row in rows(&mut ours, &mut theirs, &wanted).await {
        into.push(row);
    }
}

async fn rows(ours: &mut Ours, theirs: &mut Theirs, wanted: &Wanted) -> Vec<Row> {
    let kinds = [Kind::Build, Kind::Settle, Kind::Prebuilt, Kind::Nothing].into_iter().filter(|kind| wanted.contains(&kind.name()));
    let mut rows: Vec<(Kind, Row)> = kinds.map(|kind| (kind, kind.row())).collect();
    // The first landing is not a change, and fills every cache
    let (first, their_first) = (ours.commit(1), theirs.commit(1));
    let (our_time, their_time) = (ours.apply(&first, "0s").await, theirs.deploy(&their_first));
    say(&format!("first landing: {our_time:.1} s, {their_time:.1} s"));
    let mut revision = 1;
    for run in 0..RUNS {
        for (kind, row) in &mut rows {
            revision += 1;
            let (mine, yours) = sample(ours, theirs, *kind, revision, run % 2 == 0).await;
            say(&format!("{} {}: {mine:.2} s, {yours:.2} s", row.what, run + 1));
            row.ours.push(mine);
            row.theirs.push(yours);
        }
    }
    if let Ok(file) = std::env::var("BENCH_LOG") {
        let _ = std::fs::write(file, ours.scenario.controller().log());
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

/// One sample of each side; which comes first alternates.
async fn sample(ours: &mut Ours, theirs: &mut Theirs, kind: Kind, revision: u32, we_begin: bool) -> (f64, f64) {
    let revs = if kind == Kind::Nothing { None } else { Some((ours.commit(revision), theirs.commit(revision))) };
    if let (Kind::Prebuilt, Some((mine, yours))) = (kind, &revs) {
        prebuild(&ours.scenario.repository, mine);
        prebuild(theirs.repository(), yours);
    }
    let settle = if kind == Kind::Settle { "5s" } else { "0s" };
    let mut times = [0.0; 2];
    let mut busy = [String::new(), String::new()];
    for side in if we_begin { [0, 1] } else { [1, 0] } {
        calm().await;
        let hosts: Vec<String> = if side == 0 { &ours.scenario.hosts } else { theirs.hosts() }.iter().map(Host::name).collect();
        let before = (processor_time(&hosts), machine_time());
        times[side] = match (&revs, side) {
            (Some((mine, _)), 0) => ours.apply(mine, settle).await,
            (Some((_, yours)), _) => theirs.deploy(yours),
            (None, 0) => ours.look().await,
            (None, _) => theirs.deploy(&theirs.repository().head()),
        };
        busy[side] = format!("{:.2} s in hosts, {:.2} s in all", processor_time(&hosts) - before.0, machine_time() - before.1);
    }
    say(&format!("  processor time, ours: {}; theirs: {}", busy[0], busy[1]));
    (times[0], times[1])
}

/// Processor time that these hosts have had, in seconds.
pub(crate) fn processor_time(hosts: &[String]) -> f64 {
    let used = |host: &String| -> f64 {
        let text = std::fs::read_to_string(cgroup().join(host).join("cpu.stat")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap_or_default();
        line.parse::<f64>().unwrap_or_default() / 1e6
    };
    hosts.iter().map(used).sum()
}

/// Processor time that was not idle on this machine, in seconds.
fn machine_time() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text.lines().next().unwrap_or_default().split_whitespace().skip(1).map(|word| word.parse::<f64>().unwrap_or_default());
    // user nice system idle iowait irq softirq steal, in hundredths
    ticks.take(8).enumerate().filter(|(field, _)| ![3, 4].contains(field)).map(|(_, ticks)| ticks).sum::<f64>() / 100.0
}
