"""The pair inspector in JupyterLab and a real browser: clips play, a key is a verdict on disk, keys stay out of the notebook's way."""
import pandas as pd
import pytest

pytest.importorskip("playwright")
from lab import page_of, soon

SETUP = """
import numpy as np
from viewpoint_rosetta.clips import pool, read_clips
from viewpoint_rosetta.inspector import PairInspector
from viewpoint_rosetta.matching import MatchSettings, match
from viewpoint_rosetta.world import shipped
clips = read_clips(shipped())
ego, exo = (pool(clips, view) for view in ("ego", "exo"))
draw = np.random.default_rng(0)
sides = [x for rows in (ego, exo) for x in (rows.clip_id, draw.normal(size=(len(rows), 8)), draw.normal(size=(len(rows), 8)))]
pairs = match(*sides, MatchSettings(k=3))
alone = {"language alone": match(*sides, MatchSettings(text_weight=1))}
"""
STATUS = "document.querySelector('.vr-status').textContent"


@pytest.fixture(scope="module")
def lab(chromium, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with page_of(chromium, root, folder, [SETUP, "PairInspector(pairs, clips, 'verdicts.parquet', 'first', alone)"], ".vr-inspector video") as page:
        page.locator(".vr-inspector").scroll_into_view_if_needed()
        yield page, folder


def verdicts(folder): return pd.read_parquet(folder / "verdicts.parquet") if (folder / "verdicts.parquet").exists() else pd.DataFrame()


def shown(page): return page.locator(".vr-ego small").inner_text().split(" ")[0]


def test_ego_and_candidates_play_in_step(lab):
    page, _ = lab
    page.wait_for_function("[...document.querySelectorAll('.vr-inspector video')].length == 4 && "
                           "[...document.querySelectorAll('.vr-inspector video')].every(v => v.currentTime > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_key_is_a_verdict_on_disk(lab):
    page, folder = lab
    first, exo = shown(page), page.locator(".vr-shot small").nth(2).inner_text().split(" ")[0]
    page.focus(".vr-inspector")
    page.keyboard.press("2"), page.keyboard.press("r")
    soon(lambda: len(verdicts(folder)) == 1, "the verdict is on disk")
    assert verdicts(folder).iloc[0][["ego", "exo", "verdict", "reviewer"]].tolist() == [first, exo, "reject", "first"]
    soon(lambda: shown(page) != first, "the next pair is shown")
    assert page.evaluate(STATUS) == "saved: reject"


def test_a_click_accepts_and_z_takes_it_back(lab):
    page, folder = lab
    before, ego = len(verdicts(folder)), shown(page)
    page.click("text=accept (a)")
    soon(lambda: len(verdicts(folder)) == before + 1 and shown(page) != ego, "accepted")
    page.keyboard.press("z")
    soon(lambda: len(verdicts(folder)) == before + 2 and shown(page) == ego, "taken back, and shown again")
    assert verdicts(folder).verdict.tolist()[-2:] == ["accept", "undone"]


def test_the_notebook_does_not_take_the_keys(lab):
    "In JupyterLab `a` inserts a cell and `d d` deletes one: not while the inspector has the focus, nor one of its buttons."
    page, folder = lab
    cells = page.locator(".jp-Cell").count()
    page.focus(".vr-inspector")
    page.keyboard.press("d"), page.keyboard.press("d")
    page.locator(".vr-do-accept").focus()
    for key in ("b", "d", "d"): page.keyboard.press(key)
    page.wait_for_timeout(300)
    assert page.locator(".jp-Cell").count() == cells


def test_filters_reach_python_and_come_back(lab):
    page, _ = lab
    page.locator(".vr-inspector select").nth(1).select_option("judged")
    page.wait_for_function("document.querySelector('.vr-count').textContent.startsWith('1 of 1 ')")
    page.locator(".vr-inspector select").nth(1).select_option("all")
    page.wait_for_function("document.querySelector('.vr-count').textContent.includes('of 400')")


def test_no_error_in_the_console(lab):
    assert lab[0].errors == []
