"Retrieval, chance, intervals, transfer and pair precision against hand-made cases and brute force."
import time
from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from viewpoint_rosetta.benchmark import (COLUMNS, PAPER, PAPER_HEADING, PROTOCOLS, auc, beside_paper, bootstrap, chance_hit, evaluate, linear_probe,
                                         neighbours, paired_difference, pair_precision, precision_rows, read_bench, recognition, retrieval,
                                         seed_interval, skill, t_interval, table, top_pairs, write_bench)


def unit(z): return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def world(actions=6, rooms=5, cameras=2, split='test', tag='t'):
    "Every action in every room, one ego and some exo cameras."
    rows = [dict(clip_id=f'{tag}{r}-{a}-{c}', view='exo' if c else 'ego', take=f'{tag}take{r}', scene=f'{tag}room{r}', participant=f'{tag}p{r}',
                 label=f'a{a}', object=f'o{a // 2}', skill=['good', 'bad'][(a + r) % 2], sync_id=f'{tag}{r}-{a}', split=split, narration='x',
                 video='v.mp4', start_s=0.0, end_s=1.0, camera=str(c))
            for r in range(rooms) for a in range(actions) for c in range(cameras + 1)]
    return pd.DataFrame(rows)


@pytest.fixture(scope='module')
def clips(): return pd.concat([world(), world(rooms=8, split='train', tag='l')], ignore_index=True)


def encoder(clips, columns, noise=0.3, seed=0, dim=32):
    "An encoder that sees the named columns of the truth."
    rng, z = np.random.default_rng(seed), np.zeros((len(clips), dim))
    for c, w in columns.items():
        code = pd.factorize(clips[c])[0]
        z += w * rng.normal(size=(code.max() + 1, dim))[code]
    z = pd.DataFrame(unit(z + noise * rng.normal(size=z.shape)), index=clips.clip_id)
    return lambda rows: z.loc[rows.clip_id].to_numpy()


def views(clips, split='test'):
    part = clips[clips.split == split]
    return part[part['view'] == 'ego'].reset_index(drop=True), part[part['view'] == 'exo'].reset_index(drop=True)


@pytest.mark.parametrize('pool,right,draws', [(5, 2, 2), (6, 1, 3), (4, 4, 1), (5, 0, 3), (3, 1, 7), (6, 2, 0)])
def test_chance_counts_every_draw(pool, right, draws):
    all_draws = list(combinations(range(pool), min(draws, pool)))
    assert chance_hit(pool, right, draws) == pytest.approx(np.mean([any(i < right for i in d) for d in all_draws]))


def brute_force(z_query, z_gallery, q, g, protocol, k):
    "The protocol in words, one query at a time."
    hits, chance = [], []
    for i, a in q.iterrows():
        keep = [j for j, b in g.iterrows() if protocol != 'class_across_scenes' or (b['take'] != a['take'] and b.scene != a.scene)]
        right = {j for j in keep if (g.sync_id[j] == a.sync_id if protocol == 'instance' else g.label[j] == a.label)}
        if not right: hits.append(np.nan); continue
        nearest = sorted(keep, key=lambda j: -float(z_query[i] @ z_gallery[j]))[:k]
        hits.append(float(bool(right & set(nearest))))
        miss = 1.0
        for d in range(min(k, len(keep))): miss *= max(0, len(keep) - len(right) - d) / (len(keep) - d)
        chance.append(1 - miss)
    return np.array(hits), np.mean(chance)


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_retrieval_agrees_with_brute_force(clips, protocol):
    ego, exo = views(clips)
    ego = ego.assign(label=ego.label.where(ego.index != 3, 'an action of its own'), sync_id=ego.sync_id.where(ego.index != 4, 'alone'))
    exo = exo[exo.index % 7 != 0].reset_index(drop=True)                                 # rooms of unequal size
    rng = np.random.default_rng(1)
    z_ego, z_exo = unit(rng.normal(size=(len(ego), 8))), unit(rng.normal(size=(len(exo), 8)))
    hits, chance = retrieval(z_ego, z_exo, ego, exo, protocol, ks=(1, 5))
    for column, k in enumerate((1, 5)):
        want, level = brute_force(z_ego, z_exo, ego, exo, protocol, k)
        np.testing.assert_array_equal(hits[:, column], want)
        assert chance[column] == pytest.approx(level)
    np.testing.assert_array_equal(hits, retrieval(z_ego, z_exo, ego, exo, protocol, ks=(1, 5), block=70)[0])


def test_background_wins_class_but_not_across_scenes(clips):
    ego, exo = views(clips)
    see = encoder(clips, {'scene': 1.0, 'sync_id': 0.7}, 0.1)
    hr1 = {p: np.nanmean(retrieval(see(ego), see(exo), ego, exo, p, ks=(1,))[0]) for p in PROTOCOLS}
    assert hr1['instance'] > 0.95 and hr1['class'] > 0.95 and hr1['class_across_scenes'] < 0.4
    see = encoder(clips, {'label': 1.0}, 0.1)
    assert np.nanmean(retrieval(see(ego), see(exo), ego, exo, 'class_across_scenes', ks=(1,))[0]) == 1


@pytest.mark.parametrize('protocol', PROTOCOLS)
def test_collapsed_and_shuffled_vectors_read_chance(clips, protocol):
    ego, exo = views(clips)
    same = unit(np.ones((len(exo), 8)))
    hits, chance = retrieval(same[:len(ego)], same, ego, exo, protocol)
    np.testing.assert_allclose(hits.mean(0), chance)
    see, rng = encoder(clips, {'label': 1.0}), np.random.default_rng(0)
    shuffled = np.mean([retrieval(see(ego), rng.permutation(see(exo)), ego, exo, protocol)[0].mean(0) for _ in range(40)], 0)
    np.testing.assert_allclose(shuffled, chance, atol=0.06)


def test_unknown_values(clips):
    ego, exo = views(clips)
    z_ego, z_exo = unit(np.ones((len(ego), 4))), unit(np.ones((len(exo), 4)))
    hits, chance = retrieval(z_ego, z_exo, ego.assign(label=None), exo, 'class')
    assert np.isnan(hits).all() and np.isnan(chance).all()
    some = exo.assign(scene=exo.scene.where(exo.scene != 'troom1', None))
    order, _ = neighbours(z_ego, z_exo, ego, some, 'class_across_scenes', k=3)
    assert not (some.scene.isna().to_numpy()[order]).any(), 'a clip of unknown room cannot be shown to be elsewhere'
    assert np.isnan(retrieval(z_ego, z_exo, ego.assign(scene=None), exo, 'class_across_scenes')[0]).all()
    with pytest.raises(ValueError, match='expected one of instance'): retrieval(z_ego, z_exo, ego, exo, 'classs')
    with pytest.raises(ValueError, match='vectors for'): retrieval(z_ego[:-1], z_exo, ego, exo, 'class')


def test_neighbours_leave_out_what_is_out(clips):
    ego, exo = views(clips)
    see = encoder(clips, {'scene': 1.0})
    order, good = neighbours(see(ego), see(exo), ego, exo, 'class_across_scenes', k=len(exo))
    assert ((order >= 0).sum(1) == len(exo) * 4 // 5).all() and not good[order < 0].any()
    assert all((exo.scene[o[o >= 0]] != s).all() for o, s in zip(order, ego.scene))


def test_bootstrap():
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    lo, hi = bootstrap(x)
    assert hi - lo == pytest.approx(2 * 1.96 * x.std() / 500 ** 0.5, rel=0.1) and bootstrap(x) == (lo, hi)
    lo2, hi2 = bootstrap(np.repeat(x, 3), clusters=np.repeat(np.arange(500), 3))
    assert hi2 - lo2 == pytest.approx(hi - lo, rel=0.05), 'copies of a clip add no certainty'
    lo, hi = bootstrap(np.stack([x, np.where(np.arange(500) < 100, x, np.nan)], 1))
    assert lo.shape == (2,) and hi[1] - lo[1] > 1.8 * (hi[0] - lo[0])
    assert np.isnan(bootstrap([])).all()


def test_auc_against_counting():
    rng = np.random.default_rng(0)
    truth, score, w = rng.integers(2, size=40), rng.integers(6, size=40) / 6, rng.integers(3, size=40)
    copies = np.repeat(np.arange(40), w)
    pairs = [(score[i] > score[j]) + 0.5 * (score[i] == score[j]) for i in copies for j in copies if truth[i] > truth[j]]
    assert auc(truth, score, w) == pytest.approx(np.mean(pairs))


def test_transfer_learns_in_exo_and_chooses_by_people(clips):
    (ego, _), (_, exo) = views(clips), views(clips, 'train')
    see = encoder(clips, {'label': 1.0, 'skill': 1.0}, 0.2)
    hits, chance = recognition(see(exo), exo, see(ego), ego)
    assert hits.mean(0) == pytest.approx([1, 1]) and chance == pytest.approx([1 / 6, 5 / 6])
    answer = skill(see(exo), exo, see(ego), ego)
    assert ((answer[:, 1] > 0.5) == (answer[:, 0] == 1)).all()
    blind = encoder(clips, {}, 1.0)
    assert recognition(blind(exo), exo, blind(ego), ego)[0][:, 0].mean() < 0.5
    unseen = ego.assign(label=ego.label.where(ego.label != 'a0', 'never seen'))
    hits, chance = recognition(see(exo), exo, see(unseen), unseen)
    assert hits[unseen.label == 'never seen'].sum() == 0 and chance[0] == pytest.approx(5 / 6 / 6)
    assert linear_probe(see(exo), exo.label.to_numpy(dtype=object).astype(str), exo.participant.to_numpy()).C in (1.0, 10.0, 100.0)


def test_evaluate_hides_the_truth_and_fills_the_contract(clips, tmp_path):
    see, asked = encoder(clips, {'label': 1.0}, 0.2), []
    def embed(rows):
        asked.append(set(rows))
        return see(rows)
    bench = evaluate(embed, clips, 'm', 3, 'toy')
    assert not any(columns & {'label', 'object', 'skill', 'verb'} for columns in asked) and 'clip_id' in asked[0]
    assert tuple(bench) == COLUMNS and len(bench) == 3 * 3 * 3 + 2 + 3
    assert bench.value.between(0, 1).all() and (bench.lo <= bench.value + 1e-9).all() and (bench.value <= bench.hi + 1e-9).all()
    avg = bench[(bench.protocol == 'class') & (bench.metric == 'HR@1')].set_index('direction').value
    assert avg['avg'] == pytest.approx((avg['ego->exo'] + avg['exo->ego']) / 2)
    assert set(bench.seed) == {3} and set(bench.dataset) == {'toy'} and bench.n.min() > 0
    write_bench(bench, tmp_path / 'b.parquet')
    pd.testing.assert_frame_equal(read_bench(tmp_path / 'b.parquet'), bench, check_dtype=False)
    unlabelled = evaluate(embed, clips.assign(label=None, skill=None), 'm', 3, 'toy')
    assert set(unlabelled.protocol) == {'instance'}


def test_evaluate_refuses_bad_vectors(clips):
    def broken(rows):
        z = unit(np.ones((len(rows), 4)))
        z[2] = np.nan
        return z
    with pytest.raises(ValueError, match="clip 't0-2-0'"): evaluate(broken, clips, 'm', 0, 'toy')
    with pytest.raises(ValueError, match='expected \\(30, D\\)'): evaluate(lambda rows: np.ones((3, 4)), clips, 'm', 0, 'toy')
    with pytest.raises(ValueError, match='0 ego and 60 exo'): evaluate(broken, clips[clips['view'] == 'exo'], 'm', 0, 'toy')
    with pytest.raises(ValueError, match='0 ego and 0 exo'): evaluate(broken, clips, 'm', 0, 'toy', split='val')


def luck(values):
    return pd.DataFrame([dict(method=m, task='retrieval', protocol='class_across_scenes', direction='avg', metric='HR@5', value=v, lo=v - 0.1, hi=v + 0.1,
                              chance=0.1, n=50, seed=s, dataset='toy') for m, vs in values.items() for s, v in enumerate(vs)])


def test_intervals_over_seeds():
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - 2.484, 2 + 2.484), abs=1e-3)
    s = seed_interval(luck(dict(a=[0.3, 0.5, 0.4], b=[0.33]))).set_index('method')
    assert s.value['a'] == pytest.approx(0.4) and s.seeds['a'] == 3 and s.hi['a'] == pytest.approx(0.4 + 0.2484, abs=1e-4)
    assert (s.lo['b'], s.hi['b']) == pytest.approx((0.23, 0.43)) and s.interval['b'] == 'bootstrap over clips'
    rows = luck(dict(a=[0.3, 0.5, 0.4], b=[0.33, 0.52, 0.43, 0.9]))
    gap = paired_difference(rows, 'b', 'a').iloc[0]
    assert gap.seeds == 3 and gap.difference == pytest.approx(0.08 / 3) and gap.clear, 'only common seeds count'
    assert not paired_difference(luck(dict(a=[0.3, 0.5], b=[0.4, 0.4])), 'b', 'a').clear[0]
    with pytest.raises(ValueError, match="'c'"): paired_difference(rows, 'c', 'a')


def test_table_and_the_paper():
    wide = table(luck({'ours': [0.3, 0.5, 0.4], 'SUM-L': [0.2, 0.2, 0.2]}))
    assert wide.loc['ours'].tolist() == ['40.0 ± 24.8'] and wide.index[-1] == 'chance' and wide.loc['chance'].tolist() == ['10.0']
    both = beside_paper(wide)
    assert both.loc['ours', (PAPER_HEADING, 'avg', 'HR@5')] == '52.68' and both.loc['SUM-L', (PAPER_HEADING, '', 'top-1')] == '24.83'
    assert (both.loc['chance', PAPER_HEADING] == '–').all()
    assert set(wide.loc['ours']) == set(both.drop(columns=PAPER_HEADING, level=0).loc['ours']), 'ours stay as they are'
    assert len(PAPER) == 10 and PAPER.loc['LaViLa*', 'top-5'] == 54.53
    own = table(pd.concat([luck({'x': [0.1]}), luck({'x': [0.7]}).assign(protocol='my own')]))
    assert own.columns.get_level_values(0).tolist() == ['class_across_scenes', 'my own']


def test_pair_precision(clips):
    few = pd.DataFrame(dict(clip_id=list('abcdwxyz'), view=['ego'] * 4 + ['exo'] * 4, split='train', sync_id=None,
                            label=['cut', 'cut', 'stir', None, 'cut', 'cut', 'stir', None], object=['leek', 'leek', 'soup', 'soup'] * 2))
    pairs = pd.DataFrame(dict(ego=list('abcda'), exo=list('wzyww'), rank=[0, 0, 0, 0, 1]))
    got = pair_precision(pairs, few)
    assert got['action'] == pytest.approx(dict(value=2 / 3, n=3, chance=(0.5 + 0.5 + 0.25) / 3)), 'an unlabelled exo clip is no match'
    assert 'verb' not in got and pair_precision(pairs, few.assign(verb=few.label))['verb'] == got['action']
    assert pair_precision(pairs, few, candidates=['w', 'x'])['action']['chance'] == pytest.approx(2 / 3)
    assert top_pairs(pairs.drop(columns='rank').assign(score=[0, 1, 1, 1, 5])).set_index('ego').exo['a'] == 'w'
    with pytest.raises(ValueError, match="first is 'q'"): pair_precision(pairs.assign(exo='q'), few)
    ego, exo = views(clips, 'train')
    right = pd.DataFrame(dict(ego=ego.clip_id, exo=[exo.clip_id[exo.label == a].iloc[0] for a in ego.label]))
    rng = np.random.default_rng(0)
    blind = np.mean([precision_rows(right.assign(exo=rng.permutation(right.exo)), clips, 'm').value[0] for _ in range(30)])
    assert precision_rows(right, clips, 'm').value.tolist() == [1, 1] and blind == pytest.approx(1 / 6, abs=0.04)


def test_fast_and_bounded():
    rng = np.random.default_rng(0)
    def rows(n, tag): return pd.DataFrame(dict(clip_id=[f'{tag}{i}' for i in range(n)], label=rng.integers(50, size=n).astype(str),
                                               take=rng.integers(99, size=n).astype(str), scene=rng.integers(20, size=n).astype(str)))
    z = unit(rng.normal(size=(1000, 256)))
    q, g = rows(500, 'q'), rows(1000, 'g')
    start = time.process_time()
    retrieval(z[:500], z, q, g, 'class_across_scenes')
    assert time.process_time() - start < 1.0, '500 x 1000 must take milliseconds (a generous bound for a busy machine)'
