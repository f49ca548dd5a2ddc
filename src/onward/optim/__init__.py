"""Optimizers, learning rate schedules, gradient clipping, and the step that can be skipped.

| file | what it answers |
|---|---|
| `optimizers` | which optimizer does a name mean, and how is it built |
| `request` | what a recipe may ask of the arguments (`optim_args` among them) |
| `third_party`, `lowrank` | the optimizers of other packages, loaded on use |
| `adafactor` | our own Adafactor |
| `groups` | which parameters decay |
| `schedulers`, `curves`, `greedy` | which schedule does a name mean |
| `clip` | how large is the gradient, and the cut |
| `guard` | how a step is left out without asking the device |

Nothing is imported here: each file is loaded by whoever needs it.
"""
