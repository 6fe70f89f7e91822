"""A published encoder in the place of the backbone: the whole line on its vectors, and what must not be mixed."""
import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from test_cli import SHIPPED, some_clips
from viewpoint_rosetta import chain, clips, methods, translator, world
from viewpoint_rosetta.chain import Line
from viewpoint_rosetta.cli import main
from viewpoint_rosetta.timesformer import DualSettings, TimeSformerSettings, VideoTextEncoder
from viewpoint_rosetta.vectors import load_video_backbone
from viewpoint_rosetta.verdicts import Review
from viewpoint_rosetta.video import clip_frames

pytestmark = pytest.mark.skipif(SHIPPED is None, reason="the shipped world is not here")
TINY = ["whiten=16", "encoder.width=16", "encoder.heads=2", "encoder.depth=1", "phi.steps=4", "train.steps=4", "train.batch=16", "rst.steps=10",
        "rst.width=16", "rst.depth=1", "precision=float32"]


def lavila_file(path: Path, seed: int = 0) -> Path:
    "A small dual encoder in LaViLa's format: 32 pixels, 4 frames, 24 numbers out."
    torch.manual_seed(seed)
    model = VideoTextEncoder(DualSettings(TimeSformerSettings(32, 16, 64, 1, 1, 4), out=24, width=64, heads=1, layers=1, context=12, vocab=50))
    torch.save(dict(epoch=4, args=Namespace(model="tiny"), state_dict={f"module.{k}": v for k, v in model.state_dict().items()}), path)
    return path


def rosetta(*args) -> int: return main([str(a) for a in args])


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    "A run of the few clips over a published encoder, up to two trained rows."
    folder = tmp_path_factory.mktemp("given")
    clips.write_clips(some_clips(), folder / "few.parquet")
    changes = [x for c in TINY for x in ("--set", c)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translator, "MLP", translator.Identity)  # half a minute of tuning that is tested elsewhere
        assert not rosetta("index", folder / "few.parquet", "--root", world.shipped().parent, "--run", folder / "run",
                           "--backbone", lavila_file(folder / "lavila.pth"), *changes)
        for method in ("ours", "LaViLa*", "frozen"): assert not rosetta("train", "--method", method, "--run", folder / "run")
    return folder


def test_the_vectors_are_the_encoders(walked):
    line, backbone = Line(walked / "run"), load_video_backbone(walked / "lavila.pth")
    assert line.given and line.phi(0) == "given" and line.raw.tokens.shape[1:] == (1, 1, 24)
    for row in (0, 40):
        frames = clip_frames(line.table, row, 4)
        z = methods.embed("given", line.bank, [line.table.clip_id[row]])[0]
        assert np.allclose(z, backbone(backbone.preprocess(frames))[0, 0], atol=2e-3) and abs(np.linalg.norm(z) - 1) < 1e-5


def test_the_line_ends_in_the_space_of_the_encoder(walked):
    line = Line(walked / "run")
    ours = methods.DualEncoder.from_pretrained(walked / "run" / "encoder" / "ours" / "0")
    assert ours.settings.out == 24 and ours.settings.frames == ours.settings.cells == 1, "T must be able to translate f_theta's features"
    assert line.rst(0).translate(methods.embed("given", line.bank, line.table.clip_id[:3])).shape == (3, 24)
    rows = pd.concat(pd.read_parquet(walked / "run" / "encoder" / m / "0.parquet") for m in ("ours", "lavila", "frozen"))
    assert rows.groupby("method").value.count().gt(5).all() and rows.value.between(0, 1).all()


def test_the_row_that_is_trained_on_our_clips_is_trained(walked):
    "LaViLa* has seen these clips; the published encoder has not, so it cannot stand for it."
    assert (walked / "run" / "encoder" / "lavila" / "0" / "model.safetensors").exists()


def test_another_checkpoint_is_not_mixed_in(walked, tmp_path, capsys):
    run = shutil.copytree(walked / "run", tmp_path / "run")
    assert rosetta("extract", "--run", run, "--backbone", lavila_file(tmp_path / "other.pth", seed=1)) == 2
    told = capsys.readouterr().err
    assert "weights was" in told and "another folder" in told
    assert not rosetta("extract", "--run", walked / "run"), "the first one is still in order"
    assert "reuse" in capsys.readouterr().out


def test_the_checkpoint_is_gone(walked, tmp_path, capsys):
    run = shutil.copytree(walked / "run", tmp_path / "run")
    moved = walked / "elsewhere.pth"
    (walked / "lavila.pth").rename(moved)
    try:
        assert rosetta("extract", "--run", run) == 2
        assert "lavila.pth" in capsys.readouterr().err
    finally: moved.rename(walked / "lavila.pth")


def test_f_theta_cannot_start_from_vectors(walked):
    line = Line(walked / "run", changes=Line(walked / "run").choice["changes"] | dict(init="phi"))
    with pytest.raises(ValueError, match="init='scratch'"):
        methods.train_method("ours", line.bank, line.blind, "given", None, line.settings, pairs=pd.DataFrame(dict(ego=[], exo=[])))


def test_the_rivals_of_the_translator_get_the_same_rooms_and_seed(walked, monkeypatch):
    "Ridge, on the table and on the map, chooses its strength by whole rooms, as the RST does."
    line, asked = Line(walked / "run"), []
    monkeypatch.setattr(translator, "compare_translators", lambda *given: asked.append(given) or pd.DataFrame(dict(method=["RST"], fit_s=[0.])))
    chain.compared(line, line.phi(3), line.rst(0), 3, 1.)
    rooms = methods.rooms_of(line.blind, methods.paired_features("given", line.bank, line.blind)[2])
    assert asked[0][3] == (3,) and np.array_equal(asked[0][4], rooms) and len(set(rooms)) > 2
    fits, fit = [], translator.Ridge.fit
    monkeypatch.setattr(translator.Ridge, "fit", lambda self, *z, **how: fits.append(how) or fit(self, *z, **how))
    monkeypatch.setattr(Line, "rst", lambda self, seed: translator.RosettaPipeline.from_pretrained(walked / "run" / "translator" / "0", local_files_only=True))
    chain.path_map(line, 3, line.blind[line.blind.split == "test"])
    assert fits[0]["seed"] == 3 and np.array_equal(fits[0]["groups"], rooms)


def test_the_doctor_knows_a_published_encoder(walked, capsys):
    "It is timed with its own frames and pixels, and a row of its store is one vector."
    assert not rosetta("doctor", walked / "few.parquet", "--root", world.shipped().parent, "--run", walked / "run", "--sample", 4, "--json")
    plan = json.loads(capsys.readouterr().out)
    steps = {s["step"]: s for s in plan["steps"]}
    assert steps["extract"]["done"] and "weights lavila.pth: lavila" in str(plan["findings"])
    assert not rosetta("doctor", walked / "few.parquet", "--root", world.shipped().parent, "--run", walked / "new", "--sample", 4, "--json",
                       "--backbone", walked / "lavila.pth", "--set", "precision=float32")
    new = {s["step"]: s for s in json.loads(capsys.readouterr().out)["steps"]}
    assert not new["extract"]["done"] and 0 < new["extract"]["disk"] < 1e6, "66 clips of 24 half numbers"


def test_training_takes_the_verdicts_of_a_review(walked, tmp_path, capsys):
    "Rejected pairs go, the row has a name of its own, and other verdicts train it anew."
    run, review = walked / "run", Review(tmp_path / "verdicts.parquet")
    assert not rosetta("match", "--run", run)
    pairs = pd.read_parquet(run / "pairs" / "0.parquet")
    for ego, exo in pairs[["ego", "exo"]].head(3).to_numpy(): review.say(ego, exo, "reject")
    given = ("train", "--method", "ours", "--run", run, "--verdicts", review.path)
    assert not rosetta(*given) and "ours, reviewed" in capsys.readouterr().out
    left = chain.left_pairs(Line(run), "ours", 0, [review.path])
    assert len(left) == len(pairs) - 3 and (run / "encoder" / "ours-reviewed" / "0" / "model.safetensors").exists()
    assert not rosetta(*given) and "encoder/ours-reviewed/0: reuse" in capsys.readouterr().out
    review.undo()
    assert not rosetta(*given) and "encoder/ours-reviewed/0: run (inputs changed" in capsys.readouterr().out
    assert rosetta("train", "--method", "ours w/o RST", "--run", run, "--verdicts", review.path) == 2
    assert rosetta("train", "--method", "ours", "--run", run, "--verdicts", tmp_path / "none.parquet") == 2
    told = capsys.readouterr().err
    assert "trains on others" in told and "none.parquet: no such file" in told
