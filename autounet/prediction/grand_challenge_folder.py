"""`autounet export --format grand-challenge`: a folder from which Docker builds an algorithm of grand-challenge.org.

OUT/Dockerfile            an unprivileged user, packages in the versions that are installed here
OUT/requirements.txt      those, without autounet, whose code lies beside it
OUT/autounet/             the code that predicts (`grand_challenge`)
OUT/interface.json        the sockets
OUT/model/                the model
OUT/test.sh, save.sh      try the container as the platform runs it; write the file to upload
OUT/README.md
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from .. import __version__
from ..inference.bundle import export_bundle, load_bundle
from ..schema.bundle import ModelBundle
from ..schema.errors import OptionError, UsageError
from ..schema.plugins import plugins
from ..schema.quantities import format_size
from ..schema.record import new_folder, write_text
from .grand_challenge import INTERFACE_FILE, MODEL_FOLDER, PORT, Interface

SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
PLACE = re.compile(r"images/[a-z0-9]+(-[a-z0-9]+)*")
DEFAULT_MEMORY = 16 * 1024**3
"""of the smallest instances that the platform has"""
USER = 10001
"""number of the user and group in the container, above those that systems give to their own"""
DOCKERFILE = """\
FROM python:{python}-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

RUN groupadd --gid {user} autounet && useradd --create-home --no-log-init --uid {user} --gid {user} autounet

WORKDIR /opt/app

COPY requirements.txt /opt/app/
RUN python -m pip install --no-cache-dir --requirement /opt/app/requirements.txt

COPY autounet /opt/app/autounet
COPY interface.json /opt/app/
COPY model /opt/app/model

# a server with /health and /invoke; without this label the platform starts the container for each case (--once)
LABEL org.grand-challenge.api-method="invoke"
EXPOSE {port}

USER {user}:{user}
ENTRYPOINT ["python", "-m", "autounet.prediction.grand_challenge", "/opt/app"]
"""
TEST_SCRIPT = """\
#!/bin/sh
# Predicts the case in ./test/input into ./test/output as the platform does: without network, as the image's own user,
# within {memory}. --gpus all as an argument gives it the GPUs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
docker build --platform=linux/amd64 --tag {tag} "$here"
mkdir -p "$here/test/output"
chmod o+rwx "$here/test/output"
docker run --rm --platform=linux/amd64 --network none --memory {bytes} --memory-swap {bytes} --cap-drop ALL \\
    --security-opt no-new-privileges --pids-limit 512 --tmpfs /tmp \\
    --volume "$here/test/input":/input:ro --volume "$here/test/output":/output "$@" {tag} --once
"""
SAVE_SCRIPT = """\
#!/bin/sh
# Writes {tag}.tar.gz, which is uploaded as a container image of the algorithm.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
docker build --platform=linux/amd64 --tag {tag} "$here"
docker save {tag} | gzip -c > "$here/{tag}.tar.gz"
"""
README = """\
# {name}, an algorithm of grand-challenge.org

{inputs}
- output: `/output/{output}/`, a segmentation `.mha` in the geometry of the image

1. Put a case into `test/input` as the platform lays it out: one image in `images/<slug>/` for each input socket.
2. `./test.sh` builds the image and predicts it without network, as an unprivileged user, within {memory}.
3. `./save.sh` writes `{tag}.tar.gz`, to be uploaded as a container image of the algorithm.

What was done for each case is on the page of its logs. The model's card is `model/model_card.md`.
"""


def export_grand_challenge(
    model: Path, out: Path, inputs: Sequence[str] | None, output: str | None, memory_bytes: int | None = None
) -> tuple[Path, Interface]:
    """Write the new folder `out`; returns it with the interface.

    `inputs` are slugs of sockets, one for each channel of the model, or one of an image that holds them all; `output`
    is a slug or a path images/NAME. `memory_bytes` is what the container is tried within (None: 16 GB). Raises
    OptionError for sockets that do not fit the model, an `out` that is there and plug-ins that no package brings.
    """
    out = Path(out)
    bundle, _ = load_bundle(Path(model))
    interface = _interface(bundle, inputs, output)
    if out.exists():
        raise OptionError(f"--out {out} exists already", "Give a new folder")
    memory = memory_bytes or DEFAULT_MEMORY
    tag = re.sub(r"[^a-z0-9]+", "-", bundle.name.lower()).strip("-") or "model"
    shown = {"tag": tag, "memory": format_size(memory), "bytes": str(memory)}
    reads = [f"- input: `/input/images/{slug}/`, the {what}" for slug, what in _contents(bundle, interface)]
    texts = {
        "Dockerfile": DOCKERFILE.format(python=".".join(map(str, sys.version_info[:2])), user=USER, port=PORT),
        "requirements.txt": "".join(f"{line}\n" for line in _requirements(bundle)),
        "test.sh": TEST_SCRIPT.format(**shown),
        "save.sh": SAVE_SCRIPT.format(**shown),
        "README.md": README.format(name=bundle.name, inputs="\n".join(reads), output=interface.output, **shown),
        ".dockerignore": "test\n*.tar.gz\n",
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_folder(out)
    try:
        export_bundle(model, temporary / MODEL_FOLDER)
        interface.save(temporary / INTERFACE_FILE)
        package = Path(__file__).parents[1]
        shutil.copytree(package, temporary / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        for name, text in texts.items():
            write_text(temporary / name, text)
            if name.endswith(".sh"):
                allowed = (temporary / name).stat().st_mode
                (temporary / name).chmod(allowed | (allowed & 0o444) >> 2)  # for whoever may read it
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return out, interface


def _interface(bundle: ModelBundle, inputs: Sequence[str] | None, output: str | None) -> Interface:
    channels = [channel.name for channel in bundle.channels]
    if not inputs or len(inputs) not in (1, len(channels)):
        raise OptionError(
            f"--sockets names {len(inputs or ())} input sockets, and the model has the channels {', '.join(channels)}",
            "Give the slug of each one's socket in this order, with commas, or one of an image that holds them all",
        )
    if wrong := [slug for slug in inputs if SLUG.fullmatch(slug) is None]:
        raise UsageError(
            f"--sockets {wrong[0]} is no slug: lower case words joined by '-'", "Copy it from the algorithm's interface"
        )
    if len(set(inputs)) < len(inputs):
        raise UsageError("--sockets names a socket twice", "An interface has each socket once")
    place = output if output is None or "/" in output else f"images/{output}"
    if place is None or PLACE.fullmatch(place) is None:
        given = "is not given" if output is None else f"{output} is neither a slug nor images/NAME"
        raise UsageError(f"--output-socket {given}", "Give the slug of the segmentation's socket, or its path")
    return Interface(inputs=tuple(inputs), output=place)


def _contents(bundle: ModelBundle, interface: Interface) -> list[tuple[str, str]]:
    names = [channel.name for channel in bundle.channels]
    if len(interface.inputs) < len(names):
        return [(interface.inputs[0], f"image with the channels {', '.join(names)}")]
    return [(slug, f"channel {name}") for slug, name in zip(interface.inputs, names, strict=True)]


def _requirements(bundle: ModelBundle) -> list[str]:
    """`name==version` of all that autounet needs, directly or not, as installed here; and the model's plug-ins."""
    try:
        pinned = _installed_needs(requires("autounet") or ())
    except PackageNotFoundError:
        raise OptionError(
            "autounet is not installed here, so that nobody knows what it needs", "Install it: pip install autounet"
        ) from None
    for use in bundle.plugins:
        module = plugins(use.kind)[use.name].reference.partition(":")[0]
        try:
            pinned[use.package] = version(use.package)
        except PackageNotFoundError:
            message = f"{use} was registered from Python: no package brings {module} into the container"
            raise OptionError(message, "Make it a package (docs/plugins.md)") from None
    head = f"# of autounet {__version__}, whose code is in ./autounet"
    return [head, *(f"{name}=={number}" for name, number in sorted(pinned.items()))]


def _installed_needs(wanted: Iterable[str]) -> dict[str, str]:
    """Versions of the packages that requirements name, and of those that these need; extras are left out.

    A local version such as 2.13.0+cpu is of another index than PyPI. The 2.13.0 there also needs NVIDIA's packages,
    whose versions it says itself.
    """
    from packaging.requirements import Requirement  # matplotlib needs it

    found: dict[str, str] = {}
    waiting = [Requirement(text) for text in wanted]
    while waiting:
        each = waiting.pop()
        name = re.sub(r"[-_.]+", "-", each.name).lower()
        if name in found or (each.marker is not None and not each.marker.evaluate({"extra": ""})):
            continue
        found[name] = version(each.name).partition("+")[0]
        waiting += [Requirement(text) for text in requires(each.name) or ()]
    return found
