//! What is wrong with the flake, its credentials or the Secrets: each has its own reason and a message to act on, and delays nobody else.

use nixos_host_e2e::controller::Options;
use nixos_host_e2e::flake::fleet::{Build, Evaluation, EvaluationError, position};
use nixos_host_e2e::flake::server::Login;
use nixos_host_e2e::flake::{Forge, Server};
use nixos_host_e2e::world::KeyPair;
use nixos_host_e2e::{Fleet, Repository, Scenario};
use serde_json::{Value, json};

use crate::cases::{Case, apply_all, case, each_says_so, nowhere};
use crate::{SOON, message};

/// The configurations of the first commit, beyond those of the hosts: each breaks in its own way.
fn broken(fleet: &mut Fleet) {
    fleet.host("web-2").system = Some("aarch64-linux".into());
    fleet.host("throws").evaluation_error(EvaluationError::Throw);
    fleet.host("asserts").evaluation_error(EvaluationError::Assertion);
    fleet.host("shapeless").evaluation = Some(Evaluation { not_a_system: true, ..Evaluation::default() });
    fleet.host("builds-early").evaluation = Some(Evaluation { import_from_derivation: true, ..Evaluation::default() });
    fleet.host("fails").build = Some(Build { fail: true, sleep: 0 });
    fleet.host("slow").build = Some(Build { fail: false, sleep: 600 });
    fleet.host("slower").build = Some(Build { fail: false, sleep: 601 });
}

fn flake(patch: Value) -> Value {
    json!({"spec": {"flake": patch}})
}

fn references(scenario: &Scenario) -> Vec<Case> {
    let (https, nowhere) = (scenario.server.https_url("fleet.git"), scenario.server.https_url("nothing.git"));
    let rev = "0123456789abcdef0123456789abcdef01234567";
    let closed = "git+https://git.example.test:1/git/fleet.git";
    vec![
        case("unknown-ref", "RefNotFound", &["spec.flake", &https, "has no branch or tag \"nope\"", "nope"], flake(json!({"ref": "nope"}))),
        case("unknown-rev", "RevisionNotFound", &["spec.flake", &https, "has no revision", rev], flake(json!({"ref": null, "rev": rev}))),
        case("closed-port", "RepositoryUnreachable", &["spec.flake", closed, "cannot be reached"], flake(json!({"url": closed}))),
        case("no-repository", "RepositoryNotFound", &["spec.flake", &nowhere, "no such repository"], flake(json!({"url": nowhere}))),
        case("no-flake", "NotAFlake", &["spec.flake", "dir=nope", "no flake.nix"], flake(json!({"url": format!("{https}?dir=nope")}))),
        case("unlocked", "LockFileOutOfDate", &["spec.flake", "run `nix flake lock` and commit"], flake(json!({"ref": "unlocked"}))),
        case(
            "bare-word",
            "InvalidFlakeReference",
            &["spec.flake.url", "\"nixpkgs\"", "must start with one of"],
            flake(json!({"url": "nixpkgs"})),
        ),
    ]
}

fn configurations() -> Vec<Case> {
    let attribute = |name: &str| flake(json!({"attribute": name}));
    let all = "asserts, builds-early, fails, shapeless, slow, slower, throws, web-1, web-2";
    vec![
        case("missing", "AttributeNotFound", &["spec.flake.attribute", "nixosConfigurations.nope", all], attribute("nope")),
        case(
            "shapeless",
            "NotANixOSSystem",
            &["spec.flake.attribute", "nixosConfigurations.shapeless", "config.system.build.toplevel"],
            attribute("shapeless"),
        ),
        case(
            "throws",
            "EvaluationFailed",
            &["nixosConfigurations.throws", "this configuration throws on purpose", &position("throw \"this")],
            attribute("throws"),
        ),
        case("asserts", "EvaluationFailed", &["- web needs a certificate"], attribute("asserts")),
        case("builds-early", "EvaluationForbidden", &["import from derivation"], attribute("builds-early")),
        case("build-fails", "BuildFailed", &["trial-fails", "exit code 7", "line 21 of 40", "line 40 of 40"], attribute("fails")),
        case(
            "build-is-slow",
            "BuildTimedOut",
            &["within 5s", "trial-slow", "raise spec.build.timeout"],
            json!({"spec": {"flake": {"attribute": "slow"}, "build": {"timeout": "5s"}}}),
        ),
        case("other-architecture", "WrongArchitecture", &["aarch64-linux"], attribute("web-2")),
    ]
}

/// Secrets by name, and the cases that refer to them.
fn secrets(scenario: &Scenario) -> Vec<Case> {
    let directory = scenario.key.file.parent().unwrap().to_owned();
    let locked = KeyPair::generate_with(directory.join("locked-key"), &["-t", "ed25519", "-N", "a passphrase"]);
    let half = &scenario.key.private()[..150];
    let secret = |name: &str, values: &[(&str, &str)]| scenario.kubectl.secret(name, "Opaque", values);
    secret("other-key", &[("id_ed25519", "x"), ("id_ed25519.pub", "y")]);
    secret("garbage", &[("ssh-privatekey", "this is not a key")]);
    secret("half", &[("ssh-privatekey", half)]);
    secret("public", &[("ssh-privatekey", &scenario.key.public)]);
    secret("encrypted", &[("ssh-privatekey", &locked.private())]);
    secret("no-known-hosts", &[("ssh-privatekey", &scenario.key.private())]);
    secret("bad-netrc", &[("netrc", "this is not a netrc")]);
    let key = |name: &str| json!({"spec": {"connection": {"sshKeyRef": {"name": name}}}});
    let git = |name: &str| flake(json!({"credentialsRef": {"name": name}}));
    let (ssh, https) = ("spec.connection.sshKeyRef", "spec.flake.credentialsRef");
    vec![
        case("key-missing", "SecretNotFound", &[ssh, "Secret \"absent\"", "does not exist"], key("absent")),
        case(
            "key-elsewhere",
            "SecretInvalid",
            &[ssh, "\"other-key\"", "\"ssh-privatekey\"", "id_ed25519, id_ed25519.pub"],
            key("other-key"),
        ),
        case("key-garbage", "SecretInvalid", &[ssh, "\"garbage\"", "\"ssh-privatekey\"", "not a private key"], key("garbage")),
        case("key-half", "SecretInvalid", &[ssh, "\"half\"", "\"ssh-privatekey\"", "cut short"], key("half")),
        case("key-public", "SecretInvalid", &[ssh, "\"public\"", "\"ssh-privatekey\"", "public key"], key("public")),
        case("key-encrypted", "SecretInvalid", &[ssh, "\"encrypted\"", "\"ssh-privatekey\"", "ssh-keygen -p"], key("encrypted")),
        case("git-missing", "SecretNotFound", &[https, "Secret \"absent\"", "does not exist"], git("absent")),
        case("git-elsewhere", "SecretInvalid", &[https, "\"other-key\"", "netrc", "access-tokens"], git("other-key")),
        case("git-encrypted", "SecretInvalid", &[https, "Secret \"encrypted\"", "\"ssh-privatekey\"", "ssh-keygen -p"], git("encrypted")),
        case("git-no-hosts", "SecretInvalid", &[https, "\"no-known-hosts\"", "\"known_hosts\"", "ssh-keyscan"], git("no-known-hosts")),
        case("git-bad-netrc", "SecretInvalid", &[https, "\"bad-netrc\"", "\"netrc\"", "machine HOST"], git("bad-netrc")),
    ]
}

/// What a private repository answers to whom it does not know.
fn strangers(scenario: &Scenario, private: &Server) -> Vec<Case> {
    let (https, ssh) = (private.https_url("fleet.git"), private.ssh_url("fleet.git"));
    let wrong = Login { user: "fleet".into(), password: "wrong".into() };
    let (stranger, known) = (scenario.key.private(), private.known_hosts());
    let other = known.replace(known.split_whitespace().nth(2).unwrap(), scenario.key.public.split_whitespace().nth(1).unwrap());
    let secret = |name: &str, values: &[(&str, &str)]| scenario.kubectl.secret(name, "Opaque", values);
    secret("wrong-password", &[("netrc", &wrong.netrc())]);
    secret("stranger", &[("ssh-privatekey", &stranger), ("known_hosts", &known)]);
    secret("other-host-key", &[("ssh-privatekey", &private.client_key().private()), ("known_hosts", &other)]);
    let at = |url: &str, name: Option<&str>| flake(json!({"url": url, "credentialsRef": name.map(|name| json!({"name": name}))}));
    vec![
        case(
            "no-login",
            "CredentialsRefused",
            &["spec.flake", "wants credentials, and none were given", "asks for a user name and a password"],
            at(&https, None),
        ),
        case(
            "wrong-login",
            "CredentialsRefused",
            &["spec.flake", "refuses these credentials", "asks for a user name and a password"],
            at(&https, Some("wrong-password")),
        ),
        case("stranger", "CredentialsRefused", &["spec.flake", &ssh, "Permission denied"], at(&ssh, Some("stranger"))),
        case("other-host-key", "RepositoryHostKey", &["spec.flake", &ssh, "known_hosts"], at(&ssh, Some("other-host-key"))),
    ]
}

/// A branch whose flake has an input that its lock file does not know.
fn unlocked_branch(scenario: &Scenario) {
    let repository = &scenario.repository;
    repository.git(&["checkout", "--quiet", "-b", "unlocked"]);
    let text = std::fs::read_to_string(repository.work_tree().join("flake.nix")).unwrap();
    let input = format!("  inputs.other = {{ url = \"{}\"; flake = false; }};\n  outputs =", scenario.server.https_url("fleet.git"));
    repository.write("flake.nix", &text.replacen("  outputs =", &input, 1));
    repository.commit_files();
    repository.git(&["checkout", "--quiet", "main"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wrong_input_has_its_own_reason_and_delays_nobody() {
    // A job for each build that waits for its time-out, and one for the others
    let options = Options { arguments: vec!["--builds".into(), "4".into()], ..Options::default() };
    let scenario = Scenario::builder().hosts(2).fleet(broken).controller(options).start().await;
    let rev = scenario.repository.head();
    unlocked_branch(&scenario);
    let private = Repository::create(|fleet| {
        fleet.host("web-1");
    });
    let login = Login { user: "fleet".into(), password: "right".into() };
    let server = Server::start(private.directory(), Some(&login)).await;
    // Accepts connections and never says a word
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs = format!("git+https://127.0.0.1:{}/fleet.git", silent.local_addr().unwrap().port());
    for (name, patch) in [("hangs", flake(json!({"url": hangs}))), ("builds-long", flake(json!({"attribute": "slower"})))] {
        scenario.kubectl.apply(&nowhere(&scenario, name, &patch).to_string());
    }
    let mut cases = references(&scenario);
    cases.extend(configurations());
    cases.extend(secrets(&scenario));
    cases.extend(strangers(&scenario, &server));
    apply_all(&scenario, &cases);
    scenario.apply(0, &json!({}));
    scenario.apply(1, &json!({}));
    scenario.landed(0, &rev, SOON).await;
    let wrong = scenario.condition(1, "Ready", "False", Some("WrongArchitecture"), SOON).await;
    assert!(message(&wrong, "Ready").contains("for aarch64-linux, and the machine is x86_64-linux"), "{}", message(&wrong, "Ready"));
    each_says_so(&scenario, &cases).await;
    let failed = scenario.kubectl.get(&["nixoshost", "build-fails"]);
    let text = message(&failed, "Ready");
    assert!(!text.contains("line 20 of 40") && text.len() < 4096, "only the last 20 lines of the log: {text}");
    let building = scenario.kubectl.get(&["nixoshost", "builds-long"]);
    assert!(message(&building, "Reconciling").contains("derivations built"), "meanwhile another one is still being built: {building}");
    let waiting = scenario.kubectl.get(&["nixoshost", "hangs"]);
    assert!(message(&waiting, "Reconciling").contains(&hangs), "of the one whose repository says nothing it is said so: {waiting}");
    scenario.finish().await;
}

/// A bare repository with one file, served beside the scenario's own: a private input.
fn notes(scenario: &Scenario) {
    let script = r"git init --quiet --bare --initial-branch=main notes.git
git -C notes.git config uploadpack.allowAnySHA1InWant true
git init --quiet --initial-branch=main notes; cd notes; echo private > text; git add text
git -c user.name=e2e -c user.email=e2e@example.test commit --quiet --message text; git push --quiet ../notes.git main";
    let mut command = std::process::Command::new("sh");
    let status = command.args(["-euc", script]).current_dir(scenario.repository.directory()).status().unwrap();
    assert!(status.success(), "cannot make the repository of the input");
}

#[tokio::test(flavor = "multi_thread")]
async fn private_repositories_and_a_private_input_are_read_with_credentials() {
    let mut scenario = Scenario::builder().hosts(3).login("fleet", "a-password").start().await;
    let rev = scenario.repository.head();
    let login = Login { user: "fleet".into(), password: "a-password".into() };
    let (key, known) = (scenario.server.client_key().private(), scenario.server.known_hosts());
    scenario.kubectl.secret("git-ssh", "Opaque", &[("ssh-privatekey", &key), ("known_hosts", &known)]);
    scenario.kubectl.secret("both", "Opaque", &[("ssh-privatekey", &key), ("known_hosts", &known), ("netrc", &login.netrc())]);
    scenario.apply(0, &json!({}));
    scenario.apply(1, &flake(json!({"url": scenario.server.ssh_url("fleet.git"), "credentialsRef": {"name": "git-ssh"}})));
    notes(&scenario);
    scenario.repository.switch_branch("with-input");
    let ssh = format!("ssh -i {} -o StrictHostKeyChecking=no", scenario.server.client_key().file.display());
    scenario.repository.add_input("notes", &scenario.server.ssh_url("notes.git"), &[("GIT_SSH_COMMAND", &ssh)]);
    let with_input = scenario.repository.commit_files();
    scenario.apply(2, &flake(json!({"ref": "with-input", "credentialsRef": {"name": "both"}})));
    scenario.landed(0, &rev, SOON).await;
    scenario.landed(1, &rev, SOON).await;
    scenario.condition(2, "Ready", "True", None, SOON).await;
    assert_eq!(scenario.hosts[2].output(&["cat", "/run/current-system/etc/input-text"]), "private");
    assert_eq!(scenario.get(2)["status"]["flake"]["applied"]["rev"], with_input);
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tarballs_and_local_flakes_land_and_no_lock_file_is_ever_written() {
    let scenario = Scenario::builder().hosts(3).start().await;
    let rev = scenario.repository.head();
    let work = scenario.repository.work_tree();
    scenario.repository.archive(&rev);
    let input = scenario.repository.directory().join("unlocked");
    let copied = std::process::Command::new("cp").args(["-a", &work.to_string_lossy(), &input.to_string_lossy()]).status().unwrap();
    assert!(copied.success());
    let text = std::fs::read_to_string(input.join("flake.nix")).unwrap();
    let other = format!("  inputs.other = {{ url = \"{}\"; flake = false; }};\n  outputs =", scenario.server.https_url("fleet.git"));
    std::fs::write(input.join("flake.nix"), text.replacen("  outputs =", &other, 1)).unwrap();
    let refs = [scenario.server.file_url("fleet.tar.gz"), format!("path:{}", work.display()), scenario.repository.file_url()];
    for (index, url) in refs.iter().enumerate() {
        scenario.apply(index, &flake(json!({"url": url, "ref": null})));
    }
    let unlocked = [case(
        "unlocked",
        "LockFileOutOfDate",
        &["nix flake lock"],
        flake(json!({"url": format!("path:{}", input.display()), "ref": null})),
    )];
    apply_all(&scenario, &unlocked);
    for (index, url) in refs.iter().enumerate() {
        scenario.ready(index, SOON).await;
        let toplevel = scenario.repository.expected_toplevel(&rev, &nixos_host_e2e::scenario::name(index));
        assert_eq!(scenario.hosts[index].current_system(), toplevel, "{url}");
    }
    each_says_so(&scenario, &unlocked).await;
    assert!(!work.join("flake.lock").exists() && !input.join("flake.lock").exists(), "a lock file was written");
    assert_eq!(scenario.repository.git(&["status", "--porcelain"]), "", "the work tree is as it was");
    scenario.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn private_flakes_of_hosting_services_land_with_a_token_and_not_without() {
    let mut scenario = Scenario::builder().hosts(3).start().await;
    let token = format!("token-{:016x}", rand::random::<u64>());
    let forge = Forge::start(scenario.repository.directory(), &token).await;
    let tokens = |token: &str| [format!("github.com={token}"), format!("gitlab.com=PAT:{token}"), format!("git.sr.ht={token}")];
    scenario.kubectl.secret("wrong", "Opaque", &[("access-tokens", &tokens("wrong").join(" "))]);
    let urls = ["github:example/fleet", "gitlab:example/fleet", "sourcehut:~example/fleet"];
    for (index, (url, token)) in urls.iter().zip(tokens(&token)).enumerate() {
        // A Secret, and with it a cache, for each: Nix knows the tree of a revision by now wherever it came from, and would not ask another service.
        let secret = format!("tokens-{index}");
        scenario.kubectl.secret(&secret, "Opaque", &[("access-tokens", &token)]);
        scenario.apply(index, &json!({"spec": {"flake": {"url": url, "credentialsRef": {"name": secret}}, "interval": "5s"}}));
    }
    let none = |url: &str| flake(json!({"url": url}));
    let wrong = |url: &str| flake(json!({"url": url, "credentialsRef": {"name": "wrong"}}));
    let (wants, refuses) = ("wants credentials, and none were given", "refuses these credentials");
    let cases = [
        case("github-none", "CredentialsRefused", &[wants, "https://github.com"], none(urls[0])),
        case("gitlab-none", "CredentialsRefused", &[wants, "https://gitlab.com"], none(urls[1])),
        case("sourcehut-none", "CredentialsRefused", &[wants, "https://git.sr.ht"], none(urls[2])),
        case("github-wrong", "CredentialsRefused", &[refuses, "https://github.com"], wrong(urls[0])),
        case("gitlab-wrong", "CredentialsRefused", &[refuses, "https://gitlab.com"], wrong(urls[1])),
    ];
    apply_all(&scenario, &cases);
    let first = scenario.repository.head();
    for (index, url) in urls.iter().enumerate() {
        scenario.landed(index, &first, SOON).await;
        let locked = scenario.get(index)["status"]["flake"]["applied"]["url"].as_str().unwrap().to_owned();
        assert_eq!(locked, format!("{url}/{first}"));
    }
    each_says_so(&scenario, &cases).await;
    let served = forge.requests();
    for archive in ["api.github.com/repos/", "gitlab.com/api/v4/", "git.sr.ht/~example/fleet/archive/"] {
        assert!(served.iter().any(|request| request.starts_with(&format!("200 {archive}"))), "{archive} is not in {served:?}");
    }
    // Their history is asked of git.
    let second = scenario.repository.commit(|fleet| fleet.host("web-1").rev = Some(2));
    scenario.landed(0, &second, SOON).await;
    scenario.repository.force_push(&first);
    let object = scenario.condition(0, "Ready", "False", Some("DowngradeRefused"), SOON).await;
    assert!(message(&object, "Ready").contains(&second), "{}", message(&object, "Ready"));
    scenario.finish().await;
}
