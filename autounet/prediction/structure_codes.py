"""Standard codes of structures by their names: which concepts of SNOMED CT "left kidney" and "liver_tumour" are.

Source: the context groups of DICOM PS3.16 for segmentations, and their codes, as pydicom carries them (`codedict`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

GROUPS = (
    ("cid7192", "AnatomicalStructure"),
    ("cid7140", "AnatomicalStructure"),
    ("cid7191", "Tissue"),
    ("cid7194", "MorphologicallyAbnormalStructure"),
)
"""context groups of what segments are (anatomy, brain, tissue, lesions), and the category (CID 7150) of each"""
SIDES = {"left": "Left", "right": "Right", "l": "Left", "r": "Right", "lt": "Left", "rt": "Right"}
"""words of laterality, and their keywords in SNOMED CT"""
UNSAID = frozenset({"of", "the", "structure", "and", "or", "in", "gland"})
WORDS = {
    "vertebrae": "vertebra", "kidneys": "kidney", "lungs": "lung", "ribs": "rib", "eyes": "eye", "nodes": "node",
    "nodules": "nodule", "lesions": "lesion", "tumors": "neoplasm", "tumours": "neoplasm", "tumor": "neoplasm",
    "tumour": "neoplasm", "cancer": "neoplasm", "bowel": "intestine", "oesophagus": "esophagus", "oedema": "edema",
    "necrotic": "necrosis", "haemorrhage": "hemorrhage", "grey": "gray", "vena": "vein", "clavicula": "clavicle",
    "cartilages": "cartilage",
}  # fmt: skip
"""plurals, other spellings and words of everyday use, and the word of the standard"""
NAMES = {
    frozenset({"urinary", "bladder"}): "Bladder",
    frozenset({"inferior", "vein", "cava"}): "InferiorVenaCava",
    frozenset({"superior", "vein", "cava"}): "SuperiorVenaCava",
    frozenset({"lv"}): "LeftVentricle",
    frozenset({"rv"}): "RightVentricle",
    frozenset({"la"}): "LeftAtrium",
    frozenset({"ra"}): "RightAtrium",
    frozenset({"csf"}): "CerebrospinalFluid",
    frozenset({"metastasis"}): "NeoplasmSecondary",
    frozenset({"fat"}): "AdiposeTissue",
    frozenset({"muscle"}): "MuscleTissue",
    frozenset({"bone"}): "BoneTissue",
    frozenset({"optic", "nerve"}): "OpticNerve",
    frozenset({"spinal", "canal"}): "SpinalCanalStructure",
}
"""names in use whose words are not those of the standard"""
LESIONS = frozenset(
    {"neoplasm", "lesion", "edema", "necrosis", "cyst", "nodule", "mass", "abscess", "hemorrhage", "inflammation"}
)
"""of CID 7194, which stand beside the structure that they are in"""


class StructureCodes(NamedTuple):
    """Codes of one structure: what it is, and for lesions where."""

    category: Code
    property_type: Code
    side: Code | None
    """left or right, of the property or else of the region"""
    region: Code | None = None


def structure_codes(name: str) -> StructureCodes | None:
    """The codes of a class by its name; None where the standard's groups have none of this name.

    The words of a name may come in any order and be joined in any way, and with the side as a word or a letter.
    """
    parts = re.findall(r"[A-Z]+\d+|[a-z]\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    words = [WORDS.get(part.lower(), part.lower()) for part in parts]
    sides = {SIDES[word] for word in words if word in SIDES}
    if len(sides) > 1:
        return None
    rest = [word for word in words if word not in SIDES]
    whole = [side.lower() for side in sides] + rest
    for own, side in ((whole, None), (rest, next(iter(sides), None))):
        if found := _concept(own):
            return StructureCodes(*found, _side(side))
    lesions = [word for word in rest if word in LESIONS]
    place = [word for word in rest if word not in LESIONS]
    if len(lesions) == 1 and place and (region := _concept(place)) and (found := _concept(lesions)):
        return StructureCodes(*found, _side(next(iter(sides), None)), region[1])
    return None


def _side(keyword: str | None) -> Code | None:
    from pydicom.sr.codedict import codes

    return None if keyword is None else getattr(codes.SCT, keyword)


def _concept(words: Sequence[str]) -> tuple[Code, Code] | None:
    """Category and type; "heart" may stand before its parts."""
    own, known = frozenset(words) - UNSAID, _known()
    for each in (own, own - {"heart"}, frozenset({"".join(words)})):
        if each in known:
            return known[each]
    return None


@cache
def _known() -> dict[frozenset[str], tuple[Code, Code]]:
    """Category and type by the words of its keyword, and by these as one word (gallbladder, brainstem)."""
    from pydicom.sr.codedict import codes

    found: dict[frozenset[str], tuple[Code, Code]] = {}
    by_keyword: dict[str, tuple[Code, Code]] = {}
    for group, category in GROUPS:
        concepts = getattr(codes, group)
        for keyword in sorted(concepts.dir()):
            code = getattr(concepts, keyword)
            if code.scheme_designator != "SCT" or keyword.startswith("_"):
                continue
            entry = by_keyword.setdefault(keyword, (getattr(codes.cid7150, category), code))
            words = [word.lower() for word in re.findall(r"[A-Z]\d+|[A-Z]+(?![a-z])|[A-Z][a-z]+", keyword)]
            found.setdefault(frozenset(words) - UNSAID, entry)
            found.setdefault(frozenset({"".join(words)}), entry)
    anatomy = codes.cid7150.AnatomicalStructure
    for own, keyword in NAMES.items():
        if keyword in by_keyword:
            found[own] = by_keyword[keyword]
        else:
            found[own] = (anatomy, getattr(codes.SCT, keyword))
    return found
