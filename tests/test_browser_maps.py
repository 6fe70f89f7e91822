"The map and the translation in JupyterLab, in a real browser: a lasso reaches Python, a pointer at rest plays a clip."
import json

import numpy as np
import pytest

pytest.importorskip("playwright")
from lab import page_of, soon

SETUP = '''
import json
from pathlib import Path

import numpy as np
import torch

from viewpoint_rosetta.clips import read_clips
from viewpoint_rosetta.maps import EmbeddingMap
from viewpoint_rosetta.translation import Translation
from viewpoint_rosetta.translator import RSTSettings, train_translator
from viewpoint_rosetta.widgets import link
from viewpoint_rosetta.world import shipped

clips = read_clips(shipped())
rows = clips[clips.split == "test"].reset_index(drop=True)
draw = np.random.default_rng(0)

def put(name, what):  # whole or not at all: the test reads while we write
    Path(name + "~").write_text(json.dumps(what))
    Path(name + "~").rename(name)

z = [draw.normal(size=(len(rows), 2)).astype(np.float32) for _ in range(3)]
first, second = EmbeddingMap({"before": z[0], "after": z[1]}, rows, clips), EmbeddingMap({"other": z[2][:200]}, rows[:200], clips)
link(first, second)
first.on_select(lambda table: put("chosen.json", table.clip_id.tolist()))
Path("rows.json").write_text(json.dumps(rows.clip_id.tolist()))
ego, exo = (rows[rows["view"] == view] for view in ("ego", "exo"))
a, b = (draw.normal(size=(len(part), 8)).astype(np.float32) for part in (ego, exo))
few = RSTSettings(width=16, depth=1, heads=2, tokens=2, steps=5, val_fraction=0, refit=False, anchor=False)
walk = Translation(train_translator(a[:20], b[:20], few, progress=False), ego, a, exo, b, clips, method="pca")
wide = EmbeddingMap({"wide": draw.normal(size=(len(rows), 6))}, rows, clips)
walk.on_select(lambda table: put("walk.json", [table.ego[0], walk.steps]))
'''


@pytest.fixture(scope="module")
def lab(chromium, root, tmp_path_factory):
    "A page of JupyterLab on which the notebook has run: page, folder, errors of the console."
    folder = tmp_path_factory.mktemp("lab")
    with page_of(chromium, root, folder, [SETUP, "first", "second", "walk", "wide"], ".vr-walk .vr-near video") as page: yield page, folder, page.errors


def view_of(page, i: int):
    "The i-th view, in sight: its box and its stage's rectangle."
    box = page.locator(".vr-map").nth(i)
    box.scroll_into_view_if_needed()
    box.locator(".vr-stage").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    return box, box.locator(".vr-stage").bounding_box()


def spots(box, panel: int) -> np.ndarray:
    "(N, 2) where the points of a panel are, in pixels from the stage's corner."
    return np.array(box.evaluate("""(box, i) => { const s = box.vrStage, p = s.places[i];
        return Array.from({length: s.count}, (_, j) => s.spot(i, p[2 * j], p[2 * j + 1])); }""", panel))


def test_grid_and_lasso_find_what_a_search_of_all_points_finds(lab):
    page, _, _ = lab
    box, rect = view_of(page, 0)
    at = spots(box, 0)
    for x, y in np.random.default_rng(1).uniform((0, 0), (rect["width"] / 2 - 8, rect["height"]), (40, 2)):
        far = np.hypot(*(at - (x, y)).T)
        assert box.evaluate("(box, p) => box.vrStage.find(...p)", [x, y]) == (far.argmin() if far.min() < 10 else -1)


def test_lasso_reaches_python_and_the_linked_map(lab):
    from matplotlib.path import Path
    page, folder, _ = lab
    box, rect = view_of(page, 0)
    ids, at = json.loads((folder / "rows.json").read_text()), spots(box, 0)
    corners = at.mean(0) + [(-60, -50), (70, -40), (40, 80), (-50, 60)]
    box.focus()
    page.keyboard.press("l")
    page.mouse.move(rect["x"] + corners[0][0], rect["y"] + corners[0][1])
    page.mouse.down()
    for x, y in [*corners[1:], corners[0]]: page.mouse.move(rect["x"] + x, rect["y"] + y, steps=4)
    page.mouse.up()
    chosen = json.loads(soon(lambda: (folder / "chosen.json").exists() and (folder / "chosen.json").read_text(), "on_select wrote the table"))
    surely, never = (Path(corners.mean(0) + (corners - corners.mean(0)) * k).contains_points(at) for k in (.95, 1.05))
    assert 10 < len(chosen) < len(ids) and {i for i, s in zip(ids, surely) if s} <= set(chosen) <= {i for i, s in zip(ids, never) if s}
    marked = [ids[j] for j in box.evaluate("box => [...box.vrStage.chosen]")]
    assert marked == chosen, "the page marks what Python was told, on all its panels"
    other = page.locator(".vr-map").nth(1)
    soon(lambda: [ids[j] for j in other.evaluate("box => [...box.vrStage.chosen]")] == [i for i in chosen if i in ids[:200]], "the linked map follows")
    box.focus()
    page.keyboard.press("Escape")
    soon(lambda: (folder / "chosen.json").read_text() == "[]", "Escape lets go")
    page.keyboard.press("m")


def test_pointer_at_rest_plays_the_clip(lab):
    page, folder, _ = lab
    box, rect = view_of(page, 0)
    at = spots(box, 1)
    row = int(np.argmin(np.hypot(*(at - at.mean(0)).T)))
    page.mouse.move(rect["x"] + at[row][0], rect["y"] + at[row][1])
    page.wait_for_function("""id => { const c = document.querySelector('.vr-card');
        return c.textContent.includes(id) && !c.hidden && !c.matches('.vr-old') && c.querySelector('video').currentTime > 0.1; }""",
                           arg=json.loads((folder / "rows.json").read_text())[row])
    page.mouse.move(rect["x"] - 20, rect["y"] + 20)
    page.wait_for_function("![...document.querySelectorAll('.vr-card')].some(c => !c.hidden)")


def test_the_card_goes_when_the_map_moves_below_it(lab):
    page, folder, _ = lab
    ids = json.loads((folder / "rows.json").read_text())
    box, rect = view_of(page, 0)
    card, at = box.locator(".vr-card"), spots(box, 0)
    row = int(np.argmin(np.hypot(*(at - at.mean(0)).T)))
    def over(): page.mouse.move(rect["x"] + at[row][0], rect["y"] + at[row][1])
    def shows(): soon(lambda: card.is_visible() and ids[row] in card.inner_text() and card.evaluate("c => !c.matches('.vr-old')"), "its card")
    over(), shows()
    page.mouse.down()
    assert not card.is_visible(), "a drag begins"
    page.mouse.move(rect["x"] + at[row][0] + 40, rect["y"] + at[row][1] + 30, steps=3)
    page.mouse.up()
    shows()  # the point came along, and the pointer rests on it again
    box.focus()
    page.keyboard.press("0")
    assert not card.is_visible()
    page.mouse.move(rect["x"] - 20, rect["y"] + 20)
    box.evaluate("b => b.vrStage.move(.3, 0)")
    page.wait_for_timeout(400)  # longer than a map needs to rest
    assert not card.is_visible(), "nobody points"
    page.keyboard.press("0")


def test_card_knows_a_map_that_is_laid_anew(lab):
    "UMAP takes the place of the principal components while the pointer rests: the card is that of the point now below it, or goes."
    page, folder, _ = lab
    ids = json.loads((folder / "rows.json").read_text())
    box, _ = view_of(page, 3)
    page.wait_for_function("b => b.querySelector('.vr-note').textContent === ''", arg=box.element_handle())
    rect, card, method = box.locator(".vr-stage").bounding_box(), box.locator(".vr-card"), box.locator("select").nth(1)
    umap = spots(box, 0)
    method.select_option("pca")
    page.wait_for_function("([b, x]) => Math.abs(b.vrStage.spot(0, b.vrStage.places[0][0], 0)[0] - x) > .1", arg=[box.element_handle(), umap[0][0]])
    at = spots(box, 0)
    row = int(np.argmin(np.hypot(*(at - at.mean(0)).T)))
    page.mouse.move(rect["x"] + at[row][0], rect["y"] + at[row][1])
    page.wait_for_function("b => !b.querySelector('.vr-card').hidden", arg=box.element_handle())
    box.evaluate("b => { const s = b.querySelectorAll('select')[1]; s.value = 'umap'; s.dispatchEvent(new Event('change')); }")
    soon(lambda: np.allclose(spots(box, 0), umap), "UMAP again")
    far = np.hypot(*(umap - at[row]).T)
    if far.min() > 10: soon(lambda: not card.is_visible(), "nothing is below the pointer")
    else: soon(lambda: card.is_visible() and ids[int(far.argmin())] in card.inner_text(), "another clip is below the pointer")


def test_points_are_drawn_and_dragging_moves_them(lab):
    page, _, _ = lab
    box, rect = view_of(page, 0)
    assert box.locator(".vr-stage").get_attribute("data-painter") == "webgl"
    coloured = """box => { const c = document.createElement('canvas'), s = box.querySelector('canvas'); c.width = s.width; c.height = s.height;
        const pen = c.getContext('2d'); pen.drawImage(s, 0, 0); const d = pen.getImageData(0, 0, c.width, c.height).data;
        let blue = 0, orange = 0; for (let i = 0; i < d.length; i += 4) { if (d[i + 3] < 100) continue; if (d[i + 2] > 120 && d[i] < 60) blue++; if (d[i] > 150 && d[i + 2] < 60) orange++; }
        return [blue, orange]; }"""
    assert min(box.evaluate(coloured)) > 500, "ego is blue, exo is orange"
    before = spots(box, 0)
    page.mouse.move(rect["x"] + 30, rect["y"] + 30)
    page.mouse.down()
    page.mouse.move(rect["x"] + 90, rect["y"] + 50, steps=3)
    page.mouse.up()
    assert np.allclose(spots(box, 0) - before, (60, 20), atol=1) and np.allclose(box.evaluate("b => [b.vrStage.eyes[1].x]"), 0), "this panel alone"
    box.focus()
    page.keyboard.press("0")
    assert np.allclose(spots(box, 0), before)


def test_translation_walks_by_key_and_its_slider_reaches_python(lab):
    page, folder, _ = lab
    box, _ = view_of(page, 2)
    word = box.locator(".vr-step")
    assert word.inner_text() == "step 10 of 10"
    box.focus()
    page.keyboard.press("Home")
    assert word.inner_text() == "noise"
    page.keyboard.press(" ")
    soon(lambda: word.inner_text().startswith("step"), "the walk plays")
    page.keyboard.press(" ")
    page.wait_for_function("[...document.querySelectorAll('.vr-near video')].every(v => v.currentTime > 0)")
    page.keyboard.press("n")
    told = lambda: json.loads((folder / "walk.json").read_text()) if (folder / "walk.json").exists() else [None, None]
    egos = [i for i in json.loads((folder / "rows.json").read_text()) if i.endswith("ego")]
    soon(lambda: told()[0] == egos[1], "the next ego clip")
    box.locator("input[type=range]").first.fill("3")
    soon(lambda: told() == [egos[1], 3], "three steps")
    soon(lambda: word.inner_text() == "step 3 of 3", "the page shows them")


def test_without_webgl_a_plain_canvas_draws(lab):
    page, _, _ = lab
    found = page.locator(".vr-map").nth(0).evaluate("""box => { const stage = document.createElement('div'); stage.style.cssText = 'width:200px;height:200px;position:relative';
        document.body.append(stage); const old = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) { return kind === 'webgl2' ? null : old.call(this, kind, ...rest); };
        const s = box.vrStage.another(stage); HTMLCanvasElement.prototype.getContext = old;
        s.points([new Float32Array([0, 0, .5, .5])], new Uint8Array([0, 114, 178, 255, 230, 159, 0, 0]));
        return new Promise(done => setTimeout(() => { const c = stage.querySelector('canvas'), pen = c.getContext('2d');
            const at = s.spot(0, 0, 0), ink = [...pen.getImageData(at[0], at[1], 1, 1).data];
            stage.remove(); s.free(); done([stage.dataset.painter, ink]); }, 300)); }""")
    assert found[0] == "canvas" and np.allclose(found[1][:3], (0, 114, 178), atol=3)


def test_keys_are_listed_and_are_not_the_notebooks(lab):
    page, _, _ = lab
    cells = page.locator(".jp-Cell").count()
    for i in (0, 2):
        box, _ = view_of(page, i)
        box.focus()
        page.keyboard.press("?")
        assert box.locator(".vr-keys").is_visible() and len(box.locator(".vr-keys kbd").all()) >= 6
        for key in "?bbmm": page.keyboard.press(key)
        assert not box.locator(".vr-keys").is_visible()
    assert page.locator(".jp-Cell").count() == cells and page.locator(".jp-MarkdownCell").count() == 0


def test_no_error_in_the_console(lab):
    assert lab[2] == []
