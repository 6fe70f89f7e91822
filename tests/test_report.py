"The report page: synthetic run folder, escaping, missing and broken parts, and a real browser."
import json
import re
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from viewpoint_rosetta.benchmark import PAPER_HEADING, evaluate, precision_rows
from viewpoint_rosetta.clips import write_clips
from viewpoint_rosetta.report import write_report
from viewpoint_rosetta.views import clip_player, embedding_map, interval_plot, pair_grid, retrieval_grid, rst_path, spread_queries

NASTY = '<img src=x onerror="window.hacked=1">\'"</script><script>window.hacked=1</script>'
ACTIONS, ROOMS = 4, 3


def unit(z): return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def rows_of(z, ids): return np.ascontiguousarray(z.loc[ids])  # safetensors scrambles a transposed array


def write_video(path, shade, seconds):
    "A square that moves over a plain background, 16 fps, 64 x 64."
    with av.open(str(path), 'w') as box:
        stream = box.add_stream('libx264', rate=16, options={'preset': 'ultrafast'})
        stream.width = stream.height = 64
        stream.pix_fmt = 'yuv420p'
        for i in range(16 * seconds):
            frame = np.full((64, 64, 3), shade, np.uint8)
            x = i * 3 % 48
            frame[20:36, x:x + 16] = 255
            box.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
        box.mux(stream.encode())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "A complete run folder, made on the spot."
    folder, rows, rng = tmp_path_factory.mktemp('run'), [], np.random.default_rng(0)
    for r in range(2 * ROOMS):
        split = 'test' if r < ROOMS else 'train'
        for view in ('ego', 'exo'):
            write_video(folder / f'{r}-{view}.mp4', 40 + 30 * r, ACTIONS)
            rows += [dict(clip_id=f'{r}-{a}-{view}', video=f'{r}-{view}.mp4', start_s=float(a), end_s=a + 1.0, view=view, camera=view, take=f'take {r}',
                          narration=NASTY if a == 0 else f'C moves thing {a}', label=f'action {a}', object=f'thing {a}', skill=['good', 'bad'][r % 2],
                          participant=f'p{r}', scene=f'room {r}', split=split, sync_id=f'{r}-{a}' if split == 'test' else f'{view}{r}-{a}')
                     for a in range(ACTIONS)]
    clips = pd.DataFrame(rows)
    write_clips(clips, folder / 'clips.parquet')
    directions = rng.normal(size=(ACTIONS, 16))
    code = clips.label.str[-1].astype(int)
    z = {k: pd.DataFrame(unit(w * directions[code] + rng.normal(size=(len(clips), 16))), index=clips.clip_id) for k, w in (('before', 0), ('after', 3))}
    pd.concat([evaluate(lambda r, v=v: rows_of(v, r.clip_id), clips, m, seed, 'embedded world')
               for m, v in (('<i>frozen</i>', z['before']), ('ours', z['after'])) for seed in (0, 1)]).to_parquet(folder / 'bench.parquet')
    test, train = clips[clips.split == 'test'], clips[clips.split == 'train']
    ego, exo = train[train['view'] == 'ego'], train[train['view'] == 'exo']
    s = rows_of(z['after'], ego.clip_id) @ rows_of(z['after'], exo.clip_id).T
    pairs = pd.DataFrame(dict(ego=ego.clip_id.to_numpy(), exo=exo.clip_id.to_numpy()[s.argmax(1)], rank=0, score=s.max(1), visual=s.max(1), text=0.5))
    pairs.to_parquet(folder / 'pairs.parquet')
    precision_rows(pairs, clips, 'ours').to_parquet(folder / 'precision.parquet')
    pd.DataFrame([dict(translator=t, seed=0, n=12, r1=0.1, r5=0.4, median_rank=4.0, cosine=0.5) for t in ('rst', 'ridge', NASTY)]
                 ).to_parquet(folder / 'translator.parquet')
    test = test[test.label < 'action 2']  # 12 clips: below 15 the maps are PCA, which needs no compilation
    save_file({k: rows_of(v, test.clip_id) for k, v in z.items()}, folder / 'embeddings.safetensors')
    (folder / 'embeddings.json').write_text(json.dumps(dict(ids=test.clip_id.tolist())))
    far, near = test[test['view'] == 'exo'], test[test['view'] == 'ego'][:2]
    real = rows_of(z['after'], far.clip_id)
    save_file(dict(z_t=rng.normal(size=(2, 6, 16)).astype(np.float32), ridge=real[:2], identity=rows_of(z['after'], near.clip_id), exo=real),
              folder / 'path.safetensors')
    (folder / 'path.json').write_text(json.dumps(dict(ids=near.clip_id.tolist(), exo_ids=far.clip_id.tolist())))
    (folder / 'facts.json').write_text(json.dumps(dict(dataset='embedded world', seeds=[0, 1], timings=dict(train_s=12.5), note=NASTY)))
    pd.DataFrame([dict(clip_id='x', file='x.mp4', reason=NASTY)]).to_parquet(folder / 'problems.parquet')
    clips.attrs['root'] = str(folder)
    write_report(folder, folder / 'report.html')
    return folder, clips, z


def test_page_holds_every_part(run):
    folder, clips, z = run
    page = (folder / 'report.html').read_text(encoding='utf-8')
    assert len(page) < 12e6
    assert 'class="missing"' not in page and 'Could not be shown' not in page and 'class="broken"' not in page
    for id in ('results', 'chance', 'precision', 'translator', 'retrieval', 'pairs', 'map', 'path', 'facts', 'problems'):
        assert f'<section id="{id}"' in page and f'href="#{id}"' in page
    assert PAPER_HEADING in page and '52.68' in page and 'embedded world is simulated' in page
    assert page.count('<video ') >= 4 * 4 + 2 * 6
    first = r'(?s)asks · .*?([✓✗]) (?:hit|miss)'
    after, before = (re.findall(first, p) for p in page.split('<section id="retrieval"')[1].split('<section id="pairs"')[0].split('The same queries'))
    assert len(after) == len(before) == 4
    assert after.count('✓') == 4 > before.count('✓'), 'the trained vectors must find more than the untrained ones: rows and ids agree'


def test_input_text_is_escaped(run):
    folder, clips, z = run
    page = (folder / 'report.html').read_text(encoding='utf-8')
    assert 'window.hacked' in page, 'the nasty narration must be on the page for this test to mean anything'
    assert '<img src=x' not in page and '<script>window.hacked' not in page and '<i>frozen' not in page


def test_problems_name_files_and_not_places(tmp_path):
    "The page is sent to others: no folder of this machine is on it."
    run, videos = tmp_path / 'run', tmp_path / 'my videos'
    run.mkdir(), videos.mkdir()
    rows = [('takes/a.mp4', f'{videos}/takes/a.mp4: no such file'), (f'{run}/clips.csv', 'row 3: no start'),
            ('../x.mp4', f"video '../x.mp4' leads out of {videos}/takes to {tmp_path.parent}/x.mp4"), ('b.mp4', 'from 3.0 s to 2.0 s: a clip must end after it begins')]
    pd.DataFrame([dict(clip_id=f'c{n}', file=file, row=n, reason=reason) for n, (file, reason) in enumerate(rows)]).to_parquet(run / 'problems.parquet')
    (run / 'facts.json').write_text(json.dumps(dict(root=str(videos))))
    page = write_report(run, run / 'report.html').read_text(encoding='utf-8')
    part = page.split('<section id="problems"')[1].split('</section>')[0]
    assert str(tmp_path) not in part and str(tmp_path.parent) not in part
    assert '>takes/a.mp4: no such file<' in part and '>clips.csv<' in part and 'must end after it begins' in part and '…/x.mp4' in part


def test_missing_parts_are_named(tmp_path):
    out = write_report(tmp_path, tmp_path / 'page.html')
    page = out.read_text()
    assert page.count('class="missing"') == 9 and 'bench.parquet is missing' in page and len(page) < 50_000
    with pytest.raises(FileNotFoundError, match='nowhere'): write_report(tmp_path / 'nowhere', tmp_path / 'x.html')


def test_broken_part_costs_only_itself(tmp_path):
    (tmp_path / 'bench.parquet').write_text('no table at all')
    (tmp_path / 'facts.json').write_text('{"seed": 3, "root": "/disk/someone/videos", "settings": {"lr": 0.5}}')
    page = write_report(tmp_path, tmp_path / 'page.html').read_text()
    assert '/disk/someone' not in page and '…/videos' in page, 'a page tells the name of its folder, not the place'
    assert 'Could not be shown from bench.parquet' in page and '<td>seed</td>' in page and '<summary>settings</summary>' in page


def test_unreadable_clip_is_a_box(run):
    folder, clips, z = run
    bad = clips.assign(video='gone.mp4')
    bad.attrs = clips.attrs
    box = clip_player(bad, 0)
    assert '<video' not in box and 'gone.mp4' in box
    assert clip_player(clips, 3).startswith('<video src="data:video/mp4;base64,')


def test_pair_grid_orders_by_score(run):
    folder, clips, z = run
    pairs = pd.DataFrame(dict(ego=[f'3-{a}-ego' for a in range(4)], exo=[f'4-{a}-exo' for a in (0, 1, 2, 2)], score=[0.1, 0.9, 0.5, 0.3]))
    grid = pair_grid(pairs, clips, n=1)
    best, worst = grid.split('<h3>Worst')
    assert '3-1-ego' in best and '3-0-ego' in worst and '3-2-ego' not in grid
    assert '✓ same action' in grid and grid.count('<video') == 4
    assert '✗ action 3 / action 2' in pair_grid(pairs[3:], clips, n=1)
    assert '<video' not in pair_grid(pairs[:0], clips)


def test_retrieval_grid_marks_hits(run):
    folder, clips, z = run
    rows = clips[clips.split == 'test']
    ego, exo = rows[rows['view'] == 'ego'].reset_index(drop=True), rows[rows['view'] == 'exo'].reset_index(drop=True)
    code = ego.label.str[-1].astype(int).to_numpy()
    z_ego = z_exo = np.eye(ACTIONS, dtype=np.float32)[code]
    grid = retrieval_grid(z_ego, z_exo, ego, exo, clips, queries=1, k=3)
    assert grid.count('✓ hit') == 2 and grid.count('✗ miss') == 1, 'two other rooms hold the action, the third neighbour is wrong'
    assert grid.count('class="shot hit"') == 2 and grid.count('class="shot miss"') == 1
    assert spread_queries(np.eye(5), 9).tolist() == [0, 1, 2, 3, 4]


def test_maps(run):
    folder, clips, z = run
    rows = clips[clips.split == 'test'].reset_index(drop=True)
    few = rows[:10]
    fig = embedding_map({'a': rows_of(z['after'], few.clip_id)}, few)
    ego, exo = fig.data[1], fig.data[2]
    assert len(ego.x) + len(exo.x) == 10 and ego.marker.symbol != exo.marker.symbol
    assert all('<img' not in t for t in [*ego.text, *exo.text])
    line = np.random.default_rng(0).normal(size=(2, 5, 16))
    path = rst_path(line, rows_of(z['after'], few.clip_id), truth=[0, -1])
    assert len(path.data[1].x) == 5 and len(path.data[-1].x) == 1 and path.data[-1].name == 'true exo clip'
    assert 'aria-label="&lt;b&gt;"' in interval_plot(pd.DataFrame(dict(method=['m'], value=[0.5], lo=[0.4], hi=[0.6], chance=[0.1])), '<b>')


def test_in_a_real_browser(run, chromium):
    sync_playwright = pytest.importorskip('playwright.sync_api').sync_playwright
    folder, clips, z = run
    errors, requests = [], []
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=1280, height=900))
        page.on('console', lambda m: errors.append(m.text) if m.type == 'error' else None)
        page.on('pageerror', lambda e: errors.append(str(e)))
        page.on('request', lambda r: requests.append(r.url) if not r.url.startswith(('data:', 'blob:')) else None)
        page.goto((folder / 'report.html').as_uri())
        video = page.locator('video').first
        video.scroll_into_view_if_needed()
        page.wait_for_function("v => v.currentTime > 0", arg=video.element_handle(), timeout=10_000)
        first = video.evaluate('v => v.currentTime')
        page.wait_for_function("([v, t]) => v.currentTime !== t", arg=[video.element_handle(), first], timeout=10_000)
        assert page.evaluate("[...document.querySelectorAll('video')].every(v => v.videoWidth > 0)"), 'a clip does not decode'
        video.press('Enter')
        assert video.evaluate('v => v.paused'), 'Enter must stop the focused clip'
        assert page.locator('table').count() >= 6
        for id in ('map', 'path'): page.locator(f'#{id} .main-svg').first.wait_for(timeout=10_000, state='attached')
        assert page.evaluate("[...document.querySelectorAll('[role=img],svg.plot')].every(e => e.getAttribute('aria-label'))")
        assert page.evaluate('window.hacked') is None, 'input text ran as code'
        assert page.evaluate('document.documentElement.scrollWidth <= innerWidth'), 'the page scrolls sideways at 1280 px'
        light = page.evaluate('getComputedStyle(document.body).backgroundColor')
        page.emulate_media(color_scheme='dark')
        assert page.evaluate('getComputedStyle(document.body).backgroundColor') != light
        browser.close()
    assert not errors, errors
    assert len(requests) == 1 and requests[0].startswith('file:'), requests
