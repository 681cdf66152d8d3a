"""Ask a model to point at something in one image, and print the answer.

    trace-vlm predict table.png "Find free space left of the mug." --num-points 3 --overlay answer.png
    trace-vlm predict table.png "Point to the mug." --model M --depth D.png --intrinsics K.json --json

Without --model the bundled `nano` answers; it only knows its own synthetic tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.images import is_turned, open_image
from ..core.prompts import TEMPLATES, bare_instruction, template
from ..model.presets import default_model
from ..utils.command import InputError, Parser, existing_file, output_folder, run
from .answer import PointAnswer, answer_record
from .backprojection import ALIGNMENTS, UNITS, backproject, read_depth, read_extrinsics, read_intrinsics
from .generation import Decoding
from .predictor import PLACEHOLDER, Predictor

PICTURES = (".png", ".jpg", ".jpeg")


def add_decoding_flags(parser: Parser) -> None:
    """Add the flags for loading a model and generating; shared by every command that asks one."""
    default, add = Decoding(), parser.add_argument
    add("--temperature", type=float, default=default.temperature, help="0 is greedy")
    add("--top-p", type=float, default=default.top_p, help="nucleus sampling, for temperature > 0")
    add("--num-beams", type=int, default=default.num_beams, help="beam search")
    add("--max-new-tokens", type=int, default=default.max_new_tokens, help="per answer")
    add("--seed", type=int, default=default.seed, help="of the sampling")
    add("--num-points", type=int, help="exactly this many points")
    add("--constrain", action="store_true", help="only answers that can be parsed, by a grammar")
    add("--samples", type=int, default=1, help="answers drawn per question; needs --temperature")
    add("--aggregate", choices=["first", "medoid"], default="first", help="the first sample, or the best supported one")
    add("--image-attention-bias", type=float, default=0.0, metavar="B", help="added to the image's attention scores")
    add("--conv-mode", default="vicuna_v1", metavar="TEMPLATE", help=f"conversation template: {', '.join(TEMPLATES)}")
    add("--prompt-template", type=Path, metavar="FILE", help=f"the text of a question, with {PLACEHOLDER} in it")
    add("--device", help="as torch names it (default: a GPU if there is one)")
    add("--dtype", help="of the weights (default: float32 on a CPU, as stored on a GPU)")


def decoding_from_flags(arguments: argparse.Namespace) -> Decoding:
    """The settings of `add_decoding_flags`. InputError: one is out of range."""
    template(arguments.conv_mode)
    return Decoding(**{name: getattr(arguments, name) for name in Decoding.__dataclass_fields__})


def prompt_template(arguments: argparse.Namespace) -> str | None:
    """The text of --prompt-template. InputError: it has no place for the instruction."""
    if arguments.prompt_template is None:
        return None
    text = existing_file(arguments.prompt_template, "the prompt template").read_text("utf-8", "replace").strip()
    if text.count(PLACEHOLDER) != 1:
        raise InputError(f"{arguments.prompt_template} must have {PLACEHOLDER} once, where the instruction goes")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    decoding, wording = decoding_from_flags(arguments), prompt_template(arguments)
    if not bare_instruction(arguments.instruction):
        raise InputError("the instruction is empty. Describe what to point at")
    image = open_image(arguments.image)  # before the model: a mistake shows at once
    depth_camera_pose = _depth_camera_pose(arguments, image.size)
    if arguments.overlay is not None:
        if arguments.overlay.suffix.lower() not in PICTURES:
            raise InputError(f"the overlay {arguments.overlay} must end in {', '.join(PICTURES)}")
        output_folder(arguments.overlay.parent)
    predictor = Predictor.load(arguments.model, arguments.model_base, arguments.device, arguments.dtype)
    (prediction,) = predictor.predict(
        [image], [arguments.instruction], reasoning=arguments.reasoning, style=arguments.conv_mode, template=wording,
        **asdict(decoding),
    )  # fmt: skip
    centers = [item.center for item in prediction.response.points]
    space = backproject(centers, *depth_camera_pose) if depth_camera_pose is not None else None
    if arguments.overlay is not None:
        from ..drawing.canvas import save_figure
        from ..drawing.figures import AnswerPanel, draw_comparison

        panels = [AnswerPanel(predictor.checkpoint.name, prediction.response)]
        try:
            save_figure(draw_comparison(image, arguments.instruction, panels), arguments.overlay)
        except (OSError, ValueError) as error:
            raise InputError(f"the overlay {arguments.overlay} cannot be written: {error}") from None
    answer = answer_record(prediction, image.size, predictor.checkpoint.name, space)
    print(
        json.dumps(answer.as_json(), indent=2)
        if arguments.json
        else format_prediction(answer, len(prediction.token_ids))
    )
    return 0


def _parser() -> Parser:
    parser = Parser(description="Ask a model to point at something in one image.", examples=__doc__)
    add = parser.add_argument
    add("image", type=Path)
    add("instruction", help="what to point at, in words")
    add(
        "--model",
        default=default_model(),
        help="folder, name on the hub, or a bundled one: nano, nano-direct (default: nano)",
    )
    add("--model-base", help="the model that an adapter belongs to")
    add("--reasoning", action=argparse.BooleanOptionalAction, help="reason before pointing (default: as trained)")
    add("--json", action="store_true", help="print one JSON object")
    add("--overlay", type=Path, metavar="PNG", help="draw the answer over the image")
    add("--depth", type=Path, help="a depth image (16 bits, float or .npy), for points in metres")
    add("--depth-unit", choices=UNITS, help="of the depth image's values (default: m for floats, mm for integers)")
    add("--depth-alignment", choices=ALIGNMENTS, default="registered",
        help="registered: pixel by pixel with the image; scaled: the same view at another resolution")  # fmt: skip
    add("--intrinsics", type=Path, metavar="FILE", help="of the image's camera: JSON, or a file of ROS or OpenCV")
    add("--extrinsics", type=Path, metavar="JSON", help="4 x 4 pose of the camera in the robot's base, metres")
    add_decoding_flags(parser)
    return parser


def _depth_camera_pose(arguments: argparse.Namespace, size: tuple[int, int]) -> tuple[Any, Any, Any] | None:
    if arguments.depth is None:
        if arguments.intrinsics is not None or arguments.extrinsics is not None:
            raise InputError("points in space need --depth too")
        return None
    if is_turned(arguments.image):
        raise InputError(
            f"the image {arguments.image} is stored turned (EXIF orientation), depth and camera are not. Store it as the "
            "camera saw it, without that tag"
        )
    if arguments.intrinsics is None:
        raise InputError("points in space need the camera: give --intrinsics with --depth")
    depth = read_depth(arguments.depth, arguments.depth_unit, arguments.depth_alignment, size)
    pose = read_extrinsics(arguments.extrinsics) if arguments.extrinsics is not None else None
    return depth, read_intrinsics(arguments.intrinsics, size), pose


def format_prediction(answer: PointAnswer, tokens: int) -> str:
    """The answer for a terminal: the text, then every point in both units, and in metres if depth was given."""
    lines, (width, height) = [answer.text, ""], answer.image_size
    for point in answer.points:
        line = (
            f"({point.x:.3f}, {point.y:.3f})  pixel ({point.pixel[0]:.1f}, {point.pixel[1]:.1f}) of {width} x {height}"
        )
        if point.confidence is not None:
            line += f"  confidence {point.confidence:.2f}"
        lines.append(line + ("" if point.inside else "  (outside the image)"))
        if point.xyz is not None:
            lines.append("    {} ({:.3f}, {:.3f}, {:.3f}) m".format(point.frame, *point.xyz))
        lines += [f"    {point.note}"] * bool(point.note)
    if answer.none:
        sure = "" if answer.confidence is None else f"  confidence {answer.confidence:.2f}"
        lines.append(f"nothing to point at{sure}")
    elif not answer.points:
        lines.append(f"no point could be read from this answer{': it was cut at --max-new-tokens' * answer.cut}")
    return "\n".join([*lines, f"{tokens} tokens in {answer.seconds:.2f} s"])


if __name__ == "__main__":
    raise SystemExit(run(main))
