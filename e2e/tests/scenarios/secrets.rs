//! Keys, tokens and passwords: in use everywhere, and to be found nowhere.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::{Engine, engine::general_purpose::STANDARD};
use nixos_host_e2e::controller::Options;
use nixos_host_e2e::{Scenario, until};
use serde_json::json;

use crate::SOON;
use crate::cases::{apply_all, case, each_says_so};

/// Looks at the command lines of all processes as fast as it can, until it is stopped; what it saw of `needles`, and how often it looked.
struct Sampler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(Vec<String>, usize)>,
}

impl Sampler {
    fn start(needles: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut seen, mut lookups) = (Vec::new(), 0);
            while !stopped.load(Ordering::Relaxed) {
                for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                    let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
                    if needles.iter().any(|needle| line.contains(needle)) && !seen.contains(&line) {
                        seen.push(line);
                    }
                }
                lookups += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            (seen, lookups)
        });
        Self { stop, thread }
    }

    fn stop(self) -> (Vec<String>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Every file below a directory, as text.
fn files(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&entry.path(), text);
        } else if kind.is_file() {
            text.push_str(&String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()));
        }
    }
}

/// The middle of a private key: what no other key has.
fn body(private: &str) -> String {
    private.lines().nth(3).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_key_token_or_password_is_seen_anywhere() {
    let word = |kind: &str| format!("{kind}-{:016x}", rand::random::<u64>());
    let (password, wrong, token, garbage) = (word("password"), word("wrong"), word("token"), word("garbage"));
    let options = Options { arguments: vec!["--log".into(), "debug".into()], ..Options::default() };
    let scenario = Scenario::builder().hosts(2).login("fleet", &password).controller(options).start().await;
    let rev = scenario.repository.head();
    let client = scenario.server.client_key().private();
    let basic = |password: &str| STANDARD.encode(format!("fleet:{password}"));
    let bodies = [body(&client), body(&scenario.key.private())];
    let mut needles = vec![password.clone(), basic(&password), wrong.clone(), basic(&wrong), token.clone(), garbage.clone()];
    needles.extend(bodies);
    let control = scenario.server.https_url("fleet.git").replace("git+", "");
    let sampler = Sampler::start(needles.iter().cloned().chain([control.clone()]).collect());
    let secret = |name: &str, values: &[(&str, &str)]| scenario.kubectl.secret(name, "Opaque", values);
    let (known, tokens) = (scenario.server.known_hosts(), format!("forge.example.test={token}"));
    secret("git-ssh", &[("ssh-privatekey", &client), ("known_hosts", &known), ("access-tokens", &tokens)]);
    secret("wrong", &[("netrc", &format!("machine git.example.test login fleet password {wrong}"))]);
    secret("garbage", &[("netrc", &garbage), ("ssh-privatekey", &garbage), ("access-tokens", &garbage)]);
    scenario.apply(0, &json!({}));
    scenario.apply(1, &json!({"spec": {"flake": {"url": scenario.server.ssh_url("fleet.git"), "credentialsRef": {"name": "git-ssh"}}}}));
    let git = |name: &str| json!({"spec": {"flake": {"credentialsRef": {"name": name}}}});
    let cases = [
        case("wrong", "CredentialsRefused", &["spec.flake"], git("wrong")),
        case("garbage", "SecretInvalid", &["\"garbage\""], git("garbage")),
        case("garbage-key", "SecretInvalid", &["\"garbage\""], json!({"spec": {"connection": {"sshKeyRef": {"name": "garbage"}}}})),
    ];
    apply_all(&scenario, &cases);
    each_says_so(&scenario, &cases).await;
    scenario.landed(0, &rev, SOON).await;
    scenario.landed(1, &rev, SOON).await;
    until("the events to be written", SOON, || async {
        let events = scenario.kubectl.run(&["get", "events.events.k8s.io", "-o", "yaml"]);
        if ["Landed", "SecretInvalid", "CredentialsRefused"].iter().all(|reason| events.contains(&format!("reason: {reason}"))) {
            Ok(())
        } else {
            Err(events)
        }
    })
    .await;
    let (lines, lookups) = sampler.stop();
    let (ours, theirs): (Vec<String>, Vec<String>) = lines.into_iter().partition(|line| needles.iter().any(|needle| line.contains(needle)));
    assert_eq!(ours, Vec::<String>::new(), "on a command line");
    assert!(!theirs.is_empty() && lookups > 100, "{lookups} looks saw no process of git: they would not have seen a secret either");
    for (place, control, text) in places(&scenario) {
        assert!(text.contains(control), "what was read of {place} is not it: {text}");
        let found: Vec<&String> = needles.iter().filter(|needle| text.contains(needle.as_str())).collect();
        assert!(found.is_empty(), "{found:?} in {place}");
    }
    scenario.finish().await;
}

/// All that other people can read: its name, something that is surely in it, and its text.
fn places(scenario: &Scenario) -> Vec<(&'static str, &'static str, String)> {
    let controller = scenario.controller();
    let mut data = String::new();
    files(&controller.data_directory(), &mut data);
    let names = ["web-1", "web-2", "wrong", "garbage", "garbage-key"];
    let statuses = names.iter().flat_map(|name| scenario.oracle().statuses(name)).map(|status| status.to_string()).collect();
    vec![
        ("the log", "fleet.git", controller.log()),
        ("the resources", "fleet.git", scenario.kubectl.run(&["get", "nixoshosts", "-o", "yaml", "--show-managed-fields"])),
        ("every status that was ever written", "fleet.git", statuses),
        ("the events", "NixOSHost", scenario.kubectl.run(&["get", "events.events.k8s.io", "-o", "yaml"])),
        ("the metrics", "nixos_host_info", controller.metrics()),
        ("the data directory", "/nix/store/", data),
        ("what was executed", "fleet.git", controller.executions().all().concat().join(" ")),
    ]
}
