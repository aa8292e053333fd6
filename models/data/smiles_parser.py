"""SMILES to RDKit molecules without atom maps, isotopes and hydrogen atoms."""

import re
from typing import NamedTuple

from rdkit import Chem

from models.data.molecule_text import TOO_LARGE, plain_smiles, shown, what_it_looks_like
from models.errors import MoleculeError


class ParsedSmiles(NamedTuple):
    """A SMILES that was parsed.

    Attributes:
        mol: the sanitised molecule.
        text: the SMILES that `parse_smiles` reads as this molecule.
        is_plain: the canonical SMILES has no stereo, no hydrogen atom and no dative bond.
        in_order: the atoms of `mol` are those that `text` names, in that order.
    """

    mol: Chem.Mol
    text: str
    is_plain: bool
    in_order: bool


ATOM = re.compile(r"\[[^]]*\]|Cl|Br|[BCNOPSFIbcnops]")
"""One atom of a SMILES that is `in_order`."""
# A plain SMILES has no stereo, no explicit hydrogen atom, no metal but alkali ions (RDKit may make
# bonds of metals dative) and no iodine but at the end of one single bond (others may get hydrogen
# atoms); no dummy atom, no odd bond and no number that is too large.
_PLAIN = re.compile(
    r"(?:(?:\[(?:Na|K|Li)\+\]|I)(?=\.|\Z)|I(?=[A-Zcnops]))?+"
    r"(?:[BCNOPSFbcnopslr0-9%()=#:.-]++"
    r"|\[(?:Cl?|N|O|P|S[ie]?|F|Br?|c|n|o|p|se?)(?:H\d?)?(?:[+-]\d?)?\]"
    r"|(?<=\.)\[(?:Na|K|Li)\+\](?=\.|\Z)"
    r"|(?<=\.)I(?=[A-Zcnops])"
    r"|(?<![=#:~$])I(?=[).]|\Z))*+"
)
# A SMILES whose atoms are all atoms of the molecule: no hydrogen atom, isotope or atom map.
_ORDINARY = re.compile(
    r"(?:[BCNOPSFIbcnopslr0-9%()=#:.@/\\-]++"
    r"|\[(?!H[]@H+-])(?:[A-Z][a-z]?|[bcnops]|[st]e|as|si)@{0,2}(?:H\d?)?(?:[+-]\d?)?\])++"
)
# The steps of sanitising that features and canonical SMILES depend on. Hybridisation decides which
# tags are dropped, and conjugation of nitrogen its hybridisation. SMILES have no atropisomers.
_SANITIZE = Chem.SANITIZE_ALL ^ Chem.SANITIZE_CLEANUPATROPISOMERS
_SANITIZE_PLAIN = _SANITIZE ^ (
    Chem.SANITIZE_SETCONJUGATION
    | Chem.SANITIZE_SETHYBRIDIZATION
    | Chem.SANITIZE_CLEANUPCHIRALITY
    | Chem.SANITIZE_CLEANUP_ORGANOMETALLICS
)


_SHORT = 100
_MOST_CLOSURES = 16  # digits, two for a ring


def is_short(text: str) -> bool:
    """Return True if RDKit reads a text within a few milliseconds whatever it says: a plain SMILES
    of at most 100 characters and eight rings."""
    return (
        len(text) <= _SHORT
        and "%" not in text
        and sum(map(str.isdigit, text)) <= _MOST_CLOSURES
        and _PLAIN.fullmatch(text) is not None
    )


def parse_text(text: str, strict: bool, max_atoms: int | None) -> ParsedSmiles:
    """Parse a text that `models.data.molecule_text` reads: see `models.data.smiles.featurize`."""
    parsed = _parse_plain(text.strip())
    if parsed is None:
        parsed = parse_smiles(plain_smiles(text, max_atoms), strict)
    check_atoms(parsed.mol.GetNumAtoms(), max_atoms)
    if strict and "~" in parsed.text:  # RDKit reads ~ as a single bond where it closes a ring
        got = f"got an unspecified bond (~) in {shown(parsed.text)}"
        raise MoleculeError(
            "bond_type", f"{got}, expected single, double, triple, aromatic or dative"
        )
    return parsed


def check_atoms(atoms: int, max_atoms: int | None) -> None:
    """Raise MoleculeError `too_many_atoms` if there are more than `max_atoms`; None: no limit."""
    if max_atoms is not None and atoms > max_atoms:
        raise MoleculeError("too_many_atoms", f"got {atoms} atoms, expected at most {max_atoms}")


def _parse_plain(text: str) -> ParsedSmiles | None:
    """Parse a plain SMILES; return None for any other text and for an invalid molecule."""
    if not _PLAIN.fullmatch(text):
        return None
    mol = _sanitized(text, _SANITIZE_PLAIN)
    return None if mol is None else ParsedSmiles(mol, text, True, True)


def _sanitized(text: str, steps: Chem.SanitizeFlags) -> Chem.Mol | None:
    """Parse a SMILES without hydrogen atoms; return None for an invalid molecule.

    Unlike `Chem.MolFromSmiles` it does not look for hydrogens to merge. That takes a fifth of the
    time, and for long chains, where RDKit is quadratic, much less.
    """
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None or Chem.SanitizeMol(mol, steps, catchErrors=True) != Chem.SANITIZE_NONE:
        return None
    return mol if mol.GetNumAtoms() else None


def parse_smiles(text: str, strict: bool) -> ParsedSmiles:
    """Parse any SMILES: see `models.data.smiles.featurize`."""
    text = text.strip()
    in_order = _ORDINARY.fullmatch(text) is not None
    mol = (_parse_ordinary(text) if in_order else None) or _parse_any(text, strict)
    if _PROTON_STEREO.search(text):
        mol = _without_stereo_of_protons(mol)
    return ParsedSmiles(mol, text, False, in_order)


def parse_as_written(text: str, keep_hydrogens: bool = False) -> ParsedSmiles:
    """Parse a SMILES as RDKit's reader does by default: isotopes, atom maps, dummy atoms, bonds of
    any type, and the hydrogen atoms that the reader keeps, stay in the molecule.

    Args:
        text: a SMILES.
        keep_hydrogens: whether all hydrogen atoms that are written stay.

    Raises:
        MoleculeError: with code `empty_smiles`, `smiles_syntax` or `chemistry`.
    """
    text = text.strip()
    ordinary = _parse_ordinary(text) if _ORDINARY.fullmatch(text) else None
    mol = ordinary or _parse_with_labels(text, True, keep_hydrogens)
    return ParsedSmiles(mol, text, False, ordinary is not None)


def _parse_ordinary(text: str) -> Chem.Mol | None:
    """Parse a SMILES without hydrogen atoms, isotopes and atom maps (`_ORDINARY`); return None for
    an invalid molecule."""
    mol = _sanitized(text, _SANITIZE)
    if mol is not None:
        Chem.AssignStereochemistry(mol, cleanIt=True)
    return mol


def _parse_any(text: str, strict: bool) -> Chem.Mol:
    mol = _parse_with_labels(text, strict)
    return _without_invisible(text, strict) if _INVISIBLE.search(text) else mol


def _parse_with_labels(text: str, strict: bool, keep_hydrogens: bool = False) -> Chem.Mol:
    """Parse any SMILES: see `parse_as_written`."""
    if not text:
        raise MoleculeError(
            "empty_smiles", "got an empty SMILES, expected a molecule such as 'CCO'"
        )
    if " " in text or not text.isprintable() or not text.isascii():
        raise _wrong_characters(text)
    mol = Chem.MolFromSmiles(text, _KEEP_HYDROGENS) if keep_hydrogens else Chem.MolFromSmiles(text)
    if mol is not None and TOO_LARGE.search(text):
        problem = "a charge, isotope or number of hydrogens is too large"
        message = f"got {shown(text)}, which is not a possible molecule: {problem}"
        raise MoleculeError("chemistry", message)
    if mol is None:
        mol = _parse_unsanitized(text, strict)
    if mol.GetNumAtoms() == 0:
        message = f"got {shown(text)}, which has no atoms, expected a molecule such as 'CCO'"
        raise MoleculeError("empty_smiles", message)
    return mol


_KEEP_HYDROGENS = Chem.SmilesParserParams()
_KEEP_HYDROGENS.removeHs = False  # type: ignore[assignment]  # the stubs have another class's type


_PROTON_STEREO = re.compile(r"\[\d*N@@?H")


def _without_stereo_of_protons(mol: Chem.Mol) -> Chem.Mol:
    """Clear the stereo of protonated nitrogen atoms, unless they are stereo centres without the
    proton too: in small rings and at bridgeheads.
    """
    nitrogens = [atom for atom in mol.GetAtoms() if atom.GetAtomicNum() == 7]
    protonated = [atom for atom in nitrogens if atom.GetChiralTag() and atom.GetTotalNumHs()]
    deprotonated = Chem.RWMol(mol)
    for atom in protonated:
        nitrogen = deprotonated.GetAtomWithIdx(atom.GetIdx())
        nitrogen.SetFormalCharge(0)
        nitrogen.SetNumExplicitHs(0)
        nitrogen.SetNoImplicit(True)
    deprotonated.UpdatePropertyCache(strict=False)
    Chem.AssignStereochemistry(deprotonated, cleanIt=True, force=True)
    for atom in protonated:
        if not deprotonated.GetAtomWithIdx(atom.GetIdx()).GetChiralTag():
            atom.SetChiralTag(Chem.ChiralType.CHI_UNSPECIFIED)
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return mol


# An isotope, a hydrogen atom or an atom map; `[#1]` is a hydrogen atom too.
_INVISIBLE = re.compile(r"\[(?:\d|H[]H\d:+-]|#1\D|[^]]*:)")


def _without_invisible(text: str, strict: bool) -> Chem.Mol:
    """Parse a SMILES that is known to be readable, without atom maps, isotopes and hydrogen atoms.

    Labels are cleared before RDKit assigns stereo, and hydrogens are removed after it: RDKit's
    reader removes them first, which can invert double bonds whose directions hydrogens carry.
    """
    mol = Chem.MolFromSmiles(text, sanitize=False)
    for atom in mol.GetAtoms():
        atom.SetAtomMapNum(0)
        atom.SetIsotope(0)
    numbers = {atom.GetAtomicNum() for atom in mol.GetAtoms()}
    if numbers == {1}:
        mol = _without_bonds(mol)
    mol.UpdatePropertyCache(strict=False)
    # Valences need no check: strict mode has read the text already, tolerant mode skips it.
    Chem.SanitizeMol(mol, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES)
    if 1 in numbers and len(numbers) > 1:
        mol = _without_hydrogens(mol)
    text = str(Chem.MolToSmiles(mol))
    return Chem.MolFromSmiles(text) or _parse_unsanitized(text, strict)


def _without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    for bond in mol.GetBonds():
        bond.SetBondDir(Chem.BondDir.NONE)
        if bond.GetStereo() in _SIDES:
            ends = [mol.GetAtomWithIdx(k).GetAtomicNum() for k in bond.GetStereoAtoms()]
            bond.SetStereo(Chem.BondStereo.STEREONONE if 1 in ends else _SIDES[bond.GetStereo()])
    mol = Chem.RemoveHs(mol, _HYDROGENS, sanitize=False)
    Chem.SetDoubleBondNeighborDirections(mol)
    return mol


_SIDES = {
    Chem.BondStereo.STEREOE: Chem.BondStereo.STEREOTRANS,
    Chem.BondStereo.STEREOZ: Chem.BondStereo.STEREOCIS,
}


def _hydrogens() -> Chem.RemoveHsParameters:
    """Remove all hydrogens except those that bridge other atoms, which only tolerant mode reads."""
    parameters = Chem.RemoveHsParameters()
    for kind in (
        "DefiningBondStereo",
        "DegreeZero",
        "DummyNeighbors",
        "Hydrides",
        "Isotopes",
        "NontetrahedralNeighbors",
        "OnlyHNeighbors",
    ):
        setattr(parameters, f"remove{kind}", True)
    return parameters


_HYDROGENS = _hydrogens()


def _without_bonds(hydrogens: Chem.Mol) -> Chem.Mol:
    """Turn every H2 of a molecule of hydrogen alone into one atom with a hydrogen, as in `[HH]`."""
    mol = Chem.RWMol(hydrogens)
    while mol.GetNumBonds():
        bond = mol.GetBondWithIdx(0)
        bond.GetBeginAtom().SetNumExplicitHs(1)
        mol.RemoveAtom(bond.GetEndAtomIdx())
    return mol.GetMol()


def _wrong_characters(text: str) -> MoleculeError:
    if any(character.isspace() or not character.isprintable() for character in text):
        return MoleculeError(
            "smiles_syntax",
            f"got white space or control characters inside {shown(text)}, expected one SMILES",
        )
    # RDKit silently drops such characters at both ends
    return MoleculeError(
        "smiles_syntax",
        f"got characters other than ASCII in {shown(text)}, expected a SMILES such as 'CCO'",
    )


def _parse_unsanitized(text: str, strict: bool) -> Chem.Mol:
    """Handle a text that RDKit's sanitising reader refused.

    In strict mode raise an error with the reason; in tolerant mode sanitise all but properties.
    """
    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        hint = what_it_looks_like(text)
        got = f"got {shown(text)}, which is not valid SMILES syntax"
        raise MoleculeError("smiles_syntax", f"{got}, expected a SMILES such as 'CCO'{hint}")
    if not strict:
        mol.UpdatePropertyCache(strict=False)
        if (
            Chem.SanitizeMol(mol, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES, catchErrors=True)
            == Chem.SANITIZE_NONE
        ):
            return mol
    try:
        problems = "; ".join(problem.Message() for problem in Chem.DetectChemistryProblems(mol))
    except RuntimeError:  # no such element, 255 hydrogens, 255 neighbours
        problems = ""
    problems = problems or "it cannot be sanitised"
    raise MoleculeError(
        "chemistry", f"got {shown(text)}, which is not a possible molecule: {problems}"
    )
