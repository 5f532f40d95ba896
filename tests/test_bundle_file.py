"""A model as one file: predicts the same, and nothing but what was written is ever unpacked."""

from __future__ import annotations

import json
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
import pytest
from fake_output import make_output
from test_bundle import DATASET, LABELS, packed, trained
from typer.testing import CliRunner

from autounet.cli.app import app
from autounet.inference import archive
from autounet.inference.archive import sealed
from autounet.inference.bundle import build_models, export_bundle, load_bundle
from autounet.inference.card import card_text
from autounet.inference.summaries import describe
from autounet.schema.bundle import NO_LICENCE, ModelBundle
from autounet.schema.errors import ModelError
from autounet.schema.fingerprint import Fingerprint
from autounet.schema.metrics import Metrics
from autounet.schema.run import RunRecord

Change = Callable[[dict[str, bytes]], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("packed")
    packed(place / "model", [trained(place, name, 0) for name in ("2d", "3d_fullres")], "2d", "3d_fullres")
    return place / "model"


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    export_bundle(folder, folder.parent / "model.autounet", "CC BY 4.0")
    return folder.parent / "model.autounet"


def contents(file: Path) -> dict[str, bytes]:
    with ZipFile(file) as found:
        return {name: found.read(name) for name in found.namelist()}


def seal(path: Path) -> Path:
    """With the right checksum at the end, as somebody who wants to deceive would make it."""
    with open(path, "rb+") as opened:
        checksum = archive._checksum(opened, path.stat().st_size - archive.DIGITS)
        opened.seek(-archive.DIGITS, os.SEEK_END)
        opened.write(checksum)
    return path


def forged(path: Path, files: list[tuple[ZipInfo | str, bytes]], compression: int = ZIP_STORED) -> Path:
    with ZipFile(path, "w", compression) as target:
        for entry, content in files:
            target.writestr(entry, content)
        target.comment = archive.MARK + b"0" * archive.DIGITS
    return seal(path)


def test_the_file_holds_the_same_model(folder: Path, file: Path) -> None:
    bundle, unpacked = load_bundle(file)
    original, _ = load_bundle(folder)
    assert bundle.card.licence == "CC BY 4.0"
    changed = {"card", "card_checksum", "checksum"}
    assert bundle.model_dump(exclude=changed) == original.model_dump(exclude=changed)
    for name in ("2d", "3d_fullres"):
        pair = [build_models(bundle, place, name, None, "cpu")[0].state_dict() for place in (folder, unpacked)]
        assert all(np.array_equal(pair[0][key].numpy(), pair[1][key].numpy()) for key in pair[0])
    assert set(contents(file)) == {"bundle.json", "model_card.md", *(member.path for member in bundle.members)}
    assert "Licence: CC BY 4.0" in (unpacked / "model_card.md").read_text()
    assert load_bundle(file)[1] == unpacked, "unpacked once"


def test_equal_models_make_equal_files_and_a_file_becomes_a_folder_again(file: Path, tmp_path: Path) -> None:
    export_bundle(file, tmp_path / "again.autounet")
    assert (tmp_path / "again.autounet").read_bytes() == file.read_bytes(), "the licence is kept too"
    export_bundle(file, tmp_path / "folder")
    assert load_bundle(tmp_path / "folder")[0] == load_bundle(file)[0]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x")
    with pytest.raises(ModelError, match="is no model"):
        export_bundle(file, tmp_path / "thesis")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_was_unpacked_goes_with_the_process(file: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from autounet.inference.bundle import load_bundle\n"
        f"sys.stdout.write(str(load_bundle(Path({str(file)!r}))[1])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not Path(done.stdout).exists()


def test_every_flipped_bit_and_every_cut_is_refused(file: Path, tmp_path: Path) -> None:
    """Headers, contents, directory and comment alike: every 97th byte, all of the end, and lengths of all kinds."""
    whole, path = file.read_bytes(), tmp_path / "damaged.autounet"
    end = len(whole) - 300
    for place in [*range(0, end, max(1, end // 60)), *range(end, len(whole), 5)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"damaged|no whole \.autounet"):
            load_bundle(path)
    for length in (0, 1, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"no whole \.autounet"):
            load_bundle(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(ModelError, match=r"no whole \.autounet"):
        load_bundle(path)


def test_bits_flipped_under_a_right_checksum_never_load_another_model(file: Path, tmp_path: Path) -> None:
    """What nobody checks but the checksum at the end is harmless; all else is refused with an error of ours."""
    whole, path, known = file.read_bytes(), tmp_path / "forged.autounet", load_bundle(file)[0]
    directory = whole.rindex(b"PK\x05\x06") - 1
    while whole[directory : directory + 4] != b"PK\x01\x02" or b"bundle.json" not in whole[directory : directory + 60]:
        directory -= 1
    places = [*range(0, 48), *range(directory, len(whole) - archive.DIGITS - len(archive.MARK), 3)]
    refused = 0
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            assert load_bundle(seal(path))[0] == known
        except ModelError:
            refused += 1
    assert refused > len(places) / 3


@pytest.mark.parametrize(
    "name", ["../escaped", "/tmp/escaped", "a/../../escaped", "C:\\escaped", "a\\..\\escaped", "./bundle.json", "a//b"]
)
def test_names_that_lead_out_are_refused(file: Path, tmp_path: Path, name: str) -> None:
    path = forged(tmp_path / "m.autounet", [*contents(file).items(), (name, b"x")])
    with pytest.raises(ModelError, match="a name that leads out"):
        load_bundle(path)
    assert not list(tmp_path.rglob("escaped"))


def link() -> ZipInfo:
    entry = ZipInfo("2d/link")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_what_a_model_does_not_hold_is_refused(file: Path, tmp_path: Path) -> None:
    files, path = list(contents(file).items()), tmp_path / "m.autounet"
    with pytest.warns(UserWarning, match="Duplicate"):
        forged(path, [*files, files[-1]])
    with pytest.raises(ModelError, match="twice"):
        load_bundle(path)
    for extra, message in (
        ("setup.py", "does not mention"),
        (link(), "no plain file"),
        ("2d/sub/", "leads out|no plain"),
    ):
        with pytest.raises(ModelError, match=message):
            load_bundle(forged(path, [*files, (extra, b"x" if extra != "2d/sub/" else b"")]))
    with pytest.raises(ModelError, match=r"lacks 'model_card\.md'"):
        load_bundle(forged(path, [pair for pair in files if pair[0] != "model_card.md"]))
    with pytest.raises(ModelError, match="no bundle"):
        load_bundle(forged(path, files[1:]))
    with pytest.raises(ModelError, match="checksum differs"):
        load_bundle(forged(path, [(name, b"x" + own[1:] if "2d" in name else own) for name, own in files]))


def test_bombs_are_refused_before_anything_is_written(file: Path, tmp_path: Path) -> None:
    files, path = list(contents(file).items()), tmp_path / "m.autounet"
    with pytest.raises(ModelError, match="compressed"):
        load_bundle(forged(path, [*files, ("zeros", bytes(10_000_000))], ZIP_DEFLATED))
    forged(path, files)
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    claimed = 2**31 - 2
    content[start + 20 : start + 28] = struct.pack("<II", claimed, claimed)
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"Do not use it"):
        load_bundle(seal(path))


def test_a_record_that_is_none_is_told_by_the_files_name(file: Path, tmp_path: Path) -> None:
    files = contents(file) | {"bundle.json": b"{}"}
    with pytest.raises(ModelError, match=r"m\.autounet: bundle\.json has format_version None"):
        load_bundle(forged(tmp_path / "m.autounet", list(files.items())))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    with pytest.raises(ModelError, match=r"no whole \.autounet"):
        load_bundle(tmp_path / "picture.png")


def test_the_command_line_exports_with_a_licence(folder: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "m.autounet", CliRunner().invoke
    done = run(app, ["export", str(folder), "--format", "bundle", "--out", str(out), "--licence", "CC0"])
    assert done.exit_code == 0
    assert "licence: CC0" in done.output
    bundle = json.loads(contents(out)["bundle.json"])
    assert ModelBundle.model_validate(_without_version(bundle)).card
    refused = run(app, ["export", str(folder), "--format", "bundle", "--out", str(out), "--folds", "0"])
    assert "Leave one of the two out" in str(refused.exception)


def _without_version(content: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in content.items() if name != "format_version"}


def test_the_card_says_what_the_run_says(tmp_path: Path, folder: Path) -> None:
    out = make_output(tmp_path / "out", cases=4)
    metrics, fingerprint = Metrics.load(out / "metrics.json"), Fingerprint.load(out / "fingerprint.json")
    records = [RunRecord.load(path) for path in sorted(out.glob("models/*/*/record.json"))]
    labels = DATASET.labels.model_copy(
        update={"classes": (*LABELS.classes, LABELS.classes[1].model_copy(update={"name": "a | <b>", "value": 9}))}
    )
    card = describe(fingerprint, metrics, records, labels)
    assert card.data is not None
    assert (card.data.cases, card.data.shape, card.data.spacing) == (4, (20, 48, 44), (2.0, 1.0, 1.0))
    assert sum(each.share for each in card.data.classes) == pytest.approx(1)
    assert [len(each.folds) for each in card.trainings] == [5]
    bundle = sealed(load_bundle(folder)[0].model_copy(update={"card": card, "labels": labels}))
    text = card_text(bundle)
    for words in (
        "no medical device",
        "a \\| &lt;b&gt;",
        "Licence: not stated",
        "95 % intervals",
        "20 x 48 x 44",
        "torch ",
    ):
        assert words in text
    assert f"Mean Dice {metrics.mean_dice:.4f} [" in text
    dice = metrics.per_class["left kidney"].dice
    assert f"| left kidney | {dice:.4g} [" in text
    bare = describe(None, None, [], labels)
    assert (bare.data, bare.scores, bare.trainings) == (None, None, ())
    assert "Not known" in card_text(bundle.model_copy(update={"card": bare}))


def test_the_card_begins_with_what_the_hub_reads(tmp_path: Path, folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    out = make_output(tmp_path / "out", cases=4)
    metrics = Metrics.load(out / "metrics.json")
    bundle = load_bundle(folder)[0].model_copy(update={"name": 'a: "b" # {c} \u00e9'})
    known = describe(Fingerprint.load(out / "fingerprint.json"), metrics, [], DATASET.labels)
    for licence, expected, name in (
        ("CC BY 4.0", "cc-by-4.0", None),
        ("ask Ann & Bob", "other", "ask-ann-bob"),
        (NO_LICENCE, "unknown", None),
    ):
        card = known.model_copy(update={"licence": licence})
        data = hub.ModelCard(card_text(bundle.model_copy(update={"card": card}))).data
        assert (data.license, data.license_name) == (expected, name)
        assert (data.library_name, data.pipeline_tag) == ("autounet", "image-segmentation")
        assert {"plain", "3d"} <= set(data.tags)
        assert data.model_name == bundle.name
        first = data.eval_results[0]
        assert (first.dataset_name, first.metric_type) == (bundle.name, "dice")
        assert first.metric_value == pytest.approx(metrics.mean_dice, rel=1e-3)
    bare = hub.ModelCard(card_text(bundle.model_copy(update={"card": describe(None, None, [], DATASET.labels)})))
    assert bare.data.eval_results is None
