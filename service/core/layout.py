"""Mol blocks of answered molecules, for answers as SDF."""

from collections.abc import Sequence
from dataclasses import replace

from models.data.layout import mol_block
from models.errors import MoleculeError
from service.core.answer import Answer, Result
from service.core.reading import ItemFailure, MolBlock, Source, cut


def lay_out(smiles: str) -> str | ItemFailure:
    """Return the mol block of a molecule that was read, with computed coordinates, or an error."""
    try:
        return mol_block(smiles)
    except MoleculeError as error:
        return ItemFailure(error.code, cut(str(error)))


def without_block(sources: Sequence[Source], results: Sequence[Result]) -> dict[int, str]:
    """Return the SMILES of answered molecules that were not given as mol blocks, by position."""
    return {
        k: result.smiles
        for k, (source, result) in enumerate(zip(sources, results, strict=True))
        if isinstance(result, Answer)
        and result.smiles is not None
        and not isinstance(source, MolBlock)
    }


def with_blocks(
    results: Sequence[Result], positions: Sequence[int], blocks: Sequence[str | ItemFailure]
) -> list[Result]:
    """Add mol blocks, or their errors, to the answers at some positions."""
    changed = list(results)
    for k, block in zip(positions, blocks, strict=True):
        answer = changed[k]
        assert isinstance(answer, Answer)
        changed[k] = replace(answer, mol_block=block)
    return changed
