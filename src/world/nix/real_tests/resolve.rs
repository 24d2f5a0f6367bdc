use super::world::{credentials, flake, host, never, resolve, run, seconds};
use super::*;

const LOGIN: &str = "machine localhost login bot password hunter2";

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_branch_a_tag_and_a_revision_lead_to_the_same_locked_flake() {
    let world = World::new();
    let rev = world.commit("infra", &[("flake.nix", &flake(&[("web", &host("echo > $out"))]))]);
    world.git("infra", &["tag", "-a", "v1", "-m", "x"]);
    let nix = world.nix().await;
    let of = |rev: Option<&str>, name: Option<&str>| FlakeRef::new(&world.url("infra"), rev, name, false).unwrap();
    let main = resolve(&nix, &of(None, Some("main")), None).await.unwrap();
    assert_eq!((main.rev.as_ref(), main.followed.as_deref()), (Some(&rev), Some("main")));
    assert_eq!(main.reference, format!("{}?ref=HEAD&rev={rev}", world.url("infra")));
    let tag = resolve(&nix, &of(None, Some("v1")), None).await.unwrap();
    assert_eq!((tag.rev.as_ref(), tag.followed.as_deref()), (Some(&rev), Some("v1")));
    let head = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    assert_eq!(head.followed.as_deref(), Some("main"));
    let pinned = resolve(&nix, &of(Some(&rev), None), None).await.unwrap();
    assert_eq!((pinned.followed.clone(), &pinned.fingerprint), (None, &main.fingerprint));
    assert_eq!((nix.counters().looks, nix.counters().locks), (3, 1));
    // After a restart a pinned revision needs no network at all.
    let requests = world.requests();
    let again = world.nix().await;
    assert_eq!(resolve(&again, &of(Some(&rev), None), None).await.unwrap(), pinned);
    assert_eq!((again.counters().looks, again.counters().locks, world.requests()), (0, 0, requests));
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn of_a_new_revision_only_what_is_new_is_fetched() {
    let world = World::new();
    let noise: Vec<String> = (0..20_000).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    let flake_nix = flake(&[("web", &host("echo > $out"))]);
    let first = world.commit("infra", &[("flake.nix", &flake_nix), ("noise", &noise.join("\n"))]);
    let nix = world.nix().await;
    let pinned = |rev: &str| FlakeRef::new(&world.url("infra"), Some(rev), None, false).unwrap();
    resolve(&nix, &pinned(&first), None).await.unwrap();
    let whole = world.sent();
    let second = world.commit("infra", &[("small", "x")]);
    assert_eq!(resolve(&nix, &pinned(&second), None).await.unwrap().rev.unwrap(), second);
    let third = world.commit("infra", &[("small", "y")]);
    assert_eq!(resolve(&nix, &world.flake("infra"), None).await.unwrap().rev.unwrap(), third);
    let rest = world.sent() - whole;
    assert!(whole > 160_000 && rest < whole / 10, "{whole} bytes, then {rest} for two small commits");
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn one_look_serves_all_who_ask_within_their_freshness() {
    let world = World::new();
    world.commit("infra", &[("flake.nix", &flake(&[]))]);
    let nix = world.nix().await;
    let request = Resolve { flake: world.flake("infra"), credentials: None, fresh_since: None, demands: Demands::default() };
    let nobody = never();
    let all = futures::future::join_all((0..20).map(|_| nix.resolve(&request, &nobody))).await;
    assert!(all.iter().all(Result::is_ok));
    // All asked at nearly the same moment; whoever asked after the first look had begun needs one more.
    let looks = nix.counters().looks;
    assert!((1..=2).contains(&looks), "{looks}");
    let now = nix.driver.config.clock.now();
    let lax = Resolve { fresh_since: now.checked_sub(seconds(60)), ..request.clone() };
    nix.resolve(&lax, &nobody).await.unwrap();
    assert_eq!(nix.counters().looks, looks);
    let second = world.commit("infra", &[("new", "")]);
    let strict = Resolve { fresh_since: Some(now), ..request };
    assert_eq!(nix.resolve(&strict, &nobody).await.unwrap().rev.unwrap(), second);
    assert_eq!(nix.counters().looks, looks + 1);
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn each_wrong_thing_has_its_own_error() {
    use ResolveError as E;
    let world = World::new();
    world.commit("infra", &[("flake.nix", &flake(&[]))]);
    world.commit("private/infra", &[("flake.nix", &flake(&[]))]);
    world.commit("empty", &[("README", "x")]);
    world.commit("stale", &[("flake.nix", r#"{ inputs.x.url = "git+https://localhost/x"; outputs = { self, x }: { }; }"#)]);
    world.commit("broken", &[("flake.nix", "{ outputs = ")]);
    let nix = world.nix().await;
    let of = |repository: &str, rev: Option<&str>, name: Option<&str>| FlakeRef::new(&world.url(repository), rev, name, false).unwrap();
    let fails = async |flake: FlakeRef, credentials| resolve(&nix, &flake, credentials).await.unwrap_err();
    assert!(matches!(fails(of("infra", None, Some("nope")), None).await, E::RefNotFound { name } if name == "nope"));
    let rev = "0123456789012345678901234567890123456789";
    let error = fails(of("infra", Some(rev), None), None).await;
    assert!(matches!(error, E::RevNotFound { .. }), "{error:?}");
    let error = fails(of("nothing", None, None), None).await;
    assert!(matches!(error, E::RepositoryNotFound { .. }), "{error:?}");
    let error = fails(of("private/infra", None, None), None).await;
    assert!(matches!(error, E::CredentialsRefused { .. }), "{error:?}");
    let bad = credentials(&[("netrc", "machine localhost login bot password wrong")]);
    let error = fails(of("private/infra", None, None), Some(bad)).await;
    assert!(matches!(error, E::CredentialsRefused { .. }) && !error.to_string().contains("wrong"), "{error:?}");
    let error = fails(of("empty", None, None), None).await;
    assert!(matches!(error, E::NotAFlake { .. }), "{error:?}");
    let error = fails(FlakeRef::new(&format!("{}?dir=no/where", world.url("infra")), None, None, false).unwrap(), None).await;
    assert!(matches!(error, E::NotAFlake { .. }), "{error:?}");
    let error = fails(FlakeRef::new("git+https://localhost:1/x", None, None, false).unwrap(), None).await;
    assert!(matches!(error, E::Unreachable { .. }), "{error:?}");
    let error = fails(of("broken", None, None), None).await;
    assert!(matches!(error, E::Other { .. }), "{error:?}");
    let error = fails(of("stale", None, None), None).await;
    println!("a stale lock file: {error:?}");
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_silent_remote_is_given_up() {
    let world = World::new();
    let nix = world.start(NixConfig { resolve_timeout: seconds(1), ..world.config() }).await;
    let error = resolve(&nix, &world.flake("hang/x"), None).await.unwrap_err();
    assert!(matches!(error, ResolveError::TimedOut { seconds: 1, .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_private_repository_is_read_with_its_credential_and_with_no_other() {
    let world = World::new();
    let rev = world.commit("private/infra", &[("flake.nix", &flake(&[("web", &host("echo > $out"))]))]);
    let nix = world.nix().await;
    let login = credentials(&[("netrc", LOGIN)]);
    let locked = resolve(&nix, &world.flake("private/infra"), Some(Arc::clone(&login))).await.unwrap();
    let request =
        Evaluate { flake: locked.clone(), attribute: "web".into(), credentials: Some(login), retry: false, namespace: String::new() };
    nix.evaluate(request, &never()).await.unwrap();
    // Somebody else knows the revision: neither the cache nor the memory gives it away.
    let pinned = FlakeRef::new(&world.url("private/infra"), Some(&rev), None, false).unwrap();
    let error = resolve(&nix, &pinned, None).await.unwrap_err();
    assert!(matches!(error, ResolveError::CredentialsRefused { .. }), "{error:?}");
    let error = resolve(&nix, &pinned, Some(credentials(&[("access-tokens", "localhost=hunter3")]))).await.unwrap_err();
    assert!(matches!(error, ResolveError::CredentialsRefused { .. }), "{error:?}");
    for secret in ["hunter2", "aHVudGVyMg", "Ym90Omh1bnRlcjI"] {
        let found = run("sh", &["-c", &format!("grep -rl {secret} {}/data || true", world.path().display())]);
        assert_eq!(found, "", "a secret is on the disk");
    }
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_private_tarball_is_read_with_its_credential() {
    let world = World::new();
    let login = credentials(&[("netrc", LOGIN)]);
    world.commit("tree", &[("flake.nix", &flake(&[("web", &host("echo > $out"))]))]);
    let tar = world.path().join("repositories/private/tree.tar.gz");
    world.git("tree", &["archive", "--prefix=tree/", "-o", tar.to_str().unwrap(), "HEAD"]);
    let nix = world.nix().await;
    let url = format!("https://{}/private/tree.tar.gz", world.host());
    let tarball = FlakeRef::new(&url, None, None, false).unwrap();
    let locked = resolve(&nix, &tarball, Some(Arc::clone(&login))).await.unwrap();
    assert!(locked.reference.contains("narHash="), "{}", locked.reference);
    nix.evaluate(
        Evaluate { flake: locked, attribute: "web".into(), credentials: Some(Arc::clone(&login)), retry: false, namespace: String::new() },
        &never(),
    )
    .await
    .unwrap();
    let error = resolve(&nix, &tarball, None).await.unwrap_err();
    assert!(matches!(error, ResolveError::CredentialsRefused { .. }), "{error:?}");
    let missing = FlakeRef::new(&format!("https://{}/none.tar.gz", world.host()), None, None, false).unwrap();
    let error = resolve(&nix, &missing, None).await.unwrap_err();
    assert!(matches!(error, ResolveError::RepositoryNotFound { .. }), "{error:?}");
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn private_inputs_are_read_with_the_credential_of_the_flake() {
    let world = World::new();
    let login = credentials(&[("netrc", LOGIN)]);
    world.commit("private/dep", &[("flake.nix", "{ outputs = _: { text = \"from the input\"; }; }"), ("data", "x")]);
    let dep = world.path().join("repositories/private/dep.tar.gz");
    world.git("private/dep", &["archive", "--prefix=dep/", "-o", dep.to_str().unwrap(), "HEAD"]);
    let nix = world.nix().await;
    let git = resolve(&nix, &world.flake("private/dep"), Some(Arc::clone(&login))).await.unwrap();
    let url = format!("https://{}/private/dep.tar.gz", world.host());
    let tarball = resolve(&nix, &FlakeRef::new(&url, None, None, false).unwrap(), Some(Arc::clone(&login))).await.unwrap();
    let nodes = format!(
        r#"{{"nodes":{{"root":{{"inputs":{{"a":"a","b":"b"}}}},
          "a":{{"original":{{"type":"git","url":"https://{host}/private/dep"}},"locked":{{"type":"git","url":"https://{host}/private/dep","ref":"refs/heads/main","rev":"{rev}","revCount":1,"narHash":"{git}","lastModified":{modified}}}}},
          "b":{{"original":{{"type":"tarball","url":"{url}"}},"locked":{{"type":"tarball","url":"{url}","narHash":"{tarball}","lastModified":{modified}}}}}}},"root":"root","version":7}}"#,
        host = world.host(),
        rev = git.rev.as_ref().unwrap(),
        git = git.nar_hash,
        modified = git.last_modified,
        tarball = tarball.nar_hash,
    );
    let text = format!(
        r#"{{ inputs.a.url = "git+https://{0}/private/dep"; inputs.b.url = "{url}";
             outputs = {{ self, a, b }}: {{ nixosConfigurations.web = builtins.seq (a.text + b.text) {1}; }}; }}"#,
        world.host(),
        host("echo > $out")
    );
    world.commit("infra", &[("flake.nix", &text), ("flake.lock", &nodes)]);
    // A controller with nothing in its caches, and a store without the inputs.
    for path in super::world::run("sh", &["-c", "grep -rls 'from the input' /nix/store || true"]).lines() {
        let path = StorePath::containing(path).unwrap();
        super::world::run("nix-store", &["--delete", path.as_str()]);
    }
    let fresh = world.start(NixConfig { data_dir: world.path().join("fresh"), ..world.config() }).await;
    let locked = resolve(&fresh, &world.flake("infra"), Some(Arc::clone(&login))).await.unwrap();
    let request = Evaluate { flake: locked, attribute: "web".into(), credentials: None, retry: false, namespace: String::new() };
    let error = fresh.evaluate(request.clone(), &never()).await.unwrap_err();
    assert!(matches!(error, EvaluateError::FetchFailed { .. }), "{error:?}");
    fresh.evaluate(Evaluate { credentials: Some(login), ..request }, &never()).await.unwrap();
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_local_flake_is_resolved_where_that_is_allowed() {
    let world = World::new();
    world.commit("infra", &[("flake.nix", &flake(&[("web", &host("echo > $out"))]))]);
    let nix = world.start(NixConfig { allow_local_flakes: true, ..world.config() }).await;
    let dir = world.path().join("repositories/infra");
    for scheme in ["git+file://", "path:"] {
        let flake = FlakeRef::new(&format!("{scheme}{}", dir.display()), None, None, true).unwrap();
        let locked = resolve(&nix, &flake, None).await.unwrap();
        super::world::evaluate(&nix, &locked, "web").await.unwrap();
    }
}
