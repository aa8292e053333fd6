import gzip
from pathlib import Path

import pytest
import torch

from merging.data import molecule_dataset as datasets
from merging.data.molecule_dataset import MOLECULENET, find_source, load_dataset
from merging.data.molecule_tables import DatasetSpec
from merging.families.molecule_config import MoleculeConfig
from models.data.smiles import READING_RULE, featurize
from models.errors import DataError
from tests.merging.conftest import molecules, tail_has, write_csv


def test_labels_missing_values_and_graphs(pico: MoleculeConfig, tmp_path: Path) -> None:
    dataset = load_dataset(
        "other", pico.dataset_for("other"), tmp_path / "data", tmp_path / "cache"
    )
    assert dataset.label_names == ("has_o", "has_halogen")
    assert dataset.labels.shape == (80, 2)
    assert dataset.labels[:, 1].isnan().nonzero().flatten().tolist() == list(range(0, 80, 9))
    for k in (0, 33, 79):
        batch = dataset.graphs.select(torch.tensor([k]))
        expected = featurize(molecules()[k]).graph
        assert torch.equal(batch.x, expected.x)
        assert torch.equal(batch.edge_index, expected.edge_index)


def test_cache_gives_the_same_and_is_renewed_with_the_file(
    pico: MoleculeConfig, tmp_path: Path
) -> None:
    def load() -> torch.Tensor:
        return load_dataset(
            "nitrogen", pico.dataset_for("nitrogen"), tmp_path / "data", tmp_path / "cache"
        ).labels

    first = load()
    assert (tmp_path / "cache/nitrogen.safetensors").is_file()
    assert torch.equal(load(), first)
    inverted = [str(1 - int(label)) for label in tail_has("N")]
    rows = list(zip(molecules(), inverted, strict=True))
    write_csv(tmp_path / "data/nitrogen.csv", "smiles", ("has_n",), rows)
    assert torch.equal(load(), 1 - first)


def test_cache_is_renewed_with_the_description_of_the_file(
    pico: MoleculeConfig, tmp_path: Path
) -> None:
    spec = pico.dataset_for("other")
    assert load_dataset("other", spec, tmp_path / "data", tmp_path / "cache").label_names == (
        "has_o",
        "has_halogen",
    )
    fewer = spec.model_copy(update={"label_columns": ("has_halogen",)})
    assert load_dataset("other", fewer, tmp_path / "data", tmp_path / "cache").label_names == (
        "has_halogen",
    )


def test_gzip_and_worker_processes_give_the_same(pico: MoleculeConfig, tmp_path: Path) -> None:
    plain = load_dataset(
        "nitrogen", pico.dataset_for("nitrogen"), tmp_path / "data", tmp_path / "cache"
    )
    (tmp_path / "data/nitrogen.csv.gz").write_bytes(
        gzip.compress((tmp_path / "data/nitrogen.csv").read_bytes())
    )
    zipped = load_dataset(
        "nitrogen",
        DatasetSpec(file="nitrogen.csv.gz"),
        tmp_path / "data",
        tmp_path / "cache2",
        workers=2,
    )
    assert torch.equal(plain.graphs.x, zipped.graphs.x)
    assert torch.equal(plain.labels, zipped.labels)


def test_split_parts_are_disjoint_and_share_no_scaffold(
    pico: MoleculeConfig, tmp_path: Path
) -> None:
    dataset = load_dataset(
        "nitrogen", pico.dataset_for("nitrogen"), tmp_path / "data", tmp_path / "cache"
    )
    subsets = [set(subset.tolist()) for subset in vars(dataset.split).values()]
    assert sum(map(len, subsets)) == len(set.union(*subsets)) == 80
    rings = [{k // 10 for k in subset} for subset in subsets]  # ten molecules a ring
    assert all(rings[a].isdisjoint(rings[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (DatasetSpec(file="absent.csv"), r"no file absent\.csv"),
        (DatasetSpec(file="nitrogen.csv", smiles_column="structure"), "structure"),
        (DatasetSpec(file="nitrogen.csv", label_columns=("has_p",)), "has_p"),
        (
            DatasetSpec(file="nitrogen.csv", num_molecules=81),
            "got 80 readable molecules, expected the published 81",
        ),
        (DatasetSpec(file="nitrogen.csv", num_labels=2), "got 1 labels, expected the published 2"),
    ],
)
def test_what_does_not_fit_is_named(
    spec: DatasetSpec, message: str, pico: MoleculeConfig, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset("nitrogen", spec, tmp_path / "data", tmp_path / "cache")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Before anything is trained: an answer is a table by label name."""
    write_csv(tmp_path / "x.csv", "smiles", ("a", "b", "a"), [("CCO", "1", "0", "1")])
    with pytest.raises(DataError, match=r"x\.csv: got label name twice: 'a', expected each once"):
        load_dataset("x", DatasetSpec(file="x.csv"), tmp_path, tmp_path / "cache")


def test_absent_published_set_is_fetched_by_the_maintained_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_geometric.data

    asked = []

    def download(url: str, folder: str, log: bool = True) -> str:
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr(torch_geometric.data, "download_url", download)
    with pytest.raises(DataError, match="could not be fetched: no network"):
        find_source("bace", MOLECULENET["bace"], tmp_path, tmp_path)
    assert asked[0].endswith("bace.csv")


@pytest.mark.parametrize("task", ["bbbp", "clintox"])
def test_published_sizes_and_split(task: str, shared: Path, tmp_path: Path) -> None:
    dataset = load_dataset(task, MOLECULENET[task], shared / "data", tmp_path, workers=2)
    assert len(dataset.graphs) == MOLECULENET[task].num_molecules
    sizes = [len(subset) for subset in vars(dataset.split).values()]
    assert sizes == {"bbbp": [1631, 204, 204], "clintox": [1182, 148, 148]}[task]


def test_what_was_read_by_another_rule_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.csv").write_text(
        "smiles,a\n" + "".join(f"{'C' * k}O,{k % 2}\n" for k in range(1, 41))
    )
    spec = DatasetSpec(file="own.csv", split="random")
    load_dataset("own", spec, tmp_path, tmp_path / "cache")
    cached = (tmp_path / "cache/own.safetensors").stat().st_mtime_ns
    load_dataset("own", spec, tmp_path, tmp_path / "cache")
    assert (tmp_path / "cache/own.safetensors").stat().st_mtime_ns == cached
    monkeypatch.setattr(
        datasets,
        "_CACHE_VERSION",
        datasets._CACHE_VERSION.replace(str(READING_RULE), str(READING_RULE + 1)),
    )
    load_dataset("own", spec, tmp_path, tmp_path / "cache")
    assert (tmp_path / "cache/own.safetensors").stat().st_mtime_ns > cached


def test_maps_isotopes_and_hydrogens_are_gone_from_graphs_and_scaffolds() -> None:
    plain, labelled = (
        datasets._parse_one("C[C@H](N)Cc1ccccc1"),
        datasets._parse_one("[2H]C[C@:1]([H])(N)Cc1cc[13cH]cc1"),
    )
    assert plain is not None
    assert labelled is not None
    assert plain[1] == labelled[1] == "c1ccccc1"
    assert len(plain[0][0]) == len(labelled[0][0]) == 10
