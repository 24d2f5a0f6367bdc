//! How credentials reach nix, git and ssh: by environment, an inherited file in memory and an agent's socket. Never by
//! a file on a disk, never by a command line. `known_hosts` is no secret, and is a file, for ssh closes inherited ones.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{MemfdFlags, memfd_create};
use secrecy::{ExposeSecret, SecretString};

use super::agent::Agent;
use super::credentials::{Credentials, Token};
use super::driver::Place;

/// The number that the netrc in memory has in the process.
const NETRC_FD: i32 = 9;

/// Settings of git for every process: it gives up on a silent server, never does more than it was asked, and what it says it has is on the disk:
/// the next fetch offers it to the server ([`super::fetched`]).
pub(super) const GIT_SETTINGS: [(&str, &str); 7] = [
    ("http.lowSpeedLimit", "100"),
    ("http.lowSpeedTime", "30"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("core.hooksPath", "/dev/null"),
    ("core.fsync", "committed"),
    ("safe.directory", "*"),
];

/// What one process gets, for as long as this lives.
pub(super) struct Access {
    git_settings: Vec<(String, SecretString)>,
    nix_config: Vec<SecretString>,
    known_hosts: OsString,
    agent: Option<Agent>,
    netrc: Option<Arc<OwnedFd>>,
}

impl Access {
    /// No credentials at all.
    pub(super) fn none() -> Self {
        Self { git_settings: Vec::new(), nix_config: Vec::new(), known_hosts: "/dev/null".into(), agent: None, netrc: None }
    }

    /// These credentials, for a process in `place`. `authority` is the host of the flake itself, with its port.
    pub(super) async fn grant(credentials: Option<&Arc<Credentials>>, authority: Option<&str>, place: &Place) -> io::Result<Self> {
        let mut access = Self::none();
        let Some(credentials) = credentials else { return Ok(access) };
        if let Some(ssh) = &credentials.ssh {
            let known_hosts = place.path().join("known_hosts");
            std::fs::write(&known_hosts, &ssh.known_hosts)?;
            access.known_hosts = known_hosts.into();
            access.agent = Some(Agent::serve(&ssh.key, place.path()).await?);
        }
        access.git_settings = headers(credentials, authority);
        if let Some(netrc) = &credentials.netrc {
            let mut file = std::fs::File::from(memfd_create("netrc", MemfdFlags::CLOEXEC)?);
            file.write_all(netrc.text.expose_secret().as_bytes())?;
            access.netrc = Some(Arc::new(file.into()));
            access.nix_config.push(format!("netrc-file = /proc/self/fd/{NETRC_FD}").into());
        }
        if !credentials.tokens.is_empty() {
            let tokens: Vec<String> = credentials.tokens.iter().map(|t| format!("{}={}", t.host, t.token.expose_secret())).collect();
            access.nix_config.push(format!("access-tokens = {}", tokens.join(" ")).into());
        }
        Ok(access)
    }

    /// The same without the netrc, for a process that runs a stranger's program: an inherited file in memory is beyond
    /// Landlock, and `builtins.getFlake "file+file:///proc/self/fd/…"` is beyond Nix's restricted mode. The environment
    /// and the agent are within their reach.
    pub(super) fn without_netrc(self) -> Self {
        let nix_config = self.nix_config.into_iter().filter(|line| !line.expose_secret().starts_with("netrc-file")).collect();
        Self { netrc: None, nix_config, ..self }
    }

    /// The variables that this adds to a process's environment.
    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        let plain = GIT_SETTINGS.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
        let secret = self.git_settings.iter().map(|(name, value)| (name.clone(), value.expose_secret().to_owned()));
        let settings: Vec<(String, String)> = plain.chain(secret).collect();
        let mut variables: Vec<(OsString, OsString)> = vec![("GIT_CONFIG_COUNT".into(), settings.len().to_string().into())];
        for (number, (name, value)) in settings.into_iter().enumerate() {
            variables.push((format!("GIT_CONFIG_KEY_{number}").into(), name.into()));
            variables.push((format!("GIT_CONFIG_VALUE_{number}").into(), value.into()));
        }
        let mut ssh = OsString::from(
            "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none -o StrictHostKeyChecking=yes -o GlobalKnownHostsFile=/dev/null \
             -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=3 -o UserKnownHostsFile=",
        );
        ssh.push(&self.known_hosts);
        variables.push(("GIT_SSH_COMMAND".into(), ssh));
        variables.extend(self.agent.iter().map(|agent| ("SSH_AUTH_SOCK".into(), agent.socket().into())));
        if !self.nix_config.is_empty() {
            let lines: Vec<&str> = self.nix_config.iter().map(ExposeSecret::expose_secret).collect();
            variables.push(("NIX_CONFIG".into(), lines.join("\n").into()));
        }
        variables
    }

    /// The files that the process inherits.
    pub(super) fn files(&self) -> Vec<(Arc<OwnedFd>, i32)> {
        self.netrc.iter().map(|file| (Arc::clone(file), NETRC_FD)).collect()
    }
}

/// One `Authorization` header per host, for git over https: git itself reads neither Nix's netrc nor its tokens.
fn headers(credentials: &Credentials, authority: Option<&str>) -> Vec<(String, SecretString)> {
    let machines = credentials.netrc.iter().flat_map(|netrc| &netrc.machines);
    let mut logins: Vec<(&str, String, &SecretString)> = machines.map(|m| (m.host.as_str(), m.login.clone(), &m.password)).collect();
    for Token { host, token } in &credentials.tokens {
        let host = host.split('/').next().unwrap_or(host);
        if !logins.iter().any(|(known, ..)| *known == host) {
            logins.push((host, if host.contains("gitlab") { "oauth2" } else { "x-access-token" }.into(), token));
        }
    }
    // Git sets a setting for a URL apart by its port, netrc does not: the flake's own port is named too.
    let with_port =
        |host: &str| authority.filter(|authority| authority.split(':').next() == Some(host) && *authority != host).map(str::to_owned);
    let header = |(host, login, password): (&str, String, &SecretString)| {
        // GitLab's tokens say their kind for Nix: `PAT:…`, `OAuth2:…`.
        let password = password.expose_secret();
        let bare = if login == "oauth2" { password.rsplit(':').next().unwrap_or(password) } else { password };
        let value = format!("Authorization: Basic {}", STANDARD.encode(format!("{login}:{bare}")));
        let places = std::iter::once(host.to_owned()).chain(with_port(host));
        places.map(|place| (format!("http.https://{place}/.extraHeader"), SecretString::from(value.clone()))).collect::<Vec<_>>()
    };
    logins.into_iter().flat_map(header).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn shown(pairs: &[(&str, &str)], authority: Option<&str>) -> Vec<(String, String)> {
        let secret: BTreeMap<String, Vec<u8>> = pairs.iter().map(|(k, v)| ((*k).into(), v.as_bytes().to_vec())).collect();
        let credentials = Credentials::parse(&secret).unwrap();
        headers(&credentials, authority).into_iter().map(|(name, value)| (name, value.expose_secret().to_owned())).collect()
    }

    #[test]
    fn each_machine_and_token_is_one_header_for_its_host() {
        let basic = |text: &str| format!("Authorization: Basic {}", STANDARD.encode(text));
        assert_eq!(
            shown(
                &[("netrc", "machine h login a password b"), ("access-tokens", "github.com/team=t gitlab.com=PAT:u h=v")],
                Some("h:8443")
            ),
            [
                ("http.https://h/.extraHeader".into(), basic("a:b")),
                ("http.https://h:8443/.extraHeader".into(), basic("a:b")),
                ("http.https://github.com/.extraHeader".into(), basic("x-access-token:t")),
                ("http.https://gitlab.com/.extraHeader".into(), basic("oauth2:u")),
            ]
        );
    }

    #[test]
    fn without_credentials_there_is_nothing_to_see() {
        let names: Vec<_> = Access::none().environment().into_iter().map(|(name, _)| name.into_string().unwrap()).collect();
        assert!(!names.contains(&"NIX_CONFIG".to_owned()) && !names.contains(&"SSH_AUTH_SOCK".to_owned()));
    }
}
