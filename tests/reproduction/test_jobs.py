"""One job after the other, as the rules of the Snakefile call them."""

import contextlib
import json
import subprocess
import sys
import threading
import time

import pytest

from mmattn.reproduction import job, status
from mmattn.reproduction.devices import claim
from mmattn.reproduction.plan import Machine
from tests.reproduction.made_plan import epochs, make_plan, seen


def do(what, made, run):
    job.main([what, str(made.path), str(run.folder)])


def test_a_run_leaves_a_result_with_figures_and_conditions(tmp_path):
    made = make_plan(tmp_path, {"plain": {"shift": 4}}, Machine(threads=3))
    (run,) = made.runs
    assert status.of(run).kind == "waiting"
    do("train", made, run)
    assert status.of(run) == status.State("interrupted", "trained, not evaluated", 1.0)
    do("test", made, run)
    # what is left may be done with other GPUs: the training's count
    (run.folder / "processes.json").write_text("8")
    do("evaluate", made, run)
    assert status.of(run).kind == "done"
    result = json.loads(run.result.read_text())
    # 4 px beside a box of 40: IoU 36 / 44 = 0.82, which 7 of the 10 thresholds accept
    assert result["figures"]["bbox"]["all"]["AP"] == pytest.approx(0.7)
    assert result["figures"]["bbox"]["small"]["AP"] is None
    assert result["figures"]["bbox"]["medium"]["AP50"] == 1
    assert set(result["figures"]["bbox"]["all"]) == {"AP", "AP50", "AP75", "AR"}
    assert (result["attempts"], result["cost"]["params"]) == (1, 1)
    assert result["hardware"]["images_per_update"] == 16
    assert result["hardware"]["processes"] == 8
    assert "3 threads" in result["hardware"]["device"]
    assert seen(run)["threads"] == "3"
    assert result["checkpoint"].endswith("epoch_3.pth")
    assert result["predictions"] == {"bbox": "results.bbox.json"}
    assert result["started"] <= result["finished"]


def test_what_was_killed_goes_on_and_its_time_counts(tmp_path):
    made = make_plan(tmp_path, {"plain": {"die": [1], "seconds": 0.05}})
    (run,) = made.runs
    with pytest.raises(SystemExit, match="plain seed 0: train failed: ended by SIGKILL"):
        do("train", made, run)
    assert status.of(run).kind == "failed"
    assert "SIGKILL" in status.of(run).text
    assert status.of(run).fraction == pytest.approx(1 / 3)
    do("train", made, run)
    assert epochs(run) == ["resumed at 0", "resumed at 1"]
    trained = json.loads((run.folder / "train.json").read_text())
    assert trained["attempts"] == 2
    first, second = json.loads((run.folder / "train_attempts.json").read_text())
    assert trained["train_seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    assert first["seconds"] >= 0.05
    # once done, it is not done again
    do("train", made, run)
    assert len(epochs(run)) == 2


def test_a_training_goes_on_with_as_many_processes(tmp_path):
    made = make_plan(tmp_path, {"plain": {"die": [1]}})
    (run,) = made.runs
    with pytest.raises(SystemExit, match="SIGKILL"):
        do("train", made, run)
    (run.folder / "processes.json").write_text("8")
    with pytest.raises(SystemExit, match="begun with 8 processes, and this would be 1: go on with"):
        do("train", made, run)
    assert epochs(run) == ["resumed at 0"]


def test_the_reason_of_a_failure_is_the_tools_own_sentence(tmp_path):
    made = make_plan(tmp_path, {"plain": {"fail": [0]}})
    (run,) = made.runs
    with pytest.raises(SystemExit, match="learning rate is a banana"):
        do("train", made, run)
    failed = json.loads((run.folder / "failed.json").read_text())
    assert failed["reason"].startswith("train.py: the learning rate is a banana (exit status 1)")
    assert not (run.folder / "train.json").exists()


def test_what_another_attempt_would_meet_again_is_not_tried_again(tmp_path):
    made = make_plan(tmp_path, {"plain": {"fail": [1], "die": [0]}})
    (run,) = made.runs
    with pytest.raises(SystemExit, match="ended by SIGKILL"):
        do("train", made, run)
    with pytest.raises(SystemExit, match="train failed: train.py: the learning rate is a banana"):
        do("train", made, run)
    with pytest.raises(SystemExit, match="not tried again: train.py: the learning rate is a ban"):
        do("train", made, run)
    assert len(epochs(run)) == 2
    # the front forgets it when it is started again
    (run.folder / "failed.json").unlink()
    (run.folder / "fake.json").write_text('{"found": []}')
    do("train", made, run)
    assert epochs(run)[-1] == "resumed at 1"


def test_the_reason_is_of_this_attempt(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("train.py: of an earlier one\n")
    begin = log.stat().st_size
    with open(log, "a") as file:
        file.write("[rank1]: RuntimeError: CUDA error\n" + "word " * 900 + "\n")
        file.write("torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n====\n")
    kind, reason = job._reason(log, 1, begin)
    assert (kind, reason) == (job.FailedError, "RuntimeError: CUDA error (exit status 1)")
    assert job._reason(log, 1)[0] is job.PermanentError


def test_code_that_was_edited_meanwhile_trains_nothing(tmp_path, monkeypatch):
    made = make_plan(tmp_path, {"plain": {}})
    (run,) = made.runs
    monkeypatch.setattr(job.fingerprint, "code", lambda: "c" * 64)
    with pytest.raises(SystemExit, match="is not what it was when the table was started"):
        do("train", made, run)
    assert not (run.folder / "work").exists()
    with pytest.raises(SystemExit, match="no run nowhere any more: the table was started again"):
        job.main(["train", str(made.path), "nowhere"])


def test_a_full_disk_ends_no_training_that_goes_on(tmp_path, monkeypatch):
    made = make_plan(tmp_path, {"plain": {"seconds": 0.1}})
    (run,) = made.runs
    write = job.write_text

    def full(path, text):
        if path.name in ("running.json", "failed.json"):
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(job, "write_text", full)
    do("train", made, run)
    assert (run.folder / "train.json").exists()
    (run.folder / "train.json").unlink()
    (run.folder / "processes.json").write_text("8")
    with pytest.raises(SystemExit, match="begun with 8 processes"):
        do("train", made, run)


def test_gpus_of_one_allocation_are_shared_out(tmp_path, monkeypatch):
    """Inside of a Slurm job, the front's own jobs claim; those that it submits take all."""
    monkeypatch.setattr(job.devices.claim.__wrapped__, "__defaults__", (1, tmp_path, time.sleep))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    machine = Machine(devices=tuple("0123"))
    with contextlib.ExitStack() as stack:
        monkeypatch.delenv(job.FRONT, raising=False)
        assert job._devices(1, machine, stack) == list("0123")
        monkeypatch.setenv(job.FRONT, "host:1")
        assert job._devices(1, machine, stack) != job._devices(1, machine, stack)


def test_a_test_set_that_has_changed_is_not_evaluated(tmp_path):
    made = make_plan(tmp_path, {"plain": {}})
    (run,) = made.runs
    do("train", made, run)
    do("test", made, run)
    (tmp_path / "val.json").write_text((tmp_path / "val.json").read_text() + " ")
    with pytest.raises(SystemExit, match="has changed since the run was planned"):
        do("evaluate", made, run)
    assert not run.result.exists()


def test_two_processes_do_not_train_one_run_at_once(tmp_path):
    made = make_plan(tmp_path, {"plain": {"seconds": 0.2}})
    (run,) = made.runs
    command = [sys.executable, "-m", "mmattn.reproduction.job", "train"]
    both = [subprocess.Popen([*command, str(made.path), str(run.folder)]) for _ in range(2)]
    running = False
    while any(process.poll() is None for process in both):
        running |= status.of(run).text.startswith("training")
        time.sleep(0.02)
    assert [process.returncode for process in both] == [0, 0]
    assert epochs(run) == ["resumed at 0"]
    assert running


def test_a_job_that_is_ended_takes_its_training_along(tmp_path):
    made = make_plan(tmp_path, {"plain": {"seconds": 30}})
    (run,) = made.runs
    command = [sys.executable, "-m", "mmattn.reproduction.job", "train"]
    for sent in ("terminate", "kill"):
        process = subprocess.Popen([*command, str(made.path), str(run.folder)])
        while status.of(run).kind != "running" or not epochs_begun(run):
            time.sleep(0.02)
        getattr(process, sent)()
        process.wait(timeout=20)
        deadline = time.time() + 10
        while training(run) and time.time() < deadline:
            time.sleep(0.05)
        assert not training(run), sent
        assert status.of(run).kind != "failed"
        (run.folder / "epochs.txt").unlink()
        (run.folder / "running.json").unlink(missing_ok=True)


def epochs_begun(run):
    return (run.folder / "epochs.txt").exists()


def training(run):
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    return [
        line for line in listed.splitlines() if "tools/train.py" in line and str(run.folder) in line
    ]


def test_devices_are_claimed_by_one_at_a_time(tmp_path):
    held = []
    with claim(2, ["0", "1", "2"], folder=tmp_path) as first:
        assert len(set(first)) == 2

        def wait():
            held.append("waited")
            raise InterruptedError

        with claim(1, ["0", "1", "2"], folder=tmp_path) as second:
            assert not set(first) & set(second)
            with (
                pytest.raises(InterruptedError),
                claim(1, ["0", "1", "2"], folder=tmp_path, wait=wait),
            ):
                held.append("taken twice")
    assert held == ["waited"]
    with claim(3, ["0", "1", "2"], folder=tmp_path) as every:
        assert every == ["0", "1", "2"]
    with pytest.raises(ValueError, match="4 GPUs are needed"), claim(4, ["0"], folder=tmp_path):
        pass


def test_a_shared_device_takes_several_and_fills_evenly(tmp_path):
    devices = ["0", "1"]
    with (
        claim(1, devices, 2, tmp_path) as a,
        claim(1, devices, 2, tmp_path) as b,
        claim(1, devices, 2, tmp_path) as c,
    ):
        assert sorted(a + b) == devices
        assert c[0] in devices
        # one run never holds one device twice
        threads = []

        def both():
            with claim(2, devices, 2, tmp_path) as two:
                threads.append(two)

        thread = threading.Thread(target=both)
        thread.start()
        thread.join(0.2)
        assert threads == []
    thread.join(10)
    assert threads == [devices]
