"""What `gmerging import-models` is asked for."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from merging.config.base import Count, ReleaseConfig, Section, Weight
from models.data.dmpnn_features import FeaturizerOptions, Reading
from models.errors import ConfigError
from models.names import Name
from models.networks.hu2020 import BackboneKind
from models.task import LabelTarget, Unit
from models.validation import problems_of

Method = Literal["separate", "residual", "adapters", "one-pass"]
METHODS: tuple[Method, ...] = get_args(Method)


class ModelSource(Section):
    """A model that somebody brought.

    Attributes:
        path: a file, or the folder of a run.
        labels: names of its outputs, for files that do not say them; None takes the file's.
        target: kind of prediction, for files that do not say it; None takes the file's, or
            `multilabel`.
        units: of a regression, by label.
        about: a one-line description of the task.
    """

    path: str
    labels: tuple[str, ...] | None = None
    target: LabelTarget | None = None
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
        rank: of the corrections; None takes the format's (`merging.imports.formats`).
        max_difference: of `residual`, in place of a rank: the largest difference of a task, in
            standard deviations of the own model's predictions (`differences`).
        molecules: a file of unlabelled molecules like those to be predicted.
        most_molecules: how many of them are used, drawn at random.
        epochs: of `adapters` and `one-pass`; None takes their default.
        options: how chemprop's molecules are featurised; None takes what the models' files say.
        reading: whether chemprop's molecules are featurised as written, the default, or from their
            canonical SMILES. Networks in Hu et al.'s layout always read the canonical one.
        layers: kind of layers of networks in Hu et al.'s layout whose files do not show it.
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
    reading: Reading | None = None
    layers: BackboneKind | None = None
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
