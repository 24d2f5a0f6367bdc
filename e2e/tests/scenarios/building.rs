//! Builds on the machine itself, and machines that fetch from their own binary caches: what does not go over the link.

use std::process::Command;
use std::time::Duration;

use nixos_host_e2e::flake::fleet::{Build, Fill, Packages};
use nixos_host_e2e::scenario::name;
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Host, Scenario, until};
use serde_json::{Value, json};

use crate::cases::{case, each_says_so};
use crate::{SOON, doing, message, stage};

/// The build on a machine.
const UNIT: &str = "nixos-host-controller-build.service";

fn on_host(timeout: &str) -> Value {
    json!({"spec": {"build": {"location": "Host", "timeout": timeout}}})
}

fn sent_bytes(scenario: &Scenario) -> f64 {
    scenario.controller().metric("nixos_host_copied_bytes_total", &[])
}

/// How often the build on a machine has written a line.
fn written(host: &Host, line: &str) -> usize {
    let journal = host.output(&["journalctl", "--no-pager", "--output=cat", "--unit", UNIT]);
    journal.lines().filter(|written| written.contains(line)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_is_built_on_the_machine_and_nothing_of_it_goes_over_the_link() {
    let builder = Scenario::builder().hosts(4).fleet(|fleet| {
        fleet.host("web-1").own = Some(Packages { count: 4, kib: 8192, kind: Fill::Random, rev: 1, changed: 4 });
        fleet.host("web-2").build = Some(Build { fail: true, sleep: 0 });
        fleet.host("web-3").build = Some(Build { fail: false, sleep: 600 });
        fleet.host("web-4").system = Some("aarch64-linux".into());
    });
    let mut scenario = builder.start().await;
    let rev = scenario.repository.head();
    scenario.apply(0, &on_host("1m"));
    let toplevel = scenario.landed(0, &rev, SOON).await;
    let sent = sent_bytes(&scenario);
    assert!(sent < 8e6, "of 32 MiB that were built there, {sent} bytes were sent");
    assert!(!Command::new("nix-store").args(["--check-validity", &toplevel]).output().unwrap().status.success(), "it was not built here");
    assert_eq!(scenario.controller().executions().count("nix-store", &["--realise"]), 0);
    assert!(written(&scenario.hosts[0], "building '/nix/store/") > 0, "its journal has the build");
    scenario.hosts[0].output(&["nix-store", "--gc", "--quiet"]);
    assert!(scenario.hosts[0].store_paths().contains(&toplevel));

    scenario.apply(1, &on_host("1m"));
    scenario.apply(2, &on_host("3s"));
    scenario.apply(3, &on_host("1m"));
    let cases = [
        case(&name(2), "BuildTimedOut", &["on the machine within 3 s", "raise spec.build.timeout"], json!({})),
        case(&name(3), "WrongArchitecture", &["for aarch64-linux"], json!({})),
    ];
    each_says_so(&scenario, &cases).await;
    let failed = scenario.condition(1, "Ready", "False", Some("BuildFailed"), SOON).await;
    let text = message(&failed, "Ready");
    assert!(["on the machine failed", "exit code 7", "line 40 of 40"].iter().all(|part| text.contains(part)), "{text}");
    assert_eq!(stage(&failed, "Build")["outcome"], "Rejected", "it is held");
    assert_eq!(scenario.hosts[2].unit_state(UNIT), "inactive", "its time was over");
    let rev = scenario.repository.commit(|fleet| fleet.host("web-2").build = None);
    scenario.request(1);
    scenario.landed(1, &rev, SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_on_the_machine_outlives_the_controller_and_ends_with_the_wish() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").build = Some(Build { fail: false, sleep: 5 }));
    scenario.apply(0, &on_host("1m"));
    let host = &scenario.hosts[0];
    until_true("the build to begin", SOON, || written(host, "second 1 of 5") == 1).await;
    scenario.controller().kill();
    scenario.controller().start_again();
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(written(host, "second 1 of 5"), 1, "the next controller attached to the build of the first");

    scenario.repository.commit(|fleet| fleet.host("web-1").build = Some(Build { fail: false, sleep: 601 }));
    scenario.request(0);
    until_true("the next build to begin", SOON, || written(&scenario.hosts[0], "second 1 of 601") == 1).await;
    doing(&scenario, 0, "Building").await;
    scenario.apply(0, &json!({"spec": {"build": {"location": "Host"}, "suspend": true}}));
    let processes = "systemctl is-active nixos-host-controller-build; grep -l '[s]econd.*of.*seconds' /proc/[0-9]*/cmdline";
    until("the build to be gone with all its processes", Duration::from_secs(3), || async {
        let seen = scenario.hosts[0].exec(&["sh", "-c", processes]).stdout;
        if seen.trim() == "inactive" { Ok(()) } else { Err(seen) }
    })
    .await;
    scenario.finish().await;
}

/// Has a machine ask a binary cache for what it lacks.
fn use_cache(host: &Host, url: &str) {
    host.shell(&format!(
        "sed -i '/^substitut/d' /etc/nix/nix.conf; printf 'substitute = true\\nsubstituters = {url}\\n' >> /etc/nix/nix.conf"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_fetches_from_its_own_cache_first_and_gets_the_rest_sent() {
    let mut scenario = Scenario::builder().start().await;
    let rev = scenario.repository.head();
    let toplevel = scenario.repository.toplevel(&rev, "web-1");
    let cache = scenario.hosts[0].directory().join("cache");
    let copied =
        Command::new("nix").args(["copy", "--to", &format!("file://{}?compression=none", cache.display()), &toplevel]).status().unwrap();
    assert!(copied.success());
    let into = format!("/proc/{}/root/srv/cache", scenario.hosts[0].init().unwrap());
    assert!(Command::new("cp").arg("-r").arg(&cache).arg(into).status().unwrap().success());
    use_cache(&scenario.hosts[0], "file:///srv/cache");
    let substitutes = json!({"spec": {"copy": {"substituteOnHost": true}}});
    scenario.apply(0, &substitutes);
    scenario.landed(0, &rev, SOON).await;
    assert_eq!((&stage(&scenario.get(0), "Copy")["message"], sent_bytes(&scenario)), (&json!("0 paths sent, 0 bytes"), 0.0));

    use_cache(&scenario.hosts[0], "http://10.77.0.1:1");
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(1));
    scenario.request(0);
    scenario.landed(0, &rev, SOON).await;
    assert!(sent_bytes(&scenario) > 0.0, "a cache that does not answer is no obstacle");
    scenario.finish().await;
}
