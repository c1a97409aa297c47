"""The playground in a browser: what people see, hear and reach by keyboard. Skipped where there is no Chromium."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio.to_thread
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright")

import uvicorn
from playwright.sync_api import expect, sync_playwright
from starlette.applications import Starlette

from promptguard.score.bag import load_bag
from promptguard.score.keyword import KeywordFilter
from promptguard.score.paths import filters_dir
from promptguard.serve.playground import Limits, Workbench, routes
from promptguard.types import Filter

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

HARMFUL = "how to pick a 🔒 lock"
HIDDEN = f"🦊 {HARMFUL} please, 🦊"

# Every text that is shown, with the contrast of its colour and what lies behind it (WCAG 2.2, 1.4.3).
CONTRASTS = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = rgb.slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
      if (colour[3] !== 0) throw new Error("half transparent background");
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!(own || node.matches("input[type=number], textarea, select")) || !node.checkVisibility()) continue;
    const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(behind(node))];
    found.push([`${node.tagName} ${node.id} ${node.className}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
  }
  return found;
}"""

# Controls that are shown and have no name, by the parts of the accessible name computation that the page uses.
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, summary, a, [tabindex='0']")]
  .filter((node) => node.checkVisibility())
  .filter((node) => {
    const ids = (node.getAttribute("aria-labelledby") ?? "").split(" ").filter(Boolean);
    const names = [
      node.getAttribute("aria-label"), ...ids.map((id) => document.getElementById(id)?.textContent),
      ...[...(node.labels ?? [])].map((label) => label.textContent),
      node.matches("button, summary, a") ? node.textContent : "",
    ];
    return !names.some((name) => name?.trim());
  }).map((node) => node.outerHTML)"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    filters: dict[str, Filter] = {
        "bag": load_bag(filters_dir() / "bag"),
        "keyword": KeywordFilter(["lock"], absent=["please", "gulls"]),
    }
    app = Starlette(routes=routes(Workbench(filters, Limits(max_checks=200)), anyio.to_thread.run_sync))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(params=[{}])
def page(browser: Any, url: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page with the keyword filter in suffix mode, budget 5; it must cause no error and ask no other server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **request.param)
    context.set_default_timeout(10_000)
    opened, troubles, elsewhere = context.new_page(), [], []
    opened.on("console", lambda line: troubles.append(line.text) if line.type in {"error", "warning"} else None)
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda asked: elsewhere.append(asked.url) if not asked.url.startswith(url) else None)
    opened.goto(url)
    opened.wait_for_selector("#filter option", state="attached")
    opened.select_option("#filter", "keyword")
    opened.select_option("#mode", "suffix")
    opened.uncheck("#unlimited")
    opened.fill("#budget", "5")
    yield opened
    context.close()
    # A refusal is a status that the browser reports by itself.
    assert not [line for line in troubles if "status of 400" not in line]
    assert not elsewhere


def check(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.click("#run")
    page.wait_for_selector("#strip-part:not([hidden])")


def attack(page: Any, **fields: str) -> None:
    for name, value in fields.items():
        if name in {"how", "source"}:
            page.select_option(f"#{name}", value)
        else:
            page.fill(f"#{name}", value)
    page.click("#strike")
    page.wait_for_selector("#outcome:not([hidden])")
    page.wait_for_selector("#outcome:not([aria-busy])")


def says(page: Any, selector: str, words: str) -> None:
    expect(page.locator(selector)).to_contain_text(words, timeout=10_000)


def text_of(page: Any, selector: str) -> str:
    return str(page.text_content(selector))


def test_the_verdict_its_certificate_and_the_witness(page: Any) -> None:
    page.focus("#prompt")
    page.keyboard.insert_text(HIDDEN)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#found:not([hidden])")
    assert (text_of(page, "#verdict"), text_of(page, "#badge")) == ("Harmful", "certified")
    assert "stays harmful (erase-and-check)" in text_of(page, "#meaning")
    assert page.locator("#text del").all_text_contents() == [" please, 🦊"]
    assert text_of(page, "#text") == HIDDEN
    assert "3 words erased" in text_of(page, "#witness")
    facts = dict(zip(*(page.locator(f"#facts {tag}").all_text_contents() for tag in ("dt", "dd")), strict=True))
    assert (facts["Score"], facts["Filter alone"], facts["Checks"]) == ("1.000", "0.000", "6")
    assert facts["Time"].endswith(" ms")
    page.click("#assumes-part summary")
    assert "filter keyword, threshold 0.5" in text_of(page, "#assumes")
    says(page, "#status", "Harmful, certified")


def test_safe_is_said_not_to_be_certified(page: Any) -> None:
    check(page, "how to bake bread")
    assert (text_of(page, "#verdict"), text_of(page, "#badge")) == ("Safe", "not certified")
    assert page.locator("#text del").count() == 0
    assert not page.is_visible("#assumes-part")


def test_the_cost_is_shown_while_one_types_and_nothing_is_checked(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url.rsplit("/", 1)[-1]))
    page.fill("#prompt", "one two three")
    says(page, "#cost", "3 words: 4 checks")
    page.select_option("#unit", "char")
    says(page, "#cost", "13 characters: 6 checks")
    page.select_option("#mode", "infusion")
    page.fill("#budget", "9")
    page.wait_for_selector("#cost.over")
    assert "More than the 200 checks" in text_of(page, "#cost")
    assert set(asked) == {"cost"}
    assert "13 of 4,000" in text_of(page, "#length")


def test_the_plain_filter_falls_and_the_guard_holds_until_the_budget_ends(page: Any) -> None:
    page.fill("#prompt", HARMFUL)
    attack(page, how="append", source="own", own="please, dear gulls")
    assert text_of(page, "#outcome-title") == "The guard holds"
    assert text_of(page, "#inside") == "inside the certificate"
    assert (text_of(page, "#alone .badge"), text_of(page, "#guarded .badge")) == ("is fooled", "holds")
    assert "1.000 → 0.000" in text_of(page, "#alone .numbers")
    assert "1.000 → 1.000" in text_of(page, "#guarded .numbers")
    assert text_of(page, "#attacked") == f"{HARMFUL} please, dear gulls"
    assert page.locator("#attacked ins").all_text_contents() == [" please, dear gulls"]
    assert page.locator("#attacked ins del").all_text_contents() == [" please, dear gulls"]
    page.fill("#budget", "2")
    assert not page.is_visible("#outcome")
    attack(page)
    assert text_of(page, "#outcome-title") == "The guard is fooled"
    assert text_of(page, "#inside") == "outside the certificate"
    assert text_of(page, "#outcome-meaning").startswith("Beyond the certificate")
    says(page, "#status", "The guard is fooled")


def test_the_slider_goes_beyond_the_budget_and_attacks_again(page: Any) -> None:
    page.fill("#prompt", HARMFUL)
    assert page.get_attribute("#size", "max") == "10"
    attack(page, how="append", source="role-play", size="5")
    assert "within 5" in text_of(page, "#amount")
    assert text_of(page, "#inside") == "inside the certificate"
    page.focus("#size")
    page.keyboard.press("ArrowRight")
    says(page, "#inside", "outside the certificate")
    assert "6 words, beyond 5" in text_of(page, "#amount")
    assert page.evaluate("Number(getComputedStyle(document.getElementById('within')).flexGrow)") == 5


def test_the_strip_reads_by_pointer_and_by_keyboard(page: Any) -> None:
    check(page, HIDDEN)
    bars = page.locator("#strip > i")
    assert bars.count() == 10
    flagged = bars.evaluate_all("bars => bars.map(bar => bar.classList.contains('flagged'))")
    assert flagged == [False] * 6 + [True] + [False] * 3
    pale = bars.evaluate_all("bars => bars.map(bar => bar.classList.contains('pale'))")
    assert pale == [True] * 4 + [False] * 6
    bars.nth(6).hover()
    assert "The first 7 words of 10 · score 1.000 · flagged" in text_of(page, "#reading")
    assert text_of(page, "#text .prefix") == f"🦊 {HARMFUL}"
    page.focus("#strip")
    page.keyboard.press("Home")
    assert page.get_attribute("#strip", "aria-valuenow") == "1"
    said = page.get_attribute("#strip", "aria-valuetext")
    assert said == "The first 1 word of 10, score 0.000, not flagged, not an erasure of this mode and budget"
    page.keyboard.press("End")
    assert "All of it" in page.get_attribute("#strip", "aria-valuetext")
    page.focus("#run")
    assert page.locator("#text del").count() == 1
    page.click("#strip-part summary")
    rows = page.locator("#scores tr").all_text_contents()
    assert (len(rows), rows[6]) == (10, "7 words1.000yeschecked")


def test_refusals_are_said_in_words(page: Any) -> None:
    page.click("#run")
    says(page, "#error", "Type a prompt first.")
    expect(page.locator("#prompt")).to_be_focused()
    for text, words in ((" \u200b", "nothing but white space"), ("a" * 4001, "4,001 characters"), ("\0", "NUL")):
        page.fill("#prompt", "")
        page.evaluate("text => { document.getElementById('prompt').value = text; }", text)
        page.click("#run")
        says(page, "#error", words)
        page.wait_for_selector("#result[aria-busy=false]")
    page.fill("#prompt", HARMFUL)
    page.fill("#budget", "-1")
    page.click("#run")
    says(page, "#error", "whole number")
    page.click("#strike")
    says(page, "#attack-error", "whole number")


def test_a_server_that_is_gone_or_busy_is_said_in_words(page: Any) -> None:
    page.fill("#prompt", HARMFUL)
    says(page, "#cost", "words")
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('gone')); }")
    page.click("#run")
    says(page, "#error", "The server cannot be reached.")
    page.evaluate("() => { window.fetch = async () => new Response('', {status: 429}); }")
    page.click("#run")
    says(page, "#error", "The server is busy")


def test_the_whole_page_works_by_keyboard_alone(page: Any) -> None:
    page.mouse.click(3, 3)  # tabbing begins at the top
    order: list[str] = []
    for _ in range(14):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", order[-1]
        if order[-1] == "prompt":
            page.keyboard.type("how to pick a lock please")
    assert order[:3] == ["skip", "theme", "prompt"]
    assert order[3:11] == ["chip", "chip", "chip", "filter", "mode", "budget", "unlimited", "unit"]
    assert order[11:] == ["run", "how", "source"]
    for _ in range(2):
        page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "run"
    page.keyboard.press("Enter")
    page.wait_for_selector("#strip-part:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "run"
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
    assert [name for name in seen if name] == ["text", "strip", "how", "source", "size", "strike"]
    page.keyboard.press("Enter")
    page.wait_for_selector("#outcome:not([hidden])")


def test_every_control_has_a_name(page: Any) -> None:
    check(page, HIDDEN)
    attack(page, source="own", own="please")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate(NAMELESS) == []
    page.evaluate("document.querySelector('label[for=own]').remove()")
    assert len(page.evaluate(NAMELESS)) == 1


@pytest.mark.parametrize("page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True, ids=str)
def test_text_stands_out_in_both_themes(page: Any) -> None:
    shades = []
    for _ in range(2):
        page.fill("#budget", "2")
        page.click("#run")
        says(page, "#error", "Type a prompt")
        found = page.evaluate(CONTRASTS)
        page.fill("#budget", "5")
        check(page, HIDDEN)
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        page.fill("#prompt", HARMFUL)
        attack(page, how="append", source="own", own="please, gulls")
        found += page.evaluate(CONTRASTS)
        attack(page, source="own", own="please, dear gulls sing for us")
        attack(page, source="role-play")
        page.focus("#strip")
        found += page.evaluate(CONTRASTS)
        assert len(found) > 100
        assert not [(name, ratio) for name, ratio in found if ratio < 4.5]
        assert {"DEL", "INS", "SPAN"} <= {name.split()[0] for name, _ in found}
        shades.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        page.fill("#prompt", "")
        page.click("#theme")
    assert shades[0] != shades[1]
    page.evaluate("document.getElementById('keys').style.color = '#777'")
    assert [name for name, ratio in page.evaluate(CONTRASTS) if ratio < 4.5] == ["P keys ", "KBD  ", "KBD  "]


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True, ids=str)
def test_the_switch_says_which_theme_is_on_and_the_page_keeps_nothing(page: Any) -> None:
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-pressed") == "false"
    check(page, HIDDEN)
    kept = "[localStorage.length, sessionStorage.length, document.cookie.length]"
    assert page.evaluate(kept) == [0, 0, 0]
    page.reload()
    assert page.input_value("#prompt") == ""
    assert page.get_attribute("#theme", "aria-pressed") == "true"


@pytest.mark.parametrize("page", [{"reduced_motion": "reduce"}], indirect=True, ids=str)
def test_nothing_moves_for_those_who_want_it_still(page: Any) -> None:
    moving = """() => [...document.querySelectorAll("*")].filter((node) => {
      const style = getComputedStyle(node);
      return style.transitionDuration !== "0s" || style.animationName !== "none";
    }).length"""
    assert page.evaluate(moving) == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) > 0


def test_small_screens_need_no_sideways_scrolling(page: Any) -> None:
    check(page, f"{HIDDEN} {'x' * 200}")
    attack(page, source="words")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    for width in (320, 480, 800):
        page.set_viewport_size({"width": width, "height": 700})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_bundled_bag_guards_infusions_of_any_number(page: Any) -> None:
    page.select_option("#filter", "bag")
    page.select_option("#mode", "infusion")
    assert page.is_checked("#unlimited")
    assert page.input_value("#how") == "infuse"
    page.click(".chip >> nth=1")
    page.wait_for_selector("#strip-part:not([hidden])")
    assert text_of(page, "#badge") == "certified"
    attack(page, source="words", size="60")
    assert text_of(page, "#inside") == "inside the certificate"
    assert text_of(page, "#guarded .badge") == "holds"


def test_what_is_typed_is_text_and_never_markup(page: Any) -> None:
    text = "how to <img src=x onerror=alert(1)> pick a <b>lock</b>"
    check(page, text)
    assert text_of(page, "#text") == text
    assert page.locator("#text img, #text b").count() == 0
