//! A real etcd and kube-apiserver, that can be stopped, killed, frozen and started again on the same data.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;

use crate::{
    kubectl::Kubectl,
    process::{Daemon, mortal, output},
    wait::until_true,
    world::{BRIDGE_ADDRESS, free_port, fresh_directory, run_directory, write},
};

const TOKEN: &str = "e2e-administrator";

/// What ServiceAccounts ask for is written down: `tests/rights.rs` compares it with what the chart lets them.
const AUDIT: &str = r#"{"apiVersion":"audit.k8s.io/v1","kind":"Policy","omitStages":["RequestReceived"],
  "rules":[{"level":"Metadata","userGroups":["system:serviceaccounts"]},{"level":"None"}]}"#;

/// One etcd and one kube-apiserver. Both end when it is dropped.
pub struct ControlPlane {
    directory: PathBuf,
    /// Loopback, or the bridge where pods are to reach it.
    address: &'static str,
    port: u16,
    etcd_port: u16,
    // Declared, and so dropped, in this order: an API server whose etcd went first waits a minute to give its lease back
    api_server: Mutex<Option<Daemon>>,
    etcd: Mutex<Option<Daemon>>,
    namespaces: AtomicU32,
}

impl ControlPlane {
    /// The control plane that the tests of this process share. The first caller starts it; its kubeconfig is the world's `KUBECONFIG`.
    pub async fn shared() -> Arc<Self> {
        static SHARED: tokio::sync::OnceCell<Arc<ControlPlane>> = tokio::sync::OnceCell::const_new();
        let shared = SHARED.get_or_init(|| async {
            let plane = Self::start().await;
            std::fs::copy(plane.kubeconfig(), run_directory().join("kubeconfig")).expect("cannot write the world's kubeconfig");
            Arc::new(plane)
        });
        Arc::clone(shared.await)
    }

    /// A control plane of its own, for a test that takes it down.
    pub async fn start() -> Self {
        Self::start_at("127.0.0.1").await
    }

    /// A control plane for a node: pods reach it by the Service `kubernetes`, and get the token of their ServiceAccount.
    pub async fn start_for_pods() -> Self {
        Self::start_at(BRIDGE_ADDRESS).await
    }

    async fn start_at(address: &'static str) -> Self {
        let (_, directory) = fresh_directory("control-plane");
        let certificates = directory.join("certificates");
        std::fs::create_dir_all(&certificates).expect("cannot make the directory for certificates");
        output(Command::new("openssl").args(["genrsa", "-out"]).arg(certificates.join("service-accounts.key")).arg("2048"));
        write(certificates.join("tokens.csv"), format!("{TOKEN},admin,admin,\"system:masters\"\n"));
        write(directory.join("audit-policy.json"), AUDIT);
        let plane = Self {
            address,
            port: free_port(),
            etcd_port: free_port(),
            api_server: Mutex::default(),
            etcd: Mutex::default(),
            namespaces: AtomicU32::new(0),
            directory,
        };
        plane.write_kubeconfig();
        plane.start_etcd();
        plane.start_api_server();
        plane.ready().await;
        plane
    }

    fn start_etcd(&self) {
        let client = format!("http://127.0.0.1:{}", self.etcd_port);
        let mut command = mortal("etcd");
        command.arg("--data-dir").arg(self.directory.join("etcd")).args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        // Its peers would listen on a fixed port; no port at all lets several run side by side
        command.args(["--listen-peer-urls", "http://127.0.0.1:0", "--unsafe-no-fsync"]);
        *self.etcd.lock().expect("no test panics with the lock held") =
            Some(Daemon::start("etcd", command, &self.directory.join("etcd.log")));
    }

    /// Starts the API server, if it was stopped or killed; [`ControlPlane::ready`] waits for it.
    pub fn start_api_server(&self) {
        let certificates = self.directory.join("certificates");
        let file = |option: &str, name: &str| format!("--{option}={}", certificates.join(name).display());
        let mut command = mortal("kube-apiserver");
        command.args([
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", certificates.display()),
            file("service-account-key-file", "service-accounts.key"),
            file("service-account-signing-key-file", "service-accounts.key"),
            file("token-auth-file", "tokens.csv"),
            format!("--audit-policy-file={}", self.directory.join("audit-policy.json").display()),
            format!("--audit-log-path={}", self.directory.join("audit.log").display()),
        ]);
        command.args([
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
        ]);
        command.args([format!("--bind-address={}", self.address), format!("--advertise-address={}", self.address)]);
        command.args(if self.address == BRIDGE_ADDRESS {
            ["--allow-privileged", "--kubelet-preferred-address-types=InternalIP"]
        } else {
            ["--endpoint-reconciler-type=none", "--disable-admission-plugins=ServiceAccount"]
        });
        *self.locked() = Some(Daemon::start("kube-apiserver", command, &self.directory.join("kube-apiserver.log")));
    }

    fn write_kubeconfig(&self) {
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "e2e", "cluster": {
                "server": format!("https://{}:{}", self.address, self.port),
                "certificate-authority": self.certificate("apiserver.crt"),
            }}],
            "users": [{ "name": "admin", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "e2e", "context": { "cluster": "e2e", "user": "admin", "namespace": "default" } }],
            "current-context": "e2e",
        });
        write(self.kubeconfig(), config.to_string());
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<Daemon>> {
        self.api_server.lock().expect("no test panics with the lock held")
    }

    /// Waits until the API server answers that it is ready.
    pub async fn ready(&self) {
        let kubectl = self.kubectl("default");
        until_true("the API server to be ready", Duration::from_secs(60), || {
            let ended = self.locked().as_ref().and_then(Daemon::ended);
            assert!(ended.is_none(), "kube-apiserver ended, see {}", self.directory.join("kube-apiserver.log").display());
            kubectl.attempt(&["get", "--raw", "/readyz", "--request-timeout=2s"]).stdout == "ok"
        })
        .await;
    }

    /// Where it keeps its own; `audit.log` among them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file of its keys and certificates: `apiserver.crt`, which is its own authority, or `service-accounts.key`.
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.directory.join("certificates").join(name)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// kubectl in `namespace`, as administrator.
    pub fn kubectl(&self, namespace: &str) -> Kubectl {
        Kubectl::new(&self.kubeconfig(), namespace)
    }

    /// A client, as administrator.
    pub async fn client(&self) -> kube::Client {
        client(&self.kubeconfig()).await
    }

    /// A new namespace.
    pub fn namespace(&self) -> String {
        let name = format!("e2e-{}", self.namespaces.fetch_add(1, Ordering::Relaxed) + 1);
        self.create_namespace(&name);
        name
    }

    /// A namespace of a given name.
    pub fn create_namespace(&self, name: &str) {
        self.kubectl("default").run(&["create", "namespace", name]);
    }

    /// Kills the API server (SIGKILL): connections are cut, new ones refused, until [`ControlPlane::start_api_server`].
    pub fn kill_api_server(&self) {
        *self.locked() = None;
    }

    /// Keeps what is stored now, for [`ControlPlane::restore`].
    pub fn snapshot(&self) {
        let etcd = self.etcd.lock().expect("no test panics with the lock held");
        let etcd = etcd.as_ref().expect("etcd runs");
        // As a power cut would leave it, which it comes back from
        etcd.signal(Signal::STOP);
        output(Command::new("cp").arg("-rT").args([self.directory.join("etcd"), self.directory.join("snapshot")]));
        etcd.signal(Signal::CONT);
    }

    /// What is stored is what it was at the [`ControlPlane::snapshot`]: resource versions go back too.
    pub fn restore(&self) {
        self.kill_api_server();
        *self.etcd.lock().expect("no test panics with the lock held") = None;
        std::fs::remove_dir_all(self.directory.join("etcd")).expect("cannot remove what is stored");
        output(Command::new("cp").arg("-rT").args([self.directory.join("snapshot"), self.directory.join("etcd")]));
        self.start_etcd();
        self.start_api_server();
    }

    /// Freezes the API server: connections stay open and nothing answers.
    pub fn freeze_api_server(&self) {
        if let Some(daemon) = &*self.locked() {
            daemon.signal(Signal::STOP);
        }
    }

    /// The end of [`ControlPlane::freeze_api_server`].
    pub fn thaw_api_server(&self) {
        if let Some(daemon) = &*self.locked() {
            daemon.signal(Signal::CONT);
        }
    }
}

/// A client for a kubeconfig.
pub async fn client(kubeconfig: &Path) -> kube::Client {
    let config = kube::config::Kubeconfig::read_from(kubeconfig).expect("cannot read the kubeconfig");
    let config =
        kube::Config::from_custom_kubeconfig(config, &kube::config::KubeConfigOptions::default()).await.expect("not a usable kubeconfig");
    kube::Client::try_from(config).expect("cannot make a client")
}
