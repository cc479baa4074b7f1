"""Plug-ins as if they were installed: a folder with a module and its dist-info, to be put on sys.path."""

import importlib
from pathlib import Path
from textwrap import dedent

import pytest

from replicator.config import plug_ins


class Installer:
    """Distributions of a test. They are gone when it ends."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.syspath_prepend(str(folder))

    def add(self, module: str, source: str, version: str = "1.0", **entry_points: str) -> None:
        """A module, and for each name of an entry point (`_` for `-`) what it is in there."""
        self._folder.joinpath(f"{module}.py").write_text(dedent(source))
        info = self._folder / f"{module}-{version}.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
        rows = [f"{name.replace('_', '-')} = {module}:{what}" for name, what in entry_points.items()]
        info.joinpath("entry_points.txt").write_text("\n".join(["[replicator.transforms]", *rows]) + "\n")
        forget()


def forget() -> None:
    """What was found is looked for anew."""
    importlib.invalidate_caches()
    plug_ins._find.cache_clear()
