//! A copy into a real `nix-store --serve --write`, over pipes.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::process::Process;
use super::stream::{Broken, stream};
use super::{LocalStore, NixStore, Progress};
use crate::nix::{Closure, StorePath};

/// A store of its own in `folder`.
fn store(folder: &Path) -> NixStore {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path).map(|bin| bin.join("nix-store")).find(|program| program.exists());
    let program = program.expect("nix-store is on PATH");
    let home: OsString = folder.join("home").into();
    let environment =
        vec![("HOME".into(), home), ("PATH".into(), path), ("NIX_CONFIG".into(), "build-users-group =\nsubstitute = false".into())];
    NixStore { program, arguments: vec!["--store".into(), folder.join("store").into()], environment }
}

#[expect(clippy::disallowed_methods, reason = "the local store has to be filled by something")]
fn run(nix: &NixStore, arguments: &[&str]) -> String {
    let mut command = std::process::Command::new(&nix.program);
    command.args(&nix.arguments).args(arguments).env_clear().envs(nix.environment.iter().cloned());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A path with a file of `size` bytes.
fn add(nix: &NixStore, folder: &Path, name: &str, size: usize) -> StorePath {
    let file = folder.join(name);
    std::fs::write(&file, vec![b'x'; size]).unwrap();
    run(nix, &["--add", file.to_str().unwrap()]).parse().unwrap()
}

/// All of `paths` as one closure: they do not refer to each other.
async fn gathered(local: &LocalStore, paths: &[StorePath]) -> Arc<Closure> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(local.closure(path).await.unwrap().paths);
    }
    Arc::new(Closure { root: paths[0].clone(), paths: all })
}

#[tokio::test]
#[ignore = "needs nix"]
async fn what_is_missing_is_sent_and_confirmed() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (store(here.path()), store(there.path()));
    let paths: Vec<StorePath> = [0, 1, 100_000, 1_000_000].map(|size| add(&from, here.path(), &format!("p{size}"), size)).into();
    let local = LocalStore::new(from, Duration::from_secs(20));
    let closure = gathered(&local, &paths).await;

    let mut receiver = Process::start(&to, &["--write"]).unwrap();
    let all: Vec<&StorePath> = paths.iter().collect();
    assert!(receiver.serve.valid(&all, true, false).await.unwrap().is_empty());
    let progress = Progress::default();
    stream(&mut receiver.serve, &closure, vec![0, 2, 3], &here.path().join("store"), &progress).await.unwrap();
    assert_eq!(progress.snapshot().paths, 3);
    // Asked in the same process: it must not remember that they were missing.
    assert_eq!(receiver.serve.valid(&all, true, false).await.unwrap().len(), 3);
    run(&to, &["--verify-path", paths[0].as_str(), paths[2].as_str(), paths[3].as_str()]);
}

#[tokio::test]
#[ignore = "needs nix"]
async fn a_damaged_path_is_not_sent_for_a_whole_one() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (store(here.path()), store(there.path()));
    let paths = [add(&from, here.path(), "good", 1000), add(&from, here.path(), "bad", 1000)];
    let closure = gathered(&LocalStore::new(from, Duration::from_secs(20)), &paths).await;
    let root = here.path().join("store");
    let bad = root.join(&paths[1].as_str()[1..]);
    std::fs::remove_file(&bad).unwrap();
    std::fs::write(&bad, "short").unwrap();

    let mut receiver = Process::start(&to, &["--write"]).unwrap();
    let broken = stream(&mut receiver.serve, &closure, vec![0, 1], &root, &Progress::default()).await;
    assert!(matches!(broken, Err(Broken::Nar(super::NarError::Size { .. }))), "{broken:?}");
    drop(receiver);
    let receiver = LocalStore::new(to, Duration::from_secs(20));
    assert!(!receiver.valid(&paths).await.unwrap().contains(&paths[1]));
}

#[tokio::test]
#[ignore = "needs nix"]
async fn the_receiver_explains_itself_on_standard_error() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (store(here.path()), store(there.path()));
    let path = add(&from, here.path(), "p", 10);
    let mut closure = Closure::clone(&*gathered(&LocalStore::new(from, Duration::from_secs(20)), &[path]).await);
    closure.paths[0].nar_hash = format!("sha256:{}", "0".repeat(64));
    let mut receiver = Process::start(&to, &["--write"]).unwrap();
    assert!(receiver.serve.valid(&[], true, false).await.unwrap().is_empty());
    let broken = stream(&mut receiver.serve, &Arc::new(closure), vec![0], &here.path().join("store"), &Progress::default()).await;
    assert!(matches!(broken, Err(Broken::Peer(_))), "{broken:?}");
    // The pipe of errors is read by a task of its own.
    tokio::time::timeout(Duration::from_secs(5), async {
        while !receiver.stderr().contains("hash mismatch") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
#[ignore = "needs nix"]
async fn the_local_store_is_started_again_and_forgets_what_was_deleted() {
    let here = tempfile::tempdir().unwrap();
    let nix = store(here.path());
    let path = add(&nix, here.path(), "p", 10);
    let local = LocalStore::new(nix.clone(), Duration::from_secs(20));
    assert_eq!(local.closure(&path).await.unwrap().paths.len(), 1);
    assert!(local.valid(std::slice::from_ref(&path)).await.unwrap().contains(&path));
    run(&nix, &["--delete", path.as_str()]);
    assert!(local.valid(std::slice::from_ref(&path)).await.unwrap().is_empty());
    // Nix ends the process over a question it cannot answer.
    assert!(local.closure(&path).await.is_err());
    let path = add(&nix, here.path(), "p", 10);
    assert_eq!(local.closure(&path).await.unwrap().root, path);
    assert!(local.valid(std::slice::from_ref(&path)).await.unwrap().contains(&path));
}

#[tokio::test]
#[ignore = "needs nix"]
async fn who_goes_away_half_way_costs_the_others_no_process() {
    let here = tempfile::tempdir().unwrap();
    let nix = store(here.path());
    let path = add(&nix, here.path(), "p", 10);
    let (starts, program) = (here.path().join("starts"), here.path().join("counted"));
    let script = format!("#!/bin/sh\necho started >>{}\nexec {} \"$@\"\n", starts.display(), nix.program.display());
    std::fs::write(&program, script).unwrap();
    let arguments = std::iter::once(program.into_os_string()).chain(nix.arguments).collect();
    let local = LocalStore::new(NixStore { program: "/bin/sh".into(), arguments, ..nix }, Duration::from_secs(20));
    for round in 0..50 {
        let gone = tokio::time::timeout(Duration::from_micros(round * 40), local.closure(&path)).await;
        assert!(gone.is_err() || gone.unwrap().is_ok());
    }
    assert_eq!(local.closure(&path).await.unwrap().root, path);
    assert_eq!(std::fs::read_to_string(starts).unwrap().lines().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_trickles_is_given_up_after_the_time_that_a_weak_link_would_take() {
    let progress = Progress::default();
    progress.expect(100, 16 * 1024 * 1000);
    assert_eq!(progress.too_slow().await, Duration::from_secs(600 + 1000));
}
