"""Train a model: one configuration, one folder of results, the same command to start and to continue.

    python -m trace.train.train --config configs/train_nano.yaml --set output_dir=output/nano data=DATA/cor.json

The output folder is the trained model (LLaVA's Hugging Face format, or a PEFT adapter with the projector) with
`run.json`, `curves.png`, `log.jsonl`, `trainable.json`, and `checkpoints/` while the run lasts. A finished run is not
repeated, an interrupted one continues from its last checkpoint; on SIGTERM or Ctrl-C it saves and ends with code 143.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.images import Images
from ..core.prompts import template
from ..core.records import read_samples
from ..model.presets import check_available, resolve_model
from ..utils import command
from ..utils.command import Incomplete, InputError, existing_file, existing_folder
from ..utils.files import locked, read_json, sha256, write_json
from .config import FEW_STEPS, FEWEST_STEPS, TrainConfig, load_config
from .guards import PREEMPTED, Preempted, StopSignal, broken_ids, end_together

# What may differ when a run continues: it changes how fast the same steps are made, not what they are.
MAY_CHANGE = {"resume", "dataloader_workers", "output_dir", "micro_batch_size", "pack_tokens", "attention"}
MAY_CHANGE |= {"save_total_limit", "report_to", "evaluation", "compile"}
FIRST = 20  # samples of each file whose images are looked for before anything is loaded
# What a run may have left in its folder before its first step, and what launchers write there.
LEFTOVERS = ("failure.json", "trainable.json", "tensorboard", "wandb", "*.jsonl", ".*", "*.log", "*.out", "*.err")
WRITTEN_LAST = ("config.json", "adapter_config.json")  # without them the folder is no model yet


def train(config: TrainConfig) -> Path | None:
    """Run a configuration to its end; return the folder of the trained model, None if SIGTERM or Ctrl-C ended it before."""
    if not config.output_dir:
        raise InputError("output_dir: is empty. Give the run a folder of its own.")
    folder = command.output_folder(config.output_dir)
    process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    busy = f"output_dir: another run is writing to {folder}. Wait for it, stop it, or choose another folder."
    lock = locked(folder / ".lock", busy) if process == 0 else nullcontext()
    with lock, end_together(folder, process, processes), StopSignal() as stop:
        record = _open_record(config, folder, process)
        if record.get("finished"):
            print(f"{folder} is finished; nothing to do")
            trained: Path | None = folder
            if process == 0:  # of a run that was killed between its last two lines
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        else:
            check_inputs(config, processes)
            trained = _run(config, folder, record, stop)
        if trained is not None and process == 0:
            (folder / ".lock").unlink(missing_ok=True)  # a finished run does not start again
        return trained


def _open_record(config: TrainConfig, folder: Path, process: int) -> dict[str, Any]:
    """The run's record; InputError if the folder holds a run of another configuration or other data, or no run."""
    wanted, path = dataclasses.asdict(config), folder / "run.json"
    names = [Path(name) / "views.jsonl" if config.objective == "vision" else Path(name) for name in config.data]
    hashes = {str(name): sha256(name) for name in names if name.is_file()} if process == 0 else {}
    if not path.is_file():
        other = sorted(p.name for p in folder.iterdir() if not any(fnmatch(p.name, name) for name in LEFTOVERS))
        if other and not path.is_file():  # another process may have begun in between
            raise InputError(f"output_dir: {folder} holds {other[0]} but no run.json. Choose a new or empty folder.")
        versions = command.package_versions("trace-vlm", "torch", "transformers", "accelerate", "peft", "deepspeed")
        versions["machine"] = platform.machine()
        return {"config": wanted, "versions": versions, "data_sha256": hashes, "finished": False}
    record, may_change = read_json(path), MAY_CHANGE
    if config.loss_norm == "microbatch" or config.grounding_loss is not None:  # means over forward passes
        may_change = MAY_CHANGE - {"micro_batch_size", "pack_tokens"}
    defaults = {key.name: key.default for key in dataclasses.fields(config)}  # of keys that did not exist then
    for key, value in wanted.items():
        if key not in may_change and (before := record.get("config", {}).get(key, defaults[key])) != value:
            raise InputError(f"{folder} holds a run with {key}: {before!r}, now {value!r}. Choose another output_dir.")
    for name, digest in hashes.items():
        if record.get("data_sha256", {}).get(name, digest) != digest:
            raise InputError(f"data: {name} has changed since the run in {folder} began. Choose another output_dir.")
    return {**record, "config": wanted}


def check_inputs(config: TrainConfig, processes: int) -> None:
    """Check that the files, folders and packages of a configuration exist; InputError names the key."""
    fresh = config.grpo is not None and config.grpo.scenes is not None
    if not config.data and not fresh:
        raise InputError("data: is empty. Name the files to learn from.")
    for path in config.data if config.objective == "vision" else ():
        existing_folder(path, "data: the folder of scenes")
    if config.objective != "vision":
        for path in config.data:
            existing_file(path, "data: the file")
        if not fresh:
            images = Images(existing_folder(config.image_folder, "image_folder:"))
            first = (sample for path in config.data for sample in islice(read_samples(path), FIRST))
            images.require_any(sample.image for sample in first if sample.image)
        try:
            template(config.template)
        except InputError as error:
            raise InputError(f"template: {error}") from None
    if isinstance(config.model, str) and config.model.startswith(("/", "./", "../")):
        existing_folder(config.model, "model: the folder")
    if config.evaluation is not None:
        existing_folder(config.evaluation.benchmark, "evaluation.benchmark: the folder")
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")  # torch.compile needs one, also for its GPU kernels
    if config.compile and not any(map(shutil.which, compilers)):
        raise InputError("compile: no C++ compiler, such as g++, was found. Install one or set compile to false.")
    if config.deepspeed is not None:
        existing_file(config.deepspeed, "deepspeed: the configuration")
        if importlib.util.find_spec("deepspeed") is None:
            raise InputError("deepspeed: is not installed. Run bash environment_setup.sh --gpu, or set deepspeed=null.")
    for name in config.report_to:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"report_to: {name} is not installed. Run pip install {name}, or remove it.")
    if not config.packing:
        config.accumulation(processes)


def _run(config: TrainConfig, folder: Path, record: dict[str, Any], stop: StopSignal) -> Path | None:
    if config.objective == "vision":
        from .vision_pretraining import prepare
    elif config.objective == "grpo":
        from .rl import prepare
    else:
        from .sft import prepare
    from .checkpoints import last_checkpoint
    from .step_metrics import LogWriter
    from .trainer import init_distributed

    init_distributed(config)
    trainer = prepare(config, folder, stop)
    is_first = trainer.is_world_process_zero()
    last = last_checkpoint(folder / "checkpoints") if config.resume == "auto" else None
    if is_first:
        write_json(folder / "run.json", record)
        if config.resume == "never":
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        if last is not None:
            print(f"resuming from {last}")
        if config.objective == "language":
            rows = len(trainer.train_dataset)
            steps = config.steps(rows)
            print(f"{steps:,} steps of {config.global_batch_size} rows, of {rows:,} rows")
            if steps < FEWEST_STEPS:
                print(FEW_STEPS)
    trainer.add_callback(LogWriter(folder))
    stop.stepping = True
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    except (RuntimeError, ConnectionError, EOFError) as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for every process that ends, here too
        # A DataLoader lost a worker: torch says so itself, or finds the pipe to it closed.
        frames = traceback.extract_tb(error.__traceback__)
        closed = any("torch/utils/data" in frame.filename for frame in frames)
        if not (str(error).startswith("DataLoader worker") if isinstance(error, RuntimeError) else closed):
            raise
        reason = f"a process that loads data died ({str(error).strip().rstrip('.') or type(error).__name__})"
        raise Incomplete(f"{reason}; the same command continues from the last checkpoint") from None
    if trainer.preempted:
        if is_first:
            print(
                f"stopped by {stop.name} and saved after step {trainer.state.global_step}; the same command continues"
            )
        return None
    _save_results(trainer, folder, record)
    return folder


def _save_results(trainer: Any, folder: Path, record: dict[str, Any]) -> None:
    """Save the model into the run's folder, then mark the run finished. All processes take part."""
    from .checkpoints import explain_full_disk
    from .step_metrics import write_curves

    unfinished = folder / ".model"
    if trainer.is_world_process_zero():
        shutil.rmtree(unfinished, ignore_errors=True)
    with explain_full_disk(folder):
        trainer.save_trained(unfinished)
    if not trainer.is_world_process_zero():
        return
    for file in sorted(unfinished.iterdir(), key=lambda path: path.name in WRITTEN_LAST):
        os.replace(file, folder / file.name)
    unfinished.rmdir()
    history, broken = trainer.state.log_history, broken_ids(folder)
    write_curves(history, folder)
    timed = next(entry for entry in reversed(history) if "cpu_seconds" in entry)
    if broken:
        print(f"{len(broken)} samples had unreadable images and were not learned from")
    results = {"finished": True, "steps": trainer.state.global_step, "processes": trainer.args.world_size}
    results |= {name: timed[name] for name in ("seconds", "cpu_seconds")}
    write_json(folder / "run.json", {**record, **results, "broken_images": broken, **trainer.notes})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = command.Parser(description="Train a model from a YAML configuration.", examples=__doc__)
    parser.add_argument("--config", required=True, help="YAML file; its keys are the fields of TrainConfig")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--local-rank", type=int, default=-1, help="set by the deepspeed launcher")
    parser.add_argument("--check", type=int, metavar="N", help="only check the run's inputs, for N processes")
    args = parser.parse_args(argv)
    if args.check is not None:
        config = load_config(args.config, args.set)
        check_inputs(config, args.check)
        models = [config.model] if isinstance(config.model, str) else [*dataclasses.asdict(config.model).values()]
        for name in filter(None, models):
            check_available(resolve_model(name))
        return 0
    try:
        folder = train(load_config(args.config, args.set))
    except Preempted as error:
        print(error)
        return PREEMPTED
    if folder is not None and os.environ.get("RANK", "0") == "0":
        print(f"model: {folder}")
    return PREEMPTED if folder is None else 0


def exit_process(code: int) -> None:
    """Exit; at once if there are several processes, whose collectives' threads can abort an ordinary exit."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


if __name__ == "__main__":
    exit_process(command.run(main))
