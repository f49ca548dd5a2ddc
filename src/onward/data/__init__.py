"""The data room: the order of samples, how they are fetched, and where a run can enter them.

- ``order``: epoch → order of sample indices, a pure function of (seed, epoch)
- ``batches``: order → micro-batches of this process
- ``draws``: random numbers inside a data set: a function of (seed, epoch, position)
- ``streams``: the same for data without an index
- ``loader``: the training loader made of these
- ``feed``: a loader (ours or the user's) as epochs that can be entered anywhere
- ``columns``: which columns the model takes
- ``collate``: lists of samples → batches
"""
