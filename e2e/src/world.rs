//! Where this world keeps things: what `e2e/world/enter` told this process in its environment.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::output;

/// The address of the bridge to which every host is connected: the controller's address as hosts see it.
pub const BRIDGE_ADDRESS: &str = "10.77.0.1";

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set: run this inside e2e/world/enter, as `make e2e` does")).into()
}

/// The directory of this run; it goes when the world ends.
pub fn run_directory() -> PathBuf {
    variable("NHC_WORLD")
}

/// What `setup` made and keeps between runs.
pub fn cache() -> PathBuf {
    variable("NHC_CACHE")
}

/// A script of `e2e/world`.
pub fn script(name: &str) -> PathBuf {
    variable("NHC_WORLD_SCRIPTS").join(name)
}

/// The cgroup under which each host gets its own.
pub fn cgroup() -> PathBuf {
    variable("NHC_CGROUP")
}

/// The Nix that this world runs, on the controller's side and the hosts': `nix`, or what `NHC_NIX` said.
pub fn nix_flavour() -> String {
    std::env::var("NHC_NIX").unwrap_or_else(|_| "nix".to_owned())
}

/// Makes `KIND/1`, `KIND/2` … under the run directory: the first that is free, also for another process of the same world.
pub fn fresh_directory(kind: &str) -> (u32, PathBuf) {
    let parent = run_directory().join(kind);
    std::fs::create_dir_all(&parent).unwrap_or_else(|error| panic!("cannot make {}: {error}", parent.display()));
    (1..100_000)
        .map(|number| (number, parent.join(number.to_string())))
        .find(|(_, directory)| std::fs::create_dir(directory).is_ok())
        .expect("a world has fewer than 100,000 of anything, and its disk has space")
}

/// A TCP port of this world that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("cannot listen on loopback");
    listener.local_addr().expect("a listener has an address").port()
}

/// Writes a file of the harness, with the directories above it.
pub fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).unwrap_or_else(|error| panic!("cannot make {}: {error}", parent.display()));
    }
    std::fs::write(path, content).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

/// An SSH key pair, in OpenSSH's own format.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// The private key's file; mode 0600.
    pub file: PathBuf,
    /// `ssh-ed25519 AAAA…`, without a comment.
    pub public: String,
}

impl KeyPair {
    /// A new Ed25519 key at `file`.
    pub fn generate(file: impl Into<PathBuf>) -> Self {
        Self::generate_with(file, &["-t", "ed25519", "-N", ""])
    }

    /// A new key at `file`, made with the given options of ssh-keygen (`-t`, `-N` for a passphrase).
    pub fn generate_with(file: impl Into<PathBuf>, options: &[&str]) -> Self {
        let file = file.into();
        let _ = std::fs::remove_file(&file);
        output(Command::new("ssh-keygen").args(["-q", "-C", ""]).args(options).arg("-f").arg(&file));
        let public =
            std::fs::read_to_string(format!("{}.pub", file.display())).expect("ssh-keygen writes a public key beside the private one");
        let public = public.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        Self { file, public }
    }

    /// `SHA256:…`, as sshd logs it.
    pub fn fingerprint(&self) -> String {
        let shown = output(Command::new("ssh-keygen").arg("-lf").arg(&self.file));
        shown.split_whitespace().nth(1).expect("ssh-keygen shows size, fingerprint and type").to_owned()
    }

    /// The private key's text, as it goes into a Secret.
    pub fn private(&self) -> String {
        std::fs::read_to_string(&self.file).expect("the private key was just made")
    }
}
