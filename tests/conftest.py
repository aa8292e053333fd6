"""What several tests share: real molecules, pico models, and where the shared data lies, if it
does."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.data.atoms import Atoms, AtomsBatch, join, neighbours
from models.data.batch import GraphBatch
from models.data.molecule import collate
from models.data.smiles import featurize
from models.experts.adapter import Stream
from models.experts.expert import Expert, SharedExpert, TaskExpert
from models.networks.hu2020 import Backbone, BackboneConfig, BackboneKind

SHARED = Path(os.environ.get("GMERGING_DATA", Path(__file__).parents[2] / "shared" / "data")).parent
KINDS: tuple[BackboneKind, ...] = ("gin", "gcn", "graphsage", "gat", "gin_linear")
SMILES = (
    "CCO",
    "C",
    "[Na+].[Cl-]",
    "c1ccccc1C(=O)O",
    "CC(=O)Oc1ccccc1C(=O)O",
    "F/C=C/F",
    "C[C@H](N)C(=O)O",
    "N#Cc1ccc2[nH]ccc2c1",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "O=[N+]([O-])c1ccccc1",
)

torch.set_num_threads(1)


def pytest_report_header() -> str:
    return (
        "shared data:"
        f" {SHARED if SHARED.is_dir() else f'not at {SHARED}; tests that need it are skipped'}"
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared data, which does not lie at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def molecules() -> GraphBatch:
    return collate([featurize(smiles).graph for smiles in SMILES])


def assert_law(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """The same in float64: how a processor rounds in float32 is not for a law to depend on."""
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def pico_config(kind: BackboneKind = "gcn") -> BackboneConfig:
    return BackboneConfig(kind=kind, num_layers=3, hidden_dim=16)


def collate_atoms(structures: Sequence[Atoms], cutoff: float) -> AtomsBatch:
    """Join structures to one batch with the neighbours within `cutoff` Angstrom."""
    return join(structures, [neighbours(structure, cutoff) for structure in structures])


def random_backbone(config: BackboneConfig, seed: int = 0) -> Backbone:
    """A backbone in evaluation mode whose every number differs, BatchNorm's included, so that a
    forgotten one is seen."""
    generator = torch.Generator().manual_seed(seed)
    backbone = Backbone(config).eval()
    with torch.no_grad():
        for value in (*backbone.parameters(), *backbone.buffers()):
            if value.is_floating_point():
                value.copy_(
                    torch.rand(value.shape, generator=generator)
                    - (0.5 if value.dim() > 1 else -0.5)
                )
    return backbone


def random_experts(config: BackboneConfig, rank: int = 4, seed: int = 0) -> dict[str, Expert]:
    """Three experts with 1, 3 and 2 labels whose every number differs."""
    generator = torch.Generator().manual_seed(seed)
    experts = {
        task: Expert(config, rank, [f"{task}_{k}" for k in range(labels)])
        for task, labels in (("alpha", 1), ("beta", 3), ("gamma", 2))
    }
    with torch.no_grad():
        for expert in experts.values():
            for value in (*expert.parameters(), *expert.buffers()):
                value.copy_(torch.rand(value.shape, generator=generator) - 0.5)
            expert.adapters.norm_var.abs_().add_(0.5)
    return experts


def random_stream(config: BackboneConfig, rank: int = 0, name: str = "common") -> Stream:
    """A shared stream whose every number differs."""
    generator = torch.Generator().manual_seed(len(name) + rank)
    stream = Stream(config, rank, name)
    with torch.no_grad():
        for value in (*stream.parameters(), *stream.buffers()):
            value.copy_(torch.rand(value.shape, generator=generator) - 0.5)
        stream.norm_var.abs_().add_(0.5)
    return stream


def random_shared_experts(
    stream: Stream, labels: Sequence[int] = (2, 1, 3), rank: int = 6
) -> dict[str, SharedExpert]:
    """Experts that read from one stream, whose every number differs, named after the stream."""
    generator = torch.Generator().manual_seed(len(stream.name))
    experts = {}
    for k, count in enumerate(labels):
        task = f"{stream.name}_{k}"
        experts[task] = SharedExpert(stream, rank, [f"{task}_{c}" for c in range(count)])
        with torch.no_grad():
            for value in experts[task].parameters():
                value.copy_(torch.rand(value.shape, generator=generator) - 0.5)
    return experts


SHARING = ("shared", "mixed", "adapted", "several")
"""Cases of `sharing_experts`."""


def sharing_experts(case: str, config: BackboneConfig) -> dict[str, TaskExpert]:
    """Experts of which some share streams.

    Args:
        case: "shared": all share one stream without node adapters. "mixed": with three tasks of
            their own streams between them. "adapted": as "mixed", and the shared stream has node
            adapters. "several": two shared streams, one of them with node adapters, and one task
            with a stream of its own.
        config: shape of the backbone.
    """
    own: dict[str, TaskExpert] = {**random_experts(config)}
    shared = random_shared_experts(random_stream(config, 3 if case == "adapted" else 0))
    if case == "shared":
        return {**shared}
    names = list(shared)
    if case == "several":
        other = random_shared_experts(random_stream(config, 2, "another"), (1, 2), 4)
        return {names[0]: shared[names[0]], **other, "beta": own["beta"], **shared}
    first = {task: own[task] for task in ("beta", "alpha")}
    return {names[0]: shared[names[0]], **first, **shared, "gamma": own["gamma"]}
