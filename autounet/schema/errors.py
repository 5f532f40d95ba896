"""What can go wrong, as a tree.

AutoUNetError                 a user's mistake or a limit met; exit code 1, no traceback
├── DataError                 something in the data set; carries every finding
│   └── FileError             one file of it; carries its path
├── OptionError               options that contradict the data, the machine or the output folder
│   └── UsageError            options that are wrong by themselves, told before any file is read; exit code 2
├── RecordError               a JSON record that cannot be read or is of another version
├── PlanError                 a plan that cannot be made, or an edited plan that cannot hold
├── ModelError                a bundle that is damaged, mixed or does not fit the input
├── PluginError               a plug-in that cannot be loaded, or is not what its group asks for
├── DeadlineError             the promised time cannot be kept; carries the least time
├── BudgetExceeded            trial steps needed more memory than planned; carries the bytes
├── OutOfMemory               memory ran out although all was tried
├── WorkerLost                the system ended a process that worked on cases or batches
└── Cancelled                 a program's cancel callback said so; the same call continues
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

LONGEST_MESSAGE = 10_000
"""letters: what a file or an option holds may be of any length"""


class AutoUNetError(Exception):
    """Base of every error that is shown to the user without a traceback.

    `message` says what happened and `remedy` what to do, both without a full stop at their end; `case` is the case it
    happened in, None where it concerns all. They stay apart, so that nobody has to look for one in the other.
    """

    def __init__(self, message: str, remedy: str = "", case: str | None = None) -> None:
        shown = message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."
        super().__init__(shown)
        self.message, self.remedy, self.case = shown, remedy, case

    def __str__(self) -> str:
        text = f"{self.message}. {self.remedy}" if self.remedy else self.message
        return text if self.case is None else f"case {self.case}: {text}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross processes; subclasses take other arguments than the message."""
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[AutoUNetError], args: tuple[Any, ...], attributes: dict[str, Any]) -> AutoUNetError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class DataError(AutoUNetError):
    """One or more fatal findings in a data set.

    `DataError("text")` states one problem of the whole set; `DataError.of(findings)` lists several.
    """

    findings: tuple[Any, ...] = ()
    """`schema.dataset.Finding`s"""

    @classmethod
    def of(cls, findings: Sequence[Any]) -> DataError:
        lines = [str(finding) for finding in findings]
        shown = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
        error = cls("\n".join(shown))
        error.findings = tuple(findings)
        return error


class FileError(DataError):
    """A file that cannot be read or written as asked: `finding` continues a sentence that begins with its path."""

    def __init__(self, file: Path | str, finding: str, remedy: str = "", case: str | None = None) -> None:
        super().__init__(f"{file} {finding}", remedy, case)
        self.file, self.finding = Path(file), finding

    def within(self, root: Path | str) -> str:
        """The message with the file as it lies in the folder `root`."""
        name = self.file.relative_to(root) if self.file.is_relative_to(root) else self.file
        return f"{name.as_posix()} {self.finding}"


class OptionError(AutoUNetError):
    pass


class UsageError(OptionError):
    pass


def unknown_name(option: str, name: object, known: Iterable[str], others: str = "") -> UsageError:
    """The error for a name that is none of those `known` for an option, with the nearest one.

    `others` says what may be given besides.
    """
    names = list(known)
    meant = nearest(name, names)
    choice = f"Choose one of {', '.join(names)}" if len(names) > 1 else f"The only one is {names[0]}"
    return UsageError(f"{option} {name} is unknown", f"{meant}{choice}{others}")


def nearest(name: object, known: Iterable[str]) -> str:
    """`Did you mean ...? ` with the nearest of the known names; empty where none is near."""
    lowered = {each.lower(): each for each in known}
    near = get_close_matches(str(name).strip().lower(), lowered, 1)
    return f"Did you mean {lowered[near[0]]}? " if near else ""


class RecordError(AutoUNetError):
    pass


class PlanError(AutoUNetError):
    pass


class ModelError(AutoUNetError):
    pass


class PluginError(AutoUNetError):
    pass


class DeadlineError(AutoUNetError):
    def __init__(self, message: str, least_seconds: float, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.least_seconds = least_seconds


class BudgetExceeded(AutoUNetError):
    def __init__(self, message: str, configuration: str, measured_bytes: int | None, remedy: str = "") -> None:
        """`measured_bytes` None: memory ran out, so that nobody knows how much would have sufficed."""
        super().__init__(message, remedy)
        self.configuration = configuration
        self.measured_bytes = measured_bytes


class OutOfMemory(AutoUNetError):
    pass


class WorkerLost(AutoUNetError):
    pass


def lost_worker(error: Exception) -> WorkerLost | None:
    """The error of a killed process that works for this one; None for any other error."""
    from concurrent.futures.process import BrokenProcessPool

    if not isinstance(error, BrokenProcessPool):
        return None
    remedy = "If memory ran out, give fewer --workers; the same command continues where it was"
    return WorkerLost(str(error), remedy)


class Cancelled(AutoUNetError):
    pass
