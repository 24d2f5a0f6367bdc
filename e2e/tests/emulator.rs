//! What the landing by reboot builds on, on a machine with UEFI firmware, the real systemd-boot and bootctl, and a real kernel, in an emulator.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

use nixos_host_e2e::{
    Host, Knobs, Scenario,
    flake::fleet::{BootLoader, Kernel, Loader},
};

/// The script's part that reads and sets what a machine boots next.
const BOOT: &str = include_str!("../../src/landing/boot.sh");

/// There is no udev, which would bring the devices that systemd finds in the partition table.
const PARAMS: &str = "console=ttyS0 loglevel=4 systemd.gpt_auto=0";

fn real(knobs: &mut Knobs, rev: u32, panics: bool) {
    knobs.kernel = Some(Kernel { rev, params: Some(PARAMS.to_owned()), panics, real: true });
    knobs.boot_loader = Some(BootLoader { kind: Loader::SystemdBoot, ..BootLoader::default() });
}

/// A machine in the emulator, off, that boots a system of the repository's head; the system.
async fn machine() -> (Scenario, String) {
    let mut scenario = Scenario::builder().without_controller().start().await;
    scenario.repository.add_machine();
    let rev = scenario.repository.commit(|fleet| real(fleet.host("web-1"), 0, false));
    let system = scenario.repository.toplevel(&rev, "web-1");
    install(&scenario.hosts[0], &system);
    scenario.hosts[0].switch(&system, "boot");
    (scenario, system)
}

/// Puts a system into the host's profile, as a generation of its own.
fn install(host: &Host, system: &str) {
    host.receive(system);
    host.output(&["nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", system]);
}

/// A function of the script, run on the host.
fn boot(host: &Host, call: &str) -> String {
    host.shell(&format!("{BOOT}\n{call}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "three boots in an emulator: make emulator"]
async fn systemd_boot_starts_a_system_once_and_after_a_power_cut_the_old_one() {
    let (mut scenario, old) = machine().await;
    let rev = scenario.repository.commit(|fleet| real(fleet.host("web-1"), 7, false));
    let new = scenario.repository.toplevel(&rev, "web-1");
    let host = &scenario.hosts[0];
    install(host, &new);
    // The menu has both, and the old one is the default: so it is when a landing by reboot goes
    host.switch(&old, "boot");
    host.emulate();
    host.power_on();
    host.up().await;
    assert_eq!((host.booted_system(), host.current_system()), (old.clone(), old.clone()));
    assert_eq!(boot(host, "boot_default"), old);
    assert!(host.output(&["uname", "-r"]).ends_with("cloud-amd64"), "it has booted a kernel of its own");

    boot(host, &format!("once {new}"));
    assert_eq!(boot(host, "boot_default"), new, "the next boot");
    boot(host, "never_mind");
    assert_eq!(boot(host, "boot_default"), old, "as if nothing had been asked for");

    boot(host, &format!("once {new}"));
    host.reboot().await;
    assert_eq!(host.booted_system(), new);
    assert_eq!(boot(host, "boot_default"), old, "the boot loader has forgotten it");

    host.power_cut();
    host.power_on();
    host.up().await;
    assert_eq!((host.booted_system(), host.boots()), (old, 3));
    scenario.finish().await;
}
