"""Group commit: callers in several threads that come at the same time are served together, with one wait for the disk.

The first caller to come leads: it does the work of everybody who waits, itself included, and then hands over to one of
those that came meanwhile. Nobody works for others for longer than one batch.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pki.errors import StoreError, copied

GATHERING_SECONDS = 0.002  # that a leader waits, at most, for as many as came last time: about one wait for the disk
MAX_BATCH = 64  # items; what is saved by more is less than what the first of them loses by waiting

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Slot(Generic[Item, Result]):
    """One caller's item, and what came of it."""

    __slots__ = ("done", "item", "leads", "result", "wake")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.done = False
        self.leads = False
        self.result: Result | Exception
        self.wake = threading.Lock()  # released when the item is done, or its caller is to lead
        self.wake.acquire()


class GroupCommit(Generic[Item, Result]):
    """Safe for threads.

    Args:
        commit: does the work for a batch of items, and gives the result or the error of each. If it raises, nothing was
            committed, or it is not known: the connection to the database was lost while the answer was on its way.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Sequence[Result | Exception]]) -> None:
        self._commit = commit
        self._mutex = threading.Lock()
        self._waiting: deque[_Slot[Item, Result]] = deque()
        self._led = False
        self._expected = 1  # as many as came last time, because they are likely to come again
        self._gathered = threading.Lock()  # held while fewer wait
        self._gathered.acquire()

    def submit(self, item: Item) -> Result:
        """Return the result when the item is committed; raise what went wrong with it.

        A caller that is interrupted while it waits (KeyboardInterrupt) does not know whether its item was committed.

        Raises:
            StoreError: whoever led was interrupted; and whatever the work raises for this item.
        """
        slot: _Slot[Item, Result] = _Slot(item)
        try:
            with self._mutex:
                self._waiting.append(slot)
                if not self._led:
                    slot.leads = True  # first: interrupted between the two, it hands over what nobody has, and no more
                    self._led = True
                elif len(self._waiting) == self._expected and self._gathered.locked():
                    self._gathered.release()
            if not slot.leads:
                slot.wake.acquire()
            if not slot.done:
                self._lead(slot)
        except BaseException:  # interrupted before it was served, or before it served the others
            with self._mutex:
                if slot in self._waiting:
                    self._waiting.remove(slot)
                if slot.leads:
                    slot.leads = False
                    self._hand_over()
            raise
        if isinstance(slot.result, Exception):
            raise slot.result
        return slot.result

    def _lead(self, leader: _Slot[Item, Result]) -> None:
        batch: list[_Slot[Item, Result]] = []
        failed: Exception = StoreError("not stored", got="an interrupted transaction", do="try again")
        results: Sequence[Result | Exception] | None = None
        try:
            with self._mutex:
                gathered = len(self._waiting) >= self._expected
                self._gathered.acquire(blocking=False)
            if not gathered:
                self._gathered.acquire(timeout=GATHERING_SECONDS)
            with self._mutex:
                while self._waiting and len(batch) < MAX_BATCH:
                    batch.append(self._waiting.popleft())
            results = self._commit([slot.item for slot in batch])
        except Exception as error:
            failed = error
        finally:
            # Whatever happened, nobody is left waiting.
            with self._mutex:
                self._expected = len(batch)
                leader.leads = False
                self._hand_over()
            for index, slot in enumerate(batch):
                # Each raises its own, in its own thread.
                slot.result = copied(failed) if results is None else results[index]
                slot.done = True
                slot.wake.release()

    def _hand_over(self) -> None:
        """The next in the queue leads, if there is one. With the mutex held."""
        self._led = bool(self._waiting)
        if self._waiting:
            self._waiting[0].leads = True
            self._waiting[0].wake.release()
