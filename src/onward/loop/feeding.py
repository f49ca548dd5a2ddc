"""Building loaders and samplers from a trainer's settings, and finding the batch of a step."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler

from onward import engine
from onward.arguments import option
from onward.callbacks.spikes import LossSpikeCallback
from onward.checkpoint import list_checkpoints, problems, read_record
from onward.data.draws import key_of, protected, seed_streams
from onward.data.feed import Feed
from onward.data.generators import restore_states, states_of
from onward.data.loader import Share, build_loader, order_seed
from onward.data.order import EpochShuffle, LengthAwareSampler, LengthGroupedSampler, has_length, sample_lengths
from onward.data.streams import Stream
from onward.errors import DataError, MissingDependency, UsageError
from onward.leaving import OutliveSignals, parse_signals
from onward.loop.checks import check_dataset
from onward.loop.compilation import with_few_lengths
from onward.plan import RunLength, RunPlan, make_plan
from onward.speed.packing import PackedBatches

if TYPE_CHECKING:
    from onward.hooks.base import TrainerBase


def worker_options(args: Any) -> dict[str, Any]:
    """`DataLoader` options that the arguments set."""
    return {
        "num_workers": args.dataloader_num_workers,
        "worker_init_fn": OutliveSignals(parse_signals(option(args, "preemption_signals"))),
        # Without an accelerator there is nothing to pin for, and torch warns.
        "pin_memory": args.dataloader_pin_memory and torch.accelerator.is_available(),
        "persistent_workers": args.dataloader_persistent_workers,
        "prefetch_factor": args.dataloader_prefetch_factor,
        "multiprocessing_context": getattr(args, "dataloader_multiprocessing_context", None),
        "in_order": getattr(args, "dataloader_in_order", True),
    }


def share_of(host: TrainerBase) -> Share:
    """Which part of the training data this process sees."""
    args = host.args
    return Share(seed=order_seed(args.data_seed), rank=args.process_index, world_size=max(1, args.world_size))


def training_loader(
    host: TrainerBase, dataset: Any, collator: Any, batch_size: int, sampler_fn: Callable[[Any], Any] | None
) -> Any:
    """onward's own training loader, or accelerate's where it splits or dispatches the batches itself."""
    args = host.args
    check_dataset(dataset, "training")
    if has_length(dataset) and len(dataset) == 0:
        raise DataError("The training data is empty: it has 0 samples, expected at least one. Check how it is loaded.")
    collator = with_few_lengths(host, collator)
    sampler = None if isinstance(dataset, IterableDataset) or sampler_fn is None else sampler_fn(dataset)
    if engine.is_gathered_by_dispatch(host.accelerator):
        batching: dict[str, Any] = {
            "batch_size": batch_size,
            "drop_last": args.dataloader_drop_last,
            "sampler": sampler,
        }
        return host.accelerator.prepare(DataLoader(dataset, collate_fn=collator, **batching, **worker_options(args)))
    return build_loader(
        dataset,
        collator,
        sampler,
        share_of(host),
        batch_size=batch_size,
        drop_last=args.dataloader_drop_last,
        move=engine.mover(host.accelerator, args.dataloader_pin_memory),
        **worker_options(args),
    )


def evaluation_loader(
    host: TrainerBase, dataset: Any, collator: Any, batch_size: int, sampler_fn: Callable[[Any], Any] | None
) -> Any:
    """A loader for evaluation, made by accelerate, which fills up and later drops the end of the set over processes."""
    check_dataset(dataset, "evaluation")
    options: dict[str, Any] = {"batch_size": batch_size, "collate_fn": collator, **worker_options(host.args)}
    if not isinstance(dataset, IterableDataset):
        options["drop_last"] = host.args.dataloader_drop_last
        options["sampler"] = sampler_fn(dataset) if sampler_fn is not None else None
    return host.accelerator.prepare(DataLoader(dataset, **options))


def train_sampler(host: TrainerBase, dataset: Any) -> Sampler[Any]:
    """The sampler that `train_sampling_strategy` names, or packed batches of its order.

    Raises:
        UsageError: packing lacks a setting that it needs.
    """
    args, sampler = host.args, _order(host, dataset)
    packing, limit = option(args, "packing"), option(args, "max_tokens_per_batch")
    if packing is None and limit is None:
        return sampler
    if isinstance(sampler, LengthAwareSampler):
        raise UsageError(
            f"packing={packing!r} groups samples by length itself, and cannot follow "
            "train_sampling_strategy='length_aware'. Choose one of them."
        )
    # With padding, a batch filled up to a number of tokens could be many times as large.
    if packing is None or limit is None or option(args, "padding_free") is not True:
        raise UsageError(
            f"packing={packing!r} with max_tokens_per_batch={limit} and "
            f"padding_free={option(args, 'padding_free')!r} cannot work: samples are packed by packing='bfd', up to "
            "max_tokens_per_batch, with padding_free=True. Set all three, or none."
        )
    if isinstance(sampler, RandomSampler):
        sampler = EpochShuffle(sampler, order_seed(args.data_seed))
    lengths = sample_lengths(dataset, args.length_column_name, _main_input(host))
    return PackedBatches(sampler, lengths, limit, rank=args.process_index, world_size=max(1, args.world_size))


def _order(host: TrainerBase, dataset: Any) -> Sampler[Any]:
    args = host.args
    strategy = args.train_sampling_strategy
    if strategy == "sequential":
        return SequentialSampler(dataset)
    if strategy == "group_by_length":
        lengths = sample_lengths(dataset, args.length_column_name, _main_input(host))
        # Several processes must agree on the order, so theirs cannot come from a generator that each has for itself.
        generator = torch.Generator().manual_seed(order_seed(args.data_seed)) if args.world_size > 1 else None
        return LengthGroupedSampler(lengths, args.train_batch_size * args.gradient_accumulation_steps, generator)
    if strategy == "length_aware":
        share = share_of(host)
        return LengthAwareSampler(
            EpochShuffle(RandomSampler(dataset), share.seed),
            _fixed_lengths(host, dataset, share.seed),
            host._train_batch_size * args.gradient_accumulation_steps * share.world_size,
            window=option(args, "length_aware_window"),
            seed=share.seed,
        )
    if strategy == "batch_rebalance":
        return _rebalanced(host, sample_lengths(dataset, args.length_column_name, _main_input(host)))
    return RandomSampler(dataset)


def _fixed_lengths(host: TrainerBase, dataset: Any, seed: int) -> list[int]:
    """Tokens per sample, the same whenever and wherever a run asks, also where reading a sample draws numbers."""
    column = host.args.length_column_name
    whole = host.train_dataset
    if column in (getattr(whole, "column_names", None) or ()) and len(whole) == len(dataset):
        dataset = whole  # the columns that the model does not take are gone from the other

    def measure() -> list[int]:
        seed_streams(key_of(seed))
        return sample_lengths(dataset, column, _main_input(host))

    return protected(measure)


def strategy_name(args: Any) -> str:
    """What the order of samples goes by, as a checkpoint remembers it."""
    name = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    window = option(args, "length_aware_window")
    return f"{name} over {window} steps" if name == "length_aware" and window > 1 else name


def _rebalanced(host: TrainerBase, lengths: list[int]) -> Sampler[Any]:
    """transformers' batches of about equal cost in all processes."""
    args, world_size = host.args, max(1, host.args.world_size)
    try:
        from transformers.trainer_pt_utils import BatchRebalanceSampler
    except ImportError as problem:
        raise MissingDependency(
            f"train_sampling_strategy='batch_rebalance' is a sampler of a recent transformers, which could not be "
            f"imported ({problem}). Install it (pip install -U transformers), or use 'group_by_length'."
        ) from problem
    sampler: Sampler[Any] = BatchRebalanceSampler(
        lengths,
        effective_batch_size=args.train_batch_size * args.gradient_accumulation_steps * world_size,
        dp_size=world_size,
        grad_accum=args.gradient_accumulation_steps,
        rank=args.process_index if world_size > 1 else 0,
        drop_last=args.dataloader_drop_last,
    )
    return sampler


def eval_sampler(host: TrainerBase, dataset: Any) -> Sampler[Any] | None:
    """The sampler for evaluation; `None` in several processes, where accelerate shards the data."""
    args = host.args
    if args.train_sampling_strategy == "group_by_length":
        lengths = sample_lengths(dataset, args.length_column_name, _main_input(host))
        seed = args.seed if args.data_seed is None else args.data_seed
        return LengthGroupedSampler(lengths, args.eval_batch_size, torch.Generator().manual_seed(seed))
    return SequentialSampler(dataset) if args.world_size <= 1 else None


def _main_input(host: TrainerBase) -> str | None:
    names = getattr(host.processing_class, "model_input_names", None)
    return names[0] if names else None


def plan_run(host: TrainerBase, loader: Any, args: Any) -> RunPlan:
    """The counts of a run over `loader`, as the hook `set_initial_training_values` gives them."""
    epochs, per_epoch, examples, samples, _, batches, max_steps = host.set_initial_training_values(args, loader)
    return RunPlan(
        micro_batch_size=host._train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        world_size=max(1, args.world_size),
        batches_per_epoch=batches,
        steps_per_epoch=per_epoch,
        max_steps=max_steps,
        num_epochs=epochs,
        num_examples=examples,
        num_train_samples=samples,
        has_length=_length(loader) is not None,
    )


def count_run(host: TrainerBase, loader: Any, args: Any) -> RunPlan:
    """Count what the arguments ask for over `loader`.

    Raises:
        UsageError: the data is empty, or has no length and `max_steps` is not set.
    """
    length = _length(loader)
    if length == 0:
        raise UsageError(
            "The training data is empty: its loader gives 0 batches. "
            f"Check the data set (and dataloader_drop_last={args.dataloader_drop_last})."
        )
    return make_plan(
        RunLength(args.max_steps, args.num_train_epochs),
        micro_batch_size=host._train_batch_size,
        accumulation=args.gradient_accumulation_steps,
        world_size=max(1, args.world_size),
        batches_per_epoch=length,
        num_examples=host.num_examples(loader) if length else None,
    )


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, AttributeError, NotImplementedError):
        return None


def batch_at(host: TrainerBase, step: int) -> list[Any]:
    """The collated micro-batches of optimizer step `step` (from 1) on this process.

    Raises:
        UsageError: the run has no such step, or its order came from generators whose state then is not known anymore.
    """
    found = host._train_batch_size
    try:
        if host.args.auto_find_batch_size:  # the size that was found to fit cuts steps, and does not make others
            host._train_batch_size = host.args.train_batch_size
        loader = host.get_train_dataloader()
        plan = plan_run(host, loader, host.args)
    finally:
        host._train_batch_size = found
    last = plan.max_steps + _most_left_behind(host, plan)
    if not 1 <= step <= last:
        raise UsageError(f"batch_at({step}): this run has the steps 1 to {last}.")
    epoch, in_epoch = divmod(step - 1, plan.steps_per_epoch)
    feed = Feed(loader, share_of(host), engine.mover(host.accelerator, False))

    def batches() -> list[Any]:
        if feed.stream is not None or not plan.has_length:
            with _at_its_begin(feed.stream, None if host.feed is None else host.feed.stream):
                return _in_epochs(feed, plan, step) if plan.has_length else _in_stream(feed, plan.accumulation, step)
        if feed.draws_order():
            feed.begin_as(_begin_of(host, epoch))
        return list(islice(feed.epoch(epoch, in_epoch * plan.accumulation), plan.batches_in_step(in_epoch)))

    kept = states_of(loader)
    try:
        return protected(batches)
    finally:
        restore_states(loader, kept)
        if host.feed is not None:
            host.feed.keep_epoch()


def _most_left_behind(host: TrainerBase, plan: RunPlan) -> int:
    """Steps of data that rollbacks of this run can have left behind: they come on top of those that it takes."""
    rolls_back = option(host.args, "on_nonfinite") == "rollback" or any(
        isinstance(each, LossSpikeCallback) and each.action == "rollback" for each in host.callback_handler.callbacks
    )
    return plan.max_steps * option(host.args, "max_rollbacks") if rolls_back else 0


@contextmanager
def _at_its_begin(stream: Stream | None, trained_on: Stream | None) -> Iterator[None]:
    """Read a stream that goes on from where it stands as the run did, which is not to notice it."""
    if stream is None or not stream.stateful:
        yield
        return
    now = copy.deepcopy(stream.opening)
    begin = now if trained_on is None else trained_on.opening
    try:
        if begin is not None:
            stream.dataset.load_state_dict(copy.deepcopy(begin))
        yield
    finally:
        if now is not None:
            stream.dataset.load_state_dict(now)


def _in_epochs(feed: Feed, plan: RunPlan, step: int) -> list[Any]:
    """The micro-batches of a step of a stream with a length, whose passes may go on from one another."""
    epoch, in_epoch = divmod(step - 1, plan.steps_per_epoch)
    for earlier in range(epoch):
        deque(islice(feed.epoch(earlier), plan.batches_per_epoch), maxlen=0)
    return list(islice(feed.epoch(epoch, in_epoch * plan.accumulation), plan.batches_in_step(in_epoch)))


def _in_stream(feed: Feed, accumulation: int, step: int) -> list[Any]:
    """The micro-batches of a step of a stream, which is read from its beginning, again and again where it ends."""
    left = step
    for epoch in count():
        batches = feed.epoch(epoch)
        before = left
        while left and (found := list(islice(batches, accumulation))):
            left -= 1
        if not left:
            return found
        if left == before:
            break
    raise UsageError(f"batch_at({step}): the stream has {step - left} steps, and gave nothing when it was read again.")


def _begin_of(host: TrainerBase, epoch: int) -> dict[str, Any]:
    """What the feed of this run, or a checkpoint of it, knows about the begin of an epoch."""
    if host.feed is not None and (live := host.feed.state_dict())["epoch"] == epoch:
        return live
    folder = Path(host._get_output_dir(trial=host._trial))
    for each in reversed(list_checkpoints(folder) if folder.is_dir() else []):
        if problems(each.path, deep=False) or (record := read_record(each.path)) is None:
            continue
        feed: dict[str, Any] | None = record.of_rank(host.args.process_index).get("extra", {}).get("feed")
        if feed is not None and feed["epoch"] == epoch:
            return feed
    raise UsageError(
        f"batch_at: the order of epoch {epoch} (from 0) was drawn from random number generators as they stood when it "
        f"began, and there is no checkpoint of that epoch in {folder} that knows. Save once in each epoch, or let "
        "onward shuffle (train_sampling_strategy='random' without a loader or generator of your own), whose order is "
        "a function of (seed, epoch)."
    )
