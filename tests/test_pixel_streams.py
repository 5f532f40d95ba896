"""What compressed pixels hold is known before a decoder gets them: all that encoders write, and nothing that harms."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autounet.imageio import read_image
from autounet.imageio.pixel_streams import is_lzw, png_pixels
from autounet.schema.errors import DataError

PASSES = (
    np.s_[0::8, 0::8], np.s_[0::8, 4::8], np.s_[4::8, 0::4], np.s_[0::4, 2::4], np.s_[2::4, 0::2], np.s_[0::2, 1::2],
    np.s_[1::2, :],
)  # fmt: skip
"""rows and columns of the passes of an interlaced PNG"""
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, interlaced: bool, pixels: bytes, parts: int = 1) -> bytes:
    stream = zlib.compress(pixels)
    size = -(-len(stream) // parts)
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(b"IDAT", each) for each in pieces) + chunk(b"IEND", b"")


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from(sorted(SAMPLES)),
    st.booleans(), st.integers(1, 3), st.integers(-3, 3),
)  # fmt: skip
def test_a_png_has_the_bytes_that_its_header_says(
    width: int, height: int, bits: int, colour: int, interlaced: bool, parts: int, more: int
) -> None:
    grid = np.zeros((height, width), bool)
    shapes = [grid[places].shape for places in PASSES] if interlaced else [grid.shape]
    rows = [(down, 1 + (across * bits * SAMPLES[colour] + 7) // 8) for down, across in shapes if across]
    expected = sum(down * length for down, length in rows)
    content = png(width, height, bits, colour, interlaced, bytes(max(0, expected + more)), parts)
    assert png_pixels(content) == (min(expected, max(0, expected + more)), expected)


@pytest.mark.parametrize("height", [17, 4_000_000])
def test_a_png_that_ends_early_is_refused_however_large_it_says_to_be(tmp_path: Path, height: int) -> None:
    (tmp_path / "a.png").write_bytes(png(18, height, 8, 2, False, bytes(16 * 55)))
    with pytest.raises(DataError, match=r"880 of \d+ bytes of pixels are there"):
        read_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(18, 16, 8, 2, False, bytes(16 * 55)))
    assert read_image(tmp_path / "b.png")[0].shape == (3, 1, 16, 18)


def packed(codes: Sequence[int], width: int = 9) -> bytes:
    bits = "".join(f"{code:0{width}b}" for code in codes)
    return bytes(int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8))


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.integers(1, 256), st.integers(1, 60_000))
def test_what_encoders_write_is_lzw(seed: int, values: int, count: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, values, count, dtype=np.uint8)
    assert is_lzw(imagecodecs.lzw_encode(pixels.tobytes()))


def test_what_libtiff_writes_is_lzw() -> None:
    for values in (1, 4, 256):
        pixels = np.random.default_rng(values).integers(0, values, (300, 400), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")
        page = tifffile.TiffFile(io.BytesIO(file.getvalue())).pages[0]
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            assert is_lzw(file.getvalue()[offset : offset + length])


@pytest.mark.parametrize(
    ("codes", "good"),
    [
        ((256, 65, 66, 257), True),
        ((256, 65, 258, 259, 257), True),  # each the entry that it makes
        ((65, 66), True),  # neither emptied nor ended
        ((256, 258, 257), False),
        ((256, 65, 259, 257), False),
        ((256, 65, 66, 256, 300, 257), False),
        ((256, 65, 66, 256, 65, 258, 257, 511), True),  # after its end
    ],
)
def test_codes_of_lzw_are_of_entries(codes: Sequence[int], good: bool) -> None:
    assert is_lzw(packed(codes)) is good


@pytest.mark.parametrize("order", [1, 2])
def test_a_tiff_with_a_code_of_no_entry_is_refused(tmp_path: Path, order: int) -> None:
    pixels, path = np.arange(288, dtype=np.uint8).reshape(16, 18), tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression="lzw")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    turn = bytes.maketrans(bytes(range(256)), bytes(int(f"{each:08b}"[::-1], 2) for each in range(256)))
    if order == 2:  # FillOrder in the place of ResolutionUnit
        at = content.index(struct.pack("<HHI", 296, 3, 1))
        content[at : at + 12] = struct.pack("<HHIHH", 266, 3, 1, 2, 0)
        content[start : start + length] = content[start : start + length].translate(turn)
        path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path)[0][0, 0], pixels)
    wrong = packed((256, 400, 400, 257))
    content[start : start + len(wrong)] = wrong.translate(turn) if order == 2 else wrong
    path.write_bytes(content)
    with pytest.raises(DataError, match="LZW"):
        read_image(path)
