//! The body of the upstream's answer on its way to the client: unframed and framed anew (proxy,
//! sections 5 and 8). Memory is bounded: what the client does not take is kept up to the
//! size of `*_buffers`, then reading stops.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::Duration;

use smallvec::SmallVec;

use super::exchange::{Family, receive_watching_client};
use super::head;
use crate::error_log::Level;
use crate::http::action::Action;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::location::Location;
use crate::http::modules::exchange::{IgnoreHeaders, Settings};
use crate::http::modules::headers;
use crate::http::request::Request;
use crate::http1::Span;
use crate::http1::chunked::{self, Decoder};
use crate::http1::framing::BodyLength;
use crate::http1::header::Known;
use crate::http1::request::Version;
use crate::http1::trailer::{TrailerError, Trailers};
use crate::io::select::{Either, either};
use crate::io::stream::Failure;
use crate::io::timer::{self, Wait};
use crate::io::{Buffer, Stream};

/// Spans of one received piece that are sent with one call; more are sent with the next.
const SPANS: usize = 16;
/// A body that came with its head and is no longer than this is copied behind the head: one plain
/// send costs less than a gathering one.
const COPIED: usize = 1024;
/// The piece received at once grows to this while a response keeps filling it.
const PIECE_MAX: usize = 64 << 10;

/// Relays the whole answer whose head has been read. True: it was complete, and nothing more came
/// that was not part of it.
pub async fn run(
    c: &Connection,
    r: &mut Request,
    upstream: &Stream,
    family: Family,
    location: &Location,
) -> Result<bool, Close> {
    let settings = match family {
        Family::Proxy => &location.settings.proxy.exchange,
        Family::Uwsgi => &location.settings.uwsgi.exchange,
    };
    let length = r.upstream_head.body_for(r.message.is_head());
    head::put_head(c, r, family, location, length);

    let ahead = r.upstream_bytes.len() - r.upstream_head_len;
    let mut body = Incoming::new(length);
    if head::passes_trailers(family, location) {
        body.keep_trailers();
    }
    let relay = Relay {
        c,
        upstream,
        settings,
        body,
        buffering: buffering(r, settings),
        queue: VecDeque::new(),
        queued: 0,
        progress_ms: 0,
    };
    relay.run(r, ahead).await
}

/// `*_buffering`, unless the upstream says otherwise.
fn buffering(r: &Request, settings: &Settings) -> bool {
    let said = r.upstream_head.headers.find(Known::XAccelBuffering);
    if let Some(field) = said
        && !settings.ignore_headers.contains(IgnoreHeaders::X_ACCEL_BUFFERING)
    {
        let value = field.value.of(r.upstream_bytes.as_slice());
        if value.eq_ignore_ascii_case(b"no") {
            return false;
        }
        if value.eq_ignore_ascii_case(b"yes") {
            return true;
        }
    }
    *settings.buffering
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

    /// Finds body bytes in a piece, from `from` on. Trailers must fit in `trailers_max`.
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

impl Found {
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
}

struct Relay<'a> {
    c: &'a Connection,
    upstream: &'a Stream,
    settings: &'a Settings,
    body: Incoming,
    buffering: bool,
    /// Framed bytes that the client has not taken yet, and how many they are.
    queue: VecDeque<Buffer>,
    queued: usize,
    /// When the client last took something, or the queue began.
    progress_ms: u64,
}

impl Relay<'_> {
    async fn run(mut self, r: &mut Request, ahead: usize) -> Result<bool, Close> {
        // What came with the head is sent with the head.
        let mut piece = std::mem::take(&mut r.upstream_bytes);
        let head_len = piece.len() - ahead;
        let mut clean = self.forward(r, &piece, head_len).await?;
        r.upstream_bytes = std::mem::take(&mut piece);
        let mut at_end = false;
        while !self.body.is_complete() && !at_end {
            if piece.capacity() == 0 {
                piece = Buffer::with_capacity(*self.settings.buffer_size);
            }
            match self.receive(r, &mut piece).await? {
                Received::End => at_end = true,
                Received::Bytes => {
                    let full = piece.spare() == 0;
                    clean = self.forward(r, &piece, 0).await?;
                    // A response that fills its buffer is a long one.
                    if full && piece.capacity() < PIECE_MAX {
                        piece = Buffer::with_capacity(PIECE_MAX);
                    } else {
                        piece.clear();
                    }
                }
            }
        }
        drop(piece);
        if at_end && !matches!(self.body, Incoming::UntilClose) {
            self.flush(r).await?;
            self.c.action.set(Action::ReadingUpstream);
            let text = format_args!("upstream prematurely closed connection");
            self.c.log(r, Level::Error, text);
            return Err(Close::Truncated);
        }
        if at_end && r.response.chunked {
            let end = headers::end_of_chunked(self.c, r);
            self.send(r, &mut [IoSlice::new(&end)]).await?;
        }
        self.flush(r).await?;
        r.response.complete = true;
        Ok(clean && !at_end)
    }

    /// Forwards what a received piece holds from `from` on; the head goes first if it is still
    /// here. False: the upstream sent more than belongs to the response.
    async fn forward(
        &mut self,
        r: &mut Request,
        piece: &Buffer,
        from: usize,
    ) -> Result<bool, Close> {
        let raw = piece.as_slice();
        let mut at = from;
        loop {
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
            let (complete, surplus_text) = (self.body.is_complete(), self.surplus_text(r));
            if let Some(trailers) = self.body.take_trailers() {
                head::put_trailers(r, self.settings, trailers);
            }
            if let Some(attempt) = r.attempts.last_mut() {
                attempt.response_length += found.bytes as u64;
            }
            if let Some(window) = &mut r.response.window {
                found.bytes = window.cut(&mut found.spans);
            }
            self.send_found(r, raw, &found, complete).await?;
            if complete || at >= raw.len() {
                if found.surplus
                    && let Some(text) = surplus_text
                {
                    self.c.action.set(Action::ReadingUpstream);
                    self.c.log(r, Level::Warn, format_args!("{text}"));
                }
                return Ok(!found.surplus);
            }
        }
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
        let end = match complete && r.response.chunked {
            true => headers::end_of_chunked(self.c, r),
            false => Cow::Borrowed(b"".as_slice()),
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
            self.send(r, &mut slices).await
        } else {
            r.response.head_sent = true;
            let head_len = head.len();
            if r.version() == Version::Http09 {
                // The body alone.
                self.send(r, &mut slices).await
            } else if found.bytes <= COPIED {
                r.response.head_bytes += head_len as u64;
                for slice in &slices {
                    head.extend_from_slice(slice);
                }
                let sent = self.send(r, &mut [IoSlice::new(&head)]).await;
                head.truncate(head_len);
                sent
            } else {
                r.response.head_bytes += head_len as u64;
                slices.insert(0, IoSlice::new(&head));
                self.send(r, &mut slices).await
            }
        };
        drop(slices);
        r.response.head = head;
        sent
    }

    /// Sends in order. What the client does not take at once is queued while buffering allows it;
    /// otherwise this waits for the client.
    async fn send(&mut self, r: &mut Request, mut slices: &mut [IoSlice<'_>]) -> Result<(), Close> {
        self.c.action.set(Action::SendingResponse);
        if !self.queue.is_empty() {
            self.enqueue(slices);
            return self.drain_to(r, self.queue_max()).await;
        }
        loop {
            while slices.first().is_some_and(|slice| slice.is_empty()) {
                slices = &mut slices[1..];
            }
            if slices.is_empty() {
                return Ok(());
            }
            match self.c.stream.try_send(slices) {
                Ok(sent) => {
                    r.response.bytes_sent += sent as u64;
                    IoSlice::advance_slices(&mut slices, sent);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.enqueue(slices);
                    return self.drain_to(r, self.queue_max()).await;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e).into()),
            }
        }
    }

    /// Bytes that may wait for the client while more is read from the upstream.
    fn queue_max(&self) -> usize {
        if self.buffering { self.settings.buffers.number * self.settings.buffers.size } else { 0 }
    }

    fn enqueue(&mut self, slices: &[IoSlice<'_>]) {
        if self.queue.is_empty() {
            self.progress_ms = timer::now_ms();
        }
        for slice in slices.iter().filter(|slice| !slice.is_empty()) {
            self.queued += slice.len();
            match self.queue.back_mut() {
                Some(last) if last.spare() >= slice.len() => last.extend(slice),
                _ => {
                    let mut buffer = Buffer::with_capacity(slice.len().max(4 << 10));
                    buffer.extend(slice);
                    self.queue.push_back(buffer);
                }
            }
        }
    }

    /// Sends from the queue what the client takes at once.
    fn send_queued(&mut self, r: &mut Request) -> Result<(), Close> {
        while !self.queue.is_empty() {
            let slices: SmallVec<[IoSlice<'_>; SPANS]> =
                self.queue.iter().take(SPANS).map(|b| IoSlice::new(b.as_slice())).collect();
            match self.c.stream.try_send(&slices) {
                Ok(sent) => {
                    drop(slices);
                    self.progress_ms = timer::now_ms();
                    r.response.bytes_sent += sent as u64;
                    self.queued -= sent;
                    let mut left = sent;
                    while let Some(front) = self.queue.front_mut() {
                        let take = left.min(front.len());
                        front.consume(take);
                        left -= take;
                        if !front.is_empty() {
                            break;
                        }
                        self.queue.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e).into()),
            }
        }
        Ok(())
    }

    /// Waits for the client until no more than `most` bytes are queued.
    async fn drain_to(&mut self, r: &mut Request, most: usize) -> Result<(), Close> {
        while self.queued > most {
            self.c.action.set(Action::SendingResponse);
            self.c.stream.writable(self.send_time_left(r)).await?;
            self.send_queued(r)?;
        }
        Ok(())
    }

    /// What is left of `send_timeout` since the client took something. The upstream's bytes do not
    /// renew it.
    fn send_time_left(&self, r: &Request) -> Duration {
        let limit = *self.c.settings(r).core.send_timeout;
        let waited = Duration::from_millis(timer::now_ms().saturating_sub(self.progress_ms));
        limit.saturating_sub(waited)
    }

    async fn flush(&mut self, r: &mut Request) -> Result<(), Close> {
        self.drain_to(r, 0).await
    }

    /// Receives the next piece; meanwhile the client is given what it takes of the queue.
    async fn receive(&mut self, r: &mut Request, piece: &mut Buffer) -> Result<Received, Close> {
        let limit = *self.settings.read_timeout;
        let upstream = self.upstream;
        while !self.queue.is_empty() {
            // Both are only asked for readiness here: what is dropped loses nothing.
            let send_timeout = self.send_time_left(r);
            let ready =
                either(upstream.readable(limit, Wait::Busy), self.c.stream.writable(send_timeout));
            match ready.await {
                Either::First(Ok(())) => break,
                Either::First(Err(failure)) => return Err(self.upstream_failed(r, &failure)),
                Either::Second(writable) => {
                    writable?;
                    self.send_queued(r)?;
                }
            }
        }
        self.c.action.set(Action::ReadingUpstream);
        let ignore_abort = *self.settings.ignore_client_abort;
        let buffer = std::mem::take(piece);
        let (received, buffer) =
            receive_watching_client(self.c, r, upstream, buffer, limit, ignore_abort).await?;
        *piece = buffer;
        match received {
            Ok(0) => Ok(Received::End),
            Ok(n) => {
                if let Some(attempt) = r.attempts.last_mut() {
                    attempt.bytes_received += n as u64;
                }
                Ok(Received::Bytes)
            }
            Err(failure) => Err(self.upstream_failed(r, &failure)),
        }
    }

    /// The upstream broke off in the middle: the client must see that too.
    fn upstream_failed(&self, r: &Request, failure: &Failure) -> Close {
        self.c.action.set(Action::ReadingUpstream);
        match failure {
            Failure::TimedOut => self.c.log(
                r,
                Level::Error,
                format_args!("upstream timed out (110: Connection timed out)"),
            ),
            Failure::Io(e) => {
                self.c.log_errno(r, Level::Error, format_args!("recv() failed"), e);
            }
            Failure::Interrupted => return Close::Interrupted,
        }
        Close::Truncated
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
