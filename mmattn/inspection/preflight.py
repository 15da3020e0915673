"""What would stop a training or a test, said in one sentence before it starts.

``tools/train.py`` and ``tools/test.py`` are command lines over these functions. Imports of
torch and mmengine wait until they are needed, so that a mistyped path is answered at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import warnings
from pathlib import Path
from urllib.error import URLError

from mmattn.checkpoints.files import CheckpointError
from mmattn.datasets import corrupt_images
from mmattn.inspection import (
    attention_option,
    checkpoint_file,
    class_folders,
    config_file,
    evaluators,
)
from mmattn.inspection._console import PreflightError, is_first_process, say, warn

__all__ = [
    "PreflightError",
    "build_runner",
    "check_data",
    "check_weights",
    "guard",
    "print_outcome",
    "report",
    "testing_config",
    "training_config",
]

# an optional package of another metric of mmdet; how mmengine 0.10.7 finds packages
NEEDLESS_WARNINGS = ("faster_coco_eval is not installed", "pkg_resources is deprecated")


@contextlib.contextmanager
def guard(tool: str, resumable: bool = False):
    """Ends the process with one line on stderr for a user's mistake (1) and for Ctrl-C (130)."""
    for needless in NEEDLESS_WARNINGS:
        warnings.filterwarnings("ignore", needless)
    interrupted = []

    def note_and_raise(*signal_and_frame):
        interrupted.append(True)
        signal.default_int_handler(*signal_and_frame)

    before = signal.signal(signal.SIGINT, note_and_raise)
    try:
        yield
        _leave_group()
    except PreflightError as error:
        _exit(f"{tool}: {error}", 1)
    except CheckpointError as error:
        # in whichever process: one that writes its own piece may be the only one without room
        raise SystemExit(f"{tool}: {error}") from error
    except BaseException as error:
        if isinstance(error, URLError) and os.environ.get("MMATTN_TRACEBACK") != "1":
            _exit(f"{tool}: {_no_network(error)}", 1)
        # Ctrl-C ends the loader's workers too, and PyTorch may report that in its place
        if not (interrupted or isinstance(error, KeyboardInterrupt)):
            raise
        again = shlex.join([_python(), *sys.argv])
        if resumable:
            resume = "" if any(a.startswith("--resume") for a in sys.argv) else " --resume"
            _exit(f"{tool}: interrupted; go on from the last checkpoint: {again}{resume}", 130)
        _exit(f"{tool}: interrupted", 130)
    finally:
        signal.signal(signal.SIGINT, before)


def _no_network(error: URLError) -> str:
    return (
        f"a file cannot be downloaded ({error.reason}), pre-trained weights most likely: run it "
        "once where there is a network (they are kept in ~/.cache/torch/hub/checkpoints), or name "
        "a file: --cfg-options model.backbone.init_cfg.checkpoint=/path/to/resnet50.pth "
        "(MMATTN_TRACEBACK=1 shows where)"
    )


def _leave_group() -> None:
    """Ends the process group: a process that exits while gloo's threads run may abort."""
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _python() -> str:
    """The interpreter as the user would type it."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    near = os.path.relpath(sys.executable)
    return sys.executable if near.startswith("..") else near


def _exit(sentence: str, status: int) -> None:
    warn(sentence)
    raise SystemExit(status)


def training_config(args):
    """The checked config of a training, or None if it is complete already.

    Args:
        args: The parsed command line of ``tools/train.py``.
    """
    cfg = _common_config(args)
    if args.amp:
        import torch

        if not torch.cuda.is_available():
            raise PreflightError("--amp needs a GPU, and PyTorch finds none: leave it out")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.loss_scale = "dynamic"
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise PreflightError(
                "--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the "
                f"config, got {cfg.get('auto_scale_lr')}"
            )
        cfg.auto_scale_lr.enable = True
    _go_on_exactly(cfg)
    content = None
    if args.resume == "auto" or (
        cfg.get("resume") and not args.resume and not cfg.get("load_from")
    ):
        content = _resume_latest(cfg)
    elif args.resume:
        cfg.resume, cfg.load_from = True, args.resume
    if cfg.get("load_from") and content is None and checkpoint_file.is_local(cfg.load_from):
        content = checkpoint_file.read(cfg.load_from)
        if cfg.get("resume"):
            checkpoint_file.check_resumable(content, cfg.load_from)
    if cfg.get("resume") and content and _is_complete(cfg.train_cfg, content["meta"]):
        say(f"training was complete already: {cfg.load_from}")
        return None
    check_data(cfg, ("train", "val"))
    for path in checkpoint_file.take_backbones(cfg.model):
        say(f"backbone: that of the whole model in {path}")
    _check_pretrained(cfg.model)
    return cfg


def _go_on_exactly(cfg) -> None:
    """Gives a training the hooks with which it survives being killed, if its config has no others.

    ``type='mmengine.CheckpointHook'`` and ``dict(type='mmattn.ResumeExactlyHook', enabled=False)``
    say otherwise.
    """
    from mmengine.hooks import CheckpointHook

    hooks = dict(cfg.get("default_hooks") or {})
    checkpoint = hooks.get("checkpoint", dict(type="CheckpointHook", interval=1))
    usual = ("CheckpointHook", "mmengine.hooks.CheckpointHook", CheckpointHook)
    if checkpoint is not None and checkpoint.get("type") in usual:
        hooks["checkpoint"] = dict(checkpoint, type="mmattn.SafeCheckpointHook")
        cfg.default_hooks = hooks
    custom = list(cfg.get("custom_hooks") or [])
    types = [hook.get("type") for hook in custom if isinstance(hook, dict)]
    if not any(getattr(t, "__name__", str(t)).endswith("ResumeExactlyHook") for t in types):
        cfg.custom_hooks = [*custom, dict(type="mmattn.ResumeExactlyHook")]


def _resume_latest(cfg) -> dict | None:
    """Points the config at the newest whole checkpoint; None where there is none yet."""
    latest = checkpoint_file.latest(cfg.work_dir)
    if latest is None:
        # keeps a load_from of the config, which a resume would ignore
        cfg.resume = False
        say(f"nothing to resume in {cfg.work_dir}: training from the beginning")
        return None
    cfg.resume, (cfg.load_from, content) = True, latest
    return content


def _is_complete(train_cfg, meta: dict) -> bool:
    units = {"max_iters": "iter", "max_epochs": "epoch"}
    return any(key in train_cfg and meta[unit] >= train_cfg[key] for key, unit in units.items())


def testing_config(args):
    """The checked config of a test.

    Args:
        args: The parsed command line of ``tools/test.py``.
    """
    cfg = _common_config(args)
    cfg.resume, cfg.load_from = False, args.checkpoint
    if os.path.isdir(args.checkpoint):
        latest = checkpoint_file.latest(args.checkpoint)
        if latest is None:
            raise PreflightError(f"folder {args.checkpoint} has no whole checkpoint of a training")
        cfg.load_from = latest[0]
    elif checkpoint_file.is_local(args.checkpoint):
        checkpoint_file.read(args.checkpoint)
    check_data(cfg, ("test",))
    if args.show or args.show_dir:
        if _is_classifier(cfg):
            raise PreflightError("--show and --show-dir draw detections: leave them out")
        from mmdet.engine.hooks.utils import trigger_visualization_hook

        if "visualization" not in cfg.get("default_hooks", {}):
            raise PreflightError(
                "--show and --show-dir need default_hooks.visualization in the config: "
                "add dict(type='DetVisualizationHook')"
            )
        cfg = trigger_visualization_hook(cfg, args)
    if args.tta:
        if _is_classifier(cfg) and "tta_model" not in cfg:
            raise PreflightError(
                "--tta needs tta_model and tta_pipeline in the config of a classifier: add "
                "tta_model=dict(type='AverageClsScoreTTA') and a pipeline with TestTimeAug"
            )
        _test_time_augmentation(cfg)
    return cfg


def _is_classifier(cfg) -> bool:
    return cfg.get("default_scope") in ("mmpretrain", "mmcls")


def _test_time_augmentation(cfg) -> None:
    """Wraps the model and the pipeline; flips where the config does not say what to do."""
    from mmengine.config import ConfigDict

    if "tta_model" not in cfg:
        nms = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
        cfg.tta_model = dict(type="DetTTAModel", tta_cfg=nms)
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    if "tta_pipeline" not in cfg:
        keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
        pack = dict(type="PackDetInputs", meta_keys=(*keys, "flip", "flip_direction"))
        flips = [dict(type="RandomFlip", prob=prob) for prob in (1.0, 0.0)]
        flip = dict(type="TestTimeAug", transforms=[flips, [pack]])
        cfg.tta_pipeline = [*dataset.pipeline[:-1], flip]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _common_config(args):
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = config_file.load(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not cfg.get("work_dir"):
        # with another model than the config's, another folder
        wish = f"_{attention_option.slug(args.attention)}" if args.attention else ""
        cfg.work_dir = os.path.join("./work_dirs", Path(cfg.filename).stem + wish)
    if args.attention is not None:
        attention_option.apply(cfg, args.attention)
    corrupt_images.apply(cfg)
    return cfg


def check_data(cfg, splits: tuple[str, ...]) -> None:
    """Raises PreflightError for the first annotation file or image folder that is not there.

    So do class folders that do not fit the model. Only local files are looked for: a
    ``backend_args`` or a URL says that data are elsewhere.
    """
    datasets = []
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        for dataset in config_file.maps((loader or {}).get("dataset")):
            _check_dataset(dataset, f"{split}_dataloader")
            datasets.append((f"{split}_dataloader", dataset))
        for metric in config_file.maps(cfg.get(f"{split}_evaluator")):
            _check_path(metric, metric.get("ann_file"), "annotation file", f"{split}_evaluator")
    class_folders.check(cfg, datasets)


def _check_dataset(dataset, owner: str) -> None:
    root = dataset.get("data_root") or ""
    if dataset.get("ann_file"):
        path = os.path.join(root, str(dataset["ann_file"]))
        _check_path(dataset, path, "annotation file", owner, root)
    prefixes = dataset.get("data_prefix")
    for prefix in prefixes.values() if isinstance(prefixes, dict) else ():
        if isinstance(prefix, str):
            _check_path(dataset, os.path.join(root, prefix), "image folder", owner, root)
    _check_path(dataset, class_folders.folder(dataset), "image folder", owner, root)


def _check_path(node, path, what: str, owner: str, root: str = "") -> None:
    backend = (node.get("backend_args") or {}).get("backend", "local")
    if not isinstance(path, str) or not path or backend != "local" or "://" in path:
        return
    if what == "image folder":
        if os.path.isdir(path) and next(os.scandir(path), None):
            return
        state = "is empty" if os.path.isdir(path) else "does not exist"
    else:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                start = file.read(64)
            if not path.endswith(".json") or start.lstrip().startswith((b"{", b"[")):
                return
            raise PreflightError(
                f"{what} {path} of {owner} is not JSON: expected a COCO annotation file, got one "
                f"that starts with {start[:16]!r}"
            )
        state = "does not exist"
    root = root or os.path.dirname(os.path.dirname(path))
    raise PreflightError(
        f"{what} {path} of {owner} {state} (looked in {os.getcwd()}): link the dataset to "
        f"{root.rstrip('/') or '.'} or give --cfg-options data_root=/path/to/it/"
    )


def _check_pretrained(model) -> None:
    """Reads the local checkpoints that parts of the model start from."""
    for node in config_file.maps(model):
        for path, _ in config_file.pretrained(node.get("init_cfg")):
            if checkpoint_file.is_local(path):
                checkpoint_file.read(path, "pretrained checkpoint")


def check_types(model) -> None:
    """Raises PreflightError for a plug-in, or a type of mmattn, that no registry knows.

    mmcv's own message does not say which name it looked for.
    """
    from mmattn.registry import unknown_type

    for node in config_file.maps(model):
        plugins = [p.get("cfg") for p in node.get("plugins") or () if isinstance(p, dict)]
        for part in [node, *filter(None, plugins)]:
            name = part.get("type")
            asked = isinstance(name, str) and (name.startswith("mmattn.") or part is not node)
            if asked and (problem := unknown_type(name)):
                raise PreflightError(f"the config asks for {problem}")


def build_runner(cfg):
    """The Runner of a checked config.

    Raises:
        PreflightError: A part of it does not take its arguments. ``MMATTN_TRACEBACK=1`` shows
            where.
    """
    from mmattn.inspection import build

    with build.explained(cfg):
        runner = _build_runner(cfg)
    evaluators.check_evaluators(cfg)
    check_insertions(runner.model)
    return runner


def check_insertions(model) -> None:
    """Raises PreflightError for a module of ``mmattn.Attach`` that nothing calls any more."""
    from mmattn.insertion import insertions

    lost = [one for one in insertions(model) if not one.called]
    if lost:
        raise PreflightError(
            f"{lost[0].name} is never called: {lost[0].target} was replaced after the module was "
            "attached, as sync_bn= does with norm layers; leave sync_bn out and give "
            "norm_cfg=dict(type='SyncBN', requires_grad=True) to the backbone instead"
        )


def _build_runner(cfg):
    import torch
    from mmdet.utils import setup_cache_size_limit_of_dynamo
    from mmengine.registry import RUNNERS

    from mmattn.inspection.runner import ConsoleRunner

    checkpoint_file.allow_training_state()
    check_types(cfg.model)
    kind = (cfg.get("strategy") or {}).get("type", "")
    if str(getattr(kind, "__name__", kind)).endswith("FSDPStrategy"):
        if not torch.cuda.is_available():
            raise PreflightError(
                "strategy=dict(type='FSDPStrategy') needs GPUs, and PyTorch finds none: leave out "
                "strategy and runner_type"
            )
        if cfg.get("launcher", "none") == "none":
            raise PreflightError(
                "strategy=dict(type='FSDPStrategy') needs a --launcher: start the training with "
                "tools/dist_train.sh or tools/slurm_train.sh"
            )
    setup_cache_size_limit_of_dynamo()
    if cfg.get("launcher") == "pytorch" and not torch.cuda.is_available():
        # mmengine takes every process for one of a GPU, unless the group is there already
        torch.distributed.init_process_group("gloo")
        unused = cfg.get("find_unused_parameters", False)
        wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False)
        cfg.setdefault("model_wrapper_cfg", dict(wrapper, find_unused_parameters=unused))
        cfg.model_wrapper_cfg.setdefault("device_ids", None)
        _strategy_on_cpu(cfg)
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else ConsoleRunner.from_cfg(cfg)
    if isinstance(runner.model, dict):  # a FlexibleRunner builds it when it trains
        runner.model = runner.strategy.build_model(runner.model)
    runner.message_hub.update_info("mmattn/config", str(cfg.filename), resumed=False)
    return runner


def _strategy_on_cpu(cfg) -> None:
    """The wrapper of a FlexibleRunner's model, without a GPU."""
    strategy = cfg.get("strategy") or dict(type="DDPStrategy")
    kind = getattr(strategy["type"], "__name__", strategy["type"]).rpartition(".")[2]
    if cfg.get("runner_type") and kind == "DDPStrategy":
        wrapper = dict(type="MMDistributedDataParallel", broadcast_buffers=False, device_ids=None)
        cfg.strategy = dict(strategy, model_wrapper=wrapper | (strategy.get("model_wrapper") or {}))


def check_hooks(runner) -> None:
    """Raises PreflightError for a hook of mmattn that would find nothing to train or to log."""
    from mmengine.model import is_model_wrapper

    from mmattn.hooks import FreezeExceptHook, GateLogHook

    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    for hook in runner.hooks:
        if isinstance(hook, (FreezeExceptHook, GateLogHook)):
            try:
                hook.find(model)
            except (TypeError, ValueError) as error:
                raise PreflightError(str(error)) from error


def check_weights(runner, training: bool) -> list:
    """Raises PreflightError if the local checkpoints of a run do not fit its model.

    Returns:
        Those that a training starts from, as :func:`mmattn.inspection.weights.sources` does.
    """
    from mmattn.inspection import weights

    path, resume = runner.cfg.get("load_from"), bool(runner.cfg.get("resume"))
    sources = weights.sources(runner.model, path, resume or not training)
    if path and checkpoint_file.is_local(path):
        if not training:
            runner.message_hub.update_info("mmattn/checkpoint", path, resumed=False)
        elif resume:
            _check_optimizer(runner, checkpoint_file.read(path), path)
    return sources


def report(runner, sources: list) -> None:
    """Says in a few lines what is inserted in the model, and what goes silently wrong with it.

    A training does not depend on it: what fails here is one line.

    Args:
        runner: Before its training.
        sources: What :func:`check_weights` returned.
    """
    if not is_first_process():
        return
    try:
        from mmattn.inspection.check_config import look_at

        model = getattr(runner.model, "module", runner.model)
        found = look_at(runner.cfg, model, sources, runner.world_size)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        warn(f"warning: the config check has failed: {type(error).__name__}: {reason}")
        return
    for sentence in found.short():
        say(f"inserted: {sentence}")
    for name, sentence, line in found.findings:
        warn(f"warning: {name}: {sentence}\n    {line}")


def _check_optimizer(runner, content: dict, path: str) -> None:
    if not hasattr(runner, "build_optim_wrapper"):
        return  # a FlexibleRunner, which builds it when the model is sharded
    # the one that runner.train() will use
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    saved = content.get("optimizer", {}).get("param_groups")
    if saved is None or not hasattr(runner.optim_wrapper, "optimizer"):
        return
    sizes = [len(group["params"]) for group in saved]
    expected = [len(group["params"]) for group in runner.optim_wrapper.optimizer.param_groups]
    if sizes != expected:
        raise PreflightError(
            f"checkpoint {path} was saved with another optimizer, of {len(sizes)} parameter groups "
            f"and {sum(sizes)} parameters; that of this config has {len(expected)} and "
            f"{sum(expected)}: undo the change to optim_wrapper, or start from its weights in a "
            "new --work-dir with --cfg-options load_from=..."
        )


def print_outcome(runner, **files: str | None) -> None:
    """Names the files that a run has left, ``files`` among them."""
    hub = runner.message_hub
    last = hub.get_info("last_ckpt", None)
    found = {"last checkpoint": last} if last else {"checkpoint": runner.cfg.get("load_from")}
    for key, path in hub.runtime_info.items():
        if key.startswith("best_ckpt"):
            found[key.replace("best_ckpt", "best checkpoint").replace("_", " ", 1)] = path
    found["AP by size"] = hub.get_info("mmattn/ap_by_size_file", None)
    found |= files
    found["log"] = os.path.join(runner.log_dir, f"{runner.timestamp}.log")
    for name, path in found.items():
        if path:
            near = os.path.relpath(path)
            say(f"{name}: {path if near.startswith('..') else near}")
