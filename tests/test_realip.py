"""`set_real_ip_from` and its like: whom a request is from."""

import socket

import pytest

from harness.wire import connect

differs = pytest.mark.differs_in_nginx

TOLD = '"$remote_addr|$remote_port|$realip_remote_addr"'


@pytest.fixture
def told(serve):
    """`told(http, [fields…])`: the client's address and port for a request with these header lines."""

    def start(settings: str, location: str = ""):
        proxy = serve(
            f"""
            {settings}
            server {{
                listen 127.0.0.1:@port@;
                location / {{ {location} return 200 {TOLD}; }}
            }}
            """
        )

        def ask(*fields: str) -> str:
            address, port, original = proxy.get("/", *fields).body.decode().split("|")
            assert original == "127.0.0.1"
            if address == original:
                assert port.isdigit()
                return address
            return f"{address} {port}".strip()

        return ask

    return start


LOCAL = "127.0.0.1"

ONE_STEP = [
    (["X-Real-IP: 1.2.3.4"], "1.2.3.4"),
    (["x-real-ip: 1.2.3.4"], "1.2.3.4"),
    (["X-Real-IP: 5.6.7.8, 1.2.3.4"], "1.2.3.4"),
    (["X-Real-IP: 5.6.7.8 1.2.3.4"], "1.2.3.4"),
    (["X-Real-IP: 5.6.7.8,1.2.3.4 ,,"], "1.2.3.4"),
    (["X-Real-IP: 1.2.3.4:55"], "1.2.3.4 55"),
    (["X-Real-IP: 1.2.3.4:0"], LOCAL),
    (["X-Real-IP: 1.2.3.4:65536"], LOCAL),
    (["X-Real-IP: 1.2.3.4:x"], LOCAL),
    (["X-Real-IP: 2001:db8::1"], "2001:db8::1"),
    (["X-Real-IP: [2001:db8::1]:443"], "2001:db8::1 443"),
    (["X-Real-IP: [2001:db8::1]"], LOCAL),
    (["X-Real-IP: ::ffff:1.2.3.4"], "::ffff:1.2.3.4"),
    (["X-Real-IP: "], LOCAL),
    (["X-Real-IP: ,"], LOCAL),
    (["X-Real-IP: name"], LOCAL),
    (["X-Real-IP: 1.2.3.4, name"], LOCAL),
    (["X-Real-IP: 1.2.3"], LOCAL),
    (["X-Real-IP: 1.2.3.256"], LOCAL),
    (["X-Forwarded-For: 1.2.3.4"], LOCAL),
    ([], LOCAL),
]


def test_the_last_address_of_x_real_ip(told):
    ask = told("set_real_ip_from 127.0.0.1;")
    assert [ask(*fields) for fields, _ in ONE_STEP] == [expected for _, expected in ONE_STEP]


@pytest.mark.parametrize(
    "trusted, expected",
    [
        ("127.0.0.0/8", "1.2.3.4"),
        ("0.0.0.0/0", "1.2.3.4"),
        ("127.0.0.2", LOCAL),
        ("10.0.0.0/8", LOCAL),
        ("::/0", LOCAL),
        ("unix:", LOCAL),
        ("localhost", "1.2.3.4"),
        ("10.0.0.0/8; set_real_ip_from 127.0.0.1", "1.2.3.4"),
    ],
)
def test_who_is_trusted(told, trusted, expected):
    assert told(f"set_real_ip_from {trusted};")("X-Real-IP: 1.2.3.4") == expected


def test_nobody_is_trusted_by_default(told):
    assert told("real_ip_header X-Real-IP;")("X-Real-IP: 1.2.3.4") == LOCAL


FORWARDED = [
    (["X-Forwarded-For: 1.2.3.4"], "1.2.3.4", "1.2.3.4"),
    (["X-Forwarded-For: 1.2.3.4, 10.0.0.1"], "10.0.0.1", "1.2.3.4"),
    (["X-Forwarded-For: 9.9.9.9, 1.2.3.4, 10.0.0.1"], "10.0.0.1", "1.2.3.4"),
    (["X-Forwarded-For: 10.0.0.3, 10.0.0.2, 10.0.0.1"], "10.0.0.1", "10.0.0.3"),
    (["X-Forwarded-For: name, 10.0.0.1"], "10.0.0.1", "10.0.0.1"),
    (["X-Forwarded-For: 1.2.3.4:77, 10.0.0.1:88"], "10.0.0.1 88", "1.2.3.4 77"),
    (["X-Forwarded-For: 1.2.3.4, unix:"], LOCAL, LOCAL),
    (["X-Real-IP: 1.2.3.4"], LOCAL, LOCAL),
]


def test_one_line_of_x_forwarded_for(told):
    ask = told("set_real_ip_from 127.0.0.1; set_real_ip_from 10.0.0.0/8; real_ip_header X-Forwarded-For;")
    assert [ask(*fields) for fields, _, _ in FORWARDED] == [expected for _, expected, _ in FORWARDED]


def test_one_line_of_x_forwarded_for_recursively(told):
    ask = told(
        """set_real_ip_from 127.0.0.1; set_real_ip_from 10.0.0.0/8;
        real_ip_header X-Forwarded-For; real_ip_recursive on;"""
    )
    assert [ask(*fields) for fields, _, _ in FORWARDED] == [expected for _, _, expected in FORWARDED]


@pytest.mark.parametrize(
    "recursive, lines, expected",
    [
        ("off", ["1.2.3.4", "5.6.7.8"], "5.6.7.8"),
        ("on", ["1.2.3.4", "5.6.7.8"], "5.6.7.8"),
        ("on", ["1.2.3.4", "10.0.0.1"], "1.2.3.4"),
        ("on", ["9.9.9.9, 1.2.3.4, 10.0.0.3", "10.0.0.2", "10.0.0.1"], "1.2.3.4"),
        ("on", ["1.2.3.4", "name"], LOCAL),
    ],
)
def test_several_lines_of_x_forwarded_for(told, recursive, lines, expected):
    ask = told(
        f"""set_real_ip_from 127.0.0.1; set_real_ip_from 10.0.0.0/8;
        real_ip_header X-Forwarded-For; real_ip_recursive {recursive};"""
    )
    assert ask(*[f"X-Forwarded-For: {line}" for line in lines]) == expected


def test_of_another_header_the_first_line_counts(told):
    ask = told("set_real_ip_from 127.0.0.1; real_ip_header CF-Connecting-IP; real_ip_recursive on;")
    assert ask("cf-connecting-ip: 1.2.3.4", "CF-Connecting-IP: 5.6.7.8") == "1.2.3.4"
    assert ask("CF-Connecting-IP: bad", "CF-Connecting-IP: 5.6.7.8") == LOCAL
    assert ask("X-Real-IP: 5.6.7.8") == LOCAL


def test_an_inner_level_replaces_the_list(serve):
    proxy = serve(
        """
        set_real_ip_from 127.0.0.1;
        real_ip_header X-A;
        server {
            listen 127.0.0.1:@port@;
            set_real_ip_from 10.0.0.0/8;
            location / { return 200 $remote_addr; }
        }
        server {
            listen 127.0.0.1:@port_b@;
            real_ip_header X-B;
            location / { return 200 $remote_addr; }
        }
        """
    )
    fields = ["X-A: 1.1.1.1", "X-B: 2.2.2.2"]
    assert proxy.get("/", *fields).body == b"127.0.0.1"
    assert proxy.get("/", *fields, port=int(proxy.values["port_b"])).body == b"2.2.2.2"


def test_a_location_of_its_own(serve, upstream):
    """Settings of a location hold for what comes after its rewrite steps."""
    seen = []

    def handler(wire):
        request = wire.read_request()
        seen.append((request.target, request.get("X"), request.get("X-Forwarded-For")))
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    backend = upstream(handler)
    proxy = serve(
        """
        log_format a "$uri $remote_addr";
        access_log logs/a.log a;
        server {
            listen 127.0.0.1:@port@;
            location /real {
                set_real_ip_from 127.0.0.1;
                proxy_set_header X $remote_addr;
                proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                proxy_pass http://127.0.0.1:@backend@;
            }
            location /returned { set_real_ip_from 127.0.0.1; return 200 $remote_addr; }
            location /other { return 200 $remote_addr; }
        }
        """,
        backend=backend.port,
    )
    wire = proxy.connect()
    field = "X-Real-IP: 1.2.3.4\r\nX-Forwarded-For: 9.9.9.9"
    for target in ("/real", "/other", "/returned"):
        wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")
        assert wire.read_response().body in (b"", b"127.0.0.1")
    assert seen == [("/real", "1.2.3.4", "9.9.9.9, 1.2.3.4")]
    assert proxy.accessed(3, "a.log") == ["/real 1.2.3.4", "/other 127.0.0.1", "/returned 127.0.0.1"]


def test_once_a_request_and_undone_for_the_next(serve):
    proxy = serve(
        """
        set_real_ip_from 127.0.0.1;
        set_real_ip_from 1.2.3.4;
        log_format a "$uri $remote_addr $realip_remote_addr $realip_remote_port $remote_port.";
        access_log logs/a.log a;
        server {
            listen 127.0.0.1:@port@;
            location / { real_ip_header X-B; try_files /none /inner; }
            location /inner { real_ip_header X-C; try_files /none =404; }
        }
        """
    )
    wire = proxy.connect()
    port = wire.sock.getsockname()[1]
    wire.send("GET /a HTTP/1.1\r\nHost: a\r\nX-Real-IP: 1.2.3.4:5\r\nX-B: 2.2.2.2\r\nX-C: 3.3.3.3\r\n\r\n")
    assert wire.read_response().status == 404
    wire.send("GET /b HTTP/1.1\r\nHost: a\r\nX-C: 3.3.3.3\r\n\r\n")
    assert wire.read_response().status == 404
    wire.send("GET /c HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().status == 404
    assert proxy.accessed(3, "a.log") == [
        f"/inner 1.2.3.4 127.0.0.1 {port} 5.",
        f"/inner 3.3.3.3 127.0.0.1 {port} .",
        f"/inner 127.0.0.1 127.0.0.1 {port} {port}.",
    ]


def test_the_error_log_names_the_client(serve):
    proxy = serve(
        """
        set_real_ip_from 127.0.0.1;
        server { listen 127.0.0.1:@port@; location / { root html; } }
        """
    )
    assert proxy.get("/none", "X-Real-IP: 1.2.3.4").status == 404
    assert ", client: 1.2.3.4, server: " in proxy.logged("/none")


def test_the_binary_address(serve):
    proxy = serve(
        """
        set_real_ip_from 127.0.0.1;
        log_format a escape=json "$binary_remote_addr";
        server { listen 127.0.0.1:@port@; location / { return 200 $binary_remote_addr; } }
        """
    )
    assert proxy.get("/").body == bytes([127, 0, 0, 1])
    assert proxy.get("/", "X-Real-IP: 1.2.3.4").body == bytes([1, 2, 3, 4])
    assert proxy.get("/", "X-Real-IP: ::1").body == bytes(15) + b"\1"


def test_a_unix_socket(serve, tmp_path):
    path = tmp_path / "s"
    proxy = serve(
        f"""
        set_real_ip_from unix:;
        server {{
            listen unix:{path};
            listen 127.0.0.1:@port@;
            location / {{ return 200 {TOLD}; }}
        }}
        """
    )
    for field, expected in [("X-Real-IP: 1.2.3.4", b"1.2.3.4||unix:"), ("A: b", b"unix:||unix:")]:
        wire = connect(str(path))
        wire.send(f"GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n")
        assert wire.read_response().body == expected
        wire.close()
    assert proxy.get("/", "X-Real-IP: 1.2.3.4").body.startswith(b"127.0.0.1|")


def test_an_ipv6_peer(serve):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    proxy = serve(
        """
        set_real_ip_from ::1;
        server { listen 127.0.0.1:@port@; listen [::1]:@port@; location / { return 200 $remote_addr; } }
        """
    )
    with socket.create_connection(("::1", proxy.port)) as wire:
        wire.sendall(b"GET / HTTP/1.0\r\nX-Real-IP: 1.2.3.4\r\n\r\n")
        assert b"\r\n\r\n1.2.3.4" in b"".join(iter(lambda: wire.recv(4096), b""))
    assert proxy.get("/", "X-Real-IP: 1.2.3.4").body == b"127.0.0.1"


@pytest.mark.parametrize(
    "text, told",
    [
        ("set_real_ip_from 1.2.3.4/33;", '[emerg] host not found in set_real_ip_from "1.2.3.4/33"'),
        ("set_real_ip_from name.invalid;", '[emerg] host not found in set_real_ip_from "name.invalid"'),
        ("set_real_ip_from 1.2.3.4/8;", "[warn] low address bits of 1.2.3.4/8 are meaningless"),
        ("real_ip_recursive maybe;", '[emerg] invalid value "maybe" in "real_ip_recursive" directive'),
        ("real_ip_header a; real_ip_header b;", '[emerg] "real_ip_header" directive is duplicate'),
    ],
)
def test_what_loading_says(binary, tmp_path, text, told):
    conf = tmp_path / "x.conf"
    conf.write_text(f"events {{ }}\nhttp {{\n{text}\n}}\n")
    run = binary.run("-t", "-c", conf, "-p", f"{tmp_path}/")
    said = "\n".join(line.split("] ", 1)[0] + "] " + line.split(": ", 1)[-1] for line in run.stderr.splitlines())
    assert told in run.stderr or told in said, run.stderr
    assert f" in {conf}:3" in run.stderr
