"""The pages in a real browser, at the widths of a desktop and of a telephone.

VDM_JAX_PICTURES=DIR keeps pictures of what was seen.
"""

import json
import os
import shlex
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.studio import browser
from vdm_jax.data import video_io
from vdm_jax.studio import server, studio_page, watch_page
from vdm_jax.training import metrics

browser.require()
pytestmark = pytest.mark.slow


def keep(driver, name):
    if folder := os.environ.get("VDM_JAX_PICTURES"):
        browser.picture(driver, Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def serve():
    """Serves pages until the tests of this file are over; returns their addresses."""
    gradio, running = server.load_gradio(), []

    def serve(build, *of, folders):
        page = build(gradio, *of)
        one = server.Server(gradio, page, host="127.0.0.1", port=None, folders=folders)
        thread = threading.Thread(target=one.run, daemon=True)
        thread.start()
        running.append((one, thread))
        return one.address

    yield serve
    for one, _ in running:
        one.stop()
    for _, thread in running:
        thread.join(timeout=30)


@pytest.fixture(scope="module")
def address(serve, studio, runner):
    return serve(studio_page.build, studio, folders=[runner.out])


@pytest.fixture(scope="module")
def desktop(address):
    with browser.opened(address, browser.DESKTOP) as driver:
        yield driver


def test_a_prompt_becomes_a_video_that_plays(desktop, runner):
    browser.fill(desktop, "#prompt textarea", "a red square")
    browser.fill(desktop, "#steps input", "4")
    line = browser.wait_text(desktop, "#command textarea", "--steps=4")
    assert "--prompt=a red square" in shlex.split(line)
    browser.click(desktop, "#make_sample")
    browser.wait_text(desktop, "#shown_sample", "Done in")
    playing = "const v = document.querySelector('#shown_sample video'); return v?.readyState >= 2"
    browser.wait(lambda: desktop.execute_script(playing), "a video that can be played")
    keep(desktop, "studio_desktop")
    assert (runner.out / "0001" / "0000_a_red_square.mp4").is_file()
    assert f"--out={runner.out / '0001'}" in browser.text(desktop, "#shown_sample code")
    assert browser.width_beyond(desktop) <= 0 and not browser.foreign(desktop)


def test_errors_are_words_on_the_page_and_the_server_goes_on(desktop, tmp_path):
    browser.fill(desktop, "#prompt textarea", "a purple cow")
    browser.click(desktop, "#make_sample")
    browser.wait_text(desktop, "#shown_sample .failed", "does not know the word 'purple'")
    browser.fill(desktop, "#prompt textarea", "a red square")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    browser.choose_job(desktop, "restyle")
    browser.upload(desktop, tmp_path / "broken.mp4")
    browser.wait_text(desktop, "#command textarea", "--input=broken.mp4")
    browser.click(desktop, "#make_restyle")
    browser.wait_text(desktop, "#shown_restyle .failed", "broken.mp4")
    keep(desktop, "studio_bad_upload")


def test_two_visitors_queue_and_one_cancels(desktop, address):
    browser.choose_job(desktop, "sample")
    browser.fill(desktop, "#steps input", "1000")
    browser.wait_text(desktop, "#command textarea", "--steps=1000")
    browser.click(desktop, "#make_sample")
    browser.wait_text(desktop, "#shown_sample", "Preparing")
    with browser.opened(address, browser.PHONE) as phone:
        browser.fill(phone, "#steps input", "4")
        browser.wait_text(phone, "#command textarea", "--steps=4")
        browser.fill(phone, "#prompt textarea", "a red square")
        browser.wait_text(phone, "#command textarea", "red square")
        browser.click(phone, "#make_sample")
        browser.wait_text(phone, "#shown_sample", "1 job is before yours")
        browser.click(desktop, "#cancel_sample")
        browser.wait_text(desktop, "#shown_sample", "Cancelled.")
        browser.wait_text(phone, "#shown_sample", "Done in")
        keep(phone, "studio_phone")
        assert browser.width_beyond(phone) <= 0 and not browser.foreign(phone)


def test_a_mask_is_painted_with_the_pointer(desktop, runner, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    film = np.full((4, 8, 8, 3), 90, np.uint8)
    browser.fill(desktop, "#steps input", "4")
    browser.choose_job(desktop, "inpaint")
    browser.upload(desktop, video_io.write_mp4(tmp_path / "film.mp4", film, fps=8))
    find = lambda: desktop.find_elements(By.CSS_SELECTOR, "#canvas canvas")  # noqa: E731
    (canvas,) = browser.wait(find, "a canvas")
    desktop.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    drag = ActionChains(desktop).move_to_element_with_offset(canvas, -90, -60).click_and_hold()
    drag.move_by_offset(60, 0).move_by_offset(60, 10).release().perform()
    browser.wait_text(desktop, "#command textarea", "--mask=mask.png")
    browser.click(desktop, "#make_inpaint")
    browser.wait_text(desktop, "#shown_inpaint", "Done in")
    keep(desktop, "studio_inpaint")
    newest = max(runner.out.iterdir())
    with np.load(newest / "given.npz") as given, np.load(newest / "samples.npz") as made:
        same = (given["video"] == made["video"]).all(axis=(0, 1, 4))
    assert same[4:].all() and not same[:4].all()  # painted above the middle


def test_a_run_is_watched_from_before_it_begins(serve, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    write_run(first, 40)
    pages = [serve(watch_page.build, watch_page.Watched([first, second]), 0.5, folders=[tmp_path])]
    with browser.opened(pages[0], browser.DESKTOP) as driver:
        browser.wait_text(driver, "#runs", "no such folder yet")
        write_run(second, 20)
        browser.wait_text(driver, "#runs", "step 20 of 100")
        with (second / metrics.LOG_NAME).open("a") as file:
            file.write('{"step": 60, "loss": 0.1, "clips_per_second": 30.0}\n{"step": 7')
        browser.wait_text(driver, "#runs", "step 60 of 100")
        loaded = (
            "const all = [...document.querySelectorAll('#runs img')];"
            "return all.length === 2 && all.every(i => i.complete && i.naturalWidth > 0)"
        )
        browser.wait(lambda: driver.execute_script(loaded), "the samples of both runs")
        assert driver.execute_script("return document.querySelectorAll('#runs svg').length") == 2
        keep(driver, "watch_desktop")
        assert browser.width_beyond(driver) <= 0 and not browser.foreign(driver)
    with browser.opened(pages[0], browser.PHONE) as driver:
        browser.wait_text(driver, "#runs", "step 60 of 100")
        keep(driver, "watch_phone")
        assert browser.width_beyond(driver) <= 0


def write_run(folder: Path, steps: int) -> None:
    """A run of 100 updates after `steps`."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"steps": 100}}))
    writer = metrics.MetricWriter(folder)
    for step in range(10, steps + 1, 10):
        writer.scalars(step, {"loss": 5.0 / step, "clips_per_second": 20.0 + step})
    writer.close()
    video = np.full((2, 16, 16, 3), 200, np.uint8)
    video_io.write_gif(folder / "samples" / f"step_{steps}.gif", video, 8)
