//! `fleet.json`, as types: what each host of a fixture flake is made of, and how it misbehaves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A fleet. Tests change it in [`super::Repository::commit`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    /// Part of every derivation but the kernel and the tools, so that two repositories share no build.
    pub salt: String,
    /// What holds for hosts that do not say otherwise. A knob that a host sets replaces the default's whole knob.
    pub defaults: Knobs,
    /// `nixosConfigurations`, by name.
    pub hosts: BTreeMap<String, Knobs>,
}

impl Fleet {
    /// The knobs of a host, which is added if it is not there.
    pub fn host(&mut self, name: &str) -> &mut Knobs {
        self.hosts.entry(name.to_owned()).or_default()
    }
}

/// How one host's system comes out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Knobs {
    /// `x86_64-linux` unless set: another one evaluates, and builds nowhere here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// `config.system.nixos.label` and `version`, and part of the toplevel's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Changes `/etc/revision`, and so the toplevel, and nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rev: Option<u32>,
    /// Packages that all hosts of the fleet have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<Packages>,
    /// Packages that only this host has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<Packages>,
    /// Its kernel; another one needs a reboot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// Unit files by name, all wanted by `multi-user.target`; see [`units`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub units: Option<BTreeMap<String, String>>,
    /// Snippets of the activation script by name, in the order of their names; see [`activation`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<BTreeMap<String, String>>,
    /// How its evaluation goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// How its build goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// How its boot loader installs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_loader: Option<BootLoader>,
    /// Lines of sh that run before a switch (arguments: toplevel and goal) and refuse it by failing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_switch_check: Option<String>,
    /// `init-interface-version`; another one than the running system's makes switch-to-configuration exit with 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_interface: Option<String>,
}

impl Knobs {
    /// Adds or replaces a unit.
    pub fn unit(&mut self, name: &str, text: impl Into<String>) -> &mut Self {
        self.units.get_or_insert_default().insert(name.to_owned(), text.into());
        self
    }

    /// Adds or replaces a snippet of the activation script.
    pub fn snippet(&mut self, name: &str, script: impl Into<String>) -> &mut Self {
        self.activation.get_or_insert_default().insert(name.to_owned(), script.into());
        self
    }

    /// Makes its evaluation fail.
    pub fn evaluation_error(&mut self, error: EvaluationError) -> &mut Self {
        self.evaluation.get_or_insert_default().error = Some(error);
        self
    }
}

/// A number of packages: a tree, so that the closure has depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packages {
    /// How many.
    pub count: u32,
    /// Size of each, in KiB.
    pub kib: u32,
    /// What they are filled with.
    pub kind: Fill,
    /// The revision of those that change.
    pub rev: u32,
    /// How many of them `rev` changes.
    pub changed: u32,
}

impl Default for Packages {
    fn default() -> Self {
        Self { count: 4, kib: 16, kind: Fill::Random, rev: 0, changed: 1 }
    }
}

/// What a package's file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fill {
    /// Random bytes, which nothing compresses.
    Random,
    /// Zero bytes.
    Zero,
}

/// A kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Its version is `6.12.REV`.
    pub rev: u32,
    /// `kernel-params`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub params: Option<String>,
    /// It does not come up: the machine stays dark until somebody switches it off and on.
    #[serde(default)]
    pub panics: bool,
    /// It is Linux, for [`crate::Host::emulate`]; needs [`super::Repository::add_machine`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub real: bool,
}

/// How an evaluation goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Evaluation {
    /// Fails, in one of the ways in which Nix fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<EvaluationError>,
    /// The attribute is there and is no NixOS system.
    pub not_a_system: bool,
    /// Takes this many thousand additions first.
    pub spin: u32,
    /// Needs this many MiB at once, and some more.
    pub memory: u32,
    /// Needs a build to go on (import from derivation).
    pub import_from_derivation: bool,
}

/// The ways in which an evaluation can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvaluationError {
    /// `throw`: `this configuration throws on purpose`.
    Throw,
    /// NixOS's `Failed assertions:`, `- web needs a certificate`.
    Assertion,
    /// A string where a list is expected.
    Type,
    /// An attribute that does not exist.
    MissingAttribute,
    /// `abort`: `this configuration aborts on purpose`.
    Abort,
    /// Infinite recursion.
    Recursion,
}

/// How a build goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Build {
    /// Fails with exit code 7 after the lines `line 1 of 40: …` to `line 40 of 40: …`.
    pub fail: bool,
    /// Takes this many seconds, with a line of log in each.
    pub sleep: u32,
}

/// How a boot loader installs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootLoader {
    /// It does not: `switch` and `boot` exit with 1.
    #[serde(default)]
    pub fail: bool,
    /// Which one.
    #[serde(default)]
    pub kind: Loader,
}

/// A boot loader that the hosts' firmware knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// Boots its default, and nothing for once.
    #[default]
    Extlinux,
    /// Boots what an EFI variable names for once, else its default.
    SystemdBoot,
    /// Boots what its environment names for once, else its default. Only an emulated machine has its tools.
    Grub,
}

/// Snippets for [`Knobs::snippet`].
pub mod activation {
    /// Fails: the activation goes on, the system becomes current, switch-to-configuration exits with 2.
    pub const FAIL: &str = "echo this snippet fails on purpose >&2; exit 1";
    /// Never ends.
    pub const HANG: &str = "sleep infinity";
    /// Takes the network away, and comes to its end.
    pub const CUT_NETWORK: &str = "ip link set eth0 down";
    /// Stops sshd and all its connections.
    pub const STOP_SSHD: &str = "systemctl stop ssh.service; systemctl kill 'session-*.scope' || true";

    /// Takes some seconds.
    pub fn sleep(seconds: u32) -> String {
        format!("sleep {seconds}")
    }

    /// Fills a file system to the last byte.
    pub fn fill(path: &str) -> String {
        format!("dd if=/dev/zero of={path}/.filled-by-activation bs=64k 2>/dev/null || true")
    }
}

/// Unit files for [`Knobs::unit`].
pub mod units {
    /// A service that runs; another `revision` restarts it ("would restart the following units: …").
    pub fn running(revision: u32) -> String {
        format!("[Unit]\nDescription=revision {revision}\nX-StopIfChanged=false\n[Service]\nExecStart=/bin/sleep infinity\n")
    }

    /// A service whose start fails at once.
    pub fn failing() -> String {
        "[Unit]\nDescription=fails\n[Service]\nType=oneshot\nRemainAfterExit=true\nExecStart=/bin/sh -c 'echo no certificate found; exit 3'\n".to_owned()
    }

    /// A server on a port that does with each connection what `answer` says in Perl: one of the constants here.
    pub fn serving(address: &str, port: u16, answer: &str) -> String {
        let script = format!(
            "use IO::Socket::INET; $SIG{{PIPE}} = \"IGNORE\"; my $all = 0; my @kept; \
             my $port = IO::Socket::INET->new(Listen => 9, ReuseAddr => 1, LocalAddr => \"{address}:{port}\") or die \"cannot listen\"; \
             while (my $c = $port->accept) {{ $all++; sysread $c, my $request, 4096; {answer}; }}"
        );
        let script = script.replace('$', "$$").replace('%', "%%");
        format!("[Unit]\nDescription=serves\n[Service]\nExecStart=/usr/bin/perl -e '{script}'\n")
    }

    /// 200, `all is well`.
    pub const WELL: &str = r#"print $c "HTTP/1.1 200 OK\r\n\r\nall is well""#;
    /// 503, `database is down`.
    pub const SORRY: &str = r#"print $c "HTTP/1.1 503 Sorry\r\n\r\ndatabase is down""#;
    /// Says nothing, and never hangs up.
    pub const SILENT: &str = "push @kept, $c";
    /// Twice 503, then 200.
    pub const WARMING_UP: &str = r#"print $c $all > 2 ? "HTTP/1.1 200 OK\r\n\r\n" : "HTTP/1.1 503 Warming up\r\n\r\n""#;

    /// A service that starts well, ends with an error after `seconds`, and is started again, for ever.
    pub fn crash_looping(seconds: u32) -> String {
        format!(
            "[Unit]\nDescription=crash loop\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=1\n\
             ExecStart=/bin/sh -c 'sleep {seconds}; echo out of luck; exit 1'\n"
        )
    }
}

/// Where `text` is in the configuration that all hosts have, as Nix tells a position: `system.nix:LINE:COLUMN`.
pub fn position(text: &str) -> String {
    let mut lines = include_str!("../../world/flake/system.nix").lines().zip(1..);
    let found = lines.find_map(|(line, number)| Some(format!("system.nix:{number}:{}", line.find(text)? + 1)));
    found.unwrap_or_else(|| panic!("system.nix has no {text:?}"))
}
