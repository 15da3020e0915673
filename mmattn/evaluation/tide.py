"""Where AP50 is lost, by object size: TIDE's error types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmattn.evaluation.bins import ALL
from mmattn.evaluation.data import Detections, GroundTruth
from mmattn.evaluation.matching import jit
from mmattn.evaluation.overlaps import Overlaps

ERROR_TYPES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
SPECIAL_TYPES = ("FP", "FN")

_CLS, _LOC, _BOTH, _DUPE, _BKG = range(5)  # places in ERROR_TYPES
_CUT = 5  # not among the max_dets best of its image and class
_UNMATCHED, _TRUE, _IGNORED = range(3)  # what a detection is in a bin
_SKIP, _TP, _FP = range(3)  # what a detection does to precision
_RECALLS = np.linspace(0, 1, 101)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeErrors:
    """The errors of one size bin.

    Attributes:
        ap50: AP at ``pos_thr``, a fraction; nan where the bin has no object.
        delta_ap: By 'Cls', 'Loc', 'Both', 'Dupe', 'Bkg', 'Miss', 'FP' and 'FN', how much AP the
            bin gains when this type is fixed everywhere; nan where the bin has no object.
        counts: By 'Cls', 'Loc', 'Both', 'Dupe', 'Bkg' and 'Miss', the errors of this bin.
    """

    ap50: float
    delta_ap: dict[str, float]
    counts: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Errors:
    """What :func:`error_types` found.

    Attributes:
        by_size: 'all' and the bins, in the order given.
        pos_thr: IoU from which a detection finds an object.
        bg_thr: IoU up to which a detection is background.
        max_dets: Detections that count, by image and class.
    """

    by_size: dict[str, SizeErrors]
    pos_thr: float
    bg_thr: float
    max_dets: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON knows it; ``None`` is n/a."""

        def number(value: float) -> float | None:
            return None if math.isnan(value) else value

        return {
            "pos_thr": self.pos_thr,
            "bg_thr": self.bg_thr,
            "max_dets": self.max_dets,
            "by_size": {
                name: {
                    "ap50": number(x.ap50),
                    "delta_ap": {key: number(value) for key, value in x.delta_ap.items()},
                    "counts": dict(x.counts),
                }
                for name, x in self.by_size.items()
            },
        }


def mean_errors(seeds: Sequence[Errors]) -> Errors:
    """Mean over several seeds of a run: of AP50, of gains, and of counts."""
    first = seeds[0]
    by_size = {}
    for name, x in first.by_size.items():
        rows = [seed.by_size[name] for seed in seeds]
        gains = {k: float(np.mean([row.delta_ap[k] for row in rows])) for k in x.delta_ap}
        counts = {k: float(np.mean([row.counts[k] for row in rows])) for k in x.counts}
        ap50 = float(np.mean([row.ap50 for row in rows]))
        by_size[name] = SizeErrors(ap50=ap50, delta_ap=gains, counts=counts)
    return dataclasses.replace(first, by_size=by_size)


def error_types(
    ground_truth: GroundTruth,
    detections: Detections,
    overlaps: Overlaps,
    bins: Mapping[str, tuple[float, float]],
    max_dets: int = 100,
    pos_thr: float = 0.5,
    bg_thr: float = 0.1,
) -> Errors:
    """Sorts a detector's errors into TIDE's types and says what each costs, by object size.

    Each detection that finds nothing is of one type, by its highest IoU with the objects of its
    own class, s, and with those of other classes, o. The first line that holds decides; which
    side a limit itself is on is as in tidecv.

    ====  ======================  ===================================  ================
    type  when                    what                                 fixed
    ====  ======================  ===================================  ================
    Loc   bg_thr <= s <= pos_thr  right class, poorly placed           finds its object
    Cls   o >= pos_thr            well placed, wrong class             finds its object
    Dupe  s > pos_thr             the object is found already          dropped
    Bkg   o <= bg_thr             nothing is there                     dropped
    Both  otherwise               wrong class and poorly placed        dropped
    Miss  (an object)             unfound, and no Loc or Cls is on it  taken out
    ====  ======================  ===================================  ================

    ``delta_ap`` of a type is AP with all its errors fixed minus AP. The object of an error is the
    one with which s (Loc, Dupe) or o (Cls, Both) is reached, the first of equal ones. A found
    object stays with the detection that found it. Of all Loc and Cls on one unfound object, only
    that with the highest score finds it when fixed, as a detection of the object's class; the
    others are dropped. There are two more fixes: 'FP' drops every detection that finds nothing,
    'FN' takes out every unfound object. No gain is negative. The gains do not add up to 1 - AP.

    By size:

    * AP of a bin is pycocotools': objects outside the bin and crowds are ignored, and so is what
      matches them; an unmatched detection counts if its own size is in the bin.
    * ``counts``: an error is in the bin of its object, a Bkg in that of its own size, with
      matches over all sizes. So every error is in one bin, and adjoining bins add up (an object
      exactly on a limit is in both).
    * ``delta_ap``: AP of the bin with the errors of a type fixed at every size, with matches of
      the bin. A fixed detection whose object is in the bin finds it, whatever its own size. One
      whose object is outside is ignored, as pycocotools ignores what matches such an object. The
      gain of a bin therefore includes false positives of the bin's size that are about objects
      of another size, and can be above 0 where the count is 0. With all types fixed, AP is 1 in
      every class and bin, but 0 where every object is a Miss: TIDE gives no AP for taking out
      all objects of a class.

    Paper: Bolya et al., TIDE: A General Toolbox for Identifying Object Detection Errors, ECCV
    2020 (arXiv:2008.08115).

    Reference: tidecv 1.0.1, and hotcoco 1.3 (``COCOeval.tide_errors``), to which the figures of
    'all' are equal but for this:

    * A crowd is no object, as in tidecv. In hotcoco, a crowd of the same class that covers a
      share of bg_thr to pos_thr of a detection can make it a Loc about the crowd; an object that
      it is otherwise a Cls or Loc about can then become a Miss.
    * Matches are at ``pos_thr`` itself; hotcoco takes the nearest of its own IoU thresholds.
    * Where there is no object, figures are nan; hotcoco gives 0.

    Deviations: From tidecv, like hotcoco and pycocotools: max_dets is by image and class, not by
    image; classes without objects are out of the mean; what is ignored with a crowd is no error;
    a class without detections stays in the mean when its objects are taken out.

    Args:
        ground_truth: The objects.
        detections: The detections.
        overlaps: Their IoUs.
        bins: Name to (low, high) in the unit of ``size``; both limits belong to the bin.
        max_dets: How many detections of an image and class count, best scores first.
        pos_thr: IoU from which a detection finds an object.
        bg_thr: IoU up to which a detection is background.

    Returns:
        The errors of 'all' sizes (0 to 1e10) and of each bin.

    Raises:
        ValueError: An argument is out of range, or the overlaps are of other data.
    """
    _check(ground_truth, detections, overlaps, bins, max_dets, pos_thr, bg_thr)
    data = _Data(ground_truth, detections, overlaps, int(max_dets), float(pos_thr), float(bg_thr))
    everything = _Bin(data, ALL.low, ALL.high)
    sizes = data.error_sizes(everything)
    by_size = {}
    for name, (low, high) in {"all": ALL[1:], **bins}.items():
        part = everything if name == "all" else _Bin(data, float(low), float(high))
        ap50, delta_ap = part.gains()
        counts = {
            key: int(np.count_nonzero((size >= low) & (size <= high)))
            for key, size in sizes.items()
        }
        by_size[name] = SizeErrors(ap50=ap50, delta_ap=delta_ap, counts=counts)
    return Errors(
        by_size=by_size, pos_thr=float(pos_thr), bg_thr=float(bg_thr), max_dets=int(max_dets)
    )


def _check(
    ground_truth: GroundTruth,
    detections: Detections,
    overlaps: Overlaps,
    bins: Mapping[str, tuple[float, float]],
    max_dets: int,
    pos_thr: float,
    bg_thr: float,
) -> None:
    if not 0 < bg_thr < pos_thr <= 1:
        raise ValueError(
            f"expected thresholds with 0 < bg_thr < pos_thr <= 1, "
            f"got bg_thr={bg_thr!r} and pos_thr={pos_thr!r}"
        )
    if isinstance(max_dets, bool) or not isinstance(max_dets, (int, np.integer)) or max_dets < 1:
        raise ValueError(
            f"max_dets must be the number of detections of an image and class that count, "
            f"1 or more, got {max_dets!r}"
        )
    if "all" in bins:
        raise ValueError("bins: 'all' is the name of the overall figures; choose another")
    for name, limits in bins.items():
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise ValueError(f"bins: {name!r} must be (low, high) with low < high, got {limits!r}")
    pairs = np.diff(ground_truth.starts) * np.diff(detections.starts)
    if len(overlaps.iou) != pairs.sum() or not np.array_equal(
        overlaps.starts, np.cumsum(pairs) - pairs
    ):
        raise ValueError(
            "the overlaps are not those of this ground truth and these detections; "
            "compute them with overlaps(ground_truth, detections)"
        )


class _Data:
    """The columns that all bins read, and the type of each detection if it finds nothing.

    Attributes:
        kind: (N,) place in ERROR_TYPES, or _CUT.
        about: (N,) the object of the error, -1 for Bkg.
        order: (N,) the detections by class, then by score; equal scores in order.
        class_starts: (K + 1,) where a class begins in ``order``.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        detections: Detections,
        overlaps: Overlaps,
        max_dets: int,
        pos_thr: float,
        bg_thr: float,
    ) -> None:
        self.ground_truth, self.detections = ground_truth, detections
        self.num_classes = len(ground_truth.class_ids)
        self.object_class = np.asarray(ground_truth.category, np.int64)
        self.scores = np.asarray(detections.scores, float)
        category = np.asarray(detections.category, np.int64)
        self.scene = (
            category,
            np.asarray(detections.starts, np.int64),
            self.object_class,
            np.asarray(ground_truth.crowd, bool),
            np.asarray(ground_truth.starts, np.int64),
            np.asarray(overlaps.iou, float),
            np.asarray(overlaps.starts, np.int64),
        )
        # pycocotools' threshold: an IoU of 1 - 1e-10 is a match at 1
        self.match_thr = min(pos_thr, 1 - 1e-10)
        self.kind, self.about = _relate(*self.scene, self.num_classes, max_dets, pos_thr, bg_thr)
        self.order = np.lexsort((-self.scores, category))
        self.ranked_scores = self.scores[self.order]
        self.class_starts = np.searchsorted(category[self.order], np.arange(self.num_classes + 1))

    def error_sizes(self, everything: _Bin) -> dict[str, np.ndarray]:
        """By type, the size that places each error in a bin."""
        size = self.ground_truth.size[self.about] if len(self.ground_truth) else 0.0
        size = np.where(self.about >= 0, size, self.detections.size)
        wrong = everything.unmatched
        sizes = {
            key: size[wrong & (self.kind == kind)] for kind, key in enumerate(ERROR_TYPES[:-1])
        }
        sizes["Miss"] = self.ground_truth.size[everything.missed]
        return sizes


class _Bin:
    """A size bin: what matches there, and AP with errors fixed.

    Attributes:
        state: (N,) _UNMATCHED, _TRUE or _IGNORED.
        unmatched: (N,) bool, detections that find nothing, of whatever size.
        unfound: (M,) bool, objects of the bin that no detection finds.
        missed: (M,) bool, those of them that no Loc or Cls is on.
        found_by: Detections that find an object once their error is fixed.
    """

    def __init__(self, data: _Data, low: float, high: float) -> None:
        ground_truth, detections = data.ground_truth, data.detections
        self.data = data
        objects = ~ground_truth.crowd & (ground_truth.size >= low) & (ground_truth.size <= high)
        self.state, taken = _match(*data.scene, ~objects, data.kind, data.match_thr)
        self.unmatched = self.state == _UNMATCHED
        self.unfound = objects & ~taken
        candidates = np.flatnonzero(self.unmatched & ((data.kind == _CLS) | (data.kind == _LOC)))
        candidates = candidates[self.unfound[data.about[candidates]]]
        # the first is the best: an image's detections are sorted by score
        covered, first = np.unique(data.about[candidates], return_index=True)
        self.found_by = candidates[first]
        self.missed = self.unfound.copy()
        self.missed[covered] = False
        self.inside = (detections.size >= low) & (detections.size <= high)
        self.num_objects = self._count(objects)

    def gains(self) -> tuple[float, dict[str, float]]:
        """AP, and what it gains from each fix."""
        kind, nothing = self.data.kind, np.empty(0, np.int64)
        label = np.where(self.state == _TRUE, np.int8(_TP), np.int8(_SKIP))
        label[self.unmatched & self.inside] = _FP
        base = self._ap(label, self.num_objects, nothing)
        fixed = {}
        for k, key in enumerate(ERROR_TYPES[:-1]):
            without = np.where(self.unmatched & (kind == k), np.int8(_SKIP), label)
            finders = self.found_by[kind[self.found_by] == k]
            if k == _LOC:
                without[finders] = _TP
            fixed[key] = self._ap(without, self.num_objects, finders if k == _CLS else nothing)
        missed, unfound = self._count(self.missed), self._count(self.unfound)
        fixed["Miss"] = self._ap(label, self.num_objects - missed, nothing)
        without = np.where(label == _FP, np.int8(_SKIP), label)
        fixed["FP"] = self._ap(without, self.num_objects, nothing)
        fixed["FN"] = self._ap(label, self.num_objects - unfound, nothing)
        return base, {key: value - base for key, value in fixed.items()}

    def _count(self, objects: np.ndarray) -> np.ndarray:
        return np.bincount(self.data.object_class[objects], minlength=self.data.num_classes)

    def _ap(self, label: np.ndarray, num_objects: np.ndarray, movers: np.ndarray) -> float:
        """Mean over the classes; ``movers`` find an object of another class than their own."""
        data = self.data
        if not self.num_objects.any():
            return math.nan
        classes = data.object_class[data.about[movers]]
        order = np.lexsort((-data.scores[movers], classes))
        aps = _average_precisions(
            label[data.order],
            data.ranked_scores,
            data.class_starts,
            data.scores[movers[order]],
            np.searchsorted(classes[order], np.arange(data.num_classes + 1)),
            num_objects,
            _RECALLS,
        )
        return float(aps[self.num_objects > 0].mean())


@jit
def _relate(
    found_class,
    found_starts,
    object_class,
    crowd,
    object_starts,
    iou,
    iou_starts,
    num_classes,
    max_dets,
    pos_thr,
    bg_thr,
):
    """The type of every detection if it finds nothing, and the object that it is about."""
    kind = np.empty(len(found_class), np.int8)
    about = np.full(len(found_class), -1, np.int64)
    counted = np.zeros(num_classes, np.int64)
    for i in range(len(found_starts) - 1):
        cell = iou_starts[i]
        for d in range(found_starts[i], found_starts[i + 1]):
            same = other = 0.0
            same_object = other_object = -1
            for g in range(object_starts[i], object_starts[i + 1]):
                if not crowd[g]:
                    if object_class[g] == found_class[d]:
                        if iou[cell] > same:
                            same, same_object = iou[cell], g
                    # of equal ones the first class, then the first object, as in hotcoco
                    elif iou[cell] > other or (
                        iou[cell] == other > 0 and object_class[g] < object_class[other_object]
                    ):
                        other, other_object = iou[cell], g
                cell += 1
            counted[found_class[d]] += 1
            if counted[found_class[d]] > max_dets:
                kind[d] = _CUT
            elif bg_thr <= same <= pos_thr:
                kind[d], about[d] = _LOC, same_object
            elif other >= pos_thr:
                kind[d], about[d] = _CLS, other_object
            elif same > pos_thr:
                kind[d], about[d] = _DUPE, same_object
            elif other <= bg_thr:
                kind[d] = _BKG
            else:
                kind[d], about[d] = _BOTH, other_object
        counted[found_class[found_starts[i] : found_starts[i + 1]]] = 0
    return kind, about


@jit
def _match(
    found_class,
    found_starts,
    object_class,
    crowd,
    object_starts,
    iou,
    iou_starts,
    ignored,
    kind,
    threshold,
):
    """Matches as pycocotools does: the best free object, one that is not ignored first."""
    state = np.full(len(found_class), _IGNORED, np.int8)
    taken = np.zeros(len(object_class), np.bool_)
    for i in range(len(found_starts) - 1):
        first, last = object_starts[i], object_starts[i + 1]
        for d in range(found_starts[i], found_starts[i + 1]):
            if kind[d] == _CUT:
                continue
            row = iou_starts[i] + (d - found_starts[i]) * (last - first) - first
            match = -1
            for ignore in (False, True):
                best = threshold
                for g in range(first, last):
                    if (
                        ignored[g] == ignore
                        and object_class[g] == found_class[d]
                        and (crowd[g] or not taken[g])
                        and iou[row + g] >= best
                    ):
                        best, match = iou[row + g], g
                if match >= 0:
                    break
            if match < 0:
                state[d] = _UNMATCHED
            else:
                taken[match] = True
                state[d] = _IGNORED if ignored[match] else _TRUE
    return state, taken


@jit
def _average_precisions(
    label, scores, class_starts, mover_scores, mover_starts, num_objects, recalls
):
    """AP of each class, read at 101 recalls; 0 without objects."""
    aps = np.zeros(len(num_objects))
    for k in range(len(num_objects)):
        n = num_objects[k]
        if n == 0:
            continue
        mover, last = mover_starts[k], mover_starts[k + 1]
        # precision where recall steps up is all that the envelope reads
        precision = np.empty(n)
        tp = fp = 0
        for d in range(class_starts[k], class_starts[k + 1]):
            while mover < last and mover_scores[mover] > scores[d]:
                tp += 1
                precision[tp - 1] = tp / (tp + fp)
                mover += 1
            if label[d] == _TP:
                tp += 1
                precision[tp - 1] = tp / (tp + fp)
            elif label[d] == _FP:
                fp += 1
        for _ in range(mover, last):
            tp += 1
            precision[tp - 1] = tp / (tp + fp)
        for j in range(tp - 2, -1, -1):
            precision[j] = max(precision[j], precision[j + 1])
        j, total = 0, 0.0
        for recall in recalls:
            while j < tp and (j + 1) / n < recall:
                j += 1
            if j == tp:
                break
            total += precision[j]
        aps[k] = total / len(recalls)
    return aps
