//! The embedded upstreams of `--demo`: a WebSocket echo server and a uwsgi application server, on
//! plain threads, and a configuration that proxies to them.
//!
//! They are what a user would otherwise have to install before seeing ringx at work, so they keep
//! to what such servers do, and put a limit on everything.

mod uwsgi;
mod websocket;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

/// Where the embedded upstreams listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demo {
    pub websocket: SocketAddr,
    pub uwsgi: SocketAddr,
}

/// The ports of the examples that people know; any other will do when they are taken.
const WEBSOCKET_PORT: u16 = 8800;
const UWSGI_PORT: u16 = 7000;

/// Where the configuration of the demo makes ringx listen.
const WEBSOCKET_PROXY_PORT: u16 = 9000;
const UWSGI_PROXY_PORT: u16 = 7001;

/// Starts both servers. They run until the process ends.
pub fn start() -> io::Result<Demo> {
    let websocket = listen(WEBSOCKET_PORT)?;
    let uwsgi = listen(UWSGI_PORT)?;
    let demo = Demo { websocket: websocket.local_addr()?, uwsgi: uwsgi.local_addr()? };
    websocket::start(websocket)?;
    uwsgi::start(uwsgi)?;
    Ok(demo)
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)),
        _ => Err(error),
    })
}

/// Out of descriptors, most likely: others must close some before it can go on.
fn pause_after_failed_accept() {
    thread::sleep(Duration::from_millis(100));
}

/// The configuration of the demo: the two examples that everyone starts from.
pub fn configuration(demo: &Demo) -> String {
    let Demo { websocket, uwsgi } = demo;
    format!(
        "\
events {{
}}

http {{
    # A WebSocket server behind a proxy: the three lines that an upgrade needs.
    server {{
        listen 127.0.0.1:{WEBSOCKET_PROXY_PORT};

        location / {{
            proxy_pass http://{websocket};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection \"upgrade\";
        }}
    }}

    # An application server that speaks uwsgi.
    server {{
        listen 127.0.0.1:{UWSGI_PROXY_PORT};

        location / {{
            uwsgi_param QUERY_STRING    $query_string;
            uwsgi_param REQUEST_METHOD  $request_method;
            uwsgi_param CONTENT_TYPE    $content_type;
            uwsgi_param CONTENT_LENGTH  $content_length;
            uwsgi_param REQUEST_URI     $request_uri;
            uwsgi_param PATH_INFO       $document_uri;
            uwsgi_param DOCUMENT_ROOT   $document_root;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
            uwsgi_param REMOTE_ADDR     $remote_addr;
            uwsgi_param REMOTE_PORT     $remote_port;
            uwsgi_param SERVER_PORT     $server_port;
            uwsgi_param SERVER_NAME     $server_name;
            uwsgi_pass {uwsgi};
        }}
    }}
}}
"
    )
}

/// What `--demo` says once everything listens: what runs, and what to try.
pub fn greeting(demo: &Demo) -> String {
    let Demo { websocket, uwsgi } = demo;
    let websocket_proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, WEBSOCKET_PROXY_PORT));
    let uwsgi_proxy = SocketAddr::from((Ipv4Addr::LOCALHOST, UWSGI_PROXY_PORT));
    format!(
        "\
ringx {version}: a demonstration

  http://{websocket_proxy}/  ->  WebSocket echo server at {websocket}
  http://{uwsgi_proxy}/  ->  uwsgi application server at {uwsgi}

Try:

  a browser at http://{websocket_proxy}/

  curl -i http://{uwsgi_proxy}/

  curl -i -N --http1.1 --max-time 2 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \\
       -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' \\
       http://{websocket_proxy}/

Ctrl-C ends it.
",
        version = env!("CARGO_PKG_VERSION"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_no_obstacle() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = taken.local_addr().unwrap().port();
        let other = listen(taken).unwrap_or_else(|error| panic!("{error}"));
        assert!(other.local_addr().is_ok());
    }

    #[test]
    fn the_texts_name_the_servers() {
        let demo = start().unwrap();
        let configuration = configuration(&demo);
        assert!(configuration.contains(&format!("proxy_pass http://{};\n", demo.websocket)));
        assert!(configuration.contains(&format!("uwsgi_pass {};\n", demo.uwsgi)));
        assert_eq!(configuration.matches('{').count(), configuration.matches('}').count());
        let greeting = greeting(&demo);
        assert!(greeting.contains("\n  curl -i http://127.0.0.1:7001/\n"));
        assert!(greeting.contains("http://127.0.0.1:9000/\n"));
    }
}
