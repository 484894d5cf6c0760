//! Asking one server: connect or reuse, send head and body, read the head of the answer.

use std::io::{self, IoSlice};
use std::time::Duration;

use rustix::io::Errno;
use smallvec::SmallVec;

use super::exchange::{Exchange, Family};
use super::pool::{RequestSent, UpstreamConnection};
use super::protocol::BodyForm;
use super::watch::{receive_watching_client, watching_client};
use super::{head, local};
use crate::clock;
use crate::error_log::Level;
use crate::http::action::Action;
use crate::http::body::{self, BodyError};
use crate::http::close::Close;
use crate::http::modules::exchange::NextUpstream;
use crate::http::modules::upstream::{Peer, PeerAddress};
use crate::http::modules::uwsgi::LengthTold;
use crate::http::request::Request;
use crate::http::{count, fault};
use crate::http1::framing::BodyLength;
use crate::http1::refusal::NO_VALID_HEADER;
use crate::http1::refusal::ResponseRefusal;
use crate::http1::response;
use crate::http1::{Progress, Span, chunked};
use crate::io::select::{Either, either, yield_now};
use crate::io::stream::{Address, Failure, NewSocket};
use crate::io::timer::{self, Wait};
use crate::io::{Buffer, Stream};

/// Bytes of a temporary file sent at once.
const FILE_PIECE: usize = 64 << 10;
/// Early hints that are read before one answer, whether they are sent on or not.
const HINTS_MAX: u32 = 100;

/// Why one server did not answer.
#[derive(Debug)]
pub(super) struct Failed {
    pub condition: NextUpstream,
    pub status: u16,
    /// Nothing has been sent to it: even a request that must not be repeated can go elsewhere.
    pub unsent: bool,
    /// It had answered on this connection before: it may have closed it meanwhile.
    pub reused: bool,
}

/// How trying one server can end without an answer.
pub(super) enum NoAnswer {
    Failed(Failed),
    /// Its backlog is full, and the request may wait in the `queue`.
    BacklogFull,
    /// The client's side ended it.
    Client(BodyError),
}

impl From<Failed> for NoAnswer {
    fn from(failed: Failed) -> Self {
        NoAnswer::Failed(failed)
    }
}

impl From<Close> for NoAnswer {
    fn from(close: Close) -> Self {
        NoAnswer::Client(BodyError::Close(close))
    }
}

impl Exchange<'_> {
    /// Connects or reuses, sends the request, reads the head of the answer. With `is_fresh` no
    /// connection is used again.
    pub async fn ask(
        &self,
        r: &mut Request,
        peer: &Peer,
        started: Duration,
        is_fresh: bool,
    ) -> Result<UpstreamConnection, NoAnswer> {
        self.c.action.set(Action::ConnectingToUpstream);
        // What a server before it has said is over, also for variables.
        r.upstream_head.clear();
        let idle = self.idle_connection(r, peer, is_fresh);
        let (mut connection, ahead) = if let Some(connection) = idle {
            (connection, 0)
        } else {
            let (stream, ahead) = self.connect(r, peer).await?;
            (UpstreamConnection::new(stream), ahead)
        };
        connection.requests = connection.requests.saturating_add(1);
        connection.request = RequestSent::Partly;
        if let Some(attempt) = r.attempts.last_mut() {
            attempt.connect = Some(if connection.reused {
                Duration::ZERO
            } else {
                clock::steady().saturating_sub(started)
            });
        }
        self.c.action.set(Action::SendingRequestToUpstream);
        fault::at(r, "before the request is sent on");
        let mut answer = Answer::default();
        r.upstream_bytes = Buffer::with_capacity(*self.settings.buffer_size);
        let send_error = match self.send(r, &connection.stream, ahead, &mut answer).await? {
            SendEnd::Open => {
                connection.request = if self.sends_what_it_announces(r) {
                    RequestSent::AsAnnounced
                } else {
                    RequestSent::Wholly
                };
                None
            }
            SendEnd::Failed(Failure::Io(e)) => Some(e),
            SendEnd::Failed(_) | SendEnd::Answered => None,
        };
        self.read_head(r, &connection, &mut answer, send_error).await?;
        if let Some(attempt) = r.attempts.last_mut() {
            if attempt.status == 0 {
                attempt.status = r.upstream_head.code;
            }
            attempt.header = Some(clock::steady().saturating_sub(started));
        }
        Ok(connection)
    }

    /// False where a head told of a body that is then kept back (`proxy_pass_request_body off`), or
    /// told otherwise: the next request on that connection would be read as the body, or the body as
    /// the next request.
    fn sends_what_it_announces(&self, r: &Request) -> bool {
        if self.family == Family::Proxy {
            let length = match (self.body, r.head.body) {
                (BodyForm::None, _) => r.message.made_body(),
                (_, BodyLength::Length(length)) => length,
                _ => r.body.decoded,
            };
            return r.message.tells_truly(length, self.body == BodyForm::Chunked);
        }
        let uwsgi = &self.location.settings.uwsgi;
        let tells_otherwise =
            uwsgi.plan.length == LengthTold::Otherwise || !uwsgi.string.is_empty();
        if !body::is_announced(r) {
            // Of a body that was given up, other variables may still tell the length.
            return !body::is_given_up(r) && !tells_otherwise;
        }
        // A body whose length is not told would be read as the next packet.
        self.body == BodyForm::Plain && uwsgi.plan.length == LengthTold::Truly
    }

    /// It broke before the head was whole. A uwsgi server that has begun to answer has not closed an
    /// idle connection.
    #[cold]
    fn broken(&self, r: &Request, connection: &UpstreamConnection) -> NoAnswer {
        let reused =
            connection.reused && (self.family == Family::Proxy || r.upstream_bytes.is_empty());
        if reused && self.family == Family::Uwsgi && connection.requests == 2 {
            self.group.pool.borrow_mut().trial.was_closed();
        }
        Failed { condition: NextUpstream::ERROR, status: 502, unsent: false, reused }.into()
    }

    /// Whether a client that leaves does not end the exchange. One whose request body is still being
    /// read is found gone by that.
    pub fn ignores_abort(&self, r: &Request) -> bool {
        *self.settings.ignore_client_abort || (self.streams && !r.body.is_done())
    }

    /// A new connection, and how many bytes of the request went out with it.
    async fn connect(&self, r: &mut Request, peer: &Peer) -> Result<(Stream, usize), NoAnswer> {
        let address = match &peer.address {
            PeerAddress::Inet(address) => Address::Inet(*address),
            PeerAddress::Unix(path) => Address::Unix(path.clone()),
        };
        let socket = match NewSocket::to(&address) {
            Ok(socket) => socket,
            Err(e) => {
                // The proxy's want, and no server's failure.
                self.c.log_errno(r, Level::Alert, format_args!("socket() failed"), &e);
                return Err(unasked(r));
            }
        };
        if let Err(failed) = local::prepare(self.c, r, self.settings, &socket) {
            self.c.log_errno(r, failed.level, format_args!("{failed}"), &failed.error);
            return Err(unasked(r));
        }
        let mut connecting = match socket.begin() {
            Ok(connecting) => connecting,
            Err(e) => return Err(self.not_begun(r, peer, &e)),
        };
        let mut unchunked = [0; 18];
        let is_established = connecting.is_established();
        let ahead = match connecting.try_send(&self.first_piece(r).slices(r, &mut unchunked)) {
            // It has been reached: what went wrong since then is for who sends, and listens.
            Err(_) if is_established => Ok(0),
            ahead => ahead,
        };
        let connected = match ahead.map(|ahead| (ahead, connecting.try_into_stream())) {
            Ok((ahead, Ok(stream))) => Ok((stream, ahead)),
            Ok((ahead, Err(connecting))) => {
                let established = connecting.established(*self.settings.connect_timeout);
                let stream = watching_client(self.c, r, established, self.ignores_abort(r)).await?;
                stream.map(|stream| (stream, ahead))
            }
            Err(e) => Err(Failure::Io(e)),
        };
        match connected {
            Ok((stream, ahead)) => {
                if *self.settings.socket_keepalive {
                    stream.set_keepalive();
                }
                Ok((stream, ahead))
            }
            Err(Failure::Io(e)) => {
                self.c.log_errno(r, Level::Error, format_args!("connect() failed"), &e);
                Err(Failed::error(true).into())
            }
            Err(failure) => Err(timed_out(&failure, true)),
        }
    }

    /// `connect()` has failed at once: the network's and the server's failures are errors, what is left
    /// tells of the configuration or of this host.
    #[cold]
    fn not_begun(&self, r: &Request, peer: &Peer, e: &io::Error) -> NoAnswer {
        let is_unix = matches!(peer.address, PeerAddress::Unix(_));
        if is_unix && e.kind() == io::ErrorKind::WouldBlock && self.group.queue().is_some() {
            return NoAnswer::BacklogFull;
        }
        let level = match Errno::from_io_error(e) {
            Some(
                Errno::CONNREFUSED
                | Errno::AGAIN
                | Errno::CONNRESET
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH,
            ) => Level::Error,
            _ => Level::Crit,
        };
        let name = &peer.name;
        self.c.log_errno(r, level, format_args!("connect() to {name} failed"), e);
        Failed::error(true).into()
    }

    /// What goes out first: the head, and the body where it is in memory.
    fn first_piece(&self, r: &Request) -> Piece<'static> {
        let with_body = self.body == BodyForm::Plain && !self.streams && r.body.file.is_none();
        Piece::Message { with_body }
    }

    /// Sends head and body, of which the first bytes have gone `ahead`. A server that stops listening
    /// may have answered: then the error is kept for the case that it has not.
    async fn send(
        &self,
        r: &mut Request,
        stream: &Stream,
        ahead: usize,
        answer: &mut Answer,
    ) -> Result<SendEnd, NoAnswer> {
        let mut sent = Sent::default();
        let ended = self.send_parts(r, stream, ahead, &mut sent, answer).await;
        if let Some(attempt) = r.attempts.last_mut() {
            count::add(&mut attempt.bytes_sent, sent.bytes);
        }
        ended?;
        match sent.end {
            SendEnd::Failed(failure) if !matches!(failure, Failure::Io(_)) => {
                Err(timed_out(&failure, sent.bytes == 0))
            }
            end => Ok(end),
        }
    }

    async fn send_parts(
        &self,
        r: &mut Request,
        stream: &Stream,
        ahead: usize,
        sent: &mut Sent,
        answer: &mut Answer,
    ) -> Result<(), NoAnswer> {
        self.send_piece(r, stream, self.first_piece(r), ahead, sent, answer).await?;
        if !sent.is_open() || self.body == BodyForm::None {
            return Ok(());
        }
        if self.streams {
            stream.set_nodelay();
            let streamed = self.stream_body(r, stream, sent, answer).await;
            if streamed.is_err() && !r.body.is_done() {
                // Nobody wants the rest, as in nginx, which does not keep such a connection.
                body::abandon(r);
            }
            streamed
        } else if r.body.file.is_some() {
            self.send_file(r, stream, sent, answer).await
        } else {
            Ok(())
        }
    }

    /// The body of an unbuffered request, piece by piece.
    async fn stream_body(
        &self,
        r: &mut Request,
        stream: &Stream,
        sent: &mut Sent,
        answer: &mut Answer,
    ) -> Result<(), NoAnswer> {
        r.body.was_streamed = true;
        // `100 Continue` is not to be broken off in the middle.
        body::begin(self.c, r).await?;
        while sent.is_open() {
            // Both wait for readiness: the one that is dropped loses nothing.
            let span = match either(body::next(self.c, r), stream.readable_unlimited()).await {
                Either::First(Ok(Some(span))) => span,
                Either::First(Ok(None)) => break,
                Either::First(Err(error)) => return Err(NoAnswer::Client(error)),
                Either::Second(_) => {
                    self.hear(r, stream, sent, answer).await?;
                    continue;
                }
            };
            body::check_size(self.c, r, span).map_err(NoAnswer::Client)?;
            let chunked = self.body == BodyForm::Chunked;
            let piece = Piece::Body { span, chunked };
            let gone = self.send_piece(r, stream, piece, 0, sent, answer).await;
            body::consume(r);
            gone?;
        }
        if matches!(sent.end, SendEnd::Answered) && !r.body.is_done() {
            // Nobody wants the rest.
            body::abandon(r);
        }
        if sent.is_open() && self.body == BodyForm::Chunked {
            self.send_piece(r, stream, Piece::Bytes(chunked::LAST_CHUNK), 0, sent, answer).await?;
        }
        Ok(())
    }

    /// The body out of its temporary file.
    async fn send_file(
        &self,
        r: &mut Request,
        stream: &Stream,
        sent: &mut Sent,
        answer: &mut Answer,
    ) -> Result<(), NoAnswer> {
        let mut piece = vec![0; FILE_PIECE];
        let mut offset = 0;
        while sent.is_open()
            && let Some(file) = &r.body.file
            && offset < file.len()
        {
            match file.read_at(offset, &mut piece) {
                Ok(0) => break,
                Ok(n) => {
                    if offset > 0 {
                        // A server that takes everything at once leaves others their turn.
                        yield_now().await;
                    }
                    count::add(&mut offset, n as u64);
                    #[expect(
                        clippy::indexing_slicing,
                        reason = "a read tells at most the length it was given"
                    )]
                    let read = &piece[..n];
                    self.send_piece(r, stream, Piece::Bytes(read), 0, sent, answer).await?;
                }
                Err(e) => {
                    let path = file.path().display();
                    self.c.log_errno(r, Level::Crit, format_args!("pread() \"{path}\" failed"), &e);
                    sent.end = SendEnd::Failed(Failure::Io(e));
                }
            }
        }
        Ok(())
    }

    /// Sends all of a piece that has not gone `ahead`, and listens while the socket is full: a server
    /// that answers before it has read everything may never read on.
    async fn send_piece(
        &self,
        r: &mut Request,
        stream: &Stream,
        piece: Piece<'_>,
        ahead: usize,
        sent: &mut Sent,
        answer: &mut Answer,
    ) -> Result<(), NoAnswer> {
        let mut gone = ahead;
        let ended = loop {
            let stopped = {
                let mut chunk_head = [0; 18];
                let mut slices = piece.slices(r, &mut chunk_head);
                let mut left = &mut slices[..];
                IoSlice::advance_slices(&mut left, gone);
                let limit = *self.settings.send_timeout;
                send_while_unheard(stream, left, limit, &mut sent.until_ms, &mut gone).await
            };
            match stopped {
                Ok(Stopped::AllSent) => break Ok(()),
                Ok(Stopped::Heard) => {
                    let heard = self.hear(r, stream, sent, answer).await;
                    if heard.is_err() || !sent.is_open() {
                        break heard;
                    }
                }
                Err(failure) => {
                    sent.end = SendEnd::Failed(failure);
                    break Ok(());
                }
            }
        };
        count::add(&mut sent.bytes, gone as u64);
        ended
    }

    /// Something has come while the request was being sent. Early hints change nothing; with a final
    /// head, or an end, sending is over.
    async fn hear(
        &self,
        r: &mut Request,
        stream: &Stream,
        sent: &mut Sent,
        answer: &mut Answer,
    ) -> Result<(), NoAnswer> {
        let limit = *self.settings.read_timeout;
        let is_over = match self.receive(r, stream, limit).await? {
            Ok(0) => true,
            Ok(_) => self.read_on(r, answer).await?,
            Err(failure) => {
                answer.failure = Some(failure);
                true
            }
        };
        self.c.action.set(Action::SendingRequestToUpstream);
        if is_over {
            sent.end = SendEnd::Answered;
        }
        Ok(())
    }

    /// Reads until the head is whole: `r.upstream_bytes` then holds it and what came behind it.
    async fn read_head(
        &self,
        r: &mut Request,
        connection: &UpstreamConnection,
        answer: &mut Answer,
        send_error: Option<io::Error>,
    ) -> Result<(), NoAnswer> {
        let limit_ms = self.settings.read_timeout.as_millis() as u64;
        let until_ms = timer::now_ms().saturating_add(limit_ms);
        while !answer.is_whole {
            let left = Duration::from_millis(until_ms.saturating_sub(timer::now_ms()));
            let received = match answer.failure.take() {
                Some(failure) => Err(failure),
                None => self.receive(r, &connection.stream, left).await?,
            };
            self.c.action.set(Action::ReadingUpstreamHead);
            match received {
                Ok(0) => {
                    if let Some(e) = &send_error {
                        self.c.action.set(Action::SendingRequestToUpstream);
                        self.log_hang_up(r, "writev() failed", Some(e));
                    } else {
                        self.log_hang_up(r, "upstream prematurely closed connection", None);
                    }
                    return Err(self.broken(r, connection));
                }
                // Early hints do not give it more time.
                Ok(_) if !self.read_on(r, answer).await? && timer::now_ms() > until_ms => {
                    return Err(timed_out(&Failure::TimedOut, false));
                }
                Ok(_) => {}
                Err(Failure::Io(e)) => {
                    self.log_hang_up(r, "recv() failed", Some(&e));
                    return Err(self.broken(r, connection));
                }
                Err(failure) => return Err(timed_out(&failure, false)),
            }
        }
        self.c.action.set(Action::ReadingUpstreamHead);
        if connection.reused && r.upstream_head.is_http09 {
            // A server that has kept a connection is not one of HTTP/0.9: this is what it had still to
            // say of the request before (the body of a HEAD, of a 304), and no answer to this one.
            return Err(self.broken(r, connection));
        }
        Ok(())
    }

    /// Receives behind what is there of the answer.
    async fn receive(
        &self,
        r: &mut Request,
        stream: &Stream,
        limit: Duration,
    ) -> Result<Result<usize, Failure>, NoAnswer> {
        if r.upstream_bytes.spare() == 0 {
            let limit = r.upstream_bytes.len().saturating_add(1);
            r.upstream_bytes.grow(limit);
        }
        let buffer = std::mem::take(&mut r.upstream_bytes);
        let ignore_abort = *self.settings.ignore_client_abort;
        let (received, buffer) =
            receive_watching_client(self.c, r, stream, buffer, limit, ignore_abort).await?;
        r.upstream_bytes = buffer;
        if let (Ok(n), Some(attempt)) = (&received, r.attempts.last_mut()) {
            count::add(&mut attempt.bytes_received, *n as u64);
        }
        Ok(received)
    }

    /// Reads what has been received; tells whether the final head is whole.
    async fn read_on(&self, r: &mut Request, answer: &mut Answer) -> Result<bool, NoAnswer> {
        loop {
            match self.parse_head(r)? {
                Parsed::Partial => return Ok(false),
                Parsed::Whole => {
                    answer.is_whole = true;
                    return Ok(true);
                }
                Parsed::EarlyHints { len } => {
                    answer.hints_read = answer.hints_read.saturating_add(1);
                    if answer.hints_read > HINTS_MAX {
                        self.c.log(
                            r,
                            Level::Error,
                            format_args!("upstream sent too many early hints"),
                        );
                        return Err(Failed::invalid_header().into());
                    }
                    self.take_early_hints(r, len, &mut answer.hints).await?;
                }
            }
        }
    }

    fn parse_head(&self, r: &mut Request) -> Result<Parsed, NoAnswer> {
        let size = *self.settings.buffer_size;
        let bytes = r.upstream_bytes.as_slice();
        match response::parse(bytes, self.family.form(), size, &mut r.upstream_head) {
            Ok(Progress::Partial { .. }) => Ok(Parsed::Partial),
            Ok(Progress::Complete { len })
                if self.family == Family::Proxy && r.upstream_head.code == 103 && len > 0 =>
            {
                Ok(Parsed::EarlyHints { len })
            }
            Ok(Progress::Complete { len }) => {
                if r.upstream_head.is_http09 {
                    self.c.log(r, Level::Error, format_args!("{NO_VALID_HEADER}"));
                }
                r.upstream_head_len = len;
                head::take_limit_rate(r, self.settings);
                for duplicate in &r.upstream_head.duplicates {
                    let text = duplicate.text(r.upstream_bytes.as_slice());
                    self.c.log(r, Level::Warn, format_args!("{text}"));
                }
                Ok(Parsed::Whole)
            }
            Err(refusal) => {
                self.log_refusal(r, &refusal);
                Err(Failed::invalid_header().into())
            }
        }
    }

    /// A 103: sent on where `early_hints` says so, otherwise read over.
    async fn take_early_hints(
        &self,
        r: &mut Request,
        len: usize,
        total: &mut usize,
    ) -> Result<(), NoAnswer> {
        if r.upstream_head.version < Some((1, 1)) {
            let text = format_args!("upstream sent HTTP/1.0 response with early hints");
            self.c.log(r, Level::Error, text);
            return Err(Failed::invalid_header().into());
        }
        if let Some(attempt) = r.attempts.last_mut() {
            attempt.status = r.upstream_head.code;
        }
        if head::wants_early_hints(self.c, r, self.location) {
            *total = total.saturating_add(len);
            if *total > *self.settings.buffer_size {
                self.c.log(r, Level::Info, format_args!("upstream sent too big early hints"));
            } else {
                head::send_early_hints(self.c, r, self.family, self.location).await?;
                self.c.action.set(Action::ReadingUpstreamHead);
            }
        }
        r.upstream_bytes.consume(len);
        r.upstream_bytes.compact();
        r.upstream_head.clear();
        Ok(())
    }

    /// A uwsgi server that refuses a request for its size hangs up, and says so in its own log alone.
    #[cold]
    fn log_hang_up(&self, r: &Request, text: &str, error: Option<&io::Error>) {
        let is_silent = r.upstream_bytes.is_empty();
        let hint = if is_silent { r.message.hint(r.buffer.as_slice()) } else { None };
        self.c.log_explained(r, Level::Error, format_args!("{text}"), error, hint);
    }

    #[cold]
    fn log_refusal(&self, r: &Request, refusal: &ResponseRefusal) {
        self.c.log(r, Level::Error, format_args!("{refusal}"));
    }
}

/// There is no socket to ask anybody with.
#[cold]
fn unasked(r: &mut Request) -> NoAnswer {
    if let Some(attempt) = r.attempts.last_mut() {
        attempt.address = None;
    }
    NoAnswer::Client(BodyError::Status(500))
}

/// Told when the server has been counted out, see [`Exchange::try_servers`].
#[cold]
fn timed_out(failure: &Failure, unsent: bool) -> NoAnswer {
    if matches!(failure, Failure::Interrupted) {
        return Close::Interrupted.into();
    }
    Failed { condition: NextUpstream::TIMEOUT, status: 504, unsent, reused: false }.into()
}

impl Failed {
    #[cold]
    fn error(unsent: bool) -> Self {
        Failed { condition: NextUpstream::ERROR, status: 502, unsent, reused: false }
    }

    #[cold]
    fn invalid_header() -> Self {
        Failed {
            condition: NextUpstream::INVALID_HEADER,
            status: 502,
            unsent: false,
            reused: false,
        }
    }
}

/// What has come of the answer, beside the bytes.
#[derive(Debug, Default)]
struct Answer {
    /// The final head is in `r.upstream_head`.
    is_whole: bool,
    /// Receiving failed while the request was being sent.
    failure: Option<Failure>,
    /// Bytes of all early hints that were to be sent on.
    hints: usize,
    /// How many have come, for anybody.
    hints_read: u32,
}

/// What a head can be read as.
enum Parsed {
    Partial,
    /// A 103, of so many bytes.
    EarlyHints {
        len: usize,
    },
    /// The final head.
    Whole,
}

/// How far sending a request has got.
#[derive(Debug, Default)]
struct Sent {
    bytes: u64,
    end: SendEnd,
    /// When the server will have been waited for too long: since it last took something, whatever it
    /// says meanwhile.
    until_ms: Option<u64>,
}

#[derive(Debug, Default)]
enum SendEnd {
    #[default]
    Open,
    /// The server answers already: it wants no more.
    Answered,
    Failed(Failure),
}

impl Sent {
    fn is_open(&self) -> bool {
        matches!(self.end, SendEnd::Open)
    }
}

/// What is sent in one go.
#[derive(Debug, Clone, Copy)]
enum Piece<'a> {
    /// The head, and behind it a body that is held in memory.
    Message {
        with_body: bool,
    },
    /// A piece of a body that is being read.
    Body {
        span: Span,
        chunked: bool,
    },
    Bytes(&'a [u8]),
}

impl Piece<'_> {
    fn slices<'s>(
        &'s self,
        r: &'s Request,
        chunk_head: &'s mut [u8; 18],
    ) -> SmallVec<[IoSlice<'s>; 6]> {
        match self {
            Piece::Message { with_body } => {
                let mut slices = r.message.slices(r.buffer.as_slice());
                if *with_body {
                    slices.push(IoSlice::new(r.body.memory.as_slice()));
                }
                slices
            }
            Piece::Body { span, chunked } => {
                let piece = body::piece(r, *span);
                let mut slices = SmallVec::new();
                if *chunked {
                    let head = chunked::chunk_head(piece.len(), chunk_head);
                    slices.extend([head, piece, b"\r\n"].map(IoSlice::new));
                } else {
                    slices.push(IoSlice::new(piece));
                }
                slices
            }
            Piece::Bytes(bytes) => SmallVec::from_iter([IoSlice::new(bytes)]),
        }
    }
}

/// Why sending stopped without failing.
enum Stopped {
    AllSent,
    /// There is something to receive.
    Heard,
}

/// Sends until all is gone, or until the socket is full and something comes. Bytes sent are added to
/// `gone`, and put off the end of the `limit`.
async fn send_while_unheard(
    stream: &Stream,
    mut slices: &mut [IoSlice<'_>],
    limit: Duration,
    until_ms: &mut Option<u64>,
    gone: &mut usize,
) -> Result<Stopped, Failure> {
    loop {
        IoSlice::advance_slices(&mut slices, 0);
        if slices.is_empty() {
            return Ok(Stopped::AllSent);
        }
        match stream.send(slices).await {
            Ok(n) => {
                *gone = gone.saturating_add(n);
                *until_ms = None;
                IoSlice::advance_slices(&mut slices, n);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let now_ms = timer::now_ms();
                let end = now_ms.saturating_add(limit.as_millis() as u64);
                let until_ms = *until_ms.get_or_insert(end);
                if until_ms <= now_ms {
                    return Err(Failure::TimedOut);
                }
                let left = Duration::from_millis(until_ms.saturating_sub(now_ms));
                let ready = either(stream.writable_unlimited(), stream.readable_unlimited());
                match stream.timer().within(left, Wait::Busy, ready).await? {
                    Either::First(ready) => ready?,
                    Either::Second(ready) => {
                        ready?;
                        return Ok(Stopped::Heard);
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}
