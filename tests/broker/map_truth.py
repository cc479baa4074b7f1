"""The offset map's oracle: where every record stands in both logs, as another client reads them, and nothing else.

Slow and obvious: records are known by their values, and every offset of both logs is asked about one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from replicator.state.offset_map import NOT_YET, OffsetMap
from tests.harness.records import Record

FOREIGN = b"foreign"  # how values of others begin


def places(records: Iterable[Record]) -> dict[bytes, int]:
    """value -> offset. An AssertionError when a value is there twice."""
    found: dict[bytes, int] = {}
    for record in records:
        value = record.value or b""
        if not value.startswith(FOREIGN):
            assert value not in found, f"{value!r} is at offset {found[value]} and again at {record.offset}"
            found[value] = record.offset
    return found


@dataclass(frozen=True)
class Truth:
    """(source offset, target offset) of every record, in order; where the logs end, and from where on we ask."""

    pairs: tuple[tuple[int, int], ...]
    source_end: int
    target_end: int
    starts: tuple[int, int]

    @classmethod
    def of(cls, logs: tuple[dict[bytes, int], dict[bytes, int]], ends: tuple[int, int], target_start: int) -> "Truth":
        """Of what is in both logs. An AssertionError unless every record was copied, and in their order: all of the
        source, or all that follows the first one that the target has not deleted since."""
        source, target = logs
        invented = target.keys() - source.keys()
        assert not invented, f"{len(invented)} are only on the target, such as {min(invented)!r}"
        pairs = tuple(sorted((source[value], offset) for value, offset in target.items()))
        assert pairs == tuple(sorted(pairs, key=lambda pair: pair[1])), "they are in another order on the target"
        starts = (pairs[0][0], target_start) if target_start else (0, 0)
        lost = {value for value, offset in source.items() if offset >= starts[0]} - target.keys()
        assert not lost, f"{len(lost)} are not on the target, such as {min(lost)!r}"
        return cls(pairs, *ends, starts)

    def segments(self) -> list[list[int]]:
        """As few as it takes: (source start, target start, length)."""
        rows: list[list[int]] = []
        for source, target in self.pairs:
            if rows and (source, target) == (rows[-1][0] + rows[-1][2], rows[-1][1] + rows[-1][2]):
                rows[-1][2] += 1
            else:
                rows.append([source, target, 1])
        return rows

    def check(self, found: OffsetMap) -> None:
        """An AssertionError unless the map is right about every offset of both logs, and as small as it can be."""
        assert found.below(self.starts[1]).segments.tolist() == self.segments()
        assert found.position == self.source_end
        assert self.pairs[-1][1] < found.target_next <= self.target_end
        self._check_answers(found)

    def _check_answers(self, found: OffsetMap) -> None:
        ends = (found.position, found.target_next)
        forth = answers(self.pairs, self.starts[0], ends)
        back = answers([(target, source) for source, target in self.pairs], self.starts[1], ends[::-1])
        assert {offset: found.translate(offset) for offset in forth} == forth
        assert {offset: found.reverse(offset) for offset in back} == back
        exact = dict(self.pairs)
        assert {offset: found.exact(offset) for offset in forth} == {offset: exact.get(offset) for offset in forth}
        for many, due in ((found.translate_many, forth), (found.reverse_many, back)):
            assert many(list(due)).tolist() == [NOT_YET if answer is None else answer for answer in due.values()]


def answers(pairs: Sequence[tuple[int, int]], offset: int, ends: tuple[int, int]) -> dict[int, Any]:
    """offset -> where the next record at or after it stands in the other log, for each from `offset` on up to a little
    beyond the end of what is known, of which nothing can be said."""
    found: dict[int, Any] = {}
    for here, there in pairs:
        while offset <= here:
            found[offset] = there
            offset += 1
    while offset <= ends[0]:
        found[offset] = ends[1]
        offset += 1
    return found | {offset: None for offset in (ends[0] + 1, ends[0] + 100)}
