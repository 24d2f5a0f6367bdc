//! What a flake may try in order to read what is not its own, against the real evaluator: nothing leaks.

use super::world::{evaluate, flake, nix_string, resolve, run};
use super::*;

/// New in each run: what an earlier one let into the store is not this one's.
fn new_secret() -> String {
    format!("secret{:032x}", rand::random::<u128>())
}

/// The files in the store that hold the secret.
fn in_store(secret: &str) -> String {
    run("sh", &["-c", &format!("grep -rls {secret} /nix/store || true")])
}

/// A host that shows what an expression gives, in its error.
fn shows(expression: &str) -> String {
    format!(r#"{{ config.system.build.toplevel = throw "LEAK ${{toString ({expression})}}"; }}"#)
}

/// A hash that no file has.
const WRONG: &str = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// What there is to be read, and what its hashes are: who knows one may have it taken for fetched.
struct Bait {
    /// A directory that is a flake, and a file in it.
    dir: String,
    token: String,
    /// A repository, and a revision of it.
    repository: String,
    local: String,
    flat: String,
    one: String,
    recursive: String,
    netrc_flat: String,
    netrc_nar: String,
}

impl Bait {
    /// `login` is the netrc that the process is given.
    fn laid(world: &World, secret: &str, login: &str) -> Self {
        let dir = world.path().join("secrets");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("token"), secret).unwrap();
        std::fs::write(dir.join("flake.nix"), format!("{{ outputs = _: {{ x = \"{secret}\"; }}; }}")).unwrap();
        let (dir, token) = (dir.to_str().unwrap().to_owned(), format!("{}/token", dir.display()));
        let netrc = world.path().join("netrc").to_str().unwrap().to_owned();
        std::fs::write(&netrc, login).unwrap();
        let of = |path: &str| run("nix-hash", &["--type", "sha256", "--sri", path]);
        Self {
            local: world.commit("local", &[("token", secret)]),
            repository: world.path().join("repositories/local").display().to_string(),
            flat: flat(&token),
            one: of(&token),
            recursive: of(&dir),
            netrc_flat: flat(&netrc),
            netrc_nar: of(&netrc),
            dir,
            token,
        }
    }

    fn attacks(&self) -> Vec<String> {
        let (wrong, Self { dir, token, repository, local, flat, one, recursive, netrc_flat, netrc_nar }) = (WRONG, self);
        let mut attacks: Vec<String> = vec![
            format!("builtins.readFile \"{token}\""),
            format!("builtins.readFile (/. + \"{token}\")"),
            "builtins.readFile /proc/self/environ".into(),
            "builtins.getEnv \"NIX_CONFIG\"".into(),
            format!("builtins.readFile (./. + \"/../../../..{token}\")"),
            "builtins.readFile ./link".into(),
            format!("import \"{token}\""),
            format!("builtins.readDir \"{dir}\""),
            format!("builtins.readFile (builtins.path {{ path = \"{token}\"; }})"),
            format!("builtins.storePath \"{token}\""),
            format!("builtins.readFile (builtins.filterSource (_: _: true) \"{token}\")"),
            "builtins.exec [ \"/bin/cat\" \"/etc/passwd\" ]".into(),
        ];
        for hash in [one, wrong] {
            attacks.push(format!("builtins.readFile (builtins.path {{ path = \"{token}\"; sha256 = \"{hash}\"; }})"));
            attacks
                .push(format!("builtins.readFile (builtins.fetchTree {{ type = \"path\"; path = \"{token}\"; narHash = \"{hash}\"; }})"));
            attacks.push(format!(
                "builtins.readFile (builtins.fetchTree {{ type = \"file\"; url = \"file://{token}\"; narHash = \"{hash}\"; }})"
            ));
        }
        for hash in [flat, wrong] {
            attacks.push(format!("builtins.readFile (builtins.fetchurl {{ url = \"file://{token}\"; sha256 = \"{hash}\"; }})"));
        }
        for hash in [recursive, wrong] {
            attacks.push(format!(
                "builtins.readFile ((builtins.fetchTree {{ type = \"path\"; path = \"{dir}\"; narHash = \"{hash}\"; }}) + \"/token\")"
            ));
            attacks.push(format!("(builtins.getFlake \"path:{dir}?narHash=\" + builtins.replaceStrings [ \"+\" \"/\" \"=\" ] [ \"%2B\" \"%2F\" \"%3D\" ] \"{hash}\").x"));
            let encoded = hash.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
            attacks.push(format!("(builtins.getFlake \"path:{dir}?narHash={encoded}\").x"));
        }
        attacks.extend([
        format!("builtins.readFile ((builtins.fetchGit {{ url = \"{repository}\"; rev = \"{local}\"; }}) + \"/token\")"),
        format!("builtins.readFile ((builtins.fetchGit {{ url = \"file://{repository}\"; rev = \"{local}\"; }}) + \"/token\")"),
        format!("builtins.readFile ((builtins.fetchTree {{ type = \"git\"; url = \"file://{repository}\"; rev = \"{local}\"; }}) + \"/token\")"),
        format!("builtins.readFile ((builtins.getFlake \"git+file://{repository}?rev={local}\") + \"/token\")"),
        "builtins.fetchGit { url = \"ext::sh -c touch% /tmp/nhc-owned\"; rev = \"0123456789012345678901234567890123456789\"; }".into(),
        "builtins.fetchGit { url = \"ssh://-oProxyCommand=touch%20/tmp/nhc-owned/x\"; rev = \"0123456789012345678901234567890123456789\"; }".into(),
    ]);
        // The netrc that the process itself was given.
        for path in ["/proc/self/fd/9", "/dev/fd/9", &format!("/proc/{}/fd/9", std::process::id())] {
            for hash in [netrc_flat, netrc_nar, wrong] {
                let encoded = hash.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
                attacks.push(format!("builtins.readFile (builtins.fetchurl {{ url = \"file://{path}\"; sha256 = \"{hash}\"; }})"));
                attacks.push(format!(
                    "builtins.readFile (builtins.fetchTree {{ type = \"path\"; path = \"{path}\"; narHash = \"{hash}\"; }})"
                ));
                attacks.push(format!("builtins.readFile (builtins.getFlake \"path:{path}?narHash={encoded}\").outPath"));
                attacks.push(format!("builtins.readFile (builtins.getFlake \"file+file://{path}?narHash={encoded}\").outPath"));
            }
        }
        attacks
    }
}

/// The hash of a file's content.
fn flat(path: &str) -> String {
    run("nix-hash", &["--type", "sha256", "--flat", "--sri", path])
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn no_expression_reads_the_controllers_files() {
    let (world, secret) = (World::new(), new_secret());
    let login = format!("machine localhost login bot password {secret}");
    let bait = Bait::laid(&world, &secret, &login);
    let attacks = bait.attacks();
    let shown = new_secret();
    std::fs::write(world.path().join("repositories/shown.tar.gz"), &shown).unwrap();
    let shown_flat = flat(world.path().join("repositories/shown.tar.gz").to_str().unwrap());
    let mut hosts: Vec<(String, String)> = attacks.iter().enumerate().map(|(i, attack)| (format!("a{i}"), shows(attack))).collect();
    let asks =
        format!("builtins.readFile (builtins.fetchurl {{ url = \"https://{}/shown.tar.gz\"; sha256 = \"{WRONG}\"; }})", world.host());
    hosts.extend([("reads".to_owned(), shows("builtins.readFile ./shown")), ("asks".to_owned(), shows(&asks))]);
    let hosts: Vec<(&str, &str)> = hosts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let link = format!("-> {}", bait.token);
    world.commit("evil", &[("flake.nix", &flake(&hosts)), ("link", &link), ("shown", &shown)]);
    let nix = world.nix().await;
    assert!(nix.confined(), "this test needs Landlock");
    let credentials = super::world::credentials(&[("netrc", &login)]);
    let locked = resolve(&nix, &world.flake("evil"), Some(Arc::clone(&credentials))).await.unwrap();
    let cancel = super::world::never();
    let ask = |name: String| {
        let (flake, credentials) = (locked.clone(), Some(Arc::clone(&credentials)));
        nix.evaluate(Evaluate { flake, attribute: name, credentials, retry: false, namespace: String::new() }, &cancel)
    };
    let results = futures::future::join_all((0..attacks.len()).map(|i| ask(format!("a{i}")))).await;
    // Nix says what it got in either way of writing.
    let hashes: Vec<String> = [&bait.flat, &bait.one, &bait.recursive, &bait.netrc_flat, &bait.netrc_nar, &shown_flat]
        .into_iter()
        .flat_map(|hash| [hash.clone(), format!("sha256:{}", run("nix-hash", &["--to-base32", "--type", "sha256", hash]))])
        .collect();
    let leaks = |text: &str| {
        let mut got = text.split("got").skip(1).map(|rest| rest.trim_start_matches([':', ' ', '\'']));
        let told = got.any(|got| hashes.iter().any(|hash| got.starts_with(hash)));
        told || text.contains(&secret) || text.contains("root:x:0") || text.contains("LEAK") && !text.starts_with("LEAK (at ")
    };
    let mut leaked = Vec::new();
    for (attack, result) in attacks.iter().zip(results) {
        let text = result.expect_err(attack).to_string();
        println!("{attack}\n    {text}");
        if leaks(&text) {
            leaked.push(format!("{attack}: {text}"));
        }
    }
    assert!(leaked.is_empty(), "{leaked:#?}");
    // What is the flake's own to read, or to ask a server for, is seen by the same eyes.
    for control in ["reads", "asks"] {
        let text = ask(control.to_owned()).await.unwrap_err().to_string();
        assert!(leaks(&text), "{control}: {text}");
    }
    assert_ne!(in_store(&shown), "");
    assert!(!std::path::Path::new("/tmp/nhc-owned").exists());
    assert_eq!(in_store(&secret), "", "a secret came into the store");
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn no_lock_file_leads_to_the_controllers_files() {
    let (world, secret) = (World::new(), new_secret());
    let dir = world.path().join("secrets");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("token"), &secret).unwrap();
    let hash = run("nix-hash", &["--type", "sha256", "--sri", dir.to_str().unwrap()]);
    let rev = world.commit("local", &[("token", &secret)]);
    let nix = world.nix().await;
    let text = r#"{ inputs.x = { url = "github:a/b"; flake = false; }; outputs = { self, x }: { nixosConfigurations.web.config.system.build.toplevel = throw (builtins.readFile (x + "/token")); }; }"#;
    let local = world.path().join("repositories/local");
    for (number, node) in [
        format!(r#"{{"type":"path","path":"{}","narHash":"{hash}","lastModified":1}}"#, dir.display()),
        format!(r#"{{"type":"tarball","url":"file://{}/x.tar.gz","narHash":"{hash}","lastModified":1}}"#, dir.display()),
        format!(r#"{{"type":"file","url":"file://{}/token","narHash":"{hash}","lastModified":1}}"#, dir.display()),
        format!(r#"{{"type":"git","url":"file://{}","rev":"{rev}","narHash":"{hash}","lastModified":1,"revCount":1}}"#, local.display()),
    ]
    .iter()
    .enumerate()
    {
        let lock = format!(
            r#"{{"nodes":{{"root":{{"inputs":{{"x":"x"}}}},"x":{{"flake":false,"original":{{"type":"github","owner":"a","repo":"b"}},"locked":{node}}}}},"root":"root","version":7}}"#
        );
        let repository = format!("evil{number}");
        world.commit(&repository, &[("flake.nix", text), ("flake.lock", &lock)]);
        let error = resolve(&nix, &world.flake(&repository), None).await.unwrap_err();
        println!("{node}\n    {error}");
        assert!(matches!(error, ResolveError::ForbiddenInput { .. }), "{error:?}");
        assert!(!error.to_string().contains(&secret));
    }
    // No lock file: Nix would fetch the input before it says so. The process has a netrc to be read.
    let login = super::world::credentials(&[("netrc", &format!("machine localhost login bot password {secret}"))]);
    for (number, url) in
        ["file+file:///proc/self/fd/9".to_owned(), format!("path:{}", dir.display()), format!("git+file://{}", local.display())]
            .iter()
            .enumerate()
    {
        let repository = format!("unlocked{number}");
        let text = format!("{{ inputs.x = {{ url = \"{url}\"; flake = false; }}; outputs = {{ self, x }}: {{ }}; }}");
        world.commit(&repository, &[("flake.nix", &text)]);
        let error = resolve(&nix, &world.flake(&repository), Some(Arc::clone(&login))).await.unwrap_err();
        println!("{url}\n    {error:?}");
        assert!(!error.to_string().contains("sha256-") && !error.to_string().contains(&secret));
    }
    assert_eq!(in_store(&secret), "", "a secret came into the store");
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn neither_submodules_nor_settings_of_the_flake_get_anywhere() {
    let (world, secret) = (World::new(), new_secret());
    world.commit("local", &[("token", &secret)]);
    let local = world.path().join("repositories/local").display().to_string();
    let text = format!(
        "{{ inputs.self.submodules = true; outputs = {{ self }}: {{ nixosConfigurations.web = {}; }}; }}",
        shows("builtins.readFile ./sub/token")
    );
    let nix = world.nix().await;
    // From the same server a submodule is a part of the flake; from the controller's own disk it is not.
    for (repository, url) in [("fair", world.url("local").replace("git+", "")), ("evil", local.clone())] {
        world.commit(repository, &[("flake.nix", &text)]);
        world.git(repository, &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &local, "sub"]);
        world.git(repository, &["config", "-f", ".gitmodules", "submodule.sub.url", &url]);
        world.git(repository, &["commit", "-q", "-a", "-m", "sub"]);
        let said = match resolve(&nix, &world.flake(repository), None).await {
            Ok(locked) => evaluate(&nix, &locked, "web").await.unwrap_err().to_string(),
            Err(error) => format!("{error:?}"),
        };
        println!("{repository}: {said}");
        assert_eq!(said.contains(&secret), repository == "fair", "{said}");
    }

    let (owned, hook) = (world.path().join("owned"), world.path().join("hook"));
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", owned.display())).unwrap();
    run("chmod", &["+x", hook.to_str().unwrap()]);
    let text = format!(
        r"{{ nixConfig.post-build-hook = {}; nixConfig.allow-import-from-derivation = true; nixConfig.restrict-eval = false;
             outputs = {{ self }}: {{ nixosConfigurations = {{ hooked = {}; control = {}; reads = {}; imports = {}; }}; }}; }}",
        nix_string(hook.to_str().unwrap()),
        super::world::host(&format!("echo {secret} > $out")),
        super::world::host(&format!("echo control {secret} > $out")),
        shows(&format!("builtins.readFile {local}/token")),
        shows(r#"import (derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo 1 > $out" ]; })"#),
    );
    world.commit("settings", &[("flake.nix", &text)]);
    let locked = resolve(&nix, &world.flake("settings"), None).await.unwrap();
    let hooked = evaluate(&nix, &locked, "hooked").await.unwrap();
    let request = super::build::request(&hooked, "hooked");
    super::build::build(&nix, request).await.unwrap();
    nix.roots().drop_all(&RootName::new("test", "hooked").unwrap()).unwrap();
    assert!(!owned.exists(), "the flake's hook has run");
    assert!(matches!(evaluate(&nix, &locked, "imports").await, Err(EvaluateError::ImportFromDerivation { .. })));
    let read = evaluate(&nix, &locked, "reads").await.unwrap_err();
    assert!(!read.to_string().contains("LEAK") || read.to_string().starts_with("LEAK (at "), "{read:?}");
    // The same settings, where they are accepted: the hook would have run.
    let control =
        format!("git+file://{}/repositories/settings#nixosConfigurations.control.config.system.build.toplevel", world.path().display());
    run("nix", &["build", "--no-link", "--accept-flake-config", &control]);
    assert!(owned.exists(), "the hook is one that runs");
}
