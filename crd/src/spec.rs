//! What a person writes.

#![expect(unreachable_pub, reason = "KubeSchema repeats the struct inside a function")]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Duration, HealthCheck, NixOSHostStatus};

/// One NixOS machine and the flake revision that it should run. The controller resolves the revision, evaluates and builds it with Nix,
/// copies the closure over SSH and lands it so that the machine can never be stranded: unless the new system proves itself reachable, the machine goes back to the old one by itself.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[kube(
    group = "nixoshost.dev",
    version = "v1alpha1",
    kind = "NixOSHost",
    plural = "nixoshosts",
    singular = "nixoshost",
    shortname = "nh",
    category = "nixos",
    namespaced,
    status = "NixOSHostStatus",
    derive = "PartialEq",
    doc = "One NixOS machine and the flake revision that it should run.",
    selectable = ".spec.flake.url",
    validation = kube::core::Rule::new("size(self.metadata.name) <= 63").message("metadata.name: at most 63 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "UpToDate", type_ = "string", json_path = ".status.conditions[?(@.type==\"UpToDate\")].status"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.revision"),
    printcolumn(name = "System", type_ = "string", json_path = ".status.system.short"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.connection.addresses[0]", priority = 1),
    printcolumn(name = "Reachable", type_ = "string", json_path = ".status.conditions[?(@.type==\"Reachable\")].status", priority = 1),
    printcolumn(name = "Booted", type_ = "string", json_path = ".status.system.bootedShort", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = crate::schema::fields_speak_for_themselves)]
pub struct NixOSHostSpec {
    /// What the machine should run.
    pub flake: Flake,

    /// How the machine is reached.
    pub connection: Connection,

    /// How the system is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,

    /// How the closure gets to the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copy>,

    /// How the system is activated, and when the machine goes back by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activation: Option<Activation>,

    /// What has to hold of a new system before it is committed, besides that the machine is reachable and no unit failed. Run at the same time, after `activation.settle`, with the modes Switch and Test;
    /// all of it within `activation.commitWithin`. A host that runs the desired system already is not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Map(vec!["name".into()]))]
    pub health_checks: Vec<HealthCheck>,

    /// What happens when the machine runs something other than what was last committed, because a person switched it by hand:
    /// `Correct` (default) puts the desired system back, `Report` only sets the condition Drifted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_drift: Option<DriftPolicy>,

    /// How often the machine is looked at and a followed `ref` is read again; at least 5s. Default: 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('5s') && duration(self) <= duration('24h'))").message("interval: from 5s to 24h"))]
    pub interval: Option<Duration>,

    /// Stops all work on the machine before the next stage begins, until it is false again. A landing that has begun is finished or reverted first. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

/// A flake, what of it is wanted, and which of its systems.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.rev) && has(self.ref))").message("at most one of rev and ref: rev pins a revision, ref follows a branch or tag"))]
#[x_kube(validation = kube::core::Rule::new("!has(self.verify) || self.url.startsWith('git+')").message("verify: only commits that git itself fetches can be verified, so url must start with git+ssh:// or git+https://"))]
pub struct Flake {
    /// A flake reference: git+ssh://, git+https://, github:OWNER/REPO, gitlab:, sourcehut:, an https:// tarball; path: and git+file:// if the controller allows local flakes.
    /// `?dir=` names a folder inside the repository.
    #[schemars(length(min = 1, max = 1024))]
    pub url: String,

    /// The one revision to run: 40 lower-case hexadecimal digits. What GitOps writes. Nothing is asked of the network once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^([0-9a-f]{40}|[0-9a-f]{64})$"))]
    pub rev: Option<String>,

    /// A branch or tag to follow: read again each interval. Without `rev` and `ref`: what the url itself leads to.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 250))]
    pub reference: Option<String>,

    /// The name below `nixosConfigurations`. Default: metadata.name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub attribute: Option<String>,

    /// A Secret in the same namespace with credentials for the flake and its private inputs: `ssh-privatekey` with `known_hosts`, `netrc`, `access-tokens` (lines of `host=token`), any of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_ref: Option<LocalRef>,

    /// Whose signature a commit needs before anything of it is read. Without it: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verify>,

    /// Follows a branch also where it was moved back or rewritten: to a commit that does not descend from the one last landed, to an older archive. Default: false.
    /// A change of url, ref or rev is obeyed either way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_downgrade: Option<bool>,
}

/// Whose signature a commit needs: one good signature by any of the keys.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("(has(self.sshKeys) && size(self.sshKeys) > 0) || has(self.gpgKeysRef)").message("verify: name at least one key, in sshKeys or by gpgKeysRef"))]
pub struct Verify {
    /// SSH public keys, as in ~/.ssh/id_ed25519.pub: for commits signed with `gpg.format = ssh`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 2048), regex(pattern = r"^(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+ AAAA")))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub ssh_keys: Vec<String>,

    /// A Secret in the same namespace each of whose keys is an OpenPGP public key, as `gpg --armor --export` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpg_keys_ref: Option<LocalRef>,
}

/// The name of an object in the same namespace.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct LocalRef {
    /// Its metadata.name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// How a machine is reached over SSH.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Names or addresses, tried in order, the one that last worked first.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 253), regex(pattern = r"^[0-9A-Za-z:][0-9A-Za-z.:%-]*$")))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub addresses: Vec<String>,

    /// The SSH port. Default: 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,

    /// The user to log in as; one other than root needs sudo, or where there is no sudo doas, without a password. Default: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z_][a-z0-9_.-]*$"))]
    pub user: Option<String>,

    /// A Secret in the same namespace whose key `ssh-privatekey` is an unencrypted private key that the user accepts.
    pub ssh_key_ref: LocalRef,

    /// The machine's host keys, as in /etc/ssh/ssh_host_ed25519_key.pub. Nothing is sent to a machine that shows another one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 2048)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub host_keys: Vec<String>,

    /// `Pinned` (default) needs hostKeys. `TrustOnFirstUse` takes the key that the machine shows at the first connection, records it in status.hostKey and insists on it from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key_policy: Option<HostKeyPolicy>,

    /// A jump host (bastion) to go through: the connection to the machine runs inside of one to it, and its names and addresses are those that the jump host knows.
    /// One level: a jump host is reached directly. It sees encrypted traffic only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jump: Option<Jump>,
}

/// A jump host, and how it is reached. It needs sshd with TCP forwarding, and nothing of NixOS.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Jump {
    /// Names or addresses, tried in order, the one that last worked first.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 253), regex(pattern = r"^[0-9A-Za-z:][0-9A-Za-z.:%-]*$")))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub addresses: Vec<String>,

    /// The SSH port. Default: 22.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,

    /// The user to log in as; nothing is run there, so an account that may only forward is enough. Default: root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), regex(pattern = r"^[a-z_][a-z0-9_.-]*$"))]
    pub user: Option<String>,

    /// A Secret in the same namespace whose key `ssh-privatekey` is an unencrypted private key that the user accepts; it may be the machine's own. The key itself is sent to neither.
    pub ssh_key_ref: LocalRef,

    /// The jump host's host keys, as in /etc/ssh/ssh_host_ed25519_key.pub. Nothing is sent to one that shows another one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 2048)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub host_keys: Vec<String>,

    /// `Pinned` (default) needs hostKeys. `TrustOnFirstUse` takes the key that the jump host shows at the first connection, records it in status.jumpHostKey and insists on it from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_key_policy: Option<HostKeyPolicy>,
}

/// How the host key of a machine is known.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKeyPolicy {
    /// By `hostKeys`.
    Pinned,
    /// By what it showed first.
    TrustOnFirstUse,
}

/// How the system is built.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// Where: by the `Controller` (default), which then copies what the machine lacks; or on the `Host`, for a machine behind a weak link: only derivations and sources are
    /// sent, and the machine builds at low priority, taking from its own binary caches what they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<BuildLocation>,

    /// How long the whole build may take, from 1s to 24h. Default: 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('1s') && duration(self) <= duration('24h'))").message("timeout: from 1s to 24h"))]
    pub timeout: Option<Duration>,
}

/// Where a system is built.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BuildLocation {
    /// By the controller, which copies the closure.
    #[default]
    Controller,
    /// On the machine, to which derivations are copied.
    Host,
}

/// How the closure gets to the machine.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Copy {
    /// Lets the machine fetch what it lacks from its own binary caches before the controller sends the rest. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub substitute_on_host: Option<bool>,
}

/// How the system is activated, and when the machine goes back by itself.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.reboot) && self.reboot == 'IfRequired' && has(self.mode) && self.mode != 'Switch')").message("reboot: IfRequired goes with mode: Switch only"))]
pub struct Activation {
    /// `Switch` (default): activate, verify, make it the boot default. `Boot`: only make it the boot default. `Test`: activate and verify, leave the boot default. `DryActivate`: report what would change, change nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,

    /// How long the activation itself may take, from 5s to 2h; past it the machine goes back to the old system by itself. Default: 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('5s') && duration(self) <= duration('2h'))").message("activateWithin: from 5s to 2h"))]
    pub activate_within: Option<Duration>,

    /// How long verifying and committing may take, counted from the end of the activation, from 10s to 1h; past it the machine goes back to the old system by itself. Default: 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('10s') && duration(self) <= duration('1h'))").message("commitWithin: from 10s to 1h"))]
    pub commit_within: Option<Duration>,

    /// The new system is verified a second time after this, to catch late failures (DHCP, firewall, crash loops); less than commitWithin. Default: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || duration(self) <= duration('30m')").message("settle: at most 30m"))]
    pub settle: Option<Duration>,

    /// What a unit that fails with the new system, and did not fail before, means: `Revert` (default) to the old system, or `Keep` the new one and name the unit in the condition Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failed_units: Option<FailedUnitsPolicy>,

    /// What happens when the new system has another kernel, initrd or other kernel parameters than the machine has booted. `Never` (default): it is activated without them, and the condition
    /// RebootRequired says so. `IfRequired`: the machine boots the new system once, and it becomes the boot default only when it has proved itself after that boot; needs systemd-boot or GRUB, and mode Switch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<RebootPolicy>,

    /// How long the machine may take to come back from a reboot, from 30s to 2h; past it the resource says so and goes on looking for it. Default: 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('30s') && duration(self) <= duration('2h'))").message("rebootWithin: from 30s to 2h"))]
    pub reboot_within: Option<Duration>,
}

/// The activation goal.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Activate, verify, make it the boot default.
    #[default]
    Switch,
    /// Only make it the boot default.
    Boot,
    /// Activate and verify, leave the boot default.
    Test,
    /// Report what would change.
    DryActivate,
}

/// What newly failed units mean.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FailedUnitsPolicy {
    /// Go back to the old system.
    #[default]
    Revert,
    /// Keep the new system, name the units.
    Keep,
}

/// When the machine may be rebooted.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum RebootPolicy {
    /// Never.
    #[default]
    Never,
    /// When the new system has another kernel, initrd or other kernel parameters than were booted.
    IfRequired,
}

/// What drift means.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriftPolicy {
    /// Put the desired system back.
    #[default]
    Correct,
    /// Only say so.
    Report,
}
