"""``--attention``: what it puts where, and that the lines it shows do the same."""

import re

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

import mmattn
from mmattn.inspection import attention_option, config_file
from mmattn.inspection._console import PreflightError
from mmattn.plugins import AttentionModule
from tests.test_insertion_in_mmdet import build, outputs
from tests.zoo import NEVER_IDENTITY, PLUGINS

R50 = "retinanet/retinanet_r50_fpn_1x_coco.py"
R18 = "retinanet/retinanet_r18_fpn_1x_coco.py"
YOLOX = "yolox/yolox_tiny_8xb8-300e_coco.py"
SWIN = "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
TEACHER = "soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.01-coco.py"


@pytest.fixture(autouse=True)
def mmdet_scope():
    init_default_scope("mmdet")


def applied(config, wish):
    cfg = config_file.load(f"mmdet::{config}", {})
    attention_option.apply(cfg, wish)
    return cfg


def names(cfg):
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, AttentionModule)]
    assert all(module.identity_at_init for _, module in found)
    return [name for name, _ in found]


BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


def in_blocks(stages, abbr, blocks=BLOCKS):
    return [f"backbone.layer{s - 1}.{i}.{abbr}" for s in stages for i in range(blocks[s])]


@pytest.mark.parametrize(
    ("config", "wish", "expected"),
    [
        (R50, "sge", in_blocks([2, 3, 4, 5], "sge")),
        (R50, "GC:ratio=4@c3-c5", in_blocks([3, 4, 5], "context_block")),
        (R50, "gc", in_blocks([3, 4, 5], "context_block")),
        (R50, "coord_att@c5", in_blocks([5], "coord_att")),
        (R50, "nonlocal", ["backbone.layer3.4.nonlocal_block"]),
        (R50, "non_local@c4", in_blocks([4], "nonlocal_block")),
        (R50, "bam", ["backbone.layer1.2.bam", "backbone.layer2.3.bam", "backbone.layer3.5.bam"]),
        (R50, "gct@c4", in_blocks([4], "gct")),
        (R18, "se@c2-3", in_blocks([2, 3], "bn2.se", {2: 2, 3: 2})),
        (YOLOX, "eca", ["backbone.eca_0", "backbone.eca_1", "backbone.eca_2"]),
        (SWIN, "se@c3-c4", ["backbone.se_1", "backbone.se_2"]),
        (
            TEACHER,
            "bam@c4",
            ["student.backbone.layer3.5.bam", "teacher.backbone.layer3.5.bam"],
        ),
    ],
)
def test_places(config, wish, expected):
    if config in (YOLOX, SWIN):  # their stages are found by a forward pass
        model = MODELS.build(applied(config, wish).model)
        assert [one.name for one in mmattn.insertions(model)] == expected
    else:
        assert names(applied(config, wish)) == expected


def test_gct_stands_before_every_convolution_and_its_beta_is_not_decayed():
    cfg = applied(R50, "gct")
    assert len(names(cfg)) == 53
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys[".beta"].decay_mult == 0


@pytest.mark.parametrize("name", sorted(PLUGINS.keys() - NEVER_IDENTITY))
def test_every_module_is_known(name):
    assert names(applied(R50, f"{name}@c5"))


def test_the_groups_of_sge_fit_any_backbone(capsys):
    model = MODELS.build(applied(SWIN, "sge").model)
    assert [one.module.groups for one in mmattn.insertions(model)] == [48] * 4
    assert "groups=48" in capsys.readouterr().out


def test_arguments():
    wish = attention_option.parse("gc:ratio=4,pooling=avg,fusion=('add','mul')@c3")
    assert wish.cfg == dict(
        type="mmattn.GC", identity_init=True, ratio=4, pooling="avg", fusion=("add", "mul")
    )
    assert wish.stages == (False, True, False, False)


@pytest.mark.parametrize("wish", ["sge", "gc:ratio=4@c3-c5", "gct", "bam"])
@pytest.mark.parametrize("config", [R50, R18, YOLOX, TEACHER])
def test_the_lines_it_shows_do_the_same(config, wish, capsys):
    cfg = applied(config, wish)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == f"--attention {wish} stands for these lines of a config:"
    options = dict(line.split("  #")[0].split(" = ", 1) for line in shown[1:])
    by_hand = config_file.load(f"mmdet::{config}", {})
    by_hand.merge_from_dict({key: eval(value) for key, value in options.items()})
    assert by_hand.model == cfg.model
    assert by_hand.optim_wrapper == cfg.optim_wrapper


@pytest.mark.parametrize("config", [R18, YOLOX])
def test_the_detector_starts_as_it_was(config, monkeypatch):
    expected = outputs(build(config))
    load = config_file.load

    def with_attention(path, options):
        cfg = load(path, options)
        attention_option.apply(cfg, "sge:groups=8")
        return cfg

    monkeypatch.setattr(config_file, "load", with_attention)
    model = build(config)
    assert len(mmattn.insertions(model)) in (8, 3)
    # the inserted modules draw nothing, so that all other weights are the same
    mmattn_state = {
        k for one in mmattn.insertions(model) for k in one.module.state_dict(prefix=one.name + ".")
    }
    plain = [k for k in model.state_dict() if k not in mmattn_state]
    monkeypatch.undo()
    reference = build(config)
    assert list(reference.state_dict()) == plain
    reference_state = reference.state_dict()
    model.load_state_dict(reference_state, strict=False)
    for one in mmattn.insertions(model):
        one.module.init_weights()
    for actual, wanted in zip(outputs(model), expected, strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ("sg", r"knows no module 'sg'; did you mean sge\? There are bam, .*DRConv2d"),
        ("drconv", "knows no module 'drconv'"),
        ("", r"expects NAME\[:ARGUMENT=VALUE,...\]\[@cA-cB\]"),
        ("sge:8", "such as sge, gc:ratio=4@c3-c5"),
        ("sge:groups=", "got 'sge:groups='"),
        ("sge:groups=open('x')", "expects NAME"),
        ("sge@5", "expects NAME"),
        ("sge@c1", "stages from c2 to c5"),
        ("sge@c5-c3", "stages from c2 to c5"),
        ("sge:group=8", "SGE has no argument 'group'; did you mean groups"),
        ("simam", "simam:identity_init=False"),
    ],
)
def test_refused(wish, message):
    cfg = config_file.load(f"mmdet::{R50}", {})
    before = cfg.model.to_dict()
    with pytest.raises(PreflightError, match=message):
        attention_option.apply(cfg, wish)
    assert cfg.model.to_dict() == before


def test_twice_and_no_place():
    cfg = applied(R50, "sge")
    with pytest.raises(PreflightError, match="has a mmattn.SGE already"):
        attention_option.apply(cfg, "sge@c5")
    with pytest.raises(
        PreflightError, match=r"stride 8, 16, 32; none of them is one of c2-c2 \(4\)"
    ):
        applied(YOLOX, "se@c2")
    cfg = config_file.load(f"mmdet::{R50}", {})
    del cfg.model["backbone"]
    with pytest.raises(PreflightError, match="needs a model with a backbone="):
        attention_option.apply(cfg, "sge")


def test_the_folder_has_the_wish_in_its_name():
    assert attention_option.slug("gc:ratio=4@c3-c5") == "gc-ratio-4-c3-c5"
    assert re.fullmatch(r"[\w.-]+", attention_option.slug("gc:fusion=('add','mul')"))
