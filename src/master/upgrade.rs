//! The binary upgrade, as nginx does it (USR2): a new process, the successor, is started from the
//! same path with the listening sockets, and serves beside this one until one of the two is told to
//! quit. Sockets are shared until then: what one of them closes, the other goes on with.

pub mod command;
pub mod inherited;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, getppid};

use super::courier::{self, Courier};
use super::handover::{self, Handover, Message};
use super::listening::Listening;
use super::notify::Notifier;
use super::pid_file::PidFile;
use super::report::Report;
use crate::channel::Events;
use crate::error_log::{Errno, Level};
use crate::http::tunnel::parcel;
use crate::os;
use inherited::{ACTIVATED, Origin, SOCKETS};

/// The processes that have the same listening sockets as this one.
#[derive(Debug, Default)]
pub struct Relatives {
    predecessor: Option<Pid>,
    has_successor: AtomicBool,
}

impl Relatives {
    pub fn new(predecessor: Option<Pid>) -> Arc<Self> {
        Arc::new(Relatives { predecessor, has_successor: AtomicBool::new(false) })
    }

    /// Whether the old binary's process is still there.
    pub fn have_predecessor(&self) -> bool {
        self.predecessor().is_some()
    }

    /// Whoever is gone is nobody's parent.
    fn predecessor(&self) -> Option<Pid> {
        self.predecessor.filter(|_| getppid() == self.predecessor)
    }

    pub fn have_successor(&self) -> bool {
        self.has_successor.load(Ordering::Relaxed)
    }
}

/// What the master knows about the process before it and the one after it.
#[derive(Debug)]
pub struct Upgrade {
    origin: Origin,
    /// Who started this process; `None` when it has gone into the background by itself.
    parent: Option<Pid>,
    relatives: Arc<Relatives>,
    successor: Option<Successor>,
    /// The line to the predecessor.
    handover: Option<Handover>,
    has_said_ready: bool,
}

/// A new binary's process.
#[derive(Debug)]
struct Successor {
    process: Child,
    courier: Courier,
    serves: bool,
    /// It serves, and understands the tunnels of this one.
    takes_tunnels: bool,
}

impl Upgrade {
    /// `is_detached`: the process has gone into the background by itself.
    pub fn new(
        origin: Origin,
        relatives: Arc<Relatives>,
        handover: Option<Handover>,
        is_detached: bool,
    ) -> Self {
        let parent = if is_detached { None } else { getppid() };
        Upgrade { origin, parent, relatives, successor: None, handover, has_said_ready: false }
    }

    pub fn has_successor(&self) -> bool {
        self.successor.is_some()
    }

    /// The old binary's process, as long as it is there.
    pub fn predecessor(&self) -> Option<u32> {
        self.relatives.predecessor().map(|pid| pid.as_raw_nonzero().get().cast_unsigned())
    }

    /// Whether the new binary's process is there and does not serve yet.
    pub fn is_successor_starting(&self) -> bool {
        self.successor.as_ref().is_some_and(|successor| !successor.serves)
    }

    /// The new binary's process, from its start on.
    pub fn successor(&self) -> Option<u32> {
        self.successor.as_ref().map(|successor| successor.process.id())
    }

    /// Whether there is to be no successor now: there is one, or the predecessor is still there. A
    /// process in the foreground has none either, as whoever started it would miss it; unless that is
    /// a service manager, which is told who takes over.
    pub fn is_blocked(&self, has_manager: bool) -> bool {
        let is_missed = !has_manager && self.parent.is_some() && getppid() == self.parent;
        self.has_successor() || self.relatives.have_predecessor() || is_missed
    }

    /// Starts a new binary. When that fails, everything is as it was, and the log says why.
    pub fn begin(
        &mut self,
        listening: &Listening,
        pid_file: &mut PidFile,
        events: &Events,
        notifier: &Notifier,
        report: &Report,
    ) {
        report.notice(format_args!("changing binary"));
        let name = self.name();
        if let Err(e) = pid_file.retire() {
            let renaming = renaming(pid_file.path(), "to", &pid_file.retired_path());
            return report.say(
                Level::Alert,
                format_args!(
                    "{renaming} failed before executing new binary process \"{name}\" ({})",
                    Errno::of(&e)
                ),
            );
        }
        match self.start(listening, events, notifier) {
            Ok(successor) => {
                report.notice(format_args!("start new binary process {}", successor.process.id()));
                self.relatives.has_successor.store(true, Ordering::Relaxed);
                self.successor = Some(successor);
            }
            Err(e) => {
                let error = Errno::of(&e);
                report.say(
                    Level::Alert,
                    format_args!(
                        "execve() failed while executing new binary process \"{name}\" ({error})"
                    ),
                );
                let after = "an attempt to execute new binary process";
                restore(pid_file, after, &name, "", report);
            }
        }
    }

    fn start(
        &self,
        listening: &Listening,
        events: &Events,
        notifier: &Notifier,
    ) -> io::Result<Successor> {
        let (ours, theirs) = Handover::pair()?;
        let sockets = listening.inheritance();
        let mut command = Command::new(self.origin.program()?);
        command
            .arg0(self.origin.argument_zero())
            .args(self.origin.arguments.iter().skip(1))
            .env_clear()
            .envs(self.origin.environment.iter().map(|(name, value)| (name, value)))
            .envs(notifier.environment())
            .env(SOCKETS, list(sockets.iter()))
            .env(handover::VARIABLE, theirs.number().to_string());
        let mut activated = sockets.iter().filter(|(_, is_activated)| *is_activated).peekable();
        if activated.peek().is_some() {
            command.env(ACTIVATED, list(activated));
        }
        if let Ok(directory) = &self.origin.directory {
            command.current_dir(directory);
        }
        let descriptors: Vec<BorrowedFd<'_>> =
            sockets.iter().map(|(socket, _)| *socket).chain([theirs.as_fd()]).collect();
        let courier = Courier::start(ours, events.clone())?;
        let process = os::spawn_heir(&mut command, &descriptors)?;
        Ok(Successor { process, courier, serves: false, takes_tunnels: false })
    }

    /// A child has changed: how the successor has ended, if it has. The log says so, and the pid file
    /// is this process's again.
    pub fn reap(&mut self, pid_file: &mut PidFile, report: &Report) -> Option<ExitStatus> {
        let successor = self.successor.as_mut()?;
        let status = successor.process.try_wait().ok().flatten()?;
        let (level, text) = ending(status);
        let id = successor.process.id();
        report.say(level, format_args!("new binary process {id} {text}"));
        restore(pid_file, "the new binary process", &self.name(), " exited", report);
        self.relatives.has_successor.store(false, Ordering::Relaxed);
        self.successor = None;
        Some(status)
    }

    /// The successor serves, and takes over tunnels of this version. Answers its process.
    pub fn welcome(&mut self, tunnels: u16, report: &Report) -> Option<u32> {
        let successor = self.successor.as_mut()?;
        successor.serves = true;
        successor.takes_tunnels = tunnels == parcel::VERSION;
        let id = successor.process.id();
        if successor.takes_tunnels {
            report.notice(format_args!("new binary process {id} is ready"));
        } else {
            report.say(
                Level::Warn,
                format_args!(
                    "new binary process {id} is ready, and takes tunnels of version {tunnels} only: \
                     those of version {} stay here",
                    parcel::VERSION
                ),
            );
        }
        Some(id)
    }

    /// Who takes tunnels to the successor, and its process; `None` when it does not take them.
    pub fn courier(&self) -> Option<(&Courier, u32)> {
        let successor = self.successor.as_ref().filter(|successor| successor.takes_tunnels)?;
        Some((&successor.courier, successor.process.id()))
    }

    /// A hand-over has failed: the successor gets no more.
    pub fn keep_tunnels(&mut self) {
        if let Some(successor) = &mut self.successor {
            successor.takes_tunnels = false;
        }
    }

    /// Answers the predecessor, which lets go of its tunnels when it hears that they run here; false
    /// when it does not hear it any more.
    pub fn take_tunnels(&self) -> bool {
        self.handover.as_ref().is_some_and(|line| line.send(Message::Running).is_ok())
    }

    /// This process is no place for tunnels: the predecessor keeps them.
    pub fn refuse_tunnels(&self) {
        if let Some(line) = &self.handover {
            line.close();
        }
    }

    /// Tells the predecessor, once, that this process serves, and listens to it.
    pub fn say_ready(&mut self, events: &Events) {
        if let Some(handover) = &self.handover
            && !std::mem::replace(&mut self.has_said_ready, true)
        {
            let ready = Message::Ready { tunnels: parcel::VERSION };
            // It is gone, or does not listen: nobody to tell.
            let _ = courier::receive(handover, events.clone()).and_then(|()| handover.send(ready));
        }
    }

    fn name(&self) -> String {
        self.origin.argument_zero().to_string_lossy().into_owned()
    }
}

/// `6;7;`
fn list<'a>(sockets: impl Iterator<Item = &'a (BorrowedFd<'a>, bool)>) -> String {
    sockets.fold(String::new(), |list, (socket, _)| format!("{list}{};", socket.as_raw_fd()))
}

impl Origin {
    fn argument_zero(&self) -> &OsStr {
        self.arguments.first().map_or(OsStr::new(""), OsString::as_os_str)
    }

    /// What is executed: a path is one of the directory that the process was started in. A bare name
    /// is left to be found by `PATH`, as it was then.
    fn program(&self) -> io::Result<PathBuf> {
        let name = Path::new(self.argument_zero());
        if name.is_absolute() || name.components().count() == 1 && !self.has_slash() {
            return Ok(name.to_owned());
        }
        match &self.directory {
            Ok(directory) => Ok(directory.join(name)),
            Err(e) => Err(io::Error::from(e.kind())),
        }
    }

    fn has_slash(&self) -> bool {
        self.argument_zero().as_encoded_bytes().contains(&b'/')
    }
}

/// `rename() /p/nginx.pid to /p/nginx.pid.oldbin`
fn renaming(from: &Path, how: &str, to: &Path) -> String {
    format!("rename() {} {how} {}", from.display(), to.display())
}

/// Makes the pid file this process's again after `after "NAME"then`.
fn restore(pid_file: &mut PidFile, after: &str, name: &str, then: &str, report: &Report) {
    let Err(e) = pid_file.restore() else { return };
    let renaming = renaming(&pid_file.retired_path(), "back to", pid_file.path());
    report.say(
        Level::Alert,
        format_args!("{renaming} failed after {after} \"{name}\"{then} ({})", Errno::of(&e)),
    );
}

/// How a process has ended.
fn ending(status: ExitStatus) -> (Level, String) {
    match status.signal() {
        Some(number) => {
            let core = if status.core_dumped() { " (core dumped)" } else { "" };
            (Level::Alert, format!("exited on signal {number}{core}"))
        }
        None => (Level::Notice, format!("exited with code {}", status.code().unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(name: &str) -> Origin {
        Origin {
            arguments: vec![name.into(), "-q".into()],
            environment: Vec::new(),
            directory: Ok("/start".into()),
        }
    }

    #[test]
    fn the_program_is_found_where_it_was() {
        let program = |name: &str| origin(name).program().unwrap();
        assert_eq!(program("/usr/sbin/ringx"), Path::new("/usr/sbin/ringx"));
        assert_eq!(program("./ringx"), Path::new("/start/./ringx"));
        assert_eq!(program("target/ringx"), Path::new("/start/target/ringx"));
        assert_eq!(program("ringx"), Path::new("ringx"));
    }

    #[test]
    fn the_texts_are_nginxs() {
        let exited = ExitStatus::from_raw(1 << 8);
        assert_eq!(ending(exited), (Level::Notice, "exited with code 1".to_owned()));
        let killed = ExitStatus::from_raw(9);
        assert_eq!(ending(killed), (Level::Alert, "exited on signal 9".to_owned()));
        let dumped = ExitStatus::from_raw(0x80 | 0xb);
        assert_eq!(ending(dumped), (Level::Alert, "exited on signal 11 (core dumped)".to_owned()));
        assert_eq!(
            renaming(Path::new("/p/x.pid"), "to", Path::new("/p/x.pid.oldbin")),
            "rename() /p/x.pid to /p/x.pid.oldbin"
        );
    }

    #[test]
    fn a_parent_that_is_no_predecessor_is_no_relative() {
        assert!(!Relatives::new(None).have_predecessor());
        assert!(Relatives::new(getppid()).have_predecessor());
        assert!(!Relatives::new(Pid::from_raw(i32::MAX)).have_predecessor());
    }

    #[test]
    fn in_the_foreground_there_is_no_successor() {
        let upgrade =
            |is_detached| Upgrade::new(origin("ringx"), Relatives::new(None), None, is_detached);
        assert!(upgrade(false).is_blocked(false));
        assert!(!upgrade(true).is_blocked(false));
    }

    #[test]
    fn a_service_manager_follows_but_not_beside_a_predecessor() {
        let upgrade = |parent| Upgrade::new(origin("ringx"), Relatives::new(parent), None, false);
        assert!(!upgrade(None).is_blocked(true));
        assert!(upgrade(getppid()).is_blocked(true));
    }
}
