//! From a derivation to a toplevel in the store: each built once, however many hosts want it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::Build;
use super::driver::Driver;
use super::error::BuildError;
use super::flight::Flights;
use super::gather::Gather;
use super::progress::{BuildProgress, name};
use super::realise::{Order, realise};
use super::roots::{RootKind, RootsError};
use super::store::StoreQueryError;
use crate::nix::{DrvPath, StorePath};

/// Realising processes at a time; each builds up to `max-jobs` derivations, and they wait for each other's.
const PROCESSES: usize = 4;

/// What a process that is out of time may take to end and to be heard, before its waiters give up on it.
const SLACK: Duration = Duration::from_secs(6);

/// Builds toplevels.
pub(super) struct Builds {
    driver: Arc<Driver>,
    flights: Flights<DrvPath, Result<StorePath, BuildError>>,
    gather: Gather<(), Order>,
    running: Arc<Semaphore>,
    /// Where each flight tells how far it is.
    progress: Mutex<HashMap<DrvPath, watch::Sender<BuildProgress>>>,
}

impl Builds {
    pub(super) fn new(driver: Arc<Driver>) -> Self {
        let running = Arc::new(Semaphore::new(PROCESSES));
        Self { driver, flights: Flights::default(), gather: Gather::default(), running, progress: Mutex::default() }
    }

    pub(super) async fn build(
        &self,
        request: Build,
        progress: &watch::Sender<BuildProgress>,
        cancel: &CancellationToken,
    ) -> Result<StorePath, BuildError> {
        if self.kept(&request).await {
            return Ok(request.out);
        }
        // A root that is set before its path is valid leaves the garbage collector no moment in between.
        let (roots, root) = (&self.driver.roots, &request.root);
        roots.set(root, RootKind::Drv, request.drv.as_store_path()).map_err(rootless)?;
        roots.set(root, RootKind::Building, &request.out).map_err(rootless)?;
        let built = self.have(&request, progress, cancel).await;
        if built.is_ok() {
            roots.set(root, RootKind::System, &request.out).map_err(rootless)?;
        }
        roots.drop(root, RootKind::Building).map_err(rootless)?;
        built
    }

    /// Whether nothing is to be done: what is wanted is there, and is kept already.
    async fn kept(&self, request: &Build) -> bool {
        let (roots, root) = (&self.driver.roots, &request.root);
        roots.has(root, RootKind::Drv, request.drv.as_store_path())
            && roots.has(root, RootKind::System, &request.out)
            && self.driver.valid(std::slice::from_ref(&request.out)).await.is_ok_and(|valid| valid.contains(&request.out))
    }

    async fn have(
        &self,
        request: &Build,
        progress: &watch::Sender<BuildProgress>,
        cancel: &CancellationToken,
    ) -> Result<StorePath, BuildError> {
        let valid = self.driver.valid(std::slice::from_ref(&request.out)).await.map_err(|error| unknown(&error))?;
        if valid.contains(&request.out) {
            return Ok(request.out.clone());
        }
        if let Some(system) = request.system.as_ref().filter(|system| !self.driver.tools.systems.contains(system)) {
            return Err(BuildError::WrongSystem { system: system.clone(), available: self.driver.tools.systems.clone() });
        }
        let told = self.told(&request.drv);
        let mut heard = told.subscribe();
        let flight = self.flights.join(request.drv.clone(), cancel, |token| self.order(request, told.clone(), token));
        let forward = async {
            while heard.changed().await.is_ok() {
                progress.send_replace(heard.borrow_and_update().clone());
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            built = flight => built.unwrap_or(Err(BuildError::Cancelled)),
            () = forward => Err(BuildError::Cancelled),
            () = tokio::time::sleep(request.timeout + SLACK) => {
                let drv = told.borrow().running.first().map(|running| running.name.clone());
                Err(BuildError::TimedOut { seconds: request.timeout.as_secs(), drv, log: Vec::new() })
            }
        }
    }

    /// Has the derivation realised with the others that are asked for now.
    fn order(
        &self,
        request: &Build,
        told: watch::Sender<BuildProgress>,
        token: CancellationToken,
    ) -> impl Future<Output = Result<StorePath, BuildError>> + use<> {
        let (reply, answer) = oneshot::channel();
        let order = Order {
            drv: request.drv.clone(),
            out: request.out.clone(),
            timeout: request.timeout,
            told,
            cancel: token.clone(),
            reply: Some(reply),
        };
        let (driver, running) = (Arc::clone(&self.driver), Arc::clone(&self.running));
        let ready = move || {
            let running = Arc::clone(&running);
            async move { running.acquire_owned().await }
        };
        let serve = move |permit, orders| {
            let driver = Arc::clone(&driver);
            // Not awaited here: what comes meanwhile gets a process of its own.
            tokio::spawn(async move {
                realise(&driver, orders).await;
                drop(permit);
            });
            async {}
        };
        self.gather.add((), order, ready, serve);
        async move {
            tokio::select! {
                () = token.cancelled() => Err(BuildError::Cancelled),
                answer = answer => answer.unwrap_or(Err(BuildError::Cancelled)),
            }
        }
    }

    /// Where the flight of this derivation tells how far it is; those that nobody listens to are forgotten.
    fn told(&self, drv: &DrvPath) -> watch::Sender<BuildProgress> {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.retain(|_, told| told.receiver_count() > 0);
        progress.entry(drv.clone()).or_default().clone()
    }
}

fn rootless(error: RootsError) -> BuildError {
    BuildError::Root(Arc::new(error))
}

pub(super) fn unknown(error: &StoreQueryError) -> BuildError {
    BuildError::Other { message: format!("{error}: {}", error.0) }
}

/// The name of the derivation that a build error is about.
pub(super) fn about(drv: Option<&str>, order: &DrvPath) -> String {
    drv.map_or_else(|| order.name().to_owned(), name)
}
