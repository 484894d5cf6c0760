//! Log files: opened once for the process, shared by its threads, reopened behind their backs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use thiserror::Error;

use super::line::Errno;
use super::write_to_stderr;
use crate::os;

/// Every log file of the process. A file closes when no configuration and no log holds it.
#[derive(Debug, Default)]
pub struct Files {
    files: Mutex<Vec<Weak<LogFile>>>,
}

impl Files {
    /// The file of this path: the one that is open already, or a new one.
    pub fn open(&self, path: &Path) -> Result<Arc<LogFile>, OpenError> {
        let mut files = lock(&self.files);
        files.retain(|file| file.strong_count() > 0);
        if let Some(open) = files.iter().filter_map(Weak::upgrade).find(|file| file.path == path) {
            return Ok(open);
        }
        let file = Arc::new(LogFile::open(path)?);
        files.push(Arc::downgrade(&file));
        Ok(file)
    }

    /// Opens every file anew by its path, as after the old ones were renamed (USR1). One that
    /// cannot be opened goes on with the old file, and is returned.
    pub fn reopen(&self) -> Vec<OpenError> {
        let files = lock(&self.files);
        files.iter().filter_map(Weak::upgrade).filter_map(|file| file.reopen().err()).collect()
    }
}

/// `open() "F" failed (13: Permission denied)`
#[derive(Debug, Error)]
#[error("open() \"{}\" failed ({})", path.display(), Errno::of(source))]
pub struct OpenError {
    pub path: PathBuf,
    pub source: io::Error,
}

/// One log file, whatever number of threads write to it.
#[derive(Debug)]
pub struct LogFile {
    /// Empty: stderr.
    path: PathBuf,
    /// Reopening changes what the descriptor means, for all threads at once. `None`: stderr, which is
    /// not opened and is whatever it is at the time.
    file: Option<File>,
    /// The second in which the disk was last found full: nothing is written in it any more.
    full_at: AtomicI64,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, OpenError> {
        let full_at = AtomicI64::new(i64::MIN);
        let file = if path.as_os_str().is_empty() { None } else { Some(open(path)?) };
        Ok(Self { path: path.to_owned(), file, full_at })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn reopen(&self) -> Result<(), OpenError> {
        let path = &self.path;
        let Some(file) = &self.file else { return Ok(()) };
        let new = open(path)?;
        os::replace_file(file, &new).map_err(|source| OpenError { path: path.clone(), source })
    }

    /// Writes one line. `now` is the second it is written in. A failure loses the line, no more.
    pub fn write(&self, line: &[u8], now: i64) {
        let Self { path, file, full_at } = self;
        let Some(file) = file else { return write_to_stderr(line) };
        if full_at.load(Ordering::Relaxed) == now {
            return;
        }
        if let Err(error) = write_once(file, line) {
            if error.kind() == io::ErrorKind::StorageFull {
                full_at.store(now, Ordering::Relaxed);
            }
            complain(path, &error, now);
        }
    }
}

/// `O_APPEND`, 0644, created when missing.
fn open(path: &Path) -> Result<File, OpenError> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map_err(|source| OpenError { path: path.to_owned(), source })
}

/// One `write(2)`; what a full disk or pipe did not take of a line is not sent after it, because
/// another thread's line may stand between.
fn write_once(mut file: &File, line: &[u8]) -> io::Result<()> {
    loop {
        match file.write(line) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(drop),
        }
    }
}

/// Says on stderr that a log cannot be written, once a minute for all of them.
fn complain(path: &Path, error: &io::Error, now: i64) {
    if WRITE_FAILURES.is_due(now) {
        let error = Errno::of(error);
        let text = format!("nginx: [alert] write() to \"{}\" failed ({error})\n", path.display());
        write_to_stderr(text.as_bytes());
    }
}

/// Failures to write to logs.
pub static WRITE_FAILURES: OnceAMinute = OnceAMinute::new();

/// What is said once a minute by all threads together.
#[derive(Debug)]
pub struct OnceAMinute {
    /// The second in which it was said last.
    last: AtomicI64,
}

impl Default for OnceAMinute {
    fn default() -> Self {
        Self::new()
    }
}

impl OnceAMinute {
    pub const fn new() -> Self {
        Self { last: AtomicI64::new(i64::MIN) }
    }

    /// Whether it is to be said now, in this second; if so it counts as said.
    pub fn is_due(&self, now: i64) -> bool {
        let update = |last| (now.saturating_sub(last) >= 60 || now < last).then_some(now);
        self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update).is_ok()
    }
}

/// No code that holds these locks can leave something half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::mpsc::channel;
    use std::{env, fs, process, thread};

    use super::*;

    /// A new directory under the temporary one, removed when dropped.
    pub fn directory() -> Directory {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("ringx-error-log-{}-{number}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    pub struct Directory(PathBuf);

    impl Directory {
        pub fn join(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn once_a_minute() {
        let said = OnceAMinute::new();
        let times = [100, 100, 159, 160, 219, 100, 159, 160];
        let due = times.map(|now| said.is_due(now));
        assert_eq!(due, [true, false, false, true, false, true, false, true]);
    }

    #[test]
    fn one_path_is_one_file() {
        let directory = directory();
        let files = Files::default();
        let file = files.open(&directory.join("a")).unwrap();
        assert!(Arc::ptr_eq(&file, &files.open(&directory.join("a")).unwrap()));
        assert!(!Arc::ptr_eq(&file, &files.open(&directory.join("b")).unwrap()));
        drop(file);
        files.open(&directory.join("c")).unwrap();
        assert_eq!(lock(&files.files).len(), 1, "files that nobody holds are forgotten");
    }

    #[test]
    fn a_file_that_cannot_be_opened() {
        let error = Files::default().open(Path::new("/nowhere/error.log")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "open() \"/nowhere/error.log\" failed (2: No such file or directory)"
        );
    }

    #[test]
    fn reopening_reaches_other_threads() {
        let directory = directory();
        let (path, old) = (directory.join("error.log"), directory.join("error.log.1"));
        let files = Files::default();
        let file = files.open(&path).unwrap();

        let (go, wait) = channel::<()>();
        let (done, written) = channel();
        let writer = thread::spawn(move || {
            for number in 0.. {
                file.write(format!("{number}\n").as_bytes(), 0);
                done.send(()).unwrap();
                if wait.recv().is_err() {
                    break;
                }
            }
        });
        written.recv().unwrap();
        fs::rename(&path, &old).unwrap();
        go.send(()).unwrap();
        written.recv().unwrap();
        assert!(files.reopen().is_empty());
        go.send(()).unwrap();
        written.recv().unwrap();
        drop(go);
        writer.join().unwrap();

        assert_eq!(fs::read_to_string(&old).unwrap(), "0\n1\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "2\n");
    }

    #[test]
    fn a_file_without_a_name_is_stderr() {
        let files = Files::default();
        let file = files.open(Path::new("")).unwrap();
        assert!(file.file.is_none());
        assert!(files.reopen().is_empty());
    }

    #[test]
    fn a_failed_reopening_keeps_the_old_file() {
        let directory = directory();
        let path = directory.join("error.log");
        let files = Files::default();
        let file = files.open(&path).unwrap();
        fs::rename(&path, directory.join("old")).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(files.reopen().len(), 1);
        file.write(b"line\n", 0);
        assert_eq!(fs::read(directory.join("old")).unwrap(), b"line\n");
    }

    #[test]
    fn a_full_disk_pauses_the_log_for_the_second() {
        let file = Files::default().open(Path::new("/dev/full")).unwrap();
        file.write(b"line\n", 5);
        assert_eq!(file.full_at.load(Ordering::Relaxed), 5);
        file.write(b"line\n", 6);
        assert_eq!(file.full_at.load(Ordering::Relaxed), 6);
    }
}
