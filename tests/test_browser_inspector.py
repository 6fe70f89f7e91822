"""The pair inspector in JupyterLab and a real browser: clips play, a key is a verdict on disk, keys stay out of the notebook's way."""
import pytest

pytest.importorskip("playwright")
from lab import page_of, soon
from viewpoint_rosetta.verdicts import read_verdicts

SETUP = """
import numpy as np
from viewpoint_rosetta.clips import pool, read_clips
from viewpoint_rosetta.inspector import PairInspector
from viewpoint_rosetta.matching import MatchSettings, match
from viewpoint_rosetta.verdicts import Review
from viewpoint_rosetta.world import shipped
clips = read_clips(shipped())
ego, exo = (pool(clips, view) for view in ("ego", "exo"))
draw = np.random.default_rng(0)
sides = [x for rows in (ego, exo) for x in (rows.clip_id, draw.normal(size=(len(rows), 8)), draw.normal(size=(len(rows), 8)))]
pairs = match(*sides, MatchSettings(k=3))
alone = {"language alone": match(*sides, MatchSettings(text_weight=1))}
other = Review("second.parquet", "second")
for verdict, ego, exo in zip(["reject", "accept"], pairs.ego[pairs["rank"] == 1].tail(2), pairs.exo[pairs["rank"] == 1].tail(2)): other.say(ego, exo, verdict)
"""
STATUS = "document.querySelector('.vr-status').textContent"


@pytest.fixture(scope="module")
def lab(chromium, root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with page_of(chromium, root, folder, [SETUP, "PairInspector(pairs, clips, 'verdicts.parquet', 'first', alone, others=['second.parquet'])"], ".vr-inspector video") as page:
        page.locator(".vr-inspector").scroll_into_view_if_needed()
        yield page, folder


def verdicts(folder): return read_verdicts(folder / "verdicts.parquet")


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


def test_action_and_scores_are_filters(lab):
    page, _ = lab
    count = "document.querySelector('.vr-count').textContent"
    action = page.locator(".vr-inspector select").nth(2)
    action.select_option(index=1)
    page.wait_for_function(f"!{count}.includes(' of 400 · ')")
    action.select_option("all")
    page.wait_for_function(f"{count}.startsWith('1 of 400 · ')")
    low = page.locator(".vr-inspector input[type=number]").first
    all_of_them = low.input_value()
    low.fill("0.6"), low.press("Enter")
    page.wait_for_function(f"!{count}.includes(' of 400 · ')")
    low.fill(all_of_them), low.press("Enter")
    page.wait_for_function(f"{count}.startsWith('1 of 400 · ')")


def test_what_the_other_said_is_hidden_until_one_has_judged(lab):
    page, folder = lab
    said = "[...document.querySelectorAll('.vr-other')].map(e => e.textContent).join()"
    page.locator(".vr-inspector select").nth(1).select_option("judged by others only")
    page.wait_for_function("document.querySelector('.vr-count').textContent.startsWith('1 of 2 ')")
    theirs = read_verdicts(folder / "second.parquet")
    verdict = theirs.verdict[theirs.ego == shown(page)].item()
    assert page.evaluate(said) == "judged by others; shown when you have"
    page.get_by_label("show what others said before I judge").check()
    page.wait_for_function(f"{said} === 'second: {verdict}'")
    page.get_by_label("show what others said before I judge").uncheck()
    page.wait_for_function(f"{said}.startsWith('judged by others')")
    page.focus(".vr-inspector")
    page.keyboard.press("1")
    page.keyboard.press({"reject": "a", "accept": "r"}[verdict])
    page.wait_for_function(f"{STATUS}.includes('second said {verdict}')")
    assert page.locator(".vr-agreed").inner_text().startswith("with second: 1 judged by both, 0 the same")
    page.locator(".vr-inspector select").nth(1).select_option("in conflict")
    page.wait_for_function(f"{said} === 'second: {verdict}'")


def test_another_reviewer_sits_down(lab):
    page, folder = lab
    before = len(verdicts(folder))
    name = page.locator(".vr-inspector .vr-name")
    name.fill("third"), name.press("Enter")
    page.wait_for_function("document.querySelector('.vr-count').textContent.startsWith('no ego clip fits')")
    page.locator(".vr-inspector select").nth(1).select_option("all")
    page.wait_for_selector(".vr-ego")
    page.focus(".vr-inspector")
    page.keyboard.press("u")
    soon(lambda: len(verdicts(folder)) == before + 1, "the verdict is on disk")
    assert verdicts(folder).reviewer.tolist()[-1] == "third"


def test_the_chosen_candidate_and_the_ego_clip_are_in_sight(lab):
    page, _ = lab
    inside = """c => { const [row, card] = ['.vr-shots', c[0]].map(q => document.querySelector(q).getBoundingClientRect());
        return row.width < 600 && card.left > row.left - 1 && card.right < row.right + 1; }"""
    page.focus(".vr-inspector")
    page.keyboard.press("1"), page.keyboard.press("3")
    page.wait_for_function("[...document.querySelectorAll('.vr-shot')].findIndex(c => c.matches('.vr-chosen')) === 3")
    page.evaluate("document.querySelector('.vr-inspector').style.width = '500px'")
    for which in (".vr-chosen", ".vr-ego"): page.wait_for_function(inside, arg=[which])  # the page became narrow
    page.keyboard.press("2"), page.keyboard.press("3")
    page.wait_for_function("[...document.querySelectorAll('.vr-shot')].findIndex(c => c.matches('.vr-chosen')) === 3")
    for which in (".vr-chosen", ".vr-ego"): page.wait_for_function(inside, arg=[which])
    page.evaluate("document.querySelector('.vr-inspector').style.width = ''")


def test_keys_are_listed(lab):
    page, _ = lab
    keys = page.locator(".vr-keys")
    assert not keys.is_visible()
    page.focus(".vr-inspector")
    page.keyboard.press("?")
    assert keys.is_visible() and "a r u accept, reject, unsure" in keys.inner_text().replace("\n", " ")
    page.keyboard.press("?")
    assert not keys.is_visible() and page.evaluate("document.activeElement.className") == "vr-inspector"


def test_no_error_in_the_console(lab):
    assert lab[0].errors == []
