//! Asking the name servers: which one, how long, and over what.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use hickory_proto::rr::Name;

use super::message::{self, Kind, Records, Reply};
use super::{Failure, Logging};
use crate::error_log::{Errno, Level};
use crate::io::select::yield_now;
use crate::io::stream::{Address, NewSocket};
use crate::io::timer::{self, Expired, Timer, Wait};
use crate::io::{Datagram, Stream};

/// How long a server has to answer before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room for a datagram. What is asked for without EDNS comes in 512 bytes (RFC 1035 section 4.2.1).
const DATAGRAM_MAX: usize = 4096;
/// Messages that answer nothing before the rest of the shard gets its turn.
const FOREIGN_IN_A_ROW: u32 = 64;
/// Messages that answer nothing before the server is given up for this question. Whoever guesses at
/// the id has to begin anew, at another port.
const FOREIGN_MAX: u32 = 1024;

/// The servers, in rotation.
pub struct Asking {
    servers: Box<[SocketAddr]>,
    next: Cell<usize>,
    log: Rc<Logging>,
}

/// Why a server gave no answer.
enum NoAnswer {
    /// Not in its time.
    Late,
    Failed {
        call: &'static str,
        error: io::Error,
    },
    /// Too much came that answers nothing.
    Flooded,
}

impl Asking {
    pub fn new(servers: &[SocketAddr], log: Rc<Logging>) -> Self {
        Asking { servers: servers.into(), next: Cell::new(0), log }
    }

    /// Asks until a server answers: for how long is the caller's to say. A server that cannot be
    /// reached, or sends what nobody asked for, costs no time, unless all are like that.
    pub async fn ask(&self, name: &Name, kind: Kind) -> Result<Records, Failure> {
        let mut failed_in_a_row = 0_usize;
        loop {
            let server = self.next_server();
            let began_ms = timer::now_ms();
            match ask_one(server, name, kind).await {
                Ok(answer) => return answer,
                Err(NoAnswer::Late) => {
                    failed_in_a_row = 0;
                    continue;
                }
                Err(NoAnswer::Failed { call, error }) => {
                    let shown = Errno::of(&error);
                    let text =
                        format_args!("{call} failed ({shown}) while resolving, resolver: {server}");
                    (self.log)(Level::Error, text);
                }
                Err(NoAnswer::Flooded) => {
                    let text = format_args!(
                        "{FOREIGN_MAX} unexpected messages while resolving, resolver: {server}"
                    );
                    (self.log)(Level::Error, text);
                }
            }
            failed_in_a_row = failed_in_a_row.saturating_add(1);
            if failed_in_a_row >= self.servers.len() {
                failed_in_a_row = 0;
                let spent = Duration::from_millis(timer::now_ms().saturating_sub(began_ms));
                timer::sleep_through(PATIENCE.saturating_sub(spent)).await;
            }
        }
    }

    #[expect(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "there is at least one server: Servers says so"
    )]
    fn next_server(&self) -> SocketAddr {
        let at = self.next.get() % self.servers.len();
        self.next.set(at + 1);
        self.servers[at]
    }
}

/// Over UDP, and once more over TCP where that is not enough.
async fn ask_one(
    server: SocketAddr,
    name: &Name,
    kind: Kind,
) -> Result<Result<Records, Failure>, NoAnswer> {
    let [first, second, ..] = crate::os::random_bytes();
    let id = u16::from_be_bytes([first, second]);
    let Some(question) = message::question(id, name, kind) else {
        return Ok(Err(Failure::NotFound));
    };
    let read = |bytes: &[u8]| message::reply(bytes, id, name, kind);
    within(async {
        match over_udp(server, &question, read).await? {
            Reply::Answer(answer) => Ok(answer),
            Reply::Truncated | Reply::Foreign => over_tcp(server, &question, read).await,
        }
    })
    .await
}

/// The first datagram that answers the question.
async fn over_udp(
    server: SocketAddr,
    question: &[u8],
    read: impl Fn(&[u8]) -> Reply,
) -> Result<Reply, NoAnswer> {
    let socket = Datagram::to(server).map_err(failed("connect()"))?;
    socket.send(question).map_err(failed("send()"))?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut passed_over = PassedOver::default();
    loop {
        let length = socket.recv(&mut buffer).await.map_err(failed("recv()"))?;
        #[expect(
            clippy::indexing_slicing,
            reason = "recv() writes to buffer alone, and tells how much"
        )]
        match read(&buffer[..length]) {
            Reply::Foreign => passed_over.one_more().await?,
            reply => return Ok(reply),
        }
    }
}

/// The same question on a connection of its own: messages with their lengths in front (RFC 1035
/// section 4.2.2).
async fn over_tcp(
    server: SocketAddr,
    question: &[u8],
    read: impl Fn(&[u8]) -> Reply,
) -> Result<Result<Records, Failure>, NoAnswer> {
    let connected = match NewSocket::to(&Address::Inet(server)) {
        Ok(socket) => socket.connect(PATIENCE).await,
        Err(e) => Err(e.into()),
    };
    let stream = connected.map_err(|failure| no_answer("connect()", failure))?;
    let length = (question.len() as u16).to_be_bytes();
    let mut slices = [IoSlice::new(&length), IoSlice::new(question)];
    let (_, sent) = stream.send_all(&mut slices, PATIENCE).await;
    sent.map_err(|failure| no_answer("send()", failure))?;
    let mut passed_over = PassedOver::default();
    loop {
        let mut length = [0; 2];
        fill(&stream, &mut length).await.map_err(failed("recv()"))?;
        let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
        fill(&stream, &mut message).await.map_err(failed("recv()"))?;
        if let Reply::Answer(answer) = read(&message) {
            return Ok(answer);
        }
        passed_over.one_more().await?;
    }
}

/// Messages of one server that did not answer the question. A server that floods is always readable:
/// neither the shard nor the time limit would get their turn.
#[derive(Default)]
struct PassedOver(u32);

impl PassedOver {
    async fn one_more(&mut self) -> Result<(), NoAnswer> {
        self.0 = self.0.saturating_add(1);
        if self.0 >= FOREIGN_MAX {
            return Err(NoAnswer::Flooded);
        }
        if self.0.is_multiple_of(FOREIGN_IN_A_ROW) {
            yield_now().await;
        }
        Ok(())
    }
}

/// Receives exactly so much.
async fn fill(stream: &Stream, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match stream.try_recv(buffer) {
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
            #[expect(
                clippy::indexing_slicing,
                reason = "recv() writes to buffer alone, and tells how much"
            )]
            Ok(n) => buffer = &mut buffer[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                // Readiness is what can be dropped when the time is up.
                stream.readable_unlimited().await?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn within<T>(answer: impl Future<Output = Result<T, NoAnswer>>) -> Result<T, NoAnswer> {
    match Timer::new().within(PATIENCE, Wait::Service, answer).await {
        Ok(answer) => answer,
        Err(Expired::Elapsed | Expired::Interrupted) => Err(NoAnswer::Late),
    }
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> NoAnswer {
    move |error| NoAnswer::Failed { call, error }
}

fn no_answer(call: &'static str, failure: crate::io::stream::Failure) -> NoAnswer {
    match failure {
        crate::io::stream::Failure::Io(error) => NoAnswer::Failed { call, error },
        _ => NoAnswer::Late,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// How often a future has to be polled, and what becomes of it.
    fn polled<T>(future: impl Future<Output = T>) -> (u32, T) {
        let mut future = pin!(future);
        let mut polls = 0;
        loop {
            polls += 1;
            if let Poll::Ready(output) =
                future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
            {
                return (polls, output);
            }
        }
    }

    #[test]
    fn a_flood_gives_others_their_turn_and_ends() {
        let mut passed_over = PassedOver::default();
        for message in 1..FOREIGN_MAX {
            let (polls, outcome) = polled(passed_over.one_more());
            assert_eq!(polls, if message % 64 == 0 { 2 } else { 1 }, "message {message}");
            assert!(outcome.is_ok(), "message {message}");
        }
        assert!(matches!(polled(passed_over.one_more()).1, Err(NoAnswer::Flooded)));
    }
}
