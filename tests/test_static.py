"""Files: which one a URI names, its head, conditions, ranges, try_files, symbolic links."""

import os
import re
from email.utils import formatdate

import pytest

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="asks for root")

MTIME = 1700000000
SAME, EARLIER, LATER = (formatdate(MTIME + by, usegmt=True) for by in (0, -1, 1))
ETAG = '"6553f100-a"'
FILES = {
    "html/index.html": "index",
    "html/a.txt": "0123456789",
    "html/a.HTML": "page",
    "html/empty": "",
    "html/noext": "none",
    "html/.hidden": "hidden",
    "html/a b%c": "odd",
    "html/dir/b.gif": "gif",
    "html/.html": "hidden",
    "html/dir/.html": "hidden",
    "html/dir/index.html": "dir index",
    "html/bare/x": "x",
    "html/indexed/other": "other",
    "html/two/index.html": "one",
    "html/two/index.htm": "two",
    "html/dirindex/index.html/x": "x",
    "alias/f": "aliased",
    "alias/index.html": "alias index",
    "aliasx": "glued",
}
CONF = """
root html;
location /in/ { alias alias/; }
location /glued { alias alias; }
location ~ ^/re/(.*)$ { alias alias/$1; }
location = /one { alias alias/f; }
location /other/ { root .; }
location /indexed/ { index none other; }
location /two/ { index index.htm index.html; }
location /abs/ { index none /a.txt; }
location /vars/ { root $arg_root; }
location /quiet/ { log_not_found off; }
location /bare2/ { index none; }
location /untyped { default_type ""; alias html/noext; }
location /typed { types { a/b txt; } default_type c/d; alias html; }
location /off { etag off; alias html/a.txt; }
location /before { if_modified_since before; alias html/a.txt; }
location /ims_off { if_modified_since off; alias html/a.txt; }
location /no_ranges { max_ranges 0; alias html/a.txt; }
location /one_range { max_ranges 1; alias html/a.txt; }
location /big { alias html/big; }
"""


@pytest.fixture(scope="module")
def files(shared):
    proxy = shared(CONF, files=FILES)
    os.utime(proxy.prefix / "html/a.txt", (MTIME, MTIME))
    os.utime(proxy.prefix / "html/empty", (MTIME, MTIME))
    (proxy.prefix / "html/big").write_bytes(bytes(range(256)) * 400)
    if not (proxy.prefix / "html/fifo").exists():
        os.mkfifo(proxy.prefix / "html/fifo")
        os.symlink("loop", proxy.prefix / "html/loop")
    return proxy


# Which file, and what when there is none.

FOUND = [
    ("GET", "/a.txt", 200, "0123456789"),
    ("HEAD", "/a.txt", 200, ""),
    ("POST", "/a.txt", 405, None),
    ("POST", "/none", 404, None),
    ("POST", "/dir", 301, None),
    ("POST", "/", 405, None),
    ("PUT", "/a.txt", 405, None),
    ("PUT", "/none", 405, None),
    ("DELETE", "/", 405, None),
    ("OPTIONS", "/a.txt", 405, None),
    ("FOO", "/none", 405, None),
    ("GET", "/", 200, "index"),
    ("GET", "/?x=1", 200, "index"),
    ("GET", "/dir/", 200, "dir index"),
    ("GET", "/dir", 301, None),
    ("GET", "/dir/b.gif", 200, "gif"),
    ("GET", "/bare/", 403, None),
    ("GET", "/none/", 404, None),
    ("GET", "/none", 404, None),
    ("GET", "/a.txt/", 404, None),
    ("GET", "/a.txt/x", 404, None),
    ("GET", "/" + "x" * 300, 404, None),
    ("GET", "/.hidden", 200, "hidden"),
    ("GET", "/a%20b%25c", 200, "odd"),
    ("GET", "/A.txt", 404, None),
    ("GET", "/fifo", 404, None),
    ("GET", "/loop", 403, None),
    ("GET", "/dirindex/", 301, None),
    ("GET", "/in/f", 200, "aliased"),
    ("GET", "/in/", 200, "alias index"),
    ("GET", "/in", 404, None),
    ("GET", "/glued/f", 200, "aliased"),
    ("GET", "/gluedx", 200, "glued"),
    ("GET", "/re/f", 200, "aliased"),
    ("GET", "/re/none", 404, None),
    ("GET", "/one", 200, "aliased"),
    ("GET", "/other/x", 404, None),
    ("GET", "/indexed/", 200, "other"),
    ("GET", "/two/", 200, "two"),
    ("GET", "/bare2/", 404, None),
    ("GET", "/in/../a.txt", 200, "0123456789"),
    ("GET", "/empty", 200, ""),
]


@pytest.mark.parametrize("method, target, status, body", FOUND, ids=[f"{row[0]} {row[1]}"[:40] for row in FOUND])
def test_which_file(files, method, target, status, body):
    if target == "/fifo":
        files.expected_alerts.append("is not a regular file")
    answer = files.get(target, method=method, body=b"" if method in ("POST", "PUT") else None)
    assert answer.status == status
    if body is not None:
        assert answer.body.decode() == body
    if status == 405:
        assert answer.get("Allow") is None


LOCATION = [
    ("/dir", "/dir/"),
    ("/dir?x=1&y", "/dir/?x=1&y"),
    ("//dir", "/dir/"),
    ("/%64ir", "/dir/"),
    ("/odd%20dir", "/odd%20dir/"),
    ("/odd%20dir?a%20b", "/odd%20dir/?a%20b"),
    ("/dirindex/", "/dirindex/index.html/"),
]


@pytest.mark.parametrize("target, location", LOCATION)
def test_where_a_directory_without_its_slash_leads(files, target, location):
    (files.prefix / "html/odd dir").mkdir(exist_ok=True)
    assert files.get(target).get("Location") == f"http://example.com:{files.port}{location}"


SAID = [
    ("/missing1", 'open() "@/html/missing1" failed (2: No such file or directory)', "error"),
    ("/a.txt/missing2", 'open() "@/html/a.txt/missing2" failed (20: Not a directory)', "error"),
    ("/missing3/", '"@/html/missing3/index.html" is not found (2: No such file or directory)', "error"),
    ("/a.txt/", '"@/html/a.txt/index.html" is not found (20: Not a directory)', "error"),
    ("/bare/", 'directory index of "@/html/bare/" is forbidden', "error"),
    ("/loop", 'open() "@/html/loop" failed (40: Too many levels of symbolic links)', "error"),
    ("/" + "y" * 256, "failed (36: File name too long)", "error"),
    ("/in/missing4", 'open() "@/alias/missing4" failed (2: No such file or directory)', "error"),
]


@pytest.mark.parametrize("target, text, level", SAID, ids=[row[1][:50] for row in SAID])
def test_what_is_not_found_is_told(files, target, text, level):
    files.get(target)
    line = files.logged(text.replace("@", str(files.prefix)))
    assert f"[{level}]" in line and line.endswith('host: "example.com"')


def test_log_not_found_off(files):
    assert files.get("/quiet/none").status == 404
    assert files.get("/quiet/").status == 404
    files.get("/told-after")
    files.logged("told-after")
    assert "/quiet/" not in files.error_log()


# The head.


def test_the_head_of_a_file(files):
    answer = files.get("/a.txt")
    names = "Server Date Content-Type Content-Length Last-Modified Connection ETag Accept-Ranges".split()
    assert answer.names() == names
    assert answer.get("Last-Modified") == SAME
    assert answer.get("ETag") == ETAG
    assert answer.get("Content-Length") == "10"


TYPES = [
    ("/a.HTML", "text/html"),
    ("/a.txt", "text/plain"),
    ("/noext", "text/plain"),
    ("/.hidden", "text/plain"),
    ("/.html", "text/plain"),
    ("/dir/.html", "text/plain"),
    ("/dir/b.gif", "image/gif"),
    ("/untyped", None),
    ("/typed/a.txt", "a/b"),
    ("/typed/a.HTML", "c/d"),
    ("/in/f", "text/plain"),
]


@pytest.mark.parametrize("target, kind", TYPES)
def test_types(files, target, kind):
    answer = files.get(target)
    assert (answer.status, answer.get("Content-Type")) == (200, kind)


# Conditions.

CONDITIONS = [
    ((f"If-Modified-Since: {SAME}",), 304),
    ((f"If-Modified-Since: {EARLIER}",), 200),
    ((f"If-Modified-Since: {LATER}",), 200),
    (("If-Modified-Since: Tuesday, 14-Nov-23 22:13:20 GMT",), 304),
    (("If-Modified-Since: Tue Nov 14 22:13:20 2023",), 304),
    (("If-Modified-Since: soon",), 200),
    (("If-Modified-Since: Mon, 14 Nov 2023 22:13:20 GMT",), 304),
    (("If-Modified-Since: x, 14 Nov 2023 22:13:20 GMT",), 304),
    (("If-Modified-Since: x,14 Nov 2023 22:13:20 GMT",), 304),
    (("If-Modified-Since: Tue, 14 Nov 2023 22:13:20",), 304),
    (("If-Modified-Since: Tue, 14 Nov 2023 22:13:20 GMT and more",), 304),
    (("If-Modified-Since: Tue, 14 November 2023 22:13:20 GMT",), 200),
    (("If-Modified-Since: Tue, 14 nov 2023 22:13:20 GMT",), 200),
    (("If-Modified-Since: Monday, 14-Nov-23 22:13:20 GMT",), 304),
    (("If-Modified-Since: Mon Nov 14 22:13:20 2023",), 304),
    (("If-Modified-Since: 14 Nov 2023 22:13:20 GMT",), 200),
    (("If-Modified-Since: Tue, 14 Nov 2023 24:13:20 GMT",), 200),
    (("If-Modified-Since: Tue, 14 Nov 2023 22:60:20 GMT",), 200),
    (("If-Modified-Since: Tue, 14 Nov 2023 22:12:80 GMT",), 200),
    (("If-Modified-Since: Tue, 44 Oct 2023 22:13:20 GMT",), 200),
    (("If-Modified-Since: Tue, 14 Nov 2023  22:13:20 GMT",), 200),
    ((f"If-Unmodified-Since: {SAME}",), 200),
    ((f"If-Unmodified-Since: {LATER}",), 200),
    ((f"If-Unmodified-Since: {EARLIER}",), 412),
    (("If-Unmodified-Since: soon",), 412),
    ((f"If-None-Match: {ETAG}",), 304),
    ((f"If-None-Match: W/{ETAG}",), 304),
    ((f'If-None-Match: "x", {ETAG}',), 304),
    (("If-None-Match: *",), 304),
    (('If-None-Match: "x"',), 200),
    ((f"If-Match: {ETAG}",), 200),
    ((f'If-Match: "x" , {ETAG}',), 200),
    (("If-Match: *",), 200),
    ((f"If-Match: W/{ETAG}",), 412),
    (('If-Match: "x"',), 412),
    ((f"If-Modified-Since: {SAME}", f"If-None-Match: {ETAG}"), 304),
    ((f"If-Modified-Since: {SAME}", 'If-None-Match: "x"'), 200),
    ((f"If-Modified-Since: {EARLIER}", f"If-None-Match: {ETAG}"), 200),
    ((f"If-Unmodified-Since: {EARLIER}", f"If-None-Match: {ETAG}"), 412),
    ((f"If-Match: {ETAG}", f"If-None-Match: {ETAG}"), 304),
    (('If-Match: "x"', f"If-None-Match: {ETAG}"), 412),
]


@pytest.mark.parametrize("fields, status", CONDITIONS, ids=[" + ".join(row[0])[:60] for row in CONDITIONS])
def test_conditions(files, fields, status):
    answer = files.get("/a.txt", *fields)
    assert answer.status == status
    if status == 304:
        assert answer.names() == ["Server", "Date", "Last-Modified", "Connection", "ETag"]
    if status == 412:
        assert answer.get("ETag") is None and b"412 Precondition Failed" in answer.body


MODES = [
    ("/before", f"If-Modified-Since: {LATER}", 304),
    ("/before", f"If-Modified-Since: {SAME}", 304),
    ("/before", f"If-Modified-Since: {EARLIER}", 200),
    ("/ims_off", f"If-Modified-Since: {SAME}", 200),
    ("/off", f"If-None-Match: {ETAG}", 200),
    ("/off", "If-None-Match: *", 304),
    ("/off", f"If-Match: {ETAG}", 412),
    ("/off", f"If-Modified-Since: {SAME}", 304),
]


@pytest.mark.parametrize("target, field, status", MODES)
def test_modes_of_conditions(files, target, field, status):
    answer = files.get(target, field)
    assert answer.status == status
    assert (answer.get("ETag") is None) == (target == "/off")


# Ranges.

RANGES = [
    ("bytes=2-4", 206, "234", "bytes 2-4/10"),
    ("BYTES=2-4", 206, "234", "bytes 2-4/10"),
    ("bytes= 2 - 4 ", 206, "234", "bytes 2-4/10"),
    ("bytes=8-", 206, "89", "bytes 8-9/10"),
    ("bytes=8-99", 206, "89", "bytes 8-9/10"),
    ("bytes=0-0", 206, "0", "bytes 0-0/10"),
    ("bytes=0-", 206, "0123456789", "bytes 0-9/10"),
    ("bytes=-3", 206, "789", "bytes 7-9/10"),
    ("bytes=-99", 206, "0123456789", "bytes 0-9/10"),
    ("bytes=-0", 416, None, "bytes */10"),
    ("bytes=10-", 416, None, "bytes */10"),
    ("bytes=5-4", 416, None, "bytes */10"),
    ("bytes=x", 416, None, "bytes */10"),
    ("bytes=1", 416, None, "bytes */10"),
    ("bytes=1-2x", 416, None, "bytes */10"),
    ("bytes=99999999999999999999-", 416, None, "bytes */10"),
    ("bytes=", 200, "0123456789", None),
    ("bytes", 200, "0123456789", None),
    ("lines=1-2", 200, "0123456789", None),
    ("bytes=10-,2-4", 206, "234", "bytes 2-4/10"),
    ("bytes=0-9,0-9", 200, "0123456789", None),
    ("bytes=0-5,0-5", 200, "0123456789", None),
    ("bytes=10-,20-", 416, None, "bytes */10"),
]


@pytest.mark.parametrize("value, status, body, content_range", RANGES, ids=[row[0] for row in RANGES])
def test_ranges(files, value, status, body, content_range):
    answer = files.get("/a.txt", f"Range: {value}")
    assert (answer.status, answer.get("Content-Range")) == (status, content_range)
    if body is not None:
        assert answer.body.decode() == body
    assert answer.get("Accept-Ranges") == ("bytes" if status == 200 else None)
    head = files.get("/a.txt", f"Range: {value}", method="HEAD")
    assert (head.status, head.get("Content-Range")) == (status, content_range)
    assert head.get("Content-Length") == answer.get("Content-Length")


def test_several_ranges(files):
    answer = files.get("/a.txt", "Range: bytes=0-1,4-4,-2")
    assert answer.status == 206
    kind = answer.get("Content-Type")
    boundary = re.fullmatch(r"multipart/byteranges; boundary=(\d{20})", kind)[1]
    parts = "".join(
        f"\r\n--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes {at}/10\r\n\r\n{text}"
        for at, text in (("0-1", "01"), ("4-4", "4"), ("8-9", "89"))
    )
    assert answer.body.decode() == f"{parts}\r\n--{boundary}--\r\n"
    assert answer.get("Accept-Ranges") is None and answer.get("Content-Range") is None


OTHER_RANGES = [
    ("/no_ranges", ("Range: bytes=1-2",), 200),
    ("/one_range", ("Range: bytes=1-2",), 206),
    ("/one_range", ("Range: bytes=1-2,4-5",), 200),
    ("/empty", ("Range: bytes=0-",), 200),
    ("/empty", ("Range: bytes=-1",), 200),
    ("/empty", ("Range: bytes=1-",), 416),
    ("/a.txt", ("Range: bytes=1-2", f"If-Range: {ETAG}"), 206),
    ("/a.txt", ("Range: bytes=1-2", 'If-Range: "x"'), 200),
    ("/a.txt", ("Range: bytes=1-2", f"If-Range: W/{ETAG}"), 200),
    ("/a.txt", ("Range: bytes=1-2", f"If-Range: {SAME}"), 206),
    ("/a.txt", ("Range: bytes=1-2", f"If-Range: {LATER}"), 200),
    ("/a.txt", ("Range: bytes=1-2", "If-Range: soon"), 200),
    ("/a.txt", ("Range: bytes=1-2", f"If-None-Match: {ETAG}"), 304),
    ("/a.txt", ("Range: bytes=1-2", 'If-Match: "x"'), 412),
    ("/none", ("Range: bytes=1-2",), 404),
    ("/dir", ("Range: bytes=1-2",), 301),
]


@pytest.mark.parametrize("target, fields, status", OTHER_RANGES, ids=[f"{r[0]} {' + '.join(r[1])}"[:70] for r in OTHER_RANGES])
def test_other_ranges(files, target, fields, status):
    answer = files.get(target, *fields)
    assert answer.status == status
    if target == "/no_ranges":
        assert answer.get("Accept-Ranges") is None


def test_ranges_in_http_1_0(files):
    answer = files.ask("GET /a.txt HTTP/1.0\r\nRange: bytes=1-2\r\n\r\n")
    assert (answer.status, answer.body) == (206, b"12")


def test_many_small_ranges_are_too_dear(files):
    """Each counts 256 bytes on top; the file's length and 4096 are the limit."""
    size = 256 * 400

    def status(count: int) -> int:
        return files.get("/big", "Range: bytes=" + ",".join(["0-0"] * count)).status

    most = (size + 4096) // 257
    assert status(16) == 206
    assert most > 16


def test_a_large_file_and_its_ranges(files):
    whole = bytes(range(256)) * 400
    assert files.get("/big").body == whole
    assert files.get("/big", "Range: bytes=65530-70000").body == whole[65530:70001]


@pytest.mark.parametrize(
    "location, target, status, body",
    [
        ("location / { root $arg_r; }", "/html/a.txt?r=", 200, b"0123456789"),
        ("location / { root $arg_r; }", "/a.txt?r=html", 200, b"0123456789"),
        ("location / { root $arg_r; }", "/a.txt?r=@prefix@/html", 200, b"0123456789"),
        ("location /f/ { alias $arg_r; }", "/f/html/a.txt?r=", 200, b"0123456789"),
        ("location / { root $arg_r; try_files $uri =404; }", "/a.txt?r=html", 200, b"0123456789"),
        ("location / { root $arg_r; return 200 $document_root; }", "/?r=html", 200, b"@prefix@/html"),
        ("location / { root $arg_r; return 200 $realpath_root; }", "/?r=html", 200, b"@prefix@/html"),
        ("location / { root $arg_r; return 200 $request_filename; }", "/x?r=html", 200, b"@prefix@/html/x"),
    ],
)
def test_a_root_of_variables_stands_below_the_prefix(shared, location, target, status, body):
    proxy = shared(location, files=FILES)
    prefix = str(proxy.prefix)
    answer = proxy.get(target.replace("@prefix@", prefix))
    assert answer.status == status
    assert body is None or answer.body == body.replace(b"@prefix@", prefix.encode())


@ringx_only("nginx looks at a byte that it has not set: it may send the file")
@pytest.mark.parametrize(
    "location, target",
    [
        ("location / { root $arg_r; }", "/etc/passwd?r="),
        ("location / { root $arg_r; try_files $uri =404; }", "/etc/passwd?r="),
        ("location /f/ { alias $arg_r; }", "/f/etc/passwd?r="),
    ],
)
def test_a_root_without_a_value_does_not_open_the_file_system(shared, location, target):
    assert shared(location, files=FILES).get(target).status == 404


# try_files.

TRY = [
    ("location /t { try_files $uri /fallback; }", "/t", "fallback "),
    ("location /t { try_files $uri /fallback?u=$uri; }", "/t/x?q=1", "fallback u=/t/x"),
    ("location /t { try_files $uri /fallback?$args; }", "/t/x?q=1", "fallback q=1"),
    ("location /t { try_files $uri /fallback; }", "/t/x?q=1", "fallback "),
    ("location / { try_files $uri =404; }", "/f", "file"),
    ("location / { try_files $uri $uri/ =404; }", "/d", "301"),
    ("location / { try_files $uri $uri/ =404; }", "/d/", "dir"),
    ("location / { try_files /none /f =404; }", "/x", "file"),
    ("location / { try_files /d =404; }", "/x", "404"),
    ("location / { try_files /f/ =404; }", "/x", "404"),
    ("location / { try_files $uri.txt $uri =404; }", "/x", "txt"),
    ("location /t { try_files $uri =410; }", "/t", "410"),
    ("location /t { try_files $uri @named; }", "/t?q=1", "named /t q=1"),
    ("location /t { try_files $uri @none; }", "/t", "500"),
    ("location /t { set $n named; try_files $uri @$n; }", "/t?q=1", "named /t q=1"),
    ("location /t { try_files /none /f; }", "/t", "file"),
    ("location /t/ { alias html/d/; try_files $uri =404; }", "/t/index.html", "dir"),
    ("location /t/ { root html/d; try_files /index.html =404; }", "/t/x", "dir"),
    ("location /t { set $v /f; try_files $v =404; }", "/t", "file"),
    ("try_files /f =404;", "/t", "file"),
    ("try_files /none /fallback;", "/nothing", "fallback "),
    ("location /t { error_page 404 /fallback; try_files $uri =404; }", "/t", "404 fallback "),
    ("location /t { error_page 404 =200 /fallback; try_files $uri =404; }", "/t", "fallback "),
    ("location /t { rewrite ^ /f break; try_files $uri =404; }", "/t", "file"),
    ("location /t { return 201 first; try_files /f =404; }", "/t", "201 first"),
]


@pytest.mark.parametrize("server, target, expected", TRY, ids=[f"{row[0]} {row[1]}"[:80] for row in TRY])
def test_try_files(shared, server, target, expected):
    rest = """
    root html;
    location /fallback { return 200 "fallback $args"; }
    location @named { return 200 "named $uri $args"; }
    """
    proxy = shared(server + rest, files={"html/f": "file", "html/x.txt": "txt", "html/d/index.html": "dir"})
    answer = proxy.get(target)
    text = answer.body.decode() if b"<html>" not in answer.body else ""
    assert (text if answer.status == 200 else f"{answer.status} {text}".strip(" ") if not text else f"{answer.status} {text}") == expected


# The location, the target, the status, what is sent or where it leads, `$uri` and the file behind `html/d`.
TRY_ALIAS = [
    # A prefix: what follows it is looked for behind the alias.
    ("location /t/ { alias html/d/; try_files $uri =404; }", "/t/f", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files $uri =404; }", "/t/none", 404, "", "/t/none", "/none"),
    ("location /t/ { alias html/d/; try_files $uri =404; }", "/t/e", 404, "", "/t/e", "/e"),
    ("location /t/ { alias html/d/; try_files $uri =404; }", "/t/e/s", 200, "sub", "/t/e/s", "/e/s"),
    ("location /t/ { alias html/d/; try_files f =404; }", "/t/x", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files f =404; }", "/t/", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files /f =404; }", "/t/x", 200, "file", "/t//f", "//f"),
    ("location /t/ { alias html/d/; try_files /t/f =404; }", "/t/x", 404, "", "/t/x", "/x"),
    ("location /t/ { alias html/d/; try_files /t/f$arg_c =404; }", "/t/x", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files $arg_c =404; }", "/t/x?c=f", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files $arg_c =404; }", "/t/x?c=/t/f", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files $arg_c =404; }", "/t/x?c=t/f", 404, "", "/t/x", "/x"),
    ("location /t/ { alias html/d/; try_files $arg_c =404; }", "/t/x?c=/t", 404, "", "/t/x", "/x"),
    ("location /t { alias html/d; try_files $uri $uri/ =404; }", "/t/f", 200, "file", "/t/f", "/f"),
    ("location /t { alias html/d; try_files $uri $uri/ =404; }", "/t", 301, "/t/", "/t", ""),
    ("location = /t { alias html/d/; try_files $arg_c =404; }", "/t?c=f", 200, "file", "/tf", "/f"),
    # A directory is led to by its URI.
    ("location /t/ { alias html/d/; try_files $uri $uri/ =404; }", "/t/e", 301, "/t/e/", "/t/e", "/e"),
    ("location /t/ { alias html/d/; try_files $uri $uri/ =404; }", "/t/e/", 200, "index", "/t/e/index.html", "/e/index.html"),
    ("location /t/ { alias html/d/; try_files e/ =404; }", "/t/x", 301, "/t/e/", "/t/e", "/e"),
    ("location /t/ { alias html/d/; try_files f/ =404; }", "/t/x", 404, "", "/t/x", "/x"),
    # What comes last is a URI; with a variable in it, it is cut like a name.
    ("location /t/ { alias html/d/; try_files $uri /t/f; }", "/t/x", 200, "file", "/t/f", "/f"),
    ("location /t/ { alias html/d/; try_files $uri /t/f?$args; }", "/t/x", 404, "", "f", None),
    ("location /t/ { alias html/d/; try_files $uri /t/t/f$arg_c; }", "/t/x", 404, "", "t/f", None),
    ("location /t/ { alias html/d/; try_files $uri /last$arg_c; }", "/t/x?c=1", 200, "last", "/last1", None),
    ("location /t/ { alias html/d/; try_files $uri @last; }", "/t/x", 200, "named", "/t/x", None),
    ("location /t/ { alias html/d/; try_files $uri $arg_c; }", "/t/x?c=@last", 200, "named", "/t/x", None),
    # The alias of an outer location stands for that one's name.
    ("location /t/ { alias html/d/; location /t/e/ { try_files $uri =404; } }", "/t/e/s", 200, "sub", "/t/e/s", "/e/s"),
    ("location /t/ { alias html/d/; location ~ s$ { try_files $uri =404; } }", "/t/e/s", 200, "sub", "/t/e/s", "/e/s"),
    ("location /t/ { alias html/d/; location /t/e/ { } }", "/t/e/s", 200, "sub", "/t/e/s", "/e/s"),
    ("location /t/ { alias html/d/; location ~ s$ { } }", "/t/e/s", 200, "sub", "/t/e/s", "/e/s"),
    # A regex: the alias is a whole path, and the name follows it.
    ("location ~ ^/t/(.*) { alias html/d; try_files /$1 =404; }", "/t/f", 200, "file", "/f", "/f"),
    ("location ~ ^/t/(.*) { alias html/d; try_files /$1 =404; }", "/t/none", 404, "", "/t/none", ""),
    ("location ~ ^/t/(.*) { alias html/d; try_files $uri /f =404; }", "/t/f", 200, "file", "/f", "/f"),
    ("location ~ ^/t/(.*) { alias html/d/$1; try_files .txt '' =404; }", "/t/f", 200, "txt", ".txt", "/f.txt"),
    ("location ~ ^/t/(.*) { alias html/d/$1; try_files .none $arg_c =404; }", "/t/f?c=.txt", 200, "txt", ".txt", "/f.txt"),
    ("location ~ ^/t/(.*) { alias html/d; try_files /e/ /f =404; }", "/t/x", 301, "/t/x/", "/t/x", ""),
    ("location ~ ^/t/(.*) { alias html/d; try_files $uri /last$arg_c; }", "/t/x", 200, "last", "/last", None),
    ("location ~ ^/t/(.*) { alias html/d; try_files $uri @last; }", "/t/x", 200, "named", "/t/x", None),
    ("location ~ ^/t/(.*) { alias html/d; location ~ (f) { try_files /$1 =404; } }", "/t/f", 200, "file", "/f", "/f"),
]


@pytest.mark.parametrize(
    "server, target, status, content, uri, path", TRY_ALIAS, ids=[f"{row[0]} {row[1]}"[:100] for row in TRY_ALIAS]
)
def test_try_files_behind_an_alias(shared, server, target, status, content, uri, path):
    rest = """
    root html;
    add_header U $uri always;
    add_header F $request_filename always;
    location /last { return 200 last; }
    location @last { return 200 named; }
    """
    files = {"f": "file", "f.txt": "txt", "e/s": "sub", "e/index.html": "index"}
    proxy = shared(server + rest, files={f"html/d/{name}": text for name, text in files.items()})
    answer = proxy.get(target)
    text = answer.body.decode() if b"<html>" not in answer.body else ""
    place = (answer.get("Location") or "").removeprefix(f"http://example.com:{proxy.port}")
    assert (answer.status, text or place, answer.get("U")) == (status, content, uri)
    if path is not None:
        assert answer.get("F").removeprefix(f"{proxy.prefix}/html/d") == path


def test_try_files_behind_an_alias_that_does_not_fit(shared):
    proxy = shared("location /t/ { alias html/; rewrite ^ /x break; try_files $uri /last; } location /last { return 200 x; }")
    proxy.expected_alerts.append('"alias" cannot be used in location "/t/" where URI was rewritten')
    assert proxy.get("/t/x").status == 500
    proxy.logged(proxy.expected_alerts[0])


def test_try_files_with_200_closes(shared):
    proxy = shared("location / { try_files /none =200; }")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    wire.expect_end()


# Pages of errors out of files.


@pytest.mark.parametrize("form, status, names", [
    ("404 /e.html", 404, ["Server", "Date", "Content-Type", "Content-Length", "Connection", "ETag"]),
    (
        "404 =200 /e.html", 200,
        ["Server", "Date", "Content-Type", "Content-Length", "Last-Modified", "Connection", "ETag", "Accept-Ranges"],
    ),
    (
        "404 = /e.html", 200,
        ["Server", "Date", "Content-Type", "Content-Length", "Last-Modified", "Connection", "ETag", "Accept-Ranges"],
    ),
])
def test_a_file_as_an_error_page(shared, form, status, names):
    proxy = shared(f"root html; error_page {form};", files={"html/e.html": "sorry"})
    for fields in ((), ("Range: bytes=0-1", "If-None-Match: *") if status == 404 else ()):
        answer = proxy.get("/none", *fields)
        assert (answer.status, answer.names(), answer.body) == (status, names, b"sorry")


# Symbolic links.

LINKS = [
    ("", "/link/f", 200),
    ("disable_symlinks off;", "/link/f", 200),
    ("disable_symlinks on;", "/real/f", 200),
    ("disable_symlinks on;", "/real/", 200),
    ("disable_symlinks on;", "/real", 301),
    ("disable_symlinks on;", "/real/none", 404),
    ("disable_symlinks on;", "/real/g", 403),
    ("disable_symlinks on;", "/link/f", 404),
    ("disable_symlinks on;", "/link/", 404),
    ("disable_symlinks on;", "/link", 403),
    ("disable_symlinks if_not_owner;", "/link/f", 200),
    ("disable_symlinks if_not_owner;", "/real/g", 200),
    ("disable_symlinks on from=$document_root/link;", "/link/f", 200),
    ("disable_symlinks on from=$document_root/link;", "/link/g", 403),
    ("disable_symlinks on from=$document_root/lin;", "/link/f", 404),
    ("disable_symlinks on from=/elsewhere;", "/link/f", 404),
    ("disable_symlinks on; try_files /link/f /real/f =404;", "/x", 200),
    ("disable_symlinks on; try_files /link/f =418;", "/x", 418),
]


@pytest.mark.parametrize("text, target, status", LINKS, ids=[f"{row[0]} {row[1]}" for row in LINKS])
def test_symbolic_links(shared, text, target, status):
    # The folders above belong to the test: only what is in html is looked at.
    proxy = shared(f"root html; location / {{ {text} }}", files={"html/real/f": "f", "html/real/index.html": "i"})
    if not (proxy.prefix / "html/link").is_symlink():
        os.symlink("real", proxy.prefix / "html/link")
        os.symlink("f", proxy.prefix / "html/real/g")
    assert proxy.get(target).status == status


@root_only
def test_a_link_of_another_owner(shared):
    proxy = shared("root html; disable_symlinks if_not_owner;", files={"html/mine": "m", "html/dir/f": "f"})
    for name, to in (("theirs", "mine"), ("dirlink", "dir")):
        path = proxy.prefix / "html" / name
        if not path.is_symlink():
            os.symlink(to, path)
            os.lchown(path, 65534, 65534)
    assert proxy.get("/mine").status == 200
    assert proxy.get("/theirs").status == 403
    assert proxy.get("/dirlink/f").status == 403
    proxy.logged(f'openat() "{proxy.prefix}/html/theirs" failed (40: Too many levels of symbolic links)')


REFUSED = [
    ("disable_symlinks maybe;", '[emerg] invalid parameter "maybe" in F:6'),
    ("disable_symlinks from=/x;", '[emerg] "disable_symlinks" must have "off", "on" or "if_not_owner" parameter in F:6'),
    ("disable_symlinks off from=/x;", '[emerg] "from=" cannot be used with "off" parameter in F:6'),
    ("disable_symlinks on on;", '[emerg] duplicate parameters "on on" in F:6'),
    ("root a; root b;", '[emerg] "root" directive is duplicate in F:6'),
    ("location / { root a; alias b; }", '[emerg] "alias" directive is duplicate, "root" directive was specified earlier in F:6'),
    ("location / { alias b; root a; }", '[emerg] "root" directive is duplicate, "alias" directive was specified earlier in F:6'),
    ("alias x;", '[emerg] "alias" directive is not allowed here in F:6'),
    ("location @a { alias x; }", '[emerg] the "alias" directive cannot be used inside the named location in F:6'),
    ("root $document_root;", '[emerg] the $document_root variable cannot be used in the "root" directive in F:6'),
    ("root $realpath_root/x;", '[emerg] the $realpath_root variable cannot be used in the "root" directive in F:6'),
    ('index "";', '[emerg] index "" in "index" directive is invalid in F:6'),
    ('index a "" b;', '[emerg] index "a" in "index" directive is invalid in F:6'),
    ("index /a /b;", '[warn] only the last index in "index" directive should be absolute in F:6'),
    ("try_files a;", '[emerg] invalid number of arguments in "try_files" directive in F:6'),
    ("try_files a =1000;", '[emerg] invalid code "=1000" in F:6'),
    ("try_files a =x;", '[emerg] invalid code "=x" in F:6'),
    ("try_files a b; try_files a b;", '[emerg] "try_files" directive is duplicate in F:6'),
    ("etag maybe;", '[emerg] invalid value "maybe" in "etag" directive, it must be "on" or "off" in F:6'),
    ("if_modified_since never;", '[emerg] invalid value "never" in F:6'),
    ("max_ranges x;", '[emerg] "max_ranges" directive invalid number in F:6'),
    ("types { a/b c; d/e c; }", '[warn] duplicate extension "c", content type: "d/e", previous content type: "a/b" in F:6'),
    ("open_file_cache inactive=1s;", '[emerg] "open_file_cache" must have the "max" parameter in F:6'),
    ("open_file_cache max=0;", '[emerg] invalid "open_file_cache" parameter "max=0" in F:6'),
    ("open_file_cache x;", '[emerg] invalid "open_file_cache" parameter "x" in F:6'),
    ("open_file_cache_errors x;", '[emerg] invalid value "x" in "open_file_cache_errors" directive, it must be "on" or "off" in F:6'),
    ("open_file_cache_valid 1ms;", '[emerg] "open_file_cache_valid" directive invalid value in F:6'),
    ("open_file_cache_min_uses x;", '[emerg] "open_file_cache_min_uses" directive invalid number in F:6'),
    ("directio x;", '[emerg] "directio" directive invalid value in F:6'),
    ("directio_alignment x;", '[emerg] "directio_alignment" directive invalid value in F:6'),
    ("read_ahead x;", '[emerg] "read_ahead" directive invalid value in F:6'),
    ("output_buffers 0 1k;", '[emerg] "output_buffers" directive invalid value in F:6'),
    ("sendfile maybe;", '[emerg] invalid value "maybe" in "sendfile" directive, it must be "on" or "off" in F:6'),
    ("sendfile_max_chunk x;", '[emerg] "sendfile_max_chunk" directive invalid value in F:6'),
    ("tcp_nopush x;", '[emerg] invalid value "x" in "tcp_nopush" directive, it must be "on" or "off" in F:6'),
    ("postpone_output x;", '[emerg] "postpone_output" directive invalid value in F:6'),
    ("send_lowat x;", '[emerg] "send_lowat" directive invalid value in F:6'),
]


@pytest.mark.parametrize("text, expected", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_said_when_it_is_read(refused, text, expected):
    assert refused(text)[0] == expected
