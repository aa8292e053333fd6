"""The manifest of an artifact (`manifest.json`): its model, tasks, provenance and checksums."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.data.schema import InputSchema, MoleculeInput
from models.data.smiles import READING_RULE
from models.domain.task_domain import DomainInfo
from models.drugs import DrugInfo
from models.experts.combination import FOREST_TARGETS, ForestInfo
from models.experts.router import RouterConfig
from models.families.base import ModelFamily
from models.families.table import FAMILIES, AnyInput, AnyShape, check_target
from models.names import Name, check_distinct
from models.networks.base import NetworkShape
from models.task import TaskInfo

FORMAT_VERSION = 1
STREAMS_VERSION = 2
"""Format version of artifacts with shared streams, which versions before them refuse by it."""


WITHOUT_TRAINING = ("meanings", "domains", "drugs")
"""Records of the provenance about changes that leave all models as they are; `weights_of` is the
digest of the artifact that these are of."""


class StreamInfo(BaseModel):
    """Description of a shared stream; travels in the artifact's manifest.

    Attributes:
        tasks: names of the tasks that read from it.
        rank: of its node adapters; 0 if there are none.
        graph_rank: of the graph adapters of its tasks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: tuple[Name, ...] = Field(min_length=1)
    rank: int = Field(default=0, ge=0)
    graph_rank: int = Field(ge=1)


class Manifest(BaseModel):
    """Describes the model of an artifact and where it came from.

    Attributes:
        format_version: version of the file format: `FORMAT_VERSION`, or `STREAMS_VERSION` with
            `streams`.
        name, version: of the model.
        created: time in UTC, ISO 8601.
        input: schema of the model's inputs.
        backbone: kind and sizes of the network; `kind` selects the family.
        rank: of the adapters of tasks with a stream of their own; 0 if there are none.
        router: options of the router.
        tasks: by name, in the order of the experts.
        streams: streams that tasks share, by name; a task in none of them has its own.
        nearest: by task, the other tasks with the nearest experts, nearest first
            (`models.screening.nearest_experts`). Empty if they were not computed.
        forests: by task, the forest that answers beside the network.
        domains: by task, its applicability domain: the fingerprints of its training molecules.
        drugs: the drugs with whose answers other ones can be compared, where there is a table.
        provenance: configuration, seed, library versions, checksums of the training data.
        metrics: scores measured when the artifact was made.
        files: sha256 of every other file, by path in the folder.

    Empty `streams`, `forests`, `domains` and `drugs` are left out of the file, so that versions
    without these fields can read it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    name: Name
    version: str
    created: str
    input: AnyInput = MoleculeInput()
    backbone: AnyShape
    rank: int = Field(ge=0)
    router: RouterConfig
    tasks: dict[Name, TaskInfo] = Field(min_length=1)
    streams: dict[Name, StreamInfo] = Field({}, exclude_if=lambda streams: not streams)
    nearest: dict[str, tuple[str, ...]] = {}
    forests: dict[str, ForestInfo] = Field({}, exclude_if=lambda forests: not forests)
    domains: dict[str, DomainInfo] = Field({}, exclude_if=lambda domains: not domains)
    drugs: DrugInfo | None = Field(None, exclude_if=lambda drugs: drugs is None)
    provenance: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        check_distinct(self.tasks)
        return self

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if not isinstance(self.input, self.family.schema):
            raise ValueError(
                f"input: got kind {self.input.kind!r} for a backbone of kind"
                f" {self.backbone.kind!r}, which takes something else"
            )
        self.input.check_tasks(self.tasks)
        return self

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        for task, info in self.tasks.items():
            check_target(self.backbone.kind, task, info.target)
        return self

    @model_validator(mode="after")
    def _check_streams(self) -> Self:
        expected = format_version(self.streams)
        if self.format_version != expected:
            kind = "with" if self.streams else "without"
            raise ValueError(
                f"format_version: got {self.format_version} {kind} `streams`, expected {expected}"
            )
        if self.streams and self.family.streams is None:
            raise ValueError(f"streams: got some for a backbone of kind {self.backbone.kind!r}")
        check_distinct([*self.tasks, *self.streams])
        if taken := sorted(self.tasks.keys() & self.streams.keys()):
            raise ValueError(f"streams: got name {taken[0]!a}, expected one that no task has")
        members = [task for stream in self.streams.values() for task in stream.tasks]
        if unknown := [task for task in members if task not in self.tasks]:
            raise ValueError(f"streams: got task {unknown[0]!a}, expected tasks of the manifest")
        if twice := [task for task, count in Counter(members).items() if count > 1]:
            raise ValueError(f"streams: got task {twice[0]!a} twice, expected it in one stream")
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        on_pairs = {task for task, info in self.tasks.items() if info.level == "pair"}
        if on_pairs != set(self.input.tasks_on_pairs):
            got = f"got tasks {sorted(on_pairs)} at level 'pair'"
            takes = f"an input of kind {self.input.kind!r} with pairs for"
            raise ValueError(f"{got}, expected {takes} {sorted(self.input.tasks_on_pairs)}")
        return self

    @model_validator(mode="after")
    def _check_nearest(self) -> Self:
        if self.nearest and self.nearest.keys() != self.tasks.keys():
            raise ValueError(
                f"nearest: got entries for {list(self.nearest)!a}, expected one for each task, or"
                " none at all"
            )
        for task, others in self.nearest.items():
            if len({task, *others}) <= len(others) or not self.tasks.keys() >= set(others):
                raise ValueError(
                    f"nearest: got {others!a} for {task}, expected other tasks of the manifest,"
                    " each once"
                )
        return self

    @model_validator(mode="after")
    def _check_forests(self) -> Self:
        if not self.forests:
            return self
        if not self.input.has_fingerprint:
            raise ValueError("forests: got some, but input states no rule for fingerprints")
        for task in self.forests:
            info = self.tasks.get(task)
            if info is None:
                raise ValueError(f"forests: got {task!a}, expected tasks of the manifest")
            if info.level != "graph" or info.target not in FOREST_TARGETS:
                got = f"forests.{task}: got a task of target {info.target!r}, level {info.level!r}"
                expected = f"expected {' or '.join(FOREST_TARGETS)} at level 'graph'"
                raise ValueError(f"{got}, {expected}")
        return self

    @model_validator(mode="after")
    def _check_domains(self) -> Self:
        if self.domains and self.family.read_texts is None:
            raise ValueError(f"domains: got some, but {self.backbone.kind!r} reads no molecules")
        for task in self.domains:
            if task not in self.tasks:
                raise ValueError(f"domains: got {task!a}, expected tasks of the manifest")
        return self

    @model_validator(mode="after")
    def _check_drugs(self) -> Self:
        for task, experts in (self.drugs.experts if self.drugs else {}).items():
            if task not in self.tasks:
                raise ValueError(f"drugs: got {task!a}, expected tasks of the manifest")
            if self.tasks[task].level != "graph" or self.family.read_texts is None:
                raise ValueError(f"drugs: got {task!a}, expected tasks on molecules")
            default = self.forests[task].default if task in self.forests else "own"
            if experts != default:
                got = f"drugs.{task}: got answers of {experts!r}"
                raise ValueError(f"{got}, expected those of the default experts, {default!r}")
        return self

    @property
    def family(self) -> ModelFamily:
        """Family of the model, selected by `backbone.kind`."""
        return FAMILIES[self.backbone.kind]

    def weights_digest(self, digest: str) -> str:
        """Return the digest of the artifact that the tensors of the models are of: that of the one
        whose labels were described, or to which domains or answers for drugs were added (`gmerging
        describe-labels`, `add-domain`, `add-drugs`), or else its own.

        Args:
            digest: of this artifact.
        """
        records = (self.provenance.get(name, {}) for name in WITHOUT_TRAINING)
        return next((record["weights_of"] for record in records if "weights_of" in record), digest)

    @property
    def stream_of(self) -> dict[str, str]:
        """Name of the shared stream by task, for tasks that read from one."""
        return {task: name for name, stream in self.streams.items() for task in stream.tasks}


def format_version(streams: Mapping[str, StreamInfo]) -> int:
    """Return the format version of an artifact with these shared streams."""
    return STREAMS_VERSION if streams else FORMAT_VERSION


def make_manifest(
    name: str,
    version: str,
    backbone: NetworkShape,
    rank: int,
    router: RouterConfig,
    tasks: Mapping[str, TaskInfo],
    input: InputSchema | None = None,  # noqa: A002 - the field's name
    provenance: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    streams: Mapping[str, StreamInfo] | None = None,
) -> Manifest:
    """Create a manifest in the current format with the current time.

    Arguments are fields of `Manifest`; `input` defaults to molecules read by the current rule.
    Checksums are added by `save_artifact`.
    """
    return Manifest(
        format_version=format_version(streams or {}),
        name=name,
        version=version,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input=input or MoleculeInput(reading_rule=READING_RULE),
        backbone=backbone,
        rank=rank,
        router=router,
        tasks=dict(tasks),
        streams=dict(streams or {}),
        provenance=provenance or {},
        metrics=metrics or {},
    )
