"""A planned move of consumer groups to the target: nothing skipped, nothing read again, and proof of it.

For each group: wait until it has no members on the source, so that its offsets are final; wait until all of them are
replicated; translate; commit; read back from the target, and look whether the source has stayed as it was. Whatever is
in the way becomes a verdict that says so, and nothing is committed for a partition that cannot be proven.

A consumer that only calls `assign()` belongs to no group as brokers see it: whether it has stopped cannot be seen here.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from replicator.config.models import Link
from replicator.control.group_admin import Committed, GroupAdmin, Listing, TopicPartition, means_active, spell_code
from replicator.control.group_rules import ACTIVE, AHEAD, FAILED, GroupWork, Verdict
from replicator.control.groups import find_topic_ids
from replicator.errors import NetworkError
from replicator.kafka.cluster import Cluster
from replicator.state.reader import StateReader
from replicator.state.records import GroupRecord

POLL_S = 0.5
CATCH_UP_S = 30.0
# Between commit and read-back. A round of the link's own sync may have looked before the group was empty, and commit
# after us; by then it is over, and the next one sees what we saw.
SETTLE_S = 1.0
COMMIT_TRIES = 3

PROVEN = "proven"
READY = "ready"  # of a dry run: it would be committed
WAITING = "not committed"  # nothing is wrong with it, but others of the group are not ready
NOT_CARRIED = "not carried"
CHANGED = "changed on source"

Offsets = dict[TopicPartition, Committed]


@dataclass(frozen=True)
class Proof:
    """One partition of a group. Offsets are of the next record to read; None: not known, or not committed."""

    topic: str
    partition: int
    source_offset: int
    verdict: str
    reason: str = ""
    target_topic: str = ""
    target_offset: int | None = None
    read_back: int | None = None

    @property
    def is_good(self) -> bool:
        return self.verdict in (PROVEN, READY)


@dataclass
class GroupResult:
    """How far a group has come. `problem` is what is in the way of the group as a whole, or empty."""

    group: str
    target_group: str
    problem: str = ""
    proofs: list[Proof] = field(default_factory=list)
    may_pass: bool = False  # the problem may go away by itself

    @property
    def is_good(self) -> bool:
        return not self.problem and bool(self.proofs) and all(proof.is_good for proof in self.proofs)


class _Obstacle(NamedTuple):
    what: str
    may_pass: bool = False


class Cutover:
    """Groups of one link on their way to the target. `progress` gets a line whenever there is something new to say."""

    def __init__(
        self, link: Link, source: Cluster, target: Cluster, reader: StateReader, progress: Callable[[str], None]
    ) -> None:
        self.link = link
        self._source = GroupAdmin(source)
        self._target = GroupAdmin(target)
        self._reader = reader
        self._progress = progress
        self._said: dict[str, str] = {}
        self._is_dry = False

    async def run(self, groups: Iterable[str], timeout_s: float, *, dry_run: bool = False) -> list[GroupResult]:
        """Moves the groups; a dry run looks once and commits nothing. Raises ReplicatorError.

        A group that is not ready in time is left as it is. A broker that does not answer is asked again.
        """
        self._is_dry = dry_run
        deadline = time.monotonic() + (0 if dry_run else timeout_s)
        results = {group: self._result(group, may_pass=True) for group in groups}
        while pending := [group for group, result in results.items() if result.may_pass]:
            is_last = time.monotonic() >= deadline
            try:
                await self._look(pending, results)
            except NetworkError as error:
                for group in pending:
                    results[group].problem = str(error)
            for group in pending:
                self._say(group, results[group].problem)
            if is_last:
                break
            if any(result.may_pass for result in results.values()):
                await asyncio.sleep(POLL_S)
        return list(results.values())

    def _say(self, group: str, words: str) -> None:
        if words and self._said.get(group) != words:
            self._said[group] = words
            self._progress(f"{group}: {words}")

    def _result(self, group: str, problem: str = "", *, may_pass: bool = False) -> GroupResult:
        return GroupResult(group, self.link.groups.target_group(group), problem, may_pass=may_pass)

    async def _look(self, groups: list[str], results: dict[str, GroupResult]) -> None:
        """One look at all groups, and the move of those that are ready. A result is final once it is made here."""
        sources, targets = await self._source.list(), await self._target.list()
        read: dict[str, Offsets] = {}
        for group in groups:
            if obstacle := self._obstacle(group, sources, targets):
                results[group] = self._result(group, obstacle.what, may_pass=obstacle.may_pass)
            else:
                read[group] = dict(sorted((await self._source.committed(group, stable=True)).items()))
        if not read:
            return
        await asyncio.to_thread(self._reader.catch_up, CATCH_UP_S)
        topics = {topic for offsets in read.values() for topic, _ in offsets if self.link.selects(topic)}
        ids = await find_topic_ids(self._source.cluster, self._target.cluster, self._reader, topics)
        for group, offsets in read.items():
            carried = {at: each for at, each in offsets.items() if self.link.selects(at[0])}
            work = GroupWork(self._reader, ids, carried, self._last(group))
            results[group] = await self._move(group, work, offsets)

    def _obstacle(self, group: str, sources: Listing, targets: Listing) -> _Obstacle | None:
        source, target = sources.groups.get(group), targets.groups.get(self.link.groups.target_group(group))
        if source is None and sources.errors:
            return _Obstacle(f"is not listed, but neither are all others: {sources.errors[0]}", True)
        if source is None:
            return _Obstacle(f"there is no such group on {self.link.source}")
        if not source.is_carried:
            return _Obstacle(f"a {source.type} group is more than its committed offsets: it cannot be carried")
        if target and not target.is_carried:
            return _Obstacle(f"{self.link.target} has a {target.type} group by that name")
        if target and target.is_active:
            return _Obstacle(f"active on target: it has members on {self.link.target} ({target.state})")
        if source.is_active:
            return _Obstacle(f"has members on {self.link.source} ({source.state}): stop its consumers", True)
        return None

    def _last(self, group: str) -> GroupRecord:
        target_group = self.link.groups.target_group(group)
        last = self._reader.groups.get(group)
        return last if last and last.target_group == target_group else GroupRecord(target_group, "")

    # ---- one group whose offsets are final ----

    async def _move(self, group: str, work: GroupWork, offsets: Offsets) -> GroupResult:
        result = self._result(group)
        if not offsets:
            result.problem = f"has committed nothing on {self.link.source}"
            return result
        result.proofs = [
            Proof(*at, each.offset, NOT_CARRIED, "the link does not carry this topic")
            for at, each in offsets.items()
            if at not in work.offsets
        ]
        blocked = {at: place for at, place in work.places.items() if isinstance(place, Verdict)}
        if blocked:
            result.problem, result.may_pass = self._spell_blocked(blocked, work), True
            result.proofs += [_proof(work, at, WAITING) for at in work.offsets]
        elif work.offsets:
            await self._commit(result, work)
        result.proofs.sort(key=lambda proof: (proof.topic, proof.partition))
        return result

    def _spell_blocked(self, blocked: dict[TopicPartition, Verdict], work: GroupWork) -> str:
        at, verdict = next(iter(blocked.items()))
        words = f"{len(work.places) - len(blocked):,} of {len(work.places):,} partitions are ready"
        return f"{words}; {at[0]}-{at[1]}: {verdict.reason}"

    async def _commit(self, result: GroupResult, work: GroupWork) -> None:
        """Commits what may be, and proves it; fills in the result's proofs."""
        work.judge(await self._target.committed(result.target_group), 0)
        refusals = (AHEAD, FAILED)
        chosen = {
            at: (place, Committed(place.offset, source.metadata))
            for at, source, place in work.translated()
            if work.rows[at].state not in refusals
        }
        result.proofs += [_proof(work, at, READY) for at in work.offsets if self._is_dry or at not in chosen]
        if self._is_dry or not chosen:
            return
        commits = {place.at: committed for place, committed in chosen.values()}
        codes, back = await self._commit_and_read(result.target_group, commits)
        if any(means_active(code) for code in codes.values()):
            result.problem = f"active on target: it has members on {self.link.target}"
        now = await self._source.committed(result.group, stable=True)
        is_active = await self._is_active_again(result.group)
        for at, (place, committed) in chosen.items():
            found = back.get(place.at)
            verdict = _check(codes.get(place.at, 0), committed, found)
            if verdict.state == PROVEN and (is_active or now.get(at) != work.offsets[at]):
                verdict = Verdict(CHANGED, "the source group has come back to life: stop it, and try again")
            proof = _proof(work, at, verdict.state, verdict.reason)
            result.proofs.append(_with_read_back(proof, found))

    async def _commit_and_read(self, group: str, commits: Offsets) -> tuple[dict[TopicPartition, int], Offsets]:
        """Codes of what was refused, and what the target group has afterwards."""
        for _ in range(COMMIT_TRIES):
            codes = await self._target.commit(group, commits)
            await asyncio.sleep(SETTLE_S)
            back = await self._target.committed(group)
            if codes or all(not _check(0, each, back.get(at)).reason for at, each in commits.items()):
                break
        return codes, back

    async def _is_active_again(self, group: str) -> bool:
        listed = (await self._source.list()).groups.get(group)
        return listed is None or listed.is_active


def _check(code: int, committed: Committed, found: Committed | None) -> Verdict:
    """What the read-back says of a commit that was answered with `code`."""
    if code:
        return Verdict(ACTIVE if means_active(code) else FAILED, spell_code(code))
    if found is None:
        return Verdict(FAILED, "it was committed, but nothing is there")
    if found != committed:
        return Verdict(FAILED, f"{committed.offset} was committed, but somebody changed it since")
    return Verdict(PROVEN)


def _proof(work: GroupWork, at: TopicPartition, verdict: str, reason: str = "") -> Proof:
    """A partition of the group with this verdict, unless the rules have said something worse of it."""
    place, row = work.places[at], work.rows[at]
    offset = work.offsets[at].offset
    if isinstance(place, Verdict):
        return Proof(*at, offset, place.state, place.reason)
    if row.state in (AHEAD, FAILED):
        verdict, reason = row.state, row.reason
    return Proof(*at, offset, verdict, reason, place.topic, place.offset)


def _with_read_back(proof: Proof, found: Committed | None) -> Proof:
    return proof if found is None else Proof(**{**vars(proof), "read_back": found.offset})
