"""Hooks that talk to the Hugging Face Hub."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from onward.arguments import option
from onward.checkpoint import ranks
from onward.checkpoint.pins import pin
from onward.errors import HubError
from onward.hooks.base import TrainerBase
from onward.hub import card, commits, contents, download, repo
from onward.hub.place import HubPlace
from onward.hub.uploader import Uploader
from onward.model_setup import without_peft

logger = logging.getLogger(__name__)


class HubHooks(TrainerBase):
    """Creates the repository, pushes checkpoints and the final model, writes the model card, downloads to resume."""

    push_in_progress: Uploader | None = None
    _hub_is_open: bool = False

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository ``args.hub_model_id`` where it is missing and check the right to push to it.

        `token` and `private` default to ``args.hub_token`` and ``args.hub_private_repo``.

        Raises:
            HubError: it cannot be pushed to, and ``args.push_failure`` is ``raise``. Otherwise that is a warning, and
                each push tries to create it again.
        """
        if not self.is_world_process_zero():
            return
        place = self._hub_place(token, None, private, repo.repo_name(self.args.hub_model_id, str(self.args.output_dir)))
        self.push_in_progress = None
        self.hub_model_id, self._hub_is_open = place.repo, False
        try:
            self.hub_model_id = repo.open_repo(place)
            self._hub_is_open = True
        except HubError as error:
            self._push_failed(error, "Training goes on; every push tries again.")

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write ``README.md`` into the output folder: metadata, results, arguments, versions.

        What is not given is left out, except the base model and the task of a transformers model. Text that others
        wrote into the file is kept.
        """
        if not self.is_world_process_zero():
            return
        said = {name: value for name, value in locals().items() if name != "self"}
        card.write_card(self._card(said), Path(str(self.args.output_dir), "README.md"))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, write its card (`kwargs` are those of `create_model_card`) and push both.

        Returns the `huggingface_hub.CommitInfo`, or a future of it with ``blocking=False``; None on ranks other than 0
        and when the push failed and ``args.push_failure`` is ``warn``.

        Raises:
            HubError: the push failed and ``args.push_failure`` is ``raise``.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**self._card_defaults(kwargs))
        upload = contents.model_upload(str(self.args.output_dir), commit_message or "End of training")
        future = self._uploader().submit(upload, self._hub_place(token, revision, private), must=True)
        return self._await_push(future) if blocking else commits.later(future)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Queue a committed checkpoint for pushing, as ``args.hub_strategy`` says; returns at once."""
        strategy = str(getattr(self.args.hub_strategy, "value", self.args.hub_strategy))
        if not self.is_world_process_zero() or strategy == "end":
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = contents.message_of(checkpoint_folder, self.args.save_strategy, self.state.epoch)
        try:
            upload = contents.checkpoint_upload(checkpoint_folder, str(self.args.output_dir), strategy, message)
        except OSError as error:  # somebody deletes files while they are listed
            logger.warning("%s is not pushed: it cannot be listed: %s", checkpoint_folder, error)
        else:
            self._uploader().submit(upload)

    def _withdraw_push(self, checkpoint_folder: str, reason: str, may_be_there: bool) -> bool:
        """Give up the pushes of a checkpoint that is about to be deleted; returns once nobody reads it.

        Under its own name it is deleted on the Hub, too. `may_be_there` says that another process may have pushed it.
        Returns whether something of it may be on the Hub.
        """
        if not self.is_world_process_zero():
            return False
        uploader = self.push_in_progress
        may_be_there |= isinstance(uploader, Uploader) and uploader.withdraw(checkpoint_folder, reason)
        if may_be_there and str(getattr(self.args.hub_strategy, "value", self.args.hub_strategy)) == "all_checkpoints":
            gone = contents.removal(checkpoint_folder, str(self.args.output_dir), reason)
            self._uploader().submit(gone, must=True)
        return may_be_there

    def _finish_current_push(self) -> None:
        """Wait for the pushes under way, ``args.push_wait_seconds`` at most, and say what became of each."""
        if self.push_in_progress is None:
            return
        failed = self.push_in_progress.finish(option(self.args, "push_wait_seconds"), show=not self.args.disable_tqdm)
        if failed is not None and option(self.args, "push_failure") == "raise":
            raise HubError(f"{failed.name} was not pushed: {failed.reason}")

    def _fetch_checkpoint(self, resume_from_checkpoint: str | bool | None) -> str | bool | None:
        """Download what ``hub:user/model[@revision]`` or ``last-checkpoint`` names; return anything else as it is.

        All ranks must call it; the first process of each machine downloads.

        Raises:
            HubError, CheckpointError: it cannot be downloaded, or the repository has no checkpoint.
        """
        local = ranks.from_first(download.on_disk(resume_from_checkpoint, str(self.args.output_dir)))
        if local is not None or resume_from_checkpoint is None:
            return local  # type: ignore[return-value]
        name = repo.repo_name(self.args.hub_model_id, str(self.args.output_dir))
        mine = download.attempt(str(resume_from_checkpoint), self._hub_place(repo=name), self.is_local_process_zero())
        failures = [answer for answer in ranks.everyone(mine) if isinstance(answer, Exception)]
        if failures:
            raise failures[0]
        return ranks.from_first(mine)  # type: ignore[return-value]

    # --- shared by the above

    def _hub_place(
        self,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        repo: str | None = None,
    ) -> HubPlace:
        args = self.args
        return HubPlace(
            repo=str(self.hub_model_id) if repo is None else repo,
            token=args.hub_token if token is None else token,
            revision=args.hub_revision if revision is None else revision,
            private=args.hub_private_repo if private is None else private,
        )

    def _uploader(self) -> Uploader:
        if self.push_in_progress is None:
            always = bool(self.args.hub_always_push)
            self.push_in_progress = Uploader(self._hub_place(), pin, always, known=self._hub_is_open)
        return self.push_in_progress

    def _await_push(self, future: Any) -> Any:
        assert self.push_in_progress is not None
        self.push_in_progress.finish(limit=None, show=not self.args.disable_tqdm)
        try:
            return commits.commit_of(future.result())
        except HubError as error:
            return self._push_failed(error, "The model is saved in the output folder.")

    def _push_failed(self, error: HubError, note: str) -> None:
        if option(self.args, "push_failure") == "raise":
            raise error
        logger.warning("%s. %s", error, note)

    def _card_defaults(self, said: dict[str, Any]) -> dict[str, Any]:
        """Add the model's own tags and the repository's name to what the user said for the card."""
        tags = [*card.listed(said.get("tags")), *card.listed(getattr(self.model, "model_tags", None))]
        name = said.get("model_name") or str(self.hub_model_id).split("/")[-1]
        return {**said, "model_name": name, **({"tags": list(dict.fromkeys(tags))} if tags else {})}

    def _card(self, said: dict[str, Any]) -> card.Card:
        """Everything for the model card: what the user said, and what the trainer knows."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        transformers = sys.modules.get("transformers")  # not imported: then the model is none of its own
        base = without_peft(model)
        own = transformers is not None and isinstance(base, transformers.PreTrainedModel)
        said["model_name"] = said["model_name"] or Path(str(self.args.output_dir)).name
        said["finetuned_from"] = said["finetuned_from"] or (card.base_of(base) if own else None)
        said["tasks"] = said["tasks"] or (card.task_of(base) if own else None)
        library = "peft" if base is not model else "transformers" if own else "pytorch"
        arguments, logs = card.told_arguments(self.args), self.state.log_history
        return card.Card(**said, library=library, badges=card.badges(), arguments=arguments, log_history=list(logs))
