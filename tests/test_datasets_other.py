"""Adapters of HTM-AA and HowTo100M, Charades-Ego, EgoExoLearn, EgoYC2: real samples counted by other means, and files as they should not be."""
import csv
import json

import pandas as pd
import pytest

from viewpoint_rosetta.clips import validate
from viewpoint_rosetta.datasets import egoyc2
from viewpoint_rosetta.datasets.annotations import AnnotationError


@pytest.fixture(scope="session")
def annotations(real_data):
    "The folder of real annotation files; tests that need it are skipped where it is not."
    if not (folder := real_data / "annotations").is_dir():
        pytest.skip("no real annotations here: VR_REAL_DATA holds no annotations folder")
    return folder


def refused(fn, *words, **options):
    "The call raises an AnnotationError whose message holds all words."
    with pytest.raises(AnnotationError) as error: fn(**options)
    lacking = [w for w in words if w not in str(error.value)]
    assert not lacking, f"{lacking} not in: {error.value}"


def whole(found, rows: int):
    "A valid clip table, and every row of the annotation in it or on record."
    assert validate(found.clips)["clip_id"].is_unique and found.problems[["file", "row", "reason"]].notna().all().all()
    assert len(found.clips) + len(found.problems) == rows


def reasons(found) -> str:
    return "; ".join(found.problems.reason)


# ---- EgoYC2 and YouCook2

def yc2_steps(annotations, name: str) -> list:
    "(video, index, start, end, sentence, recipe) of a real file, with json alone."
    with open(annotations / "egoyc2_yc2" / f"{name}_wacv25.json", encoding="utf-8") as file: found = json.load(file)
    return [(v, i, *t, s, e["recipe_type"]) for v, e in found.items() for i, (t, s) in enumerate(zip(e["timestamps"], e["sentences"]))]


def test_egoyc2_whole(annotations):
    found = egoyc2.clips(annotations / "egoyc2_yc2")
    names = {("ego", "train"): "egoyc2_train", ("ego", "test"): "egoyc2_eval", ("exo", "train"): "yc2_train", ("exo", "test"): "yc2_eval"}
    steps = {key: yc2_steps(annotations, name) for key, name in names.items()}
    whole(found, sum(map(len, steps.values())))
    assert found.problems.empty
    assert found.clips.groupby(["view", "split"]).size().to_dict() == {k: len(v) for k, v in steps.items()}
    counts = found.counts.set_index("what")
    assert counts.found["ego videos"] == counts.published["ego videos"] == 226 == len({s[0] for k, v in steps.items() if k[0] == "ego" for s in v})

    by_id = found.clips.set_index("clip_id")
    for key, rows in steps.items():
        for video, i, start, end, sentence, recipe in rows[::37]:
            row = by_id.loc[f"egoyc2:{video}:{i}"]
            assert (row["view"], row.split) == key and (row.start_s, row.end_s, row.narration) == (start, end, sentence)
            assert row.label == f"{recipe}: {sentence}" and row.video == f"{video}.mp4"


def test_egoyc2_steps_meet_in_label_and_step_and_nowhere_else(annotations):
    "Every ego step has exactly one exo clip of its step, with its label, and no clip claims to be of the same moment."
    table = egoyc2.clips(annotations / "egoyc2_yc2").clips
    ego, exo = (table[table["view"] == view] for view in ("ego", "exo"))
    met = ego.merge(exo, on="step_id", how="left", suffixes=("", "_exo"))
    assert len(met) == len(ego) and (met.label == met.label_exo).all() and (met.split == met.split_exo).all()
    assert table.sync_id.isna().all() and not set(ego["take"]) & set(exo["take"])
    assert (met.video.str.extract(r"^r\d+_s\d+_(.+)$", expand=False) == met.video_exo).all(), "the YouTube id, also where it holds an underscore"
    assert set(ego.participant) == {v.split("_")[1] for v in ego["take"]} and exo.participant.isna().all()


def test_egoyc2_partnered_and_without_exo(annotations):
    table = egoyc2.clips(annotations / "egoyc2_yc2", partnered=True).clips
    ego, exo = (table[table["view"] == view] for view in ("ego", "exo"))
    assert set(exo["take"]) == {v.split("_", 2)[2] for v in ego["take"]}
    assert set(egoyc2.clips(annotations / "egoyc2_yc2", exo=False).clips["view"]) == {"ego"}


ENTRY = dict(duration=30.0, timestamps=[[0, 10], [10, 20]], sentences=["cut it", "serve it"], recipe_type="101")


def yc2_folder(folder, ego=None, **files):
    "A folder with one ego video, and other files by name."
    for name, what in ({"egoyc2_train": {"r1_s1_aaaaaaaaaaa": ego or ENTRY}} | files).items():
        (folder / f"{name}.json").write_text(json.dumps(what))
    return folder


@pytest.mark.parametrize("change, said", [
    (dict(sentences=["cut it"]), "2 timestamps and 1 sentences"), (dict(timestamps=[], sentences=[]), "no steps"),
    (dict(timestamps=None), "not both lists"), (dict(timestamps=[[0], [1, 2]]), "[0] is no pair of seconds")])
def test_egoyc2_entry_left_out_whole(tmp_path, change, said):
    good = {"r1_s1_bbbbbbbbbbb": ENTRY, "r1_s1_aaaaaaaaaaa": ENTRY | change}
    found = egoyc2.clips(yc2_folder(tmp_path, egoyc2_train=good), exo=False)
    assert len(found.clips) == 2 and len(found.problems) == 1 and said in reasons(found)
    assert found.problems.iloc[0][["clip_id", "file", "row"]].tolist() == ["egoyc2:r1_s1_aaaaaaaaaaa", "egoyc2_train.json", 2]


@pytest.mark.parametrize("change, said", [
    (dict(timestamps=[[0, 10], [20, 10]]), "end_s 10.0 is not after start_s 20.0"), (dict(timestamps=[[0, 10], [10, 50]]), "beyond the end of its video at 30.0 s"),
    (dict(timestamps=[[0, 10], ["x", 20]]), "not a number of seconds"), (dict(sentences=["cut it", " "]), "has no sentence"),
    (dict(sentences=["cut it", None]), "has no sentence")])
def test_egoyc2_step_left_out_alone(tmp_path, change, said):
    found = egoyc2.clips(yc2_folder(tmp_path, ENTRY | change), exo=False)
    assert len(found.clips) == 1 and len(found.problems) == 1 and said in reasons(found)


def test_egoyc2_missing_field_is_named(tmp_path):
    lacking = {k: v for k, v in ENTRY.items() if k != "sentences"}
    refused(egoyc2.clips, "no usable clip", "egoyc2_train.json, row 1: no sentences", root=yc2_folder(tmp_path, lacking), exo=False)
    ageless = {k: v for k, v in ENTRY.items() if k != "duration"}
    assert len(egoyc2.clips(yc2_folder(tmp_path, ageless), exo=False).clips) == 2, "without a duration there is nothing to hold times against"


@pytest.mark.parametrize("files, said", [
    (dict(), ("no file yc2_*.json", "exo=false")),
    (dict(yc2_train={"r1_s1_bbbbbbbbbbb": ENTRY}), ("r2_s20_… are those of ego videos", "exchanged")),
    (dict(yc2_train=[ENTRY]), ("yc2_train.json", "found a list")),
    (dict(yc2_dev={"b": ENTRY}), ("yc2_dev.json", "neither train nor eval")),
    (dict(yc2_train={"b": ENTRY}, yc2_eval={"b": ENTRY}), ("more than one split", "yc2_eval.json and yc2_train.json"))])
def test_egoyc2_file_refused(tmp_path, files, said):
    refused(egoyc2.clips, *said, root=yc2_folder(tmp_path, **files))
