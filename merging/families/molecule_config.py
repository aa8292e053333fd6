"""Configuration of a run on molecules, read from one YAML file."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import ValidationError, model_validator

from merging.config.base import Count, Section, complete_by_task
from merging.config.joint_alignment import JointAlignmentConfig
from merging.config.training import AlignmentConfig, FinetuneConfig, ForestConfig, MultitaskConfig
from merging.data.molecule_dataset import MOLECULENET
from merging.data.molecule_tables import DatasetSpec
from merging.family import SHARED_STREAM, ReleaseMethod, RunConfig, check_alignment
from merging.mergers.registry import merger_spec
from models.errors import ConfigError
from models.experts.router import RouterConfig
from models.meaning import TaskText
from models.names import Name, check_distinct
from models.networks.hu2020 import BackboneConfig
from models.task import LabelTarget
from models.validation import problems_of

_FIGURES = frozenset(("ablations", "recovery", "expert_weights", "swap_matrix"))
"""Names of figures that a sweep may not take (`merging.drawing.figures`)."""
BASE_VARIANT = "full"
"""Name of the row for the configuration with `ablation_base` and no other change."""
MOLECULENET_MEANINGS = "moleculenet"
"""Name of the texts about the sets of MoleculeNet (`merging.meanings`)."""


class CompareConfig(Section):
    """The baselines, ablations and sweeps that `gmerging compare` and `ablate` measure.

    Attributes:
        mergers: sets of options by merger; the set with the best validation average is reported.
        multitask: settings of joint training; None leaves it out.
        forest_trees, forest_trees_by_task: number of trees in the random forests on ECFP4
            fingerprints; None leaves the forests out.
        ablations, sweeps: changed settings of G-Merging by name (`MoleculeConfig.with_changes`),
            every variant trained and measured separately.
        ablation_base: changes that all ablations and sweeps share; also the row that they are
            compared with.
        ablation_tasks: tasks that ablations and sweeps are measured on; empty for all. The
            backbone is always merged from all tasks.
        one_pass: changed settings of the section `one_pass` by name of the variant, for `gmerging
            study one-pass`.
    """

    mergers: dict[str, tuple[dict[str, Any], ...]] = {}
    multitask: MultitaskConfig | None = None
    forest_trees: Count | None = 500
    forest_trees_by_task: dict[str, Count] = {}
    ablation_base: dict[str, dict[str, Any]] = {}
    ablation_tasks: tuple[str, ...] = ()
    ablations: dict[str, dict[str, dict[str, Any]]] = {}
    sweeps: dict[Name, dict[str, dict[str, dict[str, Any]]]] = {}
    one_pass: dict[Name, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if taken := [name for name in self.sweeps if name.casefold() in _FIGURES]:
            raise ValueError(
                f"sweeps: got {taken[0]!r}, the name of another figure, expected another"
            )
        check_distinct(self.sweeps)
        for variants in (self.ablations, *self.sweeps.values()):
            if BASE_VARIANT in variants:
                raise ValueError(
                    f"got a variant {BASE_VARIANT!r}, which is the base, expected another name"
                )
        for method, candidates in self.mergers.items():
            if not candidates:
                raise ValueError(
                    f"compare.mergers.{method}: got no option set, expected at least one ({{}} is"
                    " the defaults)"
                )
            for options in candidates:
                merger_spec(method).parse(options)
        return self


class PretrainedConfig(Section):
    """The pre-trained checkpoint that fine-tuning starts from.

    Attributes:
        backbone: shape of the backbone.
        weights: a path, or the name of a published checkpoint (`merging.data.checkpoints`).
        source: a sentence on the checkpoint's source, for manifest and model card. None: a
            published checkpoint is recognised by its SHA-256; of others, path and SHA-256 are
            recorded.
    """

    backbone: BackboneConfig
    weights: str
    source: str | None = None


class MoleculeConfig(RunConfig):
    """A run on molecules: models are fine-tuned from one checkpoint and merged, and adapters
    correct the merged backbone.

    Attributes:
        pretrained: the checkpoint.
        tasks: names of the tasks.
        datasets: descriptions of the tasks, and of related ones, that are not sets of MoleculeNet.
        related: groups of tasks of the same property. A training or validation row of a task whose
            molecule, whatever its stereochemistry, is a test molecule of another task of a group is
            left out. Some tasks of a group may be no tasks of the run (those of other groups of a
            plan).
        finetune, alignment: settings of all tasks; a section of `_by_task` names only the
            differences.
        forest: settings of the trees on fingerprints beside the network (`gmerging add-forests`);
            `forest_by_task` as above.
        router: settings of the router that mixes the adapters.
        one_pass: settings of joint alignment; None if the run has none.
        method: what a release answers with.
        compare: baselines, ablations and sweeps.
    """

    description: str
    pretrained: PretrainedConfig
    tasks: tuple[Name, ...]
    datasets: dict[str, DatasetSpec] = {}
    related: tuple[tuple[Name, ...], ...] = ()
    finetune: FinetuneConfig = FinetuneConfig()
    finetune_by_task: dict[str, FinetuneConfig] = {}
    alignment: AlignmentConfig = AlignmentConfig()
    alignment_by_task: dict[str, AlignmentConfig] = {}
    forest: ForestConfig = ForestConfig()
    forest_by_task: dict[str, ForestConfig] = {}
    router: RouterConfig = RouterConfig()
    one_pass: JointAlignmentConfig | None = None
    method: ReleaseMethod = "adapters"
    compare: CompareConfig = CompareConfig()

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, values: Any) -> Any:
        """Complete the sections by task with the values of the common section."""
        return complete_by_task(values, "finetune", "alignment", "forest")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.tasks:
            raise ValueError("tasks: got none, expected at least one")
        described = self.datasets.keys() - {task for group in self.related for task in group}
        by_task = (described, self.finetune_by_task, self.alignment_by_task)
        named = {name for section in (*by_task, self.forest_by_task) for name in section}
        named |= {*self.compare.ablation_tasks, *self.compare.forest_trees_by_task}
        named |= set() if self.one_pass is None else self.one_pass.named_tasks
        unknown = sorted(named - set(self.tasks))
        if unknown:
            expected = f"expected names among tasks {list(self.tasks)}"
            raise ValueError(f"settings by task: got names {unknown}, {expected}")
        without_data = [
            task for task in self.tasks if task not in self.datasets and task not in MOLECULENET
        ]
        if without_data:
            raise ValueError(
                f"tasks: got {without_data}, expected names among {list(MOLECULENET)} or described"
                " under `datasets`"
            )
        for group in self.related:
            self._check_related(group)
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks: got {list(self.tasks)}, expected each task once")
        check_distinct(self.tasks)
        check_alignment(self.alignment, self.alignment_by_task)
        merger_spec(self.merge.method).check_targets(self.targets)
        if self.one_pass is None and (self.method == "one-pass" or self.compare.one_pass):
            wanted = "method" if self.method == "one-pass" else "compare.one_pass"
            raise ValueError(f"{wanted}: got no section `one_pass`, expected its settings")
        if self.shares_stream:
            check_distinct([*self.tasks, SHARED_STREAM])
        return self

    @property
    def targets(self) -> dict[str, LabelTarget]:
        """Target by task."""
        return {task: self.dataset_for(task).target for task in self.tasks}

    @property
    def shape(self) -> BackboneConfig:
        """Shape of the backbone."""
        return self.pretrained.backbone

    @property
    def rank(self) -> int:
        """Rank of the adapters."""
        return self.alignment.rank

    @property
    def routing(self) -> RouterConfig:
        """Settings of the router that mixes the adapters."""
        return self.router

    @property
    def shares_stream(self) -> bool:
        """Whether `method` is `one-pass`."""
        return self.method == "one-pass"

    @property
    def joint_training(self) -> MultitaskConfig | None:
        """`compare.multitask`."""
        return self.compare.multitask

    def dataset_for(self, task: str) -> DatasetSpec:
        """Return the description of a task's molecules: the configuration's, or that of the
        MoleculeNet set of this name."""
        return self.datasets.get(task) or MOLECULENET[task]

    def meaning_of(self, task: str) -> Name | TaskText | None:
        """Return the entry of a task in `meanings`; the sets of MoleculeNet have texts."""
        published = None if task in self.datasets else MOLECULENET_MEANINGS
        return self.meanings.get(task, published)

    def related_to(self, task: str) -> tuple[str, ...]:
        """Return the other tasks of a task's groups in `related`, by name."""
        others = {name for group in self.related if task in group for name in group} - {task}
        return tuple(sorted(others))

    def _check_related(self, group: tuple[str, ...]) -> None:
        known = {*self.tasks, *self.datasets, *MOLECULENET}
        if unknown := [task for task in group if task not in known]:
            expected = "expected tasks, or sets described under `datasets`"
            raise ValueError(f"related: got {unknown[0]!a}, {expected}")
        if len(set(group)) != len(group) or len(group) < 2 or not {*group} & {*self.tasks}:
            expected = "expected groups of two tasks or more, each task once, one of `tasks` among"
            raise ValueError(f"related: got {list(group)}, {expected} them")

    def training_for(self, task: str) -> FinetuneConfig:
        """Return the fine-tuning settings of a task."""
        return self.finetune_by_task.get(task, self.finetune)

    def alignment_for(self, task: str) -> AlignmentConfig:
        """Return the adapter training settings of a task."""
        return self.alignment_by_task.get(task, self.alignment)

    def forest_for(self, task: str) -> ForestConfig:
        """Return the settings of a task's trees on fingerprints."""
        return self.forest_by_task.get(task, self.forest)

    def with_changes(self, changes: Mapping[str, Mapping[str, Any]]) -> "MoleculeConfig":
        """Return the configuration with changes by section, such as `{"alignment": {"rank": 10}}`.

        A change applies to all tasks, including their sections in `_by_task`. `merge` is replaced
        as a whole.

        Raises:
            pydantic.ValidationError: the result is invalid, or there is no such section.
        """
        values = self.model_dump()
        for section, changed in changes.items():
            current = None if section == "merge" else values.get(section)
            values[section] = {**current, **changed} if isinstance(current, dict) else dict(changed)
            for task, current in values.get(f"{section}_by_task", {}).items():
                values[f"{section}_by_task"][task] = current | changed
        return MoleculeConfig.model_validate(values)

    def check_variants(self) -> None:
        """Validate the ablations and sweeps. Raises ConfigError: one of them is invalid."""
        groups = {"ablations": self.compare.ablations}
        groups |= {f"sweeps.{name}": variants for name, variants in self.compare.sweeps.items()}
        base = self._variant("ablation_base", self.compare.ablation_base)
        for group, variants in groups.items():
            for name, change in variants.items():
                base._variant(f"{group}.{name}", change)
        for name, change in self.compare.one_pass.items():
            self._variant(f"one_pass.{name}", self.one_pass_change(change))

    def one_pass_change(self, change: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return a variant of `compare.one_pass` as changes for `with_changes`; sections within
        `one_pass`, such as its `pool`, keep the values that the variant does not name."""
        current = {} if self.one_pass is None else self.one_pass.model_dump()
        changed = {
            key: {**current[key], **value}
            if isinstance(value, dict) and isinstance(current.get(key), dict)
            else value
            for key, value in change.items()
        }
        return {"one_pass": changed}

    def _variant(self, name: str, change: Mapping[str, Any]) -> "MoleculeConfig":
        try:
            return self.with_changes(change)
        except ValidationError as error:
            raise ConfigError(f"compare.{name}: {problems_of(error, MoleculeConfig)}") from error
