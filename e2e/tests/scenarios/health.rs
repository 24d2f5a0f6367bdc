//! Health checks: a system lands if they pass, the host goes back if one fails, and the message says which and what was heard.

use nixos_host_e2e::flake::fleet::units::{self, SILENT, SORRY, WARMING_UP, WELL};
use nixos_host_e2e::flake::server::certificate;
use nixos_host_e2e::scenario::{Builder, condition};
use nixos_host_e2e::wait::until_true;
use nixos_host_e2e::{Fleet, Host, Scenario};
use serde_json::{Value, json};

use crate::{SOON, message};

/// On the host itself 8080 (all is well), 8081 (503) and 8082 (silence), from outside 8090 (all is well).
const SERVERS: [(&str, &str, u16, &str); 4] = [
    ("well.service", "127.0.0.1", 8080, WELL),
    ("sorry.service", "127.0.0.1", 8081, SORRY),
    ("silent.service", "127.0.0.1", 8082, SILENT),
    ("outside.service", "0.0.0.0", 8090, WELL),
];

fn servers(hosts: usize) -> impl FnOnce(&mut Fleet) {
    move |fleet: &mut Fleet| {
        for index in 0..hosts {
            let knobs = fleet.host(&nixos_host_e2e::scenario::name(index));
            for (unit, address, port, answer) in SERVERS {
                knobs.unit(unit, units::serving(address, port, answer));
            }
        }
    }
}

fn scenario(hosts: usize) -> Builder {
    Scenario::builder().hosts(hosts).fleet(servers(hosts))
}

fn checks(checks: Value) -> Value {
    json!({"spec": {"healthChecks": checks}})
}

/// A server on 127.0.0.1:8443 of the host, with the certificate that the git servers have.
fn serve_https(host: &Host) {
    host.write_file("/etc/https/server.pem", &certificate());
    host.write_file(
        "/etc/https/lighttpd.conf",
        "server.modules = ( \"mod_openssl\" )\nserver.document-root = \"/etc/https\"\nserver.bind = \"127.0.0.1\"\nserver.port = 8443\n\
         ssl.engine = \"enable\"\nssl.pemfile = \"/etc/https/server.pem\"\n",
    );
    host.output(&["systemd-run", "--quiet", "--unit=https", "/usr/sbin/lighttpd", "-D", "-f", "/etc/https/lighttpd.conf"]);
}

fn passed(scenario: &Scenario, outcome: &str) -> f64 {
    scenario.controller().metric("nixos_host_health_checks_total", &[&format!("outcome={outcome:?}")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_whose_checks_pass_lands_and_a_check_that_is_added_later_activates_nothing() {
    let mut scenario = scenario(1).start().await;
    let rev = scenario.repository.head();
    serve_https(&scenario.hosts[0]);
    let mut wanted = checks(json!([
        {"name": "units", "units": ["well.service", "ssh.service"]},
        {"name": "tcp", "tcp": {"port": 8080}},
        {"name": "tcp-outside", "from": "Controller", "tcp": {"port": 8090}},
        {"name": "http", "http": {"port": 8080, "path": "/healthz?full=1", "bodyContains": "all is well"}},
        {"name": "http-outside", "from": "Controller", "http": {"port": 8090, "statuses": [200]}},
        {"name": "http-other-status", "http": {"port": 8081, "statuses": [503]}},
        {"name": "https", "http": {"scheme": "HTTPS", "port": 8443, "host": "git.example.test", "statuses": [403, 404]}},
        {"name": "command", "command": ["sh", "-c", "test $(id -u) = 0 && test \"$1\" = 'two words'", "sh", "two words"]},
    ]));
    // Who is not root forwards ports all the same, and commands run as root
    wanted["spec"]["connection"] = json!({"user": "deploy"});
    scenario.apply(0, &wanted);
    scenario.landed(0, &rev, SOON).await;
    assert_eq!((passed(&scenario, "passed"), passed(&scenario, "failed")), (8.0, 0.0));

    wanted["spec"]["healthChecks"].as_array_mut().unwrap().push(json!({"name": "never", "retries": 0, "command": ["false"]}));
    scenario.apply(0, &wanted);
    let generation = scenario.get(0)["metadata"]["generation"].clone();
    until_true("the added check to be seen", SOON, || scenario.get(0)["status"]["observedGeneration"] == generation).await;
    let object = scenario.condition(0, "Ready", "True", None, SOON).await;
    assert_eq!(
        object["status"]["history"].as_array().unwrap().len(),
        1,
        "the host runs the desired system, and nothing was activated again"
    );
    scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(7));
    scenario.request(0);
    let object = scenario.condition(0, "Ready", "False", Some("HealthCheckFailed"), SOON).await;
    assert_eq!(object["status"]["flake"]["applied"]["rev"], rev, "the next system is checked by it");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_check_that_fails_brings_the_old_system_back_and_is_held() {
    const LAST: usize = 3;
    let failing = [
        (json!({"units": ["well.service", "nope.service"]}), ["units well.service, nope.service", "nope.service does not exist"]),
        (json!({"tcp": {"port": 9}}), ["connecting to localhost:9 from the host", "nobody listens"]),
        (json!({"http": {"port": 8082}}), ["GET http://localhost:8082/ from the host", "no answer within 1s"]),
        (json!({"command": ["sh", "-c", "echo table users is missing >&2; exit 3"]}), ["exit status 3", "table users is missing"]),
    ];
    let scenario = scenario(failing.len()).start().await;
    let old: Vec<String> = scenario.hosts.iter().map(Host::current_system).collect();
    for (index, (check, _)) in failing.iter().enumerate() {
        let mut check = check.clone();
        check
            .as_object_mut()
            .unwrap()
            .extend(json!({"name": "x", "timeout": "1s", "retries": 1, "interval": "1s"}).as_object().unwrap().clone());
        let mut wanted = checks(json!([{"name": "good", "units": ["well.service"]}, check]));
        if index == LAST {
            wanted["spec"]["interval"] = "5s".into();
        }
        scenario.apply(index, &wanted);
    }
    for (index, (_, says)) in failing.iter().enumerate() {
        let object = scenario.condition(index, "Ready", "False", Some("HealthCheckFailed"), SOON).await;
        let text = message(&object, "Ready");
        for part in says.iter().chain(&["health check \"x\" failed in all of 2 tries", "; the old system runs again"]) {
            assert!(text.contains(part), "{part:?} should be in: {text}");
        }
        let host = &scenario.hosts[index];
        assert_eq!((host.current_system(), host.boot_default()), (old[index].clone(), old[index].clone()));
        assert_eq!(object["status"]["history"][0]["reason"], "HealthCheckFailed");
        assert_eq!(object["status"]["history"][0]["outcome"], "Rejected");
        assert_eq!(condition(&object, "Stalled").unwrap()["reason"], "HealthCheckFailed");
    }
    let activations = || scenario.controller().metric("nixos_host_stage_duration_seconds_count", &["stage=\"Activate\""]);
    let passes = || scenario.controller().metric("nixos_host_passes_total", &[]);
    let (tried, begun) = (activations(), passes());
    until_true("two more passes over the last host", SOON, || passes() >= begun + 2.0).await;
    assert_eq!(activations(), tried, "what was rejected is not tried again by itself");
    scenario.apply(LAST, &checks(json!([{"name": "x", "command": ["true"]}])));
    scenario.landed(LAST, &scenario.repository.head(), SOON).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_may_pass_at_a_later_try_or_over_another_connection() {
    let mut scenario = scenario(1).start().await;
    let rev = scenario.repository.commit(|fleet| {
        fleet.host("web-1").unit("warm.service", units::serving("127.0.0.1", 8083, WARMING_UP));
    });
    let hangs_up_once = "test -e /run/hung-up || { touch /run/hung-up; pkill -KILL -f 'sshd: root'; sleep 9; }";
    scenario.apply(
        0,
        &checks(json!([
            {"name": "warm", "interval": "1s", "http": {"port": 8083}},
            {"name": "hangs-up", "retries": 0, "command": ["sh", "-c", hangs_up_once]},
        ])),
    );
    scenario.landed(0, &rev, SOON).await;
    assert_eq!(
        scenario.hosts[0].output(&["ls", "/run/hung-up"]),
        "/run/hung-up",
        "a connection that was lost is no verdict: the check was run again"
    );
    assert!(!message(&scenario.get(0), "Ready").contains("although"), "{}", message(&scenario.get(0), "Ready"));
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_only_reports_keeps_the_system_and_says_what_it_heard() {
    let scenario = scenario(2).start().await;
    serve_https(&scenario.hosts[0]);
    let report = |name: &str, rest: Value| {
        let mut check = json!({"name": name, "onFailure": "Report", "timeout": "2s", "retries": 0});
        check.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        check
    };
    scenario.apply(
        0,
        &checks(json!([
            report("sorry", json!({"http": {"port": 8081}})),
            report("wordless", json!({"http": {"port": 8080, "bodyContains": "ready"}})),
            report("inside", json!({"from": "Controller", "tcp": {"port": 8080}})),
            report("other-name", json!({"http": {"scheme": "HTTPS", "port": 8443, "host": "www.example.test"}})),
            report("no-tls", json!({"http": {"scheme": "HTTPS", "port": 8080}})),
            report("slow", json!({"command": ["sh", "-c", "echo still at it; sleep 4711"]})),
            report("missing", json!({"command": ["no-such-program"]})),
        ])),
    );
    scenario.hosts[1].write_file("/etc/ssh/sshd_config.d/closed.conf", "AllowTcpForwarding no\n");
    scenario.hosts[1].output(&["systemctl", "reload-or-restart", "ssh.service"]);
    scenario.apply(1, &checks(json!([report("closed", json!({"tcp": {"port": 8080}}))])));
    for index in 0..2 {
        scenario.landed(index, &scenario.repository.head(), SOON).await;
    }
    let text = message(&scenario.get(0), "Ready");
    for part in [
        "kept although health check \"inside\" failed in its only try: connecting to",
        "health check \"sorry\" failed in its only try: GET http://localhost:8081/ from the host: status 503, expected from 200 to 399\ndatabase is down",
        "status 200, but its body has no \"ready\"\nall is well",
        "Connection refused",
        "GET https://localhost:8443/ from the host: agreeing on TLS for the name \"www.example.test\": invalid peer certificate",
        "agreeing on TLS for the name \"localhost\"",
        "it did not end within 2s, and was killed\nstill at it",
        "exit status 127\n",
        "no-such-program",
    ] {
        assert!(text.contains(part), "{part:?} should be in: {text}");
    }
    assert_eq!(scenario.hosts[0].exec(&["pgrep", "-f", "sleep 4711"]).stdout, "", "a program is killed with all that it started");
    let closed = message(&scenario.get(1), "Ready");
    assert!(closed.contains("AllowTcpForwarding"), "{closed}");
    scenario.finish().await;
}
