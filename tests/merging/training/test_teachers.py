from functools import partial

import torch
from torch import Tensor, nn

from merging.training.joint_alignment import linear
from merging.training.teachers import EnsembleTeacher, NetworkTeacher
from models.data.batch import GraphBatch, mean_readout
from models.experts.adapter import trace
from tests.conftest import pico_config, random_backbone


def network_teacher(seed: int, labels: tuple[str, ...] = ("one", "two")) -> NetworkTeacher:
    """A random network with a random head."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(len(labels), 16, generator=generator)
    head = linear(weight, torch.randn(len(labels), generator=generator))
    backbone = random_backbone(pico_config(), seed=seed)
    return NetworkTeacher(labels, head, backbone.config, partial(trace, backbone))


class Formula:
    """A teacher that is no network: the mean atom type of a molecule, times 1, 2, ..."""

    labels = ("one", "two")
    head: nn.Linear | None = None

    def outputs(self, batch: GraphBatch) -> Tensor:
        mean = mean_readout(batch.x[:, :1].float(), batch)
        return mean * torch.tensor([1.0, 2.0])


def test_a_network_answers_by_its_head(molecules: GraphBatch) -> None:
    teacher, backbone = network_teacher(3), random_backbone(pico_config(), seed=3)
    embedding = mean_readout(backbone(molecules), molecules)
    expected = embedding @ teacher.head.weight.T + teacher.head.bias
    torch.testing.assert_close(teacher.outputs(molecules), expected)
    assert not teacher.outputs(molecules).requires_grad


def test_an_ensemble_is_the_mean_of_its_members(molecules: GraphBatch) -> None:
    members = network_teacher(1), network_teacher(2), Formula()
    ensemble = EnsembleTeacher(members)
    expected = sum(member.outputs(molecules) for member in members) / 3
    torch.testing.assert_close(ensemble.outputs(molecules), expected)
    assert ensemble.labels == ("one", "two")
