"""`gmerging models`: the artifacts that are there."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merging.cli.parser import option
from models.errors import ArtifactError
from models.released import released

OPTIONS = (
    option(
        "folders",
        type=Path,
        nargs="*",
        metavar="FOLDER",
        help="also this artifact, or the artifacts in this folder",
    ),
    option("--json", action="store_true", help="print a JSON list, for programs"),
)
RELEASED = "with the package"
_COLUMNS = ("name", "version", "digest", "kind", "takes", "tasks", "labels", "size", "from")


def list_models(arguments: argparse.Namespace) -> None:
    """List the models that come with the package, and those in folders of yours: what can be
    predicted with and served.

    Files are not verified: `gmerging doctor` does that.

    Examples:
        gmerging models
        gmerging models my-models --json
    """
    rows = [about(folder, RELEASED) for folder in released().values()]
    others = (folder for given in arguments.folders for folder in found_in(given))
    rows += [about(folder, str(folder)) for folder in others]
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print_table([_COLUMNS, *(_cells(row) for row in rows)])


def found_in(folder: Path) -> list[Path]:
    """Return the folder if it is an artifact, else the artifacts in it.

    Raises:
        ArtifactError: there are none.
    """
    if (folder / "manifest.json").is_file():
        return [folder]
    found = [path.parent for path in sorted(folder.glob("[!.]*/manifest.json"))]
    if not found:
        raise ArtifactError(f"got {folder} without a manifest.json, expected an artifact's folder")
    return found


def about(folder: Path, origin: str) -> dict[str, Any]:
    """Describe an artifact by its manifest: name, version, digest, kind of network, what it takes,
    labels by task, size on disk, origin and folder.

    Raises:
        ArtifactError: the folder has no valid manifest.
    """
    from models.artifact import read_manifest

    manifest, digest = read_manifest(folder)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "digest": digest,
        "created": manifest.created,
        "kind": manifest.backbone.kind,
        "takes": manifest.input.kind,
        "tasks": {task: list(info.labels) for task, info in manifest.tasks.items()},
        "forests": list(manifest.forests),
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "from": origin,
        "folder": str(folder.absolute()),
    }


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equal length as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _cells(row: dict[str, Any]) -> Sequence[str]:
    labels = sum(map(len, row["tasks"].values()))
    size = f"{row['bytes'] / 1e6:.1f} MB"
    identity = row["name"], row["version"], row["digest"][:12], row["kind"], row["takes"]
    return *identity, str(len(row["tasks"])), str(labels), size, row["from"]
