"""From files to a report: what ``tools/ap_by_size.py`` does."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import itertools
import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mmattn._version import __version__
from mmattn.evaluation.bins import MAX_SIZE, SizeBins, parse_bins
from mmattn.evaluation.checks import check_different, check_resampling
from mmattn.evaluation.data import Detections, GroundTruth, load_detections, load_ground_truth
from mmattn.evaluation.evaluator import doubts, evaluate_loaded, parse_iou_thrs, parse_max_dets
from mmattn.evaluation.files import write_bytes, write_text
from mmattn.evaluation.progress import Progress
from mmattn.evaluation.result import FIGURES, to_json
from mmattn.evaluation.run import Run
from mmattn.evaluation.sources import find_runs
from mmattn.evaluation.table import (
    class_comparison_table,
    class_table,
    comparison_table,
    heading,
    notes,
    render,
    runs_table,
    size_table,
)

if TYPE_CHECKING:
    from mmattn.evaluation.comparison import Comparison

SUFFIXES = (".md", ".csv", ".json", ".html")
PICTURE_SUFFIXES = (".png", ".svg")
CURVE_REPLICATES = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is asked for; as on the command line of ``tools/ap_by_size.py``."""

    ground_truth: str
    results: Sequence[str]
    iou_type: str = "bbox"
    bins: SizeBins = None
    size_by: str = "area"
    per_class: bool = False
    max_dets: int = 100
    iou_thrs: Sequence[float] | None = None
    classes: Sequence[str] | None = None
    model_classes: Sequence[str] | None = None
    unknown: str = "error"
    replicates: int = 1000
    seed: int = 0
    level: float = 0.95
    out: Sequence[str] = ()
    pictures: str | None = None
    images_dir: str | None = None
    num_images: int = 12
    image_bin: str | None = None


def run(options: Options, say: Callable[[str], None]) -> None:
    """Evaluates, compares with the first, says the tables, and writes what is asked for.

    Args:
        options: What is asked for.
        say: Takes the text of the tables.

    Raises:
        OSError, TypeError, ValueError: An option, a file or its content is not valid. Options
            and outputs are checked before anything is computed.
    """
    _check_outputs(options)
    with Progress() as progress:
        report = _evaluate(options, progress)
        # files first: a console that fails must not cost them
        written = []
        for path in options.out:
            progress.stage(f"writing {path}")
            text = getattr(report, f"to_{Path(path).suffix[1:]}")()
            with _writing(path):
                write_text(path, text)
            written.append(path)
        if options.pictures:
            progress.stage(f"drawing in {options.pictures}")
            with _writing(options.pictures):
                written += report.write_pictures(Path(options.pictures))
    say(render(*report.tables()).rstrip())
    for path in written:
        say(f"written to {path}")


@contextlib.contextmanager
def _writing(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


@dataclasses.dataclass(kw_only=True)
class _Report:
    options: Options
    truth: GroundTruth
    sources: list[Any]
    runs: list[Run]
    comparisons: list[Comparison]
    curves: list[Any]
    errors: dict[str, Any]
    images: dict[str, list[Any]]  # by candidate

    def tables(self) -> list[Any]:
        """What the console shows, and Markdown; every table ends in an empty line."""
        single = len(self.runs) == 1 and self.runs[0].seeds == 1
        tables = [size_table(self.runs[0].results[0]) if single else runs_table(self.runs), Text()]
        if notes_of_sources := [note for x in self.sources for note in x.notes]:
            tables += [*map(Text, notes_of_sources), Text()]
        tables += map(comparison_table, self.comparisons)
        if self.options.per_class:
            for run in self.runs:
                of = f"{run.name}, mean of {run.seeds} seeds:" if run.seeds > 1 else f"{run.name}:"
                tables += [] if single else [Text(of)]
                tables.append(class_table(run))
            tables += map(class_comparison_table, self.comparisons)
        if len(self.comparisons) > 1:
            sentence = (
                "Each candidate is judged alone: among several, one differs by chance more often."
            )
            tables += [Text(sentence), Text()]
        for comparison in self.comparisons:
            tables.append(Text(f"{comparison.candidate} against {comparison.baseline}:\n"))
            tables += [*(Text(f"- {x}") for x in comparison.words), Text()]
        return tables

    def to_md(self) -> str:
        return f"# AP by object size\n\n{render(*self.tables()).rstrip()}\n\nmmattn {__version__}\n"

    def to_json(self) -> str:
        return to_json(
            {
                "mmattn": __version__,
                "ground_truth": os.fspath(self.options.ground_truth),
                "runs": [x.to_dict() for x in self.runs],
                "comparisons": [x.to_dict() for x in self.comparisons],
                **(
                    {"errors": {k: x.to_dict() for k, x in self.errors.items()}}
                    if self.errors
                    else {}
                ),
            }
        )

    def to_csv(self) -> str:
        """One line per run, class, size and figure, as fractions; empty is n/a."""
        columns = ("run", "seeds", "class", "size", "low_limit", "high_limit", "objects", "figure")
        columns += ("value", "std", "difference", "low", "high", "p")
        comparisons = {x.candidate: x for x in self.comparisons}
        base, bins = self.runs[0], self.runs[0].conditions.size_bins
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)

        def write(run, name, size, count, figure, value, std, base_value, difference) -> None:
            limits = [x if x < MAX_SIZE else math.nan for x in bins.get(size, (math.nan, math.nan))]
            compared = [value - base_value if run is not base else math.nan, *[math.nan] * 3]
            if difference is not None:
                compared = [difference.value, difference.low, difference.high, difference.p]
            numbers = [*limits, count], [value, std, *compared]
            low_high_count, figures = ([_cell(x) for x in row] for row in numbers)
            writer.writerow([run.name, run.seeds, name, size, *low_high_count, figure, *figures])

        for run in self.runs:
            comparison = comparisons.get(run.name)
            for size, row in run.figures.items():
                for figure in FIGURES:
                    std = run.std[size][figure] if run.std else math.nan
                    difference = comparison and comparison.differences[size][figure]
                    base_value = base.figures[size][figure]
                    count = run.num_objects[size]
                    write(run, "all", size, count, figure, row[figure], std, base_value, difference)
            if not self.options.per_class:
                continue
            for name, row in run.class_ap.items():
                first = run.results[0].per_class[name]
                for size, value in row.items():
                    count = (first if size == "all" else first.by_size[size]).num_objects
                    difference = comparison and comparison.per_class[name][size]
                    base_value = base.class_ap[name][size]
                    std = run.class_std[name][size] if run.std else math.nan
                    write(run, name, size, count, "AP", value, std, base_value, difference)
        return file.getvalue()

    def to_html(self) -> str:
        from mmattn.evaluation.page import render_page

        return render_page(self._page())

    def write_pictures(self, folder: Path) -> list[Path]:
        from mmattn.evaluation import plots

        conditions = self.runs[0].conditions
        bins = [(name, *limits) for name, limits in conditions.size_bins.items()]
        names, num_objects = [run.name for run in self.runs], self.runs[0].num_objects
        figures = {
            "ap_by_size": plots.plot_size_curves(
                self.curves,
                bins,
                size_by=conditions.size_by,
                level=self.options.level,
                runs=names,
            ),
            "errors": plots.plot_errors(self.errors, num_objects, runs=names),
        }
        if self.comparisons:
            figures["differences"] = plots.plot_differences(
                self.comparisons, num_objects, runs=names
            )
        if self.pr:
            figures["precision_recall"] = plots.plot_precision_recall(
                self.pr, num_objects, runs=names
            )
        written = []
        for name, figure in figures.items():
            for suffix in PICTURE_SUFFIXES:
                plots.save(figure, path := folder / f"{name}{suffix}")
                written.append(path)
        for n, image in enumerate(itertools.chain(*self.images.values()), 1):
            suffix = image.picture_type.removeprefix("image/").replace("jpeg", "jpg")
            path = folder / f"image_{n:02d}.{suffix}"
            write_bytes(path, image.picture)
            written.append(path)
        return written

    @property
    def pr(self) -> dict[str, Any]:
        return {run.name: run.precision_at_50 for run in self.runs if run.precision_at_50}

    def _page(self) -> Any:
        from mmattn.evaluation.page import ClassRow
        from mmattn.evaluation.page import Report as Page

        conditions = self.runs[0].conditions
        per_class = []
        if self.options.per_class:
            for name, first in self.runs[0].results[0].per_class.items():
                sizes = {"all": first, **first.by_size}
                per_class.append(
                    ClassRow(
                        name=name,
                        num_objects={size: x.num_objects for size, x in sizes.items()},
                        ap={run.name: run.class_ap[name] for run in self.runs},
                        differences={x.candidate: x.per_class[name] for x in self.comparisons},
                    )
                )
        results = [x for run in self.runs for x in run.results]
        size_note, *other_notes = notes(results)
        lines = [f"Ground truth: {self.options.ground_truth}", heading(conditions), size_note]
        lines += [f"{x.name}: {', '.join(map(os.fspath, x.files))}" for x in self.sources]
        if self.comparisons:
            x = self.comparisons[0]
            lines.append(
                f"Intervals: {100 * x.level:g} %, paired bootstrap over images, {x.replicates} "
                f"resamples, seed {x.seed}; those of the curves from {self._curve_replicates}."
            )
        return Page(
            runs=self.runs,
            bins=[(name, *limits) for name, limits in conditions.size_bins.items()],
            size_by=conditions.size_by,
            comparisons=self.comparisons,
            level=self.options.level,
            curves=self.curves,
            pr=self.pr,
            errors=self.errors,
            per_class=per_class,
            images=[self._image_group(run) for run in self.runs if run.name in self.images],
            conditions=lines,
            notes=[*(note for x in self.sources for note in x.notes), *other_notes],
            versions={
                "mmattn": __version__,
                "hotcoco": importlib.metadata.version("hotcoco"),
                "numpy": importlib.metadata.version("numpy"),
                "Python": platform.python_version(),
            },
        )

    def _image_group(self, run: Run) -> Any:
        from mmattn.evaluation.page import ImageGroup

        base, images = self.runs[0], self.images[run.name]
        better = sum(x.difference > 0 for x in images)
        text = (
            f"Those with the largest difference in objects found minus false alarms at IoU 0.50, "
            f"each run from its own best F1 score on: {run.name}, the candidate, does better in "
            f"{better} of them and worse in {len(images) - better}."
        )
        if not images:
            text = "In no image do objects found minus false alarms at IoU 0.50 differ."
        if max(base.seeds, run.seeds) > 1:
            text += " Of a run's several seeds, the first one counts here."
        return ImageGroup(heading=f"{run.name} against {base.name}", text=text, images=images)

    @property
    def _curve_replicates(self) -> int:
        return min(CURVE_REPLICATES, self.options.replicates)


def _evaluate(options: Options, progress: Progress) -> _Report:
    bins = parse_bins(options.bins, options.size_by)
    iou_thrs, max_dets = parse_iou_thrs(options.iou_thrs), parse_max_dets(options.max_dets)
    if options.replicates:
        check_resampling(options.replicates, options.seed, options.level)
    if options.image_bin is not None and options.image_bin not in [x.name for x in bins]:
        raise ValueError(
            f"--image-bin {options.image_bin}: the bins are {', '.join(x.name for x in bins)}"
        )
    sources = find_runs(options.results, options.iou_type)
    _check_inputs(options, [file for source in sources for file in source.files])
    drawn = bool(options.pictures) or any(path.endswith(".html") for path in options.out)
    paired = len(sources) > 1 and options.replicates > 0
    samples, kept, settings, weights = [], [], None, None
    progress.stage(f"reading {options.ground_truth}")
    truth = load_ground_truth(
        options.ground_truth, options.iou_type, options.size_by, options.classes
    )
    if options.images_dir is not None:
        from mmattn.evaluation.drawing import check_images_dir

        check_images_dir(truth, options.images_dir)
    if paired or (drawn and options.replicates > 0):
        from mmattn.evaluation.bootstrap import draw

        weights = draw(len(truth.image_ids), options.replicates, options.seed)
    if paired:
        from mmattn.evaluation.comparison import Settings, compare_runs, resample

        settings = Settings(bins=bins, iou_thrs=iou_thrs, max_dets=max_dets)
    runs = []
    for source in sources:
        results, of_seeds, found_of_seeds, seen = [], [], [], {}
        for path, seed_name in zip(source.files, source.seed_names, strict=True):
            name = source.name if len(source.files) == 1 else f"{source.name}/{seed_name}"
            progress.stage(f"evaluating {name}")
            found = load_detections(path, truth, options.unknown, options.model_classes)
            if len(source.files) > 1:
                check_different(found, seen, name)
            results.append(
                evaluate_loaded(truth, found, bins, max_dets=max_dets, iou_thrs=iou_thrs, name=name)
            )
            results[-1].conditions.notes.extend(doubts(results[-1]))
            if paired:
                advance = progress.stage(f"resampling {name}", options.replicates)
                of_seeds.append(
                    resample(truth, found, settings, weights, options.per_class, advance)
                )
            if drawn:
                found_of_seeds.append(found)
            del found
        runs.append(Run(name=source.name, results=tuple(results)))
        samples.append(of_seeds)
        kept.append(found_of_seeds)
    comparisons = []
    for i in range(1, len(runs)) if paired else ():
        progress.stage(f"comparing {runs[i].name}")
        comparisons.append(
            compare_runs(
                truth,
                settings,
                runs[0],
                runs[i],
                samples[0],
                samples[i],
                replicates=options.replicates,
                seed=options.seed,
                level=options.level,
            )
        )
    report = _Report(
        options=options,
        truth=truth,
        sources=sources,
        runs=runs,
        comparisons=comparisons,
        curves=[],
        errors={},
        images={},
    )
    if drawn:
        _add_pictures(report, kept, weights, max_dets, iou_thrs, progress)
    return report


def _add_pictures(
    report: _Report,
    found: Sequence[Sequence[Detections]],
    weights: Any,
    max_dets: int,
    iou_thrs: Sequence[float],
    progress: Progress,
) -> None:
    from mmattn.evaluation.curves import size_curve
    from mmattn.evaluation.differences import differing_images
    from mmattn.evaluation.drawing import draw_all
    from mmattn.evaluation.overlaps import overlaps
    from mmattn.evaluation.tide import error_types, mean_errors

    truth, runs, options = report.truth, report.runs, report.options
    bins = runs[0].conditions.size_bins
    for run, seeds in zip(runs, found, strict=True):
        some = None if weights is None else weights[:CURVE_REPLICATES]
        advance = progress.stage(
            f"curve of {run.name}", None if some is None else len(some) * len(seeds)
        )
        report.curves.append(
            size_curve(
                run.name,
                truth,
                seeds,
                some,
                iou_thrs=iou_thrs,
                max_dets=max_dets,
                level=options.level,
                advance=advance,
            )
        )
        progress.stage(f"error types of {run.name}")
        errors = [error_types(truth, x, overlaps(truth, x), bins, max_dets) for x in seeds]
        report.errors[run.name] = errors[0] if len(errors) == 1 else mean_errors(errors)
    for run, seeds in zip(runs[1:], found[1:], strict=True):
        if not options.num_images:
            break
        progress.stage(f"images of {run.name}")
        pairs = [
            (x.name, detections[0], overlaps(truth, detections[0]))
            for x, detections in ((runs[0], found[0]), (run, seeds))
        ]
        chosen = differing_images(
            truth,
            *pairs,
            number=options.num_images,
            size=None if options.image_bin is None else bins[options.image_bin],
            bins=bins,
            max_dets=max_dets,
        )
        report.images[run.name] = draw_all(chosen, truth, found[0][0], seeds[0], options.images_dir)


def _check_outputs(options: Options) -> None:
    for path in options.out:
        if Path(path).suffix not in SUFFIXES:
            raise ValueError(f"--out {path}: expected a name that ends in {', '.join(SUFFIXES)}")
        if os.path.isdir(path):
            raise ValueError(f"--out {path} is a folder; name a file in it")
        if os.path.exists(path) and not os.stat(path).st_mode & 0o222:
            raise ValueError(f"--out {path} is there already, and read-only")
    pictures = () if options.pictures is None else (("--pictures", options.pictures),)
    for option, path in (*(("--out", x) for x in options.out), *pictures):
        folder = Path(path).absolute().parent
        if option == "--pictures" and os.path.exists(path):
            folder = Path(path)
            if not folder.is_dir():
                raise ValueError(f"{option} {path} is not a folder")
        if not folder.is_dir():
            raise ValueError(f"{option} {path}: there is no folder {folder}")
        if not os.access(folder, os.W_OK):
            raise ValueError(f"{option} {path} cannot be written: no permission in {folder}")
    if options.images_dir is not None:
        if not os.path.isdir(options.images_dir):
            raise ValueError(f"--images {options.images_dir}: there is no such folder")
        page = any(path.endswith(".html") for path in options.out)
        if not (page or options.pictures) or len(options.results) < 2:
            raise ValueError(
                "--images is for the images on which two RESULTS differ, and needs --out x.html or "
                "--pictures"
            )


def _check_inputs(options: Options, files: Sequence[Path]) -> None:
    """Raises where an output would replace an input."""
    inputs = {Path(x).resolve() for x in (options.ground_truth, *files)}
    for path in options.out:
        if Path(path).resolve() in inputs:
            raise ValueError(f"--out {path} is one of the inputs, which it would replace")


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
