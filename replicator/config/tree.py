"""YAML text as plain data that remembers its place in the file, so that complaints can point there.

Only the harmless part of YAML is read: mappings, lists, texts, numbers, true, false, null (YAML 1.2's core
rules, so `no` is a text and Norway a country). Anchors, aliases and tags are refused: a link file needs
none of them, and a small file could unfold into gigabytes.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from yaml.composer import Composer
from yaml.error import Mark, MarkedYAMLError, YAMLError
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from replicator.errors import ConfigError

DEPTH_MAX = 16

Path = tuple[str | int, ...]
Place = tuple[int, int]  # line and column, from 1


class Tree(NamedTuple):
    """A document. `values` and `keys` say where the value at a path starts, and where its key does."""

    data: Any
    file: str = ""
    values: dict[Path, Place] = {}
    keys: dict[Path, Place] = {}

    def error(self, path: Path, what: str, *, hint: str = "", at_key: bool = False) -> ConfigError:
        """A ConfigError that points at the value (or key) at this path, or at what it would be part of."""
        places = self.keys if at_key else self.values
        parents = (path[:length] for length in range(len(path), -1, -1))
        line, column = next((places[parent] for parent in parents if parent in places), (0, 0))
        return ConfigError(what, self.file, line, column, hint=hint)

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Whatever ConfigError is raised inside is about the value at this path."""
        try:
            yield
        except ConfigError as error:
            raise self.error(path, error.what, hint=error.hint) from error


def read_tree(text: str, file: str = "", verbatim: tuple[str, ...] = ()) -> Tree:
    """Parse a YAML text. Below the keys in `verbatim`, scalars stay the text that was written.

    Raises ConfigError for what is not YAML, not the harmless part of it, or has a key twice.
    """
    try:
        root = _Loader(text).get_single_node()
    except MarkedYAMLError as error:
        line, column = _place(error.problem_mark) if error.problem_mark else (0, 0)
        raise ConfigError(error.problem or str(error), file, line, column) from None
    except YAMLError as error:
        raise ConfigError(str(error), file) from None
    except (ValueError, OverflowError) as error:  # PyYAML does not check the numbers in \U escapes and %YAML
        raise ConfigError(f"not YAML: {error}", file) from None
    tree = Tree({}, file, {}, {})
    return tree._replace(data=_plain(tree, root, (), verbatim)) if root else tree


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML up to its node tree. Its constructors, which could make objects, are not even there."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, AliasEvent) or event.anchor is not None:
            raise MarkedYAMLError(problem="anchors and aliases are not supported", problem_mark=mark)
        if event.tag is not None:
            raise MarkedYAMLError(problem="tags are not supported", problem_mark=mark)
        if self._depth == DEPTH_MAX:
            raise MarkedYAMLError(problem=f"nested deeper than {DEPTH_MAX}", problem_mark=mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


# How an unquoted scalar is understood: what it looks like, its value. Longer numbers than these stay text.
_SCALARS: list[tuple[re.Pattern[str], Callable[[str], Any]]] = [
    (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]{1,18}"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]{1,3})?"), float),
]


def _plain(tree: Tree, node: Node, path: Path, verbatim: tuple[str, ...]) -> Any:
    """The node's value; on the way, every place is noted down."""
    tree.values[path] = _place(node.start_mark)
    match node:
        case MappingNode():
            return {key: _plain(tree, value, (*path, key), verbatim) for key, value in _entries(tree, node, path)}
        case SequenceNode():
            return [_plain(tree, item, (*path, index), verbatim) for index, item in enumerate(node.value)]
        case ScalarNode(style=None) if not any(step in verbatim for step in path):
            return _scalar(_text(tree, node))
    return _text(tree, node)


def _text(tree: Tree, node: Node) -> str:
    """A scalar as it was written. An escape can spell half a character, which no encoding takes afterwards."""
    try:
        node.value.encode()
    except UnicodeEncodeError:
        raise ConfigError("half a character (a surrogate)", tree.file, *_place(node.start_mark)) from None
    return str(node.value)


def _entries(tree: Tree, node: MappingNode, path: Path) -> Iterator[tuple[str, Node]]:
    for key, value in node.value:
        place = _place(key.start_mark)
        if not isinstance(key, ScalarNode):
            raise ConfigError("a key must be a plain text", tree.file, *place)
        if (*path, key.value) in tree.keys:
            line = tree.keys[*path, key.value][0]
            raise ConfigError(f"`{key.value}` is given twice", tree.file, *place, hint=f"first on line {line}")
        tree.keys[*path, key.value] = place
        yield _text(tree, key), value


def _scalar(text: str) -> Any:
    return next((value(text) for shape, value in _SCALARS if shape.fullmatch(text)), text)


def _place(mark: Mark) -> Place:
    return mark.line + 1, mark.column + 1
