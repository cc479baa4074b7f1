"""The files a measurement leaves: figures with everything that is needed to judge or repeat them, and a picture."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import Peer

FOLDER = Path(__file__).with_name("results")


@dataclass(frozen=True)
class ResultFiles:
    """Where one measurement goes: `<folder>/<date>-<name>.json` and `.png`."""

    folder: Path
    name: str
    machine: Mapping[str, Any]

    def write(self, found: Mapping[str, Any], clusters: Mapping[str, Any], peers: Sequence[Peer]) -> Path:
        """Write every figure, and every setting of every peer. Replaces a result of the same day and name."""
        settings = {peer.name: {"what": peer.what, "settings": peer.settings} for peer in peers}
        result = {
            "machine": self.machine,
            "clusters": clusters,
            "peers": settings,
            **found,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(".json")
        path.write_text(json.dumps(result, indent=1) + "\n")
        return path

    def draw(self, chart: Callable[[Path, Sequence[Any], str], None], rows: Sequence[Any], about: str) -> Path:
        """Draw the rows, with the machine and the commit below."""
        path = self._path(".png")
        commit = (self.machine["commit"] or "no commit")[:10]
        where = f"{self.machine['cores']} cores of {self.machine['cpu']}, Kafka {self.machine['kafka']}"
        chart(path, rows, f"{about} · {where} · {self._date}, {commit}")
        return path

    @property
    def _date(self) -> str:
        return str(self.machine["date"])[:10]

    def _path(self, suffix: str) -> Path:
        return self.folder / f"{self._date}-{self.name}{suffix}"
