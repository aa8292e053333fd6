"""The one table of mergers. Nothing registers itself on import."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, get_args

from pydantic import ValidationError, model_validator

from merging.config.base import Section
from merging.mergers.adamerging import AdaMergingOptions, adamerging
from merging.mergers.arithmetic import (
    TaskArithmeticOptions,
    pretrained,
    task_arithmetic,
    weight_average,
)
from merging.mergers.base import MergeInputs, Merger, MergeResult, MergerOptions
from merging.mergers.dare import DareOptions, DareTiesOptions, dare, dare_ties
from merging.mergers.emr import emr
from merging.mergers.fisher import FisherOptions, fisher
from merging.mergers.gffmerge import GffMergeOptions, gffmerge
from merging.mergers.git_rebasin import GitRebasinOptions, git_rebasin
from merging.mergers.gnnmerge import (
    ClosedFormOptions,
    IterativeOptions,
    gnnmerge,
    gnnmerge_plus_plus,
)
from merging.mergers.regmean import RegMeanOptions, regmean
from merging.mergers.ties import TiesOptions, ties
from models.errors import ConfigError, InvalidInputError
from models.networks.hu2020 import BackboneKind
from models.networks.pyg import GraphNetworkKind
from models.task import Target
from models.validation import one_of, problems_of


@dataclass(frozen=True)
class MergerSpec:
    """A row of the table.

    Attributes:
        name: in configurations and results.
        title: for people.
        paper: where it is from.
        merger: the function.
        options: the class of its options; the defaults are the paper's where not said otherwise.
        calibrated: whether it must see unlabelled graphs and the heads.
        kinds: of networks that it can merge; none means all.
        targets: what the tasks may answer.
    """

    name: str
    title: str
    paper: str
    merger: Merger
    options: type[MergerOptions] = MergerOptions
    calibrated: bool = False
    kinds: tuple[str, ...] = ()
    targets: tuple[Target, ...] = get_args(Target)

    def check_targets(self, targets: Mapping[str, Target]) -> None:
        """Raises ConfigError: a task (by name its target) answers what the merger cannot use."""
        for task, target in targets.items():
            if target not in self.targets:
                expected = f"expected {' or '.join(self.targets)}, or another merger"
                raise ConfigError(f"{self.name}: got task {task!r}, a {target}, {expected}")

    def parse(self, options: Mapping[str, Any]) -> MergerOptions:
        """Its options from a configuration. Raises ConfigError naming every problem."""
        try:
            return self.options.model_validate(dict(options))
        except ValidationError as error:
            problems = problems_of(error, self.options, "all")
            raise ConfigError(f"options of {self.name}: {problems}") from error


LINEAR_HEADS = (*get_args(BackboneKind), *get_args(GraphNetworkKind))
"""Kinds of networks with a readout and a linear head, whose linear parts and units are known."""
MERGERS = {
    spec.name: spec
    for spec in (
        MergerSpec(
            "pretrained",
            "Pre-trained backbone",
            "Hu et al. 2020, Strategies for pre-training graph neural networks, arXiv:1905.12265",
            pretrained,
        ),
        MergerSpec(
            "weight_average",
            "Weight average",
            "Wortsman et al. 2022, Model soups, arXiv:2203.05482",
            weight_average,
        ),
        MergerSpec(
            "task_arithmetic",
            "Task arithmetic",
            "Ilharco et al. 2023, Editing models with task arithmetic, arXiv:2212.04089",
            task_arithmetic,
            TaskArithmeticOptions,
        ),
        MergerSpec(
            "ties", "TIES", "Yadav et al. 2023, TIES-merging, arXiv:2306.01708", ties, TiesOptions
        ),
        MergerSpec(
            "dare",
            "DARE",
            "Yu et al. 2023, Language models are super Mario, arXiv:2311.03099",
            dare,
            DareOptions,
        ),
        MergerSpec(
            "dare_ties",
            "DARE with TIES",
            "Yu et al. 2023, Language models are super Mario, arXiv:2311.03099",
            dare_ties,
            DareTiesOptions,
        ),
        MergerSpec("emr", "EMR-Merging", "Huang et al. 2024, EMR-Merging, arXiv:2405.17461", emr),
        MergerSpec(
            "fisher",
            "Fisher merging",
            "Matena and Raffel 2022, Merging models with Fisher-weighted averaging,"
            " arXiv:2111.09832",
            fisher,
            FisherOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "regmean",
            "RegMean",
            "Jin et al. 2023, Dataless knowledge fusion by merging weights of language models,"
            " arXiv:2212.09849",
            regmean,
            RegMeanOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "adamerging",
            "AdaMerging",
            "Yang et al. 2024, AdaMerging: adaptive model merging for multi-task learning,"
            " arXiv:2310.02575",
            adamerging,
            AdaMergingOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
            targets=("multilabel", "multiclass"),  # whose answers have an entropy
        ),
        MergerSpec(
            "git_rebasin",
            "Git Re-Basin",
            "Ainsworth et al. 2023, Git Re-Basin: merging models modulo permutation symmetries,"
            " arXiv:2209.04836",
            git_rebasin,
            GitRebasinOptions,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "gnnmerge",
            "GNNMerge",
            "Garg et al. 2025, GNNMerge: merging of GNN models without accessing training data,"
            " arXiv:2503.03384",
            gnnmerge,
            IterativeOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "gnnmerge_pp",
            "GNNMerge++",
            "Garg et al. 2025, GNNMerge: merging of GNN models without accessing training data,"
            " arXiv:2503.03384",
            gnnmerge_plus_plus,
            ClosedFormOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "gffmerge",
            "GFFMerge",
            "Verma et al. 2026, GFFMerge, arXiv:2606.03232",
            gffmerge,
            GffMergeOptions,
            calibrated=True,
            kinds=("schnet",),
        ),
    )
}


def merger_spec(method: str) -> MergerSpec:
    """The row of that name. Raises ConfigError."""
    if method not in MERGERS:
        expected = one_of(method, tuple(MERGERS))
        raise ConfigError(f"got merge method {method!r}, expected {expected}")
    return MERGERS[method]


def merge(
    method: str, inputs: MergeInputs, options: Mapping[str, Any] | None = None
) -> MergeResult:
    """Run a merger by name.

    Raises:
        ConfigError: no merger has that name, it does not have such an option, or it cannot merge
            networks of this kind.
        InvalidInputError: there is nothing to merge, or the merger needs calibration data that is
            not there.
        CheckpointError: the backbones are not of one shape.
    """
    spec = merger_spec(method)
    parsed = spec.parse(options or {})
    if not inputs.finetuned:
        raise InvalidInputError("finetuned: got no model, expected at least one")
    if spec.kinds and inputs.config.kind not in spec.kinds:
        raise ConfigError(
            f"got merge method {method!r} for networks of kind {inputs.config.kind!r}, expected"
            f" one that merges them ({method} is for {', '.join(spec.kinds)})"
        )
    if spec.calibrated and inputs.calibration.keys() != inputs.finetuned.keys():
        raise InvalidInputError(
            f"calibration: got {sorted(inputs.calibration)}, expected molecules for"
            f" {sorted(inputs.finetuned)} ({method} needs them)"
        )
    return spec.merger(inputs, parsed)


class MergeConfig(Section):
    """How the backbone is merged: a row of `merging.mergers.registry`, and its options (what is not
    said has the row's default)."""

    method: str = "task_arithmetic"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        merger_spec(self.method).parse(self.options)
        return self
