"""A real browser without a window: Debian's Chromium, driven by Selenium."""

import base64
import contextlib
import os
import shutil
import time
from pathlib import Path

import pytest

# Seconds: a job compiles its program while the machine may do other things.
PATIENCE = float(os.environ.get("VDM_JAX_BROWSER_SECONDS", "300"))
DESKTOP, PHONE = (1280, 900), (390, 844)


def require() -> None:
    """Skips the calling module where what a browser test needs is missing."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install '.[studio]'")
    pytest.importorskip("selenium", reason="Selenium is not installed: pip install selenium")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(
                f"{program} is not installed: apt-get install chromium chromium-driver",
                allow_module_level=True,
            )


@contextlib.contextmanager
def opened(address: str, size: tuple[int, int]):
    """A driver with the page of an address, in a window of that many pixels. Below 600 of width it
    is a telephone. No other host can be reached."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={size[0]},{size[1]}",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        driver.set_page_load_timeout(PATIENCE)
        if size[0] < 600:
            metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 2, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(address)
        yield driver
    finally:
        driver.quit()


def wait(condition, what: str):
    """What `condition` returns as soon as that is true; fails where it never is."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"after {PATIENCE:.0f} s still not: {what}")


def text(driver, selector: str) -> str:
    """The text of the first element, "" where there is none."""
    return driver.execute_script(
        "const e = document.querySelector(arguments[0]);"
        "return e === null ? '' : (e.value ?? e.innerText)",
        selector,
    )


def wait_text(driver, selector: str, words: str) -> str:
    """The text of an element as soon as it holds `words`."""

    def found() -> str:
        now = text(driver, selector)
        return now if words in now else ""

    return wait(found, f"{words!r} in {selector}, which says {text(driver, selector)!r}")


def click(driver, selector: str) -> None:
    """Clicks the element of a selector, once it is there."""
    script = "const e = document.querySelector(arguments[0]); e?.click(); return e !== null"
    wait(lambda: driver.execute_script(script, selector), f"an element {selector}")


def choose_job(driver, name: str) -> None:
    """Chooses what to do, and waits until its part is shown."""
    click(driver, f"#job input[value={name}]")
    shown = f"return document.querySelector('#make_{name}')?.offsetParent != null"
    wait(lambda: driver.execute_script(shown), f"the part of {name}")


def fill(driver, selector: str, value: str) -> None:
    """Types into a field in the place of what it holds."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    wait(lambda: driver.find_elements(By.CSS_SELECTOR, selector), f"a field {selector}")
    field = driver.find_element(By.CSS_SELECTOR, selector)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(value, Keys.TAB)


def upload(driver, path: Path) -> None:
    """Gives a file to the upload of the part that is shown."""
    script = (
        "return [...document.querySelectorAll('input[type=file]')]"
        ".find(e => e.closest('.column, .gr-group, div')?.offsetParent != null)"
    )
    wait(lambda: driver.execute_script(script), "a field for files")
    driver.execute_script(script).send_keys(str(path))


def width_beyond(driver) -> int:
    """Pixels that the page is wider than its window."""
    return driver.execute_script("return document.documentElement.scrollWidth - innerWidth")


def foreign(driver) -> list[str]:
    """What the page fetched from other hosts, or tried to."""
    return driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
        ".filter(n => !n.startsWith(location.origin) && !n.startsWith('data:'))"
    )


def picture(driver, path: Path) -> None:
    """Writes the whole page as a PNG."""
    script = "const e = document.documentElement; return [e.clientWidth, e.scrollHeight]"
    width, height = driver.execute_script(script)
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    path.write_bytes(base64.b64decode(shot["data"]))
