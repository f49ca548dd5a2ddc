"""The methods of `Trainer` that people override, grouped by what they are about.

- ``training``: the step: batches, loss, backward
- ``data``: loaders, samplers, columns
- ``optimization``: optimizer, scheduler, clipping
- ``evaluation``: evaluate, predict
- ``checkpointing``: save and load
- ``reporting``: logs, metrics, callbacks
- ``hub``: pushing to the Hugging Face Hub
- ``searching``: hyperparameter search

A hook body unpacks ``self``, calls a part with explicit values and returns. Hooks are always called late-bound on the
instance, because people override them, call ``super()`` and even assign them at run time.
"""
