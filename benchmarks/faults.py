"""Kills and other faults: does a long command that is started again end as if nothing had happened?

    OMP_NUM_THREADS=1 python benchmarks/faults.py [--only generate eval] [--kills 10] [--out RESULTS.json]

A command runs once undisturbed. Then, for each kill, it starts in a new folder, its processes get SIGKILL at a moment
between its first file and its end (one in each of `--kills` equal parts of that time), and the same command runs again.
What it leaves is compared with the undisturbed run: records by their ids, files by their bytes and, where these differ,
by their content without measured values. The other faults are one row each; root is needed to mount a small disk.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx
from outputs import MEASURED, compare, files, half_written, ids

from trace_vlm.utils.files import write_json

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))
from api_server import one_point, reasoning, serving  # noqa: E402

MODEL, SCENES = ROOT / "trace/assets/nano", ROOT / "configs/scenes/nano.yaml"
TIMEOUT = 900.0  # seconds, after which a command counts as hanging
Row, Span = dict[str, Any], tuple[float, float]
FOUND = "failed", "lost", "twice", "differ", "missing", "half-written", "left over", "times only"


class Command(NamedTuple):
    """A command that runs in a folder of its own; `records` are the files of its records in the folder."""

    name: str
    words: str  # after `python -m trace_vlm.`, or after `python` for a script
    records: str
    processes: int = 1
    server: Callable[[Any], str] | None = None  # the answers of the remote model that it asks
    pool: str = ""  # after a worker was killed: "replaced", or "run again" if the command ends


def commands(inputs: Path, port: int) -> list[Command]:
    data, large, bench, configs = inputs / "data", inputs / "data/large.json", inputs / "bench", ROOT / "configs"
    asked = f"--base-url http://127.0.0.1:{port}/v1 --concurrency 2 --tries 2"
    few = f"--set output_dir=out model={MODEL} logging_steps=1 report_to=[] global_batch_size=4"
    lora = f"trainable.llm=lora lora.r=4 grounding_loss=null optimizer=adamw deepspeed={configs}/deepspeed/zero2.json"
    sft = f"{few} {lora} data=[{data}/cor.json] image_folder={data} max_steps=6 save_steps=2 micro_batch_size=2"
    rl = f"{few} max_steps=4 save_steps=1 micro_batch_size=4 grpo.group=4 grpo.max_new_tokens=24"
    return [
        Command("generate", "data.scenes.generate --out out --scenes 24 --views 2 --size 224 --workers 2",
                "out/data.json", pool="replaced"),
        Command("sources check", f"data.sources check --data {large} --images {data} --workers 2 --report report.jsonl "
                "--out checked.json", "checked.json", pool="replaced"),
        Command("reason rules", f"data.cor.build --data {large} --out cor.json", "cor.json"),
        Command("reason openai", f"data.cor.build --data {data}/data.json --images {data} --out cor.json --reasoner "
                f"openai --model m {asked}", "cor.json", server=reasoning),
        Command("mix", f"data.mix --config {inputs}/recipe.yaml --data-root {data} --out mix.json --split 0.2 --parquet "
                "parquet", "mi*[xt].json"),
        Command("train ZeRO-2 LoRA", f"train.train --config {configs}/train_nano.yaml {sft}", "out/log.jsonl", 2),
        Command("train GRPO", f"train.train --config {configs}/grpo_nano.yaml {rl} grpo.scenes.config={SCENES}",
                "out/log.jsonl", pool="run again"),
        Command("eval", f"eval.model_vqa --model {MODEL} --data {bench} --answers answers.jsonl --batch-size 4",
                "answers.jsonl"),
        Command("ask", f"eval.api_vqa --provider vllm --model m --convention unit --data {bench} --answers "
                f"answers.jsonl {asked}", "answers.jsonl", server=one_point),
        Command("attention_map", f"{ROOT}/visualization/attention_map.py --model {MODEL} --data {bench} --out out "
                "--end-idx 4 --max-new-tokens 120 --resume", "out/[0-9]*.json"),
        Command("serve", f"serve.serve --model {MODEL} --port {port}", ""),
    ]  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Write a small data set, with reasoning and in a larger copy, a benchmark and a recipe."""

    def call(words: str) -> None:
        subprocess.run([sys.executable, *f"-P -m trace_vlm.{words}".split()], check=True, capture_output=True)

    scenes, data = f"data.scenes.generate --size 128 --views 2 --config {SCENES} --out {folder}", folder / "data"
    call(f"{scenes}/data --scenes 12")
    call(f"{scenes}/bench --scenes 4 --seed 5 --benchmark")
    call(f"data.cor.build --data {data}/data.json --out {data}/cor.json")
    samples = json.loads((data / "data.json").read_text())
    copies = [{**one, "id": f"{copy}-{one['id']}"} for copy in range(1000 // len(samples)) for one in samples]
    write_json(data / "large.json", copies)
    source = {"name": "scenes", "kind": "llava", "path": "large.json", "licence": ["cc0-1.0"]}
    write_json(folder / "recipe.yaml", {"sources": [source]})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Run:
    """A command while it runs in `folder`; its output goes to a file beside the folder."""

    def __init__(self, command: Command, folder: Path, before: Sequence[str] = ()) -> None:
        words = command.words if ".py " in command.words else f"-P -m trace_vlm.{command.words}"
        variables = os.environ | {"TRACE_CACHE": "cache", "OPENAI_API_KEY": "key", "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": str(free_port()), "WORLD_SIZE": str(command.processes)}
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log, self.started = folder, folder.with_suffix(".log"), time.monotonic()
        with self.log.open("wb") as log:
            self.processes = [
                subprocess.Popen([*before, sys.executable, *words.split()], cwd=folder, stdout=log, stderr=log,
                                 env=variables | ({"RANK": rank, "LOCAL_RANK": rank} if command.processes > 1 else {}),
                                 process_group=0)
                for rank in map(str, range(command.processes))
            ]  # fmt: skip

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def runs_until(self, seconds: float) -> bool:
        """Wait until that moment; return whether the command still runs."""
        time.sleep(max(0.0, self.started + seconds - time.monotonic()))
        return all(process.poll() is None for process in self.processes)

    def wait(self) -> tuple[int, str]:
        """Return the exit code (of several processes the largest; 124 for one that hangs) and the output."""
        try:
            codes = [process.wait(max(1.0, self.started + TIMEOUT - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            codes = [124]
        return max(codes, key=abs), self.log.read_text(errors="replace")


def undisturbed(command: Command, folder: Path) -> Span:
    """Run a command to its end; return the seconds until its first file and until its end."""
    first = 0.0
    with Run(command, folder) as run:
        while run.runs_until(0):
            first = first or (time.monotonic() - run.started if files(folder) else 0.0)
            time.sleep(0.02)
        code, text = run.wait()
        if code:
            raise SystemExit(f"{command.name} ended with {code} without a fault:\n{text[-3000:]}")
        return first, time.monotonic() - run.started


def disturbed(command: Command, folder: Path, moment: float, disturb: Callable[[Run], Any], asked: Any = None) -> Run:
    """Call `disturb` about `moment` seconds after the start, earlier if the command ends before; wait for the end."""
    while True:
        if asked:  # of a start that ended too early
            asked.clear()
        with Run(command, folder) as run:
            if run.runs_until(moment):
                disturb(run)
                run.wait()
                return run
        shutil.rmtree(folder)
        moment *= 0.9


def kill_often(command: Command, folder: Path, span: Span, kills: int, asked: list[Any]) -> Row:
    """Kill a command `kills` times, each time in a new folder, and let it end; `asked` is what its server answered."""
    rng, totals, notes, again = random.Random(command.name), Counter[str](), set[str](), 0
    reference, trial, records = folder / "reference", folder / "0", ids(folder / "reference", command.records).total()
    for number in range(kills):
        moment = span[0] + (number + rng.random()) / kills * (span[1] - span[0])
        disturbed(command, trial, moment, lambda run: run.__exit__(), asked)
        broken = half_written(trial, reference)
        with Run(command, trial) as run:
            code, text = run.wait()
        found = {"failed": [text[-1000:]]} if code else compare(trial, reference, command.records)
        found["half-written"] = broken
        totals.update({key: len(names) for key, names in found.items()})
        notes |= {f"{key}: {name}" for key, names in found.items() for name in names if key != "times only"}
        again = max(again, len(asked) - records)
        print(f"{command.name}, killed after {moment:.1f} s: {found}", file=sys.stderr, flush=True)
        shutil.rmtree(trial)
    row = {"command": command.name, "kills": kills, "seconds": round(span[1], 1), "records": records}
    row |= {"files": len(files(reference)), **{key: totals[key] for key in FOUND}}
    return row | {"asked again, at most": again if command.server else "", "notes": "; ".join(sorted(notes))}


def kill_server(command: Command, folder: Path, kills: int, port: int) -> Row:
    """Kill a server while eight clients ask, and start it again; clients without an answer repeat their question."""
    picture = base64.b64encode((ROOT / "trace/assets/demo/table_1.png").read_bytes()).decode()
    counts, rng = Counter[str](), random.Random(command.name)

    def ask(number: int) -> Any:
        body = {"image": picture, "instruction": f"Point left of object {number}.", "max_new_tokens": 48}
        while True:
            try:
                text = httpx.post(f"http://127.0.0.1:{port}/v1/point", json=body, timeout=120).text
                answer = json.loads(text, parse_float=lambda digits: round(float(digits), 4))  # batches differ by 1e-7
                return {key: value for key, value in answer.items() if not MEASURED.search(key)}
            except httpx.TransportError:  # refused, reset, cut
                counts["asked again"] += 1
                time.sleep(0.1)

    with ThreadPoolExecutor(8) as clients:
        with Run(command, folder) as run:
            ask(0)
            ready = time.monotonic()
            answers = list(clients.map(ask, range(8)))
            span = time.monotonic() - ready
        for _ in range(kills):
            with Run(command, folder) as killed:
                ask(0)
                asked = [clients.submit(ask, number) for number in range(8)]
                time.sleep(rng.random() * span)
                counts["failed"] += not killed.runs_until(0)  # it did not start
            with Run(command, folder):
                counts["differ"] += sum(one.result() != answer for one, answer in zip(asked, answers, strict=True))
    counts["left over"] = len(files(folder))
    row = {"command": command.name, "kills": kills, "seconds": round(ready + span - run.started, 1), "records": 8}
    return row | {"files": 0, **{key: counts[key] for key in FOUND}, "asked again, at most": "", "notes": ""}


def kill_worker(run: Run) -> None:
    pid = run.processes[0].pid
    if children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        os.kill(int(children[-1]), signal.SIGKILL)


def faults_of(command: Command, folder: Path, span: Span, refused: Run | None) -> Iterator[Row]:
    """Yield a row for each fault: what the command says, and whether it ends the same when it is started again."""
    reference, middle = folder / "reference", sum(span) / 2

    def row(fault: str, run: Run, mend: Sequence[str] = ("true",)) -> Row:
        (code, text), broken = run.wait(), half_written(run.folder, reference)
        subprocess.run(mend, check=True)
        with Run(command, run.folder) as again:
            code_again, text_again = again.wait()
        found = {"failed": [text_again[-2000:]]} if code_again else compare(run.folder, reference, command.records)
        lines = text.replace("\r", "\n").strip().splitlines() or [""]
        said = [line for line in lines if re.match("error: |stopped|a worker", line)] or lines
        result = {"command": command.name, "fault": fault, "exit code": code, "output": said[-1][:200],
                  "traceback": "Traceback" in text, "half-written": len(broken),
                  "then the same": not any(names for key, names in found.items() if key != "times only")}  # fmt: skip
        print(result, found, text[-4000:] if "Traceback" in text else "", file=sys.stderr, flush=True)
        return result

    sizes = [path.stat().st_size for path in files(reference).values()]
    half = max(1, sum(-(-size // 4096) for size in sizes) // 2) * 4096  # a tmpfs has whole pages
    for name, options, mended in (("full", f"size={half}", "remount,size=4g"), ("readonly", "ro", "remount,rw")):
        path = folder / name
        if os.geteuid() == 0:
            path.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
            try:
                with Run(command, path) as run:
                    yield row(f"{name} (tmpfs)", run, ["mount", "-o", mended, str(path)])
            finally:
                subprocess.run(["umount", path], check=True)
        elif name == "full":
            with Run(command, path, ["prlimit", f"--fsize={max(sizes) // 2}"]) as run:
                yield row("full (limit of file sizes)", run)
    yield row(
        "SIGTERM", disturbed(command, folder / "term", middle, lambda run: [one.terminate() for one in run.processes])
    )
    if command.pool:
        yield row(f"worker killed ({command.pool})", disturbed(command, folder / "worker", middle, kill_worker))
    if refused:
        yield row("connection refused", refused)


def measure(command: Command, folder: Path, kills: int, port: int) -> tuple[Row, list[Row]]:
    """Return the row of the kills and the rows of the other faults of a command."""
    if not command.records:
        return kill_server(command, folder, kills, port), []
    refused, asked = None, list[Any]()
    with contextlib.ExitStack() as stack:
        if command.server:
            refused = Run(command, folder / "refused")
            refused.wait()
            asked = stack.enter_context(serving(port=port, answer=command.server, delay=0.1)).records
        span = undisturbed(command, folder / "reference")
        return kill_often(command, folder, span, kills, asked), list(faults_of(command, folder, span, refused))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [command.name for command in commands(Path(), 0)]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="COMMAND", help=", ".join(names))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON file, written after every command")
    arguments = parser.parse_args(argv)
    result: Row = {"kills": [], "faults": [], "machine": f"{os.cpu_count()} CPU cores"}
    result["date"] = time.strftime("%Y-%m-%d")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        make_inputs(folder / "inputs")
        for command in commands(folder / "inputs", port):
            if command.name in arguments.only:
                row, rows = measure(command, folder / command.name.replace(" ", "_"), arguments.kills, port)
                result["kills"].append(row)
                result["faults"] += rows
                if arguments.out:
                    write_json(arguments.out, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
