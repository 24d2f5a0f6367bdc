//! Evaluates hosts of one flake, in as many processes as cores and memory allow.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::Credentials;
use super::access::Access;
use super::driver::{CACHED, Driver, NETWORK, OPTIONS, Place, hex};
use super::error::EvaluateError;
use super::expression::expression;
use super::fetch::authority_of;
use super::heard::{Done, Heard};
use super::outcome::{Limits, RESTRICT, Verdict, conclude};
use crate::clock::human;
use crate::nix::{DrvPath, LockedFlake, StorePath};
use crate::world::exec::{Command, Ending, Finished};

/// Bytes that a process needs before its first host, and for each; measured, and doubled where it was little.
const BASE: u64 = 250 << 20;
const PER_HOST: u64 = 110 << 20;

/// Hosts that one process evaluates at most: their names are one argument, of 128 KiB at most.
const HOSTS: usize = 200;

/// Evaluates hosts of one flake.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) driver: Arc<Driver>,
    pub(super) flake: LockedFlake,
    pub(super) credentials: Option<Arc<Credentials>>,
    /// Who asked first: in whose turn it is evaluated.
    pub(super) namespace: String,
}

/// A host's derivation, with the output that the store, not the flake, says it has.
pub(super) struct Derived {
    pub(super) drv: DrvPath,
    pub(super) out: StorePath,
    pub(super) done: Done,
}

pub(super) type Settled = (String, Result<Derived, EvaluateError>);

impl Batch {
    /// Evaluates `names`, and tells each result as soon as it is known.
    pub(super) async fn run(&self, names: Vec<String>, cancel: &CancellationToken, mut settle: impl FnMut(Settled)) {
        let missing = self.fetch_first(cancel).await.err();
        let mut groups = self.groups(&names);
        let mut running = FuturesUnordered::new();
        loop {
            running.extend(groups.drain(..).map(|group| self.group(group, cancel)));
            let Some((settled, again)) = running.next().await else { return };
            for (name, result) in settled {
                // What was not fetched with credentials cannot be fetched without; that nobody needed does not matter.
                settle((
                    name,
                    result.map_err(|error| missing.clone().filter(|_| matches!(error, EvaluateError::FetchFailed { .. })).unwrap_or(error)),
                ));
            }
            groups.extend(again);
        }
    }

    /// Equal groups, one for each process that may run, none larger than memory allows.
    fn groups(&self, names: &[String]) -> VecDeque<Vec<String>> {
        let processes = self.driver.evaluating.free().max(1);
        let fit = self.driver.heap.saturating_sub(BASE) / PER_HOST;
        let size = names.len().div_ceil(processes).min(usize::try_from(fit).unwrap_or(HOSTS)).clamp(1, HOSTS);
        names.chunks(size).map(<[String]>::to_vec).collect()
    }

    /// One process, as soon as there is room for it.
    async fn group(&self, names: Vec<String>, cancel: &CancellationToken) -> (Vec<Settled>, Vec<Vec<String>>) {
        let fail = |error: EvaluateError| (names.iter().map(|name| (name.clone(), Err(error.clone()))).collect(), Vec::new());
        let permit = tokio::select! {
            permit = self.driver.evaluating.acquire(&self.namespace) => permit,
            () = cancel.cancelled() => return fail(EvaluateError::Cancelled),
        };
        let verdict = match self.evaluate(&names, cancel).await {
            Ok(verdict) => verdict,
            Err(error) => return fail(error),
        };
        drop(permit);
        (self.derive(verdict.settled, cancel).await, verdict.again)
    }

    async fn evaluate(&self, names: &[String], cancel: &CancellationToken) -> Result<Verdict, EvaluateError> {
        let driver = &self.driver;
        let ifd = driver.config.allow_import_from_derivation;
        let place = driver.place(self.credentials.as_ref()).map_err(|e| no_place(&e))?;
        let access = if self.trusted() { self.access(&place).await?.without_netrc() } else { Access::none() };
        let nonce = hex(&rand::random::<[u8; 16]>());
        let (expression, uris) = (expression(&nonce, names), driver.allowed_uris());
        let target = format!("{}#.", self.flake.reference);
        let args =
            ["eval", "--json", "--no-eval-cache", "--log-format", "internal-json"].into_iter().chain(OPTIONS).chain(CACHED).chain(NETWORK);
        let args = args.chain(RESTRICT).chain(["--option", "allowed-uris", &uris]);
        let args = args.chain(["--option", "allow-import-from-derivation", if ifd { "true" } else { "false" }]).chain(driver.sandbox());
        let args = args.chain(["--apply", &expression, "--", &target]);
        let mut command = driver.command(&driver.tools.nix, args, &place, &access);
        let (initial, maximum) = ((driver.heap / 2).min(384 << 20), driver.heap);
        command.env.push(("GC_INITIAL_HEAP_SIZE".into(), initial.to_string().into()));
        command.env.push(("GC_MAXIMUM_HEAP_SIZE".into(), maximum.to_string().into()));
        let time = driver.config.evaluate_timeout;
        let confinement = if ifd { driver.building_confinement(&place) } else { driver.confinement(&place) };
        let command = Command { time, confinement, address_space: Some(driver.heap.saturating_mul(2)), ..command };
        let mark = self.flake.rev.clone().unwrap_or_else(|| self.flake.nar_hash.clone());
        let mut heard = Heard::new(nonce, mark);
        let counted = driver.tally.evaluations.begin();
        let finished = driver.processes.run(command, |line| heard.line(line), cancel).await;
        drop(counted);
        let finished = finished.map_err(|e| EvaluateError::Process(Arc::new(e)))?;
        let limits = Limits { seconds: time.as_secs(), mebibytes: maximum >> 20 };
        Ok(conclude(names, heard, finished.ending, &finished.stderr, limits))
    }

    /// Whether an evaluation may have credentials in its environment: it cannot build, and Landlock hides `/proc`.
    fn trusted(&self) -> bool {
        let config = &self.driver.config;
        !config.allow_import_from_derivation && !config.allow_local_flakes && self.driver.processes.landlock()
    }

    /// Fetches all inputs, where evaluating is to go without a credential that may be needed for one of them.
    async fn fetch_first(&self, cancel: &CancellationToken) -> Result<(), EvaluateError> {
        let driver = &self.driver;
        let Some(credentials) = &self.credentials else { return Ok(()) };
        if self.trusted() && credentials.netrc.is_none() {
            return Ok(());
        }
        let place = driver.place(self.credentials.as_ref()).map_err(|e| no_place(&e))?;
        let access = self.access(&place).await?;
        let uris = driver.allowed_uris();
        let args = ["flake", "archive", "--json", "--log-format", "internal-json"]
            .into_iter()
            .chain(OPTIONS)
            .chain(CACHED)
            .chain(NETWORK)
            .chain(RESTRICT);
        let args = args.chain(["--option", "allowed-uris", &uris, "--", &self.flake.reference]);
        let command = driver.command(&driver.tools.nix, args, &place, &access);
        let time = driver.config.resolve_timeout;
        let command = Command { time, confinement: driver.confinement(&place), ..command };
        let mut heard = Heard::default();
        let finished =
            driver.processes.run(command, |line| heard.line(line), cancel).await.map_err(|e| EvaluateError::Process(Arc::new(e)))?;
        match finished.ending {
            Ending::Exited(0) => Ok(()),
            Ending::Cancelled => Err(EvaluateError::Cancelled),
            Ending::TimedOut => Err(EvaluateError::FetchFailed { message: format!("no end within {}", human(time)) }),
            _ => Err(EvaluateError::FetchFailed { message: heard.error.map_or_else(|| said(&finished), |error| error.text()) }),
        }
    }

    async fn access(&self, place: &Place) -> Result<Access, EvaluateError> {
        let authority = authority_of(&self.flake.reference);
        Access::grant(self.credentials.as_ref(), authority.as_deref(), place).await.map_err(|e| no_place(&e))
    }

    /// Reads the outputs of all derivations from the store.
    async fn derive(&self, settled: Vec<(String, Result<Done, EvaluateError>)>, cancel: &CancellationToken) -> Vec<Settled> {
        let drv = |done: &Done| done.drv.parse::<DrvPath>().map_err(|error| EvaluateError::Other { message: error.to_string() });
        let (mut results, mut drvs) = (Vec::new(), Vec::new());
        for (name, result) in settled {
            match result.and_then(|done| Ok((drv(&done)?, done))) {
                Ok((drv, done)) => drvs.push((name, drv, done)),
                Err(error) => results.push((name, Err(error))),
            }
        }
        let paths: Vec<&str> = drvs.iter().map(|(_, drv, _)| drv.as_str()).collect();
        let together = self.outputs(&paths, cancel).await;
        for (index, (name, drv, done)) in drvs.into_iter().enumerate() {
            let out = match &together {
                Ok(outs) => Ok(outs[index].clone()),
                // One derivation that is not what it should be does not spoil the others.
                Err(EvaluateError::Other { .. }) => self.outputs(&[drv.as_str()], cancel).await.map(|mut outs| outs.remove(0)),
                Err(error) => Err(error.clone()),
            };
            results.push((name, out.map(|out| Derived { drv, out, done })));
        }
        results
    }

    /// The output of each derivation: the one that has its name, if it has several.
    async fn outputs(&self, drvs: &[&str], cancel: &CancellationToken) -> Result<Vec<StorePath>, EvaluateError> {
        if drvs.is_empty() {
            return Ok(Vec::new());
        }
        let driver = &self.driver;
        let place = driver.place(None).map_err(|e| no_place(&e))?;
        let args = ["--query", "--outputs"].into_iter().chain(drvs.iter().copied());
        let command =
            Command { time: driver.config.resolve_timeout, ..driver.command(&driver.tools.nix_store, args, &place, &Access::none()) };
        let finished = driver.processes.run(command, |_| (), cancel).await.map_err(|e| EvaluateError::Process(Arc::new(e)))?;
        if finished.ending == Ending::Cancelled {
            return Err(EvaluateError::Cancelled);
        }
        let stdout = String::from_utf8_lossy(&finished.stdout);
        let outs: Vec<StorePath> = stdout.lines().filter_map(|line| line.parse().ok()).collect();
        let named = |drv: &&str| {
            let drv: DrvPath = drv.parse().ok()?;
            outs.iter().find(|out| out.name() == drv.name()).cloned()
        };
        let found = match outs.len() == drvs.len() {
            true => Some(outs.clone()),
            false if drvs.len() == 1 => drvs.iter().map(named).collect(),
            false => None,
        };
        found.filter(|_| finished.success()).ok_or_else(|| EvaluateError::Other {
            message: format!("the store does not know the outputs of the derivation: {}", said(&finished)),
        })
    }
}

fn said(finished: &Finished) -> String {
    super::message::git_says(&finished.stderr)
}

fn no_place(error: &std::io::Error) -> EvaluateError {
    EvaluateError::Other { message: format!("cannot prepare a place for the process: {error}") }
}
