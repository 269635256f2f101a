"""The same work on Dask: a task an observation, ids in, files and a small account of them out, no arrays between.

`gpucal.runs.dask_tasks` is what the workers run. They see the dataset and the results folder under the same names as
the client, and write there themselves: what they have finished does not die with them.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gpucal.errors import ClusterError, ConfigError, MissingExtra
from gpucal.inputs.dataset import Dataset, Observation
from gpucal.pipeline.calibrate import checked_threads
from gpucal.pipeline.machine import usable_cores, visible_gpus
from gpucal.pipeline.memory import DEFAULT_MEMORY
from gpucal.runs.dask_supervisor import ANSWER, Foreman
from gpucal.runs.job import Job
from gpucal.runs.summary import Summary

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["connected", "spread"]


@contextmanager
def connected(
    address: str | None, *, workers: int | None, memory: int | None, backend: str | None = None
) -> Iterator[Client]:
    """Reach a Dask cluster, or start one here that ends with the block.

    Parameters
    ----------
    address : str, optional
        The scheduler's, such as ``tcp://host:8786``. By default a local cluster: a process for each visible GPU where
        CuPy is installed, else one for each usable core, or so many cores as ``workers`` says, while memory lasts.
    workers, memory : int, optional
        Threads and bytes of each worker, see `gpucal.run`; a local cluster is made to fit.
    backend : str, optional
        As asked for; GPUs count only where it may be CuPy.

    Yields
    ------
    Client
        For `spread`, or `gpucal.run`.

    Raises
    ------
    MissingExtra
        If Dask is not installed.
    ClusterError
        If no scheduler answers.
    ConfigError
        If ``workers`` is no number of threads.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise MissingExtra('dask is not installed; pip install "gpucal[dask]"') from error
    if address is None:
        cluster = _local_cluster(distributed, workers, memory, backend)
        with _quiet(), cluster, distributed.Client(cluster, set_as_default=False) as client:
            client.register_plugin(_apart(), name="gpucal-apart")
            yield client
        return
    try:
        # Asked before, as a client without an answer cannot be closed; in a thread, as a notebook's has a loop already.
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
    """Keep Dask from logging, with tracebacks, that a scheduler or a worker is lost: here that is one line or none."""
    # The client has a level of its own; what sends, at INFO with a traceback, and what is sent over have distributed's.
    # A message to a scheduler that is gone already fails in Tornado's loop.
    names = ("distributed", "distributed.client", "tornado.application")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def spread(
    client: Client,
    job: Job,
    dataset: Dataset,
    observations: Iterable[Observation],
    summary: Summary,
    *,
    threads: int | None = None,
    until: float | None,
    stop: Callable[[], bool] = lambda: False,
    tick: Callable[[int], None],
) -> None:
    """Calibrate what is missing on a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster; not an asynchronous one.
    job : Job
        What is made of every observation. Its memory is each worker's.
    dataset : Dataset
        Which every worker sees under the same name, as it does the results folder.
    observations : iterable of Observation
        Of which both detectors.
    summary : Summary
        Counts items as observations end, so that it is right after an interrupt, too.
    threads : int, optional
        Of each worker; by default what Dask gives it, as the cores here say nothing of those there.
    until : float, optional
        `time.monotonic` at which everything must have ended.
    stop : callable
        Asked about once a second; once it says True nothing more is begun, and what is in hand is waited for a while.
    tick : callable
        Called as often, with the number of observations that have ended.

    Raises
    ------
    ConfigError
        If the client is none for this.
    ClusterError
        If the cluster is lost or without workers for long, or its workers see other files or have another gpucal.
    GpucalError
        What ended the work of a worker, as it would have ended a local run.
    """
    from distributed import Client

    if not isinstance(client, Client) or client.asynchronous:
        kind = "an asynchronous client" if isinstance(client, Client) else f"a {type(client).__name__}"
        raise ConfigError(f"client: {kind} cannot be used; give a distributed.Client made outside of coroutines")
    if client.status in ("closing", "closed"):
        raise ClusterError("client: it is closed; give one that is connected")
    Foreman(client, job, dataset, deque(observations), summary, threads, until).drive(stop, tick)


async def _ask(distributed: ModuleType, address: str) -> None:
    arguments = distributed.Security().get_connection_args("client")
    await (await distributed.comm.connect(address, timeout=ANSWER, **arguments)).close()


def _local_cluster(
    distributed: ModuleType,
    workers: int | None,
    memory: int | None,
    backend: str | None,
) -> AbstractContextManager[Any]:
    threads = 1 if workers is None else checked_threads(workers)
    wanted = backend or os.environ.get("GPUCAL_BACKEND") or "auto"
    able = wanted in ("auto", "cupy") and importlib.util.find_spec("cupy") is not None
    gpus = visible_gpus() if able else []
    if len(gpus) > 1 and importlib.util.find_spec("dask_cuda"):
        cuda: AbstractContextManager[Any] = importlib.import_module("dask_cuda").LocalCUDACluster(
            CUDA_VISIBLE_DEVICES=",".join(gpus), threads_per_worker=1, memory_limit=0, dashboard_address=":0"
        )
        return cuda
    # An observation is opened and written by one thread while others of its process wait: more processes do more.
    most = distributed.system.MEMORY_LIMIT // (memory or DEFAULT_MEMORY)
    count = max(1, min(usable_cores() // threads, most))
    environments = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}] * count
    # Dask's own limit of memory would kill; each worker keeps below gpucal's by itself.
    options = {"nthreads": 1, "memory_limit": 0, "host": "127.0.0.1", "silence_logs": logging.WARNING}
    scheduler = {"host": "127.0.0.1", "port": 0, "dashboard_address": ":0"}
    local: AbstractContextManager[Any] = distributed.SpecCluster(
        scheduler={"cls": distributed.Scheduler, "options": scheduler},
        workers={
            n: {"cls": distributed.Nanny, "options": {**options, "env": environment}}
            for n, environment in enumerate(environments)
        },
        silence_logs=logging.WARNING,
    )
    return local


def _apart() -> object:
    """Make a plugin that keeps a terminal's interrupt from workers: this process gets it, and ends them in order.

    Their last heartbeats, when the scheduler has let them go, are nobody's business either.
    """
    from distributed import WorkerPlugin

    class Apart(WorkerPlugin):
        def setup(self, worker: object) -> None:
            os.setpgid(0, 0)  # not by ignoring it, which a library may undo
            logging.getLogger("distributed.worker").addFilter(lambda record: record.funcName != "heartbeat")

    return Apart()
