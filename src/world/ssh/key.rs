//! The private key a controller logs in with, out of a Secret.

use std::fmt;
use std::sync::Arc;

use russh::keys::{self, Algorithm, HashAlg};

/// A private key without passphrase. Cheap to clone; shows its fingerprint and nothing else.
#[derive(Clone)]
pub struct PrivateKey(Arc<keys::PrivateKey>);

/// Why a text is not a private key that can be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is nothing but white space.
    #[error("the private key is empty")]
    Empty,
    /// It is the other half of the pair.
    #[error("this is a public key: the private one is wanted, the file without .pub")]
    IsPublicKey,
    /// It has a passphrase.
    #[error(
        "the private key is encrypted, and nobody is there to type its passphrase: make one for the controller with `ssh-keygen -t ed25519 -N ''`, or take the passphrase off with `ssh-keygen -p -N ''`"
    )]
    Encrypted,
    /// It is not in any format of private keys.
    #[error("this is not a private key: no line reads -----BEGIN … PRIVATE KEY-----")]
    NotAPrivateKey,
    /// It is a private key of a kind that cannot be used here.
    #[error("private keys of type {algorithm} are not supported: use ed25519, ECDSA or RSA")]
    Unsupported {
        /// The kind.
        algorithm: String,
    },
    /// It looks like a private key, and cannot be read.
    #[error("the private key cannot be read: it is damaged or cut short")]
    Unreadable(#[source] keys::Error),
}

impl PrivateKey {
    /// Reads the text of a key file: OpenSSH's format, PKCS #8, or PEM of RSA.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        // YAML and editors leave spaces and carriage returns around lines.
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let first = lines.first().ok_or(KeyError::Empty)?;
        if ["ssh-", "ecdsa-", "sk-", "---- BEGIN SSH2 PUBLIC", "-----BEGIN PUBLIC"].iter().any(|start| first.starts_with(start)) {
            return Err(KeyError::IsPublicKey);
        }
        if !lines.iter().any(|line| line.starts_with("-----BEGIN ") && line.ends_with("PRIVATE KEY-----")) {
            return Err(KeyError::NotAPrivateKey);
        }
        if lines.iter().any(|line| *line == "-----BEGIN ENCRYPTED PRIVATE KEY-----" || *line == "Proc-Type: 4,ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        if lines.contains(&"-----BEGIN DSA PRIVATE KEY-----") {
            return Err(KeyError::Unsupported { algorithm: "ssh-dss".into() });
        }
        let key = keys::decode_secret_key(&lines.join("\n"), None).map_err(|error| match error {
            keys::Error::KeyIsEncrypted => KeyError::Encrypted,
            keys::Error::UnsupportedKeyType { key_type_string: algorithm, .. } => KeyError::Unsupported { algorithm },
            other => KeyError::Unreadable(other),
        })?;
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::Ecdsa { .. } | Algorithm::Rsa { .. } => Ok(Self(Arc::new(key))),
            other => Err(KeyError::Unsupported { algorithm: other.as_str().to_owned() }),
        }
    }

    /// `SHA256:…` of its public half, as `ssh-keygen -l` and sshd's log show it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    pub(super) fn is_rsa(&self) -> bool {
        matches!(self.0.algorithm(), Algorithm::Rsa { .. })
    }

    /// The key as russh signs with it; `hash` counts for RSA only.
    pub(super) fn signing(&self, hash: Option<HashAlg>) -> keys::PrivateKeyWithHashAlg {
        keys::PrivateKeyWithHashAlg::new(Arc::clone(&self.0), hash)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.fingerprint())
    }
}

/// A key that nobody else has, as it stands in a file.
#[cfg(test)]
pub(crate) fn some_private_key() -> String {
    let key = keys::PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    key.to_openssh(keys::ssh_key::LineEnding::LF).unwrap().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What ssh-keygen makes.
    #[expect(clippy::disallowed_methods, reason = "ssh-keygen is the only judge of its formats")]
    fn generated(arguments: &[&str]) -> (String, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("id");
        let output = std::process::Command::new("ssh-keygen").args(["-q", "-f"]).arg(&file).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
        (read(&file), read(&file.with_extension("pub")))
    }

    #[test]
    fn every_usual_kind_and_format_is_read() {
        for kind in [&["-t", "ed25519"][..], &["-t", "ecdsa", "-b", "256"], &["-t", "ecdsa", "-b", "384"], &["-t", "rsa", "-b", "2048"]] {
            for format in [&[][..], &["-m", "PKCS8"], &["-m", "PEM"]] {
                let (private, public) = generated(&[kind, format, &["-N", ""]].concat());
                let key = PrivateKey::parse(&private).unwrap_or_else(|error| panic!("{kind:?} {format:?}: {error:?}"));
                let host_key: super::super::HostKey = public.parse().unwrap();
                assert_eq!(key.fingerprint(), host_key.fingerprint());
                let indented = format!("\n  {}  \r\n", private.replace('\n', "  \r\n  "));
                assert_eq!(PrivateKey::parse(&indented).unwrap().fingerprint(), key.fingerprint());
                let body = private.lines().nth(1).unwrap();
                assert!(!format!("{key:?}").contains(body));
            }
        }
    }

    #[test]
    fn a_key_with_a_passphrase_is_refused_with_advice() {
        for format in [&[][..], &["-m", "PKCS8"], &["-m", "PEM"]] {
            let (private, _) = generated(&[&["-t", "rsa", "-N", "secret"], format].concat());
            let error = PrivateKey::parse(&private).unwrap_err();
            assert!(matches!(error, KeyError::Encrypted), "{format:?}: {error:?}");
            assert!(error.to_string().contains("ssh-keygen"));
        }
    }

    #[test]
    fn what_is_no_private_key_is_named() {
        assert!(matches!(PrivateKey::parse(" \n\n"), Err(KeyError::Empty)));
        assert!(matches!(PrivateKey::parse("ssh-ed25519 AAAAC3Nz me"), Err(KeyError::IsPublicKey)));
        assert!(matches!(PrivateKey::parse("c3NoLWVkMjU1MTk="), Err(KeyError::NotAPrivateKey)));
        let cut = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----";
        assert!(matches!(PrivateKey::parse(cut), Err(KeyError::Unreadable(_))));
        assert!(matches!(PrivateKey::parse("-----BEGIN DSA PRIVATE KEY-----\nAA"), Err(KeyError::Unsupported { .. })));
    }
}
