"""Data sets of labelled molecules, read from a table, featurised, split and cached."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, field, replace
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
from merging.data.labels import quoted
from merging.data.molecule_split import (
    check_split,
    molecule_numbers,
    seed_rows,
    split_record,
    split_rows,
    without_molecules,
)
from merging.data.molecule_tables import DatasetSpec, DroppedRow, MoleculeTable, read_molecule_table
from merging.data.split import Split, Subset
from merging.data.task_data import Step
from models.data.batch import GraphBatch
from models.data.molecule import MolGraph, PackedGraphs, pack
from models.data.smiles import READING_RULE, read_graph, read_smiles
from models.errors import DataError, MoleculeError
from models.files import write_atomically
from models.task import Target, TaskInfo, answers

_CACHE_VERSION = f"4, reading rule {READING_RULE}"
_SHOWN = 5
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
        labels: (G, L) float32, 0 or 1, or the values of a regression or (scale `log10`) their
            logarithms, NaN where missing; for `multiclass` (G,) int64 classes, -1 where missing.
        split: the training, validation and test subsets.
        molecules: (G, 2) int64, the molecules and those without stereochemistry
            (`molecule_numbers`).
        source_sha256: digest of the source file.
        dropped: rows of the file that cannot be read.
        record: how the file was read, as plain values: `file`, `rows`, `molecules`, `dropped`,
            `smiles_column`, `labels`; `words`, by label the cells of class 1 and 0 where these are
            not 1 and 0; for other targets `target`, and `ranges`, `units` and `far` (`_outlier`) by
            label and `two_numbers`, the labels with two values, or the `column` of the classes;
            `scale` unless it is `linear`; `missing`, the number of cells by spelling of a missing
            value; those of `split_record`; `left_out`, see `without_tests`, if it was called.
        most_per_epoch: the number of training molecules that an epoch draws; None takes all.
        seed_rows: by seed the validation rows, where they depend on it (`for_seed`).
        other_sources: SHA-256 by name of the tables whose test molecules were left out.
        own_split: the split before they were left out, for models that no other task has a share
            in; None if `split` is that.
    """

    task: str
    info: TaskInfo
    graphs: PackedGraphs
    labels: Tensor
    split: Split
    molecules: Tensor
    source_sha256: str
    dropped: tuple[DroppedRow, ...]
    record: dict[str, Any]
    most_per_epoch: int | None = None
    seed_rows: Mapping[int, Tensor] = field(default_factory=dict)
    other_sources: Mapping[str, str] = field(default_factory=dict)
    own_split: Split | None = None

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
        """SHA-256 of the source file, by its name, and of the tables whose test molecules were
        left out."""
        return {self.record["file"]: self.source_sha256, **self.other_sources}

    @property
    def test_molecules(self) -> Tensor:
        """(n,), the different test molecules, without stereochemistry (`molecule_numbers`)."""
        molecules: Tensor = self.molecules[self.split.test, 1].unique()
        return molecules

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
                *_describe_left_out(record.get("left_out", {})),
            )
        )

    def for_seed(self, seed: int) -> "MoleculeDataset":
        """Return the data set with the validation subset of a seed; itself if the split does not
        depend on the seed. Raises DataError: the table has no such seed."""
        if not self.seed_rows:
            return self
        if seed not in self.seed_rows:
            known = ", ".join(map(str, self.seed_rows))
            got = f"{self.task}: got a run with seed {seed}"
            raise DataError(f"{got}, expected one of {known} (`validation_seeds_column`)")
        valid, train = self.seed_rows[seed], self.split.train
        split = Split(train[~torch.isin(train, valid)], valid, self.split.test)
        return self._with_split(split, f"{self.record['split']}, seed {seed}", seed_rows={})

    def without_tests(self, others: Mapping[str, "MoleculeDataset"]) -> "MoleculeDataset":
        """Return the data set without the training and validation rows whose molecule is a test
        molecule of another task, whatever its stereochemistry.

        The record's `left_out` has by task the number of rows of "train" and "valid" that were left
        out for it.

        Args:
            others: the other tasks, on the same property.
        """
        tests = {task: other.test_molecules for task, other in others.items()}
        split, counts = without_molecules(self.split, self.molecules[:, 1], tests)
        sources = {
            f"{task}/{file}": digest
            for task, other in others.items()
            for file, digest in other.sources.items()
        }
        changes = {"other_sources": sources, "own_split": self.split}
        found = self._with_split(split, self.record["split"], **changes)
        return replace(found, record={**found.record, "left_out": counts})

    def _with_split(self, split: Split, description: str, **changes: Any) -> "MoleculeDataset":
        content = self.molecules, self.labels, self.info
        record = {**self.record, **split_record(split, description, *content)}
        return replace(self, split=split, record=record, **changes)

    def steps(self, subset: Subset, batch_size: int, shuffle: bool = False) -> list[Step]:
        """See `merging.data.task_data.TaskData.steps`."""
        rows: Tensor = getattr(self.split, subset)
        if shuffle:
            rows = rows[torch.randperm(len(rows))[: self.most_per_epoch]]
        return [
            Step(partial(self.graphs.select, chosen), self.labels[chosen])
            for chosen in rows.split(batch_size)
        ]

    def unlabelled(self) -> tuple[PackedGraphs, Tensor]:
        """See `merging.data.task_data.UnlabelledData.unlabelled`."""
        return self.graphs, self.split.train

    def calibration(
        self, count: int, batch_size: int, seed: int
    ) -> tuple[tuple[GraphBatch, ...], tuple[Tensor, ...]]:
        """See `merging.data.task_data.TaskData.calibration`; the seed selects the molecules."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.split.train), generator=generator)[:count]
        chosen = self.split.train[order].split(batch_size)
        return tuple(self.graphs.select(rows) for rows in chosen), ()


def load_dataset(
    task: str,
    spec: DatasetSpec,
    data_folder: Path,
    cache_folder: Path,
    workers: int = 1,
    seed: int = 0,
) -> MoleculeDataset:
    """Load a data set from the cache, or read, featurise and split its source, which takes up to
    two minutes, and cache the result, once for all seeds.

    The rows that cannot be read are listed in `<task>.dropped.csv` in the cache folder.

    Args:
        task: name of the task.
        spec: the description of its table.
        data_folder: the folder of source files.
        cache_folder: the folder of the cache, of downloads and of the list of dropped rows.
        workers: number of processes that parse SMILES.
        seed: of the run, which selects the validation subset of a table that has one by seed.

    Raises:
        DataError: the file does not exist or lacks columns or rows, a column does not hold labels,
            too many molecules cannot be read, the split cannot be trained on, or the table has no
            validation subset of the seed.
    """
    cache = cache_folder / f"{task}.safetensors"
    file = find_source(task, spec, data_folder, cache_folder)
    digest = sha256(file)
    origin = {"version": _CACHE_VERSION, "sha256": digest, "spec": spec.model_dump_json()}
    cached = _read_cache(task, spec, cache, origin) if cache.is_file() else None
    if cached is None:
        dataset = read_csv(task, spec, file, digest, workers, dropped_path(task, cache_folder))
    else:
        dataset = cached
        _write_dropped(cached.dropped, dropped_path(task, cache_folder))
    chosen = dataset.for_seed(seed)
    check_dataset(chosen, spec, file)
    if cached is None:
        _write_cache(dataset, cache, origin)
    return chosen


def check_dataset(dataset: MoleculeDataset, spec: DatasetSpec, file: Path) -> None:
    """Check that a data set can be trained and measured with its split; the published sets are used
    as they are. Raises DataError: see `check_split`."""
    if spec not in MOLECULENET.values():
        check_split(file, spec, dataset.split, dataset.labels, dataset.info)


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


def _describe_left_out(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Describe `MoleculeDataset.record["left_out"]`."""
    if not counts:
        return []
    shown = (f"{sum(rows.values())} of {task}" for task, rows in counts.items())
    return [f"left out as test molecules: {', '.join(shown)}"]


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
        scale = ", learnt as log10" if record.get("scale") == "log10" else ""
        return f"{name} ({least:g} to {most:g}, {unit}{scale})"
    return name


def load_smiles(
    dataset: MoleculeDataset, spec: DatasetSpec, data_folder: Path, cache_folder: Path
) -> list[str]:
    """Read the SMILES of a data set as written in its source, one per graph of `dataset`. Raises
    DataError: see `load_molecules`."""
    return list(load_molecules(dataset, spec, data_folder, cache_folder).values())


def load_molecules(
    dataset: MoleculeDataset, spec: DatasetSpec, data_folder: Path, cache_folder: Path
) -> dict[int, str]:
    """Read the SMILES of a data set as written in its source, one per graph of `dataset`, by line
    of the source, of which the first is 1.

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
    return {line: molecule for molecule, line in rows if line not in dropped}


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
    """Read, featurise and split a table (`load_dataset`); labels are checked before molecules.
    Validation rows that depend on the seed are among the training rows."""
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
    split, described = split_rows(spec, table, kept, [molecule.scaffold for molecule in molecules])
    numbers = molecule_numbers([molecule.smiles for molecule in molecules])
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
        **split_record(split, described, numbers, labels, info),
    }
    graphs = pack([molecule.graph for molecule in molecules])
    content = task, info, graphs, labels, split, numbers, digest, dropped, record
    return MoleculeDataset(*content, seed_rows=seed_rows(table, kept))


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
        numbers = [answers(column, info.output_kind) for column in known]
        ranges = [[round(float(end), 6) for end in column.aminmax()] for column in numbers]
        far = [_outlier(column, lines, info) for column in labels.T]
        two = zip(info.labels, (len(numbers.unique()) == 2 for numbers in known), strict=True)
        return {
            "target": info.target,
            "ranges": dict(zip(info.labels, ranges, strict=True)),
            "units": info.unit_of,
            "far": {name: own for name, own in zip(info.labels, far, strict=True) if own},
            "two_numbers": [name for name, only in two if only],
            **({} if info.scale == "linear" else {"scale": info.scale}),
        }
    return {}


def _outlier(column: Tensor, lines: Sequence[int], info: TaskInfo) -> dict[str, Any] | None:
    """Return the outlier farthest from the median: its `number`, its `line`, and its distance from
    the median in `times` the interquartile range (of logarithms, with scale `log10`). None if that
    is less than `_FAR`, or the range is 0.

    Args:
        column: (G,) labels, NaN where missing.
        lines: of the G rows.
        info: the task.
    """
    wide = column.double()
    first, median, third = wide.nanquantile(torch.tensor([0.25, 0.5, 0.75]).double())
    away = (wide - median).abs().nan_to_num()
    k = int(away.argmax())
    times = float(away[k] / (third - first)) if third > first else 0.0
    if times < _FAR:
        return None
    number = float(answers(column[k], info.output_kind))
    return {"number": number, "line": lines[k], "times": round(times)}


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


class _Parsed(NamedTuple):
    """The graph of a molecule, its scaffold with chirality, and its canonical SMILES with and
    without stereochemistry."""

    graph: MolGraph
    scaffold: str
    smiles: tuple[str, str]


def _parse(smiles: Sequence[str], workers: int, task: str) -> Iterator[_Parsed | None]:
    with ProcessPoolExecutor(workers) as pool:
        parsed = pool.map(_parse_one, smiles, chunksize=256)
        for read in tqdm(parsed, total=len(smiles), desc=f"{task}: molecules", unit="mol"):
            yield read and _Parsed(MolGraph(*map(torch.from_numpy, read[0])), *read[1:])


def _parse_one(smiles: str) -> tuple[list[NDArray[np.int64]], str, tuple[str, str]] | None:
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
        canonical = Chem.MolToSmiles(mol), Chem.MolToSmiles(mol, isomericSmiles=False)
        try:
            scaffold = MurckoScaffold.MurckoScaffoldSmiles(mol=mol, includeChirality=True)
        # RDKit checks valences here; the 15 molecules that fail are their own scaffolds.
        except ValueError:
            scaffold = canonical[0]
        return graph, scaffold, canonical


def _write_cache(dataset: MoleculeDataset, cache: Path, origin: dict[str, str]) -> None:
    tensors = {f"graphs.{name}": value for name, value in vars(dataset.graphs).items()}
    tensors |= {f"split.{name}": value for name, value in vars(dataset.split).items()}
    tensors |= {f"seeds.{seed}": rows for seed, rows in dataset.seed_rows.items()}
    dropped = json.dumps([asdict(row) for row in dataset.dropped])
    metadata = {**origin, "record": json.dumps(dataset.record), "dropped": dropped}
    tensors |= {"labels": dataset.labels, "molecules": dataset.molecules}
    write_tensors(cache, tensors, metadata)


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
    graphs, split, seeds = (
        {key.split(".")[1]: value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ("graphs.", "split.", "seeds.")
    )
    record = json.loads(metadata["record"])
    return MoleculeDataset(
        task=task,
        info=spec.info(record["labels"]),
        graphs=PackedGraphs(**graphs),
        labels=tensors["labels"],
        split=Split(**split),
        molecules=tensors["molecules"],
        source_sha256=origin["sha256"],
        dropped=tuple(DroppedRow(**row) for row in json.loads(metadata["dropped"])),
        record=record,
        seed_rows={seed: seeds[str(seed)] for seed in sorted(map(int, seeds))},
    )
