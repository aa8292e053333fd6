"""Adding a task to a finished artifact, and taking one out."""

import gzip
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gmerging.cli.main import main
from merging.release.extension import readable_graphs, remove_tasks
from merging.release.release import calibrate
from merging.run.run import Run
from models.artifact import load_artifact, load_components, read_manifest, save_artifact
from models.data.batch import GraphBatch
from models.errors import ConfigError, DataError
from models.experts.adapter import Stream
from models.experts.expert import Expert, SharedExpert
from models.experts.router import RouterConfig
from models.manifest import StreamInfo, make_manifest
from models.networks.hu2020 import Backbone
from models.screening import is_screened
from models.task import TaskInfo
from tests.conftest import pico_config, random_backbone, random_experts
from tests.merging.conftest import molecules, run_options, tail_has, write_csv, write_pico
from tests.merging.run.test_stages import command

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of two tasks in `artifact`, and the same with a third in `extended`."""
    folder = tmp_path_factory.mktemp("made")
    config = write_pico(folder)
    assert command(folder, "release", "--output", str(folder / "artifact")) == 0
    rows = list(zip(molecules(), tail_has("C(=O)"), strict=True))
    write_csv(folder / "data/carbonyl.csv", "smiles", ("has_co",), rows)
    content = yaml.safe_load(config.read_text())
    content |= {"tasks": ["carbonyl"], "alignment_by_task": {}, "compare": {}}
    content |= {"datasets": {"carbonyl": {"file": "carbonyl.csv", "about": "has a carbonyl"}}}
    content |= {"release": {"name": "pico", "version": "1.3.0"}}
    (folder / "more.yaml").write_text(yaml.safe_dump(content))
    assert add(folder, "artifact", "extended") == 0
    return folder


@pytest.fixture
def extended(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` for one test; finished pieces are found again, the weights stay where they
    are."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def add(tmp_path: Path, artifact: str, output: str, *options: str) -> int:
    folders = run_options(tmp_path)
    config = [
        "--config",
        str(tmp_path / "more.yaml"),
        "--artifact",
        str(tmp_path / artifact),
        "--output",
        str(tmp_path / output),
    ]
    return main(["add-task", *config, *folders, *options])


def test_old_answers_stay_to_the_last_bit_and_the_new_task_answers(
    extended: Path, molecules: GraphBatch
) -> None:
    old, new = load_artifact(extended / "artifact"), load_artifact(extended / "extended")
    assert list(new.manifest.tasks) == ["nitrogen", "other", "carbonyl"]
    assert new.manifest.version == "1.3.0"
    for name, sha256 in old.manifest.files.items():
        if name != "README.md":
            assert new.manifest.files[name] == sha256
    before, after = (
        artifact.model(molecules, ["nitrogen", "other"], "own") for artifact in (old, new)
    )
    assert all(torch.equal(before.logits[task], after.logits[task]) for task in before.logits)
    assert new.model(molecules, ["carbonyl"], "moe").probabilities["carbonyl"].shape == (
        molecules.num_graphs,
        1,
    )
    gains = new.manifest.metrics["added"]["carbonyl"]
    assert 0 <= gains["with_adapters"] <= 1
    assert "| carbonyl |" in (extended / "extended/README.md").read_text()
    assert new.manifest.provenance["added"][0]["to"] == old.digest
    assert new.manifest.provenance["added"][0]["data"]["carbonyl"]["labels"] == ["has_co"]
    card = (extended / "extended/README.md").read_text()
    assert "| carbonyl | carbonyl.csv | 80 | 0 | scaffold |" in card


def test_adding_and_removing_gives_back_the_answers(extended: Path, molecules: GraphBatch) -> None:
    folders = ["--artifact", str(extended / "extended"), "--output", str(extended / "back")]
    assert main(["remove-task", "--tasks", "carbonyl", *folders]) == 0
    old, back = load_artifact(extended / "artifact"), load_artifact(extended / "back")
    assert list(back.manifest.tasks) == ["nitrogen", "other"]
    before, after = (artifact.model(molecules, None, "moe") for artifact in (old, back))
    assert all(torch.equal(before.logits[task], after.logits[task]) for task in before.logits)
    assert not (extended / "back/tasks/carbonyl.safetensors").exists()


def share_a_stream(folder: Path, output: Path) -> None:
    """Write an artifact whose tasks share a stream: that of the first one, without its adapters."""
    components = load_components(folder)
    torch.manual_seed(0)
    first, experts = next(iter(components.experts.values())), dict[str, SharedExpert]()
    stream = Stream(components.manifest.backbone, name="common")
    stream.norm_mean.copy_(first.adapters.norm_mean)
    stream.norm_var.copy_(first.adapters.norm_var)
    for task, expert in components.experts.items():
        experts[task] = SharedExpert(stream, 9, expert.label_names)
        torch.nn.init.normal_(experts[task].graph.up)
    streams = {"common": StreamInfo(tasks=tuple(experts), graph_rank=9)}
    manifest = components.manifest.model_copy(update={"streams": streams})
    save_artifact(output, manifest, components.backbone, experts, "card\n")


def test_a_task_added_to_a_shared_stream_begins_on_its_own(
    extended: Path, molecules: GraphBatch, capsys: pytest.CaptureFixture[str]
) -> None:
    share_a_stream(extended / "artifact", extended / "sharing")
    assert add(extended, "sharing", "plus") == 0
    before, after = (load_artifact(extended / name) for name in ("sharing", "plus"))
    assert after.manifest.streams == before.manifest.streams
    assert after.manifest.format_version == 2
    for name, sha256 in before.manifest.files.items():
        assert name == "README.md" or after.manifest.files[name] == sha256
    old, new = before.model(molecules), after.model(molecules)
    assert list(new.embeddings) == ["carbonyl", "common"]
    alone = load_artifact(extended / "extended").model(molecules, ["carbonyl"])
    torch.testing.assert_close(new.logits["carbonyl"], alone.logits["carbonyl"], rtol=0, atol=1e-4)
    for task in ("nitrogen", "other"):
        torch.testing.assert_close(new.logits[task], old.logits[task], rtol=0, atol=1e-4)
    assert main(["inspect", str(extended / "plus")]) == 0
    shown = capsys.readouterr().out
    assert "stream common: 2 tasks, no node adapters, graph adapters of rank 9" in shown
    width, layers = after.manifest.backbone.hidden_dim, after.manifest.backbone.num_layers
    adapters = 2 * width * (2 * 9 + (layers + 1) * after.manifest.rank)
    assert f"3 experts, {adapters:,} parameters" in shown


def test_tasks_are_removed_from_their_streams(extended: Path, molecules: GraphBatch) -> None:
    share_a_stream(extended / "artifact", extended / "sharing")
    assert add(extended, "sharing", "plus") == 0
    plus = load_artifact(extended / "plus").model(molecules).logits
    one = remove_tasks(extended / "plus", ["nitrogen"], extended / "one")
    assert (one.format_version, one.streams["common"].tasks) == (2, ("other",))
    found = load_artifact(extended / "one").model(molecules).logits
    torch.testing.assert_close(found["other"], plus["other"], rtol=0, atol=1e-4)
    none = remove_tasks(extended / "plus", ["nitrogen", "other"], extended / "none")
    assert (none.format_version, none.streams) == (1, {})
    assert "streams" not in (extended / "none/manifest.json").read_text()
    assert not (extended / "none/streams").exists()


def test_a_task_may_not_be_called_as_a_stream_of_the_artifact(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share_a_stream(extended / "artifact", extended / "sharing")
    text = (extended / "more.yaml").read_text()
    (extended / "more.yaml").write_text(
        text.replace("carbonyl:", "common:").replace("- carbonyl", "- common")
    )
    assert add(extended, "sharing", "again") == 1
    assert "got common, a stream of the artifact, expected names" in capsys.readouterr().err
    (extended / "more.yaml").write_text(
        text.replace("carbonyl:", "Common:").replace("- carbonyl", "- Common")
    )
    assert add(extended, "sharing", "again") == 1
    assert "differ in more than case" in capsys.readouterr().err


def test_what_does_not_fit_is_refused(extended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert add(extended, "extended", "again") == 1
    assert "got carbonyl, which the artifact has, expected new ones" in capsys.readouterr().err
    save_file(random_backbone(pico_config(), seed=9).state_dict(), extended / "others.safetensors")
    content = yaml.safe_load((extended / "more.yaml").read_text())
    content["pretrained"]["weights"] = str(extended / "others.safetensors")
    (extended / "more.yaml").write_text(yaml.safe_dump(content))
    assert add(extended, "artifact", "again") == 1
    assert "pretrained.weights, sha256" in capsys.readouterr().err
    folders = ["--artifact", str(extended / "artifact"), "--output", str(extended / "again")]
    assert main(["remove-task", "--tasks", "muv", *folders]) == 1
    assert (
        "got muv, expected names among those of the artifact, nitrogen, other"
        in capsys.readouterr().err
    )
    assert main(["remove-task", "--tasks", "nitrogen", "other", *folders]) == 1
    assert "expected at least one to stay" in capsys.readouterr().err
    assert not (extended / "again").exists()


def test_a_removed_task_is_nobodys_nearest(tmp_path: Path) -> None:
    experts = random_experts(pico_config())
    nearest = {task: tuple(other for other in experts if other != task) for task in experts}
    manifest = make_manifest(
        "pico",
        "1",
        pico_config(),
        4,
        RouterConfig(),
        {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()},
    )
    save_artifact(
        tmp_path / "whole",
        manifest.model_copy(update={"nearest": nearest}),
        random_backbone(pico_config()),
        experts,
    )
    assert remove_tasks(tmp_path / "whole", ["beta"], tmp_path / "less").nearest == {
        "alpha": ("gamma",),
        "gamma": ("alpha",),
    }
    assert load_artifact(tmp_path / "less").manifest.nearest == {
        "alpha": ("gamma",),
        "gamma": ("alpha",),
    }


def test_screened_artifact_names_the_nearest_and_is_checked(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (extended / "molecules.smi").write_text(
        "\n".join(["CCO", "no molecule", "", "c1ccccc1C(=O)O", "CCN"])
    )
    options = [
        "--artifact",
        str(extended / "extended"),
        "--molecules",
        str(extended / "molecules.smi"),
        "--output",
        str(extended / "screened"),
    ]
    assert main(["screen-experts", "--candidates", "1", *options]) == 0
    assert "screened with 3 molecules, 1 could not be read" in capsys.readouterr().out
    manifest = load_artifact(extended / "screened").manifest
    assert manifest.router.candidates == 1
    assert {task: len(others) for task, others in manifest.nearest.items()} == {
        "nitrogen": 1,
        "other": 1,
        "carbonyl": 1,
    }
    assert is_screened(manifest)
    assert main(["screen-experts", "--candidates", "2", *options]) == 1
    assert "--candidates: got 2, expected 1 to 1" in capsys.readouterr().err
    (extended / "molecules.smi").write_text("no molecule")
    assert main(["screen-experts", "--candidates", "1", *options]) == 1
    assert "got no readable SMILES" in capsys.readouterr().err


def test_an_artifact_may_be_extended_in_place(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = {path.name for path in extended.iterdir()}
    assert add(extended, "artifact", "artifact") == 0
    assert (
        read_manifest(extended / "artifact")[0].files
        == read_manifest(extended / "extended")[0].files
    )
    folders = ["--artifact", str(extended / "artifact"), "--output", f"{extended}/./artifact/"]
    (extended / "molecules.smi").write_text("CCO\nCCN\n")
    assert (
        main(
            [
                "screen-experts",
                "--candidates",
                "1",
                "--molecules",
                str(extended / "molecules.smi"),
                *folders,
            ]
        )
        == 0
    )
    assert is_screened(load_artifact(extended / "artifact").manifest)
    assert main(["remove-task", "--tasks", "carbonyl", *folders]) == 0
    assert load_artifact(extended / "artifact").model.tasks == ("nitrogen", "other")
    assert {path.name for path in extended.iterdir()} == beside | {"molecules.smi"}


def test_another_artifact_is_not_replaced_unless_told_to(
    extended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["--artifact", str(extended / "extended"), "--output", str(extended / "artifact")]
    before = read_manifest(extended / "artifact")
    assert main(["remove-task", "--tasks", "nitrogen", *folders]) == 1
    assert (
        "got another artifact there, pico 1.2.3 with tasks nitrogen, other"
        in capsys.readouterr().err
    )
    assert command(extended, "release", "--output", str(extended / "extended")) == 1
    assert (
        "with tasks nitrogen, other, carbonyl; expected pico with tasks nitrogen, other, or another"
        in capsys.readouterr().err
    )
    assert read_manifest(extended / "artifact") == before
    assert main(["remove-task", "--tasks", "nitrogen", "--replace", *folders]) == 0
    assert load_artifact(extended / "artifact").model.tasks == ("other", "carbonyl")


def test_a_failed_extension_in_place_loses_nothing(
    extended: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was made is not finite: that is found when it is read back."""
    before, beside = (
        read_manifest(extended / "artifact"),
        {path.name for path in extended.iterdir()},
    )

    def broken(
        run: Run, backbone: Backbone, made: dict[str, Expert]
    ) -> dict[str, dict[str, float]]:
        scores = calibrate(run, backbone, made)
        made["carbonyl"].head.bias.data.fill_(torch.nan)
        return scores

    monkeypatch.setattr("merging.release.extension.calibrate", broken)
    assert add(extended, "artifact", "artifact") == 1
    assert "carbonyl.safetensors: " in capsys.readouterr().err
    assert read_manifest(extended / "artifact") == before
    assert {path.name for path in extended.iterdir()} == beside


def test_added_tasks_are_calibrated(extended: Path) -> None:
    """Labels by the toss of a coin, and a head that is far too sure of them."""
    toss = random.Random(0)
    labels = [str(toss.randrange(2)) for _ in molecules()]
    write_csv(
        extended / "data/carbonyl.csv",
        "smiles",
        ("has_co",),
        list(zip(molecules(), labels, strict=True)),
    )
    known = set((extended / "work/pieces/finetuned").glob("carbonyl-*.safetensors"))
    assert add(extended, "artifact", "extended") == 0
    (piece,) = set((extended / "work/pieces/finetuned").glob("carbonyl-*.safetensors")) - known
    tensors = load_file(piece)
    record = safe_open(piece, "pt").metadata()
    sure = {
        key: 100 * value if key.startswith("heads/") else value for key, value in tensors.items()
    }
    save_file(sure, piece, record)
    assert add(extended, "artifact", "extended") == 0
    head = load_components(extended / "extended").experts["carbonyl"].head
    scale = (head.weight / sure["heads/carbonyl/weight"]).flatten()
    assert bool((scale < 0.5).all())
    torch.testing.assert_close(scale, scale[:1].expand_as(scale))
    torch.testing.assert_close(head.bias, scale[:1] * sure["heads/carbonyl/bias"])
    measured = read_manifest(extended / "extended")[0].metrics["added"]["carbonyl"]["calibration"]
    assert measured["ece_after"] < measured["ece_before"]
    assert measured["brier_after"] < measured["brier_before"]
    card = (extended / "extended/README.md").read_text()
    assert (
        f"| carbonyl | {measured['ece_before']:.3f} | {measured['ece_after']:.3f} |"
        in card.split("## Added later")[1]
    )


@pytest.mark.parametrize("tasks", [["CARBONYL2"], ["Nitrogen"]])
def test_new_tasks_may_not_differ_from_old_ones_in_case_alone(
    extended: Path, capsys: pytest.CaptureFixture[str], tasks: list[str]
) -> None:
    content = yaml.safe_load((extended / "more.yaml").read_text()) | {"tasks": tasks}
    content["datasets"] = {task: {"file": "carbonyl.csv"} for task in tasks}
    (extended / "more.yaml").write_text(yaml.safe_dump(content))
    assert add(extended, "artifact", "again") == (1 if tasks == ["Nitrogen"] else 0)
    assert ("got names 'nitrogen' and 'Nitrogen'" in capsys.readouterr().err) == (
        tasks == ["Nitrogen"]
    )


def test_tasks_that_extend_another_configuration_need_a_name_before_anything_is_trained(
    pico_config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's example without its `release`: it may not take the other's name."""
    (tmp_path / "mine.yaml").write_text("extends: pico.yaml\ntasks: [nitrogen]\n")
    folders = run_options(tmp_path)
    config = ["--config", str(tmp_path / "mine.yaml"), *folders]
    assert main(["release", "--output", str(tmp_path / "out"), *config]) == 1
    assert "write `release: {name: mine, version: 1.0.0}` into it" in capsys.readouterr().err
    save = ["--artifact", str(GOLDEN / "artifact"), "--output", str(tmp_path / "out")]
    assert main(["add-task", *save, *config]) == 1
    assert "write `release: {name: mine, version: 1.0.0}` into it" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
    assert main(["finetune", *config]) == 0


NAMED = "CCO\tmol0\nc1ccccc1\tmol1\nC1CC\tmol2\nCCN\tmol3\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.smi", NAMED),
        ("a.smi", NAMED.replace("\t", "  two words ")),
        ("a.smi", "SMILES Name\n" + NAMED),
        ("a.txt", "smiles,name\n" + NAMED.replace("\t", ",")),
        ("a.csv", "structure;name\n" + NAMED.replace("\t", ";")),
        ("a.smi.gz", gzip.compress(NAMED.encode(), mtime=0)),
        ("a.smi", ("\ufeff" + NAMED).encode()),
        ("a.smi", NAMED.encode("utf-16")),
        ("a.smi", NAMED.replace("mol", "mol\u00e9").encode("cp1252")),
    ],
    ids=["names", "spaces", "header", "table", "csv", "gzip", "bom", "utf-16", "cp1252"],
)
def test_molecules_to_screen_with_may_have_names(
    name: str, content: str | bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    graphs, unreadable = readable_graphs(tmp_path / name)
    assert [graph.num_nodes for graph in graphs] == [3, 6, 3]
    assert unreadable == 1


def test_molecules_to_screen_with_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got no file .*absent\.smi, expected molecules"):
        readable_graphs(tmp_path / "absent.smi")
    (tmp_path / "empty.smi").write_text("")
    with pytest.raises(ConfigError, match=r"got no readable SMILES in .*empty"):
        readable_graphs(tmp_path / "empty.smi")
    (tmp_path / "book.smi").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataError, match="expected a text file"):
        readable_graphs(tmp_path / "book.smi")
