"""The house: imports only go down, between packages and between the rooms of one, never in a
circle; kinds of models are told apart in `families/` alone; lines are short; tests mirror rooms."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "models": {"models"},
    "merging": {"models", "merging"},
    "service": {"models", "service"},
    "gmerging": {"models", "merging", "service", "gmerging"},
}
CODE = ("models", "merging", "service", "gmerging", "benchmarks", "tests", "deploy", "docs_build")
MAX_COLUMNS = 100

FLOORS = {
    "models": (
        ("errors", "files", "ops"),
        ("data", "device", "extras", "meaning", "names", "state_dict", "transport", "validation"),
        ("released", "task"),
        ("domain", "networks"),
        ("experts",),
        ("compiled", "drugs"),
        ("families",),
        ("manifest",),
        ("trial",),
        ("artifact",),
        ("screening",),
    ),
    "merging": (
        ("config",),
        ("data", "meanings", "targets"),
        ("mergers",),
        ("family",),
        ("families", "training"),
        ("run",),
        ("imports",),
        ("planning",),
        ("drawing",),
        ("studies",),
        ("release",),
        ("cli",),
    ),
    "service": (
        ("explanation_schemas",),
        ("rates", "schemas", "settings", "supervisor"),
        ("security", "sockets", "telemetry"),
        ("core",),
        ("formats",),
        ("bulk",),
        ("shards",),
        ("services",),
        ("http",),
        ("app",),
        ("__main__",),
    ),
    "gmerging": (("diagnosis", "explanations", "own_models"), ("model",), ("cli",), ("__main__",)),
}
"""The rooms of a package (a folder, or a file of its own), the ground floor first. A room imports
from itself and from lower floors."""

KINDS = {
    "MolGraph",
    "BondGraph",
    "FeatureGraph",
    "Atoms",
    "Structure",
    "GraphBatch",
    "AtomsBatch",
    "MoleculeInput",
    "BondInput",
    "FeatureInput",
    "AtomsInput",
    "BackboneConfig",
    "DmpnnConfig",
    "GraphNetworkConfig",
    "ForceFieldConfig",
    "ChgnetConfig",
    "Backbone",
    "GraphNetwork",
    "ForceField",
    "Chgnet",
    "MergedForceField",
    "UnifiedModel",
    "CompiledModel",
    "DmpnnModel",
}
"""Kinds of inputs, of networks and of models."""

KIND_TESTS = {"isinstance", "issubclass", "type"}

RIDDLES = {"each", "part"}
"""Names that say nothing of what they hold."""


@cache
def modules() -> dict[str, Path]:
    """The modules of the packages, by their dotted names."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = [str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in files]
    return dict(zip((name.removesuffix(".__init__") for name in names), files, strict=True))


def code() -> Iterator[Path]:
    """Every Python file of the project."""
    for folder in CODE:
        yield from (ROOT / folder).rglob("*.py")


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def imports(path: Path) -> set[str]:
    """What a file imports: modules, and names in them."""
    found = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_packages_import_only_what_lies_below() -> None:
    assert len(modules()) > 100
    for name, path in modules().items():
        package = name.split(".")[0]
        other = PACKAGES.keys() - PACKAGES[package]
        upward = {module for module in imports(path) if module.split(".")[0] in other}
        assert not upward, f"{name} imports {upward}"


def test_no_import_circle() -> None:
    known = modules()
    below = {
        name: {module for module in imports(path) if module in known and module != name}
        for name, path in known.items()
    }
    while free := [name for name, rest in below.items() if not rest]:
        below = {name: rest - set(free) for name, rest in below.items() if name not in free}
    assert not below, f"in a circle or above one: {sorted(below)}"


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_only_what_lies_below(package: str) -> None:
    floor_of = {room: k for k, rooms in enumerate(FLOORS[package]) for room in rooms}
    upward = []
    for name, path in modules().items():
        if not name.startswith(f"{package}."):
            continue
        room = name.split(".")[1]
        assert room in floor_of, f"{name}: on no floor"
        for module in imports(path) & modules().keys():
            if not module.startswith(f"{package}."):
                continue
            other = module.split(".")[1]
            if other != room and floor_of[other] >= floor_of[room]:
                upward.append(f"{name} -> {module}")
    assert not upward


def test_every_room_has_its_floor_and_every_floor_its_rooms() -> None:
    for package, floors in FLOORS.items():
        rooms = {name.split(".")[1] for name in modules() if name.startswith(f"{package}.")}
        assert rooms == {room for floor in floors for room in floor}, package


def test_core_knows_no_web_and_no_optimiser() -> None:
    for name, path in modules().items():
        if name.startswith("models"):
            roots = {module.split(".")[0] for module in imports(path)}
            assert not roots & {"fastapi", "uvicorn", "argparse", "sklearn", "yaml"}, name
            assert "torch.optim" not in path.read_text(), name


def test_only_families_ask_what_kind_a_model_is() -> None:
    found = []
    for path in code():
        if path.is_relative_to(ROOT / "tests") or "families" in path.parts:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in KIND_TESTS:
                names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                found += [f"{path}:{node.lineno}"] if names & KINDS else []
            elif isinstance(node, ast.MatchClass) and ast.unparse(node.cls) in KINDS:
                found.append(f"{path}:{node.cls.lineno}")
    assert not found, "ask the family instead (models/families/base.py, merging/family.py)"


def test_only_the_tables_of_families_list_shapes_and_schemas() -> None:
    """A union of them anywhere else would have to grow with each new kind."""
    listed = {name for name in KINDS if name.endswith(("Config", "Input"))}
    for path in modules().values():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
                names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                assert not names & listed, f"{path}:{node.lineno}"


def test_lines_are_short() -> None:
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in code()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > MAX_COLUMNS and not re.search(r"# (type: ignore|noqa)", line)
    ]
    assert not wide


def test_names_say_what_they_hold() -> None:
    riddles = []
    for path in code():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            else:
                continue
            if name in RIDDLES:
                riddles.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not riddles


def test_tests_mirror_rooms() -> None:
    """A folder of tests is named after the package or room that it tests, and so are most of its
    files: what tests several modules of a room is named after what they do together."""
    for folder in {path.parent for path in (ROOT / "tests").rglob("test_*.py")}:
        inside = folder.relative_to(ROOT / "tests")
        if inside.parts and inside.parts[0] in PACKAGES:
            assert (ROOT / inside).is_dir(), f"tests/{inside}: no room of this name"
