"""Ego-Exo4D, Ego4D and LaViLa's list as clip tables: miniatures by hand, in the published forms and with the traps of the real files."""
import copy
import gzip
import json
import os
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest

from viewpoint_rosetta.clips import check_splits, pool, read_clips, sync_pairs
from viewpoint_rosetta.datasets import ego4d, egoexo4d, lavila
from viewpoint_rosetta.datasets.annotations import AnnotationError


def put(root, name, what):
    "Write a file of the data set; text as it is, anything else as JSON."
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(what if isinstance(what, str) else json.dumps(what))


# ---- Ego-Exo4D

def take(name, ego=("aria01",), exo=("cam01", "cam02"), person=1, room=1, task="Cooking", seconds=100., **changed):
    streams = {e: {s: dict(relative_path=f"frame_aligned_videos/{e}_{s}.mp4") for s in ("1201-1", "211-1", "214-1")} for e in ego}
    streams |= {c: {"0": dict(relative_path=f"frame_aligned_videos/{c}.mp4")} for c in exo}
    cameras = [dict(cam_id=c, is_ego=c in ego) for c in (*exo, *ego)]
    return dict(root_dir=f"takes/{name}", take_name=name, take_uid=f"u-{name}", participant_uid=person, physical_setting_uid=room, best_exo=None,
                parent_task_name=task, duration_sec=seconds, capture=dict(cameras=cameras), frame_aligned_videos=streams) | changed


def says(t, text="C stirs", **changed):
    return dict(text=text, timestamp=t, narration_subject="C", ego_visible=True, unsure=False, best_exo=dict(cam_id="cam01", raw_cam_id="gp01")) | changed


def telling(*descriptions, rejected=False):
    return dict(annotation_uid="a", annotator_id="b", rejected=rejected, reject_reason="noise" if rejected else None, descriptions=list(descriptions))


def step(name, start, end, number=5, text="Stir"):
    return dict(take_uid=f"u-{name}", take_name=name, start_time=start, end_time=end, step_unique_id=number, label_id=0, step_name=text,
                segment_name_list=[], ego_segment_name="x")


def verdict(name, good=(), tips=()):
    moments = lambda times: [dict(video_time=t, list="['nice']", expert_uid="e", video_name=name) for t in times]
    return dict(task_id=1, task_name="Make tea", scenario_name="Cooking", take_uid=f"u-{name}", good_executions=moments(good), tips_for_improvement=moments(tips))


FILES = {
    "takes.json": [take("cook_01"), take("cook_02", person=2, room=2), take("cook_03", person=3, room=3, ego=("aria02",), exo=("cam01", "cam02", "cam04"))],
    "annotations/atomic_descriptions_train.json": dict(annotations={"u-cook_01": [telling(says(10., "C cuts"), says(20.), says(40., "C eats"))],
                                                                    "u-cook_02": [telling(says(5., "C sits"), says(15., "C stands"))]}),
    "annotations/keystep_segment_train.json": dict(date="d", description="d", splits="train", segments=[step("cook_01", 1., 4.), step("cook_02", 2., 9., 6, "Cut")]),
    "annotations/keystep_segment_val.json": dict(date="d", description="d", splits="val", segments=[step("cook_03", 3., 8.5)]),
    "annotations/proficiency_demonstration_train.json": [verdict("cook_01", [30.], [50., 60.])],
    "annotations/proficiency_demonstration_val.json": [verdict("cook_03", [30.], [50.])],
    "annotations/proficiency_demonstrator_train.json": [dict(take_uid="u-cook_01", proficiency_score="Novice")],
    "annotations/proficiency_demonstrator_val.json": [dict(take_uid="u-cook_03", proficiency_score="Late Expert")],
}
ATOMIC, SEGMENTS, SKILL = (f"annotations/{n}_train.json" for n in ("atomic_descriptions", "keystep_segment", "proficiency_demonstration"))


@pytest.fixture
def mini(tmp_path):
    "A function that writes the miniature, with some files changed by a function or replaced, and returns its folder."
    def build(**changes):
        files = copy.deepcopy(FILES)
        for name, change in changes.items():
            name = dict(takes="takes.json", atomic=ATOMIC, segments=SEGMENTS, skill=SKILL).get(name, name)
            files[name] = change(files[name]) or files[name] if callable(change) else change
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        for name, what in files.items():
            if what is not None: put(tmp_path / "set", name, what)
        return tmp_path / "set"
    return build


def first(files):
    "The descriptions of the first telling of cook_01."
    return files["annotations"]["u-cook_01"][0]["descriptions"]


def reasons(found) -> str: return "\n".join(found.problems.reason)


def test_the_whole_miniature(mini, tmp_path):
    found = egoexo4d.clips(mini())
    c = found.clips
    assert found.problems.empty and len(c) == (5 + 2 + 3) * 3 + (1 + 2) * 4
    assert c.groupby("sync_id")["view"].value_counts().unstack().drop_duplicates().sort_values("exo").values.tolist() == [[1, 2], [1, 3]]
    assert len(sync_pairs(c)) == 10 * 2 + 3 * 3
    assert set(c.split[c["take"] == "cook_03"]) == {"test"} and set(c.split[c["take"] != "cook_03"]) == {"train"}
    assert set(c.label.dropna()) == {"5 Stir", "6 Cut"} and set(c.camera[c["view"] == "ego"]) == {"aria01", "aria02"}
    assert c.video.str.contains("_1201-1|_211-1").sum() == 0, "neither the side cameras nor the eyes"
    assert c.groupby("part").proficiency.nunique().to_dict() == dict(keysteps=0, narrations=0, proficiency=2)
    assert not c.narration.str.contains("nice").any(), "an expert's words give the skill away"
    assert c.set_index("clip_id").loc["egoexo4d:cook_01:p0:cam01", ["start_s", "end_s", "skill"]].tolist() == [28., 32., "good"]
    assert set(found.counts.found) >= {10, 4, 1} and found.counts.published.isna().all(), "all scenarios together compare with nothing published"
    found.write(tmp_path / "out")
    again = read_clips(tmp_path / "out" / "clips.parquet", root=mini())
    pd.testing.assert_frame_equal(again.astype(dict(ego_visible="boolean")), c)
    check_splits(again)
    assert len(pool(again, "paired")) == 30


def test_windows_follow_the_narrator(mini):
    c = egoexo4d.clips(mini(), parts=("narrations",)).clips
    width = c.eval("end_s - start_s").round(3).groupby(c["take"]).unique().map(list).to_dict()
    assert width == dict(cook_01=[1.2], cook_02=[.8]), "mean distances 15 and 10, their mean 12.5"


def test_flags_and_names_of_every_version_tell_the_same(mini):
    plain = egoexo4d.clips(mini(), parts=("narrations",)).clips
    for true in ("1", 1, "true", "True", 1.0):
        def words(f):
            for d in first(f): d.update(ego_visible=true, unsure="0", subject=d.pop("narration_subject"))
        assert egoexo4d.clips(mini(atomic=words), parts=("narrations",)).clips.equals(plain), true
    extra = mini(takes=lambda f: [t | dict(task_id=7, is_dropped=False) for t in f])
    assert egoexo4d.clips(extra, parts=("narrations",)).clips.equals(plain)
    flat = mini(takes=lambda f: [{**{k: v for k, v in t.items() if k != "capture"}, "cameras": t["capture"]["cameras"]} for t in f])
    assert egoexo4d.clips(flat, parts=("narrations",)).clips.equals(plain)


@pytest.mark.parametrize("change, told", [
    (dict(ego_visible="maybe"), "ego_visible 'maybe' or unsure False is neither true nor false"), (dict(unsure="x"), "unsure 'x' is neither"),
    (dict(unsure="1"), "its annotator was unsure"), (dict(timestamp=None), "has no time"), (dict(timestamp="soon"), "has no time"),
    (dict(timestamp=101.), "beyond the end of its take at 100.0 s"), (dict(text=None), "has no text"), (dict(text="C cuts", timestamp=10.), "told twice")])
def test_a_description_that_cannot_be_used(mini, change, told):
    found = egoexo4d.clips(mini(atomic=lambda f: first(f)[1].update(change)), parts=("narrations",))
    assert told in reasons(found) and len(found.problems) == 1 and len(found.clips) == 12
    problem = found.problems.iloc[0]
    assert (problem.file, problem.row, problem.clip_id) == ("atomic_descriptions_train.json", 2, "egoexo4d:cook_01:n1")


def test_rejected_unsure_and_unseen_are_options(mini):
    def mark(f):
        f["annotations"]["u-cook_01"].append(telling(says(11., "C sings"), says(12., "C hums"), rejected=True))
        first(f)[0]["unsure"], first(f)[1]["ego_visible"] = 1, "0"
    root = mini(atomic=mark)
    ids = {k: set(egoexo4d.clips(root, parts=("narrations",), **{k: True} if k else {}).clips.sync_id) for k in ("", "rejected", "unsure", "visible")}
    assert ids["rejected"] - ids[""] == {"egoexo4d:cook_01:n3", "egoexo4d:cook_01:n4"} and ids["unsure"] - ids[""] == {"egoexo4d:cook_01:n0"}
    assert ids[""] - ids["visible"] == {"egoexo4d:cook_01:n1"}
    assert reasons(egoexo4d.clips(root, parts=("narrations",))).count("rejected by its reviewer: noise") == 2


def test_rejected_tellings_do_not_bend_the_windows(mini):
    def noise(f): f["annotations"]["u-cook_01"].append(telling(says(1.), says(99., "C ends"), rejected=True))
    plain = egoexo4d.clips(mini(), parts=("narrations",)).clips
    assert egoexo4d.clips(mini(atomic=noise), parts=("narrations",)).clips.equals(plain)


def test_each_annotator_has_a_pace_of_their_own(mini):
    def second(f): f["annotations"]["u-cook_01"].append(telling(says(12., "C hums"), says(17., "C sings")))
    c = egoexo4d.clips(mini(atomic=second), parts=("narrations",)).clips
    assert c[c["take"] == "cook_01"].drop_duplicates("sync_id").eval("end_s - start_s").tolist() == pytest.approx([1.5] * 3 + [.5] * 2), "15, 5 and 10; mean 10"


def test_best_camera(mini):
    best = egoexo4d.clips(mini(), parts=("narrations",), cameras="best").clips
    assert set(best.camera[best["view"] == "exo"]) == {"cam01"} and len(best) == 10
    def unknown(f): first(f)[0]["best_exo"], first(f)[1]["best_exo"]["cam_id"] = None, "cam09"
    found = egoexo4d.clips(mini(atomic=unknown), parts=("narrations",), cameras="best")
    assert len(found.clips) == 6 and reasons(found).count("best_exo is null or no camera of the take") == 2
    own = egoexo4d.clips(mini(atomic=unknown, takes=lambda f: [t | dict(best_exo="cam02") for t in f]), parts=("narrations",), cameras="best").clips
    assert set(own.camera[own.sync_id == "egoexo4d:cook_01:n0"]) == {"aria01", "cam02"}, "the take's best where the description has none"
    assert len(egoexo4d.clips(mini(atomic=unknown), parts=("narrations",)).clips) == 15, "with all cameras the choice is not needed"


@pytest.mark.parametrize("change, told, left", [
    (dict(ego=()), "the take has exo video only", 6), (dict(exo=()), "the take has ego video only", 6), (dict(ego=(), exo=()), "the take has no video only", 6)])
def test_takes_without_a_view(mini, change, told, left):
    found = egoexo4d.clips(mini(takes=lambda f: [take("cook_01", **change), *f[1:]]), parts=("narrations",))
    assert told in reasons(found) and len(found.clips) == left and "its 3 annotated moments" in reasons(found)
    assert found.problems[["clip_id", "file", "row"]].values.tolist() == [["cook_01", "takes.json", 1]]


def test_entries_of_takes_that_are_none(mini):
    root = mini(takes=lambda f: [f[0], f[0], "cook_09", {"take_name": "cook_10"}, *f[1:]])
    found = egoexo4d.clips(root, parts=("narrations",))
    assert len(found.clips) == 15 and found.problems.row.tolist() == [3, 4, 2] and "listed twice" in reasons(found)
    assert reasons(found).count("cannot be read as a take") == 2


def test_unknown_takes_are_told_each(mini):
    found = egoexo4d.clips(mini(takes=lambda f: f[1:]), parts=("narrations",))
    assert reasons(found).count("take u-cook_01 is not in takes.json: the files are of different versions") == 3
    with pytest.raises(AnnotationError, match="no usable clip among 5 rows.*different versions"):
        egoexo4d.clips(mini(takes=lambda f: [t | dict(take_uid="other-" + t["take_uid"]) for t in f]), parts=("narrations",))


BROKEN = {
    "docs' sample, which is no JSON": (dict(takes='[{"take_name": "x", ...}]'), r"takes\.json: is no whole JSON file.*sample printed in the documentation is not valid"),
    "not a list": (dict(takes={"takes": []}), "expected a JSON list at the top, found a dict"),
    "no take": (dict(takes=[1, 2]), "none of 2 entries is a take"),
    "no takes.json": (dict(takes=None), "no takes.json.*Give the folder into which"),
    "no atomic file": (dict(atomic=None), "no atomic_descriptions_train.json.*leave out the part"),
    "atomic of another version": (dict(atomic={"u-cook_01": []}), "expected the keys 'annotations'"),
    "atomic as a list": (dict(atomic={"annotations": [1]}), "not built as expected.*another version"),
    "atomic without descriptions": (dict(atomic={"annotations": {"u-cook_01": [telling()]}}), "no description in it"),
    "keysteps of val as train": (dict(segments=FILES["annotations/keystep_segment_val.json"]), "says that it is of the split 'val', 'train' is expected"),
    "keysteps of test as train": (dict(segments=FILES[SEGMENTS] | dict(splits=["test"])), "split 'test'.*answers of test are not published"),
    "keysteps without segments": (dict(segments=dict(date="d", taxonomy={})), "no segments in it, found 'date', 'taxonomy'"),
    "keysteps as a list": (dict(segments=[]), "expected a JSON dict"),
    "a copy as the other split": ({"annotations/keystep_segment_val.json": FILES[SEGMENTS] | dict(splits="val")}, "2 takes, such as u-cook_01, are in files of train and of val"),
    "skill of test": (dict(skill=[{k: v for k, v in verdict("cook_01").items() if k not in ("good_executions", "tips_for_improvement")}]), "answers of test are not published"),
    "skill as a dict": (dict(skill={"annotations": []}), "expected a JSON list"),
    "levels as verdicts": (dict(skill=[dict(take_uid="u-cook_01", proficiency_score="Novice")]), "demonstrator files hold levels only"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_fit(mini, name):
    changes, told = BROKEN[name]
    with pytest.raises(AnnotationError, match=f"(?s){told}") as caught: egoexo4d.clips(mini(**changes))
    assert "set" in str(caught.value), "the message names the file or the folder"


def test_keysteps_without_a_label_or_with_a_rare_one(mini):
    def bare(f): del f["segments"][0]["step_unique_id"], f["segments"][0]["step_name"]; f.pop("splits")
    found = egoexo4d.clips(mini(segments=bare), parts=("keysteps",))
    assert "has no step_unique_id or step_name" in reasons(found) and len(found.clips) == 3 + 4
    found = egoexo4d.clips(mini(**{"annotations/label_mapping.csv": "label_id,step_unique_id,step_name,scenario_name\n0,5,Stir,cooking\n"}), parts=("keysteps",))
    assert reasons(found) == "keystep 6 Cut is not in label_mapping.csv, too rare for it" and found.clips.label.nunique() == 1
    def cut(f): f["segments"][0].update(end_time=101.5); f["segments"][1].update(end_time=1.)
    found = egoexo4d.clips(mini(segments=cut), parts=("keysteps",))
    assert "ends at 101.5 s, beyond the end of its take at 100.0 s" in reasons(found) and "ends at 1.0 s, not after its start at 2.0 s" in reasons(found) and len(found.problems) == 2


def test_both_keystep_files_give_the_same_table(mini):
    whole = {}
    for split, name in (("train", SEGMENTS), ("val", "annotations/keystep_segment_val.json")):
        takes = {}
        for s in FILES[name]["segments"]: takes.setdefault(s["take_uid"], dict(segments=[]))["segments"].append({k: v for k, v in s.items() if k != "take_uid"})
        whole |= {f"annotations/keystep_{split}.json": dict(annotations=takes, taxonomy={}, vocabulary={}), name: None}
    segments = egoexo4d.clips(mini(), parts=("keysteps",))
    assert egoexo4d.clips(mini(**whole), parts=("keysteps",)).clips.equals(segments.clips)


def test_experts_who_disagree(mini):
    found = egoexo4d.clips(mini(skill=lambda f: [verdict("cook_01", [30., 50.], [50., 60.])]), parts=("proficiency",))
    assert reasons(found).count("praised by one expert and corrected by another at 50.0 s") == 2
    assert found.clips[found.clips.split == "train"].sync_id.nunique() == 2
    assert egoexo4d.clips(mini(**{"annotations/proficiency_demonstrator_train.json": None}), parts=("proficiency",)).clips.proficiency.notna().sum() == 8, "levels are optional"
    late = egoexo4d.clips(mini(skill=[verdict("cook_01", [99., 250.], [1.])]), parts=("proficiency",))
    ends = late.clips[late.clips["take"] == "cook_01"].set_index("sync_id")[["start_s", "end_s"]].drop_duplicates().values.tolist()
    assert ends == [[97., 100.], [0., 3.]] and "beyond the end of its take" in reasons(late)


@pytest.mark.parametrize("sly", [dict(root_dir="../../etc"), dict(root_dir="/etc"), dict(root_dir="C:/x"), dict(root_dir="takes/../../x")])
def test_paths_that_lead_out(mini, sly):
    found = egoexo4d.clips(mini(takes=lambda f: [f[0] | sly, *f[1:]]), parts=("narrations",))
    assert set(found.clips["take"]) == {"cook_02"} and reasons(found).count("leaves the table's folder") == 9


def test_sizes_bases_and_scenarios(mini):
    root = mini(takes=lambda f: [f[0], take("bike_02", task="Bike Repair", take_uid="u-cook_02"), f[2]])
    full = egoexo4d.clips(root, size="full", base="sets/egoexo4d").clips.video
    assert full[0] == "sets/egoexo4d/takes/cook_01/frame_aligned_videos/cam01.mp4"
    small = egoexo4d.clips(root).clips.video
    assert small.str.contains("/downscaled/448/").all() and small.str.replace("downscaled/448/", "").tolist() == [v.removeprefix("sets/egoexo4d/") for v in full]
    cooking = egoexo4d.clips(root, scenario="COOKING")
    assert set(cooking.clips["take"]) == {"cook_01", "cook_03"} and cooking.problems.empty and cooking.counts.published[1] == 188
    for wrong in (dict(scenario="Baking"), dict(size="1080"), dict(parts=("gaze",)), dict(parts=()), dict(cameras="cam01")):
        with pytest.raises(AnnotationError): egoexo4d.clips(root, **wrong)


def test_validation_takes_whole_people_and_rooms_out_of_train(mini):
    takes = [take(f"cook_{i:02}", person=i // 3, room=i // 6) for i in range(24)] + [take("cook_99", person=99, room=99)]
    root = mini(takes=takes, atomic=dict(annotations={t["take_uid"]: [telling(says(5.), says(9., "C cuts"))] for t in takes[:-1]}),
                segments=dict(splits="train", segments=[step(t["take_name"], 1., 2.) for t in takes[:-1]]),
                **{"annotations/keystep_segment_val.json": dict(splits="val", segments=[step("cook_99", 1., 2.)])})
    parts = ("narrations", "keysteps")
    c, again = (egoexo4d.clips(root, parts=parts, val=.25, seed=3).clips for _ in range(2))
    assert c.equals(again) and c["take"].groupby(c.split).nunique().to_dict() == dict(train=18, val=6, test=1)
    check_splits(c)
    assert set(egoexo4d.clips(root, parts=parts).clips.clip_id) == set(c.clip_id)


def test_counts_are_those_of_the_table(mini):
    found = egoexo4d.clips(mini(), scenario="cooking")
    c, n = found.clips, found.counts.set_index("what")
    brute = sum((a.sync_id == b.sync_id) and a.split == "train" for a in c[(c.part == "narrations") & (c["view"] == "ego")].itertuples()
                for b in c[c["view"] == "exo"].itertuples())
    assert n.found["synchronized pairs of narrated moments"] == brute == 10 and n.found["rooms in both train and test"] == 0
    assert n.found["skill, exo clips to train on"] == 6 and n.found["skill, ego clips to test on"] == 2
    assert n.published.dropna().tolist() == [850_000, 188, 18_518, 2_936, 20_848, 1_109, 60]
    assert egoexo4d.clips(mini(), scenario="cooking", cameras="best", parts=("narrations",)).counts.published.isna().all()
    shared = egoexo4d.clips(mini(takes=lambda f: [t | dict(physical_setting_uid=4) for t in f]))
    assert shared.counts.set_index("what").found["rooms in both train and test"] == 1
    with pytest.raises(ValueError, match="in more than one split"): check_splits(shared.clips)


def test_real_videos_under_a_miniature(real_data, mini):
    "Frames of real takes come back through a table that was made from annotation files."
    from viewpoint_rosetta.video import clip_frames
    source = real_data / "clips" / "egoexo4d" / "cooking"
    if not source.is_dir(): pytest.skip("no real takes here: VR_REAL_DATA holds no clips/egoexo4d")
    root = mini(takes=[take("cook_01", seconds=30.)], atomic=dict(annotations={"u-cook_01": [telling(says(5., "C cooks"), says(12., "C tastes"))]}))
    for camera, file in (("aria", "aria01_214-1"), ("cam01", "cam01"), ("cam02", "cam02")):
        place = root / f"takes/cook_01/frame_aligned_videos/{file}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{camera}.mp4", place)
    found = egoexo4d.clips(root, parts=("narrations",), size="full")
    found.write(root)
    table = read_clips(root / "clips.parquet")
    shapes = {}
    for i, row in table.iterrows():
        frames = clip_frames(table, row.clip_id, 4)
        assert frames.shape[0] == 4 and frames.std() > 5
        shapes.setdefault(row["view"], set()).add(frames.shape[1:3])
    assert len(table) == 6 and shapes["ego"] == {(360, 360)} and shapes["exo"] == {(360, 640)}


# ---- Ego4D and EgoClip

def narrated(*pairs): return dict(narrations=[dict(timestamp_sec=t, timestamp_frame=0, narration_text=text, annotation_uid="a") for t, text in pairs], summaries=[])


BOTH = {"v1": dict(narration_pass_1=narrated((1., "#C C cuts"), (3., "#O A man X sits")), narration_pass_2=narrated((2., "#C C chops"), (8., "#C C eats")), status="complete"),
        "v2": dict(narration_pass_1=narrated((4., "#C C walks"), (6., "#c C runs")), status="complete")}
INFO = dict(videos=[dict(video_uid="v1", duration_sec=9., scenarios=["Cooking", "Eating"], fb_participant_id=4.0), dict(video_uid="v2", duration_sec=9., scenarios=["Hiking"])])


@pytest.fixture
def ego(tmp_path):
    def build(narration=BOTH, info=INFO, name="narration.json", folder="v2/annotations"):
        root = tmp_path / "ego4d"
        shutil.rmtree(root, ignore_errors=True)
        put(root, f"{folder}/{name}", narration)
        if info is not None: put(root, "ego4d.json", info)
        return root
    return build


def test_both_passes(ego):
    found = ego4d.clips(ego())
    c = found.clips
    assert c.narration.tolist() == ["cuts", "A man X sits", "chops", "eats", "walks", "runs"] and c.own.tolist() == [True, False] + [True] * 4
    assert c.clip_id.tolist() == ["ego4d:v1:1-0", "ego4d:v1:1-1", "ego4d:v1:2-0", "ego4d:v1:2-1", "ego4d:v2:1-0", "ego4d:v2:1-1"]
    assert c.participant[0] == "ego4d:4" and c.participant.isna().tolist() == [False] * 4 + [True] * 2 and c.sync_id.isna().all() and found.problems.empty
    assert np.allclose(c.end_s - c.start_s, [.6, .6, 1.8, 1.8, .6, .6]), "distances 2, 6, 2; their mean 10 / 3"
    assert len(pool(c, "ego")) == 6
    short = copy.deepcopy(INFO)
    short["videos"][0]["duration_sec"] = 8.5
    assert ego4d.clips(ego(info=short)).clips.end_s[3] == 8.5, "windows end with the video"


@pytest.mark.parametrize("name, folder", [("narrations.json", "."), ("narration.json", "annotations"), ("narration.json", "v1/annotations")])
def test_names_and_places_of_the_file(ego, name, folder):
    assert len(ego4d.clips(ego(name=name, folder=folder)).clips) == 6


def test_either_pass_may_be_missing(ego):
    found = ego4d.clips(ego(), passes=(2,))
    assert set(found.clips["take"]) == {"v1"} and reasons(found) == "no narrations of pass 2 (status 'complete')" and found.problems.clip_id[0] == "v2"
    assert len(ego4d.clips(ego(), passes=(1,)).clips) == 4 and ego4d.clips(ego()).problems.empty
    for empty in ({}, None, dict(narration_pass_1=None), dict(narration_pass_1=dict(narrations=None), status="redacted")):
        found = ego4d.clips(ego(BOTH | {"v3": empty}))
        assert len(found.clips) == 6 and found.problems.row.tolist() == [3] and found.counts.found[3] == 1


@pytest.mark.parametrize("t, text, told", [(None, "#C C x", "start_s nan is not a number"), ("late", "#C C x", "start_s nan is not a number"), (9.5, "#C C x", "beyond the end of its video at 9.0 s"),
                                           (1., "#C C cuts", "told twice"), (5., None, "has no text"), (5., "#C C", "no words but its tag"), (5., "  ", "no words but its tag")])
def test_a_narration_that_cannot_be_used(ego, t, text, told):
    made = copy.deepcopy(BOTH)
    made["v1"]["narration_pass_1"]["narrations"].append(dict(timestamp_sec=t, narration_text=text))
    found = ego4d.clips(ego(made))
    assert told in reasons(found) and len(found.problems) == 1 and len(found.clips) == 6 and found.problems.row[0] == 3


def test_options_do_not_change_a_clip(ego, tmp_path):
    root = ego()
    c = ego4d.clips(root).clips
    put(tmp_path, "uids.txt", "v2\nv7\n")
    for options, keep in ((dict(own=True), c.own), (dict(scenarios=("cooking",)), c["take"] == "v1"), (dict(videos=("v2",)), c["take"] == "v2"),
                          (dict(videos=tmp_path / "uids.txt"), c["take"] == "v2"), (dict(scenarios=("Hiking", "Eating"), videos=("v1",)), c["take"] == "v1")):
        assert ego4d.clips(root, **options).clips.equals(c[keep.astype(bool)].reset_index(drop=True)), options
    assert ego4d.clips(root, alpha=4.).clips.eval("end_s - start_s").round(3).tolist() == [.5, .5, 1.5, 1.5, .5, .5]
    assert ego4d.clips(root, scenarios=("Cooking",)).counts.published[1] == 562_000 and ego4d.clips(root).counts.published.isna().all()
    unknown = ego4d.clips(ego(info=None))
    assert len(unknown.clips) == 6 and unknown.clips.participant.isna().all()


@pytest.mark.parametrize("made, told", [([BOTH], "expected a JSON dict at the top, found a list"), ({"videos": {"v1": {"narrations": []}}, "version": "2"}, "no video has narration_pass_1.*found 'videos', 'version'"),
                                        ({"v1": dict(narration_pass_1=["x"]), "v2": BOTH["v2"]}, "not built as expected"), ("{'v1': 1}", "no whole JSON file")])
def test_narration_files_that_are_others(ego, made, told):
    with pytest.raises(AnnotationError, match=told): ego4d.clips(ego(made))


def test_what_is_asked_for_must_be_there(ego, tmp_path):
    for options, told in ((dict(scenarios=("Baking",)), "baking: none of Cooking, Eating, Hiking"), (dict(passes=(3,)), "passes are 1 and 2"), (dict(passes=()), "passes are 1 and 2"),
                          (dict(source="x"), "'narrations' or 'egoclip'"), (dict(videos=("nobody",)), "no usable clip"), (dict(source="egoclip"), "no egoclip.csv")):
        with pytest.raises(AnnotationError, match=told): ego4d.clips(ego(), **options)
    with pytest.raises(AnnotationError, match="no ego4d.json"): ego4d.clips(ego(info=None), scenarios=("Cooking",))
    with pytest.raises(AnnotationError, match="no narration.json or narrations.json.*Give the folder"): ego4d.clips(tmp_path)


HEADER = "clip_idx video_uid video_dur narration_source narration_ind narration_time clip_start clip_end clip_text tag_verb tag_noun".split()
LINES = [["0", "v1", "9.0", "narration_pass_1", "0", "1.0", "0.5", "1.5", "#C C cuts \"it\"", "[1]", "[2, 3]"], ["1", "v1", "9.0", "narration_pass_2", "0", "2.0", "1.5", "2.5", "#O sits", "[1]", "[2]"]]


def egoclip(root, lines, header=HEADER, sep="\t"):
    put(root, "egoclip.csv", "\n".join(sep.join(cells) for cells in [header, *lines]) + "\n")
    return root


def test_egoclip(ego, tmp_path):
    found = ego4d.clips(egoclip(tmp_path, LINES), source="egoclip")
    assert found.clips.clip_id.tolist() == ["ego4d:v1:c0", "ego4d:v1:c1"] and found.clips.narration.tolist() == ['cuts "it"', "sits"] and found.clips.own.tolist() == [True, False]
    assert found.clips.start_s.tolist() == [.5, 1.5] and found.counts.published[0] == 3_847_723
    only = ego4d.clips(tmp_path, source="egoclip", passes=(2,))
    assert only.clips.clip_id.tolist() == ["ego4d:v1:c1"] and only.counts.published.isna().all()


@pytest.mark.parametrize("at, value, told", [(2, "1.2", "beyond the end of its video at 1.2 s"), (6, "", "start_s nan"), (6, "2.6", "is not after start_s"), (8, "", "has no text"), (3, "narration_pass_9", "of neither pass"),
                                             (0, "0", "is used by more than one row"), (1, "../v", "leaves the table's folder")])
def test_lines_of_egoclip_that_cannot_be_used(tmp_path, at, value, told):
    bad = list(LINES[1])
    bad[at] = value
    good = [["9", *LINES[0][1:-3], "#C C stirs", "[]", "[]"]]
    found = ego4d.clips(egoclip(tmp_path, [LINES[0], bad, *good]), source="egoclip")
    assert told in reasons(found) and "ego4d:v1:c9" in set(found.clips.clip_id)


def test_a_tab_too_many_or_too_few(tmp_path):
    found = ego4d.clips(egoclip(tmp_path, [LINES[0], [*LINES[1], "more"], LINES[1][:5], ["9", *LINES[0][1:-3], "#C C stirs", "[]", "[]"]]), source="egoclip")
    assert found.clips.clip_id.tolist() == ["ego4d:v1:c0", "ego4d:v1:c1", "ego4d:v1:c9"] and found.clips.narration[1] == "sits"
    assert found.problems.row.tolist() == [3], "the short line; the long one has what is read"


@pytest.mark.parametrize("lines, header, sep, told", [(LINES, HEADER, ",", "commas between columns where tabs is expected.*published with tabs"), (LINES, HEADER[:-3] + ["text", "a", "b"], "\t", "no column clip_text"),
                                                      ([], [""], "\t", "cannot be read|no column")])
def test_an_egoclip_that_is_another_file(tmp_path, lines, header, sep, told):
    with pytest.raises(AnnotationError, match=told): ego4d.clips(egoclip(tmp_path, lines, header, sep), source="egoclip")


def test_egomcq(tmp_path):
    choices = {str(k): dict(video_uid=f"v{k}", clip_start=k, clip_end=k + 1.5, clip_text=f"#C C does {k}") for k in range(5)}
    questions = {"0": dict(answer=3, types=1, query=dict(clip_text="#C C does 3"), choices=choices), "1": dict(answer=0, types=2, query=dict(clip_text="#C C does 0"), choices=choices)}
    put(tmp_path, "egomcq.json", questions)
    df = ego4d.egomcq(tmp_path / "egomcq.json")
    assert len(df) == 10 and (df[df.right]["query"] == df[df.right].narration).all() and df.kind.unique().tolist() == ["between videos", "within a video"]
    for broken, told in (({"0": questions["0"] | dict(answer=9)}, "no right answer"), ({"0": {"answer": 1}}, "KeyError: 'choices'"), ([questions], "expected a JSON dict")):
        put(tmp_path, "egomcq.json", broken)
        with pytest.raises(AnnotationError, match=told): ego4d.egomcq(tmp_path / "egomcq.json")


# ---- LaViLa's list

ROWS = [("v1", 1., 2., "#C C cuts"), ("v1", 299.8, 300.6, "#O A man X sits"), ("v2", 3., 4., ["C runs", "#C C walks"])]


@pytest.fixture
def listed(tmp_path):
    def build(rows=ROWS, protocol=4):
        (tmp_path / "ego4d_train.pkl").write_bytes(rows if isinstance(rows, bytes) else pickle.dumps(rows, protocol))
        return tmp_path
    return build


@pytest.mark.parametrize("protocol", range(6))
def test_lavilas_list_in_every_protocol(listed, protocol):
    c = lavila.clips(listed(protocol=protocol)).clips
    assert c.video.tolist() == ["v1.mp4/0.mp4", "v1.mp4/300.mp4", "v2.mp4/0.mp4"] and c.narration.tolist() == ["cuts", "A man X sits", "C runs"]
    assert c[["start_s", "end_s"]].values.tolist() == [[1, 2], [0, .6], [3, 4]] and c.told_s.tolist() == [1., 299.8, 3.] and c.own.isna().sum() == 1


def test_numpy_numbers_tuples_and_lists_are_the_same(listed):
    plain = lavila.clips(listed()).clips
    assert lavila.clips(listed([list(r) for r in ROWS])).clips.equals(plain)
    assert lavila.clips(listed(tuple((v, np.float64(s), np.float32(e) if e == 2 else e, t) for v, s, e, t in ROWS))).clips.equals(plain)
    assert lavila.clips(listed([(*r, "more") for r in ROWS])).clips.equals(plain)


def test_texts_and_pieces_are_options(listed):
    root = listed()
    assert lavila.clips(root, texts="all").clips.narration.tolist() == ["cuts", "A man X sits", "C runs", "walks"]
    assert lavila.clips(root, chunk=0).clips.video.tolist() == ["v1.mp4", "v1.mp4", "v2.mp4"] and lavila.clips(root, own=True).clips.narration.tolist() == ["cuts"]
    assert lavila.clips(root, chunk=15, base="a", folder="b").clips.video[1] == "a/b/v1.mp4/300.mp4" and lavila.clips(root, split="val").clips.split.unique() == ["val"]
    counts = lavila.clips(root).counts.set_index("what").found
    assert counts["rows in the pickle"] == 3 and counts["clips cut at the end of a piece"] == 1
    for wrong in (dict(texts="some"), dict(chunk=-1)):
        with pytest.raises(AnnotationError): lavila.clips(root, **wrong)


def test_pieces_against_every_tenth_of_a_second():
    "The piece chosen is the one that shows most of the clip."
    rng = np.random.default_rng(0)
    start = rng.integers(0, 600, 300) / 10
    end = start + rng.integers(1, 140, 300) / 10
    first, inside, until, cut = lavila.pieces(start, end, 15)
    for s, e, f, a, b, c in zip(start, end, first, inside, until, cut):
        shown = {k: min(e, k + 15) - max(s, k) for k in range(0, 90, 15)}
        assert shown[f] == pytest.approx(max(shown.values())) == pytest.approx(b - a) and c == (shown[f] < e - s - 1e-9)


class Call:
    def __reduce__(self): return os.system, ("touch pwned",)


@pytest.mark.parametrize("made, told", [
    (pickle.dumps([("v", 1., 2., Call())]), "refused (posix|nt).system.*Nothing was executed"), (pickle.dumps(ROWS)[:-20], "download it again"), (b"", "is no pickle but empty"),
    (gzip.compress(pickle.dumps(ROWS)), "compressed: run gunzip"), (b"<html>no</html>", "a web page"), (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (pickle.dumps({"v1": ROWS}), "found a dict"), (pickle.dumps([1, 2]), "no row of 2 is"), (pickle.dumps([]), "no row of 0 is"), (pickle.dumps(np.zeros(3)), "refused numpy")])
def test_pickles_that_are_something_else(listed, tmp_path, monkeypatch, made, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AnnotationError, match=told): lavila.clips(listed(made))
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(AnnotationError, match="no pickle at .*nothing.pkl"): lavila.clips(tmp_path, file="nothing.pkl")


@pytest.mark.parametrize("row, told", [(("v1", 5.), "is not .video, start, end, text."), ("v1", "is not .video"), (("v1", -2., 1., "x"), "before its video"), (("v1", 4., 4., "x"), "does not end after"),
                                       (("v1", "soon", 4., "x"), "start_s nan"), ((None, 1., 2., "x"), "names no video"), (("v1", 1., 2., []), "has no text"), (("v1", 1., 2., None), "has no text"),
                                       (("v1", 1., 2., "#C C cuts"), "told twice"), (("../v1", 1., 2., "x"), "leaves the table's folder"), (("v1", float("inf"), 4., "x"), "start_s nan")])
def test_rows_of_the_list_that_cannot_be_used(listed, row, told):
    found = lavila.clips(listed([*ROWS, row]))
    assert len(found.clips) == 3 and len(found.problems) == 1 and found.problems.row[0] == 4
    assert pd.Series(found.problems.reason).str.contains(told).all()
