//! A whole world for one test: namespace, hosts, repository with its server, controller and oracle; tells everything it knows when the test fails.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};

use crate::{
    chart,
    control_plane::ControlPlane,
    controller::{Controller, Options},
    flake::{Fleet, Repository, Server, server::Login},
    host::{Host, Shape},
    kubectl::Kubectl,
    oracle::Oracle,
    wait::until,
    world::{KeyPair, fresh_directory},
};

/// The Secret with the SSH key that every host of a scenario accepts, as root and as `deploy`.
pub const SSH_SECRET: &str = "fleet-ssh";

/// The Secret with the login of the scenario's git server, when it has one.
pub const GIT_SECRET: &str = "fleet-git";

/// What a scenario is to consist of.
#[must_use]
pub struct Builder {
    hosts: usize,
    shape: Shape,
    login: Option<Login>,
    plane: Option<Arc<ControlPlane>>,
    own_control_plane: bool,
    namespace: Option<String>,
    controller: Option<Options>,
    fleet: Box<dyn FnOnce(&mut Fleet) + Send>,
}

impl Builder {
    /// Hosts, and configurations for them: `web-1`, `web-2` …; one unless said otherwise.
    pub fn hosts(mut self, hosts: usize) -> Self {
        self.hosts = hosts;
        self
    }

    /// What the hosts are made of.
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// The fleet of the first commit, beyond hosts of those names.
    pub fn fleet(mut self, edit: impl FnOnce(&mut Fleet) + Send + 'static) -> Self {
        self.fleet = Box::new(edit);
        self
    }

    /// The git server wants this over HTTPS.
    pub fn login(mut self, user: &str, password: &str) -> Self {
        self.login = Some(Login { user: user.to_owned(), password: password.to_owned() });
        self
    }

    /// A control plane that no other test shares, to be taken down.
    pub fn own_control_plane(mut self) -> Self {
        self.own_control_plane = true;
        self
    }

    /// On this control plane, whose CRDs are there already.
    pub fn control_plane(mut self, plane: &Arc<ControlPlane>) -> Self {
        self.plane = Some(Arc::clone(plane));
        self
    }

    /// A namespace of this name, which nothing else may use.
    pub fn namespace(mut self, name: &str) -> Self {
        self.namespace = Some(name.to_owned());
        self
    }

    /// How the controller is started.
    pub fn controller(mut self, options: Options) -> Self {
        self.controller = Some(options);
        self
    }

    /// No controller yet: [`Scenario::start_controller`].
    pub fn without_controller(mut self) -> Self {
        self.controller = None;
        self
    }

    /// Makes all of it, and waits until hosts and controller answer.
    pub async fn start(self) -> Scenario {
        let plane = if let Some(plane) = self.plane {
            plane
        } else {
            let plane = if self.own_control_plane { Arc::new(ControlPlane::start().await) } else { ControlPlane::shared().await };
            install_crds(&plane).await;
            plane
        };
        let hosts: Vec<Host> = (0..self.hosts).map(|_| Host::start_as(self.shape)).collect();
        let (count, edit) = (self.hosts, self.fleet);
        let repository = Repository::create(|fleet| {
            for index in 0..count {
                fleet.host(&name(index));
            }
            edit(fleet);
        });
        let server = Server::start(repository.directory(), self.login.as_ref()).await;
        let (_, directory) = fresh_directory("scenarios");
        let key = KeyPair::generate(directory.join("fleet-key"));
        let namespace = match self.namespace {
            None => plane.namespace(),
            Some(name) => {
                plane.create_namespace(&name);
                name
            }
        };
        let kubectl = plane.kubectl(&namespace);
        kubectl.secret(SSH_SECRET, "kubernetes.io/ssh-auth", &[("ssh-privatekey", &key.private())]);
        if let Some(login) = &self.login {
            kubectl.secret(GIT_SECRET, "Opaque", &[("netrc", &login.netrc())]);
        }
        let oracle = Some(Oracle::start(plane.client().await, &namespace).await);
        for host in &hosts {
            host.up().await;
            host.authorize("root", &key.public);
            host.authorize("deploy", &key.public);
        }
        let mut scenario = Scenario {
            oracle,
            controllers: Vec::new(),
            kubectl,
            hosts,
            server,
            repository,
            key,
            namespace,
            plane,
            private: self.login.is_some(),
        };
        if let Some(options) = self.controller {
            scenario.start_controller(options).await;
        }
        scenario
    }
}

/// Everything that a test uses. End a test with [`Scenario::finish`].
pub struct Scenario {
    oracle: Option<Oracle>,
    controllers: Vec<Controller>,
    /// kubectl in the scenario's namespace.
    pub kubectl: Kubectl,
    /// Its hosts; number `i` has the configuration and the NixOSHost `web-(i + 1)`.
    pub hosts: Vec<Host>,
    /// The repository's server.
    pub server: Server,
    /// The flake.
    pub repository: Repository,
    /// The key in the Secret [`SSH_SECRET`].
    pub key: KeyPair,
    /// Its namespace.
    pub namespace: String,
    /// Its control plane.
    pub plane: Arc<ControlPlane>,
    private: bool,
}

/// The name of host number `index`, counted from 0, as NixOSHost and as configuration.
pub fn name(index: usize) -> String {
    format!("web-{}", index + 1)
}

impl Scenario {
    /// One host and a controller that watches the scenario's namespace, until told otherwise.
    pub fn builder() -> Builder {
        Builder {
            hosts: 1,
            shape: Shape::default(),
            login: None,
            plane: None,
            own_control_plane: false,
            namespace: None,
            controller: Some(Options::default()),
            fleet: Box::new(|_| ()),
        }
    }

    /// Starts the controller for this namespace in place of those that run, and waits until it is ready.
    pub async fn start_controller(&mut self, options: Options) {
        self.controllers.clear();
        self.start_another_controller(options).await;
    }

    /// Starts one more controller for this namespace, and waits until it is ready.
    pub async fn start_another_controller(&mut self, mut options: Options) {
        options.namespace.get_or_insert_with(|| self.namespace.clone());
        let kubeconfig = match &options.user {
            Some(_) => self.plane.kubeconfig(),
            None => chart::kubeconfig(&self.plane, &self.namespace, options.namespace.as_deref() == Some("")).await,
        };
        let controller = Controller::start(&kubeconfig, options);
        controller.ready().await;
        self.controllers.push(controller);
    }

    /// The controller, or the first of several.
    pub fn controller(&self) -> &Controller {
        self.controllers.first().expect("this scenario has started no controller")
    }

    /// All controllers, in the order in which they were started.
    pub fn controllers(&self) -> &[Controller] {
        &self.controllers
    }

    /// The API server was restored from a backup.
    pub async fn restored(&mut self) {
        self.plane.ready().await;
        self.oracle.as_mut().expect("the oracle is there until the end").look_anew().await;
    }

    /// The oracle.
    pub fn oracle(&self) -> &Oracle {
        self.oracle.as_ref().expect("the oracle is there until the end")
    }

    /// A complete NixOSHost for host number `index`: follows `main` over HTTPS, no settling.
    pub fn manifest(&self, index: usize) -> Value {
        let host = &self.hosts[index];
        let mut flake = json!({ "url": self.server.https_url("fleet.git"), "ref": "main" });
        if self.private {
            flake["credentialsRef"] = json!({ "name": GIT_SECRET });
        }
        json!({
            "apiVersion": "nixoshost.dev/v1alpha1",
            "kind": "NixOSHost",
            "metadata": { "name": name(index) },
            "spec": {
                "flake": flake,
                "connection": { "addresses": [host.address()], "sshKeyRef": { "name": SSH_SECRET }, "hostKeys": [host.host_key()] },
                "activation": { "settle": "0s" },
                "interval": "1m",
            },
        })
    }

    /// Applies the manifest of host number `index`, changed by a JSON merge patch (`json!({"spec": {…}})`; null removes).
    pub fn apply(&self, index: usize, patch: &Value) {
        let mut manifest = self.manifest(index);
        merge(&mut manifest, patch);
        self.kubectl.apply(&manifest.to_string());
    }

    /// Asks for a pass now, as `flux reconcile` does; the token.
    pub fn request(&self, index: usize) -> String {
        let token = format!("{:016x}", rand::random::<u64>());
        let annotation = format!("reconcile.fluxcd.io/requestedAt={token}");
        self.kubectl.run(&["annotate", "--overwrite", "nixoshost", &name(index), &annotation]);
        token
    }

    /// The NixOSHost of host number `index`, as it is now.
    pub fn get(&self, index: usize) -> Value {
        self.kubectl.get(&["nixoshost", &name(index)])
    }

    /// Waits until a condition of host number `index` has a status, and a reason if one is given, for the current generation; the object.
    pub async fn condition(&self, index: usize, kind: &str, status: &str, reason: Option<&str>, deadline: Duration) -> Value {
        let what = format!("{} to be {kind}={status} {}", name(index), reason.unwrap_or_default());
        until(&what, deadline, || async {
            let output = self.kubectl.attempt(&["get", "-o", "json", "nixoshost", &name(index)]);
            let object: Value = serde_json::from_str(&output.stdout).map_err(|_| output.stderr)?;
            let holds = condition(&object, kind).is_some_and(|condition| {
                condition["status"] == status
                    && reason.is_none_or(|reason| condition["reason"] == reason)
                    && condition["observedGeneration"] == object["metadata"]["generation"]
            });
            if holds { Ok(object) } else { Err(object["status"].to_string()) }
        })
        .await
    }

    /// Waits for `Ready=True` of the current generation; the object.
    pub async fn ready(&self, index: usize, deadline: Duration) -> Value {
        self.condition(index, "Ready", "True", None, deadline).await
    }

    /// Waits until host number `index` is Ready on the given revision, and checks on the host itself that it runs what that revision says: current
    /// system, profile and boot default; the toplevel.
    pub async fn landed(&self, index: usize, rev: &str, deadline: Duration) -> String {
        until(&format!("{} to have landed {rev}", name(index)), deadline, || async {
            let object = self.get(index);
            let ready = condition(&object, "Ready").is_some_and(|ready| ready["status"] == "True");
            let applied = object.pointer("/status/flake/applied/rev").and_then(Value::as_str) == Some(rev);
            if ready && applied { Ok(()) } else { Err(object["status"].to_string()) }
        })
        .await;
        let toplevel = self.repository.expected_toplevel(rev, &name(index));
        let host = &self.hosts[index];
        for (what, system) in
            [("current system", host.current_system()), ("profile", host.profile()), ("boot default", host.boot_default())]
        {
            assert_eq!(system, toplevel, "the {what} of {} is not what {rev} evaluates to", name(index));
        }
        toplevel
    }

    /// The end of a test: every status write has been looked at, and was good.
    pub async fn finish(mut self) {
        self.oracle.take().expect("finish is called once").finish().await;
    }

    /// All that is known, for whoever has to find out why a test failed.
    pub fn report(&self) -> String {
        let mut report = String::new();
        let mut section = |title: &str, text: &str| report.extend(["\n===== ", title, "\n", &tail(text, 100), "\n"]);
        section("resources", &self.kubectl.attempt(&["get", "nixoshosts", "-o", "yaml", "--request-timeout=5s"]).stdout);
        section("events", &self.kubectl.attempt(&["get", "events", "--sort-by=.lastTimestamp", "--request-timeout=5s"]).stdout);
        for (index, host) in self.hosts.iter().enumerate() {
            section(&format!("journal of {} ({})", name(index), host.name()), &host.journal(60));
            section(&format!("console of {}", name(index)), &host.console());
        }
        section("git server", &self.server.https_requests().join("\n"));
        for controller in &self.controllers {
            section("controller", &controller.log());
        }
        report
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.report());
        }
    }
}

/// The condition of a type, if the object has it.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object.pointer("/status/conditions")?.as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// The last lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// JSON merge patch (RFC 7396).
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("it is an object now");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Installs the generated CRDs, and waits until they are served.
pub async fn install_crds(plane: &ControlPlane) {
    let manifests = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crd/manifests");
    let kubectl = plane.kubectl("default");
    kubectl.run(&["apply", "--server-side", "--force-conflicts", "-f", &manifests.to_string_lossy()]);
    until("the CRD to be established", Duration::from_secs(20), || async {
        let output = kubectl.attempt(&["wait", "--for=condition=Established", "crd/nixoshosts.nixoshost.dev", "--timeout=10s"]);
        let served = kubectl.attempt(&["get", "nixoshosts"]);
        if output.status.success() && served.status.success() { Ok(()) } else { Err(output.stderr + &served.stderr) }
    })
    .await;
}
