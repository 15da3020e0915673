"""Is a candidate better than the baseline, and for which sizes? A paired bootstrap over images.

Both runs are evaluated on the same resamples of the images, 1,000 of them by default, drawn with
replacement. An image that is drawn twice counts twice, with its objects and its detections, so
that each replicate is what pycocotools would say of such a dataset.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmattn.evaluation.bins import ALL, SizeBin, SizeBins, parse_bins
from mmattn.evaluation.bootstrap import Samples, bootstrap, draw
from mmattn.evaluation.checks import check_different, check_resampling
from mmattn.evaluation.data import Detections, GroundTruth, load_detections, load_ground_truth
from mmattn.evaluation.evaluator import evaluate_loaded, parse_iou_thrs, parse_max_dets
from mmattn.evaluation.matching import match
from mmattn.evaluation.overlaps import overlaps
from mmattn.evaluation.progress import Progress
from mmattn.evaluation.result import FIGURES, data_frame, to_json, write_or_return
from mmattn.evaluation.run import Run
from mmattn.evaluation.sources import find_files
from mmattn.evaluation.statistics import Difference, difference, holm

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


# resamples of fewer images say nothing about other images
MIN_IMAGES = 5
# with fewer, equal detectors are told apart more often than the level says
VERDICT_IMAGES = 20
FEW_OBJECTS = 30
MISSING_SHARE = 0.1
# the mean over classes gives a class of few objects the weight of any other
RARE, RARE_SHARE = 10, 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differences:
    """Candidate minus baseline, each with ``.value .low .high .p``; fractions, nan is n/a."""

    ap: Difference
    ap50: Difference
    ap75: Difference
    ar: Difference

    def __getitem__(self, figure: str) -> Difference:
        """A difference by its figure's usual name: 'AP', 'AP50', 'AP75' or 'AR'."""
        if figure not in FIGURES:
            raise KeyError(f"expected one of {', '.join(FIGURES)}, got {figure!r}")
        return getattr(self, figure.lower())


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Comparison(Differences):
    """How a candidate differs from the baseline, overall and by size.

    ``comparison.ap.value``, ``comparison.by_size['small'].ap.low``, ``.high``, ``.p``.
    ``str(comparison)`` says it in words and as a table.

    Attributes:
        by_size: Bin -> its differences.
        per_class: Class name -> 'all' or bin -> difference of AP; empty unless asked for.
        num_images: 'all' or bin -> number of images with such objects.
        one_sided: For each of the two, on how many images with objects it alone has detections.
        baseline_run: The baseline's results.
        candidate_run: The candidate's results.
        replicates: Number of resamples.
        seed: Of the resamples.
        level: Of the intervals.
    """

    by_size: dict[str, Differences]
    per_class: dict[str, dict[str, Difference]]
    num_images: dict[str, int]
    one_sided: tuple[int, int]
    baseline_run: Run
    candidate_run: Run
    replicates: int
    seed: int
    level: float

    @property
    def baseline(self) -> str:
        """Name of the baseline."""
        return self.baseline_run.name

    @property
    def candidate(self) -> str:
        """Name of the candidate."""
        return self.candidate_run.name

    @property
    def num_objects(self) -> dict[str, int]:
        """'all' or bin -> number of objects."""
        return self.baseline_run.num_objects

    @property
    def differences(self) -> dict[str, dict[str, Difference]]:
        """'all' or bin -> 'AP', 'AP50', 'AP75' or 'AR' -> difference."""
        rows = {"all": self, **self.by_size}
        return {size: {figure: row[figure] for figure in FIGURES} for size, row in rows.items()}

    @property
    def heading(self) -> str:
        """One line that says what the differences are."""
        return (
            f"{self.candidate} minus {self.baseline}, points, with {100 * self.level:g} % "
            f"intervals from {self.replicates} resamples"
            f"{' and the seeds' if self.has_seeds else ''}"
        )

    @property
    def has_seeds(self) -> bool:
        """Whether a run has several seeds, whose spread the intervals then cover."""
        return max(self.baseline_run.seeds, self.candidate_run.seeds) > 1

    @property
    def words(self) -> list[str]:
        """Which sizes changed and which did not, a sentence each."""
        return list(_words(self))

    def table(self) -> str:
        """The differences as text, in points of percent; valid Markdown."""
        from mmattn.evaluation.table import comparison_table, render

        return render(comparison_table(self))

    def to_dict(self) -> dict[str, Any]:
        """Everything, in full precision, as JSON knows it; ``None`` is n/a."""
        return {
            "baseline": self.baseline,
            "candidate": self.candidate,
            "replicates": self.replicates,
            "seed": self.seed,
            "level": self.level,
            "words": self.words,
            "differences": {
                size: {figure: _plain(x) for figure, x in row.items()}
                for size, row in self.differences.items()
            },
            "classes": {
                name: {size: _plain(x) for size, x in row.items()}
                for name, row in self.per_class.items()
            },
        }

    def to_json(self, path: str | os.PathLike | None = None) -> str | None:
        """:meth:`to_dict` as JSON text, or written to ``path``, whole or not at all."""
        return write_or_return(to_json(self.to_dict()), path)

    def to_pandas(self) -> pandas.DataFrame:
        """One row per class ('all' first), size and figure, as fractions.

        Raises:
            ImportError: pandas is not installed.
        """
        rows = [
            ("all", size, figure, x)
            for size, row in self.differences.items()
            for figure, x in row.items()
        ]
        for name, row in self.per_class.items():
            rows += [(name, size, "AP", x) for size, x in row.items()]
        return data_frame(
            [
                {"class": name, "size": size, "figure": figure, **dataclasses.asdict(x)}
                for name, size, figure, x in rows
            ]
        )

    def plot(self) -> Figure:
        """The differences by size as a matplotlib figure."""
        from mmattn.evaluation.plots import plot_differences

        return plot_differences([self], num_objects=self.num_objects)

    def __repr__(self) -> str:
        return "\n".join([*self.words, "", self.table()])

    __str__ = __repr__


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How runs are evaluated; checked.

    Attributes:
        bins: The size bins.
        iou_thrs: IoU thresholds.
        max_dets: Detections of an image and class that count.
    """

    bins: tuple[SizeBin, ...]
    iou_thrs: list[float]
    max_dets: int

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """Limits of 'all' and of each bin."""
        return [(low, high) for _, low, high in (ALL, *self.bins)]


def compare(
    ground_truth: Any,
    baseline: Any,
    candidate: Any,
    bins: SizeBins = None,
    iou_type: str = "bbox",
    *,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    per_class: bool = False,
    size_by: str = "area",
    max_dets: int = 100,
    iou_thrs: float | Sequence[float] | None = None,
    classes: Iterable[Any] | None = None,
    unknown: str = "error",
    model_classes: Iterable[str] | None = None,
    names: Sequence[str] = ("baseline", "candidate"),
) -> Comparison:
    """Differences of a candidate to a baseline, with intervals and p-values.

    With one result each, an interval says what other images of the same kind would have given; it
    knows nothing of what another training of the same config would have given. With several
    seeds of a run it covers both, by the spread between them.

    Args:
        ground_truth: Path of an annotation file, or its content.
        baseline: Path of a results file or its content; a list of these, one a seed; or a folder
            with a results file for each seed.
        candidate: The same.
        bins: As in :func:`~mmattn.evaluation.evaluate`.
        iou_type: As there.
        replicates: Number of resamples of the images.
        seed: Of the resamples. The same seed gives the same figures, on any number of cores.
        level: Of the intervals.
        per_class: Whether AP of every class is compared, too.
        size_by: As in :func:`~mmattn.evaluation.evaluate`.
        max_dets: As there.
        iou_thrs: As there.
        classes: As there.
        unknown: As there.
        model_classes: As there.
        names: What words and tables call the two.

    Returns:
        The differences.

    Raises:
        FileNotFoundError: A file does not exist.
        TypeError, ValueError: An argument, the ground truth or a result is not valid.
    """
    settings = Settings(
        bins=parse_bins(bins, size_by),
        iou_thrs=parse_iou_thrs(iou_thrs),
        max_dets=parse_max_dets(max_dets),
    )
    check_resampling(replicates, seed, level)
    if len(names) != 2 or names[0] == names[1]:
        raise ValueError(f"names must be two different names, got {names!r}")
    truth = load_ground_truth(ground_truth, iou_type, size_by, classes)
    weights = draw(len(truth.image_ids), replicates, seed)
    runs, samples = [], []
    with Progress() as progress:
        for name, sources in zip(names, (baseline, candidate), strict=True):
            results, of_seeds, seen = [], [], {}
            for number, source in enumerate(_seeds(sources, iou_type)):
                progress.stage(f"evaluating {name}")
                found = load_detections(source, truth, unknown, model_classes)
                check_different(found, seen, f"{name}, seed {number}")
                results.append(evaluate_found(truth, found, settings, name))
                advance = progress.stage(f"resampling {name}", replicates)
                of_seeds.append(resample(truth, found, settings, weights, per_class, advance))
            runs.append(Run(name=name, results=tuple(results)))
            samples.append(of_seeds)
    return compare_runs(
        truth, settings, *runs, *samples, replicates=replicates, seed=seed, level=level
    )


def evaluate_found(truth: GroundTruth, found: Detections, settings: Settings, name: str) -> Any:
    """:func:`~mmattn.evaluation.evaluator.evaluate_loaded` with settings."""
    return evaluate_loaded(
        truth,
        found,
        settings.bins,
        max_dets=settings.max_dets,
        iou_thrs=settings.iou_thrs,
        name=name,
    )


def resample(
    truth: GroundTruth,
    found: Detections,
    settings: Settings,
    weights: np.ndarray,
    per_class: bool = False,
    advance: Any = None,
) -> Samples:
    """The figures of one result on every resample, 'all' first, then each bin."""
    matches = match(
        truth,
        found,
        overlaps(truth, found),
        settings.ranges,
        settings.iou_thrs,
        settings.max_dets,
    )
    return bootstrap(matches, weights, advance, per_class)


def compare_runs(
    truth: GroundTruth,
    settings: Settings,
    baseline: Run,
    candidate: Run,
    baseline_samples: Sequence[Samples],
    candidate_samples: Sequence[Samples],
    *,
    replicates: int,
    seed: int,
    level: float = 0.95,
) -> Comparison:
    """Puts together what was evaluated and resampled; one :class:`Samples` a seed.

    Where fewer than five images have objects, there is a difference without an interval.
    """
    images, class_images = _images_with_objects(truth, settings)
    rows = [[dict(x.rows()) for x in run.results] for run in (baseline, candidate)]
    samples = (baseline_samples, candidate_samples)

    def differences(a: int, size: str) -> dict[str, Difference]:
        return {
            figure.lower(): _difference(
                *([row[size][figure] for row in run] for run in rows),
                *([getattr(x, figure.lower())[:, a] for x in run] for run in samples),
                level=level,
                enough=images[a] >= MIN_IMAGES,
            )
            for figure in FIGURES
        }

    sizes = list(rows[0][0])
    per_class = {}
    if baseline_samples[0].class_ap is not None:
        for k, name in enumerate(baseline.results[0].per_class):
            of_class = [[x.per_class[name] for x in run.results] for run in (baseline, candidate)]
            per_class[name] = {
                size: _difference(
                    *([(x if a == 0 else x.by_size[size]).ap for x in run] for run in of_class),
                    *([x.class_ap[:, k, a] for x in run] for run in samples),
                    level=level,
                    enough=class_images[k, a] >= MIN_IMAGES,
                )
                for a, size in enumerate(sizes)
            }
    return Comparison(
        **differences(0, "all"),
        by_size={x: Differences(**differences(a, x)) for a, x in enumerate(sizes) if a},
        per_class=per_class,
        one_sided=_one_sided(truth, baseline, candidate),
        num_images={size: int(images[a]) for a, size in enumerate(sizes)},
        baseline_run=baseline,
        candidate_run=candidate,
        replicates=replicates,
        seed=seed,
        level=level,
    )


def _difference(*runs: Any, level: float, enough: bool) -> Difference:
    x = difference(*runs, level=level)
    return x if enough and not math.isnan(x.p) else Difference(x.value, *[math.nan] * 4)


def _one_sided(truth: GroundTruth, baseline: Run, candidate: Run) -> tuple[int, int]:
    with_objects = np.unique(truth.image[~truth.crowd])
    a, b = (run.results[0].covered[with_objects] for run in (baseline, candidate))
    return int((a & ~b).sum()), int((b & ~a).sum())


def _images_with_objects(truth: GroundTruth, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """(A,) and (K, A): on how many images there are objects of a bin, and of a class and bin."""
    num_images, num_classes = len(truth.image_ids), len(truth.class_ids)
    counts, class_counts = [], []
    for low, high in settings.ranges:
        inside = ~truth.crowd & (truth.size >= low) & (truth.size <= high)
        pairs = truth.category[inside].astype(np.int64) * num_images + truth.image[inside]
        class_counts.append(np.bincount(np.unique(pairs) // num_images, minlength=num_classes))
        counts.append(len(np.unique(truth.image[inside])))
    return np.array(counts), np.stack(class_counts, 1)


def _seeds(sources: Any, iou_type: str) -> list[Any]:
    """One or several results: a list of records is one, a list of paths or of lists is several."""
    if isinstance(sources, (str, os.PathLike)):
        return list(find_files(sources, iou_type))
    if isinstance(sources, (list, tuple)) and sources and not isinstance(sources[0], Mapping):
        return list(sources)
    return [sources]


def _rare_classes(comparison: Comparison, size: str) -> str:
    """A warning where the mean over classes hangs on classes with next to no objects."""
    classes = comparison.baseline_run.results[0].per_class.values()
    counts = [(x if size == "all" else x.by_size[size]).num_objects for x in classes]
    have = [x for x in counts if x]
    rare = sum(x < RARE for x in have)
    if not rare or rare < RARE_SHARE * len(have) or len(have) == 1:
        return ""
    return (
        f" {rare} of the {len(have)} classes with such objects have fewer than {RARE} of them, "
        "and each counts as much as any other."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)


def _plain(x: Difference) -> dict[str, float | None]:
    return {
        key: None if math.isnan(value) else value for key, value in dataclasses.asdict(x).items()
    }


def _words(comparison: Comparison) -> Iterator[str]:
    from mmattn.evaluation.table import limits, p_value, signed

    def equals(p: float) -> str:
        return "p < 0.001" if p < 0.001 else f"p = {p_value(p)}"

    alpha, level = 1 - comparison.level + 1e-9, f"{100 * comparison.level:g} %"
    have = {name: x.ap for name, x in comparison.by_size.items() if not math.isnan(x.ap.p)}
    # each size is a chance to be fooled: Holm's correction over the sizes
    adjusted = dict(zip(have, holm([x.p for x in have.values()]), strict=True))
    for size, row in comparison.differences.items():
        what, ap = "All sizes" if size == "all" else size.capitalize(), row["AP"]
        if math.isnan(ap.value):
            yield f"{what}: nothing to find."
            continue
        runs = (comparison.baseline_run, comparison.candidate_run)
        if all(run.figures[size]["AP"] == run.figures[size]["AR"] == 0 for run in runs):
            yield f"{what}: neither run finds any."
            continue
        if (number := comparison.num_objects[size]) < FEW_OBJECTS:
            what += f" (only {number} object{'' if number == 1 else 's'})"
        if math.isnan(ap.p):
            few = comparison.num_images[size] < MIN_IMAGES
            why = "too few images with objects" if few else "too little varies"
            yield f"{what}: {signed(ap.value)} AP; {why} for an interval."
            continue
        numbers = f"{signed(ap.value)} AP ({level} interval {limits(ap)}, "
        p = adjusted.get(size, ap.p)
        better = "better" if ap.value > 0 else "worse"
        if (number := comparison.num_images[size]) < VERDICT_IMAGES:
            sentence = (
                f"{what}: no verdict, as only {number} images have such objects: {numbers}"
                f"{equals(ap.p)})."
            )
        elif ap.p > alpha:
            sentence = f"{what}: no difference shown: {numbers}{equals(ap.p)})."
        elif p > alpha:
            sentence = (
                f"{what}: perhaps {better}, not shown: {numbers}{equals(ap.p)}; among {len(have)} "
                f"sizes one such interval comes by chance too often, adjusted {equals(p)})."
            )
        else:
            sentence = f"{what}: {better}: {numbers}{equals(ap.p)})."
        yield sentence + _rare_classes(comparison, size)
    names = (comparison.baseline, comparison.candidate)
    for name, number in zip(names, comparison.one_sided, strict=True):
        if number > MISSING_SHARE * comparison.num_images["all"]:
            yield (
                f"On {number} of {comparison.num_images['all']} images with objects only {name} "
                "has detections: are both the results of the same images?"
            )
    # one after the other, or no p could ever be small enough
    least = 2 * max(len(have), 1) / (comparison.replicates + 1)
    if least > alpha and not comparison.has_seeds:
        yield (
            f"{comparison.replicates} resamples are too few: no adjusted p can fall below "
            f"{least:.2f}; take 1000."
        )
    seeds = (comparison.baseline_run.seeds, comparison.candidate_run.seeds)
    if min(seeds) == 1:
        single = [name for name, number in zip(names, seeds, strict=True) if number == 1]
        yield (
            "The intervals cover the choice of images. They do not cover the chance of a training: "
            f"another seed of the same config differs too, and there is one of {_and(single)}. "
            "Give a folder with several seeds of each run to cover both."
        )
    else:
        yield (
            f"The intervals cover the choice of images and the chance of a training ({seeds[0]} "
            f"and {seeds[1]} seeds{'' if min(seeds) > 2 else '; two say little about it'})."
        )
