//! One flake repository: a work tree that tests edit, and the bare repository that servers show.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::Fleet;
use crate::{
    process::output,
    world::{cache, fresh_directory, script, write},
};

/// A repository with a fixture flake in it.
pub struct Repository {
    directory: PathBuf,
    fleet: Fleet,
}

impl Repository {
    /// A repository with a salt of its own and a first commit with the given fleet.
    pub fn create(edit: impl FnOnce(&mut Fleet)) -> Self {
        let (number, directory) = fresh_directory("repositories");
        let repository = Self { directory, fleet: Fleet::default() };
        output(Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(repository.bare()));
        // As the hosts of git repositories do: any commit can be asked for, also one that no branch has any more
        git_in(&repository.bare(), &["config", "uploadpack.allowAnySHA1InWant", "true"]);
        output(Command::new("git").args(["init", "--quiet", "--initial-branch=main"]).arg(repository.work_tree()));
        repository.git(&["remote", "add", "origin", &repository.bare().to_string_lossy()]);
        repository.write_flake();
        let mut repository = repository;
        repository.fleet.salt = format!("{number}-{:016x}", rand::random::<u64>());
        repository.commit(edit);
        repository
    }

    fn write_flake(&self) {
        let source = script("flake");
        for file in std::fs::read_dir(&source).expect("the fixture is part of the project") {
            let file = file.expect("the fixture can be read").path();
            std::fs::copy(&file, self.work_tree().join(file.file_name().expect("a file has a name"))).expect("cannot copy the fixture");
        }
        let tools = self.work_tree().join("tools");
        std::fs::create_dir(&tools).expect("the work tree is new");
        std::fs::copy("/bin/busybox", tools.join("busybox")).expect("cannot copy busybox");
    }

    /// The bare repository: what `git+file://` names, and what servers show.
    pub fn bare(&self) -> PathBuf {
        self.directory.join("fleet.git")
    }

    /// The work tree: what `path:` names.
    pub fn work_tree(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// The directory that holds both, for a server to show.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The repository on this machine as a flake reference.
    pub fn file_url(&self) -> String {
        format!("git+file://{}", self.bare().display())
    }

    /// The fleet as last committed on whatever branch.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Runs git in the work tree.
    pub fn git(&self, arguments: &[&str]) -> String {
        git_in(&self.work_tree(), arguments)
    }

    /// Changes the fleet, commits and pushes it to the branch that is checked out (`main`, unless [`Repository::switch_branch`] was called);
    /// the new revision.
    pub fn commit(&mut self, edit: impl FnOnce(&mut Fleet)) -> String {
        edit(&mut self.fleet);
        let text = serde_json::to_string_pretty(&self.fleet).expect("a fleet is JSON");
        write(self.work_tree().join("fleet.json"), text);
        self.commit_files()
    }

    /// Writes a file into the work tree; the next commit has it.
    pub fn write(&self, path: &str, content: &str) {
        write(self.work_tree().join(path), content);
    }

    /// Commits whatever is in the work tree, pushes it, and gives the new revision.
    pub fn commit_files(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "Change the fleet"]);
        self.push()
    }

    fn push(&self) -> String {
        self.git(&["push", "--quiet", "--force", "origin", "HEAD"]);
        self.head()
    }

    /// The revision that is checked out.
    pub fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Checks out a branch, which is made of the current one if it is not there.
    pub fn switch_branch(&mut self, name: &str) {
        self.git(&["checkout", "--quiet", "-B", name]);
        self.push();
    }

    /// Tags the current revision, annotated or not.
    pub fn tag(&self, name: &str, annotated: bool) {
        if annotated {
            self.git(&["tag", "--annotate", "--message", name, name]);
        } else {
            self.git(&["tag", name]);
        }
        self.git(&["push", "--quiet", "origin", name]);
    }

    /// `git revert HEAD`; the new revision, whose tree is the one before.
    pub fn revert(&mut self) -> String {
        self.git(&["revert", "--no-edit", "HEAD"]);
        self.read_fleet();
        self.push()
    }

    /// Moves the branch to another revision, as a force push does.
    pub fn force_push(&mut self, rev: &str) {
        self.git(&["reset", "--quiet", "--hard", rev]);
        self.read_fleet();
        self.push();
    }

    fn read_fleet(&mut self) {
        let text = std::fs::read_to_string(self.work_tree().join("fleet.json")).expect("every revision has a fleet");
        self.fleet = serde_json::from_str(&text).expect("fleet.json is a fleet");
    }

    /// Gives the flake an input, and locks it; `environment` is what Nix needs to fetch it (credentials). Commit with [`Repository::commit_files`].
    pub fn add_input(&self, name: &str, url: &str, environment: &[(&str, &str)]) {
        let flake = self.work_tree().join("flake.nix");
        let text = std::fs::read_to_string(&flake).expect("the work tree has a flake");
        let input = format!("  inputs.{name} = {{ url = \"{url}\"; flake = false; }};\n  outputs =");
        write(&flake, text.replacen("  outputs =", &input, 1));
        let mut command = Command::new("nix");
        output(command.args(["flake", "lock"]).arg(format!("path:{}", self.work_tree().display())).envs(environment.iter().copied()));
    }

    /// Gives the flake the kernel and the initrd of hosts that are emulated ([`super::fleet::Kernel::real`]). Commit after it.
    pub fn add_machine(&self) {
        for file in ["vmlinuz", "initrd"] {
            let content = std::fs::read(cache().join("emulator").join(file)).expect("not set up: run e2e/world/setup emulator");
            write(self.work_tree().join("machine").join(file), content);
        }
    }

    /// What `nix build` makes of a host's configuration, at a revision: the toplevel to compare with. Builds it if need be.
    pub fn toplevel(&self, rev: &str, host: &str) -> String {
        let installable = format!("{}?allRefs=1&rev={rev}#nixosConfigurations.{host}.config.system.build.toplevel", self.file_url());
        output(Command::new("nix").args(["build", "--no-link", "--print-out-paths", "--quiet", &installable]))
    }

    /// The toplevel that a host's configuration would give, without building it.
    pub fn expected_toplevel(&self, rev: &str, host: &str) -> String {
        let installable =
            format!("{}?allRefs=1&rev={rev}#nixosConfigurations.{host}.config.system.build.toplevel.outPath", self.file_url());
        output(Command::new("nix").args(["eval", "--raw", "--quiet", &installable]))
    }

    /// A tarball of a revision, for a server to show as `fleet.tar.gz`.
    pub fn archive(&self, rev: &str) -> PathBuf {
        let file = self.directory.join("www/fleet.tar.gz");
        std::fs::create_dir_all(self.directory.join("www")).expect("cannot make a directory");
        self.git(&["archive", "--prefix=fleet/", "--output", &file.to_string_lossy(), rev]);
        file
    }
}

fn git_in(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(directory).args(["-c", "user.name=e2e", "-c", "user.email=e2e@example.test"]);
    output(command.args(arguments))
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
