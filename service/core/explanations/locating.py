"""Reading of canonical SMILES with their atoms in order, in the processes of the parser."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray

from models.data.located import LocatedColumn
from models.families.inputs import Graph, tensors_of
from service.core.reading import InputRequirements


@dataclass(frozen=True)
class Located:
    """A molecule or graph to be explained.

    Attributes:
        graph: whose nodes have the order of the answer.
        columns: columns of the fingerprint that lie on atoms; empty without a fingerprint.
    """

    graph: Graph
    columns: Mapping[int, LocatedColumn] = field(default_factory=dict)


Wire = tuple[Callable[..., Graph], list[NDArray[Any]], Mapping[int, LocatedColumn]]
"""What a process sends of a molecule: class and arrays of the graph, and its bits."""


def locate(smiles: str, requirements: InputRequirements) -> Located:
    """Read the canonical SMILES of an answer; the graph has a fingerprint if the tasks need it."""
    sums = requirements.family.node_sums
    assert sums is not None  # `EngineInfo.check_atoms`
    assert sums.locate is not None  # else there is no SMILES
    found = sums.locate(smiles, fingerprint=requirements.schema.has_fingerprint)
    return Located(found.graph, found.columns)


def send(smiles: str, requirements: InputRequirements) -> Wire:
    """Do as `locate` in another process; `received` turns the result into a molecule."""
    found = locate(smiles, requirements)
    arrays = [tensor.numpy() for tensor in tensors_of(found.graph)]
    return type(found.graph), arrays, found.columns


def received(wire: Wire) -> Located:
    """Return the molecule that a process sent."""
    kind, arrays, bits = wire
    return Located(kind(*map(torch.from_numpy, arrays)), bits)
