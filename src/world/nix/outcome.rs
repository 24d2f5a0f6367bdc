//! What an evaluating process's end means for each host, and who is to be evaluated again. PURE.

use super::error::EvaluateError;
use super::heard::{Done, Heard, Told};
use super::log::Error;
use super::message::git_says;
use crate::world::exec::Ending;

/// Options that keep an evaluation from the controller's files, from building, and from endless recursion.
pub(super) const RESTRICT: [&str; 9] =
    ["--option", "restrict-eval", "true", "--option", "max-call-depth", "10000", "--option", "allow-import-from-derivation", "false"];

/// Names of configurations that an error lists.
const NAMES: usize = 100;

/// What a process had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) seconds: u64,
    pub(super) mebibytes: u64,
}

/// What is known now, and what is to be tried again, each group in a process of its own.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) settled: Vec<(String, Result<Done, EvaluateError>)>,
    pub(super) again: Vec<Vec<String>>,
}

/// Judges a process that evaluated `wanted`. Each verdict settles a host or makes the groups smaller, so it ends.
pub(super) fn conclude(wanted: &[String], mut heard: Heard, ending: Ending, stderr: &[String], limits: Limits) -> Verdict {
    let mut verdict = Verdict::default();
    let mut rest = Vec::new();
    for name in wanted {
        match heard.told.remove(name) {
            Some(Told::Done(done)) => verdict.settled.push((name.clone(), Ok(done))),
            Some(Told::NotASystem) => verdict.settled.push((name.clone(), Err(EvaluateError::NotASystem { attribute: name.clone() }))),
            Some(Told::Absent) => {
                let available = heard.names.iter().flatten().take(NAMES).cloned().collect();
                verdict.settled.push((name.clone(), Err(EvaluateError::AttributeMissing { attribute: name.clone(), available })));
            }
            None => rest.push(name.clone()),
        }
    }
    if rest.is_empty() {
        return verdict;
    }
    let progress = !verdict.settled.is_empty();
    let culprit = heard.begun.take().and_then(|begun| rest.iter().position(|name| *name == begun)).map(|index| rest.remove(index));
    let error = failure(&heard, ending, stderr, limits, culprit.is_some());
    // Whoever ran out of memory or time behind others gets a process to itself; alone, it had all there is.
    let exhausted = matches!(error, EvaluateError::OutOfMemory { .. } | EvaluateError::TimedOut { .. });
    match culprit {
        Some(culprit) if exhausted && progress => {
            verdict.again.push(vec![culprit]);
            verdict.again.extend(halves(rest));
        }
        Some(culprit) if matches!(error, EvaluateError::Cancelled) => {
            verdict.settled.extend(rest.into_iter().chain([culprit]).map(|name| (name, Err(EvaluateError::Cancelled))));
        }
        Some(culprit) => {
            verdict.settled.push((culprit, Err(error)));
            verdict.again.extend(if exhausted { halves(rest) } else { vec![rest] });
        }
        // It died between two hosts: over the facts of one that is done.
        None if progress && !matches!(error, EvaluateError::Cancelled) => verdict.again.push(rest),
        None => verdict.settled.extend(rest.into_iter().map(|name| (name, Err(error.clone())))),
    }
    verdict.again.retain(|group| !group.is_empty());
    verdict
}

fn halves(mut names: Vec<String>) -> Vec<Vec<String>> {
    let second = names.split_off(names.len().div_ceil(2));
    vec![names, second]
}

/// What ended the process. Nix's errors have no codes: all there is to judge by is their text.
fn failure(heard: &Heard, ending: Ending, stderr: &[String], limits: Limits, in_host: bool) -> EvaluateError {
    let message = heard.error.as_ref().map(Error::text).unwrap_or_default();
    let says = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    match ending {
        Ending::Cancelled => return EvaluateError::Cancelled,
        Ending::TimedOut => return EvaluateError::TimedOut { seconds: limits.seconds },
        Ending::OutOfMemory => return EvaluateError::OutOfMemory { mebibytes: limits.mebibytes },
        Ending::Exited(_) if message == "out of memory" || says(&["Cannot allocate memory"]) => {
            return EvaluateError::OutOfMemory { mebibytes: limits.mebibytes };
        }
        Ending::Exited(_) | Ending::Killed(_) => (),
    }
    if message.is_empty() && heard.dropped {
        // The trace of any other error is far shorter: 91 kB was the longest one seen.
        let message = "endless recursion: the trace of the error is longer than 1 MiB".to_owned();
        return if in_host {
            EvaluateError::Failed { message, position: None }
        } else {
            EvaluateError::FlakeBroken { message, position: None }
        };
    }
    if message.is_empty() {
        return EvaluateError::Other { message: format!("Nix {ending} without saying why: {}", git_says(stderr)) };
    }
    let position = heard.error.as_ref().and_then(|error| error.position(&heard.own));
    if says(&["allow-import-from-derivation"]) {
        EvaluateError::ImportFromDerivation { message }
    } else if says(&[
        "forbidden in restricted mode",
        "in pure evaluation mode",
        "in pure eval mode",
        "Permission denied",
        // A file that Landlock keeps from curl is one that it cannot open.
        "Could not read a file:// file",
    ]) {
        EvaluateError::Forbidden { message }
    } else if says(&[
        "unable to download",
        "Failed to fetch",
        "Cannot find Git revision",
        "NAR hash mismatch",
        "hash mismatch",
        "Failed to open",
        "error fetching",
    ]) || (stderr.iter().any(|line| line.starts_with("fatal: ")) && !matches!(ending, Ending::Exited(0)))
    {
        let git: Vec<String> = stderr.iter().filter(|line| line.starts_with("fatal: ")).cloned().collect();
        let message = if git.is_empty() { message } else { format!("{message}; {}", git_says(&git)) };
        EvaluateError::FetchFailed { message }
    } else if says(&["No space left on device", "database is locked", "Too many open files", "interrupted by the user"]) {
        EvaluateError::Other { message }
    } else if in_host {
        EvaluateError::Failed { message, position }
    } else {
        EvaluateError::FlakeBroken { message, position }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { seconds: 60, mebibytes: 600 };

    fn names(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    /// A process that told `done`, began `begun`, and died with `error`.
    fn heard(done: &str, begun: &str, error: &str) -> Heard {
        let mut heard = Heard::new("n".into(), String::new());
        let mut trace = |report: serde_json::Value| {
            heard.line(&format!("@nix {}", serde_json::json!({"action": "msg", "level": 0, "msg": format!("trace: n {report}")})));
        };
        trace(serde_json::json!({"report": "names", "names": ["a", "b"]}));
        for name in names(done) {
            trace(serde_json::json!({"report": "begin", "name": name}));
            trace(serde_json::json!({"report": "done", "name": name, "drv": "x"}));
        }
        if !begun.is_empty() {
            trace(serde_json::json!({"report": "begin", "name": begun}));
        }
        if !error.is_empty() {
            heard.line(&format!("@nix {}", serde_json::json!({"action": "msg", "level": 0, "msg": "x", "raw_msg": error})));
        }
        heard
    }

    fn show(verdict: Verdict) -> (String, Vec<String>) {
        let settled = verdict.settled.into_iter().map(|(name, result)| match result {
            Ok(_) => name,
            Err(error) => format!("{name}:{}", format!("{error:?}").split([' ', '{']).next().unwrap_or_default()),
        });
        (settled.collect::<Vec<_>>().join(" "), verdict.again.into_iter().map(|group| group.concat()).collect())
    }

    fn judge(wanted: &str, heard: Heard, ending: Ending) -> (String, Vec<String>) {
        show(conclude(&names(wanted), heard, ending, &[], LIMITS))
    }

    #[test]
    fn a_host_that_fails_fails_alone() {
        let got = judge("abcd", heard("a", "b", "infinite recursion encountered"), Ending::Exited(1));
        assert_eq!(got, ("a b:Failed".into(), vec!["cd".into()]));
        assert_eq!(judge("ab", heard("ab", "", ""), Ending::Exited(0)), ("a b".into(), vec![]));
    }

    #[test]
    fn a_flake_that_fails_before_the_first_host_fails_for_all() {
        assert_eq!(judge("ab", heard("", "", "syntax error"), Ending::Exited(1)).0, "a:FlakeBroken b:FlakeBroken");
        assert_eq!(judge("ab", heard("", "", ""), Ending::TimedOut).0, "a:TimedOut b:TimedOut");
    }

    #[test]
    fn who_runs_out_behind_others_is_tried_alone_and_who_runs_out_alone_is_told() {
        let again = |parts: &[&str]| parts.iter().map(|&part| part.to_owned()).collect::<Vec<_>>();
        assert_eq!(judge("abcde", heard("a", "b", ""), Ending::OutOfMemory), ("a".into(), again(&["b", "cd", "e"])));
        assert_eq!(judge("bcd", heard("", "b", "out of memory"), Ending::Exited(1)), ("b:OutOfMemory".into(), again(&["c", "d"])));
        assert_eq!(judge("b", heard("", "b", ""), Ending::TimedOut), ("b:TimedOut".into(), again(&[])));
    }

    #[test]
    fn who_is_done_stays_done_when_its_facts_kill_the_process() {
        assert_eq!(judge("abc", heard("a", "", "boom"), Ending::Exited(1)), ("a".into(), vec!["bc".into()]));
    }

    #[test]
    fn a_cancelled_process_settles_all() {
        assert_eq!(judge("abc", heard("a", "b", ""), Ending::Cancelled).0, "a c:Cancelled b:Cancelled");
        assert_eq!(judge("ab", heard("a", "", ""), Ending::Cancelled).0, "a b:Cancelled");
    }

    #[test]
    fn the_text_tells_what_it_was() {
        let of = |error: &str| judge("b", heard("", "b", error), Ending::Exited(1)).0;
        assert_eq!(
            of("cannot build '/nix/store/x.drv' during evaluation because the option 'allow-import-from-derivation' is disabled"),
            "b:ImportFromDerivation"
        );
        assert_eq!(of("access to URI 'file:///etc/passwd' is forbidden in restricted mode"), "b:Forbidden");
        assert_eq!(
            of("access to absolute path '/etc/passwd' is forbidden in pure evaluation mode (use '--impure' to override)"),
            "b:Forbidden"
        );
        assert_eq!(of("unable to download 'file:///x': Could not read a file:// file (37) Could not open file /x"), "b:Forbidden");
        assert_eq!(of("unable to download 'https://h/x.tar.gz': HTTP error 404"), "b:FetchFailed");
        assert_eq!(of("\nFailed assertions:\n- web needs a certificate"), "b:Failed");
        assert_eq!(judge("b", heard("", "b", ""), Ending::Killed(11)).0, "b:Other");
    }

    #[test]
    fn a_process_that_says_nothing_of_a_host_does_not_loop() {
        assert_eq!(judge("ab", heard("", "", ""), Ending::Exited(0)).0, "a:Other b:Other");
    }
}
