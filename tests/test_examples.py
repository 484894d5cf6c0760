"""conf/examples, each as it is under `-t`, and at work in front of the application that it is for.

Home Assistant itself is too large to install here: tests/servers/home_assistant.py stands in for it with
the shapes of its REST and WebSocket API, on the package websockets. All others are the real ones.
(uwsgi.conf and websocket.conf have files of tests of their own.)
"""

import asyncio
import concurrent.futures
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as ws_connect_sync

from harness.proxy import Proxy, eventually
from harness.servers import NODE_MODULES, TESTS
from harness.wire import DEADLINE, Response, Wire

EXAMPLES = TESTS.parent / "conf/examples"
FILES = sorted(path.name for path in EXAMPLES.glob("*.conf"))

LISTEN = {"listen 80;": "listen 127.0.0.1:@port@;"}
NOBODY = "127.0.0.1:1"  # refuses connections


def connect_from(address: str, proxy: Proxy) -> Wire:
    """A client with this address of its own."""
    wire = Wire(socket.create_connection(("127.0.0.1", proxy.port), DEADLINE, (address, 0)))
    proxy.wires.append(wire)
    return wire


def get_from(address: str, proxy: Proxy, target: str, *fields: str) -> Response:
    with connect_from(address, proxy) as wire:
        wire.send(
            "\r\n".join([f"GET {target} HTTP/1.1", "Host: example.com", "Connection: close", *fields]) + "\r\n\r\n"
        )
        return wire.read_response()


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=45)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def websocket_url(proxy: Proxy, path: str) -> str:
    return f"ws://127.0.0.1:{proxy.port}{path}"


@pytest.mark.parametrize("name", FILES)
def test_the_file_passes_unchanged(binary, tmp_path, name):
    # What is written with absolute paths in Debian's build of nginx is let be: only -t asks.
    for file in EXAMPLES.iterdir():
        target = tmp_path / "conf" / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    (tmp_path / "logs").mkdir()
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", tmp_path / "conf" / name, "-g", "pid logs/nginx.pid;")
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr and "[emerg]" not in done.stderr
    assert done.stderr.endswith(f"configuration file {tmp_path}/conf/{name} test is successful\n")


# django.conf


@pytest.fixture(scope="session")
def collected(tmp_path_factory) -> Path:
    """The files of Django's admin site, as `manage.py collectstatic` leaves them, and some uploads."""
    site = tmp_path_factory.mktemp("mysite")
    run(sys.executable, TESTS / "apps/collectstatic.py", site / "static")
    (site / "media/avatars").mkdir(parents=True)
    (site / "media/avatars/ann b.png").write_bytes(b"\x89PNG" + bytes(range(256)) * 1000)
    (site / "settings.py").write_text("SECRET_KEY = 'not for everybody'")
    return site


@pytest.fixture
def django(example, django_app, collected) -> Proxy:
    return example(
        "django.conf",
        {"listen      80;": "listen 127.0.0.1:@port@;"}
        | {
            "unix:///run/mysite/mysite.sock": f"unix://{django_app.path}",
            "/srv/mysite/static/favicon.ico": f"{collected}/static/admin/img/icon-yes.svg",
            "alias /srv/mysite/media/": f"alias {collected}/media/",
            "alias /srv/mysite/static/": f"alias {collected}/static/",
        },
    )


def test_django_answers_what_is_no_file(django):
    assert django.get("/?name=ringx").body == b"hello ringx"
    assert django.get("/static").status == 404
    told = json.loads(django.get("/who", "X-Forwarded-Proto: https", host="www.example.com").body)
    assert told == {"url": "https://www.example.com/who", "remote": "127.0.0.1"}


@pytest.mark.parametrize("file", ["admin/css/base.css", "admin/js/core.js", "admin/img/icon-addlink.svg"])
def test_django_static_files(django, collected, file):
    path = collected / "static" / file
    response = django.get(f"/static/{file}")
    assert (response.status, response.body) == (200, path.read_bytes())
    kinds = {".css": "text/css", ".js": "application/javascript", ".svg": "image/svg+xml"}
    assert response.get("Content-Type") == kinds[path.suffix]
    assert response.all("Cache-Control") == ["max-age=2592000", "public"]
    kept = parsedate_to_datetime(response.get("Expires")) - parsedate_to_datetime(response.get("Date"))
    assert kept.total_seconds() == 2592000

    # A browser that has it asks again, and only then is given the same headers without the file.
    again = django.get(f"/static/{file}", f"If-None-Match: {response.get('ETag')}")
    assert (again.status, again.body) == (304, b"")
    assert again.all("Cache-Control") == ["max-age=2592000", "public"]
    part = django.get(f"/static/{file}", "Range: bytes=10-19")
    assert (part.status, part.body) == (206, path.read_bytes()[10:20])


def test_django_media(django, collected):
    response = django.get("/media/avatars/ann%20b.png?v=2")
    assert (response.status, response.body) == (200, (collected / "media/avatars/ann b.png").read_bytes())
    assert (response.get("Content-Type"), response.all("Cache-Control")) == ("image/png", ["max-age=3600"])
    missing = django.get("/media/avatars/bob.png")
    assert (missing.status, missing.get("Expires"), missing.get("Cache-Control")) == (404, None, None)


def test_django_nobody_climbs_out_of_static(django):
    for target in ["/static/../settings.py", "/static/%2e%2e/settings.py", "/static/admin/../../settings.py"]:
        assert b"SECRET_KEY" not in django.get(target).body
    assert django.get("/static../settings.py").status == 404
    assert django.get("/static/../../settings.py").status == 400


def test_django_the_favicon_is_not_logged(django, collected):
    response = django.get("/favicon.ico")
    assert response.body == (collected / "static/admin/img/icon-yes.svg").read_bytes()
    django.get("/")
    (line,) = django.accessed(1, "django.log")
    assert '"GET / HTTP/1.1" 200' in line


def test_django_uploads_up_to_the_limit(django):
    response = django.get("/upload", "Content-Type: video/mp4", method="POST", body=bytes(20 << 20))
    assert json.loads(response.body)["length"] == 20 << 20
    # One byte more than allowed is refused before it is sent.
    limit = 75 << 20
    wire = django.connect()
    wire.send(f"POST /upload HTTP/1.1\r\nHost: example.com\r\nContent-Length: {limit + 1}\r\n\r\n")
    assert wire.read_response().status == 413


# flask.conf


@pytest.fixture
def flask_at(example, tmp_path):
    """`flask_at(address)`: the example in front of this uwsgi server."""
    public = tmp_path / "public"
    public.mkdir()
    (public / "404.html").write_text("<h1>Nothing here</h1>")
    (public / "50x.html").write_text("<h1>We are on it</h1>")
    (public / "logo.svg").write_text("<svg/>")
    return lambda address: example(
        "flask.conf",
        {
            "listen 80 default_server;": "listen 127.0.0.1:@port@ default_server;",
            "/srv/yourapplication/public": str(public),
            "127.0.0.1:3031": address,
        },
    )


@pytest.fixture
def flask(flask_at, flask_app) -> Proxy:
    return flask_at(flask_app.address)


def test_flask_answers_and_its_files_come_from_disk(flask):
    assert flask.get("/?name=ringx").body == b"hello ringx"
    form = flask.get("/form", "Content-Type: application/x-www-form-urlencoded", method="POST", body=b"a=1&b=2")
    assert json.loads(form.body) == {"a": "1", "b": "2"}
    logo = flask.get("/logo.svg")
    assert (logo.body, logo.get("Content-Type")) == (b"<svg/>", "image/svg+xml")


def test_flask_errors_have_the_sites_pages(flask):
    missing = flask.get("/nowhere")
    assert (missing.status, missing.body) == (404, b"<h1>Nothing here</h1>")
    assert missing.get("Content-Type") == "text/html"
    dead = flask.get("/die")
    assert (dead.status, dead.body) == (502, b"<h1>We are on it</h1>")
    said = "upstream prematurely closed connection while reading response header from upstream"
    assert said in flask.log("flask-error.log")
    # The pages themselves are for nobody to ask for; what is said then is one of them.
    assert flask.get("/50x.html").status == 404


def test_flask_errors_of_the_api_are_its_own(flask):
    response = flask.get("/api/nowhere")
    assert response.status == 404
    assert b"The requested URL was not found on the server" in response.body


def test_flask_is_not_there(flask_at):
    flask = flask_at(NOBODY)
    response = flask.get("/")
    assert (response.status, response.body) == (502, b"<h1>We are on it</h1>")
    assert flask.get("/logo.svg").status == 200
    assert "connect() failed (111: Connection refused) while connecting to upstream" in flask.log("flask-error.log")


# jupyter.conf

TOKEN = "token=only-for-tests"


@pytest.fixture
def notebooks(example, jupyter) -> Proxy:
    return example("jupyter.conf", LISTEN | {"127.0.0.1:8888": jupyter.address})


def test_jupyter_rest(notebooks):
    version = json.loads(notebooks.get("/api").body)["version"]
    assert version == run(sys.executable, "-c", "import jupyter_server as it; print(it.__version__)").strip()
    assert notebooks.get("/api/status").status == 403
    status = json.loads(notebooks.get(f"/api/status?{TOKEN}").body)
    assert status["kernels"] == 0


def test_jupyter_a_large_notebook_there_and_back(notebooks):
    text = "0123456789abcdef" * (200 << 10)
    notebook = {"type": "file", "format": "text", "content": text}
    path = f"/api/contents/large.txt?{TOKEN}"
    saved = notebooks.get(path, "Content-Type: application/json", method="PUT", body=json.dumps(notebook).encode())
    assert saved.status == 201
    assert json.loads(notebooks.get(path).body)["content"] == text


def new_terminal(proxy: Proxy) -> str:
    made = proxy.get(f"/api/terminals?{TOKEN}", method="POST", body=b"", host=f"127.0.0.1:{proxy.port}")
    assert made.status == 200, made
    return json.loads(made.body)["name"]


def test_jupyter_a_terminal_over_its_websocket(notebooks):
    name = new_terminal(notebooks)
    url = websocket_url(notebooks, f"/terminals/websocket/{name}?{TOKEN}")
    # The browser's Origin is compared with Host: both have the port.
    with ws_connect_sync(url, proxy=None, origin=f"http://127.0.0.1:{notebooks.port}") as terminal:
        assert json.loads(terminal.recv(DEADLINE))[0] == "setup"
        terminal.send(json.dumps(["stdin", "echo the answer is $((6 * 7))\r"]))
        shown = ""
        while "the answer is 42" not in shown:
            kind, text, *_ = json.loads(terminal.recv(DEADLINE))
            shown += text if kind == "stdout" else ""
        # Much output, more than any buffer on the way.
        terminal.send(json.dumps(["stdin", "seq -f 'line %.0f' 1 20000; echo do''ne\r"]))
        while "done" not in shown:
            kind, text, *_ = json.loads(terminal.recv(DEADLINE))
            shown += text if kind == "stdout" else ""
        assert "line 1\r\n" in shown and "line 20000\r\n" in shown
    assert f'"GET /terminals/websocket/{name}?{TOKEN} HTTP/1.1" 101' in notebooks.accessed(2, "jupyter.log")[-1]
    assert notebooks.get(f"/api/terminals/{name}?{TOKEN}", method="DELETE").status == 204


def test_jupyter_compares_origin_with_host(notebooks):
    """The browser is known by its cookie, and its Origin by what came as Host, port and all."""
    here = f"127.0.0.1:{notebooks.port}"
    logged_in = notebooks.get(f"/api/status?{TOKEN}", host=here)
    cookie = "; ".join(each.split(";")[0] for each in logged_in.all("Set-Cookie"))
    url = websocket_url(notebooks, f"/terminals/websocket/{new_terminal(notebooks)}")
    fields = {"Cookie": cookie}
    with ws_connect_sync(url, proxy=None, origin=f"http://{here}", additional_headers=fields) as terminal:
        assert json.loads(terminal.recv(DEADLINE))[0] == "setup"
    for origin in ["http://elsewhere.example", "http://127.0.0.1"]:
        with pytest.raises(InvalidStatus) as refused:
            ws_connect_sync(url, proxy=None, origin=origin, additional_headers=fields)
        assert refused.value.response.status_code == 403


# home-assistant.conf


@pytest.fixture
def home(example, home_assistant) -> Proxy:
    conf = {"listen 8080 default_server;": "listen 127.0.0.1:@port@ default_server;"}
    return example("home-assistant.conf", conf | {"127.0.0.1:8123": home_assistant.address})


def test_home_assistant_rest(home):
    assert home.get("/api/").status == 401
    bearer = "Authorization: Bearer a-long-lived-token"
    told = json.loads(home.get("/api/", bearer).body)
    assert told == {"message": "API running.", "for": "127.0.0.1", "by": "http"}
    told = json.loads(home.get("/api/", bearer, "X-Forwarded-For: 192.0.2.9", "X-Forwarded-Proto: https").body)
    assert told == {"message": "API running.", "for": "192.0.2.9, 127.0.0.1", "by": "https"}


def test_home_assistant_redirects_to_https(home):
    response = home.get("/", host="home.example.com")
    assert (response.status, response.get("Location")) == (302, "https://home.example.com/auth/authorize")


def test_home_assistant_websocket_wrong_token(home):
    with ws_connect_sync(websocket_url(home, "/api/websocket"), proxy=None) as socket:
        assert json.loads(socket.recv(DEADLINE))["type"] == "auth_required"
        socket.send(json.dumps({"type": "auth", "access_token": "a guess"}))
        assert json.loads(socket.recv(DEADLINE)) == {
            "type": "auth_invalid",
            "message": "Invalid access token or password",
        }
        with pytest.raises(ConnectionClosed):
            socket.recv(DEADLINE)


def test_home_assistant_many_websockets(home):
    async def talk(number: int) -> None:
        async with ws_connect(websocket_url(home, "/api/websocket"), proxy=None) as socket:

            async def ask(**message):
                await socket.send(json.dumps(message))
                return json.loads(await socket.recv())

            assert json.loads(await socket.recv())["type"] == "auth_required"
            assert (await ask(type="auth", access_token="a-long-lived-token"))["type"] == "auth_ok"
            for identity in range(1, 20):
                assert await ask(id=identity, type="ping") == {"id": identity, "type": "pong"}
            told = await ask(id=20, type="subscribe_events", event_type="lamp")
            assert told == {"id": 20, "type": "result", "success": True, "result": None}
            event = await ask(id=21, type="fire_event", event_type="lamp", event_data={"number": number})
            assert (event["id"], event["event"]["data"]) == (20, {"number": number})
            assert json.loads(await socket.recv())["id"] == 21

    async def all_of_them() -> None:
        await asyncio.gather(*map(talk, range(30)))

    asyncio.run(asyncio.wait_for(all_of_them(), 30))
    lines = home.accessed(30, "home-assistant.log")
    assert sum('"GET /api/websocket HTTP/1.1" 101' in line for line in lines) == 30


# socketio.conf


def ip_hash(address: str, servers: list[str]) -> str:
    """Which of these servers of equal weight has a client's address, by nginx's arithmetic."""
    sum = 89
    for octet in address.split(".")[:3]:
        sum = (sum * 113 + int(octet)) % 6271
    return servers[sum % len(servers)]


# The first two are one network for ip_hash, which takes three octets.
CLIENTS = ["127.1.2.3", "127.1.2.77", "127.9.8.7", "127.20.1.1", "127.33.7.9"]


@pytest.fixture
def cluster(example):
    """`cluster(address, address)`: the example in front of these two."""
    conf = {"listen 3000;": "listen 127.0.0.1:@port@;"}
    return lambda one, two: example("socketio.conf", conf | {"127.0.0.1:3001": one, "127.0.0.1:3002": two})


@pytest.mark.parametrize("transports", ["polling", "websocket", "polling,websocket"])
def test_socketio_stays_at_one_node(cluster, node_one, node_two, transports):
    nodes = cluster(node_one.address, node_two.address)
    client = TESTS / "servers/socketio_client.cjs"
    url = f"http://127.0.0.1:{nodes.port}"
    done = json.loads(run("env", f"NODE_PATH={NODE_MODULES}", "node", client, url, transports, 20, *CLIENTS))
    expected = {address: ip_hash(address, ["one", "two"]) for address in CLIENTS}
    assert set(expected.values()) == {"one", "two"}
    assert {address: {answer["name"] for answer in answers} for address, answers in done.items()} == {
        address: {name} for address, name in expected.items()
    }
    first, last = ("polling", "websocket") if "," in transports else (transports, transports)
    for address, answers in done.items():
        assert [answer["address"] for answer in answers] == [address] * 20
        assert (answers[0]["began"], answers[-1]["transport"]) == (first, last)


def test_socketio_a_node_that_is_not_there_is_passed_over(cluster, node_two):
    nodes = cluster(NOBODY, node_two.address)
    for address in CLIENTS:
        response = get_from(address, nodes, "/socket.io/?EIO=4&transport=polling")
        assert (response.status, response.body[:7]) == (200, b'0{"sid"')
    # It was tried, and for none but its own clients.
    failed = [line.split("client: ")[1].split(",")[0] for line in nodes.error_log().splitlines() if "refused" in line]
    assert failed and {ip_hash(address, [NOBODY, node_two.address]) for address in failed} == {NOBODY}


# sse.conf


@pytest.fixture
def news(example, news_app) -> Proxy:
    return example("sse.conf", LISTEN | {"127.0.0.1:8000": news_app.address})


def publish(proxy: Proxy, text: str) -> int:
    return int(proxy.get("/publish", method="POST", body=text.encode()).body)


def test_sse_in_a_browser(news, browser):
    browser.open(f"http://127.0.0.1:{news.port}/")
    eventually(lambda: browser.text("state") == "open", "the EventSource is open", 20)
    expected = ""
    # Each comes before the next is made: nothing on the way waits for more.
    for text in ["first", "second", "x" * 20000, "last"]:
        number = publish(news, text)
        expected += f"{number}:{text};"
        eventually(lambda: browser.text("news") == expected, f"the page shows {text[:20]}", 20)


def test_sse_a_browser_comes_back_and_misses_nothing(news, browser):
    browser.open(f"http://127.0.0.1:{news.port}/")
    eventually(lambda: browser.text("state") == "open", "the EventSource is open", 20)
    first = publish(news, "before")
    eventually(lambda: browser.text("news") == f"{first}:before;", "the page shows it", 20)
    assert news.get("/drop", method="POST", body=b"").body == b"dropped"
    publish(news, "meanwhile")
    expected = f"{first}:before;{first + 1}:meanwhile;"
    eventually(lambda: browser.text("news") == expected, "the page has caught up", 20)
    assert int(browser.text("opened")) == 2


@pytest.mark.parametrize(("path", "framing"), [("/events", "close"), ("/stream", "chunked")])
def test_sse_on_the_wire(news, path, framing):
    wire = news.connect()
    wire.send(f"GET {path} HTTP/1.1\r\nHost: example.com\r\nAccept: text/event-stream\r\n\r\n")
    head = wire.read_head()
    assert (head.get("Content-Type"), head.get("Content-Length")) == ("text/event-stream; charset=utf-8", None)
    if framing == "close":
        assert (head.get("Transfer-Encoding"), head.get("Connection")) == (None, "close")
        assert head.all("X-Accel-Buffering") == ["no"]
    else:
        assert (head.get("Transfer-Encoding"), head.get("Connection")) == ("chunked", "keep-alive")
        assert head.all("X-Accel-Buffering") == []
    wire.read_until(b"retry: 50\n\n")
    for text in ["one", "two", "three"]:
        number = publish(news, text)
        wire.read_until(f"id: {number}\ndata: {text}\n\n".encode())
    news.get("/drop", method="POST", body=b"")
    if framing == "close":
        wire.expect_end()
    else:
        wire.read_until(b"\r\n0\r\n\r\n")
        wire.send("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        assert b"EventSource" in wire.read_response().body


def test_sse_a_reader_that_goes_is_seen(news):
    wire = news.connect()
    wire.send("GET /events HTTP/1.1\r\nHost: example.com\r\n\r\n")
    wire.read_until(b"retry: 50\n\n")
    wire.reset()
    (line,) = news.accessed(1, "sse.log")
    assert '"GET /events HTTP/1.1" 200' in line


# blue-green.conf


def murmur_hash2(data: bytes) -> int:
    """MurmurHash2 with a seed of 0, as `split_clients` takes it."""
    multiplier, mask = 0x5BD1E995, 0xFFFFFFFF
    hashed = len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        word = int.from_bytes(data[at : at + 4], "little") * multiplier & mask
        word = (word ^ word >> 24) * multiplier & mask
        hashed = hashed * multiplier & mask ^ word
    if rest := data[whole:]:
        hashed = (hashed ^ int.from_bytes(rest, "little")) * multiplier & mask
    hashed = (hashed ^ hashed >> 13) * multiplier & mask
    return hashed ^ hashed >> 15


def lot(address: str, agent: str) -> str:
    return "green" if murmur_hash2(f"{address}{agent}".encode()) < 0xFFFFFFFF * 1000 // 10000 else "blue"


@pytest.fixture
def pair(example):
    """`pair(blue's address, green's)`: the example in front of these two."""
    return lambda blue, green: example("blue-green.conf", LISTEN | {"127.0.0.1:8001": blue, "127.0.0.1:8002": green})


@pytest.fixture
def releases(pair, blue_app, green_app) -> Proxy:
    return pair(blue_app.address, green_app.address)


def test_blue_green_a_tenth_gets_the_new_release(releases):
    clients = [(f"127.0.{number % 20}.1", f"Browser/{number}") for number in range(200)]
    expected = [lot(*client) for client in clients]
    assert 8 <= expected.count("green") <= 32
    for (address, agent), release in zip(clients, expected):
        response = get_from(address, releases, "/shop?item=1", f"User-Agent: {agent}")
        told = json.loads(response.body)
        assert (told["name"], told["target"]) == (release, "/shop?item=1")
        assert (told["headers"]["X-Release"], response.all("X-Release")) == (release, [release])


@pytest.mark.parametrize("cookie", ["release=green", "a=b; release=green; c=d", "release=GREEN"])
def test_blue_green_the_cookie_chooses(releases, cookie):
    agent = next(f"Browser/{number}" for number in range(200) if lot("127.0.0.1", f"Browser/{number}") == "blue")
    fields = [f"User-Agent: {agent}"]
    assert json.loads(releases.get("/", *fields).body)["name"] == "blue"
    assert json.loads(releases.get("/", *fields, f"Cookie: {cookie}").body)["name"] == "green"
    assert json.loads(releases.get("/", *fields, "Cookie: release=purple").body)["name"] == "blue"


def test_blue_green_back_to_the_old_release(releases):
    agent = next(f"Browser/{number}" for number in range(200) if lot("127.0.0.1", f"Browser/{number}") == "green")
    fields = [f"User-Agent: {agent}"]
    assert json.loads(releases.get("/", *fields, "Cookie: release=blue").body)["name"] == "blue"


def test_blue_green_the_log_says_which(releases, green_app):
    releases.get("/", "Cookie: release=green")
    (line,) = releases.accessed(1, "releases.log")
    assert re.search(rf'"GET / HTTP/1.1" 200 \d+ green {green_app.address} 0\.\d{{3}}$', line), line


def test_blue_green_a_release_that_is_not_there(pair, blue_app):
    releases = pair(blue_app.address, NOBODY)
    response = releases.get("/", "Cookie: release=green")
    assert (response.status, response.all("X-Release")) == (502, ["green"])
    assert json.loads(releases.get("/", "Cookie: release=blue").body)["name"] == "blue"


# maintenance.conf


@pytest.fixture
def shop(example, blue_app, tmp_path) -> Proxy:
    www = tmp_path / "www"
    www.mkdir()
    (www / "maintenance.html").write_text("<h1>Back in two minutes</h1>")
    return example("maintenance.conf", LISTEN | {"root /srv/www;": f"root {www};", "127.0.0.1:8000": blue_app.address})


def test_maintenance_on_and_off_while_requests_run(shop, tmp_path):
    switch = tmp_path / "www/maintenance.on"
    ended = threading.Event()
    lock = threading.Lock()
    seen: list[tuple[float, float, str, int]] = []  # when asked, when answered, whose address, what

    def visit(address: str) -> None:
        wire = connect_from(address, shop)
        while not ended.is_set():
            asked = time.monotonic()
            wire.send("GET /shop HTTP/1.1\r\nHost: example.com\r\n\r\n")
            response = wire.read_response()
            with lock:
                seen.append((asked, time.monotonic(), address, response.status))
            if response.get("Connection") == "close":  # keepalive_requests
                wire = connect_from(address, shop)

    def comes_after(start: float) -> None:
        """Waits until each visitor has asked and been answered after that."""

        def all_have() -> bool:
            assert not any(each.done() for each in running), "a visitor has given up"
            with lock:
                return len({each[2] for each in seen if each[0] > start}) == len(visitors)

        eventually(all_have, "every visitor has been answered since")

    visitors = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.5.0.1"]
    times = []
    with concurrent.futures.ThreadPoolExecutor(len(visitors)) as pool:
        running = [pool.submit(visit, address) for address in visitors]
        try:
            for change in [switch.touch, switch.unlink] * 3:
                comes_after(time.monotonic())
                before = time.monotonic()
                change()
                times.append((before, time.monotonic()))
                comes_after(times[-1][1])
        finally:
            ended.set()
        for each in running:
            each.result()

    for asked, answered, address, status in seen:
        # What a request is told is what held at some time between its first byte and its answer.
        possible = {503 if sum(end < asked for _, end in times) % 2 else 200}
        for begin, end in times:
            if begin < answered and end > asked:
                possible = {200, 503}
        assert status in ({200} if address == "127.0.0.2" else possible), (asked, answered, address, status, times)
    expected = {(address, status) for address in visitors for status in (200, 503)} - {("127.0.0.2", 503)}
    assert {(address, status) for _, _, address, status in seen} == expected


def test_maintenance_what_everybody_gets(shop, tmp_path):
    (tmp_path / "www/maintenance.on").touch()
    for target in ["/", "/shop/cart?item=1", "/maintenance.html", "/maintenance.on"]:
        response = shop.get(target)
        assert (response.status, response.body) == (503, b"<h1>Back in two minutes</h1>")
        assert response.get("Content-Type") == "text/html"
        assert (response.all("Retry-After"), response.all("Cache-Control")) == (["120"], ["no-store"])
    # A page made of a file takes no POST: this form of configuration has always had that.
    assert shop.get("/", method="POST", body=b"a=1").status == 405
    assert json.loads(get_from("127.0.0.2", shop, "/shop").body)["target"] == "/shop"
    lines = shop.accessed(6, "maintenance.log")
    assert sum(" 503 " in line for line in lines) == 4


# proxy-protocol.conf


@pytest.fixture
def api(example, blue_app) -> Proxy:
    conf = {"listen 80 proxy_protocol;": "listen 127.0.0.1:@port@ proxy_protocol;"}
    return example("proxy-protocol.conf", conf | {"127.0.0.1:8000": blue_app.address})


def ask_behind(balancer: bytes, proxy: Proxy, source: str = "127.0.0.1", times: int = 1) -> list[dict]:
    """What the API's server was told of the client, by requests on one connection with this in front."""
    wire = connect_from(source, proxy)
    wire.send(balancer)
    told = []
    for _ in range(times):
        wire.send("GET /v HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        headers = json.loads(wire.read_response().body)["headers"]
        told.append({name: headers.get(name) for name in ("X-Real-Ip", "X-Real-Port", "X-Forwarded-For")})
    return told


def told(real: str, port: str | None, forwarded: str | None) -> dict:
    return {"X-Real-Ip": real, "X-Real-Port": port, "X-Forwarded-For": forwarded}


V2 = b"\r\n\r\n\0\r\nQUIT\n"


@pytest.mark.parametrize(
    ("header", "address", "port"),
    [
        pytest.param(b"PROXY TCP4 203.0.113.7 10.0.0.1 50123 80\r\n", "203.0.113.7", "50123", id="v1"),
        pytest.param(b"PROXY TCP6 2001:db8::7 2001:db8::1 50123 80\r\n", "2001:db8::7", "50123", id="v1-ipv6"),
        pytest.param(
            V2 + b"\x21\x11\0\x0c" + bytes([203, 0, 113, 7, 10, 0, 0, 1, 0xC3, 0xCB, 0, 80]),
            "203.0.113.7",
            "50123",
            id="v2",
        ),
        pytest.param(
            V2
            + b"\x21\x21\0\x2b"
            + bytes.fromhex("20010db8" + "00" * 11 + "07") * 2
            + b"\xc3\xcb\0\x50"
            + b"\x04\0\x04abcd",
            "2001:db8::7",
            "50123",
            id="v2-ipv6-with-more",
        ),
    ],
)
def test_proxy_protocol_tells_the_client(api, header, address, port):
    # The header is of the connection: its second request is of the same client.
    assert ask_behind(header, api, times=3) == [told(address, port, address)] * 3
    lines = api.accessed(3, "api.log")
    assert all(
        re.match(rf'{re.escape(address)} - - \[.*"GET /v HTTP/1.1" 200 .* by 127\.0\.0\.1$', line) for line in lines
    )


def test_proxy_protocol_of_a_balancer_that_does_not_know(api):
    assert ask_behind(b"PROXY UNKNOWN\r\n", api) == [told("127.0.0.1", None, None)]


def test_proxy_protocol_others_are_not_believed(api):
    header = b"PROXY TCP4 203.0.113.7 10.0.0.1 50123 80\r\n"
    assert ask_behind(header, api, "127.0.0.9") == [told("127.0.0.9", "50123", "203.0.113.7")]


def test_proxy_protocol_by_curl(api):
    url = f"http://127.0.0.1:{api.port}/healthz"
    assert run("curl", "-sS", "-m", "10", "--haproxy-protocol", url) == "ok\n"
    headers = json.loads(run("curl", "-sS", "-m", "10", "--haproxy-protocol", f"{url}/of/others"))["headers"]
    assert (headers["X-Real-Ip"], headers["X-Forwarded-For"]) == ("127.0.0.1", "127.0.0.1")
    (line,) = api.accessed(1, "api.log")
    assert line.startswith("127.0.0.1 - - [") and "curl" in line


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY TCP4 no address at all\r\n"])
def test_proxy_protocol_is_asked_for(api, first):
    wire = api.connect()
    wire.send(first)
    assert wire.read_to_end() == b""
    api.logged(f'broken header: "{first.decode().splitlines()[0]}')
    api.logged(f"while reading PROXY protocol, client: 127.0.0.1, server: 127.0.0.1:{api.port}")


# site-and-api.conf


@pytest.fixture
def site(example, blue_app, tmp_path) -> Proxy:
    folder = tmp_path / "site"
    for name, text in {
        "index.html": "<h1>The application</h1>",
        "docs/index.html": "<h1>The manual</h1>",
        "assets/app.3f9a.js": "start();",
        "theme.css": "body { }",
        "logo.png": "not much of a picture",
        "plain.txt": "plain",
        ".env": "SECRET=1",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    conf = {"listen 80 default_server;": "listen 127.0.0.1:@port@ default_server;", "/srv/site;": f"{folder};"}
    return example("site-and-api.conf", conf | {"127.0.0.1:8000": blue_app.address})


@pytest.mark.parametrize(
    ("target", "body", "kind", "kept"),
    [
        ("/", "<h1>The application</h1>", "text/html", ["no-cache"]),
        ("/orders/17?page=2", "<h1>The application</h1>", "text/html", ["no-cache"]),
        ("/docs/", "<h1>The manual</h1>", "text/html", ["no-cache"]),
        ("/theme.css", "body { }", "text/css", ["max-age=315360000"]),
        ("/logo.png", "not much of a picture", "image/png", ["max-age=2592000"]),
        ("/plain.txt", "plain", "text/plain", []),
    ],
)
def test_site_files(site, target, body, kind, kept):
    response = site.get(target)
    assert (response.status, response.body.decode(), response.get("Content-Type")) == (200, body, kind)
    assert response.all("Cache-Control") == kept
    assert (response.get("Expires") is None) == (not kept)
    if kept == ["no-cache"]:
        assert response.get("Expires") == "Thu, 01 Jan 1970 00:00:01 GMT"
    if kept == ["max-age=315360000"]:
        assert response.get("Expires") == "Thu, 31 Dec 2037 23:55:55 GMT"
    assert response.all("X-Content-Type-Options") == ["nosniff"]
    assert response.all("Referrer-Policy") == ["strict-origin-when-cross-origin"]


def test_site_assets_are_kept_for_a_year(site):
    response = site.get("/assets/app.3f9a.js", "Accept-Encoding: gzip")
    assert (response.status, response.body, response.get("Content-Encoding")) == (200, b"start();", None)
    assert response.all("Cache-Control") == ["max-age=31536000", "immutable"]
    assert response.all("X-Content-Type-Options") == []  # add_header here replaces those of the server
    # An old page asks for an asset that is gone: not to be answered with the application's page.
    missing = site.get("/assets/app.0000.js")
    assert (missing.status, missing.all("Cache-Control"), missing.get("Expires")) == (404, [], None)


def test_site_a_folder_without_its_slash(site):
    response = site.get("/docs?q=1", host="example.com")
    assert (response.status, response.get("Location")) == (301, f"http://example.com:{site.port}/docs/?q=1")


def test_site_hides_dot_files(site):
    for target in ["/.env", "/.git/config", "/docs/%2eenv"]:
        assert site.get(target).status == 404


def test_site_the_api_is_v1_upstream(site):
    response = site.get("/api/users/a%20b?page=2&q=%2F", "X-Forwarded-For: 192.0.2.1", host="www.example.com")
    asked = json.loads(response.body)
    assert asked["target"] == "/v1/users/a%20b?page=2&q=%2F"
    headers = asked["headers"]
    assert (headers["Host"], headers["X-Real-Ip"], headers["X-Forwarded-Proto"]) == (
        "www.example.com",
        "127.0.0.1",
        "http",
    )
    assert headers["X-Forwarded-For"] == "192.0.2.1, 127.0.0.1"
    assert response.all("Cache-Control") == ["no-cache"]
    assert parsedate_to_datetime(response.get("Expires")) < parsedate_to_datetime(response.get("Date"))
    assert response.all("X-Content-Type-Options") == ["nosniff"]


def test_site_the_api_takes_a_post(site):
    asked = json.loads(site.get("/api/orders", method="POST", body=b"item=17").body)
    assert (asked["method"], asked["target"], asked["body"]) == ("POST", "/v1/orders", "item=17")
    # Without the slash at its end, it is the place of the API all the same.
    response = site.get("/api?x=1", host="example.com")
    assert (response.status, response.get("Location")) == (301, f"http://example.com:{site.port}/api/?x=1")
