"""What goes wrong in processes of their own; light to import, since each of them does."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from autounet.progress import Progress
from autounet.schema.errors import OptionError


def killed_at_case_one(item: tuple[str, str]) -> str:
    """As the system does when memory runs out."""
    if item[0] == "c1":
        os.kill(os.getpid(), signal.SIGKILL)
    return item[0]


def killed_once(item: tuple[str, str]) -> str:
    """As long as the file is there, which it removes."""
    if item[0] == "c1" and Path(item[1]).exists():
        Path(item[1]).unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return item[0]


def raises_at_one(number: int) -> int:
    """The others would take longer than anybody waits."""
    if number == 1:
        raise ZeroDivisionError("number one")
    time.sleep(3600)
    return number


def device_of_job(tell: Callable[[object], None], name: str, values: dict[str, str], called: float) -> None:
    """Ends only once three have said where they are."""
    with open(Path(values["folder"]) / "devices", "a") as file:
        file.write(values["device"] + "\n")
    while len((Path(values["folder"]) / "devices").read_text().split()) < 3:
        time.sleep(0.01)


def job(tell: Callable[[object], None], name: str, values: dict[str, str], called: float) -> str:
    """What a process does for a job with the values `folder` and `doing`."""
    folder, doing = Path(values["folder"]), values["doing"]
    with open(folder / "began", "a") as file:
        file.write(f"{doing} {os.getpid()}\n")
    if doing == "dies once" and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if doing == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if doing == "fails":
        raise ZeroDivisionError("a mistake in the program")
    if doing == "saves":  # once it is asked to end, which takes it a moment
        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
        (folder / "ready").touch()
        asked.wait(60)
        (folder / "saved").touch()
    if doing == "waits for another":
        while len((folder / "began").read_text().splitlines()) < 2:
            time.sleep(0.01)
    if doing == "fails after another":
        while not (folder / "ready").exists():
            time.sleep(0.01)
        raise OptionError("the disk is full")
    if doing == "hangs":
        time.sleep(3600)
    tell(Progress(f"{name} {doing}", 0.5))
    logging.getLogger("autounet.tests").warning("%s has been done", doing)
    return doing


def surroundings(tell: Callable[[object], None]) -> tuple[int, str | None, set[str]]:
    """Process, a variable of the environment, and addresses at which processes of this block listen."""
    import psutil

    processes = [psutil.Process(), *psutil.Process().parents()[:2]]
    listening = {
        each.laddr.ip
        for process in processes
        for each in process.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    return os.getpid(), os.environ.get("FROM_BEFORE"), listening
