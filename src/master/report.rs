//! Where the master says what it does: as long as it starts, on the terminal too.

use std::fmt;
use std::path::Path;

use crate::error_log::{Destination, Files, Level, Log, OpenError, Target};

/// The master's log, and the terminal's view of it.
#[derive(Debug)]
pub struct Report {
    log: Log,
    /// Standard error is one of the log's own outputs: nothing is to be said there twice.
    log_is_stderr: bool,
    /// Warnings and worse, while the process starts.
    terminal: Option<Log>,
}

impl Report {
    /// Before a configuration is read: the log of `-e`, and the terminal.
    pub fn first(destination: &Destination, files: &Files) -> Self {
        let terminal = Log::startup(None);
        let target = |destination| [Target { destination, level: Level::Notice }];
        let opened = Log::open(&target(destination.clone()), files);
        let log_is_stderr = *destination == Destination::Stderr || opened.is_err();
        let log = opened.unwrap_or_else(|error| {
            terminal.say(Level::Alert, format_args!("could not open error log file: {error}"));
            let stderr = Log::open(&target(Destination::Stderr), files);
            stderr.unwrap_or_else(|_| terminal.clone())
        });
        Report { log, log_is_stderr, terminal: Some(terminal) }
    }

    /// From now on: the logs that the configuration names.
    pub fn follow(&mut self, targets: &[Target], files: &Files) -> Result<(), OpenError> {
        self.log = Log::open(targets, files)?;
        self.log_is_stderr = targets.iter().any(|target| target.destination == Destination::Stderr);
        Ok(())
    }

    /// The start is over: the terminal is told nothing more.
    pub fn leave_terminal(&mut self) {
        self.terminal = None;
    }

    pub fn say(&self, level: Level, text: fmt::Arguments<'_>) {
        self.log.say(level, text);
        if let Some(terminal) = &self.terminal
            && !self.log_is_stderr
        {
            terminal.say(level, text);
        }
    }

    pub fn notice(&self, text: fmt::Arguments<'_>) {
        self.say(Level::Notice, text);
    }
}

/// The file that stands for standard error once the process runs: the first log, unless one of them
/// is standard error itself.
pub fn first_file(targets: &[Target]) -> Option<&Path> {
    let mut file = None;
    for target in targets {
        match &target.destination {
            Destination::Stderr => return None,
            Destination::File(path) => file = file.or(Some(path.as_path())),
            Destination::Syslog(_) => {}
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_is_replaced_unless_it_is_a_log() {
        let file = |name: &str| Target {
            destination: Destination::File(name.into()),
            level: Level::Error,
        };
        let stderr = Target { destination: Destination::Stderr, level: Level::Error };
        assert_eq!(first_file(&[file("/a"), file("/b")]), Some(Path::new("/a")));
        assert_eq!(first_file(&[file("/a"), stderr]), None);
        assert_eq!(first_file(&[]), None);
    }
}
