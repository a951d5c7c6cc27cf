"""The page in a real browser: opens from disk without errors or network, sorts, filters, shows its figures."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdbench.report.command import report as command
from tests.report.conftest import write_run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one process, one browser

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
SECONDS = {0: 9.0, 1: 100.0, 2: None, 3: 20.0, 4: 1000.5}
"""By seed; as text 9 would come last and 100 before 20."""
LABELS = np.arange(40) % 4


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three students, one of them hostile, with logits and curves."""
    root, random = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    write_run(root / "runs", student="resnet20", run_key="teacher", logits=(random.normal(size=(40, 4)), LABELS))
    for place, student in enumerate(("resnet8", "resnet14", HOSTILE)):
        for method in ("ce", "logit", "feature"):
            gain = {"ce": 0, "logit": 0.002, "feature": -0.003}[method] * (place + 1)
            for seed in range(5):
                write_run(
                    root / "runs", student=student, method=method, seed=seed,
                    teacher=None if method == "ce" else "resnet20", teacher_key=None if method == "ce" else "teacher",
                    accuracy=0.9 + gain + random.normal() * 0.002, train_seconds=SECONDS[seed],
                    logits=(random.normal(size=(40, 4)), LABELS), history=[0.5, 0.7, 0.8 + seed / 100],
                )  # fmt: skip
    assert command([str(root / "runs"), "--out", str(root / "report")]) == 0
    return root / "report" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One headless chromium for all tests."""
    driver = shutil.which("chromedriver")
    if not (Path(CHROMIUM).exists() and driver) and "CI" not in os.environ:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser, page):
    """The page, freshly loaded from disk."""
    browser.get_log("browser")
    browser.get(page.as_uri())
    return browser


def column(browser, table, name):
    """What `data-sort` says in a column, row by row as shown."""
    return browser.execute_script(
        "const table = document.getElementById(arguments[0] + '-table');"
        "const at = [...table.tHead.rows[0].cells].findIndex(cell => cell.dataset.column === arguments[1]);"
        "const rows = [...table.tBodies[0].rows].filter(row => row.checkVisibility());"
        "return rows.map(row => row.cells[at].dataset.sort);",
        table, name,
    )  # fmt: skip


def click(browser, table, name):
    button = browser.find_element("css selector", f"#{table}-table th[data-column={name}] button")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', inline: 'center'})", button)
    button.click()


def emptied(field):
    """A field emptied as a person does it; WebDriver's own `clear` says nothing to the page."""
    field.send_keys("\ue009", "a", "\ue000", "\ue003")  # control-a, release, backspace
    return field


def test_opens_without_console_errors(opened):
    assert opened.title == "What distillation did"
    assert opened.get_log("browser") == []


def test_no_address_of_a_network_is_in_it(page):
    text = page.read_text()
    assert not re.search(r"""(?:src|href|action|srcset)\s*=\s*["']?\s*(?:https?:)?//""", text, re.IGNORECASE)
    assert not re.search(r"""url\(\s*["']?(?:https?:)?//|@import""", text, re.IGNORECASE)


def test_nothing_but_the_page_itself_is_loaded(opened):
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []


def test_sorts_by_number_there_and_back_with_empty_cells_last(opened):
    known = sorted(seconds for seconds in SECONDS.values() if seconds is not None)
    click(opened, "runs", "train_seconds")
    values = column(opened, "runs", "train_seconds")
    up = [float(value) for value in values if value]
    assert up == sorted(up)
    assert set(up) == {*known, 60.0}
    assert values[-9:] == [""] * 9
    click(opened, "runs", "train_seconds")
    values = column(opened, "runs", "train_seconds")
    assert [float(value) for value in values if value] == up[::-1]
    assert values[-9:] == [""] * 9
    heads = opened.find_elements("css selector", "#runs-table th[aria-sort]")
    assert [head.get_attribute("aria-sort") for head in heads] == ["descending"]


def test_sorts_gains_of_both_signs(opened):
    before = [float(value) for value in column(opened, "gains", "delta")]
    click(opened, "gains", "delta")
    after = [float(value) for value in column(opened, "gains", "delta")]
    assert after == sorted(before)
    assert after != before
    assert after[0] < 0 < after[-1]


def test_sorts_small_p_values_as_numbers(opened):
    click(opened, "gains", "p_welch")
    values = [float(value) for value in column(opened, "gains", "p_welch")]
    assert values == sorted(values)


def test_sorts_text_by_name(opened):
    click(opened, "groups", "student")
    students = column(opened, "groups", "student")
    assert [name for name in students if name.startswith("resnet")] == ["resnet8"] * 3 + ["resnet14"] * 3 + ["resnet20"]


def test_whole_rows_move_when_sorted(opened):
    before = dict(zip(column(opened, "runs", "run_key"), column(opened, "runs", "test_acc_best"), strict=True))
    click(opened, "runs", "test_acc_best")
    assert dict(zip(column(opened, "runs", "run_key"), column(opened, "runs", "test_acc_best"), strict=True)) == before


def test_the_filter_hides_rows_and_counts(opened):
    count = opened.find_element("css selector", "[data-count=runs-table]")
    field = opened.find_element("css selector", "[data-filter=runs-table]")
    assert count.text == "46 rows"
    field.send_keys("RESNET14 logit")
    assert count.text == "5 of 46 rows"
    assert column(opened, "runs", "student") == ["resnet14"] * 5
    assert column(opened, "runs", "method") == ["logit"] * 5
    click(opened, "runs", "seed")
    assert column(opened, "runs", "seed") == ["0.0", "1.0", "2.0", "3.0", "4.0"]
    emptied(field).send_keys("no such words")
    assert (count.text, column(opened, "runs", "seed")) == ("0 of 46 rows", [])
    emptied(field)
    assert count.text == "46 rows"
    assert len(column(opened, "gains", "delta")) == 6


def test_every_figure_is_shown(opened):
    images = opened.find_elements("css selector", "#figures img")
    assert len(images) == 5
    for image in images:
        state = "return [arguments[0].complete, arguments[0].naturalWidth]"
        complete, width = opened.execute_script(state, image)
        assert complete
        assert width > 100
        assert image.is_displayed()
        assert image.get_attribute("alt")


def test_the_verdict_stands_above_the_first_table(opened):
    verdict = opened.find_element("css selector", ".verdict")
    assert re.match(r"\d of 6 gains (is|are) significant after Holm", verdict.text)
    assert verdict.location["y"] + verdict.size["height"] < opened.find_element("tag name", "table").location["y"]


def test_a_hostile_name_shows_as_text(opened):
    cells = opened.find_elements("css selector", "#groups-table tbody td")
    assert HOSTILE in [cell.text for cell in cells]
    assert HOSTILE in column(opened, "groups", "student")
    assert not opened.find_elements("css selector", "img[src=x]")
    assert len(opened.find_elements("tag name", "script")) == 1


def test_links_within_the_page_lead_somewhere(opened):
    targets = opened.execute_script(
        "return [...document.querySelectorAll('nav a')].map(a => !!document.querySelector(a.getAttribute('href')))"
    )
    assert len(targets) >= 5
    assert all(targets)
