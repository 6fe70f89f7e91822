"The frame on screen at that second, or an error that names the file, what was asked, what was found, what to do."
import io
import multiprocessing
import os
import wave
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from viewpoint_rosetta import video
from viewpoint_rosetta.clips import read_clips
from viewpoint_rosetta.video import (VideoError, animate, clip_frames, data_uri, frame_times, probe, read_frames, strip,
                                     thumbnail)
from viewpoint_rosetta.world import shipped

REAL = Path(os.environ.get("VR_REAL_DATA") or Path(__file__).parents[1] / "../shared/real").resolve() / "clips"
real = pytest.mark.skipif(not REAL.is_dir(), reason="no real clips: set VR_REAL_DATA to the folder that holds clips/")
readers = pytest.mark.parametrize("reader", [video._decord, video._pyav])


def film(path, frames=48, fps=16, offset=0, size=(64, 48), options=None):
    "Frame k is grey of value 16 + 4k, brighter in its upper half; a key frame every 12 frames."
    options = options or ({"movflags": "faststart"} if path.suffix == ".mp4" else {})
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
        stream.options = {"qscale": "2", "flags": "+qscale"} if path.suffix == ".avi" else {"crf": "4"}
        times = frames if isinstance(frames, list) else range(frames)
        for k, at in enumerate(times):
            pixels = np.full((size[1], size[0], 3), 16 + 4 * k, np.uint8)
            pixels[:size[1] // 2] += 4
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = at + offset
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def which(frames): return ((frames.mean((1, 2, 3)) - 18) / 4).round().astype(int).tolist()


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name in ("a.mp4", "a.mkv", "a.avi", "a.mov", "a.ts", "a.flv"): film(folder / name)
    film(folder / "cut.mp4", offset=-8)     # an edit list hides the first 8 frames
    film(folder / "late.mp4", offset=24)    # its clock starts at 1.5 s
    return folder


def packet(path, k):
    with av.open(str(path)) as box: return [p.pos for p in box.demux(video=0) if p.size][k]


# ---- when to look

def test_frame_times_are_the_middles_of_equal_parts():
    assert frame_times(2, 4, 4).tolist() == [2.25, 2.75, 3.25, 3.75] and frame_times(0, 1, 1).tolist() == [0.5]
    t = frame_times(0.1, 1.3, 16)
    assert t[0] > 0.1 and t[-1] < 1.3 and np.allclose(np.diff(t), 1.2 / 16)


@pytest.mark.parametrize("start, end, n", [(1, 1, 4), (2, 1, 4), (-1, 1, 4), (0, 1, 0), (0, np.inf, 4), (np.nan, 1, 4)])
def test_a_clip_without_length_is_refused(start, end, n):
    with pytest.raises(VideoError, match="positive length"): frame_times(start, end, n)


# ---- the right frame

@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov", "a.ts", "a.flv", "late.mp4", "cut.mp4"])
def test_every_frame_by_its_time_in_every_container(films, name):
    "Among them the two in which decord alone is wrong: a transport stream and a cut film."
    hidden = 8 if name == "cut.mp4" else 0
    middles = (np.arange(48 - hidden) + 0.5) / 16
    assert which(read_frames(films / name, middles)) == list(range(hidden, 48))
    for k in (0, 5, 11, 12, 13, 30, 47 - hidden): assert which(read_frames(films / name, [middles[k]])) == [k + hidden]


@readers
def test_both_readers_give_the_same_frames(films, reader):
    for name in ("a.mp4", "a.mkv", "late.mp4"):
        got = reader(films / name, np.array([0, 0.03, 1.0, 1.06, 2.999]), 1.0)
        assert which(got) == [0, 0, 16, 16, 47] and got.shape == (5, 48, 64, 3) and got.dtype == np.uint8


def test_order_and_repeats_are_as_asked(films):
    assert which(read_frames(films / "a.mp4", [2.0, 0.1, 2.0, 1.0])) == [32, 1, 32, 16]
    assert which(read_frames(films / "a.mp4", frame_times(1, 1.0625, 3))) == [16] * 3  # more times than frames


def test_uneven_frame_times(tmp_path):
    "Every second frame is missing from the middle: the one before stays on screen."
    path = film(tmp_path / "vfr.mp4", [*range(16), *range(16, 32, 2), *range(32, 40)])
    assert which(read_frames(path, (np.array([3, 16, 17, 18, 33]) + 0.5) / 16)) == [3, 16, 16, 17, 25]


def test_a_hole_in_the_recording_is_refused(tmp_path):
    path = film(tmp_path / "hole.mp4", [*range(16), *range(80, 96)])
    for gap in (1.0, 0.2):
        with pytest.raises(VideoError, match="none is stored near 4.000 s"): read_frames(path, [0.5, 4.0, 5.5], gap)
    assert which(read_frames(path, [0.5, 4.0, 5.5], gap_s=5)) == [8, 15, 24]


def test_without_decord(films, monkeypatch):
    monkeypatch.setattr(video, "decord", None)
    assert which(read_frames(films / "a.mp4", [0.1, 2.0])) == [1, 32]


@pytest.mark.parametrize("size", [(160, 96), (64, 48)])
def test_portrait_films_stand_upright(tmp_path, size):
    "The bright half of the film tells up from down; decord fails on turned films whose width is no multiple of 32."
    path, (w, h) = film(tmp_path / "a.mp4", size=size), size
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # the display matrix of the track: a quarter turn
    data[at:at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
    path.write_bytes(data)
    got, slow = read_frames(path, [0.1, 1.0]), video._pyav(path, np.array([0.1, 1.0]), 1.0)
    assert got.shape == (2, w, h, 3) and (got == slow).all()
    assert got[0, :, h // 2:].mean() > got[0, :, :h // 2].mean() + 3  # turned clockwise: the upper half lies right


def test_readers_work_in_other_processes(films):
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert which(workers.apply(read_frames, (films / "a.mp4", [1.0]))) == [16]


# ---- bad input

def bad_files(folder, films):
    data = (films / "a.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no film " * 100)
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(10_000))
    (folder / "headless.mp4").write_bytes(data[:40])
    film(folder / "tail.mp4", options={"movflags": "-faststart"})
    (folder / "noindex.mp4").write_bytes((folder / "tail.mp4").read_bytes()[:3000])
    (folder / "folder.mp4").mkdir()
    with wave.open(str(folder / "sound.wav"), "wb") as out:
        out.setnchannels(1), out.setsampwidth(2), out.setframerate(8000)
        out.writeframes(bytes(16000))
    return folder


@pytest.mark.parametrize("name, reason", [
    ("none.mp4", "no such file; check the clip table's `video`"), ("empty.mp4", "the file is empty; copy it again"),
    ("text.mp4", "not a video .*; give a video file"), ("random.mp4", "not a video .*; give a video file"),
    ("headless.mp4", "give a whole video file"), ("noindex.mp4", "an MP4 without its index.*get the whole file"),
    ("folder.mp4", "a folder; give a video file"), ("sound.wav", "holds no video stream, only audio"),
])
def test_files_that_are_no_video(tmp_path, films, name, reason):
    path = bad_files(tmp_path, films) / name
    for read in (lambda: read_frames(path, [0.5]), lambda: probe(path)):
        with pytest.raises(VideoError, match=reason) as caught: read()
        assert str(caught.value).startswith(f"{path}: ")


def test_times_beyond_the_end(films):
    for name in ("a.mp4", "a.ts", "a.avi"):
        with pytest.raises(VideoError, match="asked for 2 frames from 2.900 s to 3.100 s, found 1: "
                                             "the video ends at 3.000 s; correct start_s and end_s"):
            read_frames(films / name, [2.9, 3.1])
        with pytest.raises(VideoError, match="found 0: the video ends at 3.000 s"): read_frames(films / name, [900.0])


@pytest.mark.parametrize("times", [[], [-0.1, 1], [np.nan], [np.inf]])
def test_times_that_make_no_sense(films, times):
    with pytest.raises(VideoError, match="give seconds from 0 on"): read_frames(films / "a.mp4", times)


@pytest.mark.parametrize("extra", [0, 5])
def test_a_truncated_film_gives_what_is_there_and_refuses_the_rest(films, tmp_path, extra):
    "Cut between two packets and in the middle of one; the index lies in front, so the file states its full length."
    path = tmp_path / "half.mp4"
    path.write_bytes((films / "a.mp4").read_bytes()[:packet(films / "a.mp4", 30) + extra])
    assert which(read_frames(path, [0.1, 1.0, 1.5])) == [1, 16, 24]
    for times in ([2.5], [0.1, 2.5], [1.0, 2.99]):
        with pytest.raises(VideoError, match=r"states 3.000 s but its frames end at \S+ s, "
                                             r"so it is truncated or damaged; get the whole file"):
            read_frames(path, times)
    assert probe(path)["frames"] in (30, 31) and probe(path)["stated_s"] == 3.0


def test_a_decoder_that_returns_too_few_frames_is_not_believed(films, monkeypatch):
    class Short(video.decord.VideoReader):
        def get_batch(self, at): return super().get_batch(at[:-1])
    monkeypatch.setattr(video.decord, "VideoReader", Short)
    assert video._decord(films / "a.mp4", np.array([0.1, 1.0]), 1.0) is None
    assert which(read_frames(films / "a.mp4", [0.1, 1.0])) == [1, 16]


def test_a_decoder_with_a_senseless_clock_is_not_believed(films, monkeypatch):
    for shift in (-0.5, 0.5, np.nan):
        class Shifted(video.decord.VideoReader):
            def get_frame_timestamp(self, at): return super().get_frame_timestamp(at) + shift
        with monkeypatch.context() as patch:
            patch.setattr(video.decord, "VideoReader", Shifted)
            assert video._decord(films / "a.mp4", np.array([1.0]), 1.0) is None
            assert which(read_frames(films / "a.mp4", [1.0])) == [16]


def test_damage_is_refused_or_decodes(films, tmp_path):
    "Whatever bytes are overwritten: frames of the right number and shape, or a VideoError; never another error."
    data, rng, refused = (films / "a.mp4").read_bytes(), np.random.default_rng(0), 0
    for at in rng.integers(0, len(data), 25):
        (tmp_path / "a.mp4").write_bytes(data[:at] + rng.bytes(200) + data[at + 200:])
        try: assert read_frames(tmp_path / "a.mp4", frame_times(0, 3, 4)).shape[0] == 4
        except VideoError as error: refused += str(tmp_path / "a.mp4") in str(error)
    assert refused


# ---- clips, pictures, facts

def test_clip_frames_names_row_and_clip(films):
    clips = pd.DataFrame(dict(clip_id=["x", "y", "z", "u"], video=["a.mp4", "a.mp4", "none.mp4", "../a.mp4"],
                              start_s=[0, 2.5, 0, 0], end_s=[1, 3.5, 1, 1], view="ego"))
    clips.attrs["root"] = str(films)
    assert which(clip_frames(clips, 0, 4)) == which(clip_frames(clips, "x", 4)) == [2, 6, 10, 14]
    for row, reason in ((1, r"row 2 \(clip_id 'y', 2.5-3.5 s\): .*a.mp4: asked for 4 frames .*ends at 3.000 s"),
                        (2, r"row 3 \(clip_id 'z'.*no such file"), (3, r"row 4 \(clip_id 'u'.*leads out of")):
        with pytest.raises(VideoError, match=reason): clip_frames(clips, row, 4)
    with pytest.raises(VideoError, match="no clip 'w'"): clip_frames(clips, "w", 4)


def test_probe(films):
    assert probe(films / "a.mp4") == dict(fps=16.0, frames=48, duration_s=3.0, width=64, height=48, stated_s=3.0)
    assert probe(films / "a.mkv")["frames"] == 48 and probe(films / "a.mkv")["stated_s"] == pytest.approx(3, abs=0.1)


def test_pictures():
    frames = np.random.default_rng(0).integers(0, 256, (5, 60, 80, 3), dtype=np.uint8)
    assert thumbnail(frames[0], 30).size == (40, 30) and strip(frames, 30).size == (200, 30)
    flat = np.zeros((3, 60, 80, 3), np.uint8) + np.array([0, 100, 200], np.uint8)[:, None, None, None]
    assert np.asarray(strip(flat, 30))[15, [20, 60, 100], 0].tolist() == [0, 100, 200]  # in order of time
    moving = Image.open(io.BytesIO(animate(frames, fps=10, height=60)))
    moving.load()
    assert moving.n_frames == 5 and moving.size == (80, 60)
    assert moving.info["duration"] == 100 and moving.info["loop"] == 0
    assert data_uri(b"abc") == "data:image/webp;base64,YWJj"
    assert data_uri(thumbnail(frames[0])).startswith("data:image/webp;base64,UklGR")


# ---- shipped and real videos

@pytest.mark.skipif(not shipped().exists(), reason="the shipped world is not rendered yet")
def test_shipped_clips_decode_alike_in_both_readers():
    clips = read_clips(shipped())
    for i in np.random.default_rng(0).choice(len(clips), 6, replace=False):
        times = frame_times(clips.start_s[i], clips.end_s[i], 8)
        path = Path(clips.attrs["root"]) / clips.video[i]
        fast, slow = video._decord(path, times, 1.0), video._pyav(path, times, 1.0)
        assert (fast == slow).all() and len(np.unique(fast.reshape(8, -1), axis=0)) > 1


@real
@pytest.mark.parametrize("name", ["egoexo4d/cooking/aria.mp4", "egoexo4d/bike_repair/cam02.mp4", "ego4d/cmu_1.mp4",
                                  "exo/univtg_charades.mp4", "lavila", "egoinstructor/test5199_exo1.mp4"])
def test_real_videos_decode_alike_in_both_readers(name):
    path = REAL / name
    if path.is_dir(): path = next(path.glob("*.mp4"))
    length = probe(path)["duration_s"]
    times = frame_times(length / 2, length / 2 + 0.5, 2)
    fast, slow = video._decord(path, times, 1.0), video._pyav(path, times, 1.0)
    assert fast is not None and fast.shape == slow.shape and np.abs(fast.astype(int) - slow).mean() < 1


@real
def test_a_real_avi_without_times_is_counted():
    "Its stored times are out of order: the readers must agree with plain decoding from the first frame."
    path = REAL / "exo/ntu_S001.avi"
    with av.open(str(path)) as box:
        plain = [f.to_ndarray(format="rgb24") for f, _ in zip(box.decode(video=0), range(12))]
    got = read_frames(path, [0.5 / 30, 3.5 / 30, 10.5 / 30])
    assert all((a == plain[k]).all() for a, k in zip(got, (0, 3, 10)))
    with pytest.raises(VideoError, match="the video ends at 3.4"): read_frames(path, [4.0])
