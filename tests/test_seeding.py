"""Seeding: the same draws as transformers after the same seed, from all three generators."""

import os
import random

import numpy as np
import pytest
import torch
import transformers

from onward.seeding import enable_full_determinism, set_seed


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_set_seed_draws_what_transformers_draws():
    set_seed(7)
    ours = draws()
    transformers.set_seed(7)
    assert ours == draws()
    set_seed(8)
    assert ours != draws()


@pytest.fixture
def restored(monkeypatch):
    for name in ("CUDA_LAUNCH_BLOCKING", "CUBLAS_WORKSPACE_CONFIG", "FLASH_ATTENTION_DETERMINISTIC"):
        monkeypatch.setenv(name, "before")  # so that monkeypatch puts the variable back
    benchmark, deterministic = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic


@pytest.mark.usefixtures("restored")
def test_full_determinism_sets_torch_and_the_environment_for_cublas():
    enable_full_determinism(3, warn_only=True)
    first = draws()
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    set_seed(3, deterministic=True)
    assert first == draws()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
