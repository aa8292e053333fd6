import json
import random
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from merging.pretraining import (
    ContextPrediction,
    ContextPredictionConfig,
    EdgePrediction,
    PairScores,
    PretrainConfig,
    draw_nonadjacent,
    hop_distances,
    load_pretrain_config,
    make_objective,
    pretrain,
    split_context,
)
from models.backbone import BackboneConfig, load_backbone
from models.errors import ConfigError, InvalidInputError
from models.featurize import featurize
from models.graph import GraphBatch, MolGraph, collate
from tests.conftest import KINDS, pico_config
from tests.merging.conftest import RINGS, TAILS

LINKERS = ("CCCC", "C(=O)NCC", "O[C@H](C)CC", "/C=C/CC")
CORPUS = [ring + linker + tail for ring in RINGS for linker in LINKERS for tail in TAILS]
CONTEXT: dict[str, object] = {"kind": "contextpred", "inner_hops": 2, "outer_hops": 4}
EDGES: dict[str, object] = {"kind": "edgepred"}
CPU = torch.device("cpu")


def generated(seed: int, graphs: int = 6) -> GraphBatch:
    """Long trees with some rings, some in pieces, some single atoms; features are the atoms' numbers in the batch, so that each can be told."""
    rng = random.Random(seed)
    molecules = []
    for _ in range(graphs):
        n = rng.randint(1, 25)
        bonds = {(max(0, k - rng.randint(1, 3)), k) for k in range(1, n)}
        bonds |= {(u, v) for u, v in ((rng.randrange(n), rng.randrange(n)) for _ in range(rng.randint(0, 3))) if u < v}
        bonds = {bond for bond in bonds if rng.random() < 0.97}
        edges = [*bonds, *((v, u) for u, v in bonds)]
        rng.shuffle(edges)
        index = torch.tensor(edges, dtype=torch.int64).view(-1, 2).T
        molecules.append(MolGraph(torch.zeros(n, 2, dtype=torch.int64), index, torch.zeros(len(edges), 2, dtype=torch.int64)))
    batch = collate(molecules)
    return replace(batch, x=torch.arange(batch.num_nodes).unsqueeze(1).repeat(1, 2), edge_attr=batch.edge_index.T.clone())


def starts(batch: GraphBatch) -> Tensor:
    sizes = torch.bincount(batch.batch, minlength=batch.num_graphs)
    return sizes.cumsum(0) - sizes


def some_centres(batch: GraphBatch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.bincount(batch.batch)
    return starts(batch) + torch.tensor([int(torch.randint(int(n), (1,), generator=generator)) for n in sizes])


def breadth_first(batch: GraphBatch, centre: int) -> dict[int, int]:
    """The plain algorithm: distance of every atom that can be reached."""
    neighbours: dict[int, list[int]] = {}
    for u, v in batch.edge_index.T.tolist():
        neighbours.setdefault(u, []).append(v)
    found, queue = {centre: 0}, deque([centre])
    while queue:
        atom = queue.popleft()
        for each in neighbours.get(atom, []):
            if each not in found:
                found[each] = found[atom] + 1
                queue.append(each)
    return found


def atoms_and_edges(part: GraphBatch) -> tuple[list[int], set[tuple[int, int]]]:
    """Original numbers of a generated subgraph; its edges as numbered there must be those that their features tell."""
    numbers = part.x[:, 0]
    assert torch.equal(numbers[part.edge_index].T, part.edge_attr)
    return numbers.tolist(), set(map(tuple, part.edge_attr.tolist()))


@pytest.mark.parametrize("seed", range(12))
def test_hop_distances_are_those_of_breadth_first_search(seed: int) -> None:
    batch = generated(seed)
    centres = some_centres(batch, seed)
    for hops in (1, 4, 7):
        expected = torch.full((batch.num_nodes,), hops + 1)
        for centre in centres.tolist():
            for atom, distance in breadth_first(batch, centre).items():
                expected[atom] = min(distance, hops + 1)
        assert torch.equal(hop_distances(batch, centres, hops), expected)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("radius", "inner", "outer"), [(5, 4, 7), (2, 1, 4), (3, 1, 2)])
def test_neighbourhoods_contexts_and_anchors_are_exact(seed: int, radius: int, inner: int, outer: int) -> None:
    batch = generated(seed)
    centres = some_centres(batch, seed)
    near: list[int] = []
    ring: list[int] = []
    shared: list[int] = []
    kept: list[int] = []
    for graph, centre in enumerate(centres.tolist()):
        distance = breadth_first(batch, centre)
        context = sorted(atom for atom, d in distance.items() if inner < d <= outer)
        if context:
            kept.append(graph)
            near += sorted(atom for atom, d in distance.items() if d <= radius)
            ring += context
            shared += [atom for atom in context if distance[atom] <= radius]
    edges = [(u, v) for u, v in batch.edge_index.T.tolist()]
    parts = split_context(batch, centres, radius, inner, outer)
    for part, atoms in ((parts.neighbourhood, near), (parts.context, ring)):
        assert atoms_and_edges(part) == (atoms, {(u, v) for u, v in edges if u in atoms and v in atoms})
        assert part.num_graphs == len(kept)
        assert [kept[graph] for graph in part.batch.tolist()] == batch.batch[part.x[:, 0]].tolist()
    assert parts.neighbourhood.x[parts.centres, 0].tolist() == [int(centres[graph]) for graph in kept]
    assert parts.context.x[parts.anchors, 0].tolist() == shared
    assert set(parts.context.batch[parts.anchors].tolist()) == set(range(len(kept)))  # every context has an anchor


@pytest.mark.parametrize("seed", range(12))
def test_drawn_pairs_are_two_unbonded_atoms_of_one_molecule(seed: int) -> None:
    batch = generated(seed)
    bonds = batch.edge_index[:, batch.edge_index[0] < batch.edge_index[1]]
    torch.manual_seed(seed)
    pairs = draw_nonadjacent(batch, bonds)
    edges = set(map(tuple, batch.edge_index.T.tolist()))
    assert all(u != v and (u, v) not in edges for u, v in pairs.T.tolist())
    assert torch.equal(batch.batch[pairs[0]], batch.batch[pairs[1]])
    for graph in range(batch.num_graphs):
        n, own = int((batch.batch == graph).sum()), int((batch.batch[bonds[0]] == graph).sum())
        complete = 2 * own == n * (n - 1)
        assert int((batch.batch[pairs[0]] == graph).sum()) == (0 if complete else own)


def test_pairs_are_drawn_evenly() -> None:
    batch = collate([featurize(smiles).graph for smiles in ("C1CC1", "CCCC", "CCO")])  # of the second 3 of 6 pairs are free, of the third 1 of 3
    torch.manual_seed(0)
    pairs = draw_nonadjacent(batch, torch.tensor([[3], [4]]).repeat(1, 6000))
    drawn, counts = torch.unique(pairs.sort(dim=0).values, dim=1, return_counts=True)
    assert drawn.T.tolist() == [[3, 5], [3, 6], [4, 6]]
    assert bool(((counts - 2000).abs() < 200).all())
    assert draw_nonadjacent(batch, torch.tensor([[0, 7], [1, 8]])).sort(dim=0).values.T.tolist() == [[7, 9]]


def test_loss_and_accuracy_by_their_definition() -> None:
    positive, negative = torch.tensor([3.0, -1.0, 0.5, 2.0]), torch.tensor([-2.0, 4.0])
    scores = PairScores(positive, negative)
    expected = F.binary_cross_entropy(positive.sigmoid(), torch.ones(4)) + F.binary_cross_entropy(negative.sigmoid(), torch.zeros(2))
    torch.testing.assert_close(scores.loss(), expected)
    assert float(scores.accuracy()) == (3 / 4 + 1 / 2) / 2


def real_batch(*smiles: str) -> GraphBatch:
    return collate([featurize(each).graph for each in smiles or CORPUS[::16]])


def pico_objective(objective: dict[str, object], **backbone: Any) -> ContextPrediction | EdgePrediction:
    torch.manual_seed(0)
    content = {"setting": "pico", "description": "", "backbone": pico_config("gin").model_copy(update=backbone), "objective": objective}
    return make_objective(PretrainConfig.model_validate({**content, "corpus": {"files": ["smiles.txt"]}}))


@pytest.mark.parametrize("kind", KINDS)
def test_context_scores_are_those_of_molecules_cut_one_by_one(kind: str) -> None:
    objective = pico_objective(CONTEXT, kind=kind).eval()
    assert isinstance(objective, ContextPrediction)
    batch = real_batch(*CORPUS[::23], "CC", "CCO")
    torch.manual_seed(5)
    scores = objective(batch)
    torch.manual_seed(5)
    sizes = torch.bincount(batch.batch)
    centres = starts(batch) + torch.randint(2**62, sizes.shape) % sizes
    own, contexts = [], []
    for centre in centres.tolist():
        distance = breadth_first(batch, centre)
        near, ring = ([atom for atom, d in distance.items() if low <= d <= high] for low, high in ((0, 3), (3, 4)))
        if ring:
            own.append(objective.backbone(cut(batch, near))[near.index(centre)])
            contexts.append(objective.context(cut(batch, ring))[[distance[atom] <= 3 for atom in ring]].mean(0))
    assert 2 < len(own) < batch.num_graphs
    torch.testing.assert_close(scores.positive, torch.stack([a @ b for a, b in zip(own, contexts, strict=True)]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        scores.negative, torch.stack([a @ b for a, b in zip(own, contexts[1:] + contexts[:1], strict=True)]), rtol=1e-4, atol=1e-5
    )


def cut(batch: GraphBatch, atoms: list[int]) -> GraphBatch:
    """The subgraph of some atoms, in their order."""
    edges = [k for k, (u, v) in enumerate(batch.edge_index.T.tolist()) if u in atoms and v in atoms]
    index = torch.tensor([[atoms.index(int(atom)) for atom in batch.edge_index[side, edges]] for side in (0, 1)], dtype=torch.int64)
    return GraphBatch(batch.x[atoms], index, batch.edge_attr[edges], torch.zeros(len(atoms), dtype=torch.int64), 1)


def test_edge_scores_are_products_of_the_whole_molecules_embeddings() -> None:
    objective = pico_objective(EDGES).eval()
    batch = real_batch()
    torch.manual_seed(5)
    scores = objective(batch)
    h = objective.backbone(batch)
    bonds = [(u, v) for u, v in batch.edge_index.T.tolist() if u < v]
    torch.testing.assert_close(scores.positive, torch.stack([h[u] @ h[v] for u, v in bonds]))
    torch.manual_seed(5)
    others = draw_nonadjacent(batch, torch.tensor(bonds).T)
    torch.testing.assert_close(scores.negative, torch.stack([h[u] @ h[v] for u, v in others.T.tolist()]))


def test_batches_without_anything_to_predict_are_refused() -> None:
    with pytest.raises(
        InvalidInputError, match="got 1 molecules with an atom more than 2 bonds from the drawn one in a batch of 3, expected at least 2"
    ):
        pico_objective(CONTEXT)(real_batch("CC", "C1CCCCC1", "CCO"))
    with pytest.raises(InvalidInputError, match="got 1 bonds and no other pair of atoms in a batch of 2"):
        pico_objective(EDGES)(real_batch("CC", "[Na+].[Cl-]"))


@pytest.mark.parametrize("kind", [CONTEXT, EDGES])
def test_stereo_molecules_train_the_chirality_and_direction_tables(kind: dict[str, object]) -> None:
    objective = pico_objective(kind)
    torch.manual_seed(0)
    batch = real_batch(*(smiles for smiles in CORPUS[::3] if "@" in smiles), *["CC/C=C/CCO", "CC/C=C\\CCO"] * 8)
    objective(batch).loss().backward()
    for table in (objective.backbone.x_embedding2, objective.backbone.gnns[0].edge_embedding2):
        assert isinstance(table.weight.grad, Tensor)
        assert bool((table.weight.grad.abs().sum(1) > 0).all())


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merging.corpus.SHARD_SIZE", len(CORPUS) // 2)


def write_config(folder: Path, objective: dict[str, object], **changes: object) -> PretrainConfig:
    """A pico configuration with its corpus in `folder / "data"`, read from a file."""
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data/smiles.txt").write_text("\n".join(CORPUS))
    content = {
        "setting": "pico",
        "description": "made in a test",
        "backbone": pico_config("gin").model_dump(),
        "objective": objective,
        "corpus": {"files": ["smiles.txt"]},
        "epochs": 2,
        "batch_size": 32,
        "learning_rate": 0.01,
        **changes,
    }
    (folder / "pico.yaml").write_text(yaml.safe_dump(content))
    return load_pretrain_config(folder / "pico.yaml")


def record_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as stream:
        record: dict[str, Any] = json.loads(stream.metadata()["record"])
    for shard in record["shards"]:
        del shard["seconds"]
    return record


@pytest.mark.parametrize("objective", [CONTEXT, EDGES], ids=["context", "edges"])
def test_it_learns_and_leaves_a_backbone_with_its_story(objective: dict[str, object], tmp_path: Path) -> None:
    config = write_config(tmp_path, objective, epochs=6)
    path = pretrain(config, tmp_path / "data", tmp_path / "work", 3, CPU)
    assert path == tmp_path / "work/pretrained/pico-seed3.safetensors"
    record = record_of(path)
    losses, accuracies = ([shard[name] for shard in record["shards"]] for name in ("loss", "accuracy"))
    assert losses[-1] < 0.8 * losses[0]
    assert sum(accuracies[3:]) / 3 > 0.56  # chance is 0.5; many of these molecules have the same context
    assert record["molecules_seen"] == 6 * len(CORPUS)
    assert record["finished"]
    assert record["seed"] == 3
    assert PretrainConfig.model_validate(record["config"]) == config
    assert record["corpus"]["molecules"] == len(CORPUS)
    backbone = load_backbone(path, config.backbone)
    assert int(backbone.batch_norms[0].num_batches_tracked) == 6 * len(CORPUS) // 32
    assert not list(path.parent.glob("*.resume.pt"))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("objective", [CONTEXT, EDGES], ids=["context", "edges"])
def test_a_resumed_run_is_the_same_run(objective: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, objective)
    whole = pretrain(config, tmp_path / "data", tmp_path / "whole", 0, CPU)
    calls = []

    def stop_at_third(*args: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        result: dict[str, float] = original(*args)
        return result

    import merging.pretraining

    original = merging.pretraining._train_shard
    with monkeypatch.context() as patch:
        patch.setattr("merging.pretraining._train_shard", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, tmp_path / "data", tmp_path / "work", 0, CPU)
    so_far = tmp_path / "work/pretrained/pico-seed0.safetensors"
    assert not record_of(so_far)["finished"]
    assert len(record_of(so_far)["shards"]) == 2
    load_backbone(so_far, config.backbone)

    path = pretrain(config, tmp_path / "data", tmp_path / "work", 0, CPU)
    assert path == so_far
    expected, got = load_file(whole), load_file(path)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert record_of(path) == record_of(whole)


@pytest.mark.usefixtures("small_shards")
def test_a_finished_one_is_found_again_and_another_seed_or_setting_is_another(tmp_path: Path) -> None:
    config = write_config(tmp_path, EDGES, epochs=1)

    def run(config: PretrainConfig, seed: int) -> Path:
        return pretrain(config, tmp_path / "data", tmp_path / "work", seed, CPU)

    first = run(config, 0)
    time, weights = first.stat().st_mtime_ns, load_file(first)
    assert run(config.model_copy(update={"description": "said otherwise"}), 0).stat().st_mtime_ns == time
    other = run(config, 1)
    assert other != first
    assert not torch.equal(load_file(other)["x_embedding1.weight"], weights["x_embedding1.weight"])
    run(config.model_copy(update={"learning_rate": 0.002}), 0)
    assert not torch.equal(load_file(first)["x_embedding1.weight"], weights["x_embedding1.weight"])
    assert len(list((tmp_path / "work/data").iterdir())) == 1  # all of them share the featurised corpus


def test_a_corpus_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, EDGES, batch_size=len(CORPUS) + 1)
    with pytest.raises(ConfigError, match=f"batch_size: got {len(CORPUS) + 1}, expected at most the {len(CORPUS)} molecules of the smallest shard"):
        pretrain(config, tmp_path / "data", tmp_path / "work", 0, CPU)


@pytest.mark.parametrize("name", ["gin_contextpred", "gin_edgepred"])
def test_bundled_configurations_are_those_of_hu_et_al(name: str) -> None:
    config = load_pretrain_config(Path(f"{name}.yaml"))
    assert config.setting == name
    assert config.objective.kind == name.rsplit("_", 1)[1]
    assert config.backbone == BackboneConfig(kind="gin", num_layers=5, hidden_dim=300)
    assert (config.batch_size, config.learning_rate, config.corpus.exclude_benchmarks) == (256, 1e-3, True)
    if isinstance(config.objective, ContextPredictionConfig):
        assert (config.objective.inner_hops, config.objective.outer_hops) == (4, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surplus": 1}, "surplus: Extra inputs are not permitted"),
        ({"objective": {"kind": "edgepred", "inner_hops": 2}}, r"inner_hops: Extra inputs"),
        ({"objective": {"kind": "masking"}}, "objective: .*'contextpred', 'edgepred'"),
        ({"objective": {**CONTEXT, "outer_hops": 2}}, "got inner_hops 2, expected less than outer_hops 2 and than backbone.num_layers 3"),
        ({"objective": {**CONTEXT, "inner_hops": 3}}, "got inner_hops 3, expected less than outer_hops 4 and than backbone.num_layers 3"),
        ({"corpus": {"files": []}}, "corpus.files"),
        ({"corpus": {"files": ["a"], "max": 3}}, "corpus.max: Extra inputs"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"batch_size": 1}, "batch_size: Input should be greater than or equal to 2"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_config(tmp_path, **{"objective": CONTEXT, **changes})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no configuration at .*absent.yaml, expected .*: gin_contextpred.yaml, gin_edgepred.yaml"):
        load_pretrain_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_pretrain_config(tmp_path / "broken.yaml")


def test_hu_et_als_own_gin_files_fit(tmp_path: Path) -> None:
    d = 8
    shapes: dict[str, tuple[int, ...]] = {"x_embedding1.weight": (120, d), "x_embedding2.weight": (3, d)}
    for layer in range(5):
        shapes |= {f"gnns.{layer}.mlp.0.weight": (2 * d, d), f"gnns.{layer}.mlp.0.bias": (2 * d,)}
        shapes |= {f"gnns.{layer}.mlp.2.weight": (d, 2 * d), f"gnns.{layer}.mlp.2.bias": (d,)}
        shapes |= {f"gnns.{layer}.edge_embedding1.weight": (6, d), f"gnns.{layer}.edge_embedding2.weight": (3, d)}
        shapes |= {f"batch_norms.{layer}.{name}": (d,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes |= {f"batch_norms.{layer}.num_batches_tracked": ()}
    tensors = {key: torch.ones(shape, dtype=torch.int64 if "num_batches" in key else torch.float32) for key, shape in shapes.items()}
    torch.save(tensors, tmp_path / "contextpred.pth")
    backbone = load_backbone(tmp_path / "contextpred.pth", BackboneConfig(kind="gin", num_layers=5, hidden_dim=d))
    assert backbone.state_dict().keys() == tensors.keys()
