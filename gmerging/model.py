"""Predictions in Python: `gmerging.load("moleculenet-gcn").predict(["CCO"])`.

Molecules are read and predicted in this process: no processes are started, and no time limit is set
for reading a molecule. Rows, numbers and errors are those of the service.
"""

import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from gmerging.explanations import ExplainedAnswers
from models.device import DeviceChoice
from models.errors import InvalidInputError, did_you_mean
from models.experts.combination import ExpertChoice, expert_choice
from models.experts.unified import DEFAULT_ROUTING, Routing
from models.extras import optional_package
from models.released import find_artifact, released
from models.task import TaskInfo
from service.core.answer import Answer, Result
from service.core.artifact_engine import load_engine
from service.core.engine import Engine, PredictionQuery
from service.core.explaining import NOTHING, SHOWN, Explained
from service.core.explanations.atoms import explain_atoms
from service.core.local import predict
from service.core.reading import ItemFailure, Source
from service.formats.answers import number_columns, number_table
from service.schemas import ExplanationName, no_text
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    import pandas as pd

_GROUP_SIZE = 256


def models() -> tuple[str, ...]:
    """Return the names of the models that come with the package, for `load`.

    Examples:
        >>> import gmerging
        >>> "moleculenet-gcn" in gmerging.models()
        True
    """
    return tuple(released())


def load(
    model: str | Path | None = None, *, device: DeviceChoice = "auto", threads: int = 1
) -> "Model":
    """Load a model.

    Args:
        model: name of a released model (`models()`), or an artifact's folder. None: the default
            model of the service.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        threads: threads that torch uses from now on in this process.

    Raises:
        ArtifactError: there is no such model, or it cannot be loaded.
        ConfigError: `cuda` without a GPU, or an environment variable `GMERGING_...` is wrong.
        InvalidInputError: `threads` is less than 1.

    Examples:
        >>> import gmerging
        >>> model = gmerging.load("moleculenet-gcn", device="cpu")
        >>> model.name, len(model.tasks)
        ('moleculenet-gcn', 8)
    """
    if threads < 1:
        raise InvalidInputError(f"got {threads} threads, expected at least 1")
    settings = load_settings().model_copy(update={"device": device, "threads": threads})
    folder = settings.artifact if model is None else find_artifact(model)
    return Model(load_engine(folder, settings), settings)


class Model:
    """A model that predicts for molecules; `load` makes it. Threads may share it."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._info = engine.info
        self._alone = threading.Lock()  # an engine runs in one thread at a time

    def __repr__(self) -> str:
        labels = sum(map(len, self._info.labels.values()))
        counts = f"tasks={len(self.tasks)}, labels={labels}"
        return f"Model({self.name!r}, version={self.version!r}, {counts})"

    @property
    def name(self) -> str:
        """Name of the artifact."""
        return self._info.name

    @property
    def version(self) -> str:
        """Version of the artifact."""
        return self._info.version

    @property
    def digest(self) -> str:
        """SHA-256 of the artifact's manifest, which names all of its files by theirs."""
        return self._info.digest

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """Descriptions of the tasks by name: labels, units, description.

        Examples:
            >>> import gmerging
            >>> model = gmerging.load("moleculenet-gcn", device="cpu")
            >>> model.tasks["clintox"].labels
            ('FDA_APPROVED', 'CT_TOX')
        """
        return dict(self._info.task_infos)

    def predict(
        self,
        smiles: str | Iterable[Any],
        tasks: str | Sequence[str] | None = None,
        *,
        routing: Routing = DEFAULT_ROUTING,
        experts: Sequence[str] | None = None,
    ) -> "pd.DataFrame":
        """Predict for molecules.

        Args:
            smiles: one molecule, or a list, a pandas Series or another iterable of molecules, as
                text: SMILES, CXSMILES, InChI or mol blocks.
            tasks: names of tasks, or one; None for all.
            routing: `own`, `moe` or `merged`, as of `/predict`.
            experts: `["own"]`, `["forest"]` or both, as of `/predict`; None for the default ones of
                every task.

        Returns:
            A row for every molecule, in order, with the index of the Series, else 0, 1, ...; a
            column of float64 for every label, called `task.label` or `task.label [unit]`, in the
            model's order; and the column `error`. A molecule that cannot be read has its error
            there (`code: reason`), and NaN in the other columns; else `error` is None.

        Raises:
            GMergingError: a task, the routing or an expert is none of the model's, or the model
                takes no molecules as text.
            MissingPackageError: pandas is not installed.

        Examples:
            >>> import gmerging
            >>> model = gmerging.load("moleculenet-gcn", device="cpu")
            >>> found = model.predict(["CCO", "C1"], tasks=["bbbp", "clintox"])
            >>> list(found.columns)
            ['clintox.FDA_APPROVED', 'clintox.CT_TOX', 'bbbp.p_np', 'error']
            >>> bool(0 < found["bbbp.p_np"][0] < 1)
            True
            >>> found["error"][1].split(":")[0]
            'smiles_syntax'
        """
        pandas = _pandas()
        query = self._query(tasks, routing, experts)
        molecules, index = _listed(smiles, pandas)
        columns = number_columns(self._info, query.tasks)
        table = np.full((len(molecules), len(columns)), np.nan)
        errors: list[str | None] = []
        for results in self._results(query, molecules):
            begin = len(errors)
            good = {k: r for k, r in enumerate(results, begin) if isinstance(r, Answer)}
            if good:
                table[list(good)] = number_table([*good.values()], self._info, query.tasks)
            errors += map(_error, results)
        frame = pandas.DataFrame(table, index, columns)
        frame["error"] = pandas.Series(errors, index, dtype=object)
        return frame

    def explain(
        self,
        smiles: str | Iterable[Any],
        tasks: str | Sequence[str] | None = None,
        *,
        routing: Routing = DEFAULT_ROUTING,
        experts: Sequence[str] | None = None,
        explanations: str | Sequence[str] = SHOWN,
        labels: str | Sequence[str] | None = None,
    ) -> "dict[str, pd.DataFrame]":
        """Say who and what made each prediction, and how far to trust it: what `explain` of
        `/predict` adds.

        Args:
            smiles, tasks, routing, experts: see `predict`.
            explanations: names of explanations, or one.
            labels: labels that explanations by label are about, as `task.label`, or one; None for
                all labels of the tasks.

        Returns:
            Tables by name; molecules that cannot be read have no rows, and atoms are numbered from
            0 in the order of the canonical SMILES.

            `routing`: the weight of each task's adapters at each site where experts are mixed; rows
            by molecule, task and site, a column for each task's expert. `experts`: the answer of
            the network (`own`) and of the trees (`forest`), with their weights in the answer;
            columns molecule, task, expert, weight, label, value.

            `atoms`: a row for every molecule, label, expert and atom; and `sums`, a row for every
            molecule and label, with the canonical SMILES: `output`, on the `scale` that is summed
            (log-odds of a probability), is `baseline` plus `atoms`, the sum of the atoms'
            contributions, plus `other`, what lies on no atom.

            `domain`: a row for every molecule and label of tasks that have one: `similarity` and
            `row` of the nearest training molecule; `band_...`, what was measured on molecules about
            as near; `conformal`, the set of classes or the ends of the interval; `coverage` of such
            sets on the test molecules; `spread` between network and trees.

            `drugs`: a row for every molecule and label: the answer, and what percentage of approved
            drugs has a lower one. `alerts`: a row for every occurrence of a substructure that a
            catalogue warns of.

        Raises:
            GMergingError: see `predict`; or the model has no such explanation.
            MissingPackageError: see `predict`.

        Examples:
            >>> import gmerging
            >>> model = gmerging.load("moleculenet-gcn", device="cpu")
            >>> weights = model.explain("CCO", "bbbp", routing="moe")["routing"]
            >>> list(weights.index.names), len(weights.columns)
            (['molecule', 'task', 'site'], 8)
            >>> bool((weights.sum(axis=1).round(4) == 1).all())
            True
            >>> found = model.explain("CC(=O)N", "bbbp", explanations="atoms")
            >>> list(found["atoms"].atom)
            [0, 1, 2, 3]
            >>> (sums,) = found["sums"].itertuples()
            >>> bool(abs(sums.baseline + sums.atoms + sums.other - sums.output) < 1e-5)
            True
        """
        pandas = _pandas()
        query = self._query(tasks, routing, experts)
        explained = self._explained(query, explanations, labels)
        molecules, index = _listed(smiles, pandas)
        answers: list[tuple[Hashable, Answer]] = []
        names = iter(index)
        for results in self._results(query, molecules, explained):
            rows = zip(islice(names, len(results)), results, strict=True)
            answers += [(name, result) for name, result in rows if isinstance(result, Answer)]
        return ExplainedAnswers(query, explained, answers, pandas).frames()

    def _query(
        self, tasks: str | Sequence[str] | None, routing: Routing, experts: Sequence[str] | None
    ) -> PredictionQuery:
        names = [tasks] if isinstance(tasks, str) else tasks
        if names is not None and len(set(names)) != len(names):
            raise InvalidInputError("got a task twice in tasks, expected each once")
        choice: ExpertChoice | None = None if experts is None else expert_choice(experts)
        query = PredictionQuery.checked(self.name, self._engine, names, routing, choice)
        self._info.check_table(query.tasks)
        return query

    def _explained(
        self,
        query: PredictionQuery,
        explanations: str | Sequence[str],
        labels: str | Sequence[str] | None,
    ) -> Explained:
        names = [explanations] if isinstance(explanations, str) else explanations
        known = {name: name for name in get_args(ExplanationName)}
        for name in names:
            if name not in known:
                expected = f"expected some of {', '.join(known)}{did_you_mean(name, known)}"
                raise InvalidInputError(f"got unknown explanation {name!a}, {expected}")
        chosen = [labels] if isinstance(labels, str) else labels
        in_order = [known[name] for name in dict.fromkeys(names)]
        return Explained.checked(in_order, self._info, query.tasks, chosen)

    def _results(
        self, query: PredictionQuery, molecules: list[Source], explained: Explained = NOTHING
    ) -> Iterator[list[Result]]:
        for begin in range(0, len(molecules), _GROUP_SIZE):
            group = molecules[begin : begin + _GROUP_SIZE]
            with self._alone:
                results = predict(query, self._settings, group)
                if "atoms" in explained.names:
                    results = explain_atoms(query, results, explained)
            yield results


def _error(result: Result) -> str | None:
    return f"{result.code}: {result.message}" if isinstance(result, ItemFailure) else None


def _listed(smiles: str | Iterable[Any], pandas: Any) -> tuple[list[Source], Any]:
    """Return the molecules, those that are no text by their kind, and the index of their rows."""
    if isinstance(smiles, str):
        smiles = [smiles]
    if isinstance(smiles, pandas.DataFrame):
        columns = ", ".join(map(str, smiles.columns))[:200]
        raise InvalidInputError(f"got a DataFrame ({columns}), expected one of its columns")
    if isinstance(smiles, Mapping | bytes) or not isinstance(smiles, Iterable):
        raise InvalidInputError(f"got {type(smiles).__name__}, expected a list of molecules")
    index = smiles.index if isinstance(smiles, pandas.Series) else None
    items = [text if isinstance(text, str) else _kind_of(text, pandas) for text in smiles]
    return items, pandas.RangeIndex(len(items)) if index is None else index


def _kind_of(value: Any, pandas: Any) -> Source:
    missing = pandas.api.types.is_scalar(value) and pandas.isna(value)
    return no_text(None if missing else value)


def _pandas() -> Any:
    return optional_package("pandas", "predictions in Python", "predict")
