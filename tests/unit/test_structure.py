"""The style of this project, as a test: layers, sizes, and documents that point at things which exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
ARGUMENTS_MAX = 6

# Who may import whom: a folder may use those that stand below it, and its own.
LAYERS = [["cli"], ["control"], ["data", "offsets"], ["state"], ["kafka", "config"], ["_core", "errors", "transforms"]]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}
SIDEWAYS_ALLOWED = {("kafka", "errors"), ("config", "errors")}

PYTHON = sorted(path for top in ("replicator", "tests", "bench") for path in (ROOT / top).rglob("*.py"))
C = sorted((ROOT / "csrc").glob("*.[ch]"))
SOURCES = [*PYTHON, *C, *sorted((ROOT / "replicator").glob("*.py[xid]*")), ROOT / "setup.py"]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "replicator" and parts[1] in DEPTH else None


@pytest.mark.parametrize("path", [p for p in PYTHON if p.is_relative_to(ROOT / "replicator")], ids=name)
def test_dependencies_point_downwards(path):
    folder = path.relative_to(ROOT / "replicator").parts[0].removesuffix(".py")
    if folder not in DEPTH:
        return
    for module in imports(path):
        other = layer(module)
        if other is None or other == folder:
            continue
        below = DEPTH[other] > DEPTH[folder] or (folder, other) in SIDEWAYS_ALLOWED
        assert below, f"{name(path)} imports {module}: {folder} stands above nothing of {other}"


def test_the_product_does_not_import_its_tests():
    for path in PYTHON:
        if path.is_relative_to(ROOT / "replicator"):
            assert not [m for m in imports(path) if m.split(".")[0] in ("tests", "bench")], name(path)


def test_the_native_core_knows_no_python_and_does_no_io():
    banned = re.compile(
        r'#include\s*[<"](Python\.h|sys/socket\.h|netinet/|pthread\.h|time\.h|stdio\.h|unistd\.h|fcntl\.h)'
    )
    for path in C:
        assert not banned.search(path.read_text()), name(path)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) < FILE_LINES_MAX


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_functions_stay_small(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines < FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"
            arguments = [a for a in node.args.posonlyargs + node.args.args if a.arg not in ("self", "cls")]
            count = len(arguments) + len(node.args.kwonlyargs)
            limit = ARGUMENTS_MAX if path.is_relative_to(ROOT / "replicator") else 2 * ARGUMENTS_MAX
            options = any("option" in ast.unparse(d) or "argument" in ast.unparse(d) for d in node.decorator_list)
            assert count <= limit or options, f"{node.name} takes {count} arguments"


@pytest.mark.parametrize("path", C, ids=name)
def test_c_functions_stay_small(path):
    began, head = None, ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.endswith("{") and not line.startswith((" ", "typedef", "enum", "struct", "#", "}")) and "(" in line:
            began, head = number, line
        elif line == "}" and began:
            assert number - began < FUNCTION_LINES_MAX, head
            began = None


DOCUMENTS = ["README.md", "csrc/README.md"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_point_at_what_exists(document):
    """`file:function` and `file` in backticks, relative to the document or to the root of the repository."""
    text = (ROOT / document).read_text()
    pointers = re.findall(r"`([\w./-]+\.(?:pyx|pyi|py|c|h))(?::([\w.]+))?`", text)
    assert len(pointers) >= 5, "a map that names no files is no map"
    for file, function in pointers:
        homes = [ROOT / Path(document).parent / file, ROOT / file]
        found = next((home for home in homes if home.is_file()), None)
        assert found, f"{document} names {file}, which does not exist"
        if function:
            last = function.split(".")[-1]
            assert re.search(rf"\b{re.escape(last)}\b\s*[(=:]", found.read_text()), f"{file} has no {function}"


def test_the_top_level_holds_what_it_should():
    allowed = {"pyproject.toml", "setup.py", "csrc", "replicator", "bench", "tests", "README.md", "LICENSE"}
    made = {"build", "dist"}  # by a build, and not in git
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {each for each in found - allowed - made if not each.endswith(".egg-info")} == set()


def test_no_leftovers():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    for path in SOURCES:
        if path != Path(__file__):
            assert not marks.search(path.read_text()), name(path)
