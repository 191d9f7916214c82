"""The floors of docs/architecture.md, held by walking the imports, and the start-up that they buy."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import repro

PACKAGE = Path(repro.__file__).parent
# Low to high; rooms of one floor do not know each other.
FLOORS = (
    ("errors",),
    ("files", "exclusive", "ray_cluster"),
    ("spec", "results"),
    ("models", "checkpoints"),
    ("measure", "coreml", "accuracy"),
    ("compare",),
    ("render",),
    ("progress",),
    ("pipeline",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = ("spec", "results", "compare", "render")
HEAVY = ("torch", "timm", "pandas", "coremltools", "torchvision", "fvcore")
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__")


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}:{node.lineno}: a relative import hides where it goes")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_its_room_and_from_below(path):
    own = room(path)
    assert own in LEVEL, f"{own} has no floor: add it here and to docs/architecture.md"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "repro" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        other = parts[1]
        assert other == own or LEVEL[other] < LEVEL[own], f"{path} imports {name}"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in LIGHT], ids=lambda path: path.name)
def test_light_rooms_import_nothing_heavy_when_they_are_loaded(path):
    assert not {name.split(".")[0] for name in imports(path, top_only=True)} & set(HEAVY)


def test_torch_is_absent_after_a_cached_table(tmp_path):
    program = (
        "import sys, json\n"
        "from repro.cli import main\n"
        "try:\n"
        "    main(['table', '18', '--no-measure'])\n"
        "finally:\n"
        f"    json.dump([name for name in {HEAVY!r} if name in sys.modules], open('loaded.json', 'w'))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "iFormer-M" in done.stdout
    assert json.loads((tmp_path / "loaded.json").read_text()) == []
