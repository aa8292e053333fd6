import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.data.frames import FramesConfig, read_lips20, read_md17
from merging.families.force_fields import (
    FORCE_FIELD_CONFIGS,
    ForceFieldStudyConfig,
    load_force_field_config,
    load_frames,
)
from merging.force_fields.pieces import Study
from merging.force_fields.release import release_atoms
from merging.force_fields.training import evaluate, fit
from merging.mergers import gffmerge as mergers
from merging.mergers.gffmerge import Heads, Teacher
from merging.mergers.ties import TiesOptions
from merging.studies import gffmerge as study
from merging.studies import gffmerge_tables as table
from merging.training.settings import FitConfig
from models.artifact import load_artifact
from models.data.atoms import Atoms, AtomsBatch, collate_atoms, composition, energies_of_elements
from models.errors import ArtifactError, ConfigError, DataError
from models.files import write_atomically
from models.networks.schnet import (
    ForceField,
    ForceFieldConfig,
    ForceFieldExpert,
    MergedForceField,
    energy_and_forces,
    potential,
)

ROOT = Path(__file__).parents[3]
NETWORK = ForceFieldConfig(
    hidden_dim=8, num_filters=6, num_interactions=1, num_gaussians=4, cutoff=3.0
)
CONFIG = ForceFieldStudyConfig.model_validate(
    {
        "source": "md17",
        "tasks": ["ethanol", "water"],
        "network": NETWORK.model_dump(),
        "frames": {"train": 8, "valid": 2, "test": 4},
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 0.01},
        "merge": {"graphs": 8, "sequential_graphs": 4},
        "tuning": {"epochs": 1, "batch_size": 4},
    }
)
SHAPES = {"ethanol": [6, 6, 8, 1, 1], "water": [8, 1, 1]}
VARIANTS = [
    (inputs, heads, slopes)
    for inputs in ("teacher", "sequential")
    for heads in ("merged", "own")
    for slopes in (0.0, 0.3)
]


def write_md17(folder: Path, task: str, frames: int = 12) -> None:
    """Frames of atoms with a spring between any two."""
    generator = torch.Generator().manual_seed(len(task))
    numbers = torch.tensor(SHAPES[task])
    home = 1.2 * torch.tensor(
        [[k % 2, k // 2, 0.3 * k] for k in range(len(numbers))], dtype=torch.float64
    )
    first, second = torch.triu_indices(len(numbers), len(numbers), 1)
    for part in ("train", "val", "test"):
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
            folder / "md17" / task / f"{part}.npz",
            **{name: value.numpy() for name, value in arrays.items()},
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for task in SHAPES:
        write_md17(folder, task)
    return folder


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
    found = {
        path.stem: load_force_field_config(path) for path in FORCE_FIELD_CONFIGS.glob("*.yaml")
    }
    assert found["md17"].source == "md17"
    assert set(found["md17"].tasks) == {"aspirin", "ethanol", "naphthalene", "salicylic_acid"}
    assert found["lips20"].source == "lips20"


@pytest.mark.parametrize("tasks", [["a"], ["a", "a"], ["a", "A"], ["a", "../b"]])
def test_a_study_has_several_tasks_each_once(tmp_path: Path, tasks: list[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(CONFIG.model_dump(mode="json") | {"tasks": tasks}))
    expected = r"two or more, each once|differ in more than case|got name '\.\./b'"
    with pytest.raises(ConfigError, match=expected):
        load_force_field_config(path)


def test_md17_frames_keep_their_parts(data: Path) -> None:
    found = load_frames(CONFIG, data)["ethanol"]
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
    for part in ("train", "val", "test"):
        path = tmp_path / "md17" / "water" / f"{part}.npz"
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
    config = load_force_field_config(Path(f"{name}.yaml"))
    frames = FramesConfig(train=2, valid=1, test=1)
    found = load_frames(config.model_copy(update={"frames": frames}), shared / "data")
    assert list(found) == list(config.tasks)
    for dataset in found.values():
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


def test_training_learns_and_can_be_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Study(CONFIG, 0, data, tmp_path)
    settings = FitConfig(epochs=4, batch_size=2, learning_rate=0.03)
    whole, stopped = (run.untrained(("water",), 3) for _ in range(2))
    dataset = {"water": run.datasets["water"]}
    before = evaluate(whole, "water", dataset["water"], dataset["water"].split.valid).forces
    record = fit(whole, dataset, settings, 0, tmp_path / "whole.pt")
    assert min(record["valid_force_mae"]) < 0.9 * before
    assert record["steps"] == 16
    left = iter([True, True])

    def write(path: Path, fill: Callable[[Path], object]) -> None:
        if not next(left, False):
            raise KeyboardInterrupt
        write_atomically(path, fill)

    with monkeypatch.context() as patched:
        patched.setattr("merging.training.loop.write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            fit(stopped, dataset, settings, 0, tmp_path / "stopped.pt")
    again = run.untrained(("water",), 3)
    assert (
        fit(again, dataset, settings, 0, tmp_path / "stopped.pt")["valid_force_mae"]
        == record["valid_force_mae"]
    )
    assert all(
        torch.equal(value, again.state_dict()[key]) for key, value in whole.state_dict().items()
    )


def test_heads_are_tuned_alone(data: Path, tmp_path: Path) -> None:
    run = Study(CONFIG, 0, data, tmp_path)
    model = run.untrained(CONFIG.tasks, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fit(model, run.datasets, CONFIG.tuning, 0, tmp_path / "resume.pt", "heads")
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {
        f"experts.{k}.{part}"
        for k in range(2)
        for part in ("lin1.weight", "lin1.bias", "lin2.weight", "lin2.bias")
    }


# Mergers


def methods() -> dict[str, Callable[[dict[str, Teacher]], MergedForceField]]:
    found: dict[str, Callable[[dict[str, Teacher]], MergedForceField]] = {
        "mean": mergers.mean,
        "mean, own heads": lambda t: mergers.mean(t, "own"),
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


@pytest.mark.parametrize("name", ["mean", "teacher merged 0.0", "sequential own 0.3"])
def test_a_merger_leaves_its_teachers_and_forgets_their_order(name: str) -> None:
    teachers = pair()
    before = [
        {key: value.clone() for key, value in module.state_dict().items()}
        for each in teachers.values()
        for module in (each.network, each.expert)
    ]
    merged, swapped = (
        methods()[name](dict(order)) for order in (teachers.items(), reversed(teachers.items()))
    )
    after = [
        module.state_dict() for each in teachers.values() for module in (each.network, each.expert)
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
    for task, each in teachers.items():
        expert = merged.expert(task)
        assert torch.equal(expert.embedding.weight, each.expert.embedding.weight)
        assert torch.equal(expert.elements, each.expert.elements)
        with torch.no_grad():
            said = torch.cat(
                [
                    potential(merged.network, expert, batch, batch.positions)
                    for batch in each.batches
                ]
            )
        assert float(said.mean()) == pytest.approx(float(each.energies().mean()), abs=1e-5)


def test_a_linear_part_is_the_least_squares_answer_of_numpy() -> None:
    teachers = pair()
    merged = mergers.closed_form(teachers, 1e-9)
    rows, targets = [], []
    for each in teachers.values():
        seen = [
            mergers.seen(each.network, each.expert, batch, ["interactions.0.conv.nn.0"])
            for batch in each.batches
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
    each, batch = teacher("water", 3), structures("water")
    network, expert, batch = (
        each.network.double(),
        each.expert.double(),
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
    found = mergers.seen(network, expert, batch, names, directions)
    there, back = (
        mergers.seen(
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
        mergers.closed_form(teachers, 1e-6, "sequential", "own", 0.3),
        mergers.mean(teachers, "own"),
    )

    def distance(model: MergedForceField) -> float:
        return sum(
            float(
                (
                    forces(model.network, model.expert(task), task)
                    - forces(each.network, each.expert, task)
                )
                .abs()
                .mean()
            )
            for task, each in teachers.items()
        )

    assert distance(merged) < distance(averaged)


def test_ties_starts_from_the_beginning_or_from_nothing() -> None:
    start = teacher("water", 0)
    moved = {task: teacher(task, 0, mergers.deepcopy(start.network)) for task in SHAPES}
    key = "interactions.0.lin.weight"
    for sign, each in zip((1.0, 2.0), moved.values(), strict=True):
        with torch.no_grad():
            each.network.get_parameter(key)[0, 0] += sign
    options = TiesOptions(density=1e-9)  # the one largest change
    merged = mergers.ties(moved, (start.network, start.expert), options, "own").network.state_dict()
    assert float(merged[key][0, 0] - start.network.state_dict()[key][0, 0]) == pytest.approx(1.5)
    assert all(
        torch.equal(value, start.network.state_dict()[name])
        for name, value in merged.items()
        if name != key
    )
    alone = mergers.ties(moved, None, options, "own").network
    assert sum(int(each.count_nonzero()) for each in alone.parameters()) <= 2


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
    text = table.tables({"md17": entry})
    assert text.count("| joint training |") == 2
    # what is finished is read back, not measured again
    monkeypatch.setattr(study, "errors_of", None)
    monkeypatch.setattr("merging.force_fields.pieces.fit", None)
    assert study.run_study(CONFIG, data, tmp_path / "work", [0], results) == entry

    monkeypatch.undo()
    config, network, experts, record = study.release_force_field(
        Study(CONFIG, 0, data, tmp_path / "work")
    )
    model = MergedForceField(network, experts)
    assert (config, model.tasks) == (NETWORK, CONFIG.tasks)
    released = next(
        row
        for row in entry["rows"]
        if row["method"] == record["method"] and row["beginning"] == "shared"
    )
    assert record["test"] == released["by_seed"][0]
    manifest = release_atoms(Study(CONFIG, 0, data, tmp_path / "work"), tmp_path / "artifact")
    assert (tuple(manifest.tasks), manifest.metrics) == (CONFIG.tasks, record["test"])
    assert load_artifact(tmp_path / "artifact").model.tasks == CONFIG.tasks
    with pytest.raises(ArtifactError, match="no artifact"):  # before anything is trained
        release_atoms(Study(CONFIG, 0, Path("nowhere"), tmp_path / "none"), tmp_path / "work")


def test_the_page_shows_the_results() -> None:
    results = json.loads((ROOT / "results" / "neighbours" / "gffmerge.json").read_text())
    assert table.tables(results) in (ROOT / "docs" / "gffmerge.md").read_text()
