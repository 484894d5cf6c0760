"""What goes wrong in an application behind uwsgi: early refusals, exceptions, killed workers, harakiri."""

import os
import signal

import pytest

from harness.proxy import eventually
from harness.wire import Closed

differs = pytest.mark.differs_in_nginx
LOST = "an early answer is lost to the reset behind it (uwsgi.md 9.4)"


# Answers given without a look at the body. The server closes with the body unread: a reset behind the answer.


def refused(proxy, target: str, size: int) -> set:
    """What 40 clients, one after the other, are answered."""
    answers = [proxy.get(target, method="POST", body=bytes(size)) for _ in range(40)]
    return {(answer.status, answer.body) for answer in answers}


REFUSAL = {(413, b"this is too large\n")}


@differs(LOST)
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_every_client_of_3_mb_gets_the_early_413(front, bare_uwsgi, via, buffering):
    proxy = front(via(bare_uwsgi), f"uwsgi_request_buffering {buffering};")
    assert refused(proxy, "/refuse", 3_000_000) == REFUSAL


@differs(LOST)
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_every_client_of_3_mb_gets_the_early_413_that_ends_by_close(front, bare_uwsgi, via, buffering):
    proxy = front(via(bare_uwsgi), f"uwsgi_request_buffering {buffering};")
    assert refused(proxy, "/refuse/open", 3_000_000) == REFUSAL


@differs(LOST)
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_every_client_of_8_kb_gets_the_early_413_that_ends_by_close(front, bare_uwsgi, via, buffering):
    proxy = front(via(bare_uwsgi), f"uwsgi_request_buffering {buffering};")
    assert refused(proxy, "/refuse/open", 8_000) == REFUSAL


@differs(LOST)
def test_an_early_413_for_a_body_that_is_still_on_its_way(front, bare_uwsgi, via):
    """The client has sent a part, and gets the answer although it does not go on."""
    proxy = front(via(bare_uwsgi), "uwsgi_request_buffering off;")
    for _ in range(40):
        with proxy.connect() as wire:
            wire.send("POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + "x" * 100_000)
            response = wire.read_response()
            assert (response.status, response.body) == (413, b"this is too large\n")


# Exceptions. A framework makes pages of its own of them; here the server is left alone with them.


def test_an_exception_before_the_answer_is_a_502(front, bare_uwsgi, via):
    proxy = front(via(bare_uwsgi))
    for _ in range(3):
        assert proxy.get("/crash/before").status == 502
        assert proxy.get("/").status == 200
    proxy.logged("upstream prematurely closed connection while reading response header from upstream")


@pytest.mark.parametrize("place", ["before", "after"])
def test_an_exception_before_the_first_byte_is_a_500_of_gunicorn(front, bare_gthread, via, place):
    proxy = front(via(bare_gthread))
    response = proxy.get(f"/crash/{place}")
    assert response.status == 500
    assert b"Internal Server Error" in response.body
    assert proxy.get("/").status == 200


@pytest.mark.parametrize(
    "server, place, body",
    [("bare_uwsgi", "after", b""), ("bare_uwsgi", "late", b"01234"), ("bare_gthread", "late", b"01234")],
)
def test_an_exception_within_the_answer_cuts_the_client_off(front, via, request, server, place, body):
    """Of uWSGI already after start_response: it sends the head, with a length that nothing follows."""
    proxy = front(via(request.getfixturevalue(server)))
    wire = proxy.connect()
    wire.send(f"GET /crash/{place} HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_head().get("Content-Length") == "10"
    assert wire.read_to_end() == body
    proxy.logged("upstream prematurely closed connection while reading upstream")
    assert proxy.get("/").status == 200


# Killed workers.


@pytest.mark.parametrize("server", ["bare_uwsgi", "bare_gthread"])
def test_a_worker_killed_before_its_answer_is_a_502(front, via, server, request, cues):
    proxy = front(via(request.getfixturevalue(server)))
    wire = proxy.connect()
    wire.send(f"GET /held?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    os.kill(cues.actor().pid, signal.SIGKILL)
    assert wire.read_response().status == 502
    proxy.logged("upstream prematurely closed connection while reading response header from upstream")
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().status == 200


@pytest.mark.parametrize("server", ["bare_uwsgi", "bare_gthread"])
def test_a_worker_killed_in_the_middle_of_its_answer_cuts_the_client_off(front, via, server, request, cues):
    proxy = front(via(request.getfixturevalue(server)), "uwsgi_buffering off;")
    for _ in range(3):
        wire = proxy.connect()
        wire.send(f"GET /half?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
        actor = cues.actor()
        assert wire.read_head().get("Content-Length") == "20"
        assert wire.read_exactly(10) == b"0123456789"
        os.kill(actor.pid, signal.SIGKILL)
        wire.expect_end()
        proxy.logged("upstream prematurely closed connection while ")
        assert proxy.get("/").status == 200


def test_a_buffered_answer_of_a_killed_worker_is_cut_as_well(front, bare_uwsgi, via, cues):
    proxy = front(via(bare_uwsgi))
    wire = proxy.connect()
    wire.send(f"GET /half?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    os.kill(cues.actor().pid, signal.SIGKILL)
    assert wire.read_head().get("Content-Length") == "20"
    assert wire.read_to_end() == b"0123456789"
    proxy.logged("upstream prematurely closed connection while reading upstream")
    assert proxy.get("/").status == 200


@differs("chunks of gunicorn 26 are data to nginx: the client's own are complete (uwsgi.md 9.2)")
def test_a_chunked_answer_that_lacks_its_end_is_not_completed(front, bare_gunicorn_26, via, cues):
    proxy = front(via(bare_gunicorn_26), "uwsgi_buffering off;")
    wire = proxy.connect()
    wire.send(f"GET /half/open?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    actor = cues.actor()
    assert wire.read_head().get("Transfer-Encoding") == "chunked"
    assert wire.read_exactly(15) == b"a\r\n0123456789\r\n"
    os.kill(actor.pid, signal.SIGKILL)
    with pytest.raises(Closed):
        wire.read_chunked()
    proxy.logged("upstream prematurely closed connection while ")
    assert proxy.get("/").status == 200


# Harakiri: uWSGI kills a worker that takes too long for one request.


def test_harakiri_is_a_502_and_the_next_request_is_fine(front, bare_harakiri, via, cues):
    proxy = front(via(bare_harakiri))
    wire = proxy.connect()
    wire.send(f"GET /held?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    victim = cues.actor().pid
    assert wire.read_response().status == 502
    proxy.logged("upstream prematurely closed connection while reading response header from upstream")
    eventually(lambda: f"(pid: {victim}) died, killed by signal 9" in bare_harakiri.log.read_text(), "uWSGI says so")
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"hello\n"


def test_harakiri_in_the_middle_of_an_answer_cuts_the_client_off(front, bare_harakiri, cues):
    proxy = front(bare_harakiri.address, "uwsgi_buffering off;")
    wire = proxy.connect()
    wire.send(f"GET /half?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    cues.actor()
    assert wire.read_head().get("Content-Length") == "20"
    assert wire.read_to_end() == b"0123456789"
    assert proxy.get("/").body == b"hello\n"


def test_harakiri_of_one_does_not_fail_who_waits_behind_it(front, bare_harakiri, cues):
    proxy = front(f"unix:{bare_harakiri.path}")
    first = proxy.connect()
    first.send(f"GET /held?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    cues.actor()
    others = [proxy.connect() for _ in range(5)]
    for other in others:
        other.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert first.read_response().status == 502
    assert [other.read_response().body for other in others] == [b"hello\n"] * 5
