//! Every reason to end a connection before its time: level, text and whether it is reset.

use crate::error_log::Level;
use crate::http::tunnel::Opening;
use crate::io::stream::Failure;

/// Why a connection ends. An orderly end (`Connection: close`, keepalive over) is one as well.
#[derive(Debug)]
pub enum Close {
    /// The response said so.
    Orderly,
    /// `return 444` and the like: not a byte is sent.
    Silently,
    /// The client sent its end between two requests.
    ClientClosedKeepalive,
    /// The client sent its end in the middle of something.
    ClientAborted,
    /// The client left while an upstream was working for it; the line has been written.
    ClientAbortedExchange,
    /// A deadline of the client's side passed.
    ClientTimedOut,
    /// The client was silent in the middle of its body, which nginx says nothing of.
    BodyTimedOut,
    /// An idle keepalive connection's time was up.
    KeepaliveTimedOut,
    /// The response could not be completed (the upstream broke off): the client must notice.
    Truncated,
    /// The shard ends, or has no room for a connection that waits.
    Interrupted,
    /// A fault of the proxy's own; the line has been written.
    Panicked,
    /// Not an end: the sockets go on as a tunnel, and the request is logged when that ends.
    Tunnelled(Box<Opening>),
    /// A system call on the client's socket failed: mostly it has sent a reset.
    Io(std::io::Error),
}

impl Close {
    /// How the end is said in the error log, if it is worth a line.
    pub fn line(&self) -> Option<(Level, &'static str)> {
        match self {
            Close::Orderly
            | Close::Silently
            | Close::BodyTimedOut
            | Close::KeepaliveTimedOut
            | Close::Truncated
            | Close::Interrupted
            | Close::Panicked
            | Close::Tunnelled(_)
            | Close::ClientClosedKeepalive
            | Close::ClientAbortedExchange
            | Close::Io(_) => None,
            Close::ClientAborted => Some((Level::Info, "client prematurely closed connection")),
            Close::ClientTimedOut => {
                Some((Level::Info, "client timed out (110: Connection timed out)"))
            }
        }
    }
}

/// A failure on the client's side.
impl From<Failure> for Close {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TimedOut => Close::ClientTimedOut,
            Failure::Interrupted => Close::Interrupted,
            Failure::Io(e) => Close::Io(e),
        }
    }
}
