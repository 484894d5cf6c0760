//! Waiting for an upstream with an eye on the client, who may leave meanwhile.

use std::io;
use std::pin::pin;
use std::time::Duration;

use crate::error_log::Level;
use crate::http::close::Close;
use crate::http::connection::Connection;
use crate::http::request::Request;
use crate::io::select::{Either, either};
use crate::io::stream::Failure;
use crate::io::timer::{Expired, Wait};
use crate::io::{Buffer, Stream};

/// A client that leaves is noticed at the latest this long after: an exchange that is over sooner
/// never looks.
const CLIENT_WATCH_AFTER: Duration = Duration::from_millis(100);

/// One receive from the upstream. A client that leaves meanwhile ends the exchange, unless that is
/// to be ignored. One timer serves both waits: almost all are over before the client is looked at.
pub async fn receive_watching_client(
    c: &Connection,
    r: &mut Request,
    upstream: &Stream,
    buffer: Buffer,
    limit: Duration,
    ignore_abort: bool,
) -> Result<(Result<usize, Failure>, Buffer), Close> {
    let mut receive = pin!(upstream.recv_unlimited(buffer));
    let quick = limit.min(CLIENT_WATCH_AFTER);
    let timer = upstream.timer();
    let mut received = timer.within(quick, Wait::Busy, receive.as_mut()).await;
    if quick < limit && matches!(received, Err(Expired::Elapsed)) {
        let left = limit.saturating_sub(quick);
        let receive = timer.within(left, Wait::Busy, receive.as_mut());
        received = if ignore_abort {
            receive.await
        } else {
            match either(receive, client_left(&c.stream)).await {
                Either::First(received) => received,
                Either::Second(left) => return Err(client_aborted(c, r, left)),
            }
        };
    }
    Ok(match received {
        Ok((received, buffer)) => (received.map_err(Failure::Io), buffer),
        // The operation took the buffer along: the kernel may still write to it.
        Err(expired) => (Err(expired.into()), Buffer::empty()),
    })
}

/// Waits for something of the upstream's side, which is dropped when the client leaves.
pub async fn watching_client<F: Future>(
    c: &Connection,
    r: &mut Request,
    future: F,
    ignore_abort: bool,
) -> Result<F::Output, Close> {
    let mut future = pin!(future);
    let client = &c.stream;
    let quick = client.timer().within(CLIENT_WATCH_AFTER, Wait::Busy, future.as_mut()).await;
    match quick {
        Ok(output) => Ok(output),
        Err(_) if ignore_abort => Ok(future.await),
        Err(_) => match either(future.as_mut(), client_left(client)).await {
            Either::First(output) => Ok(output),
            Either::Second(left) => Err(client_aborted(c, r, left)),
        },
    }
}

/// The client has left while an upstream worked for it. The words are nginx's, as people look for
/// them, whatever it is that has reported it.
#[cold]
pub fn client_aborted(c: &Connection, r: &mut Request, left: Left) -> Close {
    let text = format_args!(
        "epoll_wait() reported that client prematurely closed connection, so upstream connection is \
         closed too"
    );
    match left {
        Left::Ended => c.log(r, Level::Info, text),
        Left::Failed(error) => c.log_errno(r, Level::Info, text, &error),
    }
    if !r.response.head_sent {
        r.response.status = 499;
    }
    Close::ClientAbortedExchange
}

/// How a client leaves.
#[derive(Debug)]
pub enum Left {
    /// It has closed its side.
    Ended,
    /// It has reset the connection, say.
    Failed(io::Error),
}

/// Ends when the client has left. Bytes that it has sent ahead do not hide that.
pub async fn client_left(client: &Stream) -> Left {
    let _ = client.readable_unlimited().await;
    match client.has_unread_bytes() {
        Ok(false) => Left::Ended,
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Left::Failed(error),
        Ok(true) | Err(_) => {
            if client.ended().await.is_err() {
                // It cannot be watched: the answer, or a timer, ends the wait.
                std::future::pending::<()>().await;
            }
            client.take_error().map_or(Left::Ended, Left::Failed)
        }
    }
}
