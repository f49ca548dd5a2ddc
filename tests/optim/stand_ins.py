"""Packages of the names that optimizers live in, with classes that only remember what they were given.

The real ones need CUDA or are not on the package index. They are written to a folder, with the metadata that
transformers looks for, so that its recipes and ours import the very same classes.
"""

from __future__ import annotations

from pathlib import Path

CLASSES = {
    "galore_torch": "GaLoreAdamW GaLoreAdamW8bit GaLoreAdafactor",
    "apollo_torch": "APOLLOAdamW",
    "bitsandbytes.optim": "AdamW Lion RMSprop AdEMAMix",
    "lomo_optim": "Lomo AdaLomo",
    "grokadamw": "GrokAdamW",
    "torchao.optim": "AdamW4bit AdamW8bit",
    "schedulefree": "AdamWScheduleFree SGDScheduleFree RAdamScheduleFree",
    "optimi": "StableAdamW",
    "torchdistx.optimizers": "AnyPrecisionAdamW",
}
DISTRIBUTIONS = {"optimi": "torch-optimi"}

_SOURCE = """
import torch


class {name}(torch.optim.SGD):
    def __init__(self, params, **options):
        self.options = options
        super().__init__(params, lr=options["lr"])
"""


def write(folder: Path) -> None:
    """Write all of them below ``folder``, which is to be put on the module path."""
    for module, names in CLASSES.items():
        package = folder.joinpath(*module.split("."))
        package.mkdir(parents=True)
        top = module.partition(".")[0]
        folder.joinpath(top, "__init__.py").write_text("__version__ = '99.0'\n")
        source = "".join(_SOURCE.format(name=name) for name in names.split())
        with package.joinpath("__init__.py").open("a") as file:
            file.write(source)
        distribution = DISTRIBUTIONS.get(top, top)
        info = folder / f"{distribution.replace('-', '_')}-99.0.dist-info"
        info.mkdir()
        info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 99.0\n")
