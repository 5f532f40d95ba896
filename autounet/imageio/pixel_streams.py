"""Compressed pixels of PNG and TIFF, looked through before a decoder gets them.

Pillow takes a PNG whose pixels end early for black ones, however large the header says that the image is. The LZW
decoder of imagecodecs (2026.3.6) reads where there is nothing when a code is of no entry of its table.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

import numpy as np

_SAMPLES: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""of a pixel, by the colour type of a PNG (PNG 1.2, 4.1.1)"""
_ADAM7: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""first column and row, and steps, of the passes of an interlaced PNG (PNG 1.2, 8.2)"""
_PIECE: Final = 1 << 20

_CLEAR, _END, _FIRST, _ENTRIES = 256, 257, 258, 4096
"""codes of LZW that empty the table and end the strip, the first entry of the table, and how many there may be"""
_FILLED: Final = _FIRST + np.maximum(np.arange(_ENTRIES - _FIRST + 1) - 1, 0)
"""entries before each code after a table was emptied; the first code makes none"""
_WIDTHS: Final = np.select([_FILLED < 511, _FILLED < 1023, _FILLED < 2047], [9, 10, 11], 12)
"""bits of each code: TIFF makes them wider one entry early (TIFF 6.0, section 13)"""
_STARTS: Final = np.concatenate([[0], np.cumsum(_WIDTHS)[:-1]])
_HIGHEST: Final = np.concatenate([[255], _FILLED[1:]])
"""of each code: at most the entry that it is about to make, the first a byte"""


def png_pixels(content: bytes) -> tuple[int, int]:
    """Bytes of pixels that a PNG holds, at most those that its header says; and these. Damaged chunks hold none."""
    if len(content) < 33:
        return 0, 1
    width, height, bits, colour, interlaced = struct.unpack_from(">IIBB2xB", content, 16)
    size = bits * _SAMPLES.get(colour, 4)
    expected = sum(
        rows * (1 + (columns * size + 7) // 8)
        for column, row, across, down in (_ADAM7 if interlaced else ((0, 0, 1, 1),))
        if (columns := -(-(width - column) // across)) > 0 and (rows := -(-(height - row) // down)) > 0
    )
    decoder, found, offset = zlib.decompressobj(), 0, 8
    while offset + 8 <= len(content) and found < expected and not decoder.eof:
        length, kind = struct.unpack_from(">I4s", content, offset)
        rest = content[offset + 8 : offset + 8 + length] if kind == b"IDAT" else b""
        while rest and found < expected and not decoder.eof:
            try:
                found += len(decoder.decompress(rest, _PIECE))
            except zlib.error:
                return min(found, expected), expected
            rest = decoder.unconsumed_tail
        offset += 12 + length
    return min(found, expected), expected


def is_lzw(content: bytes) -> bool:
    """Whether each code of a strip of TIFF's LZW is of an entry that the codes before it have made.

    Where the codes lie depends only on where tables are emptied, so that those of one table are looked at together.
    """
    data, at = np.frombuffer(content + bytes(4), np.uint8), 0
    while True:
        places = at + _STARTS
        count = int(np.searchsorted(places + _WIDTHS, 8 * len(content), "right"))
        places, widths = places[:count], _WIDTHS[:count]
        byte = places >> 3
        words = sum(data[byte + index].astype(np.uint32) << (24 - 8 * index) for index in range(4))
        codes = (words >> (32 - (places & 7) - widths).astype(np.uint32)) & ((1 << widths) - 1).astype(np.uint32)
        special = np.flatnonzero((codes == _CLEAR) | (codes == _END))
        last = int(special[0]) if len(special) else count
        if (codes[:last] > _HIGHEST[:last]).any():
            return False
        if not len(special) or codes[last] == _END:
            return True
        at = int(places[last] + widths[last])
