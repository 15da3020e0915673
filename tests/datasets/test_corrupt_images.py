"""Images that cannot be read are named, and skipped or fatal, as asked."""

import contextlib
import io
import logging
import time

import mmcv
import numpy as np
import pytest
from mmengine import Config
from mmengine.logging import MMLogger
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from mmattn.datasets.corrupt_images import CorruptImageError, apply, listed
from mmattn.datasets.images import decode, is_cut_off
from mmattn.inspection._console import PreflightError
from mmattn.registry import HOOKS, TRANSFORMS
from tests.datasets.made import annotation, picture, split

GOOD, CUT, TEXT, GONE, EMPTY = "good.jpg", "cut.jpg", "text.jpg", "gone.jpg", "empty.jpg"
WHY = {
    CUT: "is cut off after 600 bytes",
    TEXT: "is no image: it begins with b'hello'",
    GONE: "does not exist",
    EMPTY: "is empty",
}


@pytest.fixture
def root(tmp_path):
    names = [GOOD, *WHY, "more.png"]
    images = [(i, name, 40, 30) for i, name in enumerate(names, 1)]
    annotations = [annotation(i, i, (0, 0, 9, 9)) for i, *_ in images]
    folder = tmp_path / "train2017"
    split(tmp_path, "train2017", images, annotations)
    (folder / CUT).write_bytes((folder / CUT).read_bytes()[:600])
    (folder / TEXT).write_text("hello")
    (folder / GONE).unlink()
    (folder / EMPTY).write_bytes(b"")
    return tmp_path


@pytest.fixture
def log(request):
    """Lines that reach mmengine's logger."""
    logger = MMLogger.get_instance(f"log-{request.node.name}")
    lines = []
    handler = logging.Handler()
    handler.setLevel(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    return lines


def load(path, **options):
    return TRANSFORMS.build(dict(type="mmattn.LoadImageFromFile", **options))(dict(img_path=path))


def dataset(root, test_mode=False, **options):
    from mmdet.registry import DATASETS

    with DefaultScope.overwrite_default_scope("mmdet"), contextlib.redirect_stdout(io.StringIO()):
        return DATASETS.build(
            dict(
                type="CocoDataset",
                ann_file=str(root / "annotations" / "instances_train2017.json"),
                data_prefix=dict(img=str(root / "train2017")),
                metainfo=dict(classes=("cat", "dog")),
                test_mode=test_mode,
                pipeline=[
                    dict(type="mmattn.LoadImageFromFile", **options),
                    dict(type="mmdet.LoadAnnotations", with_bbox=True),
                    dict(type="mmdet.PackDetInputs", meta_keys=("img_path",)),
                ],
            )
        )


@pytest.mark.parametrize(
    "options",
    [{}, dict(to_float32=True), dict(color_type="grayscale"), dict(imdecode_backend="pillow")],
    ids=str,
)
@pytest.mark.parametrize("name", [GOOD, "more.png"])
def test_a_whole_image_is_loaded_as_by_mmcv(root, name, options):
    path = str(root / "train2017" / name)
    theirs = MMENGINE_TRANSFORMS.build(dict(type="mmcv.LoadImageFromFile", **options))
    expected, actual = theirs(dict(img_path=path)), load(path, **options)
    assert list(actual) == list(expected)
    assert actual["img"].dtype == expected["img"].dtype
    assert np.array_equal(actual.pop("img"), expected.pop("img"))
    assert actual == expected


@pytest.mark.parametrize("name", WHY)
def test_raise_names_the_path(root, name):
    path = str(root / "train2017" / name)
    with pytest.raises(CorruptImageError) as caught:
        load(path)
    assert str(caught.value).startswith(f"image {path} {WHY[name]}; replace it")


def test_what_opencv_lets_pass(root, monkeypatch):
    """Before 4.12 it gives an image with a grey rest for a JPEG that is cut off."""
    monkeypatch.setattr(mmcv, "imfrombytes", lambda *_, **__: np.full((30, 40, 3), 128, np.uint8))
    with pytest.raises(CorruptImageError, match=r"cut\.jpg is cut off after 600 bytes"):
        load(str(root / "train2017" / CUT))


def test_what_no_decoder_takes(root, monkeypatch):
    monkeypatch.setattr(mmcv, "imfrombytes", lambda *_, **__: None)
    with pytest.raises(CorruptImageError, match=r"good\.jpg cannot be decoded"):
        load(str(root / "train2017" / GOOD))


def test_a_tail_is_no_cut(root):
    path = root / "train2017" / GOOD
    path.write_bytes(path.read_bytes() + b"behind the end")
    assert is_cut_off(path.read_bytes())
    assert load(str(path))["img"].shape == (30, 40, 3)


def test_the_look_at_the_end_costs_next_to_nothing(tmp_path):
    content = picture(tmp_path / "large.jpg", (640, 480)).read_bytes()
    begin = time.perf_counter()
    for _ in range(1000):
        assert not is_cut_off(content)
    look = (time.perf_counter() - begin) / 1000
    begin = time.perf_counter()
    assert decode(content).kind is None
    assert look < 0.05 * (time.perf_counter() - begin)


def test_skip_in_a_dataset(root, tmp_path, log):
    """Every sample is of a good image; each bad path is one line of the log."""
    file = tmp_path / "bad.txt"
    data = dataset(root, on_error="skip", list_file=str(file))
    np.random.seed(0)
    paths = {sample["data_samples"].img_path for _ in range(3) for sample in data}
    assert paths == {str(root / "train2017" / name) for name in (GOOD, "more.png")}
    expected = {str(root / "train2017" / name): why for name, why in WHY.items()}
    assert listed(str(file)) == expected
    assert len(file.read_text().splitlines()) == len(WHY)
    assert sorted(log) == sorted(f"image {path} {why}: skipped" for path, why in expected.items())
    assert data.pipeline.transforms[0].corrupt.keys() == expected.keys()
    assert min(data.pipeline.transforms[0].corrupt.values()) >= 3


def test_too_many_are_no_accident(root, log):
    data = dataset(root, on_error="skip", limit=2)
    with pytest.raises(CorruptImageError, match="more than 2 images cannot be read, the last is"):
        list(data)


def test_nothing_is_skipped_in_a_test(root, log):
    with pytest.raises(Exception, match="should not get `None`"):
        dataset(root, test_mode=True, on_error="skip")[1]
    with pytest.raises(CorruptImageError, match="cut off"):
        dataset(root, test_mode=True)[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders(root, tmp_path, workers, log):
    """Workers report, too, and their errors are the one sentence, without their traceback."""
    file = tmp_path / "bad.txt"
    loader = dict(
        batch_size=2,
        num_workers=workers,
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="pseudo_collate"),
    )
    data = dataset(root, on_error="skip", list_file=str(file))
    batches = list(Runner.build_dataloader(dict(loader, dataset=data), seed=0))
    assert sum(len(batch["inputs"]) for batch in batches) == 6
    assert set(listed(str(file))) == {str(root / "train2017" / name) for name in WHY}
    with pytest.raises(CorruptImageError) as caught:
        list(Runner.build_dataloader(dict(loader, dataset=dataset(root)), seed=0))
    assert str(caught.value).startswith(f"image {root}/train2017/{CUT} is cut off")
    assert "\n" not in str(caught.value)


def config(**more):
    read = dict(type="LoadImageFromFile", backend_args=None)
    inner = dict(type="CocoDataset", pipeline=[read, dict(type="LoadAnnotations")])
    return Config(
        dict(
            work_dir="work",
            train_dataloader=dict(
                dataset=dict(type="RepeatDataset", times=2, dataset=dict(inner)),
            ),
            val_dataloader=dict(dataset=dict(inner, test_mode=True)),
            custom_hooks=[dict(type="PipelineSwitchHook", switch_pipeline=[dict(read)])],
            **more,
        )
    )


def test_one_key_for_a_whole_config():
    cfg = config(corrupt_images="skip")
    apply(cfg)
    expected = dict(
        type="mmattn.LoadImageFromFile",
        backend_args=None,
        on_error="skip",
        limit=100,
        list_file="work/corrupt_images.txt",
    )
    assert cfg.train_dataloader.dataset.dataset.pipeline[0] == expected
    assert cfg.custom_hooks[0].switch_pipeline[0] == expected
    assert cfg.custom_hooks[1].type == "mmattn.CorruptImagesHook"
    # what is evaluated is evaluated whole
    assert cfg.val_dataloader.dataset.pipeline[0] == dict(
        type="mmattn.LoadImageFromFile", backend_args=None, on_error="raise"
    )
    Config.fromstring(cfg.dump(), ".py")


def test_the_key_left_out_changes_nothing():
    cfg = config()
    apply(cfg)
    assert cfg._cfg_dict == config()._cfg_dict


def test_the_key_with_raise_and_limit():
    cfg = config(corrupt_images=dict(on_error="raise", limit=3))
    apply(cfg)
    assert cfg.train_dataloader.dataset.dataset.pipeline[0].on_error == "raise"
    assert len(cfg.custom_hooks) == 1


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("ignore", "corrupt_images: on_error must be 'raise' or 'skip', got 'ignore'"),
        (dict(limit=3), "on_error must be 'raise' or 'skip', got None"),
        (dict(on_error="skip", limit=-1), "limit must be a whole number from 0 on, got -1"),
        (dict(on_error="skip", size=1), "it has no 'size'; expected on_error and limit"),
    ],
)
def test_wrong_keys(value, sentence):
    with pytest.raises(PreflightError, match=sentence):
        apply(config(corrupt_images=value))


def test_a_config_that_reads_otherwise():
    cfg = config(corrupt_images="skip")
    cfg.train_dataloader.dataset.dataset.pipeline = []
    cfg.custom_hooks = []
    with pytest.raises(PreflightError, match="nothing in train_dataloader is a LoadImageFromFile"):
        apply(cfg)


def test_the_hook_says_how_many(tmp_path):
    file = tmp_path / "bad.txt"
    hook = HOOKS.build(dict(type="mmattn.CorruptImagesHook", list_file=str(file)))

    class Runner:
        logger = logging.getLogger("hook")

    lines = []
    Runner.logger.addFilter(lambda record: lines.append(record.getMessage()))
    hook.before_val(Runner)
    assert lines == []
    file.write_text("a.jpg\tis empty\nb.jpg\tis empty\na.jpg\tis empty\n")
    hook.before_val(Runner)
    hook.before_val(Runner)
    assert len(lines) == 1
    hook.after_train(Runner)
    assert lines[1].startswith("mmattn: 2 images of the training cannot be read")


def test_repr(root):
    text = repr(TRANSFORMS.build(dict(type="mmattn.LoadImageFromFile", on_error="skip")))
    assert "on_error='skip'" in text
    assert "color_type='color'" in text
