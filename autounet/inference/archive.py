"""A bundle as one file, `<name>.autounet`: a zip, nothing in it compressed, that other programs can open.

Its comment ends with a checksum of all bytes before, so that no bit of the file can change unnoticed. A checksum guards
against damage, not against an attacker, who can compute it as well: so the zip is held to what we write, whatever its
checksum says. Only the names that its own `bundle.json` gives are allowed, each once, stored, of their true sizes.
Nothing is ever executed.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import stat
import struct
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from pydantic import JsonValue

from ..schema.bundle import ModelBundle
from ..schema.disk import writing
from ..schema.errors import ModelError, RecordError
from ..schema.names import is_plain_path
from ..schema.record import digest, new_folder, replacing, utf8
from ..store.run_folder import BUNDLE_FILE, CARD_FILE
from .card import card_text


def record_text(bundle: ModelBundle) -> str:
    """The text of bundle.json, as `ModelBundle.save` writes it."""
    return json.dumps(_content(bundle), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sealed(bundle: ModelBundle) -> ModelBundle:
    """With the checksums of its card and, over all else, of itself."""
    text = card_text(bundle)
    bundle = bundle.model_copy(update={"card_checksum": checksum_of(utf8(text))})
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
    with writing(target), open(source, "rb") as original, open(target, "wb") as copy:
        shutil.copyfileobj(original, copy, 1 << 20)
        copy.flush()
        os.fsync(copy.fileno())


def require_replaceable(folder: Path) -> None:
    """Packing replaces a bundle, what is left of one, an empty folder or nothing. Raises ModelError for all else."""
    if folder.exists() and not (folder / BUNDLE_FILE).is_file() and not _is_rest_of_bundle(folder):
        raise ModelError(f"{folder} exists and is no model", "Choose another folder for the model")


def _is_rest_of_bundle(folder: Path) -> bool:
    """Whether the folder holds files of a bundle alone, or nothing."""
    patterns = (CARD_FILE, "done.json", "*/fold_*.safetensors")
    files = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return folder.is_dir() and all(
        any(path.relative_to(folder).match(pattern) for pattern in patterns) for path in files
    )


def replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; what was there is moved aside first and removed last."""
    if not folder.exists():
        os.replace(new, folder)
        return
    aside = new_folder(folder)
    os.replace(folder, aside)
    try:
        os.replace(new, folder)
    except BaseException:
        os.replace(aside, folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


SUFFIX = ".autounet"
EPOCH = (1980, 1, 1, 0, 0, 0)
"""time of every file inside: equal models make equal files"""
MARK = b"autounet blake2b-128 "
DIGITS = 32
PIECE = 1 << 20
"""bytes copied or hashed at a time"""
LARGEST_RECORD = 64 << 20
"""bytes of bundle.json and of the card: thousands of times what they have"""
ZIP64 = 2**31 - 1
BROKEN = (BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error, UnicodeError)
"""what Python's zipfile raises at a zip that is none"""

_unpacked: dict[tuple[str, int, int], Path] = {}
_lock = threading.Lock()


def write_archive(out: Path, files: Mapping[str, bytes | Path]) -> None:
    """Write `out` from the content, or the path, of each file in it. Appears whole or not at all."""
    with replacing(out, SUFFIX) as temporary:
        with ZipFile(temporary, "w", ZIP_STORED) as archive:
            for name, content in files.items():
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                entry = ZipInfo(name, EPOCH)
                entry.external_attr, entry.create_system = (stat.S_IFREG | 0o644) << 16, 3
                with archive.open(entry, "w", force_zip64=size > ZIP64) as target:
                    if isinstance(content, bytes):
                        target.write(content)
                    else:
                        with open(content, "rb") as source:
                            shutil.copyfileobj(source, target, PIECE)
            archive.comment = MARK + b"0" * DIGITS
        with open(temporary, "rb+") as file:
            checksum = _checksum(file, temporary.stat().st_size - DIGITS)
            file.seek(-DIGITS, os.SEEK_END)
            file.write(checksum)


def unpacked(path: Path) -> Path:
    """The folder with the files of a `.autounet` file, which is removed when the process ends.

    Unpacked once in a process unless the file changes. Raises ModelError for a file that is truncated, was changed, or
    is no bundle as `write_archive` writes it.
    """
    status = path.stat()
    key = (str(path.resolve()), status.st_mtime_ns, status.st_size)
    with _lock:
        if key not in _unpacked or not _unpacked[key].is_dir():
            folder = Path(tempfile.mkdtemp(prefix="autounet-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            try:
                _unpack(path, folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _unpacked[key] = folder
        return _unpacked[key]


def _unpack(path: Path, folder: Path) -> None:
    with open(path, "rb") as file:
        _require_whole(path, file)
        try:
            with ZipFile(file) as archive:
                entries = _entries(path, archive, file.seek(0, os.SEEK_END))
                _copy(archive, entries[BUNDLE_FILE], folder)
                _require_expected(path, ModelBundle.load(folder / BUNDLE_FILE, f"{path}: {BUNDLE_FILE}"), set(entries))
                for name in sorted(set(entries) - {BUNDLE_FILE}):
                    _copy(archive, entries[name], folder)
        except RecordError as error:
            raise ModelError(error.message, error.remedy or "Export the model again") from None
        except BROKEN as error:
            raise ModelError(f"{path} is no .autounet file ({error})", "Copy or export the model again") from None


def _require_whole(path: Path, file: BinaryIO) -> None:
    """The checksum at its end is that of what comes before."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(MARK) - DIGITS))
    if not file.read().startswith(MARK):
        raise ModelError(
            f"{path} is no whole .autounet file: it is truncated, or was not written by autounet export",
            "Copy or export the model again",
        )
    file.seek(-DIGITS, os.SEEK_END)
    stored = file.read()
    if _checksum(file, size - DIGITS) != stored:
        raise ModelError(f"{path} is damaged or was changed: its checksum differs", "Copy the model again")


def _checksum(file: BinaryIO, size: int) -> bytes:
    """blake2b-128 of the first `size` bytes, as hex digits."""
    result = hashlib.blake2b(digest_size=DIGITS // 2)
    file.seek(0)
    while size > 0:
        piece = file.read(min(PIECE, size))
        if not piece:
            raise EOFError("the file ends too early")
        result.update(piece)
        size -= len(piece)
    return result.hexdigest().encode()


def _entries(path: Path, archive: ZipFile, size: int) -> dict[str, ZipInfo]:
    """By name. Raises ModelError for anything that `write_archive` does not write."""
    remedy = "Do not use it; get the model again"
    entries: dict[str, ZipInfo] = {}
    for entry in archive.infolist():
        if entry.filename in entries:
            raise ModelError(f"{path} holds {entry.filename!r} twice", remedy)
        if problem := _entry_problem(entry, size):
            raise ModelError(f"{path} holds {entry.orig_filename!r}, {problem}", remedy)
        entries[entry.filename] = entry
    if sum(entry.file_size for entry in entries.values()) > size:
        raise ModelError(f"{path} claims to hold more than it has: its files overlap", remedy)
    if BUNDLE_FILE not in entries:
        raise ModelError(f"{path} is no model: it has no {BUNDLE_FILE}", "Export the model again")
    return entries


def _entry_problem(entry: ZipInfo, size: int) -> str:
    """What a file in a zip of `size` bytes has that `write_archive` does not write; empty where it has nothing."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not is_plain_path(entry.filename) or entry.filename != entry.orig_filename:
        return "a name that leads out of the model's folder"
    if entry.is_dir() or kind not in (0, stat.S_IFREG):
        return "which is no plain file"
    if entry.compress_type != ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
        return "compressed or encrypted, and a model's files are stored as they are"
    if entry.filename in (BUNDLE_FILE, CARD_FILE) and entry.file_size > LARGEST_RECORD:
        return f"which is {entry.file_size} bytes large"
    if not 0 <= entry.header_offset < size:
        return "which lies nowhere in the file"
    return ""


def _require_expected(path: Path, bundle: ModelBundle, names: set[str]) -> None:
    expected = {BUNDLE_FILE, CARD_FILE, *(member.path for member in bundle.members)}
    if unexpected := sorted(names - expected):
        raise ModelError(
            f"{path} holds {unexpected[0]!r}, which its {BUNDLE_FILE} does not mention",
            "Do not use it; get the model again",
        )
    if missing := sorted(expected - names):
        raise ModelError(f"{path} lacks {missing[0]!r}", "Copy or export the model again")


def _copy(archive: ZipFile, entry: ZipInfo, folder: Path) -> None:
    """To a new file; zipfile compares its CRC and its name with what stands before its bytes."""
    target = folder.joinpath(*PurePosixPath(entry.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with archive.open(entry) as source, open(target, "xb") as copy, writing(target):
            shutil.copyfileobj(source, copy, PIECE)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise BadZipFile(f"{entry.filename!r} clashes with another of its files") from None
