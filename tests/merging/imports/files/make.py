"""Makes the files of this folder with chemprop 2.3.1: tiny models of every kind that is imported,
and what chemprop predicts with them. Run it with a Python that has chemprop, in this folder:

    python make.py

`predictions.json` and `vectors.json` hold, by file and SMILES, what `chemprop predict` prints (a
run folder: the mean of its members; classes: their probabilities) and the molecules' vectors after
the aggregation (of the first member). SMILES are read as they are written.
"""

import csv
import json
import shutil
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch
from chemprop import data, featurizers, models, nn
from chemprop.featurizers.atom import get_multi_hot_atom_featurizer
from chemprop.featurizers.bond import MultiHotBondFeaturizer, RIGRBondFeaturizer
from chemprop.models.utils import load_model, save_model
from torch.utils.serialization.config import save as save_settings

FOLDER = Path(__file__).parent
save_settings.storage_alignment = 1  # smaller files
SMILES = (
    "CCO",
    "C",
    "[Na+].[Cl-]",
    "C[C@H](N)C(=O)O",
    "F/C=C/Cl",
    "c1ccc2[nH]ccc2c1",
    "O=S(=O)(N)c1ccccc1Br",
    "[H]OC([H])([H])[H]",
)
WIDTHS = {"v1": (133, 14), "v2": (72, 14), "organic": (44, 14), "rigr": (52, 2)}
REGRESSION, BINARY = nn.RegressionFFN, nn.BinaryClassificationFFN
MEAN, SUM, NORM = nn.MeanAggregation, nn.SumAggregation, nn.NormAggregation
UNSCALE = {"output_transform": nn.UnscaleTransform([2.0], [3.0])}
UNSCALE_2 = {"output_transform": nn.UnscaleTransform([-3.0, 120.0], [0.7, 35.0])}
# name: mode, message passing, aggregation, predictor, batch norm, columns
MODELS = {
    "regression": ("organic", {}, NORM(), REGRESSION(2, 8, 8, **UNSCALE_2), False, ["logS", "mp"]),
    "binary": ("organic", {}, MEAN(), BINARY(2, 8, [6, 5]), False, ["toxic", "active"]),
    "multiclass": (
        "rigr",
        {},
        MEAN(),
        nn.MulticlassClassificationFFN(3, 1, 8, 8),
        False,
        ["grade"],
    ),
    "batch_norm": ("rigr", {"bias": True}, SUM(), REGRESSION(1, 8, 8, **UNSCALE), True, ["y"]),
    "undirected": (
        "rigr",
        {"undirected": True, "depth": 5},
        NORM(norm=20.0),
        BINARY(1, 8, 8),
        False,
        ["y"],
    ),
    "atoms": (
        "rigr",
        {"atoms": True, "depth": 4},
        MEAN(),
        REGRESSION(1, 8, 8, **UNSCALE),
        False,
        ["y"],
    ),
    "tanh": (
        "rigr",
        {"activation": "tanh", "depth": 1},
        MEAN(),
        REGRESSION(1, 8, n_layers=0),
        False,
        ["y"],
    ),
    "prelu": (
        "rigr",
        {"activation": "prelu"},
        SUM(),
        BINARY(1, 8, 8, 2, activation="prelu"),
        False,
        ["y"],
    ),
    "leakyrelu": (
        "rigr",
        {"activation": "leakyrelu"},
        SUM(),
        BINARY(1, 8, 8, activation="elu"),
        False,
        ["y"],
    ),
    "mve": ("rigr", {}, MEAN(), nn.MveFFN(2, 8, 8, **UNSCALE_2), False, ["logS", "mp"]),
    "quantile": ("rigr", {}, MEAN(), nn.QuantileFFN(2, 8, 8, **UNSCALE_2), False, ["logS", "mp"]),
}
MIDDLE_FIRST = nn.MveFFN, nn.QuantileFFN


def message_passing(mode: str, atoms: bool = False, **settings: object) -> torch.nn.Module:
    made = nn.AtomMessagePassing if atoms else nn.BondMessagePassing
    return made(*WIDTHS[mode], d_h=8, **settings)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every weight a random value of a size that makes outputs differ between molecules."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.startswith("bn.running_var"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif value.is_floating_point() and "output_transform" not in name and "weights" not in name:
            value.copy_(torch.randn(value.shape, generator=generator) * 0.4)


def batch(mode: str, keep_h: bool) -> data.BatchMolGraph:
    bonds = RIGRBondFeaturizer() if mode == "rigr" else MultiHotBondFeaturizer()
    atoms = get_multi_hot_atom_featurizer(mode.upper())
    featurizer = featurizers.SimpleMoleculeMolGraphFeaturizer(atoms, bonds)
    points = [data.MoleculeDatapoint.from_smi(smiles, keep_h=keep_h) for smiles in SMILES]
    graphs = data.MoleculeDataset(points, featurizer)
    return data.BatchMolGraph([graphs[k].mg for k in range(len(points))])


@torch.no_grad()
def answers(
    model: models.MPNN, mode: str, keep_h: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (G, C) and vectors (G, d)."""
    graphs = batch(mode, keep_h)
    model.eval()
    predictions = model(graphs)
    if isinstance(model.predictor, MIDDLE_FIRST):
        predictions = predictions[..., 0]
    vectors = model.agg(model.message_passing(graphs), graphs.batch)
    return predictions.reshape(len(SMILES), -1), vectors


def table(values: torch.Tensor) -> dict[str, list[float]]:
    rows = ([float(f"{number:.8g}") for number in row] for row in values.tolist())
    return dict(zip(SMILES, rows, strict=True))


def train_run(folder: Path) -> None:
    """Train an ensemble of two with chemprop's command; keep what people have of it."""
    rows = [("CCO", -0.3), ("CCN", 0.1), ("c1ccccc1", 2.1), ("CC(=O)O", -0.2), ("CCCl", 1.4)]
    rows += [("CCBr", 1.6), ("C1CCCCC1", 3.4), ("CC(C)O", 0.1), ("CCCCO", 0.9), ("OCCO", -1.4)]
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        with (Path(temporary) / "a.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("smiles", "logP"), *rows])
        options = "--task-type regression --target-columns logP --epochs 30 --max-lr 0.05"
        shape = "--message-hidden-dim 4 --ffn-hidden-dim 4 --depth 2 --ensemble-size 2 --keep-h"
        mode = "--multi-hot-atom-featurizer-mode RIGR --split-sizes 0.8 0.1 0.1"
        where = "--accelerator cpu --num-workers 0 --pytorch-seed 1 -i a.csv -o run"
        command = [str(Path(sys.executable).with_name("chemprop")), "train"]
        words = f"{options} {shape} {mode} {where}".split()
        subprocess.run([*command, *words], cwd=temporary, check=True, capture_output=True)
        made = Path(temporary) / "run"
        for k in range(2):
            (folder / f"model_{k}").mkdir(parents=True)
            shutil.copy(made / f"model_{k}/best.pt", folder / f"model_{k}/best.pt")
        shutil.copy(made / "config.toml", folder / "config.toml")
        shutil.copy(made / "model_0/checkpoints/last.ckpt", FOLDER / "last.ckpt")


def main() -> None:
    predictions, vectors = {}, {}
    for number, (name, row) in enumerate(MODELS.items()):
        mode, settings, aggregation, predictor, batch_norm, columns = row
        made = models.MPNN(message_passing(mode, **settings), aggregation, predictor, batch_norm)
        for seed in count(100 * number):
            randomise(made, seed)
            found = answers(made, mode)
            if len(torch.unique(found[0], dim=0)) == len(SMILES):
                break  # otherwise ReLU has ended all signals
        save_model(FOLDER / f"{name}.pt", made, columns)
        found = answers(load_model(FOLDER / f"{name}.pt"), mode)
        predictions[f"{name}.pt"], vectors[f"{name}.pt"] = map(table, found)
    bare = message_passing("v2", activation="relu")
    randomise(bare, 99)
    others = "cls", "V_d_transform", "graph_transform"
    values = {name: value for name, value in bare.hparams.items() if name not in others}
    content = {"hyper_parameters": values, "state_dict": bare.state_dict()}
    torch.save(content, FOLDER / "foundation.pt")
    graphs = batch("v2", False)
    with torch.no_grad():
        vectors["foundation.pt"] = table(MEAN()(bare.eval()(graphs), graphs.batch))
    train_run(FOLDER / "run")
    members = [load_model(FOLDER / f"run/model_{k}/best.pt") for k in range(2)]
    of_members = [answers(member, "rigr", keep_h=True) for member in members]
    predictions["run"] = table(torch.stack([found[0] for found in of_members]).mean(0))
    vectors["run"] = table(of_members[0][1])
    for name, content in (("predictions", predictions), ("vectors", vectors)):
        text = (
            json.dumps(content, separators=(",", ":")).replace("},", "},\n").replace("],", "],\n")
        )
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
