"""Models that somebody brought, from Python: read them, merge them into an artifact."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merging.imports.brought import Brought
from merging.imports.config import ModelSource, make_import_config
from merging.imports.formats import format_of
from merging.imports.importing import Imported, import_models


def read_model(path: str | Path, *, labels: Sequence[str] | None = None, **options: Any) -> Brought:
    """Read a model that was trained elsewhere. Nothing in its files is executed.

    Args:
        path: a file of chemprop 2 (`.pt`, `.ckpt`), the folder of a run, or a fine-tuned network
            in the layout of Hu et al. 2020 (GraphMVP, Mole-BERT, GraphCL, JOAO).
        labels: names of its outputs, for files that do not say them.
        options: `target` for files that do not say it, and `layers` for linear layers of Hu et
            al.'s layout (`merging.imports.config.ImportConfig`).

    Returns:
        The model: its `labels`, `target`, `shape`, `files` with their SHA-256, and `notes` on what
        was assumed.

    Raises:
        CheckpointError: it cannot be read, or is of no known format.
        ConfigError: an option is unknown, or none of this format.
    """
    own = {key: options.pop(key) for key in ("target",) if key in options}
    source = {"path": str(path), "labels": labels, **own}
    config = make_import_config({"models": {"model": source}, **options}, "read_model")
    return format_of(config).models(config)["model"]


def merge(
    models: Mapping[str, str | Path | Mapping[str, Any] | ModelSource],
    output: str | Path,
    *,
    replace: bool = False,
    work: str | Path = "work",
    **options: Any,
) -> Imported:
    """Merge models that were fine-tuned elsewhere into one artifact, as `gmerging import-models`
    does. No labels are needed.

    Args:
        models: by task a path, or the fields of a `ModelSource` (`path`, `labels`, `target`,
            `units`, `about`).
        output: the artifact's folder.
        replace: replace an artifact of another name or of other tasks too.
        work: folder from which a stopped training resumes.
        options: fields of `merging.imports.config.ImportConfig`: `base`, `method` (`separate`,
            `residual`, `adapters`, `one-pass`), `rank`, `max_difference`, `molecules`, `epochs`,
            `reading`, `layers`, `seed`, and `release` (`{"name": ..., "version": ...}`).

    Returns:
        The finished import: its `manifest`, `rank`, `notes`, and by task the `difference` from the
        own models in standard deviations of their predictions.

    Raises:
        CheckpointError: a model cannot be read.
        ConfigError: an option is unknown, or the models do not fit together.
        DataError: no molecule of the file can be read.
        ArtifactError: the artifact may not be written there.
    """
    sources = {
        task: str(source) if isinstance(source, str | Path) else source
        for task, source in models.items()
    }
    config = make_import_config({"models": sources, **_plain(options)}, "merge")
    return import_models(config, Path(output), Path(work), replace)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Paths as text, as a YAML file has them."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
