"""Mix a training set from a recipe: how many samples of which source, how many of them with reasoning.

    python -m trace.data.mix --config configs/mixes/trace_200k.yaml --out trace_200k.json
    python -m trace.data.mix --config configs/mixes/trace_200k.yaml --cor-share 25 --out trace_cor25.json

The same recipe gives the same file, byte for byte, and smaller choices are inside larger ones. Sources are read twice,
once to choose and once to write, so that memory grows with the mix and not with its sources.
"""

from __future__ import annotations

import heapq
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from tqdm import tqdm

from .. import __version__
from ..core.images import Images
from ..core.points import parse_points
from ..core.prompts import IMAGE_TAG, question_text
from ..core.reasoning import FINAL_ANSWER, parse
from ..core.records import Sample, Turn
from ..utils.command import InputError, Parser, run
from ..utils.config import Field, ListOf, config_class, read_config
from ..utils.files import sha256, temporary_beside, write_json_list
from .export import export, licences_of, may_embed, refuse_unknown, strictest, write_cards
from .sources.registry import OpenSource, Source, stable_hash
from .sources.sample_checks import ImageCheck, Part, Problem, Problems, content_problem, logged_problems, part_of

_FILES = ("mask", "instances")  # what `meta` names beside the image, relative to the same folder


@config_class
class RecipeSource:
    """One source of a recipe. Paths are relative to --data-root."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]  # ids begin with it
    kind: Literal["llava", "scenes", "trace", "robopoint", "llava_mix", "lvis", "points"]  # hub is converted first
    path: str
    samples: int | None = Field(None, ge=1)  # None: all
    part: ListOf[Part] = Field(default_factory=lambda: list(get_args(Part)))
    cor: bool = False  # the samples carry reasoning, of which cor_share is kept
    image_folder: str | None = None
    licence: ListOf[str] = Field(default_factory=list)  # default: known ones of the kind
    max_turns: int = Field(5, ge=1)  # lvis: categories asked of one image

    def __post_init__(self) -> None:
        self.licences()

    def licences(self) -> tuple[str, ...]:
        return licences_of(self.kind, self.part, self.licence)


@config_class
class Recipe:
    sources: Annotated[list[RecipeSource], Field(min_length=1)]
    seed: int = Field(0, ge=0)
    cor_share: float = Field(100.0, ge=0, le=100)  # percent of the `cor` samples that keep their reasoning
    scale: float = Field(1.0, gt=0, le=1000)  # of every number of samples

    def __post_init__(self) -> None:
        names: set[str] = set()
        owners: dict[tuple[str, str, str], str] = {}
        for source in self.sources:
            if source.name in names:
                raise InputError(f"sources: two are called {source.name!r}")
            names.add(source.name)
            for part in source.part:
                if other := owners.get((source.kind, source.path, part)):
                    raise InputError(f"sources: {source.name!r} takes the same {part} of {source.path} as {other!r}")
                owners[source.kind, source.path, part] = source.name


@dataclass(slots=True)
class MixedSource:
    """What a mix takes from one source of the recipe.

    Every sample has a number that depends on the seed and its id alone, and the `wanted` smallest are taken (all if
    None): the choice does not depend on the order of the file, and needs one pass over a file of any size.
    """

    entry: RecipeSource
    wanted: int | None
    files: tuple[Path, ...]
    candidates: int = 0  # samples of its parts without those that are unusable
    with_reasoning: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    chosen: dict[int, bool] = field(default_factory=dict)  # position -> whether the sample keeps its reasoning
    heap: list[tuple[int, int]] = field(default_factory=list)  # (-number, position): the largest number is on top

    @property
    def full(self) -> bool:
        return self.wanted is not None and len(self.heap) >= self.wanted


class Mixer:
    """Chooses and writes the samples of one recipe.

    Args:
        data_root: what the recipe's paths are relative to.
        image_root: what image names in the result are relative to; None: the folder common to all sources.
        image_check: what is required of images.
    """

    def __init__(
        self, recipe: Recipe, data_root: Path, image_root: Path | None, image_check: ImageCheck, problems: Problems
    ) -> None:
        self.recipe, self.problems, self._image_check = recipe, problems, image_check
        entries: dict[tuple[str, str, str | None, int], list[RecipeSource]] = {}
        for entry in recipe.sources:
            entries.setdefault((entry.kind, entry.path, entry.image_folder, entry.max_turns), []).append(entry)
        self._groups: list[tuple[OpenSource, list[MixedSource]]] = []  # those that are read together
        for (kind, path, folder, max_turns), group in entries.items():
            images = None if folder is None else data_root / folder
            if images is not None and not images.is_dir():
                raise InputError(f"source {group[0].name!r}: the image folder {images} does not exist")
            source = Source(kind, data_root / path, images, max_turns, recipe.seed).open()
            wanted = (entry.samples and max(1, round(entry.samples * recipe.scale)) for entry in group)
            self._groups.append(
                (source, [MixedSource(*pair, source.files) for pair in zip(group, wanted, strict=True)])
            )
        folders = [os.path.abspath(source.images.folder) for source, _ in self._groups]
        self.image_root = Path(os.path.abspath(image_root or os.path.commonpath(folders)))

    @property
    def sources(self) -> list[MixedSource]:
        return [mixed for _, group in self._groups for mixed in group]

    def write(self, out: Path, held_out: Path | None, share: float) -> dict[Path, int]:
        """Choose, then write `out` and, with about `share` of the images, `held_out`; the samples of each."""
        for source, _ in self._groups:
            for path in (out, held_out):
                if path is not None:
                    source.refuse_output(path)
        for source, group in self._groups:
            self._choose(source, group)
        order: list[tuple[int, int, bool]] = []  # (number, offset in the spool, held out)
        spool = temporary_beside(out, ".spool")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            total = sum(len(mixed.chosen) for mixed in self.sources)
            with open(spool, "wb") as file, tqdm(total=total, desc="write", unit=" samples", mininterval=0.5) as bar:
                for source, group in self._groups:
                    for sample, image_key in self._chosen_samples(source, group):
                        number = stable_hash(self.recipe.seed, "order", sample.id)
                        aside = stable_hash("split", image_key) < share * 2**64
                        order.append((number, file.tell(), held_out is not None and aside))
                        file.write(json.dumps(sample.as_json()).encode() + b"\n")
                        bar.update()
            order.sort()
            counts = {out: order}
            if held_out is not None:
                counts = {path: [item for item in order if item[2] == (path == held_out)] for path in (out, held_out)}
                if not all(counts.values()):
                    raise InputError(
                        f"the split leaves {len(counts[out])} samples to train on and {len(counts[held_out])} held "
                        "out; use another --split or more images (images are told apart by name and size)"
                    )
            for path, items in counts.items():
                write_json_list(path, _spooled(spool, array("q", (offset for _, offset, _ in items))))
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}") from None
        finally:
            spool.unlink(missing_ok=True)
        return {path: len(items) for path, items in counts.items()}

    def _choose(self, source: OpenSource, group: list[MixedSource]) -> None:
        before = self.problems.counts.copy()
        names = ", ".join(mixed.entry.name for mixed in group)
        samples = tqdm(source.samples(self.problems), desc=f"choose {names}", unit=" samples", mininterval=0.5)
        of_part = {part: mixed for mixed in group for part in mixed.entry.part}
        for position, sample in enumerate(samples):
            mixed = of_part.get(part_of(sample))
            if mixed is None:
                continue
            mixed.candidates += 1
            number = stable_hash(self.recipe.seed, sample.id)
            if mixed.full and number >= -mixed.heap[0][0]:
                continue  # only samples that would be taken are looked at
            problem = content_problem(sample, source.images, self._image_check)
            if problem is None and mixed.entry.cor and without_reasoning(sample) is None:
                problem = Problem(sample.id, "conversation", "it has no Chain of Reasoning with a final answer")
            if problem is None:
                (heapq.heapreplace if mixed.full else heapq.heappush)(mixed.heap, (-number, position))
            else:
                mixed.candidates -= 1
                self.problems.report(problem)
        for mixed in group:
            mixed.left_out = self.problems.counts - before
            keep = round(len(mixed.heap) * self.recipe.cor_share / 100)  # the samples with the smallest numbers
            order = sorted(mixed.heap, key=lambda item: (-item[0], item[1]))
            mixed.chosen = {position: mixed.entry.cor and rank < keep for rank, (_, position) in enumerate(order)}
            if not mixed.chosen or len(mixed.chosen) < (mixed.wanted or 0):
                wanted = "any" if mixed.wanted is None else f"{mixed.wanted:,}"
                reasoning = " with reasoning" * mixed.entry.cor
                raise InputError(
                    f"source {mixed.entry.name!r} ({', '.join(map(str, source.files))}) holds {len(mixed.chosen):,} "
                    f"usable samples of {', '.join(mixed.entry.part)}{reasoning}, the recipe wants {wanted}"
                    + "".join(f"\n{line}" for line in self.problems.table())
                )

    def _chosen_samples(self, source: OpenSource, group: list[MixedSource]) -> Iterator[tuple[Sample, str]]:
        """(the sample as the mix writes it, what its image is called when the set is split)."""
        owners = {position: mixed for mixed in group for position in mixed.chosen}
        for position, sample in enumerate(source.samples(Problems())):
            mixed = owners.get(position)
            if mixed is None:
                continue
            mixed.parts[part_of(sample)] += 1
            mixed.with_reasoning += mixed.chosen[position]
            if mixed.entry.cor and not mixed.chosen[position]:
                sample = without_reasoning(sample) or sample  # chosen only where this is possible
            key = f"text {sample.id}"
            if sample.image is not None:
                # Base name and size: COCO's images are in several folders, and every copy falls on the same side.
                path = source.images.find(sample.image)
                key = f"{Path(sample.image).name} {path.stat().st_size if path is not None else ''}"
            yield self._renamed(sample, mixed.entry.name, source.images), key

    def _renamed(self, sample: Sample, name: str, images: Images) -> Sample:
        """The sample under its id in the mix, its files named relative to the image root."""

        def relative(file: str) -> str:
            path = images.path(file)
            relative = os.path.relpath(os.path.abspath(path), self.image_root)
            if relative.startswith(".."):
                raise InputError(
                    f"source {name!r}: {path} is not in the image root {self.image_root}; "
                    "name a folder that holds all images with --images"
                )
            return Path(relative).as_posix()

        files = {key: relative(sample.meta[key]) for key in _FILES if isinstance(sample.meta.get(key), str)}
        image = None if sample.image is None else relative(sample.image)
        meta = {**sample.meta, **files, "source": name}
        return replace(sample, id=f"{name}/{sample.id}", image=image, meta=meta)

    def card_facts(self, config: Path, written: Mapping[Path, int]) -> dict[str, Any]:
        """What the card says: counts, licences, and the hashes by which the mix can be made again."""
        hashes = {path: sha256(path) for path in dict.fromkeys(path for mixed in self.sources for path in mixed.files)}
        licences = [name for mixed in self.sources for name in mixed.entry.licences()]
        return {
            "made_by": f"trace-vlm {__version__}, trace.data.mix",
            "recipe": str(config),
            "seed": self.recipe.seed,
            "cor_share": self.recipe.cor_share,
            "scale": self.recipe.scale,
            "image_root": str(self.image_root),
            "licence": strictest(licences),
            "images_may_be_embedded": may_embed(licences),
            "files": {path.name: {"samples": count, "sha256": sha256(path)} for path, count in written.items()},
            "sources": [
                {
                    **{key: value for key, value in asdict(mixed.entry).items() if key not in ("part", "licence")},
                    "asked_for": mixed.entry.part,
                    "candidates": mixed.candidates,
                    "taken": sum(mixed.parts.values()),
                    "with_reasoning": mixed.with_reasoning,
                    "parts": dict(mixed.parts),
                    "licences": list(mixed.entry.licences()),
                    "left_out": dict(mixed.left_out),
                    "read_from": [{"file": path.name, "sha256": hashes[path]} for path in mixed.files],
                }
                for mixed in self.sources
            ],
        }


def without_reasoning(sample: Sample) -> Sample | None:
    """The same question and final answer, to the character, without the reasoning; None if there is none."""
    if len(sample.conversations) != 2:
        return None
    response = parse(sample.conversations[1].text)
    if not response.steps or response.answer_span is None:
        return None
    answer = response.text[slice(*response.answer_span)]
    if response.none:
        answer = answer.removeprefix(FINAL_ANSWER).strip()
    starts = [start for start in (answer.find("["), answer.find("(")) if start >= 0]
    points = answer if response.none else answer[min(starts) :].strip() if starts else ""
    if not points or tuple(parse_points(points)) != response.points:
        return None
    question = f"{IMAGE_TAG}\n{question_text(sample.conversations[0].text, reasoning=False)}"
    return replace(sample, conversations=(Turn("human", question), Turn("gpt", points)))


def _spooled(spool: Path, offsets: array[int]) -> Iterator[dict[str, Any]]:
    with open(spool, "rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield json.loads(file.readline())


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Mix a training set from a recipe.", examples=__doc__)
    add = parser.add_argument
    add("--config", type=Path, required=True, help="recipe (YAML), for example configs/mixes/*.yaml")
    add("--out", type=Path, required=True, help="training file (LLaVA's JSON) to write")
    add("--data-root", type=Path, default=Path("."), help="what the recipe's paths are relative to")
    add(
        "--images", type=Path,
        help="what image names in OUT are relative to (default: the folder common to all sources)",
    )  # fmt: skip
    add("--check-images", choices=("exist", "ignore"), default="exist", help="what is required of images")
    add("--cor-share", type=float, help="percent of `cor` samples that keep their reasoning")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="replaces values of the recipe: seed=1 scale=0.1")
    add("--split", type=float, help="share of the images to hold out, in OUT_heldout.json")
    add("--parquet", type=Path, help="also export a Hugging Face data set to this folder")
    add("--strict", action="store_true", help="stop at the first problem")
    args = parser.parse_args(argv)
    if args.split is not None and not 0 < args.split < 1:
        raise InputError(f"--split is a share between 0 and 1, not {args.split}")
    share = [] if args.cor_share is None else [f"cor_share={args.cor_share}"]
    recipe = read_config(Recipe, args.config, [*args.set, *share])
    if args.parquet is not None:
        refuse_unknown({source.name: source.licences() for source in recipe.sources})
    held_out = None if args.split is None else args.out.with_name(f"{args.out.stem}_heldout{args.out.suffix}")
    with logged_problems(args.out, args.strict) as problems:
        mixer = Mixer(recipe, args.data_root, args.images, args.check_images, problems)
        written = mixer.write(args.out, held_out, args.split or 0.0)
    facts = mixer.card_facts(args.config, written)
    card = write_cards(args.out, facts)
    for mixed in mixer.sources:
        parts = ", ".join(f"{part} {count:,}" for part, count in mixed.parts.most_common())
        reasoned = f", {mixed.with_reasoning:,} with reasoning" if mixed.entry.cor else ""
        taken = sum(mixed.parts.values())
        print(f"  {mixed.entry.name:<16} {taken:>9,} of {mixed.candidates:,} ({parts}{reasoned})")
    problems.print_left_out(args.out)
    for path, count in written.items():
        print(f"{path}: {count:,} samples")
    print(f"train with image_folder={mixer.image_root}; the card is {card}")
    if args.parquet is not None:
        export(args.parquet, args.out, held_out, mixer.image_root, facts)
        print(f"{args.parquet}: a Hugging Face data set; datasets.load_dataset({str(args.parquet)!r}) reads it")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
