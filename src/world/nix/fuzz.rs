//! The parsers of what Nix and git print, and of what a Secret holds, for fuzzing.

use std::collections::BTreeMap;

use super::driver::hex;
use super::heard::Heard;
use super::log::{Own, first_error};
use super::message::{self, MESSAGE_LIMIT};
use super::outcome::{Limits, conclude};
use super::progress::Watcher;
use super::{Credentials, Signers, look, metadata, signers};
use crate::nix::flake_ref::Follow;
use crate::world::exec::Ending;

fn lines(data: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(data).lines().map(str::to_owned).collect()
}

/// Fit for a status: no control characters but line ends and tabs, and bounded.
fn readable(text: &str) {
    assert!(text.chars().count() <= MESSAGE_LIMIT && !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "{text:?}");
}

/// The log of a build.
#[expect(clippy::disallowed_methods, reason = "any moment will do")]
pub(crate) fn build_log(data: &[u8]) {
    let (mut watcher, now) = (Watcher::default(), std::time::Instant::now());
    for line in lines(data) {
        watcher.line(&line, now);
    }
    let _ = (watcher.progress(), watcher.longest(), watcher.take_news());
    let lines = lines(data);
    if let Some(error) = first_error(&lines) {
        readable(&error.text());
        let _ = error.position(&Own::default());
    }
}

/// The log of an evaluation, and the verdict on its hosts: each gets one, or is evaluated again.
pub(crate) fn evaluation_log(data: &[u8]) {
    let mut heard = Heard::new("n".into(), "rev".into());
    let lines = lines(data);
    for line in &lines {
        heard.line(line);
    }
    let wanted = ["a".to_owned(), "b".to_owned()];
    let verdict = conclude(&wanted, heard, Ending::Exited(1), &lines, Limits { seconds: 1, mebibytes: 1 });
    assert_eq!(verdict.settled.len() + verdict.again.concat().len(), wanted.len());
}

/// `nix flake metadata --json`, with the inputs of the lock file.
pub(crate) fn flake_metadata(data: &[u8]) {
    if let Ok(found) = metadata::parse(data) {
        assert_eq!(found.fingerprint.len(), 64);
        let _ = found.locks.check(false);
    }
    let _ = metadata::failure(&lines(data), Some("rev"));
}

/// What git prints: refs, failures, signatures.
pub(crate) fn git_output(data: &[u8]) {
    let (text, lines) = (String::from_utf8_lossy(data), lines(data));
    for follow in [Follow::Default, Follow::Ref("main".into())] {
        if let Some(seen) = look::parse(&text, &follow) {
            assert!(seen.rev.bytes().all(|byte| byte.is_ascii_hexdigit()), "{seen:?}");
        }
        let _ = look::failure(128, &lines, &follow);
    }
    readable(&message::git_says(&lines));
    let _ = signers::problem(&lines);
}

/// Secrets: each parser of credentials and keys of signers. A problem never repeats the value.
pub(crate) fn secret(data: &[u8]) {
    let text = String::from_utf8_lossy(data).into_owned();
    let marked = format!("hunter2 {text}").into_bytes();
    for key in ["ssh-privatekey", "known_hosts", "netrc", "access-tokens"] {
        for value in [data, &marked] {
            if let Err(error) = Credentials::parse(&BTreeMap::from([(key.to_owned(), value.to_vec())])) {
                assert!(!error.to_string().contains("hunter2") || text.contains("hunter2"), "{error}");
            }
        }
    }
    if let Ok(signers) = Signers::parse(&[text], &BTreeMap::new()) {
        assert_eq!(signers.allowed_signers().lines().count(), 1, "{}", hex(data));
    }
    let _ = Signers::parse(&[], &BTreeMap::from([("a".into(), data.to_vec())]));
}
