"""The commands of the pages, as they are written there, on tiny data.

A test runs in a folder of its own that holds tiny files under the names of the configurations that
come with the package: `--config name.yaml` takes a file of the current folder before the package's.
`mine.yaml` and `ninth.yaml` are the pages' own examples.
"""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from gmerging.cli.main import main, make_parser
from merging.data.checkpoints import PUBLISHED
from merging.data.molecule_dataset import MOLECULENET
from merging.families.molecule_config import MoleculeConfig, PretrainedConfig
from merging.run.config import load_config
from models.artifact import load_artifact, save_artifact
from models.experts.expert import Expert
from models.experts.router import RouterConfig
from models.manifest import make_manifest
from models.networks.hu2020 import BackboneConfig
from models.task import TaskInfo
from tests.conftest import pico_config, random_backbone, random_experts
from tests.merging.conftest import molecules, stereo_corpus, tail_has, write_csv
from tests.merging.families.test_force_fields import CONFIG as FORCE_FIELDS
from tests.merging.families.test_force_fields import write_md17
from tests.merging.graph_files import NETWORK, TRAINING, write_rule
from tests.pages import PAGES, README, block, commands, page

OWN_TASKS, TUTORIAL = page("own-tasks.md"), page("add-a-task.md")
CHAIN = ("release", "add-task", "add-forests", "remove-task", "screen-experts", "inspect", "plan")
IMPORTS = ("check-models", "import-models", "merge-weights")
"""Run by the tests of `merging/imports`."""
TASKS = {"bbbp": "N", "bace": "O", "muv": "Cl"}
NAMED = {"setting": "tiny", "description": "made in a test"}
EXPERTS = ("bace", "bbbp", "clintox", "sider")


def test_there_are_commands_to_run() -> None:
    named = {words[0] for words in commands(OWN_TASKS)}
    assert {*CHAIN, "finetune", "merge", "train-adapters", "compare", "pretrain"} <= named


@pytest.mark.parametrize("words", [line for path in PAGES for line in commands(path)], ids=" ".join)
def test_every_command_is_one(words: list[str]) -> None:
    make_parser().parse_args(words)


def test_the_example_of_other_weights_is_a_configuration() -> None:
    section = yaml.safe_load(block(OWN_TASKS, "yaml", "pretrained:"))["pretrained"]
    assert PretrainedConfig.model_validate(section).source


def test_the_example_of_numbers_and_classes_is_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "measured.yaml"
    file.write_text(block(OWN_TASKS, "yaml", "# measured.yaml\n"))
    config = load_config(file)
    assert config.targets == {"esol": "regression", "phase": "multiclass"}
    esol = config.dataset_for("esol")
    assert esol.info(esol.label_columns or ()).unit_of == {"logS": "log mol/L", "mp": "K"}
    assert config.dataset_for("phase").classes == ("solid", "glass", "liquid")


@pytest.mark.parametrize(
    ("path", "name", "tasks"),
    [
        (README, "mine", ("solubility", "hERG")),
        (OWN_TASKS, "mine", ("solubility", "hERG", "ames")),
        (TUTORIAL, "ninth", ("solubility",)),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_the_example_of_own_tasks_has_a_name_of_its_own(
    path: Path, name: str, tasks: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / f"{name}.yaml"
    file.write_text(block(path, "yaml", f"# {name}.yaml\n"))
    config = load_config(file)
    parent = load_config(Path("gcn_supervised_contextpred_rank10.yaml"))
    assert isinstance(config, MoleculeConfig)
    assert config.tasks == tuple(config.datasets) == tasks
    assert config.require_release().name not in (parent.require_release().name, "moleculenet-gcn")
    assert config.setting != parent.setting
    assert config.rank == parent.rank  # the tasks can be added to its release


def test_the_page_names_every_published_checkpoint() -> None:
    text = OWN_TASKS.read_text()
    for name in PUBLISHED:
        kind, training = name.split("_", 1)
        assert f"`{kind}_`" in text
        assert f"`{training}`" in text


def write(file: str, content: dict[str, Any]) -> None:
    Path(file).write_text(yaml.safe_dump(content))


def molecule_settings(backbone: BackboneConfig) -> dict[str, Any]:
    budget = {"epochs": 1, "batch_size": 16}
    return {
        "setting": "tiny",
        "description": "made in a test",
        "pretrained": {"backbone": backbone.model_dump(), "weights": "weights.safetensors"},
        "tasks": list(TASKS),
        "datasets": {task: {"file": f"{task}.csv", "about": "in its tail"} for task in TASKS},
        "finetune": budget,
        "alignment": budget | {"rank": 3},
        "compare": {
            "mergers": {"weight_average": [{}], "task_arithmetic": [{"scaling": 0.2}]},
            "multitask": budget,
            "forest_trees": 3,
            "ablation_tasks": ["bace"],
            "ablations": {"without_l1": {"alignment": {"alpha": 0}}},
            "sweeps": {"top_k": {"1": {"router": {"top_k": 1}}}},
        },
        "release": {"name": "tiny", "version": "1.0.0"},
    }


def write_data(data: Path) -> None:
    for task, element in TASKS.items():
        write_csv(
            data / f"{task}.csv",
            "smiles",
            ("y",),
            list(zip(molecules(), tail_has(element), strict=True)),
        )
    for task in EXPERTS:  # in MoleculeNet's names and columns
        column = MOLECULENET[task].smiles_column
        write_csv(
            data / f"moleculenet/{task}.csv",
            column,
            ("y",),
            list(zip(molecules(), tail_has("O"), strict=True)),
        )
    write_csv(
        data / "solubility.csv",
        "smiles",
        ("soluble",),
        list(zip(molecules(), tail_has("O", "N"), strict=True)),
    )
    write_csv(
        data / "herg.csv",
        "structure",
        ("blocker", "note"),
        [
            (smiles, "strong" if one == "1" else "weak", note)
            for smiles, one, note in zip(
                molecules(), tail_has("F", "O"), tail_has("S"), strict=True
            )
        ],
    )
    folds = [str(k % 6) for k, _ in enumerate(molecules())]
    write_csv(
        data / "ames.csv",
        "smiles",
        ("TA98", "TA100", "fold"),
        list(zip(molecules(), tail_has("N"), tail_has("O"), folds, strict=True)),
    )
    (data / "herg.csv.gz").write_bytes(gzip.compress((data / "herg.csv").read_bytes()))
    for task in FORCE_FIELDS.tasks:
        write_md17(data, task)


def write_many(folder: Path) -> None:
    """Write an artifact with enough tasks to be screened."""
    config = pico_config()
    experts: dict[str, Expert] = {}
    for seed in range(12):
        made = random_experts(config, 3, seed)
        experts |= {f"{task}{seed}": expert for task, expert in made.items()}
    tasks = {task: TaskInfo(labels=expert.label_names) for task, expert in experts.items()}
    manifest = make_manifest("many", "1", config, 3, RouterConfig(), tasks)
    save_artifact(folder, manifest, random_backbone(config), experts)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GMERGING_DATA", "data")
    monkeypatch.setenv("GMERGING_WORK", "work")
    for task in EXPERTS:  # tiny data have not the published sizes
        unchecked = {"label_columns": ("y",), "num_molecules": None, "num_labels": None}
        monkeypatch.setitem(MOLECULENET, task, MOLECULENET[task].model_copy(update=unchecked))
    data = tmp_path / "data"
    write_data(data)
    save_file(random_backbone(pico_config()).state_dict(), "weights.safetensors")
    write("gcn_supervised_contextpred.yaml", molecule_settings(pico_config()))
    # as in the package: another rank than in the file that it extends, and the release's name
    write(
        "gcn_supervised_contextpred_rank10.yaml",
        {
            "extends": "gcn_supervised_contextpred.yaml",
            "alignment": {"rank": 2},
            "release": {"name": "moleculenet-gcn", "version": "1.2.0"},
        },
    )
    Path("mine.yaml").write_text(block(OWN_TASKS, "yaml", "# mine.yaml\n"))
    Path("ninth.yaml").write_text(block(TUTORIAL, "yaml", "# ninth.yaml\n"))
    (data / "smiles.txt").write_text("\n".join(stereo_corpus()))
    objective = {"kind": "contextpred", "inner_hops": 2, "outer_hops": 4}
    pretraining = {"objective": objective, "corpus": {"files": ["smiles.txt"]}, "batch_size": 32}
    write(
        "gin_contextpred.yaml", NAMED | {"backbone": pico_config("gin").model_dump()} | pretraining
    )
    tasks = {name: write_rule(data / f"{name}.npz", "node", "multiclass") for name in "ab"}
    training = TRAINING | {"epochs": 1}
    write(
        "cora_label_split.yaml",
        {
            "setting": "tiny",
            "network": NETWORK,
            "tasks": tasks,
            "training": training,
            "release": {"name": "tiny"},
        },
    )
    write("md17.yaml", FORCE_FIELDS.model_dump(mode="json"))
    network = {"kind": "pyg_gcn", "in_dim": 64, "num_layers": 2, "hidden_dim": 8}
    study = {
        "domains": list(EXPERTS),
        "network": network,
        "top_k": 3,
        "training": {"epochs": 1, "steps_per_epoch": 2},
    }
    write("six_domains.yaml", NAMED | {"variants": {"none": {}}} | study)
    Path("some.smi").write_text("\n".join(molecules()))
    write_many(tmp_path / "many")
    return tmp_path


def run(words: list[str]) -> None:
    threads = torch.get_num_threads()
    assert main(words) == 0, f"gmerging {' '.join(words)}"
    torch.set_num_threads(threads)


def test_the_chain_from_training_to_a_plan_and_the_tutorial_run_as_written(desk: Path) -> None:
    pytest.importorskip("catboost", reason="add-forests needs CatBoost (g-merging[trees])")
    for words in [words for words in commands(OWN_TASKS) if words[0] in CHAIN]:
        run(words)
    folders = ("models/releases/moleculenet-gcn", "extended", "smaller")
    released, extended, smaller = (load_artifact(desk / folder).manifest for folder in folders)
    assert (released.name, list(released.tasks)) == ("moleculenet-gcn", list(TASKS))
    assert list(extended.tasks) == [*TASKS, "solubility", "hERG", "ames"]
    assert list(load_artifact(desk / "with-forests").forests) == ["bbbp", "bace"]
    assert list(smaller.tasks) == ["bbbp", "bace", "solubility", "hERG", "ames"]
    assert load_artifact(desk / "screened").manifest.router.candidates == 32
    assert (desk / "plan.json").is_file()
    assert load_artifact(desk / "cora").manifest.tasks.keys() == {"a", "b"}
    assert load_artifact(desk / "md17").manifest.tasks.keys() == set(FORCE_FIELDS.tasks)

    (desk / "solubility.csv").write_bytes((desk / "data/solubility.csv").read_bytes())
    for words in commands(TUTORIAL):
        run(words)
    ninth, removed = (
        load_artifact(desk / name).manifest for name in ("with-solubility", "without")
    )
    assert list(ninth.tasks) == [*TASKS, "solubility"]
    assert list(removed.tasks) == list(TASKS)


@pytest.mark.slow
def test_every_other_command_runs_as_written(desk: Path) -> None:
    for words in [words for words in commands(OWN_TASKS) if words[0] not in (*CHAIN, *IMPORTS)]:
        run(words)
    assert list((desk / "results").rglob("table.md"))
    assert (desk / "results/neighbours/expert-merging.json").is_file()
