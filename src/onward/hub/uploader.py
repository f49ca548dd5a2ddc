"""Pushes in the background: one at a time, from a pinned folder, retried within bounds, never in the way of training.

    submit → [waiting …] → thread: worker process per try → pushed | replaced | failed
    finish → waits with a bar until all is settled or the time is up, then writes the report

The newest waiting push replaces an older one that has not started (`keep_all` keeps them all). A push that waits
between two tries gives way to a newer one.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from typing import Any

from onward.hub.bar import push_bar
from onward.hub.contents import Upload
from onward.hub.place import HubPlace, Outcome, Patience
from onward.hub.process import Call, Failure
from onward.hub.report import report

logger = logging.getLogger(__name__)

# Seconds that a process which ends without `finish` waits for its last push.
EXIT_LIMIT = 120.0

Pin = Callable[[str], AbstractContextManager[Any]]


class Job:
    """An upload that was accepted: its outcome so far, what holds its folder, and the future that tells the end."""

    def __init__(self, upload: Upload, place: HubPlace, must: bool) -> None:
        self.upload = upload
        self.place = place
        self.must = must
        self.withdrawn: str | None = None
        """Why it is not wanted anymore."""
        self.outcome = Outcome(upload.name, upload.source, upload.target, message=upload.message)
        self.outcome.total = sum(entry.size for entry in upload.files)
        self.held = ExitStack()
        self.future: Future[Outcome] = Future()


class Uploader:
    """The queue of pushes of one run, and the thread that works it off.

    `place` is where pushes go unless `submit` says otherwise. `pin` returns a context manager that keeps a folder from
    being deleted; `known` says that the repository exists and the right to write was checked. Also has the two methods
    of transformers' ``push_in_progress``.
    """

    def __init__(
        self,
        place: HubPlace,
        pin: Pin | None = None,
        keep_all: bool = False,
        known: bool = False,
        patience: Patience | None = None,
    ) -> None:
        self.place = place
        self.pin: Pin = pin or (lambda path: nullcontext())
        self.keep_all = keep_all
        self._opened = {place} if known else set()
        self.patience = patience or Patience()
        self.outcomes: list[Outcome] = []
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._call: Call | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._told = 0
        self._closed = False

    # ---- what the run asks for ----

    def submit(self, upload: Upload, place: HubPlace | None = None, must: bool = False) -> Future[Outcome]:
        """Queue an upload and return at once. `must` keeps it from being replaced by a newer one."""
        job = Job(upload, place or self.place, must)
        try:
            job.held.enter_context(self.pin(upload.source))
        except OSError as error:
            self.outcomes.append(job.outcome)
            self._settle(job, "failed", f"{upload.source} cannot be read: {error}")
            return job.future
        with self._changed:
            self.outcomes.append(job.outcome)
            older = [] if self.keep_all else [other for other in self._waiting if not other.must]
            self._waiting = [other for other in self._waiting if other not in older] + [job]
            for other in older:
                self._replace(other, upload.name)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="onward-push", daemon=True)
                atexit.register(self._at_exit)
                self._thread.start()
            self._changed.notify_all()
        return job.future

    def is_done(self) -> bool:
        """Whether nothing is under way and nothing waits."""
        with self._changed:
            return self._thread is None

    def wait_until_done(self, limit: float | None = None) -> bool:
        """Wait until every push is settled or `limit` seconds have passed; return whether all are settled."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout=limit)

    def finish(self, limit: float | None, show: bool = False) -> Outcome | None:
        """Wait `limit` seconds at most for what is under way, write the report, return the newest push if it failed.

        `show` draws a progress bar. Whatever interrupts the wait stops the push as well.
        """
        deadline = None if limit is None else time.monotonic() + limit
        try:
            with push_bar(self.place.title, show and not self.is_done()) as draw:
                while not self.wait_until_done(0.2):
                    running = self._running
                    draw(running.outcome if running else None, len(self._waiting))
                    if deadline is not None and time.monotonic() > deadline:
                        self.stop(f"the time limit of {limit:g} s for the last push was over")
        except BaseException:
            self.stop("the wait was interrupted")
            raise
        finally:
            self._tell()
        newest = self.outcomes[-1] if self.outcomes else None
        return newest if newest is not None and newest.status != "pushed" else None

    def stop(self, reason: str) -> None:
        """Give up everything that is under way or waits."""
        with self._changed:
            jobs, self._waiting = self._waiting, []
            for job in jobs:
                self._settle(job, "failed", reason)
            if self._running is not None:
                last = self._running.outcome.reason
                self._running.outcome.reason = f"{reason}; the try before had failed: {last}" if last else reason
                self._end_try()
            self._changed.notify_all()
        self.wait_until_done(10)

    def withdraw(self, source: str | os.PathLike[str], reason: str) -> bool:
        """Give up the pushes of a folder that is about to be deleted; returns once nobody reads it.

        Returns:
            Whether something of it may have arrived.
        """
        folder = os.path.realpath(source)
        with self._changed:
            gone = [job for job in self._waiting if os.path.realpath(job.upload.source) == folder]
            self._waiting = [job for job in self._waiting if job not in gone]
            for job in gone:
                self._settle(job, "replaced", reason)
            arrived = any(each.status == "pushed" and os.path.realpath(each.source) == folder for each in self.outcomes)
            running = self._running
            if running is None or os.path.realpath(running.upload.source) != folder:
                return arrived
            running.withdrawn = reason
            self._end_try()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._running is not running, timeout=10)
            return True  # the Hub may have made the commit without having said so

    def _end_try(self) -> None:
        """End the push that is running, or that is about to be tried."""
        self._closed = True
        if self._call is not None:
            self._call.stop()

    # ---- the thread ----

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = self._waiting.pop(0) if self._waiting else None
                self._closed = False
                self._changed.notify_all()
                if self._running is None:
                    self._thread = None
                    atexit.unregister(self._at_exit)
                    break
                job = self._running
            started = time.monotonic()
            try:
                self._push(job)
            except Exception as error:  # a bug here must not leave the run waiting for a thread that has died
                logger.exception("the push of %s broke", job.upload.name)
                self._settle(job, "failed", f"{type(error).__name__}: {error}")
            job.outcome.seconds = time.monotonic() - started

    def _push(self, job: Job) -> None:
        outcome = job.outcome
        outcome.status = "running"
        while True:
            outcome.attempts += 1
            try:
                answer = self._try(job)
            except Failure as failure:
                if self._is_given_up(job):
                    return
                outcome.reason = str(failure)
                if not failure.transient or outcome.attempts >= self.patience.attempts:
                    return self._settle(job, "failed", outcome.reason)
                newer = self._rest(self.patience.wait(outcome.attempts, failure.after), job)
                if self._is_given_up(job):
                    return
                if newer is not None:
                    return self._replace(job, newer)
            else:
                outcome.url, outcome.oid = answer["url"], answer["oid"]
                return self._settle(job, "pushed", answer["note"])

    def _is_given_up(self, job: Job) -> bool:
        """Whether a push was withdrawn or stopped; it is settled then."""
        if job.withdrawn is not None:
            self._settle(job, "replaced", job.withdrawn)
        elif self._closed:
            self._settle(job, "failed", job.outcome.reason)
        else:
            return False
        return True

    def _try(self, job: Job) -> dict[str, Any]:
        request = {**job.place.to_request(), **job.upload.to_request(), "action": "push"}
        call = Call({**request, "known": job.place in self._opened, "stall": self.patience.stall})
        with self._changed:
            self._call = call
            if self._closed:
                call.stop()
        try:
            return call.run(lambda event: self._hear(job, event))
        finally:
            with self._changed:
                self._call = None

    def _hear(self, job: Job, event: dict[str, Any]) -> None:
        if event["event"] == "opened":
            full = replace(job.place, repo=event["repo"])  # a bare name has got its owner
            self.place = full if self.place == job.place else self.place
            job.place = full
            self._opened.add(full)
        elif event["event"] == "progress":
            job.outcome.sent, job.outcome.total = event["sent"], event["total"]

    def _rest(self, seconds: float, job: Job) -> str | None:
        """Wait before the next try; return the name of a newer push to which this one should give way."""
        gives_way = not (job.must or self.keep_all)
        logger.info("push of %s: %s; next try in %.0f s", job.upload.name, job.outcome.reason, seconds)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (gives_way and bool(self._waiting)), timeout=seconds)
            return self._waiting[-1].upload.name if gives_way and self._waiting else None

    # ---- the end of a push ----

    def _replace(self, job: Job, newer: str) -> None:
        why = f" after {job.outcome.reason}" if job.outcome.reason else ""
        self._settle(job, "replaced", f"{newer} took its place{why}")

    def _settle(self, job: Job, status: Any, reason: str) -> None:
        job.outcome.status, job.outcome.reason = status, reason
        job.held.close()
        where = job.place.title
        if status == "pushed":
            logger.info("pushed %s to %s: %s", job.upload.name, where, job.outcome.url)
            if reason:
                logger.warning("%s: %s", where, reason)
        elif status == "failed":
            logger.warning("%s was not pushed to %s (training is not affected): %s", job.upload.name, where, reason)
        job.future.set_result(job.outcome)

    def _tell(self) -> None:
        with self._changed:
            news, self._told = self.outcomes[self._told :], len(self.outcomes)
        if not news:
            return
        text, complete = report(news, self.place)
        logger.log(logging.INFO if complete else logging.WARNING, text)

    def _at_exit(self) -> None:
        """Wait for the last push of a process that ends without `finish`, after an error in training say."""
        if not self.is_done():
            self.finish(EXIT_LIMIT, show=True)
