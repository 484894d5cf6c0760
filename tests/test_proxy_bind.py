"""The proxy's end of a connection to a server: proxy_bind, socket buffers, keepalive probes."""

import os
import re
import socket
import subprocess
import threading

import pytest

from harness.ports import free_port
from harness.proxy import eventually
from harness.upstream import answering, response
from harness.wire import DEADLINE

differs = pytest.mark.differs_in_nginx


@pytest.fixture
def bound(serve, upstream):
    def start(text, handler=answering(response(b"ok", "Connection: close")), **values):
        server = upstream(handler)
        proxy = serve(
            "server { listen 127.0.0.1:@port@; " + text + " location / { proxy_pass http://@upstream@; } }",
            upstream=server.address,
            **values,
        )
        return proxy, server

    return start


@pytest.mark.parametrize(
    "text, target, address",
    [
        ("proxy_bind 127.0.0.2;", "/", "127.0.0.2"),
        ("proxy_bind off;", "/", "127.0.0.1"),
        ("proxy_bind $arg_a;", "/?a=127.0.0.3", "127.0.0.3"),
        ("proxy_bind $arg_a;", "/", "127.0.0.1"),
        ("proxy_bind 127.0.0.$arg_n;", "/?n=9", "127.0.0.9"),
        ("proxy_bind 127.0.0.2 transparent;", "/", "127.0.0.2"),
        ("proxy_bind $remote_addr transparent;", "/", "127.0.0.1"),
        ("proxy_bind 127.0.0.2; location /x { proxy_bind off; proxy_pass http://@upstream@; }", "/x", "127.0.0.1"),
        ("proxy_bind 127.0.0.2; location /x { proxy_pass http://@upstream@; }", "/x", "127.0.0.2"),
    ],
)
def test_the_local_address(bound, text, target, address):
    if "transparent" in text and os.geteuid():
        pytest.skip("takes root")
    proxy, server = bound(text)
    for _ in range(2):
        assert proxy.get(target).status == 200
    assert server.peers() == [address] * 2


@pytest.mark.parametrize("variable", [False, True])
def test_the_local_port(bound, variable):
    port = free_port()
    address = f"127.0.0.2:{port}"
    proxy, server = bound("proxy_bind $arg_a;" if variable else f"proxy_bind {address};")
    assert proxy.get(f"/?a={address}").status == 200
    assert server.peers(port=True) == [address]


@pytest.mark.parametrize("value", ["300.1.1.1", "localhost", "127.0.0.1:0", "127.0.0.1:70000", "127.0.0.1:", "x:80"])
def test_a_value_that_is_no_address_is_passed_over(bound, value):
    proxy, server = bound("proxy_bind $arg_a;")
    assert proxy.get(f"/?a={value}").status == 200
    assert server.peers() == ["127.0.0.1"]
    line = proxy.logged(f'invalid local address "{value}"')
    assert "[error]" in line


@pytest.mark.parametrize("address, error", [("192.0.2.1", "99: Cannot assign requested address"), ("::1", "")])
def test_an_address_of_another_host(bound, address, error):
    proxy, server = bound(f"proxy_bind {address};")
    answer = proxy.get("/")
    assert answer.status == 500
    line = proxy.logged(f"bind({address}) failed ({error}")
    assert "[crit]" in line and "while connecting to upstream" in line and 'upstream: "http://127.0.0.1' in line
    assert not server.connections
    assert proxy.accessed()[0].split()[8] == "500"


def test_a_server_that_nobody_could_ask_is_not_told(bound):
    log = "$upstream_addr | $upstream_status | $upstream_connect_time | $upstream_response_time"
    proxy, server = bound(
        f"add_header X '{log}' always; proxy_bind 192.0.2.1; error_page 500 /page;"
        " location = /page { proxy_bind off; proxy_pass http://@upstream@; }"
        " location = /alone { error_page 599 /; proxy_pass http://@upstream@; }"
    )
    time = r"0\.\d\d\d"
    assert re.fullmatch(rf" \| - \| - \| {time}", proxy.get("/alone").get("X"))
    told = proxy.get("/").get("X")
    assert re.fullmatch(rf" : {server.address} \| - : 200 \| - : {time} \| {time} : -", told), told


def test_an_address_in_use(bound):
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.listen()
        port = other.getsockname()[1]
        proxy, _ = bound(f"proxy_bind 127.0.0.2:{port};")
        assert proxy.get("/").status == 500
        assert "[crit]" in proxy.logged(f"bind(127.0.0.2:{port}) failed (98: Address already in use)")


def test_a_uwsgi_connection_is_bound_too(serve, upstream):
    def handler(wire):
        wire.read_some()
        wire.send(response(b"ok"))

    server = upstream(handler)
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location / { uwsgi_bind 127.0.0.2; uwsgi_pass @upstream@; } }",
        upstream=server.address,
    )
    assert proxy.get("/").body == b"ok"
    assert server.peers() == ["127.0.0.2"]


@pytest.mark.parametrize(
    "text, error",
    [
        ("proxy_bind 300.1.1.1;", 'invalid address "300.1.1.1"'),
        ("proxy_bind localhost;", 'invalid address "localhost"'),
        ("proxy_bind 127.0.0.1:0;", 'invalid address "127.0.0.1:0"'),
        ("proxy_bind 127.0.0.1 opaque;", 'invalid parameter "opaque"'),
        ("proxy_bind 127.0.0.1; proxy_bind off;", '"proxy_bind" directive is duplicate'),
        ("proxy_bind;", 'invalid number of arguments in "proxy_bind" directive'),
        ("proxy_bind a b c;", 'invalid number of arguments in "proxy_bind" directive'),
        ("uwsgi_bind 1.2.3;", 'invalid address "1.2.3"'),
        ("proxy_limit_rate x;", '"proxy_limit_rate" directive invalid value'),
        ("limit_rate x;", '"limit_rate" directive invalid value'),
        ("limit_rate_after 1g;", '"limit_rate_after" directive invalid value'),
        ("limit_rate 1; limit_rate 2;", '"limit_rate" directive is duplicate'),
        ("set $limit_rate;", 'invalid number of arguments in "set" directive'),
        ("proxy_send_lowat x;", '"proxy_send_lowat" directive invalid value'),
    ],
)
def test_what_the_configuration_may_say(binary, tmp_path, text, error):
    (tmp_path / "logs").mkdir()
    conf = tmp_path / "nginx.conf"
    conf.write_text("events { } http { access_log off; server { listen 127.0.0.1:1;\n" + text + "\n} }")
    main = f"pid {tmp_path}/pid; error_log {tmp_path}/log;"
    told = binary.run("-t", "-p", tmp_path, "-c", conf, "-g", main).stderr
    assert "[emerg] " in told and f"{error} in {conf}:2" in told


def test_the_lowat_of_other_systems(binary, tmp_path):
    (tmp_path / "logs").mkdir()
    conf = tmp_path / "nginx.conf"
    conf.write_text("events { } http { access_log off; server { listen 127.0.0.1:1;\nproxy_send_lowat 12000;\n} }")
    told = binary.run("-t", "-p", tmp_path, "-c", conf, "-g", f"pid {tmp_path}/pid; error_log {tmp_path}/log;").stderr
    assert re.search(r'\[warn\] .*"proxy_send_lowat" is not supported, ignored in .*:2', told), told


@differs("since 1.31.3")
@pytest.mark.parametrize("family", ["proxy", "uwsgi"])
@pytest.mark.parametrize("name, column", [("rcvbuf", "rb"), ("sndbuf", "tb")])
def test_socket_buffers(serve, upstream, family, name, column):
    """`ss` shows them: doubled by the kernel, as setsockopt says."""
    proxy, found = asked_while_waiting(serve, upstream, family, f"{family}_socket_{name} 20k;")
    assert re.search(rf"skmem:\(.*\b{column}40960\b", found), found


@pytest.mark.parametrize("family", ["proxy", "uwsgi"])
@pytest.mark.parametrize("value", ["on", "off"])
def test_keepalive_probes(serve, upstream, family, value):
    proxy, found = asked_while_waiting(serve, upstream, family, f"{family}_socket_keepalive {value};")
    assert ("timer:(keepalive," in found) == (value == "on"), found


def asked_while_waiting(serve, upstream, family, text):
    """What `ss` says of the proxy's end while the server thinks."""
    asked, over = threading.Event(), threading.Event()

    def handler(wire):
        wire.read_some()
        asked.set()
        over.wait(10)
        wire.send(response(b"ok"))

    server = upstream(handler)
    to = f"proxy_pass http://{server.address};" if family == "proxy" else f"uwsgi_pass {server.address};"
    proxy = serve("server { listen 127.0.0.1:@port@; location / { " + text + to + " } }")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(DEADLINE)

    def settled() -> str:
        """What is sent and not acknowledged yet has a timer of its own."""
        command = ["ss", "-tnomH", "state", "established", "dport", "=", f":{server.port}"]
        found = subprocess.run(command, capture_output=True, text=True).stdout
        assert found and "timer:(on," not in found
        return found

    found = eventually(settled, "the request is acknowledged")
    over.set()
    assert wire.read_response().body == b"ok"
    return proxy, found
