"""`listen … proxy_protocol`: the header a balancer sends ahead, versions 1 and 2."""

import struct

import pytest

differs = pytest.mark.differs_in_nginx
NEWER = "$proxy_protocol_tlv_ came with 1.23.2"

CONF = """
server {
    listen 127.0.0.1:@port@ proxy_protocol;
    listen 127.0.0.1:@port_b@;
    SETTINGS
    location / { return 200 "$proxy_protocol_addr|$proxy_protocol_port|$proxy_protocol_server_addr|$proxy_protocol_server_port|$remote_addr|$remote_port"; }
}
"""
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
V1 = b"PROXY TCP4 1.2.3.4 5.6.7.8 1234 80\r\n"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(body: bytes, version_command: int = 0x21, family_transport: int = 0x11) -> bytes:
    return SIGNATURE + struct.pack("!BBH", version_command, family_transport, len(body)) + body


ADDRESSES = bytes([1, 2, 3, 4, 5, 6, 7, 8]) + struct.pack("!HH", 1234, 80)
ADDRESSES6 = bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("!HH", 9, 8)


@pytest.fixture
def proxied(serve):
    return lambda settings="", **values: serve(CONF.replace("SETTINGS", settings), **values)


def tell(proxy, header: bytes) -> list[str]:
    """What the variables say; the address of the connection itself is `-`."""
    wire = proxy.connect()
    host, port = wire.sock.getsockname()
    wire.send(header + GET)
    *told, address, remote_port = wire.read_response().body.decode().split("|")
    if (address, remote_port) == (host, str(port)):
        address = remote_port = "-"
    return [*told, address, remote_port]


HEADERS = [
    (V1, ["1.2.3.4", "1234", "5.6.7.8", "80"]),
    (b"PROXY TCP6 ::1 2001:DB8::1 1 65535\r\n", ["::1", "1", "2001:DB8::1", "65535"]),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n", ["1.2.3.4", "", "5.6.7.8", ""]),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 00080\r\n", ["1.2.3.4", "1", "5.6.7.8", "80"]),
    (b"PROXY UNKNOWN\r\n", ["", "", "", ""]),
    (b"PROXY UNKNOWN 1.2.3.4 what ever\r\n", ["", "", "", ""]),
    (v2(ADDRESSES), ["1.2.3.4", "1234", "5.6.7.8", "80"]),
    (v2(ADDRESSES6, 0x21, 0x21), ["::1", "9", "::2", "8"]),
    (v2(ADDRESSES + b"\1\0\2h2"), ["1.2.3.4", "1234", "5.6.7.8", "80"]),
    (v2(ADDRESSES, 0x20), ["", "", "", ""]),
    (v2(b"", 0x20, 0), ["", "", "", ""]),
    (v2(b"", 0x21, 0), ["", "", "", ""]),
    (v2(ADDRESSES, 0x21, 0x12), ["", "", "", ""]),
    (v2(bytes(216), 0x21, 0x31), ["", "", "", ""]),
]


def test_what_the_header_says(proxied):
    proxy = proxied()
    told = [tell(proxy, header) for header, _ in HEADERS]
    assert told == [[*expected, "-", "-"] for _, expected in HEADERS]


def test_the_client_with_realip(proxied):
    proxy = proxied("set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;")
    for header, expected in HEADERS:
        address, port = expected[:2]
        client = [address, port] if address else ["-", "-"]
        assert tell(proxy, header)[4:] == client, header


def test_who_is_not_trusted_stays_the_client(proxied):
    proxy = proxied("set_real_ip_from 10.0.0.0/8; real_ip_header proxy_protocol;")
    assert tell(proxy, V1) == ["1.2.3.4", "1234", "5.6.7.8", "80", "-", "-"]


def test_other_addresses_need_no_header(proxied):
    proxy = proxied("set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;")
    port = int(proxy.values["port_b"])
    assert proxy.get("/", port=port).body.startswith(b"||||127.0.0.1|")
    with proxy.connect(port) as wire:
        wire.send(V1)
        assert wire.read_response().status == 400


def test_it_holds_for_all_requests_of_the_connection(proxied):
    proxy = proxied("set_real_ip_from 127.0.0.1; real_ip_header proxy_protocol;")
    wire = proxy.connect()
    wire.send(V1 + GET + GET)
    for _ in range(2):
        assert wire.read_response().body == b"1.2.3.4|1234|5.6.7.8|80|1.2.3.4|1234"
    wire.send(GET)
    assert wire.read_response().body == b"1.2.3.4|1234|5.6.7.8|80|1.2.3.4|1234"


def test_the_request_may_come_later(serve):
    proxy = serve(
        """
        log_format p "$pipe $connection_requests $proxy_protocol_addr $request_length";
        access_log logs/p.log p;
        server { listen 127.0.0.1:@port@ proxy_protocol; return 200 ok; }
        """
    )
    for pieces in [(V1 + GET,), (V1 + GET[:5], GET[5:]), (v2(ADDRESSES) + GET[:1], GET[1:])]:
        wire = proxy.connect()
        for piece in pieces[:-1]:
            wire.send(piece)
            wire.expect_silence(0.05)
        wire.send(pieces[-1])
        assert wire.read_response().body == b"ok"
        wire.close()
    wire = proxy.connect()
    wire.send(V1)
    wire.expect_silence(0.05)
    wire.send(GET)
    assert wire.read_response().body == b"ok"
    assert proxy.accessed(4, "p.log") == [f". 1 1.2.3.4 {len(GET)}"] * 4


@differs("it takes any digits, colons and dots for an address, in a line of any length")
@pytest.mark.parametrize(
    "line",
    [
        "PROXY TCP4 ::: f.f 1 2",
        "PROXY TCP4   1 2",
        "PROXY TCP4 1.2.3 5.6.7.8 1 2",
        "PROXY TCP4 ::1 ::2 1 2",
        "PROXY TCP6 1.2.3.4 5.6.7.8 1 2",
        f"PROXY TCP6 {'1' * 100} ::1 1 2",
        f"PROXY TCP4 1.2.3.4 5.6.7.8 1 {'0' * 80}2",
        f"PROXY UNKNOWN {'x' * 92}",
    ],
)
def test_a_line_is_one_of_the_specification(proxied, line):
    proxy = proxied()
    with proxy.connect() as wire:
        wire.send(f"{line}\r\n".encode() + GET)
        wire.expect_end()
    proxy.logged(f'broken header: "{line}" while reading PROXY protocol')


BROKEN = [
    (GET, 'broken header: "GET / HTTP/1.1"'),
    (b"PROXY \r\n", 'broken header: "PROXY "'),
    (b"PROXY UNKNOWN", 'broken header: "PROXY UNKNOWN"'),
    (b"PROXY TCP4 1.2.3.4 5.6", 'broken header: "PROXY TCP4 1.2.3.4 5.6"'),
    (b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n", 'broken header: "PROXY TCP5 1.2.3.4 5.6.7.8 1 2"'),
    (b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", 'broken header: "PROXY TCP4  1.2.3.4 5.6.7.8 1 2"'),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n" + GET, 'broken header: "PROXY TCP4 1.2.3.4 5.6.7.8 1 2"'),
    (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", 'broken header: "PROXY TCP4 1.2.3.4 5.6.7.8 1 65536"'),
    (b"PROXY TCP4 1.2.3.x 5.6.7.8 1 2\r\n", 'broken header: "PROXY TCP4 1.2.3.x 5.6.7.8 1 2"'),
    (b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", 'broken header: "proxy TCP4 1.2.3.4 5.6.7.8 1 2"'),
    (SIGNATURE, 'broken header: ""'),
    (v2(ADDRESSES, 0x11), "unknown PROXY protocol version: 1"),
    (v2(ADDRESSES)[:-1], "header is too large"),
    (v2(bytes(2000)), "header is too large"),
]


@pytest.mark.parametrize("data, error", BROKEN)
def test_broken_headers(proxied, data, error):
    proxy = proxied()
    wire = proxy.connect()
    wire.send(data)
    wire.expect_end()
    end = f"while reading PROXY protocol, client: 127.0.0.1, server: 127.0.0.1:{proxy.port}"
    if proxy.binary.is_nginx:
        # The old one quotes all that it received, ends of lines included.
        proxy.logged(end)
        assert error.removesuffix('"') in proxy.error_log()
        return
    line = proxy.logged(error)
    assert "[error]" in line
    assert f"{error} {end}" in line
    assert proxy.log("access.log") == ""


def test_too_short_for_its_addresses(proxied):
    """Closed without a word."""
    proxy = proxied()
    wire = proxy.connect()
    wire.send(v2(ADDRESSES[:-1]) + GET)
    wire.expect_end()
    assert "[error]" not in proxy.error_log()


def test_a_header_as_long_as_the_buffer(proxied):
    proxy = proxied("client_header_buffer_size 4k;")
    long = v2(ADDRESSES + b"\4" + struct.pack("!H", 3000) + bytes(3000))
    assert tell(proxy, long)[:2] == ["1.2.3.4", "1234"]


def test_nothing_comes(proxied):
    proxy = proxied("client_header_timeout 200ms;")
    wire = proxy.connect()
    wire.expect_end()
    proxy.logged("client timed out (110: Connection timed out) while reading PROXY protocol")


def test_a_client_leaves_before_a_header(proxied):
    proxy = proxied()
    wire = proxy.connect()
    wire.finish()
    wire.expect_end()
    assert "[info]" in proxy.logged("client closed connection while reading PROXY protocol, client: 127.0.0.1")


def test_one_server_asks_for_all(serve):
    proxy = serve(
        """
        server { listen 127.0.0.1:@port@; server_name a; return 200 a$proxy_protocol_addr; }
        server { listen 127.0.0.1:@port@ proxy_protocol; server_name b; return 200 b; }
        """
    )
    wire = proxy.connect()
    wire.send(V1 + GET)
    assert wire.read_response().body == b"a1.2.3.4"
    wire = proxy.connect()
    wire.send(GET)
    wire.expect_end()


def test_no_value_in_the_log(serve):
    proxy = serve(
        """
        log_format p "$proxy_protocol_addr $proxy_protocol_port.";
        access_log logs/p.log p;
        server { listen 127.0.0.1:@port@ proxy_protocol; return 200 ok; }
        """
    )
    for header in (b"PROXY UNKNOWN\r\n", b"PROXY TCP4 1.2.3.4 5.6.7.8 0 0\r\n"):
        with proxy.connect() as wire:
            wire.send(header + GET)
            wire.read_response()
    assert proxy.accessed(2, "p.log") == ["- -.", "1.2.3.4 ."]


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


SSL = bytes([7]) + struct.pack("!I", 258) + b"".join(
    [tlv(0x21, b"TLSv1.3"), tlv(0x22, b"me"), tlv(0x23, b"AES"), tlv(0x24, b"SHA256"), tlv(0x25, b"RSA2048"), tlv(0x77, b"x")]
)  # fmt: skip
TLVS = [
    ("alpn", "h2"),
    ("authority", "example.com"),
    ("unique_id", "id"),
    ("netns", "ns"),
    ("0x02", "example.com"),
    ("0xEA", "custom"),
    ("0xea", "custom"),
    ("0xeb", ""),
    ("0x1ea", ""),
    ("ssl_version", "TLSv1.3"),
    ("ssl_cn", "me"),
    ("ssl_cipher", "AES"),
    ("ssl_sig_alg", "SHA256"),
    ("ssl_key_alg", "RSA2048"),
    ("ssl_0x77", "x"),
    ("ssl_0x78", ""),
    ("ssl_verify", "258"),
]


@differs(NEWER)
def test_tlvs(serve):
    names = " ".join(f"[$proxy_protocol_tlv_{name}]" for name, _ in TLVS)
    proxy = serve(f'server {{ listen 127.0.0.1:@port@ proxy_protocol; return 200 "{names}"; }}')
    body = ADDRESSES + b"".join(
        [tlv(1, b"h2"), tlv(2, b"example.com"), tlv(5, b"id"), tlv(0x30, b"ns"), tlv(0xEA, b"custom"), tlv(0x20, SSL)]
    )
    wire = proxy.connect()
    wire.send(v2(body) + GET)
    assert wire.read_response().body.decode() == " ".join(f"[{value}]" for _, value in TLVS)
    for header in (v2(ADDRESSES), V1, b"PROXY UNKNOWN\r\n"):
        wire = proxy.connect()
        wire.send(header + GET)
        assert wire.read_response().body.decode() == " ".join("[]" for _ in TLVS)


@differs(NEWER)
@pytest.mark.parametrize(
    "name, tlvs, error",
    [
        ("alpn", b"\2", "broken PROXY protocol TLV"),
        ("alpn", b"\2\0\5abc", "broken PROXY protocol TLV"),
        ("ssl_0x78", tlv(0x20, SSL[:-1]), "broken PROXY protocol TLV"),
        ("ssl_verify", tlv(0x20, SSL[:4]), "broken PROXY protocol TLV"),
        ("other", tlv(1, b"h2"), 'unknown PROXY protocol TLV "other"'),
    ],
)
def test_broken_tlvs(serve, name, tlvs, error):
    proxy = serve(f'server {{ listen 127.0.0.1:@port@ proxy_protocol; return 200 "[$proxy_protocol_tlv_{name}]"; }}')
    wire = proxy.connect()
    wire.send(v2(ADDRESSES + tlvs) + GET)
    assert wire.read_response().body == b"[]"
    assert "[error]" in proxy.logged(error)


def test_a_long_header_goes_before_a_long_request(proxied):
    """What follows the header has room of its own."""
    proxy = proxied()
    wire = proxy.connect()
    wire.send(v2(ADDRESSES + tlv(4, bytes(900))) + b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().status == 200
