"""The page in a real browser: opens from disk without errors or network, folds, sorts, filters, shows its figures."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdbench.report.command import report as command
from kdbench.report.flipped import FlippedImage
from kdbench.report.write import write_report
from tests.report.conftest import report_of, write_group, write_run

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


DESKTOP, PHONE = 1280, 390


def load(browser, page, width=DESKTOP, media="screen", scheme="light"):
    """Load a page from disk in a window of some width."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
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
    button.click()


def show_all(browser, table):
    browser.find_element("css selector", f"[data-all={table}-table]").click()


def emptied(field):
    """A field emptied as a person does it; WebDriver's own `clear` says nothing to the page."""
    field.send_keys("\ue009", "a", "\ue000", "\ue003")  # control-a, release, backspace
    return field


def test_opens_without_console_errors(opened):
    assert opened.title == "Gains from distillation"
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
    show_all(opened, "runs")
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
    show_all(opened, "gains")
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


FIGURES = ("gains", "interactions", "size", "curves", "agreement", "power")


@pytest.mark.parametrize(("width", "variant"), [(DESKTOP, "wide"), (PHONE, "narrow")])
def test_every_figure_is_shown_in_one_of_two_widths_with_text_of_eleven_pixels(browser, page, width, variant):
    load(browser, page, width)
    figures = browser.find_elements("css selector", "#figures figure")
    names = [figure.get_attribute("id").removeprefix("figure-") for figure in figures]
    assert tuple(name for name in names if name in FIGURES) == FIGURES
    for figure in figures:
        shown = [svg for svg in figure.find_elements("css selector", "svg") if svg.is_displayed()]
        assert [svg.find_element("xpath", "..").get_attribute("class") for svg in shown] == [variant]
        box = "return [arguments[0].getBoundingClientRect().width, arguments[0].viewBox.baseVal.width]"
        pixels, points = browser.execute_script(box, shown[0])
        assert 9 * pixels / points >= 11
        caption = browser.find_element("id", shown[0].get_attribute("aria-labelledby"))
        assert len(caption.text) > 40
        assert shown[0].get_attribute("role") == "group"


def test_no_id_occurs_twice(folded):
    ids = folded.execute_script("return [...document.querySelectorAll('[id]')].map(element => element.id)")
    assert len(ids) > 100
    assert len(set(ids)) == len(ids)


def test_every_reference_within_a_figure_leads_to_an_element_of_the_same_figure(folded):
    lost = folded.execute_script(
        "return [...document.querySelectorAll('figure svg use')].filter("
        "use => !use.closest('svg').querySelector(`[id='${use.getAttribute('href').slice(1)}']`)).length"
    )
    assert lost == 0


def test_the_order_is_verdict_figures_images_remarks_tables_columns(opened):
    places = [
        opened.find_element("css selector", selector).location["y"]
        for selector in (
            ".verdict",
            "#figure-gains",
            "#figure-power",
            "#remarks",
            "#gains",
            "#runs",
            "#columns",
            "#made",
        )
    ]
    assert places == sorted(places)


@pytest.mark.parametrize("width", [DESKTOP, 1000, 720, PHONE])
def test_nothing_is_cut_off_at_the_right_edge(browser, page, width):
    load(browser, page, width)
    unfold(browser)
    whole, visible = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert whole <= visible
    tables = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].map(box => "
        "[box.querySelector('table').scrollWidth, box.clientWidth])"
    )
    assert len(tables) >= 6
    assert all(table <= box for table, box in tables)


def headings(browser, table):
    cells = browser.find_elements("css selector", f"#{table}-table th")
    return [cell.get_attribute("data-column") for cell in cells if cell.is_displayed()]


def test_tables_are_folded_until_they_are_opened(folded):
    assert not [table for table in folded.find_elements("tag name", "table") if table.is_displayed()]
    folded.find_element("css selector", "#gains summary").click()
    assert [t.get_attribute("id") for t in folded.find_elements("tag name", "table") if t.is_displayed()] == [
        "gains-table"
    ]


def test_a_table_has_at_most_eight_columns_until_all_are_asked_for_by_keyboard(opened):
    names = [table.get_attribute("id").removesuffix("-table") for table in opened.find_elements("tag name", "table")]
    assert {"gains", "runs", "groups"} < set(names)
    assert all(0 < len(headings(opened, name)) <= 8 for name in names)
    first = headings(opened, "runs")
    button = opened.find_element("css selector", "[data-all=runs-table]")
    assert (button.get_attribute("aria-pressed"), "run_key" in first) == ("false", False)
    button.send_keys("\ue007")  # enter
    every = headings(opened, "runs")
    assert every[: len(first)] == first
    assert len(every) > 12
    assert button.text == f"all {len(every)} columns"
    assert button.get_attribute("aria-pressed") == "true"
    button.send_keys("\ue007")
    assert headings(opened, "runs") == first


def test_on_a_phone_rows_are_cards_that_name_each_value_and_stay_a_table(browser, page):
    load(browser, page, PHONE)
    unfold(browser)
    row = browser.find_element("css selector", "#gains-table tbody tr")
    cells = [cell for cell in row.find_elements("css selector", "td") if cell.is_displayed()]
    assert [cell.location["y"] for cell in cells] == sorted({cell.location["y"] for cell in cells})
    label = "return getComputedStyle(arguments[0], '::before').content"
    assert browser.execute_script(label, cells[0]) == '"student"'
    roles = browser.execute_script(
        "return ['table', 'thead', 'tbody', 'tr', 'th', 'td'].map("
        "tag => document.querySelector('#gains-table ' + tag + ', ' + tag + '#gains-table').getAttribute('role'))"
    )
    assert roles == ["table", "rowgroup", "rowgroup", "row", "columnheader", "cell"]
    click(browser, "gains", "delta")
    values = [float(value) for value in column(browser, "gains", "delta")]
    assert values == sorted(values)


def first_mark(browser, figure, link):
    marks = browser.find_elements("css selector", f"#figure-{figure} .wide a.mark[href^='{link}']")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", marks[0])
    return marks[0]


def tip_of(browser):
    tip = browser.find_element("id", "tip")
    return tip.text if tip.is_displayed() else None


def hover(browser, element):
    from selenium.webdriver import ActionChains

    ActionChains(browser).move_to_element(element).perform()


def test_every_point_has_its_text_as_a_title_and_a_link_to_a_row(folded):
    marks = folded.execute_script(
        "return [...document.querySelectorAll('figure a.mark')].map(mark => [mark.querySelector('title').textContent, "
        "mark.getAttribute('aria-label'), !!document.getElementById(decodeURIComponent(mark.hash || "
        "mark.getAttribute('href')).slice(1))])"
    )
    assert len(marks) > 100
    assert all(title and title == label and found for title, label, found in marks)


def test_pointing_at_a_point_shows_its_run_seed_and_numbers(folded):
    mark = first_mark(folded, "gains", "#run-")
    hover(folded, mark)
    text = tip_of(folded)
    assert re.fullmatch(r".+ \w+ from resnet20, seed \d: gain [+\u2212]\d\.\d+ points, test accuracy \d+\.\d+ %", text)
    assert text == mark.get_attribute("aria-label")
    hover(folded, folded.find_element("tag name", "h1"))
    assert tip_of(folded) is None


def test_the_tab_key_stops_once_at_a_figure_and_the_arrows_move_between_its_points(folded):
    focused = "return document.activeElement.getAttribute('aria-label')"
    marks = [m.get_attribute("aria-label") for m in folded.find_elements("css selector", "#figure-gains .wide a.mark")]
    folded.execute_script("document.querySelector('#figure-gains .wide a.mark').focus()")
    assert folded.execute_script(focused) == marks[0] == tip_of(folded)
    folded.switch_to.active_element.send_keys("\ue014")  # right
    assert folded.execute_script(focused) == marks[1] == tip_of(folded)
    folded.switch_to.active_element.send_keys("\ue012")  # left
    folded.switch_to.active_element.send_keys("\ue012")
    assert folded.execute_script(focused) == marks[-1]
    folded.switch_to.active_element.send_keys("\ue004")  # tab
    assert folded.execute_script("return document.activeElement.closest('a.mark')") is None
    assert tip_of(folded) is None


@pytest.mark.parametrize("table", ["gain", "run"])
def test_a_point_leads_to_its_row_which_is_unfolded_and_marked(folded, table):
    mark = first_mark(folded, "gains", f"#{table}-")
    row = folded.find_element("id", mark.get_dom_attribute("href")[1:])
    assert not row.is_displayed()
    mark.send_keys("\ue007")  # enter
    assert row.is_displayed()
    assert "hit" in row.get_attribute("class")
    inside = "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight"
    assert folded.execute_script(inside, row)
    assert len(folded.find_elements("css selector", "tr.hit")) == 1


def test_an_address_with_the_anchor_of_a_row_opens_at_it(browser, page):
    load(browser, f"{page.as_uri()}#gain-2")
    row = browser.find_element("id", "gain-2")
    assert row.is_displayed()
    assert "hit" in row.get_attribute("class")


def test_text_and_axes_are_light_on_dark_where_the_reader_prefers_that(browser, page):
    colours = "const style = getComputedStyle(arguments[0]); return [style.fill, style.backgroundColor]"
    seen = {}
    for scheme in ("light", "dark"):
        load(browser, page, scheme=scheme)
        label = browser.find_element("css selector", "#figure-gains .wide [id$='text_1'] g, #figure-gains .wide g use")
        body = browser.find_element("tag name", "body")
        ink = browser.execute_script(colours, label)[0]
        seen[scheme] = [
            sum(map(int, re.findall(r"\d+", c)[:3])) for c in (ink, browser.execute_script(colours, body)[1])
        ]
    assert seen["light"][0] < 200 < 600 < seen["light"][1]
    assert seen["dark"][1] < 200 < 600 < seen["dark"][0]


def test_a_print_has_verdict_figures_and_first_columns_and_no_tools(browser, page):
    load(browser, page, width=794, media="print")
    assert not [tool for tool in browser.find_elements("css selector", "nav, .tools, .narrow") if tool.is_displayed()]
    assert all(svg.is_displayed() for svg in browser.find_elements("css selector", "#figures .wide svg"))
    heights = browser.execute_script(
        "return [...document.querySelectorAll('table tbody tr')].map(row => row.getBoundingClientRect().height)"
    )
    assert len(heights) > 50
    assert all(height > 5 for height in heights)
    assert not [c for c in browser.find_elements("css selector", "#runs-table .more") if c.is_displayed()]


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_images_that_flip_are_enlarged_without_blur_and_described(browser, tmp_path, width):
    write_group(tmp_path / "runs", (90.0, 90.1))
    says = [("teacher resnet20", "cat"), ("baseline resnet8", f"dog 2, {HOSTILE} 1")]
    images = [FlippedImage(n, HOSTILE, 4, 6, says, PIXEL if n else None) for n in range(12)]
    report = dataclasses.replace(report_of(tmp_path / "runs"), flipped=images)
    load(browser, write_report(report, tmp_path / "report", "t", ["c"], figures=False), width)
    items = browser.find_elements("css selector", "#flipped li")
    assert len(items) == 10
    assert not items[0].find_elements("tag name", "img")
    assert HOSTILE in items[0].find_element("class name", "card").text.replace("\n", "")
    image = items[1].find_element("tag name", "img")
    assert HOSTILE in image.get_attribute("alt")
    assert browser.execute_script("return getComputedStyle(arguments[0]).imageRendering", image) == "pixelated"
    assert image.size["width"] >= 96
    assert "4 of 6 pairs" in items[1].text
    assert f"dog 2, {HOSTILE} 1" in items[1].text
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.get_log("browser") == []


def test_the_verdict_stands_above_the_first_figure_and_its_first_sentence_is_large(opened):
    verdict = opened.find_element("css selector", ".verdict")
    assert re.match(r"\d of 6 gains (is|are) significant after Holm", verdict.text)
    assert (
        verdict.location["y"] + verdict.size["height"]
        < opened.find_element("css selector", "#figure-gains svg").location["y"]
    )
    sizes = [
        opened.execute_script("return parseFloat(getComputedStyle(arguments[0]).fontSize)", p)
        for p in verdict.find_elements("tag name", "p")
    ]
    assert sizes[0] > max(sizes[1:])


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
