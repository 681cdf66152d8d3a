"""Draw one picture of every category with its name, to see whether a person tells them apart.

python scripts/assets/category_sheet.py --out categories.png [--config configs/scenes/tabletop.yaml]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trace_vlm.utils.command import Parser, run

TILE, CAPTION, COLUMNS = 200, 22, 10


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description="Draw every category of the catalog.")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--config", type=Path, help="YAML configuration; without it the built-in values")
    args = parser.parse_args(argv)
    import numpy as np
    from PIL import Image, ImageDraw

    from trace_vlm.data.scenes.config import CameraConfig, load_scene_config
    from trace_vlm.data.scenes.generate import require_renderer
    from trace_vlm.data.scenes.objects.assets import all_categories
    from trace_vlm.data.scenes.objects.catalog import make_body, sample_rgb
    from trace_vlm.drawing.canvas import pil_font
    from trace_vlm.utils.files import replacing

    config = load_scene_config(args.config)
    require_renderer()
    from trace_vlm.data.scenes.render import SceneRenderer
    from trace_vlm.data.scenes.world.camera import sample_camera
    from trace_vlm.data.scenes.world.rooms import flat_room

    names = config.categories
    sheet = Image.new("RGB", (COLUMNS * TILE, -(-len(names) // COLUMNS) * (TILE + CAPTION)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    view = CameraConfig(elevation=(32.0, 32.0), fovy=(30.0, 30.0), roll=(0.0, 0.0), slack=(1.0, 1.0), margin=0.05)
    with SceneRenderer(config, ((TILE, TILE),)) as renderer:
        for index, name in enumerate(names):
            rng = np.random.default_rng(index)
            kind = all_categories(config.objects.assets)[name]
            allowed = [color for color in config.objects.colors if color in (kind.colors or config.objects.colors)]
            color = allowed[index % len(allowed)]
            radius = kind.radius[1]
            height = radius * kind.slenderness[1]
            body = make_body(name, kind, color, sample_rgb(color, rng), radius, height, 0.5, (0.0, 0.0), 0.6)
            renderer.set_scene([body], flat_room((0.5, 0.5), rng))
            renderer.set_camera(sample_camera([body], -math.pi / 2, (TILE, TILE), view, rng))
            row, column = divmod(index, COLUMNS)
            x, y = column * TILE, row * (TILE + CAPTION)
            sheet.paste(Image.fromarray(renderer.color()), (x, y + CAPTION))
            title = f"{color} {name}"
            draw.text((x + 4, y + 2), title, (0, 0, 0), pil_font(title, 15))
    with replacing(args.out) as unfinished:
        sheet.save(unfinished, "PNG")
    print(f"wrote {args.out}: {len(names)} categories")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
