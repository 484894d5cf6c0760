//! Log files whose paths have variables: opened for each line, or kept open for a while
//! (`open_log_file_cache`).

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::FileCache;
use crate::error_log::{Level, WRITE_FAILURES, escape};

/// The files that a shard keeps open.
#[derive(Debug, Default)]
pub struct PathFiles {
    open: HashMap<Box<[u8]>, Kept>,
    /// Lines so far: within one millisecond only their number tells which file was used last.
    lines: u64,
}

/// A file with what the cache goes by. Times are milliseconds of one clock.
#[derive(Debug)]
struct Kept {
    /// `None` until it was used often enough.
    file: Option<File>,
    uses: usize,
    used_ms: u64,
    /// Number of its last line.
    last_line: u64,
    checked_ms: u64,
}

/// Why a line was not written: `open() "/a/b.log" failed`.
#[derive(Debug)]
pub struct PathError {
    failed: Step,
    path: Box<[u8]>,
    pub source: io::Error,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Root,
    Open,
    Write,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = escape(&self.path);
        match self.failed {
            Step::Root => write!(f, "testing \"{path}\" existence failed"),
            Step::Open => write!(f, "open() \"{path}\" failed"),
            Step::Write => write!(f, "write() to \"{path}\" failed"),
        }
    }
}

impl PathError {
    /// Whether the directory is there that must be: the request's root.
    pub fn test_root(root: &[u8]) -> Result<(), Self> {
        let source = match std::fs::metadata(path_of(root)) {
            Ok(found) if found.is_dir() => return Ok(()),
            Ok(_) => io::Error::from_raw_os_error(libc::ENOTDIR),
            Err(e) => e,
        };
        Err(PathError { failed: Step::Root, path: root.into(), source })
    }

    pub fn level(&self) -> Level {
        match self.failed {
            Step::Root => Level::Error,
            Step::Open => Level::Crit,
            Step::Write => Level::Alert,
        }
    }

    /// Whether to say so in this second: of failures to write one a minute is told.
    pub fn is_told(&self, now: i64) -> bool {
        self.failed != Step::Write || WRITE_FAILURES.is_due(now)
    }
}

impl PathFiles {
    /// Writes a line, with its line feed, to the file of this path.
    pub fn write(
        &mut self,
        path: &[u8],
        line: &[u8],
        cache: Option<FileCache>,
        now_ms: u64,
    ) -> Result<(), PathError> {
        let failed = |failed, source| PathError { failed, path: path.into(), source };
        let append = |mut file: &File| file.write(line).map(drop);
        let Some(cache) = cache else {
            let file = open(path).map_err(|e| failed(Step::Open, e))?;
            return append(&file).map_err(|e| failed(Step::Write, e));
        };
        self.expire(path, cache, now_ms);
        self.lines = self.lines.saturating_add(1);
        let kept = self.open.entry(path.into()).or_insert(Kept {
            file: None,
            uses: 0,
            used_ms: now_ms,
            last_line: self.lines,
            checked_ms: now_ms,
        });
        kept.uses = kept.uses.saturating_add(1);
        kept.used_ms = now_ms;
        kept.last_line = self.lines;
        if now_ms.saturating_sub(kept.checked_ms) >= cache.valid.as_millis() as u64 {
            kept.checked_ms = now_ms;
            kept.file = kept.file.take().filter(|file| is_at(file, path));
        }
        if let Some(file) = &kept.file {
            return append(file).map_err(|e| failed(Step::Write, e));
        }
        let file = match open(path) {
            Ok(file) => file,
            Err(e) => {
                self.open.remove(path);
                return Err(failed(Step::Open, e));
            }
        };
        let written = append(&file);
        if kept.uses >= cache.min_uses {
            kept.file = Some(file);
            kept.checked_ms = now_ms;
        }
        written.map_err(|e| failed(Step::Write, e))
    }

    /// Closes all files: their paths may be those of others now.
    pub fn close_all(&mut self) {
        self.open.clear();
    }

    /// Makes room for `path`: what was not used lately goes, and then the longest unused.
    fn expire(&mut self, path: &[u8], cache: FileCache, now_ms: u64) {
        let inactive = cache.inactive.as_millis() as u64;
        if let Some(kept) = self.open.get(path) {
            if now_ms.saturating_sub(kept.used_ms) > inactive {
                self.open.remove(path);
            } else {
                return;
            }
        }
        self.open.retain(|_, kept| now_ms.saturating_sub(kept.used_ms) <= inactive);
        while self.open.len() >= cache.max {
            let oldest = self.open.iter().min_by_key(|(_, kept)| kept.last_line);
            let Some(path) = oldest.map(|(path, _)| path.clone()) else { return };
            self.open.remove(&path);
        }
    }
}

fn path_of(path: &[u8]) -> &Path {
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn open(path: &[u8]) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o644).open(path_of(path))
}

/// Whether the path still is that of the file.
fn is_at(file: &File, path: &[u8]) -> bool {
    match (file.metadata(), std::fs::metadata(path_of(path))) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Directory(std::path::PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ringx-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Directory(path)
        }

        fn path(&self, name: &str) -> Vec<u8> {
            self.0.join(name).as_os_str().as_bytes().to_vec()
        }

        fn text(&self, name: &str) -> String {
            std::fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const CACHE: FileCache = FileCache {
        max: 2,
        inactive: Duration::from_secs(10),
        min_uses: 2,
        valid: Duration::from_secs(60),
    };

    fn kept(files: &PathFiles) -> usize {
        files.open.values().filter(|kept| kept.file.is_some()).count()
    }

    #[test]
    fn without_a_cache_every_line_opens_its_file() {
        let directory = Directory::new("path-plain");
        let mut files = PathFiles::default();
        for line in [b"1\n", b"2\n"] {
            files.write(&directory.path("a"), line, None, 0).unwrap();
        }
        assert_eq!(directory.text("a"), "1\n2\n");
        assert!(files.open.is_empty());
        let error = files.write(&directory.path("no/a"), b"x\n", None, 0).unwrap_err();
        assert!(error.to_string().starts_with("open() \"/"), "{error}");
        assert!(error.to_string().ends_with("/no/a\" failed"), "{error}");
    }

    #[test]
    fn files_that_are_used_are_kept() {
        let directory = Directory::new("path-kept");
        let mut files = PathFiles::default();
        let write = |files: &mut PathFiles, name, at_ms| {
            files.write(&directory.path(name), b"x\n", Some(CACHE), at_ms).unwrap();
        };
        write(&mut files, "a", 0);
        assert_eq!(kept(&files), 0, "once is not enough");
        write(&mut files, "a", 1000);
        assert_eq!(kept(&files), 1);
        write(&mut files, "b", 2000);
        write(&mut files, "b", 2000);
        write(&mut files, "c", 3000);
        assert_eq!(files.open.len(), 2, "the oldest went");
        write(&mut files, "b", 12_001);
        write(&mut files, "b", 22_002);
        assert_eq!(kept(&files), 0, "it had not been used for too long");
        write(&mut files, "c", 32_003);
        assert_eq!(files.open.len(), 1, "what is not used is not kept");
    }

    #[test]
    fn a_renamed_file_is_noticed() {
        let directory = Directory::new("path-renamed");
        let mut files = PathFiles::default();
        let always = FileCache { min_uses: 1, inactive: Duration::from_secs(1000), ..CACHE };
        let write = |files: &mut PathFiles, at_ms| {
            files.write(&directory.path("a"), b"x\n", Some(always), at_ms).unwrap();
        };
        write(&mut files, 0);
        std::fs::rename(directory.0.join("a"), directory.0.join("b")).unwrap();
        write(&mut files, 59_999);
        assert_eq!(directory.text("b"), "x\nx\n");
        write(&mut files, 60_000);
        assert_eq!(directory.text("a"), "x\n");
        std::fs::rename(directory.0.join("a"), directory.0.join("c")).unwrap();
        files.close_all();
        write(&mut files, 60_001);
        assert_eq!(directory.text("a"), "x\n");
    }
}
