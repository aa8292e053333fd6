"""Networks in Hu et al.'s layout, under the prefixes that others save them with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.imports.hu2020 import read_hu2020
from models.errors import CheckpointError
from models.networks.hu2020 import Backbone, BackboneConfig, BackboneKind

State = dict[str, Tensor]
WIDTH = 6


def backbone(kind: BackboneKind = "gin") -> State:
    torch.manual_seed(0)
    return Backbone(BackboneConfig(kind=kind, num_layers=2, hidden_dim=WIDTH)).state_dict()


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def head(columns: int = 3, width: int = WIDTH) -> State:
    return {"weight": torch.ones(columns, width), "bias": torch.zeros(columns)}


def saved(path: Path, content: object, **settings: bool) -> Path:
    torch.save(content, path, **settings)
    return path


@pytest.mark.parametrize("prefix", ["", "gnn.", "molecule_model.", "module.", "module.gnn."])
def test_a_backbone_is_read_under_every_prefix(prefix: str, tmp_path: Path) -> None:
    state = backbone()
    found = read_hu2020(saved(tmp_path / "a.pth", prefixed(state, prefix)))
    assert found.shape == BackboneConfig(kind="gin", num_layers=2, hidden_dim=WIDTH)
    assert found.head is None
    assert found.network.keys() == state.keys()
    assert all(torch.equal(found.network[key], state[key]) for key in state)
    assert found.notes == (
        "The file does not say how atoms become a molecule: their mean is assumed.",
    )


@pytest.mark.parametrize(
    ("prefix", "of_head"),
    [("gnn.", ""), ("molecule_model.", ""), ("", ""), ("module.gnn.", "module.")],
)
def test_a_fine_tuned_model_has_a_head(prefix: str, of_head: str, tmp_path: Path) -> None:
    state = {**prefixed(backbone(), prefix), **prefixed(head(), f"{of_head}graph_pred_linear.")}
    found = read_hu2020(saved(tmp_path / "a.pth", state))
    assert found.head is not None
    assert torch.equal(found.head["weight"], torch.ones(3, WIDTH))
    assert found.head["bias"].shape == (3,)


@pytest.mark.parametrize("key", ["state_dict", "model", "molecule_model"])
def test_checkpoints_of_trainings_and_old_files_are_read(key: str, tmp_path: Path) -> None:
    content = {key: backbone("gat"), "epoch": 3, "optimizer": {"state": {}}}
    assert read_hu2020(saved(tmp_path / "a.pth", content)).shape.kind == "gat"
    old = saved(tmp_path / "b.pth", content, _use_new_zipfile_serialization=False)
    assert read_hu2020(old).shape.kind == "gat"


@pytest.mark.parametrize("kind", ["gcn", "graphsage", "gin_linear"])
def test_linear_layers_need_their_kind(kind: BackboneKind, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", backbone(kind))
    assert read_hu2020(path, kind).shape.kind == kind
    with pytest.raises(
        CheckpointError, match="got linear layers and no kind, expected a kind: gcn"
    ):
        read_hu2020(path)


def changed(**values: object) -> State:
    state = {**backbone(), **{key.replace("__", "."): value for key, value in values.items()}}
    return {key: value for key, value in state.items() if value is not None}


BAD = {
    "another layout": ({"a": torch.ones(2)}, r"got no x_embedding1\.weight, expected it once"),
    "another prefix": (
        prefixed(backbone(), "encoder."),
        r"got encoder\.x_embedding1\.weight, expected it once, with one of the prefixes none, gnn",
    ),
    "two networks": (
        {**prefixed(backbone(), "gnn."), **prefixed(backbone(), "molecule_model.")},
        r"got gnn\.x_embedding1\.weight, molecule_model\.x_embedding1\.weight, expected it once",
    ),
    "tokens": (
        changed(x_embedding1__weight=torch.ones(512, WIDTH)),
        r"x_embedding1\.weight has shape \(512, 6\), expected \(120, 6\)",
    ),
    "missing": (changed(batch_norms__0__weight=None), r"missing batch_norms\.0\.weight"),
    "surplus": (changed(projection=torch.ones(2)), "extra projection"),
    "not finite": (
        changed(x_embedding2__weight=torch.full((3, WIDTH), float("nan"))),
        r"x_embedding2\.weight is not finite",
    ),
    "no layers": (
        {k: v for k, v in backbone().items() if not k.startswith("gnns")},
        "got 0 layers of width 6, expected at least one of each",
    ),
    "a head on all layers": (
        {**backbone(), **prefixed(head(width=18), "graph_pred_linear.")},
        r"graph_pred_linear: got .*\(3, 18\).*, expected .*\(3, 6\).*: one linear layer",
    ),
    "a head without numbers": (
        {
            **backbone(),
            "graph_pred_linear.weight": torch.full((1, WIDTH), float("inf")),
            "graph_pred_linear.bias": torch.zeros(1),
        },
        "graph_pred_linear: got numbers that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    state, message = BAD[case]
    with pytest.raises(CheckpointError, match=message):
        read_hu2020(saved(tmp_path / "a.pth", state))


def test_another_kind_than_the_files_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pth", backbone("gin"))
    with pytest.raises(CheckpointError, match="got layers of kind gin, expected gcn"):
        read_hu2020(path, "gcn")
