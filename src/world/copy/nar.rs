//! NARs, written straight from the file system.
//!
//! The rules are those of Nix's `dumpPath`: entries sorted by their bytes, executable if the owner may execute, link
//! targets verbatim, hard links as files of their own. Names are bytes, not text. BLOCKING: runs on a thread of its own.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use super::wire;

/// Bytes per piece: large enough that a piece costs nothing, small enough that a copy needs no memory to speak of.
pub(super) const PIECE: usize = 128 << 10;

/// Why a NAR could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The file system said no.
    #[error("reading {}", .path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// It changed while it was read.
    #[error("{} changed while it was read", .path.display())]
    Changed {
        /// What did.
        path: PathBuf,
    },
    /// Neither a file, a directory nor a link.
    #[error("{} is neither a file, a directory nor a link", .path.display())]
    Kind {
        /// What it is.
        path: PathBuf,
    },
    /// The store knows another size: the path was changed or is damaged.
    #[error("{} is damaged: its NAR has {found} bytes, and should have {expected}", .path.display())]
    Size {
        /// The store path.
        path: PathBuf,
        /// What the store knows.
        expected: u64,
        /// What was there; at least this much, if it was too much.
        found: u64,
    },
    /// Nobody wants it any more.
    #[error("nobody takes the NAR any more")]
    Unwanted,
}

/// Collects what is written into pieces, and gives each away when it is full.
pub(super) struct Pieces<F> {
    buffer: Vec<u8>,
    give: F,
    written: u64,
}

impl<F: FnMut(Bytes) -> bool> Pieces<F> {
    /// `give` takes a piece, and says whether it wants more.
    pub(super) fn new(give: F) -> Self {
        Self { buffer: Vec::with_capacity(PIECE), give, written: 0 }
    }

    /// Writes with `put`, which appends a little.
    pub(super) fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), NarError> {
        let before = self.buffer.len();
        put(&mut self.buffer);
        self.written += (self.buffer.len() - before) as u64;
        if self.buffer.len() >= PIECE { self.give() } else { Ok(()) }
    }

    /// Gives away what is left.
    pub(super) fn give(&mut self) -> Result<(), NarError> {
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        if piece.is_empty() || (self.give)(piece.into()) { Ok(()) } else { Err(NarError::Unwanted) }
    }

    /// Reads once from `file`, and says how many bytes that gave.
    fn read(&mut self, file: impl AsFd) -> Result<io::Result<u64>, NarError> {
        // Into room that is there, without filling it with zeros first.
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, rustix::buffer::spare_capacity(&mut self.buffer))) {
            Ok(read) => {
                self.written += read as u64;
                if self.buffer.len() >= PIECE {
                    self.give()?;
                }
                Ok(Ok(read as u64))
            }
            Err(error) => Ok(Err(error.into())),
        }
    }
}

/// Writes the NAR of `path`, which must come to exactly `size` bytes: the receiver counts on it.
pub(super) fn dump<F: FnMut(Bytes) -> bool>(path: &Path, size: u64, out: &mut Pieces<F>) -> Result<(), NarError> {
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| NarError::Kind { path: path.to_owned() })?;
    let start = out.written;
    let mut walk = Walk { out, path: path.to_owned(), end: start + size };
    let wrong = |found| NarError::Size { path: path.to_owned(), expected: size, found: found - start };
    match walk.out.put(|b| wire::put_bytes(b, "nix-archive-1")).and_then(|()| walk.node(CWD, &name)) {
        Ok(()) if out.written == start + size => Ok(()),
        Ok(()) => Err(wrong(out.written)),
        Err(NarError::Size { found, .. }) => Err(wrong(found)),
        Err(other) => Err(other),
    }
}

struct Walk<'a, F> {
    out: &'a mut Pieces<F>,
    /// Where we are, for errors.
    path: PathBuf,
    /// The count of bytes not to be passed.
    end: u64,
}

impl<F: FnMut(Bytes) -> bool> Walk<'_, F> {
    fn node(&mut self, parent: impl AsFd + Copy, name: &CStr) -> Result<(), NarError> {
        self.within(0)?;
        let status = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| self.failed(e))?;
        self.texts(&["(", "type"])?;
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => self.file(parent, name)?,
            FileType::Directory => self.directory(parent, name)?,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(|e| self.failed(e))?;
                self.texts(&["symlink", "target"])?;
                self.out.put(|b| wire::put_bytes(b, target.as_bytes()))?;
            }
            _ => return Err(NarError::Kind { path: self.path.clone() }),
        }
        self.texts(&[")"])
    }

    fn file(&mut self, parent: impl AsFd, name: &CStr) -> Result<(), NarError> {
        let file = self.open(parent, name, OFlags::RDONLY)?;
        let status = rustix::fs::fstat(&file).map_err(|e| self.failed(e))?;
        let size = u64::try_from(status.st_size).map_err(|_| NarError::Kind { path: self.path.clone() })?;
        self.texts(&["regular"])?;
        if Mode::from_raw_mode(status.st_mode).contains(Mode::XUSR) {
            self.texts(&["executable", ""])?;
        }
        self.texts(&["contents"])?;
        self.out.put(|b| wire::put_number(b, size))?;
        self.within(size)?;
        let mut left = size;
        while left > 0 {
            let read = self.out.read(&file)?.map_err(|source| NarError::Read { path: self.path.clone(), source })?;
            // It grows or shrinks while it is read: not a store path that anybody may send.
            left = left.checked_sub(read).filter(|_| read > 0).ok_or_else(|| self.changed())?;
        }
        self.out.put(|b| b.extend_from_slice(wire::padding(size)))
    }

    fn directory(&mut self, parent: impl AsFd, name: &CStr) -> Result<(), NarError> {
        let directory = self.open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|e| self.failed(e))? {
            let entry = entry.map_err(|e| self.failed(e))?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        names.sort_unstable();
        self.texts(&["directory"])?;
        for name in names {
            self.texts(&["entry", "(", "name"])?;
            self.out.put(|b| wire::put_bytes(b, name.as_bytes()))?;
            self.texts(&["node"])?;
            self.path.push(OsStr::from_bytes(name.as_bytes()));
            self.node(directory.as_fd(), &name)?;
            self.path.pop();
            self.texts(&[")"])?;
        }
        Ok(())
    }

    /// Whether there is room for `more` bytes: too long a NAR is noticed before all of it is written.
    fn within(&self, more: u64) -> Result<(), NarError> {
        let found = self.out.written.saturating_add(more);
        if found <= self.end { Ok(()) } else { Err(NarError::Size { path: self.path.clone(), expected: self.end, found }) }
    }

    /// Never through a link: what is a link now was not one when it was looked at.
    fn open(&self, parent: impl AsFd, name: &CStr, flags: OFlags) -> Result<OwnedFd, NarError> {
        rustix::fs::openat(parent, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(|e| self.failed(e))
    }

    fn texts(&mut self, texts: &[&str]) -> Result<(), NarError> {
        self.out.put(|b| texts.iter().for_each(|text| wire::put_bytes(b, text)))
    }

    fn changed(&self) -> NarError {
        NarError::Changed { path: self.path.clone() }
    }

    fn failed(&self, error: rustix::io::Errno) -> NarError {
        NarError::Read { path: self.path.clone(), source: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn nar(path: &Path, size: u64) -> Result<Vec<u8>, NarError> {
        let mut all = Vec::new();
        let mut pieces = Pieces::new(|piece| {
            all.extend_from_slice(&piece);
            true
        });
        dump(path, size, &mut pieces).and_then(|()| pieces.give())?;
        Ok(all)
    }

    /// All that a store path may hold and a careless writer gets wrong.
    fn oddities() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
        for (name, mode) in
            [(&b"B"[..], 0o444), (b"a", 0o555), (b"d.x", 0o654), (b"d-x", 0o644), (b"caf\xc3\xa9", 0o444), (b"\xff\xfe", 0o744)]
        {
            fs::write(at(name), name).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(at(b"empty"), b"").unwrap();
        for size in [7, 8, 9, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5] {
            fs::write(at(format!("size-{size}").as_bytes()), vec![b'x'; size]).unwrap();
        }
        fs::hard_link(at(b"B"), at(b"hard")).unwrap();
        symlink("nowhere", at(b"dangling")).unwrap();
        symlink(OsStr::from_bytes(b"/\xff/../B "), at(b"odd-link")).unwrap();
        fs::create_dir_all(at(b"d/empty/deep")).unwrap();
        symlink(".", at(b"d/loop")).unwrap();
        folder
    }

    #[expect(clippy::disallowed_methods, reason = "nix-store is the only judge of NARs")]
    fn reference(path: &Path) -> Vec<u8> {
        let output = std::process::Command::new("nix-store").arg("--dump").arg(path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[test]
    #[ignore = "needs nix"]
    fn a_nar_is_what_nix_store_writes() {
        let folder = oddities();
        for path in [folder.path().to_owned(), folder.path().join("a"), folder.path().join("dangling"), folder.path().join("empty")] {
            let expected = reference(&path);
            assert!(nar(&path, expected.len() as u64).unwrap() == expected, "{}", path.display());
        }
    }

    #[test]
    fn a_small_nar_to_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("f"), "hi").unwrap();
        let mut expected = Vec::new();
        for text in ["nix-archive-1", "(", "type", "directory", "entry", "(", "name", "f", "node"] {
            wire::put_bytes(&mut expected, text);
        }
        for text in ["(", "type", "regular", "contents", "hi", ")", ")", ")"] {
            wire::put_bytes(&mut expected, text);
        }
        assert_eq!(nar(folder.path(), expected.len() as u64).unwrap(), expected);
    }

    #[test]
    fn a_nar_of_another_size_than_known_is_an_error() {
        let folder = oddities();
        let whole = nar(folder.path(), u64::MAX / 2);
        let Err(NarError::Size { found: actual, .. }) = whole else { panic!("{whole:?}") };
        assert!(nar(folder.path(), actual).is_ok());
        for wrong in [actual - 8, actual + 8, 200] {
            assert!(matches!(nar(folder.path(), wrong), Err(NarError::Size { expected, .. }) if expected == wrong));
        }
    }

    #[test]
    fn what_is_neither_file_nor_directory_nor_link_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(matches!(nar(folder.path(), 10_000), Err(NarError::Kind { path }) if path.ends_with("socket")));
    }

    #[test]
    fn it_stops_when_nobody_takes_it() {
        let folder = oddities();
        let mut pieces = Pieces::new(|_| false);
        assert!(matches!(dump(folder.path(), u64::MAX / 2, &mut pieces), Err(NarError::Unwanted)));
    }
}
