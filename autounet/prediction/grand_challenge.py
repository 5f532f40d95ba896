"""What a container on grand-challenge.org runs: `python -m autounet.prediction.grand_challenge FOLDER`.

FOLDER is what `autounet export --format grand-challenge` wrote. The platform's interface, as its templates have it in
2026: a server on port 4743 whose `GET /health` answers 200 once the model is loaded, and whose `POST /invoke` predicts
the case that lies in /input into /output and answers 201. `/input/inputs.json` names the sockets of the case and their
paths; an image is the one file in its socket's folder. Without the label `org.grand-challenge.api-method` the container
is started for each case instead, which `--once` does. There is no network, and /input is read only.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

import numpy as np

from .. import __version__
from ..imageio import is_image, write_labels
from ..ops.device import peak_resident
from ..schema.errors import AutoUNetError, DataError, ModelError
from ..schema.quantities import format_seconds, format_size
from ..schema.record import Record
from .one_image import from_files
from .predictor import Predictor

log = logging.getLogger(__name__)

PORT = 4743
"""that grand-challenge.org calls"""
INTERFACE_FILE, MODEL_FOLDER = "interface.json", "model"
TARBALL = Path("/opt/ml/model")
"""where the platform unpacks a model that was uploaded by itself; it comes before that of the container"""
RESULT = "segmentation.mha"


class Interface(Record):
    """`interface.json`: which sockets of an algorithm the model reads and writes."""

    inputs: tuple[str, ...]
    """slugs in the order of the model's channels; one alone is an image with all of them"""
    output: str
    """path of the segmentation's folder in /output, such as images/liver-segmentation"""


def input_files(interface: Interface, source: Path) -> list[Path | None]:
    """The image of each input socket, None for those that the case lacks.

    Raises DataError where no socket of the model is there, or a socket's folder holds not one image.
    """
    places = _socket_paths(source)
    found: list[Path | None] = []
    for slug in interface.inputs:
        folder = source / places.get(slug, f"images/{slug}")
        images = sorted(path for path in folder.iterdir() if is_image(path)) if folder.is_dir() else []
        if len(images) > 1 or (not images and slug in places):
            names = ", ".join(path.name for path in images) or "none"
            raise DataError(f"the folder of the socket {slug}, {folder}, holds not one image: {names}", "Give one file")
        found.append(images[0] if images else None)
    if not any(found):
        there = ", ".join(sorted(places)) or ", ".join(sorted(path.name for path in source.glob("images/*"))) or "none"
        raise DataError(
            f"{source} has no image of the sockets {', '.join(interface.inputs)}; its sockets are {there}",
            "Export the model again with the slugs of the algorithm's interface (--sockets)",
        )
    return found


def _socket_paths(source: Path) -> dict[str, str]:
    """Slug -> path below `source`, of the sockets that inputs.json lists; empty without that file."""
    file = source / "inputs.json"
    if not file.is_file():
        return {}
    try:
        sockets = [entry["socket"] for entry in json.loads(file.read_text(encoding="utf-8"))]
        places = {str(each["slug"]): str(each["relative_path"]) for each in sockets}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        message = f"{file} is no list of sockets with slug and relative_path: {type(error).__name__}: {error}"
        raise DataError(message, "See the page of the algorithm's interface for what it has to hold") from None
    if outside := [place for place in places.values() if Path(place).is_absolute() or ".." in Path(place).parts]:
        raise DataError(f"{file} names {outside[0]}, which is not below {source}", "Correct it")
    return places


def predict_case(predictor: Predictor, interface: Interface, source: Path, target: Path) -> Path:
    """Segment the case in `source` into `target`, in the geometry of its image; returns the file. Logs what is done.

    Raises DataError for an image that does not fit the model, OutOfMemory.
    """
    begun = time.monotonic()
    files = input_files(interface, source)
    image = from_files(files, predictor.bundle, force=True)  # nobody is there to be asked; what is unlike is logged
    for slug, file in zip(interface.inputs, files, strict=True):
        log.info("input %s: %s", slug, file.relative_to(source) if file else "absent")
    log.info("shape %s voxels, spacing %s mm (z, y, x)", image.geometry.shape, image.geometry.spacing)
    values = predictor.segment(predictor.prepare(image.array, image.geometry, image.present))
    written = target / interface.output / RESULT
    written.parent.mkdir(parents=True, exist_ok=True)
    write_labels(written, values, image.geometry)
    names = {label.value: label.name for label in predictor.bundle.labels.classes}
    counts = zip(*(each.tolist() for each in np.unique(values, return_counts=True)), strict=True)
    log.info("voxels: %s", ", ".join(f"{names.get(value, value)} {count}" for value, count in counts))
    seconds, peak = time.monotonic() - begun, peak_resident()
    log.info("written %s in %s; peak memory of the process %s", written, format_seconds(seconds), format_size(peak))
    return written


def serve(predictor: Predictor, interface: Interface, source: Path, target: Path, port: int) -> None:
    """Answer `/health` and `/invoke` until the process is ended. One case is predicted at a time."""
    one_case = Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200 if self.path == "/health" else 404)

        def do_POST(self) -> None:
            if self.path != "/invoke":
                self.answer(404)
                return
            with one_case:
                try:
                    predict_case(predictor, interface, source, target)
                    status = 201
                except AutoUNetError as error:
                    log.error("not predicted: %s", error)
                    status = 500
                except Exception:
                    log.exception("not predicted")
                    status = 500
            self.answer(status)

        def answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            log.info(format, *args)

    with ThreadingHTTPServer(("", port), Handler) as server:
        log.info("listening on port %s", server.server_port)
        server.serve_forever()


def main(words: Sequence[str] | None = None) -> int:
    """Exit code 1 with a message for what a person can correct."""
    parser = argparse.ArgumentParser(prog="python -m autounet.prediction.grand_challenge", description=__doc__)
    parser.add_argument("folder", type=Path, help=f"with {INTERFACE_FILE} and {MODEL_FOLDER}")
    parser.add_argument("--input", type=Path, default=Path("/input"))
    parser.add_argument("--output", type=Path, default=Path("/output"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--port", type=int, default=PORT, help="0: one that is free, which is logged")
    parser.add_argument("--once", action="store_true", help="predict the case that is there, and end")
    given = parser.parse_args(words)
    # standard output: the platform shows what comes on standard error as a warning
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    try:
        interface = Interface.load(given.folder / INTERFACE_FILE)
        model = TARBALL if (TARBALL / "bundle.json").is_file() else given.folder / MODEL_FOLDER
        predictor = Predictor(model, given.device)
        if len(interface.inputs) not in (1, len(predictor.bundle.channels)):
            raise ModelError(
                f"{model} has {len(predictor.bundle.channels)} channels, and {INTERFACE_FILE} names "
                f"{len(interface.inputs)} sockets",
                "Export this model again with its own sockets",
            )
        networks = sum(map(len, predictor.models.values()))
        log.info("autounet %s, model %s in %s", __version__, predictor.bundle.name, model)
        log.info("%s networks on %s", networks, predictor.device)
        if given.once:
            predict_case(predictor, interface, given.input, given.output)
        else:
            serve(predictor, interface, given.input, given.output, given.port)
    except AutoUNetError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
