"""What is to be done about one consumer group's offsets on the target. Decides and notes; asks nobody.

The rules, all of them in `judge`:

* Nothing is committed beyond what is replicated, and nothing while the target group has members. The broker decides
  that (25 UNKNOWN_MEMBER_ID); a consumer that only calls `assign()` is no member, and is not seen.
* Forward only: a target group that is ahead stays there. The exception is a source group that was reset: then the
  target's goes back too, if nobody ever used it: never seen with members, and its offset is the one we wrote. A leader
  epoch beside it tells of a consumer's own commit, even one between two looks; ours have none.
* What we wrote once is not written again when somebody on the target sets it back: they may have had a reason.
* An offset that stands is left alone, but for a refresh once a day: an empty group's offsets expire after
  `offsets.retention.minutes`, by default a week.
* The text beside an offset (metadata) goes along.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from replicator.control.group_admin import Committed, TopicPartition, spell_code
from replicator.errors import ReplicatorError
from replicator.state.reader import StateReader
from replicator.state.records import GroupOffset, GroupRecord, LaneKey

# States of a partition; the worst, which is the last here, speaks for the group.
SYNCED = "synced"
AHEAD = "ahead on target"
MOVED = "moved on target"
NOT_YET = "not yet replicated"
NO_PARTITION = "no such partition"
FAILED = "failed"
WORST_LAST = (SYNCED, AHEAD, MOVED, NOT_YET, NO_PARTITION, FAILED)
# And of a group as a whole.
ACTIVE = "active on target"
UNSUPPORTED = "unsupported"
GONE = "gone"

REFRESH_MS = 24 * 3600 * 1000
PARTITIONS_MAX = 10_000  # of a group in one record, some 60 bytes each; of the others nothing is remembered
REASON_LENGTH_MAX = 200
_NO_SUCH_PARTITION = 3


class Verdict(NamedTuple):
    """What is said of a partition or a group, and whether its offset is to be committed."""

    state: str
    reason: str = ""
    commit: bool = False


def judge(
    source: Committed, translated: int, there: Committed | None, last: GroupOffset, may_go_back: bool, now_ms: int
) -> Verdict:
    """What is to be done about one partition of a group that has no members on the target.

    `translated` is what `source` stands for, `there` what the target group has, `last` what we remember, and
    `may_go_back` says that nobody ever used the target group.
    """
    wrote = last.written_target
    if there is None:
        return Verdict(SYNCED, commit=True)
    if there.offset > translated:
        was_reset = may_go_back and there.offset == wrote and source.offset < last.written_source
        words = f"{there.offset} there, while the source's {source.offset} stands for {translated}"
        return Verdict(SYNCED, commit=True) if was_reset else Verdict(AHEAD, words)
    if there.offset < translated:
        if (source.offset, translated) == (last.written_source, wrote):
            return Verdict(MOVED, f"set back to {there.offset} there, after {wrote} was committed")
        return Verdict(SYNCED, commit=True)
    is_due = there.metadata != source.metadata or wrote != translated or now_ms - last.written_ms >= REFRESH_MS
    return Verdict(SYNCED, commit=is_due)


class TopicIds(NamedTuple):
    """Which incarnation of each topic exists, as state records spell it; a topic that is left out does not exist."""

    source: dict[str, str]
    target: dict[str, str]


class Place(NamedTuple):
    """An offset on the target."""

    topic: str
    partition: int
    offset: int

    @property
    def at(self) -> TopicPartition:
        return self.topic, self.partition


def translate(reader: StateReader, ids: TopicIds, at: TopicPartition, source: Committed) -> Place | Verdict:
    """What a committed offset of the source stands for on the target, or why that cannot be said.

    By what the link's state said when `reader` caught up. A topic that was made anew has other records under the same
    offsets, and the link's map does not speak of them: `ids` are to be newer than `source`.
    """
    if source.code:
        return Verdict(FAILED, spell_code(source.code))
    lane = reader.lanes.get(LaneKey(*at))
    if lane is None:
        return Verdict(NO_PARTITION, "the link has no lane for it")
    for side, topic, known, found in (
        ("source", at[0], lane.topic_id, ids.source),
        ("target", lane.target_topic, lane.target_topic_id, ids.target),
    ):
        if topic not in found:
            return Verdict(NO_PARTITION, f"the {side} does not have topic {topic}")
        if known and found[topic] and known != found[topic]:
            return Verdict(FAILED, f"topic {topic} was made anew on the {side}: {found[topic]}, not {known}")
    try:
        offset = reader.offset_map(LaneKey(*at)).translate(source.offset)
    except ReplicatorError as error:
        return Verdict(FAILED, str(error))
    if offset is None:
        return Verdict(NOT_YET, f"not yet replicated to {source.offset}")
    return Place(lane.target_topic, at[1], offset)


class GroupWork:
    """One group's partitions on their way through a round: what the source has, what it stands for, what to commit.

    By the partitions of the source; what is said of the target group goes by the target's topics.
    """

    def __init__(
        self, reader: StateReader, ids: TopicIds, offsets: dict[TopicPartition, Committed], last: GroupRecord
    ) -> None:
        self.last = last
        self.ever_active = last.ever_active
        self.offsets = offsets
        self.places = {at: translate(reader, ids, at, source) for at, source in offsets.items()}
        self.commits: dict[TopicPartition, Committed] = {}  # by target partition
        remembered = {(topic, row.partition): row for topic, rows in last.topics.items() for row in rows}
        self.rows = {
            at: replace(remembered.get(at, GroupOffset(at[1], 0, SYNCED)), source_offset=source.offset)
            for at, source in offsets.items()
        }

    def translated(self) -> Iterator[tuple[TopicPartition, Committed, Place]]:
        """All that could be translated, whether or not it is to be committed."""
        for at, place in self.places.items():
            if isinstance(place, Place):
                yield at, self.offsets[at], place

    def judge(self, there: dict[TopicPartition, Committed], now_ms: int) -> None:
        """Notes each partition's verdict, by what the target group has, and collects the `commits`."""
        self.ever_active |= any(each.leader_epoch >= 0 for each in there.values())
        for at, source in self.offsets.items():
            place = self.places[at]
            if isinstance(place, Verdict):
                self.note(at, place)
                continue
            committed = there.get(place.at)
            if committed and committed.code:
                self.note(at, Verdict(FAILED, spell_code(committed.code)))
                continue
            verdict = judge(source, place.offset, committed, self.rows[at], not self.ever_active, now_ms)
            self.note(at, verdict)
            if verdict.commit:
                self.commits[place.at] = Committed(place.offset, source.metadata)

    def settle(self, refused: dict[TopicPartition, int], now_ms: int) -> None:
        """Notes what became of the `commits`: codes of those `refused`, by target partition."""
        for at, source, place in self.translated():
            if place.at not in self.commits:
                continue
            if code := refused.get(place.at):
                unknown = Verdict(NO_PARTITION, "the target does not have it")
                self.note(at, unknown if code == _NO_SUCH_PARTITION else Verdict(FAILED, spell_code(code)))
            else:
                self.rows[at] = replace(
                    self.rows[at], written_source=source.offset, written_target=place.offset, written_ms=now_ms
                )

    def note(self, at: TopicPartition, verdict: Verdict) -> None:
        reason = verdict.reason[:REASON_LENGTH_MAX]
        self.rows[at] = replace(self.rows[at], state=verdict.state, reason=reason)

    def active(self) -> GroupRecord:
        """The record of a group that has members over there."""
        self.ever_active = True
        for at in self.rows:
            self.note(at, Verdict(ACTIVE))
        return self._record(ACTIVE, "")

    def record(self) -> GroupRecord:
        """The record of a group whose partitions speak for it, the worst of them first."""
        unwell = [at for at, row in self.rows.items() if row.state != SYNCED]
        if not unwell:
            return self._record(SYNCED, "")
        worst = max(unwell, key=lambda at: WORST_LAST.index(self.rows[at].state))
        more = f" (and {len(unwell) - 1} more)" if len(unwell) > 1 else ""
        row = self.rows[worst]
        return self._record(row.state, f"{worst[0]}-{worst[1]}: {row.reason}{more}")

    def _record(self, state: str, reason: str) -> GroupRecord:
        topics: dict[str, list[GroupOffset]] = {}
        for (topic, _), row in list(self.rows.items())[:PARTITIONS_MAX]:
            topics.setdefault(topic, []).append(row)
        rows = {topic: tuple(rows) for topic, rows in topics.items()}
        return GroupRecord(self.last.target_group, state, reason, self.ever_active, rows, self.last.written_ms)


def without_offsets(last: GroupRecord, verdict: Verdict) -> GroupRecord:
    """The record of a group about which nothing can be done now: what is remembered stays, only the state changes."""
    return replace(last, state=verdict.state, reason=verdict.reason[:REASON_LENGTH_MAX])
