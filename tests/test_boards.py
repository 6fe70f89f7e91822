"""Boards without a browser: a review changes what is trained, what is missing is named, dashboards come with the package."""
import shutil
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from viewpoint_rosetta import boards, cli, methods
from viewpoint_rosetta.boards import BOARDS, Board
from viewpoint_rosetta.inspector import PairInspector
from viewpoint_rosetta.verdicts import Review, read_verdicts


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def test_what_a_review_rejects_is_not_trained_on(run, monkeypatch, capsys):
    "Ten bad pairs away: the training gets the others only, and both rows are told."
    inspector, seen = Board(run).pairs(), []
    shown = []
    for _ in range(4):
        shown.append((inspector.item["ego"]["id"], inspector.item["candidates"][inspector.chosen]["id"]))
        inspector.asked(dict(say="reject"))
    trained = methods.train_method
    monkeypatch.setattr(methods, "train_method", lambda *args, pairs=None, **kw: seen.append(pairs) or trained(*args, pairs=pairs, **kw))
    assert cli.main(["train", "--method", "ours", "--verdicts", str(run / "verdicts.parquet"), "--run", str(run)]) == 0
    out, before = capsys.readouterr().out, pd.read_parquet(run / "pairs/0.parquet")
    left = set(zip(seen[0].ego, seen[0].exo))
    assert len(left) == len(before) - 4 and not left & set(shown)
    assert "\nours " in out and "\nours, reviewed " in out


def test_whom_each_witness_alone_would_have_chosen(run):
    alone = pd.read_parquet(run / "alone/0.parquet")
    pairs = pd.read_parquet(run / "pairs/0.parquet")
    assert set(alone.kind) == set(methods.KINDS) - {"random"} and (alone.groupby("kind").ego.nunique() == pairs.ego.nunique()).all()
    both = alone[alone.kind == "rst+language"].set_index("ego").exo
    assert (both == pairs[pairs["rank"] == 1].set_index("ego").exo.reindex(both.index)).all(), "the last way is that of the pairs"
    inspector = Board(run).pairs()
    told = [c["why"] for i in range(len(inspector.rows)) for c in (inspector._go(i), inspector.item["candidates"])[1]]
    assert any("language alone" in why for why in told) and any("translation alone" in why for why in told)


@pytest.mark.parametrize("gone, view, command", [("pairs", "pairs", "match"), ("translator", "translation", "train-translator"),
                                                 ("embeddings.safetensors", "map", "report"), ("encoder", "retrieval", "train --method ours")])
def test_what_is_missing_is_named_with_its_command(run, gone, view, command):
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if gone == "pairs": (run / "pairs.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=f"`rosetta {command} --run"): getattr(Board(run), view)()


def test_an_unknown_board_and_an_empty_folder_are_refused(tmp_path, capsys):
    assert cli.main(["dash", "maps", "--run", str(tmp_path)]) == 2 and "there are: pairs, map, retrieval" in capsys.readouterr().err
    assert cli.main(["dash", "map", "--run", str(tmp_path)]) == 2 and "rosetta demo" in capsys.readouterr().err


def test_a_changed_encoder_is_asked_anew(run):
    "Spaces are computed once, and again when a reviewed encoder comes."
    before = Board(run).retrieval().methods
    shutil.copytree(run / "encoder/ours/0", run / "encoder/ours-reviewed/0")
    assert before == ["frozen", "ours"] and Board(run).retrieval().methods == ["frozen", "ours", "ours, reviewed"]


def test_dashboards_come_with_the_package():
    for name in BOARDS: assert (boards.ASSETS / "dashboards" / f"{name}.ipynb").is_file()
    assert (boards.ASSETS / "voila/templates/rosetta/index.html.j2").is_file()


def test_a_log_can_be_read_while_it_grows(tmp_path):
    "Two reviewers read each other's files while verdicts are said: opened by its name, one read in thirteen met two versions of a file."
    path = tmp_path / "verdicts.parquet"
    review = Review(path)
    review.say("ego", "exo", "accept")
    def say():
        for i in range(200): review.say(f"ego {i}", f"exo {i}" * (i % 7 + 1), "reject", "x" * i)
    with ThreadPoolExecutor(1) as hand:
        saying, lengths = hand.submit(say), [1]
        while not saying.done(): lengths.append(len(read_verdicts(path)))
        saying.result()
    assert len(lengths) > 20 and lengths == sorted(lengths) and len(read_verdicts(path)) == 201


def test_two_pages_write_to_one_log_and_nothing_is_lost(pairs_of_two, tmp_path):
    "Two pages of one run, or one opened twice: each knows the log as it was when it opened, and neither writes over the other."
    path = tmp_path / "verdicts.parquet"
    first, second = (Review(path, name) for name in ("first", "second"))
    with ThreadPoolExecutor(2) as hands:
        list(hands.map(lambda r: [r.say(f"ego {i}", "exo", "accept") for i in range(30)], (first, second)))
    assert read_verdicts(path).reviewer.value_counts().to_dict() == dict(first=30, second=30)
    path.unlink()
    first.say("ego 31", "exo", "accept")
    assert len(read_verdicts(path)) >= 31, "a log that was deleted under the page comes back whole"
    pages = [PairInspector(*pairs_of_two, tmp_path / "both.parquet", name) for name in ("first", "second")]
    pages[0].asked(dict(say="accept", chosen=0))
    pages[1].asked(dict(say="reject", chosen=0))
    assert len(pages[1].verdicts()) == 2 and pages[1].agreed.startswith("with first: 1 judged by both, 0 the same")


@pytest.fixture
def pairs_of_two(run):
    board = Board(run)
    return board.pairs().pairs, board.clips
