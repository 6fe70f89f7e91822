"""The line carries real video: windows of two real takes, seen by a head camera and four others, through `rosetta demo --manifest`. No claim of accuracy."""
import json

import numpy as np
import pandas as pd
import pytest

from test_cli import small_world
from viewpoint_rosetta import artifacts, cli, clips, features, world

pytest.importorskip("viewpoint_rosetta.methods")
SMALL = ["size=128", "whiten=64", "encoder.frames=4", "encoder.cells=1", "encoder.tube=2", "encoder.width=64", "encoder.depth=1",
         "phi.steps=20", "phi.batch=32", "phi.warmup=2", "rst.steps=20", "rst.width=32", "rst.depth=1"]  # the way, not the quality
CAMERAS = {"aria": "ego", "cam01": "exo", "cam02": "exo", "cam03": "exo", "cam04": "exo"}


def windows(takes=("cooking", "bike_repair"), seconds=3.0, first=1.0, end=29.5) -> pd.DataFrame:
    "Every window of every camera; the first second holds a take separator."
    starts = np.arange(first, end - seconds, seconds)
    return pd.DataFrame([dict(clip_id=f"{take}_{camera}_{i}", video=f"{take}/{camera}.mp4", start_s=s, end_s=s + seconds, view=view, camera=camera,
                              take=take, sync_id=f"{take}_{i}") for take in takes for camera, view in CAMERAS.items() for i, s in enumerate(starts)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A folder for a small world and for what is trained on it, once for all tests here."
    return tmp_path_factory.mktemp("trained")


def words_for(manifest, root, run, trained) -> list:
    "The command over a manifest, with settings small enough for a test."
    few = [word for setting in SMALL for word in ("--set", setting)]
    return [str(w) for w in ("demo", "--manifest", manifest, "--root", root, "--run", run, "--world-run", trained / "demo", *few)]


def test_real_takes_go_through_the_whole_line(real_data, trained, tmp_path, monkeypatch, capsys):
    root = real_data / "clips" / "egoexo4d"
    if not root.is_dir():
        pytest.skip("no real takes here: VR_REAL_DATA holds no clips/egoexo4d")
    few, run, df = small_world(trained / "world"), tmp_path / "own", windows()
    monkeypatch.setattr(world, "shipped", lambda: few)
    df.to_csv(tmp_path / "real.csv", index=False)
    words = words_for(tmp_path / "real.csv", root, run, trained)
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "domain gap" in out and "no claim of accuracy" in out and "chance" in out and out.rstrip().endswith("report.html")

    store, n = features.FeatureStore(run / "features"), len(df)
    assert set(store.ids) == set(df.clip_id) and np.isfinite(store.array()).all() and artifacts.Run(run).problems().empty
    assert len(np.unique(store.array().reshape(n, -1), axis=0)) == n, "every window has features of its own"

    pairs, ego = pd.read_parquet(run / "pairs.parquet"), set(df.clip_id[df["view"] == "ego"])
    assert set(pairs.ego) == ego and set(pairs.exo) <= set(df.clip_id) - ego
    assert pairs.groupby("ego")["rank"].apply(list).map(lambda ranks: ranks == list(range(1, len(pairs) // len(ego) + 1))).all(), "k partners each"
    assert np.isfinite(pairs[["score", "visual"]].to_numpy()).all()

    bench, takes, times = pd.read_parquet(run / "bench.parquet"), df["take"].nunique(), df.sync_id.nunique() // df["take"].nunique()
    rows = bench[(bench.metric == "HR@1") & (bench.method == "translated")].set_index(["protocol", "direction"])
    assert rows.value.between(0, 1).all() and set(bench.method) == {"translated", "not translated"}
    assert rows.chance["instance", "ego->exo"] == pytest.approx(1 / (takes * times)) == pytest.approx(rows.chance["instance", "exo->ego"])
    assert rows.chance["instance_within_take", "ego->exo"] == pytest.approx(1 / times) and rows.n["instance_within_take", "ego->exo"] == len(ego)

    page, facts = (run / "report.html").read_text(encoding="utf-8"), json.loads((run / "facts.json").read_text())
    assert "domain gap" in page and "Could not be shown" not in page and "domain gap" in facts["note"]

    assert cli.main(words) == 0
    again = capsys.readouterr().out
    assert ": run (" not in again and again[again.index("Retrieval of"):] == out[out.index("Retrieval of"):], "the second run says the same and does nothing"


def test_own_clips_that_nothing_ties_together(real_data, trained, tmp_path, monkeypatch, capsys):
    "Without sync_id there is nothing to score: the pairs are made, and it is said."
    if not (real_data / "clips" / "egoexo4d").is_dir():
        pytest.skip("no real takes here: VR_REAL_DATA holds no clips/egoexo4d")
    few, run, df = small_world(trained / "world"), tmp_path / "own", windows(("cooking",), end=8.0).drop(columns="sync_id")
    monkeypatch.setattr(world, "shipped", lambda: few)
    clips.write_clips(df, tmp_path / "real.parquet")
    assert cli.main(words_for(tmp_path / "real.parquet", real_data / "clips" / "egoexo4d", run, trained)) == 0
    assert "which windows belong together is unknown" in capsys.readouterr().out and set(pd.read_parquet(run / "pairs.parquet").ego) == set(df.clip_id[df["view"] == "ego"])
