//! What all services share: the programs, their environment, and the places where they run.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt as _;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::counters::Tally;
use super::roots::Roots;
use super::scopes::Scopes;
use super::store::StoreQueryError;
use super::tools::{Environment, Tools};
use super::{Credentials, NixConfig};
use crate::nix::StorePath;
use crate::world::Fair;
use crate::world::exec::{Command, Confinement, Ending, ExecError, Processes};

/// Bytes that a process needs to evaluate one ordinary NixOS host, with room to spare; measured: 345 MB.
const EVALUATION: u64 = 600 << 20;

/// How long the local store may take to say what is valid.
const VALIDITY: Duration = Duration::from_secs(60);

/// System files that nix, git and ssh read. Not `/etc` as a whole: keys and tokens live there too.
const SYSTEM_FILES: [&str; 31] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/gitconfig",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/nix/nix.conf",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/sys/fs/cgroup",
];

/// Devices that hold nothing.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Why Nix cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A program is not there.
    #[error("{program} is not on PATH ({})", path.display())]
    Missing {
        /// Which.
        program: &'static str,
        /// Where it was looked for.
        path: OsString,
    },
    /// Nix could not be started.
    #[error("cannot ask Nix about itself")]
    Probe {
        /// Why.
        source: ExecError,
    },
    /// Nix did not answer.
    #[error("`nix {deed}` {ending}: {message}")]
    Unusable {
        /// What it was asked.
        deed: String,
        /// How it ended.
        ending: Ending,
        /// What it said.
        message: String,
    },
    /// Nix's settings are not what they should look like.
    #[error("cannot read the answer of `nix config show --json`")]
    Settings {
        /// Why.
        source: serde_json::Error,
    },
    /// The data directory has a name that a shell or ssh could take for something else.
    #[error("the data directory {path:?} must be absolute, with only letters, digits and . _ + = , - / in its name, 80 characters at most")]
    DataDirName {
        /// Its name.
        path: PathBuf,
    },
    /// The data directory cannot be used.
    #[error("cannot prepare the data directory {}", path.display())]
    DataDir {
        /// Its name.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

pub(super) struct Driver {
    pub(super) config: NixConfig,
    pub(super) tools: Tools,
    pub(super) processes: Processes,
    pub(super) tally: Tally,
    pub(super) roots: Roots,
    scopes: Arc<Scopes>,
    /// One permit for each process that may evaluate at the same time.
    pub(super) evaluating: Fair,
    /// Bytes of heap that each of them may have.
    pub(super) heap: u64,
    /// Makes names on disk useless for guessing what a credential was.
    salt: Vec<u8>,
}

/// A place for one process: its home and temporary directory, gone with it, and the fetcher cache of its credential.
pub(super) struct Place {
    dir: TempDir,
    cache: Arc<PathBuf>,
}

impl Place {
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The fetcher cache.
    pub(super) fn cache(&self) -> Arc<PathBuf> {
        Arc::clone(&self.cache)
    }

    pub(super) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }
}

impl Driver {
    pub(super) async fn start(config: NixConfig, processes: Processes, ours: &Environment) -> Result<Self, StartError> {
        let dir = &config.data_dir;
        // Its name becomes part of GIT_SSH_COMMAND, which git hands to a shell, and of a socket's, which has 108 bytes.
        let plain = |text: &str| text.len() <= 80 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._+=,-/".contains(&b));
        if !dir.is_absolute() || !dir.to_str().is_some_and(plain) {
            return Err(StartError::DataDirName { path: dir.clone() });
        }
        let salt = prepare(dir).map_err(|source| StartError::DataDir { path: dir.clone(), source })?;
        let tools = Tools::probe(&processes, ours).await?;
        let scopes = Arc::new(Scopes::new(dir.join("cache"), dir.join("run"), config.clock.clone()));
        scopes.keep_swept();
        let at_once = (config.evaluate_memory / EVALUATION).clamp(1, u64::try_from(config.evaluations).unwrap_or(1).max(1));
        Ok(Self {
            evaluating: Fair::new(usize::try_from(at_once).unwrap_or(1)),
            heap: config.evaluate_memory / at_once,
            tally: Tally::default(),
            roots: Roots::new(),
            scopes,
            config,
            tools,
            processes,
            salt,
        })
    }

    /// A name for what belongs to this credential alone; tells nothing about it.
    pub(super) fn scope(&self, credentials: Option<&Arc<Credentials>>) -> String {
        match credentials {
            None => "public".into(),
            Some(credentials) => hex(&Sha256::new().chain_update(&self.salt).chain_update(credentials.digest()).finalize()[..16]),
        }
    }

    pub(super) fn place(&self, credentials: Option<&Arc<Credentials>>) -> io::Result<Place> {
        let cache = self.scopes.open(&self.scope(credentials))?;
        let dir =
            tempfile::Builder::new().prefix("").permissions(Permissions::from_mode(0o700)).tempdir_in(self.config.data_dir.join("run"))?;
        let place = Place { dir, cache };
        private_dir(&place.home())?;
        private_dir(&place.tmp())?;
        Ok(place)
    }

    /// `program` with `args` in `place`, with the common environment and what `access` adds to it.
    pub(super) fn command<A: AsRef<OsStr>>(
        &self,
        program: &Path,
        args: impl IntoIterator<Item = A>,
        place: &Place,
        access: &Access,
    ) -> Command {
        let mut command = Command::new(program, args.into_iter().map(|arg| arg.as_ref().to_owned()));
        let protocols = if self.config.allow_local_flakes { "https:ssh:http:git:file" } else { "https:ssh:http:git" };
        let pair = |(name, value): (&str, &OsStr)| (OsString::from(name), value.to_owned());
        let (home, tmp) = (place.home(), place.tmp());
        let ours: [(&str, &OsStr); 12] = [
            ("PATH", &self.tools.path),
            ("HOME", home.as_os_str()),
            ("TMPDIR", tmp.as_os_str()),
            ("LC_ALL", "C".as_ref()),
            ("NIX_USER_CONF_FILES", "".as_ref()),
            ("NIX_CACHE_HOME", place.cache.as_os_str()),
            ("XDG_CACHE_HOME", place.cache.as_os_str()),
            ("XDG_CONFIG_HOME", home.as_os_str()),
            ("GIT_CONFIG_GLOBAL", "/dev/null".as_ref()),
            ("GIT_CONFIG_NOSYSTEM", "1".as_ref()),
            ("GIT_TERMINAL_PROMPT", "0".as_ref()),
            ("GIT_ALLOW_PROTOCOL", protocols.as_ref()),
        ];
        command.env = self.tools.environment.iter().cloned().chain(ours.map(pair)).chain(access.environment()).collect();
        command.files = access.files();
        command.directory = Some(home.clone());
        command
    }

    /// What a process may use that runs a stranger's program in `place`; `None` where local flakes are allowed.
    pub(super) fn confinement(&self, place: &Place) -> Option<Arc<Confinement>> {
        if self.config.allow_local_flakes {
            return None;
        }
        let mut read: Vec<PathBuf> = SYSTEM_FILES.iter().map(PathBuf::from).collect();
        read.extend(self.tools.needs.iter().chain(&self.config.readable).cloned());
        read.extend(self.settings());
        let mut write: Vec<PathBuf> = DEVICES.iter().map(PathBuf::from).collect();
        write.extend(["/nix".into(), place.path().to_owned(), place.cache.to_path_buf()]);
        Some(Arc::new(Confinement { read, write }))
    }

    /// Options for every command that builds: in a sandbox or without, and never the one for the other.
    pub(super) fn sandbox(&self) -> [&'static str; 6] {
        let sandbox = if self.config.sandbox { "true" } else { "false" };
        ["--option", "sandbox", sandbox, "--option", "sandbox-fallback", "false"]
    }

    /// What a build without a sandbox may use: its builder runs as our own user. A sandbox needs none of this, and
    /// cannot be set up under Landlock; nor can other machines' keys be found.
    pub(super) fn build_confinement(&self, place: &Place) -> Option<Arc<Confinement>> {
        if self.config.sandbox || self.tools.builders {
            return None;
        }
        let system = SYSTEM_FILES.iter().map(PathBuf::from);
        let read = system.chain(self.tools.needs.iter().chain(&self.config.readable).cloned()).chain(self.settings()).collect();
        let write = ["/nix", "/dev", "/tmp", "/var/tmp"].map(PathBuf::from).into_iter().chain([place.path().to_owned()]).collect();
        Some(Arc::new(Confinement { read, write }))
    }

    /// What an evaluation may use that builds: what its builds may, and its fetcher cache.
    pub(super) fn building_confinement(&self, place: &Place) -> Option<Arc<Confinement>> {
        if self.config.allow_local_flakes {
            return None;
        }
        let mut confinement = Arc::unwrap_or_clone(self.build_confinement(place)?);
        confinement.write.push(place.cache.to_path_buf());
        Some(Arc::new(confinement))
    }

    /// Nix's settings, if they are not in the usual place.
    fn settings(&self) -> Option<PathBuf> {
        let (_, dir) = self.tools.environment.iter().find(|(name, _)| name == "NIX_CONF_DIR")?;
        Some(Path::new(dir).join("nix.conf"))
    }

    /// What flakes and their inputs may be fetched from: the value of Nix's `allowed-uris`.
    pub(super) fn allowed_uris(&self) -> String {
        let local = if self.config.allow_local_flakes { " path: git+file: file: tarball+file: file+file:" } else { "" };
        format!(
            "https: http: git+https: git+http: git+ssh: ssh: github: gitlab: sourcehut: tarball+https: tarball+http: file+https: file+http:{local}"
        )
    }

    /// Those of `paths` that are valid in the local store.
    pub(super) async fn valid(&self, paths: &[StorePath]) -> Result<HashSet<StorePath>, StoreQueryError> {
        if let Some(store) = &self.config.store {
            return store.valid(paths).await;
        }
        let place = self.place(None).map_err(|e| StoreQueryError(e.into()))?;
        let args = ["--check-validity", "--print-invalid"].into_iter().chain(paths.iter().map(StorePath::as_str));
        let command = Command { time: VALIDITY, ..self.command(&self.tools.nix_store, args, &place, &Access::none()) };
        let finished = self.processes.run(command, |_| (), &CancellationToken::new()).await.map_err(|e| StoreQueryError(e.into()))?;
        if !finished.success() {
            return Err(StoreQueryError(finished.stderr.join("\n").into()));
        }
        let invalid = String::from_utf8_lossy(&finished.stdout).into_owned();
        let invalid: HashSet<&str> = invalid.lines().collect();
        Ok(paths.iter().filter(|path| !invalid.contains(path.as_str())).cloned().collect())
    }
}

/// Options for every `nix` command.
pub(super) const OPTIONS: [&str; 16] = [
    "--extra-experimental-features",
    "nix-command flakes",
    "--no-update-lock-file",
    "--option",
    "accept-flake-config",
    "false",
    "--option",
    "flake-registry",
    "",
    "--option",
    "use-registries",
    "false",
    "--option",
    "warn-dirty",
    "false",
    "--show-trace",
];

/// A remote archive is asked for anew.
pub(super) const FRESH: [&str; 3] = ["--option", "tarball-ttl", "0"];

/// A remote archive is what it was when it was last asked for: the locked one, or Nix says that its hash is another.
pub(super) const CACHED: [&str; 3] = ["--option", "tarball-ttl", "4294967295"];

/// Options for every command that may fetch.
pub(super) const NETWORK: [&str; 6] = ["--option", "connect-timeout", "15", "--option", "download-attempts", "3"];

/// Makes the directories, and returns the salt that belongs to them.
fn prepare(dir: &Path) -> io::Result<Vec<u8>> {
    private_dir(dir)?;
    let run = dir.join("run");
    if run.exists() {
        // Places of processes that an earlier controller did not live to clean up.
        std::fs::remove_dir_all(&run)?;
    }
    private_dir(&run)?;
    private_dir(&dir.join("cache"))?;
    let file = dir.join("salt");
    if let Ok(salt) = std::fs::read(&file)
        && salt.len() == 32
    {
        return Ok(salt);
    }
    let salt: [u8; 32] = rand::rng().random();
    std::fs::write(&file, salt)?;
    Ok(salt.to_vec())
}

pub(super) fn private_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
