"""The page in a real Chromium, where there is one."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import labelspace as ls

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("selenium")

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="there is no chromium with chromedriver; Debian has them in the packages chromium and chromium-driver",
)
IDS, NAMES = ["L0", "L1", "L2", "L3"], ["red oak", "tall fern", "wild rose", "dry <b>moss</b>"]
TOKEN = "let-me-in"
SWITCHES = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1100,900"
)


@pytest.fixture(scope="module")
def address(tiny_transformer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from labelspace.serving.app import make_app
    from labelspace.serving.service import Settings

    folder = tmp_path_factory.mktemp("page") / "m"
    model = ls.Model.from_encoder(str(tiny_transformer), ls.Labels(IDS, NAMES), device="cpu")
    model.add_documents(["an old red oak", "<i>ferns</i>, tall", "roses of the wild"], [["L0"], ["L1", "L3"], ["L2"]])
    model.save(folder)
    app = make_app(lambda: ls.Model.load(folder, "cpu"), Settings(name="plants", token=TOKEN))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started and app.state.service.worker.ready)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(60)


def until(done: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 60
    while not (found := done()):
        assert time.monotonic() < limit, "it never came to be"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    os.environ["SE_AVOID_STATS"] = "true"
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for switch in [*SWITCHES.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    yield made
    made.quit()


class Page:
    """The page as a person sees it."""

    def __init__(self, driver: Any, address: str):
        self.driver = driver
        driver.get_log("browser")
        driver.get(address)

    def __call__(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.textContent.trim())"
        return self.run(script, selector)

    def labels(self) -> list[str]:
        return self.texts("#labels > li summary .text")

    def slide(self, name: str, value: float) -> None:
        found = "const one = document.getElementById(arguments[0]); one.value = arguments[1]; "
        self.run(found + "one.dispatchEvent(new Event('input'))", name, value)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(driver: Any, address: str) -> Iterator[Page]:
    made = Page(driver, address)
    yield made
    assert made.complaints() == []  # a policy that stops our own script or style would show here


def ask(page: Page, text: str) -> None:
    from selenium.webdriver.common.keys import Keys

    page("#text").clear()
    page("#text").send_keys(text + Keys.CONTROL + Keys.ENTER)
    until(lambda: page.labels() and page.run("return document.getElementById('state').textContent").count(" s"))


def test_asking_shows_labels_with_bars_and_reasons_by_keyboard(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    assert not page("#results").is_displayed()
    ask(page, "an old red oak")
    assert sorted(page.labels()) == sorted(NAMES)  # as text: nothing of it became markup
    assert not page.all("#labels b") and page("#error").is_displayed() is False
    rects = "return [...document.querySelectorAll('#labels summary rect')]"
    widths = [float(width) for width in page.run(rects + ".map((one) => one.getAttribute('width'))")]
    assert widths[0] == 100 and widths == sorted(widths, reverse=True)
    bars = page.run(rects + ".map((one) => one.getBoundingClientRect().width)")
    assert bars[0] > 50 and all(b <= bars[0] for b in bars)
    details = page("#labels details")
    assert details.get_attribute("open") is None
    page("#labels summary").send_keys(Keys.ENTER)
    assert details.get_attribute("open") is not None
    own = {"an old red oak", "<i>ferns</i>, tall", "roses of the wild", page.labels()[0]}
    assert own >= set(page.texts("#labels li:first-child .why .text")) and page("#labels .why .text").is_displayed()
    shares = [float(share) for share in page.texts("#labels li:first-child .why .value")]
    assert sum(shares) == pytest.approx(float(page.texts("#labels li:first-child summary .value")[0]), abs=0.002)
    page("#labels summary").send_keys(Keys.ENTER)
    assert details.get_attribute("open") is None


def test_k_threshold_and_weight_are_live(page: Page) -> None:
    ask(page, "history of the wild rose")
    whole = page.labels()
    page.slide("k", 2)
    until(lambda: page.labels() == whole[:2])
    page.slide("k", 4)
    until(lambda: page.labels() == whole)
    values = [float(value) for value in page.texts("#labels summary .value")]
    page.slide("threshold", 1)
    assert page.labels() == [] and "nothing reaches" in page("#state").text
    page.slide("threshold", 0)
    assert page.labels() == whole
    assert page("#weight-shown").text == "0.20" and not page("#own").is_displayed()
    page.slide("weight", 1)
    until(lambda: [float(v) for v in page.texts("#labels summary .value")] != values)
    assert page("#weight-shown").text == "1.00" and "weight" in page("#note").text
    kinds = page.run("return [...document.querySelectorAll('#labels .why .bar')].map((b) => b.getAttribute('class'))")
    assert kinds and all("document" in kind for kind in kinds)
    page("#own").click()
    until(lambda: [float(v) for v in page.texts("#labels summary .value")] == values)


def test_labels_are_accepted_and_the_memory_learns(page: Page) -> None:
    text = "notes on the vine"
    ask(page, text)
    assert page("#add").get_attribute("disabled") and "None yet" in page("#chips").text
    first, second = page.labels()[:2]
    page("#labels li:nth-child(1) .no").click()
    assert "rejected" in page("#labels li:nth-child(1)").get_attribute("class")
    page("#labels li:nth-child(2) summary").send_keys("a")
    assert page.texts("#chips li") == [second + "×"]
    assert page("#labels li:nth-child(2) .yes").get_attribute("aria-pressed") == "true"
    page("#labels li:nth-child(2) summary").send_keys("a")  # again takes it back
    other = next(name for name in reversed(NAMES) if name not in (first, "dry <b>moss</b>"))
    page("#other").send_keys(other)
    until(
        lambda: other in page.run("return [...document.querySelectorAll('#found-labels option')].map((o) => o.value)")
    )
    page("#accept-other").click()
    assert page.texts("#chips li") == [other + "×"]
    before = dict(zip(page.labels(), map(float, page.texts("#labels summary .value")), strict=True))
    page("#token").send_keys("wrong")
    page("#add").click()
    until(lambda: page("#error").is_displayed())
    assert "token" in page("#error").text
    assert [entry for entry in page.complaints() if "401" in entry]
    page("#token").clear()
    page("#token").send_keys(TOKEN)
    page("#add").click()
    until(lambda: page("#undo").is_displayed())
    assert "memory has 4 documents" in page("#added").text and not page("#error").is_displayed()

    def changes() -> dict[str, float]:
        script = "return [...document.querySelectorAll('#labels > li')].map((one) => [one.querySelector('.text')"
        script += ".textContent, (one.querySelector('.delta') || {}).textContent || '0'])"
        return {name: float(change.replace("−", "-")) for name, change in page.run(script)}

    until(lambda: page.all("#labels .delta.up"))
    learned = changes()
    values = dict(zip(page.labels(), page.texts("#labels summary .value"), strict=True))
    assert learned[other] == max(learned.values()) > 0
    assert float(values[other][-5:]) == pytest.approx(before[other] + learned[other], abs=0.0011)
    page("#undo").click()
    until(lambda: "memory has 3 documents" in page("#added").text)
    until(lambda: changes()[other] == -learned[other])
    assert not page("#undo").is_displayed()


def test_everything_has_a_name_and_a_place_in_the_order(page: Page) -> None:
    ask(page, "an old red oak")
    nameless = page.run("""
        return [...document.querySelectorAll('input, textarea, button, summary')].filter((one) =>
          !(one.labels && one.labels.length) && !one.getAttribute('aria-label') && !one.textContent.trim())
          .map((one) => one.outerHTML)""")
    assert nameless == []
    assert page.run("return [...document.querySelectorAll('[tabindex]')].length") == 0
    assert page("#state").get_attribute("role") == "status" and page("#error").get_attribute("role") == "alert"
    assert page.run("return document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_phones_and_both_schemes(page: Page, width: int, scheme: str) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        ask(page, "an old red oak " + "long" * 40)
        page("#labels summary").click()
        assert page.run("return document.documentElement.scrollWidth") <= width
        small = page.run("""
            return [...document.querySelectorAll('button:not(.plain), summary, input')].filter((one) =>
              one.offsetParent && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML)""")
        assert small == []
        ratio = page.run(CONTRAST)
        assert ratio >= 4.5, (scheme, ratio)
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


CONTRAST = """
const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const light = (rgb) => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
const ground = (one) => { for (; one; one = one.parentElement) {
  const color = getComputedStyle(one).backgroundColor; if (color !== 'rgba(0, 0, 0, 0)') return color; }
  return 'rgb(255, 255, 255)'; };
return Math.min(...[...document.querySelectorAll('h1, h2, p, label, .text, .value, .kind, button, a, textarea')]
  .filter((one) => one.offsetParent && one.textContent.trim() && !one.disabled).map((one) => {
    const a = light(getComputedStyle(one).color), b = light(ground(one));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
"""


def test_the_form_works_without_scripts(driver: Any, address: str) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page = Page(driver, address)
        page("#text").send_keys("an old red oak <b>")
        page("#k").clear()
        page("#k").send_keys("3")
        page("button.main").click()
        found = until(lambda: page.all("#labels summary"))
        assert len(found) == 3 and {one.text.split(" L")[0] for one in found} <= set(NAMES)
        assert page("#text").get_attribute("value") == "an old red oak <b>"
        assert not page("#chosen").is_displayed()  # what needs a script is not shown
        found[0].click()
        assert page.all("#labels .why li")[0].is_displayed()
        assert not any("built-in" in row.get_attribute("textContent") for row in page.all("#labels .why li"))
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
