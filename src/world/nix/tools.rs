//! The programs that are driven: where they are, which version, and what they can build.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::driver::StartError;
use crate::world::exec::{Command, Processes};

/// Variables of our own environment that the programs get too: configuration, certificates, proxies. No secrets.
const HANDED_ON: [&str; 14] = [
    "NIX_CONF_DIR",
    "NIX_SSL_CERT_FILE",
    "SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// The environment of the controller itself.
pub(super) type Environment = BTreeMap<OsString, OsString>;

/// How long a program may take to say what it is.
const PROBE: Duration = Duration::from_secs(20);

/// The programs.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) nix: PathBuf,
    pub(super) nix_store: PathBuf,
    pub(super) git: PathBuf,
    /// Directories that the programs were found in, for theirs to be found; the value of PATH.
    pub(super) path: OsString,
    /// Files and directories that the programs need for themselves.
    pub(super) needs: Vec<PathBuf>,
    /// What of [`HANDED_ON`] is set.
    pub(super) environment: Vec<(OsString, OsString)>,
    /// As in `2.34.8`.
    pub(super) version: String,
    /// Systems that can be built for, our own first.
    pub(super) systems: Vec<String>,
    /// Other machines build too: Nix then uses keys and settings that the operator keeps anywhere.
    pub(super) builders: bool,
}

impl Tools {
    /// A program that is not always needed.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        find(name, &self.path)
    }

    /// Finds the programs on PATH and asks Nix about itself.
    pub(super) async fn probe(processes: &Processes, ours: &Environment) -> Result<Self, StartError> {
        let path = ours.get(OsStr::new("PATH")).cloned().unwrap_or_default();
        let find = |name: &'static str| find(name, &path).ok_or_else(|| StartError::Missing { program: name, path: path.clone() });
        let (nix, nix_store, git, ssh) = (find("nix")?, find("nix-store")?, find("git")?, find("ssh")?);
        let set = |name: &&str| ours.get(OsStr::new(name)).map(|value| (OsString::from(name), value.clone()));
        let environment: Vec<_> = HANDED_ON.iter().filter_map(set).collect();
        let ask = async |args: &[&str]| {
            let env = environment.iter().cloned().chain([("PATH".into(), path.clone()), ("HOME".into(), "/".into())]).collect();
            let command = Command { env, time: PROBE, ..Command::new(&nix, args) };
            let never = CancellationToken::new();
            let finished = processes.run(command, |_| (), &never).await.map_err(|source| StartError::Probe { source })?;
            if finished.success() {
                return Ok(String::from_utf8_lossy(&finished.stdout).trim().to_owned());
            }
            Err(StartError::Unusable { deed: args.join(" "), ending: finished.ending, message: finished.stderr.join("\n") })
        };
        // "nix (Nix) 2.34.8"
        let version = ask(&["--version"]).await?.rsplit(' ').next().unwrap_or_default().to_owned();
        let settings = ask(&["--extra-experimental-features", "nix-command", "config", "show", "--json"]).await?;
        let settings: Settings = serde_json::from_str(&settings).map_err(|source| StartError::Settings { source })?;
        let machines = settings.builders.value.strip_prefix('@').map(|file| std::fs::read_to_string(file).unwrap_or_default());
        let machines = machines.as_deref().unwrap_or(&settings.builders.value);
        let (systems, builders) = (systems(&settings, machines), entries(machines).next().is_some());
        let mut needs: Vec<PathBuf> = [&nix, &git, &ssh].into_iter().flat_map(|program| homes(program)).collect();
        needs.extend(environment.iter().filter(|(name, _)| name.to_string_lossy().contains("SSL")).map(|(_, file)| file.into()));
        Ok(Self { nix, nix_store, git, path, needs, environment, version, systems, builders })
    }
}

/// The first executable file of this name on `path`.
fn find(name: &str, path: &OsString) -> Option<PathBuf> {
    let usable = |file: &PathBuf| file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    std::env::split_paths(path).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(usable)
}

/// Where a program and its libraries are.
fn homes(program: &Path) -> Vec<PathBuf> {
    let real = program.canonicalize().unwrap_or_else(|_| program.into());
    let Some(bin) = real.parent() else { return Vec::new() };
    let beside = |name: &str| bin.parent().map(|parent| parent.join(name));
    std::iter::once(bin.to_owned()).chain(["lib", "libexec", "share"].into_iter().filter_map(beside)).collect()
}

/// What is wanted of `nix config show --json`; the same in 2.26 and 2.34.
#[derive(Deserialize)]
struct Settings {
    system: Setting<String>,
    #[serde(rename = "extra-platforms")]
    extra_platforms: Setting<Vec<String>>,
    builders: Setting<String>,
}

#[derive(Deserialize)]
struct Setting<T> {
    value: T,
}

/// Our own system, what this machine can build beside it, and what the builders can. `machines` is in the format of
/// nix.conf(5): entries by line or semicolon, each `URI SYSTEM,SYSTEM …`.
fn systems(settings: &Settings, machines: &str) -> Vec<String> {
    let own = &settings.system.value;
    let theirs = entries(machines).flat_map(|entry| match entry.split_whitespace().nth(1) {
        None | Some("-") => vec![own.clone()],
        Some(systems) => systems.split(',').map(str::to_owned).collect(),
    });
    let others: BTreeSet<String> = settings.extra_platforms.value.iter().cloned().chain(theirs).filter(|system| system != own).collect();
    std::iter::once(own.clone()).chain(others).collect()
}

fn entries(machines: &str) -> impl Iterator<Item = &str> {
    machines.split(['\n', ';']).map(str::trim).filter(|entry| !entry.is_empty() && !entry.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_are_ours_the_extra_ones_and_the_builders() {
        let settings: Settings = serde_json::from_str(
            r#"{"system":{"value":"x86_64-linux","aliases":[]},"extra-platforms":{"value":["i686-linux"]},"builders":{"value":"@/etc/nix/machines"},"cores":{"value":0}}"#,
        )
        .unwrap();
        let machines = "# a comment\nssh://arm aarch64-linux,armv7l-linux /key 4\nssh://same - /key; ssh://risc riscv64-linux\n";
        assert_eq!(systems(&settings, machines), ["x86_64-linux", "aarch64-linux", "armv7l-linux", "i686-linux", "riscv64-linux"]);
        assert_eq!(systems(&settings, ""), ["x86_64-linux", "i686-linux"]);
    }

    #[test]
    fn a_program_is_found_only_where_path_says_and_only_if_it_can_run() {
        assert!(find("sh", &"/nowhere:/usr/bin:/bin".into()).is_some());
        assert_eq!(find("sh", &"".into()), None);
        assert_eq!(find("passwd", &"/etc".into()), None);
    }
}
