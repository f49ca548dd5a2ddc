"""Weights to a folder and back, for each kind of model."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import TinyRegression, tiny_llama
from torch import nn

from onward.checkpoint import layout, structure, weights
from onward.errors import BrokenCheckpoint

peft_asks_by_the_old_name = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


class Tied(nn.Module):
    """An output layer that shares its weight with the embedding, and a buffer that is a view of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, 4)
        self.out = nn.Linear(4, 6, bias=False)
        self.out.weight = self.embed.weight
        base = torch.arange(8.0)
        self.register_buffer("first", base[:4])
        self.register_buffer("second", base[2:])
        self.register_buffer("turned", torch.arange(6.0).view(2, 3).t())


class Talkative(nn.Module):
    """A module whose state is more than tensors."""

    def __init__(self, note: str) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.note = note

    def get_extra_state(self) -> str:
        return self.note

    def set_extra_state(self, state: str) -> None:
        self.note = state


def scrambled(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1)
    return other


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_plain_module_comes_back(tmp_path: Path) -> None:
    model = TinyRegression()
    weights.save_weights(model, tmp_path)
    fresh = scrambled(model)
    result = weights.load_weights(fresh, tmp_path)
    assert result == ([], [])
    assert_equal(model, fresh)


def test_tied_and_overlapping_tensors_save_and_load(tmp_path: Path) -> None:
    model = Tied()
    weights.save_weights(model, tmp_path)
    stored = load_file(tmp_path / layout.WEIGHTS)
    assert "out.weight" not in stored
    fresh = scrambled(model)
    assert weights.load_weights(fresh, tmp_path) == ([], [])
    assert_equal(model, fresh)


def test_a_tied_name_is_missing_where_the_model_does_not_tie(tmp_path: Path) -> None:
    weights.save_weights(Tied(), tmp_path)
    fresh = Tied()
    fresh.out.weight = nn.Parameter(torch.zeros(6, 4))
    assert weights.load_weights(fresh, tmp_path).missing_keys == ["out.weight"]


def test_shards_and_index(tmp_path: Path) -> None:
    model = TinyRegression()
    weights.save_weights(model, tmp_path, max_shard_size=130)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert shards[0].name == layout.shard_name(1, len(shards))
    index = json.loads((tmp_path / layout.WEIGHTS_INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    assert set(index["weight_map"]) == set(model.state_dict())
    fresh = scrambled(model)
    assert weights.load_weights(fresh, tmp_path) == ([], [])
    assert_equal(model, fresh)
    shards[0].unlink()
    assert any(shards[0].name in line for line in structure.check(tmp_path))


def test_a_sharded_pretrained_model_comes_back(tmp_path: Path) -> None:
    model = tiny_llama()
    weights.save_weights(model, tmp_path, max_shard_size="20KB")
    assert (tmp_path / layout.WEIGHTS_INDEX).exists()
    fresh = scrambled(model)
    assert weights.load_weights(fresh, tmp_path).unexpected_keys == []
    assert_equal(model, fresh)


def test_a_pretrained_model_is_saved_as_from_pretrained_reads_it(tmp_path: Path) -> None:
    model = tiny_llama()
    weights.save_weights(model, tmp_path)
    assert_equal(model, type(model).from_pretrained(tmp_path))


def test_torch_files_of_transformers_load(tmp_path: Path) -> None:
    model = TinyRegression()
    torch.save(model.state_dict(), tmp_path / layout.WEIGHTS_BIN)
    fresh = scrambled(model)
    weights.load_weights(fresh, tmp_path)
    assert_equal(model, fresh)


def test_sharded_torch_files_load(tmp_path: Path) -> None:
    model = TinyRegression()
    where = {}
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        torch.save({name: tensor}, tmp_path / f"pytorch_model-{number}.bin")
        where[name] = f"pytorch_model-{number}.bin"
    (tmp_path / layout.WEIGHTS_BIN_INDEX).write_text(json.dumps({"weight_map": where}))
    fresh = scrambled(model)
    assert weights.load_weights(fresh, tmp_path) == ([], [])
    assert_equal(model, fresh)


def test_a_state_with_more_than_tensors(tmp_path: Path) -> None:
    weights.save_weights(Talkative("remember"), tmp_path)
    fresh = Talkative("")
    weights.load_weights(fresh, tmp_path)
    assert fresh.note == "remember"


def test_names_that_differ_are_reported(tmp_path: Path) -> None:
    weights.save_weights(nn.ModuleDict({"a": nn.Linear(1, 1)}), tmp_path)
    result = weights.load_weights(nn.ModuleDict({"b": nn.Linear(1, 1)}), tmp_path)
    assert result == (["b.bias", "b.weight"], ["a.bias", "a.weight"])


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match="no weights for a TinyRegression"):
        weights.load_weights(TinyRegression(), tmp_path)


def test_code_in_a_torch_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"body.weight": Evil()}, tmp_path / layout.WEIGHTS_BIN)
    with pytest.raises(Exception, match=r"builtins\.exec"):
        weights.load_weights(TinyRegression(), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("size", "expected"), [("5GB", 5 * 10**9), ("200MiB", 200 * 2**20), (7, 7), ("7", 7)])
def test_sizes(size: str | int, expected: int) -> None:
    assert weights.parse_size(size) == expected


def test_a_size_without_sense() -> None:
    with pytest.raises(ValueError, match=r"max_shard_size is 'big'; expected .*'5GB'"):
        weights.parse_size("big")


@peft_asks_by_the_old_name
def test_adapters_come_back_and_only_they(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def wrapped() -> nn.Module:
        return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))

    model, fresh = wrapped(), wrapped()
    weights.save_weights(model, tmp_path)
    assert (tmp_path / layout.ADAPTER).exists()
    assert not (tmp_path / layout.WEIGHTS).exists()
    assert structure.has_weights(tmp_path)
    weights.load_weights(fresh, tmp_path)
    assert_equal(model, fresh)
    assert not weights.can_save_a_copy(model)


@peft_asks_by_the_old_name
def test_several_adapters_each_to_its_own(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def wrapped() -> nn.Module:
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        made = get_peft_model(tiny_llama(), config)
        made.add_adapter("second", config)
        return made

    model, fresh = wrapped(), wrapped()
    weights.save_weights(model, tmp_path)
    weights.load_weights(fresh, tmp_path)
    assert_equal(model, fresh)


def test_the_header_is_what_transformers_expects(tmp_path: Path) -> None:
    weights.save_weights(TinyRegression(), tmp_path)
    data = (tmp_path / layout.WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert json.loads(data[8 : 8 + length])["__metadata__"]["format"] == "pt"


def test_a_narrow_way_of_saving_is_given_what_transformers_gives(tmp_path: Path) -> None:
    """People override `save_pretrained` with the three arguments that the trainer of transformers passes."""
    from transformers import LlamaForCausalLM

    class Narrow(LlamaForCausalLM):
        def save_pretrained(self, save_directory, state_dict=None, is_main_process=True):  # type: ignore[no-untyped-def,override]
            with open(save_directory + "/note.txt", "w") as file:
                file.write("saved")
            super().save_pretrained(save_directory, state_dict=state_dict, is_main_process=is_main_process)

    weights.save_weights(Narrow(tiny_llama().config), tmp_path)
    assert {"note.txt", layout.WEIGHTS} <= {path.name for path in tmp_path.iterdir()}


@peft_asks_by_the_old_name
def test_a_model_of_mixed_adapters_is_saved_whole(tmp_path: Path) -> None:
    """PEFT cannot save it, and transformers writes its state."""
    from peft import LoHaConfig, PeftMixedModel

    def adapted() -> nn.Module:
        return PeftMixedModel(tiny_llama(), LoHaConfig(r=2, target_modules=["q_proj"], init_weights=False))

    model, fresh = adapted(), scrambled(adapted())
    weights.save_weights(model, tmp_path)
    assert weights.load_weights(fresh, tmp_path) == ([], [])
    assert_equal(model, fresh)
