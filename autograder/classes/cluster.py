"""One function on many inputs, in worker processes: Dask, on this machine or on a cluster.

Only bytes, texts and dicts of them travel; answers are texts.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loralab.errors import CourseError

Call = Callable[[Mapping[str, Any]], str]

SECONDS_TO_CONNECT = 30
# A worker that dies takes its task with it: tried once more elsewhere, then given up.
RETRIES_AFTER_A_DEATH = 1
# So much is kept ready for each worker of a cluster, where the way to the workers is long.
AHEAD = 2
LOGGER_LEVEL = 50  # logging.CRITICAL

LOCAL = {
    "distributed.scheduler.allowed-failures": RETRIES_AFTER_A_DEATH,
    # Pages and files of a dashboard that nobody asked for.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.admin.large-graph-warning-threshold": "1 GiB",
}


@dataclass(frozen=True)
class Answer:
    """What came of one input: the call's text, or why there is none."""

    index: int
    text: str | None
    failure: str = ""


def cores() -> int:
    """How many worker processes this machine is for: its cores, less what a container withholds."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


def answers(
    call: Call, inputs: Iterable[Mapping[str, Any]], *, workers: int, scheduler: str | None = None
) -> Iterator[Answer]:
    """`call(input)` for every input, as they come back; inputs are made when a worker is free.

    `scheduler`: the address of a Dask scheduler; None starts `workers` processes here, which end
    with this generator: close it. An input whose call raises, or ends its worker, is an Answer
    with `failure`. Raises CourseError where no scheduler answers.
    """
    from distributed import as_completed

    with _client(workers, scheduler) as client:
        waiting = iter(enumerate(inputs))
        running = as_completed(loop=client.loop)
        index = {}

        def fill(room: int) -> None:
            for number, given in itertools.islice(waiting, room):
                future = client.submit(call, given, pure=False)
                index[future.key] = number
                running.add(future)

        def room() -> int:
            if scheduler is None:
                # One each: where a worker dies, it is known of what.
                return workers - len(index)
            return AHEAD * max(4, sum(client.nthreads().values())) - len(index)

        fill(room())
        for future in running:
            number = index.pop(future.key)
            yield _answer(number, future)
            future.release()
            fill(room())


def _answer(number: int, future: Any) -> Answer:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        # Waits once more where the worker died that held a finished task's answer.
        return Answer(number, future.result())
    except FutureCancelledError:
        return Answer(number, None, "its task was cancelled: the scheduler went away?")
    except KilledWorker:
        why = "the worker process died each time it was tried: out of memory?"
        return Answer(number, None, why)
    except Exception as error:
        return Answer(number, None, f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def _client(workers: int, scheduler: str | None) -> Iterator[Any]:
    import dask
    from distributed import Client
    from distributed.comm.addressing import get_address_host_port

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"(dask|distributed)\b")
        if scheduler is not None:
            try:
                get_address_host_port(scheduler)  # a client without one holds up the end
                client = Client(scheduler, timeout=SECONDS_TO_CONNECT, set_as_default=False)
            except (OSError, ValueError) as error:
                raise CourseError(f"No Dask scheduler answers at {scheduler}: {error}",
                                  "start one (dask scheduler), and workers (dask worker)") from None
            stack.enter_context(client)
            yield client
            return
        # Not in the class folder, nor where the terminal happens to be. A short name: sockets lie
        # in it, whose paths may have 107 bytes.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(
            prefix="loralab-", ignore_cleanup_errors=True))
        stack.enter_context(dask.config.set(LOCAL))
        client = stack.enter_context(_local(workers, scratch))
        client.register_plugin(_quiet_on_interrupt())
        yield client


@contextlib.contextmanager
def _local(workers: int, scratch: str) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, host="127.0.0.1",
        # A port on loopback is open to everyone with an account on this machine, and what reaches
        # it runs as the instructor: TLS with a key that lives as long as the cluster.
        security=True,
        dashboard_address="127.0.0.1:0", worker_dashboard_address=None,
        # The sandbox limits what a student's code takes.
        memory_limit=0,
        # Whatever a worker leaves behind when it is ended goes with the folder.
        local_directory=scratch, env={"TMPDIR": scratch}, silence_logs=LOGGER_LEVEL,
    )
    try:
        with Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        cluster.close()


def _quiet_on_interrupt() -> Any:
    """Ctrl+C reaches every process of a terminal; only the one that asked for work ends it."""
    from distributed import WorkerPlugin

    class QuietOnInterrupt(WorkerPlugin):
        async def setup(self, worker: Any) -> None:
            # A handler, not SIG_IGN, which the sandbox's processes would inherit.
            signal.signal(signal.SIGINT, lambda number, frame: None)

    return QuietOnInterrupt()
