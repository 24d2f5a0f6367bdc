//! The chart on a real node: its controller in a pod, in a namespace that enforces Pod Security "restricted", lands hosts, and goes on after what happens to pods.
//!
//! One story, for a node takes its time to start: each part begins where the one before it left off.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

use std::{path::PathBuf, process::Command, time::Duration};

use base64::{Engine, prelude::BASE64_STANDARD};
use nixos_host_e2e::{
    Cluster, Host, Kubectl, Scenario,
    cluster::{Image, NODE, Volume, volume::STORAGE_CLASS},
    flake::{
        fleet::activation,
        server::{SERVER_NAME, authority},
    },
    process::output,
    scenario::{condition, merge, name},
    until,
    wait::until_true,
    world::{BRIDGE_ADDRESS, KeyPair, run_directory, write},
};
use serde_json::{Value, json};

const NAMESPACE: &str = "nixos-host-controller";
const RELEASE: &str = "fleet";
const POD: &str = "fleet-nixos-host-controller-0";
const PODS: [&str; 2] = [POD, "fleet-nixos-host-controller-1"];
const LEASE: &str = "fleet-nixos-host-controller";
const HOSTS: usize = 3;
const SOON: Duration = Duration::from_secs(120);

fn chart() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/nixos-host-controller")
}

/// The chart, installed.
struct Release<'a> {
    cluster: &'a Cluster,
    kubectl: Kubectl,
    values: Value,
}

impl<'a> Release<'a> {
    fn new(cluster: &'a Cluster, image: &Image) -> Self {
        let (repository, tag) = image.name.rsplit_once(':').unwrap();
        let kubectl = cluster.kubectl("default");
        kubectl.run(&["create", "namespace", NAMESPACE]);
        kubectl.run(&["label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted"]);
        let kubectl = cluster.kubectl(NAMESPACE);
        kubectl.run(&["create", "configmap", "authority", &format!("--from-file=ca.pem={}", authority().display())]);
        let certificates = ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"];
        let values = json!({
            "image": { "repository": repository, "tag": tag, "pullPolicy": "Never" },
            "persistence": { "storageClassName": STORAGE_CLASS, "size": "500Mi" },
            "nix": { "minFree": 100 << 20, "maxFree": 2_u64 << 30 },
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "2Gi" } },
            // A git server of the house, with certificates of the house
            "hostAliases": [{ "ip": BRIDGE_ADDRESS, "hostnames": [SERVER_NAME] }],
            "extraEnv": certificates.map(|name| json!({ "name": name, "value": "/etc/authority/ca.pem" })),
            "extraVolumes": [{ "name": "authority", "configMap": { "name": "authority" } }],
            "extraVolumeMounts": [{ "name": "authority", "mountPath": "/etc/authority", "readOnly": true }],
        });
        Self { cluster, kubectl, values }
    }

    fn helm(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("helm");
        command.arg("--kubeconfig").arg(self.cluster.plane.kubeconfig()).args(["--namespace", NAMESPACE]).args(arguments);
        output(&mut command)
    }

    /// `helm install` or `helm upgrade`.
    fn apply(&self, verb: &str, more: &[&str]) {
        let values = run_directory().join("values.json");
        write(&values, self.values.to_string());
        let (chart, values) = (chart().display().to_string(), values.display().to_string());
        self.helm(&[&[verb, RELEASE, &chart, "--values", &values], more].concat());
    }

    fn upgrade_to(&mut self, image: &Image) {
        self.values["image"]["tag"] = image.name.rsplit(':').next().into();
        self.apply("upgrade", &[]);
    }

    fn pod(&self) -> Option<Value> {
        serde_json::from_str(&self.kubectl.attempt(&["get", "pod", POD, "-o", "json"]).stdout).ok()
    }

    /// Waits until a pod is ready of which `is` holds; the pod.
    async fn pod_ready(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(what, SOON, || async {
            let pod = self.pod().ok_or("no pod")?;
            let ready = condition(&pod, "Ready").is_some_and(|ready| ready["status"] == "True");
            if ready && is(&pod) { Ok(pod) } else { Err(pod["status"].to_string()) }
        })
        .await
    }
}

/// What a pod's containers have said, for whoever has to find out why a test failed.
impl Drop for Release<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [&["describe", "pods"] as &[&str], &["logs", POD, "--all-containers", "--tail=50"]] {
                let told = self.kubectl.attempt(arguments);
                eprintln!("===== kubectl {}\n{}{}", arguments.join(" "), told.stdout, told.stderr);
            }
        }
    }
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Commits a change whose activation takes some seconds on each host, and waits until all of them are in it; the revision.
async fn begin_landing(scenario: &mut Scenario, seconds: u32) -> String {
    let rev = scenario.repository.commit(|fleet| {
        for index in 0..HOSTS {
            let host = fleet.host(&name(index)).snippet("slow", activation::sleep(seconds));
            host.rev = Some(host.rev.unwrap_or_default() + 1);
        }
    });
    for index in 0..HOSTS {
        scenario.request(index);
    }
    for index in 0..HOSTS {
        scenario.condition(index, "Reconciling", "True", Some("Activating"), SOON).await;
    }
    rev
}

/// Every host runs the revision, and did so in one step: no landing was taken back, none was done twice, no host was restarted.
async fn all_landed(scenario: &Scenario, rev: &str, landings: usize) {
    for index in 0..HOSTS {
        scenario.landed(index, rev, SOON).await;
        let host = &scenario.hosts[index];
        assert_eq!(host.generations().len(), 1 + landings, "{}: {:?}", name(index), host.generations());
        assert_eq!(host.boots(), 1, "{} was restarted", name(index));
    }
}

#[ignore = "wants a node: make cluster"]
#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_pod_lands_hosts_and_recovers_from_what_happens_to_pods() {
    let cluster = Cluster::start().await;
    let images = ["1", "2", "3"].map(Image::of_the_controller);
    for image in &images {
        cluster.import(image);
    }
    let volume = Volume::create(&cluster, "store-0", 1000);
    let mut release = Release::new(&cluster, &images[0]);
    release.apply("install", &["--wait", "--timeout=2m"]);
    it_is_confined(&release);

    let mut scenario = Scenario::builder().hosts(HOSTS).control_plane(&cluster.plane).without_controller().start().await;
    for index in 0..HOSTS {
        scenario.apply(index, &json!({ "spec": { "interval": "5s" } }));
    }
    all_landed(&scenario, &scenario.repository.head(), 1).await;
    let system = scenario.hosts[0].current_system();
    assert!(volume.path().join(&system[1..]).exists(), "{system} was not built on the pod's volume");

    an_upgrade_during_a_landing_hands_over(&mut release, &mut scenario, &images[1]).await;
    a_deleted_pod_comes_back(&release, &mut scenario).await;
    a_dead_kubelet_harms_nobody(&release, &mut scenario).await;
    another_replica_goes_on(&mut release, &mut scenario).await;
    garbage_is_collected_and_a_full_volume_recovers(&mut release, &mut scenario, &volume, &images).await;

    another_machine_builds(&mut release, &mut scenario).await;

    release.helm(&["uninstall", RELEASE]);
    until_true("the pod to end", SOON, || release.pod().is_none()).await;
    all_landed(&scenario, &scenario.repository.head(), 8).await;
    builds_are_sandboxed_where_pods_have_user_namespaces(&mut release, &mut scenario).await;
    scenario.finish().await;
}

fn it_is_confined(release: &Release<'_>) {
    let refused = release.kubectl.attempt(&["run", "root", "--image=registry.example.test/pause:1", "--dry-run=server"]);
    assert!(refused.stderr.contains("violates PodSecurity \"restricted"), "the namespace takes any pod: {}", refused.stderr);
    let inside = |command: &[&str]| release.kubectl.attempt(&[&["exec", POD, "--"], command].concat());
    assert_eq!(inside(&["id", "-u"]).stdout, "10001\n");
    assert_eq!(inside(&["grep", "CapBnd", "/proc/self/status"]).stdout, "CapBnd:\t0000000000000000\n");
    assert!(inside(&["touch", "/bin/other"]).stderr.contains("Read-only file system"));
    assert!(release.kubectl.run(&["logs", POD]).contains("\"confined\":true"), "evaluations are not under Landlock");
}

/// The landing outlives the pod that began it: longer than the old one may take to end, and the new one follows it to its end.
async fn an_upgrade_during_a_landing_hands_over(release: &mut Release<'_>, scenario: &mut Scenario, image: &Image) {
    let rev = begin_landing(scenario, 35).await;
    let before = uid(&release.pod().unwrap());
    release.upgrade_to(image);
    let pod = release.pod_ready("the new pod", |pod| uid(pod) != before).await;
    assert_eq!(pod["spec"]["containers"][0]["image"], image.name.as_str());
    all_landed(scenario, &rev, 2).await;
    let log = release.kubectl.run(&["logs", POD]);
    let landed = log.lines().filter(|line| line.contains(r#""reason":"Landed""#) && line.contains(&rev[..7]));
    assert_eq!(landed.count(), HOSTS, "the old pod had landed some of them:\n{log}");
}

async fn a_deleted_pod_comes_back(release: &Release<'_>, scenario: &mut Scenario) {
    let rev = begin_landing(scenario, 5).await;
    let before = uid(&release.pod().unwrap());
    release.kubectl.run(&["delete", "pod", POD, "--grace-period=0", "--force"]);
    release.pod_ready("a pod in its place", |pod| uid(pod) != before).await;
    all_landed(scenario, &rev, 3).await;
}

/// The controller ends while nobody starts it again: hosts wait for it, as long as `commitWithin` says.
async fn a_dead_kubelet_harms_nobody(release: &Release<'_>, scenario: &mut Scenario) {
    let rev = begin_landing(scenario, 5).await;
    let pod = release.pod().unwrap();
    let container = &pod["status"]["containerStatuses"][0];
    release.cluster.kill_kubelet();
    let id = container["containerID"].as_str().unwrap().strip_prefix("containerd://").unwrap();
    output(release.cluster.ctr(&["tasks", "kill", "--signal", "SIGKILL"]).arg(id));
    release.cluster.start_kubelet();
    let restarts = container["restartCount"].as_u64().unwrap();
    release
        .pod_ready("the kubelet to start the controller again", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(restarts)
        })
        .await;
    all_landed(scenario, &rev, 4).await;
}

/// Two replicas with a volume each: the one that leads is gone in the middle of a landing, and the other one brings it to its end.
async fn another_replica_goes_on(release: &mut Release<'_>, scenario: &mut Scenario) {
    Volume::create(release.cluster, "store-1", 1000);
    let leader = |release: &Release<'_>| {
        let lease = release.kubectl.get(&["lease", LEASE]);
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        PODS.into_iter().find(|pod| holder.starts_with(pod)).unwrap_or_else(|| panic!("{holder:?} is none of {PODS:?}"))
    };
    let first = leader(release);
    release.values["replicas"] = 2.into();
    release.apply("upgrade", &["--wait", "--timeout=2m"]);
    assert_eq!(leader(release), first, "a standby took over from a leader that was well");
    let rev = begin_landing(scenario, 5).await;
    // The node takes no new pod: the one in its place would lead as well as the standby
    release.kubectl.run(&["cordon", NODE]);
    release.kubectl.run(&["delete", "pod", first, "--grace-period=0", "--force"]);
    all_landed(scenario, &rev, 5).await;
    let second = PODS.into_iter().find(|pod| *pod != first).unwrap();
    assert_eq!(leader(release), second);
    let log = release.kubectl.run(&["logs", second]);
    let landed = log.lines().filter(|line| line.contains(r#""reason":"Landed""#) && line.contains(&rev[..7]));
    assert_eq!(landed.count(), HOSTS, "{second} landed not all of them:\n{log}");
    release.kubectl.run(&["uncordon", NODE]);
    release.values["replicas"] = 1.into();
    release.apply("upgrade", &["--wait", "--timeout=2m"]);
    until_true("the second replica to end", SOON, || !release.kubectl.attempt(&["get", "pod", PODS[1]]).status.success()).await;
}

async fn garbage_is_collected_and_a_full_volume_recovers(
    release: &mut Release<'_>,
    scenario: &mut Scenario,
    volume: &Volume,
    [first, second, third]: &[Image; 3],
) {
    let on_volume = |image: &Image| volume.path().join(&image.contents[0][1..]).exists();
    assert!(on_volume(first) && on_volume(second));
    volume.fill_up_to(80);
    let rev = begin_landing(scenario, 1).await;
    all_landed(scenario, &rev, 6).await;
    assert!(!on_volume(first), "the first image's controller was not collected");
    assert!(on_volume(second), "the running controller was collected");

    volume.unfill();
    volume.fill_up_to(0);
    let rev = scenario.repository.commit(|fleet| fleet.defaults.label = Some("full".to_owned()));
    for index in 0..HOSTS {
        scenario.request(index);
        until("a message about the full volume", SOON, || async {
            let object = scenario.get(index);
            let message = condition(&object, "Ready").and_then(|ready| ready["message"].as_str()).unwrap_or_default().to_owned();
            if message.contains("No space left on device") { Ok(()) } else { Err(object["status"].to_string()) }
        })
        .await;
    }
    // It starts on a full volume, and another image finds room there: that of its predecessor
    let before = uid(&release.pod().unwrap());
    release.kubectl.run(&["delete", "pod", POD, "--wait=false"]);
    let pod = release.pod_ready("a pod on a full volume", |pod| uid(pod) != before).await;
    release.upgrade_to(third);
    release.pod_ready("a pod of another image on a full volume", |new| uid(new) != uid(&pod)).await;
    assert!(on_volume(third) && !on_volume(second));
    volume.unfill();
    all_landed(scenario, &rev, 7).await;
    // By hand, what hosts run stays as well
    release.kubectl.run(&["exec", POD, "--", "nix-store", "--gc"]);
    for host in &scenario.hosts {
        let system = host.current_system();
        assert!(volume.path().join(&system[1..]).exists(), "{system} was collected");
    }
}

/// Where a restricted pod can have no sandbox: it builds nothing itself. The builder sees derivations and sources, and no Secret of the fleet.
async fn another_machine_builds(release: &mut Release<'_>, scenario: &mut Scenario) {
    let builder = Host::start();
    builder.up().await;
    let key = KeyPair::generate(builder.directory().join("builder-key"));
    builder.authorize("root", &key.public);
    release.kubectl.secret("builder", "kubernetes.io/ssh-auth", &[("ssh-privatekey", &key.private())]);
    let host_key = BASE64_STANDARD.encode(builder.host_key());
    let builders = format!("builders = ssh-ng://root@{} x86_64-linux /etc/builder/ssh-privatekey 4 1 - - {host_key}", builder.address());
    let changed = json!({
        "limits": { "builds": 0 },
        "nix": { "config": builders },
        "extraVolumes": [release.values["extraVolumes"][0], { "name": "builder", "secret": { "secretName": "builder", "defaultMode": 0o440 } }],
        "extraVolumeMounts": [release.values["extraVolumeMounts"][0], { "name": "builder", "mountPath": "/etc/builder", "readOnly": true }],
    });
    merge(&mut release.values, &changed);
    let before = uid(&release.pod().unwrap());
    release.apply("upgrade", &[]);
    release.pod_ready("a pod that builds elsewhere", |pod| uid(pod) != before).await;
    let rev = begin_landing(scenario, 1).await;
    all_landed(scenario, &rev, 8).await;
    for host in &scenario.hosts {
        assert!(builder.store_paths().contains(&host.current_system()), "{} was not built on the builder", host.current_system());
    }
}

/// The same store, in another namespace policy: "restricted" has no place for what a sandbox needs.
async fn builds_are_sandboxed_where_pods_have_user_namespaces(release: &mut Release<'_>, scenario: &mut Scenario) {
    let policy = |level: &str, more: &[&str]| {
        let label = format!("pod-security.kubernetes.io/enforce={level}");
        release.kubectl.attempt(&[&["label", "--overwrite", "namespace", NAMESPACE, &label], more].concat())
    };
    policy("baseline", &[]);
    let profile = std::fs::read_to_string(chart().join("files/seccomp/nixos-host-controller.json")).unwrap();
    write(release.cluster.seccomp_profiles().join("nixos-host-controller.json"), profile);
    // This Nix has a shell for the sandbox compiled in that is not in the image
    let changed = json!({ "sandbox": { "enabled": true }, "limits": null, "nix": { "config": "sandbox-paths =" } });
    merge(&mut release.values, &changed);
    release.apply("install", &["--wait", "--timeout=2m"]);
    let pod = release.pod().unwrap();
    assert!(!pod["spec"]["containers"][0]["args"].to_string().contains("--no-sandbox"));
    let refused = policy("restricted", &["--dry-run=server"]).stderr;
    assert!(refused.contains("violate the new PodSecurity enforce level") && refused.contains("procMount"), "{refused}");
    let rev = begin_landing(scenario, 1).await;
    all_landed(scenario, &rev, 9).await;
}
