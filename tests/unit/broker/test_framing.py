"""Framing: any bytes in any fragmentation give the same packets, or the same error."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.broker.framing import AT_ONCE, PacketTooLargeError, split
from bridge.broker.packets import ProtocolError, remaining_length

LIMIT = 1_000

packets = st.builds(
    lambda first, body: bytes((first,)) + remaining_length(len(body)) + body,
    st.integers(0, 255),
    st.binary(max_size=300),
)


def reassemble(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], type[ProtocolError] | None]:
    """The packets in a stream that arrives in pieces, looked at as a connection does: not before `need` is there."""
    found = []
    rest = b""
    need = 0
    for piece in pieces:
        rest += piece
        if len(rest) < need:
            continue
        whole, need, problem = split(rest, LIMIT)
        found += [(first, rest[start:stop]) for first, start, stop in whole]
        if problem is not None:
            return found, type(problem)
        rest = rest[whole[-1][2] if whole else 0 :]
        assert need > len(rest), "it would be looked at for nothing"
    return found, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(packets, max_size=10), st.lists(st.integers(0, 10_000), max_size=20))
def test_whole_packets_in_any_pieces(sent: list[bytes], places: list[int]) -> None:
    found, error = reassemble(cut(b"".join(sent), places))
    assert error is None
    assert [bytes((first,)) + remaining_length(len(body)) + body for first, body in found] == sent


@given(st.binary(max_size=400), st.lists(st.integers(0, 1_000), max_size=20))
def test_any_bytes_in_any_pieces_are_the_same(data: bytes, places: list[int]) -> None:
    assert reassemble(cut(data, places)) == reassemble([data])
    assert reassemble([data[n : n + 1] for n in range(len(data))]) == reassemble([data])


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, 268_435_455])
def test_remaining_length(length: int) -> None:
    """2.2.3, table 2.4."""
    whole, need, problem = split(b"\x30" + remaining_length(length), 268_435_455)
    header = 1 + len(remaining_length(length))
    assert problem is None
    assert whole == ([(0x30, header, header)] if length == 0 else [])
    assert need == (2 if length == 0 else header + length)


def test_good_packets_before_a_bad_one_count() -> None:
    whole, _, problem = split(b"\xc0\x00\xc0\x80\x80\x80\x80\x00", LIMIT)
    assert whole == [(0xC0, 2, 2)]
    assert type(problem) is ProtocolError
    whole, _, problem = split(b"\xc0\x00\x30\xff\x7f", LIMIT)
    assert whole == [(0xC0, 2, 2)]
    assert type(problem) is PacketTooLargeError


def test_of_a_large_piece_of_data_only_so_much_is_taken_at_once() -> None:
    ping = b"\xc0\x00"
    data = ping * (AT_ONCE + 3)
    first, need, _ = split(data, LIMIT)
    assert (len(first), need) == (AT_ONCE, 0)
    rest, need, _ = split(data, LIMIT, first[-1][2])
    assert (len(rest), need) == (3, 2)
