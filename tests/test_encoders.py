"Backbone, sentence encoder, clip encoder: what the notebook shows, at its edges."
import json
import math
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from viewpoint_rosetta.encoders import (ClipEncoder, DualEncoder, EncoderSettings, SentenceEncoder, fuse_batchnorm,
                                        keep_some, lite0_model, load_backbone, norms_after_convs)

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 3), dtype=np.uint8)
SMALL = EncoderSettings(dim_in=16, frames=4, cells=3, width=32, depth=2, heads=2, out=8, text_in=12, text_hidden=16)


@pytest.fixture(scope="module")
def backbone(): return load_backbone()


def plain_cells(frames, grid):
    "The same features without any short cut: float32, contiguous, nothing folded."
    x = (torch.tensor(frames).permute(0, 3, 1, 2).float().contiguous() - 127) / 128
    with torch.no_grad(): return F.adaptive_avg_pool2d(lite0_model().eval().forward_features(x), grid).flatten(2).mT


def test_short_cuts_change_nothing(backbone):
    assert torch.allclose(backbone(backbone.preprocess(FRAMES)), plain_cells(FRAMES, 3), atol=1e-3)
    assert not norms_after_convs(backbone.model, torch.zeros(1, 3, 64, 64)), "all BatchNorms should be folded"


def test_a_frame_does_not_depend_on_its_batch(backbone):
    one_by_one = torch.cat([backbone(backbone.preprocess(FRAMES[i:i + 1])) for i in range(3)])
    assert torch.allclose(one_by_one, backbone(backbone.preprocess(FRAMES)), atol=1e-4)


def test_folding_a_norm_whose_input_is_used_twice_is_refused():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)
            self.bn.running_mean += 1

        def forward_features(self, x):
            y = self.conv(x)
            return self.bn(y) + y

    with pytest.raises(ValueError, match="moved the output"): fuse_batchnorm(Twice().eval(), torch.randn(1, 3, 4, 4))


def test_spec_tells_what_decides_the_features(backbone):
    assert json.loads(json.dumps(backbone.spec)) == backbone.spec
    specs = [load_backbone(grid=1).spec, load_backbone(size=160).spec, load_backbone(crop=True).spec, backbone.spec]
    assert len({json.dumps(s) for s in specs}) == 4 and len({s["weights"] for s in specs}) == 1
    torch.manual_seed(0)
    a, b = (load_backbone("resnet18", pretrained=False).spec["weights"] for _ in range(2))
    assert a != b, "other weights must give another fingerprint"


@pytest.mark.parametrize("shape, side", [((128, 128), 128), ((256, 256), 256), ((100, 100), 224), ((360, 640), 224), ((512, 512), 224)])
def test_default_size(backbone, shape, side):
    assert backbone.preprocess(np.zeros((1, *shape, 3), np.uint8)).shape == (1, 3, side, side)


def test_crop_takes_the_middle_and_squeeze_the_whole():
    wide = np.zeros((1, 128, 256, 3), np.uint8)
    wide[:, :, :64] = 255  # white only outside the central square
    crop, squeeze = (load_backbone(crop=c, size=128).preprocess(wide) for c in (True, False))
    assert crop.max() < 0 < squeeze.max()


@pytest.mark.parametrize("frames", [FRAMES[0], FRAMES.astype(np.float32), FRAMES[..., :1]])
def test_wrong_frames_are_refused(backbone, frames):
    with pytest.raises(ValueError, match=r"uint8 frames \(B,H,W,3\)"): backbone.preprocess(frames)


@pytest.mark.parametrize("name, size, dim", [("vit_tiny_patch16_224", 64, 192), ("resnet10t", None, 512)])
def test_other_timm_models(name, size, dim):
    other = load_backbone(name, pretrained=False, size=size, grid=2)
    assert other(other.preprocess(FRAMES)).shape == (3, 4, dim) and other.dim == dim


def test_grid_finer_than_the_map_is_refused():
    fine = load_backbone(grid=7)
    with pytest.raises(ValueError, match="larger size or a smaller grid"): fine(fine.preprocess(FRAMES))


def test_unknown_backbone_is_told_its_neighbours():
    with pytest.raises(ValueError, match="resnet18"): load_backbone("resnett18")


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(*args, **kw): raise OSError("no network")
    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(OSError, match="efficientnet_lite0.*installed"): load_backbone("resnet18")


def test_sentences_need_no_network_and_are_computed_once(monkeypatch):
    def no(*args, **kw): raise AssertionError("the network was asked")
    monkeypatch.setattr(socket.socket, "connect", no)
    monkeypatch.setattr(socket, "getaddrinfo", no)
    encoder = SentenceEncoder()
    e = encoder.encode(["open the door", "she opens a door", "stir the soup", None, float("nan"), "  "])
    assert e.shape == (6, 384) and e.dtype == np.float32
    assert np.allclose(np.linalg.norm(e, axis=1), [1, 1, 1, 0, 0, 0], atol=1e-5)
    assert e[0] @ e[1] > e[0] @ e[2] + .2
    monkeypatch.setattr(encoder.model, "encode", no)
    assert (encoder.encode(["stir the soup", ""]) == e[[2, 3]]).all() and encoder.encode([]).shape == (0, 384)


def test_keep_some_keeps_each_row_its_own():
    torch.manual_seed(0)
    kept = keep_some(torch.arange(40.).view(1, 40, 1).expand(8, -1, 1), .5)[..., 0]
    assert kept.shape == (8, 20) and all(len(set(r.tolist())) == 20 for r in kept)
    assert len({tuple(sorted(r.tolist())) for r in kept}) == 8


def test_frame_drop_hides_whole_frames():
    torch.manual_seed(0)
    model = ClipEncoder(replace(SMALL, frame_drop=.5, dropout=0.)).train()
    seen = []
    model.blocks.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    model(torch.randn(2, 4, 3, 16))
    assert seen == [(2, 1 + 2 * 3, 32)]  # CLS and two of four frames


def test_order_is_learned_through_time_embeddings_alone():
    torch.manual_seed(0)
    model, v = ClipEncoder(SMALL).eval(), torch.randn(2, 4, 3, 16)
    with torch.no_grad():
        assert not torch.allclose(model(v), model(v.flip(1)), atol=1e-3)
        model.when.zero_()
        assert torch.allclose(model(v), model(v.flip(1)), atol=1e-5)
        assert not torch.allclose(model(v), model(v.flip(2)), atol=1e-3)
        model.where.zero_()
        assert torch.allclose(model(v), model(v.flip(2)), atol=1e-5)


def test_without_cls_the_mean_over_tokens_is_read():
    torch.manual_seed(0)
    model, v = ClipEncoder(replace(SMALL, cls=False, depth=0)).eval(), torch.randn(2, 4, 3, 16)
    with torch.no_grad(): assert torch.allclose(model(v), model.head(model.embed(v).mean((1, 2))), atol=1e-5)
    assert not hasattr(model, "cls")


def test_diff_shows_motion():
    torch.manual_seed(0)
    model, v = ClipEncoder(replace(SMALL, diff=True)).eval(), torch.randn(2, 4, 3, 16)
    still = v[:, :1].expand_as(v)
    with torch.no_grad():
        before = model(still), model(v)
        model.into_diff.weight.normal_()
        assert torch.allclose(model(still), before[0], atol=1e-5) and not torch.allclose(model(v), before[1], atol=1e-3)


def test_tubes_join_frames_of_a_cell():
    torch.manual_seed(0)
    model, v, seen = ClipEncoder(replace(SMALL, tube=2)).eval(), torch.randn(2, 4, 3, 16), []
    model.blocks.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape))
    tubes = model.tubes(v)                                            # (2, 2, 3, 32)
    assert torch.equal(tubes[:, 1, 2], torch.cat([v[:, 2, 2], v[:, 3, 2]], 1))
    assert model(v).shape == (2, 8) and seen == [(2, 1 + 2 * 3, 32)]  # CLS and half as many tokens
    with pytest.raises(ValueError, match="multiple of tube"): replace(SMALL, tube=3)


def test_noise_only_while_training():
    torch.manual_seed(0)
    model, v = ClipEncoder(replace(SMALL, noise=.5, dropout=0.)), torch.randn(2, 4, 3, 16)
    assert not torch.equal(model.train()(v), model(v)) and torch.equal(model.eval()(v), model(v))


@pytest.mark.parametrize("shape", [(2, 4, 16), (2, 3, 3, 16), (2, 4, 9, 16), (2, 4, 3, 8)])
def test_tokens_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected tokens \(B, 4, 3, 16\)"): ClipEncoder(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [dict(heads=3), dict(dropout=1.), dict(token_drop=-.1)])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError): replace(SMALL, **wrong)


def test_gradients_reach_every_parameter():
    model = DualEncoder(replace(SMALL, diff=True)).train()
    v, e = model.encode_video(torch.randn(6, 4, 3, 16)), model.encode_text(torch.randn(6, 12))
    F.cross_entropy(model.scale() * v @ e.T, torch.arange(6)).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@pytest.mark.parametrize("start, held", [(9., 100.), (-3., 1.), (2., math.exp(2.))])
def test_scale_is_held_between_1_and_100(start, held):
    model = DualEncoder(SMALL)
    model.logit_scale.data.fill_(start)
    assert math.isclose(model.scale().item(), held, rel_tol=1e-5)


def test_save_and_load(tmp_path):
    model = DualEncoder(replace(SMALL, diff=True)).eval()
    model.save_pretrained(tmp_path / "encoder")
    again, v = DualEncoder.from_pretrained(tmp_path / "encoder"), torch.randn(2, 4, 3, 16)
    assert again.settings == model.settings and not again.training
    assert torch.equal(again.encode_video(v), model.encode_video(v))
    (tmp_path / "encoder" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"): DualEncoder.from_pretrained(tmp_path / "encoder")


def test_config_of_another_version_is_refused(tmp_path):
    DualEncoder(SMALL).save_pretrained(tmp_path / "e")
    config = tmp_path / "e" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"colour": 3}))
    with pytest.raises(ValueError, match="colour"): DualEncoder.from_pretrained(tmp_path / "e")
