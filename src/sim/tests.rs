//! Seeds by the thousand, every crash point, and the teeth of the invariants.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::catalogue::{Behaviour, PERSONS, REVISIONS};
use super::fault::{Event, Fault, Plan};
use super::lock;
use super::run::{Report, Scenario, run};
use super::variants::Variant;

/// Seeds unless SIM_SEEDS sets another number: `make unit` runs 20,000 in the profile `sim`, `make torture SEEDS=n` as many as one likes.
const SEEDS: u64 = 500;

/// Within so many seeds each broken variant is caught.
const TEETH: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Calls `work` for all of `0..count` in as many threads as there are processors, until one gives something.
fn first<T: Send>(count: u64, work: impl Fn(u64) -> Option<T> + Sync) -> Option<T> {
    let (next, found) = (AtomicU64::new(0), Mutex::new(None));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count || lock(&found).is_some() {
                        return;
                    }
                    if let Some(result) = work(index) {
                        lock(&found).get_or_insert(result);
                    }
                }
            });
        }
    });
    found.into_inner().unwrap()
}

/// A run that broke an invariant, told from its beginning.
fn told(scenario: &Scenario, repeat: &str) -> String {
    let Report { violation, transcript, .. } = run(Scenario { told: true, ..scenario.clone() });
    let (invariant, what) = violation.expect("the same seed is the same run");
    format!("{}\n\nInvariant ({invariant}) is broken {what}\nRepeat it with:  {repeat}\n", transcript.join("\n"))
}

#[test]
fn no_seed_breaks_an_invariant() {
    let (from, seeds) = (number("SIM_FROM", 0), number("SIM_SEEDS", SEEDS));
    let outcomes: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let effects = AtomicU64::new(0);
    let broken = first(seeds, |index| {
        let scenario = Scenario::of_seed(from + index);
        let report = run(scenario.clone());
        effects.fetch_add(report.effects, Ordering::Relaxed);
        for (name, count) in report.outcomes {
            *lock(&outcomes).entry(name).or_default() += count;
        }
        report.violation.map(|_| scenario)
    });
    if let Some(scenario) = broken {
        panic!("{}", told(&scenario, &format!("SIM_SEED={} cargo test one_seed -- --ignored --nocapture", scenario.seed)));
    }
    println!("{seeds} seeds, {} effects", effects.load(Ordering::Relaxed));
    for (name, count) in lock(&outcomes).iter() {
        println!("{count:>10}  {name}");
    }
}

#[test]
#[ignore = "tells one seed: SIM_SEED=n"]
fn one_seed() {
    let scenario = Scenario { told: true, ..Scenario::of_seed(number("SIM_SEED", 0)) };
    let report = run(scenario);
    println!("{}\n{:?}", report.transcript.join("\n"), report.outcomes);
    assert_eq!(report.violation, None);
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..20 {
        let tell = || run(Scenario { told: true, ..Scenario::of_seed(seed) }).transcript;
        let (once, again) = (tell(), tell());
        let differ = once.iter().zip(&again).find(|(one, other)| one != other);
        assert_eq!((differ, once.len()), (None, again.len()), "seed {seed}");
    }
}

#[test]
fn each_broken_variant_is_caught() {
    for (variant, invariant) in Variant::ALL {
        let caught = first(TEETH, |seed| {
            let report = run(Scenario { variant: Some(variant), ..Scenario::of_seed(seed) });
            report.violation.filter(|(broken, _)| *broken == invariant).map(|(_, what)| (seed, what))
        });
        let (seed, what) = caught.unwrap_or_else(|| panic!("{variant:?} does not break ({invariant}) in {TEETH} seeds"));
        println!("{variant:?}: seed {seed}: ({invariant}) {what}");
    }
}

/// One change: from the first system to one that behaves like this.
fn one_change(behaviour: Behaviour, faults: Vec<(u64, Fault)>) -> Scenario {
    let mut behaviours = vec![Behaviour::Good; usize::from(1 + REVISIONS + PERSONS)];
    behaviours[1] = behaviour;
    let plan = Plan::Exactly(faults);
    Scenario { seed: 0, behaviours: Some(behaviours), plan, variant: None, faults_until: Duration::from_secs(150), told: false }
}

/// Changes that are cut at every effect.
const CHANGES: [Behaviour; 5] =
    [Behaviour::Good, Behaviour::RefusesNew, Behaviour::CutsConnections, Behaviour::Exits(2), Behaviour::BootFails];

/// Every way in which one effect can end a controller or a host.
const CUTS: [Fault; 4] = [
    Fault::CrashBefore,
    Fault::CrashAfter,
    Fault::Meanwhile(Event::PowerCut(Duration::from_secs(3))),
    Fault::Meanwhile(Event::KillLanding),
];

/// Cuts a change at every effect, in every way; `twice`: at every two.
fn exhaust(change: usize, twice: bool) {
    let behaviour = CHANGES[change];
    let effects = run(one_change(behaviour, Vec::new())).effects;
    let ways = CUTS.len() as u64;
    let single = effects * ways;
    let cut = |index: u64| (index / ways + 1, index % ways);
    let broken = first(if twice { single * single } else { single }, |index| {
        let mut cuts = vec![cut(index % single)];
        if twice {
            cuts.insert(0, cut(index / single));
        }
        // Those in the other order are the same ones.
        if !cuts.is_sorted_by(|one, other| one.0 < other.0) {
            return None;
        }
        run(one_change(behaviour, faults(&cuts))).violation.map(|_| cuts)
    });
    if let Some(cuts) = broken {
        let text: Vec<String> = cuts.iter().map(|(effect, way)| format!("{effect}:{way}")).collect();
        let repeat = format!("SIM_CHANGE={change} SIM_CUTS={} cargo test one_change_told -- --ignored --nocapture", text.join(","));
        panic!("{}", told(&one_change(behaviour, faults(&cuts)), &repeat));
    }
    println!("{behaviour:?}: {effects} effects, {} runs", if twice { single * (single - ways) / 2 } else { single });
}

fn faults(cuts: &[(u64, u64)]) -> Vec<(u64, Fault)> {
    cuts.iter().map(|(effect, way)| (*effect, CUTS[usize::try_from(*way).unwrap()])).collect()
}

#[test]
fn every_single_cut_of_one_change() {
    (0..CHANGES.len()).for_each(|change| exhaust(change, false));
}

#[test]
#[ignore = "make torture"]
fn every_pair_of_cuts_of_one_change() {
    (0..2).for_each(|change| exhaust(change, true));
}

#[test]
#[ignore = "tells one change: SIM_CHANGE=n SIM_CUTS=effect:way,…"]
fn one_change_told() {
    let cuts = std::env::var("SIM_CUTS").unwrap_or_default();
    let cut = |text: &str| text.split_once(':').map(|(effect, way)| (effect.parse().unwrap(), way.parse().unwrap()));
    let cuts: Vec<(u64, u64)> = cuts.split(',').filter_map(cut).collect();
    let change = CHANGES[usize::try_from(number("SIM_CHANGE", 0)).unwrap()];
    let report = run(Scenario { told: true, ..one_change(change, faults(&cuts)) });
    println!("{}", report.transcript.join("\n"));
    assert_eq!(report.violation, None);
}

#[test]
#[ignore = "lists the seeds that break something: SIM_FROM=n SIM_SEEDS=n"]
fn survey() {
    let (from, seeds) = (number("SIM_FROM", 0), number("SIM_SEEDS", SEEDS));
    let nothing = first(seeds, |index| {
        let seed = from + index;
        if let Some((invariant, what)) = run(Scenario::of_seed(seed)).violation {
            println!("({invariant}) seed {seed} {what}");
        }
        None::<()>
    });
    assert_eq!(nothing, None);
}
