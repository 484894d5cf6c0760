//! The signals that operators send, and the thread that waits for them.

use std::ffi::c_int;
use std::fmt;
use std::io;
use std::thread;

use crate::channel::{Event, Events};
use crate::os::{self, BlockedSignals};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// HUP: load the configuration again.
    Reload,
    /// USR1: open all logs anew.
    ReopenLogs,
    /// USR2: hand over to another binary.
    Upgrade,
    /// WINCH: let the shards finish, and stay.
    StopShards,
    /// QUIT: let the shards finish, then end.
    Quit,
    /// TERM and INT: end now.
    Exit,
    /// CHLD: see what has become of the new binary.
    Reap,
}

/// A signal as the log calls it.
#[derive(Debug)]
pub struct Signal {
    pub number: c_int,
    name: &'static str,
    pub order: Order,
    /// What is done about it; empty: nothing is said of that.
    text: &'static str,
}

/// Whether a signal is obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Obeyed,
    /// It means nothing to this process.
    Unheard,
    /// It comes at the wrong time.
    Ignored,
}

const fn signal(number: c_int, name: &'static str, order: Order, text: &'static str) -> Signal {
    Signal { number, name, order, text }
}

/// PIPE is not here: the standard library has it ignored, so that a write fails instead.
static SIGNALS: [Signal; 8] = [
    signal(libc::SIGHUP, "SIGHUP", Order::Reload, "reconfiguring"),
    signal(libc::SIGUSR1, "SIGUSR1", Order::ReopenLogs, "reopening logs"),
    signal(libc::SIGUSR2, "SIGUSR2", Order::Upgrade, "changing binary"),
    signal(libc::SIGWINCH, "SIGWINCH", Order::StopShards, "stop accepting connections"),
    signal(libc::SIGQUIT, "SIGQUIT", Order::Quit, "shutting down"),
    signal(libc::SIGTERM, "SIGTERM", Order::Exit, "exiting"),
    signal(libc::SIGINT, "SIGINT", Order::Exit, "exiting"),
    signal(libc::SIGCHLD, "SIGCHLD", Order::Reap, ""),
];

impl Signal {
    pub fn of(number: c_int) -> Option<&'static Signal> {
        SIGNALS.iter().find(|signal| signal.number == number)
    }
}

/// What the log says of a signal that has come: `signal 1 (SIGHUP) received from 77, reconfiguring`
pub struct Received<'a> {
    pub signal: &'a Signal,
    pub sender: Option<u32>,
    pub answer: Answer,
}

impl fmt::Display for Received<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Signal { number, name, text, .. } = self.signal;
        write!(f, "signal {number} ({name}) received")?;
        if let Some(sender) = self.sender {
            write!(f, " from {sender}")?;
        }
        match self.answer {
            Answer::Unheard => Ok(()),
            Answer::Ignored => f.write_str(", ignoring"),
            Answer::Obeyed if text.is_empty() => Ok(()),
            Answer::Obeyed => write!(f, ", {text}"),
        }
    }
}

/// Keeps the signals for [`forward`]. To be called before there is a second thread: one that does
/// not block them would be ended by them.
pub fn block() -> io::Result<BlockedSignals> {
    BlockedSignals::block(&SIGNALS.each_ref().map(|signal| signal.number))
}

/// Starts the thread that makes events of signals.
pub fn forward(signals: BlockedSignals, events: Events) -> io::Result<()> {
    let wait = move || {
        // It makes events and nothing else: no right that the master has is of use to it.
        let _ = os::clear_capabilities();
        while let Ok(received) = signals.wait() {
            events.send(Event::Signal { number: received.number, sender: received.sender });
        }
    };
    thread::Builder::new().name("ringx signals".to_owned()).spawn(wait).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(number: c_int, sender: Option<u32>, answer: Answer) -> String {
        Received { signal: Signal::of(number).unwrap(), sender, answer }.to_string()
    }

    #[test]
    fn the_texts_are_nginxs() {
        let obeyed = |number, sender| said(number, sender, Answer::Obeyed);
        assert_eq!(obeyed(1, Some(77)), "signal 1 (SIGHUP) received from 77, reconfiguring");
        assert_eq!(obeyed(2, None), "signal 2 (SIGINT) received, exiting");
        assert_eq!(obeyed(12, Some(7)), "signal 12 (SIGUSR2) received from 7, changing binary");
        assert_eq!(obeyed(17, Some(7)), "signal 17 (SIGCHLD) received from 7");
        let unheard = said(28, Some(7), Answer::Unheard);
        assert_eq!(unheard, "signal 28 (SIGWINCH) received from 7");
        let ignored = said(12, Some(7), Answer::Ignored);
        assert_eq!(ignored, "signal 12 (SIGUSR2) received from 7, ignoring");
        assert!(Signal::of(libc::SIGPIPE).is_none());
    }
}
