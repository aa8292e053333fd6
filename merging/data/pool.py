"""A pool of unlabelled graphs: drawn from several sources, each graph once, without those that a
later evaluation is measured on. Molecules are told apart by their canonical SMILES, other graphs by
the colours of their nodes."""

import random
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from models.data.feature_graph import FeatureGraph, pack_features
from models.data.molecule import MolGraph, PackedGraphs, pack
from models.data.smiles import featurize_all
from models.errors import DataError, MoleculeError

T = TypeVar("T")
_CHUNK = 512
_Read = tuple[str, list[NDArray[np.int64]]] | None
"""Canonical SMILES and the fields of a MolGraph as arrays (tensors would hold a file descriptor
each on their way to the parent process); None for what cannot be read."""


@dataclass(frozen=True)
class Pool:
    """Different graphs in random order.

    Attributes:
        graphs: P graphs.
        record: `drawn`, the number of graphs by source; of these `unreadable`, `repeated` and
            `left_out`; `molecules` or `graphs`, the size P of the pool.
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
    chosen, counts = _choose(_read(texts, workers, "pool"), excluded, size, seed)
    graphs = pack([MolGraph(*map(torch.from_numpy, arrays)) for arrays in chosen])
    drawn = {name: len(source) for name, source in sources.items()}
    return Pool(graphs, {"drawn": drawn, **counts, "molecules": len(graphs)})


def make_feature_pool(
    sources: Mapping[str, Sequence[FeatureGraph]],
    left_out: Sequence[FeatureGraph],
    size: int | None,
    seed: int,
    rounds: int,
) -> Pool:
    """Collect graphs with numeric node features.

    Two graphs are the same if `rounds` rounds of colour refinement cannot tell them apart
    (`feature_keys`).

    Args:
        sources: graphs of one width, by source.
        left_out: graphs that must not be in the pool.
        size: maximum number of graphs, drawn from all; None keeps all.
        seed: of the order and the draw.
        rounds: L for networks of L layers, which answer the same for such graphs.

    Raises:
        DataError: no graph is left.
    """
    graphs = [graph for source in sources.values() for graph in source]
    excluded = set(feature_keys(left_out, rounds))
    read = zip(feature_keys(graphs, rounds), graphs, strict=True)
    chosen, counts = _choose(read, excluded, size, seed)
    drawn = {name: len(source) for name, source in sources.items()}
    return Pool(pack_features(chosen), {"drawn": drawn, **counts, "graphs": len(chosen)})


def _choose(
    read: Iterable[tuple[Hashable, T] | None],
    excluded: Collection[Hashable],
    size: int | None,
    seed: int,
) -> tuple[list[T], dict[str, int]]:
    """Keep every item once, by its key, and none with an excluded key; draw `size` of them. Return
    them with the numbers of those that were not kept, by reason."""
    counts = dict.fromkeys(("unreadable", "repeated", "left_out"), 0)
    found: dict[Hashable, T] = {}
    for item in read:
        if item is None:
            counts["unreadable"] += 1
        elif item[0] in excluded:
            counts["left_out"] += 1
        elif item[0] in found:
            counts["repeated"] += 1
        else:
            found[item[0]] = item[1]
    if not found:
        raise DataError(f"got {counts} and nothing else, expected some graphs for the pool")
    kept = list(found.values())
    return random.Random(seed).sample(kept, min(size or len(kept), len(kept))), counts


def feature_keys(graphs: Sequence[FeatureGraph], rounds: int) -> list[tuple[int, ...]]:
    """Compute keys of graphs that do not depend on the order of their nodes: numbers of nodes and
    edges, and 128 bits of the colours that their nodes have after rounds of colour refinement.

    A node's first colour is its features; a round adds the colours of the nodes with an edge to it
    (Weisfeiler and Leman 1968). A network of L layers answers alike for graphs that L rounds cannot
    tell apart (Xu et al. 2019, arXiv:1810.00826, lemma 2).
    """
    if not graphs:
        return []
    packed = pack_features(graphs)
    nodes, edges = packed.node_counts.numpy(), packed.edge_counts.numpy()
    owner = np.repeat(np.arange(len(nodes)), nodes)
    source, target = packed.edge_index.numpy() + np.repeat(nodes.cumsum() - nodes, edges)
    colours = np.zeros(len(owner), dtype=np.uint64)
    # Adding 0 makes -0.0, which equals it, the same bits.
    for column in (packed.x + 0.0).numpy().view(np.uint32).T:
        colours = _mixed(colours + column)
    for _ in range(rounds):
        entering = np.zeros_like(colours)
        np.add.at(entering, target, _mixed(colours)[source])
        colours = _mixed(3 * colours + entering)
    sums = np.zeros((2, len(nodes)), dtype=np.uint64)
    np.add.at(sums[0], owner, colours)
    np.add.at(sums[1], owner, _mixed(colours))
    return list(zip(nodes.tolist(), edges.tolist(), *sums.tolist(), strict=True))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash numbers by SplitMix64 (Steele, Lea and Flood 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(items: Iterable[T], most: int | None, seed: int, name: str) -> list[T]:
    """Draw at most `most` items, each with the same probability, in one pass (reservoir sampling,
    algorithm R); all of them if `most` is None.

    Args:
        seed, name: of the draw, so that a source's draw does not depend on the other sources.
    """
    if most is None:
        return list(items)
    generator = random.Random(zlib.crc32(f"{seed}/{name}".encode()))
    kept: list[T] = []
    for k, item in enumerate(items):
        if k < most:
            kept.append(item)
        elif (place := generator.randrange(k + 1)) < most:
            kept[place] = item
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
