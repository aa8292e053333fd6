"""GCC's encoders as plain networks: the same numbers as their layers with BatchNorm."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from merging.data.files import write_tensors
from merging.data.gcc_encoder import plain_layers, read_start
from models.data.feature_graph import collate_features
from models.data.structural import DEGREES, POSITIONS, whole_graph
from models.errors import CheckpointError, DataError
from models.networks.pyg import GraphNetwork, GraphNetworkConfig
from models.state_dict import load_tensors

LAYERS, WIDTH = 2, 6
State = dict[str, Tensor]


def encoder(inputs: int = POSITIONS + 1) -> State:
    """A state dict in GCC's layout, every number random."""
    generator, state = torch.Generator().manual_seed(0), State()

    def norm(name: str) -> None:
        for key in ("weight", "bias", "running_mean"):
            state[f"{name}.{key}"] = torch.randn(WIDTH, generator=generator)
        state[f"{name}.running_var"] = 0.1 + torch.rand(WIDTH, generator=generator)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    for layer in range(LAYERS):
        mlp = f"gnn.ginlayers.{layer}.apply_func"
        state[f"gnn.ginlayers.{layer}.eps"] = torch.tensor([0.25 * layer])
        for number in (0, 1):
            width = inputs if layer == number == 0 else WIDTH
            weight = torch.randn(WIDTH, width, generator=generator)
            state[f"{mlp}.mlp.linears.{number}.weight"] = weight
            bias = torch.randn(WIDTH, generator=generator)
            state[f"{mlp}.mlp.linears.{number}.bias"] = bias
        for name in (f"{mlp}.mlp.batch_norms.0", f"{mlp}.bn", f"gnn.batch_norms.{layer}"):
            norm(name)
    state["gnn.linears_prediction.0.weight"] = torch.zeros(WIDTH, inputs)  # of the readout
    return state


def published(state: State, x: Tensor, edge_index: Tensor) -> Tensor:
    """What the encoder computes, node by node, before the last relu."""

    def norm(name: str, h: Tensor) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(h, *(state[f"{name}.{key}"].double() for key in keys))

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, state[f"{name}.weight"].double(), state[f"{name}.bias"].double())

    h = x
    for layer in range(LAYERS):
        mlp = f"gnn.ginlayers.{layer}.apply_func"
        h = h.relu() if layer else h
        own = (1 + state[f"gnn.ginlayers.{layer}.eps"].double()) * h
        summed = own.index_add(0, edge_index[1], h[edge_index[0]])
        hidden = norm(f"{mlp}.mlp.batch_norms.0", linear(f"{mlp}.mlp.linears.0", summed)).relu()
        out = norm(f"{mlp}.bn", linear(f"{mlp}.mlp.linears.1", hidden)).relu()
        h = norm(f"gnn.batch_norms.{layer}", out)
    return h


def test_the_plain_network_computes_what_the_encoder_does() -> None:
    edges = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 0, 1, 3], [1, 0, 2, 1, 3, 2, 0, 3, 3, 1]])
    graph, state = whole_graph(edges, 5), encoder()
    config = GraphNetworkConfig(
        kind="pyg_gin", in_dim=49, num_layers=LAYERS, hidden_dim=WIDTH, mlp_layers=3
    )
    network = GraphNetwork(config).eval()
    load_tensors(network, plain_layers(state, "it"), "it")
    x = graph.x.double()
    seen = torch.cat([x[:, :POSITIONS], x[:, POSITIONS + DEGREES :]], dim=1)
    with torch.no_grad():
        found = network(collate_features([graph])).double()
    torch.testing.assert_close(found, published(state, seen, edges), rtol=1e-4, atol=1e-4)


def test_every_format_is_read_and_other_networks_are_as_they_are(tmp_path: Path) -> None:
    state = encoder()
    np.savez(tmp_path / "it.npz", **{name: value.numpy() for name, value in state.items()})
    torch.save(state, tmp_path / "it.pth")
    expected = plain_layers(state, "it")
    for name in ("it.npz", "it.pth"):
        found = read_start(tmp_path / name)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)
    plain = {"gnns.0.lin.weight": torch.ones(2, 2)}
    write_tensors(tmp_path / "plain.safetensors", plain)
    assert read_start(tmp_path / "plain.safetensors").keys() == plain.keys()


def test_what_is_no_such_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got an encoder of 49 inputs, expected 33"):
        plain_layers(encoder(49), "it")
    state = encoder()
    del state["gnn.batch_norms.1.bias"]
    with pytest.raises(CheckpointError, match=r"no tensor 'gnn\.batch_norms\.1\.bias'"):
        plain_layers(state, "it")
    np.savez(tmp_path / "objects.npz", it=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("no arrays")
    for name in ("objects.npz", "text.npz", "missing.npz"):
        with pytest.raises(DataError, match=name):
            read_start(tmp_path / name)
