//! What the controller reports. Nothing here changes on a pass that changes nothing.

#![expect(unreachable_pub, reason = "KubeSchema repeats the struct inside a function")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known of the machine, and what was done with it.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NixOSHostStatus {
    /// The metadata.generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub observed_generation: Option<i64>,

    /// Ready, Reconciling and Stalled as kstatus has them; Reachable, UpToDate and Drifted. docs/troubleshooting.md lists every reason with what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The revision that the machine runs, short: main@3f2a9c1. Read back from the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub revision: Option<String>,

    /// The value of the annotation reconcile.fluxcd.io/requestedAt that was last acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub last_handled_reconcile_at: Option<String>,

    /// The flake, locked: what is being landed, and what the machine runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flake: Option<FlakeStatus>,

    /// Systems of the machine, as store paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemStatus>,

    /// What the machine said of itself when it was last reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub facts: Option<Facts>,

    /// The host key recorded by TrustOnFirstUse; remove it to trust anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub host_key: Option<String>,

    /// The same of the jump host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub jump_host_key: Option<String>,

    /// The last outcome of each stage, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub stages: Vec<StageRecord>,

    /// The last landings, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub history: Vec<HistoryEntry>,
}

/// The flake, locked.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct FlakeStatus {
    /// What the controller last set out to land.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempted: Option<AppliedFlake>,

    /// What the machine runs, read back from it; absent when it runs something that this resource did not land.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<AppliedFlake>,

    /// Where the reference led that spec.flake follows, when it was last landed: it does not lead behind that unless allowDowngrade is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub followed: Option<FollowedFlake>,
}

/// Where a reference that is followed led.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct FollowedFlake {
    /// The reference, with the branch or tag: another one starts anew.
    #[schemars(length(max = 2048))]
    pub reference: String,

    /// The revision; a tarball or directory has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rev: Option<String>,

    /// When it was last modified, in seconds since 1970.
    #[schemars(range(min = -9_007_199_254_740_991_i64, max = 9_007_199_254_740_991_i64))]
    pub last_modified: i64,
}

/// One exact source tree.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct AppliedFlake {
    /// The locked flake reference.
    #[schemars(length(max = 2048))]
    pub url: String,

    /// The revision; a tarball or directory has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rev: Option<String>,

    /// The hash of the source tree.
    #[schemars(length(max = 128))]
    pub nar_hash: String,
}

/// Systems of the machine, as store paths.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct SystemStatus {
    /// What the flake evaluates to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub desired: Option<String>,

    /// What runs: /run/current-system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub current: Option<String>,

    /// What was booted: /run/booted-system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub booted: Option<String>,

    /// What the boot loader starts next; `Unknown` for a boot loader that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub boot_default: Option<String>,

    /// What this resource last landed, or found landed: anything else that runs is drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub landed: Option<String>,

    /// The first characters of `current`'s hash, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub short: Option<String>,

    /// The first characters of `booted`'s hash, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub booted_short: Option<String>,

    /// The generation of the system profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub generation: Option<i64>,
}

/// What the machine said of itself.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// The content of the running system's nixos-version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub nixos_version: Option<String>,

    /// The running kernel's release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub kernel: Option<String>,

    /// The machine's Nix system, such as x86_64-linux.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub architecture: Option<String>,

    /// A new one each boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub boot_id: Option<String>,

    /// A digest of the machine's id; the same in two resources means that both name one machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub machine: Option<String>,
}

/// The last outcome of one stage.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StageRecord {
    /// The stage.
    #[schemars(length(min = 1, max = 32))]
    pub name: String,

    /// A digest of the stage's inputs: the same key and Succeeded is not done again, the same key and Rejected is held.
    #[schemars(length(max = 64))]
    pub key: String,

    /// `Succeeded`, `Failed` (tried again after a while) or `Rejected` (held until an input changes or reconcile.fluxcd.io/requestedAt asks).
    pub outcome: Outcome,

    /// Why, if it did not succeed: one of the reasons in docs/troubleshooting.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,

    /// What came out of it, or what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8192))]
    pub message: Option<String>,

    /// The landing that this stage began, until its end was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landing: Option<LandingRef>,

    /// How often in a row it failed on these inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub failures: Option<i32>,
}

/// A landing on the machine, and the boot in which it began.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LandingRef {
    /// Its identity.
    #[schemars(length(max = 128))]
    pub id: String,

    /// The boot id of the machine when it began: another one now means that the machine restarted in the middle.
    #[schemars(length(max = 64))]
    pub boot_id: String,

    /// The system that is to land.
    #[schemars(length(max = 300))]
    pub system: String,

    /// Its revision, short.
    #[schemars(length(max = 300))]
    pub revision: String,

    /// Its revision, whole; a tarball or directory has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rev: Option<String>,

    /// The machine lands it by booting it once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<bool>,

    /// Units that had failed before such a boot: they do not count against the new system.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20), inner(length(max = 300)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub failed_units: Vec<String>,
}

/// How a stage ended.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Succeeded,
    /// Not done, and tried again.
    Failed,
    /// Not done, and held.
    Rejected,
}

/// One landing, ended.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The system that was to land.
    #[schemars(length(max = 300))]
    pub system: String,

    /// Its revision, short.
    #[schemars(length(max = 300))]
    pub revision: String,

    /// Its revision, whole, as spec.flake.rev takes it; a tarball or directory has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub rev: Option<String>,

    /// The activation goal.
    pub mode: crate::Mode,

    /// `Succeeded`, `Failed` or `Rejected`.
    pub outcome: Outcome,

    /// One of the reasons in docs/troubleshooting.md.
    #[schemars(length(max = 64))]
    pub reason: String,

    /// What happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub message: Option<String>,

    /// When it ended.
    pub time: Time,
}
