"""The table of mergers; an explicit list, nothing registers itself."""

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
from merging.mergers.message_calibration import message_calibration
from merging.mergers.regmean import RegMeanOptions, regmean
from merging.mergers.residual import ResidualOptions, residual
from merging.mergers.spectral import SpectralOptions, iso_c, tsv_merge
from merging.mergers.ties import TiesOptions, ties
from merging.mergers.wudi import WudiOptions, wudi
from models.errors import ConfigError, InvalidInputError
from models.networks.hu2020 import BackboneKind
from models.networks.pyg import GraphNetworkKind
from models.task import Target
from models.validation import one_of, problems_of


@dataclass(frozen=True)
class MergerSpec:
    """A row of the table of mergers.

    Attributes:
        name: key in configurations and results files.
        title: name in tables and figures.
        paper: authors, year, title and arXiv number.
        merger: the function that merges.
        options: class of its options; defaults are the paper's unless documented otherwise.
        calibrated: whether it needs unlabelled graphs and the tasks' heads.
        kinds: `kind` values of the networks that it can merge; empty for all.
        targets: targets of tasks that it supports.
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
        """Raise ConfigError if the merger does not support the target of a task.

        Args:
            targets: target by task.
        """
        for task, target in targets.items():
            if target not in self.targets:
                expected = f"expected {' or '.join(self.targets)}, or another merger"
                raise ConfigError(f"{self.name}: got task {task!r}, a {target}, {expected}")

    def parse(self, options: Mapping[str, Any]) -> MergerOptions:
        """Validate options from a configuration. Raises ConfigError: names every problem."""
        try:
            return self.options.model_validate(dict(options))
        except ValidationError as error:
            problems = problems_of(error, self.options, "all")
            raise ConfigError(f"options of {self.name}: {problems}") from error


_DARE = "Yu et al. 2023, Language models are super Mario, arXiv:2311.03099"
_GNNMERGE = (
    "Garg et al. 2025, GNNMerge: merging of GNN models without accessing training data,"
    " arXiv:2503.03384"
)
LINEAR_HEADS = (*get_args(BackboneKind), *get_args(GraphNetworkKind))
"""Kinds of networks with a linear head, whose linear maps and hidden units are known."""
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
        MergerSpec("dare", "DARE", _DARE, dare, DareOptions),
        MergerSpec("dare_ties", "DARE with TIES", _DARE, dare_ties, DareTiesOptions),
        MergerSpec(
            "tsv_merge",
            "TSV-Merge",
            "Gargiulo et al. 2025, Task singular vectors: reducing task interference in model"
            " merging, arXiv:2412.00081",
            tsv_merge,
            SpectralOptions,
        ),
        MergerSpec(
            "iso_c",
            "Iso-C",
            "Marczak et al. 2025, No task left behind: isotropic model merging with common and"
            " task-specific subspaces, arXiv:2502.04959",
            iso_c,
            SpectralOptions,
        ),
        MergerSpec(
            "wudi",
            "WUDI-Merging",
            "Cheng et al. 2025, Whoever started the interference should end it: guiding data-free"
            " model merging via task vectors, arXiv:2503.08099",
            wudi,
            WudiOptions,
        ),
        MergerSpec("emr", "EMR-Merging", "Huang et al. 2024, EMR-Merging, arXiv:2405.17461", emr),
        MergerSpec(
            "residual",
            "Average with low-rank residuals",
            "Goddard et al. 2024, Arcee's MergeKit: a toolkit for merging large language models,"
            " arXiv:2403.13257 (its extraction of LoRAs)",
            residual,
            ResidualOptions,
        ),
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
            targets=("multilabel", "multiclass"),  # the objective is an entropy
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
            _GNNMERGE,
            gnnmerge,
            IterativeOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "gnnmerge_pp",
            "GNNMerge++",
            _GNNMERGE,
            gnnmerge_plus_plus,
            ClosedFormOptions,
            calibrated=True,
            kinds=LINEAR_HEADS,
        ),
        MergerSpec(
            "message_calibration",
            "Average with calibrated messages",
            "Jing et al. 2024, Deep graph mating (NeurIPS); Bhattacharya et al. 2026, Training-free"
            " cross-architecture merging for graph neural networks, arXiv:2602.19332",
            message_calibration,
            calibrated=True,
            # Where there is BatchNorm, its statistics of every task would undo it.
            kinds=get_args(GraphNetworkKind),
        ),
        MergerSpec(
            "gffmerge",
            "GFFMerge",
            "Verma et al. 2026, GFFMerge, arXiv:2606.03232",
            gffmerge,
            GffMergeOptions,
            calibrated=True,
            kinds=("schnet", "chgnet"),
        ),
    )
}


def merger_spec(method: str) -> MergerSpec:
    """Return the row of a merger by name. Raises ConfigError: there is none."""
    if method not in MERGERS:
        expected = one_of(method, tuple(MERGERS))
        raise ConfigError(f"got merge method {method!r}, expected {expected}")
    return MERGERS[method]


def merge(
    method: str, inputs: MergeInputs, options: Mapping[str, Any] | None = None
) -> MergeResult:
    """Run a merger by name.

    Args:
        method: name of the merger.
        inputs: the backbones to merge.
        options: values by name; defaults for those that are missing.

    Raises:
        ConfigError: there is no such merger or option, or it cannot merge networks of this kind.
        InvalidInputError: there is no model, or the merger needs calibration data that are missing.
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
            f"calibration: got {sorted(inputs.calibration)}, expected graphs for"
            f" {sorted(inputs.finetuned)} ({method} needs them)"
        )
    return spec.merger(inputs, parsed)


class MergeConfig(Section):
    """A merger by name (`merging.mergers.registry`) and its options; defaults for those that are
    missing."""

    method: str = "task_arithmetic"
    options: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        merger_spec(self.method).parse(self.options)
        return self
