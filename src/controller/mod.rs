//! The kube side: watches, one pass per host and its cancelling, the one status patch, events, and the only clocks.
//!
//! Nothing else names `kube`, reads a clock or writes a status.

pub mod args;
mod brake;
pub mod clients;
mod clocks;
mod complaint;
mod election;
mod events;
mod finalizer;
mod guarded;
mod hosts;
mod next;
mod pass;
mod pump;
mod reporter;
mod scrape;
pub mod serve;
mod status;
pub mod telemetry;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::StatusCode;
use kube::Api;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::metrics::{Ended, Metrics};
use crate::world::{Lead, Limits, Real, World, nix};
use args::Args;
use brake::Brake;
use clients::Clients;
use complaint::Complaint;
use election::Elector;
use events::Events;
use hosts::{Hosts, Newest, Task};
use next::Next;
use status::Stored;

/// Looks at hosts at a time: each is one SSH handshake.
const LOOKS: usize = 64;

/// One look at a remote, or fetching one revision.
const RESOLVE_WITHIN: Duration = Duration::from_secs(300);

/// What passes may take to end after SIGTERM. A landing that lasts longer goes on without us: the next controller attaches to it, or the host goes back.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(25);

/// Before what the brake says is known, hosts are left without a word for so long.
const BRAKE_WITHIN: Duration = Duration::from_secs(10);

/// What passes share.
pub struct Controller {
    args: Args,
    clients: Clients,
    events: Events,
    world: World,
    hosts: Arc<Hosts>,
    brake: Brake,
    /// Of what many passes meet at the same time.
    complaint: Mutex<Complaint>,
}

/// Why the controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no way to the Kubernetes API.
    #[error("connecting to Kubernetes")]
    Clients(#[from] clients::ClientsError),
    /// Nix cannot be used.
    #[error("starting Nix")]
    Nix(#[from] nix::StartError),
    /// A port cannot be listened on.
    #[error("serving")]
    Listen(#[from] serve::ListenError),
    /// The metrics contradict each other.
    #[error("setting up metrics")]
    Metrics(#[from] prometheus::Error),
    /// Signals cannot be handled.
    #[error("handling signals")]
    Signals(#[from] std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Result<(), RunError> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let clock = clocks::system();
    let metrics = Metrics::new()?;
    let clients = Clients::new(&metrics, &clock, args.lease_duration() / 4).await?;
    let world = world(&args, metrics.clone(), &clock).await?;
    let controller = Arc::new(controller(args, clients, world));
    let (ready, readiness) = watch::channel(false);
    serve_all(&controller, readiness).await?;
    tokio::spawn(controller.brake.clone().run(controller.world.clock.clone()));
    let (stop, resign) = (CancellationToken::new(), CancellationToken::new());
    let elector = elector(&controller).map(|elector| tokio::spawn(elector.run(resign.clone())));
    if elector.is_none() {
        tokio::spawn(controller.world.lead.clone().climb());
    }
    let running = run_hosts(Arc::clone(&controller), ready, stop.clone());
    tokio::pin!(running);
    tokio::select! {
        () = &mut running => return Ok(()),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: work in flight ends, landings are finished or left to the next controller");
    stop.cancel();
    if tokio::time::timeout(SHUTDOWN_WITHIN, running).await.is_err() {
        tracing::warn!("passes were still running; a landing that was in flight goes on without this controller");
    }
    resign.cancel();
    if let Some(elector) = elector {
        let _ = elector.await;
    }
    Ok(())
}

impl Controller {
    /// Warns of what the API server says to a pass: once in a while for all hosts if it is of this kind, which all of them meet.
    fn complain(&self, kind: Option<&str>, text: &str) {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).of_many(kind, text);
    }
}

/// A controller that knows no host yet. Events are sent in the background from here on.
pub(crate) fn controller(args: Args, clients: Clients, world: World) -> Controller {
    let (events, hosts) = (Events::start(clients.requests.clone(), world.clock.clone()), Arc::<Hosts>::default());
    let configmap = (clients.namespace.as_str(), args.brake_configmap.as_str());
    let brake = Brake::new(clients.requests.clone(), configmap, Arc::clone(&hosts), events.clone(), world.lead.clone());
    let complaint = Mutex::new(Complaint::new(world.clock.clone()));
    Controller { args, clients, events, world, hosts, brake, complaint }
}

/// Who takes part in the election for us, if there is one.
fn elector(controller: &Controller) -> Option<Elector> {
    let Controller { args, clients, events, world, .. } = controller;
    let lease = (args.lease_namespace.as_deref().unwrap_or(&clients.namespace), args.lease_name.as_str());
    let with = (world.clock.clone(), events.clone());
    args.leader_elect.then(|| Elector::new(clients.leases.clone(), lease, args.lease_duration(), world.lead.clone(), with))
}

async fn world(args: &Args, metrics: Metrics, clock: &crate::clock::Clock) -> Result<World, RunError> {
    let config = nix::NixConfig {
        data_dir: args.data_dir.clone(),
        allow_local_flakes: args.allow_local_flakes,
        allow_import_from_derivation: args.allow_import_from_derivation,
        evaluate_timeout: args.evaluate_timeout(),
        resolve_timeout: RESOLVE_WITHIN,
        evaluate_memory: args.evaluate_memory << 20,
        evaluations: Args::cores(),
        builds: args.builds,
        cores: 0,
        sandbox: !args.no_sandbox,
        readable: Vec::new(),
        store: None,
        clock: clock.clone(),
    };
    // Without an election the epoch is the time of the start: a controller that starts later has the higher one.
    let standby = Lead::standby(clock.clone());
    let lead = if args.leader_elect { standby } else { Lead::alone(standby.next_epoch(0), clock.clone()) };
    let limits = Limits { looks: LOOKS, copies: args.copies, landings: args.landings };
    let real = Real::start(config).await?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), nix = real.nix.version(), confined = real.nix.confined(), "starts");
    Ok(World::new(Arc::new(real), metrics, clock.clone(), lead, limits))
}

/// Watches, and runs a task for each host, until `stop`. Also one that stands by does: its tasks wait for a term.
pub(crate) async fn run_hosts(controller: Arc<Controller>, ready: watch::Sender<bool>, stop: CancellationToken) {
    let client = controller.clients.watches.clone();
    let api = match &controller.args.namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let (tasks, mut new) = mpsc::unbounded_channel();
    let shared = Arc::clone(&controller);
    let jitter = move |pause| shared.world.jitter(pause, 0.15);
    let (hosts, metrics, clock) = (Arc::clone(&controller.hosts), controller.world.metrics.clone(), controller.world.clock.clone());
    let pump = tokio::spawn(pump::run(api, hosts, tasks, metrics, ready, clock, jitter));
    let brake = tokio::time::timeout(BRAKE_WITHIN, controller.brake.known());
    let _ = stop.run_until_cancelled(brake).await;
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(task) = new.recv() => {
                running.spawn(run_host(Arc::clone(&controller), task, stop.clone()));
            }
            Some(_) = running.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    while running.join_next().await.is_some() {}
    pump.abort();
}

/// The life of one host: pass after pass, while this controller leads.
async fn run_host(controller: Arc<Controller>, task: Task, stop: CancellationToken) {
    let mut stored = Stored::default();
    let (mut failures, mut uid) = (0, None);
    while !task.gone.is_cancelled() && !stop.is_cancelled() {
        let term = tokio::select! {
            biased;
            () = task.gone.cancelled() => break,
            () = stop.cancelled() => break,
            term = controller.world.lead.term() => term,
        };
        let Some((newest, cancel)) = controller.hosts.begin(&task.key, &stop) else { break };
        if newest.metadata().uid != uid {
            // Another one of the same name; also one whose end another replica saw to.
            forget(&controller.world, uid.take());
            uid.clone_from(&newest.metadata().uid);
        }
        let next = one_pass(&controller, newest, &mut stored, &cancel, &term).await;
        failures = if next.is_some() { 0 } else { failures + 1 };
        let pause = match next.unwrap_or_else(|| retry(&controller.world, failures)) {
            Next::Now => continue,
            Next::After(pause) => pause,
            Next::Wait => Duration::from_secs(86_400),
        };
        tokio::select! {
            biased;
            () = task.gone.cancelled() => break,
            () = stop.cancelled() => break,
            () = term.cancelled() => {}
            () = task.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    if task.gone.is_cancelled() {
        forget(&controller.world, uid);
    }
}

fn forget(world: &World, uid: Option<String>) {
    if let Some(uid) = uid {
        world.forget(&uid);
    }
}

/// When Kubernetes could not be spoken to, or a pass panicked: 1 s, 2 s, 4 s, 6 s. No longer, so that hosts go on soon after an outage.
fn retry(world: &World, failures: u32) -> Next {
    let pause = Duration::from_secs(1 << failures.clamp(1, 6).saturating_sub(1)).min(Duration::from_secs(6));
    Next::After(world.jitter(pause, 0.2))
}

/// One pass in a task of its own, so that a panic in it harms only it. `None` if it did not come to an end; at the end of the term it is dropped
/// wherever it is, as if the process had ended.
async fn one_pass(
    controller: &Arc<Controller>,
    newest: Newest,
    stored: &mut Stored,
    cancel: &CancellationToken,
    term: &CancellationToken,
) -> Option<Next> {
    let (namespace, name) = hosts::key(newest.metadata());
    let span =
        tracing::info_span!("pass", namespace, host = name, generation = newest.metadata().generation, stage = tracing::field::Empty);
    let (begun, working) = (controller.world.clock.now(), controller.world.metrics.queues.hosts.wait(&controller.world.clock).work());
    let work = {
        let (controller, cancel, mut stored) = (Arc::clone(controller), cancel.clone(), std::mem::take(stored));
        async move {
            let result = pass::run(&controller, &newest, &mut stored, &cancel).await;
            (result, stored)
        }
    };
    let mut set = JoinSet::new();
    set.spawn(work.instrument(span.clone()));
    let Some(joined) = term.run_until_cancelled(set.join_next()).await else {
        set.shutdown().await;
        return Some(Next::Now);
    };
    let (outcome, next) = match joined {
        Some(Ok((Ok(next), now))) => {
            *stored = now;
            (ended(&next), Some(next))
        }
        Some(Ok((Err(error), now))) => {
            *stored = now;
            span.in_scope(|| controller.complain(complaint::common(&error), &format!("speaking to Kubernetes: {}", clients::said(&error))));
            (Ended::KubernetesError, None)
        }
        Some(Err(error)) => {
            span.in_scope(|| tracing::error!("the pass panicked, only it was harmed: {error}"));
            (Ended::Panicked, None)
        }
        None => (Ended::Done, None),
    };
    drop(working);
    controller.world.metrics.pass(outcome, controller.world.clock.now().saturating_duration_since(begun));
    next
}

fn ended(next: &Next) -> Ended {
    match next {
        Next::Wait => Ended::Done,
        Next::Now => Ended::Requeue,
        Next::After(_) => Ended::RequeueAfter,
    }
}

async fn serve_all(controller: &Arc<Controller>, ready: watch::Receiver<bool>) -> Result<(), RunError> {
    let metrics = Arc::clone(controller);
    serve::serve("metrics", controller.args.metrics_addr, move |path| {
        let controller = Arc::clone(&metrics);
        async move {
            if path != "/metrics" {
                return (StatusCode::NOT_FOUND, "there is only /metrics here\n".into());
            }
            let text = scrape::text(&controller).await;
            text.map_or_else(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()), |text| (StatusCode::OK, text))
        }
    })
    .await?;
    let health = Arc::clone(controller);
    serve::serve("health", controller.args.health_addr, move |path| {
        let (controller, ready) = (Arc::clone(&health), *ready.borrow());
        async move {
            match path.as_str() {
                "/livez" if pump::hangs(&controller.world.metrics, controller.world.clock.now()) => {
                    (StatusCode::SERVICE_UNAVAILABLE, "the watch of NixOSHosts hangs\n".into())
                }
                "/livez" => (StatusCode::OK, "ok\n".into()),
                "/readyz" if ready => (StatusCode::OK, "ok\n".into()),
                "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "NixOSHosts were not listed yet\n".into()),
                _ => (StatusCode::NOT_FOUND, "there are /livez and /readyz here\n".into()),
            }
        }
    })
    .await?;
    Ok(())
}
