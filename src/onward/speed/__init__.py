"""Ways to train faster or in less memory, each of which shows first that it trains the same.

padding_free   one row without padding instead of a padded batch
attention      attention within each of the sequences that stand in such a row
packing        samples grouped to fill rows
chunked_loss   the loss of a language model without its logits
checking       one batch both ways, before either of them trains
shortcuts      which of them a run uses, and how a step goes through them
compiling      a model compiled block by block
waste          where the time of a run went, and the argument that saves it
"""
