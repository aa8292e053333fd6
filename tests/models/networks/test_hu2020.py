import csv
import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models.data.batch import GraphBatch, mean_readout
from models.data.molecule import MolGraph, collate
from models.data.smiles import featurize
from models.errors import CheckpointError
from models.networks.hu2020 import (
    SUM_DIVISOR,
    Backbone,
    BackboneConfig,
    BackboneKind,
    load_backbone,
)
from models.ops.dropout import fast_dropout
from models.state_dict import load_tensors, read_tensors
from tests import oracles
from tests.conftest import KINDS, SMILES, assert_law, pico_config, random_backbone


def by_oracle(backbone: Backbone, graph: MolGraph) -> torch.Tensor:
    config = backbone.config
    return oracles.backbone(
        config.kind,
        backbone.state_dict(),
        graph.x,
        graph.edge_index,
        graph.edge_attr,
        config.num_layers,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_published_equations(kind: BackboneKind) -> None:
    backbone = random_backbone(pico_config(kind)).double()
    for smiles in SMILES:
        graph = featurize(smiles).graph
        torch.testing.assert_close(
            backbone(collate([graph])), by_oracle(backbone, graph), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("kind", ["gcn", "graphsage", "gat"])
@pytest.mark.parametrize("training", ["contextpred", "supervised_contextpred"])
def test_published_checkpoints_give_the_published_network_on_real_molecules(
    kind: BackboneKind, training: str, shared: Path
) -> None:
    single = load_backbone(
        shared / f"weights/hu2020/{kind}_{training}.pth", BackboneConfig(kind=kind)
    ).eval()
    double = (
        load_backbone(shared / f"weights/hu2020/{kind}_{training}.pth", BackboneConfig(kind=kind))
        .eval()
        .double()
    )
    with gzip.open(shared / "data/moleculenet/bbbp.csv.gz", "rt") as file:
        smiles = [row[0] for row in csv.reader(file)][1:400:40]
    graphs = [featurize(text, strict=False).graph for text in smiles]
    expected = torch.cat([by_oracle(double, graph) for graph in graphs])
    largest = float(expected.detach().abs().max())
    # GAT's scores are so large here that the last digit of one moves its weight by 1e-7 (MKL,
    # AVX2).
    torch.testing.assert_close(double(collate(graphs)), expected, rtol=0, atol=1e-6 * largest)
    # float32 loses digits in the network itself: some BatchNorm channels of these files divide by a
    # variance of 1e-5. How many is a matter of the processor: 8e-5 of the largest with AVX2.
    torch.testing.assert_close(
        single(collate(graphs)).double(), expected, rtol=0, atol=1e-3 * largest
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_readout_is_the_sum_over_the_atoms(kind: BackboneKind) -> None:
    config = pico_config(kind).model_copy(update={"readout": "sum"})
    backbone = random_backbone(config).double()
    graphs = [featurize(smiles).graph for smiles in SMILES]
    got = mean_readout(backbone(collate(graphs)), collate(graphs))
    for row, graph in zip(got, graphs, strict=True):
        expected = by_oracle(backbone, graph).sum(0) / SUM_DIVISOR
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-9)


def test_only_another_readout_is_written_down() -> None:
    assert "readout" not in pico_config().model_dump()
    summed = pico_config().model_copy(update={"readout": "sum"})
    assert BackboneConfig.model_validate(summed.model_dump()) == summed


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_does_not_see_its_batch(kind: BackboneKind, molecules: GraphBatch) -> None:
    backbone = random_backbone(pico_config(kind)).double()
    together = backbone(molecules).split(torch.bincount(molecules.batch).tolist())
    for smiles, ours in zip(SMILES, together, strict=True):
        assert_law(ours, backbone(collate([featurize(smiles).graph])))


@pytest.mark.parametrize("kind", KINDS)
def test_relabelled_atoms_give_relabelled_embeddings(kind: BackboneKind) -> None:
    backbone = random_backbone(pico_config(kind)).double()
    graph = featurize("CC(=O)Oc1ccccc1C(=O)O").graph
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(1))
    relabelled = MolGraph(graph.x[order], order.argsort()[graph.edge_index], graph.edge_attr)
    assert_law(backbone(collate([relabelled])), backbone(collate([graph]))[order])


@pytest.mark.parametrize("kind", KINDS)
def test_streams_are_independent(kind: BackboneKind, molecules: GraphBatch) -> None:
    backbone = random_backbone(pico_config(kind)).double()
    scales = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

    def streams(layer: int, h: torch.Tensor) -> torch.Tensor:
        return (h.unsqueeze(1) if layer == 0 else h) * scales[:, None]

    def normalise(layer: int, h: torch.Tensor) -> torch.Tensor:
        return h + layer

    together = backbone(molecules, streams, normalise)
    for t, scale in enumerate(scales):
        single = backbone(molecules, lambda _, h, scale=scale: h * scale, normalise)
        assert_law(together[:, t], single)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind: BackboneKind) -> None:
    backbone = random_backbone(BackboneConfig(kind=kind, num_layers=2, hidden_dim=4)).double()
    batch = collate([featurize(smiles).graph for smiles in ("F/C=C/F", "C", "c1ccncc1")])
    names = [name for name, _ in backbone.named_parameters()]

    def forward(*values: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(
            backbone, dict(zip(names, values, strict=True)), (batch,)
        )
        return result

    inputs = tuple(value.detach().clone().requires_grad_() for value in backbone.parameters())
    assert torch.autograd.gradcheck(forward, inputs, atol=1e-4, fast_mode=True)


def test_checkpoint_must_fit_exactly(tmp_path: Path) -> None:
    config = pico_config()
    state = random_backbone(config).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    loaded = load_backbone(tmp_path / "good.safetensors", config)
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())
    cases = {
        "missing gnns.0.linear.bias": {
            key: value for key, value in state.items() if key != "gnns.0.linear.bias"
        },
        "extra surplus": {**state, "surplus": torch.zeros(1)},
        r"x_embedding2.weight has shape \(4, 16\), expected \(3, 16\)": {
            **state,
            "x_embedding2.weight": torch.zeros(4, 16),
        },
        "gnns.1.linear.weight is not finite": {
            **state,
            "gnns.1.linear.weight": torch.full((16, 16), torch.nan),
        },
    }
    for message, broken in cases.items():
        with pytest.raises(CheckpointError, match=message):
            load_tensors(Backbone(config), broken, "test")


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        read_tensors(tmp_path / "absent.pth")
    (tmp_path / "junk.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "junk.pth")
    torch.save({"code": print}, tmp_path / "pickle.pth")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path / "pickle.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        read_tensors(tmp_path / "list.pth")


def test_dropout_keeps_the_mean_and_its_own_mask_in_the_gradient() -> None:
    torch.manual_seed(0)
    h = torch.ones(400, 250, requires_grad=True)
    out = fast_dropout(h, 0.5)
    assert set(out.detach().unique().tolist()) == {0.0, 2.0}
    assert abs(float(out.detach().mean()) - 1) < 0.02
    out.sum().backward()
    assert h.grad is not None
    torch.testing.assert_close(h.grad, out.detach())


def test_dropout_only_in_training_mode(molecules: GraphBatch) -> None:
    backbone = random_backbone(pico_config())
    backbone.dropout = 0.5
    torch.testing.assert_close(backbone(molecules), backbone(molecules), rtol=0, atol=0)
    backbone.train()
    assert not torch.equal(backbone(molecules), backbone(molecules))
