//! Tests of the test world itself: what the scenarios build on does what it says.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods, reason = "tests")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use nixos_host_e2e::{
    ControlPlane, Host, Repository, Scenario,
    flake::{
        Server,
        fleet::{activation, units},
        server::{Login, authority},
    },
    host::{Shape, proxy::DelayingProxy},
    kubectl::Kubectl,
    oracle::{Oracle, flux},
    process::{Output, output, run},
    scenario::install_crds,
    until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

/// Builds a configuration, copies it to a host, and gives the toplevel.
fn copied(repository: &mut Repository, host: &Host, edit: impl FnOnce(&mut nixos_host_e2e::Knobs)) -> String {
    let rev = repository.commit(|fleet| edit(fleet.host("web")));
    let toplevel = repository.toplevel(&rev, "web");
    host.receive(&toplevel);
    toplevel
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_host_runs_the_base_system_and_answers_ssh() {
    let host = Host::start();
    host.up().await;
    let system = host.current_system();
    assert!(system.contains("nixos-system-base"), "{system}");
    assert_eq!([host.booted_system(), host.profile(), host.boot_default()], [(); 3].map(|()| system.clone()));
    assert_eq!(host.generations(), [(1, system.clone())]);
    assert!(host.store_paths().contains(&system));
    assert_eq!(host.failed_units(), [""; 0]);
    assert_eq!(host.ssh(&["systemctl", "is-system-running"]).stdout.trim(), "running");

    let before = host.cursor();
    assert_eq!(host.ssh(&["id", "-un"]).stdout.trim(), "root");
    assert_eq!(host.ssh(&["test", "-e", "/etc/NIXOS"]).code(), 0);
    let sessions = host.sessions_since(&before);
    assert_eq!((sessions.logins, sessions.execs), (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn switch_to_configuration_has_the_exit_codes_of_nixos() {
    let host = Host::start();
    let mut repository = Repository::create(|fleet| {
        fleet.host("web").unit("web.service", units::running(1));
    });
    host.up().await;
    let base = host.current_system();

    let first = copied(&mut repository, &host, |_| ());
    let result = host.switch(&first, "test");
    assert_eq!((result.code(), host.unit_state("web.service").as_str()), (0, "active"), "{}", result.stderr);
    assert_eq!((host.current_system(), host.boot_default()), (first, base.clone()));

    let second = copied(&mut repository, &host, |web| {
        web.unit("web.service", units::running(2));
    });
    let result = host.switch(&second, "dry-activate");
    assert_eq!(result.code(), 0);
    assert!(result.stderr.contains("would restart the following units: web.service\n"), "{}", result.stderr);
    let lock = host.hold_switch_lock();
    assert_eq!(host.switch(&second, "test").code(), 11);
    drop(lock);
    assert_eq!(host.switch(&second, "test").code(), 0);

    let fails = copied(&mut repository, &host, |web| {
        web.snippet("certificates", activation::FAIL);
    });
    let result = host.switch(&fails, "test");
    assert_eq!((result.code(), host.current_system()), (2, fails), "{}", result.stderr);
    assert!(result.stdout.contains("Activation script snippet 'certificates' failed (1)"), "{}", result.stdout);

    let failing_unit = copied(&mut repository, &host, |web| {
        web.activation = None;
        web.unit("job.service", units::failing());
    });
    let result = host.switch(&failing_unit, "test");
    assert_eq!((result.code(), host.failed_units()), (4, vec!["job.service".to_owned()]));
    assert!(result.stderr.contains("warning: the following units failed: job.service\n"), "{}", result.stderr);

    let refused = copied(&mut repository, &host, |web| web.pre_switch_check = Some("exit 1".to_owned()));
    assert_eq!((host.switch(&refused, "test").code(), host.current_system()), (1, failing_unit));
    assert_eq!(host.exec(&["env", "NIXOS_NO_CHECK=1", &format!("{refused}/bin/switch-to-configuration"), "check"]).code(), 0);
    assert_eq!(host.boot_default(), base);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_runs_what_the_boot_menu_has_as_default() {
    let host = Host::start();
    let mut repository = Repository::create(|_| ());
    host.up().await;
    let base = host.current_system();
    let new = copied(&mut repository, &host, |web| {
        web.unit("web.service", units::running(1));
    });
    host.output(&["nix-env", "--profile", "/nix/var/nix/profiles/system", "--set", &new]);
    assert_eq!(host.switch(&new, "boot").code(), 0);
    assert_eq!((host.current_system(), host.boot_default()), (base.clone(), new.clone()));
    assert_eq!(host.generations().len(), 2);

    let boot_id = host.boot_id();
    host.reboot().await;
    assert_ne!(host.boot_id(), boot_id);
    assert_eq!([host.current_system(), host.booted_system()], [new.clone(), new.clone()]);
    until("the new system's unit to run after the boot", SOON, || async {
        let state = host.unit_state("web.service");
        if state == "active" { Ok(()) } else { Err(state) }
    })
    .await;

    // What was only activated does not survive a power cut
    assert_eq!(host.switch(&base, "test").code(), 0);
    assert_eq!(host.current_system(), base);
    host.power_cut();
    assert!(host.init().is_none());
    assert!(host.journal(20).contains("systemd"), "the journal of a host that is off can be read");
    host.power_on();
    host.up().await;
    assert_eq!(host.current_system(), new);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_can_be_cut_off_in_each_way() {
    let host = Host::start();
    host.up().await;
    let reaches = |host: &Host| host.ssh(&["true"]).status.success();
    let gone = |result: Output| assert!(!result.status.success());

    host.cut_link();
    gone(host.ssh(&["true"]));
    host.heal_link();
    host.up().await;

    host.blackhole();
    let began = Instant::now();
    let result = host.ssh(&["true"]);
    assert!(result.stderr.contains("timed out") && began.elapsed() > Duration::from_secs(2), "no reset: {}", result.stderr);
    host.unblackhole();
    host.up().await;

    host.stop_sshd();
    assert!(host.ssh(&["true"]).stderr.contains("refused"));
    host.start_sshd();
    host.up().await;

    host.slow_link("1mbit");
    let began = Instant::now();
    output(Command::new("true").arg("0"));
    let data = host.ssh(&["head", "-c", "200000", "/dev/zero"]);
    assert!(data.stdout.len() == 200_000 && began.elapsed() > Duration::from_secs(1), "took {:?}", began.elapsed());
    host.full_speed();

    let before = host.host_key().to_owned();
    assert_ne!(host.change_host_key(), before);
    host.up().await;
    host.replace_authorized_keys("root", &[]);
    assert!(!reaches(&host));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_can_lack_what_a_landing_needs() {
    let host = Host::start();
    host.up().await;
    host.remove_nix();
    assert_ne!(host.exec(&["nix-store", "--version"]).code(), 0);
    host.restore_nix();
    assert_eq!(host.exec(&["nix-store", "--version"]).code(), 0);

    let as_deploy = |host: &Host| host.exec(&["runuser", "-u", "deploy", "--", "sudo", "-n", "true"]).code();
    assert_eq!(as_deploy(&host), 0);
    host.remove_sudo_rule();
    assert_ne!(as_deploy(&host), 0);
    host.restore_sudo_rule();

    host.small_filesystem("/nix", 4);
    host.fill("/nix");
    assert!(host.exec(&["nix-store", "--add", "/usr/bin/git"]).stderr.contains("No space left"));
    host.large_filesystem("/nix");
    assert_eq!(host.exec(&["nix-store", "--add", "/usr/bin/git"]).code(), 0);

    let debian = Host::start_as(Shape { nixos: false, nix: false });
    debian.up().await;
    assert_ne!(debian.exec(&["test", "-e", "/etc/NIXOS"]).code(), 0);
    assert_ne!(debian.exec(&["nix-store", "--version"]).code(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_makes_a_link_long() {
    let host = Host::start();
    host.up().await;
    let proxy = DelayingProxy::start(&format!("{}:22", host.address()), Duration::from_millis(200)).await;
    let began = Instant::now();
    let mut stream = tokio::net::TcpStream::connect(proxy.address()).await.expect("the proxy listens");
    let mut banner = [0; 8];
    tokio::io::AsyncReadExt::read_exact(&mut stream, &mut banner).await.expect("sshd says hello");
    assert_eq!(&banner, b"SSH-2.0-");
    assert!(began.elapsed() >= Duration::from_millis(100), "half a round trip, at least: {:?}", began.elapsed());
}

/// nix with the trust that a controller is started with, and a cache of its own.
fn nix(repository: &Repository, arguments: &[&str]) -> Command {
    let mut command = Command::new("nix");
    for variable in ["SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"] {
        command.env(variable, authority());
    }
    command.env("XDG_CACHE_HOME", repository.directory().join("cache")).args(arguments);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_is_served_over_https_with_a_login_and_over_ssh_with_a_key() {
    let mut repository = Repository::create(|fleet| {
        fleet.host("web");
    });
    let login = Login { user: "reader".to_owned(), password: "s3cret".to_owned() };
    let server = Server::start(repository.directory(), Some(&login)).await;
    let rev = repository.commit(|fleet| fleet.host("web").rev = Some(1));

    let url = format!("{}?ref=main&rev={rev}", server.https_url("fleet.git"));
    assert!(!run(&mut nix(&repository, &["flake", "metadata", &url])).status.success(), "nobody reads without the login");
    let mut command = nix(&repository, &["flake", "metadata", "--json", &url]);
    command.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "http.extraHeader");
    command.env("GIT_CONFIG_VALUE_0", format!("Authorization: {}", login.authorization()));
    assert!(output(&mut command).contains(&rev));
    assert!(server.looks() > 0 && server.https_requests().iter().any(|request| request.ends_with(" 401")), "{:?}", server.https_requests());

    let known_hosts = repository.directory().join("known_hosts");
    std::fs::write(&known_hosts, server.known_hosts()).unwrap();
    let ssh = format!("ssh -F /dev/null -i {} -o UserKnownHostsFile={}", server.client_key().file.display(), known_hosts.display());
    let remote = server.ssh_url("fleet.git").replace("git+ssh", "ssh");
    let refs = output(Command::new("git").env("GIT_SSH_COMMAND", ssh).args(["ls-remote", &remote, "refs/heads/main"]));
    assert!(refs.starts_with(&rev), "{refs}");
    assert_eq!(server.ssh_logins(), 1);

    server.stop();
    let refused = run(Command::new("git").env("GIT_SSL_CAINFO", authority()).args(["ls-remote", &server.https_url("fleet.git")[4..]]));
    assert!(refused.stderr.contains("Failed to connect"), "{}", refused.stderr);
    server.resume().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_moves_as_git_repositories_do() {
    let mut repository = Repository::create(|fleet| {
        fleet.host("web");
    });
    let first = repository.head();
    let old = repository.expected_toplevel(&first, "web");
    let second = repository.commit(|fleet| fleet.host("web").rev = Some(2));
    assert_ne!(repository.expected_toplevel(&second, "web"), old);
    let reverted = repository.revert();
    assert_ne!(reverted, first);
    assert_eq!(repository.expected_toplevel(&reverted, "web"), old, "the same tree is the same system");
    repository.force_push(&second);
    assert_eq!(repository.fleet().hosts["web"].rev, Some(2));
    assert_ne!(repository.toplevel(&first, "web"), "", "a revision that no branch has is there still");

    let other = Repository::create(|fleet| {
        fleet.host("web");
    });
    assert_ne!(other.expected_toplevel(&other.head(), "web"), old, "another repository's salt makes other derivations");

    let server = Server::start(repository.directory(), None).await;
    repository.archive(&second);
    let tarball = output(&mut nix(&repository, &["flake", "metadata", "--json", &server.file_url("fleet.tar.gz")]));
    assert!(tarball.contains("narHash"), "{tarball}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_can_go_away_and_come_back() {
    let plane = ControlPlane::start().await;
    let kubectl = plane.kubectl(&plane.namespace());
    kubectl.secret("kept", "Opaque", &[("key", "value")]);
    plane.kill_api_server();
    assert!(!kubectl.attempt(&["get", "secrets"]).status.success());
    plane.start_api_server();
    plane.ready().await;
    assert_eq!(kubectl.get(&["secret", "kept"])["data"]["key"], "dmFsdWU=");
    plane.freeze_api_server();
    assert!(!kubectl.attempt(&["get", "secrets", "--request-timeout=1s"]).status.success());
    plane.thaw_api_server();
    plane.ready().await;
}

/// Writes a status as a controller would.
fn write_status(kubectl: &Kubectl, reconciling: &str) {
    let now = "2026-01-01T00:00:00Z";
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "reason": "Testing", "message": "", "observedGeneration": 1, "lastTransitionTime": now });
    let status = json!({ "status": { "observedGeneration": 1, "conditions": [condition("Ready", "Unknown"), condition("Reconciling", reconciling)] } });
    kubectl.run(&["patch", "nixoshost", "web", "--subresource=status", "--type=merge", "--patch", &status.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oracle_sees_a_bad_write_between_two_good_ones() {
    let plane = ControlPlane::shared().await;
    install_crds(&plane).await;
    let namespace = plane.namespace();
    let kubectl = plane.kubectl(&namespace);
    let oracle = Oracle::start(plane.client().await, &namespace).await;
    let manifest = json!({
        "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": { "name": "web" },
        "spec": {
            "flake": { "url": "git+https://git.example.test/fleet" },
            "connection": { "addresses": ["10.77.0.250"], "sshKeyRef": { "name": "key" }, "hostKeys": ["ssh-ed25519 AAAA"] },
        },
    });
    kubectl.apply(&manifest.to_string());
    write_status(&kubectl, "True");
    write_status(&kubectl, "False");
    write_status(&kubectl, "True");
    until("the oracle to see three writes", SOON, || async {
        let writes = oracle.statuses("web").len();
        if writes == 3 { Ok(()) } else { Err(format!("{writes} writes")) }
    })
    .await;
    let found = oracle.violations();
    assert_eq!(found.len(), 2, "absent-when-not-true and nothing-being-done, once each: {found:#?}");
    let verdict = tokio::spawn(oracle.finish()).await;
    assert!(verdict.is_err(), "the end of a test fails on them");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_has_everything_but_the_controller() {
    let scenario = Scenario::builder().hosts(2).login("reader", "s3cret").without_controller().start().await;
    scenario.apply(0, &json!({ "spec": { "suspend": true } }));
    scenario.apply(1, &json!({ "spec": { "suspend": true } }));
    assert_eq!(scenario.get(1)["spec"]["connection"]["addresses"][0], scenario.hosts[1].address());
    let report = scenario.report();
    for part in ["web-2", "journal of web-1", "Started", "git server"] {
        assert!(report.contains(part), "no {part:?} in {report}");
    }
    scenario.finish().await;
}

#[test]
fn the_linter_of_flux_finds_what_is_wrong_and_nothing_else() {
    let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "reason": "Testing", "message": "", "observedGeneration": 2, "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let object = |conditions: &[serde_json::Value]| {
        let status = json!({ "observedGeneration": 2, "conditions": conditions });
        json!({ "apiVersion": "nixoshost.dev/v1alpha1", "kind": "NixOSHost", "metadata": { "name": "web", "generation": 2 }, "status": status })
    };
    let found = |conditions: &[serde_json::Value]| flux::violations(&[flux::line(&object(conditions))].into());
    let ready = condition("Ready", "True");
    assert_eq!(found(std::slice::from_ref(&ready)), [""; 0]);
    assert_eq!(found(&[condition("Ready", "Unknown"), condition("Reconciling", "True")]), [""; 0]);
    assert_eq!(found(&[condition("Ready", "False"), condition("Stalled", "True")]), [""; 0]);
    for (wrong, says) in [
        (vec![], "Ready condition must always be present"),
        (vec![ready.clone(), condition("Stalled", "True")], "must be False when Stalled"),
        (vec![condition("Ready", "Unknown")], "Ready"),
    ] {
        let text = found(&wrong).concat();
        assert!(text.contains(says), "{wrong:?}: {text}");
    }
}
