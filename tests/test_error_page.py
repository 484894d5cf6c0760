"""error_page in all its forms, and the built-in pages."""

import re

import pytest

from harness.proxied import MODERN
from harness.upstream import answering, response

differs = pytest.mark.differs_in_nginx


@pytest.fixture
def pages(serve):
    """`pages(directives, answer)`: one location with them, and others that pages may be."""

    def start(directives="", answer="return 404;", server="", more=""):
        proxy = serve(
            f"""
            server {{
                listen 127.0.0.1:@port@;
                {server}
                location / {{ {directives} {answer} }}
                location = /page {{ internal; return 200 "page $request_method $uri$is_args$args"; }}
                location = /plain {{ return 200 plain; }}
                location = /no-content {{ return 204; }}
                location = /forbidden {{ return 403; }}
                location = /moved {{ return 301 /elsewhere; }}
                location /files/ {{ alias html/; }}
                location @named {{ return 200 "named $request_method $uri$is_args$args"; }}
                location @proxied {{ {MODERN} proxy_pass http://127.0.0.1:1; }}
                {more}
            }}
            """
        )
        (proxy.prefix / "html/404.html").write_text("a file")
        return proxy

    return start


@pytest.mark.parametrize(
    "page, method, status, body",
    [
        ("error_page 404 /page;", "GET", 404, None),
        ("error_page 404 =200 /plain;", "GET", 200, "plain"),
        ("error_page 404 = /plain;", "GET", 200, "plain"),
        ("error_page 404 =0 /plain;", "GET", 200, "plain"),
        ("error_page 404 /plain;", "GET", 404, "plain"),
        ("error_page 404 =503 /plain;", "GET", 503, "plain"),
        ("error_page 404 =299 /plain;", "GET", 299, "plain"),
        ("error_page 404 =444 /plain;", "GET", 444, "plain"),
        ("error_page 404 =204 /plain;", "GET", 204, ""),
        ("error_page 404 @named;", "GET", 404, "named GET /x?y"),
        ("error_page 404 @named;", "POST", 404, "named POST /x?y"),
        ("error_page 404 = @named;", "GET", 200, "named GET /x?y"),
        ("set $n named; error_page 404 = @$n;", "GET", 200, "named GET /x?y"),
        ("error_page 404 =202 @named;", "GET", 202, "named GET /x?y"),
        ("error_page 400 404 500 =200 /plain;", "GET", 200, "plain"),
        ("error_page 403 =200 /plain;", "GET", 404, None),
        ("error_page 404 =201 /plain; error_page 404 =202 /plain;", "GET", 201, "plain"),
        ("error_page 404 = /forbidden;", "GET", 403, None),
        ("error_page 404 /forbidden;", "GET", 403, None),
        ("error_page 404 =200 /forbidden;", "GET", 403, None),
        ("error_page 404 /moved;", "GET", 301, None),
        ("error_page 404 /nowhere-to-be-found;", "GET", 404, None),
        ("error_page 404 @missing;", "GET", 500, None),
        ("error_page 404 @proxied;", "GET", 502, None),
        ("error_page 404 /files/404.html;", "GET", 404, "a file"),
        ("error_page 404 =200 /files/404.html;", "GET", 200, "a file"),
        ("error_page 404 /files/404.html;", "POST", 404, "a file"),
        ("error_page 404 =200 $arg_none/plain;", "GET", 200, "plain"),
        ("error_page 404 =200 ${arg_none}@named;", "GET", 200, "named GET /x?y"),
        ("error_page 404 =200 $arg_none/page?$args;", "POST", 200, "page GET /page?y"),
    ],
)
def test_pages(pages, page, method, status, body):
    answer = pages(page).get("/x?y", method=method)
    assert answer.status == status
    if body is not None:
        assert answer.body.decode() == body


@pytest.mark.parametrize(
    "method, target, shown",
    [
        ("GET", "/page", "page GET /page"),
        ("POST", "/page", "page GET /page"),
        ("DELETE", "/page", "page GET /page"),
        ("GET", "/page?a=b", "page GET /page?a=b"),
        ("GET", "/page?$args&c", "page GET /page?y=1&c"),
        ("GET", "/page?u=$uri", "page GET /page?u=/x"),
    ],
)
def test_the_request_of_a_page(pages, method, target, shown):
    answer = pages(f"error_page 404 =200 {target};").get("/x?y=1", method=method)
    assert answer.body.decode() == shown


@pytest.mark.parametrize(
    "page, status, location",
    [
        ("error_page 404 http://e/p;", 302, "http://e/p"),
        ("error_page 404 =301 http://e/p;", 301, "http://e/p"),
        ("error_page 404 =303 http://e/p;", 303, "http://e/p"),
        ("error_page 404 =307 http://e/p;", 307, "http://e/p"),
        ("error_page 404 =308 http://e/p;", 308, "http://e/p"),
        ("error_page 404 =200 http://e/p;", 302, "http://e/p"),
        ("error_page 404 = http://e/p;", 302, "http://e/p"),
        ("error_page 404 http://e$request_uri;", 302, "http://e/x?y"),
        ("error_page 404 relative;", 302, "relative"),
    ],
)
def test_pages_elsewhere(pages, page, status, location):
    answer = pages(page).get("/x?y")
    assert (answer.status, answer.get("Location")) == (status, location)


@pytest.mark.parametrize(
    "answer, status, body",
    [
        ("return 404;", 200, b"plain"),
        ('return 404 "text";', 404, b"text"),
        ("return 302 /there;", 200, b"plain"),
        ("return 500;", 200, b"plain"),
        ("return 301 http://e/;", 301, None),
        ("return 200;", 200, b""),
        ("return 204;", 204, b""),
        (f"{MODERN} proxy_pass http://127.0.0.1:1;", 200, b"plain"),
        ("root nowhere;", 200, b"plain"),
    ],
)
def test_what_is_caught(pages, answer, status, body):
    got = pages("error_page 302 404 500 502 =200 /plain;", answer).get("/x")
    assert got.status == status
    if body is not None:
        assert got.body == body


def test_a_remapped_redirect_keeps_its_location(pages):
    answer = pages("error_page 301 =200 /plain;", "return 301 /there;").get("/x")
    assert (answer.status, answer.body) == (200, b"plain")
    assert answer.get("Location").endswith("/there")


@pytest.mark.parametrize("recursive, status", [("off", 403), ("on", 200)])
def test_errors_of_pages(pages, recursive, status):
    proxy = pages(
        "error_page 404 = /forbidden;",
        server=f"recursive_error_pages {recursive}; error_page 403 = /plain;",
    )
    assert proxy.get("/x").status == status


CHAINS = [
    # /a's 404 is answered by /b, which has an error of its own: recursive_error_pages of /a, of /b, the page
    ("on", "on", 200),
    ("on", "off", 200),
    ("off", "on", 403),
    ("off", "off", 403),
]


@pytest.mark.parametrize("of_a, of_b, status", CHAINS)
def test_the_location_of_the_first_error_says_whether_its_page_has_pages(pages, of_a, of_b, status):
    proxy = pages(
        more=f"""
        location = /a {{ recursive_error_pages {of_a}; error_page 404 /b; return 404; }}
        location = /b {{ recursive_error_pages {of_b}; error_page 403 = /c; return 403; }}
        location = /c {{ return 200 c; }}
        """
    )
    answer = proxy.get("/a")
    assert (answer.status, answer.body == b"c") == (status, status == 200)


@pytest.mark.parametrize("of_a, of_b, status", [("on", "off", 299), ("off", "on", 416)])
def test_a_page_with_ranges_of_its_own_has_pages(pages, of_a, of_b, status):
    proxy = pages(
        more=f"""
        location = /a {{ recursive_error_pages {of_a}; error_page 404 =200 /404.html; return 404; }}
        location = /404.html {{ recursive_error_pages {of_b}; error_page 416 =299 /plain; }}
        """
    )
    answer = proxy.get("/a", "Range: bytes=99-")
    assert (answer.status, answer.body == b"plain") == (status, status == 299)


def test_a_named_page_that_asks_for_itself(pages):
    proxy = pages("", server="recursive_error_pages on; error_page 404 @again;", more="location @again { return 404; }")
    assert proxy.get("/x").status == 500
    proxy.logged('rewrite or internal redirection cycle while redirect to named location "@again"')


def test_a_page_that_asks_for_itself(pages):
    proxy = pages("", server="recursive_error_pages on; error_page 404 /again;", more="location = /again { return 404; }")
    answer = proxy.get("/x")
    assert answer.status == 500
    proxy.logged("rewrite or internal redirection cycle while internally redirecting to")


def test_pages_of_an_inner_level_replace_all(pages):
    proxy = pages("error_page 500 /plain;", server="error_page 404 =200 /plain;")
    assert proxy.get("/x").status == 404


def test_a_page_missing_its_location_is_said(pages):
    proxy = pages("error_page 404 @missing;")
    assert proxy.get("/x").status == 500
    assert "[error]" in proxy.logged('could not find named location "@missing"')


def test_a_missing_location_counts_as_a_redirect(pages):
    proxy = pages("recursive_error_pages on; error_page 404 500 = @missing;")
    assert proxy.get("/x").status == 500
    proxy.logged('rewrite or internal redirection cycle while redirect to named location "@missing"')


def test_the_head_of_a_file_as_a_page(pages):
    answer = pages("error_page 404 /files/404.html;").get("/x", "If-None-Match: *", "Range: bytes=0-1")
    assert (answer.status, answer.body) == (404, b"a file")
    assert answer.get("ETag") and not answer.get("Last-Modified") and not answer.get("Accept-Ranges")


def test_a_page_that_is_proxied(serve, upstream):
    server = upstream(answering(response(b"from upstream", "X-Up: 1", status="200 Fine")))
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            error_page 404 /errors/404;
            location / {{ return 404; }}
            location /errors/ {{ {MODERN} proxy_pass http://@upstream@/pages/; }}
        }}
        """,
        upstream=server.address,
    )
    answer = proxy.get("/x?y", method="POST", body=b"body")
    assert (answer.start, answer.body) == ("HTTP/1.1 404 Not Found", b"from upstream")
    assert answer.get("X-Up") == "1"
    sent = server.request()
    assert (sent.start, sent.body) == ("GET /pages/404 HTTP/1.1", b"body")


# Built-in pages.


@pytest.mark.parametrize(
    "code, title",
    [
        (301, "301 Moved Permanently"), (302, "302 Found"), (303, "303 See Other"), (307, "307 Temporary Redirect"),
        (308, "308 Permanent Redirect"), (400, "400 Bad Request"), (401, "401 Authorization Required"),
        (402, "402 Payment Required"), (403, "403 Forbidden"), (404, "404 Not Found"), (405, "405 Not Allowed"),
        (406, "406 Not Acceptable"), (409, "409 Conflict"), (410, "410 Gone"), (411, "411 Length Required"),
        (412, "412 Precondition Failed"), (413, "413 Request Entity Too Large"), (414, "414 Request-URI Too Large"),
        (415, "415 Unsupported Media Type"), (416, "416 Requested Range Not Satisfiable"),
        (421, "421 Misdirected Request"), (429, "429 Too Many Requests"), (500, "500 Internal Server Error"),
        (501, "501 Not Implemented"), (502, "502 Bad Gateway"), (503, "503 Service Temporarily Unavailable"),
        (504, "504 Gateway Time-out"), (505, "505 HTTP Version Not Supported"), (507, "507 Insufficient Storage"),
    ],
)  # fmt: skip
def test_built_in_pages(pages, code, title):
    proxy = pages(answer=f"return {code} /l;" if code < 400 else f"return {code};")
    answer = proxy.get("/x")
    product = proxy.binary.product
    assert answer.body.decode() == (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
        f"<hr><center>{product}</center>\r\n</body>\r\n</html>\r\n"
    )
    assert answer.get("Content-Type") == "text/html"
    assert answer.status == code


@differs("older ones have no page for it")
def test_a_page_that_is_newer(pages):
    assert b"<h1>407 Proxy Authentication Required</h1>" in pages(answer="return 407;").get("/x").body


@differs("it has no page for it")
def test_a_page_that_uwsgi_vars_limit_needs(pages):
    answer = pages(answer="return 431;").get("/x")
    assert answer.start == "HTTP/1.1 431 Request Header Fields Too Large"
    assert b"<h1>431 Request Header Fields Too Large</h1>" in answer.body


@pytest.mark.parametrize("code", [418, 420, 422, 428, 451, 499 + 7, 508, 511, 599, 999])
def test_codes_without_a_page(pages, code):
    answer = pages(answer=f"return {code};").get("/x")
    assert answer.start == f"HTTP/1.1 {code} "
    assert (answer.body, answer.get("Content-Length"), answer.get("Content-Type")) == (b"", "0", None)


@pytest.mark.parametrize("code", [200, 201, 202, 206, 299, 300, 304, 399])
def test_an_empty_text_below_400(pages, code):
    answer = pages("error_page 300 304 /plain;", f"return {code};").get("/x")
    assert (answer.status, answer.body) == (code, b"")
    assert (answer.get("Content-Length"), answer.get("Content-Type")) == ("0", "text/plain")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_to_nowhere(pages, code):
    answer = pages(answer=f"return {code};").get("/x")
    assert (answer.status, answer.get("Location")) == (code, "")


@pytest.mark.parametrize(
    "code, text",
    [
        (494, "Request Header Or Cookie Too Large"),
        (495, "The SSL certificate error"),
        (496, "No required SSL certificate was sent"),
        (497, "The plain HTTP request was sent to HTTPS port"),
    ],
)
def test_kinds_of_400(pages, code, text):
    answer = pages(answer=f"return {code};").get("/x")
    assert answer.start == "HTTP/1.1 400 Bad Request"
    assert f"<title>400 {text}</title>" in answer.body.decode()
    assert f"<center><h1>400 Bad Request</h1></center>\r\n<center>{text}</center>" in answer.body.decode()


@pytest.mark.parametrize("code", [400, 413, 414, 495, 496, 497, 500, 501])
def test_codes_that_end_the_connection(pages, code):
    answer = pages(answer=f"return {code};").ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.get("Connection") == "close"


@pytest.mark.parametrize("code", [401, 403, 404, 405, 411, 494, 502, 503, 504])
def test_codes_that_do_not(pages, code):
    answer = pages(answer=f"return {code};").ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.get("Connection") == "keep-alive"


@pytest.mark.parametrize("code", [444, 408, 499])
def test_codes_that_say_nothing(pages, code):
    with pages(answer=f"return {code};").connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        wire.expect_end()


@pytest.mark.parametrize(
    "agent, version, padded",
    [
        ("Mozilla/4.0 (compatible; MSIE 6.0)", "1.1", True),
        ("Mozilla/4.0 (compatible; MSIE 6.0; Opera)", "1.1", False),
        ("Mozilla/5.0 Chrome/99", "1.1", True),
        ("Mozilla/5.0 Chrome/99 Gecko/1", "1.1", False),
        ("curl/8", "1.1", False),
        ("x MSIE 6.0", "1.0", True),
        ("x MSIE 6.", "1.1", False),
    ],
)
def test_padding(pages, agent, version, padded):
    answer = pages().ask(f"GET / HTTP/{version}\r\nHost: h\r\nUser-Agent: {agent}\r\nConnection: close\r\n\r\n")
    line = b"<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n"
    assert answer.body.count(line) == (6 if padded else 0)


def test_padding_off(pages):
    answer = pages("msie_padding off;").get("/", "User-Agent: Chrome/1")
    assert b"padding" not in answer.body


@pytest.mark.parametrize("tokens, shown", [("on", True), ("off", False)])
def test_server_tokens(pages, tokens, shown):
    proxy = pages(server=f"server_tokens {tokens};")
    answer = proxy.get("/")
    name = proxy.binary.product if shown else proxy.binary.name
    assert answer.get("Server") == name
    assert f"<hr><center>{name}</center>".encode() in answer.body


@pytest.mark.parametrize(
    "directives, location",
    [
        ("", "http://example.com:PORT/l"),
        ("absolute_redirect off;", "/l"),
        ("port_in_redirect off;", "http://example.com/l"),
        ("server_name_in_redirect on; server_name first.test second.test;", "http://first.test:PORT/l"),
        ("server_name_in_redirect on; server_name first.test; port_in_redirect off;", "http://first.test/l"),
    ],
)
def test_locations(pages, directives, location):
    proxy = pages(answer="return 301 /l;", server=directives)
    assert proxy.get("/x").get("Location").replace(str(proxy.port), "PORT") == location


def test_a_location_without_a_host(pages):
    proxy = pages(answer="return 301 /l;")
    assert proxy.ask("GET / HTTP/1.0\r\n\r\n").get("Location") == f"http://127.0.0.1:{proxy.port}/l"


@pytest.mark.parametrize(
    "line, told",
    [
        ("error_page 600 /x;", 'value "600" must be between 300 and 599'),
        ("error_page 299 /x;", 'value "299" must be between 300 and 599'),
        ("error_page 499 /x;", 'invalid value "499"'),
        ("error_page x /x;", 'invalid value "x"'),
        ("error_page 404 =x /x;", 'invalid value "=x"'),
        ("error_page = /x;", 'invalid value "="'),
        ("error_page /x;", 'invalid number of arguments in "error_page" directive'),
    ],
)
def test_what_is_refused(pages, line, told):
    with pytest.raises(RuntimeError, match=re.escape(told)):
        pages(line)
