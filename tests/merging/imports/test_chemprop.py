"""Models of chemprop, read without it: against what chemprop itself says of the committed files,
and refusals of all that cannot be imported."""

import argparse
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from merging.imports.chemprop import Ensemble, read_chemprop, read_foundation
from models.data.dmpnn_features import FeaturizerOptions
from models.errors import CheckpointError
from models.networks.dmpnn import DmpnnConfig, DmpnnHead
from models.task import answers
from tests.merging.imports.chemprop_files import (
    ACTIVATIONS,
    FILES,
    PREDICTIONS,
    VECTORS,
    Calls,
    Change,
    chemprop_class,
    hyper,
    model,
    named,
    save,
    saved,
    tensor,
    together,
    whole,
    without,
)

ORGANIC, RIGR = {"atom_dim": 44, "bond_dim": 14}, {"atom_dim": 52, "bond_dim": 2}
SHAPES = {
    "regression.pt": DmpnnConfig(**ORGANIC, hidden_dim=8, aggregation="norm"),
    "binary.pt": DmpnnConfig(**ORGANIC, hidden_dim=8),
    "multiclass.pt": DmpnnConfig(**RIGR, hidden_dim=8),
    "batch_norm.pt": DmpnnConfig(**RIGR, hidden_dim=8, bias=True, aggregation="sum"),
    "undirected.pt": DmpnnConfig(
        **RIGR, hidden_dim=8, undirected=True, depth=5, aggregation="norm", norm=20
    ),
    "atoms.pt": DmpnnConfig(**RIGR, hidden_dim=8, messages="atoms", depth=4),
    "tanh.pt": DmpnnConfig(**RIGR, hidden_dim=8, activation="tanh", depth=1),
    "prelu.pt": DmpnnConfig(**RIGR, hidden_dim=8, activation="prelu", aggregation="sum"),
    "leakyrelu.pt": DmpnnConfig(**RIGR, hidden_dim=8, activation="leakyrelu", aggregation="sum"),
    "mve.pt": DmpnnConfig(**RIGR, hidden_dim=8),
    "quantile.pt": DmpnnConfig(**RIGR, hidden_dim=8),
    "run": DmpnnConfig(**RIGR, hidden_dim=4, depth=2, aggregation="norm"),
}
HEADS = {
    "regression.pt": DmpnnHead(hidden=(8,)),
    "binary.pt": DmpnnHead(hidden=(6, 5)),
    "multiclass.pt": DmpnnHead(hidden=(8,)),
    "batch_norm.pt": DmpnnHead(hidden=(8,), batch_norm=True),
    "undirected.pt": DmpnnHead(hidden=(8,)),
    "atoms.pt": DmpnnHead(hidden=(8,)),
    "tanh.pt": DmpnnHead(),
    "prelu.pt": DmpnnHead(hidden=(8, 8), activation="prelu"),
    "leakyrelu.pt": DmpnnHead(hidden=(8,), activation="elu"),
    "mve.pt": DmpnnHead(hidden=(8,)),
    "quantile.pt": DmpnnHead(hidden=(8,)),
    "run": DmpnnHead(hidden=(4,), members=2),
}
LABELS = {
    "regression.pt": ("logS", "mp"),
    "binary.pt": ("toxic", "active"),
    "multiclass.pt": ("grade_0", "grade_1", "grade_2"),
    "mve.pt": ("logS", "mp"),
    "quantile.pt": ("logS", "mp"),
    "run": ("logP",),
}
TARGETS = {
    "binary.pt": "multilabel",
    "undirected.pt": "multilabel",
    "prelu.pt": "multilabel",
    "leakyrelu.pt": "multilabel",
    "multiclass.pt": "multiclass",
}


def read(path: Path) -> Ensemble:
    return read_chemprop(path, options=FeaturizerOptions(mode="rigr"))


@pytest.mark.parametrize("file", SHAPES)
def test_shape_head_labels_and_target_are_those_of_the_file(file: str) -> None:
    found = read_chemprop(FILES / file)
    assert found.shape == SHAPES[file]
    assert found.head == HEADS[file]
    assert found.labels == LABELS.get(file, ("y",))
    assert found.target == TARGETS.get(file, "regression")
    assert len(found.members) == found.head.members
    for member in found.members:
        assert member.classes == (3 if file == "multiclass.pt" else None)
        assert len(member.sha256) == 64
        assert all(value.dtype == torch.float32 for value in member.network.values())


@pytest.mark.parametrize("file", sorted(PREDICTIONS.keys() - {"run"}))
def test_heads_make_chemprops_predictions_of_chemprops_vectors(file: str) -> None:
    """The head alone: batch norm, layers, the rows of uncertainty heads, the unscaling."""
    found = read_chemprop(FILES / file)
    (member,) = found.members
    vectors = torch.tensor(list(VECTORS[file].values()))
    predicted = answers(outputs(member.head, member.head_state, vectors), found.target)
    expected = torch.tensor(list(PREDICTIONS[file].values()))
    torch.testing.assert_close(predicted, expected, rtol=2e-6, atol=2e-6)


def outputs(head: DmpnnHead, state: dict[str, Tensor], vectors: Tensor) -> Tensor:
    """Outputs of a head: (G, d) -> (G, C)."""
    h = vectors
    if head.batch_norm:
        names = ("running_mean", "running_var", "weight", "bias")
        h = F.batch_norm(h, *(state[f"batch_norm.{name}"] for name in names))
    for i in range(len(head.hidden) + 1):
        if i and head.activation == "prelu":
            h = F.prelu(h, state["activation.weight"])
        elif i:
            h = ACTIVATIONS[head.activation]()(h)
        h = F.linear(h, state[f"layers.{i}.weight"], state[f"layers.{i}.bias"])
    return h


def test_members_of_a_run_are_read_in_the_order_of_their_numbers_with_its_flags() -> None:
    found = read_chemprop(FILES / "run")
    assert [member.path.parent.name for member in found.members] == ["model_0", "model_1"]
    assert found.options == FeaturizerOptions(mode="rigr", keep_h=True)
    assert found.notes == ()
    first, second = (member.network["W_i.weight"] for member in found.members)
    assert not torch.equal(first, second)


def test_what_was_assumed_or_left_out_is_said() -> None:
    (assumed,) = read_chemprop(FILES / "binary.pt").notes
    assert assumed == (
        "No config.toml beside the model: chemprop's defaults are assumed, hydrogens are neither"
        " kept nor added, and stereo is not ignored."
    )
    assert read_chemprop(FILES / "mve.pt").notes[0].startswith("MveFFN: the predicted mean is")
    assert read_chemprop(FILES / "quantile.pt").notes[0].startswith("QuantileFFN: the middle")
    assert "called grade_0 to grade_2" in read_chemprop(FILES / "multiclass.pt").notes[0]


def test_a_checkpoint_of_lightning_is_read_with_labels_and_refused_without() -> None:
    found = read_chemprop(FILES / "last.ckpt", labels=["logP"])
    assert found.labels == ("logP",)
    assert found.shape == SHAPES["run"]
    with pytest.raises(CheckpointError, match=r"got no output_columns, expected 1; a \.ckpt never"):
        read_chemprop(FILES / "last.ckpt")


def test_names_of_classes_are_the_users() -> None:
    found = read_chemprop(FILES / "multiclass.pt", labels=["low", "middle", "high"])
    assert found.labels == ("low", "middle", "high")
    with pytest.raises(CheckpointError, match="got 2 classes, expected 3"):
        read_chemprop(FILES / "multiclass.pt", labels=["low", "high"])


def test_a_bare_message_passing_is_a_base_and_no_model() -> None:
    found = read_foundation(FILES / "foundation.pt")
    assert found.shape == DmpnnConfig(atom_dim=72, bond_dim=14, hidden_dim=8)
    assert found.options == FeaturizerOptions(mode="v2")
    assert found.network["W_o.weight"].shape == (8, 80)
    assert "atoms are averaged" in found.notes[-1]
    with pytest.raises(CheckpointError, match="without a predictor, expected a whole model"):
        read_chemprop(FILES / "foundation.pt")


def test_a_whole_model_is_a_base_without_its_head() -> None:
    found, of_model = read_foundation(FILES / "batch_norm.pt"), read(FILES / "batch_norm.pt")
    assert found.shape == of_model.shape
    (member,) = of_model.members
    assert found.network.keys() == member.network.keys()
    assert all(torch.equal(found.network[key], member.network[key]) for key in found.network)
    with pytest.raises(CheckpointError, match="got 2 models, expected one to be the base"):
        read_foundation(FILES / "run")


def test_a_whole_model_whose_head_cannot_be_imported_is_a_base(tmp_path: Path) -> None:
    change = hyper("predictor", cls=chemprop_class("predictors.SpectralFFN"))
    assert read_foundation(saved(tmp_path / "a.pt", change)).shape.hidden_dim == 4


def test_modules_of_torch_are_activations(tmp_path: Path) -> None:
    def shape(module: object, name: str = "a.pt") -> DmpnnConfig:
        path = saved(tmp_path / name, hyper("message_passing", activation=module))
        return read(path).shape

    assert shape(nn.Tanh()).activation == "tanh"
    assert shape(nn.LeakyReLU(0.1)).activation == "leakyrelu"
    assert shape(nn.ELU()).activation == "elu"


def test_values_that_are_missing_are_chemprops_defaults(tmp_path: Path) -> None:
    """A model that `chemprop convert` made of one of version 1 has few of them."""

    def change(content: dict[str, dict[str, dict[str, object]]]) -> None:
        for name in ("V_d_transform", "graph_transform", "undirected", "bias", "depth"):
            del content["hyper_parameters"]["message_passing"][name]
        del content["hyper_parameters"]["predictor"]["n_layers"]

    assert read(saved(tmp_path / "a.pt", change)).shape == read(saved(tmp_path / "b.pt")).shape


def test_the_identity_transforms_that_chemprop_train_writes_are_none(tmp_path: Path) -> None:
    transform = chemprop_class("transforms.GraphTransform")()
    transform._modules = {"V_transform": nn.Identity(), "E_transform": nn.Identity()}
    path = saved(tmp_path / "a.pt", hyper("message_passing", graph_transform=transform))
    assert read(path).shape.atom_dim == 52


def test_an_activation_of_chemprops_enumeration_is_read(tmp_path: Path) -> None:
    value = Calls(chemprop_class("utils.Activation"), "elu")
    path = saved(tmp_path / "a.pt", hyper("message_passing", activation=value))
    assert read(path).shape.activation == "elu"


def test_other_precisions_are_converted_and_that_is_said(tmp_path: Path) -> None:
    def change(content: dict[str, dict[str, Tensor]]) -> None:
        state = content["state_dict"]
        state["message_passing.W_h.weight"] = state["message_passing.W_h.weight"].double()
        state["message_passing.W_o.bias"] = state["message_passing.W_o.bias"].half()

    found = read(saved(tmp_path / "a.pt", change))
    assert found.notes == ("Weights of float16 and float64 are converted to float32.",)
    assert found.members[0].network["W_h.weight"].dtype == torch.float32


def test_unscaling_is_folded_in_float64(tmp_path: Path) -> None:
    """A mean that is large against the scale leaves float32 only the last rounding."""
    mean, scale = torch.tensor([[1e6]]), torch.tensor([[1.25]])
    change = together(
        tensor("predictor.output_transform.mean", mean),
        tensor("predictor.output_transform.scale", scale),
    )
    content = model()
    (member,) = read(saved(tmp_path / "a.pt", change)).members
    bias = content["state_dict"]["predictor.ffn.1.2.bias"].double()
    expected = (bias * scale[0].double() + mean[0].double()).float()
    assert torch.equal(member.head_state["layers.1.bias"], expected)


def test_the_first_block_of_an_evidential_predictor_is_its_mean(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(4, 3)
    change = together(
        hyper("predictor", cls=chemprop_class("predictors.EvidentialFFN")),
        tensor("predictor.ffn.1.2.weight", weight),
        tensor("predictor.ffn.1.2.bias", torch.arange(4.0)),
    )
    found = read(saved(tmp_path / "a.pt", change))
    (member,) = found.members
    assert torch.equal(member.head_state["layers.1.weight"], weight[:1] * 3)  # its scale
    assert torch.equal(member.head_state["layers.1.bias"], torch.tensor([2.0]))  # its mean
    assert found.notes[0].startswith("EvidentialFFN: the predicted mean is taken")


MP, AGG = "message_passing", "agg"
W_I, W_H, FFN = "message_passing.W_i.weight", "message_passing.W_h.weight", "predictor.ffn"
MEAN, SCALE = "predictor.output_transform.mean", "predictor.output_transform.scale"
UNSCALE = chemprop_class("transforms.UnscaleTransform")
SCALE_CLASS = chemprop_class("transforms.ScaleTransform")
BINARY = chemprop_class("predictors.BinaryClassificationFFN")
MULTICLASS = chemprop_class("predictors.MulticlassClassificationFFN")
REFUSED: dict[str, tuple[Change, str]] = {
    "atoms and bonds": (
        hyper(MP, cls=chemprop_class("message_passing.mol_atom_bond.MABBondMessagePassing")),
        "message_passing.cls: got MABBondMessagePassing (models of atoms' and bonds' properties"
        " cannot be imported), expected BondMessagePassing or AtomMessagePassing",
    ),
    "atoms and bonds, the model": (
        whole(atom_predictor={}),
        "got a MolAtomBondMPNN, of the properties of atoms and bonds, expected an MPNN",
    ),
    "several components": (
        whole(message_passing={"blocks": [], "n_components": 2}),
        "got MulticomponentMessagePassing (models of several molecules cannot be imported),"
        " expected BondMessagePassing",
    ),
    "descriptors of atoms": (
        hyper(MP, d_vd=7),
        "message_passing.d_vd: got 7, expected none: extra features of atoms are not in the file",
    ),
    "scaled descriptors of atoms": (
        hyper(MP, V_d_transform=SCALE_CLASS()),
        "message_passing.V_d_transform: got a ScaleTransform, expected none",
    ),
    "scaled features of graphs": (
        hyper(MP, graph_transform=chemprop_class("transforms.GraphTransform")()),
        "message_passing.graph_transform: got a GraphTransform, expected none",
    ),
    "descriptors of molecules": (
        together(hyper("predictor", input_dim=204),
                 tensor(f"{FFN}.0.0.weight", torch.ones(3, 204))),
        "predictor.input_dim: got 204, expected 4, the molecule's vector: extra descriptors of"
        " molecules are not in the file",
    ),
    "descriptors of molecules, by the weight alone": (
        tensor(f"{FFN}.0.0.weight", torch.ones(3, 9)),
        "predictor.input_dim: got 9, expected 4",
    ),
    "scaled descriptors of molecules": (
        whole(X_d_transform=SCALE_CLASS()),
        "X_d_transform: got a ScaleTransform, expected none: extra descriptors",
    ),
    "attention": (
        hyper(AGG, cls=chemprop_class("agg.AttentiveAggregation")),
        "agg.cls: got AttentiveAggregation (attention over atoms cannot be imported), expected"
        " MeanAggregation or SumAggregation or NormAggregation",
    ),
    "no class": (hyper(AGG, cls="mean"), "agg.cls: got 'mean', expected MeanAggregation"),
    "spectra": (
        hyper("predictor", cls=chemprop_class("predictors.SpectralFFN")),
        "predictor.cls: got SpectralFFN (spectra cannot be imported), expected RegressionFFN or",
    ),
    "evidence of a label": (
        hyper("predictor", cls=chemprop_class("predictors.BinaryDirichletFFN")),
        "predictor.cls: got BinaryDirichletFFN (its outputs become evidence, not log-odds)",
    ),
    "evidence of classes": (
        hyper("predictor", cls=chemprop_class("predictors.MulticlassDirichletFFN")),
        "predictor.cls: got MulticlassDirichletFFN (its outputs become evidence",
    ),
    "unknown activation": (
        hyper(MP, activation="gelu"),
        "message_passing.activation: got 'gelu', expected one of relu, leakyrelu, prelu, tanh, elu",
    ),
    "unknown module": (
        hyper("predictor", activation=nn.SELU()),
        "predictor.activation: got 'SELU', expected one of relu",
    ),
    "slope": (
        hyper(MP, activation=nn.LeakyReLU(0.01)),
        "message_passing.activation: got LeakyReLU with negative_slope 0.01, expected 0.1",
    ),
    "elu's alpha": (
        hyper(MP, activation=nn.ELU(0.5)),
        "message_passing.activation: got ELU with alpha 0.5, expected 1.0",
    ),
    "widths of no mode": (
        together(hyper(MP, d_v=53), tensor(W_I, torch.ones(4, 55)),
                 tensor("message_passing.W_o.weight", torch.ones(4, 57))),
        "got 53 features of an atom and 2 of a bond, expected those of a mode of chemprop's",
    ),
    "depth": (hyper(MP, depth=0), "message_passing.depth: got 0, expected a whole number from 1"),
    "endless depth": (hyper(MP, depth=10**30), "depth: got a huge number, expected a whole"),
    "width": (hyper(MP, d_h="300"), "message_passing.d_h: got '300', expected a whole number"),
    "truth value": (hyper(MP, bias=1), "message_passing.bias: got 1, expected true or false"),
    "layers": (hyper("predictor", hidden_dim=[3] * 101), "hidden_dim: got 101 layers, expected at"),
    "layer": (hyper("predictor", hidden_dim=[3, -1]), "hidden_dim[1]: got -1, expected a whole"),
    "norm": (
        hyper(AGG, cls=chemprop_class("agg.NormAggregation"), norm=float("inf")),
        "agg.norm: got inf, expected a positive number",
    ),
    "classes": (
        hyper("predictor", cls=MULTICLASS, n_classes=1, output_transform=None),
        "predictor.n_classes: got 1, expected a whole number from 2",
    ),
    "two columns of classes": (
        hyper("predictor", cls=MULTICLASS, n_classes=3, n_tasks=2, output_transform=None),
        "predictor.n_tasks: got 2, expected 1: a task of ours has one column of classes",
    ),
    "units of a label": (
        hyper("predictor", cls=BINARY),
        "predictor.output_transform: got a UnscaleTransform, expected none: only a regression",
    ),
    "no hyper-parameters": (
        lambda content: content.pop("hyper_parameters"),
        "hyper_parameters: got nothing, expected hyper-parameters of a chemprop 2 model",
    ),
    "no message passing": (
        whole(message_passing=[1]),
        "message_passing: got a list, expected hyper-parameters",
    ),
    "no state": (
        lambda content: content.update(state_dict=None),
        "state_dict: got nothing, expected tensors by name",
    ),
    "missing": (without(W_H), f"got no {W_H}, expected (4, 4)"),
    "surplus": (
        tensor("message_passing.W_d.weight", torch.ones(1)),
        "got 'message_passing.W_d.weight', expected no such tensor",
    ),
    "batch norm that is not said": (
        tensor("bn.weight", torch.ones(4)), "got 'bn.weight', expected no such tensor",
    ),
    "batch norm that is missing": (whole(batch_norm=True), "got no bn.bias, expected (4,)"),
    "misshapen": (tensor(W_H, torch.ones(4, 5)), f"{W_H}: got shape (4, 5), expected (4, 4)"),
    "many problems": (
        lambda content: content["state_dict"].clear(), "; and 5 more",
    ),
    "not finite": (
        tensor(W_H, torch.full((4, 4), float("nan"))),
        f"{W_H}: got numbers that are not finite in float32, expected finite",
    ),
    "not finite in float32": (
        tensor(W_H, torch.full((4, 4), 1e300, dtype=torch.float64)),
        f"{W_H}: got numbers that are not finite in float32",
    ),
    "not finite once unscaled": (
        together(tensor(SCALE, torch.full((1, 1), 1e38)),
                 tensor(f"{FFN}.1.2.weight", torch.full((1, 3), 1e3))),
        "got outputs whose scale is not finite in float32, expected finite ones",
    ),
    "whole numbers": (
        tensor(W_H, torch.ones(4, 4, dtype=torch.int64)),
        f"{W_H}: got torch.int64, expected floating-point numbers",
    ),
    "no tensor": (tensor(W_H, [1.0]), f"{W_H}: got a list, expected a tensor"),
    "numbers that repeat": (
        tensor(W_H, torch.ones(1).expand(4, 4)),
        f"{W_H}: got a view that repeats numbers, expected every number to be stored",
    ),
    "no columns": (
        lambda content: content.update(output_columns=None),
        "got no output_columns, expected 1; a .ckpt never has them: give labels",
    ),
    "columns of another kind": (
        lambda content: content.update(output_columns=[3]),
        "output_columns: got a list, expected a list of names",
    ),
    "too many columns": (
        lambda content: content.update(output_columns=["a", "b"]),
        "got 2 labels, expected 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_imported_is_refused_by_name(case: str, tmp_path: Path) -> None:
    change, message = REFUSED[case]
    path = saved(tmp_path / "model.pt", change)
    with pytest.raises(CheckpointError) as refused:
        read_chemprop(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{path}: ")


def test_equal_columns_are_refused_and_can_be_renamed(tmp_path: Path) -> None:
    content = model(columns=2)
    content["output_columns"] = ["y", "y"]
    path = save(tmp_path / "a.pt", content)
    with pytest.raises(CheckpointError, match="got the labels 'y' twice, expected names that"):
        read(path)
    assert read_chemprop(path, labels=["y", "z"]).labels == ("y", "z")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (hyper(MP, depth=4), "shape.depth: got 4, expected 3"),
        (
            hyper(AGG, cls=chemprop_class("agg.SumAggregation")),
            "shape.aggregation: got sum, expected mean",
        ),
        (hyper("predictor", activation="tanh"), "head.activation: got tanh, expected relu"),
        (
            together(
                hyper("predictor", cls=BINARY, output_transform=None), without(MEAN), without(SCALE)
            ),
            "target: got multilabel, expected regression",
        ),
        (lambda content: content.update(output_columns=["z"]), "labels: got ('z',), "),
    ],
)
def test_members_that_differ_in_more_than_weights_are_refused(
    change: Change, what: str, tmp_path: Path
) -> None:
    first, second = (tmp_path / f"model_{k}/best.pt" for k in range(2))
    saved(first)
    saved(second, change)
    with pytest.raises(CheckpointError) as refused:
        read_chemprop(tmp_path)
    assert str(refused.value).startswith(f"{second}: {what}")
    assert f"as in {first}: the members of an ensemble differ in weights" in str(refused.value)


def test_a_model_of_chemprop_1_is_refused_with_the_command_that_converts_it(tmp_path: Path) -> None:
    content = {"args": argparse.Namespace(depth=3), "state_dict": {}, "data_scaler": None}
    path = save(tmp_path / "v1.pt", content)
    with pytest.raises(CheckpointError) as refused:
        read_chemprop(path)
    assert "got a model of chemprop 1 (argparse.Namespace), expected chemprop 2" in str(
        refused.value
    )
    assert f"chemprop convert -i {path} -o converted.pt" in str(refused.value)


def test_a_users_own_subclass_is_refused_by_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", hyper(AGG, cls=named("chemprop.mine.MyAggregation")))
    with pytest.raises(CheckpointError, match=r"got chemprop\.mine\.MyAggregation in its pickle"):
        read_chemprop(path)


def test_reading_needs_no_chemprop(tmp_path: Path) -> None:
    """Not even where it is installed."""
    blocked = "chemprop", "lightning", "torchmetrics"
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}));"
        "from pathlib import Path; from merging.imports.chemprop import read_chemprop;"
        "print(len(read_chemprop(Path(sys.argv[1])).members))"
    )
    command = [sys.executable, "-c", code, str(FILES / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "2\n"


@pytest.fixture(scope="session")
def admet_ai(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheel = os.environ.get("GMERGING_ADMET_AI_WHEEL")
    if not wheel:
        pytest.skip("GMERGING_ADMET_AI_WHEEL does not name ADMET-AI's wheel")
    folder = tmp_path_factory.mktemp("admet_ai")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".pt")]
        archive.extractall(folder, names)
    return folder / "admet_ai/resources/models"


@pytest.mark.parametrize(
    ("name", "target", "count", "first", "last"),
    [
        ("admet_classification", "multilabel", 31, "AMES", "hERG"),
        ("admet_regression", "regression", 10, "Caco2_Wang", "VDss_Lombardo"),
    ],
)
def test_admet_ais_ten_models_are_two_ensembles(
    admet_ai: Path, name: str, target: str, count: int, first: str, last: str
) -> None:
    found = read_chemprop(admet_ai / name)
    assert (len(found.members), found.target, len(found.labels)) == (5, target, count)
    assert (found.labels[0], found.labels[-1]) == (first, last)
    assert found.shape == DmpnnConfig(atom_dim=72, bond_dim=14, aggregation="norm")
    assert found.head == DmpnnHead(hidden=(300,), members=5)
    assert found.options == FeaturizerOptions()
    for member in found.members:
        assert member.head_state["layers.1.weight"].shape == (count, 300)


CHECK = """
import sys
from chemprop.models.utils import load_model
print(load_model(sys.argv[1]).predictor.output_dim)
"""


@pytest.mark.slow
def test_chemprop_itself_loads_the_files_that_these_tests_change(tmp_path: Path) -> None:
    """So that a refusal is of the change, not of a file that is none of chemprop's."""
    python = os.environ.get("GMERGING_CHEMPROP_PYTHON")
    if not python:
        pytest.skip("GMERGING_CHEMPROP_PYTHON does not name a Python with chemprop")

    def change(content: dict[str, dict[str, dict[str, object]]]) -> None:
        hidden = content["hyper_parameters"]["predictor"]
        hidden["output_transform"] = None
        content["state_dict"] = {
            name: value for name, value in content["state_dict"].items() if "transform" not in name
        }
        content["state_dict"]["metrics.1.task_weights"] = torch.ones(1, 1)

    path = saved(tmp_path / "model.pt", change)
    assert read(path).members[0].head_state["layers.1.bias"].shape == (1,)
    command = [python, "-c", CHECK, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_the_committed_files_are_small() -> None:
    assert sum(file.stat().st_size for file in FILES.rglob("*") if file.is_file()) < 200_000
