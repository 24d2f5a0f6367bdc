//! What a controller sees of the outside: connections that break, commands whose answer is lost, Nix.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::catalogue::System;
use super::fault::Place;
use super::host::script::Answer;
use super::process::{Fate, Process};
use super::{Sim, Variant, lock, when};
use crate::nix::{Closure, DrvPath, LockedFlake, StorePath};
use crate::world::copy::{Copied, CopyError, LocalStoreError, Options, Progress};
use crate::world::effects::{Connection, Effects, Link, Running};
use crate::world::nix::{
    Build, BuildError, BuildProgress, Evaluate, EvaluateError, Evaluated, Resolve, ResolveError, RootName, RootsError,
};
use crate::world::probe::{self, Endpoint, Get, ProbeError, Wanted};
use crate::world::ssh::{
    Command, ConnectError, ConnectOptions, ExecError, Exit, Failure, HostKey, Limits, Output, Phase, Target, Unreached,
};

/// The key that the host shows.
pub(super) const HOST_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

static KEY: LazyLock<Option<HostKey>> = LazyLock::new(|| HOST_KEY.parse().ok());

/// How long a call takes that nobody answers.
const CALLED: Duration = Duration::from_secs(5);

/// The outside of one controller.
pub(super) struct Outside {
    pub(super) sim: Arc<Sim>,
    pub(super) process: Arc<Process>,
}

/// A connection of one controller to the host.
struct Connected {
    sim: Arc<Sim>,
    process: Arc<Process>,
    key: &'static HostKey,
    broken: CancellationToken,
    since: Duration,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connected")
    }
}

impl Sim {
    fn cut_off(&self) -> bool {
        self.now() < lock(&self.network).cut_until
    }

    /// Until something gets through; for ever, if nothing ever does.
    async fn through(&self, new: bool) {
        when(&self.changed, || (!self.cut_off() && self.answers(new)).then_some(())).await;
    }
}

fn unreachable(address: &str) -> ConnectError {
    ConnectError::Unreachable { failures: vec![Failure { address: address.into(), reason: Unreached::TimedOut(Phase::Connecting) }] }
}

impl Outside {
    async fn connected(&self, options: &ConnectOptions) -> Result<Link, ConnectError> {
        let (sim, process) = (&self.sim, &self.process);
        let fate = sim.begin(process, Place::Ssh, || "connects".into()).await;
        let old = sim.variant == Some(Variant::OldConnection) && sim.answers(false);
        let result = match fate {
            Fate::LostBefore | Fate::LostAfter => {
                tokio::time::sleep(CALLED).await;
                Err(unreachable("host"))
            }
            Fate::Silence => {
                tokio::time::sleep(options.deadline).await;
                Err(ConnectError::TimedOut { address: "host".into(), during: Phase::Handshake })
            }
            _ if sim.cut_off() || !(sim.answers(true) || old) => {
                tokio::time::sleep(CALLED).await;
                Err(unreachable("host"))
            }
            _ => match &*KEY {
                Some(key) => Ok(Link::new(Connected {
                    sim: Arc::clone(sim),
                    process: Arc::clone(process),
                    key,
                    broken: sim.see(|machine| machine.links.clone()),
                    since: if old && !sim.answers(true) { Duration::ZERO } else { sim.now() },
                })),
                None => Err(ConnectError::HostKeyMissing),
            },
        };
        sim.say(|| format!("{}: {}", process.name, if result.is_ok() { "is connected" } else { "is not connected" }));
        sim.end(process, fate).await;
        result
    }
}

impl Connected {
    async fn asked(&self, words: &[String], fate: Fate) -> Result<Output, ExecError> {
        let lost = || ExecError::Lost(None);
        if fate == Fate::LostBefore {
            self.broken.cancel();
        }
        if self.broken.run_until_cancelled(self.sim.through(false)).await.is_none() {
            return Err(lost());
        }
        if fate == Fate::Silence {
            std::future::pending::<()>().await;
        }
        let answer = self.run_on_host(words);
        if fate == Fate::Twice {
            drop(self.run_on_host(words));
        }
        let answer = self.broken.run_until_cancelled(answer).await.and_then(Result::ok).ok_or_else(lost)?;
        if self.broken.run_until_cancelled(self.sim.through(false)).await.is_none() || fate == Fate::LostAfter {
            return Err(lost());
        }
        self.heard(words, &answer);
        Ok(Output { status: Exit::Status(answer.code), stdout: answer.text.into_bytes(), stderr_tail: String::new() })
    }

    /// The command goes on if nobody listens any more.
    fn run_on_host(&self, words: &[String]) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let (sim, words) = (Arc::clone(&self.sim), words.to_vec());
        tokio::spawn(async move {
            if let Ok(answer) = sim.script(&words).await {
                let _ = sender.send(answer);
            }
        });
        receiver
    }

    /// The controller heard this: what it may say from now on follows from it.
    fn heard(&self, words: &[String], answer: &Answer) {
        let verb = words.first().map(String::as_str).unwrap_or_default();
        self.sim.say(|| {
            let last =
                answer.text.lines().find(|line| line.starts_with("landing_state=") || line.starts_with("landing: ")).unwrap_or_default();
            format!("{}: {verb} says {} {last}", self.process.name, answer.look.map(|look| look.current.name()).unwrap_or_default())
        });
        let Some(look) = answer.look else { return };
        let mut looks = lock(&self.process.looks);
        if verb == "status" {
            // A write may be on its way that tells of the one before.
            let old = looks.len().saturating_sub(1);
            looks.drain(..old);
            self.sim.monitor(|monitor| monitor.looked(self.sim.now(), self.process.epoch));
        }
        looks.push(look);
        drop(looks);
        let fresh = self.since >= self.sim.see(|machine| machine.current_since);
        if verb == "verify" && fresh {
            self.sim.monitor(|monitor| monitor.proved(look.current));
        }
    }

    async fn frames(&self, closure: &Closure, progress: &Progress) -> Result<Copied, CopyError> {
        let lost = || CopyError::Connection { progress: progress.snapshot(), source: ExecError::Lost(None) };
        let system = System::of(closure.root.as_str());
        let has = system.is_some_and(|system| self.sim.see(|machine| machine.store.contains(&system)));
        self.sim.host(|machine| machine.roots.extend(system.map(|system| ("next", system))));
        let sent = if has { 0 } else { closure.paths.len() };
        for path in closure.paths.iter().take(sent) {
            let fate = self.sim.begin(&self.process, Place::Frame, || format!("sends {}", path.path.name())).await;
            if matches!(fate, Fate::LostBefore | Fate::LostAfter) {
                self.broken.cancel();
            }
            if fate == Fate::Silence {
                tokio::time::sleep(Duration::from_secs(60)).await;
                return Err(CopyError::Stalled { after: Duration::from_secs(60), progress: progress.snapshot() });
            }
            self.broken.run_until_cancelled(self.sim.through(false)).await.ok_or_else(lost)?;
            self.sim.end(&self.process, fate).await;
        }
        if self.broken.is_cancelled() {
            return Err(lost());
        }
        self.sim.host(|machine| machine.store.extend(system));
        Ok(Copied { paths: sent as u64, bytes: sent as u64, skipped: 0 })
    }
}

impl Connection for Connected {
    fn host_key(&self) -> &HostKey {
        self.key
    }

    fn address(&self) -> &'static str {
        "host"
    }

    fn run<'a>(&'a self, command: &'a Command, _stdin: Bytes, limits: Limits) -> BoxFuture<'a, Result<Output, ExecError>> {
        async move {
            // What stands before is the shell, and the loader of the script.
            let words = command.words().get(4..).unwrap_or_default();
            let fate = self.sim.begin(&self.process, Place::Ssh, || words.join(" ")).await;
            let result = tokio::time::timeout(limits.deadline, self.asked(words, fate)).await;
            let result = result.unwrap_or(Err(ExecError::TimedOut { after: limits.deadline }));
            if let Err(error) = &result {
                self.sim.say(|| format!("{}: {} is not answered: {error}", self.process.name, words.join(" ")));
            }
            self.sim.end(&self.process, fate).await;
            result
        }
        .boxed()
    }

    fn tcp<'a>(&'a self, _endpoint: &'a Endpoint, _within: Duration) -> BoxFuture<'a, Result<(), ProbeError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn get<'a>(
        &'a self,
        _endpoint: &'a Endpoint,
        _request: &'a Get,
        _within: Duration,
        _wanted: Wanted<'a>,
    ) -> BoxFuture<'a, Result<probe::Answer, ProbeError>> {
        std::future::ready(Ok(probe::Answer { status: 200, body: Vec::new() })).boxed()
    }

    fn push<'a>(
        &'a self,
        closure: &'a Arc<Closure>,
        _options: &'a Options,
        progress: &'a Progress,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Copied, CopyError>> {
        async move {
            let stalled = || CopyError::Stalled { after: Duration::from_secs(60), progress: progress.snapshot() };
            let frames = tokio::time::timeout(Duration::from_secs(60), self.frames(closure, progress));
            match cancel.run_until_cancelled(frames).await {
                Some(result) => result.unwrap_or_else(|_| Err(stalled())),
                None => Err(CopyError::Cancelled { progress: progress.snapshot() }),
            }
        }
        .boxed()
    }
}

impl Effects for Outside {
    fn connect<'a>(&'a self, _target: &'a Target, options: &'a ConnectOptions) -> BoxFuture<'a, Result<Link, ConnectError>> {
        self.connected(options).boxed()
    }

    fn resolve<'a>(&'a self, _request: &'a Resolve, _cancel: &'a CancellationToken) -> BoxFuture<'a, Result<LockedFlake, ResolveError>> {
        async move {
            let fate = self.sim.begin(&self.process, Place::Nix, || "resolves".into()).await;
            let result = self.sim.resolve(fate);
            self.sim.end(&self.process, fate).await;
            result
        }
        .boxed()
    }

    fn evaluate<'a>(&'a self, request: Evaluate, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<Evaluated, EvaluateError>> {
        async move {
            let fate = self.sim.begin(&self.process, Place::Nix, || format!("evaluates {}", request.flake.short())).await;
            let result = Sim::evaluate(fate, &request);
            self.sim.end(&self.process, fate).await;
            if cancel.is_cancelled() { Err(EvaluateError::Cancelled) } else { result }
        }
        .boxed()
    }

    fn build<'a>(
        &'a self,
        request: Build,
        _progress: &'a watch::Sender<BuildProgress>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<StorePath, BuildError>> {
        async move {
            let fate = self.sim.begin(&self.process, Place::Nix, || format!("builds {}", request.out.name())).await;
            let result = self.sim.build(fate, request);
            self.sim.end(&self.process, fate).await;
            if cancel.is_cancelled() { Err(BuildError::Cancelled) } else { result }
        }
        .boxed()
    }

    fn closure<'a>(&'a self, root: &'a StorePath) -> BoxFuture<'a, Result<Closure, LocalStoreError>> {
        async move { Ok(Sim::closure(root)) }.boxed()
    }

    fn keep_derivation(&self, _root: &RootName, _drv: &DrvPath) -> Result<(), RootsError> {
        Ok(())
    }

    fn drop_roots(&self, _root: &RootName) -> Result<(), RootsError> {
        Ok(())
    }

    fn random(&self) -> u64 {
        lock(&self.process.chance).next()
    }

    fn running(&self) -> Running {
        Running::default()
    }
}
