"""A copy of the state must not move with the state, and must save to the same bytes."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoint.test_weights import Tied
from tests.tiny import TinyRegression, tiny_llama
from torch import nn

from onward.checkpoint import snapshot, weights
from onward.checkpoint.snapshot import HostBuffers, NotCopyableError, to_host


def saved(tree: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def trained(optimizer_class: type[torch.optim.Optimizer], **kwargs: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = TinyRegression()
    optimizer = optimizer_class(model.parameters(), **kwargs)  # type: ignore[arg-type]
    for _ in range(2):
        model(torch.ones(2, 4), torch.ones(2))["loss"].backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize(
    ("optimizer_class", "kwargs"),
    [(torch.optim.AdamW, {}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}), (torch.optim.Adafactor, {})],
)
def test_the_copy_saves_to_the_same_bytes_and_stays_when_training_goes_on(
    optimizer_class: type[torch.optim.Optimizer], kwargs: dict[str, Any]
) -> None:
    model, optimizer = trained(optimizer_class, **kwargs)
    before = saved(optimizer.state_dict()), saved(model.state_dict())
    copy = HostBuffers().copy((model.state_dict(), optimizer.state_dict()))
    model(torch.ones(2, 4), torch.ones(2))["loss"].backward()
    optimizer.step()
    assert saved(optimizer.state_dict()) != before[0]
    assert (saved(copy.tree[1]), saved(copy.tree[0])) == before


def test_models_save_to_the_same_files(tmp_path: Path) -> None:
    for name, model in (("tied", Tied()), ("llama", tiny_llama())):
        weights.save_weights(model, tmp_path / name / "direct")
        copied = HostBuffers().copy(model.state_dict()).tree
        weights.save_weights(model, tmp_path / name / "copied", copied)
        files = sorted(each.name for each in (tmp_path / name / "direct").iterdir())
        assert files == sorted(each.name for each in (tmp_path / name / "copied").iterdir())
        for file in files:
            assert (tmp_path / name / "direct" / file).read_bytes() == (tmp_path / name / "copied" / file).read_bytes()


def test_sharing_strides_types_and_identities_are_kept() -> None:
    base = torch.arange(12.0).view(3, 4)
    shared = {"lr": 0.1}
    tree = OrderedDict(a=base, b=base[1], c=base.t(), d=(shared, [shared]), e=nn.Parameter(base, requires_grad=False))
    copy = HostBuffers().copy(tree).tree
    assert type(copy) is OrderedDict
    assert copy["b"].data_ptr() == copy["a"].data_ptr() + 16
    assert copy["c"].stride() == (1, 4)
    assert copy["d"][0] is copy["d"][1][0]
    assert copy["d"][0] is not shared
    assert isinstance(copy["e"], nn.Parameter)
    assert not copy["e"].requires_grad
    assert saved(copy) == saved(tree)


def test_the_block_is_reused_and_given_back() -> None:
    buffers = HostBuffers()
    first = buffers.copy([torch.ones(100)]).tree[0].data_ptr()
    assert buffers.copy([torch.ones(100)]).tree[0].data_ptr() == first
    kept = buffers.size
    buffers.copy([torch.ones(50)])
    assert buffers.size == kept > 0
    buffers.release()
    assert buffers.size == 0


def test_empty_and_scalar_tensors() -> None:
    copy = HostBuffers().copy({"none": torch.empty(0, 3), "one": torch.tensor(7)}).tree
    assert copy["none"].shape == (0, 3)
    assert copy["one"].item() == 7


def test_what_cannot_be_copied_says_so() -> None:
    with pytest.raises(NotCopyableError):
        HostBuffers().copy({"a": torch.eye(3).to_sparse()})
    with pytest.raises(NotCopyableError):
        HostBuffers().copy({"a": torch.empty(3, device="meta")})


def test_short_memory_is_an_error_before_anything_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "available_memory", lambda: snapshot._RESERVE + 100)
    buffers = HostBuffers()
    with pytest.raises(MemoryError, match="4,032 bytes"):
        buffers.copy([torch.ones(1000)])
    assert buffers.size == 0


def test_available_memory_is_what_the_machine_says() -> None:
    assert 0 < snapshot.available_memory() < 2**50


def test_to_host_leaves_host_tensors_as_they_are() -> None:
    tree = {"a": torch.ones(2)}
    assert to_host(tree) is tree
