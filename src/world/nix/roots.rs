//! GC roots: what keeps hosts' derivations and systems from the garbage collector.
//!
//! Plain symbolic links below Nix's own `gcroots` directory, `<namespace>/<name>-<kind>`. One that points at what is
//! not valid yet is allowed: it holds from the moment that Nix registers the path.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::nix::StorePath;

/// Where Nix looks for roots.
const GC_ROOTS: &str = "/nix/var/nix/gcroots/nixos-host-controller";

/// The links of all hosts.
#[derive(Debug, Clone)]
pub struct Roots {
    dir: PathBuf,
}

/// Whose root it is: a namespace and a name, as Kubernetes checked them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RootName {
    namespace: String,
    name: String,
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RootKind {
    /// The derivation that is wanted.
    Drv,
    /// What is being built now; becomes [`RootKind::System`] when it is there.
    Building,
    /// The toplevel that was built last.
    System,
}

/// A root could not be set, dropped or listed.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// A name that cannot be part of a path.
    #[error("{0:?} cannot be a namespace or name")]
    Name(String),
    /// The file system refused.
    #[error("cannot {deed} the GC root {}", path.display())]
    Io {
        /// What was to be done.
        deed: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RootName {
    /// Checks that both are names, and not ways out of a directory.
    pub fn new(namespace: &str, name: &str) -> Result<Self, RootsError> {
        let fine = |text: &str| {
            (1..=253).contains(&text.len())
                && !text.starts_with('.')
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        };
        match [namespace, name].into_iter().find(|text| !fine(text)) {
            Some(wrong) => Err(RootsError::Name(wrong.chars().take(80).collect())),
            None => Ok(Self { namespace: namespace.into(), name: name.into() }),
        }
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl RootKind {
    const ALL: [Self; 3] = [Self::Drv, Self::Building, Self::System];

    fn suffix(self) -> &'static str {
        match self {
            Self::Drv => "-drv",
            Self::Building => "-building",
            Self::System => "-system",
        }
    }
}

impl Roots {
    pub(super) fn new() -> Self {
        Self { dir: GC_ROOTS.into() }
    }

    /// Keeps `path` for this host, instead of what was kept as `kind` before.
    pub fn set(&self, root: &RootName, kind: RootKind, path: &StorePath) -> Result<(), RootsError> {
        let link = self.link(root, kind);
        let failed = |source| RootsError::Io { deed: "set", path: link.clone(), source };
        if self.has(root, kind, path) {
            return Ok(());
        }
        std::fs::create_dir_all(self.dir.join(&root.namespace)).map_err(failed)?;
        // A new link under another name, moved over the old one: at no moment is there none.
        let fresh = self.dir.join(&root.namespace).join(format!(".{}{}", root.name, kind.suffix()));
        remove(&fresh).map_err(failed)?;
        symlink(path.as_str(), &fresh).and_then(|()| std::fs::rename(&fresh, &link)).map_err(failed)
    }

    /// Whether `path` is what is kept as `kind`.
    pub fn has(&self, root: &RootName, kind: RootKind, path: &StorePath) -> bool {
        std::fs::read_link(self.link(root, kind)).is_ok_and(|target| target == Path::new(path.as_str()))
    }

    /// Keeps nothing as `kind` any more; no error if nothing was.
    pub fn drop(&self, root: &RootName, kind: RootKind) -> Result<(), RootsError> {
        let link = self.link(root, kind);
        remove(&link).map_err(|source| RootsError::Io { deed: "drop", path: link, source })
    }

    /// Keeps nothing of this host any more.
    pub fn drop_all(&self, root: &RootName) -> Result<(), RootsError> {
        RootKind::ALL.into_iter().try_for_each(|kind| self.drop(root, kind))
    }

    /// All roots, in order.
    pub fn list(&self) -> Result<Vec<(RootName, RootKind, StorePath)>, RootsError> {
        let mut found = Vec::new();
        for namespace in entries(&self.dir)? {
            for link in entries(&namespace)? {
                found.extend(parse(&namespace, &link));
            }
        }
        found.sort();
        Ok(found)
    }

    fn link(&self, root: &RootName, kind: RootKind) -> PathBuf {
        self.dir.join(&root.namespace).join(format!("{}{}", root.name, kind.suffix()))
    }
}

/// What a link says, if it is one of ours.
fn parse(namespace: &Path, link: &Path) -> Option<(RootName, RootKind, StorePath)> {
    let file = link.file_name()?.to_str()?;
    let (kind, name) = RootKind::ALL.into_iter().find_map(|kind| Some((kind, file.strip_suffix(kind.suffix())?)))?;
    let root = RootName::new(namespace.file_name()?.to_str()?, name).ok()?;
    let target = std::fs::read_link(link).ok()?;
    Some((root, kind, target.to_str()?.parse().ok()?))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, RootsError> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(source) => Err(RootsError::Io { deed: "list", path: dir.to_owned(), source }),
    }
}

fn remove(link: &Path) -> io::Result<()> {
    match std::fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_set_replaced_listed_and_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots { dir: dir.path().join("ours") };
        let path = |name: &str| format!("/nix/store/s66mzxpvicwk07gjbjfw9izjfa797vsw-{name}").parse::<StorePath>().unwrap();
        let (one, two) = (RootName::new("infra", "web").unwrap(), RootName::new("infra", "web-drv").unwrap());
        assert_eq!(roots.list().unwrap(), []);
        roots.set(&one, RootKind::Drv, &path("a.drv")).unwrap();
        roots.set(&one, RootKind::Drv, &path("b.drv")).unwrap();
        roots.set(&one, RootKind::System, &path("b")).unwrap();
        roots.set(&two, RootKind::System, &path("c")).unwrap();
        std::fs::write(dir.path().join("ours/infra/stranger"), "x").unwrap();
        let all = [
            (one.clone(), RootKind::Drv, path("b.drv")),
            (one.clone(), RootKind::System, path("b")),
            (two.clone(), RootKind::System, path("c")),
        ];
        assert_eq!(roots.list().unwrap(), all);
        roots.drop_all(&one).unwrap();
        roots.drop_all(&one).unwrap();
        assert_eq!(roots.list().unwrap(), all[2..]);
    }

    #[test]
    fn a_name_is_no_path() {
        for (namespace, name) in [("..", "x"), ("x", "../y"), ("x", ""), ("a/b", "x"), ("x", ".y")] {
            assert!(RootName::new(namespace, name).is_err(), "{namespace} {name}");
        }
    }
}
