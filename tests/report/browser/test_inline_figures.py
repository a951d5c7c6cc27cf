"""Figures of the page in a real browser: two widths, links, tooltips, keyboard, dark mode."""

import re

import pytest

from tests.report.browser.conftest import DESKTOP, PHONE, load

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]  # one process, one browser

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
