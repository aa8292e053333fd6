"""The vocabulary of ToxCast: every label of the releases, and nothing that is made up."""

import re
from pathlib import Path

import pytest

import models
from merging.meanings.toxcast import _vocabulary, toxcast_label
from models.artifact import read_manifest
from models.errors import ConfigError

RELEASE = Path(models.__file__).parent / "releases" / "moleculenet-gcn"
LABELS = read_manifest(RELEASE)[0].tasks["toxcast"].labels


def test_all_labels_are_known_and_have_names_of_their_own() -> None:
    names = [toxcast_label(label).name for label in LABELS]
    assert len(names) == len(set(names)) == 617


def test_the_vocabulary_has_no_word_or_pattern_that_no_label_needs() -> None:
    vocabulary, patterns, words = _vocabulary(), set(), set()
    for label in LABELS:
        pattern = next(own for own in vocabulary.patterns if re.fullmatch(own.label, label))
        patterns.add(pattern.label)
        match = re.fullmatch(pattern.label, label)
        assert match is not None
        words |= {pair for pair in match.groupdict("").items() if pair[0] != "hours"}
    assert patterns == {pattern.label for pattern in vocabulary.patterns}
    assert words == {(group, word) for group, own in vocabulary.words.items() for word in own}


@pytest.mark.parametrize(
    ("label", "name", "said", "direction"),
    [
        (
            "ATG_ERa_TRANS_up",
            "oestrogen receptor alpha (ESR1), GAL4 reporter, increase",
            "raises the activity of the oestrogen receptor alpha (ESR1) in human HepG2",
            "bad",
        ),
        (
            "ATG_NRF2_ARE_CIS_dn",
            "the antioxidant response element (NFE2L2), own reporter, decrease",
            "lowers the activity",
            "neither",
        ),
        ("ATG_NRF2_ARE_CIS_up", "", "raises the activity of the antioxidant", "bad"),
        ("NVS_IC_hKhERGCh", "binding to human hERG potassium channel (KCNH2)", "displaces", "bad"),
        ("NVS_GPCR_rmAdra2B", "", "adrenergic receptor alpha 2B (ADRA2B) (rat)", "neither"),
        ("NVS_ENZ_rabI2C", "inhibition of rabbit brain creatine kinase (CKB)", "", "neither"),
        ("OT_FXR_FXRSRC1_0480", "FXR with SRC1, 8 hours", "within 8 hours", "neither"),
        ("TOX21_ARE_BLA_Agonist_ch1", "", "substrate that is not cleaved", "neither"),
        ("TOX21_MMP_ratio_down", "mitochondrial membrane potential, decrease", "lowers", "bad"),
        ("TOX21_MMP_ratio_up", "mitochondrial membrane potential, increase", "raises", "neither"),
        ("BSK_SAg_PBMCCytotoxicity_up", "", "raises the number of living blood cells", "neither"),
        ("Tanguay_ZF_120hpf_MORT_up", "zebrafish embryos: death", "120 hours", "bad"),
    ],
)
def test_labels_say_what_was_measured(label: str, name: str, said: str, direction: str) -> None:
    text = toxcast_label(label)
    assert text.name == name or not name
    assert said in text.measured
    assert text.direction == direction


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("ATG_Unheard_CIS_up", "with word 'Unheard', expected one of toxcast.yaml"),
        ("NVS_ENZ_hUnheard", "with word 'Unheard'"),
        ("TOX21_Unheard_BLA_ratio", "expected a name that toxcast.yaml knows"),
        ("has_n", "expected a name that toxcast.yaml knows"),
    ],
)
def test_nothing_is_made_up(label: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toxcast_label(label)
