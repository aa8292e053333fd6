"""`gmerging import-models`: models that somebody brought become one artifact."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merging.config.base import fingerprint
from merging.data.files import sha256
from merging.imports.brought import Base, Brought, Merged
from merging.imports.check import check_models, require_related
from merging.imports.config import ImportConfig, Method, ModelSource
from merging.imports.formats import format_of, require
from merging.run.scores import environment
from models.artifact import check_output, save_artifact
from models.errors import ConfigError, DataError
from models.experts.router import RouterConfig
from models.manifest import Manifest, make_manifest
from models.task import TaskInfo


@dataclass(frozen=True)
class Imported:
    """A finished import.

    Attributes:
        manifest: of the artifact.
        rank: of the corrections.
        difference: by task; empty where no molecules were given.
        notes: sentences for the user: what was assumed, and warnings.
    """

    manifest: Manifest
    rank: int
    difference: dict[str, float]
    notes: tuple[str, ...]


def import_models(
    config: ImportConfig, folder: Path, work: Path, replace_other: bool = False
) -> Imported:
    """Read models, merge them by the configuration's method, and write the artifact.

    Args:
        config: the request; it is also written beside the folder, as `<folder>.yaml`.
        folder: of the artifact.
        work: folder of the states from which a stopped training resumes; one in it by request.
        replace_other: whether an artifact of another name or other tasks is replaced.

    Raises:
        CheckpointError: a model cannot be read.
        ConfigError: the models do not fit together, their format has no such method or option, or
            the difference cannot be reached.
        DataError: no molecule of the file can be read.
        ArtifactError: the artifact may not be written there.
    """
    release, chosen = config.release, format_of(config)
    require(chosen, config)
    check_output(folder, release.name, release.version, tuple(config.models), replace_other)
    models, base = chosen.models(config), chosen.base(config)
    notes = [f"{task}: {note}" for task, found in models.items() for note in found.notes]
    schema = chosen.schema(config, models)
    infos = {task: _info(task, config.models[task], model) for task, model in models.items()}
    if config.method != "separate":
        notes += require_related(check_models(models, base))
    elif base is not None:
        notes.append("base: not used, since separate models are not merged")
    if config.method == "separate" and config.molecules is not None:
        notes.append("molecules: not used, since separate models are those that were brought")
    place = work / _identity(config, models)
    merged, found = chosen.merge(config, infos, models, schema, place)
    manifest = make_manifest(
        name=release.name,
        version=release.version,
        backbone=merged.shape,
        rank=0 if merged.streams else merged.rank,
        router=RouterConfig(),
        tasks=infos,
        input=schema,
        provenance=_provenance(config, models, base, merged, notes),
        metrics={"difference": found} if found else {},
        streams=merged.streams,
    )
    card = _card(manifest, config, merged.rank, chosen.reading(config), found, notes)
    manifest = save_artifact(folder, manifest, merged.network, merged.experts, card, replace_other)
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)
    folder.with_name(f"{folder.name}.yaml").write_text(text)
    return Imported(manifest, merged.rank, found, tuple(notes))


def _info(task: str, source: ModelSource, model: Brought) -> TaskInfo:
    labels = model.labels
    if unknown := sorted(source.units.keys() - set(labels)):
        got = f"models.{task}.units: got {', '.join(unknown)}"
        raise ConfigError(f"{got}, expected labels among {', '.join(labels)}")
    units = tuple(source.units.get(label, "") for label in labels) if source.units else ()
    about = source.about or f"imported from {Path(source.path).name}"
    return TaskInfo(labels=labels, description=about, target=model.target, units=units)


def _identity(config: ImportConfig, models: Mapping[str, Brought]) -> str:
    """Name the training of a request: nothing resumes from a state of other models, molecules or
    settings."""
    files = [digest for model in models.values() for digest in model.files.values()]
    return fingerprint(config, *files, _molecules_digest(config) or "")


def _molecules_digest(config: ImportConfig) -> str | None:
    """Hash the file of molecules. Raises DataError: it cannot be read."""
    if config.molecules is None:
        return None
    try:
        return sha256(Path(config.molecules))
    except FileNotFoundError:
        raise DataError(f"got no file {config.molecules}, expected molecules") from None
    except OSError as error:
        raise DataError(f"{config.molecules}: {error}") from error


def _provenance(
    config: ImportConfig,
    models: Mapping[str, Brought],
    base: Base | None,
    merged: Merged,
    notes: list[str],
) -> dict[str, Any]:
    files = {task: dict(model.files) for task, model in models.items()}
    return {
        "import": config.model_dump(mode="json"),
        "models_sha256": files,
        "base_sha256": None if base is None else base.sha256,
        "molecules_sha256": _molecules_digest(config),
        "training": merged.record,
        "notes": notes,
        "environment": environment(),
    }


_WAYS: Mapping[Method, str] = {
    "separate": "Every task keeps its own networks: nothing is merged, and a pass costs as much as"
    " all of them.",
    "residual": "One network is the average of all; every task adds low-rank differences (rank"
    " {rank}), folded at load.",
    "adapters": "One network is the average of all; every task corrects it by adapters of rank"
    " {rank} at all sites, trained without labels.",
    "one-pass": "One network answers all tasks in one pass, trained without labels to answer like"
    " their own models; every task has an adapter of rank {rank} and its own last layers.",
}


def _card(
    manifest: Manifest,
    config: ImportConfig,
    rank: int,
    reading: str,
    found: Mapping[str, float],
    notes: list[str],
) -> str:
    """Write the model card."""
    rows = [
        f"| `{task}` | {info.target} | {len(info.labels)} | {config.models[task].path} |"
        f" {f'{found[task]:.3f}' if task in found else '-'} |"
        for task, info in manifest.tasks.items()
    ]
    measured = (
        "The difference is the root mean square of that between this model's predictions and those"
        " of the model that was brought, in standard deviations of the latter, on unlabelled"
        " molecules that were not trained on."
        if found
        else "The difference from the models that were brought was not measured."
    )
    assumed = "".join(f"- {note}\n" for note in notes) or "- nothing\n"
    return f"""# {manifest.name} {manifest.version}

{len(manifest.tasks)} tasks, imported with method `{config.method}`.
{_WAYS[config.method].format(rank=rank)}

| task | target | outputs | imported from | difference |
|---|---|---|---|---|
{chr(10).join(rows)}

{measured}

Molecules are featurised {reading}.

## Assumed

{assumed}"""
