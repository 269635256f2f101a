"""Reaches a Dask cluster, or starts one on this machine."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gpucal.errors import ClusterError, MissingExtra
from gpucal.pipeline.calibrate import checked_threads
from gpucal.pipeline.machine import usable_cores
from gpucal.pipeline.memory import DEFAULT_MEMORY
from gpucal.runs.dask import ANSWER
from gpucal.runs.gpus import usable_gpus

if TYPE_CHECKING:
    from distributed import Client, Worker

__all__ = ["connected"]


@contextmanager
def connected(
    address: str | None, *, workers: int | None, memory: int | None, backend: str | None = None
) -> Iterator[Client]:
    """Reach a Dask cluster, or start one here that ends with the block.

    Parameters
    ----------
    address : str, optional
        The scheduler's, such as ``tcp://host:8786``. By default a local cluster: a process for each visible GPU where
        CuPy is installed. Without, a process for each usable core, or for every ``workers`` cores, while memory lasts.
    workers, memory : int, optional
        Threads and bytes of each worker, see `gpucal.run`. A local cluster has as many workers as fit.
    backend : str, optional
        As asked for. GPUs count only where it may be CuPy.

    Yields
    ------
    Client
        For `gpucal.run`.

    Raises
    ------
    MissingExtra
        If Dask is not installed.
    ClusterError
        If no scheduler answers.
    ConfigError
        If ``workers`` is not a number of threads.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise MissingExtra('dask is not installed; pip install "gpucal[dask]"') from error
    if address is None:
        gpus = usable_gpus(backend)
        cluster = _local_cluster(distributed, workers, memory, gpus)
        with _quiet(), cluster, distributed.Client(cluster, set_as_default=False) as client:
            client.register_plugin(_own_process(gpus), name="gpucal-own-process")
            yield client
        return
    try:
        # A client that gets no answer cannot be closed, so the scheduler is asked first. A notebook's thread has a loop
        # already, so another thread asks.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, _ask(distributed, address)).result()
        client = distributed.Client(address, timeout=ANSWER, set_as_default=False)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ClusterError(
            f"{address}: no Dask scheduler answers; start one with `dask scheduler`, or give no address for a cluster "
            "on this machine"
        ) from error
    with _quiet(), client:
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Dask from logging, with tracebacks, that a scheduler or a worker is lost: gpucal says it in one line."""
    # The client has a level of its own, its connections have distributed's. A message to a scheduler that is gone
    # already fails in Tornado's loop.
    names = ("distributed", "distributed.client", "tornado.application")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


async def _ask(distributed: ModuleType, address: str) -> None:
    arguments = distributed.Security().get_connection_args("client")
    await (await distributed.comm.connect(address, timeout=ANSWER, **arguments)).close()


def _local_cluster(
    distributed: ModuleType, workers: int | None, memory: int | None, gpus: list[str]
) -> AbstractContextManager[Any]:
    threads = 1 if workers is None else checked_threads(workers)
    # Dask's own limit of memory would kill; each worker keeps below gpucal's by itself.
    options = {"threads_per_worker": 1, "memory_limit": 0, "dashboard_address": ":0"}
    cluster: AbstractContextManager[Any]
    if len(gpus) > 1 and importlib.util.find_spec("dask_cuda"):
        cuda = importlib.import_module("dask_cuda")
        cluster = cuda.LocalCUDACluster(CUDA_VISIBLE_DEVICES=",".join(gpus), **options)
        gpus.clear()  # the cluster gives them out
    else:
        # An observation is opened and written by one thread while others of its process wait: more processes do more.
        most = distributed.system.MEMORY_LIMIT // (memory or DEFAULT_MEMORY)
        count = len(gpus) or max(1, min(usable_cores() // threads, most))
        cluster = distributed.LocalCluster(n_workers=count, processes=True, **options)
    return cluster


def _own_process(gpus: list[str]) -> object:
    """Make a plugin for the workers of a local cluster: each gets a GPU of its own, and no interrupt of the terminal.

    This process gets the interrupt, and ends the workers in order. The plugin also hides their last heartbeats, which
    fail when the scheduler has let them go.
    """
    from distributed import WorkerPlugin

    class OwnProcess(WorkerPlugin):
        def setup(self, worker: Worker) -> None:
            if gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(worker.name)]
            os.setpgid(0, 0)  # not by ignoring it, which a library may undo
            logging.getLogger("distributed.worker").addFilter(lambda record: record.funcName != "heartbeat")

    return OwnProcess()
