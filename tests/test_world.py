"""The embedded world: the same seed gives the same world, nothing leaks, stopping loses nothing, errors say what to do."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children

import numpy as np
import pandas as pd
import pytest

from viewpoint_rosetta.actions import ACTIONS, CHATTER, NOUNLESS, VERBLESS, NarrationSettings, load_task, narrate, third_person
from viewpoint_rosetta.clips import check_splits, pool, read_clips
from viewpoint_rosetta.person import Person, stream
from viewpoint_rosetta.stage import StageSettings, episode, perform
from viewpoint_rosetta.video import frame_times, probe, read_frames, video_path
from viewpoint_rosetta.world import POOLS, WorldSettings, plan, render_take, render_world, shipped, sized_world, small_world

pytestmark = pytest.mark.filterwarnings("ignore:Constant")  # Meta-World about its own policies
SMALL_STAGE = StageSettings(size=48)
TINY = WorldSettings(paired=1, ego=1, exo=1, val=0, test=0, train_actions=2, take_actions=1, size=32, supersample=1, frames=4)
TOLERANCE = 4  # mean grey levels of 255 that h264 at the shipped quality, or another CPU's rounding, may cost


@pytest.fixture(scope="module")
def clips():
    return read_clips(shipped())


@pytest.fixture(scope="module", autouse=True)
def renderer():
    "Where nothing can be rendered these tests cannot run; everything else of the project can."
    try:
        load_task("reach")
    except RuntimeError as error:
        pytest.skip(str(error))


# ---- the plan

@pytest.mark.parametrize("s", [small_world(), WorldSettings(), WorldSettings(seed=7, ego=80, exo=120), sized_world(300), sized_world(6000)],
                         ids=["shipped", "full", "another", "300", "6000"])
def test_held_out_rooms_host_every_action_and_pools_share_nobody(s):
    p = plan(s)
    assert set(p.pool) == set(POOLS)
    assert (p[p.pool.isin(["val", "test"])].groupby("scene").action.apply(sorted).map(tuple) == tuple(sorted(ACTIONS.index))).all()
    for who in ("participant", "scene", "take"):
        assert (p.groupby(who).pool.nunique() == 1).all(), who
    assert (p.groupby("take").size() <= s.take_actions).all() and p.seed.is_unique
    assert (p.groupby("scene").action.nunique() >= 25).all(), "a training room says little about the action"


def test_the_shipped_table_is_the_plan(clips):
    "Whoever changes a random stream changes everybody's data: this fails first."
    p = plan(small_world()).assign(sync=lambda d: d["take"] + "_" + d.order.map("{:02d}".format)).set_index("sync")
    rows = p.loc[clips.clip_id.str.rsplit("_", n=1).str[0]]
    for ours, theirs in dict(action="label", participant="participant", scene="scene", skill="skill", take="take").items():
        assert (rows[ours].to_numpy() == clips[theirs].to_numpy()).all(), theirs
    assert set(p.index) == set(clips.clip_id.str.rsplit("_", n=1).str[0])


def test_the_shipped_pools_are_disjoint(clips):
    check_splits(clips)
    pools = {name: pool(clips, name) for name in POOLS}
    assert sum(map(len, pools.values())) == len(clips) and min(map(len, pools.values())) > 0
    for column in ("participant", "scene", "take", "video"):
        owners = [set(d[column]) for d in pools.values()]
        assert sum(map(len, owners)) == len(set.union(*owners)), f"two pools share a {column}"
    assert set(pools["ego"].view) == {"ego"} and set(pools["exo"].view) == {"exo"}
    assert pools["ego"].sync_id.isna().all() and pools["paired"].sync_id.notna().all()


# ---- length says nothing about skill

def test_every_window_has_the_same_length_and_stride():
    s = StageSettings()
    for k, action in enumerate(["drawer-open", "reach", "basketball", "push-back"]):
        for skill in ("good", "bad"):
            window = perform(action, k, Person(f"0/{k}"), skill, s).window(s)
            assert len(window) == s.frames and (np.diff(window) == s.stride).all(), (action, skill)


def test_shipped_clips_have_one_length_whatever_the_skill(clips):
    assert set(np.round(clips.end_s - clips.start_s, 9)) == {1.0}
    assert (clips.phases.str.count(",") + 1 == 16).all()
    for video in clips.video.drop_duplicates().iloc[::30]:
        info = probe(video_path(clips, video))
        assert info["frames"] == 16 * (clips.video == video).sum() and info["width"] == info["height"] == 128


def test_skill_is_real(clips):
    won = clips.drop_duplicates(["take", "start_s"]).groupby("skill").success.mean()
    assert won["good"] > .7 and won["bad"] < .4


# ---- narrations

OFF = dict(ego_wrong=0, ego_no_verb=0, ego_no_noun=0, exo_wrong=0, exo_chatter=0, exo_no_verb=0, exo_no_noun=0)
TAKE = ["drawer-open", "hammer", "soccer"]  # three actions that share no word


@pytest.mark.parametrize("rate, view, failed", [
    ("ego_no_verb", "ego", lambda t: any(v in t for v in VERBLESS)),
    ("ego_no_noun", "ego", lambda t: any(t.endswith(n) for n in NOUNLESS)),
    ("ego_wrong", "ego", lambda t: "nail" not in t),
    ("exo_no_verb", "exo", lambda t: not any(f" {v} " in t for v in ("hammer", "knock", "drive"))),
    ("exo_no_noun", "exo", lambda t: not any(f" {n}" in t for n in ("nail", "screw"))),
    ("exo_wrong", "exo", lambda t: not any(f" {n}" in t for n in ("nail", "screw"))),
    ("exo_chatter", "exo", lambda t: t in CHATTER)])
@pytest.mark.parametrize("p", [.15, .5])
def test_narrations_fail_as_often_as_set(rate, view, failed, p):
    n, rng = 2000, stream("test", rate, int(100 * p))
    s = NarrationSettings(**{**OFF, rate: p, **({"exo_wrong": 1} if rate == "exo_chatter" else {})})
    share = np.mean([failed(narrate(TAKE, 1, view, rng, s)) for _ in range(n)])
    assert abs(share - p) < 4 * (p * (1 - p) / n)**.5
    assert not any(failed(narrate(TAKE, 1, view, rng, NarrationSettings(**OFF))) for _ in range(50))


def test_a_misplaced_sentence_belongs_to_a_neighbour():
    s, rng = NarrationSettings(**{**OFF, "exo_wrong": 1, "ego_wrong": 1}), stream("test", "neighbour")
    said = {view: " | ".join(narrate(TAKE, 1, view, rng, s) for _ in range(60)) for view in ("ego", "exo")}
    for text in said.values():
        assert ("drawer" in text or "tray" in text) and "football" in text and "nail" not in text
    assert "nail" in narrate(["hammer"], 0, "ego", rng, s)  # nowhere to slip to


def test_shipped_narrations_are_drawn_from_the_plan(clips):
    "So other settings can be tried without rendering, and no sentence depends on a picture."
    takes = plan(small_world()).groupby("take").action.agg(list)
    for row in clips.sample(80, random_state=0).itertuples():
        i = int(row.clip_id.split("_")[-2])
        assert row.narration == narrate(takes[row.take], i, row.view, stream("say", 1, row.take, i, row.view), NarrationSettings())


def test_verbs_agree_with_their_subject():
    assert [third_person(v) for v in ("push", "press down", "open")] == ["pushes", "presses down", "opens"]


# ---- the same seed, the same frames

def digest(films):
    return {c: hashlib.sha256(f.rgb.tobytes() + f.pose.tobytes()).hexdigest() for c, f in films.items()}


def test_same_seed_same_bytes_whatever_came_between():
    def one(**changes):
        return digest(episode(**{**dict(action="coffee-push", seed=3, participant="p004", scene="r002", hue=4, s=SMALL_STAGE), **changes})[1])
    first = one()
    assert set(first) == {"ego", "exo1", "exo2"}
    others = [one(scene="r009", hue=1), one(skill="bad"), one(action="hammer"), one(seed=4), one(participant="p005")]
    assert one() == first
    assert all(o["ego"] != first["ego"] and o["exo1"] != first["exo1"] for o in others)


def test_another_process_renders_the_same():
    code = ("import hashlib; from viewpoint_rosetta.stage import *; f = episode('reach', 2, s=StageSettings(size=48))[1]; "
            "print(hashlib.sha256(f['exo2'].rgb.tobytes()).hexdigest())")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(episode("reach", 2, s=SMALL_STAGE)[1]["exo2"].rgb.tobytes()).hexdigest()


def test_a_shipped_take_is_rendered_again(clips, tmp_path):
    "The same bytes on the CPU it was rendered on; elsewhere the same frames within the tolerance, and the same rows anywhere."
    s = small_world()
    stored = json.loads((shipped().parent / "world.json").read_text())
    assert stored == json.loads(json.dumps({**s.__dict__, "narration": s.narration.__dict__})), "world.json and small_world() differ"
    episodes = plan(s).query("take == 'ego_003_0'").to_dict("records")
    rows = render_take(episodes, s, tmp_path)
    theirs = clips[clips["take"] == "ego_003_0"].reset_index(drop=True)
    for column in ("clip_id", "narration", "label", "object", "skill", "phases", "success", "start_s", "end_s"):
        assert rows[column].tolist() == theirs[column].tolist(), column
    name = theirs.video[0]
    here, there = tmp_path / name, video_path(clips, name)
    if here.read_bytes() != there.read_bytes():
        times = np.arange(16 * len(episodes)) / s.fps + 1 / 64
        a, b = (read_frames(path, times).astype(np.int16) for path in (here, there))
        assert np.abs(a - b).mean() < TOLERANCE
        assert np.abs(a - np.roll(b, 16, 0)).mean() > 3 * TOLERANCE, "the tolerance would not notice another clip"


def test_shipped_frames_show_what_is_rendered(clips):
    row = clips[clips.clip_id == "test_001_0_03_exo1"].iloc[0]
    e = plan(small_world()).query("take == 'test_001_0' and order == 3").iloc[0].drop("order").to_dict()
    stored = read_frames(video_path(clips, row.video), frame_times(row.start_s, row.end_s, 16)).astype(float)
    fresh, other = (episode(**{**e, "scene": r}, s=small_world())[1]["exo1"].rgb for r in (e["scene"], "r000"))
    assert np.abs(fresh - stored).mean() < TOLERANCE < 3 * TOLERANCE < np.abs(other - stored).mean()


# ---- geometry

@pytest.fixture(scope="module")
def filmed():
    return episode("drawer-open", seed=5, participant="p007", scene="r001", s=StageSettings(size=96, frames=4, stride=12), depth=True)


def camera(f, t):
    n = f.rgb.shape[1]
    return f.pose[t][:3, :3], f.pose[t][:3, 3], n, n / 2 / np.tan(np.deg2rad(f.fov) / 2)


def project(points, f, t):
    "Distance along the axis of points (N, 3), what the camera measured there, and which fall into its picture."
    R, at, n, focal = camera(f, t)
    x, y, z = ((points - at) @ R).T
    u, v = (np.round(k - .25).astype(int) for k in (n / 2 + focal * x / -z, n / 2 - focal * y / -z))
    inside = (z < -.1) & (u >= 0) & (u < n) & (v >= 0) & (v < n)
    return -z[inside], f.depth[t][v[inside], u[inside]]


def world_points(f, t):
    R, at, n, focal = camera(f, t)
    v, u = np.mgrid[:n, :n] + .25
    rays = np.stack([(u - n / 2) / focal, (n / 2 - v) / focal, -np.ones_like(u)], -1)
    return ((rays * f.depth[t][..., None]) @ R.T + at).reshape(-1, 3)


@pytest.mark.parametrize("source, target", [("ego", "exo1"), ("ego", "exo2"), ("exo1", "exo2")])
def test_depth_and_poses_agree_between_cameras(filmed, source, target):
    films = filmed[1]
    far, measured = project(world_points(films[source], 2), films[target], 2)
    assert len(far) > 1000
    assert (measured > far + .05).mean() < .04, "nobody looks through a surface"
    agree = (np.abs(far - measured) < .02).mean()
    lifted = films[target].pose.copy()
    lifted[:, 2, 3] += .1
    off, there = project(world_points(films[source], 2), replace(films[target], pose=lifted), 2)
    assert agree > .5 and (np.abs(off - there) < .02).mean() < .5 * agree, "a camera 10 cm too high must be noticed"


def test_depth_shows_the_person_and_the_walls(filmed):
    performance, films = filmed
    s = StageSettings(size=96, frames=4, stride=12)
    for t, step in enumerate(performance.window(s)):
        pose = performance.bodies[step][0]
        for name in ("exo1", "exo2"):
            far, measured = project(pose.head[None], films[name], t)
            assert len(far) == 0 or 0 < far[0] - measured[0] < .2, "in front of the middle of the head is the head"
    assert max(f.depth.max() for f in films.values()) < 8 and min(f.depth.min() for f in films.values()) > .01


# ---- a whole world: stopping, failing, going on

def test_geometry_is_stored_in_millimetres(tmp_path):
    take = plan(TINY).query("pool == 'exo'").to_dict("records")[:1]
    render_take(take, TINY, tmp_path, depth=True)
    z = np.load(next((tmp_path / "geometry").glob("*.npz")))
    assert z["pose"].shape == (4, 4, 4) and z["depth_mm"].shape == (4, 32, 32) and 300 < np.median(z["depth_mm"]) < 4000
    assert 40 < z["fov"] < 55


def test_depth_may_be_asked_for_later(tmp_path):
    s = WorldSettings(paired=0, ego=1, exo=0, val=0, test=0, train_actions=1, take_actions=1, size=32, supersample=1, frames=2)
    for depth in (False, True): list(render_world(s, tmp_path, 1, depth, progress=False))
    assert [p.name for p in (tmp_path / "geometry").iterdir()] == ["ego_000_0_ego.npz"]


def by_script(tmp_path, out, workers):
    "A process that renders TINY and says which takes are finished."
    script = tmp_path / "render.py"
    script.write_text("import sys\nsys.path[:0] = %r\nfrom viewpoint_rosetta.world import *\nif __name__ == '__main__':\n"
                      "    s = WorldSettings(paired=1, ego=1, exo=1, val=0, test=0, train_actions=2, take_actions=1, size=32, "
                      "supersample=1, frames=4)\n    for take in render_world(s, sys.argv[1], int(sys.argv[2]), progress=False): print(take, flush=True)\n"
                      % [p for p in sys.path if p])
    return subprocess.Popen([sys.executable, str(script), str(out), str(workers)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)


def stamps(out):
    return {p.name: p.stat().st_mtime_ns for p in (out / "videos").glob("[!.]*.mp4")}


def test_killed_and_run_again_renders_only_the_rest(tmp_path):
    out = tmp_path / "out"
    process = by_script(tmp_path, out, 1)
    first = process.stdout.readline().strip()
    process.kill()
    process.wait()
    assert first == "paired_000_0" and (out / "takes" / f"{first}.json").exists() and not (out / "clips.parquet").exists()
    (out / "videos" / ".paired_000_1_ego.tmp-1-abc.mp4").write_bytes(b"half a video")  # what a kill may leave
    (out / "takes" / ".paired_000_1.tmp-1-abc.json").write_text("{")
    lost = out / "videos" / "paired_000_0_ego.mp4"
    before = stamps(out)
    assert list(render_world(TINY, out, 1, progress=False)) == [f"{p}_000_{i}" for p in ("paired", "ego", "exo") for i in range(2)]
    finished = {name: t for name, t in before.items() if name.startswith(first)}
    assert len(finished) == 3 and finished.items() <= stamps(out).items(), "a finished take was rendered again"
    table = read_clips(out / "clips.parquet")
    assert len(table) == 2 * 3 + 2 + 2 and all(video_path(table, v).exists() for v in table.video)
    lost.unlink()
    assert list(render_world(TINY, out, 1, progress=False)) and lost.exists(), "a missing video is rendered again"
    unchanged = (out / "clips.parquet").stat()
    other = tmp_path / "other"
    list(render_world(TINY, other, 1, progress=False))
    assert {p.name: p.read_bytes() for p in (other / "videos").iterdir()} == {
        p.name: p.read_bytes() for p in (out / "videos").glob("[!.]*")}, "in pieces or at once: the same bytes"
    assert unchanged.st_size == (other / "clips.parquet").stat().st_size


def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(tmp_path):
    out = tmp_path / "out"
    process = by_script(tmp_path, out, 2)
    first = process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)  # to the parent alone, as a supervisor would
    _, told = process.communicate(timeout=30)
    assert process.returncode != 0 and "KeyboardInterrupt" in told
    assert (out / "takes" / f"{first}.json").exists() and not (out / "clips.parquet").exists()
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("workers outlive the one who started them")


def test_a_dead_worker_is_told_with_its_take(tmp_path):
    before = set(active_children())
    world = render_world(TINY, tmp_path, 2, progress=False)
    first = next(world)
    for child in set(active_children()) - before:
        child.kill()
    with pytest.raises(RuntimeError, match=r"worker process died while rendering take (paired|ego|exo)_000_\d.*run again") as caught:
        list(world)
    assert first not in str(caught.value).split("rendering")[1].split(";")[0].split()


def test_a_failing_take_is_named(tmp_path, monkeypatch):
    import viewpoint_rosetta.world as w
    monkeypatch.setattr(w, "episode", lambda **_: 1 / 0)
    with pytest.raises(RuntimeError, match="take paired_000_0: ZeroDivisionError"):
        list(render_world(TINY, tmp_path, 1, progress=False))


def test_another_world_is_not_mixed_in(tmp_path):
    (tmp_path / "world.json").write_text(json.dumps({**json.loads((shipped().parent / "world.json").read_text()), "size": 64}))
    with pytest.raises(ValueError, match=r"world\.json: .*other settings \(size differ\).*--out"):
        next(render_world(small_world(), tmp_path, 1, progress=False))


def test_unwritable_output_is_told_before_work_begins(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    start = time.process_time()
    with pytest.raises(OSError, match=r"cannot write .*world\.json.*choose a folder"):
        next(render_world(TINY, tmp_path / "file" / "out", 1, progress=False))
    assert time.process_time() - start < 1


def test_no_graphics_says_what_to_install():
    code = "from viewpoint_rosetta.actions import load_task; load_task('reach')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "99"})
    told = [line for line in done.stderr.splitlines() if line.startswith("RuntimeError: MuJoCo cannot render here (MUJOCO_GL=egl")]
    assert done.returncode and len(told) == 1 and "libegl1 libegl-mesa0 libgl1-mesa-dri" in told[0]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="1, 2 or 3 exo cameras"):
        WorldSettings(cameras=4)
    with pytest.raises(ValueError, match="no action 'drawer-opn'.*drawer-open"):
        load_task("drawer-opn")


def test_table_of_tiny_world_has_the_truth_beside_the_words():
    rows = pd.DataFrame(plan(TINY))
    assert {"action", "skill", "hue"} <= set(rows) and rows.skill.isin(["good", "bad"]).all()
