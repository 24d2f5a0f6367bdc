use super::build::{SEES, unique};
use super::world::{evaluate, flake, host, never, resolve, seconds};
use super::*;

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn hosts_that_fail_fail_alone_each_with_its_own_message() {
    use EvaluateError as E;
    let world = World::new();
    let top = |value: &str| format!("{{ config.system.build.toplevel = {value}; }}");
    let cases = [
        ("throws", top(r#"throw "deep yes""#)),
        ("asserts", top("assert false; 1")),
        ("aborts", top(r#"abort "no""#)),
        ("lacks", top("{ }.nope")),
        ("coerces", top(r#""x" + 1"#)),
        ("recurses", top("let x = x; in x")),
        ("overflows", top("let f = n: 1 + f (n + 1); in f 0")),
        ("divides", top("1 / 0")),
        ("misses", top("import ./nope.nix")),
        ("parses", top("import ./bad.nix")),
        ("json", top(r#"builtins.fromJSON "{""#)),
        ("number", "3".into()),
        ("plain", "{ config = { }; }".into()),
        ("string", top(r#""/nix/store/x""#)),
        ("imports", top(r#"(import (derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; }))"#)),
    ];
    let good = host("echo > $out");
    let mut hosts: Vec<(&str, &str)> = cases.iter().map(|(name, value)| (*name, value.as_str())).collect();
    hosts.extend([("good1", good.as_str()), ("good2", &good), ("a \"$\\{x}\" b", &good)]);
    world.commit("infra", &[("flake.nix", &flake(&hosts)), ("bad.nix", "{ = }")]);
    let nix = world.nix().await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let names: Vec<&str> = hosts.iter().map(|(name, _)| *name).chain(["absent"]).collect();
    let results = futures::future::join_all(names.iter().map(|name| evaluate(&nix, &locked, name))).await;
    for (name, result) in names.iter().zip(results) {
        let fine = match *name {
            "good1" | "good2" | "a \"$\\{x}\" b" => result.is_ok(),
            "absent" => matches!(&result, Err(E::AttributeMissing { available, .. }) if available.len() == hosts.len()),
            "number" | "plain" | "string" => matches!(result, Err(E::NotASystem { .. })),
            "imports" => matches!(result, Err(E::ImportFromDerivation { .. })),
            "throws" => {
                matches!(&result, Err(E::Failed { message, position: Some(position) }) if message == "deep yes" && position.starts_with("flake.nix:2:"))
            }
            "parses" => matches!(&result, Err(E::Failed { position: Some(position), .. }) if position == "bad.nix:1:3"),
            _ => matches!(result, Err(E::Failed { .. })),
        };
        assert!(fine, "{name}: {result:?}");
    }
    let counters = nix.counters();
    assert!(counters.evaluations <= 20, "{counters:?}");
    // What fails for certain is remembered until somebody asks for another try.
    evaluate(&nix, &locked, "throws").await.unwrap_err();
    assert_eq!(nix.counters().evaluations, counters.evaluations);
    let retry = Evaluate { flake: locked, attribute: "throws".into(), credentials: None, retry: true, namespace: String::new() };
    nix.evaluate(retry, &never()).await.unwrap_err();
    assert_eq!(nix.counters().evaluations, counters.evaluations + 1);
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_flake_is_evaluated_once_for_all_its_hosts_and_remembered() {
    let world = World::new();
    let hosts: Vec<(String, String)> = (0..4).map(|i| (format!("h{i}"), host(&format!("echo {i} > $out")))).collect();
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    world.commit("infra", &[("flake.nix", &flake(&hosts))]);
    let nix = world.start(NixConfig { evaluations: 1, ..world.config() }).await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let all = hosts.iter().flat_map(|(name, _)| [evaluate(&nix, &locked, name), evaluate(&nix, &locked, name)]);
    let all: Vec<Evaluated> = futures::future::try_join_all(all).await.unwrap();
    assert_eq!(nix.counters().evaluations, 1);
    assert_eq!(all[0].out.name(), "nixos-system");
    assert_eq!(
        (all[0].system.as_deref(), all[0].nixos_version.as_deref(), all[0].host_name.as_deref()),
        (Some("x86_64-linux"), Some("26.05"), Some("h"))
    );
    assert!(!all[0].cached);
    let again = world.nix().await;
    let remembered = evaluate(&again, &locked, "h0").await.unwrap();
    assert_eq!(remembered, Evaluated { cached: true, ..all[0].clone() });
    assert_eq!((again.counters().evaluations, again.counters().remembered), (0, 1));
    // The derivation is gone: what is remembered is not believed.
    super::world::run("nix-store", &["--delete", all[1].drv.as_str()]);
    assert!(!evaluate(&again, &locked, "h0").await.unwrap().cached);
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn an_evaluation_is_limited_in_memory_and_time_and_others_go_on() {
    let world = World::new();
    let good = host("echo > $out");
    let hog = r"{ config.system.build.toplevel = builtins.foldl' (a: b: a ++ a) [ 1 ] (builtins.genList (x: x) 40); }";
    let spin = r#"{ config.system.build.toplevel = builtins.match "(a+)+b" "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"; }"#;
    world.commit("infra", &[("flake.nix", &flake(&[("a", &good), ("hog", hog), ("spin", spin), ("z", &good)]))]);
    let nix = world.start(NixConfig { evaluate_timeout: seconds(3), evaluate_memory: 500 << 20, ..world.config() }).await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let (a, hog, spin, z) = tokio::join!(
        evaluate(&nix, &locked, "a"),
        evaluate(&nix, &locked, "hog"),
        evaluate(&nix, &locked, "spin"),
        evaluate(&nix, &locked, "z")
    );
    a.unwrap();
    z.unwrap();
    assert!(matches!(hog, Err(EvaluateError::OutOfMemory { mebibytes: 500 })), "{hog:?}");
    assert!(matches!(spin, Err(EvaluateError::TimedOut { seconds: 3 })), "{spin:?}");
    assert!(nix.processes().iter().all(|count| count.running == 0));
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_cancelled_waiter_ends_its_evaluation() {
    let world = World::new();
    let spin = r#"{ config.system.build.toplevel = builtins.match "(a+)+b" "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"; }"#;
    world.commit("infra", &[("flake.nix", &flake(&[("spin", spin)]))]);
    let nix = world.nix().await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let cancel = never();
    let request = Evaluate { flake: locked, attribute: "spin".into(), credentials: None, retry: false, namespace: String::new() };
    let begun = async {
        while nix.counters().evaluating == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(nix.evaluate(request, &cancel), begun);
    assert!(matches!(result, Err(EvaluateError::Cancelled)), "{result:?}");
    let ended = async {
        while nix.counters().evaluating > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(seconds(5), ended).await.unwrap();
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_flake_that_is_broken_says_so_for_all() {
    let world = World::new();
    world.commit("infra", &[("flake.nix", r#"{ outputs = { self }: { nixosConfigurations = throw "all of it"; }; }"#)]);
    world.commit("none", &[("flake.nix", "{ outputs = { self }: { }; }")]);
    let nix = world.nix().await;
    let locked = resolve(&nix, &world.flake("infra"), None).await.unwrap();
    let error = evaluate(&nix, &locked, "web").await.unwrap_err();
    assert!(matches!(&error, EvaluateError::FlakeBroken { message, .. } if message == "all of it"), "{error:?}");
    let locked = resolve(&nix, &world.flake("none"), None).await.unwrap();
    let error = evaluate(&nix, &locked, "web").await.unwrap_err();
    assert!(matches!(&error, EvaluateError::AttributeMissing { available, .. } if available.is_empty()), "{error:?}");
}

#[tokio::test]
#[ignore = "needs nix, git, a store to write and user namespaces"]
async fn import_from_derivation_works_where_it_is_allowed_and_sees_no_credential() {
    for sandbox in [true, false] {
        let world = World::new();
        // Not in /tmp, which is theirs
        let data = tempfile::Builder::new().prefix("nhc-test-").tempdir_in("/run").unwrap();
        let token = data.path().join("token");
        std::fs::write(&token, "hunter2").unwrap();
        let mark = unique();
        // What it saw is what it makes, and only the right answer has the right hash. It hears of a variable that is for all; without
        // a sandbox it reads a system file.
        let system = if sandbox { "shut" } else { "open" };
        let said = format!("config= sock= locale=C\nsystem: {system}\ndata: shut\nours: shut\nparent: shut\nnetrc: shut\n");
        let text = world.path().join("text");
        std::fs::write(&text, format!("\"{mark}\n{said}\"\n")).unwrap();
        let hash = super::world::run("nix-hash", &["--type", "sha256", "--flat", "--sri", text.to_str().unwrap()]);
        let script = format!(
            r#"{SEES}; {{ printf '"{mark}\n'; echo "config=$NIX_CONFIG sock=$SSH_AUTH_SOCK locale=$LC_ALL"; sees system /etc/ld.so.cache; sees data {};
               sees ours /proc/{}/environ; sees parent /proc/$PPID/environ; sees netrc /proc/$PPID/fd/9; echo '"'; }} > $out"#,
            token.display(),
            std::process::id(),
        );
        let ifd = format!(
            r#"{{ config.system.build.toplevel = let made = derivation {{ name = "made-{mark}"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" {} ];
                 impureEnvVars = [ "NIX_CONFIG" "SSH_AUTH_SOCK" "LC_ALL" ]; outputHash = "{hash}"; outputHashMode = "flat"; }};
               in derivation {{ name = "nixos-system-${{toString (builtins.stringLength (import made))}}"; system = "x86_64-linux"; builder = "/bin/sh"; }}; }}"#,
            super::world::nix_string(&script)
        );
        world.commit("infra", &[("flake.nix", &flake(&[("web", &ifd)]))]);
        let config = NixConfig { allow_import_from_derivation: true, sandbox, data_dir: data.path().into(), ..world.config() };
        let nix = world.start(config).await;
        let login =
            super::world::credentials(&[("netrc", "machine localhost login bot password hunter2"), ("access-tokens", "localhost=hunter2")]);
        let locked = resolve(&nix, &world.flake("infra"), Some(Arc::clone(&login))).await.unwrap();
        let request = Evaluate { flake: locked, attribute: "web".into(), credentials: Some(login), retry: false, namespace: String::new() };
        let evaluated = nix.evaluate(request, &never()).await.unwrap_or_else(|error| panic!("sandbox {sandbox}: {error:?}"));
        assert_eq!(evaluated.out.name(), format!("nixos-system-{}", mark.len() + said.len() + 1));
    }
}
