"""Arguments of the metric are checked before anything starts."""

import copy

import pytest
from mmengine.config import Config

from mmattn.inspection._console import PreflightError
from mmattn.inspection.evaluators import check_evaluators

GOOD = {
    "type": "mmattn.CocoSizeMetric",
    "ann_file": "not/there.json",  # what is in it is looked at elsewhere
    "metric": ["bbox", "segm"],
    "size_bins": "tiny:0-16^2,rest:16^2-",
}


def config(**changes):
    metric = {**copy.deepcopy(GOOD), **changes}
    return Config({"val_evaluator": {"type": "mmdet.CocoMetric"}, "test_evaluator": metric})


def test_good_ones_pass():
    check_evaluators(config())
    check_evaluators(config(size_bins=["tiny:0-16^2", "rest:16^2-"]))
    check_evaluators(Config({"val_evaluator": None, "test_evaluator": [GOOD, GOOD]}))
    check_evaluators(Config({}))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size_bin": "coco"}, "takes no argument 'size_bin'; did you mean size_bins?"),
        ({"xyz": 1}, "takes no argument 'xyz'; it takes "),
        ({"size_bins": "a:0-20,b:10-30"}, "overlap"),
        ({"size_by": "bboxx"}, "size_by must be one of area, bbox, sqrt-relative, got 'bboxx'"),
        ({"metric": "bbx"}, "metric must be 'bbox', 'segm'"),
        ({"metric_items": ["mAP_tinny"]}, "'mAP_tinny' is not a figure"),
        ({"metric_items": "mAP"}, "metric_items must be a list"),
        ({"format_only": True}, "needs outfile_prefix"),
        ({"max_dets": 0}, "max_dets must be"),
    ],
)
def test_wrong_ones_are_one_sentence(changes, match):
    for cfg in (config(**changes), Config({"val_evaluator": {"metrics": [{**GOOD, **changes}]}})):
        with pytest.raises(PreflightError, match=match) as error:
            check_evaluators(cfg)
        assert str(error.value).startswith(("test_evaluator: ", "val_evaluator: "))
