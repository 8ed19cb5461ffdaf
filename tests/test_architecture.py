"""The floors: a module imports only what lies below it, and nothing imports in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "plugins" / "firstlight"

FLOORS = {
    "losses": 1,
    "layers": 1,
    "mixing": 1,
    "sampling": 1,
    "regularizers": 1,
    "initializers": 1,
    "optimizers": 1,
    "schedules": 1,
    "measures": 1,
    "checks": 2,
    "modules": 3,
    "preflight": 3,
    "recovery": 3,
    "tracking": 3,
    "callbacks": 4,
    "cli": 5,
}
# callbacks read what they need from below, and never from modules: they must work on anybody's LightningModule
FORBIDDEN = {("callbacks", "modules")}
TORCH_ONLY = [room for room, floor in FLOORS.items() if floor <= 2]
# What Lightning calls from outside: it lies above all floors, and imports nothing before it is asked to.
ENTRY = ROOT / "_autoload.py"
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ENTRY)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def rooms_imported(path: Path) -> set[str]:
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("firstlight.")}
    return {name for name in ours if (ROOT / name).is_dir()}


def test_every_room_has_a_floor():
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below(path):
    room = room_of(path)
    for other in rooms_imported(path) - {room}:
        assert room, f"{path.name} lies under all rooms and imports {other}"
        assert FLOORS[other] < FLOORS[room], f"{room} (F{FLOORS[room]}) imports {other} (F{FLOORS[other]})"
        assert (room, other) not in FORBIDDEN


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_other_rooms_are_entered_by_their_door_or_by_what_is_documented(path):
    """A private file of another room is nobody's business, but for the floor of a loss, which the probe needs."""
    allowed = {"firstlight.losses._floor"}
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "firstlight" and len(parts) > 2 and parts[2].startswith("_") and parts[1] != room_of(path):
            assert ".".join(parts[:3]) in allowed, f"{path.name} imports {name}"


def test_the_entry_imports_the_standard_library_alone_until_it_is_asked():
    top = [
        node
        for node in ast.parse(ENTRY.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {
        name
        for node in top
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert names <= sys.stdlib_module_names


@pytest.mark.parametrize("room", TORCH_ONLY)
def test_lower_floors_need_torch_only(room):
    code = f"import firstlight.{room}, sys; print([m for m in ('lightning', 'torchmetrics') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert shown.stdout.strip() == "[]"


def test_importing_the_package_imports_nothing_and_is_quick():
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter(); import firstlight; "
        "print(time.perf_counter() - start, sorted(m for m in set(sys.modules) - before if m != 'firstlight'))"
    )
    took = []
    for _ in range(3):  # on a busy machine one of three has to be undisturbed
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment()
        )
        seconds, modules = shown.stdout.split(" ", 1)
        assert modules.strip() == "[]"
        took.append(float(seconds))
    assert min(took) < 0.05


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT.parent)}


def test_no_import_cycle():
    graph = {}
    for path in FILES:
        name = ".".join(("firstlight", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        graph[name] = {other for other in imports(path) if other.startswith("firstlight.")} - {name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name in done or name not in graph:
            return
        for other in graph[name]:
            # a file inside a room may import its neighbours; the room's own door leads to all of them
            if not name.startswith(other + "."):
                visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())
