"""The retrieval browser and the monitor in JupyterLab and a real browser: keys, words, a video, clips that play, curves that grow."""
import time

import pytest

pytest.importorskip("playwright")
from lab import page_of

CELLS = ["""
import numpy as np
from viewpoint_rosetta.clips import read_clips
from viewpoint_rosetta.retrieval import RetrievalBrowser
from viewpoint_rosetta.world import shipped
clips = read_clips(shipped())
rows = clips[(clips.split == "test") & clips.label.isin(sorted(clips.label.unique())[::6])].reset_index(drop=True)
draw = np.random.default_rng(0)
names = {a: draw.normal(size=16) for a in sorted(rows.label.unique())}
def space(noise):
    z = np.stack([names[a] for a in rows.label]) + noise * draw.normal(size=(len(rows), 16))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)
def say(sentence): return names[sentence]                   # a sentence that is no label is an error of this encoder
def see(frames): return names["assembly"] if frames.shape[0] == 8 else 0
browser = RetrievalBrowser(dict(weak=space(4), strong=space(.2)), rows, clips, text_encoders=dict(strong=say), video_encoders=dict(weak=see, strong=see))
browser
""", """
import threading, time
import torch
from viewpoint_rosetta.monitor import Monitor
from viewpoint_rosetta.training import TrainSettings, fit
model = torch.nn.Linear(8, 8)
def objective(model, step, generator):
    time.sleep(.02)
    loss = (model(torch.ones(4, 8)) - 3).square().mean()
    return loss, dict(vv=loss)
monitor = Monitor(validate=lambda model: {"HR@5 ego->exo": model.weight.abs().mean().item()}, every=5)
training = threading.Thread(target=fit, args=(model, objective, TrainSettings(steps=100_000)), kwargs=dict(progress=False, watch=monitor.watch), daemon=True)
training.start()
monitor
"""]


@pytest.fixture(scope="module")
def page(chromium, root, tmp_path_factory):
    "JupyterLab with the notebook run, in a browser; its console must stay free of errors to the end."
    with page_of(chromium, root, tmp_path_factory.mktemp("lab"), CELLS, ".vrr-answers video") as page: yield page


def until(page, script, *args):
    "Wait for a condition in the page."
    page.wait_for_function(script, arg=list(args) or None)


def heading(page, which=1):
    return page.locator(".vrr-answers h4").nth(which).inner_text()


def test_clips_play_and_hits_are_said(page):
    until(page, "[...document.querySelectorAll('.vr-retrieval video')].length == 11 && "
                "[...document.querySelectorAll('.vr-retrieval video')].every(v => v.currentTime > 0)")
    assert heading(page, 1) == "B · strong · 4 of 5 right", "two other rooms, two cameras: there are no more"
    assert page.locator(".vrr-hit").count() == page.locator("text=✓ hit").count() >= 4
    assert page.locator(".vrr-miss").count() == page.locator("text=✗ miss").count() > 0


def test_fits_1280_pixels(page):
    assert page.evaluate("(b => b.scrollWidth <= b.clientWidth)(document.querySelector('.vr-retrieval'))")
    assert page.evaluate("[...document.querySelectorAll('.vrr-found')].every(b => b.scrollWidth <= b.clientWidth)"), "five cards side by side"


def test_keys_are_the_pages_and_not_the_notebooks(page):
    page.focus(".vr-retrieval")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.vrr-count').textContent.startsWith('query 2')")
    for direction in ("exo->ego", "ego->exo"):  # in JupyterLab's command mode, d twice deletes a cell
        page.keyboard.press("d")
        until(page, "d => document.querySelector('.vrr-query figcaption b').textContent === d[0].slice(0, 3) + ' asks'", direction)
    assert page.locator(".jp-Cell").count() == len(CELLS)
    until(page, "document.querySelector('.vrr-count').textContent.startsWith('query 2')"), "back at the same moment"
    page.focus(".vrr-query select")
    for i in (3, 4):  # the list keeps the focus while it is redrawn
        page.keyboard.press("ArrowDown")
        until(page, "i => document.querySelector('.vrr-count').textContent.startsWith('query ' + i[0])", i)


def test_curves_grow_while_the_kernel_trains(page):
    page.locator(".vr-monitor").scroll_into_view_if_needed()
    read = "parseInt(document.querySelector('.vrm-state').textContent.split('step ')[1])"
    until(page, f"{read} > 5")
    first, curve = page.evaluate(read), page.locator(".vrm-plot polyline").first.get_attribute("points")
    until(page, f"s => {read} > s[0] + 20", first)
    assert page.locator(".vrm-plot polyline").first.get_attribute("points") != curve
    assert {"loss", "learning rate", "gradient norm", "validation"} <= set(page.locator(".vrm-plot text").all_text_contents())


def test_steps_are_brushed_by_hand_and_by_key(page):
    page.locator(".vr-monitor").scroll_into_view_if_needed()
    until(page, "parseInt(document.querySelector('.vrm-state').textContent.split('step ')[1]) > 30")  # nothing to brush before
    box = page.locator(".vrm-plot svg").bounding_box()
    scale = box["width"] / 936
    page.mouse.move(box["x"] + 46 * scale, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200 * scale, box["y"] + 60, steps=5)
    page.mouse.up()
    chosen = page.locator(".vr-monitor button")
    assert chosen.inner_text().endswith("chosen; clear") and page.inner_text(".vrm-said").startswith("step ")
    page.focus(".vrm-plot")
    page.keyboard.press("Escape")
    assert chosen.is_disabled()
    for key in ("Home", "Shift+ArrowRight"): page.keyboard.press(key)
    assert chosen.inner_text().startswith("steps 0 to ")


def test_words_reach_python(page):
    page.focus(".vr-retrieval")
    page.keyboard.press("t")
    page.keyboard.type("drawer-open")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('.vrr-query blockquote')?.textContent === 'drawer-open'")
    assert heading(page, 0) == "A · weak" and page.locator(".vrr-note").inner_text() == "no text encoder was given for this method"
    assert set(page.locator(".vrr-label").all_inner_texts()[:5]) == {"drawer-open"} and "nobody knows" in heading(page)
    page.keyboard.press("t")
    page.keyboard.press("Control+a")
    page.keyboard.type("a word unknown")
    page.keyboard.press("Enter")
    until(page, "[...document.querySelectorAll('.vrr-note')].some(n => n.textContent.includes('KeyError'))")


def test_a_video_of_ones_own(page, root, tmp_path):
    page.set_input_files(".vrr-own input", root / "viewpoint_rosetta" / "assets" / "world" / "videos" / "test_000_0_ego.mp4")
    until(page, "document.querySelector('.vrr-query figcaption b')?.textContent === 'your video asks'")
    until(page, "document.querySelector('.vrr-query video').currentTime > 0")
    assert page.locator(".vrr-answers .vrr-label").all_inner_texts()[5:] == ["assembly"] * 5
    (tmp_path / "fake.mp4").write_bytes(b"#EXTM3U\nfile:///etc/hosts\n")
    page.set_input_files(".vrr-own input", tmp_path / "fake.mp4")
    until(page, "document.querySelector('.vrr-status').textContent.includes('not a video')")
    assert page.locator(".vrr-query figcaption b").inner_text() == "your video asks"


def test_a_confusion_lists_its_queries(page):
    page.focus(".vr-retrieval")
    page.keyboard.press("c")
    page.wait_for_selector(".vrr-mixed table")
    assert page.locator(".vrr-mixed svg").count() == 2
    row = page.locator(".vrr-mixed tr").nth(1)
    asked, found = row.locator("td").all_inner_texts()[:2]
    row.locator("button:enabled").first.click()
    until(page, "document.querySelector('.vrr-mixed [aria-pressed=true]')")
    assert page.locator(".vrr-query .vrr-label").inner_text() == asked
    assert page.locator(".vrr-count").inner_text().endswith(f"finds {found} for {asked}")
    assert found in page.locator(".vrr-answers .vrr-label").all_inner_texts()


def test_the_console_is_clean(page):
    assert page.errors == []
