//! Health checks: what has to hold of a new system before it is committed.

#![expect(unreachable_pub, reason = "KubeSchema repeats the struct inside a function")]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// Something that has to hold of a new system before it is committed. Exactly one of units, tcp, http and command.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("[has(self.units), has(self.tcp), has(self.http), has(self.command)].filter(x, x).size() == 1").message("exactly one of units, tcp, http and command"))]
#[x_kube(validation = kube::core::Rule::new("!has(self.from) || self.from == 'Host' || has(self.tcp) || has(self.http)").message("from: units and command are asked from the Host only"))]
#[x_kube(validation = kube::core::Rule::new("!has(self.from) || self.from == 'Host' || !(has(self.tcp) && has(self.tcp.address) || has(self.http) && has(self.http.address))").message("address: from the Controller a check goes to the address that SSH reached, and nowhere else"))]
pub struct HealthCheck {
    /// Its name in messages.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,

    /// Where tcp and http connect from: `Host` (default) is the machine itself, asked through the SSH connection, so that ports on localhost are reached too (its sshd has to allow TCP forwarding, as it does by default);
    /// `Controller` connects to the address that SSH reached, through the machine's firewall.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<CheckFrom>,

    /// How long one try may take, from 1s to 5m. Default: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('1s') && duration(self) <= duration('5m'))").message("timeout: from 1s to 5m"))]
    pub timeout: Option<Duration>,

    /// How often a check that failed is tried again before it counts as failed. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0, max = 100))]
    pub retries: Option<u8>,

    /// The pause before another try, from 1s to 5m. Default: 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("!self.matches('^([0-9]+(\\\\.[0-9]+)?(ms|s|m|h))+$') || (duration(self) >= duration('1s') && duration(self) <= duration('5m'))").message("interval: from 1s to 5m"))]
    pub interval: Option<Duration>,

    /// What it means when the check fails: `Revert` (default) to the old system, or `Report`: keep the new one and say so in the condition Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<CheckFailurePolicy>,

    /// systemd units that have to be active. A oneshot service is only with RemainAfterExit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(
            length(min = 3, max = 255),
            regex(
                pattern = r"^[0-9A-Za-z:_.\\@][0-9A-Za-z:_.\\@-]*\.(service|socket|target|mount|automount|timer|path|swap|slice|scope|device)$"
            )
        )
    )]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub units: Option<Vec<String>>,

    /// A port that has to accept connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,

    /// A GET request that has to be answered well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,

    /// A program and its arguments, run as root on the machine, that has to end with exit status 0: no shell reads it. No secrets: its last lines of output are shown in status. At the end of timeout it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32), inner(length(max = 1024)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    #[x_kube(validation = kube::core::Rule::new("self[0] != ''").message("command: the program has no name"))]
    pub command: Option<Vec<String>>,
}

/// A port that has to accept connections.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TcpCheck {
    /// The port.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: u16,

    /// From the Host: the name or address that the machine connects to. Default: localhost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[0-9A-Za-z:][0-9A-Za-z.:%-]*$"))]
    pub address: Option<String>,
}

/// A GET request that has to be answered well. Redirects are not followed.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheck {
    /// `HTTP` (default) or `HTTPS`: the certificate has to be good for `host`, by an authority that the controller trusts (its SSL_CERT_FILE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<HttpScheme>,

    /// The port. Default: 80, or 443 with HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,

    /// From the Host: the name or address that the machine connects to. Default: localhost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[0-9A-Za-z:][0-9A-Za-z.:%-]*$"))]
    pub address: Option<String>,

    /// The name that is asked for: the header Host, and what the certificate has to be good for. Default: the address that is connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[0-9A-Za-z:][0-9A-Za-z.:-]*$"))]
    pub host: Option<String>,

    /// The path, with the query if there is one. Default: /.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = r#"^/[!"$-~]*$"#))]
    pub path: Option<String>,

    /// The status codes that are good. Default: from 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<i32>>", length(min = 1, max = 16), inner(range(min = 200, max = 599)))]
    #[x_kube(merge_strategy = kube::core::ListMerge::Atomic)]
    pub statuses: Option<Vec<u16>>,

    /// A text that has to be in the first 64 KiB of the answer's body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub body_contains: Option<String>,
}

/// Where tcp and http connect from.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CheckFrom {
    /// The machine itself.
    #[default]
    Host,
    /// The controller.
    Controller,
}

/// What it means when a check fails.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CheckFailurePolicy {
    /// Go back to the old system.
    #[default]
    Revert,
    /// Keep the new system, name the check.
    Report,
}

/// Whether the connection is encrypted.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpScheme {
    /// It is not.
    #[default]
    Http,
    /// It is, and the certificate is verified.
    Https,
}
