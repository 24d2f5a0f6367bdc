//! Host keys: who a host proves to be.

use std::fmt;
use std::str::FromStr;

use russh::keys::{self, Algorithm, EcdsaCurve, HashAlg, PublicKey};

/// The public key of a host. Two are equal if the keys are, whatever their comments.
#[derive(Clone, PartialEq, Eq)]
pub struct HostKey(keys::ssh_key::public::KeyData);

/// Why a text is not a host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// It is not `<type> <base 64>`, perhaps with a comment.
    #[error(
        "{0:?} is not a host key: it reads like `ssh-ed25519 AAAA…`, as in /etc/ssh/ssh_host_ed25519_key.pub, with no host name before it"
    )]
    Format(String),
    /// The type is none that hosts have, or one that cannot be checked.
    #[error("host keys of type {0:?} are not supported: use ssh-ed25519, ecdsa-sha2-nistp256, -384, -521 or ssh-rsa")]
    Type(String),
    /// The key itself cannot be read.
    #[error("the {algorithm} host key cannot be read: it is damaged or cut short")]
    Unreadable {
        /// Its type, as written before it.
        algorithm: String,
        /// What is wrong with it.
        #[source]
        source: keys::Error,
    },
    /// The type before the key is not what the key is.
    #[error("the host key says that it is {written}, and is {actual}")]
    OtherType {
        /// The type before the key.
        written: String,
        /// What the key is.
        actual: String,
    },
}

/// Which host keys are good.
#[derive(Debug, Clone)]
pub enum HostKeyPolicy {
    /// One of these. None at all is an error before anything is sent.
    Pinned(Vec<HostKey>),
    /// The one recorded earlier, or, if there is none yet, whatever the host shows: the caller records it.
    TrustOnFirstUse {
        /// What was seen the first time.
        recorded: Option<HostKey>,
    },
}

/// What is asked for when any key is good: all but SHA-1.
const ALGORITHMS: [Algorithm; 6] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
    Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
    Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
];

impl HostKey {
    pub(super) fn new(key: &PublicKey) -> Self {
        Self(key.key_data().clone())
    }

    /// `SHA256:…`, as `ssh-keygen -l` and ssh show it.
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }

    /// Whether a host that signs with `algorithm` may hold this key. RSA keys sign with SHA-2, under two names.
    fn signs_with(&self, algorithm: &Algorithm) -> bool {
        match algorithm {
            Algorithm::Rsa { .. } => matches!(self.0.algorithm(), Algorithm::Rsa { .. }),
            other => self.0.algorithm() == *other,
        }
    }
}

impl FromStr for HostKey {
    type Err = HostKeyError;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let mut words = line.split_whitespace();
        let (Some(written), Some(base64)) = (words.next(), words.next()) else {
            return Err(HostKeyError::Format(line.to_owned()));
        };
        if !base64.starts_with("AAAA") {
            return Err(HostKeyError::Format(line.to_owned()));
        }
        let known = ["ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"];
        if !known.contains(&written) {
            return Err(HostKeyError::Type(written.to_owned()));
        }
        // Not `PublicKey::from_openssh`: it follows certificates inside certificates down to the end of the stack.
        let key =
            keys::parse_public_key_base64(base64).map_err(|source| HostKeyError::Unreadable { algorithm: written.to_owned(), source })?;
        if key.algorithm().as_str() != written {
            return Err(HostKeyError::OtherType { written: written.to_owned(), actual: key.algorithm().as_str().to_owned() });
        }
        Ok(Self::new(&key))
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = PublicKey::new(self.0.clone(), "").to_openssh().map_err(|_| fmt::Error)?;
        f.write_str(text.trim_end())
    }
}

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({})", self.fingerprint())
    }
}

impl HostKeyPolicy {
    /// The keys that are good; `None` if any is.
    pub(super) fn expected(&self) -> Option<&[HostKey]> {
        match self {
            Self::Pinned(keys) => Some(keys),
            Self::TrustOnFirstUse { recorded } => recorded.as_ref().map(std::slice::from_ref),
        }
    }

    /// The algorithms to ask a host for, so that one with several keys shows the one that is known.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let wanted = |algorithm: &Algorithm| self.expected().is_none_or(|keys| keys.iter().any(|key| key.signs_with(algorithm)));
        ALGORITHMS.into_iter().filter(wanted).collect()
    }

    /// The fingerprints that are good, for an error.
    pub(super) fn fingerprints(&self) -> String {
        self.expected().unwrap_or_default().iter().map(HostKey::fingerprint).collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGPKSUTyz1HwHReFVvD5obVsALAgJRNarH4TRpNePnAS";

    const RSA: &str = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQCjp/4kBT8pi8qFxiKe5qvqcfZdrTjNDfeZA2HKAjYaK/DfJeUH5tceeUvGvp8u0lhThi5UPESiH/8fmbaEpJjXmQPIS/ixScDFIhuYcNM+JhyvLRdSquTAsfW7mEclY/t2n1ywOdqE9sNnd5XbHeKF32AKyjeeAycln2cwc+8LCQ==";

    #[test]
    fn a_line_of_a_pub_file_is_read_and_its_comment_does_not_count() {
        let key: HostKey = format!("{ED25519} root@host with words").parse().unwrap();
        assert_eq!(key, ED25519.parse().unwrap());
        assert_eq!(key.to_string(), ED25519);
        assert!(key.fingerprint().starts_with("SHA256:"));
    }

    #[test]
    fn what_is_no_host_key_is_refused_by_its_fault() {
        let wrong = |line: &str| line.parse::<HostKey>().unwrap_err();
        assert!(matches!(wrong(""), HostKeyError::Format(_)));
        assert!(matches!(wrong(&format!("host.example {ED25519}")), HostKeyError::Format(_)));
        assert!(matches!(wrong(&ED25519.replace("ssh-ed25519", "ssh-dss")), HostKeyError::Type(_)));
        assert!(matches!(wrong(&ED25519.replace("ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com")), HostKeyError::Type(_)));
        assert!(matches!(wrong(&ED25519.replace("ssh-ed25519", "ssh-rsa")), HostKeyError::OtherType { .. }));
        assert!(matches!(wrong("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"), HostKeyError::Unreadable { .. }));
    }

    #[test]
    fn a_host_is_asked_for_keys_of_the_pinned_types_only() {
        let policy = |line: &str| HostKeyPolicy::Pinned(vec![line.parse().unwrap()]);
        assert_eq!(policy(ED25519).algorithms(), [Algorithm::Ed25519]);
        let any = HostKeyPolicy::TrustOnFirstUse { recorded: None };
        assert_eq!(any.algorithms(), ALGORITHMS);
        let rsa = policy(RSA);
        assert_eq!(rsa.algorithms(), ALGORITHMS[4..]);
    }
}
