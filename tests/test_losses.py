"""Losses against hand-computed cases; against the numbers of the peers' own code in tests/parity."""
import math

import pytest
import torch

from viewpoint_rosetta import losses as L


def circle(*degrees): return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees])


def test_info_nce_by_hand_3x3():
    a, b = circle(0, 90, 180), circle(10, 80, 100)
    s = [[math.cos(math.radians(p - q)) / .5 for q in (10, 80, 100)] for p in (0, 90, 180)]
    rows = [-math.log(math.exp(s[i][i]) / sum(map(math.exp, s[i]))) for i in range(3)]
    assert math.isclose(L.info_nce(a, b, .5), sum(rows) / 3, rel_tol=1e-5)
    w = torch.tensor([1., .5, 0.])
    assert math.isclose(L.info_nce(a, b, .5, weight=w), (rows[0] + rows[1] / 2) / 3, rel_tol=1e-5)
    two = torch.eye(3, dtype=torch.bool)
    two[1, 2] = True
    rows[1] = -math.log((math.exp(s[1][1]) + math.exp(s[1][2])) / sum(map(math.exp, s[1])))
    assert math.isclose(L.info_nce(a, b, .5, positives=two), sum(rows) / 3, rel_tol=1e-5)


def test_symmetric_transposes_the_masks():
    torch.manual_seed(0)
    u, v = torch.randn(2, 5, 3)
    ignore = torch.zeros(5, 5, dtype=torch.bool)
    ignore[0, 3] = True
    both = L.info_nce(u, v, 1., symmetric=True, ignore=ignore)
    assert torch.isclose(both, (L.info_nce(u, v, 1., ignore=ignore) + L.info_nce(v, u, 1., ignore=ignore.T)) / 2)
    assert not torch.isclose(both, (L.info_nce(u, v, 1., ignore=ignore) + L.info_nce(v, u, 1., ignore=ignore)) / 2)


def test_all_clips_in_b_add_the_own_view_but_never_the_clip_itself():
    torch.manual_seed(0)
    u, v = (L.unit(x) for x in torch.randn(2, 6, 4))
    rows = []
    for i in range(6):
        other = [math.exp(u[i] @ v[j] / .07) for j in range(6)]
        own = [math.exp(u[i] @ u[j] / .07) for j in range(6) if j != i]
        rows.append(-math.log(other[i] / (sum(other) + sum(own))))
    assert math.isclose(L.l_vv(u, v, batch="all"), sum(rows) / 6, rel_tol=1e-4)
    with pytest.raises(ValueError, match="'other' or 'all'"): L.l_vv(u, v, batch="both")


def test_soft_weight_is_cut_at_zero_and_scales_each_rows_gradient():
    assert L.soft_weight(circle(0, 0, 0), circle(0, 90, 180)).tolist() == pytest.approx([1, 0, 0], abs=1e-6)
    assert L.soft_weight(torch.zeros(1, 2), circle(0)).item() == 0
    x, v = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    grads = []
    for w in (torch.ones(4), torch.tensor([1., .5, 0., 1.])):
        u = x.clone().requires_grad_()
        L.l_vv(u, v, weight=w).backward()
        grads.append(u.grad)
    assert torch.allclose(grads[1], grads[0] * torch.tensor([1., .5, 0., 1.])[:, None], atol=1e-6)


def test_l_vs_stop_and_through_agree_in_value_and_differ_in_gradient():
    torch.manual_seed(0)
    translate, x = torch.nn.Linear(4, 4).requires_grad_(False), torch.randn(5, 4)
    out = {}
    for how in ("stop", "through"):
        f = x.clone().requires_grad_()
        loss = L.l_vs(f, translate(f), gradient=how)
        loss.backward()
        out[how] = loss.item(), f.grad
    assert out["stop"][0] == out["through"][0] and not torch.allclose(out["stop"][1], out["through"][1])
    assert all(p.grad is None for p in translate.parameters())
    with pytest.raises(ValueError, match="'stop' or 'through'"): L.l_vs(x, x, gradient="none")


def test_sum_l_by_hand_with_a_partial_link():
    # one ego clip, two exo clips: cos(e) = 0.8 with the first, 0 with the second
    f_ego, f_exo, e_ego = circle(0), circle(0, 60), circle(0)
    e_exo = torch.stack([torch.tensor([.8, .6]), circle(90)[0]])
    forward = .8 * math.log(1 + math.exp(-.5))  # cosines 1 and 1/2 at tau 1; backward has one candidate: 0
    loss, terms = L.sum_l(f_ego, f_exo, e_ego, e_exo, tau=1)
    # inside the exo view cos(e) = 0.6, which is not above 0.6
    assert math.isclose(terms["cross"], forward / 2, rel_tol=1e-5) and terms["in_view"] == 0
    assert L.sum_l(f_ego, f_exo, e_ego, e_exo, tau=1, above=.9)[0] == 0
    torch.manual_seed(0)
    f, e = torch.randn(8, 4, requires_grad=True), torch.randn(8, 3).abs()
    L.sum_l(f, f.flip(0), e, e.flip(0))[0].backward()
    assert f.grad.isfinite().all() and f.grad.abs().sum() > 0


def test_triplet_ratio_is_minus_log_of_the_share():
    exo, ego, far = torch.zeros(1, 2), torch.tensor([[0., 2.]]), torch.tensor([[3., 0.]])
    share = math.exp(-2) / (math.exp(-2) + math.exp(-3))
    assert math.isclose(L.triplet_ratio(exo, ego, far), -math.log(share), rel_tol=1e-6)
    assert L.triplet_ratio(exo, ego, 100 * far) < L.triplet_ratio(exo, ego, far) < L.triplet_ratio(exo, far, ego)


def test_false_negatives_are_off_by_default_and_leave_the_denominator_when_asked():
    torch.manual_seed(0)
    f, g, e = torch.randn(4, 3), torch.randn(4, 3), torch.eye(4)[[0, 0, 1, 2]]
    assert L.same_meaning(e) is None and L.same_meaning(torch.zeros(2, 3), .5).sum() == 0
    with_all, without = (L.l_vt(f, g, ignore=L.same_meaning(e, t)) for t in (None, .95))
    assert with_all == L.info_nce(f, g) and without < with_all
    s = L.LossSettings(same_narration=.95)
    on, off = (L.l_rosetta(f, f.flip(0), g, g.flip(0), x, e_ego=e, e_exo=e.flip(0))[0] for x in (s, L.LossSettings()))
    assert on < off


def test_objective_is_the_weighted_sum_of_its_terms():
    torch.manual_seed(0)
    f1, f2, g1, g2, s1 = torch.randn(5, 8, 4)
    s = L.LossSettings(lambda_1=.3, lambda_2=.2, batch="all")
    loss, t = L.l_rosetta(f1, f2, g1, g2, s, weight=torch.rand(8), s_ego=s1)
    assert torch.isclose(loss, .3 * t["vv"] + .7 * t["vt"] + .2 * t["vs"])
    assert "vs" not in L.l_rosetta(f1, f2, g1, g2, s)[1]
