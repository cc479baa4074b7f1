"""`python -m tests.fault.chaos kill|zombie|expiry|ambiguous|resume|mm2`: long runs in which everything dies.

Each run prints its seed, which can be given again, and ends with a table; the exit code is 1 when we have lost,
doubled, moved, or wrongly mapped anything. Short forms of all but the last are in test_chaos.py.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from tests.fault.chaos_ambiguous import Ambiguous, ambiguous
from tests.fault.chaos_expiry import CASES, Expiry, expiry
from tests.fault.chaos_kill import Kill, kill
from tests.fault.chaos_resume import BOUND_S, Resume, resume
from tests.fault.chaos_verdict import Outcome, show
from tests.fault.chaos_zombie import Zombie, zombie
from tests.fault.scene import Pair
from tests.harness.kafka import NEWEST_3, NEWEST_4, KafkaCluster

VERSIONS = {"3": NEWEST_3, "4": NEWEST_4}

_seed = click.option("--seed", default=1, show_default=True)
_holes = click.option("--holes", is_flag=True, help="Control batches all over the source's log.")
_version = click.Choice(list(VERSIONS))
_source = click.option("--source", default="4", type=_version, show_default=True, help="Its Kafka.")
_target = click.option("--target", default="4", type=_version, show_default=True, help="Its Kafka.")


@click.group()
def main() -> None:
    """Long runs in which everything dies."""


def _end(outcomes: list[Outcome]) -> None:
    show(outcomes)
    sys.exit(0 if all(outcome.verdict.clean for outcome in outcomes) else 1)


@contextmanager
def _pair(source: str, target: str) -> Iterator[Pair]:
    with (
        KafkaCluster(VERSIONS[source], proxied=True) as left,
        KafkaCluster(VERSIONS[target], proxied=True) as right,
    ):
        yield Pair(left, right)


@main.command("kill")
@_seed
@click.option("--kills", default=40, show_default=True)
@click.option("--records", default=2_000_000, show_default=True)
@click.option("--partitions", default=12, show_default=True)
@click.option("--workers", default=[1, 3], multiple=True, show_default=True, help="A run each.")
@_holes
@_source
@_target
def _kill(workers: tuple[int, ...], source: str, target: str, **options: int) -> None:
    """kill -9 of workers, supervisors and brokers."""
    versions = (VERSIONS[source], VERSIONS[target])
    _end([kill(Kill(workers=count, versions=versions, **options)) for count in workers])  # type: ignore[arg-type]


@main.command("zombie")
@_seed
@click.option("--repeats", default=20, show_default=True)
@_source
@_target
def _zombie(source: str, target: str, **options: int) -> None:
    """Workers frozen while others take over."""
    with _pair(source, target) as pair:
        outcome = zombie(Zombie(**options), pair)
    _end([outcome])


@main.command("expiry")
@_seed
@click.option("--kills", default=20, show_default=True)
@click.option("--case", "cases", default=list(CASES), multiple=True, type=click.Choice(list(CASES)), help="A run each.")
@_holes
def _expiry(cases: tuple[str, ...], **options: int) -> None:
    """Targets that forget who wrote, or put in their own times."""
    _end([expiry(Expiry(case=case, **options)) for case in cases])  # type: ignore[arg-type]


@main.command("ambiguous")
@_seed
@click.option("--batches", default=100_000, show_default=True)
@click.option("--partitions", default=48, show_default=True)
@_source
@_target
def _ambiguous(source: str, target: str, **options: int) -> None:
    """Every seventh answer to a Produce is lost."""
    with _pair(source, target) as pair:
        outcome = ambiguous(Ambiguous(**options), pair)
    _end([outcome])


@main.command("resume")
@_seed
@click.option("--records", default=[10_000, 2_000_000], multiple=True, show_default=True, help="A run each.")
@click.option("--repeats", default=4, show_default=True)
@_source
@_target
def _resume(source: str, target: str, **options: int) -> None:
    """How soon a lane goes on after a crash."""
    with _pair(source, target) as pair:
        outcomes = resume(Resume(**options), pair)  # type: ignore[arg-type]
    show(outcomes)
    too_slow = any(outcome.faults["slowest_s"] > BOUND_S for outcome in outcomes)
    sys.exit(1 if too_slow or not all(outcome.verdict.clean for outcome in outcomes) else 0)


@main.command("mm2")
@_seed
@click.option("--records", default=2_000_000, show_default=True)
@click.option("--partitions", default=12, show_default=True)
def _mm2(**options: int) -> None:
    """One kill in the middle: ours and MirrorMaker 2."""
    from tests.fault.chaos_mm2 import Mm2, mm2  # of the `bench` extra

    outcomes = mm2(Mm2(**options))
    show(outcomes)
    sys.exit(0 if outcomes[0].verdict.clean else 1)


if __name__ == "__main__":
    main()
