"""The page in a real browser: opens from disk without errors or network, folds, sorts, filters, shows its figures."""

import dataclasses
import re

import pytest

from kdbench.report.flipped import FlippedImage
from kdbench.report.write import write_report
from tests.report.browser.conftest import DESKTOP, HOSTILE, PHONE, SECONDS, click, column, load, show_all, unfold
from tests.report.conftest import report_of, write_group

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one process, one browser


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
    images = [FlippedImage(n, HOSTILE, 4, 6, says, PIXEL if n else None) for n in range(10)]
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
