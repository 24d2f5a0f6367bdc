//! What can go wrong with a host. What is broken stays broken until the counterpart is called, over reboots too unless said otherwise.

use std::{process::Command, time::Duration};

use super::{Host, ip};
use crate::{process::output, wait::until_true, world::KeyPair};

impl Host {
    /// The power goes: every process is gone at once (what it wrote stays written). Does nothing to a host that is off.
    pub fn power_cut(&self) {
        if let Some(emulator) = self.emulator.get() {
            return emulator.power_cut();
        }
        let (lock, changed) = &*self.power;
        lock.lock().expect("nothing panics with the lock held").on = false;
        let gone = |limit| {
            let power = lock.lock().expect("nothing panics with the lock held");
            let (power, _) =
                changed.wait_timeout_while(power, limit, |power| power.parent.is_some()).expect("nothing panics with the lock held");
            power.parent.is_none()
        };
        // Killing may come before process 1 is there: try until it is gone
        for _ in 0..100 {
            if let Some(init) = self.init().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(init, rustix::process::Signal::KILL);
            }
            if gone(Duration::from_millis(100)) {
                return;
            }
        }
        panic!("{} is still on 10 s after its power was cut", self.name());
    }

    /// Asks for an orderly reboot and waits until the next boot answers over SSH.
    pub async fn reboot(&self) {
        let before = self.boots();
        self.exec(&["systemctl", "reboot"]);
        until_true(&format!("{} to go down and come back", self.name()), Duration::from_secs(120), || self.boots() > before).await;
        self.up().await;
    }

    /// Process 1 stops to do anything, as one that hangs in the kernel; everything else goes on. Until the next boot.
    pub fn freeze_init(&self) {
        let init = self.init().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(init.expect("a host that is off has no process 1"), rustix::process::Signal::STOP)
            .expect("process 1 is a child of this world");
    }

    /// Pulls the network cable: neighbours see the link go.
    pub fn cut_link(&self) {
        ip(&["link", "set", &self.port(), "down"]);
    }

    /// The end of [`Host::cut_link`].
    pub fn heal_link(&self) {
        ip(&["link", "set", &self.port(), "up"]);
    }

    /// Drops every packet to and from it, without a reset and with the link still up.
    pub fn blackhole(&self) {
        self.bridge_port("disabled");
    }

    /// The end of [`Host::blackhole`].
    pub fn unblackhole(&self) {
        self.bridge_port("forwarding");
    }

    fn bridge_port(&self, state: &str) {
        // The states of the spanning tree protocol, which `bridge` of iproute2 takes by number in all versions
        let state = if state == "forwarding" { "3" } else { "0" };
        output(Command::new("bridge").args(["link", "set", "dev", &self.port(), "state", state]));
    }

    /// Bounds what goes to it and what comes from it, each to `rate` as tc writes it (`8mbit`).
    pub fn slow_link(&self, rate: &str) {
        let shape = ["root", "tbf", "rate", rate, "burst", "32k", "latency", "400ms"];
        output(Command::new("tc").args(["qdisc", "replace", "dev", &self.port()]).args(shape));
        output(Command::new("tc").args(["-n", &self.name(), "qdisc", "replace", "dev", "eth0"]).args(shape));
    }

    /// The end of [`Host::slow_link`].
    pub fn full_speed(&self) {
        output(Command::new("tc").args(["qdisc", "del", "dev", &self.port(), "root"]));
        output(Command::new("tc").args(["-n", &self.name(), "qdisc", "del", "dev", "eth0", "root"]));
    }

    /// Stops sshd; connections that are open go on. Until the next boot.
    pub fn stop_sshd(&self) {
        self.output(&["systemctl", "stop", "ssh.service"]);
    }

    /// The end of [`Host::stop_sshd`].
    pub fn start_sshd(&self) {
        self.output(&["systemctl", "start", "ssh.service"]);
    }

    /// Gives it another SSH host key, as a machine that was installed anew has; the new public key. The harness's own [`Host::ssh`] trusts it.
    pub fn change_host_key(&self) -> String {
        let key = KeyPair::generate(self.directory().join("new-host-key"));
        self.write_file("/etc/ssh/ssh_host_ed25519_key", &key.private());
        self.output(&["chmod", "600", "/etc/ssh/ssh_host_ed25519_key"]);
        self.output(&["systemctl", "restart", "ssh.service"]);
        crate::world::write(self.directory().join("known_hosts"), format!("{} {}\n", self.address(), key.public));
        key.public
    }

    /// Lets nobody log in as `user` but with the given keys; the harness's own key goes too unless it is one of them.
    pub fn replace_authorized_keys(&self, user: &str, public_keys: &[&str]) {
        let home = if user == "root" { "/root".to_owned() } else { format!("/home/{user}") };
        self.shell(&format!("rm -f {home}/.ssh/authorized_keys"));
        for key in public_keys {
            self.authorize(user, key);
        }
    }

    /// Leaves `mib` for what is written below `path` from now on (`/nix`, `/boot`); what is there stays there. Until [`Host::large_filesystem`],
    /// which forgets what was written since, or the next boot.
    pub fn small_filesystem(&self, path: &str, mib: u32) {
        self.shell(&format!(
            "mkdir -p /small{path} && mount -t tmpfs -o size={mib}m,mode=755 tmpfs /small{path} && mkdir /small{path}/upper /small{path}/work && \
             mount -t overlay overlay -o lowerdir={path},upperdir=/small{path}/upper,workdir=/small{path}/work {path}"
        ));
    }

    /// The end of [`Host::small_filesystem`]: what was written meanwhile is gone.
    pub fn large_filesystem(&self, path: &str) {
        self.shell(&format!("umount -l {path} && umount -l /small{path}"));
    }

    /// The end of [`Host::small_filesystem`]: there is room at once, and what was written meanwhile stays, what was removed stays removed. Beneath a landing that
    /// writes there nothing is moved: its end is waited for.
    pub fn room_again(&self, path: &str) {
        self.unfill(path);
        self.shell(&format!(
            "mount -o remount,size=64m /small{path}; for _ in $(seq 600); do \
             case $(systemctl is-active nixos-host-controller-landing.service) in inactive|failed) break;; esac; sleep 0.1; done; \
             umount -l {path} && cd /small{path}/upper && find . -type c -exec rm -rf '{path}/{{}}' ';' -exec rm '{{}}' ';' && \
             cp -dR --preserve=mode,timestamps . {path}/ && cd / && umount -l /small{path}"
        ));
    }

    /// Fills what is left of the file system at `path`.
    pub fn fill(&self, path: &str) {
        self.exec(&["sh", "-c", &format!("dd if=/dev/zero of={path}/.filler bs=64k 2>/dev/null")]);
    }

    /// The end of [`Host::fill`].
    pub fn unfill(&self, path: &str) {
        self.output(&["rm", "-f", &format!("{path}/.filler")]);
    }

    /// Takes Nix away: its commands are no longer found.
    pub fn remove_nix(&self) {
        self.shell("mv /opt/nix /opt/nix.away");
    }

    /// The end of [`Host::remove_nix`].
    pub fn restore_nix(&self) {
        self.shell("mv /opt/nix.away /opt/nix");
    }

    /// `deploy` may no longer use sudo.
    pub fn remove_sudo_rule(&self) {
        self.shell("mv /etc/sudoers.d/deploy /root/sudo-rule");
    }

    /// The end of [`Host::remove_sudo_rule`].
    pub fn restore_sudo_rule(&self) {
        self.shell("mv /root/sudo-rule /etc/sudoers.d/deploy");
    }

    /// Takes sudo away; `deploy` may use doas.
    pub fn remove_sudo(&self) {
        self.shell("mv /usr/bin/sudo /root/sudo");
    }

    /// Holds the lock of `switch-to-configuration`, as a person's own switch would, until the guard is dropped.
    pub fn hold_switch_lock(&self) -> SwitchLock<'_> {
        self.shell(
            "mkdir -p /run/nixos && systemd-run --quiet --unit=hold-switch-lock flock /run/nixos/switch-to-configuration.lock sleep infinity; \
             until ! flock -n /run/nixos/switch-to-configuration.lock true; do sleep 0.05; done",
        );
        SwitchLock(self)
    }
}

/// Releases the lock when dropped.
pub struct SwitchLock<'a>(&'a Host);

impl Drop for SwitchLock<'_> {
    fn drop(&mut self) {
        self.0.output(&["systemctl", "stop", "hold-switch-lock.service"]);
    }
}
