"""Molecules with labels, of MoleculeNet and one's own: read, featurised, split, cached."""

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
from merging.data.labels import number_in, quoted
from merging.data.molecule_tables import DatasetSpec, DroppedRow, MoleculeTable, read_molecule_table
from merging.data.split import (
    PARTS,
    TRAIN,
    VALID,
    Split,
    check_parts,
    lacking_labels,
    random_split,
    scaffold_split,
)
from merging.data.task_data import Step, Subset
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
    """One task's molecules.

    Attributes:
        task: its name.
        info: what it answers: labels (of `multiclass`, classes), target, units.
        graphs: G molecules.
        labels: (G, L) float32, 0 or 1 or the numbers of a regression, NaN where missing; of
            `multiclass` (G,) int64 classes, -1 where missing.
        split: what is trained, validated and tested on.
        source_sha256: of the file it was read from.
        dropped: rows of the file that were left out.
        record: how the file was read, plain values for records and cards: `file`, `rows`,
            `molecules`, `dropped`; `smiles_column`, `labels`; `words`, by label the cells that are
            1 and 0 where the file does not say 0 and 1; of other targets `target` with `ranges`,
            `units` and `far` (see `_far`) by label and `two_numbers`, the labels that are one of
            two numbers, or the `column` of the classes; `missing`, by spelling how many cells of
            labels are missing values; `split`, in words; `parts`, the
            molecules in each; `not_measured`, by part the labels that cannot be measured there;
            `repeated`, see `_repeated`.
        most_per_epoch: an epoch of training draws at most so many molecules, anew each time; None:
            all of them.
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
        """L names, in the order of the head."""
        return self.info.labels

    @property
    def target(self) -> Target:
        """What the labels are."""
        return self.info.target

    @property
    def outputs(self) -> int:
        """L."""
        return len(self.info.labels)

    @property
    def sources(self) -> dict[str, str]:
        """sha256 of the file, by its name."""
        return {self.record["file"]: self.source_sha256}

    @property
    def size(self) -> int:
        """G."""
        return len(self.graphs)

    @property
    def summary(self) -> str:
        """A line for people: what was read as what."""
        record, labels = self.record, said_labels(self.record)
        count = len(record["labels"])
        sizes = ", ".join(f"{n} {subset}" for subset, n in record["parts"].items())
        lacking = {subset: len(names) for subset, names in record["not_measured"].items() if names}
        source = f"{record['file']}, column {record['smiles_column']!r}"
        dropped = f"{record['dropped']} of {record['rows']} rows dropped"
        return "; ".join(
            (
                f"{self.task}: {record['molecules']} molecules of {source}, {dropped}",
                f"{count} {_counted(record)}: {labels}",
                f"split {record['split']}: {sizes}",
                *(f"not measured in {subset}: {n} of them" for subset, n in lacking.items()),
                *said_cells(record),
                *_said_repeated(record["repeated"], self.target),
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
        """See `merging.data.task_data.TaskData.calibration`; drawn by the seed."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.split.train), generator=generator)[:count]
        chosen = self.split.train[order].split(batch_size)
        return tuple(self.graphs.select(rows) for rows in chosen), ()


def load_dataset(
    task: str, spec: DatasetSpec, data_folder: Path, cache_folder: Path, workers: int = 1
) -> MoleculeDataset:
    """A data set from the cache, or read, featurised and split (a minute or two for the large
    ones), and then cached.

    Rows that are left out are listed in `<task>.dropped.csv` in the cache folder.

    Raises:
        DataError: no file, one that does not have the expected columns or size, labels that are no
            two classes, too many rows that cannot be read, or a split that cannot be trained on.
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
    """Where the rows of a task's file that were left out are listed."""
    return cache_folder / f"{task}.dropped.csv"


def _counted(record: Mapping[str, Any]) -> str:
    if "column" in record:
        return f"classes of {record['column']!r}"
    return "label" if len(record["labels"]) == 1 else "labels"


_CONTRADICTORY = {
    "multilabel": "with 0 and 1 for one label",
    "multiclass": "with several classes",
    "regression": "with several numbers for one label",
}


def _said_repeated(repeated: Mapping[str, int], target: Target) -> list[str]:
    if not repeated["molecules"]:
        return []
    found = f"molecules in several rows: {repeated['molecules']}"
    known = {"contradictory": _CONTRADICTORY[target], "across_parts": "in several parts"}
    more = [f"{repeated[name]} {what}" for name, what in known.items() if repeated[name]]
    return [", ".join([found, *more])]


def said_labels(record: Mapping[str, Any]) -> str:
    """The first few labels of a `MoleculeDataset.record`, with the cells that are 1 and 0, or of a
    regression with unit and range."""
    names = record["labels"]
    shown = [_said_label(name, record) for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more


def said_cells(record: Mapping[str, Any]) -> list[str]:
    """What is worth a look in the cells of a `MoleculeDataset.record`: what is taken for a missing
    value, numbers far from all others, and labels of two numbers."""
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


def _said_label(name: str, record: Mapping[str, Any]) -> str:
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
    """The molecules of a data set as they stand in its source, one for each of `dataset.graphs`.

    Raises:
        DataError: no source, or one that is not the file that the data set was read from.
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
    """The CSV of a data set: in the data folder, or fetched by PyG's MoleculeNet loader into the
    cache folder. Raises DataError."""
    names = (spec.file,) if spec.file else (f"moleculenet/{task}.csv.gz", f"moleculenet/{task}.csv")
    for name in names:
        if (data_folder / name).is_file():
            return data_folder / name
    if task not in MOLECULENET or spec.file:
        raise DataError(
            f"got no file {' or '.join(names)} in {data_folder}, expected the data of task {task!r}"
            " (set GMERGING_DATA)"
        )
    from torch_geometric.data import (
        download_url,  # takes seconds to import, and is needed only here
    )
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
    """Read, featurise and split a table (`load_dataset`). Labels are checked before molecules."""
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
    split, how = _split(spec, table, kept, [molecule.scaffold for molecule in molecules])
    lacking = lacking_labels(split, labels, info)
    if spec not in MOLECULENET.values():  # those are taken as they are published
        _check_parts(file, spec, split, labels, info)
    record = {
        "file": file.name,
        "rows": len(kept) + len(dropped),
        "molecules": len(kept),
        "dropped": len(dropped),
        "smiles_column": table.molecule_column,
        "labels": list(info.labels),
        "words": _words(table, spec.target),
        **_of_target(table, info, labels, [table.lines[k] for k in kept]),
        "missing": dict(table.missing),
        "split": how,
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


def _words(table: MoleculeTable, target: Target) -> dict[str, list[str]]:
    """By label the cells that are 1 and 0, where the file does not say 0 and 1."""
    if target != "multilabel":
        return {}
    return {label.name: list(label.classes[::-1]) for label in table.labels if not label.plain}


def _tensor(table: MoleculeTable, target: Target) -> Tensor:
    """Labels of all rows, see `MoleculeDataset.labels`."""
    values = torch.tensor([label.values for label in table.labels]).T
    return values[:, 0].nan_to_num(-1).long() if target == "multiclass" else values


def _of_target(
    table: MoleculeTable, info: TaskInfo, labels: Tensor, lines: Sequence[int]
) -> dict[str, Any]:
    """What a record says of a target other than two classes."""
    if info.target == "multiclass":
        return {"target": info.target, "column": table.labels[0].name}
    if info.target == "regression":
        known = [column[~column.isnan()] for column in labels.T]
        ranges = [[round(float(end), 6) for end in column.aminmax()] for column in known]
        far = [_far(column, lines) for column in labels.T]
        two = zip(info.labels, (len(numbers.unique()) == 2 for numbers in known), strict=True)
        return {
            "target": info.target,
            "ranges": dict(zip(info.labels, ranges, strict=True)),
            "units": info.unit_of,
            "far": {name: own for name, own in zip(info.labels, far, strict=True) if own},
            "two_numbers": [name for name, only in two if only],
        }
    return {}


def _far(column: Tensor, lines: Sequence[int]) -> dict[str, Any] | None:
    """The `number` that is farthest from the median, its `line`, and how many `times` the width of
    the middle half it is away; None if that is less than `_FAR`, or the middle half has no width.

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
    """How many molecules stand in several rows, however they are written: `molecules`; of these
    `contradictory`, with different values of one label, and `across_parts`, in several parts of
    the split."""
    rows_of: dict[str, list[int]] = {}
    for k, canonical in enumerate(smiles):
        rows_of.setdefault(canonical, []).append(k)
    several = [rows for rows in rows_of.values() if len(rows) > 1]
    part_of = {row: subset for subset, rows in vars(split).items() for row in rows.tolist()}
    if not labels.is_floating_point():  # classes
        labels = torch.where(labels >= 0, labels.float(), torch.nan).unsqueeze(1)
    return {
        "molecules": len(several),
        "contradictory": sum(_differ(labels[rows]) for rows in several),
        "across_parts": sum(len({part_of[row] for row in rows}) > 1 for rows in several),
    }


def _differ(labels: Tensor) -> bool:
    """Whether a label has several values in some rows (n, L)."""
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
    """List what was left out, for a spreadsheet; nothing left out, no file."""
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
    found = f"{len(dropped)} of {rows} rows that cannot be read"
    expected = f"at most {100 * most:g} % (`max_dropped`)"
    raise DataError(f"{file}: got {found}, expected {expected}: {shown}{more}")


def _split(
    spec: DatasetSpec, table: MoleculeTable, kept: Sequence[int], scaffolds: Sequence[str]
) -> tuple[Split, str]:
    """The split of the kept rows that a description asks for, and what it is in words."""
    how = "scaffold" if spec.split == "scaffold" else f"random, seed {spec.split_seed}"
    if table.parts is None:
        return _drawn(spec, scaffolds, TRAIN, VALID), how
    given = [table.parts[k] for k in kept]
    rows_of = {subset: [k for k, own in enumerate(given) if own == subset] for subset in PARTS}
    train, valid, test = (torch.tensor(rows, dtype=torch.int64) for rows in rows_of.values())
    words = f"by column {spec.split_column!r}"
    if len(valid) or not len(train):
        return Split(train, valid, test), words
    drawn = _drawn(spec, [scaffolds[k] for k in train], 8 / 9, 1 / 9)
    # Groups of scaffolds that fit into neither share are in the third part.
    valid = train[torch.cat([drawn.valid, drawn.test]).sort().values]
    words += f", validation drawn from its training rows, {how}"
    return Split(train[drawn.train], valid, test), words


def _drawn(spec: DatasetSpec, scaffolds: Sequence[str], train: float, valid: float) -> Split:
    if spec.split == "scaffold":
        return scaffold_split(scaffolds, train, valid)
    return random_split(len(scaffolds), spec.split_seed, train, valid)


def _check_parts(
    file: Path, spec: DatasetSpec, split: Split, labels: Tensor, info: TaskInfo
) -> None:
    try:
        check_parts(split, lacking_labels(split, labels, info), info)
    except DataError as error:
        how = f"column {spec.split_column!r}" if spec.split_column else f"split {spec.split}"
        other = "another column" if spec.split_column else "a `split_column` of your own"
        seed = _working_seed(labels, info)
        instead = " and no `split_column`" if spec.split_column else ""
        random = f"`split: random` with `split_seed: {seed}`{instead}, "
        remedy = f"try {'' if seed is None else random}{other}, or more rows"
        if info.target == "multiclass" and None not in map(number_in, info.labels):
            remedy += "; numbers that are no classes are `target: regression`"
        raise DataError(f"{file}, {how}: {error}; {remedy}") from error


def _working_seed(labels: Tensor, info: TaskInfo) -> int | None:
    """The first seed of a random split that can be trained on and measured."""
    for seed in range(_SEEDS_TRIED):
        split = random_split(len(labels), seed)
        with suppress(DataError):
            check_parts(split, lacking_labels(split, labels, info), info)
            return seed
    return None


class _Parsed(NamedTuple):
    """A molecule's graph, its scaffold with chirality, and its canonical SMILES."""

    graph: MolGraph
    scaffold: str
    smiles: str


def _parse(smiles: Sequence[str], workers: int, task: str) -> Iterator[_Parsed | None]:
    with ProcessPoolExecutor(workers) as pool:
        parsed = pool.map(_parse_one, smiles, chunksize=256)
        for read in tqdm(parsed, total=len(smiles), desc=f"{task}: molecules", unit="mol"):
            yield read and _Parsed(MolGraph(*map(torch.from_numpy, read[0])), *read[1:])


def _parse_one(smiles: str) -> tuple[list[NDArray[np.int64]], str, str] | None:
    """What `_Parsed` holds, or None where RDKit cannot read the molecule at all.

    The graph as arrays: tensors would each hold a file descriptor on their way to the parent
    process.
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
        # RDKit checks valences here: the 15 molecules that fail are scaffolds of their own
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
    """The cached set, or None if it was made from another file, for another description of it, or
    by another version, or is damaged."""
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
