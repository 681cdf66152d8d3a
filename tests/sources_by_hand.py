"""Small data sets in exactly the layouts that the public ones have, made by the tests that read them."""

import json

import numpy as np
from generated_samples import GOOD_STEPS
from PIL import Image

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import IMAGE_TAG, question_text
from trace_vlm.core.reasoning import render
from trace_vlm.data.sources.__main__ import main
from trace_vlm.data.sources.registry import Source
from trace_vlm.data.sources.sample_checks import Problems
from trace_vlm.utils.command import run


def picture(path, size=(32, 24), seed=0):
    """Save noise, so that neither format can compress it to nothing; the suffix says which. Return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def record(identifier, image, *texts, **more):
    """A record in LLaVA's JSON; the first question gets the image tag."""
    first = texts[0] if image is None or IMAGE_TAG in texts[0] else f"{IMAGE_TAG}\n{texts[0]}"
    speakers = ("human", "gpt") * len(texts)
    turns = [{"from": speaker, "value": text} for speaker, text in zip(speakers, (first, *texts[1:]), strict=False)]
    return {"id": identifier, **({} if image is None else {"image": image}), "conversations": turns, **more}


def pointing(identifier, image, reasoning=False, **more):
    points = [Point(0.461, 0.527), Point(0.498, 0.521)]
    asked = question_text("Pinpoint several points within the vacant space left of the mug.", reasoning)
    answer = render(GOOD_STEPS, points) if reasoning else "[(0.461, 0.527), (0.498, 0.521)]"
    return record(identifier, image, asked, answer, **more)


def read(kind, path, **more):
    """The usable samples of a source, and the problems of the others."""
    problems = Problems()
    return list(Source(kind, path, **more).open().usable_samples(problems)), problems


def converted(kind, path, out, *flags):
    return run(main, ["convert", "--kind", kind, "--path", str(path), "--out", str(out), *map(str, flags)])


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


def robopoint(folder, each=8):
    """`wentao-yuan/robopoint-data`: one JSON, and images/ with a folder for every part; ids of VQA repeat."""
    records = []
    for number in range(each):
        for part in ("object_ref", "region_ref"):
            name = f"{part}/1033888784-{number}_cam05.png"
            picture(folder / "images" / name, seed=number)
            records.append(pointing(f"{part}/1033888784-{number}_cam05_obj5_left", name))
        name = f"coco/train2017/{number:012d}.jpg"
        picture(folder / "images" / name, seed=100 + number)
        boxes = "[(0.490, 0.380, 0.080, 0.060), (0.530, 0.420, 0.080, 0.050)]"
        records.append(record(f"{number:012d}", name, "Find all instances of cushions.", boxes))
        records.append(record(f"{number:012d}", name, "What is this?", "A sofa.", "What colour?", "Red."))
    records.append(record("wgByO4Y_0", None, "How do I boil an egg?", "In water.", model=""))
    return write(folder / "robopoint_1432k.json", records).parent


def trace(folder, each=8):
    """`jink-ucla/TRACE` as a downloaded folder: samples with reasoning in LLaVA's JSON, and their images."""
    names = [f"{part}/{number}" for number in range(each) for part in ("object_ref", "region_ref")]
    for number, name in enumerate(names):
        picture(folder / f"images/{name}.png", seed=500 + number)
    return write(folder / "trace_train.json", [pointing(name, f"{name}.png", reasoning=True) for name in names]).parent


def llava_mix(folder):
    """`llava_v1_5_mix665k.json`: ids that repeat, text-only samples, one that opens with an answer, RefCOCO's boxes."""
    coco, gqa = "coco/train2017/000000033471.jpg", "gqa/images/2354786.jpg"
    for name in (coco, gqa):
        picture(folder / name)
    region = "Please provide the bounding box coordinate of the region this sentence describes: the bus."
    opens = {"from": "gpt", "value": "I begin."}
    records = [
        record("000000033471", coco, "What are the colors of the bus?", "White and red."),
        record("000000033471", coco, region, "[0.10, 0.20, 0.50, 0.60]"),
        record("2354786", gqa, "Is it day?\nAnswer using a single word.", "Yes"),
        record("wgByO4Y_0", None, "Hello", "Hi", "Bye", "Bye", model=""),
        {"id": "t_1", "conversations": [opens, *record("", None, "a", "b")["conversations"]]},
        {"id": "only", "conversations": [opens]},
    ]
    return write(folder / "llava_v1_5_mix665k.json", records)


def lvis(folder):
    """LVIS v1: images named by `coco_url` alone, boxes in pixels, synonyms in names, categories not fully annotated."""
    url = "http://images.cocodataset.org/train2017"
    images = [{"id": number, "width": 640, "height": 480, "coco_url": f"{url}/{number:012d}.jpg",
               "not_exhaustive_category_ids": [2] if number == 30 else []} for number in (30, 34)]  # fmt: skip
    boxes = [  # the second is over the border by a fraction of a pixel
        (30, 1, [64.0, 48.0, 128.0, 96.0]), (34, 1, [600.0, 400.0, 40.4, 80.3]), (30, 1, [0.0, 0.0, 32.0, 24.0]),
        (30, 2, [10.0, 10.0, 10.0, 10.0]), (34, 2, [320.0, 240.0, 320.0, 240.0]),
        *((34, 3, [float(number), 1.0, 2.0, 2.0]) for number in range(21))]  # fmt: skip
    annotations = [{"id": number, "image_id": image, "category_id": category, "bbox": box, "segmentation": [[1.5, 2.5]]}
                   for number, (image, category, box) in enumerate(boxes, start=1)]  # fmt: skip
    names = enumerate(("cup_(drinking)", "alarm_clock", "bead"), start=1)
    categories = [{"id": number, "name": name} for number, name in names]
    for image in images:
        picture(folder / "train2017" / f"{image['id']:012d}.jpg", (640, 480))
    content = {"info": {"version": "v1.0"}, "annotations": annotations, "categories": categories, "images": images}
    return write(folder / "lvis_v1_train.json", content)
