"""A report's page in a headless browser: fixtures for it, and steps of a reader."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdbench.report.command import report as command
from tests.report.conftest import write_run, write_unfinished_run

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
SECONDS = {0: 9.0, 1: 100.0, 2: None, 3: 20.0, 4: 1000.5}
"""By seed; as text 9 would come last and 100 before 20."""
LABELS = np.arange(40) % 4


@pytest.fixture(scope="session")
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
    write_unfinished_run(root / "runs", student="resnet8", method="ce", seed=5)  # which is a remark
    assert command([str(root / "runs"), "--out", str(root / "report")]) == 0
    return root / "report" / "report.html"


@pytest.fixture(scope="session")
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


DESKTOP, PHONE = 1280, 390


def load(browser, page, width=DESKTOP, media="screen", scheme="light"):
    """Load a page from disk in a window of some width."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    browser.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})  # with two browsers one has none
    browser.get_log("browser")
    browser.get("about:blank")  # else a page that differs in its anchor alone is not loaded again
    browser.get(page if isinstance(page, str) else page.as_uri())
    return browser


@pytest.fixture
def folded(browser, page):
    """The page, freshly loaded from disk."""
    return load(browser, page)


@pytest.fixture
def opened(folded):
    """The page with all tables unfolded."""
    unfold(folded)
    return folded


def unfold(browser):
    browser.execute_script("document.querySelectorAll('details').forEach(details => { details.open = true; })")


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
    until_possible(browser, button.click)


def until_possible(browser, act):
    """Do what a reader does, which waits until the page is drawn: on a busy machine it may take a moment."""
    from selenium.common.exceptions import ElementNotInteractableException
    from selenium.webdriver.support.wait import WebDriverWait

    def acted(_):
        act()
        return True

    WebDriverWait(browser, 20, ignored_exceptions=[ElementNotInteractableException]).until(acted)


def show_all(browser, table):
    until_possible(browser, browser.find_element("css selector", f"[data-all={table}-table]").click)
