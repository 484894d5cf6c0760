"""The rewrite module: return, rewrite, set, if, break, and what they do to URI, args and redirects."""

import os
import re

import pytest

from harness.upstream import Upstream, answering, response

differs = pytest.mark.differs_in_nginx


def ids(rows):
    return [f"{row[0]} {row[1]}"[:60] for row in rows]


# return.

RETURN = [
    ("return 200 text;", 200, b"text", {"Content-Type": "text/plain", "Location": None}),
    ("return 200;", 200, b"", {"Content-Type": "text/plain", "Content-Length": "0"}),
    ('return 200 "";', 200, b"", {"Content-Length": "0"}),
    ("return 201 made;", 201, b"made", {}),
    ("return 202;", 202, b"", {"Content-Length": "0"}),
    ("return 204;", 204, b"", {"Content-Type": None, "Content-Length": None}),
    ("return 204 text;", 204, b"", {"Content-Type": None, "Content-Length": None}),
    ("return 206 part;", 206, b"part", {}),
    ("return 299;", 299, b"", {"Content-Length": "0"}),
    ("return 300;", 300, b"", {"Content-Length": "0"}),
    ("return 300 choices;", 300, b"choices", {"Location": None}),
    ("return 301 /to;", 301, None, {"Location": "http://example.com:@port@/to", "Content-Type": "text/html"}),
    ("return 302 http://b/;", 302, None, {"Location": "http://b/"}),
    ("return 303 to;", 303, None, {"Location": "to"}),
    ("return 305 text;", 305, b"text", {"Location": None}),
    ("return 307 /$args;", 307, None, {"Location": "http://example.com:@port@/q=1"}),
    ("return 308 //b/;", 308, None, {"Location": "http://example.com:@port@//b/"}),
    ("return http://b/$uri;", 302, None, {"Location": "http://b//x.gif"}),
    ("return https://b/;", 302, None, {"Location": "https://b/"}),
    ("return $scheme://b/;", 302, None, {"Location": "http://b/"}),
    ("return 400;", 400, None, {"Content-Type": "text/html", "Connection": "close"}),
    ("return 403;", 403, None, {"Content-Type": "text/html"}),
    ("return 404 gone;", 404, b"gone", {"Content-Type": "text/plain"}),
    ('return 404 "";', 404, None, {"Content-Type": "text/html"}),
    ("return 418;", 418, b"", {"Content-Type": None, "Content-Length": "0"}),
    ("return 418 tea;", 418, b"tea", {}),
    ("return 500 text;", 500, b"text", {}),
    ("return 600 text;", 600, b"text", {}),
    ("return 999;", 999, b"", {"Content-Length": "0"}),
    ("return 200 $request_method;", 200, b"GET", {}),
    ("default_type a/b; return 200 x;", 200, b"x", {"Content-Type": "a/b"}),
    ("default_type ''; return 200 x;", 200, b"x", {"Content-Type": None}),
]


@pytest.mark.parametrize("line, status, body, fields", RETURN, ids=[row[0] for row in RETURN])
def test_return(shared, line, status, body, fields):
    proxy = shared("\n".join(f"location /{at}/ {{ {row[0]} }}" for at, row in enumerate(RETURN)).replace("/$uri", "/$1x.gif"))
    at = [row[0] for row in RETURN].index(line)
    answer = proxy.get(f"/{at}/?q=1")
    assert answer.status == status
    if body is None:
        assert f"<center><h1>{status} ".encode() in answer.body
    else:
        assert answer.body == body
    if "$uri" in line:
        fields = {"Location": "http://b/x.gif"}
    assert {name: answer.get(name) for name in fields} == {
        name: value and proxy.fill(value) for name, value in fields.items()
    }


def test_the_type_of_a_text_is_that_of_the_uri(shared):
    proxy = shared("location / { return 200 x; }", "types { image/gif gif; a/b ab; }")
    kinds = {target: proxy.get(target).get("Content-Type") for target in ("/a.gif", "/a.AB", "/a.b", "/a.gif/")}
    assert kinds == {"/a.gif": "image/gif", "/a.AB": "a/b", "/a.b": "text/plain", "/a.gif/": "text/plain"}


@pytest.mark.parametrize("code", [408, 444, 499])
def test_a_return_that_only_closes(serve, code):
    proxy = serve(f"server {{ listen 127.0.0.1:@port@; return {code}; }}")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.expect_end()
    assert f'" {code} 0 ' in proxy.accessed()[0]


# rewrite.

SHOW = 'return 200 "$uri|$args|$request_uri";'
REWRITE = [
    # block, target, what /show or the location itself says: URI|args
    ("rewrite ^/@/(.*)$ /show/$1;", "/@/x", "/show/x|"),
    ("rewrite ^/@/(.*)$ /show/$1 last;", "/@/x", "/show/x|"),
    ("rewrite ^/@/(.*)$ /show/$1 break; " + SHOW, "/@/x", "none"),
    ("rewrite ^/@/(.*)$ /show/$1 last; return 403;", "/@/x", "/show/x|"),
    ("rewrite ^/@/(.*)$ /show/$1; return 403;", "/@/x", 403),
    ("rewrite ^/none /show last; " + SHOW, "/@/x", "/@/x|"),
    ("rewrite ^ /show last;", "/@/x?a=1", "/show|a=1"),
    ("rewrite ^ /show?b=2 last;", "/@/x?a=1", "/show|b=2&a=1"),
    ("rewrite ^ /show?b=2 last;", "/@/x", "/show|b=2"),
    ("rewrite ^ /show? last;", "/@/x?a=1", "/show|"),
    ("rewrite ^ /show?b=2? last;", "/@/x?a=1", "/show|b=2"),
    ("rewrite ^ /show?b=/x?y last;", "/@/x?a=1", "/show|b=/x?y&a=1"),
    ("rewrite ^/@/(.)$ /show?$1?$1&x? last;", "/@/x?a=1", "/show|x?x&x"),
    ("rewrite ^ $arg_b?c?d last;", "/@/x?b=/show%3Fe", "/show%3Fe|c?d&b=/show%3Fe"),
    ("rewrite ^ /show?$args last;", "/@/x?a=1", "/show|a=1&a=1"),
    ("rewrite ^ /show?$args? last;", "/@/x?a=1", "/show|a=1"),
    ("rewrite ^/@/(.)(.) /show/$2$1 last;", "/@/ab", "/show/ba|"),
    ("rewrite ^/@/(?<name>.*)$ /show/$name last;", "/@/x", "/show/x|"),
    ("rewrite (?i)^/@/X$ /show last;", "/@/x", "/show|"),
    ("rewrite ^/@/X$ /show last; " + SHOW, "/@/x", "/@/x|"),
    ("rewrite x$ /one; rewrite one /two; rewrite two /show last;", "/@/x", "/show|"),
    ("rewrite ^ /show$uri last;", "/@/x", "/show/@/x|"),
    ("set $v /show; rewrite ^ $v last;", "/@/x", "/show|"),
    ("rewrite ^/@/(.*)$ /show/$1 last;", "/@/a%20b%2Fc", "/show/a b/c|"),
    ("rewrite ^/@/(.*)$ /show?x=$1 last;", "/@/a%20b&c", "/show|x=a%20b%26c"),
    ("rewrite ^/@/(.*)$ /show?x=$1 last;", "/@/a&b", "/show|x=a&b"),
    ("rewrite ^/@/(.*)$ /show?x=$1 last;", "/@/a+b", "/show|x=a%2Bb"),
    ("rewrite ^/@/(.*)$ /show?x=$1 last;", "/@/a%3Fb%25", "/show|x=a%3Fb%25"),
    ("rewrite ^/@/(.*)$ /show?x=$1&y=$uri last;", "/@/a%20", "/show|x=a%20&y=/@/a "),
    ("rewrite ^/@/(.*)$ /show/$1?x=1 last;", "/@/a%20b", "/show/a b|x=1"),
    ("break; rewrite ^ /show last; return 403;", "/@/x", "none"),
    ("rewrite ^ /show break; rewrite ^ /show/2 last;", "/@/x", "none"),
    ("set $args b=2; rewrite ^ /show last;", "/@/x?a=1", "/show|b=2"),
    ("set $args ''; rewrite ^ /show last;", "/@/x?a=1", "/show|"),
    ("set $v $args; set $args b; " + 'return 200 "$v|$args|$request_uri";', "/@/x?a=1", "a=1|b"),
]


@pytest.mark.parametrize("at", range(len(REWRITE)), ids=ids(REWRITE))
def test_rewrite(shared, at):
    blocks = "\n".join(f"location /r{n}/ {{ {row[0]} }}".replace("/@/", f"/r{n}/") for n, row in enumerate(REWRITE))
    proxy = shared(f"error_page 404 =200 @none; location @none {{ return 200 none||; }} location /show {{ {SHOW} }}\n{blocks}")
    _, target, expected = REWRITE[at]
    answer = proxy.get(target.replace("/@/", f"/r{at}/"))
    if isinstance(expected, int):
        assert answer.status == expected
    else:
        assert answer.body.decode().rsplit("|", 1)[0].rstrip("|") == expected.replace("/@/", f"/r{at}/").rstrip("|")


REDIRECT = [
    ("rewrite ^ http://b/;", "/@/x?a=1", 302, "http://b/?a=1"),
    ("rewrite ^ https://b/? ;", "/@/x?a=1", 302, "https://b/"),
    ("rewrite ^ $scheme://b/x;", "/@/x", 302, "http://b/x"),
    ("rewrite ^ http://b/ last;", "/@/x", 302, "http://b/"),
    ("rewrite ^ http://b/ break;", "/@/x", 302, "http://b/"),
    ("rewrite ^ http://b/ permanent;", "/@/x", 301, "http://b/"),
    ("rewrite ^ /to redirect;", "/@/x", 302, "http://example.com:@port@/to"),
    ("rewrite ^ /to permanent;", "/@/x?a=1", 301, "http://example.com:@port@/to?a=1"),
    ("rewrite ^ /to? permanent;", "/@/x?a=1", 301, "http://example.com:@port@/to"),
    ("rewrite ^ to redirect;", "/@/x", 302, "to"),
    ("absolute_redirect off; rewrite ^ /to redirect;", "/@/x", 302, "/to"),
    ("port_in_redirect off; rewrite ^ /to redirect;", "/@/x", 302, "http://example.com/to"),
    ("server_name_in_redirect on; rewrite ^ /to redirect;", "/@/x", 302, "http://named.example:@port@/to"),
    ("rewrite ^/@/(.*)$ /to/$1 redirect;", "/@/a%20b", 302, "http://example.com:@port@/to/a%20b"),
    ("rewrite ^/@/(.*)$ /to/$1 redirect;", "/@/a%3Fb%26c%2B", 302, "http://example.com:@port@/to/a?b%26c%2B"),
    ("rewrite ^/@/(.*)$ /to/$1 redirect;", "/@/%22%23%25%7f%e4", 302, "http://example.com:@port@/to/%22%23%25%7F%E4"),
    ("rewrite ^/@/(.*)$ /to/$1 redirect;", "/@/a&b", 302, "http://example.com:@port@/to/a&b"),
    ("rewrite ^/@/(.*)$ /to?x=$1 redirect;", "/@/a%20b%26", 302, "http://example.com:@port@/to?x=a%20b%26"),
    ("rewrite ^/@/(.*)$ /to/%41%20$1 redirect;", "/@/%26", 302, "http://example.com:@port@/to/A%20&"),
    ("set $v http://b/; rewrite ^ $v;", "/@/x", 404, None),
    ("return 301;", "/@/x", 301, ""),
    ("return 302 /to$uri;", "/@/a%20b", 302, "http://example.com:@port@/to/@/a b"),
]


@pytest.mark.parametrize("at", range(len(REDIRECT)), ids=ids(REDIRECT))
def test_redirects(shared, at):
    blocks = "\n".join(f"location /r{n}/ {{ {row[0]} }}".replace("/@/", f"/r{n}/") for n, row in enumerate(REDIRECT))
    proxy = shared(f"server_name named.example other.example;\n{blocks}")
    _, target, status, location = REDIRECT[at]
    answer = proxy.get(target.replace("/@/", f"/r{at}/"))
    assert (answer.status, answer.get("Location")) == (status, location and proxy.fill(location.replace("/@/", f"/r{at}/")))


# set.

SET = [
    ("set $v one; return 200 [$v];", "[one]"),
    ("set $v one; set $v $v.two; return 200 [$v];", "[one.two]"),
    ("set $v a; set $w ${v}b; return 200 [$w$V];", "[aba]"),
    ("return 200 [$later]; set $later x;", "[]"),
    ("if ($arg_none) { set $never x; } return 200 [$never];", "[]"),
    ("set $a $arg_x; return 200 [$a];", "[1]"),
    ("set $b $uri; rewrite ^ /s?; return 200 [$b];", "[/@/]"),
    ("rewrite ^/@/(.*) /s/$1 break; set $c $1; return 200 [$c];", None),
    ("if ($arg_x ~ (.)) { set $d $1; } return 200 [$d];", "[1]"),
    ("if ($arg_x ~ (?<e>.)) { } return 200 [$e];", "[1]"),
    ("set $f ''; if ($f) { return 403; } return 200 f;", "f"),
    ("set $g 0; if ($g) { return 403; } return 200 g;", "g"),
    ("set $h 00; if ($h) { return 200 h; } return 403;", "h"),
]


@pytest.mark.parametrize("at", range(len(SET)), ids=[row[0] for row in SET])
def test_set(shared, at):
    blocks = "\n".join(f"location /s{n}/ {{ {row[0]} }}".replace("/@/", f"/s{n}/") for n, row in enumerate(SET))
    proxy = shared(blocks)
    expected = SET[at][1]
    answer = proxy.get(f"/s{at}/?x=1")
    if expected is None:
        assert answer.status == 404
    else:
        assert answer.body.decode() == expected.replace("/@/", f"/s{at}/")


def test_a_variable_without_a_value_is_told(serve):
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { if ($arg_no) { set $unset 1; } return 200 "[$unset$unset]"; }
            location /quiet { uninitialized_variable_warn off; if ($arg_no) { set $quiet 1; } return 200 [$quiet]; }
            location /group { if ($arg_no ~ (?<group>x)) { } return 200 [$group]; }
        }
        """
    )
    assert [proxy.get(target).body for target in ("/quiet", "/group", "/")] == [b"[]"] * 3
    line = proxy.logged('using uninitialized "unset" variable')
    assert "[warn]" in line and 'request: "GET / HTTP/1.1"' in line
    assert proxy.error_log().count("using uninitialized") == 1


def test_a_variable_of_set_is_there_in_the_log_and_after_redirects(serve):
    proxy = serve(
        """
        log_format v '[$v]';
        access_log logs/v.log v;
        server {
            listen 127.0.0.1:@port@;
            set $v server;
            location /own { set $v own; return 200 x; }
            location /moved { set $v moved; rewrite ^ /to last; }
            location /page { set $v page; return 404; error_page 404 =200 /kept; }
            location /to { return 200 [$v]; }
            location /kept { return 200 [$v]; }
            location / { return 200 x; }
        }
        """
    )
    # An internal redirect runs the server's steps again; the loop of a rewrite does not.
    bodies = [proxy.get(target).body for target in ("/own", "/moved", "/page", "/")]
    assert bodies == [b"x", b"[moved]", b"[server]", b"x"]
    assert proxy.accessed(4, "v.log") == ["[own]", "[moved]", "[server]", "[server]"]


# if.

IF = [
    ("if ($arg_a) { return 200 yes; }", "?a=1", True),
    ("if ($arg_a) { return 200 yes; }", "?a=0", False),
    ("if ($arg_a) { return 200 yes; }", "?a=", False),
    ("if ($arg_a) { return 200 yes; }", "?a=00", True),
    ("if ($arg_a = b) { return 200 yes; }", "?a=b", True),
    ("if ($arg_a = b) { return 200 yes; }", "?a=B", False),
    ("if ($arg_a != b) { return 200 yes; }", "?a=c", True),
    ("if ($arg_a != b) { return 200 yes; }", "?a=b", False),
    ("if ($arg_a = $arg_b) { return 200 yes; }", "?a=1&b=1", True),
    ('if ($arg_a = "") { return 200 yes; }', "", True),
    ("if ($arg_a ~ ^b.$) { return 200 yes; }", "?a=bc", True),
    ("if ($arg_a ~ ^B) { return 200 yes; }", "?a=b", False),
    ("if ($arg_a ~* ^B) { return 200 yes; }", "?a=b", True),
    ("if ($arg_a !~ b) { return 200 yes; }", "?a=b", False),
    ("if ($arg_a !~ b) { return 200 yes; }", "?a=c", True),
    ("if ($arg_a !~* B) { return 200 yes; }", "?a=b", False),
    ('if ($arg_a ~ "^b{2};$") { return 200 yes; }', "?a=bb;", True),
    ("if ($uri ~ (z)) { return 200 yes; }", "", False),
    ("if (-f $document_root/file) { return 200 yes; }", "", True),
    ("if (-f $document_root/dir) { return 200 yes; }", "", False),
    ("if (!-f $document_root/dir) { return 200 yes; }", "", True),
    ("if (-d $document_root/dir) { return 200 yes; }", "", True),
    ("if (!-d $document_root/dir) { return 200 yes; }", "", False),
    ("if (-d $document_root/file) { return 200 yes; }", "", False),
    ("if (-e $document_root/dir) { return 200 yes; }", "", True),
    ("if (-e $document_root/none) { return 200 yes; }", "", False),
    ("if (!-e $document_root/none) { return 200 yes; }", "", True),
    ("if (-x $document_root/file) { return 200 yes; }", "", False),
    ("if (!-x $document_root/file) { return 200 yes; }", "", True),
    ("if (-x $document_root/run) { return 200 yes; }", "", True),
    ("if (-x $document_root/theirs) { return 200 yes; }", "", False),
    ("if (-e $document_root/fifo) { return 200 yes; }", "", False),
    ("if (!-e $document_root/fifo) { return 200 yes; }", "", True),
    ("if (-f $document_root/link) { return 200 yes; }", "", True),
    ("disable_symlinks on from=$document_root; if (-f $document_root/link) { return 200 yes; }", "", False),
    ("disable_symlinks on from=$document_root; if (!-e $document_root/link) { return 200 yes; }", "", True),
    ("disable_symlinks on from=$document_root; if (-f $document_root/run) { return 200 yes; }", "", True),
    ("if ($arg_a = 1) { set $z 1; } if ($z = 1) { return 200 yes; }", "?a=1", True),
    ("if ( $arg_a = 1 ) { return 200 yes; }", "?a=1", True),
    ("if ($http_x_y = z) { return 200 yes; }", "", True),
    ("if ($arg_a) { break; } return 200 yes;", "?a=1", False),
    ("if ($arg_a) { break; } return 200 yes;", "", True),
    ("if ($arg_a) { rewrite ^ /yes last; }", "?a=1", True),
]


@pytest.fixture(scope="module")
def conditions(shared):
    blocks = "\n".join(f"location /i{n} {{ {row[0]} try_files /none @no; }}" for n, row in enumerate(IF))
    files = {"html/file": "", "html/run": "", "html/theirs": "", "html/dir/x": ""}
    proxy = shared(
        f"location /yes {{ return 200 yes; }} location @no {{ return 200 no; }} error_page 404 =200 @no;\n{blocks}", files=files
    )
    (proxy.prefix / "html/run").chmod(0o755)
    (proxy.prefix / "html/theirs").chmod(0o655)
    os.mkfifo(proxy.prefix / "html/fifo")
    os.symlink("file", proxy.prefix / "html/link")
    return proxy


@pytest.mark.parametrize("at", range(len(IF)), ids=ids(IF))
def test_conditions(conditions, at):
    _, args, holds = IF[at]
    assert conditions.get(f"/i{at}{args}", "X-Y: z").body == (b"yes" if holds else b"no")


UNKNOWN = ["if (-f {path}) {{ return 200 yes; }} return 200 no;", "try_files /loop @no;"]


@pytest.mark.parametrize("steps", UNKNOWN, ids=["if", "try_files"])
def test_a_file_of_which_nothing_is_known_is_told(serve, steps):
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            location / {{ {steps.format(path="$document_root/loop")} }}
            location /missing {{ try_files /none /file/x /{"x" * 300} @no; }}
            location /linked {{ disable_symlinks on from=$document_root; try_files /link @no; }}
            location @no {{ return 200 no; }}
        }}
        """
    )
    os.symlink("loop", proxy.prefix / "html/loop")
    os.symlink("file", proxy.prefix / "html/link")
    (proxy.prefix / "html/file").write_text("")
    assert [proxy.get(target).body for target in ("/missing", "/linked", "/")] == [b"no"] * 3
    line = proxy.logged(f'stat() "{proxy.prefix}/html/loop" failed (40: Too many levels of symbolic links)')
    assert "[crit]" in line
    assert "[crit]" in proxy.logged(f'openat() "{proxy.prefix}/html/link" failed (40: Too many levels of symbolic links)')
    assert proxy.error_log().count("[crit]") == 2


SETTINGS = [
    ("add_header X 1; if ($arg_a) { add_header X 2; }", "?a=1", "2"),
    ("add_header X 1; if ($arg_a) { add_header X 2; }", "", "1"),
    ("add_header X 1; if ($arg_a) { }", "?a=1", "1"),
    ("add_header X 1; if ($arg_a) { add_header X 2; } if ($arg_b) { add_header X 3; }", "?a=1&b=1", "3"),
    ("add_header X 1; if ($arg_b) { add_header X 3; } if ($arg_a) { add_header X 2; }", "?a=1&b=1", "2"),
    ("add_header X 1; if ($arg_a) { add_header X 2; } if ($arg_b) { }", "?a=1&b=1", "1"),
    ("add_header X 1; if ($arg_a) { break; add_header X 2; }", "?a=1", "2"),
    ("add_header X $v; set $v 1; if ($arg_a) { set $v 2; }", "?a=1", "2"),
]


@pytest.mark.parametrize("at", range(len(SETTINGS)), ids=ids(SETTINGS))
def test_settings_of_an_if(shared, at):
    proxy = shared("\n".join(f"location /b{n} {{ {row[0]} alias html/f; }}" for n, row in enumerate(SETTINGS)), files={"html/f": "f"})
    _, args, value = SETTINGS[at]
    answer = proxy.get(f"/b{at}{args}")
    assert (answer.status, answer.get("X")) == (200, value)


@pytest.fixture(scope="module")
def target_of():
    server = Upstream(answering(lambda r: response(r.target.encode())))
    yield server
    server.stop()


PASSED = [
    ("location /p { proxy_pass http://@up@; if ($arg_a) { } }", "/p/x?a=1", "/p/x?a=1"),
    ("location /p { proxy_pass http://@up@/to; if ($arg_a) { } }", "/p/x?a=1", "/to/x?a=1"),
    ("location /p { if ($arg_a) { proxy_pass http://@up@; } return 403; }", "/p/x?a=1", "403"),
    ("location /p { root html; if ($arg_a) { proxy_pass http://@up@; } }", "/p/x?a=1", "/p/x?a=1"),
    ("location /p { root html; if ($arg_a) { proxy_pass http://@up@; } }", "/p/x", "404"),
    ("location /p { proxy_pass http://@up@; if ($arg_a) { rewrite ^ /q; } } location /q { return 200 q; }", "/p?a=1", "q"),
    ("location /p { proxy_pass http://@up@; if ($arg_a) { rewrite ^ /q break; } }", "/p?a=1", "/q?a=1"),
    ("location /p { proxy_pass http://@up@; set $args b=2; }", "/p?a=1", "/p?b=2"),
    ("location /p { proxy_pass http://@up@/to; rewrite ^ /q break; }", "/p/x?a=1", "/q?a=1"),
    ("location /p { proxy_pass http://@up@/to; rewrite ^ /q; break; }", "/p/x?a=1", "/q?a=1"),
    ("location /p { proxy_pass http://@up@/to; if ($arg_a) { rewrite ^ /q; break; } }", "/p/x?a=1", "/q?a=1"),
    ("location /p { proxy_pass http://@up@/to; break; }", "/p/x?a=1", "/to/x?a=1"),
    ("rewrite ^/old/(.*) /p/$1 break; location /p/ { proxy_pass http://@up@/to/; }", "/old/x", "/p/x"),
    ("rewrite ^/old/(.*) /p/$1; break; location /p/ { proxy_pass http://@up@/to/; }", "/old/x", "/p/x"),
    ("rewrite ^/old/(.*) /p/$1; location /p/ { proxy_pass http://@up@/to/; }", "/old/x", "/to/x"),
    ("rewrite ^/old/(.*) /p/$1 last; location /p/ { proxy_pass http://@up@/to/; }", "/old/x", "/to/x"),
    ("rewrite ^/old /p/y break; location /p/ { error_page 404 =200 /q/z; return 404; } location /q/ { proxy_pass http://@up@/to/; }", "/old", "/to/z"),
    ("location /p { proxy_pass http://@up@; rewrite ^/p/(.*) /q/$1 break; }", "/p/a%20b%3F", "/q/a%20b%3F"),
    ("location /p { proxy_pass http://@up@; rewrite ^/p(.*) /q$1 last; } location /q { proxy_pass http://@up@; }", "/p/%41", "/q/A"),
    ("location /p { proxy_pass http://@up@; }", "/p/%41?%41", "/p/%41?%41"),
    ("location /p/ { proxy_pass http://@up@/; }", "/p/%41%20%2f", "/A%20/"),
    ("location /p/ { proxy_pass http://@up@/; }", "/p/a|b", "/a|b"),
    ("location /p/ { proxy_pass http://@up@/; }", "/p/a|b%20", "/a%7Cb%20"),
    ("location /p { proxy_pass http://@up@/x$args; }", "/p?a=1", "/xa=1"),
    ("location /p { set $h @up@; proxy_pass http://$h; }", "/p/%41?a=1", "/p/%41?a=1"),
]


@pytest.mark.parametrize("server, target, expected", PASSED, ids=[f"{row[0]} {row[1]}"[:90] for row in PASSED])
def test_what_an_upstream_is_asked_for(shared, target_of, server, target, expected):
    answer = shared(server, up=target_of.address).get(target)
    assert (answer.body.decode() if answer.status == 200 else str(answer.status)) == expected


# Where they stand.


def test_the_steps_of_the_server_come_first(shared):
    proxy = shared(
        """
        set $v server;
        rewrite ^/old/(.*)$ /new/$1;
        rewrite ^/twice$ /old/twice last;
        if ($arg_stop) { return 403 stopped; }
        location /new/ { return 200 "new $uri $v"; }
        location /old/ { return 200 old; }
        location / { return 200 "root $uri"; }
        """
    )
    targets = {"/old/x": b"new /new/x server", "/twice": b"old", "/?stop=1": b"stopped", "/z": b"root /z"}
    assert {target: proxy.get(target).body for target in targets} == targets


@pytest.mark.parametrize("rewrite", ["rewrite ^/(.*)$ /pub/$1 break;", "rewrite ^/(.*)$ /pub/$1;"])
def test_the_steps_of_the_server_run_once_where_there_is_no_location(shared, rewrite):
    proxy = shared(f"root html; {rewrite}", files={"html/pub/f": "f"})
    assert proxy.get("/f").body == b"f"


ENDS = [
    ("location /a { rewrite ^ /a last; }", "/a", 500, 'rewrite or internal redirection cycle while processing "/a"'),
    ("location /b { rewrite ^ /c; } location /c { rewrite ^ /b; }", "/b", 500, "rewrite or internal redirection cycle"),
    ("location /d { error_page 404 /d; return 404; recursive_error_pages on; }", "/d", 500, "internally redirecting to"),
    ("location /e { try_files /none /e; }", "/e", 500, 'cycle while internally redirecting to "/e"'),
    ("location /f { rewrite ^ $arg_none last; }", "/f", 500, "the rewritten URI has a zero length"),
    ("location /g { alias html/; rewrite ^ /h break; }", "/g", 500, '"alias" cannot be used in location "/g" where URI was rewritten'),
    ("location /g { alias html/; rewrite ^ /h; break; }", "/g", 500, '"alias" cannot be used in location "/g" where URI was rewritten'),
    ("rewrite ^/old /g break; location /g { alias html/; }", "/old", 500, '"alias" cannot be used in location "/g" where URI was rewritten'),
]


@pytest.mark.parametrize("server, target, status, text", ENDS, ids=[row[0] for row in ENDS])
def test_what_ends_in_an_error(serve, server, target, status, text):
    proxy = serve(f"server {{ listen 127.0.0.1:@port@;\n{server}\n}}")
    proxy.expected_alerts.append("cannot be used in location")
    assert proxy.get(target).status == status
    proxy.logged(text)


def test_ten_changes_of_the_uri_are_allowed(shared):
    steps = "\n".join(f"location = /{n} {{ rewrite ^ /{n + 1} last; }}" for n in range(12))
    proxy = shared(f"{steps} location / {{ return 200 $uri; }} location = /2 {{ return 200 end; }}".replace("location = /2 { rewrite ^ /3 last; }", ""))
    assert proxy.get("/0").body == b"end"
    long = "\n".join(f"location = /{n} {{ rewrite ^ /{n + 1} last; }}" for n in range(20))
    proxy = shared(f"{long} location / {{ return 200 $uri; }}")
    assert {n: proxy.get(f"/{n}").status for n in (9, 10, 11)} == {9: 500, 10: 200, 11: 200}
    assert proxy.get("/10").body == b"/20"


CAPTURED = [
    # of a location for ^/p/(.*)$
    ('set $c $1; return 200 "[$c][$1]";', "/p/a%20b", "[a%20b][a b]"),
    ('set $c $1; return 200 "[$c][$1]";', "/p/a&b", "[a&b][a&b]"),
    ('set $c $1; return 200 "[$c][$1]";', "/p/a&b+", "[a%26b%2B][a&b+]"),
    ('set $c x$1y$1; return 200 "[$c]";', "/p/%26", "[x%26y%26]"),
    ('set $c $uri; return 200 "[$c]";', "/p/%26", "[/4/p/&]"),
    ('if ($arg_v = $1) { return 200 same; } return 200 other;', "/p/%26?v=%26", "same"),
    ('if ($uri ~ "&(.)") { set $c $1; } return 200 "[$c]";', "/p/%26%26", "[%26]"),
    ('if ($arg_v) { set $c $1; } return 200 "[$c]";', "/p/%26?v=1", "[%26]"),
    ('rewrite ^/none /x; set $c $1; return 200 "[$c]";', "/p/%26", "[]"),
    ('rewrite /p/(.*) /q/$1; set $c $1; return 200 "[$c]";', "/p/%26", "[&]"),
    ('if ($arg_v) { rewrite /p/(.*) /q/$1; } set $c $1; return 200 "[$c]";', "/p/%26?v=1", "[&]"),
    ('set $args v=$1; return 200 "[$args]";', "/p/%26", "[v=%26]"),
]


@pytest.mark.parametrize("at", range(len(CAPTURED)), ids=ids(CAPTURED))
def test_captures_in_values(shared, at):
    proxy = shared("\n".join(f"location ~ ^/{n}/p/(.*)$ {{ {row[0]} }}" for n, row in enumerate(CAPTURED)))
    _, target, expected = CAPTURED[at]
    assert proxy.get(f"/{at}{target}").body.decode() == expected


def test_a_capture_in_the_name_of_a_file(shared):
    proxy = shared('root html; location ~ ^/(.*)$ { if (-f $document_root/$1) { return 200 yes; } return 200 no; }', files={"html/a%20b": "", "html/c": ""})
    assert [proxy.get(target).body for target in ("/a%20b", "/c", "/d")] == [b"yes", b"yes", b"no"]


def test_rewrite_log(serve):
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            rewrite_log on;
            location / { rewrite ^/none /x; rewrite ^/(.*)$ /to/$1?b=2 last; }
            location /to { if ($args ~ ^b) { } if ($args !~* ^B=3) { } rewrite ^ http://b/?; }
            location /quiet { rewrite_log off; if ($args ~ q) { rewrite_log on; rewrite ^ /q; } return 204; }
        }
        """,
        error_level="notice",
    )
    assert proxy.get("/quiet?q").status == 204
    assert proxy.get("/x?a=1").status == 302
    for text in (
        '"^/none" does not match "/x"',
        '"^/(.*)$" matches "/x"',
        'rewritten data: "/to/x", args: "b=2&a=1"',
        '"^b" matches "b=2&a=1"',
        '"^B=3" does not match "b=2&a=1"',
        '"^" matches "/to/x"',
        'rewritten redirect: "http://b/"',
    ):
        assert "[notice]" in proxy.logged(text)
    # A block of `if` is not asked.
    assert '"q"' not in proxy.error_log() and "/q" not in proxy.error_log().replace("/quiet", "")


REFUSED = [
    ("return x;", '[emerg] invalid return code "x" in F:6'),
    ("return 1000;", '[emerg] invalid return code "1000" in F:6'),
    ("return;", '[emerg] invalid number of arguments in "return" directive in F:6'),
    ("return 200 a b;", '[emerg] invalid number of arguments in "return" directive in F:6'),
    ("rewrite a;", '[emerg] invalid number of arguments in "rewrite" directive in F:6'),
    ("rewrite a b c;", '[emerg] invalid parameter "c" in F:6'),
    ("set v x;", '[emerg] invalid variable name "v" in F:6'),
    ("set $ x;", '[emerg] invalid variable name "$" in F:6'),
    ('set $v "a${";', "[emerg] invalid variable name in F:6"),
    ("set $uri x;", '[emerg] the duplicate "uri" variable in F:6'),
    ("set $v $nosuch;", '[emerg] unknown "nosuch" variable'),
    ("set $v ${x;", '[emerg] the closing bracket in "x" variable is missing in F:6'),
    ("break now;", '[emerg] invalid number of arguments in "break" directive in F:6'),
    ("if ($uri == x) { }", '[emerg] unexpected "==" in condition in F:6'),
    ("if $uri { }", '[emerg] invalid condition "$uri" in F:6'),
    ("if (uri) { }", '[emerg] invalid condition "uri" in F:6'),
    ("if ($uri { }", '[emerg] invalid condition "$uri" in F:6'),
    ("if ($uri) { root x; }", '[emerg] "root" directive is not allowed here in F:6'),
    ("location / { if ($uri) { alias x; } }", '[emerg] "alias" directive is not allowed here in F:6'),
    ("location / { if ($uri) { try_files a b; } }", '[emerg] "try_files" directive is not allowed here in F:6'),
    ("location / { if ($uri) { if ($uri) { } } }", '[emerg] "if" directive is not allowed here in F:6'),
    ("location / { if ($uri) { location /x { } } }", '[emerg] "location" directive is not allowed here in F:6'),
    ("rewrite_log maybe;", '[emerg] invalid value "maybe" in "rewrite_log" directive, it must be "on" or "off" in F:6'),
]


@pytest.mark.parametrize("text, expected", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_said_when_it_is_read(refused, text, expected):
    assert refused(text)[0] == expected


@pytest.mark.differs_in_nginx("it sends what it has decoded")
@pytest.mark.parametrize(
    "server",
    [
        "location / { proxy_pass http://@backend@$uri; }",
        "location / { rewrite ^ /x?$uri break; proxy_pass http://@backend@; }",
        "location / { set $m 'GET / HTTP/1.1'; proxy_method $m$uri; proxy_pass http://@backend@; }",
        "location / { proxy_pass http://@backend@/$arg_none$request_method$uri; }",
    ],
)
def test_a_decoded_uri_ends_no_request_line(serve, upstream, server):
    backend = upstream(answering(response(b"ok")))
    proxy = serve("server { listen 127.0.0.1:@port@; " + server + " }", backend=backend.address)
    assert proxy.get("/v%20HTTP/1.1%09x%0d%0aInj:%20y%7f").status == 200
    [request] = backend.requests
    assert re.fullmatch(r"[!-~]+ [!-~]+ HTTP/1\.[01]", request.start), request.start
    assert request.get("Inj") is None
