"""The uwsgi packet, read from a wire."""

import struct
from dataclasses import dataclass

from .wire import Wire


@dataclass
class Packet:
    modifier1: int
    modifier2: int
    variables: list[tuple[str, str]]
    block: bytes

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.variables if key == name), None)

    def names(self) -> list[str]:
        return [key for key, _ in self.variables]


def decode_block(block: bytes) -> list[tuple[str, str]]:
    strings, rest = [], block
    while rest:
        (length,) = struct.unpack_from("<H", rest)
        assert len(rest) >= 2 + length, f"the block ends inside a string: {block!r}"
        strings.append(rest[2 : 2 + length].decode("latin-1"))
        rest = rest[2 + length :]
    assert len(strings) % 2 == 0, f"a name without a value: {strings}"
    return list(zip(strings[::2], strings[1::2]))


def read_packet(wire: Wire, decode: bool = True) -> Packet:
    modifier1, length, modifier2 = struct.unpack("<BHB", wire.read_exactly(4))
    block = wire.read_exactly(length)
    return Packet(modifier1, modifier2, decode_block(block) if decode else [], block)


def read_body(wire: Wire, packet: Packet) -> bytes:
    return wire.read_exactly(int(packet.get("CONTENT_LENGTH") or 0))
