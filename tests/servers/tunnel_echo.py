"""Echoes in any number of tunnels: `tunnel_echo.py PORT`. Agrees to whatever protocol is asked for.

Of a WebSocket it echoes small frames whose mask is 0, without the mask; of another protocol all bytes.
"""

import re
import selectors
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.tunnel import WEBSOCKET, switch

HEADER = 6  # of a frame with less than 126 bytes of payload and a mask


class Tunnel:
    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.protocol: str | None = None
        self.unread = b""

    def run(self) -> bool:
        """False: it is at its end."""
        data = self.sock.recv(1 << 16)
        self.unread += data
        if self.protocol is None and (end := self.unread.find(b"\r\n\r\n")) >= 0:
            self.protocol = re.search(rb"(?i)\r\nupgrade: *([^\r]*)", self.unread)[1].decode()
            self.unread = self.unread[end + 4 :]
            self.sock.sendall(switch(self.protocol))
        if self.protocol == WEBSOCKET:
            self.echo_frames()
        elif self.protocol:
            self.sock.sendall(self.unread)
            self.unread = b""
        return bool(data)

    def echo_frames(self) -> None:
        while len(self.unread) >= HEADER and len(self.unread) >= (end := HEADER + (self.unread[1] & 0x7F)):
            self.sock.sendall(bytes([self.unread[0], self.unread[1] & 0x7F]) + self.unread[HEADER:end])
            self.unread = self.unread[end:]


def main() -> None:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(sock, selectors.EVENT_READ, Tunnel(sock))
                continue
            try:
                goes_on = key.data.run()
            except OSError:
                goes_on = False
            if not goes_on:
                selector.unregister(key.fileobj)
                key.fileobj.close()


main()
