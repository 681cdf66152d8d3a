"""Reinforcement learning: what is sampled and learned, resumption to the same bits, prompts, what is refused."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rendering import needs_gl
from scenes_by_hand import draw_views
from shell import ROOT
from train_together import changed_parts, logged, train_config, weights

from trace_vlm.inference import predictor
from trace_vlm.model.families.base import part_of
from trace_vlm.train.guards import StopSignal
from trace_vlm.train.rl import prepare
from trace_vlm.train.rl_prompts import Prompts
from trace_vlm.train.train import train
from trace_vlm.utils.command import InputError

NANO = ROOT / "trace/assets/nano"
SCENES = {"config": str(ROOT / "configs/scenes/nano.yaml"), "size": "128", "questions": 2}
LORA = {"trainable": {"llm": "lora", "projector": "full"}, "lora": {"r": 4, "alpha": 8, "dropout": 0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Questions for the objects of views drawn by hand, with their masks; a benchmark of them."""
    folder = draw_views(tmp_path_factory.mktemp("rl") / "data", views=6)
    (folder / "masks").mkdir()
    samples = []
    for view in map(json.loads, (folder / "views.jsonl").read_text().splitlines()):
        instances = np.asarray(Image.open(folder / view["instances"]))
        for item in view["objects"][:2]:
            name = f"masks/{len(samples)}.png"
            Image.fromarray((instances == item["instance"]).astype(np.uint8) * 255).save(folder / name)
            meta = {"target": item, "mask": name, "instances": view["instances"], "points": [item["center"]] * 2}
            turn = {"from": "human", "value": f"<image>\nPoint to the {item['name']}."}
            samples.append({"id": name, "image": view["image"], "conversations": [turn], "meta": meta})
    (folder / "data.json").write_text(json.dumps(samples))
    lines = [{"question_id": number, "image": Path(one["image"]).name, "text": "Point to it.", "meta": one["meta"]}
             for number, one in enumerate(samples)]  # fmt: skip
    (folder / "point_questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def config_of(folder, out, **changes):
    changes["grpo"] = {"group": 4, "max_new_tokens": 60} | changes.get("grpo", {})
    values = {
        "data": [str(folder / "data.json")], "objective": "grpo", "learning_rate": 3e-4, "lr_schedule": "constant",
        "warmup_ratio": 0.0, "micro_batch_size": 8, "trainable": {"llm": "full", "projector": "full"},
    } | changes  # fmt: skip
    return train_config(folder, NANO, out, **values)


@pytest.mark.parametrize("changes", [{"grpo": {"iterations": 2}}, LORA], ids=["two steps on the same answers", "lora"])
def test_a_stopped_run_continues_to_the_same_bits(folder, tmp_path, monkeypatch, changes):
    complete = train(config_of(folder, tmp_path / "complete", **changes))
    config, read = config_of(folder, tmp_path / "stopped", **changes), Prompts.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(Prompts, "__getitem__", lambda *asked: os.kill(os.getpid(), signal.SIGTERM) or read(*asked))
        assert train(config) is None
    stopped = train(config)
    for name in ("reward", "kl", "entropy", "clip_ratio/region_mean", "grad_norm", "train_loss"):
        assert logged(stopped, name) == logged(complete, name) != []
    assert logged(complete, "kl")[0] == 0 and max(logged(complete, "kl")) > 0
    assert changed_parts(weights(complete), weights(stopped)) == set()
    assert changed_parts(weights(NANO), weights(complete)) - {"weight"} == {"language_model", "multi_modal_projector"}


def test_answers_are_learned_with_the_probabilities_that_they_were_sampled_with(folder, tmp_path):
    (tmp_path / "run").mkdir()
    trainer = prepare(config_of(folder, tmp_path / "run"), tmp_path / "run", StopSignal())
    rows, ids, images = trainer.sample([trainer.train_dataset[index] for index in range(2)])
    assert len({tuple(row.token_ids) for row in rows[:4]}) > 1
    groups = [trainer.make_row(ids[at], images[at], rows[at * 4 : at * 4 + 4], range(4)) for at in range(2)]
    batch = trainer.make_batch(groups)
    log_probs, at = trainer.log_probs(trainer.model, batch)[0], 0
    for number, row in enumerate(rows):
        end = at + len(row.token_ids)  # then comes the token that ends the answer
        assert log_probs[at:end].tolist() == pytest.approx(row.logprobs, abs=1e-4)
        assert batch["advantages"][at : end + 1].tolist() == [number % 4] * (end + 1 - at)
        at = end + 1
    assert at == len(log_probs) and torch.equal(batch["start"], log_probs.detach())


def test_learning_raises_the_reward(folder, tmp_path):
    """The left edge is asked for, where the model does not point; the wide falloff says which answers are less wrong."""
    sample = json.loads((folder / "data.json").read_text())[0]
    Image.fromarray(np.tile(np.arange(128) < 4, (128, 1)).astype(np.uint8) * 255).save(folder / "masks/left.png")
    (tmp_path / "data.json").write_text(json.dumps([sample | {"meta": sample["meta"] | {"mask": "masks/left.png"}}]))
    reward = {"format": 0, "mask": 1, "count": 0, "distinct": 0, "place": 0, "falloff": 1.0}
    grpo = {"group": 16, "kl": 0, "temperature": 1.5, "reward": reward}
    changes = {"data": [str(tmp_path / "data.json")], "global_batch_size": 16, "micro_batch_size": 16, "max_steps": 8}
    run = train(config_of(folder, tmp_path / "run", **changes | {"learning_rate": 1e-3, "grpo": grpo}))
    rewards = logged(run, "reward_mask")
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1 and not logged(run, "kl")


@pytest.mark.parametrize("reasoning", [True, False])
def test_groups_of_equal_rewards_teach_nothing_and_the_evaluation_asks_as_the_training(
    folder, tmp_path, monkeypatch, reasoning
):
    asked, build = set(), predictor.build_question
    monkeypatch.setattr(predictor, "build_question", lambda *one: asked.add(one[1]) or build(*one))
    evaluation = {"benchmark": str(folder), "questions": 3, "pictures": 0, "max_new_tokens": 60}
    changes = {"grpo": {"temperature": 1e-4, "reasoning": reasoning}, "max_steps": 1, "evaluation": evaluation}
    run = train(config_of(folder, tmp_path / "run", **changes))
    assert logged(run, "frac_reward_zero_std") == [1] and logged(run, "reward_std") == [0]
    assert changed_parts(weights(NANO), weights(run)) == set()
    for name in ("point_accuracy", "distinct_points", "true_places", "true_first_step", "answer_tokens"):
        before, after = logged(run, name)
        assert before == after >= 0, name
    assert asked == {reasoning}


def test_every_sample_is_asked_before_one_is_asked_again(folder, tmp_path):
    prompts, samples = Prompts(config_of(folder, tmp_path), "unit", 40), json.loads((folder / "data.json").read_text())
    asked = [prompts[index].meta["mask"] for index in range(2 * len(samples))]
    first, second = asked[: len(samples)], asked[len(samples) :]
    assert set(first) == set(second) == {sample["meta"]["mask"] for sample in samples} and first != second
    del samples[3]["meta"]["mask"]
    (tmp_path / "data.json").write_text(json.dumps(samples))
    with pytest.raises(InputError, match=rf"data: sample {samples[3]['id']} .*mask"):
        Prompts(config_of(folder, tmp_path, data=[str(tmp_path / "data.json")]), "unit", 1)


@needs_gl
def test_fresh_scenes_do_not_repeat_and_follow_from_their_numbers(folder, tmp_path):
    config = config_of(folder, tmp_path, data=[], grpo={"scenes": SCENES})
    prompts, again = [Prompts(config, "unit", 6)[index] for index in range(6)], Prompts(config, "unit", 6)
    assert len({prompt.image.tobytes() for prompt in prompts}) == 3  # two questions a scene
    assert len({(prompt.text, prompt.image.tobytes()) for prompt in prompts}) == 6
    for index in (5, 2):
        assert (again[index].text, again[index].meta) == (prompts[index].text, prompts[index].meta)
        assert np.array_equal(again[index].mask, prompts[index].mask) and prompts[index].mask.any()


@pytest.mark.parametrize(("changes", "key"), [
    ({"objective": "language"}, "grpo: .*objective"), ({"max_steps": -1}, "max_steps"), ({"packing": True}, "packing"),
    ({"micro_batch_size": 2}, "micro_batch_size"), ({"grpo": {"iterations": 3}}, "save_steps"),
    ({"grpo": {"scenes": SCENES}}, r"grpo\.scenes: .*data"), ({"grpo": {"vllm": True}}, r"own: .*grpo\.vllm"),
    ({"grpo": {"groop": 2}}, r"grpo\.groop"), ({"grpo": {"reward": {"mask": -1}}}, r"grpo\.reward\.mask"),
    (LORA | {"lora": {"dropout": 0.1}}, r"lora\.dropout"), ({"deepspeed": "zero2.json"}, "deepspeed"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(folder, tmp_path, changes, key):
    with pytest.raises(InputError, match=key):
        config_of(folder, tmp_path, **changes)


@pytest.mark.parametrize("family", ["nano", "qwen3_vl"])
def test_trl_trains_with_the_same_prompts_and_reward(folder, family, family_folder, tmp_path):
    pytest.importorskip("trl", reason="pip install trl")
    model = NANO if family == "nano" else family_folder(family)
    grpo = {"trainer": "trl", "temperature": 1.5, "max_new_tokens": 60 if family == "nano" else 8}
    run = train(config_of(folder, tmp_path / "run", **LORA, model=str(model), grpo=grpo, max_steps=2, save_steps=1))
    assert max(logged(run, "reward_std")) > 0 if family == "nano" else logged(run, "reward") == [0, 0]  # random weights
    assert logged(run, "kl")[0] == pytest.approx(0, abs=1e-6) and (run / "adapter_model.safetensors").is_file()
    before, after = weights(model), weights(run)
    changed = {part_of(name) for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == ({"llm", "projector"} if family == "nano" else set())
