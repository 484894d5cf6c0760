"""A tunnel that is always full: `tunnel_flood.py send PORT` floods whoever upgrades there,
`tunnel_flood.py read PORT` upgrades there and reads for ever. Processes of their own, so that they take
no time from the interpreter of whoever measures.
"""

import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.tunnel import RAW, handshake, switch

BLOCK = bytes(1 << 20)


def flood(sock: socket.socket) -> None:
    try:
        head = b""
        while b"\r\n\r\n" not in head:
            received = sock.recv(1 << 16)
            if not received:
                return
            head += received
        sock.sendall(switch(RAW))
        while True:
            sock.sendall(BLOCK)
    except OSError:
        pass


def send(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=flood, args=(sock,), daemon=True).start()


def read(port: int) -> None:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(handshake(RAW))
    buffer = bytearray(1 << 20)
    while sock.recv_into(buffer):
        pass


try:
    {"send": send, "read": read}[sys.argv[1]](int(sys.argv[2]))
except KeyboardInterrupt:
    pass
