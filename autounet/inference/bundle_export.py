"""A bundle given away: as one file or as a folder, with the licence of its weights."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from autounet.inference.archive import SUFFIX, write_archive
from autounet.inference.bundle import load_bundle
from autounet.inference.bundle_files import (
    BUNDLE_FILE,
    CARD_FILE,
    copy_file,
    record_text,
    replace_folder,
    require_replaceable,
    sealed,
)
from autounet.inference.card import card_text
from autounet.schema.card import ModelCard
from autounet.schema.errors import ModelError
from autounet.schema.record import write_text


def export_bundle(model: Path, out: Path, licence: str | None = None) -> ModelCard:
    """Write the bundle of `model` to `out`: a file where that ends in `.autounet`, else a folder; returns its card.

    `licence` is written into the card; None keeps what is there. Everything in it is checked first. A folder replaces
    an older bundle. Raises ModelError for a damaged model, and for a folder with other things in it.
    """
    out = Path(out)
    as_file = out.name.lower().endswith(SUFFIX)
    if as_file and out.is_dir():
        raise ModelError(f"{out} is a folder. Give the name of a new file.")
    if not as_file:
        require_replaceable(out)
    bundle, folder = load_bundle(Path(model))
    card = bundle.card or ModelCard()
    card = card.model_copy(update={"licence": licence or card.licence})
    bundle = sealed(bundle.model_copy(update={"card": card}))
    weights = {member.path: folder / member.path for member in bundle.members}
    out.parent.mkdir(parents=True, exist_ok=True)
    if as_file:
        records = {BUNDLE_FILE: record_text(bundle).encode(), CARD_FILE: card_text(bundle).encode()}
        write_archive(out, {**records, **weights})
        return card
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name, path in weights.items():
            copy_file(path, temporary / name)
        write_text(temporary / CARD_FILE, card_text(bundle))
        write_text(temporary / BUNDLE_FILE, record_text(bundle))
        replace_folder(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return card
