"""tools/visualize.py as a user runs it, and the folder that it leaves."""

import base64
import importlib.util
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mmattn
from mmattn.inspection import attention_option, config_file
from mmattn.inspection.build import build_model
from mmattn.visualization import attention_modules, collect, gallery, style
from mmattn.visualization.loading import load_model

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("visualize_tool", ROOT / "tools/visualize.py")
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

SMALL = {"model.backbone.base_channels": 4, "model.neck.in_channels": [16, 32, 64, 128]}
KINDS = {
    "sge": ("sge:groups=4@c4-c5", {"mask", "feature norm"}),
    "se": ("se:ratio=4@c5", {"channel gate", "feature norm"}),
    "gc": ("gc:ratio=4@c5", {"context mask", "feature norm"}),
    "nl": ("nonlocal:ratio=4@c5", {"attention", "feature norm"}),
    "cbam": ("cbam:ratio=4@c5", {"channel gate", "spatial gate", "feature norm"}),
    "drconv": (
        {
            "model.backbone.dcn": dict(type="mmattn.DRConv2d", regions=4),
            "model.backbone.stage_with_dcn": (False, False, False, True),
        },
        {"regions"},
    ),
}


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """What is drawn here is looked at in the tests of the figures."""
    monkeypatch.setattr(style, "DPI", 50)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Config, checkpoint and two images, by the name of a module."""
    folder = tmp_path_factory.mktemp("visualize")
    generator = np.random.default_rng(0)
    for name, size in (("tall", (120, 70)), ("wide", (60, 130))):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{name}.png"), pixels)

    def make(name, wish=None):
        config, checkpoint = folder / f"{name}.py", folder / f"{name}.pth"
        if not config.exists():
            options = SMALL | (wish if isinstance(wish, dict) else {})
            cfg = config_file.load("mmattn::demo/faster-rcnn_r50w16_fpn_600it_shapes.py", options)
            if isinstance(wish, str):
                attention_option.apply(cfg, wish)
            torch.manual_seed(0)
            model = build_model(cfg)
            with torch.no_grad():
                for module in attention_modules(model).values():
                    for parameter in module.parameters():
                        parameter += 0.3 * torch.randn(parameter.shape)
            cfg.dump(config)
            torch.save(dict(state_dict=model.state_dict(), meta={}), checkpoint)
        return str(config), str(checkpoint)

    return folder, make


def page_data(folder):
    text = (folder / "index.html").read_text("utf-8")
    assert not re.search(r"https?://", text)  # nothing from elsewhere
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found[1]), text


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_module_has_its_pictures(trained, tmp_path, capsys, name):
    folder, make = trained
    wish, tabs = KINDS[name]
    config, checkpoint = make(name, wish)
    out = tmp_path / "out"
    names = ["tall", "wide"] if name == "sge" else ["tall"]
    images = [str(folder / f"{one}.png") for one in names]
    last = r".*layer4\.2.*"
    score = "0.35" if name == "sge" else "0.9"  # many boxes take long to draw
    tool.main([config, checkpoint, *images, "--out", str(out), "--layers", last,
               "--score", score, "--format", "svg"])  # fmt: skip
    data, text = page_data(out)
    assert [image["name"] for image in data["images"]] == names
    for image in data["images"]:
        [layer] = image["layers"]
        assert {picture["tab"] for picture in layer["pictures"]} == tabs
        assert "c5, block 3" in layer["title"]
        for picture in (*layer["pictures"], *image["whole"]):
            webp = base64.b64decode(picture["source"].partition(",")[2])
            with Image.open(io.BytesIO(webp)) as drawn:
                assert drawn.size == (picture["width"], picture["height"])
                assert np.asarray(drawn).std() > 5  # something is drawn
        assert image["whole"][0]["tab"] == "detections"
    svgs = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.svg"))
    assert len(svgs) >= len(names) * (len(tabs) + 1)
    assert not list(out.rglob("*.png"))
    # of one image there is no sheet
    assert any(p.startswith("contact-sheets/") for p in svgs) == (len(names) > 1)
    assert ("contact sheet of" in text) == (len(names) > 1)
    said = capsys.readouterr().out
    assert "| small" in said
    assert str(out / "index.html") in said
    if name == "nl":
        assert "cosine distance" in said


def test_the_numbers_are_those_of_collect(trained, tmp_path):
    folder, make = trained
    config, checkpoint = make("sge", KINDS["sge"][0])
    out = tmp_path / "out"
    image = folder / "tall.png"
    arguments = [config, checkpoint, str(image), "--format", "png", "--out", str(out)]
    tool.main([*arguments, "--layers", "layer4.2.sge", "--groups", "3", "0", "--score", "0.05"])
    content = json.loads((out / "summary.json").read_text())
    model = load_model(config, checkpoint)
    [expected] = collect(model, [image], neutral=True, layers="layer4.2.sge")
    [found] = content["images"]
    assert (found["width"], found["height"]) == (70, 120)
    assert [d["score"] for d in found["detections"]] == pytest.approx(
        expected.detections.scores.tolist(), abs=1e-4
    )
    assert [d["score"] for d in found["neutral"]] == pytest.approx(
        expected.neutral.scores.tolist(), abs=1e-4
    )
    [layer] = found["layers"]
    assert layer["name"] == "backbone.layer4.2.sge"
    assert layer["maps"][0]["groups"] == [3, 0]
    [again] = collect(model, [image], layers="layer4.2.sge", groups=[3, 0])
    assert layer["maps"][0]["max"] == pytest.approx(float(again.layers[0].maps[0].values.max()))
    whole = sum(row["with"] for row in content["detections by size"] if row["size"] != "all")
    assert content["detections by size"][0]["with"] <= whole
    # the table of the page says the same
    cells = re.findall(r"<td>all</td>(.*?)</tr>", page_data(out)[1], re.DOTALL)
    shown = re.findall(r"<td>(.*?)</td>", cells[0])
    row = content["detections by size"][0]
    assert shown[1:3] == [str(row["with"]), str(row["without"])]
    assert float(shown[6].replace("\N{MINUS SIGN}", "-")) == pytest.approx(
        row["score change"], abs=6e-4
    )
    assert (out / "images/tall/backbone.layer4.2.sge/mask.png").is_file()
    # once more into the same folder, another layer and one image more: nothing of the first is
    # left, and one of the two is drawn by itself
    tool.main([*arguments, str(folder / "wide.png"), "--detail", "1", "--layers", "layer4.1.sge"])
    assert [p.name for p in (out / "images").iterdir()] == ["tall"]
    data, text = page_data(out)
    assert len(data["images"]) == 1
    assert "1 of 2 images" in text
    assert len(json.loads((out / "summary.json").read_text())["images"]) == 2
    assert (out / "contact-sheets/backbone.layer4.1.sge.png").is_file()
    assert not (out / "images/tall/backbone.layer4.2.sge").exists()
    assert (out / "images/tall/backbone.layer4.1.sge/mask.png").is_file()


def test_annotated_objects_are_counted_by_size(trained, tmp_path, capsys):
    folder, make = trained
    config, checkpoint = make("sge", KINDS["sge"][0])
    annotations = tmp_path / "truth.json"
    boxes = [[5, 5, 20, 20], [10, 40, 50, 60], [0, 0, 70, 120]]
    content = dict(
        images=[dict(id=1, file_name="some/tall.png", width=70, height=120)],
        categories=[dict(id=k, name=n) for k, n in enumerate(("circle", "square", "triangle"))],
        annotations=[
            dict(id=i + 1, image_id=1, category_id=0, bbox=b, area=b[2] * b[3], iscrowd=0)
            for i, b in enumerate(boxes)
        ],
    )
    annotations.write_text(json.dumps(content))
    out = tmp_path / "out"
    arguments = [config, checkpoint, str(folder / "tall.png"), "--out", str(out)]
    arguments += ["--annotations", str(annotations), "--layers", "layer4.2.sge", "--format", "png"]
    tool.main(arguments)
    rows = json.loads((out / "summary.json").read_text())["detections by size"]
    assert [row["objects"] for row in rows] == [3, 1, 2, 0]
    assert "objects" in capsys.readouterr().out
    # of one name in two folders: the one whose folder is that of the file, too
    content["images"] += [dict(content["images"][0], id=2, file_name=f"{folder.name}/tall.png")]
    annotations.write_text(json.dumps(content))
    [one] = collect(load_model(config, checkpoint), [folder / "tall.png"], layers=[])
    truth = gallery.objects_of([one], str(annotations))
    assert len(truth["tall"].boxes) == 0
    content["images"][1]["file_name"] = "elsewhere/tall.png"
    annotations.write_text(json.dumps(content))
    assert "has no image named" in failure(capsys, *arguments)
    del content["images"][1]
    content["images"][0]["file_name"] = "other.png"
    annotations.write_text(json.dumps(content))
    assert "has no image named tall.png, nor the others" in failure(capsys, *arguments)
    content["categories"] = [dict(id=k, name=f"{k}") for k in range(3)]
    annotations.write_text(json.dumps(content))
    assert "expected annotations of the model's classes" in failure(capsys, *arguments)


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        tool.main([str(one) for one in arguments])
    assert error.value.code in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any(line.startswith("Traceback") for line in lines)
    return lines[-1]


def test_what_is_wrong_is_one_sentence(trained, tmp_path, capsys):
    folder, make = trained
    sge = make("sge", KINDS["sge"][0])
    plain = make("plain")
    image, out = folder / "tall.png", tmp_path / "out"
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert "no inserted module" in failure(capsys, *plain, image, "--out", out)
    said = failure(capsys, *sge, image, "--out", out, "--layers", "layer4.2.sg")
    assert "'layer4.2.sg' is none of the 9 inserted; did you mean backbone.layer4.2.sge" in said
    assert f"image {broken} cannot be read" in failure(capsys, *sge, broken, "--out", out)
    said = failure(capsys, *sge, image, tmp_path / "no.png", "--out", out)
    assert "no.png does not exist" in said
    said = failure(capsys, sge[0], plain[1], image, "--out", out)
    assert "does not fit the model: it lacks" in said
    assert "no.pth" in failure(capsys, sge[0], tmp_path / "no.pth", image, "--out", out)
    said = failure(capsys, *sge, image, "--out", out, "--queries", "3")
    assert "expected X,Y in px" in said
    said = failure(capsys, *sge, image, "--out", out, "--sheet", "layer9")
    assert "'layer9' is none of the 9" in said
    said = failure(capsys, *sge, image, "--out", out, "--device", "gpu")
    assert "expected to be cpu, cuda or cuda:N, got gpu" in said
    said = failure(capsys, *sge, image, "--out", out, "--cam-boxes", "0")
    assert "go with --grad-cam" in said
    said = failure(capsys, *sge, image, "--out", out, "--detail", "0")
    assert "expected an integer above 0, got '0'" in said
    said = failure(capsys, *sge, image, "--out", out, "--annotations", tmp_path / "no.json")
    assert "no.json" in said
    assert "from 0 to 1" in failure(capsys, *sge, image, "--out", out, "--score", "3")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    said = failure(capsys, *sge, image, "--out", tmp_path / "mine")
    assert "would be lost" in said
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    for inside in ("mine/thesis.tex", "mine/thesis.tex/out"):
        said = failure(capsys, *sge, image, "--out", tmp_path / inside)
        assert "thesis.tex is a file" in said
    assert not out.exists()


def test_images_whose_names_make_one_file_name_are_kept_apart(trained):
    one = collect(torch.nn.Sequential(mmattn.SE(3, ratio=1)), torch.rand(1, 3, 8, 8))[0]
    names = ["a b", "a-b", "A B", "a b (2)", "é" * 250, "é" * 251, "..", "/"]
    found = gallery.with_unique_names([replace(one, name=name) for name in names])
    assert [image.name for image in found][:2] == ["a b", "a-b (2)"]
    files = [gallery._file(image.name) for image in found]
    assert len({name.casefold() for name in files}) == len(names)
    assert all(0 < len(name.encode()) < 255 and name.strip(".") for name in files)


def test_what_is_no_number_is_null(trained, tmp_path):
    folder, make = trained
    model = load_model(*make("sge", KINDS["sge"][0]))
    [one] = collect(model, [folder / "tall.png"], layers=[])
    one.detections.boxes[0, 2] = np.inf
    one.detections.scores[1:] = np.nan
    numbers = gallery.Gallery([one]).numbers()
    [image] = json.loads(json.dumps(numbers, allow_nan=False))["images"]
    assert image["detections"][0]["box"][2] is None
    assert image["detections"][1]["score"] is None


def test_a_folder_is_written_whole_or_not_at_all(trained, tmp_path, monkeypatch, capsys):
    folder, make = trained
    out = tmp_path / "out"
    arguments = [*make("sge", KINDS["sge"][0]), str(folder / "tall.png"), "--out", str(out)]
    arguments += ["--layers", "layer4.2.sge", "--format", "png", "--score", "0.9"]
    tool.main(arguments)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}

    def fails(*_):
        raise RuntimeError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(gallery.page, "render", fails)
        with pytest.raises(RuntimeError, match="disk full"):
            tool.main(arguments)
    rename = Path.rename

    def no_place(path, target):
        if path.name.endswith(".partial"):
            raise OSError("No space left on device")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", no_place)
        assert "No space left on device" in failure(capsys, *arguments)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    link = tmp_path / "link"  # leads to the pictures before and after
    link.symlink_to(out)
    [one] = collect(load_model(*arguments[:2]), [folder / "tall.png"], layers=[])
    gallery.write(gallery.Gallery([one]), link, title="", conditions={}, formats=())
    assert link.is_symlink()
    assert sorted(p.name for p in out.iterdir()) == ["images", "index.html", "summary.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "out"]


def test_activation_maps_of_a_plain_model(trained, tmp_path, capsys):
    pytest.importorskip("pytorch_grad_cam")
    folder, make = trained
    out = tmp_path / "out"
    tool.main([*make("plain"), str(folder / "tall.png"), "--out", str(out), "--score", "0.05",
               "--grad-cam", "backbone.layer3", "backbone.layer4", "--cam-boxes", "0",
               "--format", "png"])  # fmt: skip
    [image] = page_data(out)[0]["images"]
    assert [one["tab"].partition(":")[0] for one in image["whole"]] == ["detections", "hirescam"]
    assert image["layers"] == []
    assert "effect" not in capsys.readouterr().out  # there is no module whose it could be
    said = failure(capsys, *make("plain"), folder / "tall.png", "--out", out, "--score", "1",
                   "--grad-cam", "backbone.layer4")  # fmt: skip
    assert "no image has such a detection" in said
