"""A few views drawn by hand, in the layout that the generator writes: what training needs, without a renderer."""

import json

import numpy as np
from PIL import Image

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (220, 220, 30)}
CAMERA = {"world_from_camera": [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 1], [0, 0, 0, 1]]}
NAMES = [(color, category) for color in COLORS for category in ("mug", "ball", "box")]


def draw_views(folder, views=8, size=(128, 128), seed=0):
    """Coloured squares on grey, with instance maps and views.jsonl."""
    rng = np.random.default_rng(seed)
    for name in ("images", "instances"):
        (folder / name).mkdir(parents=True)
    (width, height), lines = size, []
    for number in range(views):
        picture, instances = np.full((height, width, 3), 128, np.uint8), np.ones((height, width), np.uint8)
        names = rng.permutation(NAMES)[:3]
        for instance, (color, _) in enumerate(names, start=2):
            side = int(rng.integers(14, 24))
            x, y = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
            picture[y : y + side, x : x + side] = COLORS[color]
            instances[y : y + side, x : x + side] = instance
        objects = []
        for instance, (color, category) in enumerate(names, start=2):
            ys, xs = np.nonzero(instances == instance)
            x, y = (int(np.median(xs)), int(np.median(ys))) if len(xs) else (0, 0)
            if len(xs) > 40 and instances[y - 1 : y + 2, x - 1 : x + 2].min() == instance:
                # The picture is the table seen from above: right is x, away from the viewer (up) is y.
                objects.append({"instance": instance, "name": f"{color} {category}", "category": category,
                                "color": color, "center": [round((x + 0.5) / width, 2), round((y + 0.5) / height, 2)],
                                "position": [x / 100, -y / 100, 0.0], "radius": 0.05, "height": 0.1})  # fmt: skip
        view = f"{number:06d}_0"
        Image.fromarray(picture).save(folder / "images" / f"{view}.png")
        Image.fromarray(instances).save(folder / "instances" / f"{view}.png")
        files = {"image": f"images/{view}.png", "instances": f"instances/{view}.png"}
        lines.append(json.dumps({"view": view, **files, "camera": CAMERA, "objects": objects}))
    (folder / "views.jsonl").write_text("\n".join(lines) + "\n")
    return folder
