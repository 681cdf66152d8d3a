"""What a server refuses, with 4xx and one sentence, and what it takes: pictures of every kind, forms, depth."""

import io
import json
import zlib

import numpy as np
import pytest
from http_server import QUESTION, ask, chat, encoded, message, png, sentence, serving
from PIL import Image, PngImagePlugin
from small_benchmark import picture

CAMERA = {"fx": 60.0, "fy": 60.0, "cx": 30.0, "cy": 20.0}


def depth_file(values):
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def bomb(width, height):
    """A PNG whose header promises far more pixels than it holds."""
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    file = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + head + zlib.crc32(head).to_bytes(4, "big")
    return file + png()[33:]


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return png(kind="JPEG", exif=exif)


@pytest.mark.parametrize(
    "words, change",
    [
        ("base64", {"image": "no base64!"}),
        ("image: it is no picture", {"image": encoded(b"no image")}),
        ("image: it is damaged", {"image": encoded(png()[:200])}),
        ("image: it is no picture", {"image": encoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")}),
        ("limit of 1,000,000", {"image": encoded(bomb(10_000, 10_000))}),
        ("no picture", {"image": encoded(bomb(2**31 - 1, 2**31 - 1))}),
        ("1,000,000 are allowed", {"image": encoded(bytes(10**6 + 1))}),
        ("0 bytes", {"image": ""}),
        ("not fetched from 'example.org'", {"image": "https://example.org/a.png"}),
        ("not fetched", {"image": "http://[::1/a.png"}),
        ("data URI", {"image": "data:image/png,abc"}),
        ("of no kind", {"image": encoded(png(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"))}),
        ("instruction: it is empty", {"instruction": " \n"}),
        ("characters are more than", {"instruction": "a" * 10**6}),
        ("instruction: Field required", {"instruction": ...}),
        ("colour: Extra inputs", {"colour": "red"}),
        ("num_points", {"num_points": 51}),
        ("temperature", {"temperature": -1}),
        ("seed", {"seed": 2**63}),
        ("need depth too", {"intrinsics": CAMERA}),
        ("needs intrinsics too", {"depth": encoded(depth_file(np.ones((40, 60))))}),
        ("depth image", {"depth": encoded(depth_file(np.ones((40, 60, 3)))), "intrinsics": CAMERA}),
        ("60 x 40", {"depth": encoded(depth_file(np.ones((4, 4)))), "intrinsics": CAMERA}),
        ("depth: it is no picture", {"depth": encoded(b"no depth"), "intrinsics": CAMERA}),
        ("fx", {"depth": encoded(depth_file(np.ones((40, 60)))), "intrinsics": {**CAMERA, "fx": 0}}),
        ("no intrinsics", {"depth": encoded(depth_file(np.ones((40, 60)))), "intrinsics": {}}),
        ("no pose", {"depth": encoded(depth_file(np.ones((40, 60)))), "intrinsics": CAMERA, "extrinsics": [[1]]}),
        ("turned", {"depth": encoded(depth_file(np.ones((60, 40)))), "intrinsics": CAMERA, "image": encoded(turned())}),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_with_one_sentence(client, words, change):
    record = {"image": encoded(png()), "instruction": QUESTION, **change}
    answer = client.post("/v1/point", json={name: value for name, value in record.items() if value is not ...})
    assert words in sentence(answer)


@pytest.mark.parametrize("path", ["/v1/point", "/v1/chat/completions"])
@pytest.mark.parametrize("content, kind", [
    (b"", "application/json"), (b"{", "application/json"), (b"[]", "application/json"), (b"null", "application/json"),
    (b"\xff\xfe", "application/json"), (b"[" * 10**5, "application/json"), (b'{"image": "\\ud800"}', "application/json"),
    (b"{}", "text/plain"), (b"{}", ""), (b"\x1f\x8b\x08", "application/json"), (b"--x", "multipart/form-data"),
    (b"--x", "multipart/form-data; boundary=x"), (b"a=b", "application/x-www-form-urlencoded"),
])  # fmt: skip
def test_a_body_that_is_no_request_is_refused(client, path, content, kind):
    sentence(client.post(path, content=content, headers={"Content-Type": kind}))
    sentence(client.post(path, content=iter([content[:1], content[1:]]), headers={"Content-Type": kind}))  # chunked


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "1e999", "-1", '"x"', "null", "[[1, 2], [3]]", "[" * 50 + "]" * 50]
)
@pytest.mark.parametrize("field", ["fx", "K", "distortion", "width"])
def test_a_camera_of_odd_numbers_never_fails_the_server(client, number, field):
    depth = encoded(depth_file(np.ones((40, 60))))
    record = json.dumps({"image": encoded(png()), "instruction": QUESTION, "max_new_tokens": 1, "depth": depth,
                         "intrinsics": {**CAMERA, field: 0}}).replace(f'"{field}": 0', f'"{field}": {number}')  # fmt: skip
    answer = client.post("/v1/point", content=record, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 or sentence(answer)


@pytest.mark.parametrize("image, kind", [
    (picture(0), "JPEG"), (picture(0), "WEBP"), (picture(0), "BMP"), (picture(0), "GIF"), (picture(0), "TIFF"),
    (picture(0).convert("CMYK"), "JPEG"), (picture(0).convert("P"), "PNG"), (picture(0).convert("1"), "PNG"),
    (picture(0).convert("LA"), "PNG"), (Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60)), "PNG"),
])  # fmt: skip
def test_pictures_of_every_kind_are_taken(client, image, kind):
    assert ask(client, png(image, kind)).json()["image_size"] == [60, 40]


def test_a_turned_picture_is_upright_and_of_an_animation_the_first_frame_counts(client):
    assert ask(client, turned()).json()["image_size"] == [40, 60]
    moving = png(kind="GIF", save_all=True, append_images=[picture(1)])
    assert ask(client, moving).json()["text"] == ask(client, png(kind="GIF")).json()["text"]


def test_a_form_and_json_give_the_same_answer(client):
    depth, image = depth_file(np.full((40, 60), 1500, np.uint16)), png()
    as_json = ask(
        client, image, depth=encoded(depth), intrinsics=CAMERA, num_points=2, reasoning=False, max_new_tokens=40
    )
    fields = {"instruction": QUESTION, "max_new_tokens": "40", "num_points": "2", "reasoning": "false",
              "intrinsics": json.dumps(CAMERA), "depth_unit": "mm"}  # fmt: skip
    form = client.post("/v1/point", data=fields, files={"image": image, "depth": ("d.npy", depth)})
    assert form.status_code == 200, form.text
    first, second = ({**answer.json(), "seconds": 0} for answer in (as_json, form))
    assert first == second and all(point["xyz"][2] == 1.5 for point in first["points"])
    fields["image"] = encoded(image)  # a file may also be text, in base64
    assert client.post("/v1/point", files={**{name: (None, value) for name, value in fields.items()},
                                           "depth": depth}).json()["points"] == first["points"]  # fmt: skip


@pytest.mark.parametrize("words, files", [
    ("given twice", [("image", png()), ("image", png())]), ("Too many files", [("image", png())] * 3),
    ("num_points: 'x' is not JSON", [("image", png()), ("num_points", (None, "x"))]),
    ("is not JSON", [("image", png()), ("intrinsics", (None, "[" * 10**5))]),
    ("is not JSON", [("image", png()), ("intrinsics", (None, "NaN"))]),
    ("instruction", [("image", png()), ("instruction", png())]), ("image", [("instruction", (None, "x"))]),
])  # fmt: skip
def test_a_wrong_form_is_refused(client, words, files):
    assert words in sentence(client.post("/v1/point", files=files))


@pytest.mark.parametrize("words, change", [
    ("one message", {"messages": message() * 2}), ("one message", {"messages": [{"role": "system", "content": "x"}]}),
    ("0 images", {"messages": [{"role": "user", "content": "Point to the mug."}]}),
    ("2 images", {"messages": [{"role": "user", "content": message()[0]["content"] * 2}]}),
    ("messages", {"messages": []}), ("n: ", {"n": 2}), ("stop", {"stop": ["x"]}), ("tools: Extra", {"tools": []}),
    ("max_tokens", {"max_tokens": 10**6}), ("not fetched", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}, {"type": "text", "text": "x"}]}]}),
])  # fmt: skip
def test_what_chat_completions_do_not_do_here_is_refused(client, words, change):
    assert words in sentence(chat(client, **change))


def test_an_unknown_model_address_or_method_is_named(client):
    assert "'tiny'" in sentence(chat(client, model="gpt"), 404)
    sentence(client.get("/v2"), 404)
    sentence(client.get("/v1/point"), 405)
    assert client.head("/v1/models").status_code == 405 and client.options("/v1/point").status_code == 405


def test_pictures_are_fetched_from_allowed_hosts_alone(tiny, client):
    with serving(tiny, hosts=("127.0.0.1",)) as fetching:
        here = str(fetching.base_url)
        assert "no picture" in sentence(
            fetching.post("/v1/point", json={"image": f"{here}/healthz", "instruction": "x"})
        )
        for path in ("/v2", "/a b", "/%zz", "/é"):
            answer = fetching.post("/v1/point", json={"image": here + path, "instruction": "x"})
            assert "cannot be fetched" in sentence(answer)


def test_a_damaged_picture_never_fails_the_server(client):
    rng = np.random.default_rng(0)
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "value" * 50, zip=True)
    for content in (png(pnginfo=text), png(kind="JPEG"), png(kind="GIF"), png(kind="TIFF"), png(kind="WEBP")):
        for _ in range(20):
            damaged = bytearray(content)
            for at in rng.integers(0, min(len(damaged), 400), 3):
                damaged[at] = rng.integers(256)
            answer = ask(client, bytes(damaged), max_new_tokens=1)
            assert answer.status_code == 200 or sentence(answer)
