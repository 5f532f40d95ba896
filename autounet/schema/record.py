"""The base of all records: frozen, strict about unknown keys, versioned, written atomically."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ..system_memory import require_no_lack_of_memory
from .disk import writing
from .errors import DataError, ModelError, OptionError, RecordError
from .names import MOST_BYTES, MOST_LETTERS, RENAME, case_problem, hidden_characters, path_problem, printable


def require_folder(path: Path, option: str = "--out") -> None:
    """Raises OptionError where a file lies at `path`, or in the place of a folder that it lies in."""
    for place in (path, *path.parents):
        if place.exists():
            if not place.is_dir():
                raise OptionError(f"{option} {path}: {place} is a file", "Give a folder")
            return


def require_no_links(folder: Path, files: Iterable[Path]) -> None:
    """Raises OptionError where a folder below `folder`, on the way to one of `files` in it, is a link to elsewhere."""
    below = {place for file in files for place in Path(file).relative_to(folder).parents if place.name}
    for place in sorted(below):
        if (folder / place).is_symlink():
            where = f"{folder / place} is a link to {os.readlink(folder / place)}"
            raise OptionError(f"{where}, and nothing is written through it", "Remove it, or give another --out")


@contextmanager
def replacing(path: Path, ending: str = "") -> Iterator[Path]:
    """A temporary name in the same folder to write to; flushed to the disk and renamed to `path` when all went well.

    Nobody can foresee the name, and so put a link there; a link at `path` itself is replaced, not followed. `ending` is
    what the temporary name has to end in, for writers that choose a format by it. The folder is made.
    Raises WriteError with `path` where the system refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}{ending}")
    with writing(path, temporary, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """A name in the folder of `path`, as of `replacing`, of a file that is removed again. The folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def new_folder(folder: Path) -> Path:
    """An empty folder beside `folder`, hidden and of a name that nobody can foresee, to be renamed to it in the end.

    With the rights of the umask, unlike those of `tempfile`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{os.getpid()}")
    made.mkdir()
    return made


class Part(BaseModel):
    """A frozen value inside a record. Unknown keys are refused; NaN is not valid JSON here."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")

    def digest(self) -> str:
        """16 hex digits over the canonical JSON of this value."""
        return digest(self.model_dump(mode="json"))


MOST_SHOWN = 300
"""letters of one problem of a file: it may hold anything"""
RESTORE = "Take back the last change of the file, or remove it so that it is written again"


def _require_case(name: str) -> str:
    if problem := case_problem(name):
        raise DataError(f"the case name {printable(name[:MOST_BYTES])!r} {problem}", RENAME)
    return name


def _require_text(name: str) -> str:
    if (hidden := hidden_characters(name)) or not name.strip() or len(name) > MOST_LETTERS:
        what = f"holds the invisible character {hidden[0]!a}" if hidden else f"has not 1 to {MOST_LETTERS} letters"
        raise DataError(f"the name {printable(name[:MOST_LETTERS])!r} {what}", "Correct the name")
    return name


def _require_plain_path(name: str) -> str:
    if problem := path_problem(name):
        shown = printable(name[:MOST_BYTES])
        raise ModelError(f"{shown!r} {problem}, which may lead outside of the model", "Do not use it; get it again")
    return name


CaseName = Annotated[str, AfterValidator(_require_case)]
Text = Annotated[str, AfterValidator(_require_text)]
"""of a class, a region or a channel: any words in one line"""
PlainPath = Annotated[str, AfterValidator(_require_plain_path)]
"""of a file of a model"""
ConfigurationName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$", max_length=100)]
"""names a folder, too"""
FolderName = Annotated[str, Field(pattern=r"^(\w[\w.+-]*)?$", max_length=100)]
"""of prepared cases; empty until it is chosen"""


class Record(Part):
    """A part that is a JSON file of its own. `format_version` is written first and checked on load."""

    FORMAT_VERSION: ClassVar[int] = 1
    SEALED: ClassVar[bool] = False
    """whether the file ends with a checksum of itself, so that damage is noticed; people do not edit such files"""

    def save(self, path: Path) -> None:
        """Write to a temporary name in the same folder, flush, then rename."""
        content = {"format_version": self.FORMAT_VERSION, **self.model_dump(mode="json")}
        if self.SEALED:
            content["checksum"] = digest(content)
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: Path, label: str | None = None) -> Self:
        """Read and validate. Raises RecordError naming the file, as `label` where given, and every wrong field."""
        name = label or path
        content = read_json(Path(path), str(name))
        if not isinstance(content, dict):
            raise RecordError(f"{name} holds {type(content).__name__}, not an object", RESTORE)
        if cls.SEALED and content.pop("checksum", None) != digest(content):
            raise RecordError(f"{name} is damaged or was changed: its checksum differs", "Remove it: it is made again")
        version = content.pop("format_version", None)
        if version != cls.FORMAT_VERSION:
            raise RecordError(
                f"{name} has format_version {version}; this version of autounet reads {cls.FORMAT_VERSION}",
                "Use the version of autounet that wrote it, or let this one write it again",
            )
        try:
            return cls.model_validate(content)
        except DataError as error:  # a name that no record may hold
            raise RecordError(f"{name} is not a valid {cls.__name__}: {error.message}", RESTORE) from None
        except ValidationError as error:
            problems = [
                f"{'.'.join(str(part) for part in problem['loc']) or 'record'}: "
                f"{problem['ctx']['error'] if problem['type'] == 'value_error' else problem['msg']}"
                for problem in error.errors()
            ]
            shown = [each if len(each) < MOST_SHOWN else f"{each[:MOST_SHOWN]}..." for each in problems[:20]]
            shown += [f"and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise RecordError(f"{name} is not a valid {cls.__name__}: {'; '.join(shown)}", RESTORE) from None


def read_json(path: Path, name: str) -> Any:
    """The content of a JSON file, called `name` in messages. Raises RecordError, also for one that is nested too deep.

    Numbers that are not finite, which JSON does not know, are refused.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise RecordError(f"{name} does not exist", "Run the stage that writes it, or check the path") from None
    except RecursionError:
        raise RecordError(f"{name} is not readable JSON: it is nested too deep", RESTORE) from None
    except (OSError, ValueError) as error:
        require_no_lack_of_memory(path, error)
        raise RecordError(f"{name} is not readable JSON: {error}", RESTORE) from None


def _finite(text: str) -> float:
    """Also of numbers such as 1e999, which Python reads as infinite."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"it holds {text}, which is no finite number")
    return number


def digest(value: Any) -> str:
    """16 hex digits over the canonical JSON of any JSON-like value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace `path` with `text` in one step: readers see the old content or the new, never a part.

    For bytes of file names that are no text see `utf8`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(utf8(text))


@contextmanager
def named_in_text(path: Path) -> Iterator[Path]:
    """A path of the same file for libraries that take names as text, and fail or end the process for others."""
    if is_text(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "file"
        link.symlink_to(path.absolute())
        yield link


def is_text(name: str) -> bool:
    """Whether the bytes of a name are UTF-8. Python reads others as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def utf8(text: str) -> bytes:
    r"""UTF-8; a byte of a file name that is no text, which Python reads as a surrogate, becomes `\udce9` or the like.

    In JSON that is the surrogate again. Text for people, and digests, only need something that is always the same.
    """
    return text.encode("utf-8", "backslashreplace")
