"""Differences, their intervals and p-values against numbers by hand and scipy."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from mmattn.evaluation.statistics import difference, holm


def values(result):
    return np.array(dataclasses.astuple(result))


def test_one_seed_by_hand():
    # resampled differences -0.01, 0.01, 0.02, 0.03, ... 0.19
    d = np.array([-0.01, *np.arange(1, 20) / 100])
    base = np.random.default_rng(0).random(20)
    result = difference([0.30], [0.40], [base], [base + d], level=0.90)
    assert result.value == pytest.approx(0.10)
    # 0.05 * 21 = 1.05: the first and the last of 20
    assert (result.low, result.high) == pytest.approx((-0.01, 0.19))
    assert difference([0.30], [0.40], [base], [base + d], level=0.80).low == pytest.approx(0.01)
    assert result.p == pytest.approx(2 * (1 + 1) / 21)  # one of 20 is not above 0
    assert result.standard_error == pytest.approx(np.std(d, ddof=1))
    other = difference([0.40], [0.30], [base + d], [base], level=0.90)
    assert values(other) == pytest.approx(
        [-0.10, -result.high, -result.low, result.p, result.standard_error]
    )


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("replicates", [199, 250, 1000])
def test_p_and_interval_say_the_same(level, replicates):
    rng = np.random.default_rng(0)
    outside = []
    for shift in np.linspace(-3, 3, 300):
        samples = rng.normal(size=(1, replicates)) + shift
        result = difference([0], [shift], np.zeros_like(samples), samples, level)
        outside.append(not result.low <= 0 <= result.high)
        assert outside[-1] == (result.p <= 1 - level + 1e-12)
    assert 0 < np.mean(outside) < 1


def test_p_is_never_0_and_at_most_1():
    base = np.linspace(0, 1, 999)
    assert difference([0], [1], [base], [base + 1]).p == pytest.approx(2 / 1000)
    assert difference([0], [0], [base], [base]).p == 1


def test_two_runs_with_seeds_by_hand():
    # no variance from the images: Welch's t-test
    base, candidate = [0.30, 0.31, 0.35], [0.36, 0.38]
    samples = np.full((3, 50), 0.3)
    result = difference(base, candidate, samples, samples[:2] + 0.05)
    expected = stats.ttest_ind(candidate, base, equal_var=False)
    low, high = expected.confidence_interval(0.95)
    assert values(result)[:4] == pytest.approx([0.05, low, high, expected.pvalue])
    assert result.standard_error == pytest.approx(0.05 / expected.statistic)


def test_images_and_seeds_add_up():
    rng = np.random.default_rng(0)
    base, candidate = [0.30, 0.31, 0.35], [0.36, 0.38]
    a, b = 0.3 + 0.01 * rng.normal(size=(3, 400)), 0.4 + 0.01 * rng.normal(size=(2, 400))
    result = difference(base, candidate, a, b, level=0.9)
    of_images = np.var(b.mean(0) - a.mean(0), ddof=1)
    seeds = [np.var(base, ddof=1) / 3, np.var(candidate, ddof=1) / 2]
    error = np.sqrt(of_images + sum(seeds))
    freedom = error**4 / (seeds[0] ** 2 / 2 + seeds[1] ** 2 / 1)
    half = stats.t.ppf(0.95, freedom) * error
    p = 2 * stats.t.sf(0.05 / error, freedom)
    assert values(result) == pytest.approx([0.05, 0.05 - half, 0.05 + half, p, error])


def test_one_run_with_seeds():
    # only the baseline's seeds vary; the candidate's one seed adds nothing
    rng = np.random.default_rng(0)
    a, b = 0.01 * rng.normal(size=(3, 400)), 0.01 * rng.normal(size=(1, 400))
    result = difference([0.30, 0.31, 0.35], [0.4], a, b)
    expected = np.var(b[0] - a.mean(0), ddof=1) + np.var([0.30, 0.31, 0.35], ddof=1) / 3
    assert result.standard_error == pytest.approx(np.sqrt(expected))
    # seeds that agree to the last bit leave the images: normal
    result = difference([0.3, 0.3], [0.31], a[:2], b)
    error = np.std(b[0] - a[:2].mean(0), ddof=1)
    assert result.p == pytest.approx(2 * stats.norm.sf(0.01 / error))
    assert result.high == pytest.approx(0.01 + stats.norm.ppf(0.975) * error)


def test_the_same_resamples_pair_the_runs():
    # what both runs owe to the images cancels
    rng = np.random.default_rng(0)
    images, own = 0.1 * rng.normal(size=400), 0.001 * rng.normal(size=400)
    paired = difference([0.30], [0.31], [0.3 + images], [0.31 + images + own])
    assert paired.standard_error == pytest.approx(0.001, rel=0.1)
    assert paired.p < 0.01


def test_nothing_to_compare():
    nan, samples = float("nan"), np.full((1, 10), np.nan)
    fine = np.linspace(0, 1, 10)[None]
    for base, candidate, a, b in (
        ([nan], [nan], samples, samples),
        ([nan], [0.3], samples, fine),
        ([nan, nan], [nan], np.repeat(samples, 2, 0), samples),
    ):
        assert np.isnan(values(difference(base, candidate, a, b))).all()
    # in a value, but in no resample
    result = difference([0.3], [0.5], samples, samples)
    assert result.value == pytest.approx(0.2)
    assert np.isnan(values(result)[1:]).all()


def test_resamples_without_the_figure_are_left_out():
    rng = np.random.default_rng(0)
    a, b = rng.random(30), rng.random(30)
    gaps_a, gaps_b = a.copy(), b.copy()
    gaps_a[:5], gaps_b[3:8] = np.nan, np.nan
    expected = difference([0.1], [0.2], [a[8:]], [b[8:]])
    assert difference([0.1], [0.2], [gaps_a], [gaps_b]) == expected


def test_nothing_varies():
    same = np.full((2, 20), 0.5)
    assert values(difference([0.5, 0.5], [0.5, 0.5], same, same)) == pytest.approx([0, 0, 0, 1, 0])
    result = difference([0.5, 0.5], [0.6, 0.6], same, same + 0.1)
    assert (result.low, result.high) == (result.value, result.value)
    assert np.isnan(result.p)


def test_bad_arguments():
    samples = np.zeros((2, 10))
    for arguments, message in (
        (([0.1], [0.1, 0.2], samples, samples), "base must have one figure"),
        (([0.1, 0.2], [], samples, samples), "candidate must have one figure"),
        (([0.1, 0.2], [0.1, 0.2], samples, samples[:, :5]), "the same replicates, got 10"),
        (([0.1, 0.2], [0.1, 0.2], samples, samples, 95), "level must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=message):
            difference(*arguments)


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.02 * 2 but not below the one before, 0.9
    assert holm([0.02, 0.9, 0.01, 0.02]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1, 1])
    assert holm([0.02, np.nan, 0.01]) == pytest.approx([0.02, np.nan, 0.02], nan_ok=True)
    assert holm([np.nan]) == pytest.approx([np.nan], nan_ok=True)
    assert holm([]).shape == (0,)


def test_holm_is_the_closed_test_of_bonferroni():
    # a test is rejected when every set of tests that holds it is rejected by Bonferroni's
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = rng.random(5) ** 3
        expected = [
            max(
                min(1, len(chosen) * min(p[list(chosen)]))
                for size in range(1, 6)
                for chosen in itertools.combinations(range(5), size)
                if n in chosen
            )
            for n in range(5)
        ]
        assert holm(p) == pytest.approx(expected)
