//! What the tests run against: a git server over https, repositories in it, and Nix.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

/// A server and a data directory, gone with it.
pub(super) struct World {
    dir: tempfile::TempDir,
    server: Child,
    port: String,
}

/// `seconds` as a duration.
pub(super) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn never() -> CancellationToken {
    CancellationToken::new()
}

/// A configuration whose toplevel is a derivation that runs `script`.
pub(super) fn host(script: &str) -> String {
    format!(
        r#"{{ config.system.nixos.version = "26.05"; config.networking.hostName = "h"; config.system.build.toplevel = derivation {{
             name = "nixos-system"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" {} ]; }}; }}"#,
        nix_string(script)
    )
}

/// A flake with these configurations.
pub(super) fn flake(hosts: &[(&str, &str)]) -> String {
    let hosts: Vec<String> = hosts.iter().map(|(name, value)| format!("{} = {value};", nix_string(name))).collect();
    format!("{{ outputs = {{ self, ... }}@inputs: {{ nixosConfigurations = {{\n{}\n}}; }}; }}", hosts.join("\n"))
}

pub(super) fn nix_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${"))
}

#[expect(clippy::disallowed_methods, reason = "the tests' own tools")]
pub(super) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "the tests' own server")]
    pub(super) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("nhc-test-").tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir_all(dir.path().join("repositories/private")).unwrap();
        let subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2", "-nodes"];
        let request = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-keyout",
            &file("key"),
            "-out",
            &file("certificate"),
        ];
        run("openssl", &[&request[..], &subject[..]].concat());
        std::fs::write(file("server.py"), include_str!("../fixtures/git_https.py")).unwrap();
        let mut server = Command::new("python3")
            .args(["server.py", "repositories", "certificate", "key", "log"].map(file))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { port: port.trim().to_owned(), dir, server }
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// How often the server was asked.
    pub(super) fn requests(&self) -> usize {
        std::fs::read_to_string(self.path().join("log")).unwrap_or_default().lines().count()
    }

    /// Bytes of git's answers so far.
    pub(super) fn sent(&self) -> usize {
        let lines = std::fs::read_to_string(self.path().join("log.sent")).unwrap_or_default();
        lines.lines().filter_map(|line| line.split(' ').next()?.parse::<usize>().ok()).sum()
    }

    /// Commits these files, adding to what is there; the revision.
    pub(super) fn commit(&self, repository: &str, files: &[(&str, &str)]) -> String {
        let dir = self.path().join("repositories").join(repository);
        let git = |args: &[&str]| run("git", &[&["-C", dir.to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@t"], args].concat());
        if !dir.join(".git").exists() {
            std::fs::create_dir_all(&dir).unwrap();
            git(&["init", "-q", "-b", "main"]);
        }
        for (name, text) in files {
            let file = dir.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            match text.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, file).unwrap(),
                None => std::fs::write(file, text).unwrap(),
            }
        }
        git(&["add", "-A"]);
        git(&["commit", "-q", "--allow-empty", "-m", "x"]);
        git(&["rev-parse", "HEAD"])
    }

    pub(super) fn git(&self, repository: &str, args: &[&str]) -> String {
        run(
            "git",
            &[
                &["-C", self.path().join("repositories").join(repository).to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@t"],
                args,
            ]
            .concat(),
        )
    }

    pub(super) fn url(&self, repository: &str) -> String {
        format!("git+https://{}/{repository}", self.host())
    }

    pub(super) fn flake(&self, repository: &str) -> FlakeRef {
        FlakeRef::new(&self.url(repository), None, None, false).unwrap()
    }

    /// What the controller would have; change it as the test needs.
    #[expect(clippy::disallowed_methods, reason = "the test's clock")]
    pub(super) fn config(&self) -> NixConfig {
        NixConfig {
            data_dir: self.path().join("data"),
            allow_local_flakes: false,
            allow_import_from_derivation: false,
            evaluate_timeout: seconds(60),
            resolve_timeout: seconds(60),
            evaluate_memory: 1200 << 20,
            evaluations: 2,
            builds: 2,
            cores: 0,
            sandbox: false,
            readable: Vec::new(),
            store: None,
            clock: Clock::new(Instant::now, jiff::Timestamp::now),
        }
    }

    pub(super) async fn start(&self, config: NixConfig) -> Nix {
        Nix::start_with(config, Processes::new(), &self.environment()).await.unwrap()
    }

    /// What the controller would find.
    pub(super) fn environment(&self) -> Environment {
        let mut ours: Environment = std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "NIX_CONF_DIR").collect();
        for name in ["NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "GIT_SSL_CAINFO"] {
            ours.insert(name.into(), self.path().join("certificate").into());
        }
        ours
    }

    pub(super) async fn nix(&self) -> Nix {
        self.start(self.config()).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

pub(super) fn credentials(pairs: &[(&str, &str)]) -> Arc<Credentials> {
    let secret: BTreeMap<String, Vec<u8>> = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
    Arc::new(Credentials::parse(&secret).unwrap())
}

/// The answer to one question, asked anew.
pub(super) async fn resolve(nix: &Nix, flake: &FlakeRef, credentials: Option<Arc<Credentials>>) -> Result<LockedFlake, ResolveError> {
    nix.resolve(&Resolve { flake: flake.clone(), credentials, fresh_since: None, demands: Demands::default() }, &never()).await
}

pub(super) async fn evaluate(nix: &Nix, flake: &LockedFlake, attribute: &str) -> Result<Evaluated, EvaluateError> {
    nix.evaluate(
        Evaluate { flake: flake.clone(), attribute: attribute.into(), credentials: None, retry: false, namespace: String::new() },
        &never(),
    )
    .await
}
