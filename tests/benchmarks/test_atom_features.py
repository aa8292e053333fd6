import torch

from benchmarks.atom_features import DRAWN, SeeingBackbone, compared, graph_of, with_charges
from merging.run.run import Run
from models.data.molecule import collate
from tests.conftest import pico_config, random_backbone


def test_charges_and_hydrogens_stand_beside_each_atom() -> None:
    graph = graph_of("[O-]C(=O)C[NH3+]")
    assert sorted(graph.x.tolist()) == sorted(
        [[7, 0, 2, 0], [5, 0, 3, 0], [7, 0, 3, 0], [5, 0, 3, 2], [6, 0, 4, 3]]
    )
    graph = graph_of("C[C@H](N)C(=O)O")
    assert [atom for atom in graph.x.tolist() if atom[1]] == [[5, graph.x[:, 1].max(), 3, 1]]


def test_it_starts_as_the_checkpoint_and_can_learn_a_charge() -> None:
    plain = random_backbone(pico_config())
    seeing = SeeingBackbone(pico_config(), 0.0, plain.state_dict()).eval()
    amine, ammonium = (collate([graph_of(smiles)]) for smiles in ("CN", "C[NH3+]"))
    assert torch.equal(seeing(ammonium), plain(ammonium))
    torch.testing.assert_close(seeing(amine).sum(0), seeing(ammonium).sum(0))
    torch.nn.init.ones_(seeing.charges.weight[4:5].data)
    assert not torch.allclose(seeing(amine).sum(0), seeing(ammonium).sum(0))


def test_both_drawings_stand_beside_the_model_as_it_is(pico_run: Run) -> None:
    assert all(
        len(with_charges(pico_run, "other", drawn).graphs) == len(pico_run.dataset("other").graphs)
        for drawn in DRAWN.values()
    )
    found = compared(pico_run, "other")
    assert set(found) == {"hu2020", *DRAWN}
    assert all(0.5 < scores["valid"] <= 1 for scores in found.values())
