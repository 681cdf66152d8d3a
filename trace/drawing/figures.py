"""Every figure of the project: answers over images, attention over images, outcomes, training curves.

Used by `visualization/`, the report, the demo and training. Functions return a matplotlib figure;
`canvas.save_figure` writes it. All heat maps of one answer share one colour scale, so that a diffuse step and a
concentrated one can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.points import Box, Point
from ..core.prompts import asks_yes_no
from ..core.reasoning import HEADINGS, Response
from . import overlay
from .canvas import BAD, FADED, INK, Canvas, TextBlock, font_families, line_width, text_height
from .overlay import CYAN, FEW_DOTS, RED, draw_image, model_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

HATCHES = ("", "////", "....", "xxxx")  # one more for every round of the colours
MARGIN, GUTTER = 24, 22
REASONING_WIDTH = 470  # of the text beside a single answer
COLORBAR_WIDTH = 76  # with its words
STEPS_PER_ROW = 3  # at the width of a page of text, labels stay readable
RIGHT = "right"  # the outcome of an answer that did not fail

Items = Sequence[Point | Box]


@dataclass(frozen=True, slots=True)
class AnswerPanel:
    """One model's answer to a question; what is not known is None."""

    label: str
    response: Response
    accuracy: float | None = None  # of this answer, 0 to 1
    note: str = ""  # below the label: the model's accuracy over all questions
    outcome: str | None = None  # RIGHT or an error class
    confidence: float | None = None  # the model's own, 0 to 1


@dataclass(frozen=True, slots=True)
class StepMap:
    """Attention during one step: `heat` [height, width] over the original image, None for a missing step."""

    title: str
    text: str
    heat: np.ndarray | None
    share: float = float("nan")  # attention mass on the image, 0 to 1
    tokens: tuple[int, int] | None = None


# --- answers of several models to one question ---------------------------------------------------------------------


def draw_comparison(
    image: Image, instruction: str, panels: Sequence[AnswerPanel], mask: np.ndarray | None = None, name: str = ""
) -> Figure:
    """Draw answers side by side: the instruction, then for each model the image with its points and its reasoning.

    With one panel the reasoning stands beside the image, with several below each. `name` is a small line above
    the instruction (question id, category).
    """
    beside, colors = len(panels) == 1, model_colors(panel.label for panel in panels)
    column, indent = 430 if len(panels) < 3 else 360, 0 if beside else 18
    picture = _fit(image.size, column, 460)
    titles, texts = zip(*(_panel_blocks(panel, instruction) for panel in panels), strict=True)
    inner = column + GUTTER + REASONING_WIDTH if beside else len(panels) * (column + GUTTER) - GUTTER
    header = _header(name, instruction, 6)
    top = MARGIN + text_height(inner, header) + 14
    picture_top = top + max(text_height(column - indent, title) for title in titles) + 8
    below = picture_top + picture[1] + 10
    bottom = below + max(text_height(column, text) for text in texts)
    if beside:
        bottom = max(below, picture_top + text_height(REASONING_WIDTH, texts[0]))
    canvas = Canvas(2 * MARGIN + inner, bottom + 12 + 18 + MARGIN / 2)
    canvas.write(MARGIN, MARGIN, inner, header)
    for index, panel in enumerate(panels):
        x = MARGIN + index * (column + GUTTER)
        if not beside:
            _draw_key(canvas.axes(x, top + 3, 13, 13), colors[panel.label], "o")
        canvas.write(x + indent, top, column - indent, titles[index])
        _draw_marks(canvas.axes(x, picture_top, *picture), image, panel.response.points, mask, 7.0, colors[panel.label])
        place = (x + column + GUTTER, picture_top, REASONING_WIDTH) if beside else (x, below, column)
        canvas.write(*place, texts[index])
    _draw_legend(canvas, truth=mask is not None, prediction=beside)
    return canvas.figure


def _fit(size: tuple[int, int], width: float, height: float) -> tuple[float, float]:
    """The largest (width, height) of an image's shape inside the given rectangle."""
    scale = min(width / size[0], height / size[1])
    return size[0] * scale, size[1] * scale


def _header(name: str, instruction: str, max_lines: int) -> list[TextBlock]:
    blocks = [TextBlock(name, 8, color=FADED)] if name else []
    return [*blocks, TextBlock(instruction, 12.5, bold=True, gap=2, max_lines=max_lines)]


def _panel_blocks(panel: AnswerPanel, instruction: str) -> tuple[list[TextBlock], list[TextBlock]]:
    """The title over a picture, and the reasoning and answer."""
    response = panel.response
    score = "" if panel.accuracy is None else f"score of this answer: {panel.accuracy:.0%}"
    if score and response.none and not asks_yes_no(instruction):
        score = f"this answer: nothing to point at, which is {'right' if panel.accuracy else 'wrong'}"
    if panel.outcome not in (None, RIGHT):
        score += f" ({panel.outcome})"
    title = [TextBlock(panel.label, 11, bold=True)]
    title += [TextBlock(line, 8.5, color=FADED) for line in (score, panel.note) if line]
    blocks = [] if response.steps else [TextBlock("This answer holds no reasoning.", color=FADED, gap=7)]
    for number, step in enumerate(response.steps, 1):
        blocks += [TextBlock(f"{number}  {HEADINGS[step.key]}", bold=True, gap=7),
                   TextBlock(step.text, gap=1, max_lines=12)]  # fmt: skip
    answer = answer_text(response)
    blocks += [TextBlock("Final answer", bold=True, gap=9),
               TextBlock(answer or "(empty)", gap=1, max_lines=8, color=INK if answer else FADED)]  # fmt: skip
    problems = answer_problems(response, instruction)
    return title, blocks + [TextBlock(problem, color=BAD, gap=2) for problem in problems]


def answer_text(response: Response) -> str:
    """Return the final answer without its heading; the text behind the steps where there is no heading."""
    if response.answer_span is None:
        return response.text[max((step.span[1] for step in response.steps), default=0) :].strip()
    heading, separator, rest = response.text[slice(*response.answer_span)].strip().partition("\n")
    if separator:
        return rest.strip()
    return heading.partition(":")[2].strip().removeprefix("**").strip() or heading


def answer_problems(response: Response, instruction: str = "") -> list[str]:
    """Return what is wrong with an answer, one sentence each."""
    outside = sum(isinstance(item, Point) and not item.inside for item in response.points)
    read = response.parsable or asks_yes_no(instruction)
    problems = [] if read else ["No point could be read from this answer: it counts as a miss."]
    if outside:
        problems.append(f"{outside} of {len(response.points)} points lie outside the image (hollow, at its edge).")
    return problems


def _draw_legend(canvas: Canvas, truth: bool, prediction: bool = True) -> None:
    """Explain the marks at the foot of a canvas; dots in several colours are explained beside their model's name."""
    x, y = float(MARGIN), canvas.height - 18 - MARGIN / 2
    for color, label, shape, shown in ((CYAN, "ground truth", "s", truth), (RED, "prediction", "o", prediction)):
        if shown:
            axes = canvas.axes(x, y, 110, 14)
            _draw_key(axes, color, shape)
            axes.text(17, 6.3, label, fontsize=8, color=FADED, va="center")
            x += 115


def _draw_key(axes: Axes, color: str, shape: str) -> None:
    """A dot or a hollow square at the left of axes of some 14 pixels in height."""
    axes.set_axis_off()
    axes.set_xlim(0, axes.bbox.width)
    axes.set_ylim(0, axes.bbox.height)
    face = "none" if shape == "s" else color
    axes.plot(6, 7, shape, markersize=7, markerfacecolor=face, markeredgecolor=color, markeredgewidth=2, clip_on=False)


def draw_outcome_counts(
    counts: Mapping[str, Mapping[str, int]], title: str = "How the answers came out",
    colors: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """Draw a bar with its count for each outcome and model. `counts`: label -> outcome -> number of answers."""
    colors = colors or model_colors(counts)
    outcomes = list(dict.fromkeys(outcome for of_model in counts.values() for outcome in of_model))
    bar, width = 17, 480
    group = 26 + bar * len(counts)
    foot = 48 + group * len(outcomes) + 16
    canvas = Canvas(width, foot + 20 * len(counts) + 8)
    canvas.write(MARGIN, 16, width - 2 * MARGIN, [TextBlock(title, 12.5, bold=True, max_lines=1)])
    axes = canvas.axes(MARGIN, 48, width - 2 * MARGIN, group * len(outcomes))
    axes.set_axis_off()
    axes.set_xlim(0, max([number for of_model in counts.values() for number in of_model.values()] or [1]) * 1.12)
    axes.set_ylim(group * len(outcomes), 0)
    looks = {label: {"color": colors[label], "hatch": HATCHES[index // len(overlay.COLORS) % len(HATCHES)],
                     "edgecolor": "white", "linewidth": 0} for index, label in enumerate(counts)}  # fmt: skip
    for row, outcome in enumerate(outcomes):
        axes.text(0, row * group + 12, outcome, va="center", fontsize=9, color=INK, parse_math=False)
        for index, (label, of_model) in enumerate(counts.items()):
            y, number = row * group + 22 + (index + 0.5) * bar, of_model.get(outcome, 0)
            axes.barh(y, number, height=bar - 4, **looks[label])
            axes.text(number, y, f" {number}", va="center", fontsize=8.5, color=FADED)
    for index, label in enumerate(counts):
        swatch = canvas.axes(MARGIN, foot + 20 * index + 1, 22, 13)
        swatch.set_axis_off()
        swatch.barh(0, 1, **looks[label])
        canvas.write(MARGIN + 28, foot + 20 * index, width - 76, [TextBlock(label, 9, bold=True, max_lines=1)])
    return canvas.figure


# --- attention of each step ----------------------------------------------------------------------------------------


def shared_vmax(steps: Sequence[StepMap]) -> float:
    """Return the upper end of the colour scale that all maps of an answer share: the largest value of any of them."""
    return max((float(step.heat.max()) for step in steps if step.heat is not None), default=0.0)


def draw_step(
    image: Image, step: StepMap, number: int, vmax: float, points: Items, mask: np.ndarray | None = None
) -> Figure:
    """Draw one step: attention over the image with ground truth and prediction, colour bar, and the step's text."""
    picture = _fit(image.size, 520, 520)
    column = max(picture[0] + COLORBAR_WIDTH, 400)
    title = [TextBlock(f"{number}  {step.title}", 12.5, bold=True), TextBlock(_numbers(step), color=FADED, gap=1)]
    text = [TextBlock(step.text, 9.5, max_lines=14)]
    picture_y = MARGIN + text_height(column, title) + 8
    below = picture_y + picture[1] + 12
    canvas = Canvas(2 * MARGIN + column, below + text_height(column, text) + 30 + MARGIN / 2)
    canvas.write(MARGIN, MARGIN, column, title)
    _draw_heat(canvas.axes(MARGIN, picture_y, *picture), image, step.heat, vmax, points, mask)
    _draw_colorbar(canvas, MARGIN + picture[0] + 12, picture_y, picture[1], vmax)
    canvas.write(MARGIN, below, column, text)
    _draw_legend(canvas, truth=mask is not None)
    return canvas.figure


def draw_steps(
    image: Image, instruction: str, steps: Sequence[StepMap], points: Items, mask: np.ndarray | None = None,
    name: str = "", scaling: str = "shared",
) -> Figure:  # fmt: skip
    """Draw the image and the attention of every step, STEPS_PER_ROW in a row; a missing step is shown as missing.

    `scaling`: "shared" is one colour scale over all steps, "each" one a step, where colours cannot be compared.
    """
    column, gutter = 244, 14
    picture = _fit(image.size, column, 270)
    inner = STEPS_PER_ROW * (column + gutter) - gutter
    header = _header(name, instruction, 4)
    heads = [[TextBlock("Image", 9.5, bold=True), TextBlock("ground truth and prediction", color=FADED, gap=1)]]
    for number, step in enumerate(steps, 1):
        title = TextBlock(f"{number}  {step.title}", 9.5, bold=True, max_lines=1)
        heads.append([title, TextBlock(_numbers(step), color=FADED, gap=1)])
    texts: list[list[TextBlock]] = [[], *([TextBlock(step.text, 9, max_lines=12)] for step in steps)]
    rows = [range(first, min(first + STEPS_PER_ROW, len(texts))) for first in range(0, len(texts), STEPS_PER_ROW)]
    title_height = max(text_height(column, head) for head in heads) + 6
    heights = [title_height + picture[1] + 10 + max(text_height(column, texts[cell]) for cell in row) for row in rows]
    tops = np.cumsum([MARGIN + text_height(inner, header) + 12, *(height + 20 for height in heights)])
    canvas = Canvas(2 * MARGIN + inner + COLORBAR_WIDTH, float(tops[-1]) + 10 + MARGIN / 2)
    canvas.write(MARGIN, MARGIN, inner, header)
    vmax = shared_vmax(steps)
    for row, top in zip(rows, tops.tolist(), strict=False):
        for x, cell in zip(range(MARGIN, MARGIN + inner, column + gutter), row, strict=False):
            canvas.write(x, top, column, heads[cell])
            axes = canvas.axes(x, top + title_height, *picture)
            if cell == 0:
                _draw_marks(axes, image, points, mask)
                continue
            step = steps[cell - 1]
            _draw_heat(axes, image, step.heat, vmax if scaling == "shared" else shared_vmax([step]), points, mask)
            canvas.write(x, top + title_height + picture[1] + 10, column, texts[cell])
        if scaling == "shared":
            _draw_colorbar(canvas, MARGIN + inner - column + picture[0] + 12, top + title_height, picture[1], vmax)
    _draw_legend(canvas, truth=mask is not None)
    return canvas.figure


def _numbers(step: StepMap) -> str:
    if step.heat is None:
        return "missing from this answer"
    tokens = f"tokens {step.tokens[0] + 1}\u2013{step.tokens[1]}" if step.tokens else ""
    share = "" if np.isnan(step.share) else f"image share {step.share:.1%}"  # only averaged heads have a share
    return " \u00b7 ".join(part for part in (tokens, share) if part)


def _draw_heat(
    axes: Axes, image: Image, heat: np.ndarray | None, vmax: float, points: Items, mask: np.ndarray | None
) -> None:
    if heat is not None:
        _draw_marks(axes, overlay.blend(image, heat, vmax), points, mask)
        return
    draw_image(axes, (np.asarray(image.convert("L").convert("RGB")) * 0.35 + 160).astype(np.uint8))
    axes.text(*np.divide(image.size, 2), "step missing", ha="center", va="center", fontsize=11, color=INK)


def _draw_marks(
    axes: Axes, image: Image | np.ndarray, points: Items, mask: np.ndarray | None, dot: float = 5.5, color: str = RED
) -> tuple[int, int]:
    """The image with ground truth and points; returns its size."""
    size = draw_image(axes, image)
    if mask is not None:
        overlay.draw_truth(axes, mask, size, line=1.2 if dot < 6 else 1.8)
    overlay.draw_answer(axes, points, size, dot=dot, color=color)
    return size


def _draw_colorbar(canvas: Canvas, x: float, y: float, height: float, vmax: float) -> None:
    """A colour bar in percent of a generated token's attention that one image token receives."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = canvas.axes(x, y, 13, height)
    bar = canvas.figure.colorbar(ScalarMappable(Normalize(0, 100 * vmax or 1), overlay.heat_colormap()), cax=axes)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8.5, length=2, color=FADED, labelcolor=FADED)
    bar.ax.set_ylabel("attention per\nimage token, %", fontsize=8.5, color=FADED)


def draw_measure(
    title: str, unit: str, names: Sequence[str], intervals: Sequence[tuple[float, float, float] | None],
    controls: Mapping[str, Sequence[float | None]], color: str,
) -> Figure:  # fmt: skip
    """Draw one number over the steps `names`: (mean, low, high) of each, and the values of up to two controls."""
    canvas = Canvas(360, 214)
    canvas.write(8, 6, 350, [TextBlock(title, 9.5, bold=True), TextBlock(unit, 8.5, color=FADED)])
    axes = canvas.axes(48, 52, 304, 134)
    for (label, values), marker in zip(controls.items(), ("_", "x"), strict=False):
        known = [(place, value) for place, value in enumerate(values) if value is not None]
        if known:
            size = 18 if marker == "_" else 6
            axes.plot(*zip(*known, strict=True), marker, color=FADED, markersize=size, label=label)
    for place, interval in enumerate(intervals):
        if interval is not None:
            axes.vlines(place, *interval[1:], color=color, linewidth=2)
            axes.plot(place, interval[0], "o", color=color, markersize=6)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0, 1.06 * max(axes.dataLim.y1, 1e-9))
    axes.set_xticks(range(len(names)), names)
    _style_plot(axes, 8.5)
    return canvas.figure


def draw_groups(
    values: Mapping[str, Sequence[tuple[float, float, float] | None]], names: Sequence[str], title: str
) -> Figure:
    """Draw models side by side over parts of a benchmark: (mean, low, high) of each part in `names`, None if unknown."""
    group = max(30 * len(values), 72, *(line_width(name, 9) + 12 for name in names))
    colors, width = model_colors(values), 60 + group * len(names)
    canvas = Canvas(width, 310 + 18 * len(values))
    axes = canvas.axes(48, 34, width - 64, 240)
    for index, (label, intervals) in enumerate(values.items()):
        shift = (index - (len(values) - 1) / 2) * 0.7 / len(values)
        known = [(place + shift, interval) for place, interval in enumerate(intervals) if interval is not None]
        axes.vlines(
            [x for x, _ in known], *zip(*(one[1:] for _, one in known), strict=True), colors[label], linewidth=2
        )
        axes.plot([x for x, _ in known], [one[0] for _, one in known], "o", color=colors[label], label=label)
    axes.set_title(title, fontsize=11, color=INK, loc="left", parse_math=False)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xticks(range(len(names)), names)
    _style_plot(axes, 9)
    font = {"family": font_families(" ".join(values)), "size": 9}
    axes.legend(frameon=False, labelcolor=INK, prop=font, loc="upper left", bbox_to_anchor=(0, -0.1), borderaxespad=0)
    return canvas.figure


def draw_overlay(
    image: Image, points: Items, heat: np.ndarray | None = None, vmax: float = 0.0, labels: Sequence[str] = (),
    side: int = 560, mask: np.ndarray | None = None,
) -> Figure:  # fmt: skip
    """Draw one image, or attention over it, with its points, a label beside each, and nothing around.

    `side` is the length of the longer side in pixels. More than FEW_DOTS points have no labels.
    """
    from matplotlib.patheffects import withStroke

    scale = side / max(image.size)
    canvas = Canvas(max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    axes = canvas.axes(0, 0, canvas.width, canvas.height)
    size = _draw_marks(axes, image if heat is None else overlay.blend(image, heat, vmax), points, mask, dot=8.5)
    positions = [np.clip((item.center.x, item.center.y), 0.02, 0.98) * size for item in points]
    groups: list[tuple[np.ndarray, list[str]]] = []  # labels that would cover one another are lines of one label
    for position, label in zip(positions, labels if len(points) <= FEW_DOTS else (), strict=False):
        near = next((lines for other, lines in groups if np.hypot(*(other - position)) < 14 / scale), None)
        if near is None:
            groups.append((position, [label]))
        else:
            near.append(label)
    for (x, y), lines in groups:
        right = x > 0.8 * size[0]
        shown = lines if len(lines) <= 4 else [*lines[:3], f"and {len(lines) - 3} more"]
        axes.annotate("\n".join(shown), (x, y), (-9 if right else 9, 0), textcoords="offset points", va="center",
                      ha="right" if right else "left", fontsize=9, color="white", fontweight="bold", parse_math=False,
                      path_effects=[withStroke(linewidth=2.6, foreground=INK)])  # fmt: skip
    return canvas.figure


# --- training ------------------------------------------------------------------------------------------------------


def draw_training_curves(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], quantities: Sequence[str] = ("loss",),
    colors: Mapping[str, str] | None = None,
) -> Figure:  # fmt: skip
    """Draw one panel a quantity, one curve a run: `runs` maps a name to log lines with `step` and the quantity.

    The raw values are faint, their running mean over a fortieth of the run is strong.
    """
    width, height, columns = 440, 300, min(2, len(quantities))
    colors = colors or model_colors(runs)
    canvas = Canvas(columns * (width + 70) + 20, math.ceil(len(quantities) / columns) * (height + 80) + 10)
    for index, quantity in enumerate(quantities):
        row, column = divmod(index, columns)
        axes = canvas.axes(70 + column * (width + 70), 34 + row * (height + 80), width, height)
        largest = []
        for name, lines in runs.items():
            logged = [(line["step"], line[quantity]) for line in lines if quantity in line]
            if logged:
                steps, values = np.asarray(logged, dtype=float).T
                axes.plot(steps, values, color=colors[name], alpha=0.22, linewidth=0.9)
                marker = "o" if len(values) == 1 else ""
                axes.plot(steps, _smooth(values), color=colors[name], linewidth=1.9, label=name, marker=marker)
                largest.append(float(np.quantile(values, 0.995)))  # one spike does not flatten the rest
        axes.set_title(quantity.replace("_", " "), fontsize=11, color=INK, loc="left", parse_math=False)
        axes.set_xlabel("optimizer step", fontsize=9, color=FADED)
        if axes.lines:
            bottom, top = min(0.0, axes.dataLim.y0), max(0.0, 1.05 * max(largest))
            axes.set_ylim(bottom, top if top > bottom else bottom + 1)
            axes.legend(frameon=False, labelcolor=INK, prop={"family": font_families(" ".join(runs)), "size": 9})
        _style_plot(axes, 8.5)
    return canvas.figure


def _style_plot(axes: Axes, size: float) -> None:
    axes.tick_params(labelsize=size, colors=FADED)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window that shrinks at both ends, so that it starts and ends at the data."""
    half = max(1, len(values) // 80)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)
