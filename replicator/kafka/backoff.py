"""Waiting longer after each failure, and never in step with the others who failed at the same moment."""

import random


class Backoff:
    """Delays that double from `first_ms` to `limit_ms`, each spread by +-20 % (Kafka's own clients: KIP-580)."""

    def __init__(self, first_ms: float = 100, limit_ms: float = 5_000) -> None:
        self.first_ms = first_ms
        self.limit_ms = limit_ms
        self.failures = 0

    def next_s(self) -> float:
        """The next delay, in seconds."""
        delay_ms = min(self.first_ms * 2.0 ** min(self.failures, 32), self.limit_ms)
        self.failures += 1
        return delay_ms * random.uniform(0.8, 1.2) / 1000

    def reset(self) -> None:
        self.failures = 0
