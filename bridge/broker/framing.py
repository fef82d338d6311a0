"""Where one MQTT packet ends and the next begins, however the bytes arrive (MQTT 3.1.1, 2.2). Pure."""

from __future__ import annotations

from typing import Final

from bridge.broker.packets import ProtocolError

AT_ONCE: Final = 256
"""Packets that are looked for at once: of a large piece of data only so much may be taken now."""


class PacketTooLargeError(ProtocolError):
    """A packet announces more bytes than the broker takes. Known from its first bytes: the rest is never kept."""


Frames = tuple[list[tuple[int, int, int]], int, ProtocolError | None]
"""The first whole packets in some bytes, at most AT_ONCE (for each its first byte, and where its body starts and
stops); how many bytes are needed, counted from the end of the last whole packet, before it is worth to look again (0
if it is worth it now); and what is wrong with the bytes behind it. A plain tuple: it is made for every piece of data
that arrives."""


def split(data: bytes, limit: int, at: int = 0) -> Frames:
    """Find the whole packets in `data`, beginning at `at`. `limit` is the largest Remaining Length that is taken, in
    bytes."""
    packets: list[tuple[int, int, int]] = []
    append = packets.append
    end = len(data)
    while end - at >= 2:
        length = data[at + 1]
        body = at + 2
        if length > 127:
            length &= 127
            shift = 7
            while True:
                if body == end:
                    return packets, end - at + 1, None
                digit = data[body]
                body += 1
                length |= (digit & 127) << shift
                if digit < 128:
                    break
                shift += 7
                if shift > 21:
                    error = ProtocolError("the Remaining Length has more than four bytes (2.2.3)")
                    return packets, 0, error
        if length > limit:
            text = f"a packet of {length} bytes; at most {limit} are taken"
            return packets, 0, PacketTooLargeError(text)
        stop = body + length
        if stop > end:
            return packets, stop - at, None
        append((data[at], body, stop))
        at = stop
        if len(packets) == AT_ONCE:
            return packets, 0, None
    return packets, 2, None
