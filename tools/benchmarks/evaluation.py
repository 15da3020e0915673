"""Time and memory of the evaluation beside other tools, on a generated set of val2017's size.

    python tools/benchmarks/evaluation.py out.csv [--slow] [--check] [--data FOLDER]
    python tools/benchmarks/evaluation.py memory.csv --detections 10000000 [--check]
    python tools/benchmarks/evaluation.py out.csv --table

Every tool runs as a process of its own, from files, Python's start included; all take turns, so
that a busy moment hits them all. The first run of each is not timed: its figures are compared with
those of pycocotools, and no time is shown unless all agree to 1e-9. It finds the files in memory
and the compiled functions missing, as after an installation, and stands in the table as "first".

Columns: median of the runs in seconds, CPU time of all threads, and the most memory a process held.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

# Nothing large is imported here: a process counts the memory of the one that started it as its own.

ROOT = Path(__file__).parents[2]
FORMAT = 1  # of the generated files: another number, other files
IMAGES, OBJECTS, CLASSES, PER_IMAGE = 5000, 36_000, 80, 100


# --- the data ------------------------------------------------------------------------------------


def generate(folder, images=IMAGES, objects=OBJECTS, per_image=PER_IMAGE, results=2, vertices=24):
    """Writes gt.json and dt0.json, dt1.json, ... into a new folder; always the same ones."""
    folder = Path(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        columns = _objects(images, objects)
        with (made / "gt.json").open("w") as stream:
            _write_ground_truth(stream, columns, vertices)
        for number in range(results):
            with (made / f"dt{number}.json").open("w") as stream:
                _write_detections(stream, columns, number, per_image)
        made.rename(folder)  # all of it or nothing


def _objects(images: int, objects: int) -> dict:
    """Objects as columns, sorted by image.

    Their numbers are those of val2017: 41 % small, 34 % medium, 24 % large, some images with many
    and some with none, often several of one class, classes from 28 % to 0.1 % of all, 1 % crowds.
    """
    import numpy as np

    rng = np.random.default_rng([FORMAT, 0])
    upright = rng.random(images) < 0.25
    size = np.where(upright[:, None], [480.0, 640.0], [640.0, 480.0])
    share = rng.gamma(1.5, size=images)
    image = np.repeat(np.arange(images), rng.multinomial(objects, share / share.sum()))
    category = rng.choice(CLASSES, objects, p=_class_shares())
    fresh = rng.random(objects) < 0.4
    category = category[np.maximum.accumulate(np.where(fresh, np.arange(objects), 0))]
    crowd = rng.random(objects) < 0.012
    side = np.exp(rng.normal(3.73, 1.18, objects)) * np.where(crowd, 2, 1) * 1.25
    shape = np.exp(rng.normal(0, 0.35, objects))
    wh = np.stack([side * shape, side / shape], 1).clip(2, size[image])
    xy = rng.random((objects, 2)) * (size[image] - wh)
    return dict(
        size=size.astype(int),
        image=image,
        category=category,
        crowd=crowd,
        boxes=np.concatenate([xy, wh], 1).round(2),
        # what every detector finds hard: chance, and being small
        hard=rng.random(objects) * (1 + 8 / side) / 1.4,
    )


def _class_shares():
    import numpy as np

    share = np.arange(1, CLASSES + 1) ** -1.2
    return share / share.sum()


def _write_ground_truth(stream, columns: dict, vertices: int) -> None:
    import numpy as np

    stream.write('{"images": [')
    for i, (width, height) in enumerate(columns["size"].tolist(), 1):
        stream.write(", " * (i > 1))
        stream.write(
            f'{{"id": {i}, "file_name": "{i:012d}.jpg", "height": {height}, "width": {width}}}'
        )
    stream.write('], "categories": ')
    json.dump([{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)], stream)
    stream.write(', "annotations": [')
    rng = np.random.default_rng([FORMAT, 1])
    angle = 2 * np.pi * np.arange(max(vertices, 24)) / max(vertices, 24)
    around = np.stack([np.cos(angle), np.sin(angle)], 1)
    ident = 1
    for low in range(0, len(columns["image"]), 10_000):
        rows = slice(low, low + 10_000)
        boxes = columns["boxes"][rows]
        # a star around the middle, stretched to touch all four sides of the box
        points = around * rng.uniform(0.6, 1, (len(boxes), len(around), 1))
        first, last = points.min(1, keepdims=True), points.max(1, keepdims=True)
        points = (points - first) / (last - first) * boxes[:, None, 2:] + boxes[:, None, :2]
        following = np.roll(points, -1, axis=1)
        area = 0.5 * np.abs(
            (points[..., 0] * following[..., 1] - points[..., 1] * following[..., 0]).sum(1)
        )
        for image, category, crowd, box, one, outline in zip(
            (columns["image"][rows] + 1).tolist(),
            (columns["category"][rows] + 1).tolist(),
            columns["crowd"][rows].tolist(),
            boxes.tolist(),
            area.round(4).tolist(),
            points.reshape(len(points), -1).round(2).tolist(),
            strict=True,
        ):
            stream.write(", " * (ident > 1))
            stream.write(
                f'{{"id": {ident}, "image_id": {image}, "category_id": {category}, "bbox": {box}, '
                f'"area": {one}, "iscrowd": {crowd:d}'
            )
            stream.write(f', "segmentation": [{outline}]}}' if vertices else "}")
            ident += 1
    stream.write("]}")


def _write_detections(stream, columns: dict, number: int, per_image: int) -> None:
    stream.write("[")
    images, separator = len(columns["size"]), ""
    for low in range(0, images, 500):
        found = _detections(columns, number, per_image, low, min(low + 500, images))
        for image, category, (x, y, w, h), score in zip(*found, strict=True):
            stream.write(
                f'{separator}{{"image_id": {image}, "category_id": {category}, '
                f'"bbox": [{x:.2f}, {y:.2f}, {w:.2f}, {h:.2f}], "score": {score:.5f}}}'
            )
            separator = ", "
    stream.write("]")


def _detections(columns: dict, number: int, per_image: int, low: int, high: int) -> list[list]:
    """Those of the images from low to high, the best of an image first, as mmdet writes them.

    Objects are found once or several times, moved, seldom with another class; the rest of
    ``per_image`` are false alarms. The second detector is a little better at small objects.
    """
    import numpy as np

    rng = np.random.default_rng([FORMAT, 2, number, low])
    inside = slice(*np.searchsorted(columns["image"], [low, high]))
    boxes, hard = columns["boxes"][inside], columns["hard"][inside]
    if number:
        hard = hard * np.where(boxes[:, 2] * boxes[:, 3] < 32**2, 0.9, 1)
    times = np.where(rng.random(len(hard)) > hard**3, 1 + rng.poisson(0.7, len(hard)), 0)
    of = np.repeat(np.arange(len(hard)), times)
    copy = np.arange(len(of)) - np.repeat(np.cumsum(times) - times, times)
    wh = boxes[of, 2:]
    noise = rng.normal(size=(len(of), 4)) * (0.02 + 0.12 * hard[of] + 0.05 * copy)[:, None]
    moved = boxes[of] + noise * np.concatenate([wh, wh], 1)
    score = (1 - 0.8 * hard[of]) * rng.beta(6, 1.5, len(of)) * 0.6**copy
    category = columns["category"][inside][of]
    wrong = rng.random(len(of)) < 0.08
    category = np.where(wrong, rng.choice(CLASSES, len(of), p=_class_shares()), category)

    alarms = per_image * (high - low)
    size = np.exp(rng.normal(3.9, 1.1, (alarms, 2)))
    false = np.concatenate([rng.random((alarms, 2)) * 440, size], 1)
    image = np.concatenate(
        [columns["image"][inside][of], np.repeat(np.arange(low, high), per_image)]
    )
    category = np.concatenate([category, rng.choice(CLASSES, alarms, p=_class_shares())])
    score = np.concatenate([score, 0.6 * rng.beta(0.8, 9, alarms)])
    boxes = np.concatenate([moved, false])
    boxes[:, 2:] = boxes[:, 2:].clip(1, 640)

    order = np.lexsort((-score, image))
    place = np.arange(len(order)) - np.searchsorted(image[order], image[order])
    order = order[place < per_image]
    return [
        (image[order] + 1).tolist(),
        (category[order] + 1).tolist(),
        boxes[order].tolist(),
        score[order].tolist(),
    ]


# --- the tools, each in a process of its own -----------------------------------------------------

COCO = "small:0-32^2,medium:32^2-96^2,large:96^2-"
LIMITS = (0, 8, 12, 16, 24, 32, 48, 64, 96, 192)
TEN = ",".join(
    f"from{low}:{low}^2-" + (f"{high}^2" if high else "")
    for low, high in zip(LIMITS, (*LIMITS[1:], None), strict=True)
)


def _ranges(bins: str) -> dict[str, tuple[float, float]]:
    """'all' and the bins of a text, with their limits."""
    ranges = {"all": (0.0, 1e10)}
    for text in bins.split(","):
        name, limits = text.split(":")
        low, high = (x.removesuffix("^2") for x in limits.split("-"))
        ranges[name] = (float(low) ** 2, float(high) ** 2 if high else 1e10)
    return ranges


def _figures(precision, recall, bins: str) -> dict[str, float | None]:
    """Every figure by its name, as fractions, from arrays as pycocotools makes them.

    Args:
        precision: (10, 101, classes, ranges).
        recall: (10, classes, ranges).
        bins: The ranges, in words.
    """
    import numpy as np

    def mean(values):
        values = values[values > -1]
        return float(values.mean()) if values.size else None

    found = {}
    for a, name in enumerate(_ranges(bins)):
        for figure, part in (
            ("AP", precision[..., a]),
            ("AP50", precision[0, ..., a]),
            ("AP75", precision[5, ..., a]),
            ("AR", recall[..., a]),
        ):
            found[f"{name} {figure}"] = mean(np.asarray(part))
        for k in range(CLASSES):
            found[f"class {k + 1}, {name} AP"] = mean(np.asarray(precision[:, :, k, a]))
    return found


def run_pycocotools(truth: str, results: list[str], bins: str) -> dict:
    from pycocotools import coco
    from pycocotools.cocoeval import COCOeval

    data = coco.COCO(truth)
    evaluator = COCOeval(data, data.loadRes(results[0]), "bbox")
    evaluator.params.maxDets = [100]
    evaluator.params.areaRng = list(_ranges(bins).values())
    evaluator.params.areaRngLbl = list(_ranges(bins))
    evaluator.evaluate()
    evaluator.accumulate()
    return _figures(evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0], bins)


def run_faster_coco_eval(truth: str, results: list[str], bins: str) -> dict:
    import faster_coco_eval

    data = faster_coco_eval.COCO(truth)
    evaluator = faster_coco_eval.COCOeval_faster(data, data.loadRes(results[0]), "bbox")
    evaluator.params.maxDets = [100]
    evaluator.params.areaRng = list(_ranges(bins).values())
    evaluator.params.areaRngLbl = list(_ranges(bins))
    evaluator.evaluate()
    evaluator.accumulate()
    return _figures(evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0], bins)


def run_hotcoco(truth: str, results: list[str], bins: str) -> dict:
    import hotcoco

    data = hotcoco.COCO(truth)
    evaluator = hotcoco.COCOeval(data, data.load_res(results[0]), "bbox")
    evaluator.params.max_dets = [100]
    evaluator.params.area_rng = [list(x) for x in _ranges(bins).values()]
    evaluator.params.area_rng_lbl = list(_ranges(bins))
    evaluator.evaluate()
    evaluator.accumulate()
    return _figures(evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0], bins)


def run_hotcoco_compare(truth: str, results: list[str], bins: str) -> dict:
    """With its own three bins and figures: it takes no others."""
    import hotcoco

    data = hotcoco.COCO(truth)
    two = [hotcoco.COCOeval(data, data.load_res(x), "bbox") for x in results]
    for evaluator in two:
        evaluator.evaluate()
    found = hotcoco.compare(*two, n_bootstrap=REPLICATES, seed=0)["deltas"]
    names = {"AP": "all AP", "AP50": "all AP50", "AP75": "all AP75", "AR100": "all AR"}
    for size in ("small", "medium", "large"):
        names |= {f"AP{size[0]}": f"{size} AP", f"AR{size[0]}": f"{size} AR"}
    return {names[key]: value for key, value in found.items() if key in names}


REPLICATES = 1000
TOOLS = {
    "pycocotools": run_pycocotools,
    "faster-coco-eval": run_faster_coco_eval,
    "hotcoco": run_hotcoco,
    "hotcoco.compare": run_hotcoco_compare,
}
OURS = "ap_by_size.py"


# --- what is measured ----------------------------------------------------------------------------


class Case:
    """One tool at one task.

    Args:
        task: What all tools of the task do.
        tool: One of ``TOOLS``, or ``OURS``.
        bins: The size bins.
        results: How many results files it reads.
        options: Further ones of our command line.
        limits: Seconds and GiB that it may take, or None.
    """

    def __init__(self, task, tool, bins=COCO, results=1, options=(), limits=(None, None)):
        self.task, self.tool, self.bins, self.results = task, tool, bins, results
        self.options, self.limits = options, limits

    @property
    def name(self) -> str:
        return f"{self.tool} ({self.task})"

    def command(self, folder: Path, output: Path | None = None) -> list[str]:
        """Evaluates the files of the folder; with ``output``, writes figures there."""
        results = [str(folder / f"dt{n}.json") for n in range(self.results)]
        truth = str(folder / "gt.json")
        if self.tool != OURS:
            arguments = [__file__, "--tool", self.tool, str(output or ""), self.bins]
            return [sys.executable, *arguments, truth, *results]
        arguments = [str(ROOT / "tools" / OURS), truth, *results, "--bins", self.bins]
        arguments += [*self.options, *(["--out", str(output)] if output else [])]
        return [sys.executable, *arguments]

    def figures(self, output: Path) -> dict[str, float | None]:
        """What the command found."""
        found = json.loads(output.read_text())
        return our_figures(found, self.results > 1) if self.tool == OURS else found

    @property
    def version(self) -> str:
        return harness.version("mmattn" if self.tool == OURS else self.tool.partition(".")[0])


THREE = "3 bins"
TEN_BINS = "10 bins, every class"
COMPARISON = f"two results, 3 bins, {REPLICATES:,} replicates"
COMPARISON_OPTIONS = ("--replicates", str(REPLICATES), "--seed", "0")


def cases(slow: bool) -> list[Case]:
    """All that are measured on a set of val2017's size."""
    found = [Case(THREE, tool) for tool in ("pycocotools", "faster-coco-eval", "hotcoco")]
    found += [Case(THREE, OURS, limits=(1.5, None))]
    found += [Case(TEN_BINS, tool, TEN) for tool in ("pycocotools", "faster-coco-eval", "hotcoco")]
    found += [Case(TEN_BINS, OURS, TEN, options=("--per-class",), limits=(5, None))]
    found += [Case(COMPARISON, "hotcoco.compare", results=2)] if slow else []
    found += [Case(COMPARISON, OURS, results=2, options=COMPARISON_OPTIONS, limits=(25, 4))]
    return found


def large_cases(detections: int) -> list[Case]:
    """Those of so many detections that pycocotools does not fit."""
    task = f"3 bins, {detections:,} detections"
    return [Case(task, "hotcoco"), Case(task, OURS, limits=(None, 8))]


def our_figures(found: dict, compared: bool) -> dict[str, float | None]:
    """The figures of our JSON by the names of :func:`_figures`; differences of a comparison."""
    if compared:
        (comparison,) = found["comparisons"]
        return {
            f"{size} {figure}": difference["value"]
            for size, row in comparison["differences"].items()
            for figure, difference in row.items()
        }
    (run,) = found["runs"]
    (result,) = run["results"]
    rows = {"": result, **{f"{row['name']}, ": row for row in result["classes"]}}
    return {
        f"{prefix}{size} {figure}": part[figure]
        for prefix, row in rows.items()
        for size, part in {"all": row, **row["by_size"]}.items()
        for figure in (("AP",) if prefix else ("AP", "AP50", "AP75", "AR"))
    }


def check(name: str, found: dict, expected: dict) -> None:
    """Raises unless every figure is the expected one, to 1e-9."""
    if odd := sorted(found.keys() ^ expected.keys()):
        raise SystemExit(f"{name}: {odd[0]!r} is not among both figures: no time is shown")
    for key, value in found.items():
        right = expected[key]
        if value is None or right is None:
            agrees = value is right
        else:
            agrees = math.isclose(value, right, rel_tol=0, abs_tol=1e-9)
        if not agrees:
            raise SystemExit(f"{name}: {key} is {value}, but {right} is right: no time is shown")


def run(command: list[str], environment: dict | None = None) -> tuple[float, float, float]:
    """Seconds, CPU seconds and MiB at most that a process and its children took."""
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            last = "".join(said.readlines()[-15:])
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{last}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return seconds, usage.ru_utime + usage.ru_stime, peak


def installed(tool: str) -> bool:
    return bool(harness.version("mmattn" if tool == OURS else tool.partition(".")[0]))


def measure(chosen: list[Case], folder: Path, repeats: int) -> list[dict]:
    """Checks all, then times all in turns; one row each."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "figures.json"
        environment = {"NUMBA_CACHE_DIR": scratch}  # nothing compiled at first
        firsts, figures = {}, {}
        for case in chosen:
            if installed(case.tool):
                print(f"checking {case.name}", file=sys.stderr, flush=True)
                firsts[case] = run(case.command(folder, output), environment)
                figures[case] = case.figures(output)
                output.unlink()
        _check_all(figures, folder, environment, output)
        taken = {case: [] for case in firsts}
        for i in range(repeats):
            for case, runs in taken.items():
                if i < 2 or firsts[case][0] < 20:  # slow ones are steady
                    print(f"timing {case.name}, {i + 1}", file=sys.stderr, flush=True)
                    runs.append(run(case.command(folder), environment))
    rows = []
    for case in chosen:
        row = {"task": case.task, "tool": case.tool, "version": "not installed"}
        if case in taken:
            seconds, cpu, peak = zip(*taken[case], strict=True)
            row |= {
                "version": case.version,
                "first_s": f"{firsts[case][0]:.2f}",
                "median_s": f"{statistics.median(seconds):.3f}",
                "runs": len(seconds),
                "cpu_s": f"{statistics.median(cpu):.2f}",
                "peak_mib": f"{max(peak):.0f}",
                "limit_s": case.limits[0] or "",
                "limit_gib": case.limits[1] or "",
            }
        rows.append(row)
    return rows


def _check_all(figures: dict[Case, dict], folder: Path, environment: dict, output: Path) -> None:
    """Every tool against pycocotools, or where it was not asked, against hotcoco."""
    right = {}
    for tool in ("hotcoco", "pycocotools"):
        right |= {(c.bins, 1): found for c, found in figures.items() if c.tool == tool}
    compared = [case for case in figures if case.results == 2]
    for bins in {case.bins for case in compared}:
        reference = Case("second results", "pycocotools", bins)
        command = [x.replace("dt0.json", "dt1.json") for x in reference.command(folder, output)]
        print("checking pycocotools (second results)", file=sys.stderr, flush=True)
        run(command, environment)
        first, second = right[bins, 1], reference.figures(output)
        output.unlink()
        right[bins, 2] = {
            key: None if value is None else second[key] - value for key, value in first.items()
        }
    for case, found in figures.items():
        expected = right[case.bins, case.results]
        if case.results == 2:
            expected = {key: x for key, x in expected.items() if not key.startswith("class")}
        if case.tool == "hotcoco.compare":
            expected = {key: x for key, x in expected.items() if key in found}
        check(case.name, found, expected)


# --- the command line ----------------------------------------------------------------------------


def conditions(folder: Path, images: int, objects: int, detections: int) -> dict:
    """On what, with what and when."""
    return {
        "hardware": harness.cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0,
        "load": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
        "numpy": harness.version("numpy"),
        "commit": harness.commit(),
        "date": harness.date(),
        "images": images,
        "objects": objects,
        "detections": detections,
        "truth_mb": f"{(folder / 'gt.json').stat().st_size / 1e6:.0f}",
        "results_mb": f"{(folder / 'dt0.json').stat().st_size / 1e6:.0f}",
    }


def table(path: Path) -> str:
    """The file as Markdown; times also as multiples of ours."""
    rows = harness.read(path)
    first = rows[0]
    text = [
        f"{first['hardware']}, {first['cores']} cores, Python {first['python']}, "
        f"NumPy {first['numpy']}; {first['date']}, commit {first['commit'] or 'unknown'}. "
        f"{int(first['images']):,} images, {int(first['objects']):,} objects "
        f"({first['truth_mb']} MB), {int(first['detections']):,} detections "
        f"({first['results_mb']} MB).",
        "",
        "| task | tool | time (s) | ratio | CPU time (s) | peak memory (MiB) | first run (s) |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = {row["task"]: row for row in rows if row["tool"] == OURS}
    for row in rows:
        if not row["median_s"]:
            text.append(f"| {row['task']} | {row['tool']} | not installed | | | | |")
            continue
        ratio = float(row["median_s"]) / float(ours[row["task"]]["median_s"])
        seconds = float(row["median_s"])
        text.append(
            f"| {row['task']} | {row['tool']} {row['version']} "
            f"| {seconds:.{2 if seconds < 10 else 1}f} | {ratio:.2f} x | {row['cpu_s']} "
            f"| {int(row['peak_mib']):,} | {row['first_s']} |"
        )
    return "\n".join(text)


def missed(path: Path) -> list[str]:
    """In words, what took more than it may."""
    said = []
    for row in harness.read(path):
        for figure, limit, scale, unit in (
            ("median_s", "limit_s", 1, "s"),
            ("peak_mib", "limit_gib", 1024, "GiB"),
        ):
            if row.get(limit) and float(row[figure]) / scale > float(row[limit]):
                said.append(
                    f"{row['task']}: {float(row[figure]) / scale:.2f} {unit}, "
                    f"the limit is {row[limit]} {unit}"
                )
    return said


def prepare(folder: Path, images: int, objects: int, large: bool) -> Path:
    """The generated files; those of an earlier run where there are some."""
    made = folder / f"generated-{FORMAT}-{images}-{objects}-{PER_IMAGE}{'-large' * large}"
    if made.exists():
        return made
    needed = (1 if large else 2) * images * PER_IMAGE * 100 + objects * (150 if large else 600)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 1.2 * needed + 1e9:
        raise SystemExit(
            f"{folder} has {free / 1e9:.1f} GB free, but the generated files take "
            f"{needed / 1e9:.1f} GB; name another folder with --data"
        )
    size = (images, objects, PER_IMAGE, 1, 0) if large else (images, objects)
    # in a process of its own: the memory that this one ever held counts for those it starts
    code = "import sys; sys.path.insert(0, sys.argv[1]); import evaluation; "
    code += "evaluation.generate(sys.argv[2], *map(int, sys.argv[3:]))"
    arguments = [str(Path(__file__).parent), str(made), *map(str, size)]
    print(f"writing {made}", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    return made


def main() -> None:
    if sys.argv[1:2] == ["--tool"]:
        tool, output, bins, truth, *results = sys.argv[2:]
        found = TOOLS[tool](truth, results, bins)
        if output:
            Path(output).write_text(json.dumps(found))
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("csv", type=Path, help="the file to write, or with --table to read")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; default 5")
    parser.add_argument("--slow", action="store_true", help="hotcoco.compare, too: minutes")
    parser.add_argument(
        "--data", type=Path, help="where generated files are kept; default: nowhere"
    )
    parser.add_argument("--images", type=int, default=IMAGES, help=f"default {IMAGES}")
    parser.add_argument(
        "--detections",
        type=int,
        metavar="N",
        help="so many in one large file (100 bytes each) instead: is memory enough?",
    )
    parser.add_argument("--cores", type=int, default=2, help="CPU cores to use; default 2")
    parser.add_argument("--check", action="store_true", help="fail where a limit is exceeded")
    parser.add_argument("--table", action="store_true", help="print the file, measure nothing")
    args = parser.parse_args()
    if not args.table:
        write(args, parser)
    print(table(args.csv))
    if args.check and (found := missed(args.csv)):
        raise SystemExit("\n".join(found))


def write(args, parser) -> None:
    """Measures, into the file."""
    if args.repeats < 1 or args.images < 1 or args.cores < 1:
        parser.error("--repeats, --images and --cores must be 1 or more")
    if args.detections is not None and (args.detections < 1 or args.detections % PER_IMAGE):
        parser.error(f"--detections must be a multiple of {PER_IMAGE}, those of an image")
    if not args.csv.resolve().parent.is_dir():
        parser.error(f"{args.csv}: there is no such folder")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    large = args.detections is not None
    images = args.detections // PER_IMAGE if large else args.images
    objects = images * OBJECTS // IMAGES
    chosen = large_cases(args.detections) if large else cases(args.slow)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.data or Path(scratch)
        data = prepare(folder, images, objects, large)
        about = conditions(data, images, objects, images * PER_IMAGE)
        rows = [{**about, **row} for row in measure(chosen, data, args.repeats)]
    harness.write(args.csv, rows)


if __name__ == "__main__":
    main()
