"""The number of cores that this process may use, and a map over them that keeps the results in order."""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from .errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 64
"""Items submitted ahead per worker, whose results are kept while an earlier, slower one is awaited."""


def usable_cores(process: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its CPU affinity, limited by the control groups' quota (rounded up); at least 1.

    The host's core count misleads in a container: if more threads run than the quota allows, the kernel suspends all of
    them together.

    Args:
        process: the process's folder in procfs, for tests.
        cgroups: where the control groups are mounted, for tests.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _quota(process, cgroups))))


def workers_or_cores(asked: int | None) -> int:
    """The number of workers asked for, or the cores that this process may use.

    Raises:
        UsageError: fewer than one was asked for.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"workers: expected a number from 1, found {asked}")
    return asked or usable_cores()


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int = AHEAD
) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of ``items``, computed by ``workers`` threads.

    At most ``ahead`` results per worker are held, so neither items nor results pile up. If the iterator is closed or
    ``work`` raises, items that have not started are dropped, and those in progress are waited for.

    Raises:
        UsageError: the system does not allow as many threads.
    """

    def submit(item: Item) -> Future[Result]:
        try:
            return pool.submit(work, item)
        except RuntimeError as err:  # a limit on processes, such as systemd's TasksMax
            raise UsageError(
                f"--workers {workers}: expected to start as many threads, found: {err}; ask for fewer"
            ) from None

    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="score")
    waiting: deque[Future[Result]] = deque()
    try:
        waiting.extend(submit(item) for item in islice(source, min(ahead * workers, sys.maxsize)))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(submit(item) for item in islice(source, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _quota(process: Path, cgroups: Path) -> float:
    """Cores allowed by the tightest control group (version 1 or 2) of this process; infinite without a limit."""
    quota = math.inf
    for line in _text(process / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root in [cgroups] if not controllers else [cgroups / controllers, cgroups / "cpu"]:
            # Parents limit a group too. In a container the path may be the host's, with the actual group at the root.
            group = root / path.lstrip("/")
            for folder in [group, *group.parents]:
                quota = min(quota, _limit(folder))
                if folder == root:
                    break
    return quota


def _limit(group: Path) -> float:
    words = _text(group / "cpu.max").split() or [
        _text(group / "cpu.cfs_quota_us").strip(),
        _text(group / "cpu.cfs_period_us").strip(),
    ]
    try:
        allowed, period = (float(word) for word in words)
    except ValueError:  # "max", or no such file
        return math.inf
    return allowed / period if allowed > 0 and period > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
