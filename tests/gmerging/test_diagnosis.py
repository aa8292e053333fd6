"""The checks of an installation: this one is sound, and what is broken is said."""

import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from packaging.requirements import Requirement

from gmerging import diagnosis
from gmerging.diagnosis import (
    CHECKS,
    Finding,
    Found,
    cgroup_bytes,
    cgroup_cpus,
    examine,
    is_complete,
)
from merging.data import checkpoints
from models import released as releases
from models.released import DEFAULT_RELEASE, released


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    with patch.dict(os.environ):
        yield


def values(found: Found) -> dict[str, str]:
    return {name: value for name, value, _ in found}


def problems(found: Found) -> dict[str, str]:
    return {name: problem for name, _, problem in found if problem}


def test_this_installation_is_sound() -> None:
    findings = examine()
    assert [finding for finding in findings if finding.problem] == []
    assert {finding.section for finding in findings} == CHECKS.keys()
    said = {finding.name: finding.value for finding in findings}
    assert said["torch"]
    assert said["load"].endswith("on cpu") or torch.cuda.is_available()
    assert "31 tasks" in said["predict aspirin"]
    assert all("verified" in said[name] for name in released())


def test_a_check_that_breaks_is_a_problem_and_hinders_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken() -> Found:
        raise ImportError("libtorch.so: cannot open shared object file")
        yield

    def sound() -> Found:
        yield "name", "value", ""

    monkeypatch.setattr(diagnosis, "CHECKS", {"torch": broken, "rest": sound})
    assert examine() == [
        Finding(
            "torch", "check", "failed", "ImportError: libtorch.so: cannot open shared object file"
        ),
        Finding("rest", "name", "value"),
    ]


def test_packages_out_of_range_and_missing_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.metadata.version

    def version(name: str) -> str:
        if name == "orjson":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"numba": "0.50.0", "scikit-learn": "0.1"}.get(name) or there(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = problems(diagnosis.packages())
    assert found.keys() == {"numba", "orjson", "scikit-learn"}
    assert found["numba"].startswith("expected numba>=")
    assert "merging" not in values(diagnosis.packages())["complete extras"].split(", ")


def test_an_extra_is_complete_with_everything_in_it() -> None:
    texts = [
        "g-merging[trees]; extra == 'all'",
        "no-such-package; extra == 'trees'",
        "numpy>=1; extra == 'fine'",
        "numpy>=1000; extra == 'newer'",
        "no-such-package; extra == 'here' and sys_platform == 'nowhere'",
    ]
    requirements = [Requirement(text) for text in texts]
    complete = {
        extra: is_complete(requirements, extra)
        for extra in ("all", "trees", "fine", "newer", "here", "empty")
    }
    assert [extra for extra, whole in complete.items() if whole] == ["fine", "here", "empty"]


def test_settings_are_shown_but_no_keys() -> None:
    os.environ["GMERGING_PORT"] = "81"
    os.environ["GMERGING_API_KEYS"] = "[secret]"
    os.environ["GMERGING_API_KEY"] = "another secret"
    found = list(diagnosis.settings())
    assert values(iter(found))["GMERGING_PORT"] == "81"
    assert values(iter(found))["GMERGING_API_KEYS"] == "set (not shown)"
    assert "secret" not in str(found)
    assert problems(iter(found)) == {
        "settings": "got GMERGING_API_KEY, which is no setting, did you mean 'GMERGING_API_KEYS'?"
    }


def test_settings_that_are_none() -> None:
    assert list(diagnosis.settings()) == [("settings", "none set", "")]


def test_a_data_folder_that_is_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.environ["GMERGING_DATA"] = str(tmp_path / "none")
    assert problems(diagnosis.data())
    os.environ["GMERGING_DATA"] = str(tmp_path)
    assert list(diagnosis.data()) == [(str(tmp_path), "present", "")]
    del os.environ["GMERGING_DATA"]
    monkeypatch.chdir(tmp_path)
    assert not problems(diagnosis.data())


def test_altered_and_missing_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(released()["md17-schnet"], tmp_path / "md17-schnet")
    file = tmp_path / "md17-schnet" / "backbone.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    monkeypatch.setattr(releases, "RELEASES", tmp_path)
    found = problems(diagnosis.releases())
    assert found.keys() == {DEFAULT_RELEASE, "md17-schnet"}
    assert "got other contents than the manifest's sha256 says" in found["md17-schnet"]


def test_weights_on_disk_against_their_digests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints.pooch, "os_cache", lambda _: tmp_path / "cache")
    os.environ["GMERGING_DATA"] = str(tmp_path / "data")
    damaged = tmp_path / "weights" / "hu2020" / "gcn_contextpred.pth"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not what was published")
    found = list(diagnosis.weights())
    assert problems(iter(found)).keys() == {"gcn_contextpred"}
    assert all("SHA-256" in values(iter(found))[name] for name in checkpoints.BUNDLED)


def test_limits_of_a_container(tmp_path: Path) -> None:
    assert cgroup_bytes(tmp_path) is cgroup_cpus(tmp_path) is None
    (tmp_path / "memory.max").write_text("2147483648\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert (cgroup_bytes(tmp_path), cgroup_cpus(tmp_path)) == (2**31, 1.5)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_bytes(tmp_path) is cgroup_cpus(tmp_path) is None


def test_limits_of_a_container_by_control_groups_of_version_1(tmp_path: Path) -> None:
    for name, text in {
        "memory/memory.limit_in_bytes": "1073741824",
        "cpu/cpu.cfs_quota_us": "200000",
        "cpu/cpu.cfs_period_us": "100000",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert (cgroup_bytes(tmp_path), cgroup_cpus(tmp_path)) == (2**30, 2.0)
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{2**63 - 4096}\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_bytes(tmp_path) is cgroup_cpus(tmp_path) is None


def test_no_folder_for_compiled_kernels_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from models.compiled import kernels

    class Uncached:
        class stats:  # noqa: N801
            cache_path = None

    monkeypatch.setattr(kernels, "aggregate", Uncached)
    assert "NUMBA_CACHE_DIR" in problems(diagnosis.kernels())["numba cache"]


def test_a_processor_without_proc_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_lines", lambda _: [])
    assert torch.backends.cpu.get_cpu_capability() in values(diagnosis.system())["processor"]
    assert values(diagnosis.memory())["machine"] == "unknown, unknown available"
