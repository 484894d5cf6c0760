//! Whether a uwsgi server can be asked again on a connection (`uwsgi_keepalive`; uwsgi, section 9.1): what
//! its responses say, and what it does then. Pure.

use std::fmt;

use crate::http::modules::uwsgi::UwsgiKeepalive;
use crate::http1::ConnectionOption;
use crate::http1::framing::BodyLength;
use crate::http1::response::ResponseHead;

/// None of so many first responses let its connection be used again: none will.
const REFUSALS_MAX: u32 = 8;
/// So many connections were kept and closed by the server, none used again: keeping was wrong.
const CLOSED_MAX: u32 = 4;

/// What a response says of asking again on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    Allowed,
    Refused(Refusal),
    /// Whatever the server is like, not after this one.
    Impossible,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    Close,
    NotAnnounced,
    /// The close is what ends the response.
    NoLength,
}

impl Reuse {
    /// What the head of a uwsgi response says. Its version proves nothing: uWSGI answers HTTP/1.1 and
    /// closes.
    pub fn of(keepalive: UwsgiKeepalive, head: &ResponseHead, request_is_head: bool) -> Reuse {
        // Some servers send the body of a HEAD.
        if keepalive == UwsgiKeepalive::Off || request_is_head || head.code < 200 {
            return Reuse::Impossible;
        }
        match head.connection {
            ConnectionOption::Close => Reuse::Refused(Refusal::Close),
            ConnectionOption::None if keepalive == UwsgiKeepalive::On => {
                Reuse::Refused(Refusal::NotAnnounced)
            }
            _ if head.body_for(false) == BodyLength::UntilClose => {
                Reuse::Refused(Refusal::NoLength)
            }
            _ => Reuse::Allowed,
        }
    }
}

/// What one upstream's uwsgi servers have shown on one shard.
#[derive(Debug, Default)]
pub struct Trial {
    /// Some response has allowed reuse.
    is_allowed: bool,
    /// A connection was used again, and answered.
    works: bool,
    /// Responses that did not allow it.
    refused: u32,
    /// Connections that were kept and closed before they could be used again.
    closed: u32,
    is_told: bool,
}

/// What is to be told of a server that does not go along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    NeverAllowed(Refusal),
    /// Nothing is kept any more.
    Closes,
}

impl Trial {
    /// A response has come, on a connection that was used again or not.
    pub fn answered(&mut self, reuse: Reuse, was_reused: bool) -> Option<Verdict> {
        self.works |= was_reused;
        let verdict = match reuse {
            Reuse::Allowed => {
                self.is_allowed = true;
                self.is_given_up().then_some(Verdict::Closes)
            }
            Reuse::Refused(refusal) if !self.is_allowed => {
                self.refused = self.refused.saturating_add(1);
                (self.refused >= REFUSALS_MAX).then_some(Verdict::NeverAllowed(refusal))
            }
            Reuse::Refused(_) | Reuse::Impossible => None,
        };
        verdict.filter(|_| !std::mem::replace(&mut self.is_told, true))
    }

    /// A connection that had carried one request and was kept has been closed by the server.
    pub fn was_closed(&mut self) {
        self.closed = self.closed.saturating_add(1);
    }

    /// Whether keeping connections has turned out to be wrong, once and for all.
    pub fn is_given_up(&self) -> bool {
        !self.works && self.closed >= CLOSED_MAX
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Verdict::Closes => {
                return f.write_str(
                    "\"uwsgi_keepalive\" is given up: the server closes its connections before they \
                     are used again",
                );
            }
            Verdict::NeverAllowed(Refusal::Close) => "\"Connection: close\"",
            Verdict::NeverAllowed(Refusal::NotAnnounced) => "no \"Connection: keep-alive\"",
            Verdict::NeverAllowed(Refusal::NoLength) => "no \"Content-Length\"",
        };
        write!(
            f,
            "\"uwsgi_keepalive\" has no effect: none of {REFUSALS_MAX} responses let its connection be \
             used again, the last one had {why}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::response::{self, Form};

    fn reuse(keepalive: UwsgiKeepalive, text: &str) -> Reuse {
        let mut head = ResponseHead::default();
        response::parse(text.as_bytes(), Form::Cgi, 4096, &mut head).ok().unwrap();
        Reuse::of(keepalive, &head, false)
    }

    #[test]
    fn what_a_head_says_of_reuse() {
        use UwsgiKeepalive::{Assume, Off, On};
        let says = |field: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{field}\r\n");
        let keep = says("Connection: Keep-Alive\r\n");
        assert_eq!(reuse(On, &keep), Reuse::Allowed);
        assert_eq!(reuse(Assume, &keep), Reuse::Allowed);
        assert_eq!(reuse(Off, &keep), Reuse::Impossible);
        assert_eq!(reuse(On, &says("")), Reuse::Refused(Refusal::NotAnnounced));
        assert_eq!(reuse(Assume, &says("")), Reuse::Allowed);
        let close = says("Connection: keep-alive\r\nConnection: close\r\n");
        assert_eq!(reuse(Assume, &close), Reuse::Refused(Refusal::Close));
        let endless = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(reuse(On, endless), Reuse::Refused(Refusal::NoLength));
        let bodiless = "HTTP/1.1 204 None\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(reuse(On, bodiless), Reuse::Allowed);
        let switched = "HTTP/1.1 101 Go\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(reuse(On, switched), Reuse::Impossible);
    }

    #[test]
    fn refusals_are_told_once_and_only_of_a_server_that_never_allowed() {
        let refused = Reuse::Refused(Refusal::NotAnnounced);
        let mut trial = Trial::default();
        let told: Vec<_> = (0..30).filter_map(|_| trial.answered(refused, false)).collect();
        assert_eq!(told, [Verdict::NeverAllowed(Refusal::NotAnnounced)]);

        let mut trial = Trial::default();
        assert_eq!(trial.answered(Reuse::Allowed, false), None);
        assert!((0..30).all(|_| trial.answered(refused, false).is_none()));
    }

    #[test]
    fn keeping_is_given_up_unless_it_ever_worked() {
        let mut trial = Trial::default();
        (0..CLOSED_MAX).for_each(|_| trial.was_closed());
        assert!(trial.is_given_up());
        assert_eq!(trial.answered(Reuse::Allowed, false), Some(Verdict::Closes));
        assert_eq!(trial.answered(Reuse::Allowed, false), None);

        let mut trial = Trial::default();
        assert_eq!(trial.answered(Reuse::Allowed, true), None);
        (0..CLOSED_MAX).for_each(|_| trial.was_closed());
        assert!(!trial.is_given_up());
    }
}
