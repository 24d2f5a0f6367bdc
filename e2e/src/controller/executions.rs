//! Which programs a controller starts: wrappers that stand first in its PATH, write down their arguments and become the real program.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{process::output, world::write};

const PROGRAMS: [&str; 10] =
    ["nix", "nix-store", "nix-env", "nix-build", "nix-instantiate", "nix-collect-garbage", "nix-copy-closure", "git", "ssh", "tar"];

/// Between the arguments of one execution.
const SEPARATOR: char = '\u{1f}';

/// The executions of one controller.
pub struct Executions {
    directory: PathBuf,
}

impl Executions {
    /// Wrappers for controller `number`. They and their log lie below `/nix`, to which the sandbox of a restricted evaluation gives access.
    pub(super) fn install(number: u32) -> Self {
        let executions = Self { directory: Path::new("/nix/var/e2e").join(number.to_string()) };
        let log = executions.log();
        write(&log, "");
        for program in PROGRAMS {
            let real = output(Command::new("sh").args(["-c", "command -v \"$1\" || true", "which", program]));
            if real.is_empty() {
                continue;
            }
            let wrapper = executions.directory.join("bin").join(program);
            // One printf is one write; that the log cannot be written must not keep the program from running
            let script =
                format!("#!/bin/sh\nprintf '%s{SEPARATOR}' {program} \"$@\" '\n' 2>/dev/null >> {}\nexec {real} \"$@\"\n", log.display());
            write(&wrapper, script);
            std::fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).expect("the wrapper was just written");
        }
        executions
    }

    fn log(&self) -> PathBuf {
        self.directory.join("log")
    }

    /// A PATH with the wrappers first.
    pub(super) fn path(&self) -> String {
        format!("{}:{}", self.directory.join("bin").display(), std::env::var("PATH").unwrap_or_default())
    }

    /// Every execution so far: program and arguments.
    pub fn all(&self) -> Vec<Vec<String>> {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let separator = SEPARATOR.to_string();
        let end = format!("{separator}\n{separator}");
        log.split_terminator(&end).map(|line| line.split(SEPARATOR).map(str::to_owned).collect()).collect()
    }

    /// How often a program was started with all the given words among its arguments.
    pub fn count(&self, program: &str, words: &[&str]) -> usize {
        let matches = |execution: &&Vec<String>| {
            execution.first().is_some_and(|name| name == program)
                && words.iter().all(|word| execution.iter().any(|argument| argument == word))
        };
        self.all().iter().filter(matches).count()
    }

    /// Forgets what was so far.
    pub fn clear(&self) {
        write(self.log(), "");
    }
}
