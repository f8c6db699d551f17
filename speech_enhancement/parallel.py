"""Running a function on many items on several cores, with bounded memory and results in order."""

import functools
import itertools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np

from speech_enhancement.errors import InputError


def n_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_processes(
    function: Callable, items: Iterable, n_jobs: int | None = None, n_together: int = 1
) -> Iterator:
    """Yield function(item) for each item, in order, computed by n_jobs processes.

    Where n_jobs is None, each core gets one process. Function, items and results travel between the
    processes, n_together items at a time: what is large is read and written by the function itself.

    Where the system has no shared memory (no /dev/shm), this process does the work alone, and says
    so.

    Working set: the results of two times n_together items for each process.

    Raises:
      InputError: the system ended one of the processes.
    """
    n_jobs = n_jobs or n_cores()
    _keep_freed_memory()
    if n_jobs == 1:
        yield from map(function, items)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    # Copies of this process start at once, but must not be made beside the threads of a
    # deep-learning library.
    can_fork = sys.platform == "linux" and "keras" not in sys.modules
    context = multiprocessing.get_context("fork" if can_fork else "spawn")

    try:
        pool = ProcessPoolExecutor(n_jobs, context, initializer=_start_worker)
    except (OSError, NotImplementedError) as error:  # no semaphores
        found = f"found no shared memory for {n_jobs} processes ({error})"
        print(f"{found}: one process does the work, as with --n_jobs 1", file=sys.stderr)
        yield from map(function, items)
        return
    try:
        with pool:
            together = in_order_ahead(
                pool, functools.partial(_each, function), _chunks(items, n_together), 2 * n_jobs
            )
            yield from itertools.chain.from_iterable(together)
    except BrokenProcessPool as error:
        raise InputError(
            f"the system ended one of {n_jobs} processes, most likely for lack of memory; "
            f"run this again with fewer --n_jobs"
        ) from error


def _keep_freed_memory() -> None:
    """Let this process use freed memory again, instead of giving it back to the system.

    The system clears each page that it gives, which took as long as all arithmetic. GNU's C library
    keeps up to two times the largest block that was freed, here 32 MiB; others do as they always
    do.
    """
    np.empty(2**24, np.uint8)  # freed at once; no page of it is touched


def _start_worker() -> None:
    """Keep freed memory, and end when the process that started this one was killed."""
    import multiprocessing

    _keep_freed_memory()

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _each(function: Callable, items: list) -> list:
    return [function(item) for item in items]


def _chunks(items: Iterable, n_together: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, n_together)):
        yield chunk


def in_threads(function: Callable, items: Iterable, n_jobs: int | None = None) -> Iterator:
    """Yield function(item) for each item, in order, computed by n_jobs threads.

    Where n_jobs is None, each core gets one thread. For work that lets other threads go on, such as
    that of other programs.

    Working set: the results of two items for each thread.
    """
    n_jobs = n_jobs or n_cores()
    with ThreadPoolExecutor(n_jobs) as pool:
        yield from in_order_ahead(pool, function, items, 2 * n_jobs)


def in_order_ahead(pool: Executor, function: Callable, items: Iterable, n_ahead: int) -> Iterator:
    """Yield function(item) for each item in order; the pool computes up to n_ahead in advance."""
    items, waiting = iter(items), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > n_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def ahead(items: Iterable, n_ahead: int = 2) -> Iterator:
    """Yield the items of an iterator that runs ahead in a thread of its own.

    The thread makes up to n_ahead items in advance.
    """
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(n_ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, iterator, end))
            yield item
