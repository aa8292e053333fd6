"""A pool of unlabelled molecules: drawn from several sources, each molecule once, without those
that a later evaluation is measured on."""

import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.data.molecule import MolGraph, PackedGraphs, pack
from models.data.smiles import featurize_all
from models.errors import DataError, MoleculeError

_CHUNK = 512
_Read = tuple[str, list[NDArray[np.int64]]] | None
"""Canonical SMILES and the fields of a MolGraph as arrays (tensors would hold a file descriptor
each on their way to the parent process); None for what cannot be read."""


@dataclass(frozen=True)
class Pool:
    """Different molecules in random order.

    Attributes:
        graphs: P molecules.
        record: `drawn`, the number of molecules by source; of these `unreadable`, `repeated` and
            `left_out`; `molecules`, the size P of the pool.
    """

    graphs: PackedGraphs
    record: dict[str, Any]


def make_pool(
    sources: Mapping[str, Sequence[str]],
    left_out: Iterable[str],
    size: int | None,
    seed: int,
    workers: int = 1,
) -> Pool:
    """Read the molecules of all sources in tolerant mode, as data sets are read.

    Two molecules are the same if their canonical SMILES is (`models.data.smiles`), so that salts,
    charges and stereo count, and isotopes do not.

    Args:
        sources: SMILES as written, by source.
        left_out: SMILES of the molecules that must not be in the pool.
        size: maximum number of molecules, drawn from all; None keeps all.
        seed: of the order and the draw.
        workers: number of processes that read molecules.

    Raises:
        DataError: no molecule is left.
    """
    texts = [text for source in sources.values() for text in source]
    excluded = {read[0] for read in _read(sorted({*left_out}), workers, "left out") if read}
    counts = dict.fromkeys(("unreadable", "repeated", "left_out"), 0)
    found: dict[str, list[NDArray[np.int64]]] = {}
    for read in _read(texts, workers, "pool"):
        if read is None:
            counts["unreadable"] += 1
        elif read[0] in excluded:
            counts["left_out"] += 1
        elif read[0] in found:
            counts["repeated"] += 1
        else:
            found[read[0]] = read[1]
    if not found:
        raise DataError(f"got {counts} of {len(texts)} molecules, expected some for the pool")
    chosen = random.Random(seed).sample(list(found.values()), min(size or len(found), len(found)))
    graphs = pack([MolGraph(*map(torch.from_numpy, arrays)) for arrays in chosen])
    drawn = {name: len(source) for name, source in sources.items()}
    return Pool(graphs, {"drawn": drawn, **counts, "molecules": len(graphs)})


def draw(texts: Iterable[str], most: int | None, seed: int, name: str) -> list[str]:
    """Draw at most `most` texts, each with the same probability, in one pass (reservoir sampling,
    algorithm R); all of them if `most` is None.

    Args:
        seed, name: of the draw, so that a source's draw does not depend on the other sources.
    """
    if most is None:
        return list(texts)
    generator = random.Random(zlib.crc32(f"{seed}/{name}".encode()))
    kept: list[str] = []
    for k, text in enumerate(texts):
        if k < most:
            kept.append(text)
        elif (place := generator.randrange(k + 1)) < most:
            kept[place] = text
    return kept


def _read(texts: Sequence[str], workers: int, name: str) -> Iterator[_Read]:
    chunks = [texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK)]
    bar = tqdm(total=len(texts), desc=f"molecules: {name}", unit="mol")
    with bar, ProcessPoolExecutor(workers) as processes:
        for chunk in processes.map(_read_chunk, chunks):
            bar.update(len(chunk))
            yield from chunk


def _read_chunk(texts: Sequence[str]) -> list[_Read]:
    return [
        None
        if isinstance(molecule, MoleculeError)
        else (molecule.smiles, [tensor.numpy() for tensor in vars(molecule.graph).values()])
        for molecule in featurize_all(texts, strict=False)
    ]
