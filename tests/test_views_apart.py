"""Views without a page: other reviewers' files that break or take one's name, work beside the page that fails or comes late."""
import threading

import numpy as np
import pandas as pd
import pytest

from viewpoint_rosetta.canvas import PointView
from viewpoint_rosetta.inspector import PairInspector
from viewpoint_rosetta.maps import EmbeddingMap, flatten
from viewpoint_rosetta.verdicts import Review, VerdictError


def table(n: int) -> pd.DataFrame:
    "n ego and n exo clips of no video."
    return pd.DataFrame([dict(clip_id=f"{v}{i}", video="none.mp4", start_s=0., end_s=1., view=v, camera=None, scene=None, narration=None, sync_id=str(i))
                         for v in ("ego", "exo") for i in range(n)])


@pytest.fixture
def pairs():
    n = 6
    return pd.DataFrame(dict(ego=[f"ego{i // 2}" for i in range(n)], exo=[f"exo{i % 2}" for i in range(n)], score=np.linspace(.9, .1, n), visual=.5, text=.5,
                             rank=[1, 2] * 3, mutual=True, margin=.1))


def test_a_file_of_another_that_breaks_is_said_and_what_was_read_stays(pairs, tmp_path):
    with pytest.raises(VerdictError, match="second"):
        (tmp_path / "second.parquet").write_bytes(b"half")
        PairInspector(pairs, table(3), tmp_path / "mine.parquet", "first", others=[tmp_path / "second.parquet"])
    (tmp_path / "second.parquet").unlink()
    Review(tmp_path / "second.parquet", "second").say("ego0", "exo0", "reject")
    view = PairInspector(pairs, table(3), tmp_path / "mine.parquet", "first", others=[tmp_path / "second.parquet"])
    (tmp_path / "second.parquet").write_bytes(b"half a file")
    view.asked(dict(move=1))
    assert "second.parquet" in view.status and view.said[("ego0", "exo0")] == dict(second=("reject", ""))
    view.select(["ego0"])
    view.asked(dict(say="accept", chosen=0))
    assert "second said reject" in view.status and len(view.verdicts()) == 1


def test_two_who_forgot_to_say_their_names_are_two(pairs, tmp_path):
    Review(tmp_path / "theirs.parquet").say("ego0", "exo0", "reject")
    view = PairInspector(pairs, table(3), tmp_path / "mine.parquet", others=[tmp_path / "theirs.parquet"])
    assert view.judged == {}, "what the other said is not one's own"
    view.select(["ego0"])
    view.asked(dict(say="accept", chosen=0))
    view.show = "in conflict"
    assert len(view.rows) == 1 and view.agreed.startswith(f"with reviewer 1 in {tmp_path.name}/theirs.parquet: 1 judged by both, 0 the same")


def test_a_conflict_is_not_seen_by_who_has_not_judged(pairs, tmp_path):
    for name, word in (("a", "accept"), ("b", "reject")): Review(tmp_path / f"{name}.parquet", name).say("ego1", "exo0", word)
    view = PairInspector(pairs, table(3), tmp_path / "mine.parquet", "c", others=[tmp_path / "a.parquet", tmp_path / "b.parquet"])
    view.show = "in conflict"
    assert len(view.rows) == 0
    view.peek = True
    assert pairs.ego.iloc[view.rows].tolist() == ["ego1"] and view.chosen == 0
    view.show, view.peek = "all", False
    view.select(["ego1"])
    assert all(c["others"] == [] for c in view.item["candidates"]) and view.agreed == ""


def test_work_beside_the_page_that_fails_is_said():
    view = PointView(table(2), table(2))
    view.meanwhile("counting", lambda: 1 / 0, None)
    view.wait()
    assert view.note.startswith("counting: failed (ZeroDivisionError")
    gate, got = threading.Event(), []
    view.meanwhile("waiting", gate.wait, got.append)
    view.meanwhile("a second one", lambda: got.append("never"), got.append)
    assert view.note == "waiting" and got == []
    gate.set()
    view.wait()
    assert view.note == "" and got == [True]


def test_a_map_is_there_before_umap_and_can_be_left_for_it(monkeypatch):
    gate, z = threading.Event(), np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    def slow(z, seed): gate.wait(); return z[:, :2]
    monkeypatch.setattr("viewpoint_rosetta.maps.project", slow)
    view = EmbeddingMap({"z": z}, table(20), table(20))
    first = flatten(z, "pca").tobytes()
    assert view.places == first and view.note.startswith("UMAP")
    view.method = "pca"
    view.method = "umap"  # asked again while it is on its way
    assert view.places == first
    gate.set()
    view.wait()
    assert view.places == flatten(z).tobytes() != first and view.note == ""
    view.method = "pca"
    assert view.places == first
