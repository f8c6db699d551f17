"""The page of the report in a real browser: it plays, seeks, sorts and shows its pictures."""

import shutil

import pytest
import soundfile
from test_report import NASTY, page, scored, wave_paths  # noqa: F401 (fixtures)


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    """The page in a headless Chromium."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium or chromedriver is not installed (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        *(
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "no-first-run",
            "disable-background-networking",
        ),
        *(
            "disable-component-update",
            "disable-sync",
            "disable-dev-shm-usage",
            "window-size=1200,900",
        ),
        "autoplay-policy=no-user-gesture-required",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    chrome = webdriver.Chrome(options=options, service=Service(driver))
    chrome.set_script_timeout(20)
    chrome.get(page.as_uri())
    yield chrome
    chrome.quit()


PLAY_EACH = """
const done = arguments[arguments.length - 1];
(async () => {
  const heard = [];
  for (const audio of document.querySelectorAll("audio")) {
    await audio.play();
    const begin = audio.currentTime;
    const until = performance.now() + 3000;
    while (audio.currentTime < begin + 0.1 && performance.now() < until) {
      await new Promise((go) => setTimeout(go, 20));
    }
    const playing = [...document.querySelectorAll("audio")].filter((other) => !other.paused);
    heard.push([audio.currentTime - begin, audio.duration, playing.length]);
  }
  for (const audio of document.querySelectorAll("audio")) audio.pause();
  done(heard);
})().catch((error) => done(String(error)));
"""


def test_every_player_plays_and_only_one_at_a_time(browser, page):
    heard = browser.execute_async_script(PLAY_EACH)
    assert len(heard) == 12, heard
    for (elapsed, duration, n_playing), path in zip(
        heard,
        [path for number in (1, 2, 3, 4) for path in wave_paths(page.parent, number)],
        strict=True,
    ):
        assert elapsed >= 0.1 and n_playing == 1
        assert duration == pytest.approx(soundfile.info(path).duration, abs=0.001)


CLICK = """
const [index, share] = arguments;
const spectrogram = document.querySelectorAll(".spectrogram")[index];
spectrogram.scrollIntoView({block: "center"});
const box = spectrogram.getBoundingClientRect();
return [Math.round(box.left + share * box.width), Math.round(box.top + box.height / 2)];
"""
STATE = """
const audio = document.querySelectorAll("audio")[arguments[0]];
const playhead = document.querySelectorAll(".playhead")[arguments[0]];
const { left, visibility } = playhead.style;
return [audio.paused, audio.currentTime, audio.duration, parseFloat(left), visibility];
"""


@pytest.mark.parametrize("fresh", [True, False], ids=["not yet loaded", "loaded"])
def test_a_click_into_a_spectrogram_plays_from_there_and_the_line_follows(browser, page, fresh):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.support.ui import WebDriverWait

    if fresh:
        browser.get(page.as_uri())
    for index, share in ((4, 0.4), (2, 0.6)):  # clean and enhanced, of two files
        actions = ActionBuilder(browser, duration=0)
        actions.pointer_action.move_to_location(
            *browser.execute_script(CLICK, index, share)
        ).click()
        actions.perform()
        WebDriverWait(browser, 5, 0.02).until(
            lambda chrome, index=index, share=share: (
                chrome.execute_script(STATE, index)[1] > share * 2.5
            )
        )
        paused, time, duration, left, visibility = browser.execute_script(STATE, index)
        assert not paused and share * duration - 0.02 <= time < share * duration + 1
        assert visibility == "visible" and left == pytest.approx(100 * time / duration, abs=4)

        def has_moved_while_playing(chrome, index=index, left=left):
            paused, _, _, left_now, _ = chrome.execute_script(STATE, index)
            return not paused and left_now > left + 1

        WebDriverWait(browser, 1, 0.02).until(has_moved_while_playing)
    assert browser.execute_script(STATE, 4)[0], "the first goes on when the second starts"
    browser.execute_script("for (const audio of document.querySelectorAll('audio')) audio.pause()")


COLUMN = (
    "return [...document.querySelectorAll('#scores-table tbody tr')]"
    ".map((row) => row.cells[arguments[0]].innerText)"
)


@pytest.mark.parametrize("by_keyboard", [False, True])
def test_headings_sort_up_and_down(browser, by_keyboard):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def sort_by(column):
        heading = browser.find_element(By.CSS_SELECTOR, f"#scores-table th[data-column='{column}']")
        button = heading.find_element(By.TAG_NAME, "button")
        browser.execute_script(
            "arguments[0].scrollIntoView({block: 'center', inline: 'center'})", button
        )
        button.send_keys(Keys.ENTER) if by_keyboard else button.click()
        sorted_by = browser.find_elements(
            By.CSS_SELECTOR, "#scores-table th:not([aria-sort='none'])[aria-sort]"
        )
        assert sorted_by == [heading]
        return heading.get_attribute("aria-sort"), browser.execute_script(COLUMN, column)

    assert sort_by(4) == ("ascending", ["-0.50", "+0.50", "+1.00", "+1.50"])
    assert sort_by(4) == ("descending", ["+1.50", "+1.00", "+0.50", "-0.50"])
    assert sort_by(12) == (
        "ascending",
        ["-6.000", "5.500", "100.000", "–"],
    )  # by number, not by letter
    assert sort_by(12) == (
        "descending",
        ["100.000", "5.500", "-6.000", "–"],
    )  # what is not defined stays last
    assert sort_by(0)[1] == [NASTY, NASTY, "en_librivox_disposed.wav", "en_librivox_disposed.wav"]


def test_pictures_and_charts_are_seen_and_nothing_goes_wrong(browser, page):
    browser.get(page.as_uri())
    script = """
      const done = arguments[arguments.length - 1];
      (async () => {
        for (const image of document.images) { image.loading = "eager"; await image.decode(); }
        const bars = [...document.querySelectorAll("#noises .charts > figure > svg rect")];
        done({
          widths: [...document.images].map((image) => image.naturalWidth),
          bars: bars
            .filter((bar) => bar.checkVisibility())
            .map((bar) => bar.getBoundingClientRect().width),
          resources: performance.getEntriesByType("resource").map((entry) => entry.name),
          pwned: typeof pwned,
        });
      })().catch((error) => done(String(error)));
    """
    seen = browser.execute_async_script(script)
    assert len(seen["widths"]) == 13 and min(seen["widths"]) > 100
    assert len(seen["bars"]) == 4 and max(seen["bars"]) > 50  # PESQ and STOI in two noises
    assert (
        all(name.startswith("file:") for name in seen["resources"]) and seen["pwned"] == "undefined"
    )
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []


def test_a_narrow_screen_needs_no_scrolling_sideways(browser):
    metrics = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
