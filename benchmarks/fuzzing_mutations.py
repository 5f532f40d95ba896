"""Valid files made invalid: by bytes, and by what their format says they hold, with checksums that are right again.

Whoever writes a file can compute its checksum as well. So JSON of ours is sealed again, chunks and archives get the
sums of their new content, and what is inside of compressed data is changed before it is compressed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from random import Random
from typing import Any

from autounet.inference.archive import DIGITS, MARK
from autounet.schema.record import digest

NUMBERS = (0, 1, -1, 2, 3, 4, 127, 255, 256, 32767, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**53, 2**63, 2**64, 10**30,
           0.5, -0.0, 1e-300, 5e-324, 1e20, 3e38, 1e308, -1e308, math.nan, math.inf, -math.inf)  # fmt: skip
TEXTS = (
    "", " ", "../../x", "/etc/passwd", "a/../../b", "C:\\x", "nul", "a\x1b[31mb", "a\nb", "\u202ex", "\x00", "$x_{$",
    "é", "<script>", "x" * 300, "\udce9", "-1", "nan", "inf", "1e999", "9" * 5000, "{}", "[", "%s%n", "(a+)+$",
)  # fmt: skip
DEEP = "@nested@"
"""stands for a list of many lists, which no JSON writer would write"""
DEEPEST = "[" * 100_000
LARGEST = 1 << 20
"""bytes of a changed file: what grows by repetition stays small"""


def flipped(rng: Random, whole: bytes) -> bytes:
    """Bytes, numbers and blocks changed, mostly near the beginning, where headers are; or the end cut off."""
    data = bytearray(whole or b"\0")
    for _ in range(rng.randint(1, 4)):
        most = len(data) if rng.random() < 0.4 else min(len(data), 400)
        place, kind = rng.randrange(max(1, most)), rng.randrange(8)
        if kind == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            data[place : place + 1] = bytes([(data[place] if place < len(data) else 0) ^ 1 << rng.randrange(8)])
        elif kind in (2, 3):
            packed = _packed(rng)
            data[place : place + len(packed)] = packed
        elif kind == 4:
            del data[place : place + rng.randint(1, 1 << rng.randrange(10))]
        elif kind == 5:
            data[place:place] = data[place : place + rng.randint(1, 1 << rng.randrange(12))]
        elif kind == 6:
            data[place : place + rng.randint(1, 64)] = bytes([rng.choice((0, 255, 32))]) * rng.randint(1, 64)
        elif len(data) > 1:
            del data[rng.randrange(len(data)) :]
        data = data or bytearray(b"\0")
    return bytes(data[:LARGEST])


def _packed(rng: Random) -> bytes:
    value, order = rng.choice(NUMBERS), rng.choice("<>")
    if isinstance(value, float) or rng.random() < 0.2:
        code = rng.choice("fd")
        try:
            return struct.pack(order + code, value)
        except OverflowError:
            return struct.pack(order + "d", value)
    code = rng.choice("BHIQ")
    return struct.pack(order + code, int(value) & ((1 << 8 * struct.calcsize(code)) - 1))


def worded(rng: Random, whole: bytes) -> bytes:
    """Of text, or a header of text before bytes: words, lines and separators changed."""
    end = re.search(rb"\r?\n\r?\n|ElementDataFile *= *LOCAL\r?\n", whole[: 1 << 16])
    head, rest = (whole[: end.start()], whole[end.start() :]) if end else (whole, b"")
    for _ in range(rng.randint(1, 3)):
        kind, place = rng.randrange(6), rng.randrange(len(head) + 1)
        if kind < 3 and (word := re.compile(rb"[\w.+-]+").search(head, place)):
            value = rng.choice((*TEXTS, *map(str, NUMBERS)))
            head = head[: word.start()] + value.encode("utf-8", "surrogateescape") + head[word.end() :]
        elif kind in (3, 4):
            begin, stop = head.rfind(b"\n", 0, place) + 1, head.find(b"\n", place) + 1 or len(head)
            line = head[begin:stop] if kind == 3 else b""
            head = head[:begin] + line + line + head[stop:]
        else:
            mark = rng.choice((b"=", b",", b";", b"\t", b"[", b"{", b'"', b"'", b"\0", b"\xff", b"[" * 5000))
            head = head[:place] + mark + head[place:]
    return head + rest


def json_changed(rng: Random, whole: bytes) -> bytes:
    """One to three values of a JSON text exchanged; sealed again where it was sealed."""
    content, places = json.loads(whole), _places(whole)
    for _ in range(rng.randint(1, 3)):
        if not places or rng.random() < 0.01:
            content = _value(rng, content)
            break
        with suppress(KeyError, IndexError, TypeError):  # an earlier change took the place away
            _exchange(rng, content, rng.choice(places))
    if isinstance(content, dict) and isinstance(content.get("checksum"), str) and rng.random() < 0.95:
        content["checksum"] = digest({key: value for key, value in content.items() if key != "checksum"})
    text = json.dumps(content).replace(json.dumps(DEEP), DEEPEST)
    return text.encode()[:LARGEST]


def _exchange(rng: Random, content: Any, place: tuple[Any, ...]) -> None:
    holder, key = _at(content, place[:-1]), place[-1]
    kind = rng.randrange(7)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif kind == 2:
        other = _at(content, place[: rng.randrange(len(place))])
        holder[key] = json.loads(json.dumps(rng.choice([*other.values()] if isinstance(other, dict) else other)))
    elif kind == 3 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 0, 1e6, 10**12, 1e-9, 0.5))
    else:
        holder[key] = _value(rng, holder[key])


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


@lru_cache(32)
def _places(whole: bytes) -> list[tuple[Any, ...]]:
    """The keys and indices that lead to every value of a JSON text; an object's `checksum` is none."""

    def below(content: Any, place: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        inner = (
            content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
        )
        found: list[tuple[Any, ...]] = []
        for key, value in inner:
            if key != "checksum":
                found += [(*place, key), *below(value, (*place, key))]
        return found

    return below(json.loads(whole), ())


def _value(rng: Random, old: Any) -> Any:
    kind = rng.randrange(10)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 7:
        return rng.choice(TEXTS)
    return rng.choice((None, True, [], {}, [old], {"a": old}, [old] * 1000, [[[]]], DEEP))


def gzipped(change: Callable[[Random, bytes], bytes]) -> Callable[[Random, bytes], bytes]:
    """What changes the content of a gzip file."""
    return lambda rng, whole: gzip.compress(change(rng, gzip.decompress(whole)), 1)


def png_changed(rng: Random, whole: bytes) -> bytes:
    """Chunks changed, repeated and left out, with sums that fit."""
    chunks, place = [], 8
    while place + 12 <= len(whole):
        size = int.from_bytes(whole[place : place + 4], "big")
        chunks.append((whole[place + 4 : place + 8], whole[place + 8 : place + 8 + size]))
        place += 12 + size
    at = rng.randrange(len(chunks))
    kind, data = chunks[at]
    if rng.random() < 0.2:
        chunks.insert(rng.randrange(len(chunks)), chunks[at])
    elif rng.random() < 0.1:
        del chunks[at]
    elif kind == b"IDAT" and rng.random() < 0.8:
        chunks[at] = (kind, zlib.compress(flipped(rng, zlib.decompress(data)), 1))
    else:
        chunks[at] = (kind, flipped(rng, data))
    return whole[:8] + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def safetensors_changed(rng: Random, whole: bytes) -> bytes:
    """The JSON at its beginning changed, with the length that it then has."""
    size = int.from_bytes(whole[:8], "little")
    header = json_changed(rng, whole[8 : 8 + size])
    return len(header).to_bytes(8, "little") + header + whole[8 + size :]


def zip_changed(rng: Random, whole: bytes) -> bytes:
    """A member's content, name or compression changed, or the member repeated or left out; with the sums of a model."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        files = [(each.filename, archive.read(each)) for each in archive.infolist()]
        comment = archive.comment
    at, kind = rng.randrange(len(files)), rng.randrange(10)
    name, content = files[at]
    compression = zipfile.ZIP_STORED
    if kind < 6:
        files[at] = (name, (json_changed if name.endswith(".json") and kind < 5 else flipped)(rng, content))
    elif kind == 6:
        files[at] = (rng.choice(TEXTS).replace("\udce9", "") or "a", content)
    elif kind == 7:
        files.insert(at, (rng.choice((name, "x", name + "/")), content))
    elif kind == 8:
        del files[at]
    else:
        compression = zipfile.ZIP_DEFLATED
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name or "a", (1980, 1, 1, 0, 0, 0)), content, compression)
        archive.comment = comment
    changed = packed.getvalue()
    if comment.startswith(MARK):
        changed = changed[:-DIGITS] + hashlib.blake2b(changed[:-DIGITS], digest_size=DIGITS // 2).hexdigest().encode()
    return changed
