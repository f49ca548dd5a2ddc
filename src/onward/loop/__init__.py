"""The flows: what happens in which order.

- ``train``: one call of `Trainer.train`, from seed to `TrainOutput`
- ``fit``: the loop: epochs, steps, micro-batches
- ``step``: what surrounds a micro-batch and an optimizer step
- ``checks``: what is checked when a trainer is made
- ``feeding``: loaders and samplers from a trainer's settings
- ``evaluate``: evaluation and prediction; ``scoring``: its metrics
- ``saving``: writing a checkpoint; ``beside``: while training goes on; ``listening``: who would notice
- ``resuming``: reading one; ``continuing``: what the loop hands to it and takes back
- ``leave``: saving and leaving after a signal
"""
