//! The real kubectl, as a person uses it.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::process::{Output, run};

/// kubectl with a kubeconfig and a namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    /// kubectl that acts with `kubeconfig` in `namespace`.
    pub fn new(kubeconfig: &Path, namespace: &str) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), namespace: namespace.to_owned() }
    }

    /// kubectl as a command, for what the other functions do not do (a watch, for instance).
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--namespace", &self.namespace]).args(arguments);
        command
    }

    /// Runs kubectl, whatever comes of it.
    pub fn attempt(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    /// Runs kubectl; panics with what it said if it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.attempt(arguments);
        assert!(output.status.success(), "kubectl {} failed:\n{}{}", arguments.join(" "), output.stdout, output.stderr);
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs kubectl with something on its standard input, whatever comes of it.
    pub fn attempt_with_input(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cannot start kubectl");
        child.stdin.take().expect("standard input is piped").write_all(input.as_bytes()).expect("kubectl reads its input");
        let output = child.wait_with_output().expect("kubectl can be waited for");
        Output {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `kubectl apply -f -`, server-side, of YAML or JSON.
    pub fn apply(&self, manifest: &str) -> String {
        let output = self.attempt_apply(manifest);
        assert!(output.status.success(), "kubectl apply failed:\n{}{}\nof:\n{manifest}", output.stdout, output.stderr);
        output.stdout
    }

    /// `kubectl apply -f -` of something that may be refused.
    pub fn attempt_apply(&self, manifest: &str) -> Output {
        self.attempt_with_input(&["apply", "--server-side", "--field-manager=e2e", "--force-conflicts", "-f", "-"], manifest)
    }

    /// `kubectl get … -o json`.
    pub fn get(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        serde_json::from_str(&self.run(&all)).expect("kubectl -o json prints JSON")
    }

    /// A Secret of the given type with the given text values; replaces one of the same name.
    pub fn secret(&self, name: &str, kind: &str, values: &[(&str, &str)]) {
        let values: serde_json::Map<String, Value> = values.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
        let manifest = serde_json::json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": kind, "stringData": values,
        });
        self.apply(&manifest.to_string());
    }
}
