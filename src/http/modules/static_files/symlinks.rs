//! Opening a file without following symbolic links (`disable_symlinks`): part by part of its path,
//! each relative to the directory before it, so that nothing can be exchanged in between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::http::modules::core::SymlinkMode;

/// How links in a path are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Symlinks {
    pub mode: SymlinkMode,
    /// Bytes at the start of the path that are not checked; zero: all are.
    pub unchecked: usize,
}

/// Why a path was not opened: the call that failed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenError {
    pub call: &'static str,
    pub error: Errno,
}

impl Symlinks {
    pub const FOLLOWED: Symlinks = Symlinks { mode: SymlinkMode::Off, unchecked: 0 };

    /// What holds for `path`, of which a start of `from` need not be checked.
    pub fn new(mode: SymlinkMode, from: &[u8], path: &[u8]) -> Self {
        if mode == SymlinkMode::Off || from.is_empty() || !path.starts_with(from) {
            return Symlinks { mode, unchecked: 0 };
        }
        let unchecked = match path.get(from.len()) {
            None => return Symlinks::FOLLOWED,
            Some(b'/') => from.len(),
            // Only whole names count.
            Some(_) => from.strip_suffix(b"/").map_or(0, <[u8]>::len),
        };
        Symlinks { mode, unchecked }
    }

    /// Opens for reading without waiting: a FIFO would hold the ring thread until somebody writes.
    pub fn open(self, path: &[u8]) -> Result<OwnedFd, OpenError> {
        if self.mode == SymlinkMode::Off {
            return rustix::fs::open(path, FILE, Mode::empty())
                .map_err(|error| OpenError { call: "open()", error });
        }
        self.open_checked(path, FILE)
    }

    /// What `path` is.
    pub fn stat(self, path: &[u8]) -> Result<Stat, OpenError> {
        if self.mode == SymlinkMode::Off {
            return rustix::fs::stat(path).map_err(|error| OpenError { call: "stat()", error });
        }
        let file = self.open_checked(path, FILE)?;
        rustix::fs::fstat(file).map_err(|error| OpenError { call: "fstat()", error })
    }

    fn open_checked(self, path: &[u8], flags: OFlags) -> Result<OwnedFd, OpenError> {
        let (start, rest): (&[u8], &[u8]) = match path.split_at_checked(self.unchecked) {
            Some((start, rest)) if !start.is_empty() => (start, rest),
            _ if path.starts_with(b"/") => (b"/", path),
            _ => (b".", path),
        };
        let mut directory = rustix::fs::open(start, DIRECTORY, Mode::empty())
            .map_err(|error| OpenError { call: "open()", error })?;
        let failed = |error| OpenError { call: "openat()", error };
        let mut names = rest.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() && !rest.ends_with(b"/") {
                return self.open_at(directory.as_fd(), name, flags).map_err(failed);
            }
            directory = self.open_at(directory.as_fd(), name, DIRECTORY).map_err(failed)?;
        }
        // A path that ends in a slash is the directory itself.
        rustix::fs::openat(&directory, b".".as_slice(), flags, Mode::empty()).map_err(failed)
    }

    fn open_at(
        self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        flags: OFlags,
    ) -> Result<OwnedFd, Errno> {
        if self.mode == SymlinkMode::On {
            return rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW, Mode::empty());
        }
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        let named = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_link = FileType::from_raw_mode(named.st_mode) == FileType::Symlink;
        if is_link && rustix::fs::fstat(&file)?.st_uid != named.st_uid {
            return Err(Errno::LOOP);
        }
        Ok(file)
    }
}

const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
/// A directory that is only gone through: it need not be readable.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt as _;

    use super::super::tests::TempDir;
    use super::*;

    #[test]
    fn where_checking_starts() {
        let unchecked = |from: &str, path: &str| {
            let symlinks = Symlinks::new(SymlinkMode::On, from.as_bytes(), path.as_bytes());
            (symlinks.mode == SymlinkMode::On).then_some(symlinks.unchecked)
        };
        assert_eq!(unchecked("", "/a/b"), Some(0));
        assert_eq!(unchecked("/a", "/a/b"), Some(2));
        assert_eq!(unchecked("/a/", "/a/b"), Some(2));
        assert_eq!(unchecked("/a", "/ab"), Some(0));
        assert_eq!(unchecked("/c", "/a/b"), Some(0));
        assert_eq!(unchecked("/a/b", "/a/b"), None);
        assert_eq!(unchecked("/a/b/c", "/a/b"), Some(0));
    }

    #[test]
    fn links_are_refused_where_they_stand() {
        let root = TempDir::new();
        std::fs::create_dir(root.path().join("real")).unwrap();
        std::fs::write(root.path().join("real/file"), b"x").unwrap();
        std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
        std::os::unix::fs::symlink("file", root.path().join("real/other")).unwrap();

        let base = root.path().canonicalize().unwrap();
        let open = |mode, name: &str, from: &str| {
            let path = [base.as_os_str().as_bytes(), name.as_bytes()].concat();
            let from = if from.is_empty() {
                Vec::new()
            } else {
                [base.as_os_str().as_bytes(), from.as_bytes()].concat()
            };
            Symlinks::new(mode, &from, &path).open(&path).map(drop).map_err(|e| e.error)
        };
        assert_eq!(open(SymlinkMode::Off, "/link/other", ""), Ok(()));
        assert_eq!(open(SymlinkMode::On, "/real/file", ""), Ok(()));
        assert_eq!(open(SymlinkMode::On, "//real//file", ""), Ok(()));
        assert_eq!(open(SymlinkMode::On, "/real/", ""), Ok(()));
        assert_eq!(open(SymlinkMode::On, "/real/other", ""), Err(Errno::LOOP));
        assert_eq!(open(SymlinkMode::On, "/link/file", ""), Err(Errno::NOTDIR));
        assert_eq!(open(SymlinkMode::On, "/link/file", "/link"), Ok(()));
        assert_eq!(open(SymlinkMode::On, "/link/other", "/link/"), Err(Errno::LOOP));
        assert_eq!(open(SymlinkMode::On, "/none", ""), Err(Errno::NOENT));
        assert_eq!(open(SymlinkMode::IfNotOwner, "/link/other", ""), Ok(()));
    }
}
