//! The Helm chart: what it renders, and a controller's place in a cluster as it makes it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use crate::{
    control_plane::ControlPlane,
    process::{Output, output, run},
    wait::until_true,
    world::write,
};

/// The release, and so the ServiceAccount, the Lease and the Roles.
pub const RELEASE: &str = "nixos-host-controller";

/// Stands for the namespace in what is rendered once for all of them.
const ANY_NAMESPACE: &str = "the-namespace";

/// The chart's directory.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/nixos-host-controller")
}

/// helm as a command, with a kubeconfig.
pub fn helm(kubeconfig: &Path, arguments: &[&str]) -> Output {
    run(Command::new("helm").args(arguments).env("KUBECONFIG", kubeconfig))
}

/// The ServiceAccount and the rights that the chart gives it, for NixOSHosts of its own namespace or of all.
pub fn rights(namespace: &str, everywhere: bool) -> String {
    static RENDERED: [OnceLock<String>; 2] = [const { OnceLock::new() }; 2];
    let rendered = RENDERED[usize::from(everywhere)].get_or_init(|| {
        let watch = format!("watchNamespace={}", if everywhere { "" } else { ANY_NAMESPACE });
        let templates = ["--show-only=templates/serviceaccount.yaml", "--show-only=templates/rbac.yaml"];
        let mut command = Command::new("helm");
        command.args(["template", RELEASE]).arg(directory()).args(["--namespace", ANY_NAMESPACE, "--set", &watch]).args(templates);
        output(&mut command)
    });
    rendered.replace(ANY_NAMESPACE, namespace)
}

/// A kubeconfig of the chart's ServiceAccount in `namespace`, with a token of its own and the chart's rights; made once for each.
pub async fn kubeconfig(plane: &ControlPlane, namespace: &str, everywhere: bool) -> PathBuf {
    let file = plane.directory().join("service-accounts").join(format!("{namespace}{}", if everywhere { "-everywhere" } else { "" }));
    if file.exists() {
        return file;
    }
    let kubectl = plane.kubectl(namespace);
    kubectl.apply(&rights(namespace, everywhere));
    let user = format!("--as=system:serviceaccount:{namespace}:{RELEASE}");
    let scope = format!("--all-namespaces={everywhere}");
    // The API server learns of rights by a watch of its own: a request that comes at once would be refused
    until_true("the ServiceAccount's rights to be in force", Duration::from_secs(30), || {
        let may = |arguments: &[&str]| kubectl.attempt(&[&["auth", "can-i", &user], arguments].concat()).status.success();
        may(&["create", "leases.coordination.k8s.io"]) && may(&["watch", "nixoshosts.nixoshost.dev", &scope])
    })
    .await;
    let token = kubectl.run(&["create", "token", RELEASE, "--duration=24h"]);
    let text = std::fs::read_to_string(plane.kubeconfig()).expect("cannot read the kubeconfig");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("the kubeconfig is JSON");
    config["users"][0]["user"] = serde_json::json!({ "token": token });
    config["contexts"][0]["context"]["namespace"] = namespace.into();
    write(&file, config.to_string());
    file
}
