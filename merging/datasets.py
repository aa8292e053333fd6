"""The eight MoleculeNet sets of the paper: read, featurised, split by scaffold, cached."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from merging.files import open_text, sha256, write_tensors
from models.errors import DataError, InvalidInputError, MoleculeError
from models.featurize import READING_RULE, read_graph, read_smiles
from models.graph import MolGraph, PackedGraphs, pack
from models.names import check_labels

_CACHE_VERSION = f"1, reading rule {READING_RULE}"


class DatasetSpec(BaseModel):
    """A CSV file (plain or gzip) with a column of SMILES and columns of labels 0, 1 or empty.

    Attributes:
        smiles_column: the column of the SMILES.
        label_columns: the columns of the labels; None means all but the SMILES and `mol_id`.
        file: path in the data folder; None for MoleculeNet's own names and, where they are not there, PyG's loader.
        num_molecules, num_labels: the published size; a file of another size is an error. None does not check.
        about: one line for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    smiles_column: str = "smiles"
    label_columns: tuple[str, ...] | None = None
    file: str | None = None
    num_molecules: int | None = None
    num_labels: int | None = None
    about: str = ""

    @field_validator("label_columns")
    @classmethod
    def _distinct(cls, columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        check_labels(columns or ())
        return columns


def _published(smiles: str, labels: tuple[str, ...] | None, molecules: int, columns: int, about: str) -> DatasetSpec:
    return DatasetSpec(smiles_column=smiles, label_columns=labels, num_molecules=molecules, num_labels=columns, about=about)


MOLECULENET = {
    "bbbp": _published("smiles", ("p_np",), 2039, 1, "penetration of the blood-brain barrier"),
    "bace": _published("mol", ("Class",), 1513, 1, "inhibition of human beta-secretase 1"),
    "clintox": _published("smiles", ("FDA_APPROVED", "CT_TOX"), 1478, 2, "FDA approval and failure of clinical trials for toxicity"),
    "sider": _published("smiles", None, 1427, 27, "side effects of drugs by organ class"),
    "tox21": _published("smiles", None, 7831, 12, "toxicity: nuclear receptors and stress response"),
    "toxcast": _published("smiles", None, 8576, 617, "toxicity: in vitro high-throughput assays"),
    "hiv": _published("smiles", ("HIV_active",), 41127, 1, "inhibition of HIV replication"),
    "muv": _published("smiles", None, 93087, 17, "maximum unbiased validation of virtual screening"),
}


@dataclass(frozen=True)
class Split:
    """Row numbers of the three parts, each (n,) int64."""

    train: Tensor
    valid: Tensor
    test: Tensor


@dataclass(frozen=True)
class MoleculeDataset:
    """One task's molecules.

    Attributes:
        task: its name.
        label_names: C names.
        graphs: G molecules.
        labels: (G, C) float32, 0 or 1, NaN where missing.
        split: scaffold split 0.8 / 0.1 / 0.1.
        source_sha256: of the file it was read from.
    """

    task: str
    label_names: tuple[str, ...]
    graphs: PackedGraphs
    labels: Tensor
    split: Split
    source_sha256: str


def load_dataset(task: str, spec: DatasetSpec, data_folder: Path, cache_folder: Path, workers: int = 1) -> MoleculeDataset:
    """A data set from the cache, or read, featurised and split (a minute or two for the large ones), and then cached.

    Raises:
        DataError: no file, or a file that does not have the expected columns or size.
    """
    cache = cache_folder / f"{task}.safetensors"
    file = find_source(task, spec, data_folder, cache_folder)
    digest = sha256(file)
    origin = {"version": _CACHE_VERSION, "sha256": digest, "spec": spec.model_dump_json()}
    if cache.is_file():
        cached = _read_cache(task, cache, origin)
        if cached is not None:
            return cached
    dataset = read_csv(task, spec, file, digest, workers)
    _write_cache(dataset, cache, origin)
    return dataset


def load_smiles(dataset: MoleculeDataset, spec: DatasetSpec, data_folder: Path, cache_folder: Path) -> list[str]:
    """The SMILES of a data set's molecules as they stand in its source, one for each of `dataset.graphs`.

    Raises:
        DataError: no source, or one that is not the file that the data set was read from.
    """
    file = find_source(dataset.task, spec, data_folder, cache_folder)
    if sha256(file) != dataset.source_sha256:
        raise DataError(f"{file}: got another file than the one that data set {dataset.task!r} was read from, expected it unchanged")
    header, rows = _read_table(file, spec)
    at = header.index(spec.smiles_column)
    smiles = [row[at] for row in rows]
    if len(smiles) == len(dataset.graphs):  # none was left out: no need to read each, which takes a minute for MUV
        return smiles
    return [each for each in smiles if _is_readable(each)]


def find_source(task: str, spec: DatasetSpec, data_folder: Path, cache_folder: Path) -> Path:
    """The CSV of a data set: in the data folder, or fetched by PyG's MoleculeNet loader into the cache folder. Raises DataError."""
    names = (spec.file,) if spec.file else (f"moleculenet/{task}.csv.gz", f"moleculenet/{task}.csv")
    for name in names:
        if (data_folder / name).is_file():
            return data_folder / name
    if task not in MOLECULENET or spec.file:
        raise DataError(f"got no file {' or '.join(names)} in {data_folder}, expected the data of task {task!r} (set GMERGING_DATA)")
    from torch_geometric.data import download_url  # takes seconds to import, and is needed only here
    from torch_geometric.datasets import MoleculeNet

    address = MoleculeNet.url.format(MoleculeNet.names[task][1])
    try:
        return Path(download_url(address, str(cache_folder / "raw"), log=False))
    except OSError as error:
        raise DataError(f"got no {task} data in {data_folder} (set GMERGING_DATA), and it could not be fetched: {error}") from error


def read_csv(task: str, spec: DatasetSpec, file: Path, digest: str, workers: int = 1) -> MoleculeDataset:
    """Read, featurise and split a CSV (plain or gzip). Rows whose molecule cannot be read even in tolerant mode are left out."""
    header, rows = _read_table(file, spec)
    names = spec.label_columns or tuple(name for name in header if name not in (spec.smiles_column, "mol_id"))
    try:
        check_labels(names)
    except InvalidInputError as error:
        raise DataError(f"{file}: {error}") from error
    smiles_at, labels_at = header.index(spec.smiles_column), [header.index(name) for name in names]
    parsed = list(_parse([row[smiles_at] for row in rows], workers, task))
    kept = [k for k, each in enumerate(parsed) if each is not None]
    for what, got, expected in (("readable molecules", len(kept), spec.num_molecules), ("labels", len(names), spec.num_labels)):
        if expected is not None and got != expected:
            raise DataError(f"{file}: got {got} {what}, expected the published {expected}")
    labels = torch.tensor([[float(rows[k][c]) if rows[k][c] else math.nan for c in labels_at] for k in kept])
    molecules = [each for each in parsed if each is not None]
    split = scaffold_split([scaffold for _, scaffold in molecules])
    return MoleculeDataset(task, names, pack([graph for graph, _ in molecules]), labels, split, digest)


def scaffold_split(scaffolds: list[str], train: float = 0.8, valid: float = 0.1) -> Split:
    """Split by Bemis-Murcko scaffold, deterministically: groups from the largest, ties by their first molecule from the last (Hu et al. 2020).

    A group goes to the training part while it fits there, then to the validation part while it fits, else to the test part.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for k, scaffold in enumerate(scaffolds):
        groups[scaffold].append(k)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in sorted(groups.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        if len(parts[0]) + len(group) <= train * len(scaffolds):
            parts[0].extend(group)
        elif len(parts[0]) + len(parts[1]) + len(group) <= (train + valid) * len(scaffolds):
            parts[1].extend(group)
        else:
            parts[2].extend(group)
    return Split(*(torch.tensor(part, dtype=torch.int64) for part in parts))


def _read_table(file: Path, spec: DatasetSpec) -> tuple[list[str], list[list[str]]]:
    """Header and rows, with the columns that the description names."""
    with open_text(file) as stream:
        header, *rows = csv.reader(stream)
    missing = {spec.smiles_column, *(spec.label_columns or ())} - set(header)
    if missing:
        raise DataError(f"{file}: got columns {header[:8]}, expected also {sorted(missing)}")
    return header, rows


def _parse(smiles: list[str], workers: int, task: str) -> Iterator[tuple[MolGraph, str] | None]:
    with ProcessPoolExecutor(workers) as pool:
        parsed = pool.map(_parse_one, smiles, chunksize=256)
        for each in tqdm(parsed, total=len(smiles), desc=f"{task}: molecules", unit="mol"):
            yield each and (MolGraph(*map(torch.from_numpy, each[0])), each[1])


def _parse_one(smiles: str) -> tuple[list[NDArray[np.int64]], str] | None:
    """Graph and scaffold with chirality, or None where RDKit cannot read the molecule at all.

    The graph as arrays: tensors would each hold a file descriptor on their way to the parent process.
    """
    try:
        graph = [tensor.numpy() for tensor in vars(read_graph(smiles, strict=False)).values()]
    except MoleculeError:
        return None
    with rdBase.BlockLogs():
        mol = read_smiles(smiles, strict=False)
        try:
            return graph, MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=True)
        except ValueError:  # RDKit checks valences here: the 15 molecules that fail are scaffolds of their own
            return graph, Chem.MolToSmiles(mol)


def _is_readable(smiles: str) -> bool:
    """Whether `_parse_one` keeps a molecule."""
    try:
        read_graph(smiles, strict=False)
    except MoleculeError:
        return False
    return True


def _write_cache(dataset: MoleculeDataset, cache: Path, origin: dict[str, str]) -> None:
    tensors = {f"graphs.{name}": value for name, value in vars(dataset.graphs).items()}
    tensors |= {f"split.{name}": value for name, value in vars(dataset.split).items()}
    write_tensors(cache, {**tensors, "labels": dataset.labels}, {**origin, "labels": "\n".join(dataset.label_names)})


def _read_cache(task: str, cache: Path, origin: dict[str, str]) -> MoleculeDataset | None:
    """The cached set, or None if it was made from another file, for another description of it, or by another version."""
    with safe_open(cache, "pt") as stream:
        metadata = stream.metadata()
        if not origin.items() <= metadata.items():
            return None
        tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118 - not a dict
    graphs, split = ({key.split(".")[1]: value for key, value in tensors.items() if key.startswith(part)} for part in ("graphs.", "split."))
    return MoleculeDataset(task, tuple(metadata["labels"].split("\n")), PackedGraphs(**graphs), tensors["labels"], Split(**split), origin["sha256"])
