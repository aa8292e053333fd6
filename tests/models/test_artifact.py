import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.artifact import FORMAT_VERSION, load_artifact, load_parts, make_manifest, read_manifest, save_artifact
from models.atoms import Atoms, collate_atoms
from models.errors import ArtifactError, UnknownTaskError
from models.featurize import featurize
from models.force_field import ForceField, ForceFieldConfig, ForceFieldExpert, MergedForceField
from models.graph import GraphBatch, collate
from models.graph_network import GraphNetwork, GraphNetworkConfig
from models.inputs import AtomsInput, FeatureGraph, FeatureInput, collate_features
from models.router import RouterConfig
from models.task import TaskInfo
from models.unified import Expert, Routing, UnifiedModel
from tests.conftest import pico_config, random_backbone, random_experts

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = Path(__file__).parents[2] / "models" / "releases" / "moleculenet-gcn"
FILES = json.loads((GOLDEN / "artifact/manifest.json").read_text())["files"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "artifact", tmp_path / "artifact"))


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_golden_artifact_gives_the_answers_it_was_made_with() -> None:
    """A format change that alters old artifacts' answers, or cannot read them, must raise the format version and keep reading this one."""
    stored = json.loads((GOLDEN / "answers.json").read_text())
    artifact = load_artifact(GOLDEN / "artifact")
    assert artifact.digest == stored["digest"]
    batch = collate([featurize(smiles).graph for smiles in stored["smiles"]])
    for routing, answers in stored["probabilities"].items():
        for task, values in artifact.model(batch, routing=routing).probabilities.items():
            torch.testing.assert_close(values, torch.tensor(answers[task]), rtol=0, atol=1e-5)


def test_golden_keys_and_shapes() -> None:
    shapes = {key: tuple(value.shape) for key, value in load_file(GOLDEN / "artifact/tasks/beta.safetensors").items()}
    sites = {f"adapters.sites.{site}.{part}": shape for site in range(4) for part, shape in (("down", (16, 4)), ("up", (4, 16)))}
    assert shapes == {**sites, "adapters.norm_mean": (3, 16), "adapters.norm_var": (3, 16), "head.weight": (3, 16), "head.bias": (3,)}
    manifest, _ = read_manifest(GOLDEN / "artifact")
    assert manifest.format_version == FORMAT_VERSION == 1
    assert list(manifest.tasks) == ["alpha", "beta", "gamma"]


def test_saved_again_every_tensor_file_is_the_same(tmp_path: Path) -> None:
    config, experts = pico_config(), random_experts(pico_config())
    manifest = make_manifest("pico", "1", config, 4, RouterConfig(), {task: TaskInfo(labels=each.label_names) for task, each in experts.items()})
    first = save_artifact(tmp_path / "one", manifest, random_backbone(config), experts)
    loaded = load_artifact(tmp_path / "one")
    second = save_artifact(tmp_path / "two", loaded.manifest, loaded.model.backbone, experts)
    assert first == second
    assert first.files.keys() == {"backbone.safetensors", "tasks/alpha.safetensors", "tasks/beta.safetensors", "tasks/gamma.safetensors"}


def test_saving_replaces_the_whole_folder_and_leaves_nothing_beside_it(copy: Path) -> None:
    (copy / "left-over.txt").write_text("old")
    artifact = load_artifact(copy)
    save_artifact(copy, artifact.manifest, artifact.model.backbone, random_experts(pico_config()), card="# card")
    assert {path.name for path in copy.iterdir()} == {"manifest.json", "backbone.safetensors", "tasks", "README.md"}
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]


def test_a_failed_save_keeps_the_old_artifact(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = load_artifact(copy)

    def full(*_: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        save_artifact(copy, artifact.manifest, artifact.model.backbone, random_experts(pico_config()))
    monkeypatch.undo()
    assert load_artifact(copy).digest == artifact.digest
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]


def test_one_flipped_bit_is_refused(copy: Path) -> None:
    file = copy / "tasks/beta.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"tasks/beta\.safetensors: got other contents"):
        load_artifact(copy)


def test_tensors_that_are_none_are_refused_even_with_a_right_checksum(copy: Path) -> None:
    (copy / "tasks/beta.safetensors").write_bytes(b"junk")
    edit_manifest(copy, files={**FILES, "tasks/beta.safetensors": hashlib.sha256(b"junk").hexdigest()})
    with pytest.raises(ArtifactError, match=r"tasks/beta\.safetensors"):
        load_artifact(copy)


def test_missing_pieces_are_named(copy: Path) -> None:
    (copy / "tasks/beta.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"no readable tasks/beta\.safetensors"):
        load_artifact(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        load_artifact(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "got format version 2, expected 1"),
        ({"format_version": None}, "got format version None"),
        ({"rank": 5}, r"down has shape \(16, 4\), expected \(16, 5\)"),
        ({"rank": -1}, "rank"),
        ({"surplus": 1}, "surplus"),
        ({"files": {}}, r"no checksum of backbone\.safetensors"),
        ({"files": {**FILES, "../secret": "0"}}, r"got a checksum of '\.\./secret', expected only"),
        ({"tasks": {"twice": {"labels": ["x", "x"]}}}, "label name twice"),
        ({"tasks": {"../../etc/passwd": {"labels": ["x"]}}}, "expected lower-case letters"),
        ({"tasks": {}}, "tasks"),
        ({"nearest": {"alpha": ["beta"]}}, "nearest: got entries for"),
        ({"nearest": {"alpha": [], "beta": [], "gamma": [], "delta": []}}, "nearest: got entries for"),
        ({"nearest": {"alpha": ["beta", "delta"], "beta": [], "gamma": []}}, "'delta'.* for alpha, expected other tasks"),
        ({"nearest": {"alpha": ["beta", "beta"], "beta": [], "gamma": []}}, "for alpha, expected other tasks"),
        ({"nearest": {"alpha": [], "beta": ["beta"], "gamma": []}}, "for beta, expected other tasks"),
        ({"nearest": {"alpha": ["../../etc/passwd"], "beta": [], "gamma": []}}, "for alpha, expected other tasks"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(copy)


def test_a_manifest_from_before_the_table_of_nearest_experts_has_none() -> None:
    assert "nearest" not in json.loads((GOLDEN / "artifact/manifest.json").read_text())
    manifest, _ = read_manifest(GOLDEN / "artifact")
    assert (manifest.nearest, manifest.router.candidates) == ({}, None)


def test_some_tasks_are_loaded_without_the_files_of_the_others(copy: Path, molecules: GraphBatch) -> None:
    whole = load_artifact(copy)
    (copy / "tasks/beta.safetensors").unlink()
    some = load_artifact(copy, tasks=["gamma", "alpha"])
    assert some.model.tasks == ("gamma", "alpha")
    assert (some.manifest, some.digest) == (whole.manifest, whole.digest)
    answers, expected = some.model(molecules, routing="own"), whole.model(molecules, routing="own")
    for task in some.model.tasks:  # products of another size may round otherwise
        torch.testing.assert_close(answers.logits[task], expected.logits[task], rtol=1e-4, atol=1e-4)
    with pytest.raises(ArtifactError, match=r"no readable tasks/beta\.safetensors"):
        load_parts(copy, ["beta"])
    with pytest.raises(UnknownTaskError, match="'delta', expected one of alpha, beta, gamma"):
        load_parts(copy, ["delta"])


@pytest.mark.parametrize("file", ["backbone", "tasks/gamma"])
def test_what_is_loaded_in_part_is_verified(copy: Path, file: str) -> None:
    path = copy / f"{file}.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="got other contents"):
        load_parts(copy, ["gamma"])


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\xff"])
def test_a_manifest_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match="manifest"):
        load_artifact(copy)


def test_non_finite_weights_are_refused_even_with_a_right_checksum(copy: Path) -> None:
    file = copy / "tasks/alpha.safetensors"
    tensors = load_file(file)
    tensors["head.weight"][0, 0] = torch.nan
    save_file(tensors, file)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["tasks/alpha.safetensors"] = hashlib.sha256(file.read_bytes()).hexdigest()
    edit_manifest(copy, files=manifest["files"])
    with pytest.raises(ArtifactError, match=r"head\.weight is not finite"):
        load_artifact(copy)


def test_experts_must_be_those_of_the_manifest(tmp_path: Path) -> None:
    artifact = load_artifact(GOLDEN / "artifact")
    experts = random_experts(pico_config())
    del experts["beta"]
    with pytest.raises(ArtifactError, match="expected those of the manifest"):
        save_artifact(tmp_path / "x", artifact.manifest, artifact.model.backbone, experts)


@pytest.mark.skipif(not RELEASED.is_dir(), reason="no released artifact yet")
@pytest.mark.parametrize("routing", ["moe", "own"])
def test_released_artifact_answers_eight_tasks(routing: Routing, molecules: GraphBatch) -> None:
    artifact = load_artifact(RELEASED)
    output = artifact.model(molecules, routing=routing)
    assert set(output.logits) == {"tox21", "toxcast", "sider", "clintox", "bbbp", "bace", "hiv", "muv"}
    assert sum(values.shape[1] for values in output.probabilities.values()) == 678
    assert all(bool(values.isfinite().all()) for values in output.probabilities.values())
    assert "config" in artifact.manifest.provenance


def graph_artifact(folder: Path) -> tuple[GraphNetwork, dict[str, Expert]]:
    """Two tasks on nodes of 6 and of 4 features, and one on graphs."""
    torch.manual_seed(0)
    config = GraphNetworkConfig(kind="pyg_gcn", in_dim=6, hidden_dim=8)
    widths = {"wide": 6, "narrow": 4, "whole": 6}
    infos = {
        "wide": TaskInfo(labels=("a", "b"), level="node", target="multiclass"),
        "narrow": TaskInfo(labels=("a", "b", "c"), level="node", target="multiclass"),
        "whole": TaskInfo(labels=("y",), target="regression"),
    }
    experts = {task: Expert(config, 0, info.labels, info.level, info.target, widths[task]) for task, info in infos.items()}
    manifest = make_manifest("graphs", "1", config, 0, RouterConfig(), infos, input=FeatureInput(num_features=widths))
    network = GraphNetwork(config).eval()
    save_artifact(folder, manifest, network, experts)
    return network, experts


def test_an_artifact_for_graphs_gives_the_answers_it_was_made_with(tmp_path: Path) -> None:
    network, experts = graph_artifact(tmp_path / "graphs")
    loaded = load_artifact(tmp_path / "graphs")
    for task, width in (("wide", 6), ("narrow", 4), ("whole", 6)):
        batch = collate_features([FeatureGraph(torch.rand(3, width), torch.tensor([[0, 1], [1, 0]]))])
        expected = UnifiedModel(network, {task: experts[task]}, RouterConfig())(batch).probabilities[task]
        torch.testing.assert_close(loaded.model(batch, [task]).probabilities[task], expected)
    assert load_parts(tmp_path / "graphs").manifest.input == FeatureInput(num_features={"wide": 6, "narrow": 4, "whole": 6})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"kind": "molecule"}}, "got kind 'molecule' for a backbone of kind 'pyg_gcn'"),
        ({"input": {"kind": "graph", "num_features": {"wide": 6}}}, "expected one for each task"),
        ({"input": {"kind": "graph", "num_features": {"wide": 6, "narrow": 0, "whole": 6}}}, "greater than or equal to 1"),
        ({"input": {"kind": "graph", "num_features": {"wide": 6, "narrow": 3, "whole": 6}}}, r"encoder.weight has shape \(6, 4\), expected \(6, 3\)"),
    ],
)
def test_an_input_schema_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    graph_artifact(tmp_path / "graphs")
    edit_manifest(tmp_path / "graphs", **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(tmp_path / "graphs")


def test_what_only_molecules_have_is_refused_for_graphs(tmp_path: Path) -> None:
    graph_artifact(tmp_path / "graphs")
    with pytest.raises(ArtifactError, match="of kind 'graph', expected one for molecules"):
        _ = load_parts(tmp_path / "graphs").molecular_backbone


def test_a_force_field_gives_the_answers_it_was_made_with(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ForceFieldConfig(hidden_dim=8, num_filters=8, num_interactions=2, num_gaussians=8)
    network, expert = ForceField(config), ForceFieldExpert(config)
    expert.elements[torch.tensor([1, 6])] = True
    tasks = {"methane": TaskInfo(labels=("energy",), target="energy_and_forces")}
    manifest = make_manifest("forces", "1", config, 0, RouterConfig(), tasks, input=AtomsInput(elements={"methane": (1, 6)}))
    save_artifact(tmp_path / "forces", manifest, network, {"methane": expert})
    batch = collate_atoms([Atoms.from_lists([6, 1], [[0.0, 0, 0], [0, 0, 1.1]])], config.cutoff)
    expected = MergedForceField(network, {"methane": expert})(batch, ["methane"])["methane"]
    answer = load_artifact(tmp_path / "forces").model(batch, ["methane"])["methane"]
    torch.testing.assert_close(answer.energy, expected.energy)
    torch.testing.assert_close(answer.forces, expected.forces)
