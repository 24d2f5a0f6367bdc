use super::world::{evaluate, flake, host, never, resolve, seconds};
use super::*;

pub(super) fn request(evaluated: &Evaluated, name: &str) -> Build {
    Build {
        drv: evaluated.drv.clone(),
        out: evaluated.out.clone(),
        system: evaluated.system.clone(),
        timeout: seconds(60),
        root: RootName::new("test", name).unwrap(),
    }
}

pub(super) async fn build(nix: &Nix, request: Build) -> Result<StorePath, BuildError> {
    nix.build(request, &watch::channel(BuildProgress::default()).0, &never()).await
}

/// A configuration that needs what fails.
fn needs(mark: &str) -> String {
    r#"{ config.system.build.toplevel = let dep = derivation { name = "dep"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo MARK dep; exit 3" ]; };
      in derivation { name = "nixos-system"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo ${dep} > $out" ]; }; }"#.replace("MARK", mark)
}

/// Text that no earlier run has built.
pub(super) fn unique() -> String {
    format!("{:032x}", rand::random::<u128>())
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn builds_that_come_together_are_one_process_and_who_fails_fails_alone() {
    let world = World::new();
    let mark = unique();
    let good = host(&format!("echo {mark} > $out"));
    let bad =
        host(&format!("echo {mark}; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22; do echo line $i; done; exit 7"));
    let needs = needs(&mark);
    let wrong = r#"{ config.system.build.toplevel = derivation { name = "x"; system = "riscv64-linux"; builder = "/bin/sh"; }; }"#;
    let fixed = format!(
        r#"{{ config.system.build.toplevel = derivation {{ name = "fixed-{mark}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ]; outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; outputHashMode = "flat"; }}; }}"#
    );
    world.commit(
        "infra",
        &[("flake.nix", &flake(&[("good", &good), ("bad", &bad), ("needs", &needs), ("wrong", wrong), ("fixed", &fixed)]))],
    );
    let nix = world.nix().await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let names = ["good", "bad", "needs", "wrong", "fixed", "good"];
    let evaluated = futures::future::try_join_all(names.map(|name| evaluate(&nix, &locked, name))).await.unwrap();
    let requests =
        names.iter().zip(&evaluated).enumerate().map(|(i, (name, evaluated))| build(&nix, request(evaluated, &format!("{name}{i}"))));
    let [good, bad, needs, wrong, fixed, twin]: [_; 6] = futures::future::join_all(requests).await.try_into().unwrap();
    assert_eq!(good.unwrap(), evaluated[0].out);
    assert_eq!(twin.unwrap(), evaluated[0].out);
    let Err(BuildError::BuilderFailed { drv, log, message }) = bad else { panic!("{bad:?}") };
    assert_eq!((drv.as_str(), log.len(), log.last().unwrap().as_str()), ("nixos-system", 20, "line 22"), "{message}");
    let Err(BuildError::BuilderFailed { drv, log, .. }) = needs else { panic!("{needs:?}") };
    assert_eq!((drv.as_str(), log), ("dep", vec![format!("{mark} dep")]));
    assert!(matches!(wrong, Err(BuildError::WrongSystem { system, .. }) if system == "riscv64-linux"));
    assert!(matches!(&fixed, Err(BuildError::HashMismatch { .. })), "{fixed:?}");
    // Each asks the store first, by a process here: not all come in one window.
    let builds = nix.counters().builds;
    assert!(builds <= 3, "{builds}");
    // Roots: what was built is kept, what was not is not, and dropping a host drops all of it.
    let root = RootName::new("test", "good0").unwrap();
    let kept: Vec<_> = nix.roots().list().unwrap().into_iter().filter(|(name, ..)| *name == root).map(|(_, kind, _)| kind).collect();
    assert_eq!(kept, [RootKind::Drv, RootKind::System]);
    assert!(super::world::run("nix-store", &["--gc", "--print-roots"]).contains(evaluated[0].out.as_str()));
    // What is built already starts no process but the question.
    build(&nix, request(&evaluated[0], "good0")).await.unwrap();
    assert_eq!(nix.counters().builds, builds);
    for (name, ..) in nix.roots().list().unwrap() {
        nix.roots().drop_all(&name).unwrap();
    }
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn progress_is_told_and_a_build_out_of_time_is_ended_with_its_log() {
    let world = World::new();
    let mark = unique();
    let slow = host(&format!("echo {mark} waits; while true; do :; done"));
    world.commit("infra", &[("flake.nix", &flake(&[("slow", &slow)]))]);
    let nix = world.nix().await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let evaluated = evaluate(&nix, &locked, "slow").await.unwrap();
    let (sender, receiver) = watch::channel(BuildProgress::default());
    let error = nix.build(Build { timeout: seconds(2), ..request(&evaluated, "slow") }, &sender, &never()).await.unwrap_err();
    let BuildError::TimedOut { seconds: 2, drv, log } = error else { panic!("{error:?}") };
    assert_eq!((drv.as_deref(), log), (Some("nixos-system"), vec![format!("{mark} waits")]));
    let told = receiver.borrow().clone();
    assert_eq!((told.done, told.expected, told.running.len()), (0, 1, 1), "{told:?}");
    assert_eq!(told.running[0].name, "nixos-system");
    let cancel = never();
    let begun = async {
        while nix.counters().building == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        cancel.cancel();
    };
    let (cancelled, ()) = tokio::join!(nix.build(request(&evaluated, "slow"), &sender, &cancel), begun);
    assert!(matches!(cancelled, Err(BuildError::Cancelled)), "{cancelled:?}");
    let gone = async {
        while super::world::run(
            "sh",
            &["-c", &format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '{mark} wait[s]' || true")],
        ) != "0"
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(seconds(4), gone).await.expect("the builder is gone");
    nix.roots().drop_all(&RootName::new("test", "slow").unwrap()).unwrap();
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_fast_build_does_not_wait_for_a_slow_one_of_its_process() {
    let world = World::new();
    let nix = world.nix().await;
    // On a loaded machine two orders may come too far apart to be gathered: then two others are tried.
    for round in 0..5 {
        let mark = unique();
        let (fast, slow) = (host(&format!("echo {mark} > $out")), host(&format!("echo {mark}; while true; do :; done")));
        world.commit("infra", &[("flake.nix", &flake(&[("fast", &fast), ("slow", &slow)]))]);
        let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
        let (fast, slow) = tokio::join!(evaluate(&nix, &locked, "fast"), evaluate(&nix, &locked, "slow"));
        let (fast, slow) = (fast.unwrap(), slow.unwrap());
        let before = nix.counters().builds;
        let mut slow = std::pin::pin!(build(&nix, Build { timeout: seconds(60), ..request(&slow, "slow") }));
        tokio::select! {
            biased;
            built = &mut slow => panic!("{built:?}"),
            built = build(&nix, request(&fast, "fast")) => assert_eq!(built.unwrap(), fast.out),
        }
        let counters = nix.counters();
        for name in ["fast", "slow"] {
            nix.roots().drop_all(&RootName::new("test", name).unwrap()).unwrap();
        }
        // One process, which goes on: a process of the fast one alone would have ended before it was answered.
        if (counters.builds, counters.building) == (before + 1, 1) {
            return;
        }
        println!("round {round}: the two were not gathered");
    }
    panic!("two builds that are asked for at once are one process");
}

/// A nix-store, before the real one on PATH, that never says what needs what.
fn mute_store(world: &World) -> Environment {
    let (mut ours, bin) = (world.environment(), world.path().join("bin"));
    std::fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--re[fq]*) exec sleep 1000 ;; esac\nexec {} \"$@\"\n",
        super::world::run("sh", &["-c", "command -v nix-store"])
    );
    std::fs::write(bin.join("nix-store"), script).unwrap();
    std::fs::set_permissions(bin.join("nix-store"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = ours.remove(std::ffi::OsStr::new("PATH")).unwrap();
    ours.insert("PATH".into(), std::env::join_paths(std::iter::once(bin).chain(std::env::split_paths(&path))).unwrap());
    ours
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_store_that_does_not_answer_holds_up_neither_the_log_nor_the_clock_of_a_build() {
    let world = World::new();
    let ours = mute_store(&world);
    let config = NixConfig { readable: vec![world.path().join("bin")], ..world.config() };
    let nix = Nix::start_with(config, Processes::new(), &ours).await.unwrap();
    for round in 1..=5 {
        let mark = unique();
        // Of what fails Nix tells at once only where something needs it.
        let (bad, slow) = (needs(&mark), host(&format!("echo {mark} waits; while true; do :; done")));
        world.commit("infra", &[("flake.nix", &flake(&[("bad", &bad), ("slow", &slow)]))]);
        let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
        let (bad, slow) = tokio::join!(evaluate(&nix, &locked, "bad"), evaluate(&nix, &locked, "slow"));
        let (bad, slow) = (bad.unwrap(), slow.unwrap());
        let within = |seconds, evaluated, name| Build { timeout: Duration::from_secs(seconds), ..request(evaluated, name) };
        let before = nix.counters().builds;
        let (bad, slow) = tokio::join!(build(&nix, within(9, &bad, "bad")), build(&nix, within(5, &slow, "slow")));
        for name in ["bad", "slow"] {
            nix.roots().drop_all(&RootName::new("test", name).unwrap()).unwrap();
        }
        if nix.counters().builds == before + 1 {
            // Whoever gives up on a build from outside knows nothing of its log.
            let Err(BuildError::TimedOut { seconds: 5, log, .. }) = slow else { panic!("{slow:?}") };
            assert_eq!(log, [format!("{mark} waits")]);
            let Err(BuildError::TimedOut { seconds: 9, .. }) = bad else { panic!("whose fault it is was never said: {bad:?}") };
            return;
        }
        println!("round {round}: the two were not gathered");
    }
    panic!("two builds that are asked for at once are one process");
}

/// A shell's function that says whether a file can be opened.
pub(super) const SEES: &str = r#"sees() { if { true < "$2"; } 2>/dev/null; then echo "$1: open"; else echo "$1: shut"; fi; }"#;

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_builder_without_a_sandbox_sees_neither_credentials_nor_the_data_directory() {
    let world = World::new();
    // Not in /tmp, which is theirs
    let data = tempfile::Builder::new().prefix("nhc-test-").tempdir_in("/run").unwrap();
    let token = data.path().join("token");
    std::fs::write(&token, "hunter2").unwrap();
    let ours = format!("/proc/{}/environ", std::process::id());
    // What follows the settings that are for every process is the credential's
    let secret = format!("GIT_CONFIG_VALUE_{}", super::access::GIT_SETTINGS.len());
    let script = format!(
        r#"{SEES}; echo "config=$NIX_CONFIG sock=$SSH_AUTH_SOCK git=${secret} locale=$LC_ALL"; sees system /etc/passwd; sees shadow /etc/shadow
           sees data {}; sees salt {}; sees ours {ours}; sees parent /proc/$PPID/environ; sees netrc /proc/$PPID/fd/9; sees inherited /dev/fd/9; exit 9"#,
        token.display(),
        data.path().join("salt").display(),
    );
    let spy = format!(
        r#"{{ config.system.build.toplevel = derivation {{ name = "spy-{}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" {} ];
             impureEnvVars = [ "NIX_CONFIG" "SSH_AUTH_SOCK" "{secret}" "LC_ALL" ];
             outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; outputHashMode = "flat"; }}; }}"#,
        unique(),
        super::world::nix_string(&script)
    );
    world.commit("infra", &[("flake.nix", &flake(&[("spy", &spy)]))]);
    let nix = world.start(NixConfig { data_dir: data.path().into(), ..world.config() }).await;
    let login =
        super::world::credentials(&[("netrc", "machine localhost login bot password hunter2"), ("access-tokens", "localhost=hunter2")]);
    let locked = resolve(&nix, &world.flake("infra"), Some(Arc::clone(&login))).await.unwrap();
    let wanted = Evaluate { flake: locked, attribute: "spy".into(), credentials: Some(login), retry: false, namespace: String::new() };
    let evaluated = nix.evaluate(wanted, &never()).await.unwrap();
    let Err(BuildError::BuilderFailed { log, .. }) = build(&nix, request(&evaluated, "spy")).await else { panic!("it must fail") };
    nix.roots().drop_all(&RootName::new("test", "spy").unwrap()).unwrap();
    // It hears of variables, and opens files, that are for everybody; and all of them are there to be opened by who may.
    let shut = ["shadow", "data", "salt", "ours", "parent", "netrc", "inherited"].map(|name| format!("{name}: shut"));
    let expected: Vec<String> = ["config= sock= git= locale=C".to_owned(), "system: open".to_owned()].into_iter().chain(shut).collect();
    assert_eq!(log, expected);
    for path in [token, data.path().join("salt"), ours.into(), "/etc/shadow".into()] {
        std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[tokio::test]
#[ignore = "needs nix, git, a store to write and user namespaces"]
async fn a_build_in_a_sandbox_has_its_own_file_system() {
    let world = World::new();
    let script = format!("echo {}; read x < /etc/shadow; read y < /proc/{}/environ; echo seen=$x$y > $out", unique(), std::process::id());
    world.commit("infra", &[("flake.nix", &flake(&[("web", &host(&script))]))]);
    let nix = world.start(NixConfig { sandbox: true, ..world.config() }).await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let evaluated = evaluate(&nix, &locked, "web").await.unwrap();
    let out = build(&nix, request(&evaluated, "web")).await.unwrap();
    assert_eq!(std::fs::read_to_string(out.as_str()).unwrap(), "seen=\n");
    nix.roots().drop_all(&RootName::new("test", "web").unwrap()).unwrap();
}
