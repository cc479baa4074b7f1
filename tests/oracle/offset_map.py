"""Offset maps the slow way: every record is an entry of a dict, and every answer a walk through it."""

from collections.abc import Iterable

Segment = tuple[int, int, int]


def spell_out(segments: Iterable[Segment]) -> dict[int, int]:
    """Source offset -> target offset of each record."""
    return {source + n: target + n for source, target, length in segments for n in range(length)}


def merge(parts: Iterable[Iterable[Segment]], position: int, target_next: int) -> dict[int, int]:
    """Each part in its turn says what holds from its first record on, on either side."""
    known: dict[int, int] = {}
    for part in parts:
        said = spell_out(part)
        if said:
            source, target = min(said), min(said.values())
            known = {s: t for s, t in known.items() if s < source and t < target} | said
    return {s: t for s, t in known.items() if s < position and t < target_next}


class SlowMap:
    """What OffsetMap answers, by walking from offset to offset."""

    def __init__(self, records: dict[int, int], position: int, target_next: int) -> None:
        self.records = records
        self.position = position
        self.target_next = target_next

    def translate(self, offset: int) -> int | None:
        return _walk(self.records, offset, self.position, self.target_next)

    def reverse(self, target_offset: int) -> int | None:
        back = {target: source for source, target in self.records.items()}
        return _walk(back, target_offset, self.target_next, self.position)

    def exact(self, offset: int) -> int | None:
        return self.records.get(offset)

    def below(self, target_log_start: int) -> "SlowMap":
        left = {source: target for source, target in self.records.items() if target >= target_log_start}
        return SlowMap(left, self.position, self.target_next)


def _walk(records: dict[int, int], offset: int, end: int, other_end: int) -> int | None:
    if offset > end:
        return None
    while offset < end:
        if offset in records:
            return records[offset]
        offset += 1
    return other_end
