"""Pictures of differing images: colours and lines at their places, files, odd names and sizes."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmattn.evaluation import drawing
from mmattn.evaluation.data import load_detections, load_ground_truth
from mmattn.evaluation.differences import differing_images
from mmattn.evaluation.drawing import STYLES, check_images_dir, draw, draw_all
from mmattn.evaluation.overlaps import overlaps

BIG, OTHER, NOTHING, TINY = (
    (40, 60, 120, 100),
    (220, 150, 100, 90),
    (220, 20, 80, 70),
    (350, 250, 12, 12),
)
FOUND, MISSED, FALSE = (STYLES[kind].colour for kind in ("found", "missed", "false"))


class Scene:
    """One image, with objects and detections of (class, box[, score]), and its drawing."""

    def __init__(self, objects, old, new, size=(400, 300), names=("cat", "dog"), iou_type="bbox"):
        width, height = size or (None, None)
        self.truth = {
            "images": [{"id": 7, "file_name": "seven.png", "width": width, "height": height}],
            "categories": [{"id": k, "name": name} for k, name in enumerate(names, 1)],
            "annotations": [
                {
                    "id": k,
                    "image_id": 7,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "segmentation": [polygon(*box)],
                }
                for k, (category, box) in enumerate(objects, 1)
            ],
        }
        self.ground_truth = load_ground_truth(self.truth, iou_type)
        self.detections = [self._load(x) for x in (old, new)]
        runs = [
            (name, x, overlaps(self.ground_truth, x))
            for name, x in zip(("old", "new"), self.detections, strict=True)
        ]
        self.images = differing_images(self.ground_truth, *runs)

    def _load(self, detections):
        rows = []
        for category, box, score in detections:
            row = {"image_id": 7, "category_id": category, "score": score, "bbox": list(box)}
            if self.ground_truth.iou_type == "segm":
                of_box = {tuple(x["bbox"]): k for k, x in enumerate(self.truth["annotations"])}
                row["segmentation"] = self.ground_truth.masks[of_box[tuple(box)]]
                del row["bbox"]
            rows.append(row)
        return load_detections(rows, self.ground_truth)

    def draw(self, images_dir=None, format="png", **options):
        (image,) = self.images
        return Drawn(
            draw(image, self.ground_truth, *self.detections, images_dir, format=format, **options)
        )

    def draw_all(self, images_dir=None, **options):
        return draw_all(self.images, self.ground_truth, *self.detections, images_dir, **options)


class Drawn:
    """A picture's pixels, by the coordinates of the image in a panel."""

    def __init__(self, picture):
        self.picture, self.caption, self.panels = picture, picture.caption, picture.panels
        self.pixels = np.array(Image.open(io.BytesIO(picture.image)).convert("RGB"))
        self.height, self.width = self.pixels.shape[:2]

    def at(self, panel, x, y, size=(400, 300)):
        left, top, width, height = self.panels[panel]
        return self.pixels[round(top + y * height / size[1]), round(left + x * width / size[0])]

    def panel(self, k):
        left, top, width, height = self.panels[k]
        return self.pixels[top : top + height, left : left + width]

    def below(self, k):
        left, top, width, height = self.panels[k]
        return self.pixels[top + height + 4 : -44, left : left + width]

    def bottom_edge(self, panel, box, size=(400, 300)):
        """Pixels along the box's lower edge."""
        x, y, w, h = box
        return np.array(
            [self.at(panel, u, y + h, size) for u in np.linspace(x + 2, x + w - 2, 200)]
        )


def polygon(x, y, w, h):
    """The lower left triangle of a box."""
    return [x, y, x + w, y + h, x, y + h]


def is_colour(pixels, colour):
    return (np.asarray(pixels) == colour).all(-1)


def simple(**options):
    # old finds OTHER, new finds BIG and OTHER and imagines something
    old = [(2, OTHER, 0.9)]
    new = [(1, BIG, 0.8), (2, OTHER, 0.9), (1, NOTHING, 0.85)]
    return Scene([(1, BIG), (2, OTHER), (1, (0, 200, 50, 60))], *(old, new), **options)


def better(**options):
    new = [(1, BIG, 0.8), (2, OTHER, 0.9), (1, TINY, 0.7), (1, NOTHING, 0.75)]
    return Scene([(1, BIG), (2, OTHER), (1, TINY)], [(2, OTHER, 0.9)], new, **options)


# --- what is where -------------------------------------------------------------------------


def test_found_is_solid_and_missed_is_dashed_at_the_box_of_the_object():
    drawn = better().draw()
    missed, found = (
        is_colour(drawn.bottom_edge(0, BIG), MISSED),
        is_colour(drawn.bottom_edge(1, BIG), FOUND),
    )
    assert found.all()
    assert 0.5 < missed.mean() < 0.8  # 12 of 19 px
    assert not is_colour(drawn.panel(0), FOUND).any()
    assert not is_colour(drawn.panel(1), MISSED).any()
    for panel in (0, 1):  # nothing in the middle of the box
        assert tuple(drawn.at(panel, 100, 110)) == drawing.GREY


def test_false_alarm_is_dotted_in_its_run_only():
    drawn = better().draw()
    dotted = is_colour(drawn.bottom_edge(1, NOTHING), FALSE)
    assert 0.25 < dotted.mean() < 0.65  # 3 of 7 px
    assert not is_colour(drawn.panel(0), FALSE).any()


def test_what_both_runs_did_is_pale():
    drawn = better().draw()
    for panel in (0, 1):
        edge = drawn.bottom_edge(panel, OTHER)
        assert (edge > 230).all()  # white, through which the grey shows a little
        assert not is_colour(edge, (255, 255, 255)).any()


def test_baseline_found_more():
    scene = Scene([(1, BIG), (2, OTHER)], [(1, BIG, 0.9), (2, OTHER, 0.9)], [(2, OTHER, 0.9)])
    drawn = scene.draw()
    assert is_colour(drawn.bottom_edge(0, BIG), FOUND).all()
    assert 0.5 < is_colour(drawn.bottom_edge(1, BIG), MISSED).mean() < 0.8
    assert "the candidate is worse by 1" in drawn.caption
    assert "Found by old only: cat 0.90." in drawn.caption


def test_styles_differ_without_colour():
    assert len({style.dash for style in STYLES.values()}) == 3
    # and in brightness, for those who see no colours
    luminance = sorted(np.dot(style.colour, (0.299, 0.587, 0.114)) for style in STYLES.values())
    assert min(np.diff(luminance)) > 25


def test_box_on_the_edge_of_the_image_is_seen_whole():
    everything = (0, 0, 400, 300)
    drawn = Scene([(1, everything)], [], [(1, everything, 0.9)]).draw()
    blue = is_colour(drawn.panel(1), FOUND)
    for side in (blue[:5], blue[-5:], blue[:, :5].T, blue[:, -5:].T):
        assert (side.sum(0) >= 3).mean() > 0.98  # a line of 3 px


def test_box_beyond_the_image_is_cut_at_its_edge():
    box = (-50, -40, 150, 120)
    drawn = Scene([(1, box)], [], [(1, box, 0.9)]).draw()
    blue = is_colour(drawn.panel(1), FOUND)
    assert blue[:5, 50:100].any(0).all()
    assert is_colour([drawn.at(1, u, 80) for u in range(10, 90)], FOUND).all()


def test_mask_is_drawn_not_its_box(tmp_path):
    scene = Scene(
        [(1, BIG), (2, OTHER)], [(2, OTHER, 0.9)], [(1, BIG, 0.8), (2, OTHER, 0.9)], iou_type="segm"
    )
    drawn = scene.draw()
    x, y, w, h = BIG
    inside, outside = (x + 0.3 * w, y + 0.7 * h), (x + 0.7 * w, y + 0.3 * h)
    for panel, colour in ((0, MISSED), (1, FOUND)):
        fill = drawn.at(panel, *inside).astype(int)
        expected = 0.235 * np.array(colour) + 0.765 * np.array(drawing.GREY)
        np.testing.assert_allclose(fill, expected, atol=3)
        assert tuple(drawn.at(panel, *outside)) == drawing.GREY
        # the right edge of the box is no outline, its left edge is
        rows = np.linspace(y + 10, y + 0.6 * h, 30)
        assert not any(tuple(drawn.at(panel, x + w, v)) == colour for v in rows)
        left, top, width, height = drawn.panels[panel]
        at = round(left + x * width / 400)
        strip = drawn.pixels[
            round(top + 70 * height / 300) : round(top + 150 * height / 300), at - 5 : at + 2
        ]
        outlined = is_colour(strip, colour).any(1).mean()
        assert outlined > 0.95 if panel else 0.4 < outlined < 0.85
    # what both found has no fill
    x, y, w, h = OTHER
    assert tuple(drawn.at(1, x + 0.3 * w, y + 0.7 * h)) == drawing.GREY


# --- labels and enlargements -----------------------------------------------------------------


@pytest.fixture
def written(monkeypatch):
    """Every label (pen, its box, text), thick box (pen, box) and heading that is drawn."""
    texts, boxes, headings = [], [], []
    text, rectangle = ImageDraw.ImageDraw.text, drawing._rectangle

    def spy_text(self, xy, words, *args, **kwargs):
        if kwargs.get("anchor") == "lm":
            width = kwargs["font"].getlength(words)
            texts.append((self, (xy[0] - 4, xy[1] - 10, xy[0] + width + 4, xy[1] + 10), words))
        else:
            headings.append(words)
        return text(self, xy, words, *args, **kwargs)

    def spy_rectangle(pen, box, style, pale=False):
        if not pale:
            boxes.append((pen, box))
        return rectangle(pen, box, style, pale)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy_text)
    monkeypatch.setattr(drawing, "_rectangle", spy_rectangle)
    return texts, boxes, headings


def covers(a, b):
    return min(a[2], b[2]) > max(a[0], b[0]) + 1 and min(a[3], b[3]) > max(a[1], b[1]) + 1


def crowded(number=40, seed=0):
    rng = np.random.default_rng(seed)
    boxes = [
        tuple(map(float, (*rng.uniform(0, (330, 230)), *rng.uniform(5, 70, 2))))
        for _ in range(number)
    ]
    objects = [(1, box) for box in boxes]
    return Scene(objects, [], [(1, box, 0.9) for box in boxes])


def test_labels_cover_neither_each_other_nor_small_boxes(written):
    crowded().draw()
    texts, boxes, _ = written
    labels = [x for x in texts if re.fullmatch(r"cat 0\.90|missed: cat", x[2])]
    assert len(labels) > 30
    for k, (pen, place, _) in enumerate(labels):
        width, height = pen.im.size
        assert place[0] >= 0
        assert place[1] >= 0
        assert place[2] <= width + 1
        assert place[3] <= height
        for other, second, _ in labels[:k]:
            assert pen is not other or not covers(place, second)
        for other, box in boxes:
            if pen is other and (box[2] - box[0]) * (box[3] - box[1]) < 60**2:
                assert not covers(place, box)


def test_labels_without_room_are_counted():
    drawn = crowded(120).draw()
    assert re.search(r"\d+ labels had no room", drawn.caption)


def test_headings_count(written):
    objects = [(1, BIG), (2, OTHER), (1, TINY), (1, (0, 200, 50, 60))]
    new = [(1, BIG, 0.8), (2, OTHER, 0.9), (1, TINY, 0.7), (1, NOTHING, 0.85)]
    Scene(objects, [(2, OTHER, 0.9)], new).draw()
    assert [x for x in written[2] if len(x) > 1] == [
        "seven.png: candidate better by 1 (found minus false alarms)",
        "baseline: old",
        "found 1   missed 3 (2 only here)   false alarms 0",
        "candidate: new",
        "found 3 (2 only here)   missed 1   false alarms 1 (1 only here)",
    ]


def test_labels_say_class_and_score(written):
    better().draw()
    texts = [words for _, _, words in written[0]]
    assert {"missed: cat", "cat 0.80", "false: cat 0.75", "cat 0.70"} <= set(texts)
    assert not any("dog" in words for words in texts)  # the same in both


def picture_file(folder, size=(400, 300), name="seven.png", **options):
    """A photo of four colours, with a magenta spot at TINY."""
    photo = Image.new("RGB", size, (40, 40, 120))
    pen = ImageDraw.Draw(photo)
    pen.rectangle((size[0] // 2, 0, size[0], size[1] // 2), fill=(40, 120, 40))
    pen.rectangle((0, size[1] // 2, size[0] // 2, size[1]), fill=(120, 40, 40))
    pen.rectangle(
        (TINY[0], TINY[1], TINY[0] + TINY[2] - 1, TINY[1] + TINY[3] - 1), fill=(255, 0, 255)
    )
    photo.save(folder / name, **options)
    return photo


def test_small_object_that_differs_is_enlarged(tmp_path):
    picture_file(tmp_path)
    drawn = better().draw(tmp_path)
    for panel in (0, 1):
        spot = np.abs(drawn.panel(panel).astype(int) - (255, 0, 255)).sum(-1) < 60
        enlarged = np.abs(drawn.below(panel).astype(int) - (255, 0, 255)).sum(-1) < 60
        assert enlarged.sum() > 9 * max(spot.sum(), 50)
    assert is_colour(drawn.below(0), MISSED).any()
    assert is_colour(drawn.below(1), FOUND).any()


def test_frame_shows_where_the_enlargement_comes_from():
    drawn = better().draw()
    _left, _top, width, _height = drawn.panels[0]
    x, y, w, h = (v * width / 400 for v in TINY)
    white = is_colour(drawn.panel(0), (255, 255, 255))
    row, column = white[round(y + h / 2)], white[:, round(x + w / 2)]
    assert row[: round(x)].any()
    assert row[round(x + w) :].any()
    assert column[: round(y)].any()
    assert column[round(y + h) :].any()


def test_no_enlargement_where_no_small_object_differs():
    with_strip, without = better().draw(), Scene([(1, BIG)], [], [(1, BIG, 0.9)]).draw()
    assert without.height < with_strip.height - 200
    # a small object that both found is not enlarged
    both = Scene([(1, BIG), (1, TINY)], [(1, TINY, 0.9)], [(1, TINY, 0.9), (1, BIG, 0.9)]).draw()
    assert both.height == without.height
    # nor one that only the argument calls large
    assert better().draw(small=5).height == without.height


def test_no_enlargement_where_the_image_is_small_itself():
    small = (20, 10, 12, 12)
    drawn = Scene([(1, small)], [], [(1, small, 0.9)], size=(60, 45)).draw()
    assert drawn.height < drawn.panels[0][3] + 150


def test_two_enlargements_for_objects_far_apart(written):
    far = (10, 10, 12, 12)
    scene = Scene([(1, TINY), (1, far)], [], [(1, TINY, 0.9), (2, far, 0.8), (1, far, 0.7)])
    scene.draw()
    labels = [words for _, _, words in written[0]]
    # each is labelled once a run, in its enlargement
    assert labels.count("missed: cat") == 2
    assert labels.count("cat 0.90") == labels.count("cat 0.70") == 1


# --- files -----------------------------------------------------------------------------------


def assert_quadrants(drawn, size=(400, 300)):
    for panel in (0, 1):
        for (x, y), colour in {
            (0.05, 0.05): (40, 40, 120),
            (0.95, 0.05): (40, 120, 40),
            (0.03, 0.9): (120, 40, 40),
            (0.98, 0.98): (40, 40, 120),
        }.items():
            pixel = drawn.at(panel, x * size[0], y * size[1], size).astype(int)
            assert np.abs(pixel - colour).max() < 25, (panel, x, y, pixel)


def test_the_photo_is_under_the_boxes(tmp_path):
    picture_file(tmp_path)
    drawn = better().draw(tmp_path)
    assert_quadrants(drawn)
    assert is_colour(drawn.bottom_edge(1, BIG), FOUND).all()
    assert "without" not in drawn.caption


def test_no_folder():
    drawn = better().draw()
    assert tuple(drawn.at(0, 5, 5)) == drawing.GREY
    assert "no folder of images was given" in drawn.caption


def test_missing_file(tmp_path):
    drawn = better().draw(tmp_path)
    assert f"{tmp_path / 'seven.png'} does not exist" in drawn.caption
    assert tuple(drawn.at(0, 5, 5)) == drawing.GREY
    assert is_colour(drawn.bottom_edge(1, BIG), FOUND).all()


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_broken_file(tmp_path, keep):
    picture_file(tmp_path)
    file = tmp_path / "seven.png"
    file.write_bytes(file.read_bytes()[:keep] + b"nonsense" * keep)
    drawn = better().draw(tmp_path)
    assert f"{file} cannot be read" in drawn.caption
    assert tuple(drawn.at(0, 5, 5)) == drawing.GREY


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_file_that_is_too_large_to_open(tmp_path, monkeypatch):
    Image.new("L", (1300, 1200)).save(tmp_path / "seven.png")  # the picture itself is smaller
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 750_000)
    assert "cannot be read" in better().draw(tmp_path).caption


def test_no_file_found_at_all(tmp_path):
    with pytest.raises(
        ValueError, match=rf"No image file was found in {tmp_path}: .* seven\.png\."
    ):
        better().draw_all(tmp_path)
    with pytest.raises(ValueError, match="No image file was found"):
        better().draw_all(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="No image file was found"):
        check_images_dir(better().ground_truth, tmp_path)


def test_folder_that_lacks_only_these_images(tmp_path):
    scene = better()
    scene.ground_truth.file_names.append("eight.png")
    picture_file(tmp_path, name="eight.png")
    check_images_dir(scene.ground_truth, tmp_path)
    (image,) = scene.draw_all(tmp_path)
    assert "seven.png does not exist" in image.caption


def test_ground_truth_without_file_names(tmp_path):
    scene = better()
    del scene.truth["images"][0]["file_name"]
    scene.__init__([(1, BIG)], [], [(1, BIG, 0.9)])
    nameless = {**scene.truth, "images": [{"id": 7, "width": 400, "height": 300}]}
    ground_truth = load_ground_truth(nameless)
    run = (
        load_detections([], ground_truth),
        load_detections(
            [{"image_id": 7, "category_id": 1, "bbox": list(BIG), "score": 0.9}], ground_truth
        ),
    )
    pairs = [(name, x, overlaps(ground_truth, x)) for name, x in zip("ab", run, strict=True)]
    images = differing_images(ground_truth, *pairs)
    with pytest.raises(ValueError, match="names no image files"):
        draw_all(images, ground_truth, *run, tmp_path)
    picture = draw(images[0], ground_truth, *run, tmp_path)
    assert "does not name its file" in picture.caption
    assert picture.caption.startswith("Image 7: the candidate is better by 1")


def test_pictures_of_all(tmp_path):
    picture_file(tmp_path)
    (image,) = better().draw_all(str(tmp_path))
    assert image.picture_type == "image/jpeg"
    assert Image.open(io.BytesIO(image.picture)).format == "JPEG"
    assert "better by 1" in image.caption
    (image,) = better().draw_all(format="PNG")
    assert image.picture_type == "image/png"
    assert Image.open(io.BytesIO(image.picture)).format == "PNG"
    assert draw_all([], better().ground_truth, *better().detections, tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="format must be 'jpeg' or 'png'"):
        better().draw(format="gif")


@pytest.mark.parametrize(
    ("orientation", "stored", "annotated", "note"),
    [
        (1, (400, 300), (400, 300), None),
        (6, (300, 400), (400, 300), None),  # upright fits
        (6, (400, 300), (400, 300), "EXIF orientation is ignored"),  # only the stored size fits
        (3, (400, 300), (400, 300), None),  # both fit: upright
        (8, (400, 400), (400, 400), None),
    ],
)
def test_orientation(tmp_path, orientation, stored, annotated, note):
    upright = picture_file(tmp_path, annotated)
    turn = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    photo = upright if turn is None or note else upright.transpose(turn)
    assert photo.size == stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "seven.png", exif=exif)
    drawn = better(size=annotated).draw(tmp_path)
    assert_quadrants(drawn, annotated)
    if note:
        assert note in drawn.caption
    else:
        assert "EXIF" not in drawn.caption
        assert "scaled" not in drawn.caption


def test_orientation_is_read_as_mmdet_reads_it(tmp_path):
    cv2 = pytest.importorskip("cv2")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = picture_file(tmp_path, (300, 400), quality=95, name="turned.jpg", exif=exif)
    # LoadImageFromFile's default, color_type='color', is this flag
    assert cv2.imread(str(tmp_path / "turned.jpg"), cv2.IMREAD_COLOR).shape[:2] == photo.size


def test_file_of_another_size_is_scaled(tmp_path):
    picture_file(tmp_path, (800, 600))
    drawn = better().draw(tmp_path)
    left_half = drawn.at(0, 390, 5).astype(int)
    assert np.abs(left_half - (40, 120, 40)).max() < 25
    assert "The file is 800 x 600 px, the ground truth says 400 x 300" in drawn.caption


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA", "I;16", "F"])
def test_modes(tmp_path, mode):
    photo = Image.linear_gradient("L").resize((400, 300))
    if mode == "I;16":
        photo = Image.fromarray(np.asarray(photo).astype(np.uint16) * 16)
        assert photo.mode == mode
    else:
        photo = photo.convert("RGB").convert(mode) if mode != "F" else photo.convert(mode)
    photo.save(tmp_path / "seven.png", format="TIFF")
    drawn = better().draw(tmp_path)
    assert "cannot" not in drawn.caption
    assert drawn.at(0, 10, 290).mean() > drawn.at(0, 10, 5).mean() + 100


# --- names, sizes, numbers ---------------------------------------------------------------------


def test_class_names_that_the_font_lacks(written):
    names = ("人\u200b", "  a\nvery <b>long</b> name of a class that goes on ")
    scene = Scene([(1, BIG), (2, OTHER)], [], [(1, BIG, 0.8), (2, OTHER, 0.9)], names=names)
    drawn = scene.draw()
    texts = {words for _, _, words in written[0]}
    assert "class 1 0.80" in texts
    assert "missed: a very <b>long</b> na..." in texts
    assert "class 1 is 人" in drawn.caption


@pytest.mark.parametrize(
    "name", ["", "\n", "e\u0301l\u00e9phant", "\U0001f408", "قط", "x" * 500, "a\0b"]
)
def test_odd_names_everywhere(name):
    scene = better(names=(name, "dog"))
    for k, image in enumerate(scene.images):
        old = drawing.dataclasses.replace(image.baseline, name=name)
        scene.images[k] = drawing.dataclasses.replace(image, baseline=old, file_name=name or None)
    drawn = scene.draw("somewhere")
    assert drawn.width <= 1410
    assert drawn.caption.isprintable()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (20, 15)])
def test_sizes_of_images(tmp_path, size):
    box = (0, 0, *size)
    Image.new("RGB", size, (200, 30, 30)).save(tmp_path / "seven.png")
    drawn = Scene([(1, box)], [], [(1, box, 0.9)], size=size).draw(tmp_path)
    assert 500 < drawn.width <= 1410
    assert drawn.height < 1300
    assert is_colour(drawn.pixels[:-44, drawn.width // 2 :], FOUND).sum() > 1000
    assert "scaled" not in drawn.caption


def test_large_image(tmp_path):
    Image.new("L", (8000, 8000), 128).save(tmp_path / "seven.png", compress_level=1)
    box = (4000, 6000, 60, 60)
    scene = Scene([(1, box)], [], [(1, box, 0.9)], size=(8000, 8000))
    drawn = scene.draw(tmp_path)
    assert drawn.width <= 1410
    # 60 px of the image are 5 px of the panel: they are enlarged
    assert is_colour(drawn.below(1), FOUND).any(0).sum() > 60


def test_unknown_size(tmp_path):
    # that of the file, or else what holds every box
    picture_file(tmp_path)
    assert_quadrants(better(size=None).draw(tmp_path))
    drawn = better(size=None).draw()
    _left, _top, width, height = drawn.panels[0]
    assert width / height == pytest.approx((350 + 12) / (250 + 12), abs=0.01)


def test_huge_numbers_of_boxes():
    rng = np.random.default_rng(0)
    boxes = np.concatenate([rng.uniform(0, 380, (2000, 2)), rng.uniform(1, 20, (2000, 2))], 1)
    objects = [(k % 30 + 1, tuple(box)) for k, box in enumerate(boxes.tolist())]
    scene = Scene(objects, [], [(*x, 0.9) for x in objects], names=[f"c{k}" for k in range(30)])
    drawn = scene.draw(format="jpeg")
    assert re.search(r"\d{4} labels had no room", drawn.caption)
    assert len(drawn.caption) < 2000


def test_jpeg_is_small_and_the_same_each_time(tmp_path):
    # the detail of a photo: noise at all scales
    rng = np.random.default_rng(0)
    photo = np.zeros((300, 400, 3))
    for step in (1, 2, 4, 8, 16, 32):
        noise = rng.normal(0, 4 * step**0.8, (300 // step + 1, 400 // step + 1, 3))
        photo += noise.repeat(step, 0).repeat(step, 1)[:300, :400]
    Image.fromarray((128 + photo).clip(0, 255).astype(np.uint8)).save(tmp_path / "seven.png")
    scene = better()
    first = scene.draw(tmp_path, format="jpeg")
    assert len(first.picture.image) <= 150_000
    assert len(scene.draw(tmp_path, format="jpeg", max_bytes=10**9).picture.image) > 150_000
    assert scene.draw(tmp_path, format="jpeg").picture == first.picture
    assert first.width <= 1410


def test_caption_tells_the_numbers():
    scene = better()
    caption = scene.draw().caption
    assert caption.startswith(
        "seven.png (image 7): the candidate is better by 1 (objects found minus false alarms). "
        "old: found 1, missed 2, false alarms 0 (scores from 0.90). "
        "new: found 3, missed 0, false alarms 1 (scores from 0.70). "
        "Found by new only: cat 0.80, cat 0.70. False alarms of new only: cat 0.75. "
        "Of 1 small objects, the baseline found 0, the candidate 1. "
    )
    scene = Scene([(1, BIG)], [(1, NOTHING, 0.9)], [(1, BIG, 0.9)])
    assert "its detections are left out" in scene.draw().caption
