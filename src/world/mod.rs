//! The only place that starts a process or opens a connection.
//!
//! What is here does one thing each, knows no Kubernetes and decides nothing.

pub mod copy;
pub mod effects;
pub mod exec;
pub mod fair;
pub mod lead;
pub mod machines;
pub mod nix;
pub mod own;
pub mod probe;
pub mod slots;
pub mod ssh;
mod start;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::metrics::Metrics;

pub use effects::{Connection, Effects, Link, Real};
pub use fair::Fair;
pub use lead::Lead;
pub use machines::{Claim, Machines};
pub use slots::Slots;
pub use start::Limits;

/// All that passes are done with; shared by all of them.
pub struct World {
    /// What is done outside.
    pub effects: Arc<dyn Effects>,
    /// What is counted.
    pub metrics: Metrics,
    /// What time it is.
    pub clock: Clock,
    /// Whether hosts may be touched, and under which epoch: they refuse an older one than they know.
    pub lead: Lead,
    /// Looks at hosts at a time, by namespace as all of these.
    pub looks: Slots,
    /// Copies at a time.
    pub copies: Slots,
    /// Landings at a time.
    pub landings: Slots,
    /// Which resource manages which machine.
    pub machines: Machines,
    /// What is known of a resource's machine from the last connection, by the resource's uid.
    pub peers: Peers,
}

/// A machine as the last connection found it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address that answered.
    pub address: String,
    /// The host key that it showed.
    pub host_key: ssh::HostKey,
    /// The jump host that the connection went through.
    pub jump: Option<Box<Peer>>,
}

impl Peer {
    /// What a connection that was made tells.
    pub fn of(connection: &dyn Connection) -> Self {
        let jump = connection.jump().map(|jump| Box::new(Self::of(jump)));
        Self { address: connection.address().to_owned(), host_key: connection.host_key().clone(), jump }
    }
}

/// Machines as the last connections found them.
#[derive(Debug, Default)]
pub struct Peers(Mutex<HashMap<String, Peer>>);

impl Peers {
    /// The machine of a resource.
    pub fn get(&self, uid: &str) -> Option<Peer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Remembers one that answered.
    pub fn put(&self, uid: &str, peer: Peer) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), peer);
    }

    /// Forgets a resource.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl World {
    /// A new identity for a landing of this resource.
    pub fn landing_id(&self, uid: &str) -> String {
        let prefix: String = uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        format!("{prefix}-{:016x}", self.effects.random())
    }

    /// A new connection to a host, by a controller that leads; commands over it are run only while it does.
    pub async fn connect(&self, target: &ssh::Target, options: &ssh::ConnectOptions) -> Result<Link, ssh::ConnectError> {
        self.lead.held().await;
        Ok(self.effects.connect(target, options).await?.under(self.lead.clone()))
    }

    /// Nothing is known any more of a resource that is gone.
    pub fn forget(&self, uid: &str) {
        self.machines.release(uid);
        self.peers.forget(uid);
    }

    /// `time`, up to `share` of it shorter or longer: what fails together is not tried again together.
    pub fn jitter(&self, time: Duration, share: f64) -> Duration {
        let chance = f64::from(u32::try_from(self.effects.random() >> 32).unwrap_or_default()) / f64::from(u32::MAX);
        time.mul_f64(1.0 - share + 2.0 * share * chance)
    }

    /// Runs a stage's work and counts how long it took, by how it ended.
    pub async fn timed<T, E>(&self, stage: &str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let begun = self.clock.now();
        let result = work.await;
        let outcome = if result.is_ok() { "succeeded" } else { "failed" };
        self.metrics.stage(stage, outcome, self.clock.now().saturating_duration_since(begun));
        result
    }
}
