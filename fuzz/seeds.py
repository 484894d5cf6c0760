#!/usr/bin/env python3
"""Writes tests/corpus/NAME/: what fuzzing starts from, as real clients, servers and people write it.

Files whose names begin with "found-" are former findings, and are not from here.
"""

import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests/corpus"

CHROMIUM = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Safari/605.1.15"


def message(*lines: str, body: bytes = b"") -> bytes:
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


REQUESTS = {
    "curl": message("GET / HTTP/1.1", "Host: localhost:8080", "User-Agent: curl/8.5.0", "Accept: */*"),
    "curl-post": message(
        "POST /length HTTP/1.1",
        "Host: localhost",
        "User-Agent: curl/8.5.0",
        "Accept: */*",
        "Content-Length: 3",
        "Content-Type: application/x-www-form-urlencoded",
        body=b"a=b",
    ),
    "curl-upload": message(
        "PUT /x HTTP/1.1", "Host: [::1]:80", "Transfer-Encoding: chunked", "Expect: 100-continue", body=b"1\r\na\r\n0\r\n\r\n"
    ),
    "wrk": message("GET / HTTP/1.1", "Host: 127.0.0.1:9000"),
    "ab": message("GET /x HTTP/1.0", "Connection: Keep-Alive", "Host: localhost", "User-Agent: ApacheBench/2.3", "Accept: */*"),
    "chromium": message(
        "GET /a%20b/?q=%E2%82%AC#x HTTP/1.1",
        "Host: example.com",
        "Connection: keep-alive",
        'sec-ch-ua: "Chromium";v="141", "Not?A_Brand";v="8"',
        "sec-ch-ua-mobile: ?0",
        "Upgrade-Insecure-Requests: 1",
        f"User-Agent: {CHROMIUM}",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-US,en;q=0.9",
        "Cookie: sessionid=k3v; csrftoken=abc",
        "If-None-Match: W/\"5f-1\"",
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT",
    ),
    "websocket": message(
        "GET /chat HTTP/1.1",
        "Host: example.com",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Origin: http://example.com",
    ),
    "absolute": message("GET http://example.com:80/a/../b?c HTTP/1.1", "Host: other"),
    "asterisk": message("OPTIONS * HTTP/1.1", "Host: a"),
    "connect": message("CONNECT a:443 HTTP/1.1", "Host: a:443"),
    "old": b"GET /\r\n",
    "bare-lf": b"GET / HTTP/1.0\nHost: a\n\n",
    "empty-lines": b"\r\n\r\nHEAD / HTTP/1.1\r\nHost:a\r\n\r\n",
    "smuggling": message("POST / HTTP/1.1", "Host: a", "Content-Length: 4", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "folded": message("GET / HTTP/1.1", "Host: a", "X: a", " b"),
    "pipelined": message("GET /1 HTTP/1.1", "Host: a") + message("GET /2 HTTP/1.1", "Host: a", "Connection: close"),
}

RESPONSES = {
    "uwsgi": message("HTTP/1.1 200 OK", "Content-Type: text/html", body=b"hello"),
    "cgi": message("Status: 404 Not Found", "Content-Type: text/plain", body=b"no"),
    "gunicorn": message(
        "HTTP/1.1 200 OK",
        "Server: gunicorn",
        "Date: Sun, 06 Nov 1994 08:49:37 GMT",
        "Connection: close",
        "Transfer-Encoding: chunked",
        "Content-Type: text/html; charset=utf-8",
        body=b"5\r\nhello\r\n0\r\n\r\n",
    ),
    "node": message(
        "HTTP/1.1 200 OK",
        "X-Powered-By: Express",
        'ETag: W/"2-nOO9QiTIwXgNtWtBJezz8kv3SLc"',
        "Content-Length: 2",
        "Date: Sun, 06 Nov 1994 08:49:37 GMT",
        "Connection: keep-alive",
        "Keep-Alive: timeout=5",
        body=b"ok",
    ),
    "django": message(
        "HTTP/1.1 302 Found",
        "Location: /admin/login/?next=/admin/",
        "Expires: Sun, 06 Nov 1994 08:49:37 GMT",
        "Cache-Control: max-age=0, no-cache, no-store, must-revalidate, private",
        "Vary: Cookie",
        "Set-Cookie: csrftoken=abc; expires=Sun, 06-Nov-94 08:49:37 GMT; Max-Age=31449600; Path=/; SameSite=Lax",
        "Content-Length: 0",
    ),
    "switching": message(
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    ),
    "continue": message("HTTP/1.1 100 Continue") + message("HTTP/1.1 204 No Content"),
    "hints": message("HTTP/1.1 103 Early Hints", "Link: </a.css>; rel=preload") + message("HTTP/1.0 200 OK"),
    "accel": message("HTTP/1.1 200", "X-Accel-Redirect: /x?y", "X-Accel-Buffering: no", "X-Accel-Limit-Rate: 10"),
    "smuggling": message("HTTP/1.1 200 OK", "Content-Length: 1", "Content-Length: 2", "Transfer-Encoding: chunked"),
    "bare-lf": b"HTTP/1.1 200 OK\nA: b\n\n",
    "old": b"<html>",
}

UWSGI_VARIABLES = {
    "QUERY_STRING": "",
    "REQUEST_METHOD": "GET",
    "CONTENT_TYPE": "",
    "CONTENT_LENGTH": "",
    "REQUEST_URI": "/",
    "PATH_INFO": "/",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost:8080",
    "HTTP_USER_AGENT": "curl/8.5.0",
}


def block(variables: dict[str, str]) -> bytes:
    strings = [part.encode() for pair in variables.items() for part in pair]
    return b"".join(struct.pack("<H", len(part)) + part for part in strings)


def packet(variables: dict[str, str], body: bytes = b"") -> bytes:
    text = block(variables)
    return struct.pack("<BHB", 0, len(text), 0) + text + body


def frame(first: int, payload: bytes, masked: bool = True) -> bytes:
    length = len(payload)
    head = bytes([first, (0x80 if masked else 0) | min(length, 126 if length < 65536 else 127)])
    if length >= 65536:
        head += struct.pack(">Q", length)
    elif length >= 126:
        head += struct.pack(">H", length)
    if masked:
        key = b"\x37\xfa\x21\x3d"
        head += key
        payload = bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))
    return head + payload


FRAMES = {
    "hello": frame(0x81, b"Hello"),
    "echo": frame(0x81, b"Hello", masked=False),
    "fragments": frame(0x01, b"Hel", masked=False) + frame(0x89, b"ping", masked=False) + frame(0x80, b"lo", masked=False),
    "binary-200": frame(0x82, bytes(200)),
    "binary-70000": frame(0x82, bytes(70000), masked=False)[:300],
    "close": frame(0x88, b"\x03\xe8bye"),
    "compressed": frame(0xC1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"),
    "reserved": frame(0xB3, b"x"),
}


def dns_name(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def dns(flags: int, kind: int, records: list[tuple[bytes, int, bytes]]) -> bytes:
    """A reply to a question for a.example; a record is (name, type, data), its TTL 60."""
    out = struct.pack(">HHHHHH", 0x1234, flags, 1, len(records), 0, 0) + dns_name("a.example") + struct.pack(">HH", kind, 1)
    for name, of, data in records:
        out += name + struct.pack(">HHIH", of, 1, 60, len(data)) + data
    return out


SELF = b"\xc0\x0c"
REPLIES = {
    "a": dns(0x8180, 1, [(SELF, 1, bytes([127, 0, 0, 1])), (SELF, 1, bytes([127, 0, 0, 2]))]),
    "aaaa": dns(0x8180, 28, [(SELF, 28, bytes(15) + b"\x01")]),
    "cname": dns(0x8180, 1, [(SELF, 5, dns_name("b.example")), (dns_name("b.example"), 1, bytes([127, 0, 0, 1]))]),
    "loop": dns(0x8180, 1, [(SELF, 5, SELF)]),
    "srv": dns(0x8180, 33, [(SELF, 33, struct.pack(">HHH", 1, 2, 80) + dns_name("b.example"))]),
    "none": dns(0x8183, 1, []),
    "refused": dns(0x8185, 1, []),
    "cut": dns(0x8380, 1, []),
    "ttl": dns(0x8180, 1, [(SELF, 1, b"\x7f\0\0\1")])[:-10] + b"\xff\xff\xff\xff\0\4\x7f\0\0\1",
}

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, addresses: bytes, tlvs: bytes = b"") -> bytes:
    rest = addresses + tlvs
    return SIGNATURE + bytes([0x20 | command, family]) + struct.pack(">H", len(rest)) + rest


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


IP4 = bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">HH", 1234, 80)
PROXY = {
    "tcp4": b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\nGET / HTTP/1.1\r\n",
    "tcp6": b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
    "unknown": b"PROXY UNKNOWN\r\n",
    "unknown-more": b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n",
    "v2-tcp4": v2(1, 0x11, IP4),
    "v2-local": v2(0, 0, b""),
    "v2-tcp6": v2(1, 0x21, bytes(32) + struct.pack(">HH", 1, 2), tlv(1, b"h2") + tlv(2, b"example.com")),
    "v2-unix": v2(1, 0x31, b"/a".ljust(108, b"\0") + b"/b".ljust(108, b"\0")),
    "v2-ssl": v2(1, 0x11, IP4, tlv(0x20, b"\1\0\0\0\0" + tlv(0x21, b"TLSv1.3") + tlv(0x23, b"AES")) + tlv(4, bytes(3))),
}

DATES = [
    "Sun, 06 Nov 1994 08:49:37 GMT",
    "Sunday, 06-Nov-94 08:49:37 GMT",
    "Sun Nov  6 08:49:37 1994",
    "Thu, 29 Feb 2024 23:59:60 GMT",
    "Thu, 01 Jan 1970 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT",
]

COOKIES = [
    "sessionid=k3v; expires=Sun, 06 Nov 1994 08:49:37 GMT; HttpOnly; Max-Age=1209600; Path=/; SameSite=Lax",
    "a=b; Path=/app; Domain=.example.com; Secure; SameSite=None; Partitioned",
    '__Host-x="quoted; value"; secure; httponly',
    "=; ;; path",
]

ADDRESSES = [
    "8080", "127.0.0.1:80", "*:80", "[::1]:8080", "[::]", "unix:/run/x.sock", "localhost:8000-8010", "example.com",
    "127.0.0.1:8080/base/?a=b", "unix:/run/x.sock:/uri", "10.0.0.1:65536", "a:0",
]

TEXTS: dict[str, list[str] | dict[str, bytes]] = {
    "address": ADDRESSES,
    "block_size": {"curl": block(UWSGI_VARIABLES), "cut": block(UWSGI_VARIABLES)[:-3], "long": block({"A": "b" * 300})},
    "chunked": {
        "plain": b"5\r\nhello\r\n0\r\n\r\n",
        "extension": b'5;a=b;c="d"\r\nhello\r\n00\r\n\r\n',
        "trailer": b"A\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
        "behind": b"1\r\na\r\n0\r\n\r\nGET / HTTP/1.1\r\n",
        "large": b"ffffffffffffffff\r\n",
        "bare-lf": b"1\na\n0\n\n",
    },
    "cidr": ["10.0.0.0/8", "127.0.0.1", "::1", "2001:db8::/32", "::ffff:10.0.0.0/104", "192.168.1.1/24", "0.0.0.0/0", "1.2.3.4/33"],
    "client_headers": {
        name: b"\x0f" + text.split(b"\r\n", 1)[1].replace(b"\r\n", b"\n") for name, text in REQUESTS.items() if name in ("curl", "chromium", "websocket")
    },
    "conditional": [
        '"2ebc-a"\n"x", W/"2ebc-a"\nSun, 06 Nov 1994 08:49:37 GMT\nSun, 06 Nov 1994 08:49:37 GMT',
        "*\n*\n\n", '\nW/"a,b", "c"\n', '"2ebc-a"', *DATES[:1],
    ],
    "content_length": ["0", "12", "007", "18446744073709551615", "+1", "1,1", "9223372036854775807"],
    "cookie": COOKIES,
    "date": DATES,
    "escape": {"text": b"plain \\ \"quoted\"\n\t\x7f\xff", "utf8": "€".encode()},
    "expires": ["epoch", "max", "off", "30d", "-1", "modified +1h", "@15h30m", "@24h", "1y 6M", "0"],
    "follow": FRAMES,
    "forwarded": ["10.0.0.1, 192.168.0.1\n[2001:db8::1]:443", "unix:", "1.2.3.4:80,5.6.7.8", " 10.0.0.1 ,\t::1 "],
    "handover": {"ready": b"RINGX\0\1\1", "version": b"RINGX\0\2\1", "kind": b"RINGX\0\1\xff", "cut": b"RINGX\0"},
    "handshake": ["keep-alive, Upgrade", "websocket, h2c", "dGhlIHNhbXBsZSBub25jZQ==", "close,,upgrade ,TE", "HTTP/2.0, TLS/1.0"],
    "host": ["example.com", "EXAMPLE.com:8080", "[::1]:80", "[v1.a]", "127.0.0.1", "a.b.", "a_b", "%41", "a:"],
    "inherited": ["6;7;", "6:7:", "6;x;7;", "6;;7;", "6;7", "99999999999;"],
    "lexer": {"quotes": b"a 'b c' \"d\\\"e\" f\\ g ${h} # i\n{ j; }\n", "lua": b"x { y \"z\"; } ; }"},
    "match": ["status 200-399; header Content-Type = text/html; body ~ ok", "status ! 500; header ! A; body !~ x", "header A ~ ^b"],
    "options": {"c": b"-c\0/c/x.conf\0-p\0/p\0-g\0daemon off;", "t": b"-t\0-q", "s": b"-s\0reload", "joined": b"-tT\0-e\0stderr", "demo": b"--demo"},
    "pace": {"slow": b"\0\x64\0\0\0\0\0\0\0\0", "after": b"\x04\0\x10\0\0\0\0\0\0\0\0\0\0\0", "fast": b"\xff\xff" * 8},
    "packet": {
        "curl": packet(UWSGI_VARIABLES),
        "post": packet(UWSGI_VARIABLES | {"CONTENT_LENGTH": "3"}, b"a=b"),
        "cut": packet(UWSGI_VARIABLES)[:40],
        "empty": packet({}),
        "empty-name": packet({"": "x"}),
    },
    "pid": ["1234\n", "1", "", "-1\n", "99999999999", "12 34"],
    "proxy_header": PROXY,
    "range": ["bytes=0-499", "bytes=-500", "bytes=9500-", "bytes=0-0,-1", "bytes=0-0, 2-3 ,5-", "bytes=9-1", "items=0-1", "bytes=0-18446744073709551615"],
    "reply": REPLIES,
    "request": REQUESTS,
    "response": RESPONSES,
    "source": ["all", "unix:", "10.0.0.0/8", "::/0", "2001:db8::1/64", "127.0.0.1"],
    "syslog": ["facility=local7,tag=nginx,severity=info", "nohostname", "tag=a_b1,facility=uucp", "severity=x", ",,"],
    "template": ["http://$host$request_uri", "${scheme}://x", "$arg_a$cookie_b$http_c-$1", "^/(?<name>[a-z]+)/(\\d*)$/abc/12", "$", "${x", "a(b|c)*dabcbcd"],
    "trailer": {"one": b"X-Sum: 1\r\n\r\n", "none": b"\r\n", "two": b"A: b\r\nC:d\r\n\r\nGET", "bare-lf": b"A: b\n\n", "folded": b"A: b\r\n c\r\n\r\n"},
    "uri": ["/a/b/../c/./d//e", "/%2e%2e/%2F", "/a%20b?c=d#e", "/%zz", "/?", "//", "/é", "/..", "/a/...", "?x"],
    "user_agent": [
        CHROMIUM, FIREFOX, SAFARI, "Opera/9.80 (X11)", "Mozilla/4.0 (compatible; MSIE 6.0; Windows NT 5.1)", "MSIE 10.0", "curl/8.5.0",
    ],
    "value": ["1m", "8k", "10", "1g", "30s", "1h 30m", "500ms", "1y", "9223372036854775807", "0", "-1", "1d12h"],
}


def short(text: bytes) -> str:
    """A file name for a seed that has none."""
    kept = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else "-" for byte in text[:24]).strip("-")
    return kept or "empty"


def configurations() -> dict[str, bytes]:
    files = [ROOT / "conf/ringx.conf", ROOT / "bench/ringx.conf", *sorted((ROOT / "conf/examples").glob("*.conf"))]
    found = {}
    for path in files:
        text = path.read_text()
        kept = [line.rstrip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        name = f"{path.parent.name}-{path.stem}"
        found[name] = ("\n".join(kept) + "\n").encode()
    found["modules"] = (
        b'events { } http { map $host $m { default a; ~^b(?<c>.) $c; } geo $g { 10.0.0.0/8 x; default y; }\n'
        b'split_clients "$remote_addr" $v { 50% a; * b; } log_format f escape=json \'{"a":"$uri"}\';\n'
        b"upstream u { zone z 64k; server 127.0.0.1:80 weight=2 max_fails=3 fail_timeout=5s; server unix:/x backup;\n"
        b"least_conn; keepalive 4; queue 10 timeout=1s; } server { listen 80 default_server; server_name a *.b ~c;\n"
        b'location ~ ^/(.*)\\.php$ { if ($arg_x = "y") { return 301 /z$1; } rewrite ^/a/(.*)$ /b/$1 last; set $q "$1";\n'
        b"proxy_pass http://u/x/; proxy_set_header H $host; add_header A b always; access_log l f if=$m; }\n"
        b"location = /s { allow 10.0.0.0/8; deny all; expires 1h; try_files $uri @n; } location @n { uwsgi_pass u; } } }\n"
    )
    return found


def main() -> None:
    read = configurations()
    TEXTS["load"] = read
    TEXTS["tree"] = {"lexer": b"a { b c; include x; }", **{name: read[name] for name in ("modules", "conf-ringx")}}
    TEXTS["lexer"] |= {"modules": read["modules"]}
    for name, seeds in TEXTS.items():
        if isinstance(seeds, list):
            seeds = {short(text.encode()): text.encode() for text in seeds}
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        for seed, data in seeds.items():
            (folder / seed).write_bytes(data)


if __name__ == "__main__":
    main()
