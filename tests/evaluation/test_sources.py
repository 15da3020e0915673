"""RESULTS of the command line: which files are meant, what runs are called, what is refused."""

import json
import os
import pickle
from pathlib import Path

import pytest

from mmattn.evaluation.sources import find_runs

BOX = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
MASK = {**BOX, "segmentation": {"size": [4, 4], "counts": "11"}}
TRUTH = {"info": {}, "images": [{"id": 1}], "annotations": [], "categories": []}


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(*paths, content=BOX):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".pkl":
            path.write_bytes(pickle.dumps([{"img_id": 1, "pred_instances": {}}], protocol=2))
        else:
            is_record = isinstance(content, dict) and "image_id" in content
            path.write_text(json.dumps([content] if is_record else content))


def find(*arguments, iou_type="bbox"):
    """Name -> files, of each run."""
    runs = find_runs(arguments, iou_type)
    assert len({run.name for run in runs}) == len(runs) == len(arguments)
    assert all(len(run.files) == len(run.seed_names) for run in runs)
    return {run.name: [str(file) for file in run.files] for run in runs}


def test_files_in_the_order_given():
    write("b/yolo.json", "a/gc.bbox.json", "c/se.pkl")
    assert find("b/yolo.json", "a/gc.bbox.json", "c/se.pkl") == {
        "yolo": ["b/yolo.json"],
        "gc": ["a/gc.bbox.json"],
        "se": ["c/se.pkl"],
    }
    assert list(find("c/se.pkl", "b/yolo.json")) == ["se", "yolo"]


@pytest.mark.parametrize(
    "file",
    [
        "results.bbox.json",
        "predictions.json",
        "best_predictions.json",
        "bbox.json",
        "coco_instances_results.json",
        "results.pkl",
    ],
)
def test_a_file_name_that_says_nothing_gives_way_to_the_folders(file):
    write(f"work_dirs/gc/{file}")
    assert find(f"work_dirs/gc/{file}") == {"gc": [f"work_dirs/gc/{file}"]}


def test_equal_names_get_their_folders_in_front():
    write("a/x/gc.json", "b/x/gc.json", "c/y/gc.json", "c/se.json")
    assert list(find("a/x/gc.json", "b/x/gc.json", "c/y/gc.json", "c/se.json")) == [
        "a/x/gc",
        "b/x/gc",
        "y/gc",
        "se",
    ]
    # a name that is given stays
    assert list(find("a/x/gc.json", "gc=b/x/gc.json")) == ["x/gc", "gc"]
    write("e/x/results.bbox.json", "f/x/results.bbox.json")
    assert list(find("e/x/results", "f/x")) == ["x/results", "f/x"]
    assert list(find("e/x/results", "f/x/results")) == ["e/x/results", "f/x/results"]
    write("d/gc.bbox.json", "d/gc.pkl")
    names = list(find("d/gc.bbox.json", "d/gc.pkl"))
    assert [Path(name).name for name in names] == ["gc.bbox.json", "gc.pkl"]


def test_given_names():
    write("a.json", "lr=0.1/results.json", "lr=0.1=b.json")
    assert find("my model=a.json") == {"my model": ["a.json"]}
    assert find("w/ GC=a.json") == {"w/ GC": ["a.json"]}
    assert find("lr=0.2=a.json") == {"lr=0.2": ["a.json"]}
    write("gc.bbox.json")
    assert find("lr=0.2=gc") == {"lr=0.2": ["gc.bbox.json"]}
    # '=' in a path that exists
    assert find("lr=0.1/results.json") == {"lr=0.1": ["lr=0.1/results.json"]}
    assert find("x=lr=0.1") == {"x": ["lr=0.1/results.json"]}
    assert find("lr=0.1=b.json") == {"lr=0.1=b": ["lr=0.1=b.json"]}


def test_home_is_expanded_behind_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("gc.json")
    assert find("x=~/gc.json") == {"x": [str(tmp_path / "gc.json")]}


def test_outfile_prefix():
    write("work_dirs/gc/results.bbox.json", "work_dirs/a=b.bbox.json")
    write("work_dirs/gc/results.segm.json", content=MASK)
    prefix = "work_dirs/gc/results"
    assert find(prefix) == {"gc": [f"{prefix}.bbox.json"]}
    assert find(prefix, iou_type="segm") == {"gc": [f"{prefix}.segm.json"]}
    assert find(f"n={prefix}") == {"n": [f"{prefix}.bbox.json"]}
    assert find("work_dirs/a=b") == {"a=b": ["work_dirs/a=b.bbox.json"]}
    with pytest.raises(ValueError, match=r"a=b\.segm\.json does not exist, only a=b\.bbox\.json"):
        find("work_dirs/a=b", iou_type="segm")


def fill_work_dir(folder):
    """What lies about in a work_dir and is no result."""
    write(f"{folder}/config.py", f"{folder}/x.log", f"{folder}/epoch_1.pth", content="x = 1\n")
    write(f"{folder}/vis_data/scalars.json", content='{"lr": 0.1}\n{"lr": 0.2}\n')
    write(f"{folder}/ap_by_size_test.json", content={"mmattn": "1", "results": {}})
    write(f"{folder}/val.gt.json", content=TRUTH)
    write(f"{folder}/annotations.json", content=[{"image_id": 1, "bbox": [1, 2, 3, 4]}])
    write(f"{folder}/keypoints.json", content=[{"image_id": 1, "score": 1, "keypoints": []}])
    write(f"{folder}/numbers.json", content=[1, 2])
    write(f"{folder}/scores.json", content=[{"score": 1, "bbox": [1, 2, 3, 4]}])
    write(f"{folder}/empty.json", f"{folder}/broken.json", content="")
    write(f"{folder}/broken.json", content='[{"image_id": 1, "sco')
    write(f"{folder}/.hidden/results.json")
    Path(f"{folder}/classes.pkl").write_bytes(pickle.dumps(["cat", "dog"]))


def test_a_folder_with_one_file_of_results_among_others():
    fill_work_dir("gc")
    with pytest.raises(
        ValueError, match=r"gc has no results; it has annotations\.json, .* and 7 more; "
    ):
        find("gc")
    write("gc/20260101_000000/predictions.json")
    assert find("gc") == {"gc": ["gc/20260101_000000/predictions.json"]}


def test_no_detections_are_results():
    write("gc/results.json", content="[ ]\n")
    assert find("gc/results.json") == find("gc") == {"gc": ["gc/results.json"]}
    assert find("gc", iou_type="segm") == {"gc": ["gc/results.json"]}


def test_a_byte_order_mark_and_a_long_first_record():
    long = {**MASK, "segmentation": {"size": [4, 4], "counts": "1" * 300_000}}
    write("gc/a.json", content="\ufeff\n" + json.dumps([long]))
    assert find("gc", iou_type="segm") == {"gc": ["gc/a.json"]}


def test_a_large_file_is_not_read_to_see_what_it_is(monkeypatch):
    write("gc/a.json", content=json.dumps([BOX] * 20_000))
    opened, original = [], Path.open
    monkeypatch.setattr(Path, "open", lambda *args: opened.append(original(*args)) or opened[-1])
    ends = []
    monkeypatch.setattr(json.JSONDecoder, "raw_decode", _noting(ends, json.JSONDecoder.raw_decode))
    find("gc")
    assert len(opened) == len(ends) == 1
    assert ends[0] < Path("gc/a.json").stat().st_size / 10


def _noting(lengths, decode):
    return lambda self, text, start: lengths.append(len(text)) or decode(self, text, start)


def test_box_and_mask_results_side_by_side():
    write("gc/results.bbox.json", "gc/results.pkl", "paddle/bbox.json")
    write("gc/results.segm.json", content=MASK)
    write("paddle/mask.json", content={k: v for k, v in MASK.items() if k != "bbox"})
    for iou_type, ours, paddles in (
        ("bbox", "results.bbox.json", "bbox.json"),
        ("segm", "results.segm.json", "mask.json"),
    ):
        assert find("gc", "paddle", iou_type=iou_type) == {
            "gc": [f"gc/{ours}"],
            "paddle": [f"paddle/{paddles}"],
        }


def test_files_of_one_name():
    write("gc/results.json", "gc/results.pkl", "se/x.json")
    write("gc/results.segm.json", "se/x.segm.json", content=MASK)
    assert find("gc", "se") == {"gc": ["gc/results.json"], "se": ["se/x.json"]}
    assert find("gc", iou_type="segm") == {"gc": ["gc/results.segm.json"]}
    write("eca/x_bbox.json", "eca/x_mask.json", content=MASK)
    assert find("eca") == {"eca": ["eca/x_bbox.json"]}
    assert find("eca", iou_type="segm") == {"eca": ["eca/x_mask.json"]}


def test_only_boxes_where_masks_are_asked_for():
    write("gc/results.json")
    with pytest.raises(ValueError, match=r"gc has no results of 'segm'; it has results\.json"):
        find("gc", iou_type="segm")


@pytest.mark.parametrize(
    "names",
    [
        ["seed0", "seed1", "seed2", "seed10"],
        ["1", "2", "10"],
        ["gc_r50_seed_1", "gc_r50_seed_2"],
        ["Run-1", "Run-2"],
        ["results1", "results2"],
    ],
)
def test_seeds_in_files_or_sub_folders(names):
    for name in reversed(names):
        write(f"files/{name}.bbox.json", f"folders/{name}/results.bbox.json")
        write(f"files/{name}.segm.json", f"folders/{name}/results.segm.json", content=MASK)
        write(f"deep/x/{name}/20260101_00000{names.index(name)}/out/predictions.json")
    for folder in ("files", "folders", "deep"):
        fill_work_dir(folder)
    files, folders, deep = find_runs(["files", "folders", "deep"])
    assert [run.name for run in (files, folders, deep)] == ["files", "folders", "deep"]
    assert files.seed_names == folders.seed_names == deep.seed_names == tuple(names)
    assert [str(x) for x in files.files] == [f"files/{name}.bbox.json" for name in names]
    assert [str(x) for x in folders.files] == [f"folders/{x}/results.bbox.json" for x in names]
    assert [x.parts[2] for x in deep.files] == names


@pytest.mark.parametrize(
    "names",
    [
        ["baseline", "gc"],
        ["epoch_11", "epoch_12"],
        ["r50", "r101"],
        ["lr0.1", "lr0.2"],
        ["r50_seed0", "r101_seed1"],
        ["val", "val2"],
        ["20260101_101010", "20260102_101010"],
        ["seed0", "seed1", "ensemble"],
        ["gc_seed0", "se_seed1"],
    ],
)
def test_other_models_are_not_taken_for_seeds(names):
    write(*(f"files/{name}.json" for name in names))
    write(*(f"folders/{name}/results.json" for name in names))
    for folder in ("files", "folders"):
        with pytest.raises(
            ValueError, match="has several results, .* do not say that they are"
        ) as e:
            find(folder)
        assert all(name in str(e.value) for name in names)


def test_what_is_not_clear_is_refused():
    write("gc/seed0/results.json", "gc/seed1/a.json", "gc/seed1/b.json")
    with pytest.raises(ValueError, match=r"gc/seed1 has 2 results of 'bbox', a\.json, b\.json,"):
        find("gc")
    write("se/results.json", "se/val/results.json")
    with pytest.raises(ValueError, match=r"results\.json, and others in sub-folders, val/results"):
        find("se")


def test_links(tmp_path):
    write("far/a/results.json", "far/b/results.json")
    for seed, target in enumerate("ab"):
        Path("gc").mkdir(exist_ok=True)
        os.symlink(tmp_path / "far" / target, f"gc/seed{seed}")
    os.symlink(tmp_path / "gc", "gc/seed0/around")  # a link to a folder above
    os.symlink(tmp_path / "nowhere", "gc/broken.json")
    assert find("gc") == {"gc": ["gc/seed0/results.json", "gc/seed1/results.json"]}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("gc/reslts.json", "results 'gc/reslts.json' do not exist; gc has results.json"),
        ("x=gc/reslts.json", "results 'gc/reslts.json' do not exist; gc has results.json"),
        ("gc/predictions", "results 'gc/predictions' do not exist; gc has other.txt, results.json"),
        (
            "cg/results.json",
            "results 'cg/results.json' do not exist: there is no cg; . has gc, lr=1",
        ),
        ("lr=1/x.json", "results 'lr=1/x.json' do not exist; lr=1 has a.txt"),
        ("none/a=b", "results 'b' do not exist; . has gc, lr=1"),
        ("a=b=", "results 'b=' do not exist; . has gc, lr=1"),
    ],
)
def test_a_path_that_does_not_exist(argument, message):
    write("gc/results.json", "gc/other.txt", "lr=1/a.txt")
    with pytest.raises(FileNotFoundError) as error:
        find(argument)
    assert str(error.value) == message


def test_a_misspelt_prefix():
    write("gc/results.bbox.json", "gc/zzz.json")
    with pytest.raises(FileNotFoundError, match=r"do not exist; gc has results\.bbox\.json$"):
        find("gc/result")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(TRUTH), "x.json is a ground truth (a dict with annotations), not results: "),
        (json.dumps({"mmattn": "1"}), "x.json holds figures that mmattn computed, not results: "),
        (json.dumps({"a": 1}), "x.json holds a dict, not results: "),
        ("", "x.json is empty: "),
        (" \n", "x.json holds blanks only: "),
        ("AP 0.3", "x.json is not JSON: "),
    ],
)
def test_a_file_that_holds_no_results(content, message):
    write("x.json", content=content)
    with pytest.raises(ValueError, match="expected a COCO results file") as error:
        find("x.json")
    assert str(error.value).startswith(message)


def test_wrong_records_are_left_to_the_reader():
    write("x.json", content=[{"image_id": 1}])
    assert find("x.json") == {"x": ["x.json"]}


def test_an_empty_folder_and_a_device():
    Path("gc").mkdir()
    with pytest.raises(ValueError, match="gc has no results; it is empty; expected"):
        find("gc")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        find(os.devnull)


def test_arguments_that_make_no_sense():
    write("a.json", "b.json")
    for arguments, message in (
        (["=a.json"], "expected name=path, got '=a.json' without a name"),
        (["x="], "expected name=path, got 'x=' without a path"),
        (["x=a.json", "x=b.json"], "the name 'x' is given twice; give each run its own"),
        (["a.json", "x=./a.json"], "a.json is given twice, by 'a.json' and 'x=./a.json'"),
        ([], "no results are given: "),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            find_runs(arguments)
        assert str(error.value).startswith(message)
    with pytest.raises(ValueError, match="iou_type must be one of bbox, segm, got 'mask'"):
        find_runs(["a.json"], "mask")
    with pytest.raises(TypeError, match="must be a list of paths"):
        find_runs("a.json")
    assert [run.name for run in find_runs([Path("a.json")])] == ["a"]


def test_a_link_to_a_file_is_the_same_file(tmp_path):
    write("gc/seed0.json")
    os.symlink(tmp_path / "gc/seed0.json", "best.json")
    with pytest.raises(ValueError, match=r"is given twice, by 'gc' and 'best\.json'"):
        find("gc", "best.json")


def test_a_seed_without_results_is_named():
    write("sge/seed0/results.bbox.json", "sge/seed2/results.bbox.json")
    Path("sge/seed1").mkdir()
    Path("sge/logs").mkdir()
    (run,) = find_runs(["sge"])
    assert run.seed_names == ("seed0", "seed2")
    assert run.notes == ("sge/seed1 has no results of 'bbox': left out.",)


def test_seeds_in_a_list():
    write("train/predictions.json", "train2/predictions.json", "b/results.bbox.json")
    (run,) = find_runs(["sge=train/predictions.json,train2,b/results"])
    assert run.name == "sge"
    assert [str(x) for x in run.files] == [
        "train/predictions.json",
        "train2/predictions.json",
        "b/results.bbox.json",
    ]
    assert run.seed_names == ("0", "1", "2")
    with pytest.raises(FileNotFoundError, match="none.json"):
        find_runs(["sge=train/predictions.json,none.json"])


def test_masks_by_name_evaluated_as_boxes_are_noted():
    write("a.segm.json")
    (run,) = find_runs(["a.segm.json"])
    assert run.notes == (
        "a.segm.json is called segm, but boxes are evaluated; --iou-type segm takes masks.",
    )
    assert find_runs(["a.segm.json"], "segm")[0].notes == ()
