"""Flask and Django behind uwsgi: arguments, forms, 100 MiB each way, events, refusals, exceptions."""

import hashlib
import http.client
import json
import random
from collections.abc import Iterator

import pytest

from harness.wire import Late

differs = pytest.mark.differs_in_nginx
LOST = "an early answer is lost to the reset behind it (uwsgi.md 9.4)"
MIB = random.Random(100).randbytes(1 << 20)
TOLD = {"length": 100 << 20, "sha256": hashlib.sha256(MIB * 100).hexdigest()}


@pytest.fixture(params=["flask", "django", "gunicorn"])
def framework(request):
    return request.getfixturevalue(f"{request.param}_app")


@pytest.fixture
def two(request):
    """Flask and Django in uWSGI, for what takes time."""
    return request.getfixturevalue(f"{request.param}_app")


both = pytest.mark.parametrize("two", ["flask", "django"], indirect=True)


def talk(proxy, method: str, target: str, **options) -> http.client.HTTPResponse:
    """By Python's own client, which keeps nothing of what it reads."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    connection.request(method, target, **options)
    return connection.getresponse()


# Arguments and forms.


@pytest.mark.parametrize(
    "query, hello",
    [
        ("", "hello world"),
        ("?", "hello world"),
        ("?name=a%20b%2Bc+d", "hello a b+c d"),
        ("?name=%C3%BC%E2%9C%93", "hello ü✓"),
        ("?other=1&name=x%26y%3Dz", "hello x&y=z"),
    ],
)
def test_arguments(front, framework, via, query, hello):
    response = front(via(framework)).get(f"/{query}")
    assert (response.status, response.body.decode()) == (200, hello)


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_form(front, framework, via, buffering):
    fields = {f"field{number}": "ü" * number for number in range(100)}
    body = "&".join(f"{name}={'%C3%BC' * len(value)}" for name, value in fields.items()).encode()
    response = front(via(framework), f"uwsgi_request_buffering {buffering};").get(
        "/form", "Content-Type: application/x-www-form-urlencoded", method="POST", body=body
    )
    assert json.loads(response.body) == fields


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_form_with_a_file(front, framework, via, buffering):
    """The file has a line that begins as the boundary does, and is larger than what stays in memory."""
    content = MIB + b"\r\n--edg\r\n" + MIB * 2
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="text"\r\n\r\nof this file\r\n',
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a file.bin"\r\n',
        b"Content-Type: application/octet-stream\r\n\r\n",
        content,
        b"\r\n--edge--\r\n",
    ]
    response = front(via(framework), f"uwsgi_request_buffering {buffering};").get(
        "/file", "Content-Type: multipart/form-data; boundary=edge", method="POST", body=b"".join(parts)
    )
    assert response.status == 200
    assert json.loads(response.body) == {
        "name": "a file.bin",
        "text": "of this file",
        "length": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


# 100 MiB.


def pieces() -> Iterator[bytes]:
    for _ in range(100):
        yield MIB


@both
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_100_mib_up_by_length(front, two, via, buffering):
    proxy = front(via(two), f"uwsgi_request_buffering {buffering};")
    response = talk(proxy, "POST", "/upload", body=pieces(), headers={"Content-Length": str(100 << 20)})
    assert (response.status, json.loads(response.read())) == (200, TOLD)


@pytest.mark.parametrize(
    "two",
    [
        pytest.param("flask", marks=differs("HTTP_TRANSFER_ENCODING makes Flask look for chunks (uwsgi.md 9.3)")),
        "django",
    ],
    indirect=True,
)
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_100_mib_up_by_chunks(front, two, via, buffering):
    proxy = front(via(two), f"uwsgi_request_buffering {buffering};")
    response = talk(proxy, "POST", "/upload", body=pieces(), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
    assert (response.status, json.loads(response.read())) == (200, TOLD)


@both
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_100_mib_down(front, two, via, buffering):
    """Flask tells the length, Django does not."""
    response = talk(front(via(two), f"uwsgi_buffering {buffering};"), "GET", f"/download/{100 << 20}")
    assert response.status == 200
    length, expected, same = 0, bytes(range(256)) * 4096, True
    while piece := response.read(1 << 20):
        same = same and piece == expected[: len(piece)]
        length += len(piece)
    assert (length, same) == (100 << 20, True)


# Events.


def test_each_event_arrives_before_the_next_is_made(front, framework, via, cues):
    wire = front(via(framework)).connect()
    wire.send(f"GET /events?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    actor = cues.actor()
    for number in range(20):
        actor.say(f"number {number}")
        if number == 0:
            assert wire.read_head().get("Content-Type").startswith("text/event-stream")
        event = f"data: number {number}\n\n".encode()
        assert wire.read_until(b"\n\n\r\n") == b"%x\r\n%s\r\n" % (len(event), event)
    actor.end()
    assert wire.read_until(b"\r\n\r\n") == b"0\r\n\r\n"


def test_an_event_reader_that_hangs_up_is_noticed_by_the_next_event(front, framework, via, cues):
    """The connection to the server ends, so the application's generator does."""
    proxy = front(via(framework))
    wire = proxy.connect()
    wire.send(f"GET /events?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    actor = cues.actor()
    actor.say("one")
    wire.read_until(b"data: one")
    wire.close()
    hear_the_end(actor)


def hear_the_end(actor) -> None:
    """Goes on speaking until the application has gone."""
    actor.wire.deadline = 0.01
    for _ in range(1000):
        try:
            actor.say("more")
            actor.wire.read_to_end()
            return
        except Late:
            continue
        except OSError:
            return
    raise AssertionError("the application still listens")


# Refusals and exceptions.


@differs(LOST)
@both
def test_an_early_413_for_3_mb(front, two, via):
    proxy = front(via(two), "uwsgi_request_buffering off;")
    answers = [proxy.get("/refuse", method="POST", body=MIB * 3) for _ in range(40)]
    assert {(answer.status, answer.body) for answer in answers} == {(413, b"this is too large\n")}


def test_an_exception_is_a_500_of_the_framework(front, framework, via):
    proxy = front(via(framework))
    for _ in range(3):
        response = proxy.get("/raise")
        assert response.status == 500
        assert b"nginx" not in response.body and b"ringx" not in response.body
        assert proxy.get("/").status == 200
