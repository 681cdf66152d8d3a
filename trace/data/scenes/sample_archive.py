"""The small archive of samples that shows what the training data are: pictures, questions, reasoning, answers, masks.

    python -m trace.data.scenes.sample_archive --out data_samples/sample_50_cor_data.zip

Generates scenes (kept in --work, so that a killed run continues), chooses 25 object references and 25 free-space
references, spread over the relations and one a picture, writes the Chain of Reasoning of each by rules, and packs them:
data.json (LLaVA's format, with `meta`), images/ (JPEG), masks/ (PNG), README.md. The same command gives the same bytes
on one machine. --baseline-model adds what a model without reasoning answers, to `meta.baseline` of every sample.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...utils.command import InputError, Parser, run

if TYPE_CHECKING:
    from ...core.records import Sample

TASKS = ("object_reference", "free_space")
DECIMALS = 3
DROPPED = ("instances", "view", "shortcuts")  # of meta: they speak of files that are not in the archive
STAMP = (2026, 1, 1, 0, 0, 0)  # the date of every file inside, so that the same samples are the same bytes


def main(argv: Sequence[str] | None = None) -> int | None:
    parser = Parser(prog="trace.data.scenes.sample_archive", description="Pack a few generated samples into a zip.")
    parser.add_argument("--out", required=True, type=Path, help="the zip to write")
    parser.add_argument("--each", type=int, default=25, help="samples of each of the two tasks")
    parser.add_argument("--seed", type=int, default=50, help="of the scenes, the choice and the wording")
    parser.add_argument("--size", default="640x480", help="of the pictures, as trace.data.scenes.generate takes it")
    parser.add_argument("--config", type=Path, default=None, help="YAML configuration of the scenes")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--work", type=Path, default=None, help="folder for the scenes (default: a temporary one)")
    parser.add_argument("--baseline-model", default=None, help="a model that answers at once, without reasoning")
    args = parser.parse_args(argv)
    if args.each < 1:
        raise InputError(f"--each must be at least 1, not {args.each}")
    if args.out.suffix.lower() != ".zip":
        raise InputError(f"--out must name a .zip, not {args.out}")
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary) / "scenes"
        _generate(args, work)
        samples = _with_baseline(_chosen(work, args.each, args.seed), work, args.baseline_model)
        _pack(args.out, work, samples, args.seed, args.baseline_model)
    print(f"wrote {args.out}: {len(samples)} samples, {args.out.stat().st_size / 2**20:.1f} MB")
    return 0


def _generate(args: Any, work: Path) -> None:
    """Enough scenes that each sample can have a picture of its own."""
    from .generate import main as generate

    flags = ["--out", str(work), "--scenes", str(3 * args.each), "--seed", str(args.seed), "--size", args.size]
    flags += ["--workers", str(args.workers), *(["--config", str(args.config)] if args.config else [])]
    generate(flags)


def _chosen(work: Path, each: int, seed: int) -> list[Sample]:
    """The samples, their answers preceded by reasoning."""
    import numpy as np

    from ...core.records import read_samples
    from ..cor.local import with_reasoning
    from .picks import Candidate, at_places, spread

    data = work / "data.json"
    candidates = [Candidate.of(place, sample.meta) for place, sample in enumerate(read_samples(data))]
    rng, used, chosen = np.random.default_rng(seed), set[str](), []
    for task in TASKS:
        found = spread((one for one in candidates if one.task == task), each, rng, used)
        if len(found) < each:
            raise InputError(f"only {len(found)} of {each} samples of the task {task} were generated; loosen --config")
        chosen += found
    picked = at_places(read_samples(data), chosen, lambda candidate: candidate.place)
    return [with_reasoning(sample, seed, coordinates=False, decimals=DECIMALS) for sample in picked]


def _with_baseline(samples: list[Sample], work: Path, model: str | None) -> list[Sample]:
    """The samples with `meta.baseline`: what `model` answers when it is asked for points at once."""
    if model is None:
        return samples
    from dataclasses import replace

    from ...core.prompts import bare_instruction
    from ...eval.statistics import score
    from ...inference.predictor import Predictor
    from .questions.baselines import load_mask

    predictor = Predictor.load(model)
    images = [work / str(sample.image) for sample in samples]
    instructions = [bare_instruction(sample.conversations[0].text) for sample in samples]
    answered = []
    for sample, prediction in zip(samples, predictor.predict(images, instructions, reasoning=False), strict=True):
        accuracy = score(prediction.response.points, load_mask(work / sample.meta["mask"]))
        baseline = {"model": Path(model).name, "text": prediction.text, "accuracy": round(accuracy, 4)}
        answered.append(replace(sample, meta={**sample.meta, "baseline": baseline}))
    return answered


def _pack(out: Path, work: Path, samples: Sequence[Sample], seed: int, model: str | None) -> None:
    from ...core.records import replacing
    from .picks import jpeg, small_mask

    files: dict[str, bytes] = {}
    records = []
    for number, sample in enumerate(samples):
        meta = {key: value for key, value in sample.meta.items() if key not in DROPPED}
        name = f"{number:02d}_{meta['task']}"
        meta |= {"image": f"images/{name}.jpg", "mask": f"masks/{name}.png"}
        files[meta["image"]] = jpeg(work / str(sample.image))
        files[meta["mask"]] = small_mask(work / sample.meta["mask"])
        record = {**sample.as_json(), "id": name, "image": meta["image"], "meta": meta}
        records.append(json.dumps(record, ensure_ascii=False))
    files["data.json"] = ("[\n" + ",\n".join(records) + "\n]\n").encode()
    files["README.md"] = _readme(len(samples), seed, model).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, STAMP), files[path], zipfile.ZIP_DEFLATED)
    with replacing(out) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _readme(count: int, seed: int, model: str | None) -> str:
    answers = f"`meta.baseline` holds what {Path(model).name} answers without reasoning.\n" if model else ""
    return f"""# {count} samples

Generated by `python -m trace.data.scenes.sample_archive --seed {seed}`: rendered scenes with exact ground truth, the
reasoning written by rules.

`data.json` is a list in LLaVA's format: the question, and the answer with its Chain of Reasoning and its points
(normalised to the picture, origin at the top left). `meta` names the task, the relation, the objects, the points and the
mask (`masks/`, white where a point is right).
{answers}"""


if __name__ == "__main__":
    raise SystemExit(run(main))
