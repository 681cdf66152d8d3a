"""Muon in float32, matrices of one shape together, is torch's Muon up to torch's bfloat16."""

from __future__ import annotations

import copy

import torch
from torch import nn

from trace_vlm.train.optimizer import Muon, orthogonalised


def _matrices(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(16, 40), (40, 16), (16, 40), (24, 24), (40, 16)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_steps_are_those_of_torch_up_to_its_half_precision() -> None:
    ours, theirs = _matrices(1), _matrices(1)
    before = [parameter.detach().clone() for parameter in ours]
    optimizers = [kind(each, lr=0.05, weight_decay=0.1) for kind, each in ((Muon, ours), (torch.optim.Muon, theirs))]
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for start, one, other in zip(before, ours, theirs, strict=True):
        moved = (other - start).norm()
        assert moved > 0.1
        assert (one - other).norm() < 0.03 * moved


def test_singular_values_end_near_one_whatever_they_were() -> None:
    generator = torch.Generator().manual_seed(3)
    matrices = torch.randn(4, 20, 12, generator=generator) * torch.tensor([1e-3, 1.0, 10.0, 1e3])[:, None, None]
    values = torch.linalg.svdvals(orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5))
    assert values.min() > 0.4 and values.max() < 1.4


def test_a_matrix_without_gradient_stays_and_state_survives_saving() -> None:
    ours = _matrices(4)
    for parameter in ours[1:]:
        parameter.grad = torch.ones_like(parameter)
    still = ours[0].detach().clone()
    optimizer = Muon(ours, lr=0.05)
    optimizer.step()
    assert torch.equal(ours[0], still)
    twins = copy.deepcopy(ours)
    resumed = Muon(twins, lr=0.05)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, other in zip(ours[1:], twins[1:], strict=True):
        one.grad = other.grad = torch.ones_like(one)
    optimizer.step(), resumed.step()
    for one, other in zip(ours, twins, strict=True):
        assert torch.equal(one, other)
