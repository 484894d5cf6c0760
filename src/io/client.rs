//! One HTTP/1.1 request away from the traffic: monoio-http, and the bounds that it lacks.
//!
//! The crate waits for a head however long it is, takes none that is not ended by CRLF twice, and
//! gives a body (or a chunk of one) away when it has all of it. So its decoder reads through
//! [`Bounded`], which fails at a limit, and is asked for heads alone; a body is then read as bytes,
//! behind what the decoder has in its buffer, as far as it is wanted and no further. That also reads
//! a body that only the close ends, of which the crate knows nothing.

use std::io;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, StatusCode};
use monoio::BufResult;
use monoio::buf::{IoBufMut, IoVecBufMut};
use monoio::io::sink::Sink;
use monoio::io::stream::Stream as _;
use monoio::io::{AsyncReadRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;
use monoio_http::common::body::StreamHint;
use monoio_http::common::error::HttpError;
use monoio_http::h1::BorrowFramedRead;
use monoio_http::h1::codec::decoder::{ClientResponseDecoder, DecodeError};
use monoio_http::h1::codec::encoder::{EncodeError, GenericEncoder};
use monoio_http::h1::payload::Payload;

use super::Stream;
use crate::http1::chunked;

/// Bytes of all heads of an answer, informational ones included; a buffer more may be read.
pub const HEADS_MAX: usize = 32 << 10;
/// Bytes of a body read at once; with less than twice its buffer's 8 KiB, the decoder would read into
/// that first.
const PIECE: usize = 16 << 10;

/// What is asked: a method, a target, headers.
pub type Request = http::Request<()>;

/// A connection that is asked once.
pub struct Client {
    encoder: GenericEncoder<OwnedWriteHalf<TcpStream>>,
    decoder: ClientResponseDecoder<Bounded>,
}

/// A final head.
#[derive(Debug)]
pub struct Head {
    pub status: u16,
    pub headers: HeaderMap,
    body: BodyLength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyLength {
    None,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Io(io::Error),
    #[error("prematurely closed connection")]
    Closed,
    #[error("sent too big header")]
    HeadTooBig,
    #[error("sent invalid header: {0}")]
    InvalidHead(String),
    #[error("sent invalid chunked response")]
    InvalidChunks,
}

impl Client {
    pub fn new(stream: Stream) -> io::Result<Self> {
        let stream = TcpStream::from_std(std::net::TcpStream::from(stream.into_fd()?))?;
        let (read, write) = stream.into_split();
        let read = Bounded { inner: read, left: HEADS_MAX };
        Ok(Client {
            encoder: GenericEncoder::new(write),
            decoder: ClientResponseDecoder::new(read),
        })
    }

    pub async fn send(&mut self, request: &Request) -> io::Result<()> {
        let body: Payload = Payload::None;
        let request = request.clone().map(|()| body);
        self.encoder.send(request).await.map_err(sending)?;
        // Which kind of item was sent plays no part in flushing it.
        Sink::<http::Request<Payload>>::flush(&mut self.encoder).await.map_err(sending)?;
        Ok(())
    }

    /// The final head; informational ones before it are passed over.
    pub async fn head(&mut self) -> Result<Head, ClientError> {
        loop {
            let response = match self.decoder.next().await {
                None => return Err(ClientError::Closed),
                Some(Err(error)) => return Err(reading(error)),
                Some(Ok(response)) => response,
            };
            let status = response.status();
            if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
                continue;
            }
            let (parts, body) = response.into_parts();
            let body = body_length(status, &parts.headers, body.hint())?;
            return Ok(Head { status: status.as_u16(), headers: parts.headers, body });
        }
    }

    /// The body's first bytes, at most `max`.
    pub async fn body(&mut self, head: &Head, max: usize) -> Result<Vec<u8>, ClientError> {
        let reader = self.decoder.framed_mut();
        // From here on `max` is the bound.
        reader.get_mut().left = usize::MAX;
        let mut chunks = chunked::Decoder::default();
        let mut body = Vec::new();
        let end = match head.body {
            BodyLength::None => 0,
            BodyLength::Length(length) => usize::try_from(length).unwrap_or(usize::MAX).min(max),
            BodyLength::Chunked | BodyLength::UntilClose => max,
        };
        while body.len() < end && !chunks.is_done() {
            let (received, piece) = reader.read(Vec::with_capacity(PIECE)).await;
            match (received.map_err(ClientError::Io)?, head.body) {
                (0, BodyLength::UntilClose) => break,
                (0, _) => return Err(ClientError::Closed),
                (_, BodyLength::Chunked) => decode(&mut chunks, &piece, &mut body)?,
                _ => body.extend_from_slice(&piece),
            }
        }
        body.truncate(end);
        Ok(body)
    }
}

fn body_length(
    status: StatusCode,
    headers: &HeaderMap,
    hint: StreamHint,
) -> Result<BodyLength, ClientError> {
    if status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        return Ok(BodyLength::None);
    }
    match (hint, headers.get(CONTENT_LENGTH)) {
        (StreamHint::Stream, _) => Ok(BodyLength::Chunked),
        (_, None) => Ok(BodyLength::UntilClose),
        // The decoder has looked at the value, in its own lax way.
        (_, Some(length)) => {
            let length = length.to_str().ok().and_then(|length| length.parse().ok());
            let invalid = || ClientError::InvalidHead("Content-Length".to_owned());
            length.map(BodyLength::Length).ok_or_else(invalid)
        }
    }
}

fn decode(
    chunks: &mut chunked::Decoder,
    mut piece: &[u8],
    body: &mut Vec<u8>,
) -> Result<(), ClientError> {
    while !piece.is_empty() && !chunks.is_done() {
        let step = chunks.decode(piece).map_err(|_| ClientError::InvalidChunks)?;
        body.extend_from_slice(step.data.of(piece));
        piece = piece.get(step.consumed..).unwrap_or_default();
    }
    Ok(())
}

fn sending(error: HttpError) -> io::Error {
    match error {
        HttpError::IOError(error) | HttpError::H1EncodeError(EncodeError::Io(error)) => error,
        other => io::Error::other(other),
    }
}

fn reading(error: HttpError) -> ClientError {
    match error {
        HttpError::IOError(error) | HttpError::H1DecodeError(DecodeError::Io(error)) => {
            let is_at_limit = matches!(error.get_ref(), Some(inner) if inner.is::<AtLimit>());
            if is_at_limit {
                ClientError::HeadTooBig
            } else if error.raw_os_error().is_none() {
                // The system did not say it: the decoder misses the rest of a head.
                ClientError::Closed
            } else {
                ClientError::Io(error)
            }
        }
        HttpError::H1DecodeError(DecodeError::UnexpectedEof) => ClientError::Closed,
        HttpError::H1DecodeError(error) => ClientError::InvalidHead(error.to_string()),
        other => ClientError::InvalidHead(other.to_string()),
    }
}

/// The reading half of a connection, up to so many bytes.
struct Bounded {
    inner: OwnedReadHalf<TcpStream>,
    left: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("more bytes than there may be")]
struct AtLimit;

impl Bounded {
    fn count<T>(&mut self, (received, buffer): BufResult<usize, T>) -> BufResult<usize, T> {
        if let Ok(received) = received {
            self.left = self.left.saturating_sub(received);
        }
        (received, buffer)
    }
}

impl AsyncReadRent for Bounded {
    async fn read<T: IoBufMut>(&mut self, buffer: T) -> BufResult<usize, T> {
        if self.left == 0 {
            return (Err(io::Error::other(AtLimit)), buffer);
        }
        let result = self.inner.read(buffer).await;
        self.count(result)
    }

    async fn readv<T: IoVecBufMut>(&mut self, buffer: T) -> BufResult<usize, T> {
        if self.left == 0 {
            return (Err(io::Error::other(AtLimit)), buffer);
        }
        let result = self.inner.readv(buffer).await;
        self.count(result)
    }
}
