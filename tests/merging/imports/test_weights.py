"""Merging of any state dicts in weight space."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gmerging.cli.main import main
from merging.data.files import sha256
from merging.imports.weights import merge_weights, weight_mergers, write_merged
from merging.mergers.base import MergeInputs
from merging.mergers.registry import MERGERS, merge
from models.errors import CheckpointError, ConfigError
from models.state_dict import read_tensors

State = dict[str, Tensor]


def state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "encoder.weight": torch.randn(4, 3, generator=generator),
        "encoder.bias": torch.randn(4, generator=generator),
        "norm.running_mean": torch.randn(4, generator=generator),
        "norm.num_batches_tracked": torch.tensor(seed),
    }


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The base and two models, each saved in another way."""
    paths = [tmp_path / name for name in ("base.pt", "a.pth", "b.ckpt")]
    torch.save(state(0), paths[0])
    torch.save({"model": state(1), "epoch": 3}, paths[1])
    torch.save({"state_dict": state(2)}, paths[2])
    return paths


@pytest.mark.parametrize("method", weight_mergers())
def test_every_merger_makes_what_the_registry_makes(method: str, files: list[Path]) -> None:
    base, *models = files
    found = merge_weights(models, base, method, seed=3)
    finetuned = {"0": state(1), "1": state(2)}
    result = merge(method, MergeInputs(state(0), finetuned, config=None, seed=3))
    assert not result.by_task, "a merger that makes a network per model is none of these"
    assert found.tensors.keys() == state(0).keys()
    assert all(torch.equal(found.tensors[key], result.backbone[key]) for key in found.tensors)
    assert not torch.equal(found.tensors["encoder.weight"], state(0)["encoder.weight"])


def test_the_mergers_are_those_of_the_registry_that_make_one_network() -> None:
    assert weight_mergers() == (
        "weight_average",
        "task_arithmetic",
        "ties",
        "dare",
        "dare_ties",
        "tsv_merge",
        "iso_c",
        "wudi",
    )
    assert set(weight_mergers()) < set(MERGERS)


def test_the_average_is_the_mean_and_counters_are_the_bases(files: list[Path]) -> None:
    found = merge_weights(files[1:], files[0], "weight_average")
    mean = (state(1)["encoder.weight"] + state(2)["encoder.weight"]) / 2
    torch.testing.assert_close(found.tensors["encoder.weight"], mean)
    assert found.from_base == ("norm.running_mean", "norm.num_batches_tracked")
    for key in found.from_base:
        assert torch.equal(found.tensors[key], state(0)[key])


def test_half_precision_is_merged_in_float32_and_written_as_it_was(tmp_path: Path) -> None:
    paths = [tmp_path / f"{k}.pt" for k in range(3)]
    # float16 has steps of 1 at 2048: the sum of the differences must not be rounded one by one.
    for path, value in zip(paths, (2048.0, 2050.0, 2052.0), strict=True):
        torch.save({"w": torch.tensor([value], dtype=torch.float16)}, path)
    found = merge_weights(paths[1:], paths[0], "task_arithmetic", {"scaling": 0.5})
    assert found.tensors["w"].dtype == torch.float16
    assert found.tensors["w"].item() == 2052.0  # 2048 + 3 = 2051, a tie between even neighbours


def test_the_file_says_what_it_was_made_of(files: list[Path], tmp_path: Path) -> None:
    base, *models = files
    found = merge_weights(models, base, "ties", {"density": 0.5})
    output = tmp_path / "out/m.safetensors"
    write_merged(found, output, files)
    assert all(torch.equal(read_tensors(output)[key], found.tensors[key]) for key in found.tensors)
    with safe_open(output, "pt") as stream:
        record = json.loads(stream.metadata()["record"])
    assert record["method"] == "ties"
    assert record["options"]["density"] == 0.5
    assert record["base"] == {"file": "base.pt", "sha256": sha256(base)}
    assert [model["file"] for model in record["models"]] == ["a.pth", "b.ckpt"]
    assert record["from_base"] == ["norm.running_mean", "norm.num_batches_tracked"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.bias": None}, "got no encoder.bias, expected the names and shapes of "),
        ({"head": torch.ones(2)}, "got head, which the base has not, expected"),
        (
            {"encoder.weight": torch.ones(4, 5)},
            "got encoder.weight of shape (4, 5), not (4, 3), expected",
        ),
        (
            {"norm.num_batches_tracked": torch.tensor(1.0)},
            "got norm.num_batches_tracked of torch.float32, not torch.int64, expected",
        ),
        ({f"layer{k}": torch.ones(1) for k in range(8)}, ", and 3 more differences, expected"),
        (
            {"encoder.bias": torch.full((4,), float("nan"))},
            "encoder.bias: got numbers that are not finite, expected finite ones",
        ),
    ],
)
def test_models_that_do_not_fit_the_base_are_refused(
    change: dict[str, Tensor | None], message: str, files: list[Path]
) -> None:
    values = {k: v for k, v in {**state(2), **change}.items() if v is not None}
    torch.save(values, files[2])
    with pytest.raises(CheckpointError) as refused:
        merge_weights(files[1:], files[0], "task_arithmetic")
    assert str(refused.value).startswith(f"{files[2]}: ")
    assert message in str(refused.value)


def test_numbers_that_cannot_be_merged_are_refused(files: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(2, dtype=torch.complex64)}, path)
    with pytest.raises(CheckpointError, match="got complex numbers in w, expected real ones"):
        merge_weights([path, path], path, "task_arithmetic")
    for path in files:
        torch.save({"w": torch.full((2,), 3e38 if path != files[0] else -3e38)}, path)
    with pytest.raises(CheckpointError, match="the merged network: w: got numbers that are not"):
        merge_weights(files[1:], files[0], "task_arithmetic", {"scaling": 5.0})


@pytest.mark.parametrize(
    ("method", "options", "count", "message"),
    [
        ("emr", {}, 2, "got merge method 'emr', expected one of weight_average, task_arithmetic"),
        ("regmean", {}, 2, "which make one network from weights alone"),
        ("tiess", {}, 2, "did you mean 'ties'?"),
        ("ties", {"densty": 0.2}, 2, "did you mean 'density'?"),
        ("ties", {}, 1, "got 1 models to merge, expected at least two"),
    ],
)
def test_methods_and_options_that_cannot_be_are_refused(
    method: str, options: dict[str, float], count: int, message: str, files: list[Path]
) -> None:
    with pytest.raises(ConfigError) as refused:
        merge_weights(files[1 : 1 + count], files[0], method, options)
    assert message in str(refused.value)


def command(files: list[Path], *words: str) -> list[str]:
    base, *models = map(str, files)
    return ["merge-weights", *models, "--base", base, *words]


def test_the_command_writes_the_file_and_says_what_it_did(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.safetensors"
    words = ["--options", "scaling=0.25", "--output", str(output)]
    assert main(command(files, *words)) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("merged 2 models by task_arithmetic (Ilharco et al. 2023")
    assert first.endswith("{'scaling': 0.25}")
    kept = "(norm.running_mean, norm.num_batches_tracked)"
    assert second == f"taken from the base: 2 counters and running statistics {kept}"
    assert third == f"wrote {output}: 4 tensors"
    expected = merge_weights(files[1:], files[0], "task_arithmetic", {"scaling": 0.25}).tensors
    assert torch.equal(read_tensors(output)["encoder.weight"], expected["encoder.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "m.pt"], "output: got m.pt, expected a name that ends with .safetensors"),
        (["--options", "scaling", "--output", "m.safetensors"], "got 'scaling', expected name="),
        (["--options", "scaling=[", "--output", "m.safetensors"], "expected a value in YAML"),
        (["--options", "a=1", "a=2", "--output", "m.safetensors"], "got a twice, expected it once"),
        (["--method", "emr", "--output", "m.safetensors"], "got merge method 'emr'"),
        (["--options", "scale=1", "--output", "m.safetensors"], "did you mean 'scaling'?"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(
    words: list[str],
    message: str,
    files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(command(files, *words)) == 1
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_input_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.safetensors"
    save_file(state(0), path)
    assert main(command([path, path, path], "--output", str(path))) == 1
    assert "which is an input, expected another file" in capsys.readouterr().err
