"""Finding the plug-ins that a link names: installed distributions' entry points, and what these say of themselves."""

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from replicator.config.models import Link
from replicator.errors import ConfigError
from replicator.transforms import ENTRY_POINT_GROUP, Factory, Part, Place, Transform, declared

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

WORDS_MAX = 500


class PlugIn(Struct, frozen=True):
    """One that a lane's records go through. Plain values, so it travels to a worker."""

    name: str
    options: dict[str, Any]
    version: str
    changes: tuple[Part, ...]
    drops: bool


class _Found(NamedTuple):
    factory: Factory
    changes: tuple[Part, ...]
    drops: bool
    version: str


def plug_ins(link: Link, topic: str) -> tuple[PlugIn, ...]:
    """Those for a topic of the source, in their order. Raises ConfigError for one that is not there or fails."""
    rows = [(row, _of_link(link.name, row.name)) for row in link.transforms if row.applies_to(topic)]
    return tuple(PlugIn(row.name, row.options, found.version, found.changes, found.drops) for row, found in rows)


def check_plug_ins(link: Link) -> None:
    """All of a link can be imported. Raises ConfigError."""
    for row in link.transforms:
        _of_link(link.name, row.name)


def try_plug_ins(link: Link, topic: str) -> None:
    """Those for a topic take their options. Raises ConfigError."""
    place = Place(link.name, link.source, link.target, topic, link.target_topic(topic), 0)
    for plug_in in plug_ins(link, topic):
        make(plug_in, place)


def make(plug_in: PlugIn, place: Place) -> Transform:
    """The Transform for one partition. Raises ConfigError."""
    found = _of_link(place.link, plug_in.name)
    try:
        made = found.factory(plug_in.options, place)
    except (Exception, SystemExit) as error:
        what = f"link {place.link}: transform `{plug_in.name}` cannot be made for topic {place.topic}"
        raise ConfigError(f"{what}: {spell(error)}", hint="its `options`, or the plug-in itself") from error
    if not callable(made):
        what = f"link {place.link}: transform `{plug_in.name}` makes a {type(made).__name__}, which cannot be called"
        raise ConfigError(what)
    return made


def spell(error: BaseException) -> str:
    """An exception as one line, whatever it is."""
    try:
        words = " ".join(str(error).split())
    except Exception:
        words = ""
    return f"{type(error).__name__}: {words}"[:WORDS_MAX] if words else type(error).__name__


def _of_link(link: str, name: str) -> _Found:
    try:
        return _find(name)
    except ConfigError as error:
        raise ConfigError(f"link {link}: {error.what}", hint=error.hint) from error


@cache
def _find(name: str) -> _Found:
    from importlib.metadata import entry_points  # takes its time, and most links name none

    points = entry_points(group=ENTRY_POINT_GROUP)
    named = {point.value: point for point in points.select(name=name)}
    if not named:
        others = ", ".join(sorted(points.names)) or "there is none"
        hint = f"installed: {others}; it must be installed on every machine that runs the link"
        raise ConfigError(f"no transform `{name}` is installed", hint=hint)
    if len(named) > 1:
        raise ConfigError(f"several transforms `{name}` are installed: {', '.join(sorted(named))}")
    (point,) = named.values()
    return _loaded(name, point)


def _loaded(name: str, point: "EntryPoint") -> _Found:
    try:
        factory = point.load()
        changes, drops, version = declared(factory)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"transform `{name}` ({point.value}) cannot be loaded: {spell(error)}") from error
    if not callable(factory):
        raise ConfigError(f"transform `{name}` ({point.value}) is a {type(factory).__name__}, which cannot be called")
    return _Found(factory, changes, drops, version or (point.dist.version if point.dist else ""))
