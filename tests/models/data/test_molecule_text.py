import contextlib
import time

import pytest
from rdkit import Chem
from rdkit.Chem import rdDepictor

from models.data.molecule_text import (
    atoms_at_most,
    plain_smiles,
    smiles_of_inchi,
    smiles_of_mol_block,
    text_kind,
)
from models.data.smiles import featurize, read_smiles
from models.errors import MoleculeError

ETHANOL = """ethanol
  -ours-  2D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.5000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    2.2500    1.3000    0.0000 O   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  2  3  1  0
M  END
"""


DRAWN = "(0,0,;1,1,;2,0,;3,1,;4,0,;3,2,)"


def block(smiles: str, *, v3000: bool = False) -> str:
    mol = Chem.MolFromSmiles(smiles)
    rdDepictor.Compute2DCoords(mol)
    return str(Chem.MolToMolBlock(mol, forceV3000=v3000))


def with_line(line: str) -> str:
    return ETHANOL.replace("M  END", line + "\nM  END")


def multiplied(times: int) -> str:
    """Write ethanol with its carbons in a multiple group of one atom and the given number."""
    display = "".join(f"M  SDI   1  4{x:>10}{0.1:>10}{x:>10}{0.9:>10}\n" for x in (0.1, 0.9))
    group = "M  STY  1   1 MUL\nM  SAL   1  2   1   2\nM  SPA   1  1   1\nM  SMT   1 "
    return with_line(f"{group}{times}\n{display}".rstrip("\n"))


def abbreviated(label: str) -> str:
    """Write ethanol with its oxygen as an abbreviation."""
    return with_line(f"M  STY  1   1 SUP\nM  SAL   1  1   3\nM  SMT   1 {label}")


def v3000_with(*lines: str) -> str:
    return block("CCO", v3000=True).replace(
        "M  V30 END CTAB", "\n".join([*(f"M  V30 {line}" for line in lines), "M  V30 END CTAB"])
    )


def code_of(text: str, max_atoms: int | None = None) -> str:
    with pytest.raises(MoleculeError, match=r"got .*(expected|not a possible molecule)") as caught:
        featurize(text, max_atoms=max_atoms)
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "smiles"),
    [
        ("C[C@H](N)C(=O)O |&1:1,r|", "C[C@H](N)C(=O)O"),
        ("CCO |$;;HO$|", "CCO"),
        ("CCO\t|$;;HO$|", "CCO"),
        ("CCO |$H3C;;$|", "CCO"),
        ("CCO |$Me;2;O3$|", "CCO"),
        ("CCO |$_AV:;;7$|", "CCO"),
        ("CC=CC |c:1|", "C/C=C\\C"),
        (f"C/C=C/[C@H](O)N |{DRAWN},wU:3.2|", "C/C=C/[C@@H](N)O"),
        (f"C/C=C/[C@H](O)N |wU:3.2,{DRAWN}|", "C/C=C/[C@@H](N)O"),
        (f"C/C=C/C(O)N |{DRAWN},wU:3.3|", "C/C=C/[C@@H](N)O"),
        (f"C/C=C/C(O)N |wD:3.3,{DRAWN},c:1|", "C/C=C/[C@H](N)O"),
        (f"C/C=C/C(O)N |{DRAWN},wU:3.3,ctu:1|", "CC=C[C@@H](N)O"),
        ("C/C=C/C(O)N |wD:3.3,wU:3.2|", "C/C=C/C(N)O"),
        ("CCO |SgD:1:name:value::::|", "CCO"),
        ("[13CH3]CO |$;;$|", "CCO"),
        ("InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3", "CCO"),
        (" InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3\n", "CCO"),
        ("InChI=1/C2H6O/c1-2-3/h3H,2H2,1H3", "CCO"),
        ("InChI=1S/C3H7NO2/c1-2(4)3(5)6/h2H,4H2,1H3,(H,5,6)/t2-/m0/s1", "C[C@H](N)C(=O)O"),
        ("InChI=1S/C6H6/c1-2-4-6-5-3-1/h1-6H/i1D,2D", "c1ccccc1"),
        ("InChI=1S/C2H6O.ClH/c1-2-3;/h3H,2H2,1H3;1H", "CCO.Cl"),
        (ETHANOL, "CCO"),
        (ETHANOL.replace("\n", "\r\n"), "CCO"),
        (ETHANOL.replace("\n", "\r"), "CCO"),
        (ETHANOL + "> <ID>\nA-7\n\n$$$$\n", "CCO"),
        (with_line(""), "CCO"),
        (with_line("\n"), "CCO"),
        (ETHANOL.replace("  3  2  0  0  0  0  0  0  0  0999 V2000", "  3  2  0"), "CCO"),
        (ETHANOL.replace(" O   0  0  0  0  0  0  0  0  0  0  0  0", " O"), "CCO"),
        ("\n" + ETHANOL.split("\n", 1)[1], "CCO"),
        (ETHANOL.split("\n", 1)[1], "CCO"),
        (ETHANOL.split("\n", 2)[2], "CCO"),
        (ETHANOL.split("\n", 3)[3], "CCO"),
        ("\n\n" + ETHANOL, "CCO"),
        (with_line("A    3\nOH"), "CCO"),
        (with_line("A    1\nCH3"), "CCO"),
        (with_line("V    3 0.45"), "CCO"),
        (with_line("M  STY  1   1 DAT"), "CCO"),
        (with_line("M  STY  1   1 SUP\nM  SAL   1  1   3\nM  SMT   1 OH"), "CCO"),
        (multiplied(2), "CCO"),
        (block("C[C@H](N)C(=O)O"), "C[C@H](N)C(=O)O"),
        (block("C[C@H](N)C(=O)O", v3000=True), "C[C@H](N)C(=O)O"),
        (block("F/C=C\\F", v3000=True), "F/C=C\\F"),
        (block("[13CH3]C([2H])O[CH3:7]"), "CCOC"),
    ],
)
def test_other_texts_than_smiles(text: str, smiles: str) -> None:
    assert featurize(text).smiles == smiles
    assert Chem.MolToSmiles(read_smiles(text)) == smiles
    assert atoms_at_most(text) >= featurize(text).graph.num_nodes


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (with_line("A    3\nCOOH"), "dummy_atom"),
        (with_line("A    1\nPh"), "dummy_atom"),
        (with_line("A    2\nMe"), "dummy_atom"),
        (with_line("A    1\nR1"), "dummy_atom"),
        (with_line("M  APO  1   1   1"), "dummy_atom"),
        (with_line("M  RGP  1   3   1"), "dummy_atom"),
        (with_line("M  MRV SMA   3 [O,N]"), "dummy_atom"),
        (abbreviated("COOH"), "dummy_atom"),
        (multiplied(3), "polymer"),
        ("none\n\n\n  0  0  0     0  0            999 V2000\nM  END\n", "empty_smiles"),
        (with_line("M  STY  1   1 SRU\nM  SAL   1  1   3\nM  SMT   1 n"), "polymer"),
        (with_line("M  STY  2   1 DAT   2 COP"), "polymer"),
        (with_line("M  STY  1   1 SRU\nM  SAL   1  9  77"), "polymer"),
        (with_line("M  STY  1   1 FOR"), "polymer"),
        (with_line("M  LIN  1   2   4   1   3"), "polymer"),
        (
            v3000_with(
                "BEGIN SGROUP",
                "1 SRU 1 ATOMS=(1 2) XBONDS=(2 1 2) CONNECT=HT LABEL=n",
                "END SGROUP",
            ),
            "polymer",
        ),
        (
            v3000_with(
                "BEGIN SGROUP",
                "1 DAT 1 ATOMS=(1 2) FIELDNAME=a",
                "2 MON 2 ATOMS=(1 2)",
                "END SGROUP",
            ),
            "polymer",
        ),
        (block("CCO", v3000=True).replace("M  V30 1 C", "M  V30 1 *"), "dummy_atom"),
        ("CCO |$;;COOH$|", "dummy_atom"),
        ("CCO |$_R1;;$|", "dummy_atom"),
        ("C*O |$;_R1;$|", "dummy_atom"),
        ("CCO |$Ph;;$|", "dummy_atom"),
        ("CCO |Sg:n:1:3:ht|", "polymer"),
        ("CCO |Sg:co:1::|", "polymer"),
        ("CCO |LN:1:1.3.0.2|", "polymer"),
        ("CCO |bogus|", "smiles_syntax"),
        ("CCO |$;;HO$", "smiles_syntax"),
        ("CCO |$;;HO$| name", "smiles_syntax"),
        ("C1CC |$;;$|", "smiles_syntax"),
        ("[Na+256] |$a$|", "chemistry"),
        ("CC(C)(C)(C)C |r|", "chemistry"),
        ("InChI=", "inchi_syntax"),
        ("InChI=1S/", "inchi_syntax"),
        ("InChI=1S/C2H6O", "inchi_syntax"),
        ("InChI=1S/C2H6O/c1-2-3/h3H,2H2", "inchi_syntax"),
        ("InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3/junk", "inchi_syntax"),
        ("InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3 ethanol", "inchi_syntax"),
        ("InChI=1S/C2Zz/c1-2", "inchi_syntax"),
        (ETHANOL.replace("  2  3  1  0", "  2  7  1  0"), "mol_block_syntax"),
        (ETHANOL.replace("M  END\n", ""), "mol_block_syntax"),
        (ETHANOL.replace("  1  2  1  0\n", ""), "mol_block_syntax"),
        (ETHANOL + ETHANOL, "mol_block_syntax"),
        (ETHANOL.replace("  2  3  1  0", "  2  3  8  0"), "bond_type"),
        (ETHANOL.replace(" O   0", " Q   0"), "dummy_atom"),
    ],
)
def test_what_is_refused(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("LFQSCWFLJHTTHZ-UHFFFAOYSA-N", "InChIKey"),
        ("64-17-5", "CAS number"),
        ("aspirin", "expected a SMILES"),
    ],
)
def test_names_and_numbers_are_refused_in_words(text: str, hint: str) -> None:
    with pytest.raises(MoleculeError, match=hint) as caught:
        featurize(text)
    assert caught.value.code == "smiles_syntax"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("InChI=1S/60CH4/h60*1H4", "too_many_atoms"),
        ("InChI=1S/C99999999/c1-2", "too_many_atoms"),
        ("InChI=1S/99999999999999999999CH4/h1H4", "too_many_atoms"),
        ("C" * 11 + " |r|", "too_many_atoms"),
        (block("C" * 11), "too_many_atoms"),
        (block("C" * 11, v3000=True), "too_many_atoms"),
        (v3000_with().replace("COUNTS 3 2", "COUNTS 99999999 2"), "too_many_atoms"),
        (v3000_with().replace("COUNTS 3 2", "COUNTS 3 99999999"), "too_many_bonds"),
        (v3000_with().replace("COUNTS 3 2", "COU-\nM  V30 NTS 99999999 2"), "too_many_atoms"),
    ],
)
def test_what_is_too_large(text: str, code: str) -> None:
    assert code_of(text, max_atoms=10) == code


def test_drawn_hydrogens_are_not_counted() -> None:
    mol = Chem.AddHs(Chem.MolFromSmiles("CCCCCCCCCC"))
    for v3000 in (False, True):
        assert (
            featurize(Chem.MolToMolBlock(mol, forceV3000=v3000), max_atoms=10).graph.num_nodes == 10
        )


def test_fields_for_one_format_take_no_other() -> None:
    with pytest.raises(MoleculeError, match="expected one InChI"):
        smiles_of_inchi("CCO")
    with pytest.raises(MoleculeError, match="MDL"):
        smiles_of_mol_block("CCO")


@pytest.mark.parametrize(
    "text",
    [
        "InChI=1S/" + "C1" * 100_000 + "!",
        "V2000" * 100_000 + "\n" + " " * 100_000 + "!",
        ETHANOL.replace("M  END", "M  V30 BEGIN SGROUP\n" * 30_000 + "M  END"),
        ETHANOL.replace("M  END", "M  STY  1   1 DAT\n" * 30_000 + "M  END"),
        "C |" + "$;" * 100_000,
    ],
)
def test_hostile_texts_take_no_more_than_their_length_says(text: str) -> None:
    started = time.process_time()
    atoms_at_most(text)
    with contextlib.suppress(MoleculeError):  # some are ethanol
        featurize(text, max_atoms=500)
    assert time.process_time() - started < 2


def test_kinds() -> None:
    assert [
        text_kind(text)
        for text in ("CCO", "CCO |r|", " InChI=1S/CH4/h1H4", ETHANOL, "V2000", "C\nC")
    ] == [*("smiles", "smiles", "inchi", "mol_block", "smiles", "smiles")]
    assert plain_smiles(" OCC\n") == "OCC"
