"""What is trainable, at which rate; Muon in float32, matrices of one shape together, is torch's up to its bfloat16."""

import json

import pytest
import torch
from torch import nn
from train_together import train_config

from trace_vlm.model.checkpoint import load
from trace_vlm.train.param_groups import Muon, MuonWithAdamW, make_optimizer, set_trainable, trainable_parameters

PREFIXES = {"vision": ("model.vision",), "projector": ("model.multi_modal",), "llm": ("model.language", "lm_head")}


@pytest.mark.parametrize(("trainable", "parts"), [
    (["vision"], {"vision"}), (["projector", "llm"], {"projector", "llm"}), ({"llm": "frozen"}, {"projector"}),
    ({"vision": "full"}, {"vision", "projector", "llm"}),
])  # fmt: skip
def test_exactly_the_named_parts_are_trainable(tmp_path, trainable, parts):
    config = train_config(tmp_path, "nano-random", tmp_path, trainable=trainable)
    model = set_trainable(load("nano-random").model, config)
    names = [name for name, _ in model.named_parameters()]
    expected = {name for name in names if any(name.startswith(PREFIXES[part]) for part in parts)}
    assert set(trainable_parameters(model)) == expected and expected
    assert set(config.trained_parts) == parts


def test_adapters_and_the_projector_have_their_own_rates(tmp_path):
    values = {"trainable": {"llm": "lora"}, "lora": {"r": 2, "alpha": 4}, "weight_decay": 0.1}
    values |= {"learning_rate": 2e-4, "learning_rates": {"projector": 2e-5}}
    config = train_config(tmp_path, "nano-random", tmp_path, **values)
    model = set_trainable(load("nano-random").model, config)
    names = set(trainable_parameters(model))
    adapters = {name for name in names if ".lora_" in name}
    assert len(adapters) == 4 * 7 * 2 and all(".language_model.layers." in name for name in adapters)
    projector = {f"linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")}
    assert {name.split("default.")[1] for name in names - adapters} == projector
    groups = [(one["part"], one["lr"], one["weight_decay"]) for one in make_optimizer(model, config).param_groups]
    assert groups == [("llm", 2e-4, 0.1), ("projector", 2e-5, 0.1), ("projector", 2e-5, 0.0)]


def matrices(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 40), (40, 16), (16, 40), (24, 24)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_steps_are_torchs_up_to_its_half_precision():
    ours, theirs = matrices(1), matrices(1)
    before = [parameter.detach().clone() for parameter in ours]
    optimizers = [Muon(ours, lr=0.05, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1)]
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for mine, other in zip(ours[1:], theirs[1:], strict=True):  # the first has no gradient
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours[0], before[0])
    for start, mine, other in list(zip(before, ours, theirs, strict=True))[1:]:
        moved = (other - start).norm()
        assert moved > 0.1 and (mine - other).norm() < 0.03 * moved


def test_muon_and_adamw_step_save_and_follow_one_schedule():
    torch.manual_seed(0)
    matrix, vector = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))
    rates = {"lr": 0.02, "weight_decay": 0.05}
    optimizer, again = (MuonWithAdamW(Muon([matrix], **rates), [{"params": [vector], "lr": 0.1}]) for _ in range(2))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = matrix.detach().clone()
    (matrix.sum() + vector.square().sum()).backward()
    optimizer.step()
    schedule.step()
    assert not torch.equal(before, matrix) and [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05]
    again.load_state_dict(optimizer.state_dict())
    first, second = (json.dumps(o.state_dict(), default=lambda value: value.tolist()) for o in (optimizer, again))
    assert first == second and [group["lr"] for group in again.param_groups] == [0.01, 0.05]
