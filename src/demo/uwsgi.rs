//! An application server that speaks uwsgi, as uWSGI does: a few workers, each with one connection
//! at a time, which it closes after its response.

use std::io::{self, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::pause_after_failed_accept;
use crate::uwsgi::{HEADER_LENGTH, Header, PacketError, Pair, decode_block, get};

const WORKERS: usize = 8;
/// How long a worker waits for bytes, as uWSGI's `--socket-timeout`.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(4);
/// The most of a request body that is read before the response: closing a socket that holds unread
/// bytes would reset the connection and could take the response with it.
const BODY_LENGTH_MAX: u64 = 16 << 20;

/// Starts the workers. They take turns at the listener.
pub fn start(listener: TcpListener) -> io::Result<()> {
    let listener = Arc::new(listener);
    for number in 1..=WORKERS {
        let listener = Arc::clone(&listener);
        thread::Builder::new().name(format!("demo uwsgi {number}")).spawn(move || {
            loop {
                match listener.accept() {
                    // A request that is no good is dropped without a word.
                    Ok((connection, _)) => drop(serve(&connection)),
                    Err(_) => pause_after_failed_accept(),
                }
            }
        })?;
    }
    Ok(())
}

/// Why a connection ends without a response.
#[derive(Debug, Error)]
enum Refusal {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// Modifier 0 is WSGI; others ask for what is not there.
    #[error("unavailable modifier requested: {0}")]
    Modifier(u8),
}

fn serve(mut connection: &TcpStream) -> Result<(), Refusal> {
    connection.set_read_timeout(Some(SOCKET_TIMEOUT))?;
    connection.set_write_timeout(Some(SOCKET_TIMEOUT))?;

    let mut header = [0; HEADER_LENGTH];
    connection.read_exact(&mut header)?;
    let header = Header::decode(header);
    if header.modifier1 != 0 {
        return Err(Refusal::Modifier(header.modifier1));
    }
    let mut block = vec![0; usize::from(header.block_length)];
    connection.read_exact(&mut block)?;
    let environ = decode_block(&block)?;

    io::copy(&mut connection.take(body_length(&environ).min(BODY_LENGTH_MAX)), &mut io::sink())?;
    connection.write_all(&application())?;
    connection.shutdown(Shutdown::Write)?;
    Ok(())
}

fn body_length(environ: &[Pair<'_>]) -> u64 {
    get(environ, b"CONTENT_LENGTH")
        .and_then(|value| std::str::from_utf8(value).ok())
        .and_then(|value| value.parse().ok())
        .unwrap_or(0)
}

/// The application of every uWSGI tutorial, and the server's head around it.
fn application() -> Vec<u8> {
    const BODY: &str = "hello world\n";
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uwsgi::{block_length, header, put_pair};

    fn answer(request: &[u8]) -> io::Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        start(listener).unwrap();
        let mut connection = TcpStream::connect(address).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        connection.write_all(request).unwrap();
        let mut response = String::new();
        connection.read_to_string(&mut response).map(|_| response)
    }

    fn packet(modifier1: u8, pairs: &[(&str, &str)], body: &str) -> Vec<u8> {
        let mut block = Vec::new();
        for (key, value) in pairs {
            put_pair(&mut block, key.as_bytes(), value.as_bytes()).unwrap();
        }
        let header = header(modifier1, block_length(block.len()).unwrap(), 0);
        [&header, &*block, body.as_bytes()].concat()
    }

    const RESPONSE: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\n\r\nhello world\n";

    #[test]
    fn one_response_then_close() {
        let get = packet(0, &[("REQUEST_METHOD", "GET"), ("CONTENT_LENGTH", "")], "");
        assert_eq!(answer(&get).unwrap(), RESPONSE);
        let post = packet(0, &[("REQUEST_METHOD", "POST"), ("CONTENT_LENGTH", "4")], "body");
        assert_eq!(answer(&post).unwrap(), RESPONSE);
    }

    #[test]
    fn bad_packets_get_no_response() {
        assert_eq!(answer(&packet(9, &[("A", "b")], "")).unwrap_or_default(), "");
        assert_eq!(answer(b"\x00\x04\x00\x00\x09\x00ab").unwrap_or_default(), "");
    }
}
