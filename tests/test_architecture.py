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


# What a kind of input or network is known by. Who has to ask is a family.
KINDS = {
    "MolGraph",
    "FeatureGraph",
    "Atoms",
    "Structure",
    "GraphBatch",
    "AtomsBatch",
    "MoleculeInput",
    "FeatureInput",
    "AtomsInput",
    "BackboneConfig",
    "GraphNetworkConfig",
    "ForceFieldConfig",
    "Backbone",
    "GraphNetwork",
    "ForceField",
    "MergedForceField",
    "UnifiedModel",
    "CompiledModel",
}


def test_only_families_ask_what_kind_a_model_is() -> None:
    found = []
    for package in ("models", "service", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "families" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "type"):
                    names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                    found += [f"{path}:{node.lineno}"] if names & KINDS else []
                elif isinstance(node, ast.MatchClass) and ast.unparse(node.cls) in KINDS:
                    found.append(f"{path}:{node.cls.lineno}")
    assert not found, "ask the family instead (models/families/base.py)"


def test_only_the_table_of_families_lists_shapes_and_schemas() -> None:
    """A union of them anywhere else would have to grow with each new kind."""
    shapes = {"BackboneConfig", "GraphNetworkConfig", "ForceFieldConfig"}
    schemas = {"MoleculeInput", "FeatureInput", "AtomsInput"}
    for package in ("models", "service"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
                    names = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                    assert not names & (shapes | schemas), f"{path}:{node.lineno}"
