import math
from itertools import permutations
from pathlib import Path

import pytest
import torch

from merging.data.chgnet_weights import read_weights, weights_file
from models.data.atoms import Atoms
from models.errors import CheckpointError
from models.networks.chgnet import (
    AngularWaves,
    Chgnet,
    ChgnetConfig,
    GatheredLinear,
    RadialWaves,
    bond_angles,
    joined,
)
from models.networks.force_field import ForceFieldExpert, energy_and_forces
from models.state_dict import load_tensors
from tests.conftest import collate_atoms
from tests.models.networks.test_force_field import random_structure

SILICON = [[0.0, 0.0, 0.0], [1.3, 1.4, 1.35]]


def test_waves_are_sines_that_end_smoothly_at_the_cutoff() -> None:
    waves = RadialWaves(3, cutoff=2.0)
    with torch.no_grad():
        near, end = waves(torch.tensor([1e-3])), waves(torch.tensor([1.999, 2.0, 2.5]))
    # sin(n pi r / c) / r -> n pi / c for small r, times sqrt(2 / c) = 1
    assert near[0].tolist() == pytest.approx([math.pi / 2, math.pi, 1.5 * math.pi], rel=1e-4)
    assert float(end[0].abs().max()) < 1e-6
    assert not end[1:].any()
    distances = torch.tensor([0.7, 1.9], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(waves.double(), distances)


def test_angular_waves_are_orthonormal() -> None:
    angles = (torch.arange(4000) + 0.5) / 4000 * 2 * math.pi
    rows = AngularWaves(7)(angles)
    assert rows.shape == (4000, 7)
    torch.testing.assert_close(rows.T @ rows * 2 * math.pi / 4000, torch.eye(7), atol=1e-4, rtol=0)


def test_angles_are_all_pairs_of_short_bonds_at_an_atom() -> None:
    center = torch.tensor([0, 0, 0, 1, 2, 2])
    short = torch.tensor([True, False, True, True, True, True])
    one, other = bond_angles(center, short, 4)
    assert sorted(zip(one.tolist(), other.tolist(), strict=True)) == [
        *permutations((0, 2), 2),
        *permutations((4, 5), 2),
    ]


def test_a_gathered_linear_is_a_linear_of_the_joined_rows() -> None:
    torch.manual_seed(0)
    tables = ((torch.randn(3, 2), torch.tensor([2, 0, 0, 1])), (torch.randn(4, 5), None))
    linear = GatheredLinear(7, 3)
    expected = torch.nn.functional.linear(joined(*tables), linear.weight, linear.bias)
    torch.testing.assert_close(linear(*tables), expected)
    # every row is joined as it is gathered
    assert torch.equal(joined(*tables)[3, :2], tables[0][0][1])


def test_all_linears_are_listed_in_the_order_of_the_pass() -> None:
    config = ChgnetConfig(hidden_dim=4, num_interactions=3, num_radial=4, num_angular=5, cutoff=3.0)
    network, expert, seen = Chgnet(config), ForceFieldExpert(config), []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    batch = collate_atoms([random_structure(0)], 3.0)
    network(expert.embedding(batch.numbers), batch, batch.positions)
    groups = network.linear_groups()
    listed = [name for group in groups for name in group]
    assert sorted(listed) == sorted(seen)
    group_of = {name: k for k, group in enumerate(groups) for name in group}
    order = [group_of[name] for name in seen if group_of[name]]
    assert order == sorted(order)


def test_no_package_and_other_files_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merging.data.chgnet_weights.find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="got no package chgnet"):
        weights_file()
    torch.save({"model": {"state_dict": {}}}, tmp_path / "other.pth.tar")
    with pytest.raises(CheckpointError, match="expected weights of CHGNet"):
        read_weights(tmp_path / "other.pth.tar")


def chgnet_names(config: ChgnetConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that a checkpoint of the package holds."""
    d, blocks = config.hidden_dim, config.num_interactions
    shapes: dict[str, tuple[int, ...]] = {
        "composition_model.fc.weight": (1, 94),
        "atom_embedding.embedding.weight": (94, d),
        "bond_basis_expansion.rbf_expansion_ag.frequencies": (config.num_radial,),
        "bond_basis_expansion.rbf_expansion_bg.frequencies": (config.num_radial,),
        "angle_basis_expansion.fourier_expansion.frequencies": (config.num_angular // 2,),
        "angle_embedding.weight": (d, config.num_angular),
        "site_wise.weight": (1, d),
        "readout_norm.weight": (d,),
        "readout_norm.bias": (d,),
    }
    for name in ("bond_embedding", "bond_weights_ag", "bond_weights_bg"):
        shapes[f"{name}.weight"] = (d, config.num_radial)
    layers = [(f"atom_conv_layers.{k}.twoBody_atom", 3 * d) for k in range(blocks)]
    layers += [(f"bond_conv_layers.{k}.twoBody_bond", 4 * d) for k in range(blocks - 1)]
    for layer, width in layers:
        for half in ("core", "gate"):
            for place, inputs in ((0, width), (3, d)):
                shapes[f"{layer}.mlp_{half}.layers.{place}.weight"] = (d, inputs)
                shapes[f"{layer}.mlp_{half}.layers.{place}.bias"] = (d,)
        shapes[f"{layer.rpartition('.')[0]}.mlp_out.layers.1.weight"] = (d, d)
    angles = [f"angle_layers.{k}.twoBody_bond" for k in range(blocks - 1)]
    for layer in angles:
        for half in ("core", "gate"):
            shapes[f"{layer}.mlp_{half}.layers.1.weight"] = (d, 4 * d)
            shapes[f"{layer}.mlp_{half}.layers.1.bias"] = (d,)
    for layer in (*(name for name, _ in layers), *angles):
        for norm in ("bn1", "bn2"):
            shapes |= {f"{layer}.{norm}.weight": (d,), f"{layer}.{norm}.bias": (d,)}
    for place, outputs in ((0, d), (2, d), (4, d), (7, 1)):
        shapes[f"mlp.layers.{place}.weight"] = (outputs, d)
        shapes[f"mlp.layers.{place}.bias"] = (outputs,)
    return shapes


def test_weights_are_read_under_our_names(tmp_path: Path) -> None:
    config = ChgnetConfig(hidden_dim=4, num_interactions=2, num_radial=3, num_angular=5)
    torch.manual_seed(0)
    state = {name: torch.randn(shape) for name, shape in chgnet_names(config).items()}
    torch.save({"model": {"state_dict": state}}, tmp_path / "weights.pth.tar")
    read = read_weights(tmp_path / "weights.pth.tar")
    network, expert = Chgnet(config), ForceFieldExpert(config)
    own = {key.removeprefix("network."): read[key] for key in read if key.startswith("network.")}
    load_tensors(network, own, "weights")
    head = {key.removeprefix("head."): read[key] for key in read if key.startswith("head.")}
    load_tensors(expert, expert.state_dict() | head, "weights")
    known = state["atom_embedding.embedding.weight"]
    assert torch.equal(expert.embedding.weight[1], known[0])  # hydrogen
    assert torch.equal(expert.embedding.weight[94], known[93])
    gate = network.get_parameter("bond_layers.0.gate_out.weight")
    assert torch.equal(gate, state["bond_conv_layers.0.twoBody_bond.mlp_gate.layers.3.weight"])
    assert torch.equal(expert.get_parameter("lin3.bias"), state["mlp.layers.4.bias"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the package's own
@pytest.mark.parametrize("periodic", [False, True])
def test_answers_are_those_of_the_package(periodic: bool) -> None:
    pytest.importorskip("chgnet", reason="chgnet is not installed (extra `chgnet`)")
    from chgnet.model.model import CHGNet
    from pymatgen.core import Lattice, Structure

    cell = [[3.9, 0.0, 0.2], [1.9, 3.4, 0.0], [0.1, 1.1, 3.2]] if periodic else None
    atoms = Atoms.from_lists([14, 8], SILICON, cell)
    read, config = read_weights(weights_file()), ChgnetConfig()
    network, expert = Chgnet(config), ForceFieldExpert(config)
    own = {key.removeprefix("network."): read[key] for key in read if key.startswith("network.")}
    load_tensors(network, own, "weights")
    head = {key.removeprefix("head."): read[key] for key in read if key.startswith("head.")}
    load_tensors(expert, expert.state_dict() | head, "weights")
    found = energy_and_forces(network, expert, collate_atoms([atoms], config.cutoff))
    package = CHGNet.load(use_device="cpu", verbose=False)
    package.composition_model = None  # the energies of elements are an expert's own
    lattice = Lattice(cell or [[40.0, 0, 0], [0, 40.0, 0], [0, 0, 40.0]])
    structure = Structure(lattice, [14, 8], SILICON, coords_are_cartesian=True)
    expected = package.predict_structure(structure, task="ef")
    assert float(found.energy[0]) == pytest.approx(2 * float(expected["e"]), abs=1e-4)
    assert found.forces.numpy() == pytest.approx(expected["f"], abs=2e-4)
    assert float(found.forces.abs().max()) > 0.01
