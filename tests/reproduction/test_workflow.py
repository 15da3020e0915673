"""Whole tables through Snakemake, with trainings that take no time."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("snakemake", reason="the suite is an extra: pip install 'mmattn[reproduce]'")

from mmattn.inspection._console import PreflightError
from mmattn.reproduction import job, nodes, status, workflow
from mmattn.reproduction.plan import Machine
from tests.reproduction.made_plan import epochs, make_plan, seen


@pytest.fixture
def no_report(monkeypatch, tmp_path):
    """The rule for the report only touches its output, which saves seconds."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.orig_argv[1:4] == ['-m', 'mmattn.reproduction.job', 'report']:\n"
        "    import pathlib\n"
        "    report = pathlib.Path(sys.orig_argv[4]).parent / 'report' / 'report.json'\n"
        "    report.parent.mkdir(exist_ok=True)\n"
        "    report.write_text('{}')\n"
        "    import os\n"
        "    os._exit(0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))


def test_a_table_with_a_failing_row_and_a_dying_one(tmp_path):
    """The rest is done, what died is tried again, and what is done is not done again."""
    made = make_plan(
        tmp_path, {"plain": {}, "dies": {"die": [1]}, "fails": {"fail": [2]}, "late": {}}
    )
    plain, dies, fails, late = made.runs
    said = []
    with pytest.raises(PreflightError) as error:
        workflow.execute(made, at_once=2, retries=1, say=said.append)
    assert "1 of 4 runs are not done" in str(error.value)
    assert "fails seed 0: train failed: train.py: the learning rate is a banana" in str(error.value)
    assert "[3/4]" in " ".join(said)
    assert all(run.result.exists() for run in (plain, dies, late))
    assert epochs(dies) == ["resumed at 0", "resumed at 1"]
    # what it had trained is still there: Snakemake deletes what a failed job has declared
    assert (fails.folder / "work" / "epoch_2.pth").exists()
    before = plain.result.stat().st_mtime_ns
    settings = json.loads((fails.folder / "fake.json").read_text())
    (fails.folder / "fake.json").write_text(json.dumps({**settings, "fail": []}))
    workflow.execute(made, at_once=2, retries=0, say=said.append)
    assert fails.result.exists()
    assert epochs(fails)[-1] == "resumed at 2"
    assert plain.result.stat().st_mtime_ns == before
    report = (made.folder / "report" / "report.md").read_text()
    assert report.count("| dies") >= 1, report
    assert "70.0" in report


@pytest.mark.usefixtures("no_report")
def test_runs_share_out_the_gpus(tmp_path):
    machine = Machine(devices=("5", "7"))
    settings = {"seconds": 0.2}
    made = make_plan(tmp_path, {f"row{i}": dict(settings) for i in range(4)}, machine)
    workflow.execute(made, say=lambda text: None)
    trained = sorted((seen(run) for run in made.runs), key=lambda one: one["begun"])
    assert {one["devices"] for one in trained} == {"5", "7"}
    for i, one in enumerate(trained):
        for other in trained[i + 1 :]:
            if other["begun"] < one["ended"]:
                assert other["devices"] != one["devices"]
    # in the table's order: the first two begin first
    begun = [seen(run)["begun"] for run in made.runs]
    assert max(begun[:2]) < min(begun[2:])
    # two at a time, and never three
    overlaps = [sum(o["begun"] <= one["begun"] < o["ended"] for o in trained) for one in trained]
    assert max(overlaps) == 2


@pytest.mark.usefixtures("no_report")
def test_the_front_is_killed_and_started_again(tmp_path):
    made = make_plan(tmp_path, {"slow": {"seconds": 2}, "next": {}})
    slow, following = made.runs
    code = (
        "import sys; from mmattn.reproduction import plan, workflow;"
        "workflow.execute(plan.read(sys.argv[1]), at_once=1)"
    )
    front = subprocess.Popen([sys.executable, "-c", code, str(made.path)])
    while not (slow.folder / "work" / "epoch_1.pth").exists():
        assert front.poll() is None
        time.sleep(0.02)
    front.send_signal(signal.SIGKILL)
    front.wait()
    deadline = time.time() + 30
    while status.of(slow).kind == "running" and time.time() < deadline:
        time.sleep(0.1)
    assert not slow.result.exists()
    assert status.of(slow).text in ("interrupted at epoch 1 of 3", "interrupted at epoch 2 of 3")
    workflow.execute(made, at_once=1, say=lambda text: None)
    assert slow.result.exists()
    assert following.result.exists()
    assert epochs(slow)[1] in ("resumed at 1", "resumed at 2")


@pytest.mark.usefixtures("no_report")
def test_two_machines_do_a_run_together(tmp_path):
    """Machine 1 joins what machine 0 announces, and ends with it."""
    machine = Machine(nodes=2, address=f"127.0.0.1:{free_port()}")
    made = make_plan(tmp_path, {"both": {"processes": 2}}, machine)
    code = (
        "import sys; from pathlib import Path; from mmattn.reproduction import nodes;"
        "from mmattn.reproduction.plan import Machine;"
        "nodes.follow(Path(sys.argv[1]), 1, Machine(nodes=2), print, patience=60)"
    )
    follower = subprocess.Popen([sys.executable, "-c", code, str(made.folder)])
    try:
        workflow.execute(made, say=lambda text: None)
        assert follower.wait(timeout=30) == 0
    finally:
        follower.kill()
    (run,) = made.runs
    other = json.loads((run.folder / "rank1.json").read_text())
    assert (other["world"], other["group"]) == ("2", "1")
    assert seen(run)["world"] == "2"
    assert "pytorch" in other["argv"]


def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_follower_does_not_wait_for_ever(tmp_path):
    with pytest.raises(ValueError, match="are expected to see the same --out folder"):
        nodes.follow(tmp_path, 1, Machine(nodes=2), print, patience=0.1)


def test_a_follower_leaves_what_was_withdrawn(tmp_path, monkeypatch):
    """A retry on the first machine does not wait for a process that hangs on this one."""
    monkeypatch.setattr(nodes, "GRACE", 0)
    start = {"launch": ["-c", "import time; time.sleep(60)"], "work": ["tool"], "processes": 1,
             "start": str(tmp_path)}  # fmt: skip
    announced, said = tmp_path / "nodes.json", []
    # of a first machine that was killed long ago
    announced.write_text(json.dumps({**start, "id": "old"}))
    os.utime(announced, (time.time() - 300,) * 2)

    def say(text):
        said.append(text)
        nodes.finish(tmp_path)

    begin = threading.Timer(0.2, lambda: announced.write_text(json.dumps({**start, "id": "new"})))
    begin.start()
    before = time.time()
    nodes.follow(tmp_path, 1, Machine(nodes=2), say, patience=10)
    assert said == ["joining tool"]
    assert time.time() - before < 20
    announced.write_text(json.dumps({**start, "id": "more", "processes": 4}))
    with pytest.raises(ValueError, match="takes 4 GPUs of each; this one has 1"):
        nodes.follow(tmp_path, 1, Machine(devices=("0",), nodes=2), print)


def test_slurm_gets_the_resources(tmp_path):
    """The command alone: no cluster was there to try it on."""
    made = make_plan(tmp_path, {"plain": {}}, Machine(devices=("0",)))
    command = workflow.snakemake_command(made, 8, 2, {"slurm_partition": "gpu"})
    text = " ".join(command)
    assert "--executor slurm --jobs 8 --default-resources slurm_partition=gpu nodes=1" in text
    assert "cpus_per_gpu=1 mem_mb=16000" in text
    own = workflow.snakemake_command(made, 8, 2, {"mem_mb": "5", "cpus_per_gpu": "9"})
    assert {"mem_mb=5", "cpus_per_gpu=9"} <= set(own)
    # submitted jobs outlive the front
    assert job.FRONT in workflow._environment()
    assert job.FRONT not in workflow._environment(submitted=True)
    if "snakemake_executor_plugin_slurm" not in sys.modules:
        pytest.importorskip("snakemake_executor_plugin_slurm")
    dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, env=os.environ)
    assert dry.returncode == 0, dry.stderr[-2000:]
    assert "gpu=1" in dry.stdout + dry.stderr  # the only name that the executor reads


def test_a_second_front_is_refused(tmp_path):
    with (
        workflow.alone(tmp_path),
        pytest.raises(PreflightError, match="another process runs the table"),
        workflow.alone(tmp_path),
    ):
        pass


def test_results_of_other_code_count_only_where_asked(tmp_path):
    made = make_plan(tmp_path, {"plain": {}})
    (run,) = made.runs
    older = run.folder.with_name("aaaaaaaaaaaa-cccccccc") / "result.json"
    older.parent.mkdir()
    older.write_text("{}")
    assert made.result_of(run) is None
    assert status.of(run).kind == "other code"
    assert dataclasses.replace(made, any_code=True).result_of(run) == older
