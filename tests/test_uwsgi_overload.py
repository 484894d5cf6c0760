"""More clients than a uwsgi server has workers and backlog for: they wait for their turn, or are told no at once."""

import select

import pytest

from harness.wire import DEADLINE, Wire

pytestmark = pytest.mark.wants("queue")

CLIENTS = 500


@pytest.fixture
def behind(proxy, bare_counted):
    """`behind(address, queue=…)`: two shards, or as many as said, in front of 8 workers with `--listen 16`."""

    def start(server: str, queue: str, shards: int = 2):
        return proxy(
            f"""
            worker_processes {shards};
            events {{ worker_connections 2048; }}
            http {{
                upstream app {{ server {server}; queue {queue}; }}
                server {{
                    listen 127.0.0.1:@port@ backlog=1024;
                    uwsgi_param REQUEST_METHOD $request_method;
                    uwsgi_param PATH_INFO $document_uri;
                    uwsgi_param QUERY_STRING $query_string;
                    location / {{ uwsgi_pass app; }}
                }}
            }}
            """
        )

    return start


@pytest.mark.parametrize("max_conns, at_once", [("max_conns=6", 6), ("max_conns=16", 8)])
def test_500_clients_are_all_served_and_never_too_many_at_once(behind, bare_counted, via, max_conns, at_once):
    """With 6, two of the workers idle: that is how the count shows that no shard goes over the number."""
    proxy = behind(f"{via(bare_counted)} {max_conns}", "1000 timeout=60s")
    assert crowd(proxy) == {("HTTP/1.1 200 OK", b"done"): CLIENTS}
    assert proxy.get("/most").body == b"%d" % at_once
    assert "[error]" not in proxy.error_log()


@pytest.mark.parametrize("max_conns", ["", "max_conns=30"])
def test_500_clients_are_all_served_although_the_backlog_fills(behind, bare_counted, max_conns):
    """A full backlog of a unix socket (EAGAIN) is waited for as well: no server has failed."""
    proxy = behind(f"unix:{bare_counted.path} {max_conns}", "1000 timeout=60s")
    assert crowd(proxy) == {("HTTP/1.1 200 OK", b"done"): CLIENTS}
    assert proxy.get("/most").body == b"8"
    assert "[error]" not in proxy.error_log()


def crowd(proxy) -> dict[tuple[str, bytes], int]:
    """All ask, then all are heard: how often each answer came."""
    assert proxy.get("/most").status == 200  # which also forgets what was before
    wires = [proxy.connect(deadline=50) for _ in range(CLIENTS)]
    for wire in wires:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    answers: dict[tuple[str, bytes], int] = {}
    for wire in wires:
        response = wire.read_response()
        answer = (response.start, response.body)
        answers[answer] = answers.get(answer, 0) + 1
    return answers


def test_what_a_full_queue_has_no_room_for_is_a_502_at_once(behind, bare_counted, via, cues):
    proxy = behind(f"{via(bare_counted)} max_conns=4", "10", shards=1)
    ask = f"GET /?{cues.port} HTTP/1.1\r\nHost: a\r\n\r\n"
    at_work = [proxy.connect() for _ in range(4)]
    for wire in at_work:
        wire.send(ask)
    actors = [cues.actor() for _ in at_work]
    others = [proxy.connect() for _ in range(25)]
    for wire in others:
        wire.send(ask)
    # Nobody's work has ended, and these are answered.
    turned_away = ready(others, 15)
    for wire in turned_away:
        assert wire.read_response().status == 502
    assert proxy.error_log().count("upstream queue is full while connecting to upstream") == 15
    for actor in actors:
        actor.end()
    for _ in range(10):
        cues.actor().end()
    waited = [wire for wire in others if wire not in turned_away]
    assert [wire.read_response().body for wire in at_work + waited] == [b"done"] * 14
    # The queue has room again.
    assert proxy.get("/").body == b"done"


def ready(wires: list[Wire], count: int) -> list[Wire]:
    """Waits until this many have something to read."""
    poll, found = select.poll(), {}
    for wire in wires:
        poll.register(wire.sock, select.POLLIN)
    by_descriptor = {wire.sock.fileno(): wire for wire in wires}
    while len(found) < count:
        events = poll.poll(DEADLINE * 1000)
        assert events, f"{len(found)} answers came, {count} were awaited"
        for descriptor, _ in events:
            found[descriptor] = by_descriptor[descriptor]
            poll.unregister(descriptor)
    return list(found.values())
