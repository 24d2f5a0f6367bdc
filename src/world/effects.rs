//! Everything outside that a pass touches, behind two traits: what is real here is simulated in tests.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Peer;
use super::copy::{self, Copied, CopyError, LocalStore, LocalStoreError};
use super::lead::Lead;
use super::nix::{
    Build, BuildError, BuildProgress, Evaluate, EvaluateError, Evaluated, Nix, Resolve, ResolveError, RootKind, RootName, RootsError,
};
use super::probe::{self, Answer, Endpoint, Get, ProbeError, Wanted};
use super::ssh::{Command, ConnectError, ConnectOptions, ExecError, Host, HostKey, Limits, Output, Session, Target};
use crate::nix::{Closure, DrvPath, LockedFlake, StorePath};

/// A connection to a host, logged in. Dropped, it is gone at once, with all that runs on it. The only way to the host's commands: it asks whether
/// they are allowed.
#[derive(Debug)]
pub struct Link {
    connection: Box<dyn Connection>,
    lead: Option<Lead>,
}

impl Link {
    /// Over `connection`.
    pub fn new(connection: impl Connection + 'static) -> Self {
        Self { connection: Box::new(connection), lead: None }
    }

    /// Does nothing on the host from now on but while `lead` holds.
    #[must_use]
    pub fn under(self, lead: Lead) -> Self {
        Self { lead: Some(lead), ..self }
    }

    /// The key that the host proved to hold.
    pub fn host_key(&self) -> &HostKey {
        self.connection.host_key()
    }

    /// Which of the addresses answered, as it was given.
    pub fn address(&self) -> &str {
        self.connection.address()
    }

    /// The key of the jump host that this connection runs through.
    pub fn jump_host_key(&self) -> Option<&HostKey> {
        self.connection.jump().map(Connection::host_key)
    }

    /// What proved to be there, for the next connection.
    pub fn peer(&self) -> Peer {
        Peer::of(&*self.connection)
    }

    /// Brings a closure to the host.
    pub async fn push(
        &self,
        closure: &Arc<Closure>,
        options: &copy::Options,
        progress: &copy::Progress,
        cancel: &CancellationToken,
    ) -> Result<Copied, CopyError> {
        self.allowed().await;
        self.connection.push(closure, options, progress, cancel).await
    }

    /// Asks a port whether it accepts connections, from the host.
    pub async fn tcp(&self, endpoint: &Endpoint, within: Duration) -> Result<(), ProbeError> {
        self.allowed().await;
        self.connection.tcp(endpoint, within).await
    }

    /// Asks a port over HTTP, from the host.
    pub async fn get(&self, endpoint: &Endpoint, request: &Get, within: Duration, wanted: Wanted<'_>) -> Result<Answer, ProbeError> {
        self.allowed().await;
        self.connection.get(endpoint, request, within, wanted).await
    }

    async fn allowed(&self) {
        if let Some(lead) = &self.lead {
            lead.held().await;
        }
    }
}

/// What passes do outside this process, except to speak to Kubernetes, and where their chance comes from.
pub trait Effects: Send + Sync {
    /// A new connection to a host.
    fn connect<'a>(&'a self, target: &'a Target, options: &'a ConnectOptions) -> BoxFuture<'a, Result<Link, ConnectError>>;

    /// The exact revision that a flake reference leads to now.
    fn resolve<'a>(&'a self, request: &'a Resolve, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<LockedFlake, ResolveError>>;

    /// The derivation of a host's toplevel.
    fn evaluate<'a>(&'a self, request: Evaluate, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<Evaluated, EvaluateError>>;

    /// Builds a toplevel, and keeps it from the garbage collector.
    fn build<'a>(
        &'a self,
        request: Build,
        progress: &'a watch::Sender<BuildProgress>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<StorePath, BuildError>>;

    /// The closure of a path in the local store, references first.
    fn closure<'a>(&'a self, root: &'a StorePath) -> BoxFuture<'a, Result<Closure, LocalStoreError>>;

    /// Keeps a derivation from the garbage collector, for a resource whose system is built elsewhere.
    fn keep_derivation(&self, root: &RootName, drv: &DrvPath) -> Result<(), RootsError>;

    /// Lets the garbage collector have all that was kept for a resource.
    fn drop_roots(&self, root: &RootName) -> Result<(), RootsError>;

    /// What nobody can foresee.
    fn random(&self) -> u64;

    /// What runs now.
    fn running(&self) -> Running;
}

/// Processes that run now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Running {
    /// Evaluations.
    pub evaluations: u64,
    /// Builds.
    pub builds: u64,
    /// Processes of all kinds.
    pub processes: u64,
}

/// One connection to one host, logged in.
pub trait Connection: fmt::Debug + Send + Sync {
    /// The key that the host proved to hold.
    fn host_key(&self) -> &HostKey;

    /// Which of the addresses answered, as it was given.
    fn address(&self) -> &str;

    /// The connection to the jump host that this one runs through.
    fn jump(&self) -> Option<&dyn Connection> {
        None
    }

    /// Runs a command: [`Host::exec`] for a connection of any kind.
    fn run<'a>(&'a self, command: &'a Command, stdin: Bytes, limits: Limits) -> BoxFuture<'a, Result<Output, ExecError>>;

    /// Asks a port whether it accepts connections: [`probe::tcp`] for a connection of any kind.
    fn tcp<'a>(&'a self, endpoint: &'a Endpoint, within: Duration) -> BoxFuture<'a, Result<(), ProbeError>>;

    /// Asks a port over HTTP: [`probe::get`] for a connection of any kind.
    fn get<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        request: &'a Get,
        within: Duration,
        wanted: Wanted<'a>,
    ) -> BoxFuture<'a, Result<Answer, ProbeError>>;

    /// Brings a closure to the host: [`copy::push`] for a connection of any kind.
    fn push<'a>(
        &'a self,
        closure: &'a Arc<Closure>,
        options: &'a copy::Options,
        progress: &'a copy::Progress,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Copied, CopyError>>;
}

impl Host for Link {
    async fn exec(&self, command: &Command, stdin: Bytes, limits: Limits) -> Result<Output, ExecError> {
        self.allowed().await;
        self.connection.run(command, stdin, limits).await
    }
}

impl Connection for Session {
    fn host_key(&self) -> &HostKey {
        self.host_key()
    }

    fn address(&self) -> &str {
        self.address()
    }

    fn jump(&self) -> Option<&dyn Connection> {
        self.jump().map(|jump| jump as _)
    }

    fn run<'a>(&'a self, command: &'a Command, stdin: Bytes, limits: Limits) -> BoxFuture<'a, Result<Output, ExecError>> {
        self.exec(command, stdin, limits).boxed()
    }

    fn tcp<'a>(&'a self, endpoint: &'a Endpoint, within: Duration) -> BoxFuture<'a, Result<(), ProbeError>> {
        probe::tcp(self, endpoint, within).boxed()
    }

    fn get<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        request: &'a Get,
        within: Duration,
        wanted: Wanted<'a>,
    ) -> BoxFuture<'a, Result<Answer, ProbeError>> {
        probe::get(self, endpoint, request, within, wanted).boxed()
    }

    fn push<'a>(
        &'a self,
        closure: &'a Arc<Closure>,
        options: &'a copy::Options,
        progress: &'a copy::Progress,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Copied, CopyError>> {
        copy::push(self, closure, options, progress, cancel).boxed()
    }
}

/// The real ones: Nix on this machine, SSH to the others.
pub struct Real {
    /// Resolve, evaluate, build.
    pub nix: Nix,
    /// The local store, asked without a process for each question.
    pub store: Arc<LocalStore>,
}

impl Effects for Real {
    fn connect<'a>(&'a self, target: &'a Target, options: &'a ConnectOptions) -> BoxFuture<'a, Result<Link, ConnectError>> {
        async move { Ok(Link::new(Session::connect(target, options).await?)) }.boxed()
    }

    fn resolve<'a>(&'a self, request: &'a Resolve, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<LockedFlake, ResolveError>> {
        self.nix.resolve(request, cancel).boxed()
    }

    fn evaluate<'a>(&'a self, request: Evaluate, cancel: &'a CancellationToken) -> BoxFuture<'a, Result<Evaluated, EvaluateError>> {
        self.nix.evaluate(request, cancel).boxed()
    }

    fn build<'a>(
        &'a self,
        request: Build,
        progress: &'a watch::Sender<BuildProgress>,
        cancel: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<StorePath, BuildError>> {
        self.nix.build(request, progress, cancel).boxed()
    }

    fn closure<'a>(&'a self, root: &'a StorePath) -> BoxFuture<'a, Result<Closure, LocalStoreError>> {
        self.store.closure(root).boxed()
    }

    fn keep_derivation(&self, root: &RootName, drv: &DrvPath) -> Result<(), RootsError> {
        let roots = self.nix.roots();
        roots.set(root, RootKind::Drv, drv.as_store_path())?;
        roots.drop(root, RootKind::System)
    }

    fn drop_roots(&self, root: &RootName) -> Result<(), RootsError> {
        self.nix.roots().drop_all(root)
    }

    fn random(&self) -> u64 {
        rand::random()
    }

    fn running(&self) -> Running {
        let counters = self.nix.counters();
        let processes = self.nix.processes().iter().map(|count| count.running).sum();
        Running { evaluations: counters.evaluating, builds: counters.building, processes }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::Clock;
    use crate::world::ssh::Exit;

    /// Counts the commands that get through.
    #[derive(Debug, Default)]
    struct Counting(Arc<AtomicUsize>);

    impl Connection for Counting {
        fn host_key(&self) -> &HostKey {
            panic!("not asked here")
        }

        fn address(&self) -> &str {
            panic!("not asked here")
        }

        fn run<'a>(&'a self, _: &'a Command, _: Bytes, _: Limits) -> BoxFuture<'a, Result<Output, ExecError>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            async { Ok(Output { status: Exit::Status(0), stdout: Vec::new(), stderr_tail: String::new() }) }.boxed()
        }

        fn push<'a>(
            &'a self,
            _: &'a Arc<Closure>,
            _: &'a copy::Options,
            _: &'a copy::Progress,
            _: &'a CancellationToken,
        ) -> BoxFuture<'a, Result<Copied, CopyError>> {
            panic!("not asked here")
        }

        fn tcp<'a>(&'a self, _: &'a Endpoint, _: Duration) -> BoxFuture<'a, Result<(), ProbeError>> {
            panic!("not asked here")
        }

        fn get<'a>(&'a self, _: &'a Endpoint, _: &'a Get, _: Duration, _: Wanted<'a>) -> BoxFuture<'a, Result<Answer, ProbeError>> {
            panic!("not asked here")
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test needs some moment")]
    fn no_command_reaches_a_host_after_the_term_also_if_nobody_has_noticed_its_end() {
        let (begun, passed) = (Instant::now(), Arc::new(Mutex::new(Duration::ZERO)));
        let time = Arc::clone(&passed);
        let lead = Lead::standby(Clock::new(move || begun + *time.lock().unwrap(), || jiff::Timestamp::UNIX_EPOCH));
        let sent = Arc::<AtomicUsize>::default();
        let link = Link::new(Counting(Arc::clone(&sent))).under(lead.clone());
        let limits = Limits::within(Duration::from_secs(1));
        let command = Command::script("true");
        let run = || link.exec(&command, Bytes::new(), limits).now_or_never().is_some();
        assert!(!run() && sent.load(Ordering::Relaxed) == 0);
        lead.begin(1, Some(begun + Duration::from_secs(10)));
        assert!(run() && sent.load(Ordering::Relaxed) == 1);
        *passed.lock().unwrap() = Duration::from_secs(11);
        assert!(!run() && sent.load(Ordering::Relaxed) == 1);
    }
}
