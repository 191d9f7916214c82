"""The site in a real browser: by keyboard, on a phone, in the dark, printed, without any network."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.browser

PHONE = {"viewport": {"width": 390, "height": 844}}
PAGES = ("index.html", "table_18.html", "table_15.html", "table_09.html", "model_iformer_m.html", "claims.html",
         "missing.html", "plots.html")  # fmt: skip


def rows(page):
    return page.locator("tr.row:visible th").all_inner_texts()


def test_the_front_page_leads_to_every_table(open_page, site):
    page = open_page(site / "index.html")
    assert page.locator(".cards li").count() == 10
    page.get_by_role("link", name="Table 18 Comprehensive").click()
    assert page.locator("h1").inner_text() == "Table 18"


def test_sorted_by_latency_and_filtered_to_iformer(open_page, site):
    page = open_page(site / "table_18.html")
    printed = rows(page)
    page.get_by_role("button", name="Latency (ms)").click()
    values = page.locator("tr.row td:nth-of-type(5)").evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    numbers = [float(value) for value in values if value.replace(".", "").isdigit()]
    assert numbers == sorted(numbers)
    assert set(values[len(numbers) :]) == {"Failed"}
    page.get_by_role("searchbox").fill("iformer")
    assert rows(page) == ["iFormer-T", "iFormer-S", "iFormer-M", "iFormer-L"]
    assert page.locator("#shown").inner_text() == "4 of 62 rows"
    page.get_by_role("button", name="Latency (ms)").click()
    assert rows(page) == ["iFormer-L", "iFormer-M", "iFormer-S", "iFormer-T"]
    assert page.locator("th[aria-sort=descending]").count() == 1
    page.get_by_role("button", name="Latency (ms)").click()
    page.get_by_role("searchbox").fill("")
    assert rows(page) == printed


def test_filtered_by_status(open_page, site):
    page = open_page(site / "table_18.html")
    page.get_by_label("Status").select_option("outside")
    shown = rows(page)
    assert 0 < len(shown) < 62
    assert page.locator("tr.row:visible").count() == page.locator("tr.row:visible:has(a.outside)").count()


def test_a_story_is_opened_and_closed_by_keyboard(open_page, site):
    page = open_page(site / "table_18.html")
    page.get_by_role("searchbox").fill("SHViT-S4")
    page.keyboard.press("Tab")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.story?.endsWith('gmacs') ?? false"):
            break
    focused = page.evaluate("document.activeElement.dataset.story")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    text = dialog.inner_text()
    for part in (
        "Table 18, SHViT-S4, GMACs (G)",
        "0.99",
        "0.783",
        "explained",
        "protocol_mismatch",
        "0.986216960",
        "folded/macs (used)",
        "matmul",
        "timm 1.0.31",
        "repro table 18 --only SHViT-S4 --metrics gmacs",
    ):
        assert part in text, part
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.dataset.story") == focused


def test_without_scripts_a_cell_leads_to_its_story(open_page, site):
    page = open_page(site / "table_18.html", java_script_enabled=False)
    page.locator("tr.row:has(th:has-text('SHViT-S4')) a[data-story$=gmacs]").click()
    assert page.locator("h1").inner_text() == "SHViT-S4"
    assert page.locator("section:target .story-title").inner_text() == "Table 18, SHViT-S4, GMACs (G)"


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_never_scrolls_sideways(open_page, site, name):
    page = open_page(site / name, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_phone_shows_rows_as_cards_and_sorts_them(open_page, site):
    page = open_page(site / "table_18.html", **PHONE)
    page.get_by_label("Sort by").select_option(label="Latency")
    assert rows(page)[0] in ("MNV4-Conv-S (2024)", "iFormer-T")
    page.locator("a[data-story]:visible").first.click()
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def test_dark_mode_is_dark(open_page, site):
    light = open_page(site / "table_18.html")
    dark = open_page(site / "table_18.html", color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert light.evaluate(colour) == "rgb(255, 255, 255)"
    assert max(map(int, dark.evaluate(colour)[4:-1].split(","))) < 50


def test_printed_without_controls_and_in_light_colours(open_page, site):
    page = open_page(site / "table_18.html", color_scheme="dark")
    page.emulate_media(media="print", color_scheme="light")
    assert not page.locator(".tools").is_visible()
    assert not page.locator("nav").is_visible()
    assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF")


@pytest.mark.parametrize(
    ("name", "scheme"), [*((name, "light") for name in PAGES), ("index.html", "dark"), ("table_18.html", "dark")]
)
def test_no_serious_fault_of_accessibility(open_page, site, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(site / name, color_scheme=scheme)
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    serious = [(fault["id"], fault["nodes"][0]["html"][:200]) for fault in found
               if fault["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []


def test_an_open_story_has_no_serious_fault(open_page, site):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(site / "table_18.html")
    page.locator("a[data-story$=gmacs]").first.click()
    found = axe.Axe().run(page, options={"preload": False}).response["violations"]
    assert [fault["id"] for fault in found if fault["impact"] in ("serious", "critical")] == []


def test_hostile_text_runs_nothing(open_page, hostile_site):
    for name in sorted(path.name for path in hostile_site.glob("*.html")):
        page = open_page(hostile_site / name, **PHONE)
        assert page.title() != "1"
        assert page.locator("img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page = open_page(hostile_site / "table_01.html")
    page.locator("a[data-story$=params]").first.click()
    assert "onerror" in page.get_by_role("dialog").inner_text()
    assert page.locator("img").count() == 0
