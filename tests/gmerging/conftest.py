import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.doubles import save_pico_artifact


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """No setting of the machine reaches a test, and none of a test the next one."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("GMERGING_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def pico_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico_artifact(tmp_path_factory.mktemp("artifacts") / "pico")
