"""Data sets of labelled molecules, read from a table, featurised, split and cached."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rdkit import Chem, rdBase
from rdkit.Chem.Scaffolds import MurckoScaffold
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from merging.data.files import sha256, write_tensors
from merging.data.labels import parse_number, quoted
from merging.data.molecule_tables import DatasetSpec, DroppedRow, MoleculeTable, read_molecule_table
from merging.data.split import (
    SUBSETS,
    TRAIN,
    VALID,
    Split,
    Subset,
    check_subsets,
    lacking_labels,
    random_split,
    scaffold_split,
)
from merging.data.task_data import Step
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, PackedGraphs, pack
from models.data.smiles import READING_RULE, read_graph, read_smiles
from models.errors import DataError, MoleculeError
from models.files import write_atomically
from models.task import Target, TaskInfo

_CACHE_VERSION = f"3, reading rule {READING_RULE}"
_SHOWN = 5
_SEEDS_TRIED = 100
_FAR = 20
"""A number is far from the others from so many widths of their middle half on. Solubilities and
energies stay below it; -999 for a missing value, a slip of the decimal sign and a quantity over
several orders of magnitude do not."""


def _published(
    smiles: str, labels: tuple[str, ...] | None, molecules: int, columns: int, about: str
) -> DatasetSpec:
    return DatasetSpec(
        smiles_column=smiles,
        label_columns=labels,
        num_molecules=molecules,
        num_labels=columns,
        about=about,
    )


MOLECULENET = {
    "bbbp": _published("smiles", ("p_np",), 2039, 1, "penetration of the blood-brain barrier"),
    "bace": _published("mol", ("Class",), 1513, 1, "inhibition of human beta-secretase 1"),
    "clintox": _published(
        "smiles",
        ("FDA_APPROVED", "CT_TOX"),
        1478,
        2,
        "FDA approval and failure of clinical trials for toxicity",
    ),
    "sider": _published("smiles", None, 1427, 27, "side effects of drugs by organ class"),
    "tox21": _published(
        "smiles", None, 7831, 12, "toxicity: nuclear receptors and stress response"
    ),
    "toxcast": _published("smiles", None, 8576, 617, "toxicity: in vitro high-throughput assays"),
    "hiv": _published("smiles", ("HIV_active",), 41127, 1, "inhibition of HIV replication"),
    "muv": _published(
        "smiles", None, 93087, 17, "maximum unbiased validation of virtual screening"
    ),
}


@dataclass(frozen=True)
class MoleculeDataset:
    """The molecules of a task, with labels and split.

    Attributes:
        task: name of the task.
        info: its labels (of `multiclass`, classes), target and units.
        graphs: G molecules.
        labels: (G, L) float32, 0 or 1 or the values of a regression, NaN where missing; for
            `multiclass` (G,) int64 classes, -1 where missing.
        split: the training, validation and test subsets.
        source_sha256: digest of the source file.
        dropped: rows of the file that were left out.
        record: how the file was read, as plain values: `file`, `rows`, `molecules`, `dropped`,
            `smiles_column`, `labels`; `words`, by label the cells of class 1 and 0 where these are
            not 1 and 0; for other targets `target`, and `ranges`, `units` and `far` (`_outlier`) by
            label and `two_numbers`, the labels with two values, or the `column` of the classes;
            `missing`, the number of cells by spelling of a missing value; `split`, in words;
            `parts`, the size of every subset; `not_measured`, by subset the labels that cannot be
            measured on it; `repeated`, see `_repeated`.
        most_per_epoch: the number of training molecules that an epoch draws; None takes all.
    """

    task: str
    info: TaskInfo
    graphs: PackedGraphs
    labels: Tensor
    split: Split
    source_sha256: str
    dropped: tuple[DroppedRow, ...]
    record: dict[str, Any]
    most_per_epoch: int | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The L names of the labels, in the order of the head."""
        return self.info.labels

    @property
    def target(self) -> Target:
        """The kind of labels: `multilabel`, `multiclass` or `regression`."""
        return self.info.target

    @property
    def outputs(self) -> int:
        """L, the width of the head."""
        return len(self.info.labels)

    @property
    def sources(self) -> dict[str, str]:
        """SHA-256 of the source file, by its name."""
        return {self.record["file"]: self.source_sha256}

    @property
    def size(self) -> int:
        """G, the number of molecules."""
        return len(self.graphs)

    @property
    def summary(self) -> str:
        """A line that describes the file, the labels and the split."""
        record, labels = self.record, describe_labels(self.record)
        count = len(record["labels"])
        sizes = ", ".join(f"{n} {subset}" for subset, n in record["parts"].items())
        source = f"{record['file']}, column {record['smiles_column']!r}"
        dropped = f"{record['dropped']} of {record['rows']} rows dropped"
        return "; ".join(
            (
                f"{self.task}: {record['molecules']} molecules of {source}, {dropped}",
                f"{count} {_label_noun(record)}: {labels}",
                f"split {record['split']}: {sizes}",
                *(f"not measured in {name}: {n} of them" for name, n in not_measured(record)),
                *describe_cells(record),
                *_describe_repeated(record["repeated"], self.target),
            )
        )

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """See `merging.data.task_data.TaskData.steps`."""
        rows: Tensor = getattr(self.split, subset)
        if shuffle:
            rows = rows[torch.randperm(len(rows))[: self.most_per_epoch]]
        return [
            Step(partial(self.graphs.select, chosen), self.labels[chosen])
            for chosen in rows.split(batch_size)
        ]

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """See `merging.data.task_data.TaskData.calibration`; the seed selects the molecules."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.split.train), generator=generator)[:count]
        chosen = self.split.train[order].split(batch_size)
        return tuple(self.graphs.select(rows) for rows in chosen), ()


def load_dataset(
    task: str, spec: DatasetSpec, data_folder: Path, cache_folder: Path, workers: int = 1
) -> MoleculeDataset:
    """Load a data set from the cache, or read, featurise and split its source, which takes up to
    two minutes, and cache the result.

    The rows that were left out are listed in `<task>.dropped.csv` in the cache folder.

    Args:
        task: name of the task.
        spec: the description of its table.
        data_folder: the folder of source files.
        cache_folder: the folder of the cache, of downloads and of the list of dropped rows.
        workers: number of processes that parse SMILES.

    Raises:
        DataError: the file does not exist or lacks columns or rows, a column does not hold labels,
            too many molecules cannot be read, or the split cannot be trained on.
    """
    cache = cache_folder / f"{task}.safetensors"
    file = find_source(task, spec, data_folder, cache_folder)
    digest = sha256(file)
    origin = {"version": _CACHE_VERSION, "sha256": digest, "spec": spec.model_dump_json()}
    if cache.is_file():
        cached = _read_cache(task, spec, cache, origin)
        if cached is not None:
            _write_dropped(cached.dropped, dropped_path(task, cache_folder))
            return cached
    dataset = read_csv(task, spec, file, digest, workers, dropped_path(task, cache_folder))
    _write_cache(dataset, cache, origin)
    return dataset


def dropped_path(task: str, cache_folder: Path) -> Path:
    """Return the path of the list of a task's dropped rows."""
    return cache_folder / f"{task}.dropped.csv"


def _label_noun(record: Mapping[str, Any]) -> str:
    if "column" in record:
        return f"classes of {record['column']!r}"
    return "label" if len(record["labels"]) == 1 else "labels"


_CONTRADICTORY = {
    "multilabel": "with 0 and 1 for one label",
    "multiclass": "with several classes",
    "regression": "with several numbers for one label",
}


def _describe_repeated(repeated: Mapping[str, int], target: Target) -> list[str]:
    if not repeated["molecules"]:
        return []
    total = f"molecules in several rows: {repeated['molecules']}"
    known = {"contradictory": _CONTRADICTORY[target], "across_parts": "in several parts"}
    more = [f"{repeated[name]} {text}" for name, text in known.items() if repeated[name]]
    return [", ".join([total, *more])]


def not_measured(record: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the subsets on which some labels of a `MoleculeDataset.record` cannot be measured, as
    pairs of subset and number of labels."""
    return [(subset, len(names)) for subset, names in record["not_measured"].items() if names]


def describe_labels(record: Mapping[str, Any]) -> str:
    """Name the first few labels of a `MoleculeDataset.record`, with the words of class 1 and 0, or
    with the range and unit of a regression."""
    names = record["labels"]
    shown = [_describe_label(name, record) for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more


def describe_cells(record: Mapping[str, Any]) -> list[str]:
    """Describe the cells of a `MoleculeDataset.record` that a user should check: spellings that are
    read as missing values, outliers, and regression labels with two values."""
    spelt = [f"{n} x {quoted(cell) if cell else 'empty'}" for cell, n in record["missing"].items()]
    more = [f"{len(spelt) - _SHOWN} spellings more"] if len(spelt) > _SHOWN else []
    found = [f"missing values: {', '.join([*spelt[:_SHOWN], *more])}"] if spelt else []
    for name, far in record.get("far", {}).items():
        times = f"{far['times']:.3g} times the width of the middle half from the median"
        found.append(
            f"far from the others: {name} {far['number']:g} in line {far['line']}, {times}"
        )
    for name in record.get("two_numbers", ()):
        found.append(f"{name} is one of two numbers: to learn a class, leave `target` out")
    return found


def _describe_label(name: str, record: Mapping[str, Any]) -> str:
    if name in record["words"]:
        one, zero = record["words"][name]
        return f"{name} ({one} = 1, {zero} = 0)"
    if "ranges" in record:
        least, most = record["ranges"][name]
        unit = record["units"].get(name, "no unit said")
        return f"{name} ({least:g} to {most:g}, {unit})"
    return name


def load_smiles(
    dataset: MoleculeDataset, spec: DatasetSpec, data_folder: Path, cache_folder: Path
) -> list[str]:
    """Read the SMILES of a data set as written in its source, one per graph of `dataset`.

    Raises:
        DataError: the source does not exist or has changed since the data set was read.
    """
    file = find_source(dataset.task, spec, data_folder, cache_folder)
    if sha256(file) != dataset.source_sha256:
        raise DataError(
            f"{file}: got another file than the one that data set {dataset.task!r} was read from,"
            " expected it unchanged"
        )
    table, dropped = read_molecule_table(file, spec), {row.line for row in dataset.dropped}
    rows = zip(table.molecules, table.lines, strict=True)
    return [molecule for molecule, line in rows if line not in dropped]


def find_source(task: str, spec: DatasetSpec, data_folder: Path, cache_folder: Path) -> Path:
    """Return the path of a data set's table in the data folder; a MoleculeNet table that is not
    there is downloaded into the cache folder. Raises DataError if there is no such table."""
    names = (spec.file,) if spec.file else (f"moleculenet/{task}.csv.gz", f"moleculenet/{task}.csv")
    for name in names:
        if (data_folder / name).is_file():
            return data_folder / name
    if task not in MOLECULENET or spec.file:
        raise DataError(
            f"got no file {' or '.join(names)} in {data_folder}, expected the data of task {task!r}"
            " (set GMERGING_DATA)"
        )
    # Imported here because it takes seconds.
    from torch_geometric.data import download_url
    from torch_geometric.datasets import MoleculeNet

    address = MoleculeNet.url.format(MoleculeNet.names[task][1])
    try:
        return Path(download_url(address, str(cache_folder / "raw"), log=False))
    except OSError as error:
        raise DataError(
            f"got no {task} data in {data_folder} (set GMERGING_DATA), and it could not be fetched:"
            f" {error}"
        ) from error


def read_csv(
    task: str, spec: DatasetSpec, file: Path, digest: str, workers: int, dropped_file: Path
) -> MoleculeDataset:
    """Read, featurise and split a table (`load_dataset`); labels are checked before molecules."""
    table = read_molecule_table(file, spec)
    parsed = list(_parse(table.molecules, workers, task))
    kept = [k for k, molecule in enumerate(parsed) if molecule is not None]
    molecules = [molecule for molecule in parsed if molecule is not None]
    dropped = _dropped(table, [k for k, molecule in enumerate(parsed) if molecule is None])
    info = spec.info(_label_names(table, spec.target))
    for what, got, expected in (
        ("readable molecules", len(kept), spec.num_molecules),
        ("labels", len(info.labels), spec.num_labels),
    ):
        if expected is not None and got != expected:
            raise DataError(f"{file}: got {got} {what}, expected the published {expected}")
    _write_dropped(dropped, dropped_file)
    _check_dropped(file, dropped, len(kept) + len(dropped), spec.max_dropped, dropped_file)
    labels = _tensor(table, spec.target)[kept].contiguous()
    split, description = _split(spec, table, kept, [molecule.scaffold for molecule in molecules])
    lacking = lacking_labels(split, labels, info)
    if spec not in MOLECULENET.values():  # the published sets are used as they are
        _check_subsets(file, spec, split, labels, info)
    record = {
        "file": file.name,
        "rows": len(kept) + len(dropped),
        "molecules": len(kept),
        "dropped": len(dropped),
        "smiles_column": table.molecule_column,
        "labels": list(info.labels),
        "words": _class_words(table, spec.target),
        **_target_record(table, info, labels, [table.lines[k] for k in kept]),
        "missing": dict(table.missing),
        "split": description,
        "parts": {subset: len(rows) for subset, rows in vars(split).items()},
        "not_measured": {subset: list(lacking[subset]) for subset in ("valid", "test")},
        "repeated": _repeated([molecule.smiles for molecule in molecules], labels, split),
    }
    graphs = pack([molecule.graph for molecule in molecules])
    return MoleculeDataset(task, info, graphs, labels, split, digest, dropped, record)


def _label_names(table: MoleculeTable, target: Target) -> tuple[str, ...]:
    if target == "multiclass":
        return table.labels[0].classes
    return tuple(label.name for label in table.labels)


def _class_words(table: MoleculeTable, target: Target) -> dict[str, list[str]]:
    """Return by label the words of class 1 and 0 where the file does not write 1 and 0."""
    if target != "multilabel":
        return {}
    return {
        label.name: list(label.classes[::-1]) for label in table.labels if not label.is_zero_one
    }


def _tensor(table: MoleculeTable, target: Target) -> Tensor:
    """Return the labels of all rows in the form of `MoleculeDataset.labels`."""
    values = torch.tensor([label.values for label in table.labels]).T
    return values[:, 0].nan_to_num(-1).long() if target == "multiclass" else values


def _target_record(
    table: MoleculeTable, info: TaskInfo, labels: Tensor, lines: Sequence[int]
) -> dict[str, Any]:
    """Return the entries of a record that only multiclass and regression tasks have."""
    if info.target == "multiclass":
        return {"target": info.target, "column": table.labels[0].name}
    if info.target == "regression":
        known = [column[~column.isnan()] for column in labels.T]
        ranges = [[round(float(end), 6) for end in column.aminmax()] for column in known]
        far = [_outlier(column, lines) for column in labels.T]
        two = zip(info.labels, (len(numbers.unique()) == 2 for numbers in known), strict=True)
        return {
            "target": info.target,
            "ranges": dict(zip(info.labels, ranges, strict=True)),
            "units": info.unit_of,
            "far": {name: own for name, own in zip(info.labels, far, strict=True) if own},
            "two_numbers": [name for name, only in two if only],
        }
    return {}


def _outlier(column: Tensor, lines: Sequence[int]) -> dict[str, Any] | None:
    """Return the outlier farthest from the median: its `number`, its `line`, and its distance from
    the median in `times` the interquartile range. None if that is less than `_FAR`, or the range
    is 0.

    Args:
        column: (G,) labels, NaN where missing.
        lines: of the G rows.
    """
    wide = column.double()
    first, median, third = wide.nanquantile(torch.tensor([0.25, 0.5, 0.75]).double())
    away = (wide - median).abs().nan_to_num()
    k = int(away.argmax())
    times = float(away[k] / (third - first)) if third > first else 0.0
    if times < _FAR:
        return None
    return {"number": float(column[k]), "line": lines[k], "times": round(times)}


def _repeated(smiles: Sequence[str], labels: Tensor, split: Split) -> dict[str, int]:
    """Count the molecules (canonical SMILES) that occur in several rows: `molecules`, and of these
    `contradictory`, with different values of a label, and `across_parts`, in several subsets."""
    rows_of: dict[str, list[int]] = {}
    for k, canonical in enumerate(smiles):
        rows_of.setdefault(canonical, []).append(k)
    several = [rows for rows in rows_of.values() if len(rows) > 1]
    subset_of = {row: subset for subset, rows in vars(split).items() for row in rows.tolist()}
    if not labels.is_floating_point():  # classes
        labels = torch.where(labels >= 0, labels.float(), torch.nan).unsqueeze(1)
    return {
        "molecules": len(several),
        "contradictory": sum(_differ(labels[rows]) for rows in several),
        "across_parts": sum(len({subset_of[row] for row in rows}) > 1 for rows in several),
    }


def _differ(labels: Tensor) -> bool:
    """Return True if a label has different values in the rows of `labels` (n, L)."""
    greatest, least = labels.nan_to_num(-torch.inf).amax(0), labels.nan_to_num(torch.inf).amin(0)
    return bool((greatest > least).any())


def _dropped(table: MoleculeTable, unreadable: Sequence[int]) -> tuple[DroppedRow, ...]:
    written = [(table.lines[k], table.molecules[k]) for k in unreadable]
    rows = [DroppedRow(line, molecule, _reason(molecule)) for line, molecule in written]
    return tuple(sorted((*table.dropped, *rows), key=lambda row: row.line))


def _reason(smiles: str) -> str:
    try:
        read_graph(smiles, strict=False)
    except MoleculeError as error:
        return str(error)
    return "unreadable"


def _write_dropped(dropped: Sequence[DroppedRow], path: Path) -> None:
    """Write the dropped rows as CSV; without any, delete the file."""
    if not dropped:
        path.unlink(missing_ok=True)
        return

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(("line", "smiles", "reason"))
            rows.writerows(astuple(row) for row in dropped)

    write_atomically(path, write)


def _check_dropped(
    file: Path, dropped: Sequence[DroppedRow], rows: int, most: float, listed: Path
) -> None:
    if len(dropped) <= most * rows:
        return
    shown = "; ".join(f"line {row.line}: {row.reason}" for row in dropped[:_SHOWN])
    more = f"; all are listed in {listed}" if len(dropped) > _SHOWN else ""
    got = f"{len(dropped)} of {rows} rows that cannot be read"
    expected = f"at most {100 * most:g} % (`max_dropped`)"
    raise DataError(f"{file}: got {got}, expected {expected}: {shown}{more}")


def _split(
    spec: DatasetSpec, table: MoleculeTable, kept: Sequence[int], scaffolds: Sequence[str]
) -> tuple[Split, str]:
    """Split the kept rows as `spec` demands; return the split and its description."""
    method = "scaffold" if spec.split == "scaffold" else f"random, seed {spec.split_seed}"
    if table.subsets is None:
        return _draw_split(spec, scaffolds, TRAIN, VALID), method
    names = [table.subsets[k] for k in kept]
    rows_of = {subset: [k for k, name in enumerate(names) if name == subset] for subset in SUBSETS}
    train, valid, test = (torch.tensor(rows, dtype=torch.int64) for rows in rows_of.values())
    description = f"by column {spec.split_column!r}"
    if len(valid) or not len(train):
        return Split(train, valid, test), description
    drawn = _draw_split(spec, [scaffolds[k] for k in train], 8 / 9, 1 / 9)
    # Scaffolds that fit into neither share are in the third subset.
    valid = train[torch.cat([drawn.valid, drawn.test]).sort().values]
    description += f", validation drawn from its training rows, {method}"
    return Split(train[drawn.train], valid, test), description


def _draw_split(spec: DatasetSpec, scaffolds: Sequence[str], train: float, valid: float) -> Split:
    if spec.split == "scaffold":
        return scaffold_split(scaffolds, train, valid)
    return random_split(len(scaffolds), spec.split_seed, train, valid)


def _check_subsets(
    file: Path, spec: DatasetSpec, split: Split, labels: Tensor, info: TaskInfo
) -> None:
    try:
        check_subsets(split, lacking_labels(split, labels, info), info)
    except DataError as error:
        origin = f"column {spec.split_column!r}" if spec.split_column else f"split {spec.split}"
        other = "another column" if spec.split_column else "a `split_column` of your own"
        seed = _working_seed(labels, info)
        instead = " and no `split_column`" if spec.split_column else ""
        random = f"`split: random` with `split_seed: {seed}`{instead}, "
        remedy = f"try {'' if seed is None else random}{other}, or more rows"
        if info.target == "multiclass" and None not in map(parse_number, info.labels):
            remedy += "; numbers that are no classes are `target: regression`"
        raise DataError(f"{file}, {origin}: {error}; {remedy}") from error


def _working_seed(labels: Tensor, info: TaskInfo) -> int | None:
    """Return the first seed whose random split passes `check_subsets`, None if none does."""
    for seed in range(_SEEDS_TRIED):
        split = random_split(len(labels), seed)
        with suppress(DataError):
            check_subsets(split, lacking_labels(split, labels, info), info)
            return seed
    return None


class _Parsed(NamedTuple):
    """The graph of a molecule, its scaffold with chirality, and its canonical SMILES."""

    graph: MolGraph
    scaffold: str
    smiles: str


def _parse(smiles: Sequence[str], workers: int, task: str) -> Iterator[_Parsed | None]:
    with ProcessPoolExecutor(workers) as pool:
        parsed = pool.map(_parse_one, smiles, chunksize=256)
        for read in tqdm(parsed, total=len(smiles), desc=f"{task}: molecules", unit="mol"):
            yield read and _Parsed(MolGraph(*map(torch.from_numpy, read[0])), *read[1:])


def _parse_one(smiles: str) -> tuple[list[NDArray[np.int64]], str, str] | None:
    """Return the fields of `_Parsed`, or None if RDKit cannot read the molecule.

    The graph is returned as arrays, because every tensor would occupy a file descriptor on its way
    to the parent process.
    """
    try:
        graph = [tensor.numpy() for tensor in vars(read_graph(smiles, strict=False)).values()]
    except MoleculeError:
        return None
    with rdBase.BlockLogs():
        mol = read_smiles(smiles, strict=False)
        canonical = Chem.MolToSmiles(mol)
        try:
            scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=True)
        # RDKit checks valences here; the 15 molecules that fail are their own scaffolds.
        except ValueError:
            scaffold = canonical
        return graph, scaffold, canonical


def _write_cache(dataset: MoleculeDataset, cache: Path, origin: dict[str, str]) -> None:
    tensors = {f"graphs.{name}": value for name, value in vars(dataset.graphs).items()}
    tensors |= {f"split.{name}": value for name, value in vars(dataset.split).items()}
    dropped = json.dumps([asdict(row) for row in dataset.dropped])
    metadata = {**origin, "record": json.dumps(dataset.record), "dropped": dropped}
    write_tensors(cache, {**tensors, "labels": dataset.labels}, metadata)


def _read_cache(
    task: str, spec: DatasetSpec, cache: Path, origin: dict[str, str]
) -> MoleculeDataset | None:
    """Read a cached data set; None if it is damaged or was made from another file, description or
    version."""
    try:
        with safe_open(cache, "pt") as stream:
            metadata = stream.metadata()
            if not origin.items() <= metadata.items():
                return None
            names = stream.keys()
            tensors = {key: stream.get_tensor(key) for key in names}
    except SafetensorError:
        return None
    graphs, split = (
        {key.split(".")[1]: value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ("graphs.", "split.")
    )
    record = json.loads(metadata["record"])
    return MoleculeDataset(
        task=task,
        info=spec.info(record["labels"]),
        graphs=PackedGraphs(**graphs),
        labels=tensors["labels"],
        split=Split(**split),
        source_sha256=origin["sha256"],
        dropped=tuple(DroppedRow(**row) for row in json.loads(metadata["dropped"])),
        record=record,
    )
