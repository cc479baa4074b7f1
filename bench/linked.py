"""What `replicator copy --no-verify` does, of a link file with options that its command line has not.

    python -m bench.linked FILE

Copies what there is, and exits with 0 when all of it is on the target.
"""

import asyncio
import sys
import time
from pathlib import Path

from replicator.cli.copy import CopyJob
from replicator.cli.progress import showing_progress
from replicator.cli.results import GOOD
from replicator.cli.session import watch_signals
from replicator.config.load import load


async def _copy(file: Path) -> str:
    """How it came out."""
    with watch_signals() as session:
        async with session.supervised(load(file), "now") as supervisor:
            job = CopyJob(supervisor, time.monotonic())
            with showing_progress() as progress:
                await session.until(job.copy(progress))
    return str(job.results(interrupted=False).outcome)


if __name__ == "__main__":
    outcome = asyncio.run(_copy(Path(sys.argv[1])))
    sys.exit(None if outcome in GOOD else outcome)
