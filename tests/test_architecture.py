"""The house: imports only go down, and never in a circle."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "models": {"models"},
    "merging": {"models", "merging"},
    "service": {"models", "service"},
}


def modules() -> dict[str, Path]:
    files = [path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return {
        str(path.relative_to(ROOT).with_suffix(""))
        .replace("/", ".")
        .removesuffix(".__init__"): path
        for path in files
    }


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_packages_import_only_what_lies_below() -> None:
    assert len(modules()) > 30
    for name, path in modules().items():
        package = name.split(".")[0]
        upward = {
            each
            for each in imports(path)
            if each.split(".")[0] in MAY_IMPORT.keys() - MAY_IMPORT[package]
        }
        assert not upward, f"{name} imports {upward}"


def test_no_import_circle() -> None:
    known = modules()
    below = {
        name: {each for each in imports(path) if each in known and each != name}
        for name, path in known.items()
    }
    while free := [name for name, rest in below.items() if not rest]:
        below = {name: rest - set(free) for name, rest in below.items() if name not in free}
    assert not below, f"in a circle or above one: {sorted(below)}"


def test_core_knows_no_web_and_no_optimiser() -> None:
    for name, path in modules().items():
        if name.startswith("models"):
            roots = {each.split(".")[0] for each in imports(path)}
            assert not roots & {"fastapi", "uvicorn", "argparse", "sklearn", "yaml"}, name
            assert "torch.optim" not in path.read_text(), name
