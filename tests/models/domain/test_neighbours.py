"""The nearest molecules are exactly those that RDKit's similarities name."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from rdkit.DataStructs import BulkTanimotoSimilarity

from models.data.fingerprint import BITS, SIMILARITY_BITS, fingerprint, neutralise, similarity_bits
from models.data.smiles import read_smiles
from models.domain.neighbours import MoleculeSet, decoded, encoded, packed
from models.errors import ArtifactError
from tests.domains import fingerprint_of, known_set, molecules, random_prints, spellings

RDKIT = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=SIMILARITY_BITS)
QUERIES = ("c1ccccc1CCO", "CC(=O)Oc1ccccc1C(=O)O", "C", "CCCCCCCCCCCCCCCC", "c1ccc2[nH]ccc2c1")


def brute(known: MoleculeSet, query: np.ndarray, most: int) -> tuple[list[int], list[float]]:
    """All similarities, sorted; of equal ones the smaller row is first."""
    shared = np.bitwise_count(known.fingerprints & query).sum(1).astype(float)
    similarities = shared / np.bitwise_count(known.fingerprints | query).sum(1)
    order = np.lexsort((known.rows, -similarities))[:most]
    return known.rows[order].tolist(), similarities[order].tolist()


@pytest.mark.parametrize("query", QUERIES)
def test_the_nearest_are_those_of_rdkit(query: str) -> None:
    smiles = molecules()
    prints = [RDKIT.GetFingerprint(neutralise(Chem.MolFromSmiles(text))) for text in smiles]
    of_query = RDKIT.GetFingerprint(neutralise(Chem.MolFromSmiles(query)))
    similarities = np.array(BulkTanimotoSimilarity(of_query, prints))
    expected = np.lexsort((np.arange(len(smiles)), -similarities))[:10]
    found = known_set(smiles, first_row=0).nearest(fingerprint_of(query), 10)
    assert found.rows.tolist() == expected.tolist()
    assert found.similarities == pytest.approx(similarities[expected], abs=1e-12)


def test_a_planted_molecule_is_found_in_every_spelling() -> None:
    smiles = molecules()
    known = known_set([*smiles, "CC(=O)Oc1ccccc1C(=O)O"])
    for text in spellings("CC(=O)Oc1ccccc1C(=O)O"):
        found = known.nearest(fingerprint_of(text), 3)
        assert (found.rows[0], found.similarities[0]) == (len(smiles) + 2, 1.0)
        assert (found.similarities[1:] < 1).all()


def test_an_acid_and_its_salt_ion_are_one_molecule() -> None:
    assert np.array_equal(fingerprint_of("CCC(=O)O"), fingerprint_of("CCC(=O)[O-]"))
    assert not np.array_equal(fingerprint_of("CCC(=O)O"), fingerprint_of("CCC(=O)OC"))


def test_bits_are_the_halves_of_the_forests_fingerprint() -> None:
    for smiles in QUERIES:
        mol = read_smiles(smiles)
        counts = fingerprint(mol, smiles)[:BITS]
        halves = (counts[: BITS // 2] > 0) | (counts[BITS // 2 :] > 0)
        assert np.array_equal(similarity_bits(mol), halves)


@pytest.mark.parametrize("most", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_bound_on_sizes_loses_no_neighbour(most: int, seed: int) -> None:
    prints, random = random_prints(700, seed), np.random.default_rng(seed)
    known = MoleculeSet.sorted(prints, random.permutation(700).astype(np.int32))
    for query in (*random_prints(40, seed + 10), *prints[:20]):
        found = known.nearest(query, most)
        rows, similarities = brute(known, query, most)
        assert found.rows.tolist() == rows
        assert found.similarities.tolist() == similarities


def test_of_equal_similarity_the_smaller_row_is_first() -> None:
    prints = np.concatenate([random_prints(30)] * 4)
    rows = np.random.default_rng(1).permutation(len(prints)).astype(np.int32)
    known = MoleculeSet.sorted(prints, rows)
    for query in random_prints(30):
        found = known.nearest(query, 6)
        assert (found.rows.tolist(), found.similarities.tolist()) == brute(known, query, 6)
        assert found.rows[0] < found.rows[1] < found.rows[2] < found.rows[3]
    # Similar in the same degree with fewer and with more bits: 2 / 4 and 4 / 8.
    bits = np.zeros((3, SIMILARITY_BITS), bool)
    bits[0, :2], bits[1, :8], bits[2, :4] = True, True, True
    two = MoleculeSet.sorted(packed(bits[:2]), np.array([9, 4], np.int32))
    assert two.nearest(packed(bits[2:])[0], 1).rows.tolist() == [4]
    assert two.nearest(packed(bits[2:])[0], 2).similarities.tolist() == [0.5, 0.5]


def test_a_small_set_gives_what_it_has() -> None:
    known = known_set(["CCO", "c1ccccc1"])
    found = known.nearest(fingerprint_of("CCO"), 3)
    assert found.rows.tolist() == [2, 3]
    assert found.similarities[0] == 1


def test_fingerprints_come_back_from_few_bytes() -> None:
    for prints in (random_prints(300), known_set(molecules()).fingerprints):
        data = encoded(prints)
        assert np.array_equal(decoded(data, len(prints)), prints)
    bits = int(np.bitwise_count(prints).sum())
    assert bits <= len(data) < 1.1 * bits


@pytest.mark.parametrize("molecules", [0, 1, 299])
def test_bytes_of_more_molecules_are_refused(molecules: int) -> None:
    with pytest.raises(ArtifactError, match=f"expected those of {molecules} molecules"):
        decoded(encoded(random_prints(300)), molecules)


def test_bits_that_are_not_in_order_are_refused() -> None:
    data = encoded(random_prints(3))
    data[5] = 0
    with pytest.raises(ArtifactError, match="got bits that are not in order"):
        decoded(data, 3)
    with pytest.raises(ArtifactError, match="got bits that are not in order"):
        decoded(data[:0], 3)


def test_sets_that_are_not_sorted_are_refused() -> None:
    known = MoleculeSet.sorted(random_prints(20), np.arange(20, dtype=np.int32))
    known.check()
    with pytest.raises(ArtifactError, match="molecules that are not sorted"):
        MoleculeSet(known.fingerprints[::-1].copy(), known.rows).check()
    same = np.repeat(random_prints(1), 3, axis=0)
    with pytest.raises(ArtifactError, match="molecules that are not sorted"):
        MoleculeSet(same, np.array([1, 0, 2], np.int32)).check()
    for rows in ([1, 1, 2], [-1, 1, 2]):
        with pytest.raises(ArtifactError, match="got a row twice, or a negative one"):
            MoleculeSet(same, np.array(rows, np.int32)).check()
    with pytest.raises(ArtifactError, match="got a molecule without bits"):
        MoleculeSet(np.zeros_like(same), np.array([1, 2, 3], np.int32)).check()
