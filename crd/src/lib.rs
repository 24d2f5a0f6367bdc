//! The `NixOSHost` resource: types, validation rules, conditions and reasons.
//!
//! The doc comments are what `kubectl explain nixoshost` prints; `crd/manifests/` is generated from them.

mod duration;
mod health;
mod reasons;
mod schema;
mod spec;
mod status;

pub use duration::{Duration, DurationError};
pub use health::{CheckFailurePolicy, CheckFrom, HealthCheck, HttpCheck, HttpScheme, TcpCheck};
pub use reasons::{Class, Reason, condition};
pub use spec::{
    Activation, Build, BuildLocation, Connection, Copy, DriftPolicy, FailedUnitsPolicy, Flake, HostKeyPolicy, Jump, LocalRef, Mode,
    NixOSHost, NixOSHostSpec, RebootPolicy, Verify,
};
pub use status::{
    AppliedFlake, Facts, FlakeStatus, FollowedFlake, HistoryEntry, LandingRef, NixOSHostStatus, Outcome, StageRecord, SystemStatus,
};

/// The API group.
pub const GROUP: &str = "nixoshost.dev";

/// Asks for a pass now: any value that differs from `status.lastHandledReconcileAt`. The key is Flux's, so that its tools work.
pub const REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";

/// Holds a deleted NixOSHost back until its work has stopped and its GC roots are dropped.
pub const FINALIZER: &str = "nixoshost.dev/controller";

/// The CustomResourceDefinition as it is installed: YAML would be made of this value.
pub fn custom_resource_definition() -> serde_json::Result<serde_json::Value> {
    serde_json::to_value(<NixOSHost as kube::core::CustomResourceExt>::crd())
}
