//! The client's request body: read from the connection piece by piece, held in memory and then in a
//! file, or thrown away.

use std::io::{self, IoSlice};
use std::time::Duration;

use super::close::Close;
use super::connection::Connection;
use super::count;
use super::modules::core::{self, InFileOnly};
use super::request::Request;
use super::temp_file::{After, FileError, TempFile};
use crate::error_log::Level;
use crate::http1::Span;
use crate::http1::chunked::{ChunkError, Decoder};
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::Method;
use crate::io::Buffer;
use crate::io::select::yield_now;
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};

/// Most that is received at once while a body is streamed, buffered or thrown away.
const PIECE: usize = 16 << 10;
/// Receives without waiting before the rest of the shard gets its turn: a client may always be ahead.
const RECEIVES_IN_A_ROW: u32 = 4;

#[derive(Debug, Default)]
pub struct RequestBody {
    /// Bytes of a body with a length that are still to come.
    remaining: u64,
    decoder: Decoder,
    /// As received: body bytes, for a chunked body with its framing.
    raw: Buffer,
    /// Bytes of `raw` that the piece at its front was made of. They have been counted: whoever reads
    /// on drops them first, see [`consume`].
    taken: usize,
    /// Receives since the last one that had to wait.
    in_a_row: u32,
    /// When the client will have been waited for too long, however often the wait is begun anew.
    until_ms: Option<u64>,
    state: State,
    /// Pieces of it went to an upstream as they came: no other upstream can have them.
    pub was_streamed: bool,
    /// The client may still be sending it, and nobody reads: see [`abandon`].
    pub is_abandoned: bool,
    /// All of it is in `memory` or `file`.
    pub is_held: bool,
    /// Body bytes taken from the connection so far (`$request_length`).
    pub received: u64,
    /// Decoded bytes so far.
    pub decoded: u64,
    /// The part kept in memory once the body has been read whole.
    pub memory: Buffer,
    /// Where the rest is: all of the body, once it did not fit into memory.
    pub file: Option<TempFile>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody has asked for it.
    #[default]
    Unread,
    Reading,
    /// All of it has been taken from the connection.
    Done,
}

/// Why a body could not be read.
#[derive(Debug)]
pub enum BodyError {
    /// Answered with a status: 400, 413, 500.
    Status(u16),
    Close(Close),
}

impl From<Close> for BodyError {
    fn from(close: Close) -> Self {
        BodyError::Close(close)
    }
}

/// The status to answer with where a body could not be read.
pub fn refusal(read: Result<(), BodyError>) -> Result<Option<u16>, Close> {
    match read {
        Ok(()) => Ok(None),
        Err(BodyError::Status(status)) => Ok(Some(status)),
        Err(BodyError::Close(close)) => Err(close),
    }
}

impl RequestBody {
    pub fn reset(&mut self) {
        self.remaining = 0;
        self.decoder = Decoder::default();
        self.raw = Buffer::empty();
        self.taken = 0;
        self.in_a_row = 0;
        self.until_ms = None;
        self.state = State::Unread;
        self.was_streamed = false;
        self.is_abandoned = false;
        self.is_held = false;
        self.received = 0;
        self.decoded = 0;
        self.memory = Buffer::empty();
        self.file = None;
    }

    /// Bytes of it that are held.
    pub fn held(&self) -> u64 {
        let in_file = self.file.as_ref().map_or(0, TempFile::len);
        in_file.saturating_add(self.memory.len() as u64)
    }

    /// Whether every byte of it has been taken from the connection (true when there is none).
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether anything has been taken from the connection for it.
    pub fn is_started(&self) -> bool {
        self.state != State::Unread
    }
}

/// Whether the head announces a body at all.
pub fn is_announced(r: &Request) -> bool {
    match r.head.body {
        BodyLength::None | BodyLength::UntilClose => false,
        BodyLength::Length(n) => n > 0,
        BodyLength::Chunked => true,
    }
}

/// Whether the client told of a body that nobody gets: of an error page's request, or one after
/// `X-Accel-Redirect`, it may be given up, or have gone to another server.
pub fn is_given_up(r: &Request) -> bool {
    let headers = &r.head.headers;
    r.head.body == BodyLength::None
        && (headers.contains(Known::ContentLength) || headers.contains(Known::TransferEncoding))
}

/// Whether all of the body came with the head, or enough of a chunked one to tell that it is none:
/// there is nothing to wait for.
pub fn is_here(r: &Request) -> bool {
    let mut ahead = r.buffer.as_slice().get(r.head_len..).unwrap_or_default();
    match r.head.body {
        BodyLength::None | BodyLength::UntilClose => true,
        BodyLength::Length(n) => ahead.len() as u64 >= n,
        BodyLength::Chunked => {
            let mut decoder = Decoder::default();
            while let Ok(step) = decoder.decode(ahead) {
                if step.done || step.consumed == 0 {
                    return step.done;
                }
                ahead = ahead.get(step.consumed..).unwrap_or_default();
            }
            true
        }
    }
}

/// Says `100 Continue` to who waits for it, once, before a body is read or given up. nginx says it
/// also to who sends no body, or has sent it already (RFC 9110 section 10.1.1).
pub async fn tell_continue(c: &Connection, r: &mut Request) -> Result<(), Close> {
    if !r.head.expect_continue || r.response.head_sent {
        return Ok(());
    }
    r.head.expect_continue = false;
    let send_timeout = *c.settings(r).core.send_timeout;
    let mut slices = [IoSlice::new(b"HTTP/1.1 100 Continue\r\n\r\n")];
    let (sent, result) = c.stream.send_all(&mut slices, send_timeout).await;
    // As in nginx, only the final head is no part of what `$body_bytes_sent` counts.
    count::add(&mut r.response.bytes_sent, sent);
    Ok(result?)
}

/// Starts reading: says `100 Continue` to who waits for it, and takes over what came with the head.
pub async fn begin(c: &Connection, r: &mut Request) -> Result<(), Close> {
    if r.body.is_started() {
        return Ok(());
    }
    take_over(r);
    tell_continue(c, r).await
}

/// What has come of the body with the head is the body's.
fn take_over(r: &mut Request) {
    if r.body.is_started() {
        return;
    }
    r.body.state = State::Reading;
    r.body.remaining = match r.head.body {
        BodyLength::Length(n) => n,
        BodyLength::Chunked => u64::MAX,
        BodyLength::None | BodyLength::UntilClose => 0,
    };
    take_ahead(r);
    if r.body.remaining == 0 {
        r.body.state = State::Done;
    }
}

/// Takes what belongs to the body out from behind the head; what follows moves up.
fn take_ahead(r: &mut Request) {
    let most = usize::try_from(r.body.remaining).unwrap_or(usize::MAX);
    let take = r.behind_head().len().min(most);
    if take == 0 {
        return;
    }
    #[expect(clippy::indexing_slicing, reason = "`head_len` counts bytes of `buffer`")]
    let (bytes, rest) = r.buffer.as_slice()[r.head_len..].split_at(take);
    r.body.raw.extend(bytes);
    let rest = rest.to_vec();
    r.buffer.truncate(r.head_len);
    r.buffer.extend(&rest);
}

/// The next piece of the decoded body: a span of [`piece`]. `None`: the body is complete. It waits
/// for readiness only: dropped, it has lost nothing, once the body has begun.
pub async fn next(c: &Connection, r: &mut Request) -> Result<Option<Span>, BodyError> {
    let patience = Patience { each: *c.settings(r).core.client_body_timeout, until_ms: None };
    next_within(c, r, patience).await
}

/// How long the client is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From one receive to the next.
    each: Duration,
    /// However often something comes, it is over by then.
    until_ms: Option<u64>,
}

async fn next_within(
    c: &Connection,
    r: &mut Request,
    patience: Patience,
) -> Result<Option<Span>, BodyError> {
    begin(c, r).await?;
    // A piece that was not given back is none any more: nobody gets the same bytes twice.
    consume(r);
    loop {
        if r.body.state == State::Done {
            return Ok(None);
        }
        if r.body.raw.is_empty() {
            receive(c, r, patience).await?;
        }
        if let Some(span) = take(c, r)? {
            return Ok(Some(span));
        }
    }
}

/// The bytes that a span of [`next`] refers to.
pub fn piece(r: &Request, span: Span) -> &[u8] {
    span.of(r.body.raw.as_slice())
}

/// Gives back the piece, if there is one.
pub fn consume(r: &mut Request) {
    let taken = std::mem::take(&mut r.body.taken);
    r.body.raw.consume(taken);
    if r.body.state == State::Reading {
        finish_if_complete(r);
    }
}

/// One span of decoded bytes at the front of `raw`, if there are any there.
fn take(c: &Connection, r: &mut Request) -> Result<Option<Span>, BodyError> {
    if r.head.body != BodyLength::Chunked {
        return Ok(Some(take_plain(&mut r.body)));
    }
    let max = *c.settings(r).core.client_max_body_size;
    let Ok(span) = take_chunks(&mut r.body, if max == 0 { u64::MAX } else { max }) else {
        return Err(invalid_chunks(c, r));
    };
    if span.is_empty() {
        consume(r);
        return Ok(None);
    }
    Ok(Some(span))
}

/// Nobody knows where such a body ends, nor what it holds.
fn invalid_chunks(c: &Connection, r: &mut Request) -> BodyError {
    c.log(r, Level::Error, format_args!("client sent invalid chunked body"));
    abandon(r);
    BodyError::Status(400)
}

/// All of `raw` that belongs to a body with a length.
fn take_plain(body: &mut RequestBody) -> Span {
    let n = body.raw.len().min(usize::try_from(body.remaining).unwrap_or(usize::MAX));
    count::add(&mut body.received, n as u64);
    count::add(&mut body.decoded, n as u64);
    body.remaining = body.remaining.saturating_sub(n as u64);
    body.taken = n;
    Span::new(0, n)
}

/// Data at the front of `raw`, which is then made of `taken` bytes. What several chunks have brought is
/// moved together: a client may send byte by byte, and each piece is a write or a send. A chunk that
/// makes the body larger than `max` comes on its own.
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a step lies within what is decoded, which `taken` and `end` never pass; counts of bytes"
)]
fn take_chunks(body: &mut RequestBody, max: u64) -> Result<Span, ChunkError> {
    let raw = body.raw.as_mut_slice();
    let first = body.decoder.decode(raw)?;
    body.taken = first.consumed;
    body.received += first.consumed as u64;
    body.decoded += first.data.len() as u64;
    let (start, mut end) = (first.data.start as usize, first.data.end as usize);
    while start < end && body.taken < raw.len() {
        let mut decoder = body.decoder;
        // What is invalid is refused behind what was valid.
        let Ok(step) = decoder.decode(&raw[body.taken..]) else { break };
        let decoded = body.decoded.saturating_add(step.data.len() as u64);
        if step.consumed == 0 || decoded.saturating_add(decoder.chunk_left()) > max {
            break;
        }
        let data = body.taken + step.data.start as usize..body.taken + step.data.end as usize;
        raw.copy_within(data, end);
        end += step.data.len();
        body.taken += step.consumed;
        body.received += step.consumed as u64;
        (body.decoded, body.decoder) = (decoded, decoder);
    }
    Ok(Span::new(start, end))
}

/// Notices the end; what was received behind a chunked body is the next request's.
fn finish_if_complete(r: &mut Request) {
    let complete = match r.head.body {
        BodyLength::Chunked => r.body.decoder.is_done(),
        _ => r.body.remaining == 0,
    };
    if complete {
        r.body.state = State::Done;
        if !r.body.raw.is_empty() {
            let raw = std::mem::take(&mut r.body.raw);
            r.buffer.extend(raw.as_slice());
        }
    }
}

/// Receives more of the body, never more than it has when its length is known.
async fn receive(c: &Connection, r: &mut Request, patience: Patience) -> Result<(), BodyError> {
    let limit = patience.each;
    let mut buffer = std::mem::take(&mut r.body.raw);
    if buffer.capacity() == 0 {
        let known = usize::try_from(r.body.remaining).unwrap_or(usize::MAX);
        buffer = Buffer::with_capacity(known.clamp(1 << 10, PIECE));
    }
    buffer.clear();
    buffer.limit_receive(r.body.remaining);
    r.body.raw = buffer;
    let received = loop {
        if patience.until_ms.is_some_and(|until_ms| until_ms <= timer::now_ms()) {
            break Err(Failure::TimedOut);
        }
        if r.body.in_a_row >= RECEIVES_IN_A_ROW {
            r.body.in_a_row = 0;
            if let Err(ended) = c.stream.timer().within(limit, Wait::Busy, yield_now()).await {
                break Err(ended.into());
            }
        }
        match c.stream.try_recv_into(&mut r.body.raw) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                r.body.in_a_row = 0;
                let now_ms = timer::now_ms();
                let until_ms =
                    *r.body.until_ms.get_or_insert(now_ms.saturating_add(limit.as_millis() as u64));
                let until_ms = until_ms.min(patience.until_ms.unwrap_or(u64::MAX));
                let left = Duration::from_millis(until_ms.saturating_sub(now_ms));
                if let Err(failure) = c.stream.readable(left, Wait::Busy).await {
                    break Err(failure);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            received => {
                r.body.in_a_row = r.body.in_a_row.saturating_add(1);
                r.body.until_ms = None;
                break received.map_err(Failure::Io);
            }
        }
    };
    let close = match received {
        Ok(0) => Close::ClientAborted,
        Ok(_) => return Ok(()),
        Err(Failure::TimedOut) => Close::BodyTimedOut,
        Err(failure) => Close::from(failure),
    };
    if matches!(close, Close::ClientAborted | Close::Io(_)) && r.response.status == 0 {
        // What the log shows: half a body is a bad request.
        r.response.status = 400;
    }
    Err(close.into())
}

/// Reads the whole body: into memory while it fits, then into a temporary file.
pub async fn read_all(c: &Connection, r: &mut Request) -> Result<(), BodyError> {
    if r.body.is_held {
        return Ok(());
    }
    if matches!(r.head.body, BodyLength::None | BodyLength::UntilClose) {
        return Ok(tell_continue(c, r).await?);
    }
    let generation = std::rc::Rc::clone(&r.generation);
    let core = &generation.http().location(r.location).settings.core;
    let only_file = *core.client_body_in_file_only != InFileOnly::Off;
    begin(c, r).await?;
    let memory_max = if only_file { 0 } else { memory_max(r, *core.client_body_buffer_size) };
    while let Some(span) = next(c, r).await? {
        check_size(c, r, span)?;
        let mut kept = Ok(());
        if r.body.file.is_none() && r.body.memory.len().saturating_add(span.len()) > memory_max {
            kept = move_to_file(c, r, core);
        }
        let kept =
            kept.and_then(|()| store(r, span, memory_max).or_else(|e| file_failed(c, r, &e)));
        consume(r);
        if kept.is_err() {
            // Of a body with a gap nobody gets the rest.
            abandon(r);
        }
        kept?;
    }
    if only_file && r.body.file.is_none() {
        // Of an empty body there is an empty file.
        move_to_file(c, r, core).inspect_err(|_| abandon(r))?;
    }
    r.body.is_held = true;
    Ok(())
}

/// How large a body may be that is held in memory. As in nginx, what came with the head takes none of
/// the buffer, which is as large as the rest of the body where that is at most a quarter more.
fn memory_max(r: &Request, size: usize) -> usize {
    let ahead = r.body.raw.len();
    let most = size.saturating_add(size / 4);
    let rest = match r.head.body {
        BodyLength::Chunked => size,
        _ => usize::try_from(r.body.remaining).unwrap_or(usize::MAX).saturating_sub(ahead),
    };
    ahead.saturating_add(if rest < most { rest } else { size })
}

/// Makes the temporary file, and moves there what is in memory.
fn move_to_file(c: &Connection, r: &mut Request, core: &core::Settings) -> Result<(), BodyError> {
    let temp = &core.client_body_temp_path;
    let (level, after) = match *core.client_body_in_file_only {
        InFileOnly::Off => (Level::Warn, After::Nameless),
        InFileOnly::On => (Level::Notice, After::Kept),
        InFileOnly::Clean => (Level::Notice, After::Removed),
    };
    let file = TempFile::create_for(temp, after).and_then(|mut file| {
        file.append(r.body.memory.as_slice())?;
        Ok(file)
    });
    match file {
        Ok(file) => {
            let path = file.path().display();
            let text = format_args!("a client request body is buffered to a temporary file {path}");
            c.log(r, level, text);
            r.body.memory = Buffer::empty();
            r.body.file = Some(file);
            Ok(())
        }
        Err(failed) => file_failed(c, r, &failed),
    }
}

fn file_failed(c: &Connection, r: &Request, failed: &FileError) -> Result<(), BodyError> {
    c.log_errno(r, Level::Crit, format_args!("{failed}"), &failed.error);
    Err(BodyError::Status(500))
}

/// `client_max_body_size` of a chunked body, which tells its size only as it comes: chunk by chunk.
pub fn check_size(c: &Connection, r: &mut Request, span: Span) -> Result<(), BodyError> {
    let max = *c.settings(r).core.client_max_body_size;
    let to_come = r.body.decoder.chunk_left();
    if r.head.body != BodyLength::Chunked
        || max == 0
        || r.body.decoded.saturating_add(to_come) <= max
    {
        return Ok(());
    }
    let now = (span.len() as u64).saturating_add(to_come);
    let before = r.body.decoded.saturating_sub(span.len() as u64);
    let text = format_args!("client intended to send too large chunked body: {before}+{now} bytes");
    c.log(r, Level::Error, text);
    abandon(r);
    Err(BodyError::Status(413))
}

/// Adds a piece to the file, if there is one, else to memory.
fn store(r: &mut Request, span: Span, memory_max: usize) -> Result<(), FileError> {
    let body = &mut r.body;
    let bytes = span.of(body.raw.as_slice());
    if let Some(file) = &mut body.file {
        return file.append(bytes);
    }
    if body.memory.capacity() == 0 {
        body.memory = Buffer::with_capacity(memory_max);
    }
    body.memory.extend(bytes);
    Ok(())
}

/// Before another exchange after one that the body was streamed to. A redirect has made a GET of the
/// request, which does without; false: the request is still one that is nothing without its body.
pub fn forget_streamed(r: &mut Request) -> bool {
    if !r.body.is_done() {
        abandon(r);
    }
    r.head.body = BodyLength::None;
    matches!(r.method, Method::Get | Method::Head)
}

/// Gives up the rest of a body that nobody wants any more. The client may send it all the same, so
/// the connection does not go on, and no other upstream gets the body.
pub fn abandon(r: &mut Request) {
    r.body.state = State::Done;
    r.body.is_abandoned = true;
    r.body.is_held = false;
    r.body.remaining = 0;
    r.body.taken = 0;
    r.body.raw = Buffer::empty();
    r.body.memory = Buffer::empty();
    r.body.file = None;
    r.head.body = BodyLength::None;
    r.head.expect_continue = false;
    r.keepalive = false;
}

/// What a handler that wants no body does before it answers: who waits for `100 Continue` gets it, and
/// what has come of the body must be well-formed. It does not wait for more, and it takes nothing:
/// what the handler comes to may be an error, whose page is made by an upstream that gets the body.
/// The status, if any, is that of a body that is not.
pub async fn begin_discard(c: &Connection, r: &mut Request) -> Result<Option<u16>, Close> {
    tell_continue(c, r).await?;
    if !is_announced(r) {
        take_over(r);
        return Ok(None);
    }
    refusal(if is_well_formed(r) { Ok(()) } else { Err(invalid_chunks(c, r)) })
}

/// Whether what is there of the body, and has not been taken, can be one.
fn is_well_formed(r: &Request) -> bool {
    if r.head.body != BodyLength::Chunked || r.body.is_done() {
        return true;
    }
    let (mut decoder, ahead) = match r.body.state {
        State::Unread => (Decoder::default(), r.buffer.as_slice().get(r.head_len..)),
        _ => (r.body.decoder, r.body.raw.as_slice().get(r.body.taken..)),
    };
    let mut ahead = ahead.unwrap_or_default();
    while !ahead.is_empty() {
        match decoder.decode(ahead) {
            Ok(step) if step.done || step.consumed == 0 => return true,
            Ok(step) => ahead = ahead.get(step.consumed..).unwrap_or_default(),
            Err(ChunkError) => return false,
        }
    }
    true
}

/// After the response: throws away what has come of the body. It does not wait for more.
pub fn discard_received(c: &Connection, r: &mut Request) -> Result<(), BodyError> {
    take_over(r);
    consume(r);
    // What nobody has read is no part of `$request_length`.
    let read = r.body.received;
    let mut discarded = Ok(());
    while discarded.is_ok() && r.body.state != State::Done && !r.body.raw.is_empty() {
        discarded = take(c, r).map(drop);
        consume(r);
    }
    r.body.received = read;
    discarded
}

/// Whether bytes may come that nobody is going to read: asked while a response is sent that needs no
/// body any more.
pub fn is_unwanted(r: &Request) -> bool {
    r.body.is_abandoned || (is_announced(r) && !r.body.is_done())
}

/// While a response waits for its client: throws away what is there of an unwanted body. False: no
/// more of it will come.
pub fn discard_some(c: &Connection, r: &mut Request) -> Result<bool, Failure> {
    // What came with the head. A body that turns out to be malformed is given up by this, here as
    // below, and said in the log.
    let _ = discard_received(c, r);
    if r.body.is_abandoned {
        return discard_abandoned(c);
    }
    r.body.raw = Buffer::with_capacity(PIECE);
    r.body.raw.limit_receive(r.body.remaining);
    if try_recv(c, &mut r.body.raw)? == Some(0) {
        abandon(r);
        return Ok(false);
    }
    let _ = discard_received(c, r);
    if r.body.raw.is_empty() {
        // Whoever is waited for holds no buffer.
        r.body.raw = Buffer::empty();
    }
    Ok(is_unwanted(r))
}

/// The same of a body that has been given up: its framing does not matter any more.
pub fn discard_abandoned(c: &Connection) -> Result<bool, Failure> {
    Ok(try_recv(c, &mut Buffer::with_capacity(PIECE))? != Some(0))
}

fn try_recv(c: &Connection, buffer: &mut Buffer) -> Result<Option<usize>, Failure> {
    match c.stream.try_recv_into(buffer) {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Throws the rest of the body away, if the connection is to be used again: `lingering_timeout` from
/// one receive to the next, `lingering_time` in all.
pub async fn discard(c: &Connection, r: &mut Request) -> Result<(), BodyError> {
    let core = &c.settings(r).core;
    let total = core.lingering_time.as_millis() as u64;
    let until_ms = Some(timer::now_ms().saturating_add(total));
    let patience = Patience { each: *core.lingering_timeout, until_ms };
    r.body.until_ms = None;
    let read = r.body.received;
    let discarded = loop {
        match next_within(c, r, patience).await {
            Ok(Some(_)) => consume(r),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    r.body.received = read;
    discarded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body that comes of `raw` received in pieces of so many bytes, and its pieces.
    fn decoded(raw: &[u8], piece: usize, max: u64) -> Result<(Vec<u8>, usize), ChunkError> {
        let mut body = RequestBody::default();
        let (mut data, mut pieces) = (Vec::new(), 0);
        for received in raw.chunks(piece) {
            body.raw.extend(received);
            while !body.raw.is_empty() && !body.decoder.is_done() {
                let span = take_chunks(&mut body, max)?;
                data.extend_from_slice(span.of(body.raw.as_slice()));
                pieces += usize::from(!span.is_empty());
                body.raw.consume(body.taken);
            }
        }
        assert!(body.decoder.is_done());
        assert_eq!(body.decoded, data.len() as u64);
        assert_eq!(body.received + body.raw.len() as u64, raw.len() as u64);
        assert_eq!(body.raw.as_slice(), b"GET");
        Ok((data, pieces))
    }

    #[test]
    fn chunks_that_came_together_are_one_piece() {
        let raw =
            b"1\r\na\r\n2;x=y\r\nbc\r\n10\r\n0123456789abcdef\r\n3\r\nend\r\n0\r\nT: t\r\n\r\nGET";
        for piece in 1..=raw.len() {
            let (data, pieces) = decoded(raw, piece, u64::MAX).unwrap();
            assert_eq!(data, b"abc0123456789abcdefend", "in pieces of {piece} bytes");
            if piece == raw.len() {
                assert_eq!(pieces, 1);
            }
        }
        // Only with the third chunk it becomes too large: then that is for itself.
        for (max, pieces) in [(22, 1), (21, 2), (18, 3), (2, 4)] {
            assert_eq!(decoded(raw, raw.len(), max).unwrap().1, pieces, "at most {max} bytes");
        }
        assert_eq!(decoded(b"1\r\na\r\n1\nb", 100, u64::MAX), Err(ChunkError));
    }

    #[test]
    fn a_piece_is_counted_once_and_holds_nothing_of_the_next_request() {
        let mut body = RequestBody { remaining: 14, ..RequestBody::default() };
        for (received, wanted) in [(&b"0123456789"[..], &b"0123456789"[..]), (b"abcdGET", b"abcd")]
        {
            body.raw.extend(received);
            assert_eq!(take_plain(&mut body).of(body.raw.as_slice()), wanted);
            body.raw.consume(std::mem::take(&mut body.taken));
        }
        assert_eq!((body.remaining, body.received, body.decoded), (0, 14, 14));
        assert_eq!(body.raw.as_slice(), b"GET");
        assert!(take_plain(&mut body).is_empty());
        assert_eq!(body.received, 14);
    }
}
