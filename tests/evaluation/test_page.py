"""The page: what it says, that it is safe, and that it works in a browser."""

import base64
import dataclasses
import html.parser
import io
import json
import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from made_detectors import BASELINE, CANDIDATE, TRUTH
from PIL import Image

from mmattn.evaluation.bins import COCO_BINS
from mmattn.evaluation.page import ClassRow, ImageGroup, Report, render_page
from mmattn.evaluation.plots import FIGURES, Comparison, SizeCurve
from mmattn.evaluation.report import Options
from mmattn.evaluation.report import run as run_report

COUNT = {"all": 100, "small": 60, "medium": 40, "large": 0}
NAMES = ("base", "candidate", "other")
EVIL = "<script>alert('x')</script>\"&"


def difference(value, low, high, p):
    return SimpleNamespace(value=value, low=low, high=high, p=p)


UP, UNSURE = difference(0.012, 0.004, 0.0203, 0.0002), difference(-0.003, -0.01, 0.004, 0.4214)
NOTHING = difference(math.nan, math.nan, math.nan, math.nan)


def run(name, value, seeds=1):
    figures = {size: {key: value + i / 10 for i, key in enumerate(FIGURES)} for size in COUNT}
    figures["large"] = dict.fromkeys(FIGURES, math.nan)
    std = None if seeds == 1 else {size: dict.fromkeys(FIGURES, 0.004) for size in COUNT}
    return SimpleNamespace(name=name, figures=figures, num_objects=COUNT, seeds=seeds, std=std)


def comparison(candidate, baseline="base", **kwargs):
    rows = dict(zip(COUNT, (UP, UNSURE, UP, NOTHING), strict=True))
    differences = {size: dict.fromkeys(FIGURES, row) for size, row in rows.items()}
    return Comparison(
        baseline=baseline,
        candidate=candidate,
        differences=differences,
        words=[f"{candidate} is better.", "Small objects: not shown."],
        replicates=1000,
        **kwargs,
    )


def errors():
    deltas = {"Cls": 0.03, "Loc": 0.05, "Both": 0.01, "Dupe": 0.002, "Bkg": 0.03, "Miss": 0.07}
    return SimpleNamespace(by_size={size: SimpleNamespace(delta_ap=deltas) for size in COUNT})


def class_rows(names=NAMES, classes=("cat", "dog", "zebra"), **kwargs):
    for i, name in enumerate(classes):
        ap = {run: {"all": 0.4 - i / 25 + k / 50, "small": 0.1} for k, run in enumerate(names)}
        if name == "dog":
            ap = {run: {"all": math.nan, "small": None} for run in names}
        yield ClassRow(name=name, num_objects={"all": 1000 * i + 7, "small": i}, ap=ap, **kwargs)


def image(number):
    file = io.BytesIO()
    Image.new("RGB", (640, 400), (40 * number, 80, 120)).save(file, "PNG")
    return SimpleNamespace(
        picture=file.getvalue(),
        picture_type="image/png",
        caption=f"image {number}: 2 objects more. Found by candidate only: cat {number}.",
    )


def image_groups():
    yield ImageGroup(
        heading="candidate against base", text="how chosen", images=[image(0), image(1)]
    )
    yield ImageGroup(heading="other against base", text="likewise", images=[image(2)])


def report(names=NAMES, seeds=1, **kwargs):
    size = 8.0 * 2 ** np.arange(5)
    ap = np.linspace(0.1, 0.5, 5)
    whole = dict(
        title="AP of three runs",
        runs=[run(name, 0.3 + i / 50, seeds) for i, name in enumerate(names)],
        bins=COCO_BINS,
        comparisons=[comparison(name, names[0]) for name in names[1:]],
        curves=[
            SizeCurve(name=x, size=size, ap=ap, low=ap - 0.02, high=ap + 0.02, num_objects=size)
            for x in names
        ],
        pr={name: {"all": [1, 0.5, 0], "small": [0.5, 0.2, 0]} for name in names},
        errors={name: errors() for name in names},
        per_class=list(class_rows(names)),
        images=list(image_groups()),
        conditions=["5 images"],
        notes=["3 crowds"],
        versions={"hotcoco": "1.3.0"},
    )
    return Report(**{**whole, **kwargs})


NO_PICTURES = {name: getattr(Report(), name) for name in ("curves", "pr", "errors")}


class Reader(html.parser.HTMLParser):
    """Tags in order with their attributes, the text, and the rows of each table."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.tables, self.inside = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.inside.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text.append(data)
            if {"td", "th"} & set(self.inside):
                self.tables[-1][-1][-1] += data

    def find(self, tag, **attrs):
        return [x for t, x in self.tags if t == tag and attrs.items() <= x.items()]


@pytest.fixture(scope="module")
def page():
    return render_page(report())


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def test_parts_come_in_the_order_of_a_reader(page, read):
    assert page.startswith("<!DOCTYPE html>")
    assert read.inside == []
    ids = [x["id"] for x in read.find("section")]
    assert ids == ["answer", "figures", "pictures", "classes", "images", "conditions"]
    assert [x["href"] for x in read.find("a") if "class" not in x] == [f"#{x}" for x in ids]
    text = " ".join(read.text)
    for part in (
        "AP of three runs",
        "candidate is better.",
        "95 % intervals from 1,000 resamples of the images, the same for both runs.",
        "how chosen",
        "image 2: 2 objects more",
        "5 images",
        "3 crowds",
        "hotcoco",
        "1.3.0",
    ):
        assert part in text


def test_figures(read):
    table = read.tables[0]
    assert table[0] == ["size", "run", "objects", "AP", "AP50", "AP75", "AR"]
    assert table[1] == ["all", " base", "100", "30.0", "40.0", "50.0", "60.0"]
    assert table[5] == ["small up to 32² px²", " candidate", "60", "32.0", "42.0", "52.0", "62.0"]
    assert table[7][0] == "medium 32² to 96² px²"
    assert table[10] == ["large 96² px² or more", " base", "0", "n/a", "n/a", "n/a", "n/a"]
    assert len(table) == 13


def test_differences_and_only_shown_ones_are_bold(page, read):
    table = read.tables[1]
    assert table[0] == ["size", "objects", "AP", "AP50", "AP75", "AR"]
    assert table[1][:3] == ["all", "100", "+1.20 [+0.40, +2.03] p < 0.001"]
    assert table[2][2] == "\N{MINUS SIGN}0.30 [\N{MINUS SIGN}1.00, +0.40] p = 0.421"
    assert table[4][2:] == ["n/a"] * 4
    strong = re.findall(r'class="number strong" data-key="[^"]*">([^<]*)', page)
    assert set(strong) == {"+1.20 "}
    assert len(strong) == 2 * 2 * 4  # tables, rows, figures


def test_a_difference_without_p_or_interval():
    rows = {"all": {"AP": difference(0.01, math.nan, math.nan, math.nan)}}
    page = render_page(
        Report(comparisons=[Comparison(baseline="a", candidate="b", differences=rows)])
    )
    assert Reader(page).tables[0][1] == ["all", "n/a", "+1.00 p n/a", *["n/a"] * 3]


def test_captions_say_that_a_mean_over_classes_weighs_them_alike(read):
    sentence = (
        "Means over the classes with objects of that size; a class of few objects counts as much "
        "as any other"
    )
    texts = [x for x in read.text if sentence in x]
    assert texts[0] == f"In percent. {sentence}."
    assert set(texts[1:]) == {texts[1]}
    assert texts[1].startswith("AP of the objects about a size")
    assert texts[1].endswith(f"{sentence}, so a curve can jump where a class begins.")


def test_captions_say_that_the_words_are_corrected_for_the_number_of_sizes(read):
    corrected = [x for x in read.text if "number of sizes (Holm)" in x]
    table, picture = "Difference in points (percent)", "Bars are 95 % intervals"
    assert [x.startswith(table) for x in corrected] == [True, True, False]
    assert corrected[2].startswith(picture)
    # there are no words
    plain = [dataclasses.replace(comparison(x), words=[]) for x in NAMES[1:]]
    text = " ".join(Reader(render_page(report(comparisons=plain))).text)
    assert table in text
    assert picture in text
    assert "Holm" not in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_error_types_are_said_to_be_of_the_first_seed(seeds):
    runs = [run("base", 0.3), run("candidate", 0.32, seeds)]
    read = Reader(render_page(report(("base", "candidate"), runs=runs)))
    caption = next(x for x in read.text if x.startswith("Types as TIDE defines them"))
    sentence = "With several seeds, means over them."
    assert (sentence in caption) == (seeds > 1)


def test_images_stand_under_the_comparison_they_are_of(page):
    part = page[page.index('<section id="images">') :]
    shown = re.findall(r'<h3>(.*?)</h3>|<p>(.+?)</p>|<figure id="(.*?)"', part)
    assert ["".join(x) for x in shown[:7]] == [
        "candidate against base",
        "how chosen",
        "image-1",
        "image-2",
        "other against base",
        "likewise",
        "image-3",
    ]


def test_a_comparison_without_images_is_listed():
    group = ImageGroup(heading="b against a", text="They differ in none.")
    read = Reader(render_page(Report(images=[group])))
    assert "b against a" in read.text
    assert "They differ in none." in read.text
    assert [x["id"] for x in read.find("section")] == ["images"]


@pytest.mark.parametrize(
    ("name", "caption", "short"),
    [
        (None, "Image 3: better by 2 (0.50). b: found 4.", "Image 3: better by 2 (0.50)."),
        (
            "a. b.jpg",
            "a. b.jpg (image 3): better by 2. b: found 4.",
            "a. b.jpg (image 3): better by 2.",
        ),
        ("a.jpg", "Better", "Better"),
        ("a.jpg", "", ""),
    ],
)
def test_a_thumbnail_has_the_first_sentence_and_the_window_all(name, caption, short):
    one = image(0)
    one.caption, one.file_name = caption, name
    page = render_page(Report(images=[ImageGroup(heading="b against a", images=[one])]))
    assert re.findall(r'<span class="short">(.*?)</span>', page) == [short]
    assert re.findall(r'<span class="whole">(.*?)</span>', page) == [caption]
    assert Reader(page).find("a", href="#image-1")
    assert [x["alt"] for x in Reader(page).find("img") if x.get("src")] == [caption]


def test_the_images_of_every_candidate_in_a_report(tmp_path):
    found = {"plain": BASELINE, "same": BASELINE, "better": CANDIDATE}
    files = {"gt": TRUTH, **found, "seeds/0": BASELINE[::2], "seeds/1": CANDIDATE[::2]}
    (tmp_path / "seeds").mkdir()
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    options = Options(
        ground_truth=str(tmp_path / "gt.json"),
        results=[str(tmp_path / x) for x in ("plain.json", "better.json", "same.json", "seeds")],
        replicates=0,
        num_images=2,
        out=[str(tmp_path / "r.html")],
        pictures=str(tmp_path),
    )
    run_report(options, lambda text: None)
    page = (tmp_path / "r.html").read_text()
    part = page[page.index('<section id="images">') :]
    shown = re.findall(r'<h3>(.*?)</h3>|<p>(.+?)</p>|<img src="data:image/jpeg;base64,(.*?)"', part)
    better, first, *images, same, nothing, seeds, second, three, four = shown[:10]
    assert [x[0] for x in (better, same, seeds)] == [
        f"{x} against plain" for x in ("better", "same", "seeds")
    ]
    assert re.search(
        r": better, the candidate, does better in [12] of them and worse in [01]\.", first[1]
    )
    assert nothing[1] == "In no image do objects found minus false alarms at IoU 0.50 differ."
    assert ["first one counts" in x[1] for x in (first, nothing, second)] == [False, False, True]
    # the files are numbered over all comparisons
    assert sorted(x.name for x in tmp_path.glob("image_*")) == [
        f"image_{n:02d}.jpg" for n in range(1, 5)
    ]
    for n, image in enumerate([*images, three, four], 1):
        assert base64.b64decode(image[2]) == (tmp_path / f"image_{n:02d}.jpg").read_bytes()


def test_several_seeds():
    read = Reader(render_page(report(("base", "candidate"), 3, **NO_PICTURES)))
    assert read.tables[0][1][3:5] == ["30.0 ± 0.4", "40.0 ± 0.4"]
    assert "of the images, the same for both runs, and from the spread over seeds." in " ".join(
        read.text
    )


def test_classes(read):
    everything, small = read.tables[3:]
    assert [x[1:] for x in everything[:2]] == [
        ["AP, %", "difference to base, points"],
        ["objects", " base", " candidate", " other", " candidate", " other"],
    ]
    assert everything[2] == ["cat", "7", "40.0", "42.0", "44.0", "+2.00", "+4.00"]
    assert everything[3] == ["dog", "1,007", *["n/a"] * 5]
    assert small[2][-1] == "0.00"
    assert [("open" in x) for x in read.find("details")] == [True, False]


def test_classes_with_intervals():
    rows = class_rows(differences={"candidate": {"all": UP, "small": UNSURE}})
    page = render_page(Report(per_class=list(rows)))
    table = Reader(page).tables[0]
    assert table[2][5:] == ["+1.20 [+0.40, +2.03]", "+4.00"]
    assert "a few exclude 0 by chance" in page
    # cat is 7 objects: too few
    strong = re.findall(r"<tr>\s*<th scope=row[^>]*>(\w+)(?:(?!</tr>).)*? strong", page, re.DOTALL)
    assert strong == ["dog", "zebra"]


def test_the_level_of_the_intervals():
    size = np.array([8.0, 16.0])
    curve = SizeCurve(name="a", size=size, ap=size / 90, low=size / 95, high=size / 85)
    nine, eight = (f"Bands are {x} % intervals" for x in (90, 80))
    assert nine in render_page(Report(curves=[curve], comparisons=[comparison("b", level=0.9)]))
    assert eight in render_page(Report(curves=[curve], level=0.8))


def test_relative_sizes():
    bins = [("small", 0, 0.06), ("middle", 0.06, 0.17), ("large", 0.17, 1e10)]
    runs = [run("a", 0.3)]
    runs[0].figures = {size: runs[0].figures["all"] for size, _, _ in bins}
    table = Reader(render_page(Report(runs=runs, bins=bins, size_by="sqrt-relative"))).tables[0]
    assert [row[0] for row in table[1:]] == [
        "small up to 0.06 of the image's side",
        "middle 0.06 to 0.17 of the image's side",
        "large 0.17 of the image's side or more",
    ]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("runs", "34.0"),
        ("comparisons", "candidate is better."),
        ("curves", "AP against object size"),
        ("pr", "Precision and recall by size"),
        ("errors", "Where the errors come from, by size"),
        ("per_class", "zebra"),
        ("images", "image 2: 2 objects more"),
        ("conditions", "5 images"),
    ],
)
def test_every_part_may_stand_alone(name, shown):
    read = Reader(render_page(Report(**{name: getattr(report(("a", "b", "candidate")), name)})))
    assert any(shown in text for text in read.text)
    assert len(read.find("section")) == 1 + (name == "comparisons") * 2


def test_one_run_has_no_comparison():
    read = Reader(render_page(report(("only",), comparisons=[], images=[])))
    ids = [x["id"] for x in read.find("section")]
    assert ids == ["figures", "pictures", "classes", "conditions"]
    assert len(read.find("svg")) == 4
    assert read.tables[1][1] == ["class", "objects", " only"]
    assert "difference" not in " ".join(read.text)


def test_an_empty_report():
    assert "AP by object size" in Reader(render_page(Report())).text


def test_all_text_is_escaped():
    names = (EVIL, f"b{EVIL}")
    rows = class_rows(names, classes=(EVIL, "dog"))
    pictures = [image(0)]
    pictures[0].caption = EVIL
    page = render_page(
        report(
            names,
            title=EVIL,
            per_class=list(rows),
            images=[ImageGroup(heading=EVIL, text=EVIL, images=pictures)],
            conditions=[EVIL],
            notes=[EVIL],
            versions={EVIL: EVIL},
            bins=[(EVIL, 0, 5), *COCO_BINS],
        )
    )
    read = Reader(page)
    assert read.inside == []
    assert "<script>alert" not in page
    assert len(read.find("script")) == 1
    assert page.count("<script") == 1
    assert read.find("img", alt=EVIL)
    assert EVIL in read.tables[3][2]
    assert not [tag for tag, attrs in read.tags if any(key.startswith("on") for key in attrs)]


def test_bytes_that_are_no_text_do_not_stop_it():
    page = render_page(Report(title="a\udce4", conditions=["b\x00c"]))
    assert "a?" in page
    page.encode()


def test_the_page_needs_nothing_but_itself(page, read):
    policy = read.find("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    for tag, attrs in read.tags:
        for key in ("src", "href", "xlink:href", "action", "srcset", "data"):
            if value := attrs.get(key):
                assert value.startswith(("#", "data:")), (tag, key)
    assert "url(" not in "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "@import" not in page
    sources = [x["src"] for x in read.find("img") if x.get("src")]
    assert base64.b64decode(sources[0].removeprefix("data:image/png;base64,")) == image(0).picture


def test_no_id_comes_twice_and_every_link_has_its_end(read):
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for _, attrs in read.tags if attrs.get("href", "").startswith("#")]
    assert {x[1:] for x in links} <= set(ids)


def test_the_page_is_the_same_every_time(page):
    assert render_page(report()) == page


def test_a_page_of_many_classes_is_not_slow_or_large():
    rows = list(class_rows(classes=[f"class {i}" for i in range(1200)]))
    assert len(render_page(Report(per_class=rows))) < 3e6


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, tmp_path, page, request):
    """The page in a browser; fails if it complains or asks for anything else."""
    options = getattr(request, "param", {})
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    context = browser.new_context(**options)
    tab = context.new_page()
    messages, requests = [], []
    tab.on("console", lambda x: messages.append(x.text))
    tab.on("pageerror", lambda x: messages.append(str(x)))
    tab.on("request", lambda x: requests.append(x.url))
    tab.goto(path.as_uri())
    yield tab
    assert messages == []
    assert [x for x in requests if not x.startswith("data:")] == [path.as_uri()]
    context.close()


def column(tab, table, number):
    cells = tab.locator("table").nth(table).locator(f"tbody tr > :nth-child({number})")
    return [text.strip().split("\n")[0] for text in cells.all_inner_texts()]


def head(tab, table, number):
    return tab.locator("table").nth(table).locator("thead tr").last.locator("th").nth(number - 1)


def test_tables_sort(tab):
    run_of = column(tab, 0, 2)
    head(tab, 0, 4).get_by_role("button").click()
    assert head(tab, 0, 4).get_attribute("aria-sort") == "descending"
    down = column(tab, 0, 4)
    assert down == ["34.0"] * 3 + ["32.0"] * 3 + ["30.0"] * 3 + ["n/a"] * 3
    head(tab, 0, 4).get_by_role("button").click()
    assert head(tab, 0, 4).get_attribute("aria-sort") == "ascending"
    assert column(tab, 0, 4) == ["30.0"] * 3 + ["32.0"] * 3 + ["34.0"] * 3 + ["n/a"] * 3
    # by keyboard; sizes are in the order of the bins, and runs stay in theirs
    head(tab, 0, 1).get_by_role("button").focus()
    tab.keyboard.press("Enter")
    assert head(tab, 0, 4).get_attribute("aria-sort") is None
    assert [x.split()[0] for x in column(tab, 0, 1)][::3] == ["all", "small", "medium", "large"]
    assert column(tab, 0, 2) == run_of
    # numbers, not their letters
    head(tab, 3, 2).get_by_role("button").click()
    assert column(tab, 3, 2) == ["2,007", "1,007", "7"]
    head(tab, 3, 3).get_by_role("button").click()
    assert column(tab, 3, 3) == ["40.0", "32.0", "n/a"]
    # names
    head(tab, 3, 1).get_by_role("button").click()
    assert column(tab, 3, 1) == ["cat", "dog", "zebra"]
    head(tab, 3, 1).get_by_role("button").click()
    assert column(tab, 3, 1) == ["zebra", "dog", "cat"]


def test_images_open_and_close(tab):
    dialog = tab.locator("dialog")
    assert not dialog.is_visible()
    links = tab.locator("a.thumbnail")
    links.nth(1).click()
    assert dialog.is_visible()
    assert (
        dialog.locator("p").inner_text()
        == "image 1: 2 objects more. Found by candidate only: cat 1."
    )
    assert dialog.locator("strong").inner_text() == "candidate against base"
    assert links.nth(1).locator("~ figcaption").inner_text() == "image 1: 2 objects more."
    shown = dialog.locator("img")
    assert shown.get_attribute("src") == links.nth(1).locator("img").get_attribute("src")
    assert shown.evaluate("x => x.naturalWidth") == 640
    assert shown.bounding_box()["width"] > links.nth(1).bounding_box()["width"]
    tab.keyboard.press("ArrowRight")
    assert dialog.locator("output").inner_text() == "3 of 3"
    assert dialog.locator("strong").inner_text() == "other against base"
    tab.keyboard.press("ArrowRight")
    assert dialog.locator("output").inner_text() == "1 of 3"
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert tab.evaluate("document.activeElement.getAttribute('href')") == "#image-1"
    # by keyboard
    links.nth(2).focus()
    tab.keyboard.press("Enter")
    assert dialog.locator("p").inner_text().startswith("image 2: 2 objects more. Found")
    dialog.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


@pytest.mark.parametrize("tab", [{"java_script_enabled": False}], indirect=True)
def test_without_javascript(tab):
    assert tab.locator("table").first.is_visible()
    assert tab.locator("svg").count() == 4
    link = tab.locator("a.thumbnail").nth(1)
    before = link.bounding_box()["width"]
    link.click()
    assert link.bounding_box()["width"] > 1.5 * before
    captions = tab.locator(".images figcaption")
    assert captions.nth(1).inner_text().endswith("Found by candidate only: cat 1.")
    assert captions.nth(2).inner_text() == "image 2: 2 objects more."


@pytest.mark.parametrize("tab", [{"viewport": {"width": 720, "height": 800}}], indirect=True)
def test_the_tables_of_figures_need_no_scroll_bar(tab):
    tables = tab.locator("#figures .scroll")
    assert tables.count() == 3
    for table in tables.all():
        assert table.evaluate("x => x.scrollWidth <= x.clientWidth")


@pytest.mark.parametrize(
    "tab",
    [
        {"viewport": {"width": 400, "height": 800}},
        {"viewport": {"width": 1200, "height": 800}, "color_scheme": "dark"},
    ],
    indirect=True,
)
def test_on_a_phone_and_in_the_dark(tab):
    width = tab.viewport_size["width"]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    # tables and pictures scroll by themselves
    if width == 400:
        assert tab.locator(".scroll").first.evaluate("x => x.scrollWidth > x.clientWidth")
        assert tab.locator(".plot").first.evaluate("x => x.scrollWidth > x.clientWidth")
    for area in ("body", "td", "thead th", "figcaption", ".missing", "a", "small"):
        colours = tab.locator(area).first.evaluate(
            "x => [getComputedStyle(x).color, getComputedStyle(document.body).backgroundColor]"
        )
        assert contrast(*colours) > 4.5, area


def contrast(*colours):
    """Of two colours, as WCAG defines it."""
    levels = []
    for colour in colours:
        parts = np.array([float(x) / 255 for x in re.findall(r"[\d.]+", colour)[:3]])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        levels.append(linear @ [0.2126, 0.7152, 0.0722])
    return (max(levels) + 0.05) / (min(levels) + 0.05)


def test_text_that_looks_like_a_script_is_not_run(browser, tmp_path):
    rows = list(class_rows(classes=(EVIL, "<img src=x onerror=alert(1)>")))
    path = tmp_path / "page.html"
    path.write_text(render_page(Report(title=EVIL, per_class=rows)), encoding="utf-8")
    context = browser.new_context()
    tab = context.new_page()
    messages = []
    tab.on("dialog", lambda x: (messages.append(x.message), x.dismiss()))
    tab.on("console", lambda x: messages.append(x.text))
    tab.goto(path.as_uri())
    assert tab.title() == EVIL
    assert column(tab, 0, 1) == [EVIL, "<img src=x onerror=alert(1)>"]
    # the policy stops what gets in all the same
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<p onclick=\"alert(2)\">x</p>')")
    tab.locator("p").last.click()
    assert [x for x in messages if "Content Security Policy" not in x] == []
    context.close()
