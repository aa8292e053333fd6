"""Molecules in other texts than SMILES: CXSMILES, InChI and MDL mol blocks (V2000 and V3000).

All are converted to plain SMILES and then read in one way.

A text may state more than its atoms and bonds, such as an atom that stands for a group or a
repeated unit. It is refused, as its atoms alone are another molecule. Statements that do not
concern the structure are ignored: names, data fields, coordinates where the stereo is known,
enhanced-stereo groups, abbreviations whose atoms are drawn (SUP), labels that repeat their atom's
element.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from rdkit import Chem

from models.errors import MoleculeError

TextKind = Literal["smiles", "inchi", "mol_block"]
_MOL_BLOCK = re.compile(r"^M  END|V[23]000[ \t]*$", re.MULTILINE)
_CXSMILES = re.compile(r"(\S+)[ \t]+(\|.*\|)")
_INCHI_KEY = re.compile(r"[A-Z]{14}-[A-Z]{10}-[A-Z]")
_CAS_NUMBER = re.compile(r"\d{2,7}-\d{2}-\d")
_FORMULA = re.compile(r"InChI=1[SB]?/([A-Z0-9][A-Za-z0-9.]*)(?:/|$)")
_ELEMENT_COUNT = re.compile(r"([A-Z][a-z]?)(\d*)")
_METHANE = "'InChI=1S/CH4/h1H4'"
_COUNTS_V3000 = re.compile(r"^M  V30\s+COUNTS\s+(\d{1,18})\s+(\d{1,18})", re.MULTILINE)
# All their atoms are drawn, and they add only words.
_HARMLESS_SGROUPS = {"SUP", "DAT", "GEN", "MUL"}
_MIXTURES = {"COM", "MIX", "FOR"}
TOO_LARGE = re.compile(r"\[(?:\d{4}|[^\]]*(?:[+-]|H)\d{3})")
"""Numbers that overflow in RDKit, which stores charges and hydrogens in 8 bits and isotopes in 16
without a check: [Na+256] would be sodium."""
DRAWN_ATOMS = 4
"""Most atoms, and most bonds, of a mol block for each heavy atom of the limit, as hydrogens may be
drawn."""


def text_kind(text: str) -> TextKind:
    """Guess the format of a molecule's text from its form."""
    if text.lstrip().startswith("InChI="):
        return "inchi"
    several_lines = text.replace("\r", "\n")
    return "mol_block" if "\n" in several_lines and _MOL_BLOCK.search(several_lines) else "smiles"


def has_extension(text: str) -> bool:
    """Return True if a text that is neither InChI nor mol block is CXSMILES."""
    return _CXSMILES.fullmatch(text.strip()) is not None


def atoms_at_most(text: str) -> int:
    """Return an upper bound of the number of heavy atoms of a text, without parsing it."""
    kind = text_kind(text)
    if kind == "inchi":
        return _formula_atoms(text) or len(text)
    return text.count("\n") + text.count("\r") if kind == "mol_block" else len(text)


def plain_smiles(text: str, max_atoms: int | None = None) -> str:
    """Convert a molecule's text to SMILES without an extension.

    A SMILES is returned as it is, without surrounding white space. Whether the molecule is
    chemically possible is not checked here; reading the SMILES does.

    Args:
        text: SMILES, CXSMILES, InChI or one mol block.
        max_atoms: most heavy atoms; a text that states many more is refused before it is parsed.

    Raises:
        MoleculeError: with code `smiles_syntax`, `inchi_syntax`, `mol_block_syntax`,
            `too_many_atoms`, `too_many_bonds`, `dummy_atom` or `polymer`.
    """
    kind = text_kind(text)
    if kind == "mol_block":
        return smiles_of_mol_block(text, max_atoms)
    if kind == "inchi":
        return smiles_of_inchi(text, max_atoms)
    text = text.strip()
    extended = _CXSMILES.fullmatch(text)
    return text if extended is None else _smiles_of_cxsmiles(*extended.groups())


def what_it_looks_like(text: str) -> str:
    """Return a hint on a text that is no SMILES, as the end of a sentence; empty if there is
    none.
    """
    if _INCHI_KEY.fullmatch(text):
        return ": this is an InChIKey, from which no molecule can be read"
    if _CAS_NUMBER.fullmatch(text):
        return ": this looks like a CAS number, from which no molecule can be read"
    return ""


def shown(text: str) -> str:
    """Quote, escape and shorten a client's text for an error message."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


# --- CXSMILES ---


def _smiles_of_cxsmiles(smiles: str, extension: str) -> str:
    if TOO_LARGE.search(smiles) or Chem.MolFromSmiles(smiles) is None:
        return smiles  # reading it raises the error
    mol = _read_cxsmiles(smiles, extension)
    if mol is None:
        raise MoleculeError(
            "smiles_syntax",
            f"got the extension {shown(extension)}, which is not valid CXSMILES, expected none",
        )
    if ("/" in smiles or "\\" in smiles) and _WEDGES.search(extension):
        mol = _with_double_bonds(mol, smiles, extension)
    _check_atoms(mol)
    _check_sgroups(group.GetProp("TYPE") for group in Chem.GetMolSubstanceGroups(mol))
    return str(Chem.MolToSmiles(mol))


def _read_cxsmiles(smiles: str, extension: str) -> Chem.Mol | None:
    parameters = Chem.SmilesParserParams()
    parameters.parseName = False  # type: ignore[assignment]  # the stubs have another class's type
    return Chem.MolFromSmiles(f"{smiles} {extension}", parameters)


_WEDGE = r"w[UD]:\d+\.\d+(?:,\d+\.\d+)*"
_WEDGES = re.compile(rf"(?<=\|)(?:{_WEDGE},?)+|(?:,{_WEDGE})+(?=[,|])")


def _with_double_bonds(mol: Chem.Mol, smiles: str, extension: str) -> Chem.Mol:
    """Restore the double-bond stereo of the SMILES, which RDKit drops where a wedge lies on a bond
    with a direction (`/`).
    """
    without = _read_cxsmiles(smiles, _WEDGES.sub("", extension))
    if without is None:
        return mol
    for atom, wedged in zip(without.GetAtoms(), mol.GetAtoms(), strict=True):
        if atom.GetChiralTag() == Chem.ChiralType.CHI_UNSPECIFIED:
            atom.SetChiralTag(wedged.GetChiralTag())
    Chem.AssignStereochemistry(without, cleanIt=True, force=True)
    return without


# --- InChI ---


def smiles_of_inchi(text: str, max_atoms: int | None = None) -> str:
    """Convert an InChI (standard or not) to SMILES.

    Raises:
        MoleculeError: as `plain_smiles`.
    """
    text = text.strip()
    if not text.startswith("InChI=") or not text.isascii() or not text.isprintable() or " " in text:
        raise MoleculeError(
            "inchi_syntax",
            f"got {shown(text)}, expected one InChI such as {_METHANE}{what_it_looks_like(text)}",
        )
    atoms = _formula_atoms(text)
    if max_atoms is not None and atoms is not None and atoms > max_atoms:
        raise MoleculeError("too_many_atoms", f"got {atoms} atoms, expected at most {max_atoms}")
    mol = Chem.MolFromInchi(text) or Chem.MolFromInchi(text, sanitize=False)
    if mol is None or atoms not in (None, sum(atom.GetAtomicNum() != 1 for atom in mol.GetAtoms())):
        raise MoleculeError(
            "inchi_syntax",
            f"got {shown(text)}, which RDKit cannot read, expected an InChI such as {_METHANE}",
        )
    return str(Chem.MolToSmiles(mol))


def _formula_atoms(text: str) -> int | None:
    """Count the heavy atoms of an InChI's formula; None if it has none that can be read."""
    found = _FORMULA.match(text.strip())
    if found is None:
        return None
    total = 0
    for component in found[1].split("."):
        formula = component.lstrip("0123456789")
        times = component[: min(9, len(component) - len(formula))]
        counts = _ELEMENT_COUNT.findall(formula)
        atoms = sum(int(count[:9] or 1) for symbol, count in counts if symbol != "H")
        total += int(times or 1) * atoms
    return total


# --- mol blocks ---


def smiles_of_mol_block(text: str, max_atoms: int | None = None) -> str:
    """Convert a mol block (V2000 or V3000) to SMILES; data fields after its `M  END` are ignored.

    Raises:
        MoleculeError: as `plain_smiles`.
    """
    block = _one_block(text)
    joined = block.replace("-\nM  V30 ", "")  # a V3000 line may continue in the next
    if max_atoms is not None:
        _check_counts(joined, max_atoms)
    _check_sgroups(_sgroup_types(joined))
    mol = None
    for strict in (True, False):  # blank lines before `M  END`, short lines
        # What cannot be sanitised is passed on as it is: reading its SMILES raises the error.
        for sanitize in (True, False):
            mol = mol or Chem.MolFromMolBlock(block, sanitize=sanitize, strictParsing=strict)
    if mol is None:
        raise MoleculeError(
            "mol_block_syntax",
            "got a mol block that cannot be read, expected one in MDL format, V2000 or V3000",
        )
    if mol.GetNumAtoms() == 0:
        raise MoleculeError("empty_smiles", "got a mol block without atoms, expected a molecule")
    _check_atoms(mol)
    return str(Chem.MolToSmiles(mol))


def _one_block(text: str) -> str:
    """Return the lines up to `M  END` after a header of three lines, whose blank lines may be
    missing.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    end = next((k for k, line in enumerate(lines) if line.startswith("M  END")), len(lines))
    if any(line.startswith("M  END") for line in lines[end + 1 :]):
        message = "got more than one mol block, expected one molecule"
        raise MoleculeError("mol_block_syntax", message)
    stamps = ("V2000", "V3000")
    stamped = [k for k, line in enumerate(lines[:end]) if line.rstrip().endswith(stamps)]
    counts = 3 if 3 in stamped or not stamped else stamped[0]
    header = ["", "", "", *lines[:counts]][-3:]
    return "\n".join([*header, *lines[counts : end + 1]]) + "\n"


def _check_counts(block: str, max_atoms: int) -> None:
    """Check the counts of a V3000 block, for which RDKit allocates memory: gigabytes for a hundred
    bytes of text. V2000 counts have three digits.
    """
    for atoms, bonds in _COUNTS_V3000.findall(block):
        if int(atoms) > DRAWN_ATOMS * max_atoms:
            raise MoleculeError(
                "too_many_atoms",
                f"got {atoms} atoms, expected at most {max_atoms} beside hydrogens",
            )
        if int(bonds) > DRAWN_ATOMS * max_atoms:
            limit = DRAWN_ATOMS * max_atoms
            raise MoleculeError("too_many_bonds", f"got {bonds} bonds, expected at most {limit}")


def _sgroup_types(block: str) -> Iterator[str]:
    """Yield the S-group types in the text; RDKit drops malformed S-groups."""
    inside = False
    for line in block.split("\n"):
        if line.startswith("M  STY"):
            yield from line[9:].split()[1::2]
        elif line.startswith("M  V30 "):
            words = line[7:].split(maxsplit=2)
            if words[1:2] == ["SGROUP"]:
                inside = words[0] == "BEGIN"
            elif inside and len(words) > 1 and words[0].isdecimal():
                yield words[1]


# --- statements beside atoms and bonds ---


def _check_sgroups(types: Iterable[str]) -> None:
    for kind in types:
        if kind.upper() not in _HARMLESS_SGROUPS:
            what = "a mixture or formulation" if kind.upper() in _MIXTURES else "a polymer"
            raise MoleculeError(
                "polymer",
                f"got an S-group of type {shown(kind)} ({what}), expected one molecule in full",
            )


def _check_atoms(mol: Chem.Mol) -> None:
    """Refuse atoms that stand for something else, and repeated units."""
    if mol.HasProp("_molLinkNodes"):
        raise MoleculeError(
            "polymer",
            "got a link node (a unit that is repeated), expected one molecule, drawn in full",
        )
    for atom in mol.GetAtoms():
        for name, what in _PLACEHOLDERS.items():
            if atom.HasProp(name):
                raise MoleculeError(
                    "dummy_atom", f"got {what}, atom {atom.GetIdx() + 1}, expected a whole molecule"
                )
        for name in ("molFileAlias", "atomLabel"):
            _check_label(_label(atom, name), atom)
    for group in Chem.GetMolSubstanceGroups(mol):
        _check_group(group, mol)


_PLACEHOLDERS = {
    "molAttchpt": "a point of attachment",
    "_MolFileRLabel": "an R group",
    "MRV SMA": "a query (M  MRV SMA)",
}


def _check_label(label: str, atom: Chem.Atom) -> None:
    """Refuse a label that says more than its atom. An atom `*` is refused where it is read."""
    if label and atom.GetAtomicNum() and not _repeats(label, atom):
        where = f"atom {atom.GetIdx() + 1}, which is {atom.GetSymbol()}"
        got = f"got the label {shown(label)} on {where}"
        expected = "expected a complete molecule, its groups drawn atom by atom"
        raise MoleculeError("dummy_atom", f"{got}, {expected}")


def _check_group(group: Chem.SubstanceGroup, mol: Chem.Mol) -> None:
    """Refuse an abbreviation whose atoms, or a repeated unit whose copies, are not all drawn."""
    kind, label = group.GetProp("TYPE"), _label(group, "LABEL")
    atoms = [mol.GetAtomWithIdx(k) for k in group.GetAtoms()]
    heavy = [atom for atom in atoms if atom.GetAtomicNum() != 1]
    if kind == "SUP" and len(heavy) == 1:
        _check_label(label, heavy[0])
    unit, times = len(group.GetParentAtoms()), _label(group, "MULT")
    if kind == "MUL" and unit and times.isdecimal() and len(atoms) != unit * int(times[:9]):
        got = f"got {len(atoms)} atoms in an S-group of type 'MUL'"
        expected = f"expected its unit of {unit} atoms drawn {times[:9]} times"
        raise MoleculeError("polymer", f"{got}, {expected}")


def _label(owner: Chem.Atom | Chem.SubstanceGroup, name: str) -> str:
    """Return a property as text, without RDKit's conversion to a number."""
    properties = owner.GetPropsAsDict(autoConvertStrings=False) if owner.HasProp(name) else {}
    return str(properties.get(name, "")).strip()


def _repeats(label: str, atom: Chem.Atom) -> bool:
    """Return True if a label only repeats its atom: a number, or the element with hydrogens,
    charge, isotope or number (12, C7, H2N, O-).
    """
    symbol = atom.GetSymbol()
    if label.isdecimal() or (symbol == "H" and label in ("D", "T")):
        return True
    if label == "Me":
        return symbol == "C" and atom.GetDegree() <= 1
    return (
        re.fullmatch(
            rf"\d{{0,3}}(?:H\d*)?(?:{symbol}|{symbol.upper()})(?:H\d*|\d+'*)?(?:\d?[+-]+\d?)?",
            label,
        )
        is not None
    )
