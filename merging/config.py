"""The run configuration: one YAML file per published setting. Unknown keys are errors; nothing is filled in silently."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from merging.datasets import MOLECULENET
from merging.molecule_tables import DatasetSpec
from merging.registry import merger_spec
from models.backbone import BackboneConfig
from models.errors import ConfigError
from models.names import MAX_NAME, Name, check_distinct
from models.router import RouterConfig
from models.sinkhorn import Solver
from models.validation import problems_of

CONFIG_FOLDER = Path(__file__).parent / "configs"


def _no_truth_value(value: object) -> object:
    if isinstance(value, bool):
        word = str(value).lower()
        raise ValueError(f"got {word}, which YAML also makes of yes and no, expected a number")
    return value


_Number = BeforeValidator(_no_truth_value)
Rate = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, _Number, Field(ge=1)]
Weight = Annotated[float, _Number, Field(ge=0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FinetuneConfig(_Section):
    """Supervised fine-tuning of one task from the pre-trained backbone (Hu et al. 2020: Adam, dropout 0.5, batch 32, 100 epochs)."""

    epochs: Count = 100
    batch_size: Count = 32
    learning_rate: Rate = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5


class AlignmentConfig(_Section):
    """Adapter training (method: alpha * L1 of graph embeddings + sum over layers of TWD; no labels).

    Attributes:
        sites: where there are adapters.
        alpha, twd_weight: weights of the two terms; 0 leaves one out.
        support_order: mass moves along at most this many bonds: 0 compares each atom with itself, None any two atoms of a molecule.
        max_molecules: an epoch sees at most so many, drawn anew in each; None sees all.
    """

    rank: Count = 30
    epochs: Count = 30
    batch_size: Count = 64
    learning_rate: Rate = 1e-3
    sites: Literal["all", "nodes", "graph"] = "all"
    alpha: Weight = 1.0
    twd_weight: Weight = 1.0
    support_order: Annotated[int, Field(ge=0)] | None = 1
    max_molecules: Count | None = None
    solver: Solver = "sinkhorn"
    epsilon: Rate = 0.1
    tolerance: Rate = 0.1
    max_iters: Count = 100


class MergeConfig(_Section):
    """How the backbone is merged: a row of `merging.registry`, and its options (what is not said has the row's default)."""

    method: str = "task_arithmetic"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        merger_spec(self.method).parse(self.options)
        return self


class MultitaskConfig(FinetuneConfig):
    """Joint training of one backbone with all heads.

    Attributes:
        cap: the most training molecules that a task gives to one epoch, so that MUV's 74,000 do not drown BACE's 1,200.
    """

    epochs: Count = 60
    cap: Count = 4000


_FIGURES = frozenset(("ablations", "recovery", "expert_weights", "swap_matrix"))
"""Figures that are no sweep's (`merging.figures`)."""
BASE_VARIANT = "full"
"""Row of every group of variants: the configuration with `ablation_base` and no other change."""


class CompareConfig(_Section):
    """What `gmerging compare` puts beside G-Merging.

    Attributes:
        mergers: by name the option sets that are tried; the one with the best validation average is reported.
        multitask: joint training; None leaves it out.
        forest_trees, forest_trees_by_task: trees in each random forest on ECFP4 fingerprints; None leaves the forests out.
        ablations, sweeps: G-Merging with settings changed (see `RunConfig.varied`), each trained and measured on its own.
        ablation_base: changes that all ablations and sweeps share, and the row that they are compared with.
        ablation_tasks: the tasks that ablations and sweeps are measured on; none means all. The backbone is merged of all tasks in any case.
    """

    mergers: dict[str, tuple[dict[str, Any], ...]] = {}
    multitask: MultitaskConfig | None = None
    forest_trees: Count | None = 500
    forest_trees_by_task: dict[str, Count] = {}
    ablation_base: dict[str, dict[str, Any]] = {}
    ablation_tasks: tuple[str, ...] = ()
    ablations: dict[str, dict[str, dict[str, Any]]] = {}
    sweeps: dict[Name, dict[str, dict[str, dict[str, Any]]]] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if taken := [name for name in self.sweeps if name.casefold() in _FIGURES]:
            raise ValueError(f"sweeps: got {taken[0]!r}, the name of another figure, expected another")
        check_distinct(self.sweeps)
        for variants in (self.ablations, *self.sweeps.values()):
            if BASE_VARIANT in variants:
                raise ValueError(f"got a variant {BASE_VARIANT!r}, which is the base, expected another name")
        for method, candidates in self.mergers.items():
            if not candidates:
                raise ValueError(f"compare.mergers.{method}: got no option set, expected at least one ({{}} is the defaults)")
            for options in candidates:
                merger_spec(method).parse(options)
        return self


class PretrainedConfig(_Section):
    """The checkpoint that all experts start from.

    Attributes:
        weights: a path, or the name of a published checkpoint (see `merging.checkpoints`).
        source: where another checkpoint came from, in a sentence for manifest and model card;
            None: what is published is known by its bytes, else path and SHA-256 are recorded.
    """

    backbone: BackboneConfig
    weights: str
    source: str | None = None


_VERSION = rf"^[A-Za-z0-9][A-Za-z0-9.+_-]{{0,{MAX_NAME - 1}}}$"


class ReleaseConfig(_Section):
    """Name and version of the artifact that the run ends in."""

    name: Name
    version: Annotated[str, Field(pattern=_VERSION)] = "0.1.0"


def release_of(config: Any) -> ReleaseConfig:
    """Name and version of a configuration's artifact. Raises ConfigError: it has none."""
    release: ReleaseConfig | None = config.release
    if release is None:
        raise ConfigError(
            f"release: got none in configuration {config.setting!r}, expected a name of its own "
            "(what it extends hands on none): "
            f"write `release: {{name: {config.setting}, version: 1.0.0}}` into it"
        )
    return release


class RunConfig(_Section):
    """One setting of the paper.

    Attributes:
        setting: its name, and that of the folder of its results.
        release: what the artifact is called; needed only by commands that write one.
    """

    setting: Name
    description: str
    pretrained: PretrainedConfig
    tasks: tuple[Name, ...]
    datasets: dict[str, DatasetSpec] = {}
    finetune: FinetuneConfig = FinetuneConfig()
    finetune_by_task: dict[str, FinetuneConfig] = {}
    merge: MergeConfig = MergeConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    alignment_by_task: dict[str, AlignmentConfig] = {}
    router: RouterConfig = RouterConfig()
    compare: CompareConfig = CompareConfig()
    release: ReleaseConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Sections by task need only name what differs from the common section."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for section in ("finetune", "alignment"):
            common, by_task = values.get(section, {}), values.get(f"{section}_by_task", {})
            if isinstance(common, dict) and isinstance(by_task, dict):
                values[f"{section}_by_task"] = {task: {**common, **own} if isinstance(own, dict) else own for task, own in by_task.items()}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.tasks:
            raise ValueError("tasks: got none, expected at least one")
        by_task = (self.datasets, self.finetune_by_task, self.alignment_by_task)
        named = {name for section in by_task for name in section}
        named |= {*self.compare.ablation_tasks, *self.compare.forest_trees_by_task}
        unknown = sorted(named - set(self.tasks))
        if unknown:
            expected = f"expected names among tasks {list(self.tasks)}"
            raise ValueError(f"settings by task: got names {unknown}, {expected}")
        without_data = [task for task in self.tasks if task not in self.datasets and task not in MOLECULENET]
        if without_data:
            raise ValueError(f"tasks: got {without_data}, expected names among {list(MOLECULENET)} or described under `datasets`")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: got {list(self.tasks)}, expected each task once")
        check_distinct(self.tasks)
        ranks = {self.alignment.rank, *(own.rank for own in self.alignment_by_task.values())}
        if len(ranks) > 1:
            raise ValueError(f"alignment: got ranks {sorted(ranks)}, expected one rank for all tasks (the bank stacks them)")
        return self

    def varied(self, changes: Mapping[str, Mapping[str, Any]]) -> "RunConfig":
        """The same configuration with changes by section: `{"alignment": {"rank": 10}}`, for every task alike. A change of `merge` replaces it.

        Raises:
            pydantic.ValidationError: the result does not fit, or there is no such section.
        """
        values = self.model_dump()
        for section, changed in changes.items():
            own = None if section == "merge" else values.get(section)
            values[section] = {**own, **changed} if isinstance(own, dict) else dict(changed)
            for task, own in values.get(f"{section}_by_task", {}).items():
                values[f"{section}_by_task"][task] = own | changed
        return RunConfig.model_validate(values)

    def dataset_for(self, task: str) -> DatasetSpec:
        """Where a task's molecules are: described in the configuration, or one of the eight published sets."""
        return self.datasets.get(task) or MOLECULENET[task]

    def finetune_for(self, task: str) -> FinetuneConfig:
        """Fine-tuning settings of a task."""
        return self.finetune_by_task.get(task, self.finetune)

    def alignment_for(self, task: str) -> AlignmentConfig:
        """Adapter training settings of a task."""
        return self.alignment_by_task.get(task, self.alignment)


Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a key that stands twice in one section is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node. Raises yaml.constructor.ConstructorError: a key is there twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := sorted({key for key in keys if keys.count(key) > 1 and key != "<<"}):
            problem = f"got {', '.join(twice)} twice in one section, expected each key once"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def load_config(path: Path) -> RunConfig:
    """The configuration of a run, see `read_config`; its ablations and sweeps are checked too."""
    config = read_config(path, RunConfig, CONFIG_FOLDER)
    compare = config.compare
    groups = {f"sweeps.{sweep}": variants for sweep, variants in compare.sweeps.items()}
    places = [("ablation_base", compare.ablation_base)]
    for group, variants in {"ablations": compare.ablations, **groups}.items():
        places += [(f"{group}.{name}", change) for name, change in variants.items()]
    base = config
    for place, change in places:
        try:
            varied = base.varied(change)
        except ValidationError as error:
            problems = problems_of(error, RunConfig)
            raise ConfigError(f"{path}: compare.{place}: {problems}") from error
        base = varied if place == "ablation_base" else base
    return config


def read_config(path: Path, model: type[Model], bundled: Path) -> Model:
    """Read a YAML file; a bare name is looked up among those that come with the package, in the folder `bundled`.

    `extends: other.yaml` takes over what another file says (beside it, or bundled); in each section the file's own keys count before the other's, and
    where it names its own tasks, what the other says of other tasks is left out.
    Who the other is (`_IDENTITY`) is not handed on: a setting without a name has its file's.

    Raises:
        ConfigError: the file is absent, is not YAML, extends itself, or does not fit; every problem is named.
    """
    values = _read_values(path, bundled, ())
    if not isinstance(values, dict):
        found = "nothing" if values is None else "no sections"
        raise ConfigError(f"{path}: got {found}, expected sections, as in `setting: mine`")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems_of(error, model)}") from error


def _read_values(path: Path, bundled: Path, extended_by: tuple[Path, ...]) -> Any:
    file = path if path.is_file() else bundled / path.name
    if not file.is_file():
        known = ", ".join(sorted(each.name for each in bundled.glob("*.yaml")))
        where = f"{extended_by[-1]}: extends: " if extended_by else ""
        found = f"got no configuration at {path}, expected a YAML file or one of: {known}"
        raise ConfigError(where + found)
    if file in extended_by:
        raise ConfigError(f"{file}: extends itself, expected another file")
    try:
        values = yaml.load(file.read_bytes(), _Loader)  # bytes: UTF-8 or, by its mark, UTF-16
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from error
    if not isinstance(values, dict) or "extends" not in values:
        return values
    name = values.pop("extends")
    if not (isinstance(name, str) and name):
        raise ConfigError(f"{file}: extends: got {name!r}, expected the name of a YAML file")
    base = _read_values(file.parent / name, bundled, (*extended_by, file))
    if not isinstance(base, dict):
        raise ConfigError(f"{file}: extends a file of {type(base).__name__}, expected a configuration")
    if isinstance(values.get("tasks"), list):
        base = only_tasks(base, values["tasks"])
    base, parent = {key: base[key] for key in base if key not in _IDENTITY}, base
    if "setting" in parent:
        values = _named(values, file, parent)
    return {**base, **{section: _over(base.get(section), own) for section, own in values.items()}}


_IDENTITY = ("setting", "description", "release")
"""Sections that say who a configuration is: where its results go, what its artifact is called."""


def _named(values: dict[str, Any], file: Path, parent: dict[str, Any]) -> dict[str, Any]:
    """The values with a setting of their own. Raises ConfigError: it would be the other's."""
    if "setting" not in values and file.stem.casefold() == str(parent["setting"]).casefold():
        expected = "expected `setting:` with another name (results are kept by it)"
        raise ConfigError(f"{file}: got no setting, and extends one of the file's name, {expected}")
    about = f"extends {parent['setting']}"
    return {"setting": file.stem, "description": about} | values


def _over(base: Any, own: Any) -> Any:
    return {**base, **own} if isinstance(base, dict) and isinstance(own, dict) else own


def only_tasks(values: dict[str, Any], tasks: list[Any]) -> dict[str, Any]:
    """A configuration without what it says of other tasks than these. What has another form than expected stays, for the validation to name."""
    kept = dict(values)
    for section in ("datasets", "finetune_by_task", "alignment_by_task"):
        if isinstance(values.get(section), dict):
            kept[section] = {task: own for task, own in values[section].items() if task in tasks}
    compare = values.get("compare")
    if isinstance(compare, dict):
        kept["compare"] = own = dict(compare)
        if isinstance(named := compare.get("ablation_tasks"), list | tuple):
            own["ablation_tasks"] = [task for task in named if task in tasks]
        if isinstance(trees := compare.get("forest_trees_by_task"), dict):
            own["forest_trees_by_task"] = {task: own for task, own in trees.items() if task in tasks}
    return kept


def fingerprint(*parts: BaseModel | str | int) -> str:
    """A short hash of what a finished piece depends on: another configuration makes another piece."""
    text = json.dumps([part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
