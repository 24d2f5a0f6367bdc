//! The Helm chart on a real API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests start helm")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nixos_host_e2e::{
    ControlPlane, chart,
    process::{Output, run},
    scenario::install_crds,
    world::{cache, fresh_directory, write},
};
use serde_json::{Value, json};

fn values_files() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(chart::directory().join("tests/values")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn parsed(file: &Path) -> Value {
    serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn template(values: &Path) -> Output {
    run(Command::new("helm").args(["template", "fleet"]).arg(chart::directory()).args(["--namespace", "infra", "--values"]).arg(values))
}

fn documents(rendered: &str) -> Vec<Value> {
    let parsed =
        rendered.split("\n---\n").map(|text| serde_saphyr::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error}:\n{text}")));
    parsed.filter(|document| !document.is_null()).collect()
}

/// A control plane with what Prometheus Operator brings, and namespaces `infra` and `machines` that enforce the restricted standard.
async fn plane() -> Arc<ControlPlane> {
    let plane = Arc::new(ControlPlane::start().await);
    let kubectl = plane.kubectl("default");
    kubectl.run(&["apply", "--server-side", "-f", &cache().join("prometheus-operator/").display().to_string()]);
    for namespace in ["infra", "machines", "team-a"] {
        plane.create_namespace(namespace);
        kubectl.run(&[
            "label",
            "namespace",
            namespace,
            "pod-security.kubernetes.io/enforce=restricted",
            "pod-security.kubernetes.io/warn=restricted",
        ]);
    }
    plane
}

#[tokio::test(flavor = "multi_thread")]
async fn each_values_file_passes_lint_and_the_api_server_without_a_warning() {
    let plane = plane().await;
    let manifest = fresh_directory("values").1.join("manifest.yaml");
    // Without a namespace of its own, since what is rendered names more than one
    let kubectl =
        |arguments: &[&str]| run(Command::new("kubectl").arg("--kubeconfig").arg(plane.kubeconfig()).args(arguments).arg(&manifest));
    let files = values_files();
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let lint = run(Command::new("helm").args(["lint", "--strict"]).arg(chart::directory()).arg("--values").arg(&file));
        assert!(lint.status.success(), "{name}: {}{}", lint.stdout, lint.stderr);
        let rendered = template(&file);
        assert!(rendered.status.success(), "{name}: {}", rendered.stderr);
        write(&manifest, &rendered.stdout);
        let applied = kubectl(&["apply", "--server-side", "--force-conflicts", "--filename"]);
        assert!(applied.status.success(), "{name}: {}{}", applied.stdout, applied.stderr);
        // The sandbox asks for what the standard may not let pass
        let warned = applied.stderr.contains("would violate PodSecurity");
        assert!(!warned || name == "sandboxed", "{name}: {}", applied.stderr);
        assert!(warned || !applied.stderr.contains("Warning"), "{name}: {}", applied.stderr);
        let deleted = kubectl(&["delete", "--timeout=60s", "--filename"]);
        assert!(deleted.status.success(), "{name}: {}", deleted.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_installed_upgraded_and_uninstalled_and_resources_stay() {
    let plane = plane().await;
    let (kubeconfig, directory) = (plane.kubeconfig(), chart::directory().display().to_string());
    let helm = |arguments: &[&str]| {
        let output = chart::helm(&kubeconfig, arguments);
        assert!(output.status.success(), "helm {}: {}{}", arguments.join(" "), output.stdout, output.stderr);
        output.stdout
    };
    let notes = helm(&["install", chart::RELEASE, &directory, "--namespace", "infra"]);
    assert!(notes.contains("kubectl -n infra rollout status statefulset/nixos-host-controller"), "{notes}");
    let kubectl = plane.kubectl("infra");
    kubectl.run(&["wait", "--for=condition=Established", "crd/nixoshosts.nixoshost.dev", "--timeout=60s"]);
    kubectl.apply(&include_str!("../../crd/examples/minimal.yaml").replace("namespace:", "# namespace:"));
    let hosts =
        || kubectl.get(&["nixoshosts"])["items"].as_array().unwrap().iter().map(|host| host["metadata"]["uid"].clone()).collect::<Vec<_>>();
    let before = hosts();
    assert_eq!(before.len(), 1);
    helm(&["upgrade", chart::RELEASE, &directory, "--namespace", "infra", "--set", "replicas=2,image.tag=next"]);
    let set = kubectl.get(&["statefulset", chart::RELEASE]);
    assert_eq!((set["spec"]["replicas"].as_u64(), hosts()), (Some(2), before.clone()));
    helm(&["uninstall", chart::RELEASE, "--namespace", "infra"]);
    assert_eq!(hosts(), before, "crds.keep keeps the CRD, and so the resources");
    let left = kubectl.get(&[
        "all,configmaps,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings",
        "--selector=app.kubernetes.io/instance=nixos-host-controller",
    ]);
    assert_eq!(left["items"], json!([]));
    // The CRD that stayed is taken over by the next release
    helm(&["install", chart::RELEASE, &directory, "--namespace", "infra", "--set", "crds.keep=false"]);
    assert_eq!(hosts(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_the_first_crd_keeps_every_resource_without_a_step_by_hand() {
    let plane = plane().await;
    let kubeconfig = plane.kubeconfig();
    let helm = |arguments: &[&str]| {
        let output = chart::helm(&kubeconfig, arguments);
        assert!(output.status.success(), "helm {}: {}{}", arguments.join(" "), output.stdout, output.stderr);
    };
    let earlier = fresh_directory("earlier").1.join("chart");
    let copied = run(Command::new("cp").arg("-r").arg(chart::directory()).arg(&earlier));
    assert!(copied.status.success(), "{}", copied.stderr);
    write(earlier.join("files/crds/nixoshosts.yaml"), include_str!("../../crd/earlier/first.yaml"));
    helm(&["install", chart::RELEASE, &earlier.display().to_string(), "--namespace", "infra"]);
    let kubectl = plane.kubectl("infra");
    kubectl.run(&["wait", "--for=condition=Established", "crd/nixoshosts.nixoshost.dev", "--timeout=60s"]);
    // What the first version had in it, with a landing that is on its way
    let spec = json!({
        "flake": { "url": "github:example/fleet", "ref": "main", "attribute": "web" },
        "connection": { "addresses": ["10.0.0.1"], "user": "deploy", "sshKeyRef": { "name": "fleet-ssh" }, "hostKeyPolicy": "TrustOnFirstUse" },
        "activation": { "mode": "Switch", "commitWithin": "90s", "settle": "10s", "onFailedUnits": "Keep" },
        "onDrift": "Correct", "interval": "1h", "suspend": true,
    });
    let host = json!({ "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": { "name": "web" }, "spec": spec });
    kubectl.apply(&host.to_string());
    let landing =
        json!({ "id": "a-1", "bootId": "b", "system": "/nix/store/00000000000000000000000000000000-nixos-system-web", "revision": "main" });
    let status = json!({ "status": {
        "observedGeneration": 1, "hostKey": "ssh-ed25519 AAAA",
        "stages": [{ "name": "Activate", "key": "0123456789abcdef", "outcome": "Failed", "landing": landing }],
    }});
    kubectl.run(&["patch", "nixoshost", "web", "--subresource=status", "--type=merge", "--patch", &status.to_string()]);
    let parts = |object: &Value| {
        [object["metadata"]["uid"].clone(), object["metadata"]["generation"].clone(), object["spec"].clone(), object["status"].clone()]
    };
    let before = parts(&kubectl.get(&["nixoshost", "web"]));
    assert_eq!((&before[2], &before[3]), (&spec, &status["status"]), "the first CRD has all of these fields");
    assert!(!kubectl.attempt(&["explain", "nixoshost.spec.healthChecks"]).status.success(), "and not this one");

    helm(&["upgrade", chart::RELEASE, &chart::directory().display().to_string(), "--namespace", "infra"]);
    nixos_host_e2e::wait::until_true("the new CRD to be served", std::time::Duration::from_secs(60), || {
        kubectl.attempt(&["explain", "nixoshost.spec.healthChecks"]).status.success()
    })
    .await;
    assert_eq!(parts(&kubectl.get(&["nixoshost", "web"])), before);
    let check = json!([{ "name": "up", "tcp": { "port": 80 } }]);
    kubectl.run(&["patch", "nixoshost", "web", "--type=merge", "--patch", &json!({ "spec": { "healthChecks": check } }).to_string()]);
    assert_eq!(kubectl.get(&["nixoshost", "web"])["status"], before[3]);
}

/// A control plane with the admission policies of tests/values/fenced.yaml.
async fn fenced() -> Arc<ControlPlane> {
    let plane = plane().await;
    install_crds(&plane).await;
    plane.kubectl("infra").apply(&template(&chart::directory().join("tests/values/fenced.yaml")).stdout);
    plane
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_refuse_strange_machines_flakes_and_keys() {
    let plane = fenced().await;
    let host = |namespace: &str, change: Value| {
        let mut host = json!({
            "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": { "name": "web-1", "namespace": namespace },
            "spec": {
                "flake": { "url": "git+ssh://git@git.example.org/infra" },
                "connection": { "addresses": ["10.0.0.11"], "sshKeyRef": { "name": "fleet-ssh" }, "hostKeys": ["ssh-ed25519 AAAA"] },
            },
        });
        nixos_host_e2e::scenario::merge(&mut host, &json!({ "spec": change }));
        plane.kubectl(namespace).attempt_with_input(&["apply", "--server-side", "--dry-run=server", "-f", "-"], &host.to_string())
    };
    let allowed = |namespace: &str, change: Value| {
        let output = host(namespace, change.clone());
        assert!(output.status.success(), "{namespace} {change}: {}", output.stderr);
    };
    // A policy is in force a moment after it was written
    nixos_host_e2e::wait::until_true("the policies to be in force", std::time::Duration::from_secs(60), || {
        let strange = host("infra", json!({ "connection": { "addresses": ["10.9.9.9"] } }));
        let trusting = host("infra", json!({ "connection": { "hostKeys": null, "hostKeyPolicy": "TrustOnFirstUse" } }));
        !strange.status.success() && !trusting.status.success()
    })
    .await;
    let refused = |namespace: &str, change: Value, why: &str| {
        let output = host(namespace, change.clone());
        assert!(!output.status.success() && output.stderr.contains(why), "{namespace} {change}: {}{}", output.stdout, output.stderr);
    };
    allowed("infra", json!({}));
    allowed("infra", json!({ "connection": { "addresses": ["10.0.0.11", "web-1.infra.example.org"] } }));
    allowed("team-a", json!({ "flake": { "url": "github:team/a" }, "connection": { "addresses": ["10.1.0.1"] } }));
    refused("infra", json!({ "connection": { "addresses": ["10.0.0.11", "10.1.0.1"] } }), "namespace infra may not use 10.1.0.1");
    refused("infra", json!({ "connection": { "addresses": ["x10.0.0.11"] } }), "may not use x10.0.0.11");
    refused("team-a", json!({}), "namespace team-a may not use 10.0.0.11");
    refused("machines", json!({}), "namespace machines may not use");
    let jump = json!({ "connection": { "jump": { "addresses": ["10.2.0.1"], "sshKeyRef": { "name": "jump" } } } });
    refused("infra", jump, "may not use 10.2.0.1");
    refused("infra", json!({ "flake": { "url": "github:somebody/else" } }), "may not land github:somebody/else");
    refused(
        "infra",
        json!({ "connection": { "hostKeys": null, "hostKeyPolicy": "TrustOnFirstUse" } }),
        "TrustOnFirstUse is not allowed here",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policies_refuse_strange_hands_on_the_brake() {
    let plane = fenced().await;
    let kubectl = plane.kubectl("infra");
    let brake = |name: &str, user: &[&str]| {
        let mut arguments = vec!["create", "configmap", name, "--from-literal=stopped=true", "--dry-run=server"];
        arguments.extend(user);
        kubectl.attempt(&arguments)
    };
    kubectl.run(&["create", "role", "writers", "--verb=create", "--resource=configmaps"]);
    kubectl.run(&["create", "rolebinding", "writers", "--role=writers", "--user=ada", "--user=eve", "--group=on-call"]);
    let name = "fleet-nixos-host-controller-brake";
    // Rights and policies are in force a moment after they were written
    nixos_host_e2e::wait::until_true("rights and policies to be in force", std::time::Duration::from_secs(60), || {
        brake("other", &["--as=eve"]).status.success()
            && brake("other", &["--as=ada"]).status.success()
            && !brake(name, &["--as=eve"]).status.success()
    })
    .await;
    assert!(brake(name, &["--as=ada"]).status.success());
    assert!(brake(name, &["--as=bob", "--as-group=on-call"]).status.success());
    let refusal = brake(name, &["--as=eve"]);
    assert!(!refusal.status.success() && refusal.stderr.contains("only the users and groups of admission.brake"), "{}", refusal.stderr);
}

#[test]
fn wrong_values_are_refused_with_their_name_and_the_cure() {
    let cases = [
        (json!({ "imge": {} }), "additional properties 'imge' not allowed"),
        (
            json!({ "metrics": { "serviceMonitor": { "enable": true } } }),
            "at '/metrics/serviceMonitor': additional properties 'enable' not allowed",
        ),
        (json!({ "replicas": -1 }), "at '/replicas': minimum: got -1, want 0"),
        (json!({ "image": { "digest": "sha256:abc" } }), "at '/image/digest'"),
        (json!({ "image": { "pullPolicy": "Sometimes" } }), "must be one of 'Always', 'IfNotPresent', 'Never'"),
        (json!({ "leaderElection": { "leaseDuration": 1 } }), "at '/leaderElection/leaseDuration': minimum: got 1, want 3"),
        (json!({ "persistence": { "size": "big" } }), "at '/persistence/size'"),
        (json!({ "persistence": { "accessModes": ["ReadWriteMany"] } }), "must be one of 'ReadWriteOnce', 'ReadWriteOncePod'"),
        (json!({ "watchNamespace": "Not A Name" }), "at '/watchNamespace'"),
        (json!({ "replicas": 2, "leaderElection": { "enabled": false } }), "needs leaderElection.enabled: true"),
        (json!({ "replicas": 2, "persistence": { "existingClaim": "store" } }), "leave it empty, and each replica gets a claim of its own"),
        (json!({ "admission": { "machines": { "enabled": true } } }), "add a rule, or set enabled: false"),
        (json!({ "admission": { "machines": { "rules": [{ "namespaces": ["x"] }] } } }), "missing property 'addresses'"),
    ];
    let (_, directory) = fresh_directory("values");
    for (values, why) in cases {
        let file = directory.join("values.json");
        write(&file, values.to_string());
        let output = template(&file);
        assert!(!output.status.success() && output.stderr.contains(why), "{values}: {}", output.stderr);
    }
}

/// What can be set, by path, with its default: the leaves of the schema.
fn settings(schema: &Value, defaults: &Value, path: &str, into: &mut BTreeMap<String, Value>) {
    let Some(properties) = schema["properties"].as_object() else {
        into.insert(path.to_owned(), defaults.clone());
        return;
    };
    // helm's own
    for (name, schema) in properties.iter().filter(|(name, _)| *name != "global") {
        settings(schema, defaults.get(name).unwrap_or_else(|| panic!("values.yaml lacks {path}/{name}")), &format!("{path}/{name}"), into);
    }
}

#[test]
fn each_value_changes_what_is_rendered_in_one_of_the_values_files() {
    let mut defaults = BTreeMap::new();
    let all = parsed(&chart::directory().join("values.yaml"));
    settings(&parsed(&chart::directory().join("values.schema.json")), &all, "", &mut defaults);
    let (_, directory) = fresh_directory("values");
    let file = directory.join("values.json");
    let render = |values: &Value| {
        write(&file, values.to_string());
        let output = template(&file);
        // One that is refused without a value needs it
        if output.status.success() { output.stdout } else { output.stderr }
    };
    let files: Vec<(Value, String)> =
        values_files().iter().map(|file| parsed(file)).map(|values| (values.clone(), render(&values))).collect();
    let matters = |path: &str, default: &Value| {
        files.iter().any(|(values, rendered)| {
            values.pointer(path).is_some_and(|value| value != default) && {
                let mut without = values.clone();
                *without.pointer_mut(path).unwrap() = default.clone();
                render(&without) != *rendered
            }
        })
    };
    let idle: Vec<_> = defaults.iter().filter(|(path, default)| !matters(path, default)).map(|(path, _)| path).collect();
    assert!(idle.is_empty(), "no file of tests/values sets these to something that changes what is rendered: {idle:?}");
}

#[test]
fn the_crd_of_the_release_is_the_generated_one_and_stays() {
    let rendered = template(&chart::directory().join("tests/values/default.yaml")).stdout;
    let mut crd = documents(&rendered).into_iter().find(|document| document["kind"] == "CustomResourceDefinition").unwrap();
    assert_eq!(crd["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let mut generated = parsed(&chart::directory().join("../../crd/manifests/nixoshosts.yaml"));
    let name = json!({ "name": "nixoshosts.nixoshost.dev" });
    (crd["metadata"], generated["metadata"]) = (name.clone(), name);
    // 1 and 1.0 are the same to JSON, and not to the two programs that wrote these
    let plain = |crd: &Value| crd.to_string().replace(".0,", ",").replace(".0}", "}");
    assert_eq!(plain(&crd), plain(&generated), "rendering changes the CRD");
}

#[test]
fn an_install_for_one_namespace_has_nothing_of_the_whole_cluster() {
    let rendered = template(&chart::directory().join("tests/values/namespaced.yaml")).stdout;
    let placed: Vec<_> = documents(&rendered).into_iter().map(|document| document["metadata"]["namespace"].clone()).collect();
    assert!(placed.len() > 5 && placed.iter().all(|namespace| namespace == "infra" || namespace == "machines"), "{placed:?}");
}

#[test]
fn the_suites_of_helm_unittest_pass() {
    let output = run(Command::new("helm-unittest").args(["--strict", "--file", "tests/*_test.yaml"]).arg(chart::directory()));
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
}

/// What the init container does, with a store of its own in the place of the image's.
const SEEDING: &str = r#"
mkdir -p "$1/image" "$1/tree" "$1/volume/nix/store/.seed-interrupted"
mount --bind "$1/image" /nix
echo hello > "$1/tree/file"
path=$(nix-store --add "$1/tree")
nix-store --dump-db > "$1/registration"
chmod 555 "$1/volume/nix/store/.seed-interrupted"
seed() { sh "$2" "$1/volume" "$1/registration"; }
volume() { nix-store --store "local?root=$directory/volume" "$@"; }
directory=$1
[ "$(seed "$@")" = "copied $path" ]
[ "$(seed "$@")" = "" ]
[ ! -e "$1/volume/nix/store/.seed-interrupted" ]
volume --verify --check-contents
volume --gc
[ "$(cat "$1/volume$path/file")" = hello ]
rm -r "$1/volume/nix/var/nix/gcroots/image"
volume --gc
[ ! -e "$1/volume$path" ]
"#;

#[test]
fn the_images_store_is_put_on_the_volume_once_and_kept_from_the_garbage_collector() {
    let (_, directory) = fresh_directory("seeding");
    let script = chart::directory().join("files/seed-store.sh");
    let output = run(Command::new("unshare").args(["--mount", "bash", "-exuc", SEEDING, "seeding"]).arg(&directory).arg(script));
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
}
