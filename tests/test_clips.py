"The clip table: what is kept, what is refused and how that is said, pools, pairs and honest splits."
import time
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from viewpoint_rosetta.artifacts import Run
from viewpoint_rosetta.clips import (SCHEMA, SPLITS, TRUTH, ClipError, assign_splits, check_splits, hide_truth, pool,
                                     read_clips, sync_pairs, validate, video_path, write_clips)


def table(n=4, **columns):
    base = dict(clip_id=[f"c{i}" for i in range(n)], video="v.mp4", start_s=0.0, end_s=1.0, view="ego",
                narration="C cuts")
    return pd.DataFrame({**base, **columns})


def csv(path, df): df.to_csv(path, index=False); return path


# ---- what is kept

def test_missing_columns_are_filled_extra_ones_kept_and_the_order_fixed():
    mixed = ["light", "view", "end_s", "start_s", "video", "clip_id", "poses"]
    df = validate(table(2, light=[1, 2], poses=[[1.0], [2.0]])[mixed])
    assert df.columns.tolist() == [*SCHEMA.names, "light", "poses"] and df.index.tolist() == [0, 1]
    assert df.light.tolist() == [1, 2] and df.label.isna().all() and df.start_s.dtype == float


def test_index_and_attrs(tmp_path):
    df = table(3)
    df.index, df.attrs["root"] = [7, 3, 7], "there"
    assert validate(df).index.tolist() == [0, 1, 2] and validate(df).attrs == {"root": "there"}
    assert df.index.tolist() == [7, 3, 7]


@pytest.mark.parametrize("values, want", [
    ([1, 2], ["1", "2"]), ([1.0, np.nan], ["1", None]), (pd.Categorical(["a", "b"]), ["a", "b"]),
    (pd.array([3, None], "Int64"), ["3", None]), ([" ", "a"], [None, "a"]), ([b"a", None], ["a", None]),
    (["NA", "null"], ["NA", "null"])])
def test_text_comes_in_many_disguises(values, want):
    got = validate(table(2, participant=values)).participant
    assert [None if pd.isna(v) else v for v in got] == want


def test_round_trips(tmp_path):
    df = validate(table(3, sync_id=["a", None, "b"], narration=["C, \"cuts\"\nan onion", "NA", "ñ"],
                        start_s=[0.1, 1 / 3, 2e-5], light=[1, 2, 3]))
    for name in ("a.csv", "a.tsv", "a.parquet"):
        write_clips(df, tmp_path / name)
        again = read_clips(tmp_path / name)
        pd.testing.assert_frame_equal(again, df)
        assert again.attrs == {"root": str(tmp_path)}
    assert pq.read_schema(tmp_path / "a.parquet").names == [*SCHEMA.names, "light"]
    assert not pq.read_schema(tmp_path / "a.parquet").field("clip_id").nullable
    assert str(tmp_path).encode() not in (tmp_path / "a.parquet").read_bytes()  # no machine's path inside


def test_same_table_same_bytes(tmp_path):
    for name in ("a", "b"): write_clips(validate(table(5, scene=list("abcde"))), tmp_path / f"{name}.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_root(tmp_path):
    csv(tmp_path / "a.csv", table())
    assert read_clips(tmp_path / "a.csv", root=tmp_path / "videos").attrs["root"] == str(tmp_path / "videos")


def test_a_spreadsheets_byte_order_mark(tmp_path):
    text = "\ufeffclip_id,video,start_s,end_s,view,narration\na,v.mp4,0,1,ego,C cuts\n"
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    assert read_clips(tmp_path / "a.csv").clip_id.tolist() == ["a"]


# ---- what is refused

@pytest.mark.parametrize("columns, reason", [
    (dict(end_s=[1, 0, 1, 1]), "end_s 0 is not after start_s 0.0; a clip needs a positive length"),
    (dict(start_s=[0, 5, 0, 0]), "end_s 1.0 is not after start_s 5"),
    (dict(start_s=[0, -1, 0, 0]), "start_s -1 lies before the video"),
    (dict(start_s=[0, "one", 0, 0]), "start_s 'one' is not a number of seconds"),
    (dict(end_s=[1, np.inf, 1, 1]), "end_s inf is not a number of seconds"),
    (dict(end_s=[1, None, 1, 1]), "end_s nan is not a number of seconds"),
    (dict(view=["ego", "top", "exo", "ego"]), "view 'top' is none of ego, exo"),
    (dict(view=["ego", "Ego", "exo", "ego"]), "view 'Ego' is none of ego, exo"),
    (dict(view=["ego", None, "exo", "ego"]), "view is missing"),
    (dict(video=["a", "  ", "c", "d"]), "video is missing"),
    (dict(split=["train", "dev", None, "test"]), "split 'dev' is none of train, val, test"),
    (dict(skill=["good", "ok", None, "bad"]), "skill 'ok' is none of good, bad"),
    (dict(narration=["a", b"caf\xe9", "c", "d"]), r"narration 'caf\xe9' is not UTF-8"),
    (dict(narration=pd.Series(["a", "caf\udce9", "c", "d"], dtype=object)), r"narration 'caf\xe9' is not UTF-8"),
    *((dict(video=["a", path, "c", "d"]), f"video '{path}' leaves the table's folder")
      for path in ("../v.mp4", "a/../../v.mp4", "/etc/v.mp4", "a/..", "..", "C:\\v.mp4", "..\\v.mp4",
                   "\\\\host\\v.mp4")),
])
def test_a_bad_row_is_named_with_what_it_says(columns, reason):
    with pytest.raises(ClipError) as caught: validate(table(**columns), "clips.csv")
    assert str(caught.value).startswith("clips.csv: 1 of 4 clips cannot be used")
    assert f"  row 2 (clip_id 'c1'): {reason}" in str(caught.value) and caught.value.problems.row.tolist() == [2]


@pytest.mark.parametrize("video", ["..a/v.mp4", "a..b.mp4", "a/b/v.mp4", "...mp4", "v 1:2.mp4", "ü/ñ.mp4"])
def test_paths_inside_are_accepted(video): assert validate(table(1, video=video)).video[0] == video


def test_duplicate_clip_ids_name_every_row_of_them():
    with pytest.raises(ClipError, match="3 of 4 clips") as caught: validate(table(clip_id=["a", "b", "a", "a"]))
    assert caught.value.problems.row.tolist() == [1, 3, 4]
    assert "clip_id 'a' is used by more than one row" in str(caught.value)


def test_many_bad_rows_are_told_together():
    with pytest.raises(ClipError) as caught: validate(table(25, view="top"), "many.csv")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("many.csv: 25 of 25") and len([line for line in lines if "  row " in line]) == 10
    assert lines[-2] == "  … and 15 more" and len(caught.value.problems) == 25


def test_missing_and_repeated_columns():
    with pytest.raises(ClipError, match="clips.csv: no column end_s, view; found 'clip_id'"):
        validate(table().drop(columns=["end_s", "view"]), "clips.csv")
    with pytest.raises(ClipError, match="column view is there more than once"):
        validate(pd.concat([table(), table()[["view"]]], axis=1))


def test_bad_rows_can_be_left_out_and_are_on_record(tmp_path):
    run = Run(tmp_path / "run")
    path = csv(tmp_path / "a.csv", table(view=["ego", "top", "exo", "ego"], start_s=[0, 0, 0, "x"], narration="C cuts"))
    df = read_clips(path, on_problem=run.problem)
    assert df.clip_id.tolist() == ["c0", "c2"] and df.index.tolist() == [0, 1]
    assert run.problems().values.tolist() == [["c1", str(path), 2, "view 'top' is none of ego, exo"],
                                              ["c3", str(path), 4, "start_s 'x' is not a number of seconds"]]


# ---- files

def test_no_file(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ClipError, match="no such file; give the manifest"): read_clips(path)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_an_empty_file(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ClipError, match=f"{name}: cannot be read"): read_clips(tmp_path / name)


def test_a_header_alone(tmp_path):
    csv(tmp_path / "a.csv", table(0))
    write_clips(validate(table(0)), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(ClipError, match=f"{name}: holds no clips"): read_clips(tmp_path / name)


@pytest.mark.parametrize("name, content, message", [
    ("a.parquet", b"this is text", "cannot be read as a .parquet table"),
    ("a.csv", b"clip_id,video\na,b,c,d,e\n", "no column start_s"),
    ("a.csv", b"clip_id,video,start_s,end_s,view\na,v.mp4,0,1,ego\nb,v.mp4,0,1,ego,x,y\n", "line 3"),
    ("a.csv", "clip_id,video,start_s,end_s,view\n".encode("utf-16"), "UTF-8"),
    ("a.csv", b"\x00\x01\x02\xff", "a.csv"),
    ("a.xlsx", b"", "ends in .csv, .tsv or .parquet"),
])
def test_files_that_are_no_table(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=message) as caught: read_clips(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_truncated_parquet(tmp_path):
    write_clips(table(100), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[:len(data) // 2])
    with pytest.raises(ClipError, match="a.parquet: cannot be read"): read_clips(tmp_path / "a.parquet")


def test_narrations_that_are_not_utf8_name_their_rows(tmp_path):
    text = table(narration=["a", "café", "c", "jalapeño"]).to_csv(index=False)
    (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ClipError, match="save the table as UTF-8") as caught: read_clips(tmp_path / "a.csv")
    assert caught.value.problems[["row", "clip_id"]].values.tolist() == [[2, "c1"], [4, "c3"]]


def test_narrations_that_are_not_utf8_in_parquet(tmp_path):
    columns = {name: pa.array(values) for name, values in table(2).items()}
    columns["narration"] = pa.array([b"fine", b"caf\xe9"], pa.binary())
    pq.write_table(pa.table(columns), tmp_path / "binary.parquet")
    buffers = columns["narration"].buffers()[1:]
    columns["narration"] = pa.StringArray.from_buffers(2, *buffers)  # claims to be UTF-8 and is not
    pq.write_table(pa.table(columns), tmp_path / "string.parquet")
    for name in ("binary", "string"):
        with pytest.raises(ClipError, match=r"row 2 \(clip_id 'c1'\): narration 'caf.xe9' is not UTF-8"):
            read_clips(tmp_path / f"{name}.parquet")


def test_empty_narrations_are_kept_and_told(tmp_path):
    csv(tmp_path / "a.csv", table(narration=["a", "", "  ", "NA"]))
    with pytest.warns(UserWarning, match=r"a.csv: 2 of 4 clips have no narration, such as row 2 \(clip_id 'c1'\)"):
        df = read_clips(tmp_path / "a.csv")
    assert df.narration.isna().tolist() == [False, True, True, False] and df.narration[3] == "NA"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_clips(csv(tmp_path / "b.csv", table()))


def test_an_unwritable_place_and_a_bad_table_leave_the_old_file(tmp_path):
    write_clips(table(), tmp_path / "a.parquet")
    before = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(ClipError): write_clips(table(view="top"), tmp_path / "a.parquet")
    with pytest.raises(OSError, match="cannot write .*b.parquet"):
        write_clips(table(), tmp_path / "a.parquet" / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


# ---- where videos are

def test_video_paths_stay_inside_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret.mp4").touch()
    (root / "in.mp4").touch()
    (root / "a" / "ok.mp4").symlink_to(root / "in.mp4")
    (root / "out.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    df = table(1)
    df.attrs["root"] = str(root)
    for where in (df, root, str(root)): assert video_path(where, "a/ok.mp4") == (root / "in.mp4").resolve()
    away = str(tmp_path / "secret.mp4")
    for video in ("out.mp4", "up/secret.mp4", "../secret.mp4", away, "a/../../secret.mp4", "a\0b"):
        with pytest.raises(ClipError, match="video"): video_path(df, video)
    with pytest.raises(ClipError, match="loop"): assert video_path(df, "loop/v.mp4").exists(), "loop"
    (tmp_path / "link").symlink_to(root)
    assert video_path(tmp_path / "link", "in.mp4") == (root / "in.mp4").resolve()  # a root that is itself a link


# ---- pools, pairs, truth

def paired():
    return validate(pd.DataFrame([
        ("e0", "ego", "train", "m0"), ("x0", "exo", "train", "m0"), ("y0", "exo", "train", "m0"),
        ("e1", "ego", "train", "m1"), ("x2", "exo", "train", None), ("e3", "ego", "train", None),
        ("e4", "ego", "val", "m4"), ("x4", "exo", "val", "m4"), ("e5", "ego", "test", "m5"),
        ("e6", "ego", "train", "m6"), ("x6", "exo", "test", "m6"), ("n", "ego", None, None),
    ], columns=["clip_id", "view", "split", "sync_id"]).assign(video="v.mp4", start_s=0, end_s=1))


@pytest.mark.parametrize("name, ids", [("paired", "e0 x0 y0"), ("ego", "e1 e3 e6"), ("exo", "x2"), ("val", "e4 x4"),
                                       ("test", "e5 x6"), ("train", "e0 x0 y0 e1 x2 e3 e6")])
def test_pools(name, ids):
    part = pool(paired(), name)
    assert part.clip_id.tolist() == ids.split() and part.index.tolist() == list(range(len(part)))


def test_an_unknown_pool():
    with pytest.raises(ClipError, match="pool 'both' is none of paired, ego, exo"): pool(paired(), "both")


def test_sync_pairs_are_all_ego_exo_combinations():
    df = paired()
    pairs = sync_pairs(df)
    assert pairs[["ego", "exo"]].values.tolist() == [["e0", "x0"], ["e0", "y0"], ["e4", "x4"], ["e6", "x6"]]
    assert (df.clip_id.iloc[pairs.ego_row].values == pairs.ego.values).all()
    assert (df.sync_id.iloc[pairs.exo_row].values == pairs.sync_id.values).all()
    assert len(sync_pairs(df[df.sync_id.isna()])) == 0


def test_hidden_truth_cannot_be_read():
    hidden = hide_truth(validate(table(label="cut", object="onion", skill="good")))
    for name in TRUTH:
        with pytest.raises(KeyError): hidden[name]
    assert set(SCHEMA.names) - set(hidden.columns) == set(TRUTH)


# ---- splits

def people(n=400, seed=0):
    rng = np.random.default_rng(seed)
    who = rng.integers(0, 30, n)
    return validate(table(n, participant=who, scene=who // 2, take=[f"t{p}-{i % 3}" for i, p in enumerate(who)],
                          video=[f"{p}-{i % 3}.mp4" for i, p in enumerate(who)]))


def test_splits_share_no_person_and_no_room():
    df = assign_splits(people(), (0.7, 0.15, 0.15), seed=3)
    for name in ("participant", "scene", "take", "video"): assert df.groupby(name).split.nunique().max() == 1
    share = df.split.value_counts(normalize=True)
    assert set(share.index) == set(SPLITS) and abs(share["train"] - 0.7) < 0.07 and check_splits(df) is df


def test_splits_follow_the_seed_and_a_dict_of_fractions():
    df = people()
    assert assign_splits(df, seed=1).split.equals(assign_splits(df, seed=1).split)
    assert any(not assign_splits(df, seed=0).split.equals(assign_splits(df, seed=s).split) for s in (1, 2, 3))
    assert set(assign_splits(df, {"train": 1, "test": 1}).split) == {"train", "test"}
    assert df.split.isna().all()  # the table given is not changed


def test_chains_are_followed():
    "p1 - room1 - p2 - room2: all four clips hang together through the middle ones."
    df = validate(table(6, video=list("abcdef"), participant=["p1", "p2", "p2", "p3", "p4", "p5"],
                        scene=["r1", "r1", "r2", "r2", "r4", "r5"]))
    df = assign_splits(df, seed=0)
    assert df.split[:4].nunique() == 1 and df.split.nunique() == 3
    assert assign_splits(df, ties=("participant",)).split[:4].nunique() > 1


def test_what_is_missing_ties_nothing():
    df = validate(table(30, video=[f"{i}.mp4" for i in range(30)], participant=None, scene=None,
                        sync_id=[f"s{i // 2}" for i in range(30)]))
    df = assign_splits(df)
    assert df.split.nunique() == 3 and df.groupby("sync_id").split.nunique().max() == 1


def test_one_group_cannot_be_split():
    with pytest.raises(ClipError, match="no clips left for test, val: 4 clips form only 1 groups"):
        assign_splits(validate(table()))


@pytest.mark.parametrize("tie", ["participant", "scene", "take", "sync_id", "video"])
def test_a_leak_is_named(tie):
    values = {"video": list("abcd"), tie: ["u", "v", "v", None if tie != "video" else "w"]}
    df = validate(table(4, **values, split=["train", "train", "test", "val"]))
    with pytest.raises(ClipError, match=rf"{tie} 'v' \(1 in all\) is in more than one split"): check_splits(df)
    assert len(check_splits(df.drop(index=2)))


# ---- size

def test_checking_is_vectorised():
    n = 200_000
    i = pd.Series(np.arange(n)).astype(str)
    df = table(n, clip_id=i, sync_id=i, narration=i)
    start = time.process_time()
    validate(df)
    assert time.process_time() - start < 2  # a million rows take about a second on an idle core
