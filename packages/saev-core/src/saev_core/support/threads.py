"""Work that overlaps: a thread that makes items ahead of their use, and one that works off items behind their making."""

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
    """Let torch use `n` threads for what this thread asks of it; other threads that have begun keep theirs."""
    torch.set_num_threads(n)
    # Torch settles a thread's number at its first use, with what ANY thread set last; this settles it now.
    torch.get_num_threads()


def avoid_spinning() -> None:
    """For as long as the calling thread lives, torch's threads that wait for one another sleep instead of spinning.

    GNU OpenMP's threads spin at the end of every operation for about a millisecond, unless more of them are alive than
    there are cores. Where other threads decode or write, those cores are taken, and spinning costs more than it saves:
    recording on two busy cores took 1.6 times the processor time of a bare loop. A team of two of this thread's own makes
    one thread too many; afterwards this thread does what it has to do alone.
    """
    torch_threads(2)
    torch.zeros(1 << 17).add_(1)  # large enough for torch to use both; from here on the team exists
    torch_threads(1)


def read_ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """The same items, made by a thread of its own, which stays at most `depth` of them ahead.

    An error of `items` is raised where it would have come. Closing this closes `items`, in its thread, and waits for it.
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
        except BaseException as error:  # noqa: BLE001 - raised again by the one who consumes
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
    """The one who handed items over failed; what is unfinished is to be dropped."""


@contextmanager
def write_behind(work: Callable[[Iterator[T]], None], depth: int) -> Iterator[Callable[[T], None]]:
    """`work`, in a thread of its own, on the items that the caller hands over; at most `depth` of them wait.

    What `work` raises is raised at the next hand-over, or on leaving. If the caller fails, `work` still gets all that was
    handed over, and then an exception in place of the next item.
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
            except BaseException as error:  # noqa: BLE001 - raised again by the one who hands over
                failed.append(error)
            for _ in handed:  # let nobody wait for a place
                pass
        except _Abandoned:
            log.debug("the last, unfinished shard is dropped")

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
