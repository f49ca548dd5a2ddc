"""The same parameters decay as with transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import TinyClassifier, TinyRegression, tiny_classifier, tiny_llama
from torch import nn

from onward.optim.groups import decay_parameter_names, parameter_groups


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class Wrapped(nn.LayerNorm):
    """A normalisation layer with a layer inside, and a child shared by two names."""

    def __init__(self, shared: nn.Module) -> None:
        super().__init__(2)
        self.inner = nn.Linear(2, 2)
        self.shared = shared


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(2, 2)
        self.first, self.second = shared, shared
        self.anything = Wrapped(shared)
        self.norm = RMSNorm()
        self.q_norm = RMSNorm()
        self.enormous = nn.Linear(2, 2, bias=False)
        self.MyLayerNorm = RMSNorm()
        self.group = nn.ModuleDict({"final_norm": RMSNorm(), "normal": RMSNorm(), "ModelRMSNorm": RMSNorm()})
        self.scale = nn.Parameter(torch.ones(1))
        self.norm_free = nn.Parameter(torch.ones(1))
        self.abias = nn.Parameter(torch.ones(1))
        self.register_parameter("nothing", None)


MODELS: list[Any] = [TinyRegression, TinyClassifier, tiny_llama, tiny_classifier, Odd]


@pytest.mark.parametrize("make", MODELS)
def test_names_are_theirs(make: Any) -> None:
    from transformers import Trainer

    model = make()
    ours = decay_parameter_names(model)
    assert ours == Trainer.get_decay_parameter_names(None, model)
    assert 0 < len(ours) < len(list(model.named_parameters(remove_duplicate=False))) + 1


def test_groups_hold_each_trainable_parameter_once() -> None:
    model = TinyRegression()
    model.head.weight.requires_grad_(False)
    decaying, spared = parameter_groups(model, decay_parameter_names(model), 0.1)
    assert decaying["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert [id(p) for p in decaying["params"]] == [id(model.body.weight)]
    assert len(spared["params"]) == 4  # three biases and a gain


def test_both_groups_exist_even_when_empty() -> None:
    groups = parameter_groups(nn.Linear(2, 2, bias=False), ["weight"], 0.0)
    assert [len(group["params"]) for group in groups] == [1, 0]


def test_meshes_get_groups_of_their_own() -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = nn.Linear(2, 2)
        model.weight = nn.Parameter(distribute_tensor(torch.ones(2, 2), mesh, [Replicate()]))
        groups = parameter_groups(model, ["weight", "bias"], 0.1)
        assert [len(group["params"]) for group in groups] == [1, 1]
        assert [group["weight_decay"] for group in groups] == [0.1, 0.1]
    finally:
        dist.destroy_process_group()
