"""Adapters of HTM-AA and HowTo100M, Charades-Ego, EgoExoLearn, EgoYC2: real samples counted by other means, and files as they should not be."""
import csv
import importlib.util
import json

import pandas as pd
import pytest

from viewpoint_rosetta import artifacts, cli
from viewpoint_rosetta.clips import validate
from viewpoint_rosetta.datasets import charades_ego, egoexolearn, egoyc2, howto100m
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
    assert not [c for c in found.clips if c.startswith("_") or c in ("file", "row", "video_s")], "what only served a sentence"


def reasons(found) -> str:
    return "; ".join(found.problems.reason)


def plain_rows(path) -> list:
    "The rows of a real CSV file as dicts, with the csv module alone."
    with open(path, encoding="utf-8-sig", newline="") as file: return list(csv.DictReader(file))


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
    (dict(egoyc2_eval={"ccccccccccc": ENTRY}, yc2_train={"b": ENTRY}), ("egoyc2_eval.json", "'ccccccccccc' is not the id of an ego video", "exchanged")),
    (dict(yc2_train=[ENTRY]), ("yc2_train.json", "found a list")),
    (dict(yc2_dev={"b": ENTRY}), ("yc2_dev.json", "neither train nor eval")),
    (dict(yc2_train={"b": ENTRY}, yc2_eval={"b": ENTRY}), ("more than one split", "yc2_eval.json and yc2_train.json"))])
def test_egoyc2_file_refused(tmp_path, files, said):
    refused(egoyc2.clips, *said, root=yc2_folder(tmp_path, **files))


# ---- Charades-Ego

@pytest.fixture(scope="module")
def charades(annotations, tmp_path_factory):
    "The real heads, and what is in them: a folder, and (id, class, start, end, length) of each action, with csv alone."
    folder = annotations / "charades_ego_v0"
    acts = [(r["id"], *a.split(), float(r["length"])) for path in sorted(folder.glob("*.csv")) for r in plain_rows(path) for a in r["actions"].split(";") if a]
    silent = [r["id"] for path in folder.glob("*.csv") for r in plain_rows(path) if not r["actions"]]
    return folder, acts, silent


def test_charades_whole(charades):
    folder, acts, silent = charades
    found = charades_ego.clips(folder)
    whole(found, len(acts) + len(silent))
    assert len(found.clips) == len(acts) and sorted(found.problems.clip_id) == sorted(f"charades_ego:{v}" for v in silent)
    counts = found.counts.set_index("what")
    assert counts.found["actions"] == len(acts) and counts.found["classes"] == len({a[1] for a in acts})
    assert counts.found["videos"] == 403 and counts.published.isna().all(), "a head is not the whole set"

    assert sorted(zip(found.clips.label, found.clips.start_s)) == sorted((c, float(a)) for _, c, a, _, _ in acts)
    ends = {(v, c, float(a), min(float(b), length)) for v, c, a, b, length in acts}
    assert set(zip(found.clips.video.str.removesuffix(".mp4"), found.clips.label, found.clips.start_s, found.clips.end_s)) == ends
    ego = found.clips["view"] == "ego"
    assert (found.clips.video[ego].str.endswith("EGO.mp4")).all() and not found.clips.video[~ego].str.contains("EGO").any()
    assert found.clips.sync_id.isna().all() and found.clips.narration[~ego].notna().all()


def test_charades_untrimmed_ends_are_left_out(charades):
    folder, acts, silent = charades
    late = sum(float(b) > round(length, 1) + 1 for *_, b, length in acts)
    found = charades_ego.clips(folder, trim=False)
    assert late > 100 and len(found.clips) == len(acts) - late and (found.problems.reason.str.contains("beyond the end of its video")).sum() == late


HEAD = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"
PAIR = ["A,P1,Bedroom,5,6,Yes,A person reads.,,,c026 1.0 6.0;c026 7.0 9.0;c059 2.0 3.0,20.0", "AEGO,,,,,,,,,c026 0.0 4.0;c000 5.0 6.0,10.5"]


def charades_folder(folder, *rows, name="CharadesEgo_v0_test", head=HEAD):
    (folder / f"{name}.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


def test_charades_pair_shares_what_is_told_and_no_moment(tmp_path):
    table = charades_ego.clips(charades_folder(tmp_path, *PAIR)).clips
    ego = table[table["view"] == "ego"]
    assert set(table["take"]) == {"A"} and table.sync_id.isna().all() and len(ego) == 2
    assert set(ego.narration) == {"A person reads."} and set(ego.participant) == {"P1"} and set(ego.scene) == {"P1 Bedroom"}


def test_charades_weak_alignment_pairs_the_nth_time(tmp_path):
    table = charades_ego.clips(charades_folder(tmp_path, *PAIR), align=True).clips.set_index("clip_id")
    assert table.sync_id.dropna().to_dict() == {"charades_ego:A:0": "A:c026:0", "charades_ego:AEGO:0": "A:c026:0"}, "c026 once more, c059 and c000 have no partner"


@pytest.mark.parametrize("cell, said", [("c026 5.0 4.0", "end_s 4.0 is not after"), ("c157 1.0 2.0", "c157 is none of the classes"), ("c026 1.0", "not written as"),
                                        ("c026 25.0 26.0", "beyond the end of its video at 20.0 s"), ("c026 a b", "not a number of seconds"), ("", "no actions are told")])
def test_charades_action_left_out(tmp_path, cell, said):
    found = charades_ego.clips(charades_folder(tmp_path, PAIR[0], f"B,,,,,,,,,{cell},20.0"))
    assert len(found.clips) == 3 and len(found.problems) == 1 and said in reasons(found) and found.problems.row[0] == 2


def test_charades_ends_stay_within_a_video_of_known_length(tmp_path):
    ends = charades_ego.clips(charades_folder(tmp_path, "B,,,,,,,,,c026 1.0 21.5,20.0", "C,,,,,,,,,c026 1.0 21.5,")).clips.end_s
    assert ends.tolist() == [20.0, 21.5]


def test_charades_version_one_by_columns_and_each_row_once(tmp_path):
    head, rows = f"{HEAD},egocentric,charades_video", ["A,P1,Hall,5,6,Yes,Walks.,,,c026 1.0 6.0,9.0,No,", "Q,P1,Hall,5,6,Yes,Walks.,,,c026 1.0 6.0,9.0,Yes,A"]
    for name, part in dict(train=rows, train_only1st=rows[1:], train_only3rd=rows[:1]).items(): charades_folder(tmp_path, *part, name=f"CharadesEgo_v1_{name}", head=head)
    table = charades_ego.clips(tmp_path).clips
    assert table["view"].tolist() == ["exo", "ego"] and table["take"].tolist() == ["A", "A"] and table.clip_id.is_unique
    (tmp_path / "CharadesEgo_v1_train.csv").unlink()
    assert len(charades_ego.clips(tmp_path).clips) == 2, "the halves stand in for the whole"


def test_charades_published_counts_only_beside_the_whole_set(tmp_path):
    head = f"{HEAD},egocentric,charades_video"
    rows = ["A,P1,Hall,5,6,Yes,Walks.,,,c026 1.0 6.0,9.0,No,", "AEGO,P1,Hall,5,6,Yes,Walks.,,,c026 1.0 6.0,9.0,Yes,A"]
    charades_folder(tmp_path, *rows, name="CharadesEgo_v1_train", head=head)
    assert charades_ego.clips(tmp_path).counts.published.isna().all()
    charades_folder(tmp_path, *[r.replace("A,", "B,").replace("AEGO", "BEGO") for r in rows], name="CharadesEgo_v1_test", head=head)
    assert charades_ego.clips(tmp_path).counts.set_index("what").published["videos"] == 7860
    for split in ("train", "test"): (tmp_path / f"CharadesEgo_v1_{split}.csv").rename(tmp_path / f"CharadesEgo_v0_{split}.csv")
    assert charades_ego.clips(tmp_path).counts.published.isna().all(), "what was published is of version 1"


@pytest.mark.parametrize("name, head, options, said", [
    ("CharadesEgo_v0_test", "A,P1,Bedroom,5,6,Yes,x,,,c026 1 2,9", {}, ("no column id", "must be the header")),
    ("CharadesEgo_v0_test", HEAD.replace(",", "\t"), {}, ("tabs between columns",)),
    ("CharadesEgo_v0_test", HEAD, dict(version="v1"), ("holds no version v1, but v0",)),
    ("Charades_v1_test", HEAD, {}, ("no file CharadesEgo_*.csv", "Charades alone")),
    ("CharadesEgo_all", HEAD, {}, ("CharadesEgo_all.csv", "CharadesEgo_v1_train.csv")),
    ("CharadesEgo_v0_test", HEAD, dict(text="class"), ("text=class needs it",)),
    ("CharadesEgo_v1_test", HEAD + ",egocentric", {}, ("egocentric", "neither true nor false"))])
def test_charades_file_refused(tmp_path, name, head, options, said):
    rows = [r + ",perhaps" for r in PAIR] if "egocentric" in head else PAIR
    refused(charades_ego.clips, *said, root=charades_folder(tmp_path, *rows, name=name, head=head), **options)


def test_charades_two_versions_or_a_copied_split_are_refused(tmp_path):
    charades_folder(charades_folder(tmp_path, *PAIR), *PAIR, name="CharadesEgo_v0_train")
    refused(charades_ego.clips, "2 clips are in more than one split", "v0_test.csv and CharadesEgo_v0_train.csv", root=tmp_path)
    charades_folder(tmp_path, *PAIR, name="CharadesEgo_v1_train")
    refused(charades_ego.clips, "holds v0 and v1", "version=v1", root=tmp_path)


# ---- EgoExoLearn

def test_egoexolearn_whole(annotations):
    folder = annotations / "egoexolearn"
    files = {("ego", "val"): "ego_val_valid", ("exo", "test"): "exo_test_valid", ("exo", "val"): "exo_val_valid"}
    rows = {key: plain_rows(folder / f"{name}.csv") for key, name in files.items()}
    found = egoexolearn.clips(folder)
    whole(found, sum(map(len, rows.values())))
    assert found.problems.empty and found.clips.groupby(["view", "split"]).size().to_dict() == {k: len(v) for k, v in rows.items()}
    short = lambda kind: [r["label"].split("_(")[0] for r in plain_rows(folder / f"narration_{kind}_taxonomy.csv")]
    verbs, nouns, by_id = short("verb"), short("noun"), found.clips.set_index("clip_id")
    for key, part in rows.items():
        for r in part[::101]:
            row, (v, n) = by_id.loc[f"egoexolearn:{r['annotation_id']}"], (json.loads(r[k]) for k in ("verb", "noun"))
            assert row.label == f"{verbs[v[0]] if v else ''}:{nouns[n[0]] if n else ''}" and (row.start_s, row.end_s) == (float(r["start_sec"]), float(r["end_sec"]))
            assert (row["view"], row.split) == key and row["take"] == r["video_id"] and row.scenario == r["scenario"]
    shared = {r["video_id"] for r in rows["exo", "val"]} & {r["video_id"] for r in rows["exo", "test"]}
    assert found.counts.set_index("what").found["videos in more than one split"] == len(shared) == 81


@pytest.mark.parametrize("text", ["narration_ch", "narration_en", "narration_en_hand_prompt", "narration_en_no_hand_prompt"])
def test_egoexolearn_narrations_whole(annotations, text):
    folder, name = annotations / "egoexolearn", "association_exo_train_head.csv"
    rows, found = plain_rows(folder / name), egoexolearn.clips(folder, files=name, text=text)
    whole(found, len(rows))
    assert found.clips.narration.tolist() == [r[text] for r in rows] and set(found.clips.split) == {"train"} and set(found.clips["view"]) == {"exo"}
    assert found.clips.label.isna().sum() == sum(r["verb"] == r["noun"] == "[]" for r in rows) == 2


COLUMNS_EEL = "video_id,annotation_id,start_sec,end_sec,verb,noun,scenario"


def eel_folder(folder, *rows, name="ego_val_valid", head=COLUMNS_EEL, taxonomies=True):
    (folder / f"{name}.csv").write_text("\n".join([head, *rows]) + "\n")
    for kind in ("verb", "noun") if taxonomies else (): (folder / f"narration_{kind}_taxonomy.csv").write_text("label,group\ncut_(trim),x\nuse,y\n")
    return folder


@pytest.mark.parametrize("row, said", [
    ('u,b,1,2,[2],[0],lab', "verb 2 is not in narration_verb_taxonomy.csv, which ends at 1"), ('u,b,1,2,[0],"[0, 7]",lab', "noun 7 is not in"),
    ('u,b,1,2,cut,[0],lab', "verb cut is no list of numbers"), ('u,b,1,2,[],[],lab', "nothing says what is done"), ('u,b,1,2,,,lab', "nothing says what is done"),
    ('u,b,2,2,[0],[0],lab', "end_s 2 is not after"), ('u,b,x,2,[0],[0],lab', "not a number of seconds"), ('u,b,-1,2,[0],[0],lab', "lies before the video"),
    (',b,1,2,[0],[0],lab', "video is missing")])
def test_egoexolearn_row_left_out(tmp_path, row, said):
    found = egoexolearn.clips(eel_folder(tmp_path, 'u,a,1,2,"[0, 1]",[1],lab', row))
    assert len(found.clips) == 1 and len(found.problems) == 1 and said in reasons(found) and found.problems.row[0] == 2


def test_egoexolearn_labels_without_taxonomy_are_numbers(tmp_path):
    root = eel_folder(tmp_path, 'u,a,1,2,"[40, 3]",[999],lab', 'u,b,1,2,[],[7],lab', taxonomies=False)
    assert egoexolearn.clips(root).clips.label.tolist() == ["40:999", ":7"] and egoexolearn.clips(root, label="all").clips.label.tolist() == ["3+40:999", ":7"]


@pytest.mark.parametrize("name, head, options, said", [
    ("segments", COLUMNS_EEL, dict(files="segments.csv"), ("segments.csv", "neither a column view nor the name")),
    ("ego_val_valid", COLUMNS_EEL.replace(",", "\t"), {}, ("tabs between columns",)),
    ("ego_val_valid", COLUMNS_EEL.replace("end_sec", "stop"), {}, ("no column end_sec",)),
    ("ego_val_valid", COLUMNS_EEL.replace("video_id", "name"), {}, ("no column video_uid or video_id",)),
    ("ego_val_valid", COLUMNS_EEL, dict(text="narration_fr"), ("have no column narration_fr", "text=none")),
    ("ego_val", COLUMNS_EEL, {}, ("no file *_valid.csv", "files="))])
def test_egoexolearn_file_refused(tmp_path, name, head, options, said):
    refused(egoexolearn.clips, *said, root=eel_folder(tmp_path, 'u,a,1,2,[0],[1],lab', name=name, head=head), **options)


def test_egoexolearn_copied_split_refused(tmp_path):
    root = eel_folder(eel_folder(tmp_path, 'u,a,1,2,[0],[1],lab'), 'u,a,1,2,[0],[1],lab', name="ego_test_valid")
    refused(egoexolearn.clips, "1 clips are in more than one split", "ego_test_valid.csv and ego_val_valid.csv", root=root)


# ---- HowTo100M: HTM-AA, HTM-Align, captions

AA = ["-made_up01,12,\"and now, chop\"", "-made_up01,0,hello", "made_up__2,40,null"]
CAPTIONS = {f"made_up__{i}": dict(text=[f"said {i} {j}" for j in range(i)], start=[j + .5 for j in range(i)], end=[j + 2.0 for j in range(i)]) for i in range(1, 6)}


def htm_folder(folder, *rows, head="vid,timestamp,text", **files):
    (folder / "htm_aa_v1.csv").write_text("\n".join([head, *(rows or AA)]) + "\n")
    (folder / "HowTo100M_v1.csv").write_text("video_id,category_1,category_2,rank,task_id\n-made_up01,Food and Entertaining,Recipes,1,7\n"
                                             "made_up__2,Hobbies and Crafts,Crafts,1,8\nmade_up__4,Food and Entertaining,Recipes,2,9\n")
    for name, what in files.items(): (folder / f"{name}.json").write_text(what if isinstance(what, str) else json.dumps(what))
    return folder


def test_htm_centres_become_stretches_and_words_stay_words(tmp_path):
    table = howto100m.clips(htm_folder(tmp_path), window=3).clips
    assert table.start_s.tolist() == [10.5, 0.0, 38.5] and table.end_s.tolist() == [13.5, 1.5, 41.5]
    assert table.narration.tolist() == ["and now, chop", "hello", "null"] and set(table["view"]) == {"exo"} and table.sync_id.isna().all()


def test_htm_a_choice_of_videos_changes_neither_ids_nor_windows(tmp_path):
    rows = [f"made_up__{v},{t * step},said" for t in range(9) for v, step in ((2, 3), (4, 30))]
    every, some = (howto100m.clips(htm_folder(tmp_path, *rows), window="gap", category=c).clips for c in ("", "Food and Entertaining"))
    assert 0 < len(some) < len(every) and set(some["take"]) == {"made_up__4"} and set(some.task) == {"9"}
    same = every.set_index("clip_id").loc[some.clip_id]
    assert same.start_s.tolist() == some.start_s.tolist() and same.end_s.tolist() == some.end_s.tolist()
    (tmp_path / "ids.txt").write_text("made_up__2\nmade_up__9\n")
    assert set(howto100m.clips(tmp_path, ids=str(tmp_path / "ids.txt")).clips["take"]) == {"made_up__2"}
    refused(howto100m.clips, "holds none of the 0 videos", root=tmp_path, ids=str(tmp_path / "ids.txt"), category="Food and Entertaining")


@pytest.mark.parametrize("row, said", [("made_up__2,soon,x", "timestamp soon is not a second"), ("made_up__2,-3,x", "timestamp -3 is not a second"), ("made_up__2,4,", "no text"),
                                       ("made_up__2,4,  ", "no text"), ("made_up__2,,x", "is not a second"), (",4,x", "clip_id is missing")])
def test_htm_row_left_out(tmp_path, row, said):
    found = howto100m.clips(htm_folder(tmp_path, *AA, row))
    assert len(found.clips) == 3 and len(found.problems) == 1 and said in reasons(found) and found.problems.row[0] == 4


def test_htm_videos_by_an_index_of_the_folder(tmp_path):
    for name in ("a/-made_up01.webm", "other.mp4"): (tmp_path / "v" / name).parent.mkdir(parents=True, exist_ok=True); (tmp_path / "v" / name).touch()
    found = howto100m.clips(htm_folder(tmp_path), folder=str(tmp_path / "v"), base="htm")
    assert set(found.clips.video) == {"htm/a/-made_up01.webm"} and reasons(found) == "no file of this video in the folder v" and found.problems.row.tolist() == [3]
    refused(howto100m.clips, "no such folder", root=tmp_path, folder=str(tmp_path / "w"))


def test_htm_align_keeps_what_is_seen(tmp_path):
    align = {"made_up__3": [[1, 1.5, 3.0, "chop"], [0, 4.0, 6.0, "my uncle"], [1, 9.0, 8.0, "stir"], [1, 9.0, 9.5, " "]], "made_up__4": [[1, 2.0, "fry"]]}
    found = howto100m.clips(htm_folder(tmp_path, htm_align=align), part="align")
    assert found.clips[["narration", "start_s", "end_s", "split"]].values.tolist() == [["chop", 1.5, 3.0, "test"]]
    for words in ("marked as not seen", "end_s 8.0 is not after", "no text", "expected a list of [alignable, start, end, text]"): assert words in reasons(found)
    assert found.counts.set_index("what").published["videos"] == 80


@pytest.mark.parametrize("piece", [16, 50, 97, 2**22])
def test_captions_are_read_in_pieces(tmp_path, piece):
    root = htm_folder(tmp_path, caption=json.dumps(CAPTIONS, indent=1))
    assert list(howto100m.members(root / "caption.json", piece)) == list(CAPTIONS.items())


@pytest.mark.parametrize("spoil, said", [(lambda t: t[:-1], "after the entry 'made_up__4'"), (lambda t: t[:len(t) // 2], "cannot be read after the entry 'made_up__3'"), (lambda t: "[" + t + "]", "expected a JSON dict"),
                                         (lambda t: t.replace('"made_up__2":', '"made_up__2"'), "after the entry 'made_up__1'"), (lambda t: "", "expected a JSON dict")])
def test_broken_captions_say_where(tmp_path, spoil, said):
    root = htm_folder(tmp_path, raw_caption=spoil(json.dumps(CAPTIONS)))
    refused(howto100m.clips, "raw_caption.json", said, root=root, part="captions")


def test_a_broken_entry_is_not_searched_for_to_the_end_of_the_file(tmp_path):
    "No entry is as long as `most`: where one is, the search for its end stops, whether it would be found or not."
    root = htm_folder(tmp_path, caption=CAPTIONS)
    longest = max(len(json.dumps({k: v})) for k, v in CAPTIONS.items())
    assert len(list(howto100m.members(root / "caption.json", 10, most=longest + 20))) == len(CAPTIONS)
    with pytest.raises(AnnotationError, match="after the entry 'made_up__2'"): list(howto100m.members(root / "caption.json", 10, most=100))


def test_captions_of_some_videos_and_the_warning_about_stop_words(tmp_path):
    root = htm_folder(tmp_path, caption=CAPTIONS | {"-made_up01": dict(text=["x"], start=[], end=[1])})
    with pytest.warns(UserWarning, match="stop words were removed.*raw_caption.json"):
        found = howto100m.clips(root, part="captions", category="Food and Entertaining")
    assert found.clips.narration.tolist() == CAPTIONS["made_up__4"]["text"] and found.clips.end_s.tolist() == CAPTIONS["made_up__4"]["end"]
    assert reasons(found) == "expected three lists of one length: text, start, end" and set(found.problems.clip_id) == {"htm:-made_up01"}


def test_raw_captions_are_preferred_and_not_warned_about(tmp_path, recwarn):
    found = howto100m.clips(htm_folder(tmp_path, caption={"a": 1}, raw_caption=CAPTIONS), part="captions")
    assert len(found.clips) == 15 and not [w for w in recwarn if "stop words" in str(w.message)]


@pytest.mark.parametrize("head, options, said", [
    ("vid\ttimestamp\ttext", {}, ("tabs between columns",)), ("vid,start,text", {}, ("no column timestamp", "vid,timestamp,text")),
    ("vid,timestamp,text", dict(category="Cooking"), ("no category_1 'Cooking'", "Food and Entertaining, Hobbies and Crafts")),
    ("vid,timestamp,text", dict(ids="none.txt"), ("none.txt: no such file", "one video id a line")), ("vid,timestamp,text", dict(part="align"), ("no file htm_align*.json",)),
    ("vid,timestamp,text", dict(part="captions"), ("no file raw_caption.json,caption.json",))])
def test_htm_file_refused(tmp_path, head, options, said):
    refused(howto100m.clips, *said, root=htm_folder(tmp_path, head=head), **options)


@pytest.mark.parametrize("adapter, options", [(howto100m, dict(part="x")), (howto100m, dict(window=-1)), (howto100m, dict(window="long")), (howto100m, dict(videos="v.mp4")),
                                              (charades_ego, dict(text="x")), (egoexolearn, dict(label="x")), (egoyc2, dict(eval_split="x"))])
def test_an_option_that_is_none_is_refused_with_those_there_are(tmp_path, adapter, options):
    htm_folder(yc2_folder(eel_folder(charades_folder(tmp_path, *PAIR), 'u,a,1,2,[0],[1],lab'), yc2_train={"b": ENTRY}))
    with pytest.raises(ValueError, match="expected"): adapter.clips(tmp_path, **options)


# ---- rosetta import, and rosetta index over several tables

def rosetta(capsys, *words) -> tuple:
    "Exit code, and all that was printed."
    code = cli.main([str(w) for w in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_import_writes_what_the_adapter_found_and_says_how_to_go_on(tmp_path, capsys):
    two = {"r1_s1_aaaaaaaaaaa": ENTRY, "r1_s2_aaaaaaaaaaa": ENTRY | dict(timestamps=[[0, 10], [10, 50]])}
    yc2_folder(tmp_path, egoyc2_train=two, egoyc2_eval={"r2_s1_bbbbbbbbbbb": ENTRY})
    code, said = rosetta(capsys, "import", "egoyc2", tmp_path, "--out", tmp_path / "out", "-o", "exo=false", "-o", "base=yc2/ego", "-o", "eval_split=val")
    found, table = egoyc2.clips(tmp_path, exo=False, base="yc2/ego", eval_split="val"), tmp_path / "out" / "clips.parquet"
    assert code == 0 and found.text() in said and f"rosetta doctor {table} --root DIR" in said
    pd.testing.assert_frame_equal(pd.read_parquet(table), found.clips)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out" / "problems.parquet"), found.problems)
    assert pd.read_csv(tmp_path / "out" / "counts.csv").what.tolist() == found.counts.what.tolist()

    line = next(s.split() for s in said.splitlines() if s.strip().startswith("rosetta index"))
    assert line[-1] == "--as-published" and "participant 's1'" in said
    words = [str(tmp_path) if w == "DIR" else w for w in line[1:]] + ["--run", str(tmp_path / "run")]
    code, said = rosetta(capsys, *words)
    assert code == 0 and "kept as published" in said and len(pd.read_parquet(tmp_path / "run" / "clips.parquet")) == len(found.clips)
    code, said = rosetta(capsys, *(w for w in words if w != "--as-published"), "--seed", 1)
    assert code == 2 and "participant 's1'" in said and "more than one split" in said


def test_import_of_sound_splits_needs_no_leave(tmp_path, capsys):
    code, said = rosetta(capsys, "import", "howto100m", htm_folder(tmp_path), "--out", tmp_path / "out", "-o", "window=gap")
    assert code == 0 and "--as-published" not in said and "note:" not in said


@pytest.mark.parametrize("words, said", [
    (["kinetics"], ("no data set 'kinetics'", "egoyc2", "howto100m", "lists the options of one")),
    (["egoyc2", "{root}"], ("--out DIR",)), (["egoyc2", "{root}/none", "--out", "{root}/out"], ("no such folder",)),
    (["egoyc2", "{root}", "--out", "{root}/out", "-o", "fps=3"], ("-o fps=3", "partnered=false", "only videos that an ego video re-enacts")),
    (["egoyc2", "{root}", "--out", "{root}/out", "-o", "root=x"], ("-o root=x", "partnered=false")),
    (["egoyc2", "{root}", "--out", "{root}/out", "-o", "exo"], ("-o exo: expected NAME=VALUE",)),
    (["egoyc2", "{root}", "--out", "{root}/out", "-o", "exo=perhaps"], ("-o exo=perhaps", "neither true nor false")),
    (["howto100m", "{root}", "--out", "{root}/out", "-o", "window=-2"], ("window=-2: expected seconds",)),
    (["egoyc2", "{root}", "--out", "{root}/out"], ("no file yc2_*.json",))])
def test_import_refuses(tmp_path, capsys, words, said):
    htm_folder(yc2_folder(tmp_path))
    code, told = rosetta(capsys, "import", *(w.format(root=tmp_path) for w in words))
    assert code == 2 and not [w for w in said if w not in told] and "Traceback" not in told and not (tmp_path / "out").exists(), told


@pytest.mark.parametrize("name", cli.ADAPTERS)
def test_every_option_of_an_adapter_is_explained(name, capsys):
    if importlib.util.find_spec(f"viewpoint_rosetta.datasets.{name}") is None:
        pytest.skip(f"no module datasets.{name} here yet")
    options = cli.adapter_options(cli.adapter(name))
    assert options and not [n for n, (_, text) in options.items() if len(text) < 5] and options["base"][0] == ""
    code, said = rosetta(capsys, "import", name)
    assert code == 0 and not [n for n in options if f"  {n}=" not in said]


def test_options_are_read_by_the_kind_of_their_default():
    options = dict(flag=(False, ""), text=("x", ""), seconds=(2.0, ""), some=(None, ""))
    words = ["flag=yes", "text=5", "seconds=3", "some=[1, 2]"]
    assert cli.option_values(options, words) == dict(flag=True, text="5", seconds=3, some=[1, 2])
    assert cli.option_values(options, ["seconds=gap", "text=a=b", "text="]) == dict(seconds="gap", text="")
    assert "__import__" in cli.option_values(options, ["some=__import__('os')"])["some"], "read, never run"


CLIP = dict(clip_id="a", video="a.mp4", start_s=0.0, end_s=1.0, view="ego", narration="cuts")


def manifests(folder, **tables) -> list:
    "CSV manifests by name, in folders of their own."
    for name, rows in tables.items():
        (folder / name).mkdir()
        pd.DataFrame(rows).to_csv(folder / name / "clips.csv", index=False)
    return [folder / name / "clips.csv" for name in tables]


def test_several_tables_are_indexed_as_one(tmp_path, capsys):
    paths = manifests(tmp_path, ego=[CLIP, CLIP | dict(clip_id="b")], exo=[CLIP | dict(clip_id="c", view="exo", task="9")])
    code, said = rosetta(capsys, "index", *paths, "--root", tmp_path, "--run", tmp_path / "run")
    table = pd.read_parquet(tmp_path / "run" / "clips.parquet")
    assert code == 0 and table.clip_id.tolist() == ["a", "b", "c"] and table.manifest_row.tolist() == [1, 2, 1] and "2 ego, 1 exo" in said
    assert "reuse" in rosetta(capsys, "index", *paths, "--root", tmp_path, "--run", tmp_path / "run")[1]
    pd.DataFrame([CLIP | dict(clip_id="d")]).to_csv(paths[1], index=False)
    rosetta(capsys, "index", *paths, "--root", tmp_path, "--run", tmp_path / "run")
    assert pd.read_parquet(tmp_path / "run" / "clips.parquet").clip_id.tolist() == ["a", "b", "d"], "a change in the second file is seen"


def test_an_id_of_two_tables_is_named_in_both(tmp_path, capsys):
    paths = manifests(tmp_path, ego=[CLIP, CLIP | dict(clip_id="b")], exo=[CLIP | dict(clip_id="c"), CLIP | dict(clip_id="d"), CLIP | dict(clip_id="b")])
    code, said = rosetta(capsys, "index", *paths, "--root", tmp_path, "--run", tmp_path / "run")
    assert code == 2 and f"{paths[1]}, row 3: clip_id 'b' is that of {paths[0]}, row 2" in said and "id of its own" in said


def test_a_bad_row_of_the_second_table_is_named_there(tmp_path, capsys):
    paths = manifests(tmp_path, ego=[CLIP], exo=[CLIP | dict(clip_id="c"), CLIP | dict(clip_id="d", end_s=0.0), CLIP | dict(clip_id="e")])
    code, said = rosetta(capsys, "index", *paths, "--root", tmp_path, "--run", tmp_path / "run")
    assert code == 2 and f"{paths[1]}: 1 of 3" in said and "row 2 (clip_id 'd')" in said
    assert rosetta(capsys, "index", *paths, "--root", tmp_path, "--run", tmp_path / "run", "--skip-bad")[0] == 0
    assert pd.read_parquet(tmp_path / "run" / "clips.parquet").manifest_row.tolist() == [1, 1, 3]
    assert artifacts.Run(tmp_path / "run").problems()[["clip_id", "file", "row"]].values.tolist() == [["d", str(paths[1]), 2]]


def test_tables_of_two_folders_need_a_root(tmp_path, capsys):
    paths = manifests(tmp_path, ego=[CLIP], exo=[CLIP | dict(clip_id="c")])
    code, said = rosetta(capsys, "index", *paths, "--run", tmp_path / "run")
    assert code == 2 and "--root DIR" in said
    code, said = rosetta(capsys, "index", paths[0], tmp_path / "none.csv", "--root", tmp_path, "--run", tmp_path / "run")
    assert code == 2 and "none.csv: no such file" in said


def test_real_data_sets_become_one_table(annotations, tmp_path, capsys):
    for name, folder in {"egoyc2": "egoyc2_yc2", "egoexolearn": "egoexolearn", "charades_ego": "charades_ego_v0"}.items():
        assert rosetta(capsys, "import", name, annotations / folder, "--out", tmp_path / name, "-o", f"base={name}")[0] == 0
    tables = [tmp_path / name / "clips.parquet" for name in ("egoyc2", "egoexolearn", "charades_ego")]
    code, said = rosetta(capsys, "index", *tables, "--root", tmp_path, "--run", tmp_path / "run", "--as-published")
    table = pd.read_parquet(tmp_path / "run" / "clips.parquet")
    assert code == 0 and "kept as published" in said and len(table) == sum(len(pd.read_parquet(t)) for t in tables)
    assert table.clip_id.is_unique and set(table.video.str.split("/").str[0]) == {"egoyc2", "egoexolearn", "charades_ego"} and table.sync_id.isna().all()


def test_lists_among_the_options():
    "Several between commas, a single one, or JSON."
    options = dict(parts=(("a", "b"), ""), passes=((1, 2), ""), base=("", ""))
    given = cli.option_values(options, ["parts=a,b", "passes=1", "base=x,y"])
    assert given == dict(parts=["a", "b"], passes=[1], base="x,y")
    assert cli.option_values(options, ["parts=b", "passes=[2, 1]"]) == dict(parts=["b"], passes=[2, 1])
