"""`gmerging import-models`: models that somebody brought become one artifact."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from merging.config.base import Count, ReleaseConfig, Section, Weight, fingerprint
from merging.data.files import sha256
from merging.data.molecule_files import read_molecules
from merging.data.pool import draw
from merging.imports.check import check_models, require_related
from merging.imports.chemprop import Ensemble, Foundation, read_chemprop, read_foundation
from merging.imports.dmpnn import (
    BondPool,
    ImportedTask,
    MergedDmpnn,
    Tasks,
    differences,
    predictions,
    residual,
    separate,
    smallest_rank,
)
from merging.imports.dmpnn_training import JOINT, AdapterSettings, adapters, one_pass
from merging.run.scores import environment
from models.artifact import check_output, save_artifact
from models.data.dmpnn_features import FeaturizerOptions, Reading, featurize_bonds
from models.data.schema import BondInput
from models.errors import ConfigError, DataError, MoleculeError
from models.experts.router import RouterConfig
from models.manifest import Manifest, make_manifest
from models.names import Name
from models.task import TaskInfo, Unit
from models.validation import problems_of

Method = Literal["separate", "residual", "adapters", "one-pass"]
METHODS: tuple[Method, ...] = get_args(Method)
RANKS: Mapping[Method, int] = {"separate": 0, "residual": 30, "adapters": 30, "one-pass": 100}
"""Rank of the corrections where none is asked for."""
MEASURED = 1000
"""At most so many molecules, and at most a fifth, are not trained on and give the difference."""


class ModelSource(Section):
    """A model that somebody brought.

    Attributes:
        path: a file, or the folder of a run.
        labels: names of its outputs, for files that do not say them; None takes the file's.
        units: of a regression, by label.
        about: a one-line description of the task.
    """

    path: str
    labels: tuple[str, ...] | None = None
    units: dict[str, Unit] = {}
    about: str = ""


def _source(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


class ImportConfig(Section):
    """What `import-models` is asked for, as a YAML file or as options.

    Attributes:
        models: by task, a path or a `ModelSource`.
        base: the network that the models were fine-tuned from; None compares them with each other.
        method: `separate` keeps every model; `residual` keeps the average and low-rank differences,
            without data; `adapters` trains adapters on the average (G-Merging); `one-pass` trains
            one network that answers all tasks in one pass. None needs labels.
        rank: of the corrections; None takes `RANKS`.
        max_difference: of `residual`, in place of a rank: the largest difference of a task, in
            standard deviations of the own model's predictions (`differences`).
        molecules: a file of unlabelled molecules like those to be predicted.
        most_molecules: how many of them are used, drawn at random.
        epochs: of `adapters` and `one-pass`; None takes their default.
        options: how molecules are featurised; None takes what the models' files say.
        reading: whether molecules are featurised as written or from their canonical SMILES.
        seed: of the draw and the training.
        release: name and version of the artifact.
    """

    models: Annotated[
        dict[Name, Annotated[ModelSource, BeforeValidator(_source)]], Field(min_length=1)
    ]
    base: str | None = None
    method: Method = "residual"
    rank: Count | None = None
    max_difference: Weight | None = None
    molecules: str | None = None
    most_molecules: Count = 10_000
    epochs: Count | None = None
    options: FeaturizerOptions | None = None
    reading: Reading = "as_written"
    seed: Annotated[int, Field(ge=0)] = 0
    release: ReleaseConfig = ReleaseConfig(name="imported")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_difference is not None and (self.method != "residual" or self.rank):
            got = f"max_difference: got {self.max_difference} with method {self.method}"
            raise ValueError(f"{got} and rank {self.rank}, expected residual without a rank")
        if self.rank is not None and self.method == "separate":
            raise ValueError(f"rank: got {self.rank} with separate, which corrects nothing")
        if self.epochs is not None and self.method in ("separate", "residual"):
            raise ValueError(f"epochs: got {self.epochs} with {self.method}, which trains nothing")
        if self.molecules is None and (self.needs_molecules or self.max_difference is not None):
            why = "which learns from molecules" if self.needs_molecules else "which measures them"
            got = f"molecules: got none with {self.method}, {why}"
            raise ValueError(f"{got}, expected a file of unlabelled molecules")
        return self

    @property
    def needs_molecules(self) -> bool:
        """Whether the method trains."""
        return self.method in ("adapters", "one-pass")


def load_import_config(path: Path) -> ImportConfig:
    """Read a YAML file. Raises ConfigError: it cannot be read, or is no `ImportConfig`."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: got no readable YAML: {error}") from error
    return make_import_config(values, str(path))


def make_import_config(values: Any, origin: str) -> ImportConfig:
    """Validate the values of an `ImportConfig`. Raises ConfigError: they are invalid."""
    try:
        return ImportConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {problems_of(error, ImportConfig)}") from error


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


def read_models(config: ImportConfig) -> dict[str, Ensemble]:
    """Read the models by task. Raises CheckpointError: one cannot be read."""
    return {
        task: read_chemprop(Path(source.path), source.labels, config.options)
        for task, source in config.models.items()
    }


def read_base(config: ImportConfig) -> Foundation | None:
    """Read the base, if one is named. Raises CheckpointError: it cannot be read."""
    return None if config.base is None else read_foundation(Path(config.base), config.options)


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
        ConfigError: the models do not fit together, or the difference cannot be reached.
        DataError: no molecule of the file can be read.
        ArtifactError: the artifact may not be written there.
    """
    release = config.release
    check_output(folder, release.name, release.version, tuple(config.models), replace_other)
    models, base = read_models(config), read_base(config)
    notes = [f"{task}: {note}" for task, found in models.items() for note in found.notes]
    options = common_options(models)
    tasks = {
        task: ImportedTask(_info(task, config.models[task], ensemble), ensemble)
        for task, ensemble in models.items()
    }
    if config.method != "separate":
        notes += require_related(check_models(models, base))
    elif base is not None:
        notes.append("base: not used, since separate models are not merged")
    pool = _pool(config, options)
    merged, found = _merge(config, tasks, pool, work / _identity(config, models))
    manifest = make_manifest(
        name=release.name,
        version=release.version,
        backbone=merged.shape,
        rank=merged.rank,
        router=RouterConfig(),
        tasks={name: task.info for name, task in tasks.items()},
        input=BondInput(options=options, reading=config.reading),
        provenance=_provenance(config, models, base, merged, notes),
        metrics={"difference": found} if found else {},
    )
    card = _card(manifest, config, found, notes)
    manifest = save_artifact(folder, manifest, merged.network, merged.experts, card, replace_other)
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False)
    folder.with_name(f"{folder.name}.yaml").write_text(text)
    return Imported(manifest, merged.rank, found, tuple(notes))


def common_options(models: Mapping[str, Ensemble]) -> FeaturizerOptions:
    """Return how the molecules of all models are featurised. Raises ConfigError: two differ."""
    (first, ensemble), *others = models.items()
    for name, other in others:
        if other.options != ensemble.options:
            got, expected = (
                ", ".join(f"{key} {value}" for key, value in found.options.model_dump().items())
                for found in (other, ensemble)
            )
            raise ConfigError(
                f"{name}: got features {got}, expected those of {first}, {expected}: one artifact"
                " reads a molecule once"
            )
    return ensemble.options


def _info(task: str, source: ModelSource, ensemble: Ensemble) -> TaskInfo:
    labels = ensemble.labels
    if unknown := sorted(source.units.keys() - set(labels)):
        got = f"models.{task}.units: got {', '.join(unknown)}"
        raise ConfigError(f"{got}, expected labels among {', '.join(labels)}")
    units = tuple(source.units.get(label, "") for label in labels) if source.units else ()
    about = source.about or f"imported from {Path(source.path).name}"
    return TaskInfo(labels=labels, description=about, target=ensemble.target, units=units)


def _pool(config: ImportConfig, options: FeaturizerOptions) -> BondPool | None:
    """Read the unlabelled molecules, in random order."""
    if config.molecules is None:
        return None
    path = Path(config.molecules)
    texts = draw(read_molecules(path), config.most_molecules, config.seed, "molecules")
    random.Random(config.seed).shuffle(texts)
    read = featurize_bonds(texts, options, config.reading, None)
    graphs = [found.graph for found in read if not isinstance(found, MoleculeError)]
    if len(graphs) < 2:
        problem = next((str(found) for found in read if isinstance(found, MoleculeError)), "")
        got = f"{path}: got {len(graphs)} readable molecules of {len(texts)}"
        raise DataError(
            f"{got}, expected at least 2{f'; the first problem: {problem}' * bool(problem)}"
        )
    return BondPool(graphs)


def _merge(
    config: ImportConfig, tasks: Tasks, pool: BondPool | None, work: Path
) -> tuple[MergedDmpnn, dict[str, float]]:
    """Merge the models, and measure the difference from them where there are molecules."""
    if config.method == "separate":
        return separate(tasks), {}
    rank = config.rank or RANKS[config.method]
    if pool is None:
        return residual(tasks, rank), {}
    count = max(1, min(MEASURED, len(pool) // 5))
    measured, rest = BondPool(pool.graphs[:count]), BondPool(pool.graphs[count:])
    expected = predictions(separate(tasks).model, measured)
    if config.max_difference is not None:
        return smallest_rank(tasks, measured, config.max_difference, expected)
    if config.method == "residual":
        merged = residual(tasks, rank)
    elif config.method == "adapters":
        settings = AdapterSettings()
        settings = replace(settings, epochs=config.epochs or settings.epochs)
        merged = adapters(tasks, rest, rank, settings, config.seed, work)
    else:
        changes = {"rank": rank} | ({"epochs": config.epochs} if config.epochs else {})
        joint = JOINT.model_copy(update=changes)
        merged = one_pass(tasks, rest, joint, config.seed, work)
    return merged, differences(predictions(merged.model, measured), expected)


def _identity(config: ImportConfig, models: Mapping[str, Ensemble]) -> str:
    """Name the training of a request: nothing resumes from a state of other models, molecules or
    settings."""
    files = [member.sha256 for ensemble in models.values() for member in ensemble.members]
    molecules = "" if config.molecules is None else sha256(Path(config.molecules))
    return fingerprint(config, *files, molecules)


def _provenance(
    config: ImportConfig,
    models: Mapping[str, Ensemble],
    base: Foundation | None,
    merged: MergedDmpnn,
    notes: list[str],
) -> dict[str, Any]:
    files = {
        task: {str(member.path): member.sha256 for member in ensemble.members}
        for task, ensemble in models.items()
    }
    return {
        "import": config.model_dump(mode="json"),
        "models_sha256": files,
        "base_sha256": None if base is None else base.sha256,
        "molecules_sha256": None if config.molecules is None else sha256(Path(config.molecules)),
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
    manifest: Manifest, config: ImportConfig, found: Mapping[str, float], notes: list[str]
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
{_WAYS[config.method].format(rank=manifest.rank)}

| task | target | outputs | imported from | difference |
|---|---|---|---|---|
{chr(10).join(rows)}

{measured}

Molecules are featurised {config.reading.replace("_", " ")}.

## Assumed

{assumed}"""
