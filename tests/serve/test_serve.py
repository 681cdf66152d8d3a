"""A server's answers: those of the predictor, in OpenAI's protocol and our own, batched, limited, counted."""

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from forced_answers import COR, STEPS, saying
from http_server import QUESTION, ask, chat, encoded, message, png, sentence, serving
from PIL import Image
from small_benchmark import lines, make_benchmark, picture

from trace_vlm.core.points import Point
from trace_vlm.core.prompts import POINTS_SUFFIX, question_text
from trace_vlm.core.reasoning import render
from trace_vlm.eval import api_vqa, model_vqa, summarize_vqa
from trace_vlm.inference import predict
from trace_vlm.inference.predictor import Predictor, build_question
from trace_vlm.model.checkpoint import load
from trace_vlm.serve.requests import ChatRequest, Limits, chat_question
from trace_vlm.utils.files import read_json

FOREIGN = "Point to the mug. Your answer should be formatted as JSON."


@contextmanager
def held(predictor):
    """Stop the model before its first pass; yields the event that lets it go on, and is set at the end."""
    free = threading.Event()
    layer = predictor.checkpoint.model.get_input_embeddings()
    with layer.register_forward_pre_hook(lambda *_: free.wait(60) and None):
        try:
            yield free
        finally:
            free.set()


def metric(client, name):
    found = re.search(rf"^{re.escape(name)} (\S+)", client.get("/metrics").text, re.M)
    return float(found[1]) if found else 0.0


def wait_for(client, name, value):
    while metric(client, name) < value:
        pass


def predicted(predictor, text=QUESTION, image=None, **more):
    return predictor.predict(image or picture(0), text, **{"max_new_tokens": 8, **more})


@pytest.fixture
def openai_client(client):
    openai = pytest.importorskip("openai", reason="pip install 'trace-vlm[reason]'")
    return openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="any", max_retries=0)


def test_openais_client_gets_the_predictors_answer_whole_and_in_pieces(tiny, openai_client):
    text, create = COR.replace("The mug.", "Die Tasse ☕ 杯子."), openai_client.chat.completions.create
    asked = {"model": "tiny", "messages": message(), "logprobs": True}
    with saying(tiny.checkpoint, text):
        answer = create(**asked)
        chunks = [*create(**asked, stream=True, stream_options={"include_usage": True})]
        cut = create(**asked, max_tokens=5)
    (choice,) = answer.choices
    assert choice.message.content == text and choice.finish_reason == "stop"
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == text and {token.logprob for token in tokens} == {0.0}
    assert answer.usage.completion_tokens == len(tokens) == answer.usage.total_tokens - answer.usage.prompt_tokens
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == text and sum(map(bool, pieces)) > 30 and not any("\ufffd" in piece for piece in pieces)
    *_, last, usage = chunks
    assert usage.usage == answer.usage and last.choices[0].finish_reason == "stop"
    assert last.choices[0].logprobs.content == tokens
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 5
    assert [model.id for model in openai_client.models.list()] == ["tiny"]


def test_openais_client_gets_its_own_errors(openai_client):
    import openai

    with pytest.raises(openai.NotFoundError):
        openai_client.chat.completions.create(model="other", messages=message())
    with pytest.raises(openai.BadRequestError, match="0 images"):
        openai_client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], stream=True)


def test_sampled_answers_repeat_with_a_seed_and_differ_without(tiny, client):
    def text(**more):
        return chat(client, temperature=1.5, max_tokens=20, **more).json()["choices"][0]["message"]["content"]

    assert text(seed=5) == text(seed=5) == predicted(tiny, temperature=1.5, seed=5, max_new_tokens=20).text
    assert text() != text()


@pytest.mark.parametrize(
    "given, asked",
    [
        ("Point to the mug.", question_text("Point to the mug.", True)),
        (question_text("Point to the mug.", True), question_text("Point to the mug.", True)),
        (f"Point to the mug. {POINTS_SUFFIX}", question_text("Point to the mug.", False)),
        (f"<image>\nPoint to the mug. {POINTS_SUFFIX}", question_text("Point to the mug.", False)),
        (FOREIGN, FOREIGN),
        ("Is it red? Answer yes or no.", "Is it red? Answer yes or no."),
    ],
)  # fmt: skip
def test_a_bare_instruction_is_asked_as_in_training_and_a_complete_one_is_left_alone(given, asked):
    question = chat_question(ChatRequest(messages=message(given)), Limits(10**6, 10**6))
    assert build_question(question.instruction, question.reasoning is not False, question.template) == asked


def test_a_benchmark_through_the_server_scores_as_without(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    folder, texts, scores = make_benchmark(tmp_path / "bench"), [], []
    with serving(trained, "nano") as client:
        for name, command, more in (
            ("api", api_vqa, ["--provider", "vllm", "--base-url", f"{client.base_url}/v1", "--reasoning"]),
            ("local", model_vqa, []),
        ):
            answers = tmp_path / name / "nano.jsonl"
            common = ["--model", "nano", "--data", str(folder), "--answers", str(answers), "--max-new-tokens", "120"]
            assert command.main([*common, *more]) == 0
            assert summarize_vqa.main(["--answers", str(answers), "--resamples", "20"]) == 0
            texts.append([line["text"] for line in lines(answers)])
            scores.append(read_json(answers.parent / "summary.json")["models"][0]["accuracy"])
    assert texts[0] == texts[1] and scores[0] == scores[1]


def test_questions_that_arrive_while_the_model_answers_share_a_batch(tiny):
    """Their answers are the predictor's alone, those of other settings wait, and an image is encoded once."""
    texts, encodings = [f"Point to mug {number}." for number in range(4)], []
    tower = tiny.checkpoint.model.model.vision_tower
    count = tower.register_forward_hook(lambda *_: encodings.append(1))
    with count, serving(tiny) as client, ThreadPoolExecutor(6) as pool, held(tiny) as free:
        first = pool.submit(ask, client)
        while not metric(client, "trace_batch_size_count"):
            pass
        same = [pool.submit(ask, client, None, text) for text in texts]
        wait_for(client, "trace_waiting", 4)
        other = pool.submit(ask, client, png(picture(1)), reasoning=False)
        wait_for(client, "trace_waiting", 5)
        free.set()
        answers = [one.result().json()["text"] for one in [first, *same]]
        assert other.result().status_code == 200 and len(encodings) == 2
        assert [metric(client, f'trace_batch_size_bucket{{le="{size}.0"}}') for size in (1, 2, 4)] == [2, 2, 3]
    assert answers == [predicted(tiny, text).text for text in [QUESTION, *texts]]


def test_too_many_too_large_and_too_late(tiny):
    with serving(tiny, most_asking=1, timeout=0.3) as client, ThreadPoolExecutor(2) as pool:
        with held(tiny):
            waiting = pool.submit(chat, client)
            while not metric(client, "trace_batch_size_count"):
                pass
            refused = ask(client)
            assert "try again later" in sentence(refused, 429) and refused.headers["Retry-After"] == "1"
            assert "0.3 seconds" in sentence(waiting.result(), 504)
            late = chat(client, stream=True)
            assert late.status_code == 200 and "0.3 seconds" in late.text and "[DONE]" not in late.text
        sentence(ask(client, bytes(3 * 10**6)), 413)
        sentence(client.post("/v1/point", files={"image": bytes(3 * 10**6 + 1)}), 413)
    with serving(tiny) as client:  # the deadline of a question that nobody waits for stops nothing
        assert ask(client).json()["text"] == predicted(tiny).text


def test_a_client_that_goes_away_is_given_up(tiny):
    for stream in (False, True):
        with serving(tiny) as client, held(tiny):
            body = json.dumps({"messages": message(), "stream": stream}).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            address = client.base_url.host, client.base_url.port
            for sent in (body, body[:-5]):  # cut while it waits, and while it asks
                with socket.create_connection(address) as connection:
                    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + sent)
                    if sent == body:
                        wait_for(client, "trace_batch_size_count", 1)
                    if stream and sent == body:
                        connection.recv(100)
            status = "200" if stream else "499"
            wait_for(client, f'trace_requests_total{{route="/v1/chat/completions",status="{status}"}}', 1)
            wait_for(client, 'trace_requests_total{route="/v1/chat/completions",status="499"}', 1 if stream else 2)
        with serving(tiny) as client:
            assert ask(client).status_code == 200


def test_a_failing_model_is_a_500_and_the_server_goes_on(tiny):
    def fail(*_):
        raise RuntimeError("secret")

    layer = tiny.checkpoint.model.model.language_model.layers[0]
    with serving(tiny) as client:
        with layer.register_forward_pre_hook(fail):
            for answer in (ask(client), chat(client)):
                assert "secret" not in sentence(answer, 500)
            streamed = chat(client, stream=True).text
            assert "server_error" in streamed and "secret" not in streamed and "[DONE]" not in streamed
        assert client.get("/healthz").json() == {"status": "ok"} and ask(client).status_code == 200
        assert metric(client, 'trace_requests_total{route="/v1/point",status="500"}') == 1


def test_a_wrong_question_fails_alone(tiny, client):
    """Settings that the model cannot meet are told to the one who asked."""
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, client, num_points=50) for _ in range(2)], pool.submit(ask, client)
    assert all("too few" in sentence(answer.result()) for answer in answers[0])
    assert answers[1].result().status_code == 200


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer wrong", "Bearer secre", "Basic secret", "bearer \xe9"])
def test_without_the_key_nothing_but_health_is_told(tiny, key):
    with serving(tiny, key="secret") as client:
        headers = {"Authorization": key.encode("latin-1")}
        for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/v2"):
            sentence(client.get(path, headers=headers), 401)
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200


def test_points_are_lifted_and_two_surfaces_are_told_apart(tiny):
    depth = np.where(np.arange(60) < 30, 1000, 2000).astype(np.uint16)
    camera = {"fx": 60, "fy": 60, "cx": 29.5, "cy": 19.5, "width": 60, "height": 40}
    with saying(tiny.checkpoint, render(STEPS, [Point(0.495, 0.5)])), serving(tiny) as client:
        answer = ask(client, max_new_tokens=512, depth=encoded(png(Image.fromarray(np.tile(depth, (40, 1))))),
                     intrinsics=camera, extrinsics=np.diag([1, 1, 1, 1]).tolist()).json()  # fmt: skip
    (point,) = answer["points"]
    assert point["surfaces"] == [1, 2] and "two surfaces" in point["note"]
    assert point["frame"] == "base" and point["xyz"] == pytest.approx([-0.005, 0, 1], abs=0.01)
    assert [step["step"] for step in answer["reasoning"]] == [*STEPS] and answer["none"] is False


def test_predict_prints_the_servers_record(tiny_model, tmp_path, capsys):
    np.save(tmp_path / "depth.npy", np.full((40, 60), 1.5))
    (tmp_path / "camera.json").write_text(json.dumps(camera := {"fx": 60, "fy": 60, "cx": 30, "cy": 20}))
    (tmp_path / "image.png").write_bytes(png())
    flags = ["--model", tiny_model, "--num-points", 2, "--max-new-tokens", 300, "--depth", tmp_path / "depth.npy",
             "--intrinsics", tmp_path / "camera.json", "--json"]  # fmt: skip
    assert predict.main([str(tmp_path / "image.png"), QUESTION, *map(str, flags)]) == 0
    printed = json.loads(capsys.readouterr().out)
    with serving(Predictor.load(tiny_model)) as client:
        depth = encoded((tmp_path / "depth.npy").read_bytes())
        answer = ask(client, num_points=2, max_new_tokens=300, depth=depth, intrinsics=camera).json()
    assert len(answer["points"]) == 2 and {*answer} == {*printed}
    assert all(answer[name] == printed[name] for name in answer if name not in ("seconds", "model"))


def test_a_model_of_another_family_is_served(family_folder):
    checkpoint = load(family_folder("qwen3_vl"))
    with serving(predictor := Predictor(checkpoint)) as client, ThreadPoolExecutor(3) as pool:
        texts = [f"Point to mug {number}." for number in range(3)]
        answers = [pool.submit(ask, client, png(picture(number)), text) for number, text in enumerate(texts)]
        expected = [predicted(predictor, text, picture(number)).text for number, text in enumerate(texts)]
        assert [answer.result().json()["text"] for answer in answers] == expected
        pieces = re.findall(r'"content": ("(?:[^"\\]|\\.)*")', chat(client, texts[0], stream=True).text)
        assert "".join(map(json.loads, pieces)) == chat(client, texts[0]).json()["choices"][0]["message"]["content"]
        checkpoint.coordinates = "qwen3-vl"
        assert "qwen3-vl" in sentence(ask(client, num_points=2))
