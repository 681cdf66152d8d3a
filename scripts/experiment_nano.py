"""The experiment of `experiment_nano.sh`: its arms, the commands that train and ask them, and the page about them.

An arm is trained once a seed and asked about one held-out benchmark; its scores go to OUT/scores, and an arm that has
them is not trained again. A section compares arms with its first one. All numbers of the page come from the scores;
nothing is typed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from experiment_wordings import area_placed, comparing, without

from trace_vlm.attention.interventions import effect_rows, read_effects
from trace_vlm.attention.summary import tables
from trace_vlm.core.reasoning import STEPS
from trace_vlm.drawing.canvas import save_figure
from trace_vlm.drawing.figures import draw_groups
from trace_vlm.eval.statistics import difference, interval
from trace_vlm.utils.files import read_json, read_jsonl, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
HEAD = (
    "# Where reasoning pays: the nano model\n\n"
    "Written by `bash scripts/experiment_nano.sh` from the scores of its answers. Point accuracy in %, the mean over "
    "seeds and the deviation between them; brackets are 95 % bootstrap intervals over images of a difference, p is of "
    "a paired permutation test that exchanges all answers about an image. ECE is the expected calibration error of the "
    "confidences, AURC the area under the risk-coverage curve: lower is better. No arm was chosen by the held-out scenes. "
    "Arms start from a model that has pointed at single relations and never reasoned, and are trained for "
    "{steps:,} steps of two pictures with up to eight questions each, where a section does not say otherwise. Sections "
    "need one finished seed of each of their arms."
)
# Columns of a table: kinds of questions (all, without one) and their names.
COLUMNS = {
    "": "all", "direct": "named", "relational": "1 hop", "chain 2": "2 hops", "chain 3": "3 hops",
    "free": "free, 1 hop", "free chain 2": "free, 2 hops", "free chain 3": "free, 3 hops", "between": "between",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """How a model is trained and asked. `of` names the arm whose model is asked in another way."""

    data: str = ""  # training file in OUT/data
    reasoning: bool = True  # whether its answers reason
    equal_time: bool = False  # as many steps as fit in the CPU time of the arm it is compared with
    grounding: bool = True
    long: bool = False  # LONG steps at twice the rate, instead of STEPS
    start: str = "pointing"  # at single relations, never reasoned; or one of STARTS
    reward: str = ""  # the arm that reinforcement learning starts from
    of: str = ""


NONE = Arm("data.json", reasoning=False)
ARMS = {
    "reasoning": Arm("cor.json"), "none": NONE, "none, equal time": replace(NONE, equal_time=True),
    "reasoning, no grounding": Arm("cor.json", grounding=False),
    "none, no grounding": replace(NONE, grounding=False),
    "none, equal time, no grounding": replace(NONE, equal_time=True, grounding=False),
    **{f"{share} %": Arm(f"dose{share}.json") for share in (25, 50, 75)},
    **{f"{share} %, asked without": Arm(of=f"{share} %", reasoning=False) for share in (25, 50, 75)},
    **{f"without step {key}": Arm(f"without_{key}.json") for key in STEPS},
    "reasoning start, reasoning": Arm("cor.json", start="reasoning"),
    "direct start, none, equal time": replace(NONE, equal_time=True, start="direct"),
    "reasoning, comparing": Arm("comparing.json"), "reasoning, no places": Arm("no_places.json"),
    "reasoning, area placed": Arm("area_placed.json"),
    "long, reasoning, equal time": Arm("cor.json", equal_time=True, long=True),
    "long, half reasoning": Arm("dose50.json", long=True),
    "long, half reasoning, asked without": Arm(of="long, half reasoning", reasoning=False),
    "long, none, equal time": replace(NONE, equal_time=True, long=True),
    "long, reasoning, equal time, no grounding": Arm("cor.json", equal_time=True, long=True, grounding=False),
    "long, none, equal time, no grounding": replace(NONE, equal_time=True, long=True, grounding=False),
    "reasoning, RL": Arm(reward="reasoning"),
    "none, RL": Arm(reasoning=False, reward="none, equal time"),
    "none, RL, equal time": Arm(reasoning=False, reward="none, equal time", equal_time=True),
}  # fmt: skip
# Steps that fit in 4,900 CPU s. In half precision these starts are nano and nano-direct, which ship.
STARTS = {"reasoning": 2900, "direct": 6900}
SECTIONS = {  # title, arms, what the arms are
    "hops": (
        "Accuracy by number of hops", ["reasoning", "none", "none, equal time"],
        "The steps at equal time are those that fit in the CPU time of reasoning."),
    "grounding": (
        "Without the grounding loss", ["reasoning, no grounding", "none, no grounding", "none, equal time, no grounding"],
        "The arms of the first section, trained without the loss that ties the attention of names to their objects."),
    "start": (
        "Longer trained starting points",
        ["reasoning start, reasoning", "direct start, none, equal time"],
        "Each start is the start of the other sections after about 4,900 CPU seconds on 8,000 scenes, with reasoning in "
        "all samples (nano) or in none (nano-direct)."),
    "dose": (
        "Share of samples with reasoning", ["none", "25 %", "50 %", "75 %", "reasoning"],
        "Asked to reason, but for the first arm, which never has."),
    "dose_direct": (
        "The same models, asked without", ["none", *(f"{share} %, asked without" for share in (25, 50, 75))],
        "The models of the section before, asked to point at once."),
    "steps": (
        "One step left out", ["reasoning", *(f"without step {key}" for key in STEPS)],
        "Trained on, and answering with, reasoning that lacks the step."),
    "long": (
        "Longer training",
        ["long, reasoning, equal time", "long, none, equal time", "long, half reasoning",
         "long, half reasoning, asked without"],
        "Three times as many steps as the other sections with half of the samples with reasoning, and as many as fit in "
        "that time with all and with none; twice Muon's rate."),
    "long_grounding": (
        "Longer training without the grounding loss",
        ["long, reasoning, equal time, no grounding", "long, none, equal time, no grounding"],
        "The first two arms of the section before, trained without that loss."),
    "variants": (
        "Other wordings",
        ["reasoning", "none, equal time", "reasoning, comparing", "reasoning, no places", "reasoning, area placed"],
        "Comparing: the second step first says of every object of the noun where it lies. No places: objects are named "
        "and not located. Area placed: the second step also says where the middle of free space is."),
    "rl": (
        "Reinforcement learning", ["reasoning, RL", "reasoning", "none, RL", "none, RL, equal time", "none, equal time"],
        "On scenes made anew, after the arms of the first section that stand beside it; CPU seconds of the last stage."),
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    scenes: int = 4000
    held_out: int = 800
    steps: int = 1200
    long: int = 3600
    seeds: int = 3
    pretraining: int = 1  # divides the stages of the starting point that has only pointed
    rl_steps: int = 120


QUICK = Size(scenes=60, held_out=24, steps=4, long=4, seeds=1, pretraining=1300, rl_steps=2)


class Experiment:
    """The folders and commands of one experiment."""

    def __init__(self, out: Path, size: Size) -> None:
        self.out, self.size, self.data, self.bench = out, size, out / "data", out / "bench"
        self.page = (out if size == QUICK else ROOT / "docs" / "experiments") / "nano.md"

    def run(self, module: str, *arguments: Any, log: str) -> None:
        """Run a module of the package, its output in OUT/logs; a failure ends the experiment."""
        path = self.out / "logs" / f"{log}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            command = [sys.executable, "-P", "-m", f"trace_vlm.{module}", *map(str, arguments)]
            if subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False, cwd=ROOT).returncode:
                raise SystemExit(f"{' '.join(command)} failed; see {path}")

    def train(self, config: str, folder: Path, **settings: Any) -> None:
        values = {"image_folder": self.data, "output_dir": folder, **settings}
        pairs = [f"{key}={'null' if value is None else value}" for key, value in values.items()]
        self.run("train.train", "--config", f"configs/{config}.yaml", "--set", *pairs, log=folder.name)

    def model(self, name: str, seed: int) -> Path:
        return self.out / "train" / f"{(ARMS[name].of or name).replace(' ', '_').replace(',', '')}-{seed}"

    def answers(self, name: str, seed: int) -> Path:
        """Numbered as runs of one model; `seed` counts from 0."""
        return self.out / "answers" / f"{name.replace(' ', '_').replace(',', '')}-{seed + 1}.jsonl"

    def prepare(self) -> None:
        """Scenes, held-out scenes, reasoning, and the training files made from them."""
        scenes = ("--config", "configs/scenes/nano_chain.yaml", "--size", 128, "--workers", 2)
        self.run(
            "data.scenes.generate", *scenes, "--out", self.data, "--scenes", self.size.scenes, "--seed", 301, log="data"
        )
        self.run("data.scenes.generate", *scenes, "--out", self.bench, "--scenes", self.size.held_out, "--seed", 302,
                 "--benchmark", log="bench")  # fmt: skip
        self._reason(self.data, "cor.json", "--coordinates")
        direct, reasoned = (json.loads((self.data / name).read_text()) for name in ("data.json", "cor.json"))
        by_id = {sample["id"]: sample for sample in reasoned}
        order = np.random.default_rng(0).permutation(len(direct))
        for share in (25, 50, 75):
            chosen = set(order[: len(order) * share // 100].tolist())
            mixed = [by_id.get(one["id"], one) if index in chosen else one for index, one in enumerate(direct)]
            self._write(f"dose{share}.json", mixed)
        for key in STEPS:
            self._write(f"without_{key}.json", [without(sample, key) for sample in reasoned])
        self._reason(self.data, "no_places.json")
        views = {view["view"]: view for _, view in read_jsonl(self.data / "views.jsonl")}
        self._write("comparing.json", [comparing(sample, views[sample["meta"]["view"]]) for sample in reasoned])
        self._write("area_placed.json", [area_placed(sample, self.data) for sample in reasoned])

    def _reason(self, folder: Path, name: str, *options: str) -> None:
        """Write reasoning to the samples of a folder, into another file of it."""
        if not (folder / name).exists():
            self.run("data.cor.build", "--data", folder / "data.json", "--out", folder / name, "--reasoner", "rules",
                     "--decimals", 2, *options, log=f"{folder.name}_{name}")  # fmt: skip

    def _write(self, name: str, samples: Sequence[Any]) -> None:
        if not (self.data / name).exists():
            write_json(self.data / name, list(samples))

    def pointing_start(self) -> None:
        """Train a starting point that has pointed at one relation and never reasoned."""
        captions, folder = self.data / "captions.json", self.out / "train"
        if (folder / "start_pointing" / "model.safetensors").exists():
            return
        if not captions.exists():
            self.run("data.scenes.captions", "--data", self.data, "--out", captions, log="captions")
        plain = [one for one in read_json(self.data / "data.json") if len(one["meta"].get("hops", ())) < 2]
        self._write("plain.json", plain)
        stages: list[tuple[str, int, dict[str, Any]]] = [
            ("vision", 2600, {"data": self.data}),
            ("projector", 2600, {"data": captions, "model": folder / "start_vision"}),
            (
                "pointing",
                5000,
                {"data": f"[{self.data / 'plain.json'},{captions}]", "model": folder / "start_projector"},
            ),
        ]
        for name, steps, settings in stages:
            self.train(f"nano_{name}", folder / f"start_{name}", max_steps=steps // self.size.pretraining, **settings)

    def longer_starts(self, keys: Sequence[str]) -> None:
        """Train the pointing start on twice as many scenes, all of them with reasoning or all without."""
        keys = [key for key in keys if not (self.out / "train" / f"start_{key}" / "model.safetensors").exists()]
        if not keys:
            return
        absent = self.out / "absent"
        self.run("data.scenes.generate", "--config", "configs/scenes/nano_quickstart.yaml", "--size", 128, "--views", 1,
                 "--workers", 2, "--out", absent, "--scenes", self.size.scenes, "--seed", 201, log="absent")  # fmt: skip
        self._reason(absent, "cor.json", "--coordinates")
        for key in keys:
            name = "cor.json" if key == "reasoning" else "data.json"
            sources = [{"name": one.name, "kind": "llava", "path": f"{one.name}/{name}"} for one in (self.data, absent)]
            write_json(self.out / f"{key}.yaml", {"seed": 0, "sources": sources})  # JSON is YAML
            self.run("data.mix", "--config", self.out / f"{key}.yaml", "--data-root", self.out, "--images", self.out,
                     "--out", self.data / f"start_{key}.json", log=f"mix_{key}")  # fmt: skip
        in_parallel(self._longer_start, [(key,) for key in keys])

    def _longer_start(self, key: str) -> None:
        self.train("nano_pointing", self.out / "train" / f"start_{key}", data=self.data / f"start_{key}.json",
                   image_folder=self.out, model=self.out / "train" / "start_pointing", muon_learning_rate=0.01,
                   max_steps=STARTS[key] // self.size.pretraining)  # fmt: skip

    def equal_time_steps(self, arm: Arm) -> int:
        """Steps in the CPU time of the arm with reasoning, or of the long arm with half of it, by the first seed."""
        names = ("reasoning, RL", "none, RL") if arm.reward else ("reasoning", "none")
        reasoning, none = (read_json(self.scores(name, 0))["cpu_seconds"] for name in names)
        if arm.long:  # half of the samples of a long arm have reasoning
            return round(self.size.long * (reasoning + none) / 2 / (reasoning if arm.reasoning else none))
        return round((self.size.rl_steps if arm.reward else self.size.steps) * reasoning / none)

    def fit(self, name: str, seed: int) -> None:
        """Train an arm, if it has a model of its own."""
        arm, folder = ARMS[name], self.model(name, seed)
        steps = self.size.rl_steps if arm.reward else self.size.long if arm.long else self.size.steps
        settings: dict[str, Any] = {"max_steps": self.equal_time_steps(arm) if arm.equal_time else steps, "seed": seed}
        if arm.reward:
            scenes = {"grpo.scenes.config": "configs/scenes/nano_chain.yaml", "grpo.scenes.seed": 9000 + 1000 * seed}
            settings |= {"grpo.reasoning": str(arm.reasoning).lower(), **scenes}
            self.train("grpo_nano", folder, model=self.model(arm.reward, seed), **settings)
        elif not arm.of:
            if arm.start == "pointing":  # the rates of configs/train_nano.yaml keep what a longer trained start knows
                settings |= {"muon_learning_rate": 0.01 if arm.long else 0.005, "learning_rate": 1.5e-3}
            if not arm.grounding:
                settings |= {"grounding_loss": None}
            settings |= {"model": self.out / "train" / f"start_{arm.start}", "data": self.data / arm.data}
            self.train("train_nano", folder, **settings)

    def ask(self, name: str, seed: int) -> None:
        """Ask a trained arm all questions; keep the scores of its answers."""
        answers, reasoning = self.answers(name, seed), "--reasoning" if ARMS[name].reasoning else "--no-reasoning"
        self.run("eval.model_vqa", "--model", self.model(name, seed), "--images", self.bench / "images", "--questions",
                 self.bench / "point_questions.jsonl", "--answers", answers, "--batch-size", 256, reasoning,
                 log=answers.stem)  # fmt: skip
        folder = self.out / "results" / answers.stem
        self.run("eval.summarize_vqa", "--answers", answers, "--data", self.bench, "--out", folder, "--runs", "single",
                 "--resamples", 1, log=answers.stem)  # fmt: skip
        (model,) = read_json(folder / "summary.json")["models"]
        record: dict[str, Any] = {"cpu_seconds": _cpu_seconds(self.model(name, seed) / "log.jsonl")}
        record |= {key: (model["calibration"] or {}).get(key) for key in ("ece", "aurc")}
        record["scores"] = [round(model["scores"][one], 4) for one in self.questions()]
        write_jsonl(self.scores(name, seed), [record])  # one line

    def scores(self, name: str, seed: int) -> Path:
        return self.out / "scores" / f"{self.answers(name, seed).stem}.json"

    def questions(self) -> dict[str, dict[str, Any]]:
        return {str(one["question_id"]): one for _, one in read_jsonl(self.bench / "point_questions.jsonl")}

    def section(self, key: str) -> str:
        """Compare the arms of a section; return its part of the page."""
        title, names, note = SECTIONS[key]
        seeds, questions = self.finished(key), self.questions().values()
        runs = {name: [read_json(self.scores(name, seed)) for seed in seeds] for name in names}
        scores = {name: np.array([one["scores"] for one in runs[name]]) for name in names}  # [seeds, questions]
        images = np.array([one["image"] for one in questions])
        kinds = np.array([one["meta"]["kind"] for one in questions])
        chosen = {name: (kinds == kind) | (not kind) for kind, name in COLUMNS.items()}
        chosen = {name: which for name, which in chosen.items() if which.any()}
        rows = [["arm", "CPU s", *chosen, "ECE", "AURC"]]
        bars: dict[str, list[tuple[float, float, float] | None]] = {}
        for name in names:
            cells = [_mean(scores[name][:, which].mean(1)) for which in chosen.values()]
            errors = [[one[error] for one in runs[name]] for error in ("ece", "aurc")]  # None: without confidences
            cells += ["-" if None in values else f"{np.mean(values):.3f}" for values in errors]
            rows.append([name, f"{np.mean([one['cpu_seconds'] for one in runs[name]]):.0f}", *cells])
            intervals = [
                interval(scores[name].mean(0)[which], images[which], np.random.default_rng(0))
                for which in chosen.values()
            ]
            bars[name] = [(100 * one.mean, 100 * (one.low or 0), 100 * (one.high or 0)) for one in intervals]
        for name in names[1:]:
            own, first = scores[name].mean(0), scores[names[0]].mean(0)
            gaps = [_gap(own[which], first[which], images[which]) for which in chosen.values()]
            rows.append([f"{name} minus {names[0]}", "", *gaps, "", ""])
        picture = self.page.parent / "images" / f"nano_{key}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_figure(draw_groups(bars, list(chosen), f"{title}: point accuracy, %"), picture)
        counted = f"{note} {len(seeds)} seed{'s' if len(seeds) > 1 else ''} an arm."
        lines = [f"## {title}", f"![{title}](images/{picture.name})", counted, _table(rows)]
        if key.startswith("dose"):
            alike = [name for name in names if ARMS[name].reasoning == ARMS[names[-1]].reasoning]
            lines.append(_trend([scores[name].mean(1) for name in alike]))
        return "\n\n".join(lines)

    def finished(self, key: str) -> list[int]:
        """The seeds of which all arms of a section have scores."""
        return [s for s in range(self.size.seeds) if all(self.scores(name, s).exists() for name in SECTIONS[key][1])]

    def attention(self) -> str:
        """Attention by step, and what editing a step changes, of the first seed's reasoning model."""
        folder = self.out / "attention"
        last = 1760 if self.size != QUICK else 40  # a view has seven questions, so each answer is about another one
        command = [sys.executable, "visualization/attention_map.py", "--model", self.model("reasoning", 0), "--data",
                   self.bench, "--out", folder, "--end-idx", last, "--every", 8, "--intervene", "--resume"]  # fmt: skip
        with (self.out / "logs" / "attention.log").open("a") as stream:
            subprocess.run(list(map(str, command)), check=True, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT)
        summary = read_json(folder / "summary.json")
        verdicts = "\n".join(f"- {one['part']}: {one['verdict']} ({one['why']})" for one in summary["verdicts"])
        blocks = [(title, rows) for title, rows in tables(summary)]
        blocks.append(("Edits of one step", effect_rows(read_effects(folder))))
        note = (
            f"{summary['questions']} answers about {summary['images']} images by the first model of `reasoning`. "
            "[Attention](../attention.md) explains the numbers and the edits. What TRACE publishes, on this model:"
        )
        parts = [note, verdicts]
        return "\n\n".join(
            ["## Attention and interventions", *parts, *(f"### {t}\n\n{_table(rows)}" for t, rows in blocks)]
        )


def _table(rows: Sequence[Sequence[str]]) -> str:
    first, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([first, "|" + " --- |" * len(rows[0]), *others])


def _cpu_seconds(log: Path) -> float:
    return float([line["cpu_seconds"] for _, line in read_jsonl(log) if "cpu_seconds" in line][-1])


def _mean(values: Sequence[float]) -> str:
    """The mean over seeds and their deviation, %."""
    return f"{100 * np.mean(values):.1f}" + (f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def _gap(values: Any, others: Any, images: Any) -> str:
    """The paired difference of two arms on some questions."""
    gap = difference(values, others, images.tolist(), np.random.default_rng(0), 4000)
    low, high = gap.interval.low, gap.interval.high
    if low is None or high is None:
        return f"{100 * gap.interval.mean:+.1f}"
    return f"{100 * gap.interval.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p = {gap.p_value:.2g}"


def _trend(accuracies: Sequence[Any]) -> str:
    """Page's test that accuracy grows along the arms, each with a value a seed."""
    from scipy import stats

    runs = np.array(accuracies).T  # [seeds, arms]
    if len(runs) < 2:
        return "A trend test needs more than one seed."
    up, down = stats.page_trend_test(runs), stats.page_trend_test(runs[:, ::-1])
    counted = f"Page's trend test of the arms asked alike, over {len(runs)} seeds"
    return f"{counted}: growing p = {up.pvalue:.2g}, falling p = {down.pvalue:.2g}."


def _turn(name: str) -> int:
    """When an arm is trained: equal time is known after two arms, and reinforcement learning starts from finished ones."""
    arm = ARMS[ARMS[name].of or name]
    return 2 + arm.equal_time if arm.reward else int(name not in ("reasoning", "none"))


def in_parallel(step: Callable[..., object], jobs: Sequence[tuple[Any, ...]]) -> None:
    """Run a step two jobs at a time; the first failure ends the program after the jobs that run."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: step(*job), jobs))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "output" / "experiment_nano")
    parser.add_argument("--quick", action="store_true", help="minutes instead of hours, to try the commands out")
    parser.add_argument(
        "--sections", nargs="+", choices=[*SECTIONS, "attention"], default=[*SECTIONS, "attention"], help="only these"
    )
    args = parser.parse_args(argv)
    out = args.out.resolve()
    experiment = Experiment(out, QUICK if args.quick else Size())
    os.makedirs(out, exist_ok=True)
    experiment.prepare()
    sections = [key for key in args.sections if key != "attention"]
    wanted = {"reasoning", "none", *(name for key in sections for name in SECTIONS[key][1])}
    jobs = [(name, seed) for seed in range(experiment.size.seeds) for name in ARMS if name in wanted]
    jobs = [job for job in jobs if not experiment.scores(*job).exists()]
    trained = [(one, seed) for name, seed in jobs for one in (ARMS[name].reward, ARMS[name].of or name) if one]
    trained += [("reasoning", 0)] if "attention" in args.sections else []
    trained = list(dict.fromkeys(trained))
    if trained:
        experiment.pointing_start()
    experiment.longer_starts([key for key in STARTS if any(ARMS[name].start == key for name, _ in trained)])
    for number in range(4):
        in_parallel(experiment.fit, [job for job in trained if _turn(job[0]) == number])
        in_parallel(experiment.ask, [job for job in jobs if _turn(job[0]) == number])
    parts = [HEAD.format(steps=experiment.size.steps), *map(experiment.section, filter(experiment.finished, sections))]
    parts += [experiment.attention()] if "attention" in args.sections else []
    experiment.page.parent.mkdir(parents=True, exist_ok=True)
    experiment.page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"wrote {experiment.page}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
