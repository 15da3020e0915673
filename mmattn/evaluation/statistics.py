"""Is a difference between two runs more than chance? Intervals and p-values from a bootstrap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Difference:
    """Candidate minus baseline; nan where there is nothing to compare.

    Attributes:
        value: The difference, of the means over seeds if there are several.
        low: Lower end of the interval.
        high: Upper end.
        p: Two-sided p-value of "no difference".
        standard_error: Of the value.
    """

    value: float
    low: float
    high: float
    p: float
    standard_error: float


def difference(
    base: Sequence[float],
    candidate: Sequence[float],
    base_samples: Sequence[np.ndarray],
    candidate_samples: Sequence[np.ndarray],
    level: float = 0.95,
) -> Difference:
    r"""Difference of one figure between two runs, with a paired bootstrap over images.

    With one seed each the interval holds the middle ``level`` of the R resampled differences d,
    and p is :math:`2 (1 + \min(\#\{d \le 0\}, \#\{d \ge 0\})) / (R + 1)`, at most 1. What they
    say is about these two trained models and other images. 0 is outside the interval where
    p <= 1 - level, and only there (with 39 replicates or more at 0.95).

    With several seeds it is about training again as well. The squared standard error is the
    variance of d, taken between the means over seeds, plus :math:`s^2 / k` of each run that has
    k >= 2 seeds, with the sample variance :math:`s^2` of its figure; the interval and p are
    Student's, with Welch and Satterthwaite's degrees of freedom (those of the bootstrap are
    infinite). This is conservative: what a seed happens to do on these images is in both terms.
    In simulation (3 seeds each) a 95 % interval holds the truth in 99 % of the datasets where seeds
    differ by that only, and in 95 % where some seeds are truly better than others. A run of one
    seed adds no such term: how it would vary is unknown.

    Replicates in which the figure is n/a for either run are left out.

    Args:
        base: Figure of the baseline on all images, one for each seed.
        candidate: Figure of the candidate.
        base_samples: (R,) figures of the replicates, for each seed.
        candidate_samples: The same of the candidate, on the same replicates.
        level: Of the interval.

    Raises:
        ValueError: The numbers of figures and samples do not fit, or the level is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, as in 0.95, got {level}")
    runs = []
    for name, values, samples in (
        ("base", base, base_samples),
        ("candidate", candidate, candidate_samples),
    ):
        values, samples = np.asarray(values, float), np.asarray(samples, float)
        if values.ndim != 1 or samples.ndim != 2 or len(values) != len(samples) or not len(values):
            raise ValueError(
                f"{name} must have one figure, and one row of replicates, for each seed; got "
                f"shapes {values.shape} and {samples.shape}"
            )
        runs.append((values, samples))
    if runs[0][1].shape[1] != runs[1][1].shape[1]:
        raise ValueError(
            f"both runs need the same replicates, got {runs[0][1].shape[1]} of the baseline and "
            f"{runs[1][1].shape[1]} of the candidate"
        )
    (base_values, base_rows), (values, rows) = runs
    value = float(values.mean() - base_values.mean())
    resampled = rows.mean(0) - base_rows.mean(0)
    resampled = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or len(resampled) < 2:
        return Difference(value, *[float("nan")] * 4)
    variance = resampled.var(ddof=1)
    tail = (1 - level) / 2
    if len(values) == len(base_values) == 1:
        # the order statistics that go with p: 0 is outside where p <= 1 - level, and only there
        rank = max(int((len(resampled) + 1) * tail + 1e-9), 1)
        low, high = np.sort(resampled)[[rank - 1, -rank]]
        beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
        p = min(1.0, 2 * (1 + beyond) / (len(resampled) + 1))
        return Difference(value, float(low), float(high), float(p), float(np.sqrt(variance)))

    from scipy.special import stdtr, stdtrit  # scipy.stats takes half a second to import

    seeds = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (values, base_values) if len(x) > 1]
    variance += sum(share for share, _ in seeds)
    error = float(np.sqrt(variance))
    if error < 1e-12:  # nothing varies but the last bit: equal runs, or no way to say
        p = 1.0 if abs(value) < 1e-12 else float("nan")
        return Difference(value, value, value, p, 0.0)
    uncertain = sum(share**2 / freedom for share, freedom in seeds)
    freedom = variance**2 / uncertain if uncertain > 0 else np.inf
    half = float(stdtrit(freedom, 1 - tail)) * error
    p = 2 * float(stdtr(freedom, -abs(value) / error))
    return Difference(value, value - half, value + half, p, error)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's p-values, adjusted for several tests at once; nan stays nan and is no test.

    Each is the smallest level at which its test is rejected while the chance of any false
    rejection among all of them stays below that level.
    """
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
