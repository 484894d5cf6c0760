"""Where io_uring is denied, as in many containers, epoll does the same work. (`scripts/test --black-box --epoll`
runs all the black-box tests that way.)"""

import hashlib
import os

import pytest
from websockets.sync.client import connect

from harness.proxy import Binary
from harness.upstream import answering, script, head, to_end

pytestmark = pytest.mark.ringx_only("nginx uses epoll anyway")


@pytest.fixture
def binary(binary: Binary) -> Binary:
    return Binary(binary.path, without_io_uring=True)


def test_one_line_says_why(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; return 200; }")
    assert proxy.get("/").status == 200
    proxy.logged("io_uring is not available (1: Operation not permitted), using epoll")
    proxy.logged('using the "epoll" event method')
    assert proxy.log("error.log").count("using epoll") == 1


def test_a_tunnel_echoes(example, python_echo):
    proxy = example(
        "websocket.conf", {"listen 9000;": "listen 127.0.0.1:@port@;", "127.0.0.1:8800": python_echo.address}
    )
    data = os.urandom(1 << 20)
    with connect(f"ws://127.0.0.1:{proxy.port}/", proxy=None, compression=None, max_size=None) as client:
        for message in ["text", b"bytes", data]:
            client.send(message)
            assert client.recv(timeout=10) == message


def test_an_application_is_uploaded_to_and_downloaded_from(example, flask_app):
    proxy = example(
        "uwsgi.conf",
        {"listen 7001;": "listen 127.0.0.1:@port@; client_max_body_size 0;", "127.0.0.1:7000": flask_app.address},
    )
    body = os.urandom(10 << 20)
    told = proxy.get("/upload", method="POST", body=body)
    assert hashlib.sha256(body).hexdigest().encode() in told.body
    assert len(proxy.get(f"/download/{10 << 20}").body) == 10 << 20


def test_connections_are_kept_and_timeouts_strike(serve, upstream):
    quick = upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    silent = upstream(script(head, to_end))
    proxy = serve(
        """
        upstream kept { server @quick@; keepalive 4; }
        proxy_read_timeout 300ms;
        server {
            listen 127.0.0.1:@port@;
            location / { proxy_pass http://kept; }
            location /silent { proxy_pass http://@silent@; }
        }
        """,
        quick=quick.address,
        silent=silent.address,
    )
    wire = proxy.connect()
    for _ in range(20):
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b"ok"
    assert proxy.get("/silent").status == 504
