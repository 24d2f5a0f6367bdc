//! A host as a machine of its own, in an emulator: UEFI firmware, the real systemd-boot or GRUB, a real kernel. No KVM: a boot takes half a minute.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
};

use super::{Host, ip};
use crate::{
    process::{Daemon, mortal, output},
    world::script,
};

const FIRMWARE: &str = "/usr/share/OVMF";

/// The machine, on or off.
pub(super) struct Emulator {
    directory: PathBuf,
    cable: String,
    mac: String,
    qemu: Mutex<Option<Daemon>>,
}

impl Host {
    /// Switches it off, and makes what it has on disk that of an emulated machine with the same address and keys, which is off. What is installed
    /// in its boot menu has to have a kernel that is one ([`crate::flake::fleet::Kernel::real`]).
    pub fn emulate(&self) {
        self.power_cut();
        output(Command::new(script("make-disk")).arg(&self.directory).arg(&self.layers).arg(format!("{}/16", self.address())));
        std::fs::copy(Path::new(FIRMWARE).join("OVMF_VARS_4M.fd"), self.directory.join("efi-variables.fd"))
            .expect("not set up: run e2e/world/setup emulator");
        // The namespace's address is the machine's from now on
        self.cut_link();
        let cable = format!("e{}", self.number);
        ip(&["tuntap", "add", "dev", &cable, "mode", "tap"]);
        ip(&["link", "set", &cable, "master", "br0", "up"]);
        let emulator = Emulator { directory: self.directory.clone(), cable, mac: self.mac(), qemu: Mutex::default() };
        assert!(self.emulator.set(emulator).is_ok(), "{} is emulated already", self.name());
    }
}

impl Emulator {
    /// An orderly reboot, or one after a panic, stays within the emulator.
    pub(super) fn power_on(&self) {
        let mut command = mortal("qemu-system-x86_64");
        let file = |name: &str| self.directory.join(name).display().to_string();
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-m",
            "768",
        ]);
        command.args(["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.fd")]);
        command.args(["-drive", &format!("if=pflash,unit=1,format=raw,file={}", file("efi-variables.fd"))]);
        command.args(["-drive", &format!("if=none,id=disk,format=raw,file={}", file("machine.img"))]);
        command.args(["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"]);
        command.args(["-netdev", &format!("tap,id=cable,ifname={},script=no,downscript=no", self.cable)]);
        command.args(["-device", &format!("virtio-net-pci,netdev=cable,mac={},romfile=", self.mac)]);
        command.args(["-chardev", &format!("file,id=console,append=on,path={}", file("console.log")), "-serial", "chardev:console"]);
        let mut qemu = self.qemu.lock().expect("nothing panics with the lock held");
        assert!(qemu.is_none(), "the machine is on already");
        *qemu = Some(Daemon::start("qemu", command, &self.directory.join("qemu.log")));
    }

    /// Nothing is told to the machine; its disk and its EFI variables are as they are.
    pub(super) fn power_cut(&self) {
        if let Some(qemu) = self.qemu.lock().expect("nothing panics with the lock held").take() {
            qemu.kill();
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.power_cut();
        let _ = crate::process::run(Command::new("ip").args(["link", "del", &self.cable]));
    }
}

/// The kernels that have come to their stage 1, by what a machine's console said.
pub(super) fn boots(console: &str) -> u32 {
    u32::try_from(console.matches("stage 1: ").count()).expect("a test is not that long")
}

/// A word for the shell that sshd gives a command line to.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
