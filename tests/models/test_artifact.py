import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import artifact as artifact_module
from models.artifact import (
    check_output,
    load_artifact,
    load_components,
    read_manifest,
    save_artifact,
)
from models.data.batch import GraphBatch
from models.data.feature_graph import FeatureGraph, collate_features
from models.data.molecule import collate
from models.data.schema import FeatureInput, MoleculeInput
from models.data.smiles import READING_RULE, featurize
from models.errors import ArtifactError, InvalidInputError, UnknownTaskError
from models.experts.adapter import Stream
from models.experts.expert import Expert, SharedExpert, TaskExpert, shared_streams
from models.experts.router import RouterConfig
from models.experts.unified import Routing, UnifiedModel
from models.manifest import FORMAT_VERSION, STREAMS_VERSION, Manifest, StreamInfo, make_manifest
from models.names import check_name, nearest_name
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.released import RELEASES
from models.task import TaskInfo
from tests.conftest import (
    SHARING,
    pico_config,
    random_backbone,
    random_experts,
    random_stream,
    sharing_experts,
)

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = RELEASES / "moleculenet-gcn"
FILES = json.loads((GOLDEN / "artifact/manifest.json").read_text())["files"]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "artifact", tmp_path / "artifact"))


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


@pytest.mark.parametrize("folder", ["artifact", "streams"])
def test_golden_artifact_gives_the_answers_it_was_made_with(folder: str) -> None:
    """A format change that alters old artifacts' answers, or cannot read them, must raise the
    format version and keep reading this one."""
    answers_file = {"artifact": "answers.json", "streams": "answers-streams.json"}[folder]
    stored = json.loads((GOLDEN / answers_file).read_text())
    artifact = load_artifact(GOLDEN / folder)
    assert artifact.digest == stored["digest"]
    assert artifact.manifest.format_version == (2 if folder == "streams" else 1)
    batch = collate([featurize(smiles).graph for smiles in stored["smiles"]])
    for model in (artifact.model, artifact.manifest.family.served(artifact.model)):
        for routing, answers in stored["probabilities"].items():
            for task, values in model(batch, routing=routing).probabilities.items():
                torch.testing.assert_close(values, torch.tensor(answers[task]), rtol=0, atol=1e-5)


def test_golden_keys_and_shapes() -> None:
    shapes = {
        key: tuple(value.shape)
        for key, value in load_file(GOLDEN / "artifact/tasks/beta.safetensors").items()
    }
    sites = {
        f"adapters.sites.{site}.{matrix}": shape
        for site in range(4)
        for matrix, shape in (("down", (16, 4)), ("up", (4, 16)))
    }
    assert shapes == {
        **sites,
        "adapters.norm_mean": (3, 16),
        "adapters.norm_var": (3, 16),
        "head.weight": (3, 16),
        "head.bias": (3,),
    }
    manifest, _ = read_manifest(GOLDEN / "artifact")
    assert manifest.format_version == FORMAT_VERSION == 1
    assert list(manifest.tasks) == ["alpha", "beta", "gamma"]


def test_saved_again_every_tensor_file_is_the_same(tmp_path: Path) -> None:
    config, experts = pico_config(), random_experts(pico_config())
    manifest = make_manifest(
        "pico",
        "1",
        config,
        4,
        RouterConfig(),
        {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()},
    )
    first = save_artifact(tmp_path / "one", manifest, random_backbone(config), experts)
    loaded = load_artifact(tmp_path / "one")
    second = save_artifact(tmp_path / "two", loaded.manifest, loaded.model.backbone, experts)
    assert first == second
    assert first.files.keys() == {
        "backbone.safetensors",
        "tasks/alpha.safetensors",
        "tasks/beta.safetensors",
        "tasks/gamma.safetensors",
    }


def test_saving_replaces_the_whole_folder_and_leaves_nothing_beside_it(copy: Path) -> None:
    artifact = load_artifact(copy)
    save_artifact(
        copy,
        artifact.manifest,
        artifact.model.backbone,
        random_experts(pico_config()),
        card="# card",
    )
    assert {path.name for path in copy.iterdir()} == {
        "manifest.json",
        "backbone.safetensors",
        "tasks",
        "README.md",
    }
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]


def test_a_failed_save_keeps_the_old_artifact(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = load_artifact(copy)

    def full(*_: object) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArtifactError, match="could not be written: no space"):
        save_artifact(
            copy, artifact.manifest, artifact.model.backbone, random_experts(pico_config())
        )
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
    edit_manifest(
        copy, files={**FILES, "tasks/beta.safetensors": hashlib.sha256(b"junk").hexdigest()}
    )
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
        ({"format_version": 3}, "got format version 3, expected 1, or 2 with streams"),
        ({"format_version": 2}, "format_version: got 2 without `streams`, expected 1"),
        ({"format_version": None}, "got format version None"),
        ({"format_version": True}, "got format version True"),
        ({"rank": 5}, r"down has shape \(16, 4\), expected \(16, 5\)"),
        ({"rank": -1}, "not a manifest: rank: got -1, expected greater than or equal to 0$"),
        ({"rank": 10**15}, r"manifest\.json: got sizes of a network that cannot be made"),
        ({"surplus": 1}, "not a manifest: surplus: got an unknown key, expected one of format_ver"),
        ({"files": {}}, r"no checksum of backbone\.safetensors"),
        ({"files": {**FILES, "../secret": "0"}}, r"got a checksum of '\.\./secret', expected only"),
        ({"tasks": {"twice": {"labels": ["x", "x"]}}}, "label name twice"),
        (
            {"tasks": {"../../etc/passwd": {"labels": ["x"]}}},
            (
                r"got name '\.\./\.\./etc/passwd', expected 1 to 64 letters.*, for example"
                r" 'etc_passwd'"
            ),
        ),
        ({"tasks": {"CYP/3A4": {"labels": ["x"]}}}, r"got name 'CYP/3A4'.*, for example 'CYP_3A4'"),
        ({"tasks": {"a": {"labels": ["x"]}, "A": {"labels": ["x"]}}}, "differ in more than case"),
        ({"name": "a b"}, r"got name 'a b'.*, for example 'a_b'"),
        ({"tasks": {}}, "tasks"),
        ({"nearest": {"alpha": ["beta"]}}, "nearest: got entries for"),
        (
            {"nearest": {"alpha": [], "beta": [], "gamma": [], "delta": []}},
            "nearest: got entries for",
        ),
        (
            {"nearest": {"alpha": ["beta", "delta"], "beta": [], "gamma": []}},
            "'delta'.* for alpha, expected other tasks",
        ),
        (
            {"nearest": {"alpha": ["beta", "beta"], "beta": [], "gamma": []}},
            "for alpha, expected other tasks",
        ),
        (
            {"nearest": {"alpha": [], "beta": ["beta"], "gamma": []}},
            "for beta, expected other tasks",
        ),
        (
            {"nearest": {"alpha": ["../../etc/passwd"], "beta": [], "gamma": []}},
            "for alpha, expected other tasks",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    copy: Path, changes: dict[str, object], message: str
) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(copy)


def test_a_manifest_from_before_the_table_of_nearest_experts_has_none() -> None:
    assert "nearest" not in json.loads((GOLDEN / "artifact/manifest.json").read_text())
    manifest, _ = read_manifest(GOLDEN / "artifact")
    assert (manifest.nearest, manifest.router.candidates) == ({}, None)


def test_some_tasks_are_loaded_without_the_files_of_the_others(
    copy: Path, molecules: GraphBatch
) -> None:
    whole = load_artifact(copy)
    (copy / "tasks/beta.safetensors").unlink()
    some = load_artifact(copy, tasks=["gamma", "alpha"])
    assert some.model.tasks == ("gamma", "alpha")
    assert (some.manifest, some.digest) == (whole.manifest, whole.digest)
    answers, expected = some.model(molecules, routing="own"), whole.model(molecules, routing="own")
    for task in some.model.tasks:  # products of another size may round otherwise
        torch.testing.assert_close(
            answers.logits[task], expected.logits[task], rtol=1e-4, atol=1e-4
        )
    with pytest.raises(ArtifactError, match=r"no readable tasks/beta\.safetensors"):
        load_components(copy, ["beta"])
    with pytest.raises(UnknownTaskError, match="'delta', expected one of alpha, beta, gamma"):
        load_components(copy, ["delta"])


@pytest.mark.parametrize("file", ["backbone", "tasks/gamma"])
def test_what_is_loaded_in_part_is_verified(copy: Path, file: str) -> None:
    path = copy / f"{file}.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match="got other contents"):
        load_components(copy, ["gamma"])


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\xff", "[" * 100_000])
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
    assert set(output.logits) == {
        "tox21",
        "toxcast",
        "sider",
        "clintox",
        "bbbp",
        "bace",
        "hiv",
        "muv",
    }
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
    experts = {
        task: Expert(config, 0, info.labels, info.level, info.target, widths[task])
        for task, info in infos.items()
    }
    manifest = make_manifest(
        "graphs", "1", config, 0, RouterConfig(), infos, input=FeatureInput(num_features=widths)
    )
    network = GraphNetwork(config).eval()
    save_artifact(folder, manifest, network, experts)
    return network, experts


def test_an_artifact_for_graphs_gives_the_answers_it_was_made_with(tmp_path: Path) -> None:
    network, experts = graph_artifact(tmp_path / "graphs")
    loaded = load_artifact(tmp_path / "graphs")
    for task, width in (("wide", 6), ("narrow", 4), ("whole", 6)):
        batch = collate_features(
            [FeatureGraph(torch.rand(3, width), torch.tensor([[0, 1], [1, 0]]))]
        )
        expected = UnifiedModel(network, {task: experts[task]}, RouterConfig())(
            batch
        ).probabilities[task]
        torch.testing.assert_close(loaded.model(batch, [task]).probabilities[task], expected)
    assert load_components(tmp_path / "graphs").manifest.input == FeatureInput(
        num_features={"wide": 6, "narrow": 4, "whole": 6}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"kind": "molecule"}}, "got kind 'molecule' for a backbone of kind 'pyg_gcn'"),
        ({"input": {"kind": "graph", "num_features": {"wide": 6}}}, "expected one for each task"),
        (
            {"input": {"kind": "graph", "num_features": {"wide": 6, "narrow": 0, "whole": 6}}},
            "greater than or equal to 1",
        ),
        (
            {"input": {"kind": "graph", "num_features": {"wide": 6, "narrow": 3, "whole": 6}}},
            r"encoder.weight has shape \(6, 4\), expected \(6, 3\)",
        ),
    ],
)
def test_an_input_schema_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    graph_artifact(tmp_path / "graphs")
    edit_manifest(tmp_path / "graphs", **changes)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(tmp_path / "graphs")


def test_the_rule_of_reading_is_on_record(copy: Path) -> None:
    assert read_manifest(copy)[0].input == MoleculeInput(reading_rule=1), (
        "a manifest of before does not say"
    )
    made = make_manifest(
        "pico", "1", pico_config(), 4, RouterConfig(), {"alpha": TaskInfo(labels=("a",))}
    )
    assert made.input == MoleculeInput(reading_rule=READING_RULE)
    edit_manifest(copy, input={"kind": "molecule", "reading_rule": READING_RULE})
    assert load_artifact(copy).manifest.input == made.input


def test_a_newer_rule_of_reading_is_refused(copy: Path) -> None:
    edit_manifest(copy, input={"kind": "molecule", "reading_rule": READING_RULE + 1})
    with pytest.raises(
        ArtifactError,
        match=f"reading_rule: got {READING_RULE + 1}, expected at most {READING_RULE}",
    ):
        load_artifact(copy)


# --- names ---


@pytest.mark.parametrize(
    "name", ["hERG", "CYP3A4", "Tox21_NR-AR", "ames.v2", "5HT1A", "bbbp", "a" * 64]
)
def test_names_of_the_field_are_allowed(name: str, tmp_path: Path) -> None:
    assert check_name(name) == name
    config, expert = pico_config(), random_experts(pico_config())["alpha"]
    tasks = {name: TaskInfo(labels=expert.label_names)}
    manifest = make_manifest(name, "1", config, 4, RouterConfig(), tasks)
    save_artifact(tmp_path / "x", manifest, random_backbone(config), {name: expert})
    assert load_artifact(tmp_path / "x").model.tasks == (name,)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CYP/3A4", "CYP_3A4"),
        ("../evil", "evil"),
        ("a..b", "a.b"),
        (".hidden", "hidden"),
        ("a b", "a_b"),
        ("trailing.", "trailing"),
        ("-x", "x"),
        ("naïve", "naive"),
        ("a\n", "a"),
        ("a" * 65, "a" * 64),
        ("", ""),
        ("..", ""),
        ("\x00", ""),
    ],
)
def test_other_names_are_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    assert nearest_name(name) == nearest
    hint = f", for example {nearest!r}" if nearest else ""
    with pytest.raises(InvalidInputError, match="expected 1 to 64 letters") as refused:
        check_name(name)
    assert str(refused.value).endswith(f"no '.' at the end{hint}")
    if nearest:
        assert check_name(nearest) == nearest


@pytest.mark.parametrize("name", ["con", "AUX", "nul.txt", "LPT1", "com9.v2"])
def test_what_is_a_device_on_windows_is_no_name(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"got name '{name}', which no file can have"):
        check_name(name)
    assert check_name(f"{name}_task".replace(".", "_"))


def test_a_manifest_that_was_changed_after_its_making_writes_nothing(tmp_path: Path) -> None:
    config, experts = pico_config(), random_experts(pico_config())
    infos = {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()}
    manifest = make_manifest("pico", "1", config, 4, RouterConfig(), infos)
    evil = {"../evil": experts["alpha"]}
    manifest = manifest.model_copy(update={"tasks": {"../evil": infos["alpha"]}})
    with pytest.raises(ArtifactError, match="not a manifest"):
        save_artifact(tmp_path / "folder" / "x", manifest, random_backbone(config), evil)
    assert not list(tmp_path.iterdir())


# --- what may be replaced ---


def save_again(
    folder: Path,
    name: str = "golden",
    tasks: Sequence[str] = ("alpha", "beta", "gamma"),
    **options: Any,
) -> None:
    artifact = load_artifact(GOLDEN / "artifact")
    experts = {
        task: expert for task, expert in random_experts(pico_config()).items() if task in tasks
    }
    infos = {task: artifact.manifest.tasks[task] for task in experts}
    manifest = artifact.manifest.model_copy(update={"name": name, "version": "7", "tasks": infos})
    save_artifact(folder, manifest, artifact.model.backbone, experts, **options)


def test_a_new_version_replaces_the_old_one_however_the_folder_is_called(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = read_manifest(copy)[0].name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    copy = copy.rename(tmp_path / "elsewhere" / "artifact")
    (tmp_path / "link").symlink_to(copy)
    (tmp_path / "empty").mkdir()
    for folder in (
        Path("elsewhere/artifact"),
        Path("elsewhere/artifact/"),
        Path("link"),
        Path("elsewhere/../link"),
    ):
        shutil.rmtree(copy)
        shutil.copytree(GOLDEN / "artifact", copy)
        save_again(folder, name)
        assert load_artifact(copy).manifest.version == "7"
        assert (tmp_path / "link").is_symlink()
    save_again(Path("empty"), name)
    save_again(Path("new/deep"), name)
    (tmp_path / "dangling").symlink_to(tmp_path / "target")
    save_again(Path("dangling"), name)
    assert all(
        load_artifact(tmp_path / folder).manifest.version == "7"
        for folder in ("empty", "new/deep", "target")
    )
    assert not list(tmp_path.rglob(".*"))


def test_another_artifact_is_replaced_only_when_told_to(copy: Path) -> None:
    name, digest = read_manifest(copy)[0].name, read_manifest(copy)[1]
    for changes in ({"name": "other"}, {"name": name, "tasks": ["alpha", "beta"]}):
        with pytest.raises(
            ArtifactError, match=f"got another artifact there, {name} .* or --replace"
        ):
            save_again(copy, **changes)
        with pytest.raises(ArtifactError, match="got another artifact there"):
            save_again(copy, made_from="0" * 64, **changes)
        assert read_manifest(copy)[1] == digest
        save_again(copy, made_from=digest, **changes)
        shutil.rmtree(copy)
        shutil.copytree(GOLDEN / "artifact", copy)
        save_again(copy, replace=True, **changes)
        shutil.rmtree(copy)
        shutil.copytree(GOLDEN / "artifact", copy)


@pytest.mark.parametrize("replace", [False, True])
def test_what_is_no_artifact_is_never_replaced(copy: Path, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other.json").mkdir()
    (tmp_path / "other.json/manifest.json").write_text("{}")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, message in {
        "notes": "no artifact",
        "file": "got a file",
        "file/x": "expected a folder that can be written to",
        "other.json": "no artifact",
        "artifact/tasks/x": "inside the artifact",
        "artifact/tasks": "inside the artifact",
        ".": "no artifact",
    }.items():
        with pytest.raises(ArtifactError, match=message):
            save_again(tmp_path / folder, read_manifest(copy)[0].name, replace=replace)
    (copy / "tasks/notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"would be lost \('tasks/notes.txt'\)"):
        save_again(copy, read_manifest(copy)[0].name, replace=replace)
    (copy / "tasks/notes.txt").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("/", "got a mount point"),
        ("/proc/x", r"got /proc \(.*\), expected a folder that can be written to"),
        ("a\0b", "got a path that leads nowhere"),
        ("n" * 300, "got a path that leads nowhere: .*File name too long"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_training(folder: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        check_output(Path(folder), "pico", "1", ["a"])


@pytest.mark.parametrize("subfolder", [".", "tasks"])
def test_a_read_only_artifact_is_not_replaced(
    subfolder: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, to whom nothing is read-only."""
    closed = (copy / subfolder).resolve()
    monkeypatch.setattr("models.artifact._may_change", lambda folder: folder != closed)
    with pytest.raises(ArtifactError, match="got a read-only artifact, expected one that may"):
        save_again(copy, read_manifest(copy)[0].name, replace=True)


def test_where_folders_cannot_be_exchanged_a_failure_gives_the_old_one_back(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the old folder is moved away first."""
    digest, name = read_manifest(copy)[1], read_manifest(copy)[0].name
    rename, failures = Path.rename, [True]

    def failing(self: Path, target: Path) -> Path:
        if target == copy and failures and failures.pop():
            raise OSError("pulled out")
        return rename(self, target)

    monkeypatch.setattr("models.files._exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match="could not be written: pulled out"):
        save_again(copy, name)
    assert load_artifact(copy).digest == digest
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]
    save_again(copy, name)
    assert read_manifest(copy)[0].version == "7"
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges folders in one step")
def test_a_reader_always_finds_an_artifact(copy: Path) -> None:
    name, stop, failures, reads = read_manifest(copy)[0].name, threading.Event(), [], 0

    def read() -> None:
        nonlocal reads
        while not stop.is_set():
            try:
                read_manifest(copy)
                reads += 1
            except ArtifactError as error:
                failures.append(error)
            time.sleep(1e-4)  # or it holds the interpreter's lock most of the time: a minute

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        save_again(copy, name)
    stop.set()
    reader.join()
    assert reads
    assert not failures


def test_writers_with_one_process_id_do_not_share_a_temporary_folder(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers on one volume: both have written all before either replaces anything."""
    name, read_back, both = (
        read_manifest(copy)[0].name,
        artifact_module._read_back,
        threading.Barrier(2, timeout=20),
    )

    def together(folder: Path) -> None:
        both.wait()
        read_back(folder)

    monkeypatch.setattr(os, "getpid", lambda: 7)
    monkeypatch.setattr(artifact_module, "_read_back", together)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: save_again(copy, name), range(2)))
    assert load_artifact(copy).manifest.version == "7"
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]


# --- what is read back, and refused when loading ---


def damage(folder: Path, file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a file and put its right checksum into the manifest."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    edit_manifest(
        folder, files={**json.loads((folder / "manifest.json").read_text())["files"], file: sha256}
    )


def zero(matrix: str, sites: Sequence[int] = range(4)) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: (
        [tensors[f"adapters.sites.{site}.{matrix}"].zero_() for site in sites] and None
    )


def halves_that_never_meet(tensors: dict[str, torch.Tensor]) -> None:
    for site in range(4):
        tensors[f"adapters.sites.{site}.down"][:, :2] = 0
        tensors[f"adapters.sites.{site}.up"][2:] = 0


DAMAGES: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "up": (
        "tasks/beta",
        zero("up"),
        r"tasks/beta\.safetensors: adapters.sites.*zero at all 4 sites",
    ),
    "down": (
        "tasks/beta",
        zero("down"),
        r"tasks/beta\.safetensors: adapters.sites.*zero at all 4 sites",
    ),
    "halves": (
        "tasks/beta",
        halves_that_never_meet,
        r"tasks/beta\.safetensors: adapters.sites.*zero at all 4 sites",
    ),
    "missing": (
        "tasks/beta",
        lambda t: t.pop("head.bias"),
        r"tasks/beta\.safetensors.*missing head\.bias",
    ),
    "unused": (
        "tasks/beta",
        lambda t: t.update(spare=torch.ones(1)),
        r"tasks/beta\.safetensors.*extra spare",
    ),
    "shape": (
        "tasks/beta",
        lambda t: t.update({"head.bias": torch.ones(4)}),
        r"head\.bias has shape \(4,\), expected \(3,\)",
    ),
    "inf": (
        "tasks/beta",
        lambda t: t["head.bias"].fill_(torch.inf),
        r"tasks/beta\.safetensors.*head\.bias is not finite",
    ),
    "float64": (
        "tasks/beta",
        lambda t: t.update({"head.bias": torch.full((3,), 1e300, dtype=torch.float64)}),
        r"head\.bias is not finite",
    ),
    **{
        f"{dtype}": (
            "tasks/beta",
            lambda t, dtype=dtype: t.update({"head.bias": torch.ones(3, dtype=dtype)}),
            rf"head\.bias is {dtype}, expected torch\.float32",
        )
        for dtype in (torch.int32, torch.int8, torch.bool)
    },
    "variance": (
        "tasks/beta",
        lambda t: t["adapters.norm_var"].neg_(),
        r"tasks/beta\.safetensors: adapters\.norm_var is negative",
    ),
    "backbone": (
        "backbone",
        lambda t: t["x_embedding1.weight"].fill_(torch.nan),
        r"backbone\.safetensors.*x_embedding1\.weight is not finite",
    ),
    "backbone unused": (
        "backbone",
        lambda t: t.update(spare=torch.ones(1)),
        r"backbone\.safetensors.*extra spare",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_tensor_is_refused_when_loading(copy: Path, kind: str) -> None:
    file, change, message = DAMAGES[kind]
    damage(copy, f"{file}.safetensors", change)
    for read in (load_artifact, load_components):
        with pytest.raises(ArtifactError, match=message):
            read(copy)


@pytest.mark.parametrize("sites", [(0, 1, 2), (3,), (1,)])
def test_some_adapters_may_be_idle(copy: Path, sites: tuple[int, ...]) -> None:
    """`alignment.sites` trains the node adapters alone, or the graph adapter alone."""
    damage(copy, "tasks/beta.safetensors", zero("up", sites))
    assert load_artifact(copy).model.tasks == ("alpha", "beta", "gamma")


@pytest.mark.parametrize("kind", ["idle", "nan", "overflow", "rank", "labels"])
def test_what_cannot_be_used_is_not_written(copy: Path, kind: str) -> None:
    artifact, experts = load_artifact(copy), random_experts(pico_config())
    backbone, manifest, head = artifact.model.backbone, artifact.manifest, experts["beta"].head
    with torch.no_grad():
        if kind == "idle":
            for site in experts["beta"].adapters.sites:
                site.up.zero_()  # type: ignore[union-attr, operator]
        elif kind == "nan":
            head.bias.fill_(torch.nan)
        elif kind == "overflow":  # finite numbers, and answers that are not
            head.weight.fill_(3e38)
        elif kind == "labels":
            experts["beta"] = random_experts(pico_config())["alpha"]
        else:
            manifest = manifest.model_copy(update={"rank": 3})
    with pytest.raises(ArtifactError, match="not written: ") as refused:
        save_artifact(copy, manifest, backbone, experts)
    assert str(copy) in str(refused.value)
    assert load_artifact(copy).digest == artifact.digest
    assert [path.name for path in copy.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("released", sorted(path.name for path in RELEASED.parent.iterdir()))
def test_every_released_artifact_would_be_written(released: str, tmp_path: Path) -> None:
    components = load_components(RELEASED.parent / released)
    card = (RELEASED.parent / released / "README.md").read_text()
    written = save_artifact(
        tmp_path / "again",
        components.manifest,
        components.backbone,
        components.experts,
        card,
        forests=components.forests,
        domains=components.domains,
        drugs=components.drugs,
    )
    assert written.files == components.manifest.files


def test_a_task_may_be_called_as_anything_is_called_in_torch(tmp_path: Path) -> None:
    """An encoder of a task "train" or "v1.2" is a module; its name must not become the module's."""
    config = GraphNetworkConfig(kind="pyg_gcn", in_dim=6, hidden_dim=8)
    widths = {"train": 4, "v1.2": 3, "keys": 6}
    infos = {task: TaskInfo(labels=("y",), target="regression") for task in widths}
    experts = {
        task: Expert(config, 0, ("y",), "graph", "regression", width)
        for task, width in widths.items()
    }
    manifest = make_manifest(
        "g", "1", config, 0, RouterConfig(), infos, input=FeatureInput(num_features=widths)
    )
    save_artifact(tmp_path / "g", manifest, GraphNetwork(config).eval(), experts)
    model = load_artifact(tmp_path / "g").model
    for task, width in widths.items():
        batch = collate_features(
            [FeatureGraph(torch.rand(3, width), torch.tensor([[0, 1], [1, 0]]))]
        )
        assert model(batch, [task]).logits[task].isfinite().all()


def stream_artifact(
    folder: Path, case: str = "mixed", card: str = ""
) -> tuple[Manifest, dict[str, TaskExpert]]:
    """Write an artifact of which some tasks share streams."""
    config = pico_config()
    experts = sharing_experts(case, config)
    streams: dict[str, StreamInfo] = {}
    for name, stream in shared_streams(experts).items():
        tasks = [task for task, expert in experts.items() if expert.stream.name == name]
        graph_rank = len(experts[tasks[0]].graph_adapter.up)
        streams[name] = StreamInfo(tasks=tuple(tasks), rank=stream.rank, graph_rank=graph_rank)
    infos = {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()}
    router = RouterConfig(temperature=0.3, graph_temperature=0.3)
    manifest = make_manifest("streams", "1.0.0", config, 4, router, infos, streams=streams)
    return save_artifact(folder, manifest, random_backbone(config), experts, card), experts


@pytest.mark.parametrize("case", SHARING)
def test_an_artifact_with_streams_gives_the_answers_it_was_made_with(
    case: str, tmp_path: Path, molecules: GraphBatch
) -> None:
    manifest, experts = stream_artifact(tmp_path / "a", case)
    loaded = load_artifact(tmp_path / "a")
    plain = UnifiedModel(random_backbone(pico_config()), experts, manifest.router)
    for routing in get_args(Routing):
        found, expected = (model(molecules, routing=routing) for model in (loaded.model, plain))
        for task in experts:
            assert torch.equal(found.logits[task], expected.logits[task])
        for name, embeddings in expected.embeddings.items():
            assert torch.equal(found.embeddings[name], embeddings)
    files = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*.*")}
    assert files == {"manifest.json", *manifest.files}
    assert {f"streams/{name}.safetensors" for name in manifest.streams} < files
    components = load_components(tmp_path / "a")
    again = save_artifact(tmp_path / "b", manifest, components.backbone, components.experts)
    assert again == manifest == read_manifest(tmp_path / "b")[0]
    assert (
        manifest.format_version
        == json.loads((tmp_path / "b/manifest.json").read_text())["format_version"]
    )


def test_files_of_shared_tasks_have_no_tensors_of_the_stream(tmp_path: Path) -> None:
    manifest, _ = stream_artifact(tmp_path / "a")
    assert manifest.format_version == STREAMS_VERSION == 2
    assert load_file(tmp_path / "a/tasks/common_0.safetensors").keys() == {
        "graph.down",
        "graph.up",
        "head.weight",
        "head.bias",
    }
    stream = load_file(tmp_path / "a/streams/common.safetensors")
    assert {key for key, value in stream.items() if value.numel()} == {"norm_mean", "norm_var"}
    written = json.loads((tmp_path / "a/manifest.json").read_text())
    tasks = ["common_0", "common_1", "common_2"]
    assert written["streams"] == {"common": {"tasks": tasks, "rank": 0, "graph_rank": 6}}
    assert "streams" not in json.loads((GOLDEN / "artifact/manifest.json").read_text())


def test_some_tasks_need_the_files_of_their_streams_only(
    tmp_path: Path, molecules: GraphBatch
) -> None:
    stream_artifact(tmp_path / "a", "several")
    whole = load_artifact(tmp_path / "a").model(molecules)
    for file in ("streams/another", "tasks/another_0", "tasks/common_1", "tasks/beta"):
        (tmp_path / f"a/{file}.safetensors").unlink()
    some = load_artifact(tmp_path / "a", tasks=["common_2", "common_0"]).model(molecules)
    assert list(some.embeddings) == ["common"]
    for task in ("common_2", "common_0"):
        torch.testing.assert_close(some.logits[task], whole.logits[task], rtol=0, atol=1e-5)
    with pytest.raises(ArtifactError, match=r"no readable streams/another\.safetensors"):
        load_artifact(tmp_path / "a", tasks=["another_1"])
    with pytest.raises(ArtifactError, match=r"no readable streams/another\.safetensors"):
        load_artifact(tmp_path / "a")


def test_a_stream_that_was_altered_is_refused(tmp_path: Path) -> None:
    stream_artifact(tmp_path / "a")
    path = tmp_path / "a/streams/common.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=r"streams/common\.safetensors: got other contents"):
        load_components(tmp_path / "a", ["common_1"])
    assert load_components(tmp_path / "a", ["alpha"]).experts.keys() == {"alpha"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"common": {"graph_rank": 5}}, r"graph\.down has shape \(16, 6\), expected \(16, 5\)"),
        ({"common": {"rank": 2}}, r"streams/common.*sites\.0\.down has shape \(16, 0\)"),
        ({"common": {"tasks": ["common_0", "nobody"]}}, "streams: got task 'nobody', expected tas"),
        ({"common": {"tasks": []}}, "streams.common.tasks: got an empty|at least 1"),
        ({"common": {"graph_rank": 0}}, "streams.common.graph_rank: got 0"),
        ({"common": {"width": 3}}, "streams.common.width: got an unknown key"),
        ({"more": {"tasks": ["common_1"], "graph_rank": 6}}, "got task 'common_1' twice, expected"),
        ({"alpha": {"tasks": ["beta"], "graph_rank": 6}}, "got name 'alpha', expected one that no"),
        ({"Alpha": {"tasks": ["beta"], "graph_rank": 6}}, "differ in more than case"),
        ({"../x": {"tasks": ["beta"], "graph_rank": 6}}, "got name '../x'"),
        ({"more": {"tasks": ["beta"], "graph_rank": 6}}, r"no checksum of streams/more\.safetenso"),
        ({"common": None}, "format_version: got 2 without `streams`, expected 1"),
    ],
)
def test_streams_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, dict[str, object] | None], message: str
) -> None:
    stream_artifact(tmp_path / "a")
    streams = json.loads((tmp_path / "a/manifest.json").read_text())["streams"]
    for name, change in changes.items():
        if change is None:
            del streams[name]
        else:
            streams[name] = streams.get(name, {}) | change
    edit_manifest(tmp_path / "a", streams=streams)
    with pytest.raises(ArtifactError, match=message):
        load_artifact(tmp_path / "a")


def test_streams_need_their_format_version_and_a_family_that_has_them(tmp_path: Path) -> None:
    stream_artifact(tmp_path / "a")
    edit_manifest(tmp_path / "a", format_version=1)
    with pytest.raises(ArtifactError, match="got 1 with `streams`, expected 2"):
        load_artifact(tmp_path / "a")
    shutil.copytree(RELEASED.parent / "md17-schnet", tmp_path / "b")
    streams = {"common": {"tasks": ["ethanol"], "graph_rank": 2}}
    edit_manifest(tmp_path / "b", format_version=2, streams=streams)
    with pytest.raises(ArtifactError, match="streams: got some for a backbone of kind 'schnet'"):
        load_artifact(tmp_path / "b")


STREAM_DAMAGES: dict[str, tuple[str, str, Callable[[dict[str, Any]], object], str]] = {
    "variance": ("mixed", "streams/common", lambda t: t["norm_var"].neg_(), "norm_var is negative"),
    "nan": ("mixed", "streams/common", lambda t: t["norm_mean"].fill_(torch.nan), "is not finite"),
    "idle graph": ("mixed", "tasks/common_1", lambda t: t["graph.up"].zero_(), "graph.up or .down"),
    "idle nodes": (
        "adapted",
        "streams/common",
        lambda t: [t[f"sites.{k}.up"].zero_() for k in range(3)],
        "zero at all 3 sites, expected adapters of rank 3",
    ),
}


@pytest.mark.parametrize("kind", STREAM_DAMAGES)
def test_a_damaged_stream_is_refused(tmp_path: Path, kind: str) -> None:
    case, file, change, message = STREAM_DAMAGES[kind]
    stream_artifact(tmp_path / "a", case)
    damage(tmp_path / "a", f"{file}.safetensors", change)
    with pytest.raises(ArtifactError, match=rf"{file}\.safetensors.*{message}"):
        load_artifact(tmp_path / "a")


def test_experts_must_share_the_streams_of_the_manifest(tmp_path: Path) -> None:
    manifest, experts = stream_artifact(tmp_path / "a")
    backbone, config = random_backbone(pico_config()), pico_config()

    def refused(changed: Mapping[str, TaskExpert], written: Manifest = manifest) -> str:
        with pytest.raises(ArtifactError, match="not written: ") as error:
            save_artifact(tmp_path / "b", written, backbone, changed)
        assert not (tmp_path / "b").exists()
        return str(error.value)

    own = experts | {"common_1": Expert(config, 4, experts["common_1"].label_names)}
    assert "got common_1 on stream of its own, expected that of the manifest, common" in refused(
        own
    )
    without = manifest.model_copy(update={"streams": {}})
    assert "got common_0 on stream common, expected" in refused(experts, without)
    other = SharedExpert(random_stream(config), 6, experts["common_1"].label_names)
    assert "got two streams 'common', expected one" in refused(experts | {"common_1": other})


def test_a_read_only_folder_of_streams_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, experts = stream_artifact(tmp_path / "a")
    monkeypatch.setattr(artifact_module, "_may_change", lambda path: path.name != "streams")
    with pytest.raises(ArtifactError, match="read-only artifact"):
        save_artifact(tmp_path / "a", manifest, random_backbone(pico_config()), experts)


def test_graphs_with_other_features_than_the_network_cannot_share_a_stream(tmp_path: Path) -> None:
    config = GraphNetworkConfig(kind="pyg_gcn", in_dim=6, hidden_dim=8)
    stream = Stream(config, name="common")
    experts = {task: SharedExpert(stream, 2, ("y",)) for task in ("wide", "narrow")}
    for expert in experts.values():
        torch.nn.init.ones_(expert.graph.up)

    def write(narrow: int) -> None:
        infos = {task: TaskInfo(labels=("y",)) for task in experts}
        schema = FeatureInput(num_features={"wide": 6, "narrow": narrow})
        streams = {"common": StreamInfo(tasks=tuple(experts), graph_rank=2)}
        manifest = make_manifest(
            "g", "1", config, 0, RouterConfig(), infos, input=schema, streams=streams
        )
        save_artifact(tmp_path / "g", manifest, GraphNetwork(config).eval(), experts)

    with pytest.raises(ArtifactError, match="got 4 features of a node for narrow, which shares"):
        write(4)
    write(6)
    batch = collate_features([FeatureGraph(torch.rand(3, 6), torch.tensor([[0, 1], [1, 0]]))])
    assert list(load_artifact(tmp_path / "g").model(batch).embeddings) == ["common"]
