//! What the git repositories of a fetcher cache have, said so that git can say it to a server.
//!
//! Nix fetches a revision by its hash, and keeps no reference to it. Git offers a server only what references lead to, so that each new
//! revision would come with its whole history and every file, however little of it is new.

use std::io::{self, Write as _};
use std::path::Path;

/// The reference that each repository gets.
const REFERENCE: &str = "refs/nixos-host-controller/fetched";

/// Gives each repository in `cache` a reference to what it fetched last. One that cannot have it is fetched whole, as without us.
pub(super) fn refer(cache: &Path) {
    let Ok(repositories) = cache.join("gitv3").read_dir() else { return };
    for repository in repositories.flatten() {
        if let Err(error) = refer_one(&repository.path()) {
            tracing::debug!(%error, repository = %repository.path().display(), "cannot note what was fetched last");
        }
    }
}

fn refer_one(repository: &Path) -> io::Result<()> {
    // Git writes it once all objects are there: gitrepository-layout(5).
    let Ok(fetched) = std::fs::read_to_string(repository.join("FETCH_HEAD")) else { return Ok(()) };
    let Some(commit) = fetched.split_whitespace().next().filter(|word| is_hash(word)) else { return Ok(()) };
    let line = format!("{commit}\n");
    let reference = repository.join(REFERENCE);
    if std::fs::read_to_string(&reference).is_ok_and(|last| last == line) {
        return Ok(());
    }
    std::fs::create_dir_all(reference.parent().unwrap_or(repository))?;
    let mut file = tempfile::NamedTempFile::new_in(repository)?;
    file.write_all(line.as_bytes())?;
    // An empty reference, after a power cut, would be a broken one.
    file.as_file().sync_all()?;
    file.persist(&reference)?;
    Ok(())
}

/// Whether it is the hash of an object, by SHA-1 or SHA-256.
fn is_hash(word: &str) -> bool {
    [40, 64].contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "364d3fae9c3aa8b28df9f07b7989ed4e4a98cca0";
    const SECOND: &str = "4e4a98cca0364d3fae9c3aa8b28df9f07b7989ed";

    #[test]
    fn each_repository_refers_to_what_it_fetched_last_and_to_nothing_else() {
        let cache = tempfile::tempdir().unwrap();
        refer(cache.path());
        let repository = |name: &str| cache.path().join("gitv3").join(name);
        let fetched = |name: &str, text: &str| {
            std::fs::create_dir_all(repository(name)).unwrap();
            std::fs::write(repository(name).join("FETCH_HEAD"), text).unwrap();
        };
        let referred = |name: &str| std::fs::read_to_string(repository(name).join(REFERENCE)).unwrap_or_default();
        fetched("one", &format!("{FIRST}\t\t'{FIRST}' of https://git.example.org/one\n{SECOND}\tnot-for-merge\tx\n"));
        fetched("cut", "");
        fetched("odd", "../../x\t\tx\n");
        std::fs::create_dir_all(repository("new")).unwrap();
        refer(cache.path());
        assert_eq!(["one", "cut", "odd", "new"].map(referred), [&format!("{FIRST}\n"), "", "", ""]);
        fetched("one", &format!("{SECOND}\t\tbranch 'main' of https://git.example.org/one\n"));
        refer(cache.path());
        assert_eq!(referred("one"), format!("{SECOND}\n"));
        assert_eq!(std::fs::read_dir(repository("one")).unwrap().count(), 2, "no temporary file stays");
    }
}
