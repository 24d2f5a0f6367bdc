//! How a build on a host is: the answer of `build.sh`, parsed. PURE.

/// How a build is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildState {
    /// It goes on; with the last line that it wrote.
    Running(String),
    /// The output is valid on the host.
    Succeeded,
    /// It ended without one; with the last lines that it wrote.
    Failed(Ended, Vec<String>),
    /// There is none: the host restarted, or somebody took it away.
    Lost,
}

/// How a build ended that gave no output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A derivation did not build, or its output is another than it said: the input is at fault.
    Builder,
    /// The host's disk is full.
    DiskFull,
    /// The time was over.
    TimedOut,
    /// Somebody stopped or killed it, or the host was short of memory.
    Killed,
    /// Something else that is not the derivation's fault.
    Other,
}

/// `nix-store --realise` whose builds failed: the exit status has these bits (Nix's `Worker::failingExitStatus`), and more for how.
const FAILED: u32 = 0b110_0100;
/// An output that is not what the derivation says.
const MISMATCH: u32 = 0b010;
/// A time limit that Nix itself keeps.
const TIMED_OUT: u32 = 0b001;

/// Longer lines, and more of them, are not kept, whatever the host sends.
const LONGEST_LINE: usize = 300;
const MOST_LINES: usize = 40;

impl BuildState {
    /// Reads an answer; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        text.lines().find(|line| *line == "protocol=1")?;
        let word = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
        let short = |line: &str| line.chars().filter(|c| !c.is_control()).take(LONGEST_LINE).collect::<String>();
        let log: Vec<String> = text.lines().filter_map(|line| line.strip_prefix("log=")).take(MOST_LINES).map(short).collect();
        Some(match word("result") {
            "running" => Self::Running(log.last().cloned().unwrap_or_default()),
            "success" if word("valid") == "yes" => Self::Succeeded,
            "lost" => Self::Lost,
            result => Self::Failed(ended(result, word("code"), &log), log),
        })
    }
}

/// `result` is systemd's `$SERVICE_RESULT`, `code` its `$EXIT_STATUS`.
fn ended(result: &str, code: &str, log: &[String]) -> Ended {
    let code = code.parse::<u32>().ok().filter(|code| code & FAILED == FAILED && *code < 128).unwrap_or_default();
    match result {
        "timeout" => Ended::TimedOut,
        "signal" | "oom-kill" | "core-dump" | "watchdog" => Ended::Killed,
        _ if log.iter().any(|line| line.contains("No space left on device")) => Ended::DiskFull,
        _ if code & (TIMED_OUT | MISMATCH) == TIMED_OUT => Ended::TimedOut,
        _ if code != 0 => Ended::Builder,
        _ => Ended::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(text: &str) -> Ended {
        match BuildState::parse(&format!("protocol=1\n{text}\n")) {
            Some(BuildState::Failed(ended, _)) => ended,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_end_is_told_apart() {
        assert_eq!(BuildState::parse("protocol=1\nresult=success\ncode=0\nvalid=yes\n"), Some(BuildState::Succeeded));
        assert_eq!(BuildState::parse("protocol=1\nresult=running\nlog=building\n"), Some(BuildState::Running("building".into())));
        assert_eq!(BuildState::parse("protocol=1\nresult=lost\n"), Some(BuildState::Lost));
        assert_eq!(failed("result=exit-code\ncode=100\nlog=error: builder failed"), Ended::Builder);
        assert_eq!(failed("result=exit-code\ncode=102"), Ended::Builder, "another hash");
        assert_eq!(failed("result=exit-code\ncode=101"), Ended::TimedOut);
        assert_eq!(failed("result=exit-code\ncode=1"), Ended::Other);
        assert_eq!(failed("result=exit-code\ncode=100\nlog=cp: No space left on device"), Ended::DiskFull);
        assert_eq!(failed("result=timeout\ncode=15"), Ended::TimedOut);
        assert_eq!(failed("result=oom-kill\ncode=9"), Ended::Killed);
        assert_eq!(failed("result=success\ncode=0"), Ended::Other, "without the output it is no success");
    }

    #[test]
    fn a_stranger_says_no_more_than_is_kept() {
        assert_eq!(BuildState::parse("Welcome to BusyBox\n"), None);
        let text = format!("protocol=1\nresult=exit-code\ncode=100\n{}", format!("log={}\n", "\u{7}x".repeat(9_000)).repeat(900));
        let Some(BuildState::Failed(Ended::Builder, log)) = BuildState::parse(&text) else { panic!("it failed") };
        assert_eq!((log.len(), log[0].len()), (MOST_LINES, LONGEST_LINE));
    }
}
