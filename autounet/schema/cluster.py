"""`--executor FILE.toml`: where the jobs of a run go, and what each of them gets there."""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError, field_validator

from .errors import OptionError, UsageError, nearest, unknown_name
from .quantities import parse_size, parse_time
from .record import Part

Provider = Literal["local", "slurm", "pbspro", "lsf", "kubernetes"]
PROVIDERS: tuple[str, ...] = get_args(Provider)
ONLY_OF: Mapping[str, tuple[str, ...]] = {
    "partition": ("slurm", "pbspro", "lsf"),
    "account": ("slurm", "pbspro", "lsf"),
    "walltime": ("slurm", "pbspro", "lsf"),
    "options": ("slurm", "pbspro", "lsf"),
    "image": ("kubernetes",),
    "namespace": ("kubernetes",),
    "volumes": ("kubernetes",),
}
"""keys that only some providers know"""
PREFIX: Mapping[str, str] = {"slurm": "#SBATCH ", "pbspro": "#PBS ", "lsf": "#BSUB "}
"""of a line of a job script that is for the scheduler"""


class ClusterOptions(Part):
    """The keys of the TOML file."""

    provider: Provider
    cores: int = Field(default=1, ge=1, le=1024)
    """of each job"""
    memory: int | None = Field(default=None, gt=0)
    """bytes of each job, in the file a size such as 16GB; None: what the scheduler gives"""
    gpus: int = Field(default=0, ge=0, le=64)
    """of each job, which uses one of them; 0: it works on the CPU"""
    jobs_per_block: int = Field(default=1, ge=1, le=1024)
    """jobs that one request to the scheduler, a block, has room for: on one node"""
    blocks: int = Field(default=1, ge=1, le=1000)
    """that are requested at the same time, at most"""
    walltime: float | None = Field(default=None, ge=60)
    """seconds of a block, in the file a time such as 12h or 12:00:00; None, but for local: an hour"""
    retries: int = Field(default=2, ge=0, le=1000)
    """times that a job which failed runs again, in one command"""
    before: tuple[str, ...] = ()
    """lines of shell that a block begins with, such as `module load cuda`"""
    partition: str | None = Field(default=None, min_length=1)
    """Slurm's partition; the queue of the others"""
    account: str | None = Field(default=None, min_length=1)
    """Slurm's or PBS' account; LSF's project"""
    options: tuple[str, ...] = ()
    """more lines for the scheduler, without #SBATCH"""
    address: str | None = None
    """of this machine, at which jobs reach the command; None: loopback"""
    folder: str | None = Field(default=None, min_length=1)
    """for the engine's own files, among them keys of its encryption: one that every node sees, outside of OUT"""
    python: str | None = Field(default=None, min_length=1)
    """Python of the jobs; None: the one that runs the command"""
    image: str | None = Field(default=None, min_length=1)
    namespace: str = Field(default="default", min_length=1)
    volumes: dict[str, str] = {}
    """claim -> folder where it is mounted"""

    @field_validator("address")
    @classmethod
    def _plain_address(cls, address: str | None) -> str | None:
        """Every interface at once is no address of a machine, and nobody says so by accident."""
        if address is not None and ipaddress.ip_address(address).is_unspecified:
            raise ValueError("it stands for every address of the machine; give one")
        return address

    @field_validator("before", "options")
    @classmethod
    def _single_lines(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if any(set(line) & set("\n\r\0") for line in lines):
            raise ValueError("each entry is one line")
        return lines

    @field_validator("partition", "account")
    @classmethod
    def _one_word(cls, name: str | None) -> str | None:
        """It becomes part of a job script."""
        if name is not None and re.fullmatch(r"[\w.,:@+/-]+", name) is None:
            raise ValueError("it holds characters that no scheduler's names have")
        return name

    @property
    def workers(self) -> int:
        """Jobs that go on at the same time, at most."""
        return self.blocks * self.jobs_per_block

    @property
    def is_loopback(self) -> bool:
        return self.address is None or ipaddress.ip_address(self.address).is_loopback


def cluster_options(executor: str | None) -> ClusterOptions | None:
    """Of the option `--executor`; None: the command does the jobs itself. Raises UsageError."""
    return None if executor in (None, "local") else read_cluster_options(Path(executor))


def read_cluster_options(file: Path) -> ClusterOptions:
    """Raises UsageError, which names the key, before anything is submitted."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(
            f"--executor {file} does not exist", "Give local, or a TOML file; docs/cluster.md has examples"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--executor {file} is not readable TOML: {error}", "Correct the file") from None
    for key in content:
        if key not in ClusterOptions.model_fields:
            known = tuple(ClusterOptions.model_fields)
            raise UsageError(
                f"{file}: the key {key} is unknown", f"{nearest(key, known)}Known keys are {', '.join(known)}"
            )
    provider = content.get("provider")
    if provider is None:
        raise UsageError(f"{file}: the key provider is missing", f"Give one of {', '.join(PROVIDERS)}")
    if provider not in PROVIDERS:
        raise unknown_name(f"{file}: provider", provider, PROVIDERS)
    try:
        made = ClusterOptions.model_validate(_in_units(content, file))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        what = problem["ctx"]["error"] if problem["type"] == "value_error" else problem["msg"]
        raise UsageError(f"{file}: {key} = {problem['input']!r}: {what}", f"Correct {key}") from None
    _require_together(made, content, file)
    return made


def _in_units(content: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """With seconds and bytes in place of texts."""
    values = dict(content)
    for key, read in (("walltime", _seconds), ("memory", parse_size)):
        if isinstance(text := content.get(key), str):
            try:
                values[key] = read(text)
            except OptionError as error:
                raise UsageError(f"{file}: {key}: {error.message}", error.remedy) from None
        elif text is not None:
            raise UsageError(f"{file}: {key} = {text!r} has no unit", 'Write for example "12h", "12:00:00" or "16GB"')
    return values


def _seconds(text: str) -> float:
    """`12h`, or as schedulers write it `12:00:00`, with `1-` before it for a day."""
    if match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text.strip()):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    return parse_time(text)


def _require_together(made: ClusterOptions, content: Mapping[str, Any], file: Path) -> None:
    """Raises UsageError where keys do not go with the provider."""
    for key, providers in ONLY_OF.items():
        if key in content and made.provider not in providers:
            raise UsageError(
                f"{file}: {key} is for {' and '.join(providers)}, and the provider is {made.provider}",
                f"Leave out {key}",
            )
    if made.provider == "local" and made.blocks > 1:
        raise UsageError(
            f"{file}: blocks = {made.blocks}, and this machine is one block", "Say with jobs_per_block how many go on"
        )
    if made.provider != "local" and made.address is None:
        raise UsageError(
            f"{file}: the key address is missing: jobs on other nodes connect to this command, which listens nowhere "
            "unless told where",
            'Give the address of this machine in the network of the nodes, for example address = "10.1.0.1"',
        )
    if made.provider == "kubernetes" and made.image is None:
        raise UsageError(f"{file}: the key image is missing", "Give the container image that has autounet")
