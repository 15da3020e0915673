"""mmdet's --out pickles: the columns of mmdet's own JSON, and no code of the file's is run."""

import codecs
import contextlib
import copy
import io
import json
import os
import pickle
import subprocess
import sys
import warnings

import mmattn  # noqa: F401  before any mm* package: it offers the operators that mmcv may lack

# isort: split
import numpy as np
import pytest
import torch

from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.mmdet_pickle import read_mmdet_pickle
from mmattn.evaluation.reading import read_detections

CATEGORIES = {7: "cat", 3: "dog", 5: "cow"}  # in the file's order, which is not that of the ids
HEIGHT, WIDTH = 60, 80


def rle(seed):
    from pycocotools import mask

    pixels = np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.7
    return mask.encode(np.asfortranarray(pixels, np.uint8))


def sample(image_id=1, number=3, masks=False, mask_scores=False, seed=0):
    """An image as DumpDetResults has it: views of one tensor, as detectors return them."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(number, 5, generator=generator) * torch.tensor([40.0, 30, 40, 30, 1])
    found[:, 2:4] += found[:, :2] + 0.3
    prediction = {
        "bboxes": found[:, :4],
        "scores": found[:, 4],
        "labels": torch.randint(0, 3, (number,), generator=generator),
    }
    if masks:
        prediction["masks"] = [rle(seed + i) for i in range(number)]
    if mask_scores:
        prediction["mask_scores"] = torch.rand(number, generator=generator)
    return {
        "img_id": image_id,
        "img_path": f"{image_id}.jpg",
        "ori_shape": (HEIGHT, WIDTH),
        "img_shape": torch.Size([HEIGHT, WIDTH]),
        "scale_factor": np.array([1.0, 2.0], np.float32),
        "pred_instances": prediction,
    }


def dump(path, content, protocol=2):
    # mmengine writes protocol 2
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def coco(samples, iou_type):
    """COCO results as mmdet's CocoMetric computes them, one number after the other."""
    ids, results = list(CATEGORIES), []
    for x in samples:
        prediction = x["pred_instances"]
        for i, label in enumerate(prediction["labels"].tolist()):
            x1, y1, x2, y2 = prediction["bboxes"][i].tolist()
            scores = prediction["scores"]
            result = {"image_id": x["img_id"], "category_id": ids[label]}
            if iou_type == "segm":
                scores = prediction.get("mask_scores", scores)
                mask = prediction["masks"][i]
                result["segmentation"] = {**mask, "counts": mask["counts"].decode()}
            results.append(
                {**result, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(scores[i])}
            )
    return results


def assert_same(first, second):
    for key in ("image_ids", "category_ids", "scores", "boxes"):
        a, b = getattr(first, key), getattr(second, key)
        if isinstance(b, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a is b is None or list(a) == list(b)
    assert first.masks == second.masks


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_the_columns_are_those_of_the_json(tmp_path, iou_type, protocol):
    samples = [
        sample(image_id, number, masks=True, mask_scores=True, seed=image_id)
        for image_id, number in ((4, 5), (9, 0), (2, 3), (1, 1))
    ]
    path = dump(tmp_path / "x.pkl", samples, protocol)
    expected = tmp_path / "x.json"
    expected.write_text(json.dumps(coco(samples, iou_type)))
    found = read_mmdet_pickle(path, CATEGORIES, iou_type)
    assert_same(found, read_detections(expected, iou_type))
    assert len(found.scores) == 9


def test_detections_are_those_of_the_json(tmp_path):
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in (1, 2)]
    truth = load_ground_truth(
        {
            "images": images,
            "categories": [{"id": k, "name": v} for k, v in CATEGORIES.items()],
            "annotations": [],
        },
        classes=["dog", "cat"],
    )
    samples = [sample(2, 20, seed=2), sample(1, 30, seed=1)]
    found = load_detections(str(dump(tmp_path / "x.pkl", samples)), truth)
    expected = load_detections(coco(samples, "bbox"), truth)
    assert 0 < len(found) < 50
    for key in ("image", "category", "boxes", "scores", "starts"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))


def test_mmdets_own_dump_and_json(tmp_path):
    """Needs mmdet: its dumper and its metric get the same predictions."""
    evaluation = pytest.importorskip("mmdet.evaluation")
    from mmdet.structures import DetDataSample
    from mmengine.evaluator import Evaluator
    from mmengine.structures import InstanceData

    samples = []
    for image_id, number in ((4, 5), (9, 0), (2, 3)):
        x = sample(image_id, number, mask_scores=True, seed=image_id)
        prediction = x.pop("pred_instances")
        prediction["masks"] = torch.rand(number, HEIGHT, WIDTH) > 0.5
        samples.append(DetDataSample(metainfo=x))
        samples[-1].pred_instances = InstanceData(**prediction)
        samples[-1].gt_instances = InstanceData(bboxes=torch.rand(2, 4))
    truth = tmp_path / "truth.json"
    truth.write_text(
        json.dumps(
            {
                "images": [{"id": i, "height": HEIGHT, "width": WIDTH} for i in (2, 4, 9)],
                "categories": [{"id": k, "name": v} for k, v in CATEGORIES.items()],
                "annotations": [],
            }
        )
    )
    pickled, prefix = str(tmp_path / "x.pkl"), str(tmp_path / "x")
    dumper = evaluation.DumpDetResults(out_file_path=pickled)
    # the order of the names is not that of the file, and does not count
    metric = evaluation.CocoMetric(
        ann_file=str(truth), metric=["bbox", "segm"], outfile_prefix=prefix, format_only=True
    )
    for x in (dumper, metric):
        evaluator = Evaluator([x])
        evaluator.dataset_meta = {"classes": ("cow", "dog", "cat")}
        evaluator.process(copy.deepcopy(samples))
        evaluator.evaluate(len(samples))
    for iou_type in ("bbox", "segm"):
        found = read_mmdet_pickle(pickled, CATEGORIES, iou_type)
        assert_same(found, read_detections(f"{prefix}.{iou_type}.json", iou_type))
        assert len(found.scores) == 8


def test_every_layout_and_type_of_numbers(tmp_path):
    base = torch.arange(40, dtype=torch.float64).reshape(10, 4)
    layouts = [
        base[2:4],
        base[2:4].half(),
        base.t()[:, 2:4].contiguous().t(),
        base[::3][1:3],
        base[2:4].numpy(),
        np.asfortranarray(base[2:4].numpy()),
        base[2:4].numpy().astype(">f4"),
        base[2:4].float().requires_grad_(),
    ]
    labels = [torch.tensor([2, 0], dtype=t) for t in (torch.uint8, torch.int32, torch.int64)]
    for i, boxes in enumerate(layouts):
        prediction = {
            "bboxes": boxes,
            "scores": np.array([0.5, 0.25], np.float16),
            "labels": labels[i % 3],
        }
        found = read_mmdet_pickle(
            dump(tmp_path / "x.pkl", [{"img_id": "a", "pred_instances": prediction}]), CATEGORIES
        )
        x1, y1, x2, y2 = np.asarray(torch.as_tensor(np.array(boxes.tolist())).double()).T
        np.testing.assert_array_equal(found.boxes, np.stack([x1, y1, x2 - x1, y2 - y1], 1))
        np.testing.assert_array_equal(found.scores, [0.5, 0.25])
        assert list(found.category_ids) == [5, 7]
        assert list(found.image_ids) == ["a", "a"]


@pytest.mark.parametrize("image_id", [5, "5", np.int64(5), np.float32(5)])
def test_image_ids(tmp_path, image_id):
    found = read_mmdet_pickle(dump(tmp_path / "x.pkl", [sample(image_id, 2)]), CATEGORIES)
    expected = "5" if isinstance(image_id, str) else 5
    assert list(found.image_ids) == [expected, expected]


def test_image_ids_that_are_texts_or_both(tmp_path):
    path = dump(tmp_path / "x.pkl", [sample("b", 2), sample("a", 0), sample(3, 1)])
    assert list(read_mmdet_pickle(path, CATEGORIES).image_ids) == ["b", "b", 3]


def test_no_detections(tmp_path):
    for content in ([], [sample(1, 0), sample(2, 0)]):
        path = dump(tmp_path / "x.pkl", content)
        assert len(read_mmdet_pickle(path, CATEGORIES).scores) == 0
        assert read_mmdet_pickle(path, CATEGORIES).boxes.shape == (0, 4)
    path = dump(tmp_path / "x.pkl", [sample(1, 0, masks=True)])
    assert read_mmdet_pickle(path, CATEGORIES, "segm").masks == []


def with_labels(*labels):
    content = sample(number=len(labels))
    content["pred_instances"]["labels"] = torch.tensor(labels)
    return [content]


def test_labels_of_a_model_of_fewer_classes(tmp_path):
    path = dump(tmp_path / "x.pkl", with_labels(0, 1, 1))
    found = read_mmdet_pickle(path, CATEGORIES)
    assert list(found.category_ids) == [7, 3, 3]
    (note,) = found.notes
    assert note.startswith("The highest label is 1, but the ground truth has 3 categories")
    found = read_mmdet_pickle(path, CATEGORIES, classes=("cat", "cow"))
    assert list(found.category_ids) == [7, 5, 5]
    assert found.notes == ()
    # mmdet goes by the file's order, whatever that of its config
    with pytest.raises(ValueError, match="which is how mmdet numbers labels, .*: cat, cow$"):
        read_mmdet_pickle(path, CATEGORIES, classes=("cow", "cat"))
    with pytest.raises(ValueError, match="each once: cat, cow$"):
        read_mmdet_pickle(path, CATEGORIES, classes=("cat", "cow", "cow"))
    with pytest.raises(ValueError, match="has no category 'bird'; it has cat, dog, cow$"):
        read_mmdet_pickle(path, CATEGORIES, classes=("cat", "bird"))
    with pytest.raises(TypeError, match="classes must be a list of names, got 'cat'"):
        read_mmdet_pickle(path, CATEGORIES, classes="cat")


def test_labels_beyond_the_categories(tmp_path):
    path = dump(tmp_path / "x.pkl", with_labels(0, 3, 7))
    with pytest.raises(ValueError, match="2 of 3 labels are outside 0 to 2, .* highest is 7"):
        read_mmdet_pickle(path, CATEGORIES)
    path = dump(tmp_path / "x.pkl", with_labels(0, -1, 1))
    with pytest.raises(ValueError, match="1 of 3 labels .* categories of .* lowest is -1"):
        read_mmdet_pickle(path, CATEGORIES)
    path = dump(tmp_path / "x.pkl", with_labels(0, 2, 1))
    with pytest.raises(ValueError, match="labels of the 2 classes .* highest is 2"):
        read_mmdet_pickle(path, CATEGORIES, classes=("cat", "dog"))


def changed(**values):
    content = sample(masks=True)
    content["pred_instances"].update(values)
    return [sample(), content]


@pytest.mark.parametrize(
    ("content", "iou_type", "message"),
    [
        ([[np.zeros((2, 5), np.float32)] * 3] * 2, "bbox", "in the format of MMDetection 2, which"),
        ([([np.zeros((2, 5))] * 3, [[rle(0)]] * 3)], "segm", "in the format of MMDetection 2"),
        ([np.zeros((2, 5))], "bbox", "in the format of MMDetection 2"),
        ({"a": 1}, "bbox", "must hold a list of predictions, .* but holds dict"),
        ([1], "bbox", "image 0 must be a dict, got int"),
        ([{"img_id": 1}], "bbox", "image 0 has no 'pred_instances', only img_id"),
        ([{"pred_instances": sample()["pred_instances"]}], "bbox", "image 0 has no 'img_id'"),
        ([sample(1.5)], "bbox", "'img_id' must be a whole number or a text, got 1.5"),
        ([sample(None)], "bbox", "'img_id' must be a whole number or a text, got None"),
        ([{"img_id": 1, "pred_instances": {}}], "bbox", "image 0 has no 'bboxes'"),
        (changed(scores=torch.rand(2)), "bbox", r"image 1: .* got \(3, 4\), \(2,\) and \(3,\)"),
        (changed(bboxes=torch.rand(3, 5)), "bbox", r"image 1: .* got \(3, 5\), \(3,\) and \(3,\)"),
        (changed(labels=torch.rand(3)), "bbox", "'labels' must be whole numbers, got float32"),
        (changed(labels=[0, 1, 2]), "bbox", "'labels' must be a tensor or an array, got list"),
        ([sample()], "segm", "image 0 has no 'masks', which 'segm' needs"),
        (changed(masks=torch.zeros(3, 2, 2)), "segm", "image 0 has no 'masks'"),
        (changed(masks=torch.zeros(3, 2, 2))[1:], "segm", "must be RLE, as .* got pixels"),
        (changed(masks=[rle(0)])[1:], "segm", "image 0 has 3 labels but 1 masks"),
        (changed(masks=[{"size": [1, 1]}] * 3)[1:], "segm", "must be RLE .size and counts."),
    ],
)
def test_other_contents(tmp_path, content, iou_type, message):
    with pytest.raises(ValueError, match=message) as error:
        read_mmdet_pickle(dump(tmp_path / "x.pkl", content), CATEGORIES, iou_type)
    assert str(error.value).startswith(f"results '{tmp_path / 'x.pkl'}'")


def test_files_that_are_not_whole_pickles(tmp_path):
    path = tmp_path / "x.pkl"
    with pytest.raises(FileNotFoundError, match=r"results '.*x\.pkl' does not exist"):
        read_mmdet_pickle(path, CATEGORIES)
    with pytest.raises(ValueError, match="is a folder"):
        read_mmdet_pickle(tmp_path, CATEGORIES)
    torch.save([sample()], path)
    for content, message in (
        (b"", "is not a pickle: it is empty"),
        (b'[{"image_id": 1}]', "is not a pickle: it starts with"),
        (path.read_bytes(), "is not a pickle: it starts with b'PK"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_mmdet_pickle(path, CATEGORIES)
    whole = pickle.dumps([sample(masks=True)], protocol=2)
    for end in range(2, len(whole), len(whole) // 50):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="is damaged or incomplete"):
            read_mmdet_pickle(path, CATEGORIES)


# Payloads that leave a mark, in every place where a pickle can name a function


class Payload:
    def __init__(self, call, *args):
        self.reduced = (call, args)

    def __reduce__(self):
        return self.reduced


def tensors_with(payload):
    """A tensor's bytes as torch writes them, the payload in place of each of the five pickles."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, "<f4", ["0"]]
    for i in range(len(parts)):
        stream = io.BytesIO()
        for k, part in enumerate(parts):
            pickle.dump(payload if k == i else part, stream, protocol=2)
        stream.write(bytes(8))
        yield Payload(torch.storage._load_from_bytes, stream.getvalue())


def places(payload):
    """Predictions with a payload in each place."""
    yield [payload]
    yield [{**sample(), "img_id": payload}]
    for tensor in tensors_with(payload):
        yield [{"img_id": 1, "pred_instances": {**sample()["pred_instances"], "bboxes": tensor}}]


def opcodes(path):
    """``os.mkdir(path)`` in each of the ways that pickle has to say it."""
    text = f"S{path!r}\n".encode()
    yield b"cposix\nmkdir\n(" + text + b"tR."
    yield b"\x80\x02(" + text + b"iposix\nmkdir\n."  # INST
    yield b"\x80\x02(cposix\nmkdir\n" + text + b"o."  # OBJ
    yield b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93(" + text + b"tR."  # STACK_GLOBAL


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {mark}"),
        (eval, "open({mark!r}, 'w')"),
        (exec, "open({mark!r}, 'w')"),
        (getattr, "text", "upper"),
        (subprocess.Popen, ["touch"]),
        (np.load, "{mark}"),
        (torch.load, "{mark}"),
        (bytes, 3),
        (np.array, [1]),
        (torch.Tensor, 3),
    ],
    ids=lambda call: call[0].__name__,
)
def test_what_is_not_on_the_list_is_refused_by_name(tmp_path, call):
    mark = str(tmp_path / "mark")
    call, *arguments = (x.format(mark=mark) if isinstance(x, str) else x for x in call)
    for content in places(Payload(call, *arguments)):
        for protocol in (2, 4):
            path = dump(tmp_path / "x.pkl", content, protocol)
            with pytest.raises(ValueError, match=r"could run code, so it is not read") as error:
                read_mmdet_pickle(path, CATEGORIES)
            refused = str(error.value).split(" holds ")[1].split(",")[0]
            # bytes() is how protocol 2 writes b"", and told apart by its arguments
            assert refused.split(".")[-1].replace("a call of ", "") == call.__name__
    assert not os.path.exists(mark)


def test_no_code_of_a_file_is_run(tmp_path, monkeypatch):
    """Each of these files leaves a mark when pickle reads it, and none when we do."""
    # a training in this process has asked torch.load for it: the files would be harmless
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    mark = tmp_path / "mark"
    files = [pickle.dumps(x, protocol=2) for x in places(Payload(os.mkdir, str(mark)))]
    files += opcodes(str(mark))
    assert len(files) == 11
    for content in files:
        with contextlib.suppress(Exception):  # some fail once the payload has run
            pickle.loads(content)
        assert mark.exists()
        mark.rmdir()
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=r"holds (posix|nt)\.mkdir, which"):
            read_mmdet_pickle(tmp_path / "x.pkl", CATEGORIES)
        assert not mark.exists()


@pytest.mark.parametrize("module", ["torch", "numpy", "collections", "torch._utils"])
def test_attributes_of_what_is_on_the_list_are_refused(tmp_path, module):
    for name in ("Size.__new__", "os.system", "FloatStorage", "OrderedDict.fromkeys", "sys"):
        names = b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, name))
        (tmp_path / "x.pkl").write_bytes(b"\x80\x04" + names + b"\x93.")
        with pytest.raises(ValueError, match=f"holds {module}.{name}, which"):
            read_mmdet_pickle(tmp_path / "x.pkl", CATEGORIES)


def test_a_damaged_file_is_one_error(tmp_path):
    path = tmp_path / "x.pkl"
    whole = pickle.dumps([sample(masks=True)], protocol=2)
    random, errors = np.random.default_rng(0), []
    for _ in range(200):
        content = bytearray(whole)
        for place in random.integers(2, len(whole), 3):
            content[place] = random.integers(256)
        path.write_bytes(bytes(content))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_mmdet_pickle(path, CATEGORIES)
        except ValueError as error:
            errors.append(str(error))
    assert 50 < len(errors) < 200
    assert all(x.startswith(f"results '{path}'") for x in errors)


def test_objects_are_named_that_are_not_read(tmp_path):
    class_of = np.array([object()], dtype=object)
    for content, message in (
        ([{"img_id": 1, "x": np.array(["a"])}], "holds a numpy array of 'U1'"),
        ([{"img_id": 1, "x": torch.zeros(1, dtype=torch.bfloat16)}], r"torch\.BFloat16Storage"),
        ([{"img_id": 1, "x": np.array([None])}], "holds a numpy array of 'O8'"),
        ([{"img_id": 1, "x": class_of.dtype}], "holds a numpy array of 'O8'"),
        ([{"img_id": 1, "x": torch.nn.Parameter(torch.zeros(1))}], "_rebuild_parameter"),
        ([Payload(codecs.encode, "a", "rot13")], "_codecs.encode to 'rot13'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_mmdet_pickle(dump(tmp_path / "x.pkl", content), CATEGORIES)


def test_a_storage_of_anything_but_numbers_is_refused(tmp_path):
    for kind in ("<M8[s]", "<U1", "O"):
        content = list(places(kind))[2 + 3][0]  # where the storage's type is
        with pytest.raises(ValueError, match="is damaged or incomplete .a tensor's storage"):
            read_mmdet_pickle(dump(tmp_path / "x.pkl", [content]), CATEGORIES)


def test_views_beyond_their_storage_are_refused(tmp_path):
    class View:
        def __init__(self, *args):
            self.args = args

        def __reduce__(self):
            storage = torch.arange(8.0)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (storage, *self.args, False, {})

    for offset, size, stride in (
        (0, (3, 4), (4, 1)),
        (1, (2, 4), (4, 1)),
        (-1, (1, 4), (4, 1)),
        (0, (2, 4), (-4, 1)),
        (0, (2, 4), (1 << 62, 1)),
        (0, (-2, 4), (4, 1)),
    ):
        content = sample(number=2)
        content["pred_instances"]["bboxes"] = View(offset, size, stride)
        with pytest.raises(ValueError, match="is damaged or incomplete"):
            read_mmdet_pickle(dump(tmp_path / "x.pkl", [content]), CATEGORIES)
    content["pred_instances"]["bboxes"] = View(0, (2, 4), (4, 1))
    content["pred_instances"]["labels"] = torch.tensor([0, 2])
    found = read_mmdet_pickle(dump(tmp_path / "x.pkl", [content]), CATEGORIES)
    np.testing.assert_array_equal(found.boxes, [[0, 1, 2, 2], [4, 5, 2, 2]])


def test_reading_needs_no_torch(tmp_path):
    path = dump(tmp_path / "x.pkl", [sample(number=30)])
    code = (
        "import sys; from mmattn.evaluation.mmdet_pickle import read_mmdet_pickle; "
        f"print(len(read_mmdet_pickle({str(path)!r}, {CATEGORIES}).scores)); "
        "print([x for x in sys.modules if x.split('.')[0] in ('torch', 'mmdet', 'mmengine')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "30\n[]\n"
