"""Parts of an offset map as they are kept in `replicator.<link>.offsets`.

A segment is kept as three small numbers, the holes before it on either side and its length; all first numbers come
first, then all second ones, then the lengths. Regular logs, such as one with a control record behind every
transaction, then are long rows of the same bytes, and zlib leaves little of them.
"""

import base64
import binascii
import zlib

import numpy as np
import numpy.typing as npt

from replicator._core import crc32c
from replicator.errors import ProtocolError
from replicator.state.offset_map import LENGTH, SOURCE, TARGET, Segments, as_segments
from replicator.state.records import Chunk

CHUNK_SEGMENTS_MAX = 4096
SEGMENT_BYTES = 3 * 8  # before compression
# What zlib cannot compress it makes a little longer, and base64 makes four characters of three bytes.
DATA_LENGTH_MAX = (CHUNK_SEGMENTS_MAX * SEGMENT_BYTES + 1024) * 4 // 3

_ON_THE_WIRE = np.dtype("<i8")


def pack(generation: int, segments: npt.ArrayLike) -> Chunk:
    """A chunk of 1 to CHUNK_SEGMENTS_MAX segments, rows of (source start, target start, length), in order.

    Raises ValueError for anything else.
    """
    rows = as_segments(segments)
    if not 1 <= len(rows) <= CHUNK_SEGMENTS_MAX:
        raise ValueError(f"{len(rows)} segments in a chunk; 1 to {CHUNK_SEGMENTS_MAX}")
    ends = rows[:, :LENGTH] + rows[:, LENGTH:]
    numbers = rows.copy()
    numbers[1:, :LENGTH] -= ends[:-1]
    raw = numbers.T.astype(_ON_THE_WIRE).tobytes()
    return Chunk(
        generation=generation,
        count=len(rows),
        source_start=int(rows[0, SOURCE]),
        source_end=int(ends[-1, SOURCE]),
        target_start=int(rows[0, TARGET]),
        target_end=int(ends[-1, TARGET]),
        checksum=crc32c(raw),
        data=base64.b64encode(zlib.compress(raw)).decode(),
    )


def open_chunk(chunk: Chunk) -> Segments:
    """The segments of a chunk. Raises ProtocolError when any of what it says about itself is not so."""
    raw = _unpacked(chunk)
    if crc32c(raw) != chunk.checksum:
        raise ProtocolError("a chunk of an offset map does not match its checksum")
    numbers = np.frombuffer(raw, _ON_THE_WIRE).reshape(3, chunk.count).T.astype(np.int64)
    if (numbers[:, :LENGTH] < 0).any() or (numbers[:, LENGTH] < 1).any():
        raise ProtocolError("a chunk of an offset map has segments that overlap or are empty")
    # Numbers that are not negative cannot add up past 64 bits without a negative sum on the way.
    steps = numbers[:, :LENGTH] + numbers[:, LENGTH:]
    ends = np.cumsum(steps, axis=0)
    if (steps < 0).any() or (ends < 0).any():
        raise ProtocolError("a chunk of an offset map ends beyond what an offset can be")
    segments: Segments = np.column_stack([ends - numbers[:, LENGTH:], numbers[:, LENGTH]])
    found = (*segments[0, :LENGTH].tolist(), *ends[-1].tolist())
    said = (chunk.source_start, chunk.target_start, chunk.source_end, chunk.target_end)
    if found != said:
        raise ProtocolError(f"a chunk of an offset map says its bounds are {said}, but they are {found}")
    return segments


def _unpacked(chunk: Chunk) -> bytes:
    """The bytes behind `data`: as many as `count` asks for, and never more than a chunk may have."""
    if not 1 <= chunk.count <= CHUNK_SEGMENTS_MAX:
        raise ProtocolError(f"{chunk.count} segments in a chunk of an offset map; 1 to {CHUNK_SEGMENTS_MAX}")
    if len(chunk.data) > DATA_LENGTH_MAX:
        raise ProtocolError(f"a chunk of an offset map has more than {DATA_LENGTH_MAX} characters")
    size = chunk.count * SEGMENT_BYTES
    unpacker = zlib.decompressobj()
    try:
        raw = unpacker.decompress(base64.b64decode(chunk.data, validate=True), size + 1)
    except (zlib.error, binascii.Error, ValueError) as error:
        raise ProtocolError(f"a chunk of an offset map cannot be unpacked: {error}") from None
    if len(raw) != size or not unpacker.eof or unpacker.unused_data:
        raise ProtocolError(f"a chunk of an offset map does not hold the {chunk.count} segments it says")
    return raw
