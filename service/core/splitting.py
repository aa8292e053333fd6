"""Answers of a model as sums of contributions, of nodes and of columns of fingerprints."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from models.data.fingerprint import fingerprints_of
from models.experts.combination import ForestMember
from models.experts.contributions import AnswerSum, NetworkSum, answer_sum
from models.experts.unified import Routing
from models.families.base import ModelFamily
from models.families.inputs import Graph

Labels = Mapping[str, Sequence[int]]
"""By task, positions of labels."""


class AnswerSplitter:
    """Splits the answers of a model."""

    def __init__(self, model: Any, family: ModelFamily, device: torch.device) -> None:
        """Create a splitter.

        Args:
            model: from `ModelFamily.model`, on the device.
            family: of the model.
            device: of the model.
        """
        self._model, self._family, self._device = model, family, device

    def split(
        self,
        graphs: Sequence[Graph],
        labels: Labels,
        routing: Routing,
        members: Mapping[str, ForestMember],
    ) -> list[dict[str, AnswerSum]]:
        """Split the answers for graphs.

        Args:
            graphs: at least one.
            labels: to be split.
            routing: how experts are mixed.
            members: forests that answer, by task; the network alone answers the other tasks, and
                for graphs without a fingerprint all tasks.

        Returns:
            By task for every graph.
        """
        positions, rows = fingerprints_of(graphs)
        row_of = dict(zip(positions, rows, strict=True))
        without_row = len(row_of) < len(graphs)
        needed = {
            task: chosen
            for task, chosen in labels.items()
            if without_row or task not in members or members[task].choice == "both"
        }
        networks = self._network_sums(graphs, needed, routing) if needed else {}
        return [
            {
                task: answer_sum(
                    networks[task][k] if task in networks else None,
                    row_of.get(k),
                    members.get(task),
                    chosen,
                )
                for task, chosen in labels.items()
            }
            for k in range(len(graphs))
        ]

    def _network_sums(
        self, graphs: Sequence[Graph], labels: Labels, routing: Routing
    ) -> dict[str, list[NetworkSum]]:
        """Split outputs of the network, by task for every graph."""
        sums = self._family.node_sums
        assert sums is not None  # `EngineInfo.check_atoms`
        with torch.inference_mode():
            batch = self._family.collate(graphs).to(self._device)
            found = sums.split(self._model, batch, labels, routing)
        networks = {}
        for task, split in found.items():
            outputs, bias = split.outputs.double().cpu().numpy(), split.bias.double().cpu().numpy()
            by_graph = split.contributions.cpu().split(list(split.sizes))
            networks[task] = [
                NetworkSum(of_graph, bias, nodes.numpy())
                for of_graph, nodes in zip(outputs, by_graph, strict=True)
            ]
        return networks
