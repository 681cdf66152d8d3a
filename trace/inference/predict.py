"""Ask a model to point at something in one picture, and say what came out.

    trace-vlm predict table.png "Find free space left of the mug." --num-points 3 --overlay answer.png
    trace-vlm predict table.png "Point to the mug." --model M --depth D.png --intrinsics K.json --json

Without --model a small model that ships with the package answers; it knows its own synthetic tables only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.images import is_turned, open_image
from ..core.points import Point
from ..core.prompts import TEMPLATES, bare_instruction, template
from ..model.presets import default_model
from ..utils.command import InputError, Parser, existing_file, output_folder, run
from .backprojection import ALIGNMENTS, UNITS, Lifted, lift, read_depth
from .cameras import read_extrinsics, read_intrinsics
from .confidence import centers
from .generation import Decoding
from .predictor import PLACEHOLDER, Prediction, Predictor

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg")


def add_decoding_flags(parser: Parser) -> None:
    """The flags that say how a model is loaded and how it generates; shared by every command that asks one."""
    default = Decoding()
    parser.add_argument("--temperature", type=float, default=default.temperature, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=default.top_p, help="nucleus sampling, where temperature > 0")
    parser.add_argument("--num-beams", type=int, default=default.num_beams)
    parser.add_argument("--max-new-tokens", type=int, default=default.max_new_tokens)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--num-points", type=int, help="exactly this many points")
    parser.add_argument("--constrain", action="store_true", help="only answers that can be read, by a grammar")
    parser.add_argument("--samples", type=int, default=1, help="answers drawn for a question; needs --temperature")
    parser.add_argument(
        "--aggregate", choices=["first", "medoid"], default="first",
        help="which sample is the answer: the first, or the one that the others support most",
    )  # fmt: skip
    parser.add_argument(
        "--image-attention-bias", type=float, default=0.0, metavar="B",
        help="added to the attention scores of the image in every layer",
    )  # fmt: skip
    parser.add_argument(
        "--conv-mode", default="vicuna_v1", metavar="TEMPLATE", help=f"conversation template: {', '.join(TEMPLATES)}"
    )
    parser.add_argument(
        "--prompt-template", type=Path, metavar="FILE", help=f"the text of a question, with {PLACEHOLDER} in it"
    )
    parser.add_argument("--device", help="as torch names it; by default a GPU when there is one")
    parser.add_argument("--dtype", help="of the weights; by default float32 on a CPU, on a GPU as stored")


def decoding_from_flags(arguments: argparse.Namespace) -> Decoding:
    """The settings that `add_decoding_flags` collected. InputError: one is out of range."""
    template(arguments.conv_mode)
    names = Decoding.__dataclass_fields__
    return Decoding(**{name: getattr(arguments, name) for name in names})


def prompt_template(arguments: argparse.Namespace) -> str | None:
    """The text of --prompt-template. InputError: it holds no place for the instruction."""
    if arguments.prompt_template is None:
        return None
    text = existing_file(arguments.prompt_template, "the prompt template").read_text("utf-8", "replace").strip()
    if text.count(PLACEHOLDER) != 1:
        raise InputError(f"{arguments.prompt_template} has to hold {PLACEHOLDER} once, where the instruction goes")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    decoding, wording = decoding_from_flags(arguments), prompt_template(arguments)
    try:
        arguments.instruction.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the instruction is no text in UTF-8") from None
    if not bare_instruction(arguments.instruction):
        raise InputError("the instruction is empty: say in words what to point at")
    image = open_image(arguments.image)  # before the model: a mistake shows at once
    if arguments.depth is not None and is_turned(arguments.image):
        raise InputError(
            f"the image {arguments.image} is stored turned (EXIF orientation), depth and camera are not: "
            "store it as the camera saw it, without that tag"
        )
    lifting = _lifting(arguments, image.size)
    if arguments.overlay is not None:
        if arguments.overlay.suffix.lower() not in PICTURES:
            raise InputError(f"the overlay {arguments.overlay} has to end in {', '.join(PICTURES)}")
        output_folder(arguments.overlay.parent)
    predictor = Predictor.load(arguments.model, arguments.model_base, arguments.device, arguments.dtype)
    (batch,) = predictor.stream(
        [image], [arguments.instruction], decoding, reasoning=arguments.reasoning, style=arguments.conv_mode,
        template=wording,
    )  # fmt: skip
    prediction = batch[0]
    lifted = lift(centers(prediction.response), *lifting) if lifting is not None else None
    if arguments.overlay is not None:
        _draw(arguments.overlay, image, arguments.instruction, prediction, predictor.checkpoint.name)
    if arguments.json:
        print(json.dumps(as_json(prediction, image.size, lifted), indent=2))
    else:
        print(describe(prediction, image.size, lifted))
    return 0


def _parser() -> Parser:
    parser = Parser(prog="trace-vlm predict", description="Ask a model to point at something in one image.")
    parser.add_argument("image", type=Path)
    parser.add_argument("instruction", help="what to point at, in words")
    parser.add_argument(
        "--model", "--model-path", default=default_model(), help="folder of the model, or one that ships"
    )
    parser.add_argument("--model-base", help="the model that an adapter belongs to")
    parser.add_argument(
        "--reasoning", action=argparse.BooleanOptionalAction, default=True, help="reason before pointing"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--overlay", type=Path, metavar="PNG", help="draw the answer over the image")
    parser.add_argument("--depth", type=Path, help="a depth image (16 bits, float or .npy): points in metres")
    parser.add_argument(
        "--depth-unit", choices=UNITS, help="of the depth image's values; if absent m for floats, mm for integers"
    )
    parser.add_argument(
        "--depth-alignment", choices=ALIGNMENTS, default="registered",
        help="registered: pixel by pixel with the image; scaled: the same view at another resolution",
    )  # fmt: skip
    parser.add_argument(
        "--intrinsics", type=Path, metavar="FILE",
        help="of the image's camera: fx, fy, cx, cy or K as JSON, or a file of ROS, RealSense or OpenCV",
    )  # fmt: skip
    parser.add_argument(
        "--extrinsics", type=Path, metavar="JSON", help="4 x 4 pose of the camera in the robot's base, metres"
    )
    add_decoding_flags(parser)
    return parser


def _lifting(arguments: argparse.Namespace, size: tuple[int, int]) -> tuple[Any, Any, Any] | None:
    """Depth, camera and pose, if points in space are wanted."""
    if arguments.depth is None:
        if arguments.intrinsics is not None or arguments.extrinsics is not None:
            raise InputError("points in space need --depth too")
        return None
    if arguments.intrinsics is None:
        raise InputError("points in space need the camera: give --intrinsics beside --depth")
    depth = read_depth(arguments.depth, arguments.depth_unit, arguments.depth_alignment, size)
    pose = read_extrinsics(arguments.extrinsics) if arguments.extrinsics is not None else None
    return depth, read_intrinsics(arguments.intrinsics, size), pose


def as_json(prediction: Prediction, size: tuple[int, int], lifted: Sequence[Lifted] | None = None) -> dict[str, Any]:
    """What a program wants of a prediction for an image of `size` (width, height)."""
    points = []
    for place, point in enumerate(centers(prediction.response)):
        sure = prediction.point_confidence[place] if prediction.point_confidence else None
        record: dict[str, Any] = {
            "x": point.x, "y": point.y, "pixel": list(point.to_pixels(*size)), "inside": point.inside,
            "confidence": sure,
        }  # fmt: skip
        if lifted is not None:
            record |= {"camera": lifted[place].camera, "base": lifted[place].base, "reason": lifted[place].reason}
        points.append(record)
    return {
        "points": points,
        "boxes": [
            {"normalized": [box.x0, box.y0, box.x1, box.y1], "pixels": list(box.to_pixels(*size))}
            for box in prediction.response.points
            if not isinstance(box, Point)
        ],
        "steps": [{"key": step.key, "text": step.text} for step in prediction.response.steps],
        "text": prediction.text,
        "image_size": list(size),
        "confidence": prediction.confidence,
        "samples": list(prediction.samples),
        "seconds": round(prediction.seconds, 3),
    }


def describe(prediction: Prediction, size: tuple[int, int], lifted: Sequence[Lifted] | None = None) -> str:
    """The answer for a terminal: the text, then every point in both units, and in metres where depth was given."""
    lines = [prediction.text, ""]
    for place, point in enumerate(centers(prediction.response)):
        x, y = point.to_pixels(*size)
        line = f"({point.x:.3f}, {point.y:.3f})  pixel ({x:.1f}, {y:.1f}) of {size[0]} x {size[1]}"
        if prediction.point_confidence:
            line += f"  confidence {prediction.point_confidence[place]:.2f}"
        lines.append(line + ("" if point.inside else "  (outside the image)"))
        if lifted is not None:
            lines.append(f"    {_in_space(lifted[place])}")
    if not prediction.response.parsable:
        cut = "no point could be read: the answer was cut at --max-new-tokens"
        lines.append(cut if prediction.cut else "no point could be read from this answer")
    return "\n".join([*lines, f"{len(prediction.token_ids)} tokens in {prediction.seconds:.2f} s"])


def _in_space(lifted: Lifted) -> str:
    if lifted.camera is None:
        return f"no place in space: {lifted.reason}"
    text = "camera ({:.3f}, {:.3f}, {:.3f}) m".format(*lifted.camera)
    return text if lifted.base is None else text + ", base ({:.3f}, {:.3f}, {:.3f}) m".format(*lifted.base)


def _draw(path: Path, image: Image, instruction: str, prediction: Prediction, name: str) -> None:
    from ..drawing.canvas import save_figure
    from ..drawing.figures import AnswerPanel, draw_comparison

    try:
        save_figure(draw_comparison(image, instruction, [AnswerPanel(name, prediction.response)]), path)
    except (OSError, ValueError) as error:
        raise InputError(f"the overlay {path} cannot be written: {error}") from None


if __name__ == "__main__":
    raise SystemExit(run(main))
