"""Which errors mean that the storage failed (the save is retried later) and which are bugs (raised at once)."""

from __future__ import annotations

_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "Parent directory", "cannot be opened", "unexpected pos")


def is_storage_failure(error: BaseException) -> bool:
    """True for a full disk, a missing permission, a vanished folder and the like, in whatever library's words."""
    if isinstance(error, OSError):
        return True
    if type(error).__name__ == "SafetensorError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_WRITER)
