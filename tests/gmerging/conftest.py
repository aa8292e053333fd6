import os
from pathlib import Path

import pytest

from tests.service.doubles import save_pico_artifact


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine reaches a test."""
    for name in [name for name in os.environ if name.startswith("GMERGING_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def pico_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico_artifact(tmp_path_factory.mktemp("artifacts") / "pico")
