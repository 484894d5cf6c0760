//! Whether a uwsgi server can be asked again on a connection (`uwsgi_keepalive`; uwsgi, section 9.1): what
//! it says, and what it does then. Pure.

use std::fmt;

/// So many first connections must speak against a server, and none for it.
const ENOUGH: u32 = 8;

/// What one upstream's uwsgi servers have shown on one shard.
#[derive(Debug, Default)]
pub struct Trial {
    /// Responses that did not let the connection be kept.
    refusals: u32,
    /// Connections that were closed before they could be used a second time.
    closed: u32,
    /// A connection has been kept.
    has_kept: bool,
    /// A connection was used again, and answered.
    has_reused: bool,
    is_told: bool,
}

/// What is to be told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// `on`: no response has ever said keep-alive.
    NeverSaysSo,
    /// `assume`: all that was kept has been closed. Nothing is kept any more.
    Closes,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::NeverSaysSo => {
                "\"uwsgi_keepalive\" has no effect: the server does not say \"Connection: keep-alive\""
            }
            Verdict::Closes => {
                "\"uwsgi_keepalive assume\" is given up: the server closes connections after one response"
            }
        })
    }
}

impl Trial {
    pub fn was_kept(&mut self) {
        self.has_kept = true;
    }

    pub fn was_refused(&mut self) {
        self.refusals = self.refusals.saturating_add(1);
    }

    pub fn was_closed(&mut self) {
        self.closed = self.closed.saturating_add(1);
    }

    pub fn was_reused(&mut self) {
        self.has_reused = true;
    }

    /// Whether keeping connections has turned out to be of no use.
    pub fn is_hopeless(&self) -> bool {
        self.closed >= ENOUGH && !self.has_reused
    }

    /// Once, when there is something to tell.
    pub fn verdict(&mut self) -> Option<Verdict> {
        let verdict = if self.is_hopeless() {
            Verdict::Closes
        } else if self.refusals >= ENOUGH && !self.has_kept {
            Verdict::NeverSaysSo
        } else {
            return None;
        };
        (!std::mem::replace(&mut self.is_told, true)).then_some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_never_says_so_is_told_of_once() {
        let mut trial = Trial::default();
        for _ in 1..ENOUGH {
            trial.was_refused();
            assert_eq!(trial.verdict(), None);
        }
        trial.was_refused();
        assert_eq!((trial.verdict(), trial.verdict()), (Some(Verdict::NeverSaysSo), None));
        assert!(!trial.is_hopeless());
    }

    #[test]
    fn one_that_says_so_now_and_then_is_not() {
        let mut trial = Trial::default();
        trial.was_kept();
        (0..100).for_each(|_| trial.was_refused());
        assert_eq!(trial.verdict(), None);
    }

    #[test]
    fn one_that_closes_all_the_same_is_given_up() {
        let mut trial = Trial::default();
        (0..ENOUGH).for_each(|_| trial.was_closed());
        assert!(trial.is_hopeless());
        assert_eq!(trial.verdict(), Some(Verdict::Closes));
    }

    #[test]
    fn one_that_has_been_asked_twice_may_close() {
        let mut trial = Trial::default();
        trial.was_reused();
        (0..100).for_each(|_| trial.was_closed());
        assert!(!trial.is_hopeless() && trial.verdict().is_none());
    }
}
