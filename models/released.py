"""Artifacts that come with the package, by name."""

from pathlib import Path

from models.errors import ArtifactError
from models.validation import one_of

RELEASES = Path(__file__).parent / "releases"
DEFAULT_RELEASE = "admet"


def released() -> dict[str, Path]:
    """Return the folders of the artifacts that come with the package, by name."""
    return {path.parent.name: path.parent for path in sorted(RELEASES.glob("*/manifest.json"))}


def find_artifact(name: str | Path) -> Path:
    """Return the folder of an artifact.

    Args:
        name: a name in `released()`, or a folder. Such a name is always the released artifact,
            whatever lies in the current folder; `./name` is the folder.

    Raises:
        ArtifactError: neither of them. The message has the nearest released name.
    """
    known = released()
    if str(name) in known:
        return known[str(name)]
    if not Path(name).is_dir():
        names = one_of(str(name), tuple(known))
        raise ArtifactError(f"got {str(name)!a}, expected a folder, or {names}")
    return Path(name)
