"""What goes wrong in processes of their own; light to import, since each of them does."""

from __future__ import annotations

import os
import signal
import time
from typing import NoReturn


def killed_at_one(number: int) -> int:
    """As the system does when memory runs out."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def raises_at_one(number: int) -> int:
    """The others would take longer than anybody waits."""
    if number == 1:
        raise ZeroDivisionError("number one")
    time.sleep(3600)
    return number


def killed(device: str) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def second_raises(marker: str, device: str) -> NoReturn:
    """One of the processes that call this has a mistake; the others are busy for an hour."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise KeyError("a mistake in the program") from None
    time.sleep(3600)
    raise AssertionError
