"""The engines that compute tasks: processes of this machine, or a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from feature_platform.errors import UserError, one_line
from feature_platform.lake.tasks import Computed, Task, compute

_T = TypeVar("_T")
_Result = TypeVar("_Result")
Engine = Literal["duckdb", "ray"]
ADDRESS = "RAY_ADDRESS"
# A task whose worker process or node died is computed again, so many times.
_RETRIES = 5


def run(engine: Engine, tasks: Sequence[Task], workers: int | None = None) -> Iterator[Computed]:
    """Yield the results of tasks, in their order.

    engine: "duckdb" for processes of this machine, "ray" for the cluster of RAY_ADDRESS.
    workers: the tasks at a time; by default one for each core.
    Raises UserError where the engine is not there, or has lost a worker for good.
    """
    if engine == "ray":
        return on_ray(compute, tasks, workers)
    workers = min(len(tasks), workers or len(os.sched_getaffinity(0)))
    # The start of a process takes longer than a small task.
    return map(compute, tasks) if workers <= 1 else _in_processes(tasks, workers)


def _in_processes(tasks: Sequence[Task], workers: int) -> Iterator[Computed]:
    # A forked copy of this process would share the threads' locks of DuckDB and Arrow.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        submitted = (pool.submit(compute, task) for task in tasks)
        for future in _ahead(submitted, 2 * workers):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process of the build was killed, perhaps for want of memory: nothing was"
            " written; try again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def on_ray(
    work: Callable[[_T], _Result], tasks: Iterable[_T], workers: int | None = None
) -> Iterator[_Result]:
    """Yield the results of tasks from the cluster of RAY_ADDRESS, in their order.

    Raises UserError where there is no cluster, and the UserError of a task.
    """
    with _cluster() as ray:
        remote = ray.remote(max_retries=_RETRIES)(work)
        workers = workers or int(ray.cluster_resources().get("CPU", 1))
        submitted = (remote.remote(task) for task in tasks)
        for reference in _ahead(submitted, 2 * workers):
            try:
                yield ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from None
                raise
            except ray.exceptions.RayError as error:
                raise UserError(f"Ray lost a task: {one_line(error)}") from None


@contextmanager
def _cluster() -> Iterator[Any]:
    """Connect to the cluster, unless this process is connected already."""
    try:
        import ray
    except ImportError:
        raise UserError("the engine ray needs Ray: pip install 'feature_platform[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get(ADDRESS)
    if not address:
        raise UserError(f"the engine ray needs a cluster: set {ADDRESS}, as in {ADDRESS}=head:6379")
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"{ADDRESS}={address}: {one_line(error)}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _ahead(items: Iterator[_T], most: int) -> Iterator[_T]:
    """Yield items in their order, and take so many of them ahead."""
    taken: deque[_T] = deque()
    for item in items:
        taken.append(item)
        if len(taken) == most:
            yield taken.popleft()
    yield from taken
