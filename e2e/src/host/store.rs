//! A host's store, changed behind the controller's back: by a person, or before the test begins.

use std::process::{Command, Stdio};

use super::Host;
use crate::process::{Output, output};

impl Host {
    /// Puts a path of this world's store, with its closure, into the host's, without SSH.
    pub fn receive(&self, path: &str) {
        let Some(init) = self.init() else { panic!("{} is off: cannot receive {path}", self.name()) };
        let closure = output(Command::new("nix-store").args(["--query", "--requisites", path]));
        let mut export = Command::new("nix-store");
        let mut export =
            export.arg("--export").args(closure.lines()).stdout(Stdio::piped()).spawn().expect("cannot start nix-store --export");
        let stream = export.stdout.take().expect("standard output is piped");
        let mut import = Command::new("nsenter");
        import.args(["--target", &init.to_string(), "--all", "env", "-i", "PATH=/usr/bin:/bin", "HOME=/root", "nix-store", "--import"]);
        let status = import.stdin(stream).stdout(Stdio::null()).status().expect("cannot start nsenter");
        assert!(
            export.wait().expect("a child can be waited for").success() && status.success(),
            "{} could not receive {path}",
            self.name()
        );
    }

    /// Runs a system's `switch-to-configuration`, as a person on the host would.
    pub fn switch(&self, toplevel: &str, goal: &str) -> Output {
        self.exec(&[&format!("{toplevel}/bin/switch-to-configuration"), goal])
    }
}
