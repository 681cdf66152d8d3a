"""Pack a few generated samples with their Chain of Reasoning into a small zip.

    python scripts/assets/sample_archive.py --out data_samples/sample_50_cor_data.zip

Generates scenes (kept in --work, so that a killed run continues), chooses 25 object references and 25 free-space
references, spread over the relations and one a picture, writes the reasoning by rules, and packs data.json, images/
(JPEG), masks/ (PNG) and README.md. The same command gives the same bytes on one machine.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from picks import Candidate, at_positions, jpeg, small_mask, spread

from trace_vlm.core.records import Sample, read_samples
from trace_vlm.utils.command import InputError, Parser, run
from trace_vlm.utils.files import replacing

CONFIG = Path(__file__).parents[2] / "configs" / "scenes" / "tabletop.yaml"
TASKS = ("object_reference", "free_space")
DECIMALS = 3
DROPPED = ("instances", "view", "shortcuts")  # of meta: they speak of files that are not in the archive
DATE = (2026, 1, 1, 0, 0, 0)  # of every file inside, so that the same samples are the same bytes


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Pack a few generated samples into a zip.")
    parser.add_argument("--out", required=True, type=Path, help="the zip to write")
    parser.add_argument("--each", type=int, default=25, help="samples of each of the two tasks")
    parser.add_argument("--seed", type=int, default=50, help="of the scenes, the choice and the wording")
    parser.add_argument("--size", default="640x480", help="of the pictures, as trace.data.scenes.generate takes it")
    parser.add_argument("--config", type=Path, default=CONFIG, help="YAML configuration of the scenes")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    parser.add_argument("--work", type=Path, help="folder for the scenes; without it a temporary one")
    parser.add_argument("--baseline-model", help="adds to meta.baseline what this model answers without reasoning")
    args = parser.parse_args(argv)
    if args.each < 1:
        raise InputError(f"--each must be at least 1, not {args.each}")
    if args.out.suffix.lower() != ".zip":
        raise InputError(f"--out must name a .zip, not {args.out}")
    from trace_vlm.data.scenes.generate import main as generate

    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary) / "scenes"
        # Enough scenes that each sample can have a picture of its own.
        flags = ["--out", str(work), "--scenes", str(3 * args.each), "--seed", str(args.seed), "--size", args.size]
        generate([*flags, "--workers", str(args.workers), "--config", str(args.config)])
        samples = choose_samples(work, args.each, args.seed)
        if args.baseline_model is not None:
            samples = add_baseline(samples, work, args.baseline_model)
        content = pack(work, samples, args.seed, args.baseline_model)
    with replacing(args.out) as unfinished:
        unfinished.write_bytes(content)
    print(f"wrote {args.out}: {len(samples)} samples, {len(content) / 2**20:.1f} MB")
    return 0


def choose_samples(work: Path, each: int, seed: int) -> list[Sample]:
    """The samples, with reasoning before their answers."""
    import numpy as np

    from trace_vlm.data.cor.rules import with_reasoning

    data = work / "data.json"
    candidates = [Candidate.of(position, sample.meta) for position, sample in enumerate(read_samples(data))]
    rng, used, chosen = np.random.default_rng(seed), set[str](), []
    for task in TASKS:
        picked = spread((candidate for candidate in candidates if candidate.task == task), each, rng, used)
        if len(picked) < each:
            raise InputError(f"only {len(picked)} of {each} samples of the task {task} were generated; loosen --config")
        chosen += picked
    samples = at_positions(read_samples(data), chosen)
    return [with_reasoning(sample, seed, coordinates=False, decimals=DECIMALS) for sample in samples]


def add_baseline(samples: list[Sample], work: Path, model: str) -> list[Sample]:
    """The samples with `meta.baseline`: what `model` answers when it is asked for points at once."""
    from trace_vlm.core.images import open_region
    from trace_vlm.core.prompts import bare_instruction
    from trace_vlm.eval.scoring import score
    from trace_vlm.inference.predictor import Predictor

    images = [work / str(sample.image) for sample in samples]
    instructions = [bare_instruction(sample.conversations[0].text) for sample in samples]
    predictions = Predictor.load(model).predict(images, instructions, reasoning=False)
    answered = []
    for sample, prediction in zip(samples, predictions, strict=True):
        accuracy = score(prediction.response.points, open_region(work / sample.meta["mask"]))
        baseline = {"model": Path(model).name, "text": prediction.text, "accuracy": round(accuracy, 4)}
        answered.append(replace(sample, meta={**sample.meta, "baseline": baseline}))
    return answered


def pack(work: Path, samples: Sequence[Sample], seed: int, model: str | None) -> bytes:
    """The content of the zip."""
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
    answers = f"`meta.baseline` holds what {Path(model).name} answers without reasoning.\n" if model else ""
    readme = f"""# {len(samples)} samples

Generated by `python scripts/assets/sample_archive.py --seed {seed}`: rendered scenes with exact ground truth, the
reasoning written by rules.

`data.json` is a list in LLaVA's format: the question, and the answer with its Chain of Reasoning and its points
(normalised to the picture, origin at the top left). `meta` names the task, the relation, the objects, the points and the
mask (`masks/`, white where a point is right).
{answers}"""
    files["README.md"] = readme.encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            archive.writestr(zipfile.ZipInfo(path, DATE), files[path], zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


if __name__ == "__main__":
    raise SystemExit(run(main))
