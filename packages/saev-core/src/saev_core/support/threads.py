"""Overlapping work: `read_ahead` produces items in a thread, `write_behind` consumes them in a thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
log = logging.getLogger(__name__)


def torch_threads(n: int) -> None:
    """Let torch use `n` threads for calls from this thread; other running threads keep their setting."""
    torch.set_num_threads(n)
    # Torch fixes a thread's setting at its first use, to the value that ANY thread set last; this fixes it now.
    torch.get_num_threads()


def avoid_spinning() -> None:
    """Make torch's waiting threads sleep instead of spin, as long as the calling thread is alive.

    GNU OpenMP threads spin for about a millisecond at the end of every operation, unless there are more of them than cores.
    If other threads decode or write, the cores are busy, and spinning costs more than it saves: recording on two busy cores
    took 1.6 times the processor time of a bare loop. Giving this thread a team of two exceeds the number of cores; afterwards
    it works single-threaded.
    """
    torch_threads(2)
    torch.zeros(1 << 17).add_(1)  # large enough for torch to use both threads, which creates the team
    torch_threads(1)


def read_ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield the same items, produced by a separate thread at most `depth` items ahead.

    An error in `items` is raised at its position. Closing the generator closes `items`, in its thread, and waits for it.
    """
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def run() -> None:
        last: tuple[bool, Any] = (False, None)
        try:
            for item in items:
                if stop.is_set():
                    break
                ready.put((True, item))
        except BaseException as error:  # noqa: BLE001 - re-raised by the consumer
            last = (False, error)
        finally:
            try:
                if close := getattr(items, "close", None):
                    close()
            finally:
                ready.put(last)

    thread = threading.Thread(target=run, name="saev-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, value = ready.get()
            if more:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        while thread.is_alive():
            try:
                ready.get(timeout=0.02)
            except queue.Empty:
                continue
        thread.join()


class _Abandoned(Exception):
    """The producer failed; drop unfinished work."""


@contextmanager
def write_behind(work: Callable[[Iterator[T]], None], depth: int) -> Iterator[Callable[[T], None]]:
    """Run `work` in a separate thread on the items passed by the caller; at most `depth` items are queued.

    An error in `work` is raised at the next item passed, or on exit. If the caller fails, `work` still receives all queued
    items, then an exception in place of the next one.
    """
    waiting: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    failed: list[BaseException] = []

    def items() -> Iterator[T]:
        while True:
            kind, item = waiting.get()
            if kind == "item":
                yield item
            elif kind == "end":
                return
            else:
                raise _Abandoned

    def run() -> None:
        avoid_spinning()
        handed = items()
        try:
            try:
                work(handed)
            except _Abandoned:
                raise
            except BaseException as error:  # noqa: BLE001 - re-raised in the caller
                failed.append(error)
            for _ in handed:  # drain, so that the caller never blocks
                pass
        except _Abandoned:
            log.debug("dropping the last, unfinished shard")

    def hand_over(item: T) -> None:
        if failed:
            raise failed[0]
        waiting.put(("item", item))

    n_threads = torch.get_num_threads()
    thread = threading.Thread(target=run, name="saev-write", daemon=True)
    thread.start()
    try:
        yield hand_over
    except BaseException:
        waiting.put(("abandon", None))
        thread.join()
        raise
    finally:
        if thread.is_alive():
            waiting.put(("end", None))
            thread.join()
        torch_threads(n_threads)
    if failed:
        raise failed[0]
