//! On a machine with UEFI firmware, the real systemd-boot and bootctl or the real GRUB, and a real kernel, in an emulator: what the landing by reboot builds on, and
//! the whole of it by a controller.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stderr, reason = "tests")]

use std::time::Duration;

use nixos_host_e2e::{
    Host, Knobs, Scenario,
    controller::Options,
    flake::fleet::{BootLoader, Kernel, Loader, units},
    scenario::condition,
    wait::until_true,
};
use serde_json::json;

/// The script's part that reads and sets what a machine boots next.
const BOOT: &str = include_str!("../../src/landing/boot.sh");

/// There is no udev, which would bring the devices that systemd finds in the partition table.
const PARAMS: &str = "console=ttyS0 loglevel=4 systemd.gpt_auto=0";

fn real(knobs: &mut Knobs, rev: u32, panics: bool) {
    knobs.kernel = Some(Kernel { rev, params: Some(PARAMS.to_owned()), panics, real: true });
}

/// A machine that boots a system of the repository's head by this boot loader, and is no machine in the emulator yet; the system.
async fn machine(kind: Loader) -> (Scenario, String) {
    let mut scenario = Scenario::builder().without_controller().start().await;
    scenario.repository.add_machine();
    let rev = scenario.repository.commit(|fleet| {
        real(fleet.host("web-1"), 0, false);
        fleet.host("web-1").boot_loader = Some(BootLoader { kind, ..BootLoader::default() });
    });
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
    let (mut scenario, old) = machine(Loader::SystemdBoot).await;
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

/// Everything takes its time in an emulator.
const LATER: Duration = Duration::from_secs(300);

/// The machine, on in the emulator, and a controller.
async fn managed(kind: Loader) -> Scenario {
    let (mut scenario, _) = machine(kind).await;
    scenario.hosts[0].emulate();
    scenario.hosts[0].power_on();
    scenario.hosts[0].up().await;
    scenario.start_controller(Options::default()).await;
    scenario
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a boot in an emulator: make emulator"]
async fn a_machine_whose_clock_jumps_while_it_waits_for_the_commit_lands() {
    let mut scenario = managed(Loader::SystemdBoot).await;
    for (revision, jump) in [(2, "1 year"), (3, "20 years ago")] {
        let rev = scenario.repository.commit(|fleet| {
            fleet.host("web-1").unit("web.service", units::running(revision));
        });
        scenario.apply(0, &json!({"spec": {"interval": "5s", "activation": {"settle": "15s"}}}));
        let state = || scenario.hosts[0].exec(&["cat", "/run/nixos-host-controller/state"]).stdout;
        until_true("the machine to wait for the commit", LATER, || state().trim_end() == "activated").await;
        scenario.hosts[0].output(&["date", "--set", jump]);
        assert_eq!(state().trim_end(), "activated", "it jumped meanwhile");
        scenario.landed(0, &rev, LATER).await;
    }
    assert_eq!(scenario.hosts[0].boots(), 1);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "four boots in an emulator: make emulator"]
async fn a_controller_reboots_a_machine_with_systemd_boot_and_the_old_kernel_is_back_after_one_that_panics() {
    reboots(Loader::SystemdBoot).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "four boots in an emulator: make emulator"]
async fn a_controller_reboots_a_machine_with_grub_and_the_old_kernel_is_back_after_one_that_panics() {
    reboots(Loader::Grub).await;
}

async fn reboots(kind: Loader) {
    let mut scenario = managed(kind).await;
    let activation = json!({"reboot": "IfRequired", "rebootWithin": "2m", "settle": "1s"});
    let rev = scenario.repository.commit(|fleet| real(fleet.host("web-1"), 7, false));
    scenario.apply(0, &json!({"spec": {"interval": "5s", "activation": activation}}));
    let good = scenario.landed(0, &rev, LATER).await;
    let host = &scenario.hosts[0];
    assert_eq!((host.booted_system(), host.boots()), (good.clone(), 2), "one boot, and what was booted stays");

    scenario.repository.commit(|fleet| real(fleet.host("web-1"), 8, true));
    let object = scenario.condition(0, "Ready", "False", Some("RebootHostNotBack"), LATER).await;
    let text = condition(&object, "Ready").unwrap()["message"].to_string();
    assert!(text.contains("the next power cycle boots the old system"), "{text}");
    let host = &scenario.hosts[0];
    assert!(host.console().contains("Kernel panic"), "{}", host.console());
    host.power_cut();
    host.power_on();
    scenario.condition(0, "Stalled", "True", Some("RebootFailed"), LATER).await;
    assert_eq!([host.booted_system(), host.current_system(), host.boot_default()], [(); 3].map(|()| good.clone()));
    assert_eq!(host.boots(), 4);
    scenario.finish().await;
}
