"""Files in the format of safetensors are read by its library as what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from onward.checkpoint.sink import create_plain
from onward.checkpoint.tensors import write_safetensors

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu),
]


def test_every_type_and_shape_is_read_by_the_library(tmp_path: Path) -> None:
    bits = torch.randint(0, 2, (6 * 8,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensors = {f"x.{dtype}": bits[: 6 * dtype.itemsize].clone().view(dtype).reshape(3, 2) for dtype in TYPES}
    tensors |= {"scalar": torch.tensor(1.5), "none": torch.empty(0, 7), 'odd "näme"': torch.ones(1, dtype=torch.bool)}
    write_safetensors(tensors, tmp_path / "file", create_plain)
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    with safe_open(tmp_path / "file", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float4_e2m1fn_x2])
def test_a_type_that_the_format_lacks_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=str(dtype)):
        write_safetensors({"x": torch.empty(2, dtype=dtype)}, tmp_path / "file", create_plain)
    assert not (tmp_path / "file").exists()
