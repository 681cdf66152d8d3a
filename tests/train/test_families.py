"""Training any vision-language model: rows, batches, what is trained and saved, resumption, the plan, what is refused."""

import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from PIL import Image
from shell import ROOT
from tiny_models import FAMILIES
from train_together import Run, first_step, logged, settings, train_config, weights

from trace_vlm.core.images import Images
from trace_vlm.core.prompts import IGNORE
from trace_vlm.model.checkpoint import load
from trace_vlm.model.families.base import PARTS, count_parts, part_of
from trace_vlm.train import plan
from trace_vlm.train.dataset import ProcessorCollator, RowDataset
from trace_vlm.train.memory import total_params, trained_params
from trace_vlm.train.param_groups import lora_targets, saved_modules, trainable_parameters
from trace_vlm.train.token_cache import KINDS, ConversationEncoder, encode_file
from trace_vlm.train.train import train
from trace_vlm.utils.command import InputError

PACKED = [name for name in FAMILIES if name not in ("gemma3", "qwen3_5")]
LORA = {"trainable": {"llm": "lora", "projector": "full", "vision": "full"}, "lora": {"r": 2, "alpha": 4}}


def turns(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve samples of pictures of three sizes: some without one, some with two answers, reasoning in most."""
    folder, rng, samples = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0), []
    for index in range(12):
        width, height = ((100, 80), (64, 64), (60, 130))[index % 3]
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        reasoning = f"Reference object: the mug.{' And on.' * index}\n\n"
        texts = ["<image>\nWhere is the mug?", f"{reasoning}Final Answer: [(0.{index + 10}, 0.50)]"]
        sample = {"id": f"sample-{index}", "image": f"{index}.png", "conversations": turns(*texts)}
        if index % 4 == 1:
            sample = {"id": sample["id"], "conversations": turns("What is two and two?", "It is four.")}
        elif index % 4 == 2:
            sample["conversations"] = turns(*texts, "And right of it?", "[(0.25, 0.50)]")
        samples.append(sample)
    (folder / "captions.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture
def config_of(data, family_folder, tmp_path):
    def make(family, name="run", **changes):
        values = {"max_length": 512, "pack_tokens": 512, "global_batch_size": 12} | changes
        return train_config(data, family_folder(family), tmp_path / name, **values)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_have_the_lengths_and_the_labels_that_were_counted(data, family, family_folder):
    checkpoint = load(family_folder(family))
    for checkpoint.coordinates in (checkpoint.coordinates, "unit"):  # noqa: B020 (an attribute)
        rows = RowDataset([data / "captions.json"], data, checkpoint)
        items = [rows[index] for index in range(len(rows))]
        assert [item["labels"].shape[1] for item in items] == rows.lengths.tolist()
        assert rows.row_has_image.tolist() == ["pixel_values" in item for item in items]
        assert all(torch.equal(item["kinds"] >= 0, item["labels"] != IGNORE) for item in items)
    texts = [checkpoint.tokenizer.decode(item["labels"][item["labels"] != IGNORE]) for item in items]
    answers = [turn["value"] for sample in json.loads((data / "captions.json").read_text())
               for turn in sample["conversations"][1::2]]  # fmt: skip
    written = "".join(texts)
    for token in checkpoint.end_words:
        written = written.replace(token, "\0")
    assert [text.strip() for text in written.split("\0")] == [*answers, ""]
    ids, kinds = items[0]["input_ids"], items[0]["kinds"]
    spoken = [checkpoint.tokenizer.decode(ids[kinds == KINDS.index(kind)]) for kind in ("reasoning", "answer")]
    assert spoken[0].strip() == "Reference object: the mug." and spoken[1].startswith("Final Answer: [(0.10, 0.50)]")


@pytest.mark.parametrize("family", FAMILIES)
def test_single_padded_and_packed_steps_have_the_same_loss_and_gradients(config_of, family):
    layouts = {"single": {"micro_batch_size": 1}, "padded": {"micro_batch_size": 12}, "packed": {"packing": True}}
    found = {}
    for name, changes in layouts.items():
        config = config_of(family, name, trainable={"vision": "full"}, **changes)
        if name == "packed" and family not in PACKED:
            with pytest.raises(InputError, match="packing: .*padded"):
                first_step(config)
            continue
        loss, gradients, trainer = first_step(config)
        squares = Counter()
        for parameter, gradient in gradients.items():
            squares[part_of(parameter)] += float(gradient.double().square().sum())
        assert set(squares) == set(PARTS)
        found[name] = [loss, *(squares[part] ** 0.5 for part in PARTS)]
        used = {rows for ids in trainer.step_ids for rows in ids}
        assert len(used) >= 9
    for values in found.values():
        assert values == pytest.approx(found["single"], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_saved_and_loads_in_plain_transformers(config_of, family, family_folder):
    base = hf.AutoModelForImageTextToText.from_pretrained(family_folder(family)).eval()
    inputs = load(family_folder(family)).tensors(["Where?"], [None])
    changes = {"max_steps": 1, "warmup_ratio": 0.0}
    adapted = train(config_of(family, "lora", **LORA, **changes))
    targets = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)
               and re.search(r"(language|text)_model\.layers\.\d+\.", name) and "vision" not in name}  # fmt: skip
    assert set(lora_targets(base)) == targets and targets
    trained = json.loads((adapted / "trainable.json").read_text())
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert names == targets
    saved = {name.partition(".modules_to_save.")[0] for name in trained if ".lora_" not in name}
    assert {part_of(f"{name}.") for name in saved} == {"projector", "vision"}
    plain = PeftModel.from_pretrained(base, adapted).merge_and_unload().eval()
    complete = train(config_of(family, "full", **changes))
    for folder, model in ((adapted, plain), (complete, hf.AutoModelForImageTextToText.from_pretrained(complete))):
        mine = load(folder).model
        with torch.no_grad():
            assert torch.equal(mine(**inputs).logits, model.eval()(**inputs).logits)
        for file in family_folder(family).glob("*token*"):
            assert (folder / file.name).read_bytes() == file.read_bytes()
    before, after = weights(family_folder(family)), weights(complete)
    assert {part_of(name) for name in before if not before[name].equal(after[name])} == {"llm", "projector"}


def test_llavas_adapters_and_saved_modules_have_the_names_they_had(nano):
    old = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    assert set(lora_targets(nano.model)) == {name for name, _ in nano.model.named_modules() if re.fullmatch(old, name)}
    assert [saved_modules(nano.model, part) for part in PARTS[1::-1]] == [["multi_modal_projector"], ["vision_tower"]]


@pytest.mark.parametrize("changes", [{"packing": True}, LORA | {"gradient_checkpointing": True}], ids=["full", "lora"])
def test_a_stopped_run_continues_to_the_same_weights(data, family_folder, tmp_path, changes):
    values = {"max_steps": 8, "save_steps": 2, "max_length": 512, "pack_tokens": 512} | changes
    runs = [Run(settings(data, family_folder("qwen3_vl"), tmp_path / name, **values), 1) for name in "abc"]
    complete, killed, preempted = runs
    complete.to_its_end()
    killed.start().when_saved(2).kill()
    os.kill(preempted.start().when_saved(2).running[0].pid, signal.SIGTERM)
    assert preempted.wait()[0] == [143]
    wanted = weights(complete.folder)
    for run in (killed, preempted):
        run.to_its_end()
        found = weights(run.folder)
        assert logged(run.folder) == logged(complete.folder)
        assert all(tensor.equal(found[name]) for name, tensor in wanted.items())


def test_a_batch_without_images_gets_an_empty_one_that_changes_nothing(data, family_folder):
    checkpoint = load(family_folder("qwen3_vl"))
    rows = RowDataset([data / "captions.json"], data, checkpoint)
    texts = [rows[int(index)] for index in np.flatnonzero(~rows.row_has_image)]
    batch = ProcessorCollator(0, rows.blank_row())(texts)
    assert (batch["labels"] != IGNORE).sum() == sum((row["labels"] != IGNORE).sum() for row in texts)
    call = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    with torch.no_grad():
        alone = checkpoint.model(input_ids=texts[0]["input_ids"]).logits
        call["mm_token_type_ids"] = batch["mm_token_type_ids"]
        beside = checkpoint.model(**call).logits[:1, : alone.shape[1]]
    assert torch.allclose(alone, beside, atol=1e-5)


def test_a_broken_image_is_not_learned_from_and_files_are_encoded_alike_in_parallel(data, family_folder, tmp_path):
    checkpoint, folder = load(family_folder("smolvlm")), shutil.copytree(data, tmp_path / "copy")
    (folder / "0.png").write_bytes(b"no picture")
    rows = RowDataset([folder / "captions.json"], folder, checkpoint)
    item = rows[0]
    assert "0.png" in item["broken"] and not (item["labels"] != IGNORE).any()
    assert item["labels"].shape[1] == rows.lengths[0] and "pixel_values" in item
    assert "broken" not in RowDataset([data / "captions.json"], data, checkpoint)[0]  # another folder, another entry
    encoder = ConversationEncoder(checkpoint, Images(folder))
    alone, parallel = (list(encode_file(folder / "captions.json", encoder, workers)) for workers in (1, 2))
    assert alone == parallel


@pytest.mark.parametrize(("changes", "key"), [
    ({"too_long": "cut"}, "too_long"), ({"share_image": 2}, "share_image"), ({"template": "plain"}, "template"),
    ({"grounding_loss": {"layer": 0}}, "grounding_loss"), ({"objective": "vision", "trainable": ["vision"]}, "objective"),
])  # fmt: skip
def test_what_works_with_llava_alone_is_refused_by_name(config_of, data, changes, key):
    (data / "views.jsonl").touch()
    with pytest.raises(InputError, match=f"^{key}: .*LLaVA"):
        train(config_of("qwen3_vl", **changes | ({"data": [str(data)]} if key == "objective" else {})))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_the_model_has(config_of, family, family_folder, capsys):
    config = config_of(family, **LORA)
    _, size = plan.model_dimensions(config)
    assert size.part_params() == count_parts(load(family_folder(family)).model)
    (Path(config.output_dir)).parent.mkdir(exist_ok=True)
    _, _, trainer = first_step(config)
    if family not in ("llava_next", "llava_onevision"):  # their ends of rows are no module, which PEFT does not save
        assert trained_params(size, config.modes, 2) == sum(trainable_parameters(trainer.model).values())
    assert total_params(size, config.modes, 2) > 0
    overrides = [f"model={family_folder(family)}", "global_batch_size=8", "micro_batch_size=1"]
    arguments = ["--config", str(ROOT / "configs/train_7b_lora.yaml"), "--set", *overrides, "--gpus", "1"]
    assert plan.main(arguments) == 0 and "ZeRO-3" in capsys.readouterr().out
