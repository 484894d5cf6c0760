//! `-s upgrade`, which nginx does not have: starts the new binary, waits until it serves, and lets the
//! old process quit.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, test_kill_process};
use thiserror::Error;

use crate::error_log::Level;
use crate::master::pid_file::{self, SignalError, kill, retired};

/// How long the old process may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// How long the new one may take to serve: it may wait for name servers, and for addresses that are
/// busy.
const SERVE: Duration = Duration::from_secs(60);
/// Between two looks at the pid file.
const PAUSE: Duration = Duration::from_millis(20);

/// Why the old process was not told to quit.
#[derive(Debug, Error)]
pub enum UpgradeError {
    #[error(transparent)]
    Signal(#[from] SignalError),
    #[error("an upgrade is under way: \"{}\" names process {old}", path.display())]
    UnderWay { old: Pid, path: PathBuf },
    #[error("process {old} has not begun to change its binary, see its error log")]
    NotBegun { old: Pid },
    #[error("the new binary process has failed, process {old} goes on, see the error log")]
    Failed { old: Pid },
    #[error("process {old} has ended")]
    Ended { old: Pid },
    #[error("the new binary process does not serve yet, process {old} goes on beside it")]
    Slow { old: Pid },
}

impl UpgradeError {
    pub fn level(&self) -> Level {
        match self {
            Self::Signal(error) => error.level(),
            _ => Level::Error,
        }
    }
}

/// Who has taken over from whom.
#[derive(Debug, PartialEq, Eq, Error)]
#[error("process {new} serves, process {old} finishes and quits")]
pub struct Replaced {
    pub old: Pid,
    pub new: Pid,
}

/// Replaces the process that the file names by a new one of its binary.
pub fn upgrade(path: &Path) -> Result<Replaced, UpgradeError> {
    let old = pid_file::read(path)?;
    let retired = retired(path);
    if let Ok(old) = pid_file::read(&retired)
        && lives(old)
    {
        return Err(UpgradeError::UnderWay { old, path: retired });
    }
    let before = changed(path);
    kill(old, Signal::USR2)?;
    let new = wait_for(old, path, before)?;
    kill(old, Signal::QUIT)?;
    Ok(Replaced { old, new })
}

/// Waits for a file that names another process. A ringx writes it when all its shards serve.
fn wait_for(old: Pid, path: &Path, before: Option<Change>) -> Result<Pid, UpgradeError> {
    let begun_at = Instant::now();
    let (mut has_begun, mut is_back) = (false, false);
    loop {
        // Looked at before it is read: between the two it may make way for the new one, or be that.
        let now = changed(path);
        match pid_file::read(path) {
            Ok(pid) if pid == old => {
                // Renamed and renamed back: the file is the same one, but not unchanged. For a moment it
                // is that also while it is being renamed.
                let was_back = is_back;
                is_back = has_begun || now.is_some() && now != before;
                if is_back && was_back {
                    return Err(UpgradeError::Failed { old });
                }
            }
            Ok(new) if lives(new) => return Ok(new),
            // Being written, or left by one that is gone.
            Ok(_) | Err(_) => {}
        }
        // One that was there before names a process that is gone.
        has_begun = has_begun || pid_file::read(&retired(path)).is_ok_and(|pid| pid == old);
        match begun_at.elapsed() {
            _ if !lives(old) => return Err(UpgradeError::Ended { old }),
            waited if !has_begun && waited > BEGIN => return Err(UpgradeError::NotBegun { old }),
            waited if waited > SERVE => return Err(UpgradeError::Slow { old }),
            _ => thread::sleep(PAUSE),
        }
    }
}

/// A file's number, and when its name was last changed: seconds and nanoseconds.
type Change = (u64, i64, i64);

fn changed(path: &Path) -> Option<Change> {
    fs::metadata(path).ok().map(|file| (file.ino(), file.ctime(), file.ctime_nsec()))
}

/// One that may not be sent a signal is there.
fn lives(pid: Pid) -> bool {
    !matches!(test_kill_process(pid), Err(e) if io::Error::from(e).raw_os_error() == Some(libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::getpid;

    #[test]
    fn who_is_there_and_who_is_not() {
        assert!(lives(getpid()) && lives(Pid::INIT));
        assert!(!lives(Pid::from_raw(i32::MAX).unwrap()));
    }

    #[test]
    fn a_file_that_was_renamed_and_renamed_back_has_changed() {
        let path = std::env::temp_dir().join(format!("ringx-renamed-{}", std::process::id()));
        fs::write(&path, "1\n").unwrap();
        let before = changed(&path);
        assert_eq!(changed(&path), before);
        let until = Instant::now() + Duration::from_secs(5);
        while changed(&path) == before && Instant::now() < until {
            fs::rename(&path, retired(&path)).unwrap();
            fs::rename(retired(&path), &path).unwrap();
        }
        assert_ne!(changed(&path), before);
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_file_that_makes_way_while_it_is_looked_at_is_no_failure() {
        let path = std::env::temp_dir().join(format!("ringx-makes-way-{}", std::process::id()));
        let old = getpid();
        for _ in 0..100 {
            fs::write(&path, format!("{old}\n")).unwrap();
            let before = changed(&path);
            let start = std::sync::Barrier::new(2);
            let found = thread::scope(|scope| {
                scope.spawn(|| {
                    start.wait();
                    fs::rename(&path, retired(&path)).unwrap();
                    fs::write(&path, "1\n").unwrap();
                });
                start.wait();
                wait_for(old, &path, before)
            });
            assert_eq!(found.unwrap(), Pid::INIT);
        }
        fs::remove_file(&path).unwrap();
        fs::remove_file(retired(&path)).unwrap();
    }

    #[test]
    fn what_a_process_that_was_killed_has_left_is_no_beginning() {
        let path = std::env::temp_dir().join(format!("ringx-left-{}", std::process::id()));
        let old = getpid();
        fs::write(&path, format!("{old}\n")).unwrap();
        fs::write(retired(&path), "2147483647\n").unwrap();
        let before = changed(&path);
        let found = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(PAUSE * 4);
                fs::rename(&path, retired(&path)).unwrap();
                fs::write(&path, "1\n").unwrap();
            });
            wait_for(old, &path, before)
        });
        assert_eq!(found.unwrap(), Pid::INIT);
        fs::remove_file(&path).unwrap();
        fs::remove_file(retired(&path)).unwrap();
    }

    #[test]
    fn an_upgrade_that_is_under_way_is_not_begun_again() {
        let path = std::env::temp_dir().join(format!("ringx-under-way-{}", std::process::id()));
        let error = upgrade(&path).unwrap_err();
        assert!(error.to_string().starts_with("open() \""), "{error}");
        fs::write(&path, "2147483647\n").unwrap();
        fs::write(retired(&path), format!("{}\n", std::process::id())).unwrap();
        let error = upgrade(&path).unwrap_err();
        assert!(matches!(error, UpgradeError::UnderWay { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        fs::remove_file(retired(&path)).unwrap();
    }
}
