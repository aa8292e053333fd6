import gzip
from collections import Counter
from pathlib import Path

import pytest
import torch

from merging.data.corpus import Corpus, CorpusConfig, load_corpus
from merging.data.descriptors import DESCRIPTORS
from models.data.molecule import MolGraph
from models.data.smiles import featurize
from models.errors import DataError
from tests.merging.conftest import molecules, write_csv

STEREO = ("C[C@H](N)C(=O)O", "C[C@@H](O)CC", "F/C=C/CCO", "C[N+](C)(C)CC(=O)[O-]")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merging.data.corpus.SHARD_SIZE", 32)
    monkeypatch.setattr("merging.data.corpus._CHUNK", 10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small file with stereo molecules, and a large gzip one that repeats them; benchmarks with
    three of these, spelt otherwise."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "stereo.txt").write_text("\n".join((*STEREO, "", "no molecule", "C(C")) + "\n")
    (folder / "plain.txt.gz").write_bytes(
        gzip.compress("\n".join((*STEREO, *molecules())).encode())
    )
    write_csv(
        folder / "moleculenet/bace.csv",
        "mol",
        ("Class",),
        [("Oc1ccccc1", "1"), ("C1NCCCC1C#N", "0"), ("unreadable", "0")],
    )
    write_csv(
        folder / "moleculenet/clintox.csv",
        "smiles",
        ("FDA_APPROVED", "CT_TOX"),
        [("OC(=O)[C@H](C)N", "1", "0")],
    )
    return folder


def config(**changes: object) -> CorpusConfig:
    return CorpusConfig.model_validate({"files": ("stereo.txt", "plain.txt.gz"), **changes})


def graphs(corpus: Corpus) -> Counter[str]:
    """Every molecule of all shards as text."""
    shards = [corpus.shard(k).graphs for k in range(len(corpus.sizes))]
    batches = [shard.select(torch.tensor([row])) for shard in shards for row in range(len(shard))]
    return Counter(text(MolGraph(batch.x, batch.edge_index, batch.edge_attr)) for batch in batches)


def text(graph: MolGraph) -> str:
    return str([tensor.tolist() for tensor in vars(graph).values()])


def test_every_molecule_once_and_what_is_left_out_is_counted(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(config(exclude_benchmarks=False), data, tmp_path / "cache")
    expected = [*STEREO, *molecules()]
    assert graphs(corpus) == Counter(text(featurize(smiles).graph) for smiles in expected)
    assert {
        key: corpus.record[key] for key in ("lines", "molecules", "unreadable", "excluded")
    } == {"lines": len(expected) + 2, "molecules": len(expected), "unreadable": 2, "excluded": 0}
    assert sum(corpus.sizes) == len(expected)
    assert len(corpus.sizes) == 3
    assert corpus.record["benchmarks"] == {}


def test_benchmark_molecules_are_left_out_however_they_are_spelt(
    data: Path, tmp_path: Path
) -> None:
    corpus = load_corpus(config(), data, tmp_path / "cache")
    left_out = ("C[C@H](N)C(=O)O", "c1ccccc1O", "C1CCNCC1C#N")
    found = graphs(corpus)
    assert all(text(featurize(smiles).graph) not in found for smiles in left_out)
    assert corpus.record["excluded"] == len(left_out)
    assert set(corpus.record["benchmarks"]) == {"bace", "clintox"}
    assert text(featurize("C[C@@H](O)CC").graph) in found


def test_the_first_file_is_in_the_mix_whatever_the_limit(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(
        config(max_molecules=16, exclude_benchmarks=False), data, tmp_path / "cache"
    )
    assert corpus.record["lines"] == 16
    assert corpus.record["unreadable"] == 2
    assert graphs(corpus) == Counter(
        text(featurize(smiles).graph) for smiles in (*STEREO, *molecules()[:10])
    )


def test_a_limit_for_every_file(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(config(max_per_file=2, exclude_benchmarks=False), data, tmp_path)
    assert corpus.record["lines"] == 2 * len(config().files)


def test_descriptors_are_those_of_the_molecules(data: Path, tmp_path: Path) -> None:
    plain = load_corpus(config(exclude_benchmarks=False), data, tmp_path)
    assert plain.shard(0).descriptors is None
    corpus = load_corpus(config(exclude_benchmarks=False), data, tmp_path, descriptors=True)
    assert corpus.folder != plain.folder
    shard = corpus.shard(0)
    assert shard.descriptors is not None
    heavy = shard.descriptors[:, DESCRIPTORS.index("NumHeavyAtoms")].long()
    assert torch.equal(heavy, shard.graphs.node_counts)


def test_names_and_headers_are_no_molecules(data: Path, tmp_path: Path) -> None:
    named = [f"{smiles} mol {k}" for k, smiles in enumerate(STEREO)]
    (data / "named.smi").write_text("\n".join(["smiles name", *named]))
    settings = config(files=("named.smi",), exclude_benchmarks=False)
    corpus = load_corpus(settings, data, tmp_path / "cache")
    assert graphs(corpus) == Counter(text(featurize(smiles).graph) for smiles in STEREO)
    assert corpus.record["unreadable"] == 0


def test_shards_mix_the_files(data: Path, tmp_path: Path) -> None:
    corpus = load_corpus(config(exclude_benchmarks=False), data, tmp_path / "cache")
    sizes = {
        len(corpus.shard(0).graphs.select(torch.tensor([row])).x) for row in range(corpus.sizes[0])
    }
    assert sizes == {featurize(smiles).graph.num_nodes for smiles in (*STEREO, *molecules())}
    # no small last one, which might hold no batch
    assert max(corpus.sizes) - min(corpus.sizes) <= 3


def test_workers_make_no_difference(data: Path, tmp_path: Path) -> None:
    one, two = (
        load_corpus(config(), data, tmp_path / f"cache{workers}", workers) for workers in (1, 2)
    )
    assert one.record == two.record
    for k in range(len(one.sizes)):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                *(vars(corpus.shard(k).graphs).values() for corpus in (one, two)), strict=True
            )
        )


def test_a_stopped_start_goes_on_and_a_finished_one_is_found_again(
    data: Path, tmp_path: Path
) -> None:
    corpus = load_corpus(config(), data, tmp_path / "cache")
    times = {path.name: path.stat().st_mtime_ns for path in corpus.folder.iterdir()}
    assert load_corpus(config(), data, tmp_path / "cache") == corpus
    (corpus.folder / "corpus.json").unlink()
    (corpus.folder / "shard-00002.safetensors").unlink()
    assert load_corpus(config(), data, tmp_path / "cache") == corpus
    again = {path.name: path.stat().st_mtime_ns for path in corpus.folder.iterdir()}
    assert {name for name in times if again[name] != times[name]} == {
        "corpus.json",
        "shard-00002.safetensors",
    }


def test_other_files_settings_and_benchmarks_make_another_corpus(
    data: Path, tmp_path: Path
) -> None:
    def folder(**changes: object) -> Path:
        return load_corpus(config(**changes), data, tmp_path / "cache").folder

    seen = {folder(), folder(max_molecules=20)}
    (data / "stereo.txt").write_text("CCO\n")
    seen.add(folder())
    write_csv(data / "moleculenet/bace.csv", "mol", ("Class",), [("CCO", "1")])
    seen.add(folder())
    assert len(seen) == 4


def test_absent_and_wrong_files(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"got no file absent\.txt in .*, expected SMILES, one a line"
    ):
        load_corpus(config(files=("absent.txt",)), data, tmp_path / "cache")
    (data / "wrong.txt").write_text("not one\nnor this\n")
    with pytest.raises(
        DataError, match="got 2 unreadable lines, 0 excluded molecules and no other"
    ):
        load_corpus(config(files=("wrong.txt",)), data, tmp_path / "cache")
    (data / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="got 0 unreadable lines"):
        load_corpus(config(files=("empty.txt",)), data, tmp_path / "cache")
    write_csv(data / "moleculenet/bbbp.csv", "structure", (), [("CCO",)])
    with pytest.raises(DataError, match=r"got columns 'structure', expected 'smiles'"):
        load_corpus(config(), data, tmp_path / "cache")
