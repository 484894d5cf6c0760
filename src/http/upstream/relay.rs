//! The body of the upstream's answer on its way to the client: unframed and framed anew (proxy,
//! sections 5 and 8). Memory is bounded: what the client does not take is kept up to the size of
//! `*_buffers`, then goes to a temporary file, and when that may not grow, reading stops.

use std::borrow::Cow;
use std::io::IoSlice;
use std::pin::pin;
use std::time::Duration;

use smallvec::SmallVec;

use super::exchange::Family;
use super::head;
use super::outgoing::Outgoing;
use super::rest::PIECE_MAX;
use super::watch::{client_aborted, client_left, receive_watching_client};
use crate::clock;
use crate::error_log::Level;
use crate::http::action::Action;
use crate::http::body;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::exchange::{IgnoreHeaders, Settings};
use crate::http::modules::headers;
use crate::http::pace::{self, Pace};
use crate::http::request::Request;
use crate::http::{count, fault};
use crate::http1::Span;
use crate::http1::chunked::{self, Decoder};
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::Version;
use crate::http1::trailer::{TrailerError, Trailers};
use crate::io::select::{Either, either, yield_now};
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};
use crate::io::turns::Turn;
use crate::io::{Buffer, Stream};

/// Spans of one received piece that are sent with one call; more are sent with the next.
const SPANS: usize = 16;
/// A body that came with its head and is no longer than this is copied behind the head: one plain
/// send costs less than a gathering one.
const COPIED: usize = 1024;
/// Pieces received one after the other before the rest of the shard gets its turn.
const RECEIVES_IN_A_ROW: u32 = 4;

/// A response that has been received as far as it will be.
pub struct Relayed<'a> {
    /// It was complete, and nothing more came that was not part of it.
    pub is_clean: bool,
    end: End,
    /// What the client has not taken yet.
    rest: Outgoing<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Complete,
    /// The upstream broke off in the middle: the client must see that too.
    Truncated,
}

impl End {
    /// The client has all there is.
    pub fn apply(self, r: &mut Request) -> Result<(), Close> {
        match self {
            End::Complete => {
                r.response.complete = true;
                Ok(())
            }
            End::Truncated => Err(Close::Truncated),
        }
    }
}

impl Relayed<'_> {
    /// The upstream's connection is not needed any more; the client may still have to take the rest.
    pub async fn finish(self, r: &mut Request) -> Result<(), Close> {
        if !self.rest.is_empty() {
            // Of what came first only the head is looked at from now on: a slow client holds no more.
            r.upstream_bytes.keep_only(r.upstream_head_len);
        }
        r.response.unsent = self.rest.finish(r, self.end).await?;
        Ok(())
    }
}

/// Relays the answer whose head has been read, to its end.
pub async fn run<'a>(
    c: &'a Connection,
    r: &mut Request,
    upstream: &Stream,
    family: Family,
    location: &'a Location,
) -> Result<Relayed<'a>, Close> {
    let settings = match family {
        Family::Proxy => &location.settings.proxy.exchange,
        Family::Uwsgi => &location.settings.uwsgi.exchange,
    };
    let length = match r.upstream_head.body_for(r.message.is_head()) {
        BodyLength::Chunked if !head::decodes_chunked(family, location) => BodyLength::UntilClose,
        length => length,
    };
    head::put_head(c, r, family, location, length);

    let ahead = r.behind_upstream_head().len();
    let buffering = buffering(r, settings);
    let reading_pace = if buffering {
        pace::of_upstream(c, r, &settings.limit_rate)
    } else {
        // What is passed on as it comes is not held up.
        r.response.pace = None;
        None
    };
    let mut body = Incoming::new(length);
    if head::passes_trailers(family, location) {
        body.keep_trailers();
    }
    let relay = Relay {
        c,
        upstream,
        settings,
        look_ahead: body.look_ahead(),
        body,
        in_a_row: 0,
        buffering,
        rest: Outgoing::new(c, settings, buffering),
        // Of an answer without a body, what stands behind its head is no part.
        received: if r.response.is_bodiless { 0 } else { ahead as u64 },
        reading_pace,
    };
    relay.run(r, ahead).await
}

/// `*_buffering`, unless the upstream says otherwise: of several lines the last counts that says
/// anything.
fn buffering(r: &Request, settings: &Settings) -> bool {
    let mut buffering = *settings.buffering;
    if settings.ignore_headers.contains(IgnoreHeaders::X_ACCEL_BUFFERING) {
        return buffering;
    }
    for field in r.upstream_head.headers.find_all(Known::XAccelBuffering) {
        let value = field.value.of(r.upstream_bytes.as_slice());
        if value.eq_ignore_ascii_case(b"no") {
            buffering = false;
        } else if value.eq_ignore_ascii_case(b"yes") {
            buffering = true;
        }
    }
    buffering
}

/// What of the body is still to come.
#[derive(Debug)]
enum Incoming {
    Length(u64),
    Chunked(Decoder),
    /// Whose trailers are passed on.
    ChunkedWithTrailers(Decoder, Box<Trailers>),
    UntilClose,
}

/// What makes a chunked body none.
enum BadBody {
    Chunk,
    Trailer(TrailerError),
}

impl From<chunked::ChunkError> for BadBody {
    fn from(_: chunked::ChunkError) -> Self {
        BadBody::Chunk
    }
}

/// The body bytes found in one received piece.
#[derive(Debug, Default)]
struct Found {
    spans: SmallVec<[Span; SPANS]>,
    bytes: usize,
    /// How much of the piece has been looked at.
    consumed: usize,
    complete: bool,
    /// Bytes behind the end.
    surplus: bool,
}

impl Incoming {
    fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::None => Incoming::Length(0),
            BodyLength::Length(n) => Incoming::Length(n),
            BodyLength::Chunked => Incoming::Chunked(Decoder::default()),
            BodyLength::UntilClose => Incoming::UntilClose,
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            Incoming::Length(left) => *left == 0,
            Incoming::Chunked(decoder) => decoder.is_done(),
            Incoming::ChunkedWithTrailers(_, trailers) => trailers.is_done(),
            Incoming::UntilClose => false,
        }
    }

    /// A chunked body's trailers are read, not read over.
    fn keep_trailers(&mut self) {
        if let Incoming::Chunked(_) = self {
            *self = Incoming::ChunkedWithTrailers(Decoder::leaving_trailers(), Box::default());
        }
    }

    /// The trailers, once they have been read.
    fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        match self {
            Incoming::ChunkedWithTrailers(_, trailers) if trailers.is_done() => {
                let trailers = std::mem::take(trailers);
                *self = Incoming::Length(0);
                Some(trailers)
            }
            _ => None,
        }
    }

    /// Bytes that are known to be still missing, framing included.
    fn missing(&self) -> u64 {
        match self {
            Incoming::Length(left) => *left,
            // Once there are but trailers to come, they are taken as they come.
            Incoming::ChunkedWithTrailers(decoder, _) if decoder.is_done() => 0,
            Incoming::Chunked(decoder) | Incoming::ChunkedWithTrailers(decoder, _) => {
                decoder.remaining_at_least()
            }
            Incoming::UntilClose => u64::MAX,
        }
    }

    /// A look at what is kept back: it begins where the body has been read to.
    fn look_ahead(&self) -> Option<LookAhead> {
        match self {
            Incoming::Chunked(decoder) | Incoming::ChunkedWithTrailers(decoder, _) => {
                Some(LookAhead { decoder: *decoder, position: 0 })
            }
            Incoming::Length(_) | Incoming::UntilClose => None,
        }
    }

    /// Finds body bytes in a piece, from `from` on. Trailers must fit in `trailers_max`.
    #[expect(
        clippy::arithmetic_side_effects,
        reason = "`from` is in the piece, all else lies behind it, and no more is taken than is `left`"
    )]
    fn find(&mut self, piece: &[u8], from: usize, trailers_max: usize) -> Result<Found, BadBody> {
        let mut found = Found { consumed: from, ..Found::default() };
        match self {
            Incoming::UntilClose => {
                if from < piece.len() {
                    found.spans.push(Span::new(from, piece.len()));
                }
                found.bytes = piece.len() - from;
                found.consumed = piece.len();
            }
            Incoming::Length(left) => {
                let there = (piece.len() - from) as u64;
                let take = there.min(*left) as usize;
                if take > 0 {
                    found.spans.push(Span::new(from, from + take));
                }
                *left -= take as u64;
                found.bytes = take;
                found.surplus = there > take as u64;
                found.complete = *left == 0;
                found.consumed = piece.len();
            }
            Incoming::Chunked(decoder) => {
                found.read_chunks(decoder, piece)?;
                found.complete = decoder.is_done();
                found.surplus = found.complete && found.consumed < piece.len();
            }
            Incoming::ChunkedWithTrailers(decoder, trailers) => {
                found.read_chunks(decoder, piece)?;
                if decoder.is_done() {
                    let rest = piece.get(found.consumed..).unwrap_or_default();
                    found.consumed +=
                        trailers.read(rest, trailers_max).map_err(BadBody::Trailer)?;
                    found.complete = trailers.is_done();
                    found.surplus = found.complete && found.consumed < piece.len();
                }
            }
        }
        Ok(found)
    }
}

/// A look at chunks that are kept back until there are more of them: each byte is looked at once,
/// however many pieces they come in.
#[derive(Debug)]
struct LookAhead {
    decoder: Decoder,
    /// Bytes that have been looked at.
    position: usize,
}

impl LookAhead {
    /// Whether what has come cannot be the body's.
    fn is_broken(&mut self, pending: &[u8]) -> bool {
        while let Some(next @ [_, ..]) = pending.get(self.position..)
            && !self.decoder.is_done()
        {
            match self.decoder.decode(next) {
                Ok(step) if step.consumed == 0 => return false,
                Ok(step) => self.position = self.position.saturating_add(step.consumed),
                Err(_) => return true,
            }
        }
        false
    }
}

impl Found {
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "a step lies within what is decoded, which `consumed` never passes"
    )]
    fn read_chunks(&mut self, decoder: &mut Decoder, piece: &[u8]) -> Result<(), BadBody> {
        while self.consumed < piece.len() && self.spans.len() < SPANS {
            let step = decoder.decode(&piece[self.consumed..])?;
            if !step.data.is_empty() {
                let at = self.consumed;
                let data = Span::new(at + step.data.start as usize, at + step.data.end as usize);
                self.bytes += data.len();
                self.spans.push(data);
            }
            self.consumed += step.consumed;
            if step.done {
                break;
            }
        }
        Ok(())
    }
}

/// How receiving from the upstream went.
enum Received {
    Bytes,
    End,
    /// It broke off, and that has been told.
    Failed,
}

/// Whether more is to come behind a piece.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Maybe,
    /// The upstream has closed.
    No,
}

struct Relay<'a, 'u> {
    c: &'a Connection,
    upstream: &'u Stream,
    settings: &'a Settings,
    body: Incoming,
    /// At what is kept back of it.
    look_ahead: Option<LookAhead>,
    /// Receives since others had their turn.
    in_a_row: u32,
    buffering: bool,
    rest: Outgoing<'a>,
    /// Bytes of the body received, framing included.
    received: u64,
    /// `*_limit_rate`
    reading_pace: Option<Pace>,
}

impl<'a> Relay<'a, '_> {
    async fn run(mut self, r: &mut Request, ahead: usize) -> Result<Relayed<'a>, Close> {
        // Kept for the variables that tell of the upstream's headers.
        let first = std::mem::take(&mut r.upstream_bytes);
        #[expect(clippy::arithmetic_side_effects, reason = "counted behind the head")]
        let head_len = first.len() - ahead;
        if r.response.has_trailers {
            // These may tell of it before the last of it has gone.
            r.upstream_bytes.extend(first.as_slice().get(..head_len).unwrap_or_default());
        }
        let relayed = self.relay(r, &first, head_len).await;
        r.upstream_bytes = first;
        if let Some(attempt) = r.attempts.last_mut() {
            attempt.response_length = self.received;
        }
        let (end, is_clean) = relayed?;
        Ok(Relayed { is_clean, end, rest: self.rest })
    }

    /// What the response came to, and whether it and nothing else came.
    async fn relay(
        &mut self,
        r: &mut Request,
        first: &Buffer,
        head_len: usize,
    ) -> Result<(End, bool), Close> {
        #[expect(
            clippy::arithmetic_side_effects,
            reason = "the first bytes are the head and what is behind it"
        )]
        let ahead = first.len() - head_len;
        let buffer_size = *self.settings.buffer_size;
        let mut piece = Buffer::empty();
        let mut clean = true;
        if r.response.is_bodiless && !self.body.is_complete() {
            // The rest would go nowhere: neither client nor server waits for it.
            self.send_head(r).await?;
            return Ok((End::Complete, false));
        }
        // Bytes that make the buffer under way a full one. The first is the head's.
        let mut full = buffer_size.saturating_sub(head_len);
        if self.is_due(first.as_slice().get(head_len..).unwrap_or_default(), full) {
            // What came with the head is sent with the head.
            clean = self.forward(r, first, head_len, More::Maybe).await?;
            self.rest.fit(r).await?;
            full = self.piece_size();
        } else {
            piece = Buffer::with_capacity(full.max(ahead.saturating_add(1)).max(self.piece_size()));
            piece.extend(first.as_slice().get(head_len..).unwrap_or_default());
        }
        while !self.body.is_complete() {
            self.give_turn(r).await?;
            match self.receive(r, &mut piece).await? {
                Received::Bytes => {
                    if !self.is_due(piece.as_slice(), full) {
                        continue;
                    }
                    let is_long = piece.spare() == 0;
                    clean = self.forward(r, &piece, 0, More::Maybe).await?;
                    full = self.piece_size();
                    if !self.rest.is_empty() {
                        // A slow client costs no more than what waits for it.
                        piece = Buffer::empty();
                        self.rest.end_long();
                        self.rest.fit(r).await?;
                    } else if is_long {
                        // One that fills its buffer is a long one.
                        let wanted = self.long_piece();
                        piece.clear();
                        if !(wanted..wanted.saturating_mul(4)).contains(&piece.capacity()) {
                            piece = Buffer::with_capacity(wanted);
                        }
                    } else {
                        piece.clear();
                    }
                }
                Received::End => {
                    self.forward(r, &piece, 0, More::No).await?;
                    if matches!(self.body, Incoming::UntilClose) || self.body.is_complete() {
                        return Ok((End::Complete, false));
                    }
                    self.c.action.set(if self.buffering {
                        Action::ReadingUpstream
                    } else {
                        Action::SendingToClient
                    });
                    let text = format_args!("upstream prematurely closed connection");
                    self.c.log(r, Level::Error, text);
                    self.send_head(r).await?;
                    return Ok((End::Truncated, false));
                }
                Received::Failed => {
                    // A buffer that is not full is lost, but not the head.
                    self.send_head(r).await?;
                    return Ok((End::Truncated, false));
                }
            }
        }
        Ok((End::Complete, clean))
    }

    /// Whether a piece goes to the client now: a full buffer, all that is missing, or anything when
    /// nothing is to be held back. What will never be right is not waited for.
    fn is_due(&mut self, piece: &[u8], full: usize) -> bool {
        !self.buffering
            || piece.len() >= full
            || piece.len() as u64 >= self.body.missing()
            || self.look_ahead.as_mut().is_some_and(|ahead| ahead.is_broken(piece))
    }

    /// Lets the rest of the shard run now and then: a server may always be ahead, and its client with
    /// it.
    async fn give_turn(&mut self, r: &Request) -> Result<(), Close> {
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.in_a_row < RECEIVES_IN_A_ROW {
            return Ok(());
        }
        self.in_a_row = 0;
        let limit = *self.c.settings(r).core.send_timeout;
        let turn = self.c.stream.timer().within(limit, Wait::Busy, yield_now()).await;
        Ok(turn.map_err(Failure::from)?)
    }

    fn piece_size(&self) -> usize {
        if self.buffering { self.settings.buffers.size } else { *self.settings.buffer_size }
    }

    /// What is received at once of a long response. Where the rest of it may not go to a file, that
    /// is within the configured buffers as well.
    fn long_piece(&mut self) -> usize {
        let buffers = *self.settings.buffers;
        let piece = self.piece_size();
        if !self.buffering {
            return piece;
        }
        let most = self.rest.long_piece().max(piece);
        if *self.settings.max_temp_file_size == 0 {
            most.min(buffers.number.saturating_mul(buffers.size))
        } else {
            most
        }
    }

    /// The head alone, if it is not sent yet.
    async fn send_head(&mut self, r: &mut Request) -> Result<(), Close> {
        if r.response.head_sent {
            return Ok(());
        }
        self.send_found(r, &[], &Found::default(), false).await
    }

    /// Forwards what a received piece holds from `from` on; the head goes first if it is still
    /// here. False: the upstream sent more than belongs to the response.
    async fn forward(
        &mut self,
        r: &mut Request,
        piece: &Buffer,
        from: usize,
        more: More,
    ) -> Result<bool, Close> {
        let raw = piece.as_slice();
        let mut at = from;
        let forwarded = loop {
            let mut found = match self.body.find(raw, at, *self.settings.buffer_size) {
                Ok(found) => found,
                Err(bad) => {
                    self.c.action.set(Action::ReadingUpstream);
                    let text = match &bad {
                        BadBody::Chunk => "upstream sent invalid chunked response".to_owned(),
                        BadBody::Trailer(error) => error.to_string(),
                    };
                    self.c.log(r, Level::Error, format_args!("{text}"));
                    return Err(Close::Truncated);
                }
            };
            at = found.consumed;
            let surplus_text = self.surplus_text(r);
            let is_end = more == More::No && at >= raw.len();
            let complete =
                self.body.is_complete() || (is_end && matches!(self.body, Incoming::UntilClose));
            if let Some(trailers) = self.body.take_trailers() {
                head::put_trailers(r, self.settings, trailers);
            }
            if let Some(window) = &mut r.response.window {
                found.bytes = window.cut(&mut found.spans);
            }
            // With buffering the head waits for what goes with it.
            if found.bytes > 0 || complete || !self.buffering {
                self.send_found(r, raw, &found, complete).await?;
            }
            if complete || at >= raw.len() {
                if found.surplus
                    && let Some(text) = surplus_text
                {
                    self.c.action.set(Action::ReadingUpstream);
                    self.c.log(r, Level::Warn, format_args!("{text}"));
                }
                break !found.surplus;
            }
        };
        self.look_ahead = self.body.look_ahead();
        Ok(forwarded)
    }

    /// What is said of bytes behind the end.
    fn surplus_text(&self, r: &Request) -> Option<&'static str> {
        match self.body {
            Incoming::Chunked(_) => Some("upstream sent data after final chunk"),
            Incoming::ChunkedWithTrailers(..) => Some("upstream sent data after trailers"),
            _ if r.message.is_head() => None,
            _ => Some("upstream sent more data than specified in \"Content-Length\" header"),
        }
    }

    /// Sends head (if not sent yet), body bytes with their framing, and the end, in one call.
    async fn send_found(
        &mut self,
        r: &mut Request,
        raw: &[u8],
        found: &Found,
        complete: bool,
    ) -> Result<(), Close> {
        let end = if complete && r.response.chunked {
            headers::end_of_chunked(self.c, r)
        } else {
            Cow::Borrowed(b"".as_slice())
        };
        // The head is taken out for the time that it is borrowed by the call.
        let mut head = std::mem::take(&mut r.response.head);
        let mut chunk_head = [0; 18];
        let mut slices: SmallVec<[IoSlice<'_>; SPANS + 5]> = SmallVec::new();
        let has_data = found.bytes > 0;
        if r.response.chunked && has_data {
            slices.push(IoSlice::new(chunked::chunk_head(found.bytes, &mut chunk_head)));
        }
        if !r.response.is_bodiless {
            slices.extend(found.spans.iter().map(|span| IoSlice::new(span.of(raw))));
        }
        if r.response.chunked {
            if has_data {
                slices.push(IoSlice::new(b"\r\n"));
            }
            slices.push(IoSlice::new(&end));
        }
        let sent = if r.response.head_sent {
            self.rest.send(r, &mut slices).await
        } else {
            r.response.head_sent = true;
            let head_len = head.len();
            if r.version() == Version::Http09 {
                // The body alone.
                self.rest.send(r, &mut slices).await
            } else if found.bytes <= COPIED {
                count::add(&mut r.response.head_bytes, head_len as u64);
                for slice in &slices {
                    head.extend_from_slice(slice);
                }
                let sent = self.rest.send(r, &mut [IoSlice::new(&head)]).await;
                head.truncate(head_len);
                sent
            } else {
                count::add(&mut r.response.head_bytes, head_len as u64);
                slices.insert(0, IoSlice::new(&head));
                self.rest.send(r, &mut slices).await
            }
        };
        drop(slices);
        r.response.head = head;
        sent
    }

    /// Receives more behind the piece's content; meanwhile the client is given what it takes of the
    /// rest.
    async fn receive(&mut self, r: &mut Request, piece: &mut Buffer) -> Result<Received, Close> {
        let limit = *self.settings.read_timeout;
        let (mut most, mut size) = (u64::MAX, self.piece_size());
        self.rest.set_turn(None);
        if !self.rest.is_empty() || self.reading_pace.is_some() {
            let turn;
            match self.receive_slowly(r, limit).await? {
                Ok((allowed, taken)) => (most, turn) = (allowed, taken),
                Err(failure) => return self.upstream_failed(r, &failure),
            }
            if !self.rest.is_empty() {
                self.rest.make_room(r).await;
                let room = if turn.is_some() { PIECE_MAX } else { self.rest.room() };
                size = room.clamp(size, size.max(PIECE_MAX));
                most = most.min(size as u64);
            }
            self.rest.set_turn(turn);
        }
        self.c.action.set(Action::ReadingUpstream);
        let ignore_abort = *self.settings.ignore_client_abort;
        let mut buffer = std::mem::take(piece);
        if buffer.capacity() == 0 {
            buffer = Buffer::with_capacity(size);
        }
        buffer.limit_receive(most);
        let (received, buffer) =
            receive_watching_client(self.c, r, self.upstream, buffer, limit, ignore_abort).await?;
        *piece = buffer;
        fault::at(r, "in the response");
        match received {
            Ok(0) => Ok(Received::End),
            Ok(n) => {
                let before = self.received;
                count::add(&mut self.received, n as u64);
                if let Some(pace) = &mut self.reading_pace {
                    pace.account(before, self.received, timer::now_ms());
                }
                if let Some(attempt) = r.attempts.last_mut() {
                    count::add(&mut attempt.bytes_received, n as u64);
                }
                Ok(Received::Bytes)
            }
            Err(failure) => self.upstream_failed(r, &failure),
        }
    }

    /// Waits until there is something to receive, room for it, and leave by `*_limit_rate`; answers
    /// how much that gives leave for, with a turn where it goes to a file. All that is waited for here
    /// is readiness: what is dropped loses nothing.
    async fn receive_slowly(
        &mut self,
        r: &mut Request,
        limit: Duration,
    ) -> Result<Result<(u64, Option<Turn>), Failure>, Close> {
        let upstream = self.upstream;
        let client = &self.c.stream;
        let ignore_abort = *self.settings.ignore_client_abort;
        let mut gone = pin!(async {
            if ignore_abort { std::future::pending().await } else { client_left(client).await }
        });
        // When the upstream will have been waited for too long, however often the client moves.
        let mut until_ms = None;
        loop {
            let received = self.received;
            let allowed = match &mut self.reading_pace {
                None => Ok(u64::MAX),
                Some(pace) => pace.allowed(received, clock::steady().as_secs(), timer::now_ms()),
            };
            if let Ok(most) = allowed
                && self.rest.is_empty()
            {
                return Ok(Ok((most, None)));
            }
            if r.response.pace.is_some() {
                if let Ok(most) = allowed
                    && self.rest.room() > 0
                    && !upstream.is_quiet()
                {
                    return Ok(Ok((most, None)));
                }
                self.rest.pump(r).await?;
            }
            let has_room = self.rest.has_room();
            if allowed.is_err() || !has_room {
                until_ms = None;
            }
            let rest = &self.rest;
            let from_upstream = async {
                match allowed {
                    Err(wait) => pace::hold(upstream, wait).await.map(|()| None),
                    Ok(most) if has_room => {
                        let now_ms = timer::now_ms();
                        let end_ms = *until_ms
                            .get_or_insert(now_ms.saturating_add(limit.as_millis() as u64));
                        let left = Duration::from_millis(end_ms.saturating_sub(now_ms));
                        upstream.readable(left, Wait::Busy).await?;
                        // From here on it is not the upstream that is waited for.
                        until_ms = None;
                        let turn = if rest.is_spilling() { Some(rest.turn().await) } else { None };
                        Ok(Some((most, turn)))
                    }
                    Ok(_) => std::future::pending().await,
                }
            };
            let to_client = async {
                if rest.is_empty() { std::future::pending().await } else { rest.ready(r).await }
            };
            match either(from_upstream, either(to_client, gone.as_mut())).await {
                Either::First(Ok(Some(leave))) => return Ok(Ok(leave)),
                Either::First(Ok(None)) => {}
                Either::First(Err(failure)) => return Ok(Err(failure)),
                Either::Second(Either::First(ready)) => {
                    ready?;
                    self.rest.pump(r).await?;
                }
                Either::Second(Either::Second(left)) => {
                    return Err(client_aborted(self.c, r, left));
                }
            }
        }
    }

    /// The upstream broke off in the middle.
    fn upstream_failed(&self, r: &Request, failure: &Failure) -> Result<Received, Close> {
        self.c.action.set(Action::ReadingUpstream);
        match failure {
            Failure::TimedOut => {
                let text = format_args!("upstream timed out (110: Connection timed out)");
                self.c.log(r, Level::Error, text);
            }
            // A server that did not read all of the request and closes resets the connection, after
            // the last byte of a response that only the close ends (RFC 9112 section 9.6).
            Failure::Io(e)
                if e.kind() == std::io::ErrorKind::ConnectionReset
                    && matches!(self.body, Incoming::UntilClose)
                    && (body::is_announced(r) || r.body.is_abandoned) =>
            {
                return Ok(Received::End);
            }
            Failure::Io(e) => {
                let call = if self.buffering { "readv()" } else { "recv()" };
                self.c.log_errno(r, Level::Error, format_args!("{call} failed"), e);
            }
            Failure::Interrupted => return Err(Close::Interrupted),
        }
        Ok(Received::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(incoming: &mut Incoming, piece: &[u8]) -> (Vec<u8>, Found) {
        let found = incoming.find(piece, 0, 4096).ok().unwrap();
        let data = found.spans.iter().flat_map(|span| span.of(piece).to_vec()).collect();
        (data, found)
    }

    #[test]
    fn a_length_is_counted_down_and_surplus_noticed() {
        let mut incoming = Incoming::new(BodyLength::Length(5));
        let (data, first) = found(&mut incoming, b"abc");
        assert_eq!(
            (data.as_slice(), first.complete, first.surplus),
            (b"abc".as_slice(), false, false)
        );
        let (data, last) = found(&mut incoming, b"defg");
        assert_eq!((data.as_slice(), last.complete, last.surplus), (b"de".as_slice(), true, true));
    }

    #[test]
    fn chunks_of_one_piece_are_found_together() {
        let mut incoming = Incoming::new(BodyLength::Chunked);
        let (data, all) = found(&mut incoming, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!((data.as_slice(), all.bytes), (b"abcde".as_slice(), 5));
        assert!(all.complete && !all.surplus && incoming.is_complete());
    }

    #[test]
    fn what_is_kept_back_is_looked_at_once() {
        let body = b"3\r\nabc\r\n2\r\nde\r\nxyz";
        let mut ahead = Incoming::new(BodyLength::Chunked).look_ahead().unwrap();
        for end in 1..=15 {
            // What was looked at before has become something else, and nobody sees that.
            let mut pending = vec![b'!'; ahead.position];
            pending.extend_from_slice(&body[ahead.position..end]);
            assert!(!ahead.is_broken(&pending), "{end}");
            assert_eq!(ahead.position, end);
        }
        assert!(ahead.is_broken(&body[..16]) && ahead.is_broken(body));
        for whole in [b"0\r\n\r\nGET".as_slice(), b"1\r\nx\r\n0\r\n\r\n"] {
            let mut ahead = Incoming::new(BodyLength::Chunked).look_ahead().unwrap();
            assert!(!ahead.is_broken(whole) && !ahead.is_broken(whole));
        }
        assert!(Incoming::new(BodyLength::UntilClose).look_ahead().is_none());
    }

    #[test]
    fn no_more_spans_than_fit_are_found_at_once() {
        let mut incoming = Incoming::new(BodyLength::Chunked);
        let piece = b"1\r\nx\r\n".repeat(SPANS + 3);
        let (data, first) = found(&mut incoming, &piece);
        assert_eq!(data.len(), SPANS);
        assert!(first.consumed < piece.len());
        let rest = incoming.find(&piece, first.consumed, 4096).ok().unwrap();
        assert_eq!((rest.bytes, rest.consumed), (3, piece.len()));
    }
}
