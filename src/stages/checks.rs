//! Health checks: what the spec says has to hold of a new system, asked over the connection that will carry the commit.
//!
//! All of them at the same time, each tried until it passes or has no tries left. The first that fails for good and is not only to be
//! reported ends the rest. No stage: Verify runs them, and whoever brings a host up again after a reboot.

mod judge;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nixos_host_api::{CheckFailurePolicy, Reason};
use tokio::sync::Semaphore;

use crate::pipeline::Pass;
use crate::stage::{Failure, bounded, chain};
use crate::wish::{HealthCheck, Question};
use crate::world::Link;
use crate::world::probe::{MOST_BODY, ProbeError};
use crate::world::ssh::{Command, Exit, Host, Limits, PortError};

/// Programs on the host at a time: its sshd takes ten sessions on one connection unless told otherwise.
const PROGRAMS: usize = 8;

/// Runs a program with a deadline, which reaches all that it started; what it writes comes back in order, and of that the end.
const BOUNDED: &str =
    r#"PATH=/run/wrappers/bin:/run/current-system/sw/bin:/usr/bin:/bin; export PATH; exec timeout -k 2 "$@" </dev/null >&2"#;

/// How much longer the connection waits than the host does.
const GRACE: Duration = Duration::from_secs(5);

/// Bytes of a program's output that are kept, from its end.
const OUTPUT: usize = 4 << 10;

/// Bytes of what a check heard that are shown.
const SHOWN: usize = 1000;

/// Why a check, or one try of it, did not pass.
#[derive(Debug)]
enum Trouble {
    /// It did not hold.
    Failed(String),
    /// The connection to the host is gone, which says nothing of the check.
    Lost(String),
}

/// Runs all checks of the wish, within this time. What is to be said of those that failed and are only reported; a failure with the reason
/// `Unreachable` if the connection was lost, and `HealthCheckFailed` if one failed.
pub async fn run<R>(pass: &Pass<'_, R>, session: &Link, within: Duration) -> Result<Vec<String>, Failure> {
    let programs = Semaphore::new(PROGRAMS);
    let runner = Runner { session, programs: &programs };
    let mut running: FuturesUnordered<_> =
        pass.wish.checks.iter().map(|check| async move { (check, runner.settle(check, within).await) }).collect();
    let mut notes = Vec::new();
    while let Some((check, result)) = running.next().await {
        match result {
            Err(Trouble::Lost(why)) => return Err(Failure::new(Reason::Unreachable, why)),
            Err(Trouble::Failed(why)) => {
                pass.world.metrics.health_check("failed");
                let message = format!("health check {:?} {why}", check.name);
                if check.on_failure == CheckFailurePolicy::Revert {
                    return Err(Failure::new(Reason::HealthCheckFailed, message));
                }
                notes.push(message);
            }
            Ok(()) => pass.world.metrics.health_check("passed"),
        }
    }
    // They end in any order, and status shall not depend on it.
    notes.sort();
    Ok(notes)
}

/// Where checks are run.
#[derive(Clone, Copy)]
struct Runner<'r> {
    session: &'r Link,
    programs: &'r Semaphore,
}

impl Runner<'_> {
    /// Tries a check until it passes, or has no tries left, or the time is over.
    async fn settle(self, check: &HealthCheck, within: Duration) -> Result<(), Trouble> {
        let (mut tries, mut last) = (0_u32, String::new());
        let trying = async {
            loop {
                match self.ask(&check.question, check.timeout).await {
                    Err(Trouble::Failed(why)) => last = why,
                    settled => return settled.map_err(Some),
                }
                tries += 1;
                if tries > u32::from(check.retries) {
                    last.push_str(&self.journal(&check.question, check.timeout).await);
                    return Err(None);
                }
                tokio::time::sleep(check.interval).await;
            }
        };
        let settled = tokio::time::timeout(within, trying).await;
        let asked = judge::asked(&check.question, self.session.address());
        match settled {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Some(trouble))) => Err(trouble),
            Ok(Err(None)) => {
                let tries = if tries == 1 { "its only try".into() } else { format!("all of {tries} tries") };
                Err(Trouble::Failed(format!("failed in {tries}: {asked}: {last}")))
            }
            Err(_) if tries == 0 => Err(Trouble::Failed(format!("had no time: activation.commitWithin is nearly over: {asked}"))),
            Err(_) => {
                let times = if tries == 1 { "once".into() } else { format!("{tries} times") };
                Err(Trouble::Failed(format!("failed {times} until activation.commitWithin was nearly over: {asked}: {last}")))
            }
        }
    }

    /// One try.
    async fn ask(self, question: &Question, timeout: Duration) -> Result<(), Trouble> {
        match question {
            Question::Tcp(endpoint) => self.session.tcp(endpoint, timeout).await.map_err(|error| unanswered(&error)),
            Question::Http { endpoint, request, statuses, body_contains } => {
                let wanted = |status: u16| match body_contains {
                    _ if !judge::good(status, statuses) => SHOWN,
                    Some(_) => MOST_BODY,
                    None => 0,
                };
                let answer = self.session.get(endpoint, request, timeout, &wanted).await.map_err(|error| unanswered(&error))?;
                judge::answer(&answer, statuses, body_contains.as_deref())
                    .map_err(|why| failed(&why, &String::from_utf8_lossy(&answer.body[..answer.body.len().min(SHOWN)])))
            }
            Question::Command(words) => {
                let (exit, output) = self.program(words, timeout).await?;
                judge::exit(&exit, timeout).map_err(|why| failed(&why, &output))
            }
            Question::Units(units) => {
                let words = ["systemctl", "show", "--property=LoadState,ActiveState,SubState", "--"];
                let words: Vec<String> = words.into_iter().map(str::to_owned).chain(units.iter().cloned()).collect();
                let (exit, output) = self.program(&words, timeout).await?;
                judge::exit(&exit, timeout).map_err(|why| failed(&why, &output))?;
                judge::units(units, &output).map_err(Trouble::Failed)
            }
        }
    }

    /// The last that the units of a check wrote, for a person; nothing for other checks, or if it cannot be had.
    async fn journal(self, question: &Question, timeout: Duration) -> String {
        let Question::Units(units) = question else { return String::new() };
        let words = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=10"].map(str::to_owned);
        let words: Vec<String> = words.into_iter().chain(units.iter().map(|unit| format!("--unit={unit}"))).collect();
        self.program(&words, timeout).await.map_or_else(|_| String::new(), |(_, output)| format!("\n{}", bounded(&output, SHOWN)))
    }

    /// Runs a program as root on the host: how it ended, and the last that it wrote.
    async fn program(self, words: &[String], timeout: Duration) -> Result<(Exit, String), Trouble> {
        let _permit = self.programs.acquire().await;
        let seconds = timeout.as_millis().div_ceil(1000).to_string();
        let command = Command::script(BOUNDED).arg(seconds).args(words).as_root();
        let limits = Limits { deadline: timeout + GRACE, stdout: OUTPUT, stderr: OUTPUT };
        match self.session.exec(&command, Bytes::new(), limits).await {
            Ok(output) => Ok((output.status, output.stderr_tail)),
            Err(error) if error.is_lost() => Err(Trouble::Lost(chain(&error))),
            Err(error) => Err(Trouble::Failed(chain(&error))),
        }
    }
}

/// What went wrong, and below it what was heard.
fn failed(why: &str, heard: &str) -> Trouble {
    Trouble::Failed(format!("{why}\n{}", bounded(heard, SHOWN)).trim_end().to_owned())
}

fn unanswered(error: &ProbeError) -> Trouble {
    let said = bounded(&chain(error), SHOWN);
    if matches!(error, ProbeError::Port(PortError::Ssh(_))) { Trouble::Lost(said) } else { Trouble::Failed(said) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use futures::future::BoxFuture;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::nix::Closure;
    use crate::world::Connection;
    use crate::world::copy::{self, Copied, CopyError};
    use crate::world::probe::{Answer, Endpoint, Get, Wanted};
    use crate::world::ssh::{ExecError, HostKey, Output};

    /// A host of which one port answers, after some tries, or whose connection breaks at a try.
    #[derive(Debug)]
    struct Port {
        opens_at: usize,
        breaks_at: usize,
        tries: Arc<AtomicUsize>,
    }

    impl Connection for Port {
        fn host_key(&self) -> &HostKey {
            unreachable!("no check asks for it")
        }

        fn address(&self) -> &'static str {
            "web.example.test"
        }

        fn run<'a>(&'a self, _: &'a Command, _: Bytes, _: Limits) -> BoxFuture<'a, Result<Output, ExecError>> {
            unreachable!("these checks run no program")
        }

        fn tcp<'a>(&'a self, _: &'a Endpoint, _: Duration) -> BoxFuture<'a, Result<(), ProbeError>> {
            let error = match self.tries.fetch_add(1, Ordering::Relaxed) + 1 {
                this if this == self.breaks_at => PortError::Ssh(russh::Error::Disconnect),
                this if this >= self.opens_at => return async { Ok(()) }.boxed(),
                _ => PortError::Failed,
            };
            async { Err(error.into()) }.boxed()
        }

        fn get<'a>(&'a self, _: &'a Endpoint, _: &'a Get, _: Duration, _: Wanted<'a>) -> BoxFuture<'a, Result<Answer, ProbeError>> {
            unreachable!("these checks speak no HTTP")
        }

        fn push<'a>(
            &'a self,
            _: &'a Arc<Closure>,
            _: &'a copy::Options,
            _: &'a copy::Progress,
            _: &'a CancellationToken,
        ) -> BoxFuture<'a, Result<Copied, CopyError>> {
            unreachable!("checks copy nothing")
        }
    }

    /// How a check with three retries ends on such a host, and after how many tries.
    async fn settled(opens_at: usize, breaks_at: usize, interval: Duration, within: Duration) -> (Result<(), Trouble>, usize) {
        let tries = Arc::new(AtomicUsize::new(0));
        let session = Link::new(Port { opens_at, breaks_at, tries: Arc::clone(&tries) });
        let question = Question::Tcp(Endpoint::Controller { port: 443 });
        let timeout = Duration::from_secs(1);
        let check = HealthCheck { name: "web".into(), question, timeout, retries: 3, interval, on_failure: CheckFailurePolicy::Revert };
        let programs = Semaphore::new(PROGRAMS);
        let result = Runner { session: &session, programs: &programs }.settle(&check, within).await;
        (result, tries.load(Ordering::Relaxed))
    }

    const BRIEFLY: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_check_is_tried_until_it_passes_or_has_no_tries_left() {
        assert!(matches!(settled(1, 0, LONG, LONG).await, (Ok(()), 1)));
        assert!(matches!(settled(4, 0, BRIEFLY, LONG).await, (Ok(()), 4)));
        let (Err(Trouble::Failed(why)), 4) = settled(5, 0, BRIEFLY, LONG).await else { panic!("it has four tries") };
        assert!(why.starts_with("failed in all of 4 tries: connecting to web.example.test:443 from the controller: the machine"), "{why}");
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_no_verdict() {
        assert!(matches!(settled(4, 2, BRIEFLY, LONG).await, (Err(Trouble::Lost(_)), 2)));
    }

    #[tokio::test]
    async fn when_the_time_is_over_the_last_try_is_told() {
        let (Err(Trouble::Failed(why)), 1) = settled(2, 0, LONG, Duration::from_millis(50)).await else { panic!("there is time for one") };
        assert!(why.contains("failed once until activation.commitWithin") && why.contains("nobody listens"), "{why}");
    }
}
