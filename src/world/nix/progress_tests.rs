use std::time::Duration;

use super::*;

/// Figures, names of what runs, and how many wait: each state that is told, once.
type Told = (u64, u64, Vec<String>);

/// Reads a captured log; all that was told on the way.
#[expect(clippy::disallowed_methods, reason = "the test's clock")]
fn replay(log: &str) -> (Watcher, Vec<Told>) {
    let (mut watcher, mut told): (Watcher, Vec<Told>) = (Watcher::default(), Vec::new());
    let start = Instant::now();
    for (number, line) in log.lines().enumerate() {
        watcher.line(line, start + Duration::from_millis(number as u64));
        let progress = watcher.progress();
        let state = (progress.done, progress.expected, progress.running.into_iter().map(|running| running.name).collect());
        if told.last() != Some(&state) {
            told.push(state);
        }
    }
    (watcher, told)
}

fn state(done: u64, expected: u64, running: &[&str]) -> Told {
    (done, expected, running.iter().map(|&name| name.to_owned()).collect())
}

#[test]
fn figures_never_say_more_than_there_is() {
    for log in [include_str!("fixtures/build-ok-2.26.jsonl"), include_str!("fixtures/build-ok-2.34.jsonl")] {
        let (mut watcher, told) = replay(log);
        let started = told.iter().position(|(.., running)| !running.is_empty()).unwrap();
        assert!(told[..started].iter().all(|(done, expected, _)| *done == 0 && *expected <= 4), "{told:?}");
        assert!(told[started..].iter().all(|(done, expected, running)| *expected == 4 && *done <= 4 && running.len() <= 2), "{told:?}");
        assert!(told.contains(&state(0, 4, &["leaf-0", "leaf-1"])), "{told:?}");
        assert!(told.contains(&state(3, 4, &["top"])), "{told:?}");
        assert_eq!(told.last(), Some(&state(4, 4, &[])));
        assert!(watcher.take_news() && !watcher.take_news());
        assert_eq!(watcher.failures(), []);
    }
}

#[test]
fn what_failed_is_told_with_its_log_and_not_for_what_needs_it() {
    for log in [include_str!("fixtures/build-bad-2.26.jsonl"), include_str!("fixtures/build-bad-2.34.jsonl")] {
        let (watcher, _) = replay(log);
        let [cause, consequence] = watcher.failures() else { panic!("{:?}", watcher.failures()) };
        assert_eq!((name(cause.drv.as_ref().unwrap()).as_str(), cause.fault), ("bad", Fault::Builder));
        assert_eq!(cause.log, ["working", "broken"]);
        assert!(cause.message.contains("failed with exit code 7"), "{}", cause.message);
        assert_eq!((name(consequence.drv.as_ref().unwrap()).as_str(), consequence.fault), ("needsbad", Fault::Dependency));
    }
}

#[test]
fn a_time_out_is_told_for_what_ran_though_2_34_does_not_name_it() {
    for log in [include_str!("fixtures/build-slow-2.26.jsonl"), include_str!("fixtures/build-slow-2.34.jsonl")] {
        let (watcher, _) = replay(log);
        let [failure] = watcher.failures() else { panic!("{:?}", watcher.failures()) };
        assert_eq!(
            (name(failure.drv.as_ref().unwrap()).as_str(), failure.fault, failure.log.as_slice()),
            ("slow", Fault::TimedOut, &["slow one".to_owned()][..])
        );
    }
}

#[test]
fn a_hash_mismatch_has_both_hashes() {
    for log in [include_str!("fixtures/build-fixed-2.26.jsonl"), include_str!("fixtures/build-fixed-2.34.jsonl")] {
        let (watcher, _) = replay(log);
        let failure = &watcher.failures()[0];
        assert_eq!((name(failure.drv.as_ref().unwrap()).as_str(), failure.fault), ("fixed", Fault::HashMismatch));
        assert!(failure.message.contains("sha256-47DEQpj8HBSa") && failure.message.contains("sha256-c8s4WKaHqElMozIw"));
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test's clock")]
fn downloads_are_counted_in_bytes_and_what_waits_is_counted() {
    let mut watcher = Watcher::default();
    let now = Instant::now();
    for line in [
        r#"{"action":"start","id":1,"type":102}"#,
        r#"{"action":"result","id":1,"type":106,"fields":[100,9000]}"#,
        r#"{"action":"result","id":1,"type":106,"fields":[101,3000]}"#,
        r#"{"action":"start","id":2,"type":108,"fields":["/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello","https://cache"]}"#,
        r#"{"action":"start","id":3,"type":101,"fields":["https://cache/x.nar"]}"#,
        r#"{"action":"result","id":3,"type":105,"fields":[500,1000,0,0]}"#,
        r#"{"action":"start","id":4,"type":111,"fields":["/nix/store/x.lock"]}"#,
    ] {
        watcher.line(&format!("@nix {line}"), now);
    }
    let progress = watcher.progress();
    assert_eq!((progress.downloaded, progress.to_download, progress.waiting), (500, 3000, 1));
    for line in [
        r#"{"action":"result","id":3,"type":105,"fields":[1000,1000,0,0]}"#,
        r#"{"action":"stop","id":3}"#,
        r#"{"action":"stop","id":2}"#,
        r#"{"action":"stop","id":4}"#,
    ] {
        watcher.line(&format!("@nix {line}"), now);
    }
    let progress = watcher.progress();
    assert_eq!((progress.downloaded, progress.waiting), (1000, 0));
    assert!(watcher.take_news());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test's clock")]
fn a_log_is_kept_by_its_last_twenty_lines_each_bounded() {
    let mut watcher = Watcher::default();
    let now = Instant::now();
    let drv = "/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-hello.drv";
    watcher.line(&format!(r#"@nix {{"action":"start","id":1,"type":105,"fields":["{drv}","",1,1]}}"#), now);
    for number in 0..50 {
        watcher.line(&format!(r#"@nix {{"action":"result","id":1,"type":101,"fields":["{number} {}"]}}"#, "x".repeat(9999)), now);
    }
    let (name, log) = watcher.longest().unwrap();
    assert_eq!((name.as_str(), log.len(), log[0].chars().count()), (drv, 20, LINE_LIMIT));
    assert!(log[0].starts_with("30 "));
}
