"""What a peer is asked to do, and what a run of it must be able to tell. The border between rivals and measurements."""

from dataclasses import dataclass
from typing import Protocol


class PeerUnavailable(Exception):
    """A peer cannot run on this machine; the message says why. It is left out of the comparison, visibly."""


@dataclass(frozen=True)
class Job:
    """Copy `topic` from the source to the topic of the same name and partition count, which exists, on the target.

    `source` and `target` are bootstrap addresses. `codec` is what the source's batches are compressed with. With
    `follow` the copy goes on until it is stopped; without, a peer may end when what was there is copied.
    """

    source: str
    target: str
    topic: str
    codec: str
    follow: bool = False


class Run(Protocol):
    """A copy under way."""

    def cpu_seconds(self) -> float:
        """User plus system seconds that the run has cost so far."""

    def rss_bytes(self) -> int:
        """Resident memory of all processes of the peer, now."""

    def failure(self) -> str | None:
        """Why the run has failed; None as long as it has not."""

    def settle(self, deadline: float) -> None:
        """Wait until the peer has done what belongs to a run besides copying: until a one-shot program has exited,
        until a service says that it runs. `deadline` is of time.monotonic(); being late is no error here."""

    def stop(self) -> None:
        """End the run and leave no trace of it but the copy."""
