"""OME-Zarr and HDF5: axes, spacing, channels, levels and addresses; image and label in one file; made to harm."""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from laboratory_files import hdf5, ngff

from autounet.datasets import find_inputs, load_input, scan
from autounet.imageio import (
    files_of,
    read_full_header,
    read_geometry,
    read_image,
    read_image_content,
    read_labels,
    stem,
    suffix,
    write_image,
    write_labels,
)
from autounet.schema.bundle import ModelBundle
from autounet.schema.dataset import ChannelKind, Dataset, Finding
from autounet.schema.errors import DataError, FileError
from autounet.schema.geometry import Geometry
from autounet.schema.options import DataOptions

NONE = DataOptions()
RNG = np.random.default_rng(0)
VOLUME = RNG.integers(0, 60_000, (2, 3, 16, 12)).astype(np.uint16)
"""(C, Z, Y, X)"""


def bundle_of(dataset: Dataset) -> ModelBundle:
    names = ("layout", "channels", "channel_patterns", "image_pattern", "suffix", "time_points", "file_kind")
    return ModelBundle.model_construct(**{name: getattr(dataset, name) for name in names})


# OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["tczyx", "czyx", "zcyx"])
def test_an_ngff_image_is_read_at_its_finest_level_with_spacing_and_channel_names(tmp_path, version, axes) -> None:
    array = VOLUME.transpose(["czyx".index(axis) for axis in axes if axis != "t"])
    array = array[None] if "t" in axes else array
    path = ngff(tmp_path / "a.ome.zarr", array, axes, version, {"z": 0.5, "y": 0.2, "x": 0.2}, names=["DAPI", "GFP"])
    image, geometry = read_image(path)
    assert (image == VOLUME).all()
    assert geometry.spacing == pytest.approx((5e-4, 2e-4, 2e-4))
    header = read_full_header(path)
    assert (header.names, header.measured, header.geometry) == (("DAPI", "GFP"), True, geometry)
    coarse, below = read_image(path / "1")
    assert (coarse == VOLUME[:, :, ::2, ::2]).all()
    assert below.spacing == pytest.approx((5e-4, 4e-4, 4e-4))


CODECS = {
    "big-endian": (2, np.dtype(">u2"), {}),
    "raw": (3, np.dtype("u2"), {"compressors": None}),
    "gzip": (3, np.dtype("i4"), {"compressors": zarr.codecs.GzipCodec()}),
    "blosc": (3, np.dtype("f4"), {"compressors": zarr.codecs.BloscCodec()}),
    "sharded zstd": (3, np.dtype("u1"), {"shards": (4, 8, 12), "chunks": (2, 4, 6)}),
}


@pytest.mark.parametrize("name", CODECS)
def test_a_plain_zarr_array_is_read_whatever_codec_it_has(tmp_path: Path, name: str) -> None:
    version, dtype, storage = CODECS[name]
    values = RNG.integers(0, 200, (4, 8, 12)).astype(dtype)
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=version)
    group.create_array("raw", data=values, **{"chunks": (2, 4, 6), **storage})
    assert (read_image(tmp_path / "a.zarr")[0][0] == values).all()


def test_labels_in_ome_zarr_are_found_and_the_level_they_were_drawn_on(tmp_path: Path) -> None:
    for index in range(3):
        labels = (VOLUME[0, :, ::2, ::2] > 30_000).astype(np.int32) * (index + 1)
        ngff(tmp_path / f"s{index}.ome.zarr", VOLUME + index, "czyx", names=["A", "B"], labels={"cells": labels})
    dataset = scan(tmp_path, NONE)
    assert dataset.layout == "containers"
    assert [(channel.name, channel.kind) for channel in dataset.channels] == [("A", "other"), ("B", "other")]
    first = dataset.cases[0]
    assert (first.identifier, first.images) == ("s0", ("s0.ome.zarr/1",))
    assert first.label == "s0.ome.zarr/labels/cells"
    assert read_labels(tmp_path / first.label)[0].shape == read_geometry(tmp_path / first.images[0]).shape
    (case,) = find_inputs(tmp_path / "s2.ome.zarr", bundle_of(dataset))
    assert case.images[0].name == "1"
    assert load_input(case, dataset.channels)[0].shape == (2, 3, 8, 6)


def test_a_label_changes_no_hash_of_the_image_beside_it(tmp_path: Path) -> None:
    path = ngff(tmp_path / "a.zarr", VOLUME, "czyx", labels={"x": np.ones((3, 16, 12), np.uint8)})
    image, label = set(files_of(path)), set(files_of(path / "labels" / "x"))
    assert not any("labels" in file.relative_to(path).parts for file in image)
    assert all(file.is_file() for file in image | label)
    assert {path / ".zattrs", path / "labels" / "x" / "0" / ".zarray"} <= label


def test_several_images_are_asked_about_and_addressed(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    for name in ("label", "raw"):
        group.create_array(name, data=VOLUME[0])
    with pytest.raises(FileError, match=r"a\.zarr/raw.*--channel 'image=\*\.zarr/raw' --label '\*\.zarr/label'"):
        read_image(tmp_path / "a.zarr")
    assert (read_image(tmp_path / "a.zarr" / "raw")[0] == VOLUME[:1]).all()
    with pytest.raises(FileError):
        read_image(tmp_path / "a.zarr" / ".." / "b")
    assert (stem("x/a.ome.zarr/labels/n"), suffix("a.h5/v/raw"), stem("a.h5")) == ("a", ".h5", "a")


@pytest.mark.parametrize("form", ["OME-TIFF", "ImageJ", "colours"])
def test_stacks_of_channels_are_no_photographs_and_their_order_is_compared(tmp_path: Path, form: str) -> None:
    (tmp_path / "labels").mkdir()
    for index, names in enumerate([["DAPI", "Actin", "Tubulin"]] * 3 + [["Actin", "DAPI", "Tubulin"]]):
        array = RNG.integers(0, 255, (3, 16, 16)).astype(np.uint8 if form == "colours" else np.uint16)
        path = tmp_path / "images" / f"c{index}.tif"
        path.parent.mkdir(exist_ok=True)
        if form == "OME-TIFF":
            path = path.with_suffix(".ome.tif")
            tifffile.imwrite(path, array, metadata={"axes": "CYX", "Channel": {"Name": names}})
        elif form == "ImageJ":
            metadata = {"axes": "CYX", "mode": "composite", "Labels": names}
            tifffile.imwrite(path, array, imagej=True, metadata=metadata)
        else:
            tifffile.imwrite(path, array, photometric="rgb", planarconfig="separate")
        tifffile.imwrite(tmp_path / "labels" / path.name, (array[0] > 99).astype(np.uint8))
    findings: list[Finding] = []
    channels = scan(tmp_path, NONE, findings).channels
    if form == "colours":
        assert [(each.name, each.kind) for each in channels] == [(name, "photo") for name in ("red", "green", "blue")]
        assert not findings
    else:
        assert [(each.name, each.kind) for each in channels] == [
            (name, "other") for name in ("DAPI", "Actin", "Tubulin")
        ]
        assert [(each.case, each.code) for each in findings] == [("c3", "channel-mismatch")]


def test_further_images_of_a_tiff_file_are_told(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for size in ((16, 12), (8, 6), (4, 3)):
            file.write(np.ones(size, np.uint8), photometric="minisblack")
    content = read_image_content(tmp_path / "a.tif")
    assert content.array.shape == (1, 1, 16, 12)
    assert [each.code for each in content.remarks] == ["other-images"]
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif", ome=True) as file:
        file.write(np.ones((64, 64), np.uint8), photometric="minisblack", subifds=1)
        file.write(np.ones((32, 32), np.uint8), photometric="minisblack", subfiletype=1)
    assert read_image_content(tmp_path / "pyramid.ome.tif").remarks == ()


# HDF5


@settings(deadline=None, max_examples=30)
@given(st.permutations("TCZYX"), st.sets(st.sampled_from("TCZ")), st.booleans())
def test_axistags_say_which_axis_is_which(tmp_path_factory, order: list[str], left_out: set[str], big: bool) -> None:
    axes = [axis for axis in order if axis not in left_out]
    lengths = {"T": 1, "C": 2, "Z": 3, "Y": 5, "X": 4}
    shape = [lengths[axis] for axis in axes]
    array = np.arange(np.prod(shape)).reshape(shape).astype(">i2" if big else "<i2")
    path = hdf5(tmp_path_factory.mktemp("h") / "a.h5", {"exported_data": array}, "".join(axes).lower())
    image, geometry = read_image(path)
    wanted = [axis for axis in "CZYX" if axis in axes]
    plain = array.squeeze(axes.index("T")) if "T" in axes else array
    plain = plain.transpose([[a for a in axes if a != "T"].index(axis) for axis in wanted])
    assert image.shape == tuple(lengths[axis] if axis in axes else 1 for axis in "CZYX")
    assert (image.ravel() == plain.ravel()).all()
    assert geometry.dimension == (3 if "Z" in axes else 2)


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((8, 9), (1, 1, 8, 9)),
        ((8, 9, 3), (3, 1, 8, 9)),
        ((7, 8, 9), (1, 7, 8, 9)),
        ((7, 8, 9, 2), (2, 7, 8, 9)),
        ((2, 7, 8, 9), (2, 7, 8, 9)),
        ((1, 7, 8, 9, 1), (1, 7, 8, 9)),
        ((6, 7, 8, 9), None),
    ],
)
def test_without_axistags_a_short_axis_is_that_of_channels(tmp_path: Path, shape, read) -> None:
    path = hdf5(tmp_path / "a.h5", {"raw": np.zeros(shape, np.uint8)}, compression="gzip")
    if read is None:
        with pytest.raises(FileError, match="axistags"):
            read_image(path)
    else:
        assert read_image(path)[0].shape == read


def test_written_segmentations_and_maps_come_back(tmp_path: Path) -> None:
    geometry = Geometry(shape=(3, 4, 5), spacing=(2.0, 0.5, 0.25))
    values = np.arange(60).reshape(3, 4, 5) * 1000
    write_labels(tmp_path / "a.h5", values, geometry)
    found, read = read_labels(tmp_path / "a.h5")
    assert (found == values).all()
    assert read.spacing == pytest.approx(geometry.spacing)
    write_image(tmp_path / "b.hdf5", VOLUME.astype(np.float32), Geometry(shape=VOLUME.shape[1:]))
    assert (read_image(tmp_path / "b.hdf5")[0] == VOLUME).all()
    with h5py.File(tmp_path / "a.h5") as file:
        keys = [axis["key"] for axis in json.loads(file["exported_data"].attrs["axistags"])["axes"]]
    assert keys == ["z", "y", "x"]


def test_an_hdf5_file_with_image_and_label_is_a_case(tmp_path: Path) -> None:
    for index in range(3):
        arrays = {"volumes/raw": VOLUME[0] + index, "volumes/labels/cells": (VOLUME[0] > 9).astype(np.uint8)}
        hdf5(tmp_path / f"s{index}.h5", arrays)
    dataset = scan(tmp_path, NONE)
    assert [case.images[0] for case in dataset.cases] == [f"s{index}.h5/volumes/raw" for index in range(3)]
    (case,) = find_inputs(tmp_path / "s1.h5", bundle_of(dataset))
    assert (load_input(case, dataset.channels)[0] == VOLUME[0] + 1).all()
    hdf5(tmp_path / "new" / "n.h5", {"data": VOLUME[0]})
    (case,) = find_inputs(tmp_path / "new", bundle_of(dataset))
    assert (load_input(case, dataset.channels)[0] == VOLUME[0]).all()


def test_data_sets_are_named_by_options_where_several_can_be_meant(tmp_path: Path) -> None:
    for index in range(3):
        masks = {name: (VOLUME[0] > 9).astype(np.uint8) for name in ("label_a", "label_b")}
        hdf5(tmp_path / "in" / f"s{index}.h5", {"raw": VOLUME[0] + index, **masks})
    with pytest.raises(DataError, match=r"--label '\*\.h5/label_a' or --label '\*\.h5/label_b'"):
        scan(tmp_path, NONE)
    assert scan(tmp_path, DataOptions(label="*.h5/label_b")).cases[0].images == ("in/s0.h5/raw",)
    dataset = scan(tmp_path, DataOptions(channels={"dapi": "*.h5/raw"}, label="*.h5/label_b"))
    assert dataset.cases[2].label == "in/s2.h5/label_b"
    assert [case.identifier for case in find_inputs(tmp_path / "in", bundle_of(dataset))] == ["s0", "s1", "s2"]
    assert dataset.channels[0].kind is ChannelKind.other


# what is missing, damaged, or made to harm


@pytest.mark.parametrize("library", ["zarr", "h5py"])
def test_a_missing_library_is_named_with_what_to_install(tmp_path: Path, monkeypatch, library: str) -> None:
    path = tmp_path / ("a.zarr" if library == "zarr" else "a.h5")
    ngff(path, VOLUME, "czyx") if library == "zarr" else hdf5(path, {"raw": VOLUME[0]})
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(FileError, match=r"autounet\[bio\]"):
        read_image(path)


def external_link(path: Path) -> None:
    hdf5(path.with_name("other.h5"), {"raw": VOLUME[0]})
    with h5py.File(path, "w") as file:
        file["raw"] = h5py.ExternalLink("other.h5", "raw")


def virtual(path: Path) -> None:
    hdf5(path.with_name("other.h5"), {"raw": VOLUME[0]})
    layout = h5py.VirtualLayout(VOLUME[0].shape, "u2")
    layout[...] = h5py.VirtualSource(str(path.with_name("other.h5")), "raw", VOLUME[0].shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("raw", layout)


def outside_storage(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", (10, 10), "u1", external=[("/etc/hostname", 0, 100)])


def chunk_bomb(path: Path) -> None:
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", (64, 64), "u1", chunks=(64, 64), compression="gzip")
        data.id.write_direct_chunk((0, 0), zlib.compress(bytes(8 << 20), 9))


def terabytes(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", (1 << 17, 1 << 17, 1 << 10), "u1", chunks=(64, 64, 64))


def truncated(path: Path) -> None:
    hdf5(path, {"raw": VOLUME[0]})
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("make", [external_link, virtual, outside_storage, chunk_bomb, terabytes, truncated])
def test_hdf5_files_that_reach_out_or_promise_too_much_are_refused(tmp_path: Path, make: Callable) -> None:
    make(tmp_path / "a.h5")
    for path in (tmp_path / "a.h5", tmp_path / "a.h5" / "raw"):
        with pytest.raises(FileError):
            read_image(path)


def changed(name: str, **entries: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **entries}))

    return change


def without_chunks(folder: Path) -> None:
    for chunk in (folder / "0").glob("[0-9]*"):
        chunk.unlink() if chunk.is_file() else shutil.rmtree(chunk)


def gzip_bomb(folder: Path) -> None:
    changed("0/.zarray", compressor={"id": "gzip", "level": 9})(folder)
    packed = zlib.compressobj(9, wbits=31)
    without_chunks(folder)
    (folder / "0" / "0.0.0").write_bytes(packed.compress(bytes(8 << 20)) + packed.flush())


BAD_ZARR: dict[str, Callable[[Path], None]] = {
    "code in a codec": changed("0/.zarray", filters=[{"id": "pickle"}]),
    "objects": changed("0/.zarray", dtype="|O"),
    "terabytes": changed("0/.zarray", shape=[1 << 14, 1 << 17, 1 << 17]),
    "chunks of terabytes": changed("0/.zarray", chunks=[1 << 14, 1 << 17, 1 << 17]),
    "negative": changed("0/.zarray", shape=[-1, 16, 12]),
    "no numbers": changed("0/.zarray", shape="all"),
    "out of the folder": changed(".zattrs", multiscales=[{"datasets": [{"path": "../b.zarr/0"}]}]),
    "levels of nothing": changed(".zattrs", multiscales=[{"datasets": []}]),
    "no multiscale": changed(".zattrs", multiscales=7),
    "scale of nothing": changed(
        ".zattrs",
        multiscales=[{"datasets": [{"path": "0", "coordinateTransformations": [{"scale": [0, 0, 0]}]}]}],
    ),
    "gzip bomb": gzip_bomb,
}


@pytest.mark.parametrize("what", BAD_ZARR)
def test_zarr_folders_that_are_damaged_or_made_to_harm_are_refused(tmp_path: Path, what: str) -> None:
    path = ngff(tmp_path / "a.zarr", VOLUME[0], "zyx", levels=1)
    BAD_ZARR[what](path)
    with pytest.raises(FileError, match=r"GB of memory .* GB are free" if "terabytes" in what else None) as caught:
        read_image(path)
    if what == "terabytes":
        assert "a.zarr/1" in caught.value.remedy


MICROSCOPES = {".czi": "Zeiss CZI", ".nd2": "Nikon ND2", ".lif": "Leica LIF", ".svs": "Aperio SVS", ".vsi": "Olympus"}


@pytest.mark.parametrize(("version", "separator"), [(2, "."), (2, "/"), (3, "/"), (3, ".")])
@pytest.mark.parametrize("sharded", [False, True])
def test_chunks_that_are_not_there_hold_the_fill_value(
    tmp_path: Path, version: int, separator: str, sharded: bool
) -> None:
    """Of an array with one small object 2 of 65,536 chunks may be there, of one with none at all."""
    if sharded and version == 2:
        pytest.skip("Zarr 2 has no shards")
    encoding = {"name": "v2" if version == 2 else "default", "separator": separator}
    more = {"shards": (1, 4, 4)} if sharded else {}
    for name, fill, object_ in (("empty", 0, None), ("full", 7, None), ("sparse", 3, np.s_[3:5, 100:103, 250:])):
        array = zarr.create_array(
            str(tmp_path / f"{name}.zarr"), shape=(4, 256, 256), chunks=(1, 2, 2), dtype="u2", zarr_format=version,
            fill_value=fill, chunk_key_encoding=encoding, **more,
        )  # fmt: skip
        expected = np.full(array.shape, fill, np.uint16)
        if object_:
            array[object_] = 9
            expected[object_] = 9
        for place in ("", "0", "c"):  # what systems leave in folders
            (tmp_path / f"{name}.zarr" / place).mkdir(exist_ok=True)
            (tmp_path / f"{name}.zarr" / place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" * 9)
            (tmp_path / f"{name}.zarr" / place / "._0.0.0").write_bytes(b"\0\5\x16\7" * 20)
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.zarr")[0].reshape(expected.shape), expected)


def test_formats_of_microscopes_are_called_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for ending in MICROSCOPES:
        (tmp_path / "images" / f"a{ending}").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        scan(tmp_path, NONE)
    assert all(form in caught.value.message for form in MICROSCOPES.values())
    assert "OME-TIFF" in caught.value.remedy


def test_outlines_of_other_programs_are_called_by_their_names(tmp_path: Path) -> None:
    for folder, ending in (("images", "_seg.npy"), ("annotations", ".geojson")):
        (tmp_path / folder).mkdir()
        for index in range(3):
            (tmp_path / folder / f"s{index}{ending}").write_text("{}")
    for index in range(3):
        tifffile.imwrite(tmp_path / "images" / f"s{index}.tif", VOLUME[0, 0] + index)
    with pytest.raises(DataError, match=r"3 such as s0.geojson \(outlines of QuPath\), 3 such as s0_seg.npy") as caught:
        scan(tmp_path, NONE)
    assert "number the objects" in caught.value.remedy


def test_images_and_labels_may_lie_in_one_folder(tmp_path: Path) -> None:
    for index in range(3):
        for folder, name in (("words", f"s{index}_cp_masks"), ("below", f"labels/s{index}")):
            (tmp_path / folder / "labels").mkdir(parents=True, exist_ok=folder == "below")
            tifffile.imwrite(tmp_path / folder / f"s{index}.tif", VOLUME[0, 0] + index)
            tifffile.imwrite(tmp_path / folder / f"{name}.tif", (VOLUME[0, 0] > 9).astype(np.uint8))
        shutil.rmtree(tmp_path / "words" / "labels")
    for folder, label in (("words", "s0_cp_masks.tif"), ("below", "labels/s0.tif")):
        dataset = scan(tmp_path / folder, NONE)
        assert (dataset.cases[0].images, dataset.cases[0].label) == (("s0.tif",), label)
        assert [case.identifier for case in find_inputs(tmp_path / folder, bundle_of(dataset))] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("name", ["study.h5", "study.zarr", "STUDY.ome.zarr"])
def test_a_folder_that_is_only_called_like_a_container_is_a_folder(tmp_path: Path, name: str) -> None:
    for case in ("a", "b"):
        for folder, values in (("images", VOLUME[:1]), ("labels", VOLUME[:1] > 30_000)):
            geometry = Geometry(shape=VOLUME.shape[1:], kind="nifti")
            write_image(tmp_path / name / folder / f"{case}.nii.gz", values.astype(np.int16), geometry)
    dataset = scan(tmp_path / name, NONE)
    assert [case.identifier for case in dataset.cases] == ["a", "b"]
    assert read_image(tmp_path / name / "images" / "a.nii.gz")[0].shape == (1, *VOLUME.shape[1:])
