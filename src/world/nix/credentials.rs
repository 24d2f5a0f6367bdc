//! What a Secret gives Nix, git and ssh for reaching private repositories.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use russh::keys::PrivateKey;
use secrecy::SecretString;
use sha2::{Digest as _, Sha256};

use super::driver::hex;
use super::netrc::{self, Machine};

const SSH_KEY: &str = "ssh-privatekey";
const KNOWN_HOSTS: &str = "known_hosts";
const NETRC: &str = "netrc";
const TOKENS: &str = "access-tokens";

/// Credentials, parsed and checked. Shows nothing of itself.
pub struct Credentials {
    pub(super) ssh: Option<Ssh>,
    pub(super) netrc: Option<Netrc>,
    pub(super) tokens: Vec<Token>,
    digest: String,
}

/// A key, and the hosts that may see it used.
pub(super) struct Ssh {
    pub(super) key: Arc<PrivateKey>,
    pub(super) known_hosts: String,
}

/// Passwords by machine.
pub(super) struct Netrc {
    pub(super) text: SecretString,
    pub(super) machines: Vec<Machine>,
}

/// A forge's access token, for Nix's `access-tokens`.
pub(super) struct Token {
    /// A host, perhaps with a path: `github.com/team`.
    pub(super) host: String,
    pub(super) token: SecretString,
}

/// What is wrong with a Secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key {key:?} of the Secret {problem}")]
pub struct CredentialsError {
    /// The key.
    pub key: &'static str,
    /// What is wrong, and what would be right; nothing of its value.
    pub problem: String,
}

fn wrong(key: &'static str, problem: impl Into<String>) -> CredentialsError {
    CredentialsError { key, problem: problem.into() }
}

impl Credentials {
    /// Reads the keys `ssh-privatekey` with `known_hosts`, `netrc` and `access-tokens`; others are left alone.
    pub fn parse(secret: &BTreeMap<String, Vec<u8>>) -> Result<Self, CredentialsError> {
        let text = |key: &'static str| {
            let bytes = secret.get(key).map(|bytes| std::str::from_utf8(bytes).map_err(|_| wrong(key, "is not text (UTF-8)")));
            bytes.transpose()
        };
        let ssh = text(SSH_KEY)?.map(|key| parse_ssh(key, text(KNOWN_HOSTS)?)).transpose()?;
        let netrc = text(NETRC)?.map(parse_netrc).transpose()?;
        let tokens = text(TOKENS)?.map(parse_tokens).transpose()?.unwrap_or_default();
        if ssh.is_none() && netrc.is_none() && tokens.is_empty() {
            return Err(wrong(SSH_KEY, format!("is missing, and so are {NETRC} and {TOKENS}; one of them must be there")));
        }
        Ok(Self { ssh, netrc, tokens, digest: digest(secret) })
    }

    /// Whether there is a password or a token for this host.
    pub(super) fn are_for(&self, host: &str) -> bool {
        let machines = self.netrc.iter().flat_map(|netrc| &netrc.machines).map(|machine| machine.host.as_str());
        let tokens = self.tokens.iter().map(|token| token.host.split('/').next().unwrap_or_default());
        machines.chain(tokens).any(|known| known == host)
    }

    /// A name for these credentials: equal for equal content, 64 hexadecimal digits. For keys of caches, not for show.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = [(SSH_KEY, self.ssh.is_some()), (NETRC, self.netrc.is_some()), (TOKENS, !self.tokens.is_empty())];
        let keys = present.iter().filter(|(_, present)| *present).map(|(key, _)| key);
        f.write_str("Credentials ")?;
        f.debug_list().entries(keys).finish()
    }
}

fn parse_ssh(key: &str, known_hosts: Option<&str>) -> Result<Ssh, CredentialsError> {
    if key.contains("ENCRYPTED") {
        return Err(wrong(SSH_KEY, ENCRYPTED));
    }
    let key = russh::keys::decode_secret_key(key, None).map_err(|error| match error {
        russh::keys::Error::KeyIsEncrypted => wrong(SSH_KEY, ENCRYPTED),
        _ => wrong(SSH_KEY, "is not an SSH private key; it must be one as `ssh-keygen` writes it, from -----BEGIN to -----END"),
    })?;
    if key.is_encrypted() {
        return Err(wrong(SSH_KEY, ENCRYPTED));
    }
    let known_hosts = known_hosts.ok_or_else(|| {
        wrong(KNOWN_HOSTS, "is missing; with ssh-privatekey it must hold the repository's host keys, as `ssh-keyscan HOST` prints them")
    })?;
    let lines = || known_hosts.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    if let Some((number, _)) = lines().enumerate().find(|(_, line)| !is_known_host(line)) {
        return Err(wrong(
            KNOWN_HOSTS,
            format!("has no host key in its entry {}; a line is `HOST TYPE KEY`, as `ssh-keyscan HOST` prints it", number + 1),
        ));
    }
    if lines().next().is_none() {
        return Err(wrong(KNOWN_HOSTS, "is empty; it must hold the repository's host keys, as `ssh-keyscan HOST` prints them"));
    }
    Ok(Ssh { key: Arc::new(key), known_hosts: format!("{}\n", known_hosts.trim_end()) })
}

const ENCRYPTED: &str =
    "is encrypted with a passphrase, and nobody is there to type it; store the key without one (`ssh-keygen -p -N '' -f FILE`)";

/// Whether a line is `[@marker] hosts type key …`; see sshd(8).
fn is_known_host(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| word.starts_with('@')).skip(1);
    let (Some(kind), Some(key)) = (words.next(), words.next()) else { return false };
    russh::keys::PublicKey::from_openssh(&format!("{kind} {key}")).is_ok()
}

fn parse_netrc(text: &str) -> Result<Netrc, CredentialsError> {
    let machines = netrc::parse(text).map_err(|problem| wrong(NETRC, problem))?;
    Ok(Netrc { text: text.to_owned().into(), machines })
}

fn parse_tokens(text: &str) -> Result<Vec<Token>, CredentialsError> {
    let parse = |word: &str| {
        let (host, token) = word.split_once('=').filter(|(host, token)| valid_host(host) && valid_token(token))?;
        Some(Token { host: host.to_ascii_lowercase(), token: token.to_owned().into() })
    };
    let tokens: Option<Vec<Token>> = text.split_whitespace().map(parse).collect();
    let tokens = tokens
        .ok_or_else(|| wrong(TOKENS, "has a word that is not HOST=TOKEN, as in github.com=ghp_…; separate several by spaces or lines"))?;
    if tokens.is_empty() { Err(wrong(TOKENS, "is empty; write HOST=TOKEN, as in github.com=ghp_…")) } else { Ok(tokens) }
}

fn valid_host(host: &str) -> bool {
    !host.is_empty() && !host.starts_with(['-', '.', '/']) && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/".contains(&b))
}

/// A `#` would begin a comment in Nix's configuration.
fn valid_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
}

/// Each part with its length, so that no two Secrets have the same text.
fn digest(secret: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hash = Sha256::new_with_prefix("nixos-host-controller credentials 1\n");
    for key in [SSH_KEY, KNOWN_HOSTS, NETRC, TOKENS] {
        let value = secret.get(key).map(Vec::as_slice).unwrap_or_default();
        hash.update(format!("{key} {} ", value.len()));
        hash.update(value);
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use russh::keys::ssh_key::LineEnding;

    const HOST: &str = "git.example.org ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";

    /// The Secret, the key that the error names, and a part of its text.
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

    fn secret(pairs: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn key() -> PrivateKey {
        PrivateKey::random(&mut rand::rng(), russh::keys::Algorithm::Ed25519).unwrap()
    }

    fn pem(key: &PrivateKey) -> String {
        key.to_openssh(LineEnding::LF).unwrap().to_string()
    }

    #[test]
    fn each_kind_is_read() {
        let all = Credentials::parse(&secret(&[
            (SSH_KEY, &pem(&key())),
            (KNOWN_HOSTS, HOST),
            (NETRC, "machine h login a password b"),
            (TOKENS, "github.com=ghp_x\n gitlab.com/team=glpat-y"),
            ("other", "z"),
        ]))
        .unwrap();
        assert!(all.ssh.is_some() && all.netrc.is_some() && all.tokens.len() == 2);
        assert_eq!(format!("{all:?}"), r#"Credentials ["ssh-privatekey", "netrc", "access-tokens"]"#);
    }

    #[test]
    fn equal_content_has_an_equal_digest_and_other_content_another() {
        let of = |pairs: &[(&str, &str)]| Credentials::parse(&secret(pairs)).unwrap().digest().to_owned();
        let one = of(&[(TOKENS, "h=a")]);
        assert_eq!(one, of(&[(TOKENS, "h=a"), ("other", "x")]));
        assert_ne!(one, of(&[(TOKENS, "h=b")]));
        assert_eq!(one.len(), 64);
    }

    #[test]
    fn what_is_wrong_names_the_key_and_the_cure_and_never_the_value() {
        let good = pem(&key());
        let encrypted = pem(&key().encrypt(&mut rand::rng(), "hunter2").unwrap());
        let cases: &[Case<'_>] = &[
            (&[], SSH_KEY, "one of them"),
            (&[("other", "hunter2")], SSH_KEY, "one of them"),
            (&[(SSH_KEY, "hunter2"), (KNOWN_HOSTS, HOST)], SSH_KEY, "ssh-keygen"),
            (&[(SSH_KEY, ""), (KNOWN_HOSTS, HOST)], SSH_KEY, "ssh-keygen"),
            (&[(SSH_KEY, &good[..good.len() / 2]), (KNOWN_HOSTS, HOST)], SSH_KEY, "ssh-keygen"),
            (&[(SSH_KEY, &encrypted), (KNOWN_HOSTS, HOST)], SSH_KEY, "passphrase"),
            (&[(SSH_KEY, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nhunter2\n"), (KNOWN_HOSTS, HOST)], SSH_KEY, "passphrase"),
            (&[(SSH_KEY, &good)], KNOWN_HOSTS, "ssh-keyscan"),
            (&[(SSH_KEY, &good), (KNOWN_HOSTS, "# nothing\n")], KNOWN_HOSTS, "is empty"),
            (&[(SSH_KEY, &good), (KNOWN_HOSTS, "git.example.org hunter2")], KNOWN_HOSTS, "entry 1"),
            (&[(NETRC, "hunter2")], NETRC, "machine HOST"),
            (&[(TOKENS, "hunter2")], TOKENS, "HOST=TOKEN"),
            (&[(TOKENS, "h=hunter2#x")], TOKENS, "HOST=TOKEN"),
            (&[(TOKENS, " ")], TOKENS, "is empty"),
        ];
        for (pairs, key, part) in cases {
            let error = Credentials::parse(&secret(pairs)).unwrap_err();
            let text = error.to_string();
            assert!(error.key == *key && text.contains(part) && !text.contains("hunter2"), "{text}");
        }
        let error = Credentials::parse(&BTreeMap::from([(NETRC.to_owned(), vec![0xff])])).unwrap_err();
        assert_eq!(error.to_string(), r#"the key "netrc" of the Secret is not text (UTF-8)"#);
    }
}
