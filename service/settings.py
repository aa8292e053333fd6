"""Settings of the service, read from the environment once, at start."""

from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import models
from models.device import DeviceChoice
from models.errors import ConfigError

PREFIX = "GMERGING_"
RELEASED_ARTIFACT = Path(models.__file__).parent / "releases" / "moleculenet-gcn"


class Settings(BaseSettings):
    """Every setting is the environment variable `GMERGING_<NAME>`.

    The defaults of the size limits hold all of MoleculeNet: its largest molecule has 492 atoms and its longest SMILES 1340 characters.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    # Loopback, because there is no authentication: to be reachable from other machines is a decision. The container image takes it (0.0.0.0).
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    artifact: Path = Field(RELEASED_ARTIFACT, description="folder of the artifact to answer from")
    device: DeviceChoice = Field("auto", description="auto takes a GPU where there is one")
    # More threads help one large request on idle cores and hurt on busy ones (measured: 1.7 to 2.7 times slower with two on two busy cores).
    threads: int = Field(1, ge=1, le=1024, description="torch threads of one model pass")
    max_molecules: int = Field(1000, ge=1, description="molecules in one request")
    max_atoms: int = Field(500, ge=1, description="heavy atoms in one molecule; a graph may have twice as many bonds")
    # RDKit reads long chains in quadratic time: 2000 characters cost up to 60 ms.
    max_smiles_length: int = Field(2000, ge=1, description="characters in one SMILES")
    max_body_bytes: int = Field(4 * 1024**2, ge=1024, description="bytes in one request")
    # On a CPU throughput is flat from 2500 to 9000 and falls beyond (caches), and a pass delays whoever comes next; a GPU wants far more.
    max_batch_cost: int = Field(4096, ge=1, description="atoms times tasks in one model pass")
    max_pending_cost: int = Field(500_000, ge=1, description="atoms (characters, before it is parsed) times tasks that may wait; more is refused")
    shutdown_seconds: int = Field(30, ge=1, le=3600, description="time to finish what is in flight when told to stop")

    @model_validator(mode="after")
    def _check_costs(self) -> Self:
        if self.max_pending_cost < self.max_batch_cost:
            raise ValueError(
                f"got {PREFIX}MAX_PENDING_COST {self.max_pending_cost}, expected at least {PREFIX}MAX_BATCH_COST, {self.max_batch_cost}: "
                "a queue that holds less than one pass starves the model"
            )
        return self


def load_settings() -> Settings:
    """Settings from the environment.

    Raises:
        ConfigError: names every variable that is wrong, with what it holds.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(item["loc"], item["msg"], item["input"]) for item in error.errors())) from None


def _describe(location: tuple[int | str, ...], message: str, value: object) -> str:
    if not location:
        return message.removeprefix("Value error, ")
    return f"{PREFIX}{str(location[0]).upper()}: got {value!r}: {message}"
