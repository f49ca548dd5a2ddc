"""The gathering room: nests of tensors, and what batch after batch yields, joined in host memory.

nests    walk a nest of tensors: detach, to arrays, to plain numbers, its batch size
store    `BatchStore`: everything that the batches of an evaluation yielded, in as little memory as it takes
pages    memory of its own for what is kept, which goes back to the system
"""

from onward.gather.nests import detach, find_batch_size, has_length, numpify, plain_numbers
from onward.gather.store import BatchStore

__all__ = ["BatchStore", "detach", "find_batch_size", "has_length", "numpify", "plain_numbers"]
