"""Models of chemprop: read, and merged as D-MPNNs."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from merging.data.molecule_files import read_molecules
from merging.data.pool import draw
from merging.imports.brought import Merged
from merging.imports.chemprop import Ensemble, Foundation, read_chemprop, read_foundation
from merging.imports.config import ImportConfig, Method
from merging.imports.difference import differences, measured_count
from merging.imports.dmpnn import (
    BondPool,
    ImportedTask,
    predictions,
    residual,
    separate,
    smallest_rank,
)
from merging.imports.dmpnn_training import JOINT, AdapterSettings, adapters, one_pass
from models.data.dmpnn_features import FeaturizerOptions, featurize_bonds
from models.data.schema import BondInput
from models.errors import ConfigError, DataError, MoleculeError
from models.task import TaskInfo


class ChempropFormat:
    """Models of chemprop 2: see `merging.imports.formats.Format`."""

    name = "a chemprop model"
    methods: Mapping[Method, int] = {"separate": 0, "residual": 30, "adapters": 30, "one-pass": 100}

    def reads(self, path: Path) -> bool:
        """Read whatever no other format does: its reader says what is wrong."""
        return True

    def check(self, config: ImportConfig) -> None:
        """Refuse what a chemprop file says itself."""
        if config.layers is not None:
            got = f"layers: got {config.layers} with {self.name}"
            raise ConfigError(f"{got}, expected it with networks in Hu et al.'s layout")

    def models(self, config: ImportConfig) -> dict[str, Ensemble]:
        """See `Format.models`. Raises ConfigError: a target is not the file's."""
        found = {
            task: read_chemprop(Path(source.path), source.labels, config.options)
            for task, source in config.models.items()
        }
        for task, model in found.items():
            target = config.models[task].target
            if target not in (None, model.target):
                got = f"models.{task}.target: got {target}"
                raise ConfigError(f"{got}, expected {model.target}, as {model.path} says")
        return found

    def base(self, config: ImportConfig) -> Foundation | None:
        """See `Format.base`."""
        return None if config.base is None else read_foundation(Path(config.base), config.options)

    def schema(self, config: ImportConfig, models: Mapping[str, Ensemble]) -> BondInput:
        """See `Format.schema`."""
        options = common_options(models)
        return BondInput(options=options, reading=config.reading or "as_written")

    def reading(self, config: ImportConfig) -> str:
        """See `Format.reading`."""
        written = (config.reading or "as_written") == "as_written"
        return "as written" if written else "from their canonical SMILES"

    def merge(
        self,
        config: ImportConfig,
        infos: Mapping[str, TaskInfo],
        models: Mapping[str, Ensemble],
        schema: BondInput,
        work: Path,
    ) -> tuple[Merged, dict[str, float]]:
        """See `Format.merge`."""
        tasks = {name: ImportedTask(infos[name], model) for name, model in models.items()}
        pool = _pool(config, schema)
        if config.method == "separate":
            return separate(tasks), {}
        rank = config.rank or self.methods[config.method]
        if pool is None:
            return residual(tasks, rank), {}
        count = measured_count(len(pool))
        measured, rest = BondPool(pool.graphs[:count]), BondPool(pool.graphs[count:])
        expected = predictions(separate(tasks).model, measured)
        if config.max_difference is not None:
            return smallest_rank(tasks, measured, config.max_difference, expected)
        if config.method == "residual":
            merged = residual(tasks, rank)
        elif config.method == "adapters":
            settings = AdapterSettings()
            settings = replace(settings, epochs=config.epochs or settings.epochs)
            merged = adapters(tasks, rest, rank, settings, config.seed, work)
        else:
            changes = {"rank": rank} | ({"epochs": config.epochs} if config.epochs else {})
            joint = JOINT.model_copy(update=changes)
            merged = one_pass(tasks, rest, joint, config.seed, work)
        return merged, differences(predictions(merged.model, measured), expected)


def common_options(models: Mapping[str, Ensemble]) -> FeaturizerOptions:
    """Return how the molecules of all models are featurised. Raises ConfigError: two differ."""
    (first, ensemble), *others = models.items()
    for name, other in others:
        if other.options != ensemble.options:
            got, expected = (
                ", ".join(f"{key} {value}" for key, value in found.options.model_dump().items())
                for found in (other, ensemble)
            )
            raise ConfigError(
                f"{name}: got features {got}, expected those of {first}, {expected}: one artifact"
                " reads a molecule once"
            )
    return ensemble.options


def _pool(config: ImportConfig, schema: BondInput) -> BondPool | None:
    """Read the unlabelled molecules, in random order."""
    if config.molecules is None:
        return None
    path = Path(config.molecules)
    texts = draw(read_molecules(path), config.most_molecules, config.seed, "molecules")
    random.Random(config.seed).shuffle(texts)
    read = featurize_bonds(texts, schema.options, schema.reading, None)
    graphs = [found.graph for found in read if not isinstance(found, MoleculeError)]
    if len(graphs) < 2:
        problem = next((str(found) for found in read if isinstance(found, MoleculeError)), "")
        got = f"{path}: got {len(graphs)} readable molecules of {len(texts)}"
        raise DataError(
            f"{got}, expected at least 2{f'; the first problem: {problem}' * bool(problem)}"
        )
    return BondPool(graphs)
