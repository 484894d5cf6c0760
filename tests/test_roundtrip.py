"""Whatever is put in at one end comes out at the other: 1000 generated requests, cut anywhere.

The seed is printed with a failure and in the header of each test; RINGX_TEST_SEED sets it.
"""

import os
import random
import threading

import pytest

from harness.upstream import ServerWire

SEED = int(os.environ.get("RINGX_TEST_SEED", "20261125"))
COUNT = 1000
TOKEN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"
TEXT = "".join(map(chr, [*range(0x21, 0x7F), *range(0x80, 0x100)]))


class Exchange:
    """One request and the response to it, as they are to arrive at the other end."""

    def __init__(self, random_: random.Random, number: int):
        self.number = number
        self.target = "/" + "".join(random_.choices(TOKEN, k=random_.randrange(60))) + f"?n={number}"
        self.request_fields = self.fields(random_)
        self.response_fields = self.fields(random_)
        self.request_body = self.body(random_)
        self.response_body = self.body(random_)
        self.request_chunked = random_.random() < 0.4
        self.response_chunked = random_.random() < 0.4
        self.random = random_

    @staticmethod
    def fields(random_: random.Random) -> list[tuple[str, str]]:
        def value() -> str:
            words = ["".join(random_.choices(TEXT, k=random_.randrange(1, 30))) for _ in range(random_.randrange(1, 4))]
            return " ".join(words)

        return [(f"X-{''.join(random_.choices(TOKEN, k=8))}-{n}", value()) for n in range(random_.randrange(6))]

    @staticmethod
    def body(random_: random.Random) -> bytes:
        return random_.randbytes(random_.choice([0, 1, 2, 100, random_.randrange(5000), random_.randrange(60000)]))

    def framed(self, body: bytes, as_chunks: bool) -> tuple[str, bytes]:
        """The framing field and the framed body."""
        if not as_chunks:
            return f"Content-Length: {len(body)}", body
        framed, rest = b"", body
        while rest:
            size = self.random.randrange(1, len(rest) + 1)
            extension = self.random.choice([b"", b"", b";a=b"])
            framed += b"%x%s\r\n%s\r\n" % (size, extension, rest[:size])
            rest = rest[size:]
        return "Transfer-Encoding: chunked", framed + b"0\r\n\r\n"

    def message(self, start: str, fields: list[tuple[str, str]], body: bytes, as_chunks: bool) -> bytes:
        framing, framed = self.framed(body, as_chunks)
        lines = [start, *(f"{name}: {value}" for name, value in fields), framing]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + framed

    def request(self) -> bytes:
        fields = [("Host", "example.com"), *self.request_fields]
        return self.message(f"POST {self.target} HTTP/1.1", fields, self.request_body, self.request_chunked)

    def response(self) -> bytes:
        return self.message("HTTP/1.1 200 OK", self.response_fields, self.response_body, self.response_chunked)


def cuts(random_: random.Random, length: int) -> list[int]:
    """Where to cut a message: few places, and the more often the nearer to its start, where the head is."""
    count = random_.choice([0, 0, 1, 2, 5])
    return sorted({min(length, int(random_.expovariate(1 / 300)) + 1) for _ in range(count)} - {length})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("request_buffering", ["on", "off"])
@pytest.mark.parametrize("response_buffering", ["on", "off"])
@pytest.mark.parametrize("depth", [1, 5])
def test_messages_come_out_as_they_went_in(serve, upstream, request_buffering, response_buffering, depth):
    """`depth` requests are sent ahead of their answers, on a connection that is kept."""
    print(f"RINGX_TEST_SEED={SEED}")
    random_ = random.Random(f"{SEED} {request_buffering} {response_buffering} {depth}")
    exchanges = [Exchange(random_, number) for number in range(COUNT // 8)]
    answers = [exchange.response() for exchange in exchanges]
    answer_cuts = [cuts(random_, len(answer)) for answer in answers]

    def answer(wire: ServerWire) -> None:
        while True:
            number = int(wire.read_request().target.rpartition("?n=")[2])
            wire.send_pieces(answers[number], answer_cuts[number])

    server = upstream(answer)
    proxy = serve(
        """
        upstream group { server @up@; keepalive 4; }
        server {
            listen 127.0.0.1:@port@;
            client_max_body_size 0;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering @request@;
            proxy_buffering @response@;
            location / { proxy_pass http://group; }
        }
        """,
        up=server.address,
        request=request_buffering,
        response=response_buffering,
    )
    wire = proxy.connect()
    sending = threading.Semaphore(depth)

    def send() -> None:
        for exchange in exchanges:
            assert sending.acquire(timeout=20)
            data = exchange.request()
            wire.send_pieces(data, cuts(random_, len(data)))

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    for exchange in exchanges:
        response = wire.read_response()
        sending.release()
        where = f"response {exchange.number}"
        assert response.status == 200, where
        assert [field for field in response.fields if field[0].startswith("X-")] == exchange.response_fields, where
        assert response.body == exchange.response_body, where
    sender.join(20)

    assert len(server.requests) == len(exchanges)
    for exchange, request in zip(exchanges, server.requests):
        where = f"request {exchange.number}"
        assert request.target == exchange.target, where
        assert [field for field in request.fields if field[0].startswith("X-")] == exchange.request_fields, where
        assert request.body == exchange.request_body, where
    assert len(server.connections) <= 2, "connections to the server are kept"
