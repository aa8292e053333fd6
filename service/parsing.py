"""Text and lists to molecules, off the event loop.

RDKit holds the interpreter's lock while it reads a SMILES, so with a thread the event loop waits for one molecule at most, and the limit on length
bounds that (see `service.settings`). Chunks of different requests take turns on the thread. What crosses to it is plain data, and every function that
runs on it is a module's own, so that it can become another process.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from models.errors import GMergingError, MoleculeError
from models.featurize import featurize
from models.graph import MolGraph
from service.schemas import GraphIn

log = logging.getLogger(__name__)

ITEM_CODES = (
    "empty_smiles",
    "smiles_syntax",
    "smiles_too_long",
    "chemistry",
    "dummy_atom",
    "bond_type",
    "too_many_atoms",
    "too_many_bonds",
    "invalid_graph",
    "unreadable",
)
"""Every code that an item's error can have."""

_LIMIT_NAMES = {"smiles_too_long": " (max_smiles_length)", "too_many_atoms": " (max_atoms)", "too_many_bonds": " (4 * max_atoms)"}
_LONGEST_MESSAGE = 300
_CHUNK = 16  # a few milliseconds of work, against about 0.1 ms for the way to the thread and back


@dataclass(frozen=True)
class MoleculeLimits:
    """How large a molecule may be."""

    max_atoms: int
    max_smiles_length: int

    @property
    def max_bonds(self) -> int:
        """A cage has 1.5 bonds per atom; far beyond it a graph is no molecule, and its edges would cost more than its atoms say."""
        return 2 * self.max_atoms


@dataclass(frozen=True)
class Parsed:
    """A molecule that was read.

    Attributes:
        smiles: canonical; None if it came as a graph.
        graph: its graph.
    """

    smiles: str | None
    graph: MolGraph


@dataclass(frozen=True)
class Unreadable:
    """A molecule that could not be read: a stable code and a sentence."""

    code: str
    message: str


Source = str | GraphIn


def read(source: Source, limits: MoleculeLimits) -> Parsed | Unreadable:
    """Read one molecule; never raises on account of what a client sent."""
    try:
        return _read_smiles(source, limits) if isinstance(source, str) else _read_graph(source, limits)
    except MoleculeError as error:
        return Unreadable(error.code, _cut(str(error)) + _LIMIT_NAMES.get(error.code, ""))
    except GMergingError as error:
        return Unreadable("invalid_graph", _cut(str(error)))
    except Exception:  # RDKit has been seen to raise bare RuntimeErrors on odd input: that is its sender's trouble and nobody else's
        log.exception("a molecule could not be read")
        return Unreadable("unreadable", "the molecule could not be read, for a reason that is not known")


def _cut(message: str) -> str:
    """RDKit finds a problem in every atom, if there is one."""
    return message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 3] + "..."


def _read_smiles(text: str, limits: MoleculeLimits) -> Parsed:
    if len(text) > limits.max_smiles_length:
        raise MoleculeError("smiles_too_long", f"got {len(text)} characters, expected at most {limits.max_smiles_length}")
    molecule = featurize(text, max_atoms=limits.max_atoms)
    return Parsed(molecule.smiles, molecule.graph)


def _read_graph(source: GraphIn, limits: MoleculeLimits) -> Parsed:
    if len(source.x) > limits.max_atoms:
        raise MoleculeError("too_many_atoms", f"got {len(source.x)} atoms, expected at most {limits.max_atoms}")
    if len(source.edge_attr) > 2 * limits.max_bonds:
        raise MoleculeError("too_many_bonds", f"got {len(source.edge_attr)} edges, expected at most {2 * limits.max_bonds}")
    return Parsed(None, MolGraph.from_lists(source.x, source.edge_index, source.edge_attr))


def _read_all(sources: Sequence[Source], limits: MoleculeLimits) -> list[Parsed | Unreadable]:
    return [read(source, limits) for source in sources]


class Parser:
    """Reads molecules for the event loop."""

    def __init__(self, limits: MoleculeLimits) -> None:
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parser")

    async def parse(self, sources: Sequence[Source]) -> list[Parsed | Unreadable]:
        """Read molecules, in their order."""
        loop = asyncio.get_running_loop()
        parsed: list[Parsed | Unreadable] = []
        for begin in range(0, len(sources), _CHUNK):
            parsed += await loop.run_in_executor(self._thread, _read_all, sources[begin : begin + _CHUNK], self._limits)
        return parsed

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(cancel_futures=True)

    def cost(self, source: Source) -> int:
        """At least the number of heavy atoms of a molecule that has not been read: every one is a character at least."""
        return max(1, min(len(source), self._limits.max_smiles_length) if isinstance(source, str) else min(len(source.x), self._limits.max_atoms))
