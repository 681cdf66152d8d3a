"""Train a model: one configuration, one folder of results, the same command to start and to continue.

    python -m trace.train.train --config configs/train_nano.yaml --set output_dir=output/nano data=DATA/cor.json

The output folder is the trained model itself (Hugging Face's LLaVA format, or a PEFT adapter with the projector), with
`run.json` (configuration, versions, data hashes, time), `curves.png`, `log.jsonl`, `trainable.json`, TensorBoard's
files, and `checkpoints/` while the run lasts. A finished run is not repeated; an interrupted one continues from its
last save, and one that gets SIGTERM saves first and ends with code 143.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..core.records import read_json, sha256, write_json
from ..utils.command import (
    Incomplete,
    InputError,
    Parser,
    existing_file,
    existing_folder,
    output_folder,
    package_versions,
    run,
)
from ..utils.files import locked
from .config import TrainConfig, load_config
from .guards import PREEMPTED, Preempted, StopSignal, TrainingStopped
from .process_failure import FailTogether

# What may differ when a run continues: it changes how fast the same steps are made, not what they are.
MAY_CHANGE = {"resume", "dataloader_workers", "output_dir", "micro_batch_size", "pack_tokens", "attention"}
MAY_CHANGE |= {"save_total_limit", "report_to", "evaluation", "compile"}
COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++")  # torch.compile's, for its kernels or their launchers
# What a run that has not begun to learn may have left in its folder, and what launchers write there.
LEFT = ("failure.json", "trainable.json", "tensorboard", "wandb", "*.jsonl", ".*", "*.log", "*.out", "*.err")


def train(config: TrainConfig) -> Path | None:
    """Run a configuration to its end; returns the folder of the trained model, None when SIGTERM ended it before."""
    if not config.output_dir:
        raise InputError("output_dir: is empty; give the run a folder of its own")
    folder = output_folder(config.output_dir)
    process, processes = int(os.environ.get("RANK", "0")), world_size()
    busy = f"output_dir: another run is at work in {folder}; wait for it, stop it, or choose another folder"
    alone = locked(folder / ".lock", busy) if process == 0 else nullcontext()
    with alone, FailTogether(folder, process, processes), StopSignal() as stop:
        record = _open_record(config, folder, process)
        if record.get("finished"):
            print(f"{folder} is finished; nothing to do")
            if process == 0:  # of a run that was killed between its last two lines
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            return folder
        _check_inputs(config, processes)
        trained = _run(config, folder, record, stop)
        if trained is not None and process == 0:
            (folder / ".lock").unlink(missing_ok=True)  # a finished run is not begun again
        return trained


def _run(config: TrainConfig, folder: Path, record: dict[str, Any], stop: StopSignal) -> Path | None:
    if config.objective == "vision":
        from .vision_pretraining import prepare
    else:
        from .sft import prepare
    from .arguments import begin, training_arguments
    from .checkpoints import last_checkpoint
    from .outputs import Clock, finish

    begin(config)
    prepared = prepare(config, lambda passes: training_arguments(config, folder, passes), folder, stop)
    trainer = prepared.trainer
    if trainer.is_world_process_zero():
        write_json(folder / "run.json", record)
        if config.resume == "never":
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    last = last_checkpoint(folder / "checkpoints") if config.resume == "auto" else None
    if last is not None and trainer.is_world_process_zero():
        print(f"continues from {last}")
    started = time.monotonic()
    trainer.add_callback(Clock(folder))
    stop.after_a_step = True
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except (RuntimeError, ConnectionError, EOFError) as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for every process that ends, here too
        if not _loading_process_died(error):
            raise
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise Incomplete(
            f"a process that loads data died ({reason}); the same command continues from the last checkpoint"
        ) from None
    if prepared.preempted:
        if trainer.is_world_process_zero():
            step = trainer.state.global_step
            print(f"stopped by SIGTERM after step {step}, which is saved; the same command continues")
        return None
    finish(prepared, folder, record, time.monotonic() - started)
    return folder


def _loading_process_died(error: Exception) -> bool:
    """Whether a DataLoader lost one of its processes: torch says so itself, or finds the pipe to it closed."""
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker")
    frames = traceback.extract_tb(error.__traceback__)
    return any("torch/utils/data" in frame.filename for frame in frames)


def _open_record(config: TrainConfig, folder: Path, process: int) -> dict[str, Any]:
    """The run's record; InputError when the folder holds a run of another configuration, of other data, or no run."""
    wanted = dataclasses.asdict(config)
    path = folder / "run.json"
    hashes = _hashes(config) if process == 0 else {}
    if not path.is_file():
        strange = sorted(one.name for one in folder.iterdir() if not any(fnmatch(one.name, name) for name in LEFT))
        if strange and not path.is_file():  # another process may have begun in between
            raise InputError(
                f"output_dir: {folder} holds {strange[0]} and no run.json of a run, and training would write over what "
                "is there; choose a folder that is new or empty"
            )
        versions = package_versions("trace-vlm", "torch", "transformers", "accelerate", "peft", "deepspeed")
        versions["machine"] = platform.machine()
        return {"config": wanted, "versions": versions, "data_sha256": hashes, "finished": False}
    found = read_json(path)
    for key, value in wanted.items():
        if key not in _may_change(config) and found.get("config", {}).get(key) != value:
            raise InputError(
                f"{folder} holds a run with {key}: {found.get('config', {}).get(key)!r}, now {value!r}; "
                "choose another output_dir or remove the folder"
            )
    for name, digest in hashes.items():
        if found.get("data_sha256", {}).get(name, digest) != digest:
            raise InputError(
                f"data: {name} is not what it was when the run in {folder} began; choose another output_dir or remove "
                "the folder"
            )
    return {**found, "config": wanted}


def _may_change(config: TrainConfig) -> set[str]:
    """MAY_CHANGE, less what decides which rows are averaged together where a mean over forward passes is learned."""
    means = config.loss_norm == "microbatch" or config.grounding_loss is not None
    return MAY_CHANGE - ({"micro_batch_size", "pack_tokens"} if means else set())


def _check_inputs(config: TrainConfig, processes: int) -> None:
    from ..core.prompts import template

    if not config.data:
        raise InputError("data: is empty; name the files to learn from")
    for path in config.data:
        if config.objective == "vision":
            existing_folder(path, "data: the folder of scenes")
        else:
            existing_file(path, "data: the file")
    if config.objective == "language":
        existing_folder(config.image_folder, "image_folder:")
        try:
            template(config.template)
        except InputError as error:
            raise InputError(f"template: {error}") from None
    if isinstance(config.model, str) and config.model.startswith(("/", "./", "../")):
        existing_folder(config.model, "model: the folder")
    if config.evaluation is not None:
        existing_folder(config.evaluation.benchmark, "evaluation.benchmark: the folder")
    if config.compile and not any(map(shutil.which, COMPILERS)):
        raise InputError("compile: needs a C++ compiler, such as g++, and finds none; install one or set it to false")
    if config.deepspeed is not None:
        existing_file(config.deepspeed, "deepspeed: the configuration")
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"report_to: {name} is not installed; pip install {name}, or take it out")
    if not config.packing:
        config.accumulation(processes)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _hashes(config: TrainConfig) -> dict[str, str]:
    names = [Path(path) / "views.jsonl" if config.objective == "vision" else Path(path) for path in config.data]
    return {str(path): sha256(path) for path in names if path.is_file()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.train.train", description="Train a model from a YAML configuration.")
    parser.add_argument("--config", required=True, help="the YAML file; its keys are the fields of TrainConfig")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the file"
    )
    parser.add_argument("--local-rank", type=int, default=-1, help="set by the deepspeed launcher")
    args = parser.parse_args(argv)
    try:
        folder = train(load_config(args.config, args.set))
    except Preempted as error:
        print(error)
        return PREEMPTED
    except TrainingStopped as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if folder is None:
        return PREEMPTED
    if os.environ.get("RANK", "0") == "0":
        print(f"model: {folder}")
    return 0


def _end(code: int) -> None:
    """End one of several processes at once: threads of the collectives can abort an ordinary exit after all is done."""
    if world_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    _end(run(main))
