"""Training any vision-language model: rows, batches, what is trained and saved, resumption, the plan, what is refused."""

import json
import os
import re
import shutil
import signal
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as hf
from peft import PeftModel
from PIL import Image
from shell import ROOT
from tiny_models import FAMILIES
from train_together import CONTEXT, Run, changed_parts, first_step, logged, settings, train_config, weights

from trace_vlm.core.images import Images
from trace_vlm.core.prompts import IGNORE
from trace_vlm.model.checkpoint import load
from trace_vlm.model.families.base import PARTS, count_parts, part_of
from trace_vlm.train import plan
from trace_vlm.train.dataset import RowDataset
from trace_vlm.train.memory import trained_params
from trace_vlm.train.param_groups import lora_targets, saved_modules, set_trainable, trainable_parameters
from trace_vlm.train.token_cache import KINDS, ConversationEncoder, encode_file
from trace_vlm.train.train import train
from trace_vlm.utils.command import InputError

PADDED = ("gemma3", "gemma4", "qwen3_5")  # some of their layers would mix the rows of a packed batch
LORA = {"trainable": {"llm": "lora", "projector": "full", "vision": "full"}, "lora": {"r": 2, "alpha": 4}}


def turns(*texts):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve samples of pictures of three sizes: some without one, some with two answers, reasoning in most."""
    folder, rng, samples = tmp_path_factory.mktemp("rooms"), np.random.default_rng(0), []
    for index in range(12):
        shape = ((80, 100, 3), (64, 64, 3), (130, 60, 3))[index % 3]
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / f"{index}.png")
        answer = f"Reference object: the mug.{' And on.' * index}\n\nFinal Answer: [(0.{index + 10}, 0.50)]"
        conversation = turns("<image>\nWhere is the mug?", answer)
        sample = {"id": f"sample-{index}", "image": f"{index}.png", "conversations": conversation}
        if index % 4 == 1:
            sample = {"id": sample["id"], "conversations": turns("What is two and two?", "It is four.")}
        if index % 4 == 2:
            sample["conversations"] += turns("And right of it?", "[(0.25, 0.50)]")
        samples.append(sample)
    (folder / "captions.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture
def config_of(data, family_folder, tmp_path):
    def make(family, name="run", **changes):
        changes = {"max_length": 512, "pack_tokens": 512, "global_batch_size": 12} | changes
        return train_config(data, family_folder(family), tmp_path / name, **changes)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_have_the_lengths_and_the_labels_that_were_counted(data, family, family_folder):
    checkpoint = load(family_folder(family))
    for checkpoint.coordinates in (checkpoint.coordinates, "unit"):  # noqa: B020 (an attribute)
        rows = RowDataset([data / "captions.json"], data, checkpoint)
        items = [rows[index] for index in range(len(rows))]
        assert [item["labels"].shape[1] for item in items] == rows.lengths.tolist()
        assert all(torch.equal(item["kinds"] >= 0, item["labels"] != IGNORE) for item in items)
    texts = [checkpoint.tokenizer.decode(item["labels"][item["labels"] != IGNORE]) for item in items]
    samples = json.loads((data / "captions.json").read_text())
    answers = [turn["value"] for sample in samples for turn in sample["conversations"][1::2]]
    written = re.split("|".join(map(re.escape, checkpoint.end_words)), "".join(texts))
    assert [text.strip() for text in written] == [*answers, ""]
    ids, kinds = items[0]["input_ids"], items[0]["kinds"]
    spoken = [checkpoint.tokenizer.decode(ids[kinds == KINDS.index(kind)]) for kind in KINDS[1:]]
    assert spoken[0].strip() == "Reference object: the mug." and spoken[1].startswith("Final Answer: [(0.10, 0.50)]")


@pytest.mark.parametrize("family", FAMILIES)
def test_single_padded_and_packed_steps_have_the_same_loss_and_gradients(config_of, family):
    layouts, found = {"single": {"micro_batch_size": 1}, "padded": {}, "packed": {"packing": True}}, {}
    for name, changes in layouts.items():
        config = config_of(family, name, trainable={"vision": "full"}, **changes)
        if name == "packed" and family in PADDED:
            with pytest.raises(InputError, match="packing: .*padded"):
                first_step(config)
            continue
        loss, gradients, _ = first_step(config)
        squares = Counter()
        for parameter, gradient in gradients.items():
            squares[part_of(parameter)] += float(gradient.double().square().sum())
        assert set(squares) == set(PARTS)
        found[name] = [loss, *(squares[part] ** 0.5 for part in PARTS)]
    assert all(values == pytest.approx(found["single"], rel=1e-5) for values in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_trained_is_saved_and_loads_in_plain_transformers(config_of, family, family_folder):
    base = hf.AutoModelForImageTextToText.from_pretrained(family_folder(family)).eval()
    inputs = load(family_folder(family)).tensors(["Where?"], [None])
    changes = {"max_steps": 1, "warmup_ratio": 0.0}
    adapted = train(config_of(family, "lora", **LORA, **changes))
    linears = {name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = {name for name in linears if re.match(r"model\.(language|text)_model\.layers\.\d+\.", name)}
    trained = json.loads((adapted / "trainable.json").read_text())
    names = {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert names == targets != set()
    saved = {name.partition(".modules_to_save.")[0] for name in trained if ".lora_" not in name}
    assert {part_of(f"{name}.") for name in saved} == {"projector", "vision"}
    plain = PeftModel.from_pretrained(base, adapted).merge_and_unload().eval()
    complete = train(config_of(family, "full", **changes))
    for folder, model in ((adapted, plain), (complete, hf.AutoModelForImageTextToText.from_pretrained(complete))):
        assert json.loads((folder / "trace.json").read_text()) == {"coordinates": "unit", "reasoning": True}
        mine = load(folder).model
        with torch.no_grad():
            assert torch.equal(mine(**inputs).logits, model.eval()(**inputs).logits)
    before, after = weights(family_folder(family)), weights(complete)
    assert {part_of(name) for name in before if not before[name].equal(after[name])} == {"llm", "projector"}


def test_llavas_adapters_and_saved_modules_have_the_names_they_had(nano):
    old = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    assert set(lora_targets(nano.model)) == {name for name, _ in nano.model.named_modules() if re.fullmatch(old, name)}
    assert [saved_modules(nano.model, part) for part in PARTS[1::-1]] == [["multi_modal_projector"], ["vision_tower"]]


@pytest.mark.parametrize("changes", [{"packing": True}, LORA | {"gradient_checkpointing": True}], ids=["full", "lora"])
def test_a_stopped_run_continues_to_the_same_weights(data, family_folder, tmp_path, changes):
    values = {"max_steps": 10, "save_steps": 2, "max_length": 512, "pack_tokens": 512} | changes
    base = family_folder("qwen3_vl")
    complete, stopped = (Run(settings(data, base, tmp_path / name, **values), 1) for name in "ab")
    os.kill(stopped.start().when_saved(2).running[0].pid, signal.SIGTERM)
    assert stopped.wait()[0] == [143]
    stopped.start().when_saved(6).kill()
    for run in (complete, stopped):
        run.to_its_end()
    assert logged(stopped.folder) == logged(complete.folder) and len(logged(complete.folder)) == 10
    assert changed_parts(weights(complete.folder), weights(stopped.folder)) == set()


def test_a_broken_image_is_not_learned_from_and_files_are_encoded_alike_in_parallel(
    data, family_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("trace_vlm.utils.parallel.multiprocessing.get_context", lambda _: CONTEXT)  # imports are done
    checkpoint, folder = load(family_folder("smolvlm")), shutil.copytree(data, tmp_path / "copy")
    (folder / "0.png").write_bytes(b"no picture")
    rows = RowDataset([folder / "captions.json"], folder, checkpoint)
    item = rows[0]
    assert "0.png" in item["broken"] and not (item["labels"] != IGNORE).any()
    assert item["labels"].shape[1] == rows.lengths[0]
    assert "broken" not in RowDataset([data / "captions.json"], data, checkpoint)[0]  # another folder, another entry
    encoder = ConversationEncoder(checkpoint, Images(folder))
    assert list(encode_file(folder / "captions.json", encoder)) == list(
        encode_file(folder / "captions.json", encoder, 2)
    )


@pytest.mark.parametrize(("changes", "key"), [
    ({"too_long": "cut"}, "too_long"), ({"share_image": 2}, "share_image"), ({"template": "plain"}, "template"),
    ({"grounding_loss": {"layer": 0}}, "grounding_loss"), ({"objective": "vision", "trainable": ["vision"]}, "objective"),
])  # fmt: skip
def test_what_works_with_llava_alone_is_refused_by_name(config_of, family_folder, changes, key):
    with pytest.raises(InputError, match=f"^{key}: .*LLaVA"):
        config_of("qwen3_vl", **changes).check_model(load(family_folder("qwen3_vl")))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_what_the_model_has(config_of, family, family_folder, capsys):
    config, model = config_of(family, **LORA), load(family_folder(family)).model
    _, size = plan.model_dimensions(config)
    assert size.part_params() == count_parts(model)
    ends = model.model.image_newline.numel() if hasattr(model.model, "image_newline") else 0  # PEFT saves modules only
    trained = trainable_parameters(set_trainable(model, config))
    assert trained_params(size, config.modes, 2) == sum(trained.values()) + ends
    arguments = ["--config", str(ROOT / "configs/train_7b_lora.yaml"), "--set", f"model={family_folder(family)}"]
    assert plan.main(arguments) == 0 and "ZeRO-3" in capsys.readouterr().out
