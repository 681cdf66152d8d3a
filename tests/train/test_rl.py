"""Reinforcement learning: what is sampled and learned, resumption to the same bits, prompts, what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rendering import needs_gl
from scenes_by_hand import draw_views
from shell import ROOT
from train_together import Run, changed_parts, logged, record, train_config, weights

from trace_vlm.model.checkpoint import load
from trace_vlm.model.families.base import part_of
from trace_vlm.train.guards import StopSignal
from trace_vlm.train.rl import prepare
from trace_vlm.train.rl_prompts import Prompts
from trace_vlm.train.train import train
from trace_vlm.utils.command import InputError

NANO = ROOT / "trace/assets/nano"
SCENES = {"config": str(ROOT / "configs/scenes/nano.yaml"), "size": "128", "questions": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixteen questions for objects of views drawn by hand, with their masks."""
    folder, samples = draw_views(tmp_path_factory.mktemp("rl") / "data", views=8), []
    (folder / "masks").mkdir()
    for line in (folder / "views.jsonl").read_text().splitlines():
        view = json.loads(line)
        for item in view["objects"][:2]:
            mask = np.asarray(Image.open(folder / view["instances"])) == item["instance"]
            name = f"masks/{view['view']}_{item['instance']}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name)
            meta = {"kind": "direct", "relation": None, "target": item, "references": [], "mask": name}
            meta |= {"instances": view["instances"], "points": [item["center"]] * 2}
            asked = [
                {"from": "human", "value": f"<image>\nPoint to the {item['name']}."},
                {"from": "gpt", "value": "-"},
            ]
            samples.append({"id": name, "image": view["image"], "conversations": asked, "meta": meta})
    (folder / "data.json").write_text(json.dumps(samples[:16]))
    return folder


def values(folder, out, **changes):
    grpo = {"group": 4, "max_new_tokens": 80} | changes.pop("grpo", {})
    return {
        "model": str(NANO), "data": [str(folder / "data.json")], "image_folder": str(folder), "output_dir": str(out),
        "objective": "grpo", "grpo": grpo, "learning_rate": 3e-4, "lr_schedule": "constant", "warmup_ratio": 0.0,
        "max_steps": 4, "save_steps": 2, "logging_steps": 1, "global_batch_size": 8, "micro_batch_size": 8,
        "dataloader_workers": 0, "report_to": [], "precision": "fp32", "gradient_checkpointing": False,
        "trainable": {"llm": "full", "projector": "full"},
    } | changes  # fmt: skip


def config_of(folder, out, **changes):
    return train_config(folder, NANO, out, **values(folder, out, **changes))


def trainer_of(folder, out, **changes):
    out.mkdir()
    return prepare(config_of(folder, out, **changes), out, StopSignal())


LORA = {"trainable": {"llm": "lora", "projector": "full"}, "lora": {"r": 4, "alpha": 8, "dropout": 0}}


@pytest.mark.parametrize("changes", [{"grpo": {"iterations": 2}}, LORA], ids=["two steps on the same answers", "lora"])
def test_a_killed_run_continues_to_the_same_bits(folder, tmp_path, changes):
    complete = train(config_of(folder, tmp_path / "complete", **changes))
    killed = Run(values(folder, tmp_path / "killed", **changes), processes=1)
    killed.start().when_saved(2).kill()
    assert not record(killed.folder)["finished"]
    killed.to_its_end()
    for name in ("reward", "kl", "entropy", "clip_ratio/region_mean", "grad_norm"):
        assert logged(killed.folder, name) == logged(complete, name) != []
    assert logged(complete, "kl")[0] == 0 and max(logged(complete, "kl")) > 0
    assert changed_parts(weights(complete), weights(killed.folder)) == set()
    assert changed_parts(weights(NANO), weights(complete)) - {"weight"} == {"language_model", "multi_modal_projector"}
    assert (complete / "curves.png").stat().st_size > 1000


def test_answers_are_learned_with_the_probabilities_that_they_were_sampled_with(folder, tmp_path):
    trainer = trainer_of(folder, tmp_path / "run")
    prompts = [trainer.train_dataset[index] for index in range(2)]
    rows, ids, images = trainer.sample(prompts)
    assert len({tuple(row.token_ids) for row in rows[:4]}) > 1
    groups = [trainer.make_row(ids[at], images[at], rows[at * 4 : at * 4 + 4], range(4)) for at in range(2)]
    batch = trainer.make_batch(groups)
    log_probs = trainer.log_probs(trainer.model, batch)[0]
    at, end = 0, trainer.checkpoint.end_ids[0]
    for number, row in enumerate(rows):
        count = len(row.token_ids)
        assert log_probs[at : at + count].tolist() == pytest.approx(row.logprobs, abs=1e-4)
        assert batch["advantages"][at : at + count + 1].tolist() == [number % 4] * (count + 1)
        at += count + 1
    assert at == len(log_probs) and int((batch["labels"] == end).sum()) == 8
    assert torch.equal(batch["start"], log_probs.detach())


def test_learning_raises_the_reward(folder, tmp_path):
    """The left edge is asked for, where the model does not point; the wide falloff says which answers are less wrong."""
    sample = json.loads((folder / "data.json").read_text())[0]
    Image.fromarray(np.tile(np.arange(128) < 4, (128, 1)).astype(np.uint8) * 255).save(folder / "masks/left.png")
    (tmp_path / "data.json").write_text(json.dumps([sample | {"meta": sample["meta"] | {"mask": "masks/left.png"}}]))
    reward = {"format": 0, "mask": 1, "count": 0, "distinct": 0, "place": 0, "falloff": 1.0}
    grpo = {"group": 16, "kl": 0, "temperature": 1.5, "reward": reward}
    changes = {"data": [str(tmp_path / "data.json")], "global_batch_size": 16, "micro_batch_size": 16}
    run = train(config_of(folder, tmp_path / "run", learning_rate=1e-3, max_steps=10, grpo=grpo, **changes))
    rewards = logged(run, "reward_mask")
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.1 and not logged(run, "kl")


def test_groups_of_equal_rewards_teach_nothing(folder, tmp_path):
    run = train(config_of(folder, tmp_path / "run", grpo={"temperature": 1e-4}, max_steps=1))
    assert logged(run, "frac_reward_zero_std") == [1] and logged(run, "reward_std") == [0]
    assert changed_parts(weights(NANO), weights(run)) == set()


def test_every_sample_is_asked_before_one_is_asked_again(folder, tmp_path):
    prompts = Prompts(config_of(folder, tmp_path), "unit", 40)
    asked = [prompts[index].meta["mask"] for index in range(40)]
    count = len(json.loads((folder / "data.json").read_text()))
    assert (
        len(set(asked[:count])) == count == len(set(asked[count : 2 * count]))
        and asked[:count] != asked[count : 2 * count]
    )
    assert [Prompts(config_of(folder, tmp_path), "unit", 40)[index].meta["mask"] for index in (3, 39)] == [
        asked[3],
        asked[39],
    ]
    samples = json.loads((folder / "data.json").read_text())
    del samples[3]["meta"]["mask"]
    (tmp_path / "data.json").write_text(json.dumps(samples))
    with pytest.raises(InputError, match=rf"data: sample {samples[3]['id']} .*mask"):
        Prompts(config_of(folder, tmp_path, data=[str(tmp_path / "data.json")]), "unit", 1)


@needs_gl
def test_fresh_scenes_do_not_repeat_and_follow_from_their_numbers(folder, tmp_path):
    first, again = (Prompts(config_of(folder, tmp_path, data=[], grpo={"scenes": SCENES}), "unit", 6) for _ in range(2))
    prompts = [first[index] for index in range(6)]
    assert len({prompt.image.tobytes() for prompt in prompts}) == 3  # two questions a scene
    assert len({(prompt.text, prompt.image.tobytes()) for prompt in prompts}) == 6
    for index in (5, 2):
        assert (again[index].text, again[index].meta) == (prompts[index].text, prompts[index].meta)
        assert np.array_equal(again[index].mask, prompts[index].mask) and prompts[index].mask.any()
    assert "Reason step by step" in prompts[0].text


@pytest.mark.parametrize(("changes", "key"), [
    ({"objective": "language"}, "grpo: .*objective"), ({"max_steps": -1}, "max_steps"), ({"packing": True}, "packing"),
    ({"micro_batch_size": 2}, "micro_batch_size"), ({"grpo": {"iterations": 3}}, "save_steps"),
    ({"grpo": {"scenes": SCENES}}, r"grpo\.scenes: .*data"), ({"grpo": {"vllm": True}}, r"own: .*grpo\.vllm"),
    ({"grpo": {"groop": 2}}, r"grpo\.groop"), ({"grpo": {"reward": {"mask": -1}}}, r"grpo\.reward\.mask"),
    ({**LORA, "lora": {"dropout": 0.1}}, r"lora\.dropout"), ({"deepspeed": "zero2.json"}, "deepspeed"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(folder, tmp_path, changes, key):
    with pytest.raises(InputError, match=key):
        config_of(folder, tmp_path, **changes)


def test_the_evaluation_tells_whether_the_reasoning_is_true_before_and_after(folder, tmp_path):
    bench = tmp_path / "bench"
    bench.mkdir()
    for name in ("images", "masks", "instances"):
        shutil.copytree(folder / name, bench / name)
    questions = [
        {"question_id": Path(sample["meta"]["mask"]).stem, "image": Path(sample["image"]).name,
         "text": sample["conversations"][0]["value"].removeprefix("<image>\n"), "meta": sample["meta"]}
        for sample in json.loads((folder / "data.json").read_text())[:4]
    ]  # fmt: skip
    (bench / "point_questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    evaluation = {"benchmark": str(bench), "questions": 4, "pictures": 0, "max_new_tokens": 80}
    run = train(config_of(folder, tmp_path / "run", max_steps=1, evaluation=evaluation))
    for name in ("point_accuracy", "distinct_points", "true_places", "true_first_step", "answer_tokens"):
        assert len(logged(run, name)) == 2 and min(logged(run, name)) >= 0, name


@pytest.mark.parametrize("family", ["nano", "qwen3_vl", "gemma3"])
def test_trl_trains_the_same_prompts_with_the_same_reward(folder, family, family_folder, tmp_path):
    pytest.importorskip("trl", reason="pip install trl")
    model = NANO if family == "nano" else family_folder(family)
    grpo = {"trainer": "trl", "temperature": 1.5, "max_new_tokens": 60 if family == "nano" else 8}
    changes = LORA | {"model": str(model), "grpo": grpo, "max_steps": 2, "micro_batch_size": 4, "save_steps": 1}
    run = train(config_of(folder, tmp_path / "run", **changes))
    assert len(logged(run, "reward")) == 2 and logged(run, "kl")[0] == pytest.approx(0, abs=1e-6)
    assert max(logged(run, "reward_std")) > 0 if family == "nano" else logged(run, "reward") == [0, 0]  # random weights
    assert (run / "adapter_model.safetensors").is_file() and not (run / "ref").exists()
    before, after = (load(path).model.state_dict() for path in (model, run))
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert {part_of(name) for name in changed} == ({"llm", "projector"} if family == "nano" else set())
    assert not [name for name in changed if "vision" in name]
