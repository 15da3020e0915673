"""Names of layers that people can read, and the names of the package."""

import importlib

import pytest

import mmattn.visualization
from mmattn.visualization.names import label, stage

# name in the model, the module's own name, stage, label
NAMES = [
    ("backbone.layer1.0.sge", "sge", "c2", "c2, block 1"),
    ("backbone.layer1.0.sge_2", "sge", "c2", "c2, block 1"),
    ("backbone.layer3.5.conv1.0", "gct", "c4", "c4, block 6, conv1"),
    ("backbone.layer3.0.downsample.0.0", "gct", "c4", "c4, block 1, downsample"),
    ("backbone.conv1.0", "gct", "stem", "stem, conv1"),
    ("backbone.stem.gct", "gct", "stem", "stem"),
    ("backbone.layer4.2.conv2", "", "c5", "c5, block 3, conv2"),
    ("backbone.layer2.1", "", "c3", "c3, block 2"),
    ("backbone.layer1.bam", "bam", "c2", "c2"),
    ("layer1.0.cbam", "cbam", "c2", "c2, block 1"),
    ("backbone.layer1.2.conv3.context_block", "context_block", "c2", "c2, block 3, conv3"),
    ("backbone.stages.0.blocks.1.sge", "sge", "stage 1", "stage 1, block 2"),
    ("backbone.stages.2.1.branch2.0", "", "stage 3", "stage 3, block 2, branch2"),
    ("backbone.stage2.0.0.gc", "gc", "stage 2", "stage 2, block 1"),
    ("neck.lateral_convs.1.sge", "sge", "neck", "neck, lateral conv 2"),
    ("bbox_head.cls_convs.3.eca", "eca", "box head", "box head, class conv 4"),
    ("roi_head.bbox_head.se", "se", "RoI head", "RoI head, box head"),
    ("sge", "sge", "sge", "sge"),
]


@pytest.mark.parametrize(("name", "own", "where", "words"), NAMES)
def test_a_layer_has_a_name_for_people(name, own, where, words):
    assert stage(name) == where
    assert label(name, own) == words


def test_every_public_name_is_there_whatever_was_imported_before():
    for module in set(mmattn.visualization._WHERE.values()):
        importlib.import_module(f"mmattn.visualization.{module}")
    assert len(set(mmattn.visualization.__all__)) == len(mmattn.visualization.__all__)
    for name in mmattn.visualization.__all__:
        assert callable(getattr(mmattn.visualization, name)), name
    with pytest.raises(AttributeError, match="no attribute 'draw_cat'"):
        mmattn.visualization.draw_cat  # noqa: B018
