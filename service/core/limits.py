"""What a model takes of a request, and how large it may be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.data.schema import InputSchema, MoleculeInput
from models.errors import MoleculeError
from models.families.base import Graph, ModelFamily, ReadMolecule, SizeLimits
from models.families.table import FAMILIES
from models.networks.base import NetworkShape
from models.networks.hu2020 import BackboneConfig

_GCN = BackboneConfig(kind="gcn")
_MOLECULES = MoleculeInput()


@dataclass(frozen=True)
class MoleculeLimits(SizeLimits):
    """How large a molecule or graph may be, and how long the text of a molecule.

    Attributes:
        max_smiles_length: characters of a SMILES; other texts may be so many times longer.
    """

    max_smiles_length: int


@dataclass(frozen=True)
class InputRequirements:
    """What the asked tasks of a model take; by default molecules.

    Attributes:
        shape: of the model's network.
        schema: the model's, of these tasks alone.
        of_nodes: whether one of the tasks answers for each node.
    """

    shape: NetworkShape = _GCN
    schema: InputSchema = _MOLECULES
    of_nodes: bool = False

    @property
    def family(self) -> ModelFamily:
        """How inputs of this kind are read."""
        return FAMILIES[self.shape.kind]

    def read(self, fields: Mapping[str, Any], limits: SizeLimits) -> Graph:
        """See `ModelFamily.read`."""
        return self.family.read(fields, self.shape, self.schema, limits)

    def read_texts(
        self, texts: Sequence[str], limits: SizeLimits
    ) -> Sequence[ReadMolecule | MoleculeError]:
        """Molecules as SMILES, or what else is known by its look, where `no_text` is None; an
        error is returned, not raised."""
        read = self.family.read_texts
        return [] if read is None else read(texts, self.shape, self.schema, limits)

    def smallest(self, task: str) -> Graph:
        """See `ModelFamily.smallest`."""
        return self.family.smallest(self.shape, self.schema, task)

    @property
    def no_text(self) -> str | None:
        """Why a SMILES or a mol block will not do; None if it will."""
        if self.family.read_texts is None:
            return f"the model takes {self.family.fields.words}"
        if self.of_nodes:
            return "a task that answers for each atom takes `graphs`, whose atoms have an order"
        return None


MOLECULES = InputRequirements()
"""What a model of molecules takes."""
