//! A real Argo CD: repository server, application controller, API server and Redis, on a control plane, with the chart's values for `NixOSHost`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    control_plane::ControlPlane,
    kubectl::Kubectl,
    process::{Daemon, Output, mortal, output, run},
    wait::until,
    world::{cache, free_port, fresh_directory, write},
};

const NAMESPACE: &str = "argocd";

/// Its settings: ours, with `grace` in the health script, and as little else as it starts with.
fn configure(kubectl: &Kubectl, grace: u32) {
    let customizations = customizations();
    let quick = customizations.replace("local grace = 600", &format!("local grace = {grace}"));
    assert_ne!(customizations, quick, "the health script has its grace time in one place");
    kubectl.apply(&config_map(&quick));
    let labels = json!({ "app.kubernetes.io/part-of": "argocd" });
    for name in ["argocd-cmd-params-cm", "argocd-rbac-cm", "argocd-ssh-known-hosts-cm", "argocd-tls-certs-cm"] {
        let metadata = json!({ "name": name, "labels": labels });
        kubectl.apply(&json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {} }).to_string());
    }
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "argocd-secret", "labels": labels },
        "stringData": { "server.secretkey": "e2e", "admin.password": "", "admin.passwordMtime": "2026-01-01T00:00:00Z" },
    });
    kubectl.apply(&secret.to_string());
}

/// The project that Applications are in, once its CRD is served.
async fn default_project(kubectl: &Kubectl) {
    let anything = json!([{ "group": "*", "kind": "*" }]);
    let project = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject", "metadata": { "name": "default" },
        "spec": { "sourceRepos": ["*"], "destinations": [{ "namespace": "*", "server": "*" }], "clusterResourceWhitelist": anything },
    });
    until("the CRDs of Argo CD to be served", Duration::from_secs(30), || async {
        let output = kubectl.attempt_apply(&project.to_string());
        if output.status.success() { Ok(()) } else { Err(output.stderr) }
    })
    .await;
}

/// An Argo CD, and the Git repository that its Applications come from. All of it ends when this is dropped.
pub struct ArgoCd {
    directory: PathBuf,
    server: u16,
    git: u16,
    kubectl: Kubectl,
    daemons: Vec<Daemon>,
}

impl ArgoCd {
    /// Starts it, with `grace` seconds in the health script in place of its own.
    pub async fn start(plane: &ControlPlane, grace: u32) -> Self {
        let (_, directory) = fresh_directory("argocd");
        plane.create_namespace(NAMESPACE);
        let kubectl = plane.kubectl(NAMESPACE);
        let (redis, repository, server, git) = (free_port(), free_port(), free_port(), free_port());
        for crd in ["application-crd.yaml", "appproject-crd.yaml"] {
            kubectl.run(&["apply", "--server-side", "-f", &cache().join("argocd").join(crd).to_string_lossy()]);
        }
        configure(&kubectl, grace);
        default_project(&kubectl).await;
        let mut argocd = Self { directory, server, git, kubectl, daemons: Vec::new() };
        std::fs::create_dir_all(argocd.directory.join("git")).expect("a fresh directory can be written");
        argocd.daemon("redis-server", plane, &["--port", &redis.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        let redis = format!("127.0.0.1:{redis}");
        let metrics = || free_port().to_string();
        let to_repository = format!("127.0.0.1:{repository}");
        argocd.daemon(
            "argocd-repo-server",
            plane,
            &[
                "--address",
                "127.0.0.1",
                "--port",
                &repository.to_string(),
                "--metrics-port",
                &metrics(),
                "--disable-tls",
                "--redis",
                &redis,
            ],
        );
        let client = ["--redis", &redis, "--repo-server", &to_repository, "--repo-server-plaintext", "--metrics-port"];
        let controller = ["--namespace", NAMESPACE, "--app-resync", "2", "--app-resync-jitter", "0", "--self-heal-timeout-seconds", "1"];
        argocd.daemon(
            "argocd-application-controller",
            plane,
            &[&client[..], &[&metrics()], &controller, &["--persist-resource-health"]].concat(),
        );
        let api = ["--namespace", NAMESPACE, "--insecure", "--disable-auth", "--address", "127.0.0.1", "--port", &server.to_string()];
        argocd.daemon("argocd-server", plane, &[&client[..], &[&metrics()], &api].concat());
        let base = argocd.directory.join("git");
        let mut daemon = mortal("git");
        daemon.args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]).arg(format!("--port={git}"));
        daemon.arg(format!("--base-path={}", base.display()));
        let log = argocd.directory.join("git-daemon.log");
        argocd.daemons.push(Daemon::start("git daemon", daemon, &log));
        argocd
    }

    fn daemon(&mut self, name: &str, plane: &ControlPlane, arguments: &[&str]) {
        let mut command = mortal(cache().join("argocd").join(name));
        command
            .args(arguments)
            .env("KUBECONFIG", plane.kubeconfig())
            .env("ARGOCD_FAKE_IN_CLUSTER", "true")
            .env("ARGOCD_GPG_ENABLED", "false");
        command.env("ARGOCD_RECONCILIATION_TIMEOUT", "2s");
        for (variable, directory) in [("ARGOCD_SSH_DATA_PATH", "ssh"), ("ARGOCD_TLS_DATA_PATH", "tls"), ("ARGOCD_GPG_DATA_PATH", "gpg")] {
            let directory = self.directory.join(directory);
            std::fs::create_dir_all(&directory).expect("a fresh directory can be written");
            command.env(variable, directory);
        }
        write(self.directory.join("ssh/ssh_known_hosts"), "");
        // Nothing of one Argo CD lies where another one of the same world has its own
        command.current_dir(&self.directory);
        let log = self.directory.join(format!("{name}.log"));
        self.daemons.push(Daemon::start(name, command, &log));
    }

    /// An Application that brings a repository of its own into a namespace, with the given `syncPolicy.automated`.
    pub fn application(&self, name: &str, namespace: &str, automated: &Value, annotations: &Value) -> Application<'_> {
        let work = self.directory.join("work").join(name);
        let bare = self.directory.join("git").join(name);
        output(Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&bare));
        output(Command::new("git").args(["clone", "--quiet"]).arg(&bare).arg(&work));
        let application = Application { argocd: self, name: name.to_owned(), work };
        application.commit(|_| ());
        let manifest = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": { "name": name, "annotations": annotations },
            "spec": {
                "project": "default",
                "source": { "repoURL": format!("git://127.0.0.1:{}/{name}", self.git), "targetRevision": "main", "path": "." },
                "destination": { "server": "https://kubernetes.default.svc", "namespace": namespace },
                // What is deleted in the foreground waits for a garbage collector, which is part of kube-controller-manager: none runs here
                "syncPolicy": { "automated": automated, "syncOptions": ["PrunePropagationPolicy=background"] },
            },
        });
        self.kubectl.apply(&manifest.to_string());
        application
    }

    /// The ends of all logs.
    pub fn report(&self) -> String {
        let logs = ["argocd-application-controller", "argocd-repo-server", "argocd-server", "git-daemon", "redis-server"];
        logs.map(|name| {
            let text = std::fs::read_to_string(self.directory.join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().filter(|line| !line.contains("level=info")).collect();
            format!("===== {name}\n{}\n", lines[lines.len().saturating_sub(15)..].join("\n"))
        })
        .concat()
    }
}

impl Drop for ArgoCd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}

/// An Application, and the repository that it comes from.
pub struct Application<'a> {
    argocd: &'a ArgoCd,
    name: String,
    work: PathBuf,
}

impl Application<'_> {
    /// Changes the work tree, commits and pushes; the revision.
    pub fn commit(&self, edit: impl FnOnce(&Path)) -> String {
        edit(&self.work);
        let git = |arguments: &[&str]| {
            let identity = ["-c", "user.name=e2e", "-c", "user.email=e2e@example.test"];
            output(Command::new("git").current_dir(&self.work).args(identity).args(arguments))
        };
        git(&["add", "--all"]);
        git(&["commit", "--quiet", "--allow-empty", "--message=change"]);
        git(&["push", "--quiet", "origin", "HEAD:main"]);
        git(&["rev-parse", "HEAD"])
    }

    /// The Application as it is now.
    pub fn get(&self) -> Value {
        self.argocd.kubectl.get(&["application", &self.name])
    }

    /// Asks Argo CD to compare it again, with nothing remembered.
    pub fn refresh(&self) {
        self.argocd.kubectl.run(&["annotate", "--overwrite", "application", &self.name, "argocd.argoproj.io/refresh=hard"]);
    }

    /// Merges into its spec.
    pub fn patch(&self, spec: &Value) {
        let patch = json!({ "spec": spec }).to_string();
        self.argocd.kubectl.run(&["patch", "application", &self.name, "--type=merge", "--patch", &patch]);
    }

    /// Waits until its NixOSHost `name` has a health, with a message that contains `says`; the message.
    pub async fn health(&self, name: &str, status: &str, says: &str, deadline: Duration) -> String {
        until(&format!("{name} to be {status} in Argo CD"), deadline, || async {
            let health = self.health_now(name);
            let message = health["message"].as_str().unwrap_or_default();
            if health["status"] == status && message.contains(says) { Ok(message.to_owned()) } else { Err(health.to_string()) }
        })
        .await
    }

    /// What Argo CD says now of its NixOSHost `name`.
    pub fn health_now(&self, name: &str) -> Value {
        let application = self.get();
        let resources = application["status"]["resources"].as_array().cloned().unwrap_or_default();
        resources.into_iter().find(|resource| resource["name"] == name).map(|resource| resource["health"].clone()).unwrap_or_default()
    }

    /// Waits until all of it is as a revision says.
    pub async fn synced(&self, rev: &str, deadline: Duration) -> Value {
        until(&format!("{} to be synced to {rev}", self.name), deadline, || async {
            let application = self.get();
            let sync = &application["status"]["sync"];
            if sync["status"] == "Synced" && sync["revision"] == rev { Ok(application) } else { Err(application["status"].to_string()) }
        })
        .await
    }

    /// Runs an action on its NixOSHost `host` through Argo CD's API server, as a person does.
    pub fn action(&self, action: &str, host: &str) -> Output {
        let server = format!("127.0.0.1:{}", self.argocd.server);
        run(Command::new(cache().join("argocd/argocd"))
            .args(["app", "actions", "run", &self.name, action, "--kind", "NixOSHost", "--resource-name", host])
            .args(["--server", &server, "--plaintext"])
            .env("HOME", &self.argocd.directory))
    }
}

/// `argocd admin settings resource-overrides …` of an object, with the chart's values: the scripts alone, without a cluster.
pub fn overrides(command: &[&str], object: &Path) -> String {
    let (_, directory) = fresh_directory("overrides");
    let settings = directory.join("argocd-cm.yaml");
    write(&settings, config_map(&customizations()));
    let [subcommand, arguments @ ..] = command else { panic!("which one?") };
    output(
        Command::new(cache().join("argocd/argocd"))
            .args(["admin", "settings", "resource-overrides", subcommand])
            .arg(object)
            .args(arguments)
            .arg("--argocd-cm-path")
            .arg(&settings),
    )
}

/// What `charts/argocd/values.yaml` has below `configs.cm`, as lines for `data`.
fn customizations() -> String {
    let values = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/argocd/values.yaml");
    let values = std::fs::read_to_string(values).expect("the values are part of the project");
    let (_, keys) = values.split_once("configs:\n  cm:\n").expect("the values have configs.cm");
    keys.lines().flat_map(|line| [line.strip_prefix("  ").unwrap_or(line), "\n"]).collect()
}

fn config_map(customizations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: argocd-cm\n  labels: {{ app.kubernetes.io/part-of: argocd }}\n\
         data:\n  timeout.reconciliation: 2s\n{customizations}"
    )
}
