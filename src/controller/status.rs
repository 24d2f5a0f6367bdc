//! The one writer of status: server-side apply of the whole status, only when it differs, never faster than it may.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use nixos_host_api::{NixOSHost, NixOSHostStatus};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::clients::{REQUEST_WITHIN, said};
use super::complaint::{NO_ANSWER, common};
use crate::clock::human;
use crate::world::Lead;

/// The field manager of everything that this controller writes.
pub(super) const MANAGER: &str = "nixos-host-controller";

/// Progress of one host is written at most this often.
const PROGRESS: Duration = Duration::from_secs(5);

/// What a pass has left behind sooner than this after it began needs no word: a quick landing has two writes then instead of three.
const QUICK: Duration = Duration::from_secs(1);

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The API server refused, or could not be reached.
    #[error("writing the status: {}", said(.0))]
    Api(Box<kube::Error>),
    /// The API server did not answer.
    #[error("writing the status: no answer within {}", human(REQUEST_WITHIN))]
    TimedOut,
    /// Another replica leads, and writes.
    #[error("writing the status: this controller does not lead")]
    Deposed,
    /// The object is another one of the same name: the host was deleted and made anew.
    #[error("writing the status: the object was replaced by another one of the same name")]
    Replaced,
    /// What this pass knows of the host is no longer all that is known.
    #[error("writing the status: somebody else wrote it since this pass began")]
    Overtaken,
}

impl WriteError {
    /// What it is, if every host's status meets it.
    pub(super) fn common(&self) -> Option<&'static str> {
        match self {
            Self::Api(error) => common(error),
            Self::TimedOut => Some(NO_ANSWER),
            Self::Deposed | Self::Replaced | Self::Overtaken => None,
        }
    }
}

/// What is known to be stored.
#[derive(Debug, Clone, Default)]
pub(super) struct Stored {
    /// The status.
    pub(super) status: NixOSHostStatus,
    version: u64,
    /// What was sent since, and whose answer was not heard: any of it may be stored.
    unheard: Vec<NixOSHostStatus>,
    /// It is not what the pass began with: this pass writes no more.
    overtaken: bool,
}

/// So many of them are remembered. Of an older one the watch tells.
const UNHEARD: usize = 4;

impl Stored {
    /// The newer of what a watch delivered and what was written last: a watch may lag behind one's own writes.
    pub(super) fn newest(self, object: &NixOSHost) -> Self {
        let version = version(object);
        if version > self.version { Self::at(version, object.status.clone()) } else { Self { overtaken: false, ..self } }
    }

    /// Whether what a watch delivered is older: it lags, or the API server was restored from a backup.
    pub(super) fn is_ahead_of(&self, object: &NixOSHost) -> bool {
        self.version > version(object)
    }

    /// What is stored, as the API server says now.
    pub(super) fn of(object: &NixOSHost) -> Self {
        Self::at(version(object), object.status.clone())
    }

    fn at(version: u64, status: Option<NixOSHostStatus>) -> Self {
        Self { status: status.unwrap_or_default(), version, ..Self::default() }
    }

    /// Takes note of what was sent, and may have been stored.
    fn may_be(&mut self, status: NixOSHostStatus) {
        if self.unheard.last() != Some(&status) {
            self.unheard.push(status);
        }
        let spare = self.unheard.len().saturating_sub(UNHEARD);
        self.unheard.drain(..spare);
    }
}

/// Comparable since Kubernetes 1.35 (KEP-5504), and in practice long before.
fn version(object: &NixOSHost) -> u64 {
    object.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

/// Writes the status of one host, for one pass.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    api: Api<NixOSHost>,
    name: String,
    uid: String,
    stored: Arc<Mutex<Stored>>,
    lead: Lead,
}

impl Writer {
    /// A writer for `object`, of which `stored` is known.
    pub(super) fn new(api: Api<NixOSHost>, object: &NixOSHost, stored: Stored, lead: Lead) -> Self {
        Self { api, name: object.name_any(), uid: object.uid().unwrap_or_default(), stored: Arc::new(Mutex::new(stored)), lead }
    }

    /// What is known to be stored now.
    pub(super) async fn stored(&self) -> Stored {
        self.stored.lock().await.clone()
    }

    /// Writes what `make` makes of the stored status, unless that is it already. Says whether anything was written.
    ///
    /// A write goes on top of the version that it was made from, or not at all: one that comes late, or from a controller that another one has
    /// followed, would otherwise take back what is known of a landing.
    pub(super) async fn write(&self, mut make: impl FnMut(&NixOSHostStatus) -> NixOSHostStatus) -> Result<bool, WriteError> {
        let mut stored = self.stored.lock().await;
        let mut refreshed = false;
        loop {
            if stored.overtaken {
                return Err(WriteError::Overtaken);
            }
            let status = make(&stored.status);
            if status == stored.status && stored.unheard.is_empty() {
                return Ok(refreshed);
            }
            match self.apply(&status, stored.version).await {
                Ok(object) => {
                    *stored = Stored::at(version(&object), object.status.or(Some(status)));
                    return Ok(true);
                }
                Err(WriteError::Api(error)) if !refreshed && matches!(&*error, kube::Error::Api(status) if status.code == 409) => {
                    *stored = self.refreshed(&stored).await?;
                    refreshed = true;
                }
                Err(error) => {
                    stored.may_be(status);
                    return Err(error);
                }
            }
        }
    }

    async fn apply(&self, status: &NixOSHostStatus, version: u64) -> Result<NixOSHost, WriteError> {
        if !self.lead.holds() {
            return Err(WriteError::Deposed);
        }
        let metadata = if version == 0 { serde_json::json!({}) } else { serde_json::json!({"resourceVersion": version.to_string()}) };
        let body = serde_json::json!({"apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": metadata, "status": status});
        let parameters = PatchParams::apply(MANAGER).force();
        self.ours(self.api.patch_status(&self.name, &parameters, &Patch::Apply(body))).await
    }

    /// What is stored: overtaken, if it is neither what is known nor something whose answer was not heard. After a restore from a backup that is an
    /// older version.
    async fn refreshed(&self, known: &Stored) -> Result<Stored, WriteError> {
        let object = self.ours(self.api.get(&self.name)).await?;
        let stored = Stored::at(version(&object), object.status);
        let overtaken = stored.status != known.status && !known.unheard.contains(&stored.status);
        Ok(Stored { overtaken, ..stored })
    }

    /// What the API server answers in time, if it is of our object.
    async fn ours(&self, call: impl Future<Output = Result<NixOSHost, kube::Error>>) -> Result<NixOSHost, WriteError> {
        let answer = tokio::time::timeout(REQUEST_WITHIN, call).await.map_err(|_| WriteError::TimedOut)?;
        let object = answer.map_err(|error| WriteError::Api(Box::new(error)))?;
        if object.uid().as_deref() == Some(&self.uid) { Ok(object) } else { Err(WriteError::Replaced) }
    }
}

/// What makes a status of the one that is stored.
pub(super) type Make = Box<dyn Fn(&NixOSHostStatus) -> NixOSHostStatus + Send + Sync>;

/// Writes the newest of what it is given, after [`QUICK`] and at most every [`PROGRESS`], until `stop`. A write that has begun is ended first: a write that the
/// API server still works on could otherwise come after the next one.
pub(super) async fn write_progress(writer: Writer, mut newest: watch::Receiver<Option<Arc<Make>>>, stop: CancellationToken) {
    stop.run_until_cancelled(tokio::time::sleep(QUICK)).await;
    while let Some(Ok(())) = stop.run_until_cancelled(newest.changed()).await {
        // The newest of the moment in which it may be written: an older one could take back what was stored meanwhile.
        let written = writer.write(|stored| newest.borrow_and_update().as_ref().map_or_else(|| stored.clone(), |make| make(stored))).await;
        if let Err(error) = written {
            tracing::debug!("{}", crate::stage::chain(&error));
        }
        stop.run_until_cancelled(tokio::time::sleep(PROGRESS)).await;
    }
}
