//! Flake references: what `spec.flake` says, checked before anything is run with it.
//!
//! Only the schemes of [`SCHEMES`] pass: a bare word would be looked up in a registry, and `ext::` would run a program.
//! Every part is checked against its own character set or percent-encoded, so that none can become another part.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What may stand before the first colon.
pub const SCHEMES: &str = "git+ssh://, git+https://, github:, gitlab:, sourcehut:, https:// (a tarball), tarball+https://, and with --allow-local-flakes path: and git+file://";

/// What stays as it is in a path; all else is percent-encoded.
const PATH: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'+').remove(b'@').remove(b'=').remove(b',');

/// What stays as it is in the value of a query parameter.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_');

/// A flake, and what of it is wanted: a followed name, one revision, or what the reference itself leads to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlakeRef {
    source: Source,
    query: Vec<(String, String)>,
    follow: Follow,
}

/// Where the source tree comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A git repository; `url` is what git itself is given.
    Git {
        /// `ssh://…`, `https://…` or `file:///…`, percent-encoded.
        url: String,
    },
    /// A repository on a hosting service, fetched as an archive.
    Forge {
        /// `github`, `gitlab` or `sourcehut`.
        kind: Forge,
        /// The owner; for GitLab with its groups, `group%2Fsubgroup`.
        owner: String,
        /// The repository.
        repo: String,
        /// A host other than the service's own.
        host: Option<String>,
    },
    /// An archive behind a URL.
    Tarball {
        /// `https://…`.
        url: String,
    },
    /// A directory on the controller's own file system.
    Path {
        /// Absolute, percent-encoded.
        path: String,
    },
}

/// A hosting service that Nix has a fetcher for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Forge {
    /// github.com and GitHub Enterprise.
    GitHub,
    /// gitlab.com and others.
    GitLab,
    /// sr.ht.
    SourceHut,
}

/// What of the source is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Follow {
    /// What the remote calls its HEAD, or the only thing there is.
    Default,
    /// A branch or a tag, looked up again each interval.
    Ref(String),
    /// One revision, for ever.
    Rev(String),
}

/// What is wrong with a flake reference, for the person who wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("spec.flake.{field}: {value:?} {problem}")]
pub struct FlakeRefError {
    /// `url`, `ref` or `rev`.
    pub field: &'static str,
    /// What it says, cut to a readable length.
    pub value: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// An error about `field`, which says `value`.
fn wrong(field: &'static str, value: &str, problem: impl Into<String>) -> FlakeRefError {
    FlakeRefError { field, value: value.chars().take(120).collect(), problem: problem.into() }
}

impl FlakeRef {
    /// Checks the three fields of `spec.flake`. `local` allows what reads the controller's own files.
    pub fn new(url: &str, rev: Option<&str>, reference: Option<&str>, local: bool) -> Result<Self, FlakeRefError> {
        if let Some(bad) = url.chars().find(|c| c.is_control() || c.is_whitespace() || *c == '#' || *c == '\\') {
            return Err(wrong(
                "url",
                url,
                format!("has the character {bad:?}; percent-encode it, and name the attribute in spec.flake.attribute"),
            ));
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut query = parse_query(url, query)?;
        let (source, mut follow) = parse_source(url, address, &mut query, local)?;
        for (name, value) in take(&mut query, &["ref", "rev"]) {
            set_follow(&mut follow, &name, "url", &value)?;
        }
        for (field, value) in [("rev", rev), ("ref", reference)] {
            if let Some(value) = value {
                set_follow(&mut follow, field, field, value)?;
            }
        }
        if matches!(source, Source::Tarball { .. } | Source::Path { .. }) && follow != Follow::Default {
            let field = if rev.is_some() { "rev" } else { "ref" };
            return Err(wrong(
                field,
                rev.or(reference).unwrap_or(url),
                format!("cannot be used with {url:?}: a tarball or a directory has no branches or revisions; leave it out"),
            ));
        }
        Ok(Self { source, query, follow })
    }

    /// Where the source tree comes from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What of it is wanted.
    pub fn follow(&self) -> &Follow {
        &self.follow
    }

    /// The URL of the git repository, for `git ls-remote`; `None` where there is no such repository.
    pub fn git_url(&self) -> Option<String> {
        match &self.source {
            Source::Git { url } => Some(url.clone()),
            Source::Forge { kind, owner, repo, host } => {
                let owner = percent_decode_str(owner).decode_utf8_lossy().into_owned();
                let host = host.as_deref().unwrap_or(kind.host());
                let suffix = if *kind == Forge::SourceHut { "" } else { ".git" };
                Some(format!("https://{host}/{owner}/{repo}{suffix}"))
            }
            Source::Tarball { .. } | Source::Path { .. } => None,
        }
    }

    /// The host that is asked, without port; `None` for local flakes.
    pub fn host(&self) -> Option<&str> {
        match &self.source {
            Source::Git { url } | Source::Tarball { url } => {
                let authority = url.split_once("://")?.1.split('/').next()?;
                let host_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                let host = match host_port.strip_prefix('[') {
                    Some(v6) => v6.split(']').next()?,
                    None => host_port.split(':').next()?,
                };
                (!host.is_empty()).then_some(host)
            }
            Source::Forge { kind, host, .. } => Some(host.as_deref().unwrap_or(kind.host())),
            Source::Path { .. } => None,
        }
    }

    /// What Nix is given: with `git`, the full name of what was followed (or `HEAD`) and the revision found behind it.
    pub fn reference(&self, git: Option<(&str, &str)>) -> String {
        let mut query = self.query.clone();
        let base = match (&self.source, git) {
            (Source::Git { url }, Some((name, rev))) => {
                query.push(("ref".into(), name.into()));
                query.push(("rev".into(), rev.into()));
                format!("git+{url}")
            }
            (Source::Git { url }, None) => format!("git+{url}"),
            (Source::Forge { kind, owner, repo, host }, git) => {
                query.extend(host.iter().map(|host| ("host".to_owned(), host.clone())));
                let rev = git.map(|(_, rev)| format!("/{rev}")).unwrap_or_default();
                format!("{}:{owner}/{repo}{rev}", kind.scheme())
            }
            (Source::Tarball { url }, _) => format!("tarball+{url}"),
            (Source::Path { path }, _) => format!("path:{path}"),
        };
        let query: Vec<String> = query.iter().map(|(k, v)| format!("{k}={}", utf8_percent_encode(v, QUERY))).collect();
        if query.is_empty() { base } else { format!("{base}?{}", query.join("&")) }
    }
}

impl fmt::Display for FlakeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reference(None))?;
        match &self.follow {
            Follow::Default => Ok(()),
            Follow::Ref(name) => write!(f, " at {name}"),
            Follow::Rev(rev) => write!(f, " at {rev}"),
        }
    }
}

impl Forge {
    /// What stands before the colon.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::GitLab => "gitlab",
            Self::SourceHut => "sourcehut",
        }
    }

    /// The service's own host.
    pub fn host(self) -> &'static str {
        match self {
            Self::GitHub => "github.com",
            Self::GitLab => "gitlab.com",
            Self::SourceHut => "git.sr.ht",
        }
    }
}

/// The parameters that may stay in a reference; `ref` and `rev` are taken out by the caller.
const PARAMETERS: [&str; 7] = ["dir", "ref", "rev", "submodules", "shallow", "host", "narHash"];

fn parse_query(url: &str, query: &str) -> Result<Vec<(String, String)>, FlakeRefError> {
    let mut found = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !PARAMETERS.contains(&name) {
            return Err(wrong("url", url, format!("has the parameter {name:?}; allowed are {}", PARAMETERS.join(", "))));
        }
        let value =
            percent_decode_str(value).decode_utf8().map_err(|_| wrong("url", url, format!("has a parameter {name} that is not UTF-8")))?;
        let fine = match name {
            "dir" => !value.split('/').any(|part| part == "..") && !value.starts_with('/') && !value.chars().any(char::is_control),
            "submodules" | "shallow" => matches!(&*value, "0" | "1"),
            "host" => valid_host(&value),
            "narHash" => value.starts_with("sha256-") && value.len() == 51,
            _ => true,
        };
        if !fine {
            return Err(wrong(
                "url",
                url,
                format!(
                    "has {name}={value:?}; dir is a folder inside the repository, submodules and shallow are 0 or 1, host is a host name, narHash is sha256-…"
                ),
            ));
        }
        found.push((name.to_owned(), value.into_owned()));
    }
    Ok(found)
}

/// Takes the parameters of these names out of `query`.
fn take(query: &mut Vec<(String, String)>, names: &[&str]) -> Vec<(String, String)> {
    let (taken, rest) = std::mem::take(query).into_iter().partition(|(name, _)| names.contains(&name.as_str()));
    *query = rest;
    taken
}

fn parse_source(url: &str, address: &str, query: &mut Vec<(String, String)>, local: bool) -> Result<(Source, Follow), FlakeRefError> {
    for (prefix, transport) in [("git+ssh://", "ssh"), ("git+https://", "https")] {
        if let Some(rest) = address.strip_prefix(prefix) {
            return Ok((Source::Git { url: remote_url(url, transport, rest)? }, Follow::Default));
        }
    }
    for kind in [Forge::GitHub, Forge::GitLab, Forge::SourceHut] {
        if let Some(rest) = address.strip_prefix(kind.scheme()).and_then(|rest| rest.strip_prefix(':')) {
            let host = take(query, &["host"]).pop().map(|(_, host)| host);
            return parse_forge(url, kind, rest, host);
        }
    }
    if let Some(rest) = address.strip_prefix("tarball+https://").or_else(|| address.strip_prefix("https://")) {
        return Ok((Source::Tarball { url: remote_url(url, "https", rest)? }, Follow::Default));
    }
    let path =
        address.strip_prefix("path:").map(|path| (path, true)).or_else(|| address.strip_prefix("git+file://").map(|path| (path, false)));
    match path {
        Some(_) if !local => Err(wrong(
            "url",
            url,
            "is a local flake, which would read the controller's own files; start the controller with --allow-local-flakes if every author of a NixOSHost may do that",
        )),
        Some((path, _)) if !path.starts_with('/') => Err(wrong("url", url, "needs an absolute path, as in path:/srv/infra")),
        Some((path, true)) => Ok((Source::Path { path: encode_path(path) }, Follow::Default)),
        Some((path, false)) => Ok((Source::Git { url: format!("file://{}", encode_path(path)) }, Follow::Default)),
        None => Err(wrong("url", url, format!("is not a supported flake reference; it must start with one of {SCHEMES}"))),
    }
}

fn parse_forge(url: &str, kind: Forge, rest: &str, host: Option<String>) -> Result<(Source, Follow), FlakeRefError> {
    let mut parts = rest.splitn(3, '/');
    let word = |text: &str| {
        !text.is_empty() && !text.starts_with(['-', '.']) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b))
    };
    let (Some(owner), Some(repo)) = (parts.next().filter(|o| word(o)), parts.next().filter(|r| word(r))) else {
        return Err(wrong("url", url, format!("must be {0}:OWNER/REPOSITORY, or {0}:OWNER/REPOSITORY/REF", kind.scheme())));
    };
    let mut follow = Follow::Default;
    if let Some(name) = parts.next() {
        let field = if is_rev(name) { "rev" } else { "ref" };
        set_follow(&mut follow, field, "url", name)?;
    }
    Ok((Source::Forge { kind, owner: owner.into(), repo: repo.into(), host }, follow))
}

/// `[user@]host[:port]/path`, each part checked.
fn remote_url(url: &str, transport: &str, rest: &str) -> Result<String, FlakeRefError> {
    let (authority, path) = rest.split_once('/').ok_or_else(|| wrong("url", url, "has no path behind its host"))?;
    let (user, host_port) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if let Some(user) = user {
        if user.contains(':') {
            return Err(wrong(
                "url",
                &url.replace(user, "…"),
                "has a password in it; put it into a Secret and name that in spec.flake.credentialsRef",
            ));
        }
        if user.is_empty() || user.starts_with('-') || !user.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
            return Err(wrong("url", url, "has a user name with characters other than letters, digits, dot, dash and underscore"));
        }
    }
    let (host, port) = match host_port.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => (v6, port.strip_prefix(':')),
        None => host_port.split_once(':').map_or((host_port, None), |(host, port)| (host, Some(port))),
    };
    let v6 = host_port.starts_with('[');
    if (v6 && host.parse::<std::net::Ipv6Addr>().is_err()) || (!v6 && !valid_host(host)) {
        return Err(wrong("url", url, "has no valid host name or address"));
    }
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err(wrong("url", url, "has a port that is not a number from 1 to 65535"));
    }
    Ok(format!("{transport}://{authority}/{}", encode_path(path)))
}

/// Whether a name can be a host: no leading dash (ssh would take it for an option), only what names and addresses consist of.
fn valid_host(host: &str) -> bool {
    (1..=253).contains(&host.len())
        && !host.starts_with(['-', '.'])
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
}

/// Percent-encodes what needs it; what is encoded already stays as it is.
fn encode_path(path: &str) -> String {
    let plain = percent_decode_str(path).collect::<Vec<u8>>();
    percent_encoding::percent_encode(&plain, PATH).to_string()
}

fn is_rev(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Takes note of a `ref` or `rev` that stood in `field`; two that differ are refused.
fn set_follow(follow: &mut Follow, name: &str, field: &'static str, value: &str) -> Result<(), FlakeRefError> {
    let found = if name == "rev" {
        if !is_rev(value) {
            return Err(wrong(
                field,
                value,
                "is not a full revision: 40 (or 64) lower-case hexadecimal digits, as `git rev-parse` prints them",
            ));
        }
        Follow::Rev(value.to_owned())
    } else {
        if !valid_ref(value) {
            return Err(wrong(field, value, "is not a valid name of a branch or tag (see `git check-ref-format`)"));
        }
        Follow::Ref(value.to_owned())
    };
    if *follow != Follow::Default && *follow != found {
        return Err(wrong(field, value, "contradicts another rev or ref, in spec.flake or in its url; give one of them"));
    }
    *follow = found;
    Ok(())
}

/// The rules of `git check-ref-format`, for a short or a full name.
fn valid_ref(name: &str) -> bool {
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c) || c == '\u{7f}';
    (1..=250).contains(&name.len())
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.contains(forbidden)
        && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.to_ascii_lowercase().ends_with(".lock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REV: &str = "3f2a9c1d3f2a9c1d3f2a9c1d3f2a9c1d3f2a9c1d";

    fn good(url: &str) -> FlakeRef {
        FlakeRef::new(url, None, None, true).unwrap()
    }

    fn bad(url: &str) -> String {
        FlakeRef::new(url, None, None, false).unwrap_err().to_string()
    }

    #[test]
    fn a_git_repository_is_locked_by_its_revision() {
        let flake = good("git+ssh://git@git.example.org:2222/team/infra?dir=hosts");
        assert_eq!(flake.git_url().unwrap(), "ssh://git@git.example.org:2222/team/infra");
        assert_eq!(flake.host(), Some("git.example.org"));
        assert_eq!(
            flake.reference(Some(("refs/heads/main", REV))),
            format!("git+ssh://git@git.example.org:2222/team/infra?dir=hosts&ref=refs/heads/main&rev={REV}")
        );
    }

    #[test]
    fn a_forge_is_asked_by_git_and_fetched_as_an_archive() {
        let flake = good("github:team/infra/v1");
        assert_eq!(flake.follow(), &Follow::Ref("v1".into()));
        assert_eq!(flake.git_url().unwrap(), "https://github.com/team/infra.git");
        assert_eq!(flake.reference(Some(("refs/tags/v1", REV))), format!("github:team/infra/{REV}"));
        assert_eq!(good(&format!("github:team/infra/{REV}")).follow(), &Follow::Rev(REV.into()));
        let enterprise = good("gitlab:group%2Fsub/infra?host=git.example.org");
        assert_eq!(enterprise.git_url().unwrap(), "https://git.example.org/group/sub/infra.git");
        assert_eq!(enterprise.reference(None), "gitlab:group%2Fsub/infra?host=git.example.org");
    }

    #[test]
    fn tarballs_and_directories_have_no_git() {
        assert_eq!(good("https://example.org/infra.tar.gz").reference(None), "tarball+https://example.org/infra.tar.gz");
        assert_eq!(good("path:/srv/my flake".replace(' ', "%20").as_str()).reference(None), "path:/srv/my%20flake");
        assert_eq!(good("path:/srv/infra").git_url(), None);
        assert!(FlakeRef::new("https://example.org/x.tar.gz", Some(REV), None, false).unwrap_err().to_string().contains("has no branches"));
    }

    #[test]
    fn a_local_flake_needs_the_operators_word() {
        for url in ["path:/etc", "git+file:///srv/infra"] {
            assert!(bad(url).contains("--allow-local-flakes"), "{url}");
        }
    }

    #[test]
    fn what_could_run_something_or_mean_something_else_is_refused() {
        for url in [
            "ext::sh -c id",
            "ext::sh",
            "nixpkgs",
            "./infra",
            "/etc",
            "file:///etc/passwd",
            "http://example.org/x.tar.gz",
            "git+http://example.org/x",
            "git+ssh://-oProxyCommand=id/x",
            "git+ssh://git@-oProxyCommand=id/x",
            "git+ssh://-l@host/x",
            "git+https://host",
            "git+https:///x",
            "git+https://host:99999/x",
            "git+https://host/x?upload-pack=id",
            "git+https://host/x?dir=../..",
            "git+https://ho$(id)st/x",
            "github:team",
            "github:-x/y",
            "github:team/infra/--upload-pack=x",
            "git+https://host/x#attr",
            "git+https://host/\nx",
            "git+https://[::1/x",
            "git+https://[zz]/x",
            "",
        ] {
            assert!(FlakeRef::new(url, None, None, false).is_err(), "{url:?} was taken");
        }
    }

    #[test]
    fn a_password_in_the_url_is_refused_and_not_repeated() {
        let error = bad("git+https://bot:hunter2@host/x");
        assert!(error.contains("credentialsRef") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn rev_and_ref_are_checked_wherever_they_stand() {
        let of = |url: &str, rev, reference| FlakeRef::new(url, rev, reference, false);
        let url = "git+https://host/x";
        assert_eq!(of(url, Some(REV), None).unwrap().follow(), &Follow::Rev(REV.into()));
        assert_eq!(of(url, None, Some("feature/x")).unwrap().follow(), &Follow::Ref("feature/x".into()));
        assert_eq!(of("git+https://host/x?ref=main", None, Some("main")).unwrap().follow(), &Follow::Ref("main".into()));
        assert!(of("git+https://host/x?ref=main", None, Some("other")).unwrap_err().to_string().contains("contradicts"));
        let upper = REV.to_uppercase();
        for rev in ["3f2a9c1", "HEAD", &upper] {
            assert!(of(url, Some(rev), None).unwrap_err().to_string().starts_with("spec.flake.rev"), "{rev}");
        }
        for name in ["-x", "a..b", "a b", "x.lock", "", "a//b", "@{1}", "a\n", "a:b", "/x"] {
            assert!(of(url, None, Some(name)).is_err(), "{name:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_whatever_makes_the_parser_panic_or_lets_an_option_through(text in "\\PC{0,60}") {
            for url in [text.clone(), format!("git+ssh://{text}"), format!("git+https://host/{text}"), format!("github:{text}")] {
                if let Ok(flake) = FlakeRef::new(&url, None, None, false) {
                    let reference = flake.reference(Some(("HEAD", REV)));
                    proptest::prop_assert!(!reference.starts_with('-') && !reference.contains(['"', '$', '`', ' ', '\'', ';']), "{reference}");
                    proptest::prop_assert!(flake.host().is_none_or(|host| !host.starts_with('-')));
                }
            }
        }
    }
}
