"""Answers as sums of contributions: the outputs of network and trees, weighed and scaled as their
combination weighs and scales them (`models.experts.combination`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.experts.combination import EXPERTS, ExpertName, ForestMember
from models.experts.forest import ColumnSum, Doubles, Floats


@dataclass(frozen=True)
class ExpertSum:
    """What an expert contributes to C labels of a task, for one graph of n nodes.

    Attributes:
        weight: of the expert in the answer.
        nodes: (n, C), contributions of the nodes; None from trees.
        columns: (C, F), contributions of the columns of a fingerprint; None from the network.
    """

    weight: float
    nodes: Doubles | None = None
    columns: Doubles | None = None


@dataclass(frozen=True)
class AnswerSum:
    """Answers of C labels of a task for one graph, before the sigmoid or another function that
    turns outputs into answers. They are the baseline plus all contributions.

    Attributes:
        outputs: (C,), as answered.
        baseline: (C,), output without any contribution.
        experts: those that answer, in the order of `EXPERTS`.
    """

    outputs: Doubles
    baseline: Doubles
    experts: Mapping[ExpertName, ExpertSum]


@dataclass(frozen=True)
class NetworkSum:
    """Outputs of the network for one graph: see `models.experts.node_sums.NodeSum`.

    Attributes:
        outputs, bias: (C,).
        contributions: (n, C).
    """

    outputs: Doubles
    bias: Doubles
    contributions: Doubles


def answer_sum(
    network: NetworkSum | None,
    row: Floats | None,
    member: ForestMember | None,
    labels: Sequence[int],
) -> AnswerSum:
    """Split the answers of one task for one graph.

    Args:
        network: None if the trees answer alone.
        row: (F,), the fingerprint; None if the network answers alone.
        member: the task's forest; None if the network answers alone.
        labels: positions of C labels.
    """
    if row is None or member is None:
        assert network is not None
        own = ExpertSum(1.0, nodes=network.contributions)
        return AnswerSum(network.outputs, network.bias, {"own": own})
    forest, weights, rows = member.forest, member.info.weights(member.choice), list(labels)
    scale = (forest.both_scale if member.choice == "both" else forest.scale)[rows]
    split: ColumnSum = forest.column_sums(row, labels)
    outputs = {"forest": forest.outputs(row[None])[0, rows].astype(np.float64)}
    baselines = {"forest": split.reference}
    columns = weights["forest"] * scale[:, None] * split.contributions
    experts = {"forest": ExpertSum(weights["forest"], columns=columns)}
    if network is not None and "own" in weights:
        outputs["own"], baselines["own"] = network.outputs, network.bias
        nodes = weights["own"] * scale * network.contributions
        experts["own"] = ExpertSum(weights["own"], nodes=nodes)
    return AnswerSum(
        scale * sum(weights[name] * outputs[name] for name in weights),
        scale * sum(weights[name] * baselines[name] for name in weights),
        {name: experts[name] for name in EXPERTS if name in experts},
    )
