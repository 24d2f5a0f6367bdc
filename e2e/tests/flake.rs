//! The project's own flake.nix, evaluated by a real Nix against a stand-in of nixpkgs (`e2e/nix/stand-in`): `make nix`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser as _;
use nixos_host_controller::controller::args::Args;
use nixos_host_e2e::{
    process::{Output, output, run},
    world::fresh_directory,
};
use serde_json::{Value, json};

/// The project's files that evaluations read, copied; a target directory would come along otherwise.
struct Flake(PathBuf);

impl Flake {
    fn copy() -> Self {
        let (_, directory) = fresh_directory("flakes");
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for name in ["flake.nix", "flake.lock", "Cargo.toml", "Cargo.lock", "nix", "src", "crd", "e2e"] {
            output(Command::new("cp").arg("-r").arg(project.join(name)).arg(&directory));
        }
        Self(directory)
    }

    fn nix(&self, arguments: &[&str]) -> Output {
        let stand_in = format!("path:{}/e2e/nix/stand-in", self.0.display());
        let mut command = Command::new("nix");
        command.current_dir(&self.0).args(arguments).args(["--override-input", "nixpkgs", &stand_in, "--no-write-lock-file"]);
        run(&mut command)
    }

    fn check(&self) -> Output {
        self.nix(&["flake", "check", "--no-build", "--all-systems", &format!("path:{}", self.0.display())])
    }

    fn eval(&self, attribute: &str) -> Value {
        let output = self.nix(&["eval", "--json", &format!("path:{}#{attribute}", self.0.display())]);
        assert!(output.status.success(), "{attribute}: {}", output.stderr);
        serde_json::from_str(&output.stdout).expect("nix prints JSON")
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.0.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    }

    /// What the machine of a check is configured as.
    fn machine(&self, name: &str) -> Value {
        self.eval(&format!("checks.x86_64-linux.apply.arguments.nodes.{name}"))
    }
}

#[test]
#[ignore = "make nix"]
fn everything_evaluates() {
    let check = Flake::copy().check();
    assert!(check.status.success(), "{}", check.stderr);
}

#[test]
#[ignore = "make nix"]
fn what_is_misspelt_is_refused_by_its_name() {
    let cases = [
        ("nix/modules/host.nix", "services.openssh = {", "services.opensshd = {", "services.opensshd"),
        ("nix/modules/host.nix", "useDefaultShell = true", "useDefaultshell = true", "users.users.deploy.useDefaultshell"),
        ("nix/modules/host.nix", "isSystemUser = true", "isSystemUser = \"yes\"", "not of type `boolean'"),
        ("nix/modules/controller.nix", "tmpfiles.settings", "tmpfiles.setting", "systemd.tmpfiles.setting"),
        ("nix/modules/controller.nix", "lib.mapAttrsToList argument", "lib.mapAttrToList argument", "mapAttrToList"),
        ("nix/image.nix", "fakeRootCommands =", "fakerootCommands =", "fakeRootCommands"),
        ("nix/package.nix", "cargoBuildFlags =", "cargoBuildflags =", "cargoBuildFlags"),
        ("nix/package.nix", "../e2e/src", "../e2e/source", "e2e/source"),
        ("flake.nix", "pkgs.nixfmt-tree", "pkgs.nixfmt-trees", "nixfmt-trees"),
        ("nix/checks/default.nix", "testScript =", "testscript =", "testScript"),
    ];
    for (file, from, to, named) in cases {
        let flake = Flake::copy();
        flake.edit(file, from, to);
        let check = flake.check();
        assert!(!check.status.success() && check.stderr.contains(named), "{file} with {to}: {}", check.stderr);
    }
}

#[test]
#[ignore = "make nix"]
fn the_lock_file_fits_and_names_a_revision_of_a_stable_branch() {
    let lock: Value = serde_json::from_str(include_str!("../../flake.lock")).unwrap();
    let nixpkgs = &lock["nodes"]["nixpkgs"];
    assert!(nixpkgs["original"]["ref"].as_str().is_some_and(|branch| branch.starts_with("nixos-")), "{nixpkgs}");
    // Without the stand-in: Nix reads no input for this, and would have to for a lock file that does not fit
    let flake = format!("path:{}", Flake::copy().0.display());
    let found = output(Command::new("nix").args(["flake", "metadata", "--json", "--offline", "--no-update-lock-file", &flake]));
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["locks"]["nodes"]["nixpkgs"], *nixpkgs);
}

#[test]
#[ignore = "make nix"]
fn the_image_is_what_its_description_says() {
    let image = Flake::copy().eval("packages.x86_64-linux.image.arguments");
    let description: Value = serde_json::from_str(include_str!("../world/image/description.json")).unwrap();
    for name in ["name", "uid", "gid"] {
        assert_eq!(image[name], description[name], "{name}");
    }
    assert_ne!(description["uid"], 0, "it is not for root");
    assert_eq!(image["config"]["Entrypoint"], description["entrypoint"]);
    assert_eq!(image["config"]["User"], format!("{}:{}", description["uid"], description["gid"]));
    let variables = description["env"].as_object().unwrap().iter();
    let variables: Vec<_> = variables.map(|(name, value)| json!(format!("{name}={}", value.as_str().unwrap()))).collect();
    assert_eq!(image["config"]["Env"], json!(variables));
    for place in description["paths"]["writable"].as_array().unwrap() {
        assert!(image["fakeRootCommands"].as_str().unwrap().contains(&format!(".{}", place.as_str().unwrap())), "{place}");
    }
}

#[test]
#[ignore = "make nix"]
fn the_services_command_line_is_one_that_the_controller_takes() {
    let unit = &Flake::copy().machine("control")["systemd"]["services"]["nixos-host-controller"];
    let line = unit["serviceConfig"]["ExecStart"].as_str().unwrap();
    let words: Vec<String> = line.split(' ').map(|word| serde_json::from_str(word).expect("a quoted word")).collect();
    assert!(words[0].ends_with("/bin/nixos-host-controller"), "{line}");
    assert!(Args::try_parse_from(&words).unwrap().allow_local_flakes, "{line}");
}

#[test]
#[ignore = "make nix"]
fn a_login_other_than_root_becomes_root_by_the_one_command_that_the_controller_runs() {
    let machine = Flake::copy().machine("machine");
    let rules = json!([{ "users": ["deploy"], "commands": [{ "command": "/bin/sh", "options": ["NOPASSWD"] }] }]);
    assert_eq!(machine["security"]["sudo"]["extraRules"], rules);
    let line = nixos_host_controller::world::ssh::Command::script("true").as_root().line("deploy").unwrap();
    assert!(line.contains("exec sudo -n -- \"$@\"") && line.ends_with("sh /bin/sh -c true sh"), "{line}");
    let keys = machine["users"]["users"]["deploy"]["openssh"]["authorizedKeys"]["keys"][0].as_str().unwrap();
    assert!(keys.starts_with("restrict,port-forwarding ssh-ed25519 "), "{keys}");
}

#[test]
#[ignore = "make nix"]
fn a_machine_that_could_never_be_landed_is_refused_with_the_cure() {
    for (more, told) in [
        ("system.switch.enable = false;", "no switch-to-configuration"),
        ("nix.enable = false;", "nix-store"),
        ("security.sudo.enable = false;", "needs sudo"),
    ] {
        let flake = Flake::copy();
        flake.edit("nix/checks/machine.nix", "system.switch.enable = true;", more);
        let check = flake.check();
        assert!(!check.status.success() && check.stderr.contains(told), "{more}: {}", check.stderr);
    }
}
