//! Whom a host follows: branches that were moved back, commits that nobody or somebody else signed, and flakes that want more than they may have.

use std::path::{Path, PathBuf};
use std::process::Command;

use nixos_host_e2e::controller::Options;
use nixos_host_e2e::flake::server::Login;
use nixos_host_e2e::world::KeyPair;
use nixos_host_e2e::{Scenario, until};
use serde_json::{Value, json};

use crate::cases::{Case, apply_all, case, each_says_so};
use crate::{SOON, message};

fn flake(patch: Value) -> Value {
    json!({"spec": {"flake": patch, "interval": "5s"}})
}

/// Waits until the controller refuses revision `found` on host number `index`; the message.
async fn refused(scenario: &Scenario, index: usize, reason: &str, found: &str) -> String {
    until(&format!("{found} to be refused"), SOON, || async {
        let object = scenario.condition(index, "Ready", "False", Some(reason), SOON).await;
        let text = message(&object, "Ready");
        if text.contains(found) { Ok(text) } else { Err(text) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_moved_back_is_refused_until_that_is_allowed_and_a_revert_lands() {
    let mut scenario = Scenario::builder().hosts(2).start().await;
    let (key, known) = (scenario.server.client_key().private(), scenario.server.known_hosts());
    scenario.kubectl.secret("git-ssh", "Opaque", &[("ssh-privatekey", &key), ("known_hosts", &known)]);
    let ssh = flake(json!({"url": scenario.server.ssh_url("fleet.git"), "credentialsRef": {"name": "git-ssh"}}));
    let mut allowing = ssh.clone();
    allowing["spec"]["flake"]["allowDowngrade"] = true.into();
    let both = |fleet: &mut nixos_host_e2e::flake::Fleet, rev: u32| {
        for name in ["web-1", "web-2"] {
            fleet.host(name).rev = Some(rev);
        }
    };
    let first = scenario.repository.head();
    let second = scenario.repository.commit(|fleet| both(fleet, 2));
    scenario.apply(0, &flake(json!({})));
    scenario.apply(1, &ssh);
    let system = scenario.landed(0, &second, SOON).await;
    scenario.landed(1, &second, SOON).await;
    // Back, and then to another history of the same length.
    scenario.repository.force_push(&first);
    let moved_back = refused(&scenario, 0, "DowngradeRefused", &first).await;
    refused(&scenario, 1, "DowngradeRefused", &first).await;
    for part in [second.as_str(), first.as_str(), "spec.flake.allowDowngrade", "spec.flake.rev"] {
        assert!(moved_back.contains(part), "{part} is not in {moved_back}");
    }
    let rewritten = scenario.repository.commit(|fleet| both(fleet, 3));
    refused(&scenario, 0, "DowngradeRefused", &rewritten).await;
    scenario.request(0);
    refused(&scenario, 0, "DowngradeRefused", &rewritten).await;
    let object = scenario.get(0);
    assert_eq!(scenario.hosts[0].current_system(), system, "the host stays as it was");
    assert_eq!(object["status"]["flake"]["applied"]["rev"], second, "and the status says what it runs");
    // A person's word: for this branch, or by pinning.
    scenario.apply(1, &allowing);
    scenario.landed(1, &rewritten, SOON).await;
    scenario.apply(0, &flake(json!({"ref": null, "rev": first})));
    scenario.landed(0, &first, SOON).await;
    // What was landed last is what counts from now on.
    scenario.apply(1, &ssh);
    let next = scenario.repository.commit(|fleet| both(fleet, 4));
    scenario.landed(1, &next, SOON).await;
    let reverted = scenario.repository.revert();
    scenario.landed(1, &reverted, SOON).await;
    scenario.finish().await;
}

/// An OpenPGP key of Bob's, in a keyring of its own.
struct Gpg {
    home: PathBuf,
}

impl Gpg {
    fn generate(directory: &Path) -> Self {
        let gpg = Self { home: directory.join("gnupg") };
        gpg.run(
            "mkdir -m 700 $GNUPGHOME; gpg --batch --quiet --passphrase '' --quick-generate-key 'Bob <bob@example.test>' ed25519 sign never",
        );
        gpg
    }

    fn run(&self, script: &str) -> String {
        let output = Command::new("sh").args(["-euc", script]).env("GNUPGHOME", &self.home).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A program for Git that signs with it.
    fn program(&self) -> String {
        let wrapper = self.home.join("sign");
        self.run(&format!("printf '#!/bin/sh\\nGNUPGHOME=%s exec gpg \"$@\"\\n' $GNUPGHOME > {0}; chmod +x {0}", wrapper.display()));
        wrapper.display().to_string()
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        // Its agent would outlive the test
        let _ = Command::new("gpgconf").args(["--kill", "all"]).env("GNUPGHOME", &self.home).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_commit_signed_by_an_allowed_key_lands() {
    let mut scenario = Scenario::builder().hosts(2).start().await;
    let directory = scenario.key.file.parent().unwrap().to_owned();
    let (alice, mallory, bob) =
        (KeyPair::generate(directory.join("alice")), KeyPair::generate(directory.join("mallory")), Gpg::generate(&directory));
    scenario.kubectl.secret("signers", "Opaque", &[("bob.asc", &bob.run("gpg --armor --export"))]);
    let git = |scenario: &Scenario, settings: &[(&str, &str)]| {
        for (name, value) in settings {
            scenario.repository.git(&["config", name, value]);
        }
    };
    scenario.apply(0, &flake(json!({"verify": {"sshKeys": [alice.public]}})));
    scenario.apply(1, &flake(json!({"verify": {"gpgKeysRef": {"name": "signers"}}})));
    let unsigned = scenario.repository.head();
    let text = refused(&scenario, 0, "SignatureRefused", &unsigned).await;
    assert!(text.contains("is not signed"), "{text}");
    refused(&scenario, 1, "SignatureRefused", &unsigned).await;
    git(&scenario, &[("commit.gpgSign", "true"), ("gpg.format", "ssh"), ("user.signingKey", &mallory.file.to_string_lossy())]);
    let mallorys = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    let text = refused(&scenario, 0, "SignatureRefused", &mallorys).await;
    assert!(text.contains("which is not allowed"), "{text}");
    let stalled = message(&scenario.get(0), "Stalled");
    assert!(stalled.contains("Sign it with one of those keys"), "{stalled}");
    git(&scenario, &[("user.signingKey", &alice.file.to_string_lossy())]);
    let alices = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(3));
    scenario.landed(0, &alices, SOON).await;
    refused(&scenario, 1, "SignatureRefused", &alices).await;
    git(&scenario, &[("gpg.format", "openpgp"), ("gpg.program", &bob.program()), ("user.signingKey", "bob@example.test")]);
    let bobs = scenario.repository.commit(|fleet| fleet.host("web-2").rev = Some(4));
    scenario.landed(1, &bobs, SOON).await;
    refused(&scenario, 0, "SignatureRefused", &bobs).await;
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signers_that_cannot_be_used_are_named() {
    let scenario = Scenario::builder().start().await;
    scenario.kubectl.secret("not-signers", "Opaque", &[("bob.asc", "garbage")]);
    let by_secret = |name: &str| flake(json!({"verify": {"gpgKeysRef": {"name": name}}}));
    let damaged = flake(json!({"verify": {"sshKeys": ["ssh-ed25519 AAAA"]}}));
    let cases = [
        case("no-secret", "SecretNotFound", &["spec.flake.verify.gpgKeysRef", "\"absent\""], by_secret("absent")),
        case("bad-secret", "SecretInvalid", &["spec.flake.verify.gpgKeysRef", "\"bob.asc\""], by_secret("not-signers")),
        case("bad-key", "InvalidSpec", &["spec.flake.verify.sshKeys", "damaged"], damaged),
    ];
    apply_all(&scenario, &cases);
    each_says_so(&scenario, &cases).await;
    scenario.finish().await;
}

/// Configurations that reach for what is not theirs; each shows in its error what it got.
fn attacks(scenario: &Scenario, secret: &str) -> Vec<(String, String)> {
    let output = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let data = scenario.controller().data_directory();
    let dir = data.join("cache/secrets");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("token"), secret).unwrap();
    std::fs::write(dir.join("flake.nix"), format!("{{ outputs = _: {{ x = \"{secret}\"; }}; }}")).unwrap();
    let token = dir.join("token").display().to_string();
    let kubeconfig = scenario.plane.kubeconfig().display().to_string();
    let hash = |file: &str| output("nix-hash", &["--type", "sha256", "--sri", file]);
    let flat = output("nix-hash", &["--type", "sha256", "--flat", "--sri", &token]);
    let encoded = |hash: String| hash.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let tree = encoded(hash(&dir.display().to_string()));
    let git = scenario.server.file_url("fleet.tar.gz");
    [
        ("reads-data", format!("builtins.readFile \"{token}\"")),
        ("fetches-data", format!("builtins.readFile (builtins.fetchurl {{ url = \"file://{token}\"; sha256 = \"{flat}\"; }})")),
        ("locks-data", format!("(builtins.getFlake \"path:{}?narHash={tree}\").x", dir.display())),
        ("reads-environment", "builtins.readFile /proc/self/environ".into()),
        ("locks-environment", format!("builtins.readFile (builtins.getFlake \"file+file:///proc/self/environ?narHash={tree}\").outPath")),
        ("locks-kubeconfig", format!("builtins.readFile (builtins.getFlake \"file+file://{kubeconfig}?narHash={}\").outPath", encoded(hash(&kubeconfig)))),
        ("asks-the-network", format!("builtins.readFile (builtins.fetchurl \"{git}\")")),
        ("builds", "builtins.readFile (derivation { name = \"x\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"echo x > $out\" ]; })".into()),
    ]
    .map(|(name, expression)| (name.to_owned(), expression))
    .into()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_controller_lands_over_https_and_ssh_and_a_flake_gets_nothing_that_is_not_its_own() {
    let (user, password) = ("fleet", format!("password-{:016x}", rand::random::<u64>()));
    let mut scenario = Scenario::builder().hosts(2).login(user, &password).controller(Options::confined()).start().await;
    assert!(
        scenario.controller().log().contains("confined=true") || scenario.controller().log().contains("\"confined\":true"),
        "this needs Landlock"
    );
    let (key, known) = (scenario.server.client_key().private(), scenario.server.known_hosts());
    scenario.kubectl.secret("git-ssh", "Opaque", &[("ssh-privatekey", &key), ("known_hosts", &known)]);
    let secret = format!("secret-{:032x}", rand::random::<u128>());
    let attacks = attacks(&scenario, &secret);
    let hosts: Vec<String> = attacks
        .iter()
        .map(|(name, expression)| format!("{name}.config.system.build.toplevel = throw \"LEAK ${{toString ({expression})}}\";"))
        .collect();
    scenario.repository.write("attacks.nix", &format!("{{\n{}\n}}\n", hosts.join("\n")));
    let text = std::fs::read_to_string(scenario.repository.work_tree().join("flake.nix")).unwrap();
    scenario.repository.write("flake.nix", &text.replacen("nixosConfigurations = ", "nixosConfigurations = import ./attacks.nix // ", 1));
    let rev = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.apply(0, &flake(json!({})));
    scenario.apply(1, &flake(json!({"url": scenario.server.ssh_url("fleet.git"), "credentialsRef": {"name": "git-ssh"}})));
    let mut cases: Vec<Case> =
        attacks.iter().map(|(name, _)| case(name, "EvaluationForbidden", &[], flake(json!({"attribute": name})))).collect();
    // Somebody else's Secret, by its name and by a path.
    let other = scenario.plane.namespace();
    let login = Login { user: user.into(), password: password.clone() };
    scenario.plane.kubectl(&other).secret("theirs", "Opaque", &[("netrc", &login.netrc())]);
    cases.push(case(
        "their-secret",
        "SecretNotFound",
        &["Secret \"theirs\"", &scenario.namespace],
        flake(json!({"credentialsRef": {"name": "theirs"}})),
    ));
    let local = json!({"url": format!("git+file://{}", scenario.repository.bare().display()), "credentialsRef": null});
    cases.push(case("local-flake", "InvalidFlakeReference", &["--allow-local-flakes"], flake(local)));
    apply_all(&scenario, &cases);
    scenario.landed(0, &rev, SOON).await;
    scenario.landed(1, &rev, SOON).await;
    each_says_so(&scenario, &cases).await;
    let all = scenario.kubectl.run(&["get", "nixoshosts", "-o", "yaml"]) + &scenario.controller().log();
    for word in [secret.as_str(), &password, "LEAK "] {
        assert!(!all.contains(word), "{word} got out");
    }
    let store = Command::new("grep").args(["-rls", &secret, "/nix/store"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&store.stdout), "", "it came into the store");
    scenario.finish().await;
}
