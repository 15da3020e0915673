"""The metric that reports AP by object size at the end of every evaluation."""

from __future__ import annotations

import dataclasses
import math
import os.path as osp
import tempfile
from collections.abc import Sequence
from json import JSONDecodeError
from pathlib import Path

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric
from mmengine.logging import MessageHub, MMLogger

from mmattn import __version__
from mmattn.evaluation.bins import COCO_BINS, SizeBins, parse_bins
from mmattn.evaluation.data import Detections, GroundTruth, load_detections, load_ground_truth
from mmattn.evaluation.evaluator import evaluate_loaded, parse_iou_thrs, parse_max_dets
from mmattn.evaluation.files import write_text
from mmattn.evaluation.reading import MASKS_WITH_BOXES
from mmattn.evaluation.result import FIGURES, Result, to_json
from mmattn.registry import METRICS

IOU_TYPES = ("bbox", "segm")
# where tools find the last file, in mmengine's MessageHub
FILE_INFO = "mmattn/ap_by_size_file"


@METRICS.register_module()
class CocoSizeMetric(CocoMetric):
    """COCO's AP and AR, by object size, of boxes and masks.

    A drop-in for mmdet's ``CocoMetric`` (``val_evaluator = dict(type='mmattn.CocoSizeMetric')``
    over a base config), whose arguments it takes. At the end of every evaluation it logs a
    table, returns the figures in full precision under mmdet's names, and writes them, with
    those of every class, to ``ap_by_size_val_epoch_<n>.json`` (``iter``, ``test``, ...) beside
    the log. Without a log file, it writes ``<outfile_prefix>.ap_by_size_*.json``, or nothing
    where there is no ``outfile_prefix`` either. A file of an earlier evaluation is never
    replaced: the next one ends in ``_2``. Its path is in the log, and in the MessageHub as
    ``mmattn/ap_by_size_file``.

    Which area decides: an object belongs to a bin by the ``area`` field of its annotation, which
    in COCO is the area of its mask, also where boxes are evaluated. A detection that matches an
    object goes where the object goes; one that matches none is a false positive in the bin of
    its own area, that of its box ('bbox') or its mask ('segm'). Without ``ann_file``, mmdet
    converts the ground truth from the data samples and enters the area of the box; the same is
    done, with a note under the table, for annotations without ``area`` (for 'segm', the area of
    their mask). The limits belong to the bins: an area of 1024 is small and medium.

    Where the figures differ from those of mmdet's ``CocoMetric``: ``max_dets`` = 100 detections
    of an image and class count for every figure, as in COCO's own evaluation, whereas
    ``CocoMetric`` takes 100 for mAP and 1000 for AP50, AP75 and AP by size; nothing is rounded;
    a figure without objects (an empty bin) is n/a in the table, null in the JSON, and has no key
    in the returned dict, whereas ``CocoMetric`` returns -1. A missing key cannot enter a mean
    or a curve, and ``CheckpointHook(save_best=...)`` fails on it at the first evaluation, where
    with NaN it would never save a best checkpoint and not say so. No detection at all is AP 0,
    whereas ``CocoMetric`` returns nothing. For deviations from pycocotools (annotation id 0,
    missing fields), see :mod:`mmattn.evaluation.evaluator`.

    Keys: ``bbox_mAP``, ``bbox_mAP_50``, ``bbox_mAP_75``, ``bbox_mAP_s`` (``_m``, ``_l``; with
    bins of your own their names, ``bbox_mAP_tiny``), ``bbox_AR@100``, ``bbox_AR_s@100``; and
    by ``metric_items`` ``mAP_50_s`` and ``mAP_75_s``. With ``classwise``,
    ``<class>_precision`` as in mmdet and ``<class>_precision_s``; with more than one metric the
    metric comes first (``segm_<class>_precision``).

    Args:
        ann_file: Path of the annotation file; converted from the data samples if None.
        metric: 'bbox', 'segm', or a list of both. Proposals have no AP by size: use mmdet's
            ``CocoMetric`` for them.
        classwise: Whether the log and the returned dict have AP per class too; the JSON always
            has.
        proposal_nums: Taken so that configs written for ``CocoMetric`` work; ``max_dets``
            decides instead, and the log says so where the two differ.
        iou_thrs: IoU thresholds that AP and AR are averaged over; 0.50:0.05:0.95 if None.
        metric_items: Which figures the returned dict has, for example ``['mAP', 'mAP_s']``.
        format_only: Whether to write the results file alone, and evaluate nothing.
        outfile_prefix: Prefix of the results files; a temporary folder if None.
        file_client_args: Deprecated by mmdet; raises. Use ``backend_args``.
        backend_args: Arguments of the file backend that reads ``ann_file``.
        collect_device: 'cpu' or 'gpu', where ranks gather their results.
        prefix: Comes before every key, 'coco' if None.
        sort_categories: Whether to sort the categories of ``ann_file`` by id.
        use_mp_eval: Taken for ``CocoMetric``'s sake, without effect: the engine is parallel.
        size_bins: COCO's small, medium and large if None or 'coco'; else 'coco-fine', a text
            such as 'tiny:0-16^2,small:16^2-32^2', a list of ``(name, low, high)`` or a dict of
            ``name: (low, high)``; ``high`` may be None. Both limits belong to the bin; bins may
            leave gaps. See :func:`mmattn.evaluation.parse_bins`.
        max_dets: How many detections of an image and class count, for every figure.
        size_by: What is compared with the limits: 'area' as described above; 'bbox', the area
            of the box, of objects and detections alike; or 'sqrt-relative', the square root of
            the area's share of the image. The bins of 'sqrt-relative' are shares, 0 to 1.

    Raises:
        FileNotFoundError: ``ann_file`` does not exist.
        ValueError, TypeError: An argument is not valid, or ``ann_file`` does not fit the dataset
            or ``metric``. Raised before inference starts.
    """

    def __init__(
        self,
        ann_file: str | None = None,
        metric: str | list[str] = "bbox",
        classwise: bool = False,
        proposal_nums: Sequence[int] = (100, 300, 1000),
        iou_thrs: float | Sequence[float] | None = None,
        metric_items: Sequence[str] | None = None,
        format_only: bool = False,
        outfile_prefix: str | None = None,
        file_client_args: dict | None = None,
        backend_args: dict | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
        sort_categories: bool = False,
        use_mp_eval: bool = False,
        *,
        size_bins: SizeBins = None,
        max_dets: int = 100,
        size_by: str = "area",
    ) -> None:
        metrics = list(metric) if isinstance(metric, (list, tuple)) else [metric]
        for name in metrics:
            if name not in IOU_TYPES:
                raise ValueError(
                    f"metric must be 'bbox', 'segm' or a list of both, got {name!r}; for "
                    "proposals use mmdet's CocoMetric (type='mmdet.CocoMetric')"
                )
        if not metrics or len(set(metrics)) < len(metrics):
            raise ValueError(f"metric must be 'bbox', 'segm' or a list of both, got {metric!r}")
        if format_only and outfile_prefix is None:
            raise ValueError("format_only=True needs outfile_prefix, the place of the results file")
        self.size_bins, self.size_by = parse_bins(size_bins, size_by), size_by
        self.max_dets = parse_max_dets(max_dets)
        if metric_items is not None:
            if isinstance(metric_items, str):
                raise TypeError(f"metric_items must be a list of names, got {metric_items!r}")
            known = self._items(None)
            for item in metric_items:
                if item not in known:
                    raise ValueError(
                        f"metric_items: {item!r} is not a figure of this metric with "
                        f"max_dets={max_dets} and these size_bins; it has {', '.join(known)}"
                    )
        try:
            super().__init__(
                ann_file=ann_file,
                metric=metrics,
                classwise=classwise,
                proposal_nums=proposal_nums,
                iou_thrs=parse_iou_thrs(iou_thrs),
                metric_items=metric_items,
                format_only=format_only,
                outfile_prefix=outfile_prefix,
                file_client_args=file_client_args,
                backend_args=backend_args,
                collect_device=collect_device,
                prefix=prefix,
                sort_categories=sort_categories,
                use_mp_eval=use_mp_eval,
            )
        except FileNotFoundError as error:
            raise FileNotFoundError(f"ann_file {ann_file!r} does not exist") from error
        except JSONDecodeError as error:
            raise ValueError(f"ann_file {ann_file!r} is not JSON: {error}") from error
        self.ann_file = ann_file
        # results of the last evaluation by metric, on rank 0
        self.size_results: dict[str, Result] = {}
        default = (100, 300, 1000)
        if tuple(proposal_nums) != default and max(proposal_nums) != max_dets:
            MMLogger.get_current_instance().warning(
                f"CocoSizeMetric: proposal_nums={proposal_nums} has no effect; "
                f"max_dets={max_dets} detections of an image and class count for every figure."
            )

    @property
    def dataset_meta(self) -> dict | None:
        """The dataset's metainfo; setting it checks ``ann_file`` against it."""
        return self._dataset_meta

    @dataset_meta.setter
    def dataset_meta(self, dataset_meta: dict | None) -> None:
        self._dataset_meta = dataset_meta
        self.cat_ids = None
        if self._coco_api is not None:
            self._load_ids()
            self._load_ground_truth()

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Evaluates what :meth:`process` has gathered; called on rank 0.

        Args:
            results: Pairs of ground truth and predictions of an image.

        Returns:
            The figures by name, without those that are n/a.
        """
        logger = MMLogger.get_current_instance()
        if not results:
            raise ValueError("CocoSizeMetric: no image was evaluated; is the dataset empty?")
        gts, predictions = zip(*results, strict=True)
        with tempfile.TemporaryDirectory() as folder:
            prefix = self.outfile_prefix or osp.join(folder, "results")
            if self._coco_api is None:
                self._coco_api = COCO(self.gt_to_coco_json(gts, prefix))
                self._load_ids()
                self._load_ground_truth()
            self._check_labels(predictions)
            files = self.results2json(predictions, prefix)
            if self.format_only:
                logger.info(
                    f"CocoSizeMetric: results are in {', '.join(sorted(set(files.values())))}"
                )
                return {}
            if missing := [metric for metric in self.metrics if metric not in files]:
                raise ValueError(f"metric={missing[0]!r}, but the model predicts no masks")
            self.size_results = {
                metric: evaluate_loaded(
                    self._ground_truths[metric],
                    self._load(files[metric], metric),
                    self.size_bins,
                    max_dets=self.max_dets,
                    iou_thrs=self.iou_thrs,
                )
                for metric in self.metrics
            }
        num_evaluated = len({gt["img_id"] for gt in gts})
        if num_evaluated < len(self.img_ids):
            logger.warning(
                f"CocoSizeMetric: {num_evaluated} of the {len(self.img_ids)} images of the ground "
                "truth were evaluated; the objects of the others count as missed."
            )
        values = {}
        for metric, result in self.size_results.items():
            logger.info("\n" + result.table())
            if self.classwise:
                logger.info("\n" + result.class_table())
            values.update(self._values(metric, result))
        self._forget()
        if path := self._write():
            logger.info(f"AP by size, with that of every class, is in {path}")
        return values

    def _load_ids(self) -> None:
        """Finds the ids of the dataset's classes and images in the ground truth."""
        ground_truth, classes = self._coco_api.dataset, (self.dataset_meta or {}).get("classes")
        if classes is None:
            raise ValueError("CocoSizeMetric: the dataset's metainfo has no 'classes'")
        if self.cat_ids is None:
            names = {category.get("name") for category in ground_truth.get("categories", ())}
            if missing := [name for name in classes if name not in names]:
                raise ValueError(
                    f"ann_file {self.ann_file!r} has no category {missing[0]!r}, which is among "
                    f"the {len(classes)} classes of the dataset's metainfo; it has "
                    f"{', '.join(sorted(map(str, names)))[:200]}"
                )
            self.cat_ids = self._coco_api.get_cat_ids(cat_names=classes)
        self.img_ids = self._coco_api.get_img_ids()

    def _load_ground_truth(self) -> None:
        """Checks the ground truth and brings it into the form that is evaluated, once."""
        self._ground_truths: dict[str, GroundTruth] = {
            metric: load_ground_truth(
                self._coco_api.dataset, metric, self.size_by, classes=self.cat_ids
            )
            for metric in self.metrics
        }

    def _check_labels(self, predictions: Sequence[dict]) -> None:
        highest = max((int(x["labels"].max()) for x in predictions if len(x["labels"])), default=-1)
        if highest >= len(self.cat_ids):
            raise ValueError(
                f"the model predicts label {highest}, but the dataset has {len(self.cat_ids)} "
                "classes; does num_classes of its head fit the dataset?"
            )

    def _load(self, file: str, metric: str) -> Detections:
        found = load_detections(file, self._ground_truths[metric])
        # mmdet writes masks with their boxes, and measures the masks as we do
        notes = tuple(x for x in found.notes if x != MASKS_WITH_BOXES)
        return dataclasses.replace(found, notes=notes)

    def _suffixes(self) -> dict[str, str]:
        """Bin name -> how keys name it: mmdet's s, m, l for COCO's bins."""
        return {
            x.name: x.name[0] if self.size_bins == COCO_BINS else x.name for x in self.size_bins
        }

    def _items(self, result: Result | None) -> dict[str, float]:
        """Every figure under mmdet's name; without a result, the names."""
        items = {}
        for name, suffix in {"all": "", **self._suffixes()}.items():
            suffix = suffix and f"_{suffix}"
            names = (f"mAP{suffix}", f"mAP_50{suffix}", f"mAP_75{suffix}")
            row = result and dict(result.rows())[name]
            for key, figure in zip((*names, f"AR{suffix}@{self.max_dets}"), FIGURES, strict=True):
                items[key] = math.nan if row is None else row[figure]
        return items

    def _values(self, metric: str, result: Result) -> dict[str, float]:
        """What the evaluator returns of a result."""
        items = self._items(result)
        by_size = {name: f"_{suffix}" for name, suffix in self._suffixes().items()}
        names = self.metric_items or [
            *("mAP", "mAP_50", "mAP_75"),
            *(f"mAP{suffix}" for suffix in by_size.values()),
            *(f"AR{suffix}@{self.max_dets}" for suffix in ("", *by_size.values())),
        ]
        values = {f"{metric}_{name}": items[name] for name in names}
        if self.classwise:
            start = f"{metric}_" if len(self.metrics) > 1 else ""
            for name, row in result.per_class.items():
                values[f"{start}{name}_precision"] = row.ap
                for size, suffix in by_size.items():
                    values[f"{start}{name}_precision{suffix}"] = row.by_size[size].ap
        return {key: value for key, value in values.items() if not math.isnan(value)}

    def _forget(self) -> None:
        """Drops this metric's figures of earlier evaluations from mmengine's MessageHub.

        Its LogProcessor would log the mean over several evaluations for names with 'loss' or
        'time' in them (a class 'timer'), and go on logging what a resumed training with other
        bins no longer evaluates.
        """
        hub = MessageHub.get_current_instance()
        start = f"{hub.get_info('loop_stage')}/{self.prefix}/"
        for key in [key for key in hub.log_scalars if key.startswith(start)]:
            del hub.log_scalars[key]

    def _write(self) -> Path | None:
        """Writes all results to a new file beside the log, and says where."""
        log_file = MMLogger.get_current_instance().log_file
        if log_file is not None:
            start = osp.join(osp.dirname(log_file), "ap_by_size")
        elif self.outfile_prefix is not None:
            start = f"{self.outfile_prefix}.ap_by_size"
        else:
            return None
        hub = MessageHub.get_current_instance()
        stage = hub.get_info("loop_stage")  # 'val' or 'test'
        # mmengine counts from 0; an iteration-based loop says that it has one epoch
        epoch, iteration = (
            None if (count := hub.get_info(key)) is None else int(count) + 1
            for key in ("epoch", "iter")
        )
        by_epoch = (hub.get_info("max_epochs") or 0) > 1
        parts = [start] + [stage] * (stage is not None)
        if by_epoch and epoch is not None:
            parts.append(f"epoch_{epoch}")
        elif iteration is not None:
            parts.append(f"iter_{iteration}")
        stem = "_".join(parts)
        path, n = Path(f"{stem}.json"), 1
        while path.exists():
            n += 1
            path = Path(f"{stem}_{n}.json")
        content = {
            "mmattn": __version__,
            "ann_file": self.ann_file,
            "prefix": self.prefix,
            "stage": stage,
            "config": hub.get_info("mmattn/config"),
            "checkpoint": hub.get_info("mmattn/checkpoint"),
            "epoch": epoch if by_epoch else None,
            "iter": iteration,
            "results": {key: result.to_dict() for key, result in self.size_results.items()},
        }
        write_text(path, to_json(content))
        hub.update_info(FILE_INFO, str(path), resumed=False)
        return path
