//! Whose signature a commit needs: SSH and OpenPGP public keys, checked; and what git says of a signature. PURE.

use std::collections::BTreeMap;

use russh::keys::parse_public_key_base64;
use sha2::{Digest as _, Sha256};

use super::driver::hex;
use super::message::{cut, git_says};

/// The types of SSH keys that sign commits.
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
];

/// The keys by one of which a commit must be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    ssh: Vec<String>,
    gpg: String,
    digest: String,
}

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignersError {
    /// With one that is in the spec.
    #[error("{key:?} {problem}")]
    Ssh {
        /// Its beginning.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// With one that is in a Secret.
    #[error("the key {key:?} of the Secret {problem}")]
    Gpg {
        /// The name of its entry.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

impl Signers {
    /// SSH public keys as `ssh-keygen` writes them, and armored OpenPGP public keys by the name of their entry in a Secret.
    pub fn parse(ssh: &[String], gpg: &BTreeMap<String, Vec<u8>>) -> Result<Self, SignersError> {
        let ssh = ssh.iter().map(|line| ssh_key(line)).collect::<Result<Vec<_>, _>>()?;
        let gpg = gpg.iter().map(|(name, value)| gpg_key(name, value)).collect::<Result<Vec<_>, _>>()?.join("\n");
        let digest = hex(&Sha256::digest(format!("{ssh:?} {gpg}")));
        Ok(Self { ssh, gpg, digest })
    }

    /// The SSH keys as ssh-keygen's ALLOWED SIGNERS file: anybody who has one of them, for git and nothing else.
    pub(super) fn allowed_signers(&self) -> String {
        self.ssh.iter().flat_map(|key| ["* namespaces=\"git\" ", key, "\n"]).collect()
    }

    /// The OpenPGP keys, armored, one after the other.
    pub(super) fn gpg_keys(&self) -> &str {
        &self.gpg
    }

    /// A name for these keys: equal for equal keys.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// `<type> <base 64>` without its comment.
fn ssh_key(line: &str) -> Result<String, SignersError> {
    let wrong = |problem: &str| SignersError::Ssh { key: cut(line, 60), problem: problem.to_owned() };
    let mut words = line.split_whitespace();
    let (Some(kind), Some(base64)) = (words.next(), words.next()) else {
        return Err(wrong("is not an SSH public key: it reads like `ssh-ed25519 AAAA…`, as in ~/.ssh/id_ed25519.pub"));
    };
    if !TYPES.contains(&kind) {
        return Err(wrong(&format!("has a type that signs no commits; these do: {}", TYPES.join(", "))));
    }
    match parse_public_key_base64(base64) {
        Ok(key) if key.algorithm().as_str() == kind => Ok(format!("{kind} {base64}")),
        Ok(_) => Err(wrong("is of another type than it says")),
        Err(_) => Err(wrong("cannot be read: it is damaged or cut short")),
    }
}

fn gpg_key(name: &str, value: &[u8]) -> Result<String, SignersError> {
    let wrong = |problem: &str| SignersError::Gpg { key: name.to_owned(), problem: problem.to_owned() };
    let cure = "it must be an OpenPGP public key, as `gpg --armor --export KEY` prints it";
    let text = std::str::from_utf8(value).map_err(|_| wrong(&format!("is not text (UTF-8); {cure}")))?.trim();
    if text.contains("PRIVATE KEY") {
        return Err(wrong(&format!("is a private key, which nobody but its owner should have; {cure}")));
    }
    let whole = text.starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----") && text.ends_with("-----END PGP PUBLIC KEY BLOCK-----");
    if whole { Ok(format!("{text}\n")) } else { Err(wrong(&format!("cannot be used; {cure}"))) }
}

/// What `git verify-commit --raw` says of a signature that it does not accept: the status lines of gpg, or what ssh-keygen prints.
pub(super) fn problem(stderr: &[String]) -> String {
    let status = |word: &str| {
        let found = stderr.iter().find_map(|line| line.strip_prefix("[GNUPG:] ")?.strip_prefix(word)?.strip_prefix(' '));
        found.map(|rest| cut(rest.split(' ').next().unwrap_or_default(), 100))
    };
    let made_by = |line: &String| Some(cut(line.split_once("signature with ")?.1, 200));
    if stderr.iter().all(|line| line.trim().is_empty()) {
        "is not signed".into()
    } else if let Some(key) = status("BADSIG") {
        format!("has a bad signature, which says that it is of the OpenPGP key {key}")
    } else if let Some(key) = status("NO_PUBKEY") {
        format!("is signed with the OpenPGP key {key}, which is not allowed")
    } else if let Some(key) = status("EXPKEYSIG").or_else(|| status("EXPSIG")) {
        format!("is signed with the OpenPGP key {key}, and key or signature have expired")
    } else if let Some(key) = status("REVKEYSIG") {
        format!("is signed with the OpenPGP key {key}, which was revoked")
    } else if let Some(key) = stderr.iter().find_map(made_by) {
        format!("is signed with the {key}, which is not allowed")
    } else {
        format!("has no signature that can be verified: {}", git_says(stderr))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFjvVUvVfEGyNj2xO6J9T5W4fYtI2xGqV0cZkQz2qjXh";

    fn parse(ssh: &str, gpg: &[u8]) -> Result<Signers, SignersError> {
        let gpg = BTreeMap::from([("a.asc".to_owned(), gpg.to_vec())]);
        Signers::parse(&[ssh.to_owned()], &gpg)
    }

    #[test]
    fn a_comment_is_no_part_of_a_key_and_cannot_become_an_option_or_another_line() {
        let block = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----\n";
        let signers = parse(&format!("{KEY} cert-authority\n* {KEY}"), block).unwrap();
        assert_eq!(signers.allowed_signers(), format!("* namespaces=\"git\" {KEY}\n"));
        assert_eq!(signers.digest(), parse(KEY, block).unwrap().digest());
        assert_ne!(signers.digest(), Signers::parse(&[KEY.into()], &BTreeMap::new()).unwrap().digest());
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said_with_the_cure() {
        let block = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\nx\n-----END PGP PUBLIC KEY BLOCK-----";
        for (ssh, gpg, says) in [
            ("", &block[..], "as in ~/.ssh/id_ed25519.pub"),
            ("ssh-dss AAAA", block, "sk-ssh-ed25519@openssh.com"),
            ("* ssh-ed25519 AAAA", block, "signs no commits"),
            ("ssh-ed25519 AAAA", block, "damaged"),
            ("ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIFjvVUvVfEGyNj2xO6J9T5W4fYtI2xGqV0cZkQz2qjXh", block, "another type"),
            (KEY, b"garbage", "gpg --armor --export"),
            (KEY, b"-----BEGIN PGP PRIVATE KEY BLOCK-----", "private key"),
            (KEY, b"\xff", "UTF-8"),
        ] {
            let error = parse(ssh, gpg).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    /// Captured from git 2.39 with gpg 2.2 and OpenSSH 9.2.
    #[test]
    fn each_bad_signature_is_told_by_what_git_prints() {
        let of = |lines: &[&str]| problem(&lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), "is not signed");
        assert_eq!(
            of(&["Good \"git\" signature with ED25519 key SHA256:AbC", "No principal matched."]),
            "is signed with the ED25519 key SHA256:AbC, which is not allowed"
        );
        assert_eq!(
            of(&["[GNUPG:] NEWSIG", "[GNUPG:] ERRSIG 1122334455667788 22 8 00 1700000000 9 ABCD", "[GNUPG:] NO_PUBKEY 1122334455667788"]),
            "is signed with the OpenPGP key 1122334455667788, which is not allowed"
        );
        assert!(of(&["[GNUPG:] BADSIG 1122334455667788 A <a@b>"]).contains("bad signature"));
        assert!(of(&["[GNUPG:] EXPKEYSIG 1122334455667788 A <a@b>"]).contains("expired"));
        assert!(of(&["[GNUPG:] REVKEYSIG 1122334455667788 A <a@b>"]).contains("revoked"));
        assert!(of(&["error: cannot run gpg: No such file or directory"]).contains("cannot run gpg"));
    }
}
