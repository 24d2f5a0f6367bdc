//! Hosts: systemd, sshd and Nix of their own, in namespaces, with a boot loader that boots what `switch-to-configuration` left as default.
//!
//! A fresh host runs the fixture's `base` system: generation 1 of its profile, boot default, booted and current.

mod emulator;
pub mod facts;
pub mod faults;
pub mod hostile;
pub mod network;
pub mod proxy;
pub mod store;

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Condvar, Mutex, OnceLock},
    time::Duration,
};

use self::emulator::Emulator;
use crate::{
    process::{Output, mortal, output, run},
    wait::until_true,
    world::{KeyPair, cache, cgroup, fresh_directory, nix_flavour, script, write},
};

/// What a host is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// It runs NixOS (the fixture's base system); otherwise a plain Debian.
    pub nixos: bool,
    /// It has Nix.
    pub nix: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { nixos: true, nix: true }
    }
}

#[derive(Default)]
struct Power {
    /// Off means: do not start again when process 1 ends.
    on: bool,
    /// `unshare`, the parent of the host's process 1.
    parent: Option<u32>,
    boots: u32,
}

/// One host. It is switched off and removed when dropped.
pub struct Host {
    number: u32,
    directory: PathBuf,
    layers: String,
    key: KeyPair,
    admin: KeyPair,
    power: Arc<(Mutex<Power>, Condvar)>,
    emulator: OnceLock<Emulator>,
}

impl Host {
    /// A NixOS host, switched on; [`Host::up`] waits for its sshd.
    pub fn start() -> Self {
        Self::start_as(Shape::default())
    }

    /// A host of another shape, switched on.
    pub fn start_as(shape: Shape) -> Self {
        let host = Self::create(shape);
        host.power_on();
        host
    }

    /// A host that is still off.
    pub fn create(shape: Shape) -> Self {
        let (number, directory) = fresh_directory("hosts");
        let suffix = nix_flavour().strip_prefix("nix").expect("NHC_NIX is nix or nix-VERSION").to_owned();
        let mut layers = vec![cache().join("root")];
        if shape.nix {
            layers.insert(0, cache().join(format!("host-nix{suffix}")));
        }
        if shape.nixos {
            layers.insert(0, cache().join("host-system"));
        }
        let layers = layers.iter().map(|layer| resolved(layer)).collect::<Vec<_>>().join(":");
        std::fs::create_dir_all(directory.join("disk/etc/ssh")).expect("cannot make the host's disk");
        let key = KeyPair::generate(directory.join("disk/etc/ssh/ssh_host_ed25519_key"));
        let admin = KeyPair::generate(directory.join("admin"));
        let host = Self { number, directory, layers, key, admin, power: Arc::default(), emulator: OnceLock::new() };
        host.prepare_disk();
        host.plug_in();
        host
    }

    fn prepare_disk(&self) {
        let disk = self.directory.join("disk");
        write(disk.join("etc/hostname"), format!("{}\n", self.name()));
        write(disk.join("etc/machine-id"), format!("{:032x}\n", rand::random::<u128>()));
        write(disk.join("etc/hosts"), format!("127.0.0.1 localhost\n{} {}\n", self.address(), self.name()));
        write(disk.join("root/.ssh/authorized_keys"), format!("{}\n", self.admin.public));
        for private in ["root", "root/.ssh"] {
            std::fs::set_permissions(disk.join(private), Permissions::from_mode(0o700)).expect("the directory was just made");
        }
        write(self.directory.join("known_hosts"), format!("{} {}\n", self.address(), self.key.public));
        let cgroup = cgroup().join(self.name());
        std::fs::create_dir_all(&cgroup).unwrap_or_else(|error| panic!("cannot make {}: {error}", cgroup.display()));
    }

    /// The network namespace and the cable to the bridge. The MAC address is the number's: a stale neighbour entry would cost seconds.
    fn plug_in(&self) {
        let (name, port, mac) = (self.name(), self.port(), self.mac());
        ip(&["netns", "add", &name]);
        ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "address", &mac, "netns", &name]);
        ip(&["link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&["-n", &name, "addr", "add", &format!("{}/16", self.address()), "dev", "eth0"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
    }

    fn mac(&self) -> String {
        let [_, _, high, low] = self.octets();
        format!("02:00:00:77:{high:02x}:{low:02x}")
    }

    fn octets(&self) -> [u8; 4] {
        let high = u8::try_from(self.number / 200).expect("a world has fewer than 51,200 hosts");
        let low = u8::try_from(self.number % 200 + 10).expect("at most 209");
        [10, 77, high, low]
    }

    /// Its name in this world, which is its host name too.
    pub fn name(&self) -> String {
        format!("h{}", self.number)
    }

    fn port(&self) -> String {
        format!("v{}", self.number)
    }

    /// Its IP address.
    pub fn address(&self) -> String {
        std::net::Ipv4Addr::from(self.octets()).to_string()
    }

    /// Its SSH host key, as it goes into `spec.connection.hostKeys`.
    pub fn host_key(&self) -> &str {
        &self.key.public
    }

    /// A directory of the harness for this host (not on its disk).
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Switches it on: what the boot loader has as default is booted. An orderly reboot starts it again, a power cut does not.
    pub fn power_on(&self) {
        if let Some(emulator) = self.emulator.get() {
            return emulator.power_on();
        }
        let mut power = self.power.0.lock().expect("nothing panics with the lock held");
        assert!(!power.on, "{} is on already", self.name());
        power.on = true;
        drop(power);
        let boot =
            Boot { name: self.name(), directory: self.directory.clone(), layers: self.layers.clone(), power: Arc::clone(&self.power) };
        std::thread::Builder::new()
            .name(format!("power of {}", self.name()))
            .spawn(move || boot.supervise())
            .expect("cannot start a thread");
    }

    /// The process here that is its process 1, while it is on.
    pub fn init(&self) -> Option<u32> {
        let parent = self.power.0.lock().expect("nothing panics with the lock held").parent?;
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// How often it has been booted.
    pub fn boots(&self) -> u32 {
        if self.emulator.get().is_some() {
            return emulator::boots(&self.console());
        }
        self.power.0.lock().expect("nothing panics with the lock held").boots
    }

    /// Waits until it answers over SSH.
    pub async fn up(&self) {
        let deadline = Duration::from_secs(if self.emulator.get().is_some() { 300 } else { 60 });
        until_true(&format!("{} to answer over ssh", self.name()), deadline, || self.ssh(&["true"]).status.success()).await;
    }

    /// Runs a command on it without SSH and without its network (unless it is emulated), as root, as NixOS's environment has it.
    pub fn exec(&self, arguments: &[&str]) -> Output {
        if self.emulator.get().is_some() {
            let words: Vec<_> = arguments.iter().map(|word| emulator::quoted(word)).collect();
            return self.ssh(&[&words.join(" ")]);
        }
        let Some(init) = self.init() else { panic!("{} is off: cannot run {arguments:?}", self.name()) };
        let mut command = Command::new("nsenter");
        command.args(["--target", &init.to_string(), "--all", "env", "-i", "HOME=/root"]);
        command.arg("PATH=/run/wrappers/bin:/run/current-system/sw/bin:/usr/sbin:/usr/bin:/sbin:/bin").args(arguments);
        run(&mut command)
    }

    /// [`Host::exec`] of a command that has to succeed; what it printed.
    pub fn output(&self, arguments: &[&str]) -> String {
        let output = self.exec(arguments);
        assert!(
            output.status.success(),
            "on {}: {arguments:?} ended with {}:\n{}{}",
            self.name(),
            output.status,
            output.stdout,
            output.stderr
        );
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs a shell script on it, without SSH.
    pub fn shell(&self, script: &str) -> String {
        self.output(&["sh", "-euc", script])
    }

    /// Runs a command line on it over SSH, as root, with a key that only the harness has.
    pub fn ssh(&self, arguments: &[&str]) -> Output {
        run(&mut self.ssh_command(arguments))
    }

    /// [`Host::ssh`], not started yet: for a connection that is to break, or that is given something to read.
    pub fn ssh_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ssh");
        for option in ["IdentitiesOnly=yes", "BatchMode=yes", "ConnectTimeout=3", "LogLevel=ERROR"] {
            command.args(["-o", option]);
        }
        command.args(["-F", "/dev/null", "-o"]).arg(format!("UserKnownHostsFile={}", self.directory.join("known_hosts").display()));
        command.arg("-i").arg(&self.admin.file).arg(format!("root@{}", self.address())).args(arguments);
        command
    }

    /// Writes a file on it, owned by root.
    pub fn write_file(&self, path: &str, content: &str) {
        let staged = self.directory.join("staged");
        write(&staged, content);
        let Some(init) = self.init() else { panic!("{} is off: cannot write {path}", self.name()) };
        let parent = Path::new(path).parent().expect("an absolute path has a parent");
        self.output(&["mkdir", "-p", &parent.to_string_lossy()]);
        output(Command::new("cp").arg(&staged).arg(format!("/proc/{init}/root{path}")));
    }

    /// Lets a key log in as `user`: `root`, or `deploy`, who may use sudo without a password.
    pub fn authorize(&self, user: &str, public_key: &str) {
        let home = if user == "root" { "/root".to_owned() } else { format!("/home/{user}") };
        self.shell(&format!(
            "install -d -m 700 -o {user} -g {user} {home}/.ssh; echo '{public_key}' >> {home}/.ssh/authorized_keys; \
             chmod 600 {home}/.ssh/authorized_keys; chown {user}: {home}/.ssh/authorized_keys"
        ));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.power_cut();
        // The kernel takes a namespace apart when it finds the time, and the next host may have this number at once: the cable goes first
        let _ = run(Command::new("ip").args(["link", "del", &self.port()]));
        let _ = run(Command::new("ip").args(["netns", "del", &self.name()]));
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The part of a host that its power thread needs.
struct Boot {
    name: String,
    directory: PathBuf,
    layers: String,
    power: Arc<(Mutex<Power>, Condvar)>,
}

impl Boot {
    fn supervise(&self) {
        let cgroup = cgroup().join(&self.name);
        let (lock, changed) = &*self.power;
        loop {
            let console = std::fs::File::options()
                .create(true)
                .append(true)
                .open(self.directory.join("console.log"))
                .expect("cannot open the console");
            // Joins its cgroup first, so that the namespace's root is that
            let mut command = mortal("sh");
            command.args(["-euc", r#"echo 0 > "$1"; shift; exec "$@""#, "boot"]).arg(cgroup.join("cgroup.procs"));
            command.arg("nsenter").arg(format!("--net=/run/netns/{}", self.name));
            command.args(["unshare", "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child=KILL"]);
            command.arg(script("boot-host")).arg(&self.directory).args([&self.name, &self.layers]);
            command.stdin(std::process::Stdio::null()).stdout(console.try_clone().expect("a file can be cloned")).stderr(console);
            let mut child = command.spawn().expect("cannot start a host");
            {
                let mut power = lock.lock().expect("nothing panics with the lock held");
                power.parent = Some(child.id());
                power.boots += 1;
            }
            let status = child.wait().expect("a child can be waited for");
            // systemd leaves its cgroups behind
            let _ = run(Command::new("find").arg(&cgroup).args(["-mindepth", "1", "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"]));
            let mut power = lock.lock().expect("nothing panics with the lock held");
            power.parent = None;
            // reboot(2) in a PID namespace ends its process 1 with SIGHUP, power-off with SIGINT
            let reboots = std::os::unix::process::ExitStatusExt::signal(&status) == Some(1);
            power.on &= reboots;
            changed.notify_all();
            if !power.on {
                return;
            }
        }
    }
}

/// A part of the cache by its real path: a mount's option cannot hold a link that `setup` moves.
fn resolved(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|error| panic!("{} is not set up ({error}): run e2e/world/setup", path.display()));
    path.to_string_lossy().into_owned()
}

fn ip(arguments: &[&str]) {
    output(Command::new("ip").args(arguments));
}
