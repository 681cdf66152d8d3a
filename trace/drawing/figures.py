"""Every figure of the project: answers over images, attention over images, training curves.

Used by `visualization/`, the report and the demo. The marks are those of `marks.py`; all heat-maps of one picture
share one colour scale, so that a diffuse step and a concentrated one can be told apart. Figures are returned,
`canvas.save` writes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.points import Box, Point
from ..core.reasoning import HEADINGS, Response
from .canvas import BAD, FADED, INK, Block, Page, text_height
from .fonts import families
from .overlay import COLORS, CYAN, FEW, RED, blend, draw_answer, draw_image, draw_truth, heat_colors, model_colors, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

HATCHES = ("", "////", "....", "xxxx")  # after every round of the colours
MARGIN, GUTTER = 24, 22
LEGEND = 3  # labels in a row
SCALE = 76  # the width of a colour bar with its words
ACROSS = 3  # pictures of attention in a row: as wide as a page of text, where labels can be read
RIGHT = "right"  # the outcome of an answer that did not fail


@dataclass(frozen=True, slots=True)
class Panel:
    """One model's answer to a question. `accuracy` is this answer's score (0 to 1), None without ground truth.

    `outcome` is "right" or the class of its failure, `confidence` the model's own (0 to 1), each None when not known.
    """

    label: str
    response: Response
    accuracy: float | None = None
    note: str = ""  # beside the label: the model's accuracy over all questions, its size, ...
    outcome: str | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class StepMap:
    """Attention during one milestone: `heat` [height, width] over the original image, None for a missing step."""

    title: str
    text: str
    heat: np.ndarray | None
    share: float = float("nan")  # attention mass on the image, 0 to 1
    tokens: tuple[int, int] | None = None


# --- answers of several models to one question ---------------------------------------------------------------------


def comparison(
    image: Image, instruction: str, panels: Sequence[Panel], mask: np.ndarray | None = None, name: str = ""
) -> Figure:
    """Answers side by side: instruction on top, for each model image, marks, accuracy and its reasoning.

    With one panel the reasoning stands beside the picture, with several below each. `name` is a small line above
    the instruction (question id, category).
    """
    column = 430 if len(panels) < 3 else 360
    picture = _fitted(image.size, column, 460)
    texts = [_answer_blocks(panel) for panel in panels]
    beside = len(panels) == 1
    width = 2 * MARGIN + (column + GUTTER + 470 if beside else len(panels) * (column + GUTTER) - GUTTER)
    header = [Block(name, 8, color=FADED)] * bool(name) + [Block(instruction, 12.5, bold=True, gap=2, max_lines=6)]
    top = MARGIN + text_height(width - 2 * MARGIN, header) + 14
    titles, indent = [_title_blocks(panel) for panel in panels], 0 if beside else 18
    colors = model_colors(panel.label for panel in panels)
    picture_top = top + max(text_height(column - indent, title) for title in titles) + 8
    below = picture_top + picture[1] + 10
    if beside:
        bottom = max(below, picture_top + text_height(470, texts[0]))
    else:
        bottom = below + max(text_height(column, text) for text in texts)
    page = Page(width, bottom + 12 + 18 + MARGIN / 2)
    page.write(MARGIN, MARGIN, width - 2 * MARGIN, header)
    for index, panel in enumerate(panels):
        x = MARGIN + index * (column + GUTTER)
        if not beside:
            _mark(page.axes(x, top + 3, 13, 13), colors[panel.label], "o")
        page.write(x + indent, top, column - indent, titles[index])
        axes = page.axes(x, picture_top, *picture)
        size = draw_image(axes, rgb(image))
        if mask is not None:
            draw_truth(axes, mask, size)
        draw_answer(axes, panel.response.points, size, color=colors[panel.label])
        page.write(*((x + column + GUTTER, picture_top, 470) if beside else (x, below, column)), texts[index])
    _legend(page, truth=mask is not None, prediction=beside)
    return page.figure


def _fitted(size: tuple[int, int], width: float, height: float) -> tuple[float, float]:
    """The largest (width, height) of an image's shape inside the given rectangle."""
    scale = min(width / size[0], height / size[1])
    return size[0] * scale, size[1] * scale


def _title_blocks(panel: Panel) -> list[Block]:
    score = "" if panel.accuracy is None else f"this answer: {panel.accuracy:.0%} of its points in the target"
    if panel.outcome not in (None, RIGHT):
        score += f" ({panel.outcome})"
    lines = [Block(line, 8.5, color=FADED) for line in (score, panel.note) if line]
    return [Block(panel.label, 11, bold=True), *lines]


def _answer_blocks(panel: Panel) -> list[Block]:
    response = panel.response
    blocks = []
    for number, step in enumerate(response.steps, 1):
        blocks.append(Block(f"{number}  {HEADINGS.get(step.key, step.heading)}", 8.5, bold=True, gap=7))
        blocks.append(Block(step.text, 8.5, gap=1, max_lines=12))
    if not response.steps:
        blocks.append(Block("This answer holds no reasoning.", 8.5, color=FADED, gap=7))
    blocks.append(Block("Final answer", 8.5, bold=True, gap=9))
    answer, problems = answer_text(response), answer_problems(response)
    blocks.append(Block(answer or "(empty)", 8.5, gap=1, max_lines=8, color=INK if answer else FADED))
    blocks.extend(Block(problem, 8.5, color=BAD, gap=2) for problem in problems)
    return blocks


def answer_text(response: Response) -> str:
    """The text of the final answer without its heading; the whole text where there is no heading."""
    if response.answer_span is None:
        tail = max((step.span[1] for step in response.steps), default=0)
        return response.text[tail:].strip()
    start, end = response.answer_span
    text = response.text[start:end].strip()
    heading, separator, rest = text.partition("\n")
    if separator:
        return rest.strip()
    return heading.partition(":")[2].strip().removeprefix("**").strip() or heading


def answer_problems(response: Response) -> list[str]:
    """What a reader should know about an answer, one sentence each; nothing for a sound one."""
    outside = sum(isinstance(item, Point) and not item.inside for item in response.points)
    problems = [] if response.points else ["No point could be read from this answer: it counts as a miss."]
    if outside:
        problems.append(f"{outside} of {len(response.points)} points lie outside the image (hollow, at its edge).")
    return problems


def _legend(page: Page, truth: bool, prediction: bool = True) -> None:
    """What the marks mean, at the foot of a page; dots in several colours are named where their model is."""
    x, y = float(MARGIN), page.height - 18 - MARGIN / 2
    for color, label, shape, shown in (
        (CYAN, "ground truth", "s", truth),
        (RED, "prediction", "o", prediction),
    ):
        if shown:
            axes = page.axes(x, y, 110, 14)
            _mark(axes, color, shape)
            axes.text(17, 6.3, label, fontsize=8, color=FADED, va="center")
            x += 115


def _mark(axes: Axes, color: str, shape: str) -> None:
    """A dot or a hollow square as it stands on the pictures, at the left of axes of some 14 pixels in height."""
    axes.set_axis_off()
    axes.set_xlim(0, axes.bbox.width)
    axes.set_ylim(0, axes.bbox.height)
    face = "none" if shape == "s" else color
    axes.plot(6, 7, shape, markersize=7, markerfacecolor=face, markeredgecolor=color, markeredgewidth=2, clip_on=False)


def outcome_counts(models: Mapping[str, Mapping[str, int]]) -> Figure:
    """How the answers of each model came out: a bar an outcome and model, with its count. `models`: label -> counts."""
    names = list(dict.fromkeys(name for counts in models.values() for name in counts))
    line, group = 17, 17 * len(models) + 16
    foot = 48 + group * len(names) + 28
    page = Page(860, foot + 20 * math.ceil(len(models) / LEGEND) + 8)
    page.write(MARGIN, 16, 800, [Block("How the answers came out", 12.5, bold=True)])
    axes = page.axes(230, 48, 590, group * len(names))
    axes.set_xlim(0, max([count for counts in models.values() for count in counts.values()] or [1]) * 1.12)
    axes.set_ylim(group * len(names), 0)
    for place, name in enumerate(names):
        axes.text(-0.012, (place + 0.5) * group, name, transform=axes.get_yaxis_transform(), ha="right", va="center",
                  fontsize=9, color=INK, parse_math=False)  # fmt: skip
        for index, ((_, counts), color) in enumerate(zip(models.items(), model_colors(models).values(), strict=True)):
            y, count = place * group + 8 + (index + 0.5) * line, counts.get(name, 0)
            axes.barh(y, count, height=line - 4, color=color, hatch=_hatch(index), edgecolor="white", linewidth=0)
            axes.text(count, y, f" {count}", va="center", fontsize=8.5, color=FADED)
    axes.set_yticks([])
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    for index, (label, color) in enumerate(model_colors(models).items()):
        x, y = MARGIN + 270 * (index % LEGEND), foot + 20 * (index // LEGEND)
        swatch = page.axes(x, y + 1, 22, 13)
        swatch.set_axis_off()
        swatch.barh(0, 1, color=color, hatch=_hatch(index), edgecolor="white", linewidth=0)
        page.write(x + 28, y, 232, [Block(label, 9, bold=True, max_lines=1)])
    return page.figure


def _hatch(index: int) -> str:
    return HATCHES[index // len(COLORS) % len(HATCHES)]


# --- attention of each milestone -----------------------------------------------------------------------------------


def shared_top(steps: Sequence[StepMap]) -> float:
    """The upper end of the colour scale that all maps of a question share: the largest value of any of them."""
    return max((float(step.heat.max()) for step in steps if step.heat is not None), default=0.0)


def milestone(
    image: Image, step: StepMap, number: int, top: float, points: Sequence[Point | Box], mask: np.ndarray | None = None
) -> Figure:
    """One step: attention over the image with ground truth and prediction, the colour scale, the step's text below.

    Raises:
        ValueError: the step is missing (it has no map): there is nothing to draw.
    """
    if step.heat is None:
        raise ValueError(f"the step {step.title!r} is missing from the answer and has no picture")
    picture = _fitted(image.size, 520, 520)
    column = max(picture[0] + SCALE, 400)
    title = [Block(f"{number}  {step.title}", 12.5, bold=True), Block(_numbers(step), 8.5, color=FADED, gap=1)]
    text = [Block(step.text, 9.5, max_lines=14)]
    picture_y = MARGIN + text_height(column, title) + 8
    below = picture_y + picture[1] + 12
    page = Page(2 * MARGIN + column, below + text_height(column, text) + 30 + MARGIN / 2)
    page.write(MARGIN, MARGIN, column, title)
    _heat_panel(page, (MARGIN, picture_y), picture, image, step.heat, top, points, mask)
    _scale(page, MARGIN + picture[0] + 12, picture_y, picture[1], top)
    page.write(MARGIN, below, column, text)
    _legend(page, truth=mask is not None)
    return page.figure


def progression(
    image: Image,
    instruction: str,
    steps: Sequence[StepMap],
    points: Sequence[Point | Box],
    mask: np.ndarray | None = None,
    name: str = "",
    scaling: str = "shared",
) -> Figure:
    """The image and all milestones, ACROSS in a row; a missing step keeps its place and says so.

    `scaling`: "shared" is one colour scale over all steps, "each" one a step, where colours cannot be compared.
    """
    column, gutter = 244, 14
    picture = _fitted(image.size, column, 270)
    inner = ACROSS * (column + gutter) - gutter
    header = [Block(name, 8, color=FADED)] * bool(name) + [Block(instruction, 12.5, bold=True, gap=2, max_lines=4)]
    heads = [[Block("Image", 9.5, bold=True), Block("ground truth and prediction", 8.5, color=FADED, gap=1)]]
    for number, step in enumerate(steps, 1):
        title = Block(f"{number}  {step.title}", 9.5, bold=True, max_lines=1)
        heads.append([title, Block(_numbers(step), 8.5, color=FADED, gap=1)])
    texts: list[list[Block]] = [[], *([Block(step.text, 9, max_lines=12)] for step in steps)]
    rows = [range(first, min(first + ACROSS, len(texts))) for first in range(0, len(texts), ACROSS)]
    title_height = max(text_height(column, head) for head in heads) + 6
    heights = [title_height + picture[1] + 10 + max(text_height(column, texts[one]) for one in row) for row in rows]
    tops = np.cumsum([MARGIN + text_height(inner, header) + 12, *(height + 20 for height in heights)])
    page = Page(2 * MARGIN + inner + SCALE, float(tops[-1]) + 10 + MARGIN / 2)
    page.write(MARGIN, MARGIN, inner, header)
    top = shared_top(steps)
    for row, start in zip(rows, tops.tolist(), strict=False):
        for x, place in zip(range(MARGIN, MARGIN + inner, column + gutter), row, strict=False):
            page.write(x, start, column, heads[place])
            corner = x, start + title_height
            if place == 0:
                axes = page.axes(*corner, *picture)
                _marks(axes, draw_image(axes, rgb(image)), points, mask)
                continue
            step = steps[place - 1]
            own = top if scaling == "shared" else shared_top([step])
            _heat_panel(page, corner, picture, image, step.heat, own, points, mask)
            page.write(x, corner[1] + picture[1] + 10, column, texts[place])
        if scaling == "shared":
            _scale(page, MARGIN + inner - column + picture[0] + 12, start + title_height, picture[1], top)
    _legend(page, truth=mask is not None)
    return page.figure


def _numbers(step: StepMap) -> str:
    if step.heat is None:
        return "missing from this answer"
    tokens = f"tokens {step.tokens[0] + 1}\u2013{step.tokens[1]}" if step.tokens else ""
    share = "" if np.isnan(step.share) else f"image share {step.share:.1%}"  # only heads that were averaged have one
    return " \u00b7 ".join(part for part in (tokens, share) if part)


def _heat_panel(
    page: Page,
    corner: tuple[float, float],
    picture: tuple[float, float],
    image: Image,
    heat: np.ndarray | None,
    top: float,
    points: Sequence[Point | Box],
    mask: np.ndarray | None,
) -> None:
    axes = page.axes(*corner, *picture)
    if heat is None:
        grey = (np.asarray(image.convert("L").convert("RGB")) * 0.35 + 160).astype(np.uint8)
        width, height = draw_image(axes, grey)
        axes.text(width / 2, height / 2, "step missing", ha="center", va="center", fontsize=11, color=INK)
        return
    _marks(axes, draw_image(axes, blend(image, heat, top)), points, mask)


def _marks(axes: Axes, size: tuple[int, int], points: Sequence[Point | Box], mask: np.ndarray | None) -> None:
    if mask is not None:
        draw_truth(axes, mask, size, thin=True)
    draw_answer(axes, points, size, dot=5.5)


def _scale(page: Page, x: float, y: float, height: float, top: float) -> None:
    """The colour bar, in percent of a generated token's attention that one image token receives, within SCALE pixels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = page.axes(x, y, 13, height)
    bar = page.figure.colorbar(ScalarMappable(Normalize(0, 100 * top or 1), heat_colors()), cax=axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, length=2, color=FADED, labelcolor=FADED)
    bar.ax.set_ylabel("attention per\nimage token, %", fontsize=8.5, color=FADED)


def overlay(
    image: Image, points: Sequence[Point | Box], heat: np.ndarray | None = None, top: float = 0.0,
    labels: Sequence[str] = (), side: int = 560,
) -> Figure:  # fmt: skip
    """One picture for a screen: the image, or attention over it, with the points and a word beside each.

    `side` is the length of the picture's longer side in pixels. More than FEW points have no words beside them.
    """
    from matplotlib.patheffects import withStroke

    scale = side / max(image.size)
    page = Page(max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    axes = page.axes(0, 0, page.width, page.height)
    size = draw_image(axes, rgb(image) if heat is None else blend(image, heat, top))
    draw_answer(axes, points, size, dot=8.5)
    centers = [item.center for item in points]
    places = [np.clip((center.x, center.y), 0.02, 0.98) * size for center in centers]
    for (x, y), words in _gathered(places, labels if len(points) <= FEW else (), 14 / scale):
        right = x > 0.8 * size[0]
        axes.annotate("\n".join(words), (x, y), (-9 if right else 9, 0), textcoords="offset points", va="center",
                      ha="right" if right else "left", fontsize=9, color="white", fontweight="bold", parse_math=False,
                      path_effects=[withStroke(linewidth=2.6, foreground=INK)])  # fmt: skip
    return page.figure


def _gathered(
    places: Sequence[np.ndarray], labels: Sequence[str], reach: float, most: int = 4
) -> list[tuple[np.ndarray, list[str]]]:
    """Labels that would cover one another stand in lines at the first of their places, at most `most` of them."""
    groups: list[tuple[np.ndarray, list[str]]] = []
    for place, label in zip(places, labels, strict=False):
        near = next((words for other, words in groups if np.hypot(*(other - place)) < reach), None)
        if near is None:
            groups.append((place, [label]))
        else:
            near.append(label)
    return [(place, words if len(words) <= most else [*words[: most - 1], f"and {len(words) - most + 1} more"])
            for place, words in groups]  # fmt: skip


# --- training ------------------------------------------------------------------------------------------------------


def training_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], quantities: Sequence[str] = ("loss",)) -> Figure:
    """One panel a quantity, one curve a run: `runs` maps a name to log lines that hold `step` and the quantity.

    The raw values are drawn faintly and their running mean (over a fortieth of the run) strongly.
    """
    wide, high, across = 460, 300, min(2, len(quantities))
    page = Page(across * (wide + 70) + 20, -(-len(quantities) // across) * (high + 80) + 10)
    for index, quantity in enumerate(quantities):
        down, right = divmod(index, across)
        axes = page.axes(70 + right * (wide + 70), 34 + down * (high + 80), wide - 20, high)
        for (name, lines), color in zip(runs.items(), model_colors(runs).values(), strict=True):
            pairs = [(line["step"], line[quantity]) for line in lines if quantity in line]
            if not pairs:
                continue
            steps, values = np.asarray(pairs, dtype=float).T
            axes.plot(steps, values, color=color, alpha=0.22, linewidth=0.9)
            axes.plot(steps, smooth(values), color=color, linewidth=1.9, label=name)
        axes.set_title(quantity.replace("_", " "), fontsize=11, color=INK, loc="left", parse_math=False)
        axes.set_xlabel("optimizer step", fontsize=9, color=FADED)
        axes.tick_params(labelsize=8.5, colors=FADED)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False, labelcolor=INK, prop={"family": families(" ".join(runs)), "size": 9})
    return page.figure


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window that shrinks at both ends, so that it starts and ends at the data."""
    half = max(1, len(values) // 80)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)
