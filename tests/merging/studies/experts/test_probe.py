"""The probe of a frozen encoder."""

import pytest
import torch
from torch import Tensor

from merging.data.split import Split
from merging.studies.experts.domains import Domain
from merging.studies.experts.probe import STRENGTHS, Score, probe
from models.data.batch import GraphBatch
from models.data.feature_graph import collate_features
from tests.merging.studies.experts.pico import domain, ring


def test_probe_reads_what_the_encoder_says() -> None:
    made = domain("bace", 1)
    assert probe(made, lambda graphs: graphs.x).test > 0.9
    assert probe(made, lambda graphs: torch.zeros_like(graphs.x)).test == 0.5


def test_the_strength_is_chosen_by_the_validation_rows() -> None:
    """With noise beside the label's feature, some strength is better than another."""
    made = domain("bace", 1)
    noise = torch.randn(made.evaluated.x.shape, generator=torch.Generator().manual_seed(0))

    def encoder(graphs: GraphBatch) -> Tensor:
        return torch.cat([graphs.x, noise], dim=1)

    single = []
    for strength in STRENGTHS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("merging.studies.experts.probe.STRENGTHS", (strength,))
            single.append(probe(made, encoder))
    chosen = probe(made, encoder)
    assert chosen == max(single, key=lambda score: score.valid)


def test_nodes_are_scored_by_the_accuracy_of_known_classes() -> None:
    whole = ring(40, 1, chords=10)
    labels = (whole.x[:, 0] > 0).long()
    labels[35:] = -1
    split = Split(torch.arange(20), torch.arange(20, 30), torch.arange(30, 40))
    made = Domain("cora", (whole,), collate_features([whole]), labels, split)
    assert probe(made, lambda graphs: graphs.x[:, :1].sign()) == Score(valid=1.0, test=1.0)
    constant = probe(made, lambda graphs: torch.zeros_like(graphs.x))
    majority = int(labels[:20].mode().values)
    assert constant.test == pytest.approx(float((labels[30:35] == majority).double().mean()))
