"""Requests and responses of the HTTP API: requests are validated, responses documented by them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from models.data.depiction import Theme
from models.data.substructure import MOST_LISTED
from models.drugs import DrugInfo
from models.errors import did_you_mean
from models.experts.combination import (
    ExpertChoice,
    ExpertName,
    ForestInfo,
    check_experts,
    expert_choice,
)
from models.experts.unified import DEFAULT_ROUTING, Routing
from models.families.table import AnyInput
from models.meaning import Counted, LabelMeaning
from models.task import Level, Target
from service.explanation_schemas import AlertOut, AtomsOut, Percentile, TaskDomainOut

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
ETHANOL_GRAPH = {
    "x": [[5, 0], [5, 0], [7, 0]],
    "edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]],
    "edge_attr": [[0, 0], [0, 0], [0, 0], [0, 0]],
}
FEATURE_GRAPH = {
    "x": [[0, 1.5, 0], [1, 0, 0.25], [0, 0, 1]],
    "edge_index": [[0, 1, 1, 2], [1, 0, 2, 1]],
}
WATER = {
    "numbers": [8, 1, 1],
    "positions": [[0, 0, 0.117], [0, 0.757, -0.467], [0, -0.757, -0.467]],
}

# Strict: 6.0, "6" and true are no atom types. Bounded, so that every value fits into a tensor.
_Integer = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]


# Fail fast: a list of a million wrong values is one error and not a million, which took half a
# minute and 3 GB for a body of 4 MB.
_Row = Annotated[list[_Integer], Field(fail_fast=True)]
_Table = Annotated[list[_Row], Field(fail_fast=True)]


def _as_it_came(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a value without converting it.

    Atom types must have been written as integers, so 5.0 must not become 5.
    """
    check(value)
    return value


_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_NumberRow = Annotated[list[_Number], Field(fail_fast=True)]
_Numbers = Annotated[list[_NumberRow], Field(fail_fast=True), WrapValidator(_as_it_came)]
_ModelName = Annotated[str, StringConstraints(max_length=128)]
_TaskName = Annotated[str, StringConstraints(max_length=64)]
_LabelName = Annotated[str, StringConstraints(max_length=300)]
ExplanationName = Literal["routing", "experts", "atoms", "domain", "drugs", "alerts"]
"""Explanations that a request can ask for."""
RowExplanation = Literal["drugs", "alerts"]
"""Explanations that rows of files and lines of streams can have."""
_MOST_UNKNOWN_FIELDS = 10


def _check_experts(value: Any) -> Any:
    """Refuse unknown names with the nearest known one; anything but a list of texts is left to the
    declared type."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        check_experts(value)
    return value


ExpertList = Annotated[
    list[ExpertName], Field(min_length=1, max_length=2), BeforeValidator(_check_experts)
]
"""Experts of a request, by name, each once."""


@dataclass(frozen=True)
class NoText:
    """A value that is not text in a list of molecules; an error of this item only.

    Attributes:
        got: the kind of the value, in terms of JSON.
    """

    got: str


_NO_TEXT = {
    bool: NoText("true or false"),
    int: NoText("a number"),
    float: NoText("a number"),
    list: NoText("a list"),
    type(None): NoText("null"),
}
_OBJECT = NoText("an object")


def no_text(item: Any) -> NoText:
    """Return the kind of a JSON value that is not text."""
    return _NO_TEXT.get(type(item), _OBJECT)


def _text_or_kind(item: Any) -> str | NoText:
    return item if isinstance(item, str) else no_text(item)


def _listed(value: Any) -> Any:
    """Return a single text as a list of one, and replace items that are not text by their kind.

    A million wrong values then cost no more memory than the list that they came in.
    """
    if isinstance(value, list):
        return list(map(_text_or_kind, value))
    return [value] if isinstance(value, str) else value


_TEXTS = {"type": "array", "items": {"type": ["string", "null"]}, "minItems": 1}
_Texts = Annotated[
    list[str | NoText],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [{"type": "string"}, _TEXTS]}),
]


def _exactly_one(fields: dict[str, Any]) -> str:
    """Return the name of the one field that is given.

    Raises:
        ValueError: none or several are given.
    """
    given = [name for name, value in fields.items() if value is not None]
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise ValueError(f"got {got} of {', '.join(fields)}, expected exactly one")
    return given[0]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, data: Any) -> Any:
        """Refuse unknown fields, each with the nearest known name, up to a number of them."""
        unknown = (
            [name for name in data if name not in cls.model_fields]
            if isinstance(data, dict)
            else []
        )
        if len(unknown) > _MOST_UNKNOWN_FIELDS:
            raise ValueError(
                f"got {len(data)} fields, expected some of {', '.join(cls.model_fields)}"
            )
        if unknown:
            raise ValidationError.from_exception_data(
                cls.__name__,
                [_unknown_field(name, data[name], cls.model_fields) for name in unknown],
            )
        return data


def _unknown_field(name: str, value: object, known: Iterable[str]) -> InitErrorDetails:
    sentence = (
        f"got an unknown field, expected some of {', '.join(known)}{did_you_mean(name, known)}"
    )
    # Braces would be read as names of a context.
    kind = PydanticCustomError("extra_forbidden", "{sentence}", {"sentence": sentence})
    return InitErrorDetails(type=kind, loc=(name,), input=value)


class GraphIn(_Request):
    """A graph. Which fields it has is a matter of the model (`GET /model`, `input`); edges are
    given in both directions, self-loops are not given.

    - Of kind `molecule`, in the vocabulary of Hu et al. 2020: x, edge_index and edge_attr.
    - Of kind `dmpnn`: x, edge_index and edge_attr, with chemprop's features of atoms and bonds.
    - Of kind `graph`: x and edge_index, and pairs where a task answers for pairs of nodes.
    - Of kind `atoms`: numbers and positions, and in a crystal cell. Neighbours are found by the
      service.
    """

    x: _Numbers | None = Field(
        None,
        description=(
            "one row per node, as long as the task's `num_features` says (`GET /tasks`); of a"
            " molecule, one row of two integers per heavy atom: [atomic number - 1, chirality (0"
            " none, 1 clockwise, 2 counter-clockwise)]"
        ),
    )
    edge_index: _Table | None = Field(
        None, description="two rows: source node and target node of every edge"
    )
    edge_attr: _Numbers | None = Field(
        None,
        description=(
            "one row per edge: [bond type (0 single, 1 double, 2 triple, 3 aromatic), direction (0"
            " none, 1 up-right, 2 down-right)]; of kind `dmpnn`: the features of the bond"
        ),
    )
    pairs: _Table | None = Field(
        None,
        description=(
            "two nodes for every pair that a task at level `pair` is to answer (`GET /tasks`)"
        ),
        examples=[[[0, 1], [0, 2]]],
    )
    numbers: _Row | None = Field(
        None, description="atomic numbers, of the task's `elements` (`GET /tasks`)"
    )
    positions: _Numbers | None = Field(None, description="one row per atom: x, y and z in Angstrom")
    cell: _Numbers | None = Field(
        None,
        description=(
            "of a crystal, three rows: the lattice vectors in Angstrom; it is periodic in all three"
        ),
    )

    def given(self) -> dict[str, Any]:
        """The fields that are given, by name, in the order of their declaration."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if value is not None}


class TextRequest(_Request):
    """Molecules as text."""

    smiles: _Texts | None = Field(
        None, description="one or a list; CXSMILES, InChI and mol blocks are known by their look"
    )
    inchi: _Texts | None = Field(
        None, description="one InChI or a list of them, in place of `smiles`"
    )
    mol_block: _Texts | None = Field(
        None, description="one mol block (V2000 or V3000) or a list of them, in place of `smiles`"
    )


_AtomNumbers = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, lt=2**31)]], Field(max_length=5000, fail_fast=True)
]


class PredictRequest(TextRequest):
    """Molecules as text, or graphs, with the tasks to predict."""

    graphs: Annotated[list[GraphIn], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="graphs, in place of `smiles`"
    )
    without_atoms: Annotated[list[_AtomNumbers], Field(fail_fast=True)] | None = Field(
        None,
        description=(
            "for every molecule given as text the atoms that are left out, from 0 in the order of"
            " the answer's `smiles` for the whole molecule. Hydrogen atoms take their bonds; the"
            " answer, and its `smiles`, are of what is left"
        ),
        examples=[[[10, 11, 12]]],
    )
    tasks: Annotated[list[_TaskName], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="tasks to answer, by name (see `GET /tasks`); all of them if left out"
    )
    model: _ModelName | None = Field(
        None, description="name of a model (see `GET /model`); the default one if left out"
    )
    routing: Routing = Field(
        DEFAULT_ROUTING,
        description=(
            "`own` uses each task's own expert alone; `moe` mixes the experts of all tasks per"
            " molecule; `merged` averages their parameters"
        ),
    )
    experts: ExpertList | None = Field(
        None,
        description=(
            "which experts answer: `own`, the network, `forest`, trees on fingerprints, or both,"
            " whose mean is answered; each task's default (see `GET /tasks`) if left out"
        ),
    )
    explain: Annotated[list[ExplanationName], Field(fail_fast=True)] = Field(
        [],
        description=(
            "`routing` adds the weight of every adapter expert at every site; `experts` what"
            " network and forest answer, and their weights; `atoms` what every atom contributes to"
            " at most 20 labels, which `explain_labels` names; `domain` the nearest training"
            " molecules and what was measured on molecules as near as that; `drugs` what percentage"
            " of approved drugs has a lower answer; `alerts` the substructures that catalogues warn"
            " of"
        ),
    )
    explain_labels: Annotated[list[_LabelName], Field(min_length=1, fail_fast=True)] | None = Field(
        None,
        description=(
            "labels that explanations by label are about, as `task.label`; all labels of the asked"
            " tasks if left out"
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = ("smiles", "inchi", "mol_block", "graphs")
        given = _exactly_one({name: getattr(self, name) for name in names})
        if self.without_atoms is not None:
            count = len(getattr(self, given))
            if given == "graphs":
                raise ValueError("without_atoms: got graphs, expected molecules as text")
            if len(self.without_atoms) != count:
                got = f"without_atoms: got {len(self.without_atoms)} for {count} molecules"
                raise ValueError(f"{got}, expected one list each")
        if self.tasks is not None and len(set(self.tasks)) != len(self.tasks):
            raise ValueError("got a task twice in tasks, expected each once")
        return self

    @property
    def expert_choice(self) -> ExpertChoice | None:
        """The experts that answer; None for the default ones."""
        return None if self.experts is None else expert_choice(self.experts)


_Pixels = Annotated[int, Field(strict=True, ge=20, le=2000)]
_Weights = Annotated[list[_Number], Field(max_length=5000, fail_fast=True)]


class DepictRequest(TextRequest):
    """Molecules as text, to be drawn."""

    width: _Pixels = Field(180, description="pixels")
    height: _Pixels = Field(130, description="pixels")
    theme: Theme = Field("light", description="`dark` draws for a dark page")
    weights: Annotated[list[_Weights | None], Field(fail_fast=True)] | None = Field(
        None,
        description=(
            "for every molecule null, or a number per heavy atom in the order of the answer's"
            " `smiles`: positive atoms are drawn on vermilion, negative ones on blue"
        ),
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = ("smiles", "inchi", "mol_block")
        given = _exactly_one({name: getattr(self, name) for name in names})
        count = len(getattr(self, given))
        if self.weights is not None and len(self.weights) != count:
            raise ValueError(
                f"weights: got {len(self.weights)} for {count} molecules, expected one list each"
            )
        return self


class MatchRequest(TextRequest):
    """Molecules as text, to be searched for a substructure."""

    smarts: Annotated[str, StringConstraints(min_length=1, max_length=1000)] = Field(
        description="the substructure", examples=["c1ccccc1"]
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = ("smiles", "inchi", "mol_block")
        _exactly_one({name: getattr(self, name) for name in names})
        return self


class StreamLine(_Request):
    """One line of a stream: an object with these fields, or a molecule as a JSON string."""

    smiles: str | None = Field(
        None, description="the molecule; CXSMILES, InChI and mol blocks are known by their look"
    )
    inchi: str | None = Field(None, description="an InChI, in place of `smiles`")
    mol_block: str | None = Field(
        None, description="a mol block (V2000 or V3000), in place of `smiles`"
    )
    graph: GraphIn | None = Field(None, description="a graph, in place of `smiles`")
    id: Annotated[str, StringConstraints(max_length=256)] | _Integer | None = Field(
        None, description="comes back with the answer"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = ("smiles", "inchi", "mol_block", "graph")
        _exactly_one({name: getattr(self, name) for name in names})
        return self


PREDICT_EXAMPLES: dict[str, Any] = {
    "one": {"summary": "One molecule, every task", "value": {"smiles": ASPIRIN}},
    "several": {
        "summary": "Several molecules, two tasks",
        "value": {"smiles": ["CCO", ASPIRIN, "not a molecule"], "tasks": ["clintox", "tox21"]},
    },
    "explained": {
        "summary": "With routing weights",
        "value": {"smiles": [ASPIRIN], "tasks": ["clintox"], "explain": ["routing"]},
    },
    "atoms_of_label": {
        "summary": "With what every atom contributes to a label",
        "value": {
            "smiles": [ASPIRIN],
            "tasks": ["clintox"],
            "explain": ["atoms"],
            "explain_labels": ["clintox.CT_TOX"],
        },
    },
    "without_a_group": {
        "summary": "Without its carboxylic acid: what is left, with hydrogen in its place",
        "value": {"smiles": [ASPIRIN], "tasks": ["clintox"], "without_atoms": [[10, 11, 12]]},
    },
    "graph": {
        "summary": "A graph: ethanol",
        "value": {"graphs": [ETHANOL_GRAPH], "tasks": ["clintox"]},
    },
    "features": {
        "summary": "For a model of graphs: three features a node",
        "value": {"graphs": [FEATURE_GRAPH]},
    },
    "atoms": {"summary": "For a force field: water", "value": {"graphs": [WATER]}},
}


class ModelName(BaseModel):
    """The artifact that gave an answer."""

    name: str = Field(examples=["admet"])
    version: str = Field(examples=["1.0.0"])
    digest: str = Field(description="sha256 of the artifact's manifest, and so of every weight")


class ItemError(BaseModel):
    """Reason why one molecule or graph could not be answered."""

    code: str = Field(description="stable name", examples=["smiles_syntax"])
    message: str


class NodesOut(BaseModel):
    """Answer of a task on nodes for one graph."""

    model_config = ConfigDict(extra="forbid")

    nodes: list[dict[str, float]] = Field(
        description="for each node, in the order of `x`, a number per label",
        examples=[[{"class_0": 0.9, "class_1": 0.1}]],
    )


class PairsOut(BaseModel):
    """Answer of a task on pairs of nodes for one graph."""

    model_config = ConfigDict(extra="forbid")

    pairs: list[dict[str, float]] = Field(
        description="for each pair, in the order of the request, the label's probability",
        examples=[[{"linked": 0.97}, {"linked": 0.12}]],
    )


class EnergyAndForcesOut(BaseModel):
    """Answer of a force field for one structure."""

    model_config = ConfigDict(extra="forbid")

    energy: float = Field(description="in eV", examples=[-4209.123456])
    forces: list[Annotated[list[float], Field(min_length=3, max_length=3)]] = Field(
        description="for each atom, minus the gradient of the energy, in eV / Angstrom",
        examples=[[[0.1, 0.0, -0.2]]],
    )


class ExpertOut(BaseModel):
    """What an expert answers, and its weight in the answer."""

    weight: float = Field(description="the weights of a task sum to 1", examples=[0.5])
    values: dict[str, float] | NodesOut | PairsOut | EnergyAndForcesOut = Field(
        description="as of the answer", examples=[{"p_np": 0.93}]
    )


class PredictionItem(BaseModel):
    """The answer for one molecule or graph: either `tasks` or `error`."""

    model_config = ConfigDict(extra="forbid")

    index: int = Field(ge=0, description="position in the request")
    smiles: str | None = Field(
        description=(
            "canonical SMILES of the molecule as it was read, without atom maps, isotopes "
            "and hydrogen atoms; null for a graph and for a molecule that could not be read"
        ),
        examples=["CCO"],
    )
    tasks: dict[str, dict[str, float] | NodesOut | PairsOut | EnergyAndForcesOut] | None = Field(
        None,
        description=(
            "per task, a number per label: a probability, or of a task for regression the value; of"
            " a task on nodes or pairs of nodes these for every one, of a force field energy and"
            " forces (`GET /tasks`, `level` and `target`)"
        ),
        examples=[{"bbb_martins": {"penetrates": 0.91}, "bace": {"Class": 0.27}}],
    )
    units: dict[str, dict[str, str]] | None = Field(
        None,
        description="per task for regression and label the unit of the value; present where an"
        " asked task has units",
        examples=[{"solubility": {"logS": "log mol/L"}}],
    )
    routing: dict[str, dict[str, dict[str, float]]] | None = Field(
        None,
        description=(
            "if asked: per task and site, the weight of every expert; the weights of a site sum to"
            " 1. A force field has no sites"
        ),
    )
    experts: dict[str, dict[ExpertName, ExpertOut]] | None = Field(
        None, description="if asked: per task, what every expert answers that takes part"
    )
    atoms: dict[str, dict[str, AtomsOut]] | None = Field(
        None, description="if asked: per task and label, what every atom contributes"
    )
    domain: dict[str, TaskDomainOut] | None = Field(
        None,
        description=(
            "if asked: per task that has one, how far to trust the answers: the nearest training"
            " molecules, and the error that was measured on molecules as near as that"
        ),
    )
    drugs: dict[str, dict[str, Percentile]] | None = Field(
        None,
        description=(
            "if asked: per task and label, what percentage of approved drugs has a lower answer,"
            " half of equal ones counted (`GET /model`, `drugs`). Many of them are among the"
            " training molecules"
        ),
        examples=[{"bbb_martins": {"penetrates": 62.5}}],
    )
    alerts: list[AlertOut] | None = Field(
        None, description="if asked: substructures that catalogues warn of, none if empty"
    )
    explanation_errors: dict[ExplanationName, ItemError] | None = Field(
        None, description="if asked: why an explanation is absent, by its name"
    )
    without_forest: list[str] | None = Field(
        None,
        description=(
            "tasks that the network answered alone, though a forest would have answered too: a"
            " graph has no fingerprint"
        ),
    )
    error: ItemError | None = Field(
        None, description="present if and only if the molecule or graph could not be answered"
    )


class PredictResponse(BaseModel):
    """Answers in the order of the request."""

    model: ModelName
    predictions: list[PredictionItem]


class DepictedItem(BaseModel):
    """The picture of one molecule: either `svg` or `error`."""

    index: int = Field(ge=0, description="position in the request")
    smiles: str | None = Field(
        description="canonical SMILES, as in an answer of `/predict`; null if it was not read"
    )
    svg: str | None = Field(None, description="a document of type image/svg+xml, in colour")
    error: ItemError | None = None


class DepictResponse(BaseModel):
    """Pictures in the order of the request."""

    pictures: list[DepictedItem]


class MatchedItem(BaseModel):
    """Whether one molecule has the substructure, or `error`."""

    index: int = Field(ge=0, description="position in the request")
    smiles: str | None = Field(
        description="canonical SMILES, as in an answer of `/predict`; null if it was not read"
    )
    matches: bool | None = None
    atoms: list[list[int]] | None = Field(
        None,
        description=(
            f"the first {MOST_LISTED} occurrences: atoms from 0 in the order of `smiles`, listed in"
            " the order of the SMARTS"
        ),
    )
    error: ItemError | None = None


class MatchResponse(BaseModel):
    """Results in the order of the request."""

    matches: list[MatchedItem]


class TaskExperts(ForestInfo):
    """Which experts answer a task where a request names none, and what its forest was made of."""


class LabelOut(LabelMeaning):
    """What a label means, how many molecules have it, and how well it is predicted."""

    base_rate: float | None = Field(
        None, description="of a class label, the share of 1 among the molecules that have it"
    )


class MeaningOut(BaseModel):
    """What the labels of a task mean."""

    source: str = Field(description="where the data are from")
    terms: str = Field(description="the terms under which the data may be used")
    counted: Counted = Field(description="what has the labels")
    answered_by: ExpertChoice = Field(
        description="the experts whose answers the scores are of: those that answer by default"
    )
    labels: dict[str, LabelOut] = Field(
        description=(
            "by label. `direction`: whether a high answer is good for a substance that is to be"
            " used; `one`: of a class label, what 1 means; `scores`: on the test subset, with 95 %"
            " intervals (percentile bootstrap over test molecules, 1,000 draws), empty where it"
            " cannot be measured; `calibration_error`: expected calibration error, 15 bins"
        )
    )


class TaskOut(BaseModel):
    """One task."""

    name: str = Field(examples=["bbb_martins"])
    description: str
    labels: tuple[str, ...] = Field(examples=[["penetrates"]])
    level: Level = Field(
        description="whether the graph has an answer, each of its nodes, or each of the pairs sent"
    )
    target: Target = Field(
        description=(
            "`multilabel`: a probability for each label by itself; `multiclass`: probabilities that"
            " sum to 1; `regression`: values, in the `units`; `energy_and_forces`: eV and eV /"
            " Angstrom"
        )
    )
    units: dict[str, str] | None = Field(
        None,
        description="of a regression, by label the unit of its numbers, where it is known",
        examples=[{"logS": "log mol/L"}],
    )
    experts: TaskExperts | None = Field(
        None, description="where a forest answers beside the network: which experts answer"
    )
    difference: float | None = Field(
        None,
        description=(
            "of a model that was imported: how far predictions are from those of the model that"
            " was brought, in standard deviations of the latter, on unlabelled molecules"
        ),
    )
    num_features: int | None = Field(
        None, description="where the model takes graphs: how long a row of `x` is"
    )
    elements: tuple[int, ...] | None = Field(
        None, description="where it takes atoms: the atomic numbers that the task knows"
    )
    stream: str | None = Field(
        None,
        description=(
            "the stream that the task shares with others: together they cost one pass; null where"
            " it has its own"
        ),
    )
    explanations: tuple[ExplanationName, ...] = Field(
        description="what `explain` can ask of the task's answers", examples=[["experts", "drugs"]]
    )
    meaning: MeaningOut | None = Field(
        None, description="what the labels mean; null where the artifact does not say"
    )


class TasksResponse(BaseModel):
    """The tasks of the model, in its order."""

    tasks: list[TaskOut]


class ModelResponse(ModelName):
    """Description of a model by its artifact, and the limits of this service."""

    created: str
    format_version: int
    device: str
    input: AnyInput = Field(description="what the model takes")
    tasks: list[str]
    sites: list[str] = Field(description="where experts are mixed")
    backbone: dict[str, Any]
    rank: int = Field(description="width of an adapter")
    router: dict[str, Any]
    drugs: DrugInfo | None = Field(
        None, description="the drugs of `explain: drugs`; null where the artifact has none"
    )
    provenance: dict[str, Any]
    metrics: dict[str, Any]
    limits: dict[str, int]
    models: list[str] = Field(description="names of all models that answer")


class ModelAction(_Request):
    """Action of an admin on a model."""

    action: Literal["load", "reload", "unload"] = Field(
        description="`load` takes a new model or a new artifact of one, `reload` only the latter"
    )


class AdminModel(BaseModel):
    """A model and the artifact that it answers from."""

    model: str = Field(description="the name by which requests ask for it")
    loaded: bool
    default: bool = Field(description="whether it answers requests that name no model")
    name: str | None = Field(None, description="of its artifact")
    version: str | None = None
    digest: str | None = None


class AdminModelsResponse(BaseModel):
    """All models that are or could be loaded."""

    models: list[AdminModel]


class JobOut(BaseModel):
    """State and progress of a job, a file that is being answered."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    created: datetime
    finished: datetime | None
    total: int | None = Field(description="records in the file; null until they are counted")
    answered: int = Field(description="records answered so far")
    failed: int = Field(description="how many of them could not be read")
    progress: float = Field(ge=0, le=1)
    digest: str | None = Field(description="of the artifact that answers")
    encoding: str | None = Field(description="of the file: utf-8, utf-16 or cp1252")
    smiles_column: str | None = Field(description="the column that is read; null for an SDF")
    error: str | None = Field(description="why it failed")


class JobsResponse(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobOut]


class HealthResponse(BaseModel):
    """State of the process."""

    status: Literal["alive", "ready"]


class FieldProblem(BaseModel):
    """One invalid field of a request."""

    pointer: str = Field(
        description="JSON pointer to it; of a parameter, where it is and its name",
        examples=["#/routing"],
    )
    detail: str


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str
    code: str = Field(description="stable name of the problem", examples=["unknown_task"])
    errors: list[FieldProblem] | None = Field(
        None, description="with code invalid_request: every field that is wrong"
    )
    limit: dict[str, int] | None = Field(
        None, description="the limit that was passed, by the name of its setting"
    )
