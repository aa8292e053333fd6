import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merging.training import pretraining
from merging.training.objectives import ContextPredictionConfig
from merging.training.pretraining import PretrainConfig, load_pretrain_config, pretrain
from models.errors import CheckpointError, ConfigError
from models.networks.hu2020 import BackboneConfig, load_backbone
from tests.conftest import pico_config, random_backbone
from tests.merging.conftest import stereo_corpus

CORPUS = stereo_corpus()
CONTEXT: dict[str, object] = {"kind": "contextpred", "inner_hops": 2, "outer_hops": 4}
EDGES: dict[str, object] = {"kind": "edgepred"}
DESCRIPTORS: dict[str, object] = {"kind": "descriptors", "hidden_dim": 32}
CPU = torch.device("cpu")


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merging.data.corpus.SHARD_SIZE", len(CORPUS) // 2)


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
def test_it_learns_and_leaves_a_backbone_with_its_story(
    objective: dict[str, object], tmp_path: Path
) -> None:
    config = write_config(tmp_path, objective, epochs=6)
    path = pretrain(config, tmp_path / "data", tmp_path / "work", 3, CPU)
    assert path == tmp_path / "work/pretrained/pico-seed3.safetensors"
    record = record_of(path)
    losses, accuracies = (
        [shard[name] for shard in record["shards"]] for name in ("loss", "accuracy")
    )
    assert losses[-1] < 0.95 * losses[0]
    # chance is 0.5; many of these molecules have the same context
    assert sum(accuracies[3:]) / 3 > 0.56
    assert record["molecules_seen"] == 6 * len(CORPUS)
    assert record["finished"]
    assert record["seed"] == 3
    assert PretrainConfig.model_validate(record["config"]) == config
    assert record["corpus"]["molecules"] == len(CORPUS)
    backbone = load_backbone(path, config.backbone)
    assert int(backbone.batch_norms[0].num_batches_tracked) == 6 * len(CORPUS) // 32
    assert not list(path.parent.glob("*.resume.pt"))


def test_descriptors_are_learnt_with_the_embeddings_of_a_teacher(tmp_path: Path) -> None:
    teacher = pico_config("gcn")
    save_file(random_backbone(teacher).state_dict(), tmp_path / "teacher.safetensors")
    of_teacher = {
        "teacher": str(tmp_path / "teacher.safetensors"),
        "teacher_backbone": teacher.model_dump(),
    }
    backbone = {**pico_config("gin_linear").model_dump(), "readout": "sum"}
    config = write_config(
        tmp_path, DESCRIPTORS | of_teacher, epochs=20, backbone=backbone, schedule="cosine"
    )
    path = pretrain(config, tmp_path / "data", tmp_path / "work", 3, CPU)
    explained = [shard["accuracy"] for shard in record_of(path)["shards"]]
    # the first epoch predicts no more than the means; the learning rate still rises for half of
    # the steps
    assert explained[0] < 0.05
    assert explained[-1] > 0.3
    load_backbone(path, config.backbone)


def test_a_missing_teacher_is_named(tmp_path: Path) -> None:
    config = write_config(tmp_path, {**DESCRIPTORS, "teacher": "none.pth"})
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        pretrain(config, tmp_path / "data", tmp_path / "work", 0, CPU)


def test_a_cosine_schedule_rises_and_falls_to_nothing(tmp_path: Path) -> None:
    config = write_config(tmp_path, DESCRIPTORS, schedule="cosine", learning_rate=1.0)
    rates = [
        pretraining._LearningRates(config, shard, 3, 400)[step]
        for shard in range(3)
        for step in range(400)
    ]
    assert rates[0] == 1 / 200
    peak = rates.index(max(rates))
    assert 190 < peak < 250
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 1e-5
    constant = config.model_copy(update={"schedule": "constant"})
    assert pretraining._LearningRates(constant, 2, 3, 400)[399] == 1.0


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(
    "objective", [CONTEXT, EDGES, DESCRIPTORS], ids=["context", "edges", "descriptors"]
)
def test_a_resumed_run_is_the_same_run(
    objective: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, objective)
    whole = pretrain(config, tmp_path / "data", tmp_path / "whole", 0, CPU)
    calls = []

    def stop_at_third(*args: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        result: dict[str, float] = original(*args)
        return result

    original = pretraining._train_shard
    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_train_shard", stop_at_third)
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
def test_a_finished_one_is_found_again_and_another_seed_or_setting_is_another(
    tmp_path: Path,
) -> None:
    config = write_config(tmp_path, EDGES, epochs=1)

    def run(config: PretrainConfig, seed: int) -> Path:
        return pretrain(config, tmp_path / "data", tmp_path / "work", seed, CPU)

    first = run(config, 0)
    time, weights = first.stat().st_mtime_ns, load_file(first)
    assert (
        run(config.model_copy(update={"description": "said otherwise"}), 0).stat().st_mtime_ns
        == time
    )
    other = run(config, 1)
    assert other != first
    assert not torch.equal(load_file(other)["x_embedding1.weight"], weights["x_embedding1.weight"])
    run(config.model_copy(update={"learning_rate": 0.002}), 0)
    assert not torch.equal(load_file(first)["x_embedding1.weight"], weights["x_embedding1.weight"])
    # all of them share the featurised corpus
    assert len(list((tmp_path / "work/data").iterdir())) == 1


def test_a_corpus_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, EDGES, batch_size=len(CORPUS) + 1)
    with pytest.raises(
        ConfigError,
        match=(
            f"batch_size: got {len(CORPUS) + 1}, expected at most the {len(CORPUS)} molecules of"
            " the smallest shard"
        ),
    ):
        pretrain(config, tmp_path / "data", tmp_path / "work", 0, CPU)


@pytest.mark.parametrize("name", ["gin_contextpred", "gin_edgepred"])
def test_bundled_configurations_are_those_of_hu_et_al(name: str) -> None:
    config = load_pretrain_config(Path(f"{name}.yaml"))
    assert config.setting == name
    assert config.objective.kind == name.rsplit("_", 1)[1]
    assert config.backbone == BackboneConfig(kind="gin", num_layers=5, hidden_dim=300)
    assert (config.batch_size, config.learning_rate, config.corpus.exclude_benchmarks) == (
        256,
        1e-3,
        True,
    )
    if isinstance(config.objective, ContextPredictionConfig):
        assert (config.objective.inner_hops, config.objective.outer_hops) == (4, 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surplus": 1}, "surplus: got an unknown key, expected one of setting"),
        (
            {"objective": {"kind": "edgepred", "inner_hops": 2}},
            "inner_hops: got an unknown key, expected one",
        ),
        (
            {"objective": {"kind": "masking"}},
            "objective: .*'contextpred', 'edgepred', 'descriptors'",
        ),
        (
            {"objective": {**CONTEXT, "outer_hops": 2}},
            "got inner_hops 2, expected less than outer_hops 2 and than backbone.num_layers 3",
        ),
        (
            {"objective": {**CONTEXT, "inner_hops": 3}},
            "got inner_hops 3, expected less than outer_hops 4 and than backbone.num_layers 3",
        ),
        ({"corpus": {"files": []}}, "corpus.files"),
        (
            {"corpus": {"files": ["a"], "max": 3}},
            "corpus.max: .* expected one of files, max_molecules, max_per_file",
        ),
        ({"epochs": 0}, "epochs: got 0, expected greater than or equal to 1"),
        ({"batch_size": 1}, "batch_size: got 1, expected greater than or equal to 2"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        write_config(tmp_path, **{"objective": CONTEXT, **changes})


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"no configuration at .*absent.yaml, expected .*: gin_contextpred.yaml,"
            r" gin_edgepred.yaml"
        ),
    ):
        load_pretrain_config(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_pretrain_config(tmp_path / "broken.yaml")


def test_hu_et_als_own_gin_files_fit(tmp_path: Path) -> None:
    d = 8
    shapes: dict[str, tuple[int, ...]] = {
        "x_embedding1.weight": (120, d),
        "x_embedding2.weight": (3, d),
    }
    for layer in range(5):
        shapes |= {f"gnns.{layer}.mlp.0.weight": (2 * d, d), f"gnns.{layer}.mlp.0.bias": (2 * d,)}
        shapes |= {f"gnns.{layer}.mlp.2.weight": (d, 2 * d), f"gnns.{layer}.mlp.2.bias": (d,)}
        shapes |= {
            f"gnns.{layer}.edge_embedding1.weight": (6, d),
            f"gnns.{layer}.edge_embedding2.weight": (3, d),
        }
        shapes |= {
            f"batch_norms.{layer}.{name}": (d,)
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        shapes |= {f"batch_norms.{layer}.num_batches_tracked": ()}
    tensors = {
        key: torch.ones(shape, dtype=torch.int64 if "num_batches" in key else torch.float32)
        for key, shape in shapes.items()
    }
    torch.save(tensors, tmp_path / "contextpred.pth")
    backbone = load_backbone(
        tmp_path / "contextpred.pth", BackboneConfig(kind="gin", num_layers=5, hidden_dim=d)
    )
    assert backbone.state_dict().keys() == tensors.keys()
