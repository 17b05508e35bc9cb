"""Similarity of representations against sums over tuples, exact fractions, enumerated permutations and scipy."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import linalg, spatial, stats
from sklearn.decomposition import PCA

from analysis import similarity
from analysis.errors import InputError


def related(seed, n, p, q, noise=1.0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 3))
    x = shared @ rng.normal(size=(3, p)) + noise * rng.normal(size=(n, p)) + 5
    return x, shared @ rng.normal(size=(3, q)) + noise * rng.normal(size=(n, q)) - 2


def autocorrelated(rng, n_prompts, k, p, rho=0.8):
    rows = rng.normal(size=(n_prompts, k, p))
    for at in range(1, k):
        rows[:, at] = rho * rows[:, at - 1] + math.sqrt(1 - rho**2) * rows[:, at]
    return rows.reshape(n_prompts * k, p)


def rotation(rng, p):
    return np.linalg.qr(rng.normal(size=(p, p)))[0]


def ratio(hsic, x, y):
    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


def hsic_over_tuples(x, y):
    """The U-statistic of HSIC from its definition, over all 4-tuples of distinct rows."""
    k, m = x @ x.T, y @ y.T
    tuples = list(itertools.permutations(range(len(x)), 4))
    return math.fsum(k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in tuples) / len(tuples)


def hsic_1(x, y):
    """Nguyen, Raghu & Kornblith 2021, eq. 3, as it is written."""
    n, k, m = len(x), x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    last = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    return (np.trace(k @ m) + last) / (n * (n - 3))


def biased_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return ratio(lambda a, b: np.linalg.norm(a.T @ b) ** 2, x, y)


def over_pairs_of_prompts(x, y, prompts):
    """The prompt-centred CKA, pair by pair of rows of different prompts."""
    ids = list(prompts)
    means = {g: [np.mean([s[i] for i in range(len(s)) if ids[i] == g], axis=0) for s in (x, y)] for g in set(ids)}

    def total(a, b):
        sides = [[(x, y)[s][i] - means[g][s] for i, g in enumerate(ids)] for s in (a, b)]
        pairs = [(i, j) for i, j in itertools.permutations(range(len(ids)), 2) if ids[i] != ids[j]]
        return math.fsum(float(sides[0][i] @ sides[0][j]) * float(sides[1][i] @ sides[1][j]) for i, j in pairs)

    return total(0, 1) / math.sqrt(total(0, 0) * total(1, 1))


@pytest.mark.parametrize(("n", "p", "q"), [(4, 3, 2), (7, 2, 3), (7, 20, 9), (8, 3, 30)])
def test_debiased_cka_is_the_u_statistic_over_tuples(n, p, q):
    x, y = related(n, n, p, q)
    assert similarity.debiased_cka(x, y) == pytest.approx(ratio(hsic_over_tuples, x, y), abs=1e-10)


@pytest.mark.parametrize(("n", "p", "q"), [(20, 50, 60), (100, 768, 20), (300, 30, 40), (41, 40, 40), (40, 40, 40)])
def test_debiased_cka_is_the_published_formula_with_few_and_with_many_rows(n, p, q):
    x, y = related(n, n, p, q)
    assert similarity.debiased_cka(x, y) == pytest.approx(ratio(hsic_1, x, y), abs=1e-10)


@pytest.mark.parametrize("labelled", [False, True])
def test_features_and_blocks_of_the_gram_matrix_give_the_same(labelled, monkeypatch):
    x, y = related(0, 300, 20, 30)
    prompts = np.repeat(np.arange(50), 6)

    def cka():
        return similarity.prompt_centred_cka(x, y, prompts) if labelled else similarity.debiased_cka(x, y)

    by_features = cka()
    monkeypatch.setattr(similarity, "_CANCELLED", math.inf)
    whole = cka()
    monkeypatch.setattr(similarity, "_BLOCK", 300 * 7)
    assert by_features == pytest.approx(whole, abs=1e-12)
    assert cka() == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr(similarity, "_gram", None)
    with pytest.raises(TypeError):
        cka()


def exact_cka(x, y):
    """Nguyen, Raghu & Kornblith 2021, eq. 3, with fractions."""

    def kernel(rows):
        return [[sum(Fraction(int(a)) * int(b) for a, b in zip(one, two, strict=True)) for two in rows] for one in rows]

    n = len(x)
    sums = []
    for a, b in ((x, y), (x, x), (y, y)):
        k, m = kernel(a), kernel(b)
        for i in range(n):
            k[i][i] = m[i][i] = Fraction(0)
        total = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n))
        rows_k, rows_m = [sum(row) for row in k], [sum(row) for row in m]
        total += sum(rows_k) * sum(rows_m) / ((n - 1) * (n - 2))
        total -= Fraction(2, n - 2) * sum(one * two for one, two in zip(rows_k, rows_m, strict=True))
        sums.append(total)
    return float(sums[0]) / math.sqrt(float(sums[1]) * float(sums[2]))


@pytest.mark.parametrize("size", [10**2, 10**3, 10**4, 3 * 10**4, 10**5])
def test_one_row_that_outweighs_all_others_leaves_them_their_digits(size):
    """Integers, so that fractions are an exact oracle; sums over features alone would keep none, or too few."""
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (24, 3))
    y = x + rng.integers(-3, 4, (24, 3))
    x[5], y[5] = x[5] + size, y[5] - size
    assert similarity.debiased_cka(x, y) == pytest.approx(exact_cka(x, y), abs=1e-9)


def test_identical_rows_give_one():
    for n, p in ((6, 50), (300, 20)):
        x, _ = related(1, n, p, 2)
        assert similarity.debiased_cka(x, x) == pytest.approx(1, abs=1e-12)
        assert similarity.prompt_centred_cka(x, x, np.arange(n) // 3) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("n", "p"), [(30, 60), (300, 20)])
def test_rotation_scale_and_translation_change_nothing(n, p):
    rng = np.random.default_rng(2)
    x, y = related(2, n, p, p)
    moved = 37.5 * x @ rotation(rng, p) + rng.normal(size=p) * 10
    prompts = np.arange(n) // 5
    for measure in (
        similarity.debiased_cka,
        lambda a, b: similarity.prompt_centred_cka(a, b, prompts),
        lambda a, b: similarity.norm_sensitivity(a, b, prompts),
        similarity.norm_sensitivity,
        similarity.procrustes_distance,
    ):
        assert measure(moved, y) == pytest.approx(measure(x, y), abs=1e-9)
        assert measure(y, moved) == pytest.approx(measure(y, x), abs=1e-9)


@pytest.mark.parametrize(("n", "p"), [(50, 20), (100, 128), (100, 768), (300, 64)])
def test_independent_rows_have_a_debiased_cka_of_zero_on_average(n, p):
    rng = np.random.default_rng([n, p])
    found = [similarity.debiased_cka(rng.normal(size=(n, p)), rng.normal(size=(n, p))) for _ in range(100)]
    assert abs(np.mean(found)) <= 0.01
    assert min(found) < 0 < max(found)
    if p == 768:
        biased = [biased_cka(rng.normal(size=(n, p)), rng.normal(size=(n, p))) for _ in range(10)]
        assert np.mean(biased) == pytest.approx(0.885, abs=0.005)


@pytest.mark.parametrize("draw", ["normal", "autocorrelated"])
@pytest.mark.parametrize("k", [10, 3, 2])
@pytest.mark.parametrize("p", [64, 256])
def test_independent_rows_of_shared_prompts_have_a_prompt_centred_cka_of_zero_on_average(draw, k, p):
    rng = np.random.default_rng([k, p])
    prompts = np.repeat(np.arange(30), k)

    def rows():
        return rng.normal(size=(30 * k, p)) if draw == "normal" else autocorrelated(rng, 30, k, p)

    pairs = [(rows(), rows()) for _ in range(100)]
    assert abs(np.mean([similarity.prompt_centred_cka(x, y, prompts) for x, y in pairs])) <= 0.01
    by_rows = [
        similarity.debiased_cka(*(similarity.prompt_centred(side, prompts).rows for side in pair)) for pair in pairs
    ]
    assert np.mean(by_rows) > 0.02


def test_what_only_shares_its_prompt_is_alike_until_prompt_means_are_removed():
    """30 prompts × 10 tokens: debiased by rows .72, and .04 with the means removed; counted by prompts 0."""
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(30), 10)
    plain, centred, by_prompt = [], [], []
    for _ in range(40):
        x, y = (2 * rng.normal(size=(30, 128))[prompts] + rng.normal(size=(300, 128)) for _ in range(2))
        plain.append(similarity.debiased_cka(x, y))
        centred.append(similarity.debiased_cka(*(similarity.prompt_centred(side, prompts).rows for side in (x, y))))
        by_prompt.append(similarity.prompt_centred_cka(x, y, prompts))
    assert np.mean(plain) == pytest.approx(0.72, abs=0.01)
    assert np.mean(centred) == pytest.approx(0.043, abs=0.004)
    assert np.mean(by_prompt) == pytest.approx(0, abs=0.004)


def test_what_is_shared_within_prompts_is_found_without_bias():
    """x = s + noise and y = s R + noise have `tr(C²)/√(tr(A²) tr(B²))` of their covariances as population value."""
    rng = np.random.default_rng(4)
    prompts, scale = np.repeat(np.arange(40), 5), np.linspace(0.2, 2, 30)
    truth = (scale**4).sum() / ((scale**2 + 1) ** 2).sum()
    found = []
    for _ in range(60):
        shared = rng.normal(size=(200, 30)) * scale
        x = shared + rng.normal(size=(200, 30)) + rng.normal(size=(40, 30))[prompts] * 3
        y = (shared + rng.normal(size=(200, 30))) @ rotation(rng, 30) + rng.normal(size=(40, 30))[prompts] * 3
        found.append(similarity.prompt_centred_cka(x, y, prompts))
    assert np.mean(found) == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize(("p", "q"), [(2, 3), (40, 5)])
def test_prompt_centred_cka_is_the_sum_over_pairs_of_prompts(p, q):
    """Prompts of unequal size whose rows are mixed, one of them with one row."""
    prompts = np.array(list("abacbcddbaeedffcz"))
    x, y = related(p, len(prompts), p, q)
    kept = prompts != "z"
    oracle = over_pairs_of_prompts(x[kept], y[kept], prompts[kept])
    assert similarity.prompt_centred_cka(x, y, prompts) == pytest.approx(oracle, abs=1e-10)
    assert similarity.prompt_centred_cka(x, y, list(prompts)) == pytest.approx(oracle, abs=1e-10)


def test_prompt_centred_rows_say_where_they_came_from_and_what_was_left_out():
    x = np.array([[1.0, 0], [9, 9], [3, 4], [0, 0], [2, 2], [5, 5]])
    found = similarity.prompt_centred(x, ["a", "alone", "a", "b", "b", "single"])
    assert found.rows.tolist() == [[-1, -2], [1, 2], [-1, -1], [1, 1]]
    assert found.index.tolist() == [0, 2, 3, 4]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.alone == 2


def enumerated(cka, x, y, orders):
    values = np.array([cka(x, y[list(order)]) for order in orders])
    return values, cka(x, y)


def orders_of_blocks(prompts):
    """All orders of rows in which whole prompts changed places with prompts of as many rows."""
    rows = {g: [i for i, h in enumerate(prompts) if h == g] for g in dict.fromkeys(prompts)}
    for sources in itertools.permutations(rows):
        if all(len(rows[g]) == len(rows[s]) for g, s in zip(rows, sources, strict=True)):
            order = [0] * len(prompts)
            for g, s in zip(rows, sources, strict=True):
                for to, source in zip(rows[g], rows[s], strict=True):
                    order[to] = source
            yield order


@pytest.mark.parametrize(
    ("prompts", "p", "moved"),
    [
        (None, 3, 6),
        (None, 12, 6),
        ("aabbccdd", 3, 4),
        ("abcdabcd", 20, 4),
        ("aabbcccdddeeeffffz", 4, 5),
    ],
)
def test_the_null_is_that_of_all_permutations_of_prompts(prompts, p, moved):
    x, y = related(p, len(prompts or "abcdef"), p, p, noise=2)
    found = similarity.cka_null(x, y, prompts and list(prompts), seed=0, draws=4000)
    if prompts is None:
        values, seen = enumerated(similarity.debiased_cka, x, y, itertools.permutations(range(6)))
    else:
        values, seen = enumerated(
            lambda a, b: similarity.prompt_centred_cka(a, b, list(prompts)), x, y, orders_of_blocks(list(prompts))
        )
    assert found.cka == pytest.approx(seen, abs=1e-12)
    assert (found.moved, found.draws) == (moved, 4000)
    exact = np.mean(values >= seen - 1e-9)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000) + 1 / 4000)
    assert found.mean == pytest.approx(values.mean(), abs=4 * values.std() / math.sqrt(4000))
    assert found.high <= values.max() + 1e-9
    assert np.mean(values >= found.high - 1e-9) >= 0.05 - 4 * math.sqrt(0.05 * 0.95 / 4000)
    assert found.excluded == ({"one row only": 1} if prompts and "z" in prompts else {})
    assert found.n == (6 if prompts is None else len(set(prompts) - {"z"}))


@pytest.mark.parametrize("labelled", [False, True])
def test_the_null_through_features_is_that_through_gram_matrices(labelled, monkeypatch):
    x, y = related(5, 90, 8, 11)
    prompts = np.arange(90) // 3 if labelled else None
    expected = similarity.cka_null(x, y, prompts, seed=1, draws=50)
    monkeypatch.setattr(similarity, "_GRAM_ROWS", 0)
    found = similarity.cka_null(x, y, prompts, seed=1, draws=50)
    assert found.p == expected.p
    assert (found.cka, found.mean, found.high) == pytest.approx((expected.cka, expected.mean, expected.high), abs=1e-10)
    # A row so large that sums over features have no digits left.
    x[0] += 1e6
    y[0] += 1e6
    with pytest.raises(InputError, match="outweigh"):
        similarity.cka_null(x, y, prompts, seed=1, draws=50)


@pytest.mark.parametrize("labelled", [False, True])
def test_p_is_uniform_when_there_is_nothing(labelled):
    rng = np.random.default_rng(6)
    p = []
    for seed in range(300):
        if labelled:
            x, y = autocorrelated(rng, 12, 5, 10), autocorrelated(rng, 12, 5, 10) ** 3
            p.append(similarity.cka_null(x, y, np.repeat(np.arange(12), 5), seed=seed, draws=99).p)
        else:
            x, y = rng.normal(size=(20, 30)), rng.exponential(size=(20, 6))
            p.append(similarity.cka_null(x, y, seed=seed, draws=99).p)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert stats.binom.sf(sum(one <= 0.05 for one in p) - 1, 300, 0.05) > 1e-3


def test_a_relation_is_found_beyond_what_positions_share():
    """What is the same at the i-th row of every prompt belongs to the null; what a prompt adds to it does not."""
    rng = np.random.default_rng(7)
    prompts, position = np.repeat(np.arange(20), 6), np.tile(rng.normal(size=(6, 10)), (20, 1)) * 2
    x, y = position + rng.normal(size=(120, 10)), position + rng.normal(size=(120, 10))
    nothing = similarity.cka_null(x, y, prompts, seed=0, draws=200)
    assert nothing.mean > 0.3
    assert nothing.p > 0.05
    found = similarity.cka_null(x, y + x, prompts, seed=0, draws=200)
    assert found.p == pytest.approx(1 / 201)
    assert found.cka > found.high


def test_leaving_out_the_largest_rows_is_doing_so_by_hand():
    x, y = related(8, 250, 12, 9)
    x[[3, 77]] *= 40
    y[[3, 200]] *= 60
    prompts = np.random.default_rng(8).permutation(250) // 5
    prompts[100] = 1000
    without = np.delete(np.arange(250), [3, 77, 200])
    by_hand = similarity.debiased_cka(x[without], y[without]) - similarity.debiased_cka(x, y)
    assert similarity.norm_sensitivity(x, y) == pytest.approx(by_hand, abs=1e-12)
    by_hand = similarity.prompt_centred_cka(x[without], y[without], prompts[without])
    by_hand -= similarity.prompt_centred_cka(x, y, prompts)
    assert similarity.norm_sensitivity(x, y, prompts) == pytest.approx(by_hand, abs=1e-12)
    assert abs(by_hand) > similarity.MAX_NORM_SENSITIVITY


def test_a_shared_row_of_huge_norm_is_flagged_and_ordinary_rows_are_not():
    rng = np.random.default_rng(9)
    x, y = rng.normal(size=(200, 16)), rng.normal(size=(200, 16))
    assert abs(similarity.norm_sensitivity(x, y)) <= similarity.MAX_NORM_SENSITIVITY
    for row in (10, 150):
        x[row] += 60
        y[row] += 60
    assert similarity.norm_sensitivity(x, y) < -0.5


@pytest.mark.parametrize(
    ("n", "p", "q"), [(60, 8, 8), (60, 12, 5), (20, 50, 50), (20, 50, 30), (20, 30, 7), (9, 8, 40)]
)
def test_procrustes_is_the_residual_of_scipys_best_rotation(n, p, q):
    x, y = related(n, n, p, q)
    wide = max(p, q)
    left, right = (np.pad(side - side.mean(0), ((0, 0), (0, wide - side.shape[1]))) for side in (x, y))
    left, right = left / np.linalg.norm(left), right / np.linalg.norm(right)
    best, nuclear = linalg.orthogonal_procrustes(right, left)
    found = similarity.procrustes_distance(x, y)
    assert found == pytest.approx(np.linalg.norm(left - right @ best) / math.sqrt(2), abs=1e-10)
    assert found == pytest.approx(math.sqrt(1 - nuclear), abs=1e-7)
    assert similarity.procrustes_distance(y, x) == pytest.approx(found, abs=1e-10)
    # scipy's disparity also fits a scale: 1 minus the squared nuclear norm.
    disparity = spatial.procrustes(left, right)[2]
    assert (1 - found**2) ** 2 == pytest.approx(1 - disparity, abs=1e-10)


def test_procrustes_is_zero_for_a_copy_one_for_orthogonal_columns_and_keeps_small_distances():
    rng = np.random.default_rng(10)
    x, _ = related(10, 100, 20, 2)
    assert similarity.procrustes_distance(x, 3 * x @ rotation(rng, 20) + 1) < 1e-14
    columns = linalg.helmert(5).T
    assert similarity.procrustes_distance(columns[:, :2], columns[:, 2:]) == pytest.approx(1)
    unit = (x - x.mean(0)) / np.linalg.norm(x - x.mean(0))
    shift = rng.normal(size=x.shape)
    tiny, double = (similarity.procrustes_distance(unit, unit + size * shift) for size in (1e-11, 2e-11))
    assert double / tiny == pytest.approx(2, abs=1e-3)


def test_procrustes_of_independent_rows_is_as_documented_and_not_debiased():
    rng = np.random.default_rng(11)
    found = similarity.procrustes_distance(rng.normal(size=(100, 768)), rng.normal(size=(100, 768)))
    assert found == pytest.approx(0.18, abs=0.005)


def test_principal_angles_are_those_by_which_a_plane_was_turned():
    rng = np.random.default_rng(12)
    angles, basis = [0.3, 1.1], rotation(rng, 8)
    turned = [math.cos(a) * basis[:, i] + math.sin(a) * basis[:, i + 4] for i, a in enumerate(angles)]
    scores, other = rng.normal(size=(40, 2)) * [3, 2], rng.normal(size=(40, 2)) * [2, 5]
    noise = 0.01 * rng.normal(size=(40, 1)) * basis[:, 7]
    found = similarity.principal_angles(scores @ basis[:, :2].T + noise + 4, other @ np.array(turned), 2)
    assert found == pytest.approx(angles, abs=1e-3)
    exact = similarity.principal_angles(scores @ basis[:, :2].T + 4, other @ np.array(turned), 2)
    assert exact == pytest.approx(angles, abs=1e-12)
    nearly = math.cos(1e-9) * basis[:, :1].T + math.sin(1e-9) * basis[:, 4:5].T
    small = similarity.principal_angles(scores[:, :1] @ basis[:, :1].T, scores[:, :1] @ nearly, 1)
    assert small == pytest.approx([1e-9], rel=1e-5)


@pytest.mark.parametrize(("n", "p", "rank"), [(100, 12, 4), (10, 60, 5), (30, 30, 29)])
def test_principal_angles_are_the_arc_cosines_between_principal_components(n, p, rank):
    x, y = related(n, n, p, p)
    components = [PCA(rank, svd_solver="full").fit(side).components_ for side in (x, y)]
    cosines = np.linalg.svd(components[0] @ components[1].T, compute_uv=False)
    found = similarity.principal_angles(x, y, rank)
    assert found.shape == (rank,)
    assert np.cos(found) == pytest.approx(cosines, abs=1e-9)
    oracle = linalg.subspace_angles(*(component.T for component in components))
    assert sorted(found) == found.tolist()
    assert found == pytest.approx(oracle[::-1], abs=1e-6)


def test_the_norm_ratio_is_that_of_mean_norms():
    assert similarity.norm_ratio(np.array([[3.0, 4], [0, 1]]), np.array([[0.0, 0, 9], [0, 3, 0]])) == 2
    assert math.isnan(similarity.norm_ratio(np.zeros((2, 2)), np.ones((2, 2))))


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8 / 3])
@pytest.mark.parametrize("n", [6, 40])
def test_rows_that_do_not_vary_have_no_similarity(constant, n):
    x, flat = np.random.default_rng(13).normal(size=(n, 7)), np.full((n, 7), constant)
    prompts = np.arange(n) // 2
    for a, b in ((x, flat), (flat, x)):
        assert math.isnan(similarity.debiased_cka(a, b))
        assert math.isnan(similarity.prompt_centred_cka(a, b, prompts))
        assert math.isnan(similarity.procrustes_distance(a, b))
        assert math.isnan(similarity.norm_sensitivity(a, b))
        assert np.isnan(similarity.principal_angles(a, b, 2)).all()
        found = similarity.cka_null(a, b, seed=0, draws=10)
        assert all(math.isnan(one) for one in (found.cka, found.p, found.mean, found.high))


def test_rows_equally_far_apart_have_no_debiased_cka():
    x = np.random.default_rng(14).normal(size=(6, 6))
    assert math.isnan(similarity.debiased_cka(np.eye(6), x))
    assert math.isnan(similarity.debiased_cka(x, 3 * np.eye(6) + 2))


def test_float32_is_computed_in_float64():
    x, y = (side.astype(np.float32) for side in related(15, 60, 10, 12))
    wide = x.astype(np.float64), y.astype(np.float64)
    assert similarity.debiased_cka(x, y) == similarity.debiased_cka(*wide)
    assert similarity.procrustes_distance(x, y) == similarity.procrustes_distance(*wide)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.eye(3), np.eye(3), "at least 4"),
        (np.eye(5), np.eye(6), "5 rows and y 6"),
        (np.ones(5), np.eye(5), "x has shape"),
        (np.eye(5), np.full((5, 2), math.nan), r"y has shape \(5, 2\) and 10"),
        (np.ones((5, 0)), np.eye(5), "x has shape"),
    ],
)
def test_what_is_no_pair_of_representations_is_refused(x, y, says):
    for measure in (similarity.debiased_cka, lambda a, b: similarity.cka_null(a, b, seed=0)):
        with pytest.raises(InputError, match=says):
            measure(x, y)


def test_prompts_that_cannot_be_compared_are_refused():
    x = np.random.default_rng(16).normal(size=(5, 3))
    with pytest.raises(InputError, match="1 of 4 prompts"):
        similarity.prompt_centred_cka(x, x, ["a", "a", "b", "c", "d"])
    with pytest.raises(InputError, match="4 prompt ids"):
        similarity.prompt_centred_cka(x, x, ["a", "a", "b", "b"])
    with pytest.raises(InputError, match="2 prompts with 2 numbers of rows"):
        similarity.cka_null(x, x, ["a", "a", "b", "b", "b"], seed=0)
    with pytest.raises(InputError, match="0 draws"):
        similarity.cka_null(x, x, seed=0, draws=0)


@pytest.mark.parametrize("share", [0, 1, -0.1, math.nan])
def test_a_share_of_rows_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="between 0 and 1"):
        similarity.norm_sensitivity(np.eye(9), np.eye(9), share=share)


@pytest.mark.parametrize("rank", [0, 5, 6])
def test_a_rank_that_rows_cannot_span_is_refused(rank):
    with pytest.raises(InputError, match=f"rank {rank} .* between 1 and 4"):
        similarity.principal_angles(np.ones((5, 9)), np.ones((5, 9)), rank)
    with pytest.raises(InputError, match="widths 9 and 8"):
        similarity.principal_angles(np.ones((5, 9)), np.ones((5, 8)), 1)
