//! The pid file: written by the master, read by `-s`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

use super::failure::Failure;
use crate::error_log::{Errno, Level, OpenError};

/// This process's pid file. Removed when dropped.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Another process's, or not there.
    Planned,
    Written,
    /// Renamed to make way for that of a new binary.
    Retired,
}

impl PidFile {
    /// One that [`PidFile::write`] writes later.
    pub fn planned(path: &Path) -> Self {
        PidFile { path: path.to_owned(), stage: Stage::Planned }
    }

    /// Writes the process's number and a line feed, unless that has been done.
    pub fn write(&mut self) -> Result<(), Failure> {
        if self.stage == Stage::Planned {
            let mut file = open(&self.path, true)?;
            self.stage = Stage::Written;
            let number = format!("{}\n", std::process::id());
            file.write_all(number.as_bytes()).map_err(Failure::path("write", &self.path))?;
        }
        Ok(())
    }

    pub fn written(path: &Path) -> Result<Self, Failure> {
        let mut file = Self::planned(path);
        file.write()?;
        Ok(file)
    }

    /// What the configuration calls it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where it is once it has made way.
    pub fn retired_path(&self) -> PathBuf {
        retired(&self.path)
    }

    /// Makes way for another process's file.
    pub fn retire(&mut self) -> io::Result<()> {
        fs::rename(&self.path, self.retired_path())?;
        self.stage = Stage::Retired;
        Ok(())
    }

    /// Takes its place again, which may be taken by the file of a process that is gone.
    pub fn restore(&mut self) -> io::Result<()> {
        if self.stage == Stage::Retired {
            fs::rename(self.retired_path(), &self.path)?;
            self.stage = Stage::Written;
        }
        Ok(())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Gone already, or not ours to remove any more: nobody to tell.
        let _ = match self.stage {
            Stage::Planned => Ok(()),
            Stage::Written => fs::remove_file(&self.path),
            Stage::Retired => fs::remove_file(self.retired_path()),
        };
    }
}

/// `PIDFILE.oldbin`
pub fn retired(path: &Path) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(".oldbin");
    path.into()
}

/// Sees whether the file could be written, as `-t` does: one that is not there is made, empty.
pub fn try_out(path: &Path) -> Result<(), Failure> {
    open(path, false).map(drop)
}

fn open(path: &Path, truncate: bool) -> Result<File, Failure> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(truncate).mode(0o644).open(path);
    file.map_err(|source| Failure::Open(OpenError { path: path.to_owned(), source }))
}

/// Why `-s` reached nobody.
#[derive(Debug, Error)]
pub enum SignalError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("read() \"{}\" failed ({})", path.display(), Errno::of(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("invalid PID number \"{number}\" in \"{}\"", path.display())]
    Invalid { number: String, path: PathBuf },
    #[error("kill({pid}, {signal}) failed ({})", Errno::of(source))]
    Kill { pid: i32, signal: i32, source: io::Error },
}

impl SignalError {
    pub fn level(&self) -> Level {
        match self {
            Self::Open(_) | Self::Invalid { .. } => Level::Error,
            Self::Read { .. } | Self::Kill { .. } => Level::Alert,
        }
    }
}

/// Sends a signal to the process that the file names.
pub fn signal(path: &Path, signal: Signal) -> Result<(), SignalError> {
    kill(read(path)?, signal)
}

/// The process that the file names.
pub fn read(path: &Path) -> Result<Pid, SignalError> {
    let mut file =
        File::open(path).map_err(|source| OpenError { path: path.to_owned(), source })?;
    let mut content = Vec::new();
    io::Read::read_to_end(&mut file, &mut content)
        .map_err(|source| SignalError::Read { path: path.to_owned(), source })?;
    pid_of(&content).map_err(|number| SignalError::Invalid { number, path: path.to_owned() })
}

pub fn kill(pid: Pid, signal: Signal) -> Result<(), SignalError> {
    kill_process(pid, signal).map_err(|source| SignalError::Kill {
        pid: pid.as_raw_nonzero().get(),
        signal: signal.as_raw(),
        source: source.into(),
    })
}

/// The process number in a pid file's content, or the text that is none. Zero is none either: to
/// `kill` it stands for the caller's own group.
fn pid_of(content: &[u8]) -> Result<Pid, String> {
    let number = String::from_utf8_lossy(content);
    let number = number.trim_end_matches(['\r', '\n']);
    if number.bytes().all(|byte| byte.is_ascii_digit())
        && let Ok(raw) = number.parse()
        && let Some(pid) = Pid::from_raw(raw)
    {
        return Ok(pid);
    }
    Err(number.to_owned())
}

/// Any content of a pid file is a number that a process can have, or is refused.
pub fn fuzz_pid(data: &[u8]) {
    match pid_of(data) {
        Ok(pid) => assert!(pid.as_raw_nonzero().get() > 0),
        Err(number) => assert!(!number.ends_with('\n')),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(content: &str) -> String {
        match pid_of(content.as_bytes()) {
            Ok(pid) => pid.as_raw_nonzero().to_string(),
            Err(number) => {
                let path = PathBuf::from("/p/nginx.pid");
                SignalError::Invalid { number, path }.to_string()
            }
        }
    }

    #[test]
    fn contents_of_a_pid_file() {
        assert_eq!(said("123\n"), "123");
        assert_eq!(said("123\r\n\n"), "123");
        assert_eq!(said("123"), "123");
        assert_eq!(said(""), "invalid PID number \"\" in \"/p/nginx.pid\"");
        assert_eq!(said("12a\n"), "invalid PID number \"12a\" in \"/p/nginx.pid\"");
        assert_eq!(said("-1\n"), "invalid PID number \"-1\" in \"/p/nginx.pid\"");
        assert_eq!(said("0\n"), "invalid PID number \"0\" in \"/p/nginx.pid\"");
        assert_eq!(said("4294967297"), "invalid PID number \"4294967297\" in \"/p/nginx.pid\"");
    }

    #[test]
    fn a_missing_file_and_a_process_that_is_gone() {
        let missing = signal(Path::new("/nowhere/nginx.pid"), Signal::TERM).unwrap_err();
        assert_eq!(missing.level(), Level::Error);
        assert_eq!(
            missing.to_string(),
            "open() \"/nowhere/nginx.pid\" failed (2: No such file or directory)"
        );
        let gone = SignalError::Kill {
            pid: 12,
            signal: Signal::TERM.as_raw(),
            source: io::Error::from_raw_os_error(libc::ESRCH),
        };
        assert_eq!(gone.level(), Level::Alert);
        assert_eq!(gone.to_string(), "kill(12, 15) failed (3: No such process)");
    }

    #[test]
    fn the_file_goes_with_its_owner() {
        let path = std::env::temp_dir().join(format!("ringx-pid-{}", std::process::id()));
        try_out(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        let mut file = PidFile::planned(&path);
        drop(PidFile::planned(&path));
        assert!(path.exists(), "it is not its file yet");
        file.write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        try_out(&path).unwrap();
        assert!(fs::metadata(&path).unwrap().len() > 0, "a test leaves the content");

        file.retire().unwrap();
        assert!(!path.exists());
        drop(PidFile::written(&path).unwrap());
        fs::write(&path, "left behind").unwrap();
        file.restore().unwrap();
        assert_eq!(read(&path).unwrap(), rustix::process::getpid());
        file.retire().unwrap();
        let old = file.retired_path();
        assert!(old.to_str().unwrap().ends_with(".oldbin") && old.exists());
        drop(file);
        assert!(!path.exists() && !old.exists());
    }

    proptest! {
        #[test]
        fn any_content(data in proptest::collection::vec(any::<u8>(), 0..12)) {
            fuzz_pid(&data);
        }
    }
}
