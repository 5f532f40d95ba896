"""The files of a bundle: their names, their checksums, and how a folder of them replaces another in one step."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from autounet.inference.card import card_text
from autounet.schema.bundle import ModelBundle
from autounet.schema.errors import ModelError
from autounet.schema.record import digest

BUNDLE_FILE = "bundle.json"
CARD_FILE = "model_card.md"


def record_text(bundle: ModelBundle) -> str:
    """The text of bundle.json, as `ModelBundle.save` writes it."""
    return json.dumps(_content(bundle), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sealed(bundle: ModelBundle) -> ModelBundle:
    """With the checksums of its card and, over all else, of itself."""
    text = card_text(bundle)
    bundle = bundle.model_copy(update={"card_checksum": checksum_of(text.encode())})
    return bundle.model_copy(update={"checksum": record_checksum(_content(bundle))})


def record_checksum(content: Mapping[str, JsonValue]) -> str:
    """Over the file's content but the checksum itself; of the JSON as it is, so that new fields break no old file."""
    return digest({key: value for key, value in content.items() if key != "checksum"})


def _content(bundle: ModelBundle) -> dict[str, JsonValue]:
    return {"format_version": ModelBundle.FORMAT_VERSION, **bundle.model_dump(mode="json")}


def checksum_of(content: bytes) -> str:
    """blake2b-128, hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """blake2b-128 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Flushed to the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as original, open(target, "wb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def require_replaceable(folder: Path) -> None:
    """Packing replaces a bundle, an empty folder or nothing. Raises ModelError for anything else."""
    if folder.exists() and not (folder / BUNDLE_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder} exists and is no model. Choose another folder for the model.")


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is moved aside first and removed last."""
    os.chmod(new, 0o755)
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
