import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.config.base import CONFIG_FOLDER
from merging.config.training import ForceTrainingConfig
from merging.data.frames import FrameDataset, FramesConfig, Labels, read_lips20, read_md17
from merging.families.force_fields import FORCE_FIELDS, ForceFieldRunConfig, SchnetRunConfig
from merging.family import Folders
from merging.mergers import gffmerge as mergers
from merging.mergers.gffmerge import Heads, Teacher
from merging.mergers.registry import MergeConfig
from merging.release.release import release
from merging.run import stages
from merging.run.config import load_config
from merging.run.run import Run
from merging.run.stages import calibration, finetuned_network, merge_result, trained_model
from merging.studies import gffmerge as study
from merging.studies import gffmerge_tables as table
from merging.training.supervised import MultitaskModel, TrainedModel, initial_model, train
from models.artifact import load_artifact
from models.data.atoms import Atoms, AtomsBatch, composition, energies_of_elements
from models.errors import ArtifactError, ConfigError, DataError
from models.files import write_atomically
from models.networks.force_field import (
    ForceFieldExpert,
    MergedForceField,
    energy_and_forces,
    potential,
)
from models.networks.schnet import ForceField, ForceFieldConfig
from tests.conftest import collate_atoms
from tests.pages import page

ROOT = Path(__file__).parents[3]
NETWORK = ForceFieldConfig(
    hidden_dim=8, num_filters=6, num_interactions=1, num_gaussians=4, cutoff=3.0
)
CONFIG = SchnetRunConfig.model_validate(
    {
        "setting": "pico",
        "source": "md17",
        "tasks": ["ethanol", "water"],
        "network": NETWORK.model_dump(),
        "frames": {"train": 8, "valid": 2, "test": 4},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        "merge": {"method": "gffmerge", "options": {"inputs": "merged", "slopes": 0.3}},
        "calibration_frames": 8,
        "tuning": {"epochs": 1, "batch_size": 4, "frames": 8},
        "release": {"name": "md17-schnet"},
    }
)
SHAPES = {"ethanol": [6, 6, 8, 1, 1], "water": [8, 1, 1]}
VARIANTS = [
    (inputs, heads, slopes)
    for inputs in ("teacher", "merged")
    for heads in ("merged", "own")
    for slopes in (0.0, 0.3)
]


def write_md17(folder: Path, task: str, frames: int = 12) -> None:
    """Build frames of atoms with a spring between every pair."""
    generator = torch.Generator().manual_seed(len(task))
    numbers = torch.tensor(SHAPES[task])
    home = 1.2 * torch.tensor(
        [[k % 2, k // 2, 0.3 * k] for k in range(len(numbers))], dtype=torch.float64
    )
    first, second = torch.triu_indices(len(numbers), len(numbers), 1)
    for subset in ("train", "val", "test"):
        places = (
            home + 0.1 * torch.randn(frames, len(numbers), 3, generator=generator)
        ).requires_grad_()
        stretched = (places[:, first] - places[:, second]).norm(dim=2) - (
            home[first] - home[second]
        ).norm(dim=1)
        energy = 5 * stretched.pow(2).sum(1, keepdim=True) - 100
        (slope,) = torch.autograd.grad(energy.sum(), places)
        (folder / "md17" / task).mkdir(parents=True, exist_ok=True)
        arrays = {
            "pos": places.detach(),
            "energy": energy.detach(),
            "forces": -slope,
            "atomic_numbers": numbers,
        }
        np.savez(
            folder / "md17" / task / f"{subset}.npz",
            **{name: value.numpy() for name, value in arrays.items()},
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in SHAPES:
        write_md17(folder, task)
    return folder


def load_forces(path: Path) -> ForceFieldRunConfig:
    config = load_config(path)
    assert isinstance(config, ForceFieldRunConfig)
    return config


def read_frames(config: ForceFieldRunConfig, task: str, data: Path) -> FrameDataset:
    return FORCE_FIELDS.read(config, task, Folders(data, data), 0)


def structures(task: str, count: int = 12) -> AtomsBatch:
    generator = torch.Generator().manual_seed(len(task))
    numbers = torch.tensor(SHAPES[task])
    home = 1.2 * torch.tensor([[k % 2, k // 2, 0.3 * k] for k in range(len(numbers))])
    places = home + 0.1 * torch.randn(count, len(numbers), 3, generator=generator)
    return collate_atoms([Atoms(numbers, place) for place in places], NETWORK.cutoff)


def teacher(task: str, seed: int, network: ForceField | None = None) -> Teacher:
    torch.manual_seed(seed)
    network = network or ForceField(NETWORK)
    expert = ForceFieldExpert(NETWORK)
    expert.elements[SHAPES[task]] = True
    with torch.no_grad():
        expert.lin1.bias.uniform_(-1, 1)
    return Teacher(network, expert, (structures(task, 6), structures(task, 5)))


def pair() -> dict[str, Teacher]:
    return {"ethanol": teacher("ethanol", 1), "water": teacher("water", 2)}


def forces(network: ForceField, expert: ForceFieldExpert, task: str) -> Tensor:
    return energy_and_forces(network, expert, structures(task, 3)).forces


# Configuration and data


def test_the_configurations_that_come_with_the_package() -> None:
    folder = CONFIG_FOLDER / "force_fields"
    found = {path.stem: load_forces(path) for path in folder.glob("*.yaml")}
    assert found["md17"].source == "md17"
    assert set(found["md17"].tasks) == {"aspirin", "ethanol", "naphthalene", "salicylic_acid"}
    assert found["lips20"].source == "lips20"


@pytest.mark.parametrize("tasks", [["a"], ["a", "a"], ["a", "A"], ["a", "../b"]])
def test_a_study_has_several_tasks_each_once(tmp_path: Path, tasks: list[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(CONFIG.model_dump(mode="json") | {"tasks": tasks}))
    expected = r"two or more, each once|differ in more than case|got name '\.\./b'"
    with pytest.raises(ConfigError, match=expected):
        load_forces(path)


def test_md17_frames_keep_their_parts(data: Path) -> None:
    found = read_frames(CONFIG, "ethanol", data)
    stored = np.load(data / "md17" / "ethanol" / "test.npz")
    assert [len(rows) for rows in (found.split.train, found.split.valid, found.split.test)] == [
        8,
        2,
        4,
    ]
    labels, batch = found.labels(found.split.test[1:3]), found.select(found.split.test[1:3])
    assert labels.energy.tolist() == stored["energy"][1:3, 0].tolist()
    assert labels.forces.numpy() == pytest.approx(stored["forces"][1:3].reshape(-1, 3), abs=1e-5)
    assert batch.positions.numpy() == pytest.approx(stored["pos"][1:3].reshape(-1, 3), abs=1e-5)
    assert batch.numbers.tolist() == SHAPES["ethanol"] * 2


def spoil(**changes: object) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda arrays: {
        key: value for key, value in (arrays | changes).items() if value is not None
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil(forces=None), "without forces"),
        (spoil(forces=np.zeros((12, 2, 3))), "of shapes"),
        (spoil(energy=np.full((12, 1), np.nan)), "not finite"),
        (spoil(pos=np.zeros((1, 3, 3))), "got 1 frames"),
    ],
)
def test_other_forms_of_md17_are_errors(
    tmp_path: Path, change: Callable[[dict[str, object]], dict[str, object]], message: str
) -> None:
    write_md17(tmp_path, "water")
    for subset in ("train", "val", "test"):
        path = tmp_path / "md17" / "water" / f"{subset}.npz"
        np.savez(path, **change(dict(np.load(path))))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        read_md17(tmp_path / "md17" / "water", CONFIG.frames, 3.0)


def test_absent_files_and_pickles_are_errors(tmp_path: Path) -> None:
    for read in (read_md17, read_lips20):
        with pytest.raises(DataError, match="no readable array"):
            read(tmp_path, CONFIG.frames, 3.0)
    np.save(tmp_path / "coord.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="no readable array"):
        read_lips20(tmp_path, CONFIG.frames, 3.0)


def test_lips20_frames_are_periodic_and_the_same_in_every_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    cell = np.array([[3.0, 0, 0], [-1.5, 2.6, 0], [0, 0, 5.0]])
    places = np.array(
        [[0.1, 0.1, 0.1], [0.6, 0.4, 0.3], [0.2, 0.7, 0.7]]
    ) @ cell + 0.01 * generator.standard_normal((9, 3, 3))
    arrays = {
        "coord": places.reshape(9, 9),
        "force": places.reshape(9, 9),
        "energy": np.arange(9.0),
        "box": np.tile(cell.reshape(9), (9, 1)),
    }
    for name, values in arrays.items():
        np.save(tmp_path / f"{name}.npy", values)
    (tmp_path / "type.raw").write_text("0\n1\n2\n")
    (tmp_path / "type_map.raw").write_text("Li\nP\nS\n")
    first, second = (
        read_lips20(tmp_path, FramesConfig(train=4, valid=2, test=2), 3.0) for _ in range(2)
    )
    assert first.structures[0].numbers.tolist() == [3, 15, 16]
    assert first.energy.tolist() == second.energy.tolist() != sorted(first.energy.tolist())
    row = int(first.energy[5])
    assert first.structures[5].positions.numpy() == pytest.approx(places[row], abs=1e-5)
    assert torch.equal(first.forces[5], torch.from_numpy(places[row]).float())
    assert first.lists[0].shift.abs().max() > 1
    (tmp_path / "type_map.raw").write_text("Li\nP\nXx\n")
    with pytest.raises(DataError, match="Xx"):
        read_lips20(tmp_path, FramesConfig(train=4, valid=2, test=2), 3.0)


@pytest.mark.parametrize("name", ["md17", "lips20"])
def test_the_shared_data_can_be_read(shared: Path, name: str) -> None:
    frames = FramesConfig(train=2, valid=1, test=1)
    config = load_forces(Path(f"{name}.yaml")).model_copy(update={"frames": frames})
    assert len(config.tasks) > 2
    for task in config.tasks:
        dataset = read_frames(config, task, shared / "data")
        assert dataset.forces.sum(1).abs().max() < 0.05  # nothing pulls a whole molecule or crystal
        assert (dataset.structures[0].cell is not None) == (name == "lips20")


# Training


def test_energies_of_elements_are_found_again() -> None:
    batch = collate_atoms(
        [
            Atoms.from_lists([8, 1, 1], [[0, 0, 0], [1, 0, 0], [0, 1, 0]]),
            Atoms.from_lists([8, 8], [[0, 0, 0], [1, 0, 0]]),
        ],
        3.0,
    )
    found = energies_of_elements(
        composition(batch), torch.tensor([-10.0, -16.0], dtype=torch.float64)
    )
    assert (float(found[8]), float(found[1])) == pytest.approx((-8.0, -1.0))
    assert found.abs().sum() == pytest.approx(9.0)


def started(data: Path, *tasks: str) -> MultitaskModel:
    found = {task: read_frames(CONFIG, task, data) for task in tasks}
    initial = FORCE_FIELDS.initial_state(CONFIG, 3, Folders(data, data))
    return initial_model(FORCE_FIELDS, NETWORK, found, initial, 0)


def tensors_of(made: TrainedModel) -> dict[str, Tensor]:
    heads = {
        f"{task}/{key}": value for task, own in made.heads.items() for key, value in own.items()
    }
    return made.network | heads


def test_training_learns_and_can_be_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ForceTrainingConfig(epochs=4, batch_size=2, learning_rate=0.03)
    first = started(data, "water").eval()
    dataset = first.tasks["water"]
    answers = FORCE_FIELDS.predict(
        partial(first, task="water"), dataset.steps("valid", 25), torch.device("cpu")
    )
    before = FORCE_FIELDS.score(*answers, dataset.info)
    whole = train(first, settings, 0, tmp_path / "whole.pt")
    assert max(whole.record["valid"]) > 0.9 * before
    assert whole.record["steps"] == 16
    left = iter([True, True])

    def write(path: Path, fill: Callable[[Path], object]) -> None:
        if not next(left, False):
            raise KeyboardInterrupt
        write_atomically(path, fill)

    with monkeypatch.context() as patched:
        patched.setattr("merging.training.loop.write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            train(started(data, "water"), settings, 0, tmp_path / "stopped.pt")
    again = train(started(data, "water"), settings, 0, tmp_path / "stopped.pt")
    assert again.record["valid"] == whole.record["valid"]
    expected, got = tensors_of(whole), tensors_of(again)
    assert all(torch.equal(value, got[key]) for key, value in expected.items())


def test_heads_are_tuned_alone(data: Path, tmp_path: Path) -> None:
    model = started(data, *CONFIG.tasks)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert CONFIG.tuning
    train(model, CONFIG.tuning, 0, tmp_path / "resume.pt", parameters="heads")
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {
        f"heads.{k}.{name}"
        for k in range(2)
        for name in ("lin1.weight", "lin1.bias", "lin2.weight", "lin2.bias")
    }


def test_joint_alignment_sees_no_label(data: Path, tmp_path: Path) -> None:
    changes = {"tuning": None, "joint_alignment": CONFIG.training}
    run = Run(CONFIG.model_copy(update=changes), 0, data, tmp_path)
    for task in run.tasks:
        own, dataset = trained_model(run, stages.teacher(run, task)), run.dataset(task)
        modules = FORCE_FIELDS.load_model(NETWORK, own.network, own.heads[task], dataset)
        found = stages.imitated_data(run, task)
        for subset in ("train", "valid"):
            rows = getattr(dataset.split, subset)
            expected = energy_and_forces(*modules, dataset.select(rows))  # type: ignore[arg-type]
            torch.testing.assert_close(found.labels(rows).energy, expected.energy)
            torch.testing.assert_close(found.labels(rows).forces, expected.forces)
        assert found.labels(found.split.test).forces.isnan().all()
        assert found.labels(found.split.test).energy.isnan().all()
    merge_result(run)
    # It trains without any label left.
    for task in run.tasks:
        run._datasets[task] = run.dataset(task).with_answers({})
    model = trained_model(run, stages.aligned(run))
    start = merge_result(run)
    moved = [key for key, value in model.network.items() if not value.equal(start.backbone[key])]
    assert moved
    assert all(value.isfinite().all() for value in tensors_of(model).values())
    assert stages.aligned(run).key != stages.aligned(run, "pretrained").key
    with pytest.raises(ConfigError, match="got no joint alignment in 'pico'"):
        stages.aligned(Run(CONFIG, 0, data, tmp_path))
    with pytest.raises(ValueError, match="got settings beside `joint_alignment`"):
        SchnetRunConfig.model_validate(
            CONFIG.model_dump() | {"joint_alignment": CONFIG.training.model_dump()}
        )


def test_all_heads_start_alike_and_energies_are_right_from_the_first_step(data: Path) -> None:
    model = started(data, *CONFIG.tasks)
    first, second = (model.head(task) for task in CONFIG.tasks)
    assert torch.equal(first.lin1.weight, second.lin1.weight)
    for task, dataset in model.tasks.items():
        batch, head = dataset.select(dataset.split.train), model.head(task)
        with torch.no_grad():
            said = potential(model.network, head, batch, batch.positions)  # type: ignore[arg-type]
        known = dataset.energy[dataset.split.train]
        assert float(said.mean()) == pytest.approx(float(known.mean()), abs=1e-4)


# Mergers


def mean(teachers: dict[str, Teacher], heads: Heads) -> MergedForceField:
    return study.merge_weights(teachers, None, "weight_average", heads)


def methods() -> dict[str, Callable[[dict[str, Teacher]], MergedForceField]]:
    found: dict[str, Callable[[dict[str, Teacher]], MergedForceField]] = {
        "mean": partial(mean, heads="merged"),
        "mean, own heads": partial(mean, heads="own"),
    }
    for inputs, heads, slopes in VARIANTS:
        found[f"{inputs} {heads} {slopes}"] = lambda t, i=inputs, h=heads, s=slopes: (
            mergers.closed_form(t, 1e-6, i, h, s)
        )
    return found


@pytest.mark.parametrize("name", methods())
def test_copies_of_one_model_give_that_model(name: str) -> None:
    one = teacher("ethanol", 1)
    water = Teacher(one.network, one.expert, (structures("water"),))
    one.expert.elements[:] = True
    for teachers in ({"ethanol": one}, {"ethanol": one, "water": water}):
        merged = methods()[name](teachers)
        for task in teachers:
            assert torch.allclose(
                forces(merged.network, merged.expert(task), task),
                forces(one.network, one.expert, task),
                atol=2e-5,
            )


@pytest.mark.parametrize("name", ["mean", "teacher merged 0.0", "merged own 0.3"])
def test_a_merger_leaves_its_teachers_and_forgets_their_order(name: str) -> None:
    teachers = pair()
    before = [
        {key: value.clone() for key, value in module.state_dict().items()}
        for model in teachers.values()
        for module in (model.network, model.expert)
    ]
    merged, swapped = (
        methods()[name](dict(order)) for order in (teachers.items(), reversed(teachers.items()))
    )
    after = [
        module.state_dict()
        for model in teachers.values()
        for module in (model.network, model.expert)
    ]
    assert all(
        torch.equal(value, then[key])
        for now, then in zip(before, after, strict=True)
        for key, value in now.items()
    )
    for task in teachers:
        assert torch.allclose(
            forces(merged.network, merged.expert(task), task),
            forces(swapped.network, swapped.expert(task), task),
            rtol=1e-2,
            atol=1e-3,
        )


@pytest.mark.parametrize("heads", ["merged", "own"])
def test_what_is_shared_and_what_is_a_tasks_own(heads: Heads) -> None:
    teachers = pair()
    merged = mergers.closed_form(teachers, 1e-6, "teacher", heads)
    first, second = (merged.expert(task) for task in teachers)
    assert torch.equal(first.lin1.weight, second.lin1.weight) == (heads == "merged")
    for task, model in teachers.items():
        expert = merged.expert(task)
        assert torch.equal(expert.embedding.weight, model.expert.embedding.weight)
        assert torch.equal(expert.elements, model.expert.elements)
        with torch.no_grad():
            said = torch.cat(
                [
                    potential(merged.network, expert, batch, batch.positions)
                    for batch in model.batches
                ]
            )
        assert float(said.mean()) == pytest.approx(float(model.energies().mean()), abs=1e-5)


def test_a_linear_part_is_the_least_squares_answer_of_numpy() -> None:
    teachers = pair()
    merged = mergers.closed_form(teachers, 1e-9)
    rows, targets = [], []
    for model in teachers.values():
        seen = [
            mergers.linear_activations(
                model.network, model.expert, batch, ["interactions.0.conv.nn.0"]
            )
            for batch in model.batches
        ]
        z = (
            torch.cat([found["interactions.0.conv.nn.0"][0][0] for found in seen])
            .detach()
            .double()
            .numpy()
        )
        y = (
            torch.cat([found["interactions.0.conv.nn.0"][1][0] for found in seen])
            .detach()
            .double()
            .numpy()
        )
        rows.append(np.hstack([z, np.ones((len(z), 1))]) / np.sqrt(len(z)))
        targets.append(y / np.sqrt(len(z)))
    expected = np.linalg.lstsq(np.vstack(rows), np.vstack(targets), rcond=None)[0]
    linear = merged.network.get_submodule("interactions.0.conv.nn.0")
    assert linear.weight.detach().numpy() == pytest.approx(expected[:-1].T, abs=1e-3)
    assert linear.bias.detach().numpy() == pytest.approx(expected[-1], abs=1e-3)


def test_derivatives_of_inputs_and_outputs_are_slopes() -> None:
    model, batch = teacher("water", 3), structures("water")
    network, expert, batch = (
        model.network.double(),
        model.expert.double(),
        replace(batch, positions=batch.positions.double(), shift=batch.shift.double()),
    )
    directions, step = (
        torch.randn(
            batch.positions.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
        ),
        1e-5,
    )
    names = list(mergers.linears(network, expert))
    assert len(names) == 5 + 2
    found = mergers.linear_activations(network, expert, batch, names, directions)
    there, back = (
        mergers.linear_activations(
            network,
            expert,
            replace(batch, positions=batch.positions + sign * step * directions),
            names,
            directions,
        )
        for sign in (1, -1)
    )
    for name in names:
        for side in (0, 1):
            slope = (there[name][side][0] - back[name][side][0]) / (2 * step)
            derivative = found[name][side][1]
            assert torch.allclose(
                torch.zeros_like(slope) if derivative is None else derivative, slope, atol=1e-6
            )
    # embeddings stay
    assert [name for name in names if found[name][0][1] is None] == ["interactions.0.conv.lin1"]


def test_the_closed_form_is_nearer_to_the_teachers_than_the_mean() -> None:
    teachers = pair()
    merged, averaged = (
        mergers.closed_form(teachers, 1e-6, "merged", "own", 0.3),
        mean(teachers, "own"),
    )

    def distance(model: MergedForceField) -> float:
        return sum(
            float(
                (
                    forces(model.network, model.expert(task), task)
                    - forces(taught.network, taught.expert, task)
                )
                .abs()
                .mean()
            )
            for task, taught in teachers.items()
        )

    assert distance(merged) < distance(averaged)


def test_ties_starts_from_the_beginning_or_from_nothing() -> None:
    start = teacher("water", 0)
    moved = {task: teacher(task, 0, deepcopy(start.network)) for task in SHAPES}
    key = "interactions.0.lin.weight"
    for sign, model in zip((1.0, 2.0), moved.values(), strict=True):
        with torch.no_grad():
            model.network.get_parameter(key)[0, 0] += sign
    options = {"density": 1e-9}  # the one largest change
    merged = study.merge_weights(
        moved, (start.network, start.expert), "ties", "own", options
    ).network.state_dict()
    assert float(merged[key][0, 0] - start.network.state_dict()[key][0, 0]) == pytest.approx(1.5)
    assert all(
        torch.equal(value, start.network.state_dict()[name])
        for name, value in merged.items()
        if name != key
    )
    alone = study.merge_weights(moved, None, "ties", "own", options).network
    assert sum(int(parameter.count_nonzero()) for parameter in alone.parameters()) <= 2


# The study


def test_a_study_from_data_to_table(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.json"
    entry = study.run_study(CONFIG, data, tmp_path / "work", [0], results)
    assert json.loads(results.read_text()) == {"md17": json.loads(json.dumps(entry))}
    methods = [row["method"] for row in entry["rows"] if row["beginning"] == "shared"]
    assert {
        "no model",
        "separate",
        "mean",
        "TIES",
        "closed form",
        study.RELEASED,
        "joint training",
    } < set(methods)
    assert all(set(seed) == set(SHAPES) for row in entry["rows"] for seed in row["by_seed"])
    text = table.gffmerge_tables({"md17": entry})
    assert text.count("| joint training |") == 2
    # what is finished is read back, not measured again
    monkeypatch.setattr(study, "model_errors", None)
    monkeypatch.setattr(study, "train", None)
    monkeypatch.setattr("merging.run.stages.train", None)
    assert study.run_study(CONFIG, data, tmp_path / "work", [0], results) == entry

    monkeypatch.undo()
    run = Run(CONFIG, 0, data, tmp_path / "work")
    manifest = release(run, tmp_path / "artifact")
    released = next(
        row
        for row in entry["rows"]
        if row["method"] == study.RELEASED and row["beginning"] == "shared"
    )
    for task, errors in released["by_seed"][0].items():
        assert manifest.metrics["merged"][task] == pytest.approx(errors, abs=1e-5)
    artifact = load_artifact(tmp_path / "artifact")
    assert tuple(manifest.tasks) == artifact.model.tasks == CONFIG.tasks
    for task in CONFIG.tasks:
        dataset = run.dataset(task)
        (step,) = dataset.steps("test", 25)
        served = artifact.model(step.batch, [task])[task]
        errors = FORCE_FIELDS.metrics(
            Labels(served.energy, served.forces), step.labels, dataset.info
        )
        assert errors == pytest.approx(manifest.metrics["merged"][task], abs=1e-3)
    card = (tmp_path / "artifact/README.md").read_text()
    assert f"{manifest.metrics['separate']['water']['forces']:.4f}" in card
    with pytest.raises(ArtifactError, match="no artifact"):  # before anything is trained
        release(Run(CONFIG, 0, Path("nowhere"), tmp_path / "none"), tmp_path / "work")


def test_energies_and_forces_of_an_artifact_are_measured(data: Path, tmp_path: Path) -> None:
    label = {"name": "energy", "measured": "The energy.", "direction": "neither"}
    text = {"source": "made in a test", "terms": "CC0", "labels": {"energy": label}}
    values = CONFIG.model_dump() | {
        "meanings": {CONFIG.tasks[0]: text},
        "merge": {"method": "weight_average"},
        "tuning": None,
        "release": {"name": "forces"},
    }
    run = Run(SchnetRunConfig.model_validate(values), 0, data, tmp_path / "work")
    manifest = release(run, tmp_path / "artifact")
    first, second = run.tasks
    meaning = manifest.tasks[first].meaning
    assert meaning is not None
    assert manifest.tasks[second].meaning is None
    (own,), errors = meaning.labels, manifest.metrics["merged"][first]
    assert [score.unit for score in own.scores] == ["eV", "eV/Angstrom"]
    measured = [1000 * score.value for score in own.scores]
    assert measured == pytest.approx([errors["energy"], errors["forces"]], rel=1e-3)
    assert own.counts.test == len(run.dataset(first).split.test)
    assert (meaning.counted, own.calibration_error) == ("structures", None)


def test_force_fields_are_merged_by_weights_too_and_keep_their_mean_energies(
    data: Path, tmp_path: Path
) -> None:
    """Without GFFMerge and tuning, a task keeps its own head, with shifted element energies."""
    changes = {"merge": MergeConfig(method="weight_average"), "tuning": None}
    run = Run(CONFIG.model_copy(update=changes), 0, data, tmp_path / "work")
    found = merge_result(run)
    networks = [finetuned_network(run, task).state_dict() for task in run.tasks]
    for key, value in found.backbone.items():
        torch.testing.assert_close(value, torch.stack([own[key] for own in networks]).mean(0))
    for task in run.tasks:
        own = trained_model(run, stages.teacher(run, task)).heads[task]
        moved = {key for key in own if not torch.equal(own[key], found.heads[task][key])}
        assert moved == {"atom_energies"}
        made = FORCE_FIELDS.load_model(
            NETWORK, found.backbone, found.heads[task], run.dataset(task)
        )
        batches = calibration(run, task).batches
        said = torch.cat([potential(*made, batch, batch.positions) for batch in batches])  # type: ignore[arg-type]
        head = FORCE_FIELDS.load_model(
            NETWORK, networks[run.tasks.index(task)], own, run.dataset(task)
        )
        taught = torch.cat([potential(*head, batch, batch.positions) for batch in batches])  # type: ignore[arg-type]
        assert float(said.detach().mean()) == pytest.approx(float(taught.detach().mean()), abs=1e-5)


def test_the_page_shows_the_results() -> None:
    results = json.loads((ROOT / "results" / "neighbours" / "gffmerge.json").read_text())
    assert table.gffmerge_tables(results) in page("gffmerge.md").read_text()
