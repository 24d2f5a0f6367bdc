//! What a revision has to prove, against real git, ssh-keygen and gpg.

use super::world::{credentials, flake, host, never, run};
use super::*;

const LOGIN: &str = "machine localhost login bot password hunter2";

async fn resolve(nix: &Nix, flake: &FlakeRef, demands: Demands) -> Result<LockedFlake, ResolveError> {
    nix.resolve(
        &Resolve { flake: flake.clone(), credentials: Some(credentials(&[("netrc", LOGIN)])), fresh_since: None, demands },
        &never(),
    )
    .await
}

fn not_behind(rev: &str) -> Demands {
    Demands { not_behind: Some(Landed { rev: Some(rev.into()), last_modified: 0 }), signers: None }
}

/// A private repository with a flake, and its first revision.
fn repository(world: &World) -> String {
    world.commit("private/infra", &[("flake.nix", &flake(&[("web", &host("echo > $out"))]))])
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn a_branch_leads_forward_however_far_and_not_back() {
    let world = World::new();
    let first = repository(&world);
    for number in 0..150 {
        world.git("private/infra", &["commit", "-q", "--allow-empty", "-m", &number.to_string()]);
    }
    let far = world.git("private/infra", &["rev-parse", "HEAD"]);
    let nix = world.nix().await;
    let main = FlakeRef::new(&world.url("private/infra"), None, Some("main"), false).unwrap();
    for landed in [&far, &first] {
        assert_eq!(resolve(&nix, &main, not_behind(landed)).await.unwrap().rev.as_ref(), Some(&far));
    }
    world.git("private/infra", &["reset", "-q", "--hard", "HEAD~3"]);
    let moved_back = world.git("private/infra", &["rev-parse", "HEAD"]);
    world.git("private/infra", &["commit", "-q", "--allow-empty", "-m", "rewritten"]);
    let rewritten = world.git("private/infra", &["rev-parse", "HEAD"]);
    for found in [&rewritten, &moved_back] {
        world.git("private/infra", &["reset", "-q", "--hard", found]);
        let locks = nix.counters().locks;
        let error = resolve(&nix, &main, not_behind(&far)).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ResolveError::Downgrade { .. }), "{error:?}");
        assert!(text.contains(&far) && text.contains(found.as_str()) && text.contains("spec.flake.allowDowngrade"), "{text}");
        assert_eq!(nix.counters().locks, locks, "Nix reads nothing of what is refused");
    }
    // Pinned, it is a person's word.
    let pinned = FlakeRef::new(&world.url("private/infra"), Some(&moved_back), None, false).unwrap();
    assert_eq!(resolve(&nix, &pinned, not_behind(&far)).await.unwrap().rev, Some(moved_back));
}

#[tokio::test]
#[ignore = "needs nix, git and a store to write"]
async fn what_git_answered_once_is_not_asked_again_not_even_after_a_restart() {
    let world = World::new();
    let first = repository(&world);
    let second = world.commit("private/infra", &[("new", "")]);
    let main = world.flake("private/infra");
    let nix = world.nix().await;
    resolve(&nix, &main, not_behind(&first)).await.unwrap();
    let again = world.nix().await;
    let before = world.requests();
    let locked = resolve(&again, &main, not_behind(&first)).await.unwrap();
    assert_eq!(
        (locked.rev.as_ref(), world.requests()),
        (Some(&second), before + 2),
        "one look at the branch, which is two requests, and nothing else"
    );
}

/// Signs the head of a repository anew with these settings of git; the new revision.
fn sign(world: &World, settings: &[&str], environment: &str) -> String {
    let path = world.path().join("repositories/private/infra").display().to_string();
    let settings: String = settings.iter().flat_map(|setting| [" -c ", setting]).collect();
    let script =
        format!("{environment} git -C {path} -c user.name=t -c user.email=t@t{settings} commit -q --amend --allow-empty -S -m signed");
    run("sh", &["-euc", &script]);
    world.git("private/infra", &["rev-parse", "HEAD"])
}

#[tokio::test]
#[ignore = "needs nix, git, gpg and a store to write"]
async fn only_a_commit_that_an_allowed_key_has_signed_is_read() {
    let world = World::new();
    let unsigned = repository(&world);
    let file = |name: &str| world.path().join(name).display().to_string();
    for name in ["alice", "mallory"] {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "a comment", "-f", &file(name)]);
    }
    let home = file("gnupg");
    let gpg = |script: &str| run("sh", &["-euc", &format!("export GNUPGHOME={home}; {script}")]);
    gpg("mkdir -m 700 $GNUPGHOME; gpg --batch --quiet --passphrase '' --quick-generate-key 'Bob <bob@example.test>' ed25519 sign never");
    let bob = gpg("gpg --armor --export");
    let alice = std::fs::read_to_string(file("alice.pub")).unwrap();
    let signers = |ssh: &[String], gpg: &[&str]| {
        let gpg = gpg.iter().map(|text| ("bob.asc".to_owned(), text.as_bytes().to_vec())).collect();
        Demands { not_behind: None, signers: Some(Arc::new(Signers::parse(ssh, &gpg).unwrap())) }
    };
    let (by_alice, by_bob, by_either) =
        (signers(std::slice::from_ref(&alice), &[]), signers(&[], &[&bob]), signers(std::slice::from_ref(&alice), &[&bob]));
    let ssh = |name: &str| sign(&world, &["gpg.format=ssh", &format!("user.signingkey={}", file(name))], "");
    let (mallory, alices) = (ssh("mallory"), ssh("alice"));
    let bobs = sign(&world, &["user.signingkey=bob@example.test"], &format!("GNUPGHOME={home}"));
    // The signature of another commit.
    let path = world.path().join("repositories/private/infra").display().to_string();
    let forged = run(
        "sh",
        &[
            "-euc",
            &format!("git -C {path} cat-file commit {alices} | sed s/signed/forged/ | git -C {path} hash-object -t commit -w --stdin"),
        ],
    );
    gpg("gpgconf --kill all");
    let nix = world.nix().await;
    assert!(nix.confined(), "this test needs Landlock");
    let at = |rev: &str| FlakeRef::new(&world.url("private/infra"), Some(rev), None, false).unwrap();
    for (rev, demands, says) in [
        (&unsigned, &by_either, "is not signed"),
        (&mallory, &by_either, "is signed with the ED25519 key SHA256:"),
        (&forged, &by_either, "incorrect signature"),
        (&bobs, &by_alice, "is signed with the OpenPGP key"),
        (&alices, &by_bob, "is signed with the ED25519 key SHA256:"),
    ] {
        let error = resolve(&nix, &at(rev), demands.clone()).await.unwrap_err();
        assert!(matches!(error, ResolveError::Signature { .. }), "{error:?}");
        assert!(error.to_string().contains(says) && error.to_string().contains(rev.as_str()), "{error}");
    }
    assert_eq!(nix.counters().locks, 0, "Nix reads nothing of what is refused");
    for (rev, demands) in [(&alices, &by_alice), (&bobs, &by_bob), (&alices, &by_either), (&bobs, &by_either)] {
        let locked = resolve(&nix, &at(rev), demands.clone()).await.unwrap();
        assert_eq!(locked.rev.as_ref(), Some(rev), "what Nix evaluates is the commit that was verified");
        assert!(locked.reference.contains(rev.as_str()), "{}", locked.reference);
    }
}
