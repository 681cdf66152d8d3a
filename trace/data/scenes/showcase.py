"""One picture of every category with its name, to see whether a person tells them apart.

python -m trace.data.scenes.showcase --out categories.png [--config configs/scenes/tabletop.yaml]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ...utils.command import Parser, run

TILE, CAPTION, COLUMNS = 200, 22, 10


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="trace.data.scenes.showcase", description="Draw every category of the catalog.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--config", type=Path, default=None, help="YAML configuration (default: the built-in values)")
    args = parser.parse_args(argv)
    from .config import load_config
    from .generate import _require_gl

    config = load_config(args.config)
    _require_gl()
    import numpy as np
    from PIL import Image, ImageDraw

    from ...core.records import replacing
    from ...drawing.fonts import pil_font
    from .config import CameraConfig
    from .objects.catalog import make_body, sample_rgb
    from .objects.meshes import kinds
    from .render.studio import Studio
    from .world.camera import sample_camera
    from .world.flat_table import plain_room

    names = config.categories
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(names) // COLUMNS) * (TILE + CAPTION)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    view = CameraConfig(elevation=(32.0, 32.0), fovy=(30.0, 30.0), roll=(0.0, 0.0), slack=(1.0, 1.0), margin=0.05)
    with Studio.of(config, ((TILE, TILE),)) as studio:
        for index, name in enumerate(names):
            rng = np.random.default_rng(index)
            kind = kinds(config.objects.assets)[name]
            allowed = [color for color in config.objects.colors if color in (kind.colors or config.objects.colors)]
            color = allowed[index % len(allowed)]
            radius = kind.radius[1]
            height = radius * kind.slenderness[1]
            body = make_body(name, kind, color, sample_rgb(color, rng), radius, height, 0.5, (0.0, 0.0), 0.6)
            studio.arrange([body], plain_room((0.5, 0.5), rng))
            studio.look(sample_camera([body], -math.pi / 2, (TILE, TILE), view, rng))
            row, column = divmod(index, COLUMNS)
            x, y = column * TILE, row * (TILE + CAPTION)
            sheet.paste(Image.fromarray(studio.color()), (x, y + CAPTION))
            title = f"{color} {name}"
            draw.text((x + 4, y + 2), title, (0, 0, 0), pil_font(title, 15))
    with replacing(args.out) as temporary:
        sheet.save(temporary, "PNG")
    print(f"wrote {args.out}: {len(names)} categories")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
