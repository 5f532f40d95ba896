"""The page in a browser: what only a browser can tell. Not in the default run: `pytest -m browser`.

AUTOUNET_INSTALL_CHROMIUM=1 lets the set-up install Debian's package chromium where there is none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_output import complete_output, make_output
from headless import Browser

from autounet.report import write_report
from autounet.report.overlays import LETTER_SIZE, SIDE

pytestmark = pytest.mark.browser

PHONE = 390
"""pixels"""


@pytest.fixture(scope="module")
def chromium() -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None and os.environ.get("AUTOUNET_INSTALL_CHROMIUM") == "1":
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium here; AUTOUNET_INSTALL_CHROMIUM=1 installs Debian's package")
    return program


@pytest.fixture(scope="module")
def browser(chromium: str, tmp_path_factory: pytest.TempPathFactory):
    found = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def unsure(case: str, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Grows along x."""
    return np.broadcast_to(x / 100, (len(z), len(y), len(x))).astype(np.float32)


@pytest.fixture(scope="module", params=[3, 2])
def dimension(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def page(dimension: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_output(tmp_path_factory.mktemp("browser") / "out", dimension=dimension, cases=8)
    return write_report(out, unsure)


@pytest.fixture
def opened(browser: Browser, page: Path) -> Browser:
    browser.open(page)
    browser.wait_for("document.getElementById('viewer-box').dataset.ready !== undefined")
    return browser


def test_nothing_is_asked_for_and_nothing_goes_wrong(opened: Browser, page: Path) -> None:
    outside = [address for address in opened.requests if not address.startswith("data:")]
    assert outside == [page.resolve().as_uri()]
    assert opened.run("[...document.images].filter((image) => !(image.complete && image.naturalWidth)).length") == 0
    assert opened.run("document.images.length") > 10
    assert opened.messages == []


COLUMN = (
    """[...document.querySelector("table.compact").tBodies[0].rows].map((row) => row.cells[{}].textContent.trim())"""
)


def test_a_table_sorts_by_mouse_and_keyboard(opened: Browser) -> None:
    opened.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    heading = 'document.querySelector("table.compact").tHead.rows[0].cells[2]'
    before = [float(text) for text in opened.run(COLUMN.format(2))]
    assert before == sorted(before)
    assert len(set(before)) > 2
    opened.run(f"{heading}.querySelector('button').focus()")
    for way in ("ascending", "descending"):
        opened.press("Enter")
        assert opened.run(f"{heading}.getAttribute('aria-sort')") == way
        values = [float(text) for text in opened.run(COLUMN.format(2))]
        assert values == sorted(before, reverse=way == "descending")
        assert way in opened.run("document.getElementById('sorted').textContent")
    opened.run('document.querySelector("table.compact").tHead.rows[0].cells[0].querySelector("button").click()')
    names = opened.run(COLUMN.format(0))
    assert names == sorted(names)
    assert opened.run(f"{heading}.hasAttribute('aria-sort')") is False
    assert opened.messages == []


def test_the_undefined_stay_below(opened: Browser, dimension: int) -> None:
    if dimension == 2:
        return  # no class is missing in a case
    cells = 'document.querySelector("table.compact").tHead.rows[0].cells'
    place = opened.run(f"[...{cells}].findIndex((cell) => cell.textContent.includes('tumour'))")
    for _ in range(2):
        opened.run(f"{cells}[{place}].querySelector('button').click()")
        column = opened.run(COLUMN.format(place))
        assert column[-1] == "–"
        assert "–" not in column[:-1]


PIXELS = "document.querySelector('[data-plane] canvas').toDataURL()"


def test_the_viewer_shows_each_layer_and_case(opened: Browser) -> None:
    seen = {opened.run(PIXELS)}
    changes = [
        f"box.querySelector('[data-control={name}]').click()" for name in ("uncertainty", "reference", "prediction")
    ] + ["(box.querySelector('[data-control=opacity]').value = 90, fire('opacity', 'input'))"]
    fire = "const fire = (name, kind) => box.querySelector(`[data-control=${name}]`).dispatchEvent(new Event(kind));"
    for change in (changes[0], changes[3], changes[1], changes[2]):
        opened.run(f"(() => {{ const box = document.getElementById('viewer-box'); {fire} {change}; }})()")
        seen.add(opened.run(PIXELS))
    assert len(seen) == 5, "uncertainty, opacity, reference and prediction each change the picture"
    opened.run(
        f"(() => {{ const box = document.getElementById('viewer-box'); {fire}"
        "box.querySelector('[data-control=case]').value = '1'; fire('case', 'change'); })()"
    )
    second = opened.run("document.querySelector('[data-control=case]').options[1].textContent")
    opened.wait_for(f"document.getElementById('viewer-box').dataset.ready === '{second}'")
    assert opened.run(PIXELS) not in seen
    assert opened.messages == []


SLICE = "Number(document.querySelector('[data-plane] canvas').dataset.slice)"


def test_the_viewer_scrolls_by_wheel_keyboard_and_slider(opened: Browser, dimension: int) -> None:
    if dimension == 2:
        assert opened.run("document.querySelector('[data-plane] input').hidden") is True
        return
    opened.run("document.querySelector('[data-plane] canvas').scrollIntoView({block: 'center'})")
    place = opened.run("document.querySelector('[data-plane] canvas').getBoundingClientRect().toJSON()")
    start, picture = opened.run(SLICE), opened.run(PIXELS)
    opened.wheel(place["x"] + 40, place["y"] + 40, -100)
    opened.wait_for(f"{SLICE} === {start + 1}")
    assert opened.run(PIXELS) != picture
    opened.run("document.querySelector('[data-plane] canvas').focus()")
    opened.press("ArrowDown")
    assert opened.run(SLICE) == start
    opened.press("ArrowUp")
    opened.press("ArrowUp")
    assert opened.run(SLICE) == start + 2
    opened.run(
        "(() => { const slider = document.querySelector('[data-plane] input'); slider.value = 1;"
        "slider.dispatchEvent(new Event('input')); })()"
    )
    assert opened.run(SLICE) == 1
    assert opened.messages == []


def test_a_phone_needs_no_sideways_scrolling(browser: Browser, page: Path) -> None:
    browser.open(page, width=PHONE, height=800, touch=True)
    browser.wait_for("document.getElementById('viewer-box').dataset.ready !== undefined")
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= PHONE
    assert browser.messages == []


def test_paper_gets_the_pictures_and_no_viewer(opened: Browser) -> None:
    opened.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert opened.run("document.getElementById('viewer-box').offsetHeight") == 0
        assert opened.run("document.querySelector('.cuts img').offsetWidth") > 100
    finally:
        opened.call("Emulation.setEmulatedMedia", media="")
    assert opened.pdf().startswith(b"%PDF")


@pytest.fixture(scope="module")
def complete_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several configurations and their ensemble, regions, postprocessing, calibration, comparison."""
    return write_report(complete_output(tmp_path_factory.mktemp("complete") / "out"), unsure)


@pytest.fixture(params=[PHONE, 768, 1280])
def complete(request, browser: Browser, complete_page: Path) -> Browser:
    """At three widths, with all parts open."""
    browser.open(complete_page, width=request.param, touch=request.param < 1000)
    browser.wait_for("document.getElementById('viewer-box').dataset.ready !== undefined")
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return browser


def test_landmarks_and_headings_have_names(complete: Browser) -> None:
    """The rules landmark-unique and empty-table-header of axe; all of its rules where AUTOUNET_AXE names axe.min.js."""
    labels = complete.run("[...document.querySelectorAll('[role=region], nav')].map((part) => part.ariaLabel)")
    assert len(labels) == 9  # eight tables
    assert len(set(labels)) == len(labels)
    assert all(labels)
    assert complete.run("[...document.querySelectorAll('th')].filter((cell) => !cell.textContent.trim()).length") == 0
    if script := os.environ.get("AUTOUNET_AXE"):
        complete.run(Path(script).read_text(encoding="utf-8") + ";0")
        assert complete.run("axe.run().then((found) => found.violations.map((each) => each.id))") == []


def test_a_table_that_is_cut_says_so(complete: Browser) -> None:
    """In words above it, and by shadows; one that is not cut says nothing."""
    tables = complete.run(
        "[...document.querySelectorAll('.scroll')].map((box) => [box.scrollWidth > box.clientWidth, "
        "box.previousElementSibling.offsetHeight > 0, getComputedStyle(box).backgroundAttachment])"
    )
    assert all(cut == told and "local" in shadow for cut, told, shadow in tables)
    assert complete.run("innerWidth") > PHONE or sum(cut for cut, _, _ in tables) >= 4
    assert complete.run("document.documentElement.scrollWidth <= innerWidth")


def test_letters_in_pictures_are_legible(complete: Browser) -> None:
    """Letters of directions and numbers of classes are at least 10 pixels high, as small print is."""
    widths = complete.run("[...document.querySelectorAll('.cuts img')].map((image) => image.offsetWidth)")
    assert len(widths) > 20
    assert min(widths) * LETTER_SIZE / 72 / SIDE >= 10
