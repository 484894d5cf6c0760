//! A WebSocket server that sends every message back, and to an ordinary GET a page that talks to
//! it: what the page shows has gone through the proxy and back.

use std::io::{self, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;
use tungstenite::handshake::server::{Request, create_response, write_response};
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use super::pause_after_failed_accept;

/// Connections at a time, a thread each; what comes beyond is closed at once.
const CONNECTIONS_MAX: usize = 512;
/// Enough for a head and a few frames: the page and tungstenite need no more.
const STACK_SIZE: usize = 128 << 10;
const HEAD_LENGTH_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 100;
const MESSAGE_LENGTH_MAX: usize = 16 << 20;
/// When the whole head must have arrived.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// When a WebSocket on which nothing comes is closed. Longer than the proxy's default, which is to
/// be seen at work.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Starts to accept connections.
pub fn start(listener: TcpListener) -> io::Result<()> {
    thread::Builder::new().name("demo websocket".to_owned()).spawn(move || accept(&listener))?;
    Ok(())
}

fn accept(listener: &TcpListener) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((connection, _)) = listener.accept() else {
            pause_after_failed_accept();
            continue;
        };
        let Some(place) = Place::take(&open) else { continue };
        let thread = thread::Builder::new().name("demo websocket".to_owned());
        // Without a thread there is no service: the connection and its place are dropped.
        let _ = thread.stack_size(STACK_SIZE).spawn(move || {
            let _place = place;
            // A client that breaks off or breaks the rules is dropped without a word.
            let _ = serve(connection);
        });
    }
}

/// One of the [`CONNECTIONS_MAX`], given back when dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(open: &Arc<AtomicUsize>) -> Option<Self> {
        open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
            #[expect(clippy::arithmetic_side_effects, reason = "below the maximum")]
            (count < CONNECTIONS_MAX).then_some(count + 1)
        })
        .ok()
        .map(|_| Self(Arc::clone(open)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug, Error)]
enum Refusal {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http(#[from] httparse::Error),
    #[error("the request head is longer than {HEAD_LENGTH_MAX} bytes")]
    HeadTooLong,
    #[error(transparent)]
    Request(#[from] tungstenite::http::Error),
    #[error(transparent)]
    WebSocket(#[from] Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for Refusal {
    fn from(error: tungstenite::Error) -> Self {
        Self::WebSocket(Box::new(error))
    }
}

fn serve(mut connection: TcpStream) -> Result<(), Refusal> {
    connection.set_nodelay(true)?;
    connection.set_write_timeout(Some(WRITE_TIMEOUT))?;

    let (head, rest) = read_head(&mut connection)?;
    let request = parse_head(&head)?;
    if !request.headers().contains_key("Upgrade") {
        connection.write_all(&answer(&request))?;
        return Ok(());
    }
    let Ok(response) = create_response(&request) else {
        connection.write_all(&plain("400 Bad Request", "text/plain", b"not a handshake\n"))?;
        return Ok(());
    };
    let mut head = Vec::new();
    write_response(&mut head, &response)?;
    connection.write_all(&head)?;
    echo(connection, rest)
}

/// Reads to the end of the request head: the head, and what came behind it.
fn read_head(connection: &mut TcpStream) -> Result<(Vec<u8>, Vec<u8>), Refusal> {
    #[expect(clippy::arithmetic_side_effects, reason = "seconds from now")]
    let deadline = Instant::now() + HEAD_TIMEOUT;
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        connection.set_read_timeout(Some(left))?;
        let length = connection.read(&mut piece)?;
        if length == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        head.extend_from_slice(piece.get(..length).unwrap_or_default());
        if let Some(end) = memchr::memmem::find(&head, b"\r\n\r\n") {
            #[expect(clippy::arithmetic_side_effects, reason = "four bytes have been found there")]
            let rest = head.split_off(end + 4);
            return Ok((head, rest));
        }
        if head.len() > HEAD_LENGTH_MAX {
            return Err(Refusal::HeadTooLong);
        }
    }
}

fn parse_head(head: &[u8]) -> Result<Request, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(head)?;
    let mut request = Request::builder()
        .method(parsed.method.unwrap_or_default())
        .uri(parsed.path.unwrap_or_default())
        .version(match parsed.version {
            Some(1) => tungstenite::http::Version::HTTP_11,
            _ => tungstenite::http::Version::HTTP_10,
        });
    for header in parsed.headers.iter() {
        request = request.header(header.name, header.value);
    }
    Ok(request.body(())?)
}

/// Sends every message back until either side ends it.
fn echo(connection: TcpStream, received: Vec<u8>) -> Result<(), Refusal> {
    connection.set_read_timeout(Some(READ_TIMEOUT))?;
    let config = WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MESSAGE_LENGTH_MAX)
        .max_message_size(Some(MESSAGE_LENGTH_MAX))
        .max_frame_size(Some(MESSAGE_LENGTH_MAX));
    let mut websocket =
        WebSocket::from_partially_read(connection, received, Role::Server, Some(config));
    loop {
        // Pings and the closing handshake are answered by `read`; the end is an error of its kind.
        let message = websocket.read()?;
        if matches!(message, Message::Text(_) | Message::Binary(_)) {
            websocket.send(message)?;
        }
    }
}

/// The answer to a request that is not a handshake.
fn answer(request: &Request) -> Vec<u8> {
    let mut response = match request.method().as_str() {
        "GET" | "HEAD" => plain("200 OK", "text/html; charset=utf-8", PAGE.as_bytes()),
        _ => plain("405 Not Allowed", "text/plain", b"GET or a WebSocket handshake\n"),
    };
    if request.method() == "HEAD" {
        #[expect(clippy::arithmetic_side_effects, reason = "the response ends with the page")]
        response.truncate(response.len() - PAGE.len());
    }
    response
}

/// A response that ends its connection.
fn plain(status: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Opens a WebSocket to where the page came from and sends a message a second.
const PAGE: &str = include_str!("page.html");

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn server() -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        start(listener).unwrap();
        let connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        connection
    }

    fn answer_to(request: &str) -> String {
        let mut connection = server();
        connection.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        connection.read_to_string(&mut response).unwrap();
        response
    }

    #[test]
    fn every_message_comes_back() {
        let (mut websocket, response) =
            tungstenite::client("ws://demo/", server()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(response.status(), 101);
        for message in
            [Message::text("hello"), Message::binary(vec![7; 200_000]), Message::text("")]
        {
            websocket.send(message.clone()).unwrap();
            assert_eq!(websocket.read().unwrap(), message);
        }
        websocket.send(Message::Ping(vec![1, 2].into())).unwrap();
        assert_eq!(websocket.read().unwrap(), Message::Pong(vec![1, 2].into()));
        websocket.close(None).unwrap();
        assert!(matches!(websocket.read().unwrap(), Message::Close(_)));
        assert!(matches!(websocket.read(), Err(tungstenite::Error::ConnectionClosed)));
    }

    #[test]
    fn frames_behind_the_head_are_not_lost() {
        let mut connection = server();
        connection
            .write_all(
                b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
                  Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\
                  \x81\x82\x00\x00\x00\x00hi",
            )
            .unwrap();
        let (head, mut rest) = read_head(&mut connection).unwrap();
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"));
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        while rest.len() < 4 {
            let mut byte = [0];
            connection.read_exact(&mut byte).unwrap();
            rest.extend(byte);
        }
        assert_eq!(rest, b"\x81\x02hi");
    }

    #[test]
    fn an_ordinary_get_gets_the_page() {
        let page = answer_to("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(page.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(page.ends_with(PAGE));
        for id in ["id=\"status\"", "id=\"echoes\"", "id=\"rtt\""] {
            assert!(page.contains(id), "{id}");
        }
        let head = answer_to("HEAD / HTTP/1.0\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", PAGE.len())));
    }

    #[test]
    fn what_is_neither() {
        assert!(answer_to("POST / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        let response = answer_to("GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n");
        assert!(response.starts_with("HTTP/1.1 400 "));
        assert_eq!(answer_to("nonsense\r\n\r\n"), "");
    }

    #[test]
    fn places_are_limited_and_given_back() {
        let open = Arc::new(AtomicUsize::new(0));
        let places: Vec<_> = std::iter::from_fn(|| Place::take(&open)).collect();
        assert_eq!(places.len(), CONNECTIONS_MAX);
        drop(places);
        assert!(Place::take(&open).is_some());
    }

    proptest! {
        #[test]
        fn any_head_is_parsed_or_refused(path in "[ -~]{0,20}", header in vec(any::<u8>(), 0..40)) {
            let start = format!("GET {path} HTTP/1.1\r\nUpgrade: ");
            if let Ok(request) = parse_head(&[start.as_bytes(), &header, b"\r\n\r\n"].concat()) {
                prop_assert!(request.headers().contains_key("Upgrade"));
            }
        }
    }
}
