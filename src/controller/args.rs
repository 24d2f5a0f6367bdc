//! The command line, and the same as environment variables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use clap::builder::RangedU64ValueParser;

/// Lands NixOS systems on machines, driven by NixOSHost resources.
///
/// Kubernetes is found as kubectl finds it (KUBECONFIG, ~/.kube/config), or in-cluster. nix, nix-store, git and ssh are found on PATH.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Args {
    /// Where results, fetched sources and nothing secret are kept across restarts.
    #[arg(long, env = "NHC_DATA_DIR", default_value = "/var/lib/nixos-host-controller")]
    pub data_dir: PathBuf,

    /// Where /metrics is served.
    #[arg(long, env = "NHC_METRICS_ADDR", default_value = "[::]:8080")]
    pub metrics_addr: SocketAddr,

    /// Where /livez and /readyz are served.
    #[arg(long, env = "NHC_HEALTH_ADDR", default_value = "[::]:8081")]
    pub health_addr: SocketAddr,

    /// The only namespace to watch; all when absent.
    #[arg(long, env = "NHC_NAMESPACE")]
    pub namespace: Option<String>,

    /// Allow path: and git+file: flakes. Every author of a NixOSHost may then read the controller's files.
    #[arg(long, env = "NHC_ALLOW_LOCAL_FLAKES", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub allow_local_flakes: bool,

    /// Allow evaluations to build (import from derivation).
    #[arg(long, env = "NHC_ALLOW_IMPORT_FROM_DERIVATION", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub allow_import_from_derivation: bool,

    /// How long one evaluation may take, in seconds.
    #[arg(long, env = "NHC_EVALUATE_TIMEOUT", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub evaluate_timeout: u64,

    /// Memory for all evaluations together, in MiB.
    #[arg(long, env = "NHC_EVALUATE_MEMORY", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(256..=1_048_576))]
    pub evaluate_memory: u64,

    /// Builds at a time (Nix's max-jobs). 0: none here, only on the builders that Nix is configured with.
    #[arg(long, env = "NHC_BUILDS", default_value_t = cores(), value_parser = count(0))]
    pub builds: usize,

    /// Build without Nix's sandbox, where user namespaces are refused. Builders then run as the controller's user.
    #[arg(long, env = "NHC_NO_SANDBOX", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub no_sandbox: bool,

    /// Copies to hosts at a time.
    #[arg(long, env = "NHC_COPIES", default_value_t = 16, value_parser = count(1))]
    pub copies: usize,

    /// Landings at a time.
    #[arg(long, env = "NHC_LANDINGS", default_value_t = 64, value_parser = count(1))]
    pub landings: usize,

    /// Elect a leader by a Lease: one replica works, the others stand by, warm. Wants get, create and update of that Lease.
    #[arg(long, env = "NHC_LEADER_ELECT", num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub leader_elect: bool,

    /// The name of the Lease. Replicas of one controller have it in common.
    #[arg(long, env = "NHC_LEASE_NAME", default_value = "nixos-host-controller")]
    pub lease_name: String,

    /// Where the Lease is; the controller's own namespace when absent (POD_NAMESPACE, the service account's, or that of the kubeconfig's context).
    #[arg(long, env = "NHC_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// How long after its leader's end another replica takes over, in seconds. The same for all replicas.
    #[arg(long, env = "NHC_LEASE_DURATION", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=300))]
    pub lease_duration: u64,

    /// The ConfigMap, in the controller's own namespace, that stops all hosts while its key `stopped` is "true". Wants get of it; empty for none.
    #[arg(long, env = "NHC_BRAKE_CONFIGMAP", default_value = "nixos-host-controller-brake")]
    pub brake_configmap: String,

    /// What is logged: trace, debug, info, warn or error, also by module, as in `info,nixos_host_controller=debug`.
    #[arg(long, env = "NHC_LOG", default_value = "info")]
    pub log: String,
}

/// Processors of this machine.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// So many at a time, from `least`: with none, hosts would wait for ever without a word.
fn count(least: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(least..=10_000)
}

impl Args {
    /// How long one evaluation may take.
    pub fn evaluate_timeout(&self) -> Duration {
        Duration::from_secs(self.evaluate_timeout)
    }

    /// How long a Lease lasts.
    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.lease_duration)
    }

    /// Processors of this machine.
    pub fn cores() -> usize {
        cores()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_number_with_which_nothing_would_ever_be_done_is_refused() {
        let parse = |argument: &str| Args::try_parse_from(["controller", argument]);
        for argument in [
            "--copies=0",
            "--landings=0",
            "--evaluate-timeout=0",
            "--evaluate-memory=0",
            "--lease-duration=0",
            "--copies=-1",
            "--builds=10001",
        ] {
            let error = parse(argument).unwrap_err();
            let (name, value) = argument.split_once('=').unwrap();
            let text = error.to_string();
            assert_eq!(error.kind(), clap::error::ErrorKind::ValueValidation, "{text}");
            assert!(text.contains(&format!("'{value}' for '{name}")), "{text}");
        }
        assert_eq!(parse("--builds=0").unwrap().builds, 0, "all builds are left to remote builders");
    }
}
