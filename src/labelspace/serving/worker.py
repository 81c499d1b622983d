"""One thread that owns the model: requests wait in one queue, those for predictions are gathered into batches.

Requests are answered in the order of arrival. The thread takes all that waits, up to a batch, and never waits for more
to come: an idle service answers at once, a busy one in batches. A change waits in the same queue and is made alone, so
a prediction sees all of it or nothing. It is written to disk before it is answered.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..errors import LabelspaceError
from ..model.model import Model
from ..types import Predictions

logger = logging.getLogger(__name__)

Change = Callable[[Model], Any]


class NotReadyError(Exception):
    """The model is not open: not yet, or not any more."""


class BusyError(Exception):
    """Too many texts wait; after so many seconds there may be room."""

    def __init__(self, waiting: int, seconds: int):
        self.seconds = seconds
        super().__init__(f"{waiting} texts wait already; try again in {seconds} s")


class UnsavedError(Exception):
    """A change could not be written, and was taken back."""


@dataclass(frozen=True)
class Question:
    """What is asked of the model.

    Args:
        texts: n texts.
        k: labels a text, at most.
        why: whether reasons are wanted.
        weight: of the documents' votes; None for the model's own.
        labels: ids or texts of the labels to choose from; None for all.
    """

    texts: list[str]
    k: int
    why: bool = False
    weight: float | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """Rows of predictions that were made for several questions together.

    Args:
        predictions: of all of them.
        rows: those of this question.
        k: labels a text, at most; the predictions may hold more.
        state: what was told of the model when it predicted.
    """

    predictions: Predictions
    rows: range
    k: int
    state: Any = None


@dataclass(eq=False)
class _Waiting:
    work: Question | Change
    future: Future[Any] = field(default_factory=Future)

    @property
    def size(self) -> int:
        return len(self.work.texts) if isinstance(self.work, Question) else 1


class Worker:
    """Opens the model in a thread of its own and answers what is given to it.

    Args:
        opening: opens the model; called in the thread, and again when a change could not be written.
        batch: texts that are predicted together, at most; a larger request is predicted by itself.
        queue: texts that may wait, at most.
        opened: called in the thread when the model was opened and after every change, before that is answered; what it
            returns is the state.
        failed: called in the thread when the model could not be opened, at the start or after a change that failed.

    Attributes:
        model: the model as the last change left it; None while there is none.
        state: what `opened` last returned.
        error: why there is none.
    """

    def __init__(
        self,
        opening: Callable[[], Model],
        *,
        batch: int,
        queue: int,
        opened: Callable[[Model], Any],
        failed: Callable[[BaseException], None] = lambda error: None,
    ):
        self.opening, self.batch, self.queue, self.opened, self.failed = opening, batch, queue, opened, failed
        self.model: Model | None = None
        self.state: Any = None
        self.error: BaseException | None = None
        self._queue: deque[_Waiting] = deque()
        self._texts = 0  # in the queue; a change counts as one
        self._rate = 100.0  # texts a second, lately
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="labelspace-model", daemon=True)

    def start(self) -> None:
        """Begin to open the model; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what was taken, take nothing more, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def ready(self) -> bool:
        """Whether the model is open."""
        return self.model is not None and not self._stopping

    @property
    def waiting(self) -> int:
        """Texts and changes in the queue."""
        return self._texts

    def require_ready(self) -> None:
        """Raise NotReadyError where there is no model."""
        if not self.ready:
            raise NotReadyError("the model cannot be used" if self.error else "the model is being opened")

    def ask(self, question: Question) -> Future[Answer]:
        """Put a question into the queue.

        Raises:
            NotReadyError: there is no model.
            BusyError: too many texts wait.
        """
        return self._wait(_Waiting(question))

    def change(self, change: Change) -> Future[Any]:
        """Put a change into the queue; the result, what it returns and the new state, comes when the model is saved.

        Args:
            change: gets the model; when it raises, the model must be as it was.

        Raises:
            NotReadyError: there is no model.
            BusyError: too much waits.
        """
        return self._wait(_Waiting(change))

    def _wait(self, one: _Waiting) -> Future[Any]:
        with self._changed:
            self.require_ready()
            if self._texts and self._texts + one.size > self.queue:
                raise BusyError(self._texts, max(1, min(60, math.ceil(self._texts / self._rate))))
            self._queue.append(one)
            self._texts += one.size
            self._changed.notify()
        return one.future

    # In the thread

    def _run(self) -> None:
        try:
            self._open()
        except BaseException as error:
            self.error = error
            self.failed(error)
            return
        while taken := self._take():
            began = time.perf_counter()
            work = taken[0].work
            if isinstance(work, Question):
                for group in _alike(taken):
                    self._answer(group)
                passed = max(time.perf_counter() - began, 1e-6)
                self._rate += 0.1 * (sum(one.size for one in taken) / passed - self._rate)
            else:
                self._make(taken[0], work)

    def _open(self) -> None:
        model = self.opening()
        self.state = self.opened(model)
        self.model = model

    def _usable(self) -> Model:
        if self.model is None:
            raise NotReadyError("the model cannot be used")
        return self.model

    def _take(self) -> list[_Waiting]:
        """The next change alone, or the questions before it, up to a batch; nothing when it is time to end."""
        with self._changed:
            while not self._queue and not self._stopping:
                self._changed.wait()
            taken: list[_Waiting] = []
            texts = 0
            while self._queue:
                one = self._queue[0]
                alone = not isinstance(one.work, Question)
                if taken and (alone or texts + one.size > self.batch):
                    break
                self._queue.popleft()
                self._texts -= one.size
                if not one.future.set_running_or_notify_cancel():
                    continue  # whoever asked has gone
                taken.append(one)
                texts += one.size
                if alone:
                    break
        return taken if taken or self._stopping else self._take()

    def _answer(self, group: list[_Waiting]) -> None:
        """Predict for questions that can be predicted together."""
        questions = [one.work for one in group if isinstance(one.work, Question)]
        texts = [text for question in questions for text in question.texts]
        weight, why, labels = questions[0].weight, questions[0].why, questions[0].labels
        try:
            model = self._usable()
            numbers = None if labels is None else model.label_numbers(labels)  # it keeps the names, a copy would not
            if weight is not None:
                model = model.with_weight(weight)
            k = max(question.k for question in questions)
            predictions = model.predict(texts, k, numbers, probabilities=model.calibration is not None, why=why)
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
            else:  # one of them is to blame, and the others shall not suffer
                for one in group:
                    self._answer([one])
            return
        start = 0
        for one, question in zip(group, questions, strict=True):
            rows = range(start, start + len(question.texts))
            one.future.set_result(Answer(predictions, rows, question.k, self.state))
            start = rows.stop

    def _make(self, one: _Waiting, change: Change) -> None:
        """Make a change and write it, or take it back."""
        try:
            model = self._usable()
            result = change(model)
        except Exception as error:
            one.future.set_exception(error)
            return
        try:
            model.save()
            self.state = self.opened(model)
        except Exception as error:
            logger.error("a change could not be saved: %s", error)
            said = str(error) if isinstance(error, LabelspaceError | OSError) else type(error).__name__
            try:
                self._open()
            except Exception as again:
                logger.error("the model could not be opened again: %s", again)
                self.model, self.error = None, again
            one.future.set_exception(UnsavedError(f"the change was not saved and is taken back: {said}"))
            if self.error is not None:
                self.failed(self.error)
            return
        one.future.set_result((result, self.state))


def _alike(taken: list[_Waiting]) -> Iterator[list[_Waiting]]:
    """Questions that can be predicted together: of one weight, some labels, and one k where reasons are wanted."""
    groups: dict[Any, list[_Waiting]] = {}
    for one in taken:
        if isinstance(one.work, Question):
            key = (one.work.weight, one.work.labels, one.work.why, one.work.k if one.work.why else None)
            groups.setdefault(key, []).append(one)
    yield from groups.values()
