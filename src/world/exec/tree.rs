//! A process with all that it started, ended together.
//!
//! A signal to the process group is not enough: Nix gives each builder a session of its own, and dies of a SIGKILL
//! without ending builders that run outside a sandbox. So the members are read from `/proc`: all of the group, and all
//! that descend from it. What detached itself twice (its parent is gone, its group its own) before the process itself
//! was killed by somebody else is not found; Nix, git and ssh do not do that.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::process::ExitStatus;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

use super::GRACE;

/// How often the tree is read again while something in it still forks.
const ROUNDS: usize = 16;

/// A running process, leader of its own group. Dropped, it is ended in the background.
pub(super) struct Tree {
    /// `None` once it was waited for, or handed on.
    child: Option<Child>,
    pid: Pid,
    /// Its end has begun: a drop now has no time left for mercy.
    ending: bool,
}

/// The ends of its pipes.
pub(super) struct Pipes {
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

/// A process at one moment; its start time tells it from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Member {
    pid: i32,
    started: u64,
}

impl Tree {
    pub(super) fn new(child: Child) -> io::Result<Self> {
        let pid = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).ok_or_else(|| io::Error::other("it has no number"))?;
        Ok(Self { child: Some(child), pid, ending: false })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    pub(super) fn take_pipes(&mut self) -> Pipes {
        let Some(child) = &mut self.child else { return Pipes { stdin: None, stdout: None, stderr: None } };
        Pipes { stdin: child.stdin.take(), stdout: child.stdout.take(), stderr: child.stderr.take() }
    }

    /// Waits for the process itself.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.child else { return Err(io::Error::other("it was waited for already")) };
        let status = child.wait().await?;
        self.child = None;
        Ok(status)
    }

    /// SIGTERM to the group; after [`GRACE`], or when the process has obeyed, SIGKILL to whatever is left of the tree.
    pub(super) async fn end(&mut self) {
        self.ending = true;
        let before = members(&processes(), self.pid, &HashSet::new());
        let _ = kill_process_group(self.pid, Signal::TERM); // it may just have ended
        let obeyed = tokio::time::timeout(GRACE, self.wait()).await.is_ok();
        kill_all(self.pid, before);
        // A process that even SIGKILL does not end hangs in the kernel: nothing more can be done about it here.
        if !obeyed && tokio::time::timeout(GRACE, self.wait()).await.is_err() {
            tracing::error!(pid = self.pid.as_raw_nonzero(), "a process did not end after SIGKILL");
        }
    }

    /// Ends what the process left behind in its group.
    pub(super) fn kill_leftovers(&self) {
        kill_all(self.pid, HashSet::new());
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let Some(child) = self.child.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.ending => {
                let mut rest = Self { child: Some(child), pid: self.pid, ending: true };
                runtime.spawn(async move { rest.end().await });
            }
            _ => kill_all(self.pid, HashSet::new()),
        }
    }
}

/// Kills the group, its descendants and those of `known` that still run. A process that forks meanwhile could slip
/// away: all are stopped first, and the tree is read again until it has nothing new.
fn kill_all(group: Pid, known: HashSet<Member>) {
    let mut stopped = HashSet::new();
    let mut known = known;
    for _ in 0..ROUNDS {
        let running = processes();
        known = members(&running, group, &known);
        let new: Vec<_> = known.difference(&stopped).copied().collect();
        if new.is_empty() {
            break;
        }
        for member in new {
            signal(member, Signal::STOP);
            stopped.insert(member);
        }
    }
    for member in stopped {
        signal(member, Signal::KILL);
    }
}

fn signal(member: Member, signal: Signal) {
    if let Some(pid) = Pid::from_raw(member.pid) {
        let _ = kill_process(pid, signal); // it may just have ended
    }
}

/// What `/proc` says of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    member: Member,
    parent: i32,
    group: i32,
}

/// All processes that can be seen, by number.
fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, parse_stat(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// Reads `/proc/<pid>/stat`; `None` also for a process that has ended and is only not waited for. See proc(5).
fn parse_stat(pid: i32, stat: &str) -> Option<Process> {
    // The name of the program comes second, in parentheses, and may hold anything: count from its end.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let (state, parent, group, started) = (fields.first()?, fields.get(1)?, fields.get(2)?, fields.get(19)?);
    let member = Member { pid, started: started.parse().ok()? };
    (!matches!(*state, "Z" | "X")).then_some(Process { member, parent: parent.parse().ok()?, group: group.parse().ok()? })
}

/// Those of `running` that are in the group, or in `known`, or descend from one of these.
fn members(running: &BTreeMap<i32, Process>, group: Pid, known: &HashSet<Member>) -> HashSet<Member> {
    let group = group.as_raw_nonzero().get();
    let roots = running.values().filter(|process| process.group == group || known.contains(&process.member));
    let mut found: HashSet<Member> = roots.map(|process| process.member).collect();
    let mut numbers: HashSet<i32> = found.iter().map(|member| member.pid).chain([group]).collect();
    loop {
        let children = running.values().filter(|process| numbers.contains(&process.parent) && !found.contains(&process.member));
        let children: Vec<Member> = children.map(|process| process.member).collect();
        if children.is_empty() {
            return found;
        }
        numbers.extend(children.iter().map(|member| member.pid));
        found.extend(children);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "77 (a) b (c)) S 5 6 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        assert_eq!(parse_stat(77, stat).unwrap(), Process { member: Member { pid: 77, started: 4242 }, parent: 5, group: 6 });
        assert_eq!(parse_stat(77, &stat.replace(" S ", " Z ")), None);
        assert_eq!(parse_stat(77, "77 (a"), None);
    }

    #[test]
    fn the_tree_is_the_group_what_descends_from_it_and_what_was_known() {
        let process = |pid, parent, group| (pid, Process { member: Member { pid, started: 1 }, parent, group });
        let running = BTreeMap::from([
            process(10, 1, 10),
            process(11, 10, 11),
            process(12, 11, 11),
            process(13, 1, 10),
            process(14, 1, 14),
            process(15, 14, 14),
        ]);
        let numbers = |known: &[Member]| {
            let found = members(&running, Pid::from_raw(10).unwrap(), &known.iter().copied().collect());
            found.into_iter().map(|member| member.pid).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(numbers(&[]), [10, 11, 12, 13].into());
        assert_eq!(numbers(&[Member { pid: 14, started: 1 }]), [10, 11, 12, 13, 14, 15].into());
        assert_eq!(numbers(&[Member { pid: 14, started: 2 }]), [10, 11, 12, 13].into(), "a later process with the same number");
    }
}
