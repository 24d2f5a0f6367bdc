//! The controller under test, as a process.

pub mod executions;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rustix::process::Signal;

use self::executions::Executions;
use crate::{
    flake::server::authority,
    process::{Daemon, command_line, mortal},
    wait::until_true,
    world::{free_port, fresh_directory, write},
};

/// How a controller is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespace that it watches, and is in itself; all when empty.
    pub namespace: Option<String>,
    /// `--allow-local-flakes`.
    pub allow_local_flakes: bool,
    /// Whom it acts as, if not as the chart's ServiceAccount; who that is has rights only by what a test grants.
    pub user: Option<String>,
    /// Whether the programs that it starts are counted; costs a shell for each.
    pub count_executions: bool,
    /// More arguments.
    pub arguments: Vec<String>,
    /// More environment.
    pub environment: BTreeMap<String, String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            namespace: None,
            allow_local_flakes: true,
            user: None,
            count_executions: true,
            arguments: Vec::new(),
            environment: BTreeMap::new(),
        }
    }
}

impl Options {
    /// As in production: no local flakes, so that evaluations are confined by Landlock. Programs are not counted then, for the wrappers that count
    /// lead to files that a confined process may not execute.
    pub fn confined() -> Self {
        Self { allow_local_flakes: false, count_executions: false, ..Self::default() }
    }
}

/// A controller: started, killed and started again on the same data directory.
pub struct Controller {
    directory: PathBuf,
    kubeconfig: PathBuf,
    options: Options,
    metrics_port: u16,
    health_port: u16,
    executions: Executions,
    daemon: Mutex<Option<Daemon>>,
}

impl Controller {
    /// Starts it; [`Controller::ready`] waits for `/readyz`.
    pub fn start(kubeconfig: &Path, options: Options) -> Self {
        let (number, directory) = fresh_directory("controllers");
        let kubeconfig = match &options.user {
            None => kubeconfig.to_owned(),
            Some(user) => acting_as(user, kubeconfig, &directory),
        };
        let controller = Self {
            kubeconfig,
            metrics_port: free_port(),
            health_port: free_port(),
            executions: Executions::install(number),
            daemon: Mutex::default(),
            directory,
            options,
        };
        controller.start_again();
        controller
    }

    /// Starts it again after it was killed or has ended.
    pub fn start_again(&self) {
        let mut command = mortal(binary());
        command.arg("--data-dir").arg(self.data_directory());
        command.arg("--metrics-addr").arg(format!("127.0.0.1:{}", self.metrics_port));
        command.arg("--health-addr").arg(format!("127.0.0.1:{}", self.health_port));
        if let Some(namespace) = self.options.namespace.as_ref().filter(|namespace| !namespace.is_empty()) {
            command.args(["--namespace", namespace]).env("POD_NAMESPACE", namespace);
        }
        if self.options.allow_local_flakes {
            command.arg("--allow-local-flakes");
        }
        command.args(&self.options.arguments).env("KUBECONFIG", &self.kubeconfig);
        for variable in ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"] {
            command.env(variable, authority());
        }
        if self.options.count_executions {
            command.env("PATH", self.executions.path());
        }
        command.envs(&self.options.environment);
        *self.locked() = Some(Daemon::start("nixos-host-controller", command, &self.log_file()));
    }

    fn locked(&self) -> MutexGuard<'_, Option<Daemon>> {
        self.daemon.lock().expect("no test panics with the lock held")
    }

    fn with<T>(&self, act: impl FnOnce(&Daemon) -> T) -> T {
        act(self.locked().as_ref().expect("the controller was started"))
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        until_true("the controller to be ready", Duration::from_secs(30), || {
            assert!(self.with(Daemon::ended).is_none(), "the controller has ended:\n{}", self.log());
            self.health("readyz").is_some_and(|(status, _)| status == 200)
        })
        .await;
    }

    /// `/livez` or `/readyz`: status and body, `None` when nobody answers.
    pub fn health(&self, path: &str) -> Option<(u16, String)> {
        http_get(self.health_port, path)
    }

    /// Where `/metrics` is, on loopback.
    pub fn metrics_port(&self) -> u16 {
        self.metrics_port
    }

    /// `/metrics`.
    pub fn metrics(&self) -> String {
        let (status, body) = http_get(self.metrics_port, "metrics").expect("the controller does not answer on its metrics port");
        assert_eq!(status, 200, "/metrics said {status}: {body}");
        body
    }

    /// The values of a metric whose labels contain all the given texts (`stage="Build"`).
    fn samples(&self, name: &str, labels: &[&str]) -> Vec<String> {
        let metrics = self.metrics();
        let samples = metrics.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let samples = samples.filter(|line| labels.iter().all(|label| line.contains(label)));
        samples.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect()
    }

    /// The sum of a metric over all series whose labels contain the given texts (`stage="Build"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        self.samples(name, labels).iter().filter_map(|value| value.parse::<f64>().ok()).sum()
    }

    /// [`Controller::metric`] of something that is counted in whole numbers.
    pub fn count(&self, name: &str, labels: &[&str]) -> usize {
        self.samples(name, labels).iter().filter_map(|value| value.parse::<usize>().ok()).sum()
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.with(Daemon::kill);
    }

    /// SIGTERM: how it ended and after how long; panics past `limit`.
    pub fn terminate(&self, limit: Duration) -> (ExitStatus, Duration) {
        self.with(|daemon| daemon.terminate(limit))
    }

    /// SIGSTOP: it is there and does nothing, until [`Controller::thaw`].
    pub fn freeze(&self) {
        self.with(|daemon| daemon.signal(Signal::STOP));
    }

    /// The end of [`Controller::freeze`].
    pub fn thaw(&self) {
        self.with(|daemon| daemon.signal(Signal::CONT));
    }

    /// How it has ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.with(Daemon::ended)
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> i32 {
        self.with(Daemon::pid).as_raw_nonzero().get()
    }

    /// The processes that it has started, and those that they have: process id and command line.
    pub fn processes(&self) -> BTreeMap<i32, String> {
        let (mut found, mut next) = (BTreeMap::new(), vec![self.pid()]);
        while let Some(parent) = next.pop() {
            let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
            let children = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
            for child in children.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()) {
                found.insert(child, command_line(child));
                next.push(child);
            }
        }
        found
    }

    /// [`Controller::processes`], without the one that stays to answer for the store.
    pub fn descendants(&self) -> BTreeMap<i32, String> {
        self.processes().into_iter().filter(|(_, line)| !line.contains("--serve")).collect()
    }

    /// The most memory that it has had resident since it started, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the controller runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says VmHWM");
        line.trim().trim_end_matches(" kB").parse().expect("VmHWM is a number")
    }

    /// The programs that it has started.
    pub fn executions(&self) -> &Executions {
        &self.executions
    }

    /// Its data directory.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.join("data")
    }

    /// All that it has logged, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }
}

/// A copy of a kubeconfig with which its user acts as another one.
fn acting_as(user: &str, kubeconfig: &Path, directory: &Path) -> PathBuf {
    let text = std::fs::read_to_string(kubeconfig).expect("cannot read the kubeconfig");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("the kubeconfig is JSON");
    config["users"][0]["user"]["as"] = user.into();
    let path = directory.join("kubeconfig");
    write(&path, config.to_string());
    path
}

/// The binary under test: `NHC_CONTROLLER`, or the one beside the test binary (`target/debug/deps/TEST` → `target/debug`).
pub(crate) fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("NHC_CONTROLLER") {
        return binary.into();
    }
    let test = std::env::current_exe().expect("a process knows its binary");
    let found = test.ancestors().map(|directory| directory.join("nixos-host-controller")).find(|binary| binary.is_file());
    found.unwrap_or_else(|| panic!("no nixos-host-controller above {}: build it, or name it in NHC_CONTROLLER", test.display()))
}

/// One HTTP/1.0 request to loopback.
pub(crate) fn http_get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(format!("GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
