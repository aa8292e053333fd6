"""The SMILES corpus for pre-training: molecules of text files, without those of the benchmarks,
featurised once into shards."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from rdkit import Chem, rdBase
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from merging.config.base import Count, Section, fingerprint
from merging.data.descriptors import DESCRIPTORS_VERSION, compute_descriptors
from merging.data.files import read_json, reading, sha256, write_json, write_tensors
from merging.data.molecule_dataset import MOLECULENET
from merging.data.molecule_files import read_molecules
from models.data.molecule import PackedGraphs, pack
from models.data.smiles import READING_RULE, featurize_all, read_smiles
from models.errors import DataError, MoleculeError

SHARD_SIZE = 32_768
"""The most molecules in a shard: 20 MB of drug-like molecules, which bounds the memory for graphs;
two minutes of training on one CPU core."""
_CHUNK = 1024
_VERSION = "1"
_COUNTED = ("molecules", "unreadable", "excluded")


class CorpusConfig(Section):
    """The molecules to pre-train on.

    Attributes:
        files: paths in the data folder, see `merging.data.molecule_files`. Earlier files are read
            first, so that `max_molecules` cuts off the last ones.
        max_molecules: the most different molecules, in the order of the files; None for all.
        max_per_file: the most molecules of one file, its first ones that are new; None for all.
        exclude_benchmarks: leave out every molecule whose canonical SMILES occurs in a MoleculeNet
            file of the data folder.
    """

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    max_molecules: Count | None = None
    max_per_file: Count | None = None
    exclude_benchmarks: bool = True

    @model_serializer(mode="wrap")
    def _without_default(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an absent `max_per_file`, so that featurised corpora keep their keys."""
        values: dict[str, Any] = handler(self)
        if self.max_per_file is None:
            del values["max_per_file"]
        return values


@dataclass(frozen=True)
class Corpus:
    """Featurised molecules in shards, each shard a random sample of the whole.

    Attributes:
        folder: holds the shards.
        record: `files` and `benchmarks` (SHA-256 by name); `lines`, the number of different lines
            read, of which some were `unreadable`, some `excluded` and the rest are the `molecules`;
            `shards`, the number of molecules of every shard.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of molecules of every shard."""
        return tuple(self.record["shards"])

    def shard(self, k: int) -> "Shard":
        """Read shard `k` from its file. Raises DataError: it is damaged."""
        path = _shard_path(self.folder, k)
        with reading(path):
            tensors = load_file(path)
            descriptors = tensors.pop("descriptors", None)
            return Shard(PackedGraphs(**tensors), descriptors)


@dataclass(frozen=True)
class Shard:
    """The molecules of a shard.

    Attributes:
        graphs: M molecules.
        descriptors: (M, D) float32, see `merging.data.descriptors`; None if the corpus has none.
    """

    graphs: PackedGraphs
    descriptors: Tensor | None = None


def load_corpus(
    config: CorpusConfig,
    data_folder: Path,
    cache_folder: Path,
    workers: int = 1,
    descriptors: bool = False,
) -> Corpus:
    """Read a corpus from the cache, or featurise it into the cache.

    An interrupted featurisation continues with its first missing shard. Lines are assigned to
    shards by a shuffle with a fixed seed, so that runs with different seeds share the cache.

    Args:
        config: the files.
        data_folder: holds them.
        cache_folder: gets the shards, in a folder named by a hash of all that they depend on.
        workers: processes for featurising.
        descriptors: compute the molecules' descriptors, too.

    Raises:
        DataError: a file is absent, or no line of a shard is a molecule.
    """
    files = {name: data_folder / name for name in config.files}
    for name, file in files.items():
        if not file.is_file():
            raise DataError(
                f"got no file {name} in {data_folder}, expected SMILES, one a line (set"
                " GMERGING_DATA)"
            )
    tables = _benchmark_tables(data_folder) if config.exclude_benchmarks else {}
    origin = {
        "files": {name: sha256(file) for name, file in files.items()},
        "benchmarks": {task: sha256(file) for task, file in tables.items()},
    }
    rules = (READING_RULE, DESCRIPTORS_VERSION) if descriptors else (READING_RULE,)
    key = fingerprint(_VERSION, *rules, SHARD_SIZE, config, json.dumps(origin))
    folder = cache_folder / f"corpus-{key}"
    record = read_json(folder / "corpus.json")
    if record is None:
        smiles = _read_lines(list(files.values()), config)
        excluded = _canonical_smiles(tables, workers)
        record = origin | _write_shards(folder, smiles, excluded, workers, descriptors)
        write_json(folder / "corpus.json", record)
    return Corpus(folder, record)


def _read_lines(files: Sequence[Path], config: CorpusConfig) -> list[str]:
    """Distinct SMILES as written, in the order of the files, within the limits of the
    configuration."""
    found: dict[str, None] = {}
    for file in files:
        before = len(found)
        for smiles in read_molecules(file):
            if len(found) == config.max_molecules:
                return list(found)
            if len(found) - before == config.max_per_file:
                break
            found[smiles] = None
    return list(found)


def _benchmark_tables(data_folder: Path) -> dict[str, Path]:
    """The MoleculeNet files that exist in the data folder, by task."""
    candidates = [
        (task, data_folder / f"moleculenet/{task}.csv{ending}")
        for task in MOLECULENET
        for ending in ("", ".gz")
    ]
    return {task: file for task, file in candidates if file.is_file()}


def _canonical_smiles(tables: dict[str, Path], workers: int) -> frozenset[str]:
    """Canonical SMILES of all rows that can be read in tolerant mode, as data sets are read."""
    rows = [read_molecules(file, MOLECULENET[task].smiles_column) for task, file in tables.items()]
    smiles = list({molecule for column in rows for molecule in column})
    if not smiles:
        return frozenset()
    with ProcessPoolExecutor(workers) as pool:
        canonical = pool.map(_canonical, smiles, chunksize=_CHUNK)
        progress = tqdm(canonical, total=len(smiles), desc="benchmark molecules", unit="mol")
        return frozenset(molecule for molecule in progress if molecule)


def _canonical(smiles: str) -> str | None:
    with rdBase.BlockLogs():
        try:
            return str(Chem.MolToSmiles(read_smiles(smiles, strict=False)))
        except MoleculeError:
            return None


def _shard_path(folder: Path, k: int) -> Path:
    return folder / f"shard-{k:05d}.safetensors"


def _write_shards(
    folder: Path, smiles: list[str], excluded: frozenset[str], workers: int, descriptors: bool
) -> dict[str, Any]:
    """Featurise all lines, shard by shard, and count molecules, unreadable and excluded lines."""
    order = np.random.default_rng(0).permutation(len(smiles))
    shards = np.array_split(order, max(1, math.ceil(len(smiles) / SHARD_SIZE)))
    progress = tqdm(total=len(smiles), desc="corpus", unit="mol", unit_scale=True)
    with (
        ProcessPoolExecutor(workers, initializer=_remember, initargs=(excluded,)) as pool,
        progress,
    ):
        for k, lines in enumerate(shards):
            if not _shard_path(folder, k).is_file():
                chunks = [
                    [smiles[i] for i in lines[start : start + _CHUNK]]
                    for start in range(0, len(lines), _CHUNK)
                ]
                featurize = partial(_featurize_chunk, descriptors=descriptors)
                _write_shard(_shard_path(folder, k), list(pool.map(featurize, chunks)))
            progress.update(len(lines))
    counts = [_read_counts(_shard_path(folder, k)) for k in range(len(shards))]
    totals = {name: sum(count[name] for count in counts) for name in _COUNTED}
    return {"lines": len(smiles), **totals, "shards": [count["molecules"] for count in counts]}


_Arrays = dict[str, NDArray[Any]]
_excluded: frozenset[str] = frozenset()


def _remember(excluded: frozenset[str]) -> None:
    """Give a worker process the molecules to leave out, once and not with every chunk."""
    global _excluded
    _excluded = excluded


def _featurize_chunk(smiles: list[str], descriptors: bool) -> tuple[_Arrays | None, Counter[str]]:
    """The fields of `PackedGraphs` as arrays, with the descriptors where they are wanted, and the
    counts of lines. Arrays, because tensors would hold a file descriptor each on their way to the
    parent process."""
    molecules, counts = [], Counter[str]()
    for molecule in featurize_all(smiles):
        if isinstance(molecule, MoleculeError):
            counts["unreadable"] += 1
        elif molecule.smiles in _excluded:
            counts["excluded"] += 1
        else:
            molecules.append(molecule)
    counts["molecules"] = len(molecules)
    if not molecules:
        return None, counts
    packed = pack([molecule.graph for molecule in molecules])
    arrays = {name: tensor.numpy() for name, tensor in vars(packed).items()}
    if descriptors:
        arrays["descriptors"] = compute_descriptors([molecule.smiles for molecule in molecules])
    return arrays, counts


def _write_shard(path: Path, chunks: list[tuple[_Arrays | None, Counter[str]]]) -> None:
    packed = [arrays for arrays, _ in chunks if arrays is not None]
    counts = sum((count for _, count in chunks), Counter[str]())
    if not packed:
        raise DataError(
            f"got {counts['unreadable']} unreadable lines, {counts['excluded']} excluded molecules"
            " and no other, expected SMILES, one a line"
        )
    tensors = {
        name: torch.from_numpy(
            np.concatenate([arrays[name] for arrays in packed], axis=int(name == "edge_index"))
        )
        for name in packed[0]
    }
    write_tensors(path, tensors, {name: str(counts[name]) for name in _COUNTED})


def _read_counts(path: Path) -> dict[str, int]:
    with reading(path), safe_open(path, "pt") as stream:
        return {name: int(value) for name, value in stream.metadata().items()}
