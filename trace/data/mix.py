"""Mix a training set from a recipe: how many samples of which source, how many of them with reasoning.

    python -m trace.data.mix --config configs/mixes/trace_200k.yaml --out trace_200k.json
    python -m trace.data.mix --config configs/mixes/trace_200k.yaml --cor-share 25 --out trace_cor25.json

The same recipe gives the same file, byte for byte. `--cor-share` keeps the samples and takes the reasoning out of all
but that percentage, nested: what reasons at 25 % also does at 50 %. Beside the result lies its card (counts, sources,
licences, hashes); `--split` also makes a held-out file that shares no image with it; `--parquet` exports a Hugging Face
data set.

Sources are read twice, once to choose and once to write, so that memory grows with the mix and not with its sources.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.images import Images
from ..core.records import Sample
from ..utils.command import InputError, Parser, run
from ..utils.config import ListOf, config_class, read_config
from ..utils.files import write_json_list
from .licences import licences_of
from .sources.problems import POINTS, ProblemLog, Problems
from .sources.registry import KINDS, Opened, Source, not_read, number_of, open_source, sound_samples
from .sources.sample_checks import PARTS, late_problem, part_of, points_problem
from .subset import Pick, choose, without_reasoning

LARGEST_SCALE = 1000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_FILES = ("mask", "instances")  # what `meta` names beside the image, relative to the same folder


@config_class
class Entry:
    """One source of a recipe. Paths are relative to --data-root."""

    name: str  # ids begin with it
    kind: str  # trace.data.sources.registry
    path: str
    samples: int | None = None  # all when left out
    part: ListOf[str] = field(default_factory=lambda: list(PARTS))  # which of object_reference, free_space, ...
    cor: bool = False  # the samples carry reasoning, of which cor_share is kept
    image_folder: str | None = None
    licence: ListOf[str] = field(default_factory=list)  # trace.data.licences; known ones of the kind when left out
    max_turns: int = 5  # lvis: categories asked of one image


@config_class
class Recipe:
    sources: list[Entry]
    seed: int = 0
    cor_share: float = 100.0  # percent of the samples of `cor` sources that keep their reasoning
    scale: float = 1.0  # of every number of samples; smaller mixes lie inside larger ones


@dataclass(slots=True)
class Taken:
    """What a mix took from one entry, as the card tells it."""

    entry: Entry
    licences: tuple[str, ...]
    files: tuple[Path, ...]
    seen: int = 0
    with_reasoning: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)

    @property
    def samples(self) -> int:
        return sum(self.parts.values())


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """InputError names what is wrong in the file: keys, types, names, numbers, parts, kinds, licences."""
    recipe = read_config(Recipe, path, overrides)
    if not recipe.sources:
        raise InputError(f"{path}: sources is empty")
    if not 0 <= recipe.cor_share <= 100:
        raise InputError(f"{path}: cor_share is a percentage from 0 to 100, not {recipe.cor_share}")
    if not 0 < recipe.scale <= LARGEST_SCALE or recipe.seed < 0:
        raise InputError(
            f"{path}: scale must be above 0, at most {LARGEST_SCALE}, and seed at least 0, "
            f"not {recipe.scale} and {recipe.seed}"
        )
    used: dict[tuple[str, str, str], str] = {}
    for entry in recipe.sources:
        where = f"{path}: source {entry.name!r}"
        if not _NAME.fullmatch(entry.name):
            raise InputError(f"{where}: a name consists of letters, digits, '_', '-' and '.'")
        if entry.kind not in KINDS or entry.kind == "hub":
            known = ", ".join(kind for kind in KINDS if kind != "hub")
            raise InputError(f"{where}: kind must be one of {known}, not {entry.kind!r} (hub is converted first)")
        if entry.samples is not None and entry.samples < 1:
            raise InputError(f"{where}: samples must be at least 1, not {entry.samples}")
        if wrong := [part for part in entry.part if part not in PARTS]:
            raise InputError(f"{where}: there is no part {wrong[0]!r}; parts are {', '.join(PARTS)}")
        licences_of(entry.kind, entry.part, entry.licence)
        for part in entry.part:
            other = used.setdefault((entry.kind, entry.path, part), entry.name)
            if other != entry.name:
                raise InputError(f"{where} takes the same part ({part}) of {entry.path} as source {other!r}")
    names = [entry.name for entry in recipe.sources]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: two sources are called {twice[0]!r}")
    return recipe


# --- choosing and writing -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """The entries that are read from one source, together."""

    kind: str
    opened: Opened
    entries: tuple[Entry, ...]

    def samples(self, problems: Problems) -> Iterator[Sample]:
        return sound_samples(self.opened, problems, KINDS[self.kind].shared_ids)


class Mixer:
    """Chooses and writes one recipe.

    Args:
        data_root: what the recipe's paths are relative to.
        image_root: what image names in the result are relative to; the folder common to all sources when None.
        images: whether every sample's image has to be there.
    """

    def __init__(
        self, recipe: Recipe, data_root: Path, image_root: Path | None, images: bool, problems: Problems
    ) -> None:
        self.recipe, self._images, self.problems = recipe, images, problems
        self._groups = _groups(recipe, data_root)
        folders = [group.opened.image_folder for group in self._groups]
        root = image_root or Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))
        self.image_root = Path(os.path.abspath(root))
        self.taken = {
            entry.name: Taken(entry, licences_of(entry.kind, entry.part, entry.licence), group.opened.files)
            for group in self._groups
            for entry in group.entries
        }

    def write(self, out: Path, held_out: Path | None, share: float) -> dict[Path, int]:
        """Choose, then write `out` and, with about `share` of the images, `held_out`; the samples of each."""
        for group in self._groups:
            for written in (out, held_out):
                if written is not None:
                    not_read(written, group.opened.files)
        from tqdm import tqdm

        chosen = [self._choose(group) for group in self._groups]
        spool = out.with_name(f".{out.name}.{os.getpid()}.spool")
        order: list[tuple[int, int, bool]] = []  # (number, offset in the spool, held out)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with open(spool, "wb") as file:
                total = sum(map(len, chosen))
                with tqdm(total=total, desc="write", unit=" samples", mininterval=0.5) as bar:
                    for group, places in zip(self._groups, chosen, strict=True):
                        for sample, group_name in self._taken_samples(group, places):
                            number = number_of(self.recipe.seed, "order", sample.id)
                            aside = number_of("split", group_name) < share * 2**64
                            order.append((number, file.tell(), held_out is not None and aside))
                            file.write(json.dumps(sample.as_json()).encode() + b"\n")
                            bar.update()
            order.sort()
            self._check_split(order, held_out)
            parts = {out: False} if held_out is None else {out: False, held_out: True}
            for path, aside in parts.items():
                write_json_list(path, _spooled(spool, order, aside))
        except OSError as error:
            raise InputError(f"{out} cannot be written: {error.strerror or error}") from None
        finally:
            spool.unlink(missing_ok=True)
        return {path: sum(held == aside for _, _, held in order) for path, aside in parts.items()}

    def _check_split(self, order: Sequence[tuple[int, int, bool]], held_out: Path | None) -> None:
        aside = sum(held for _, _, held in order)
        if held_out is not None and aside in (0, len(order)):
            raise InputError(
                f"the split leaves {len(order) - aside} samples to train on and {aside} held out; "
                "more images or another --split are needed (images are told apart by name and size)"
            )

    def _choose(self, group: _Group) -> dict[int, tuple[Entry, bool]]:
        """The places to take, with their entry and whether they keep their reasoning."""
        from tqdm import tqdm

        before = self.problems.counts.copy()
        picks = {entry.name: _pick(entry, self.recipe.scale) for entry in group.entries}
        found = Images(group.opened.image_folder)
        names = ", ".join(picks)
        samples = tqdm(group.samples(self.problems), desc=f"choose {names}", unit=" samples", mininterval=0.5)
        choose(iter(samples), list(picks.values()), self.recipe.seed, self._trouble(found), self.problems)
        places: dict[int, tuple[Entry, bool]] = {}
        for entry in group.entries:
            pick, taken = picks[entry.name], self.taken[entry.name]
            chosen = pick.chosen(self.recipe.cor_share)
            taken.seen, taken.problems = pick.seen, self.problems.counts - before
            if not chosen or (pick.wanted is not None and len(chosen) < pick.wanted):
                wanted = "any" if pick.wanted is None else f"{pick.wanted:,}"
                raise InputError(
                    f"source {entry.name!r} ({', '.join(map(str, group.opened.files))}) holds {len(chosen):,} usable "
                    f"samples of {', '.join(entry.part)}{' with reasoning' * entry.cor}, the recipe wants {wanted}"
                    + "".join(f"\n{line}" for line in self.problems.table())
                )
            places |= {place: (entry, keeps) for place, keeps in chosen.items()}
        return places

    def _trouble(self, found: Images) -> Callable[[Sample], tuple[str, str] | None]:
        if self._images:
            return lambda sample: late_problem(sample, found)
        return lambda sample: (POINTS, trouble) if (trouble := points_problem(sample)) else None

    def _taken_samples(self, group: _Group, places: Mapping[int, tuple[Entry, bool]]) -> Iterator[tuple[Sample, str]]:
        """(the sample as the mix writes it, what its image is called when the set is split)."""
        found = Images(group.opened.image_folder)
        for place, sample in enumerate(group.samples(Problems())):
            if place not in places:
                continue
            entry, keeps = places[place]
            taken = self.taken[entry.name]
            taken.parts[part_of(sample)] += 1
            taken.with_reasoning += keeps
            if entry.cor and not keeps:
                sample = without_reasoning(sample) or sample  # chosen only where this is possible
            yield self._placed(sample, entry, found), _image_key(sample, found)

    def _placed(self, sample: Sample, entry: Entry, found: Images) -> Sample:
        meta = dict(sample.meta)
        for key in _FILES:
            if isinstance(meta.get(key), str):
                meta[key] = self._relative(meta[key], found, entry)
        image = None if sample.image is None else self._relative(sample.image, found, entry)
        return replace(sample, id=f"{entry.name}/{sample.id}", image=image, meta={**meta, "source": entry.name})

    def _relative(self, name: str, found: Images, entry: Entry) -> str:
        path = found.find(name) or found.folder / name
        relative = os.path.relpath(os.path.abspath(path), self.image_root)
        if relative.startswith(".."):
            raise InputError(
                f"source {entry.name!r}: {path} does not lie in the image root {self.image_root}; "
                "name a folder that holds all images with --image-root"
            )
        return Path(relative).as_posix()


def _groups(recipe: Recipe, data_root: Path) -> list[_Group]:
    entries: dict[tuple[str, str, str | None, int], list[Entry]] = {}
    for entry in recipe.sources:
        entries.setdefault((entry.kind, entry.path, entry.image_folder, entry.max_turns), []).append(entry)
    groups = []
    for (kind, path, folder, max_turns), together in entries.items():
        images = None if folder is None else data_root / folder
        if images is not None and not images.is_dir():
            raise InputError(f"source {together[0].name!r}: the image folder {images} does not exist")
        opened = open_source(Source(kind, data_root / path, images, max_turns, recipe.seed))
        groups.append(_Group(kind, opened, tuple(together)))
    return groups


def _pick(entry: Entry, scale: float) -> Pick:
    wanted = None if entry.samples is None else max(1, round(entry.samples * scale))
    return Pick(entry.name, frozenset(entry.part), wanted, entry.cor)


def _image_key(sample: Sample, found: Images) -> str:
    """Base name and size: COCO's images lie under several folders, and every copy has to fall on the same side."""
    if sample.image is None:
        return f"text {sample.id}"
    path = found.find(sample.image)
    return f"{Path(sample.image).name} {path.stat().st_size if path is not None else ''}"


def _spooled(spool: Path, order: Sequence[tuple[int, int, bool]], aside: bool) -> Iterator[dict[str, Any]]:
    with open(spool, "rb") as file:
        for offset in array("q", (offset for _, offset, held in order if held == aside)):
            file.seek(offset)
            yield json.loads(file.readline())


# --- the command ----------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.data.mix", description="Mix a training set from a recipe.")
    parser.add_argument("--config", type=Path, required=True, help="recipe (YAML), for example configs/mixes/*.yaml")
    parser.add_argument("--out", type=Path, required=True, help="training file (LLaVA's JSON) to write")
    parser.add_argument("--data-root", type=Path, default=Path("."), help="what the recipe's paths are relative to")
    parser.add_argument(
        "--image-root", type=Path, help="what image names shall be relative to (default: common folder)"
    )
    parser.add_argument("--images", choices=("exist", "ignore"), default="exist", help="what is asked of images")
    parser.add_argument("--cor-share", type=float, help="percent of `cor` samples that keep their reasoning")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="over the recipe: seed=1 scale=0.1")
    parser.add_argument("--split", type=float, help="share of the images to hold out, in OUT_heldout.json")
    parser.add_argument("--parquet", type=Path, help="also export a Hugging Face data set to this folder")
    parser.add_argument("--strict", action="store_true", help="stop at the first problem")
    args = parser.parse_args(argv)
    if args.split is not None and not 0 < args.split < 1:
        raise InputError(f"--split is a share between 0 and 1, not {args.split}")
    share = [] if args.cor_share is None else [f"cor_share={args.cor_share}"]
    recipe = read_recipe(args.config, [*args.set, *share])
    if args.parquet is not None:
        from .export import refuse_unknown

        refuse_unknown({entry.name: licences_of(entry.kind, entry.part, entry.licence) for entry in recipe.sources})
    held_out = None if args.split is None else args.out.with_name(f"{args.out.stem}_heldout{args.out.suffix}")
    with ProblemLog(args.out.with_name(args.out.name + ".problems.jsonl")) as log:
        mixer = Mixer(recipe, args.data_root, args.image_root, args.images == "exist", Problems(args.strict, log))
        written = mixer.write(args.out, held_out, args.split or 0.0)
    from .cards import write_cards

    facts = write_cards(args.out, args.config, mixer, written)
    _report(mixer, written, log.path)
    if args.parquet is not None:
        from .export import export

        export(args.parquet, args.out, held_out, mixer.image_root, facts)
        print(f"{args.parquet}: a Hugging Face data set; datasets.load_dataset({str(args.parquet)!r}) reads it")
    return 0


def _report(mixer: Mixer, written: Mapping[Path, int], log: Path) -> None:
    for taken in mixer.taken.values():
        parts = ", ".join(f"{part} {count:,}" for part, count in taken.parts.most_common())
        reasoned = f", {taken.with_reasoning:,} with reasoning" if taken.entry.cor else ""
        print(f"  {taken.entry.name:<16} {taken.samples:>9,} of {taken.seen:,} ({parts}{reasoned})")
    if left_out := sum(mixer.problems.counts.values()):
        print(f"left out: {left_out:,} ({log})")
        print("\n".join(mixer.problems.table()))
    for path, count in written.items():
        print(f"{path}: {count:,} samples")
    print(f"train with --image-folder {mixer.image_root}; the card is {next(iter(written)).with_suffix('.card.md')}")


if __name__ == "__main__":
    raise SystemExit(run(main))
