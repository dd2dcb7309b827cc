"""Sweeps on many workers: Dask on this machine, on a scheduler that runs, or through SLURM.

Only paths and settings travel. Each study reads its files and writes its results by itself, so
that workers need the same folders, and neurodl. A worker runs each study in a process of its own:
it stays there to answer the scheduler, and lives on where a study is killed for lack of memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import torch

from neurodl.errors import NeurodlError
from neurodl.runtime import MEMORY, available_memory, progress
from neurodl.study.results import Place
from neurodl.study.sections import ClusterSection

if TYPE_CHECKING:
    from neurodl.study.sweep import Task

logger = logging.getLogger(__name__)

DASK, LOGS = "dask", ".logs"
CHILD = "from neurodl.study.cluster import child_main; child_main()"
NO_PAGES = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}  # of a scheduler
PATIENCE = 30  # for a scheduler to answer [s]
GONE = "Studies that were finished are kept: run it again to go on."


def run_on(
    where: str, tasks: Sequence[Task], place: Place, section: ClusterSection
) -> dict[str, str]:
    """Run studies on workers, and return what went wrong, by the name of the task.

    A study whose worker is killed starts again on another one, up to three times; one that is
    killed itself starts once more, see `run_apart`.

    Parameters
    ----------
    where : str
        ``"dask"``: workers of its own, as `section` says; or the address of a scheduler, such as
        ``"tcp://192.168.0.7:8786"``.
    tasks : sequence of Task
    place : Place
        Of the sweep; workers must see it, and all files of the studies, by the same names.
    section : ClusterSection

    Raises
    ------
    NeurodlError
        Dask is not installed, no scheduler answers, or it is gone before all are done.
    """
    distributed = _dask()
    failed: dict[str, str] = {}
    needs = {"GPU": section.gpus} if section.gpus else None
    with _client(where, section, place.folder, len(tasks)) as client:
        names = {
            client.submit(run_apart, task, place, pure=False, resources=needs): task.name
            for task in tasks
        }
        done = distributed.as_completed(names)
        for future in progress(done, label="studies", total=len(tasks)):
            name = names[future]
            if future.status in ("cancelled", "lost"):
                raise NeurodlError(f"The scheduler of {where} is gone. {GONE}")
            error = future.exception()
            said = future.result() if error is None else f"{type(error).__name__}: {error}"
            if said:
                failed[name] = said
            logger.info("%s: %s", name, said or "done")
    return failed


def run_apart(task: Task, place: Place) -> str:
    """Run one study in the process that this worker has for studies, and return what went wrong.

    If it is killed, as it is when memory runs out, the study starts once more, with half of the
    memory that is free to plan with. The process ends with the worker.
    """
    with _ONE_AT_A_TIME:
        for share in (1.0, 0.5):
            told = _told_by_child(task, place, share)
            if told:
                return str(json.loads(told))
            logger.warning("%s: its process was ended from outside", task.name)
    return (
        "its process was ended twice from outside, most likely for lack of memory: take fewer "
        "workers, or give each more ([cluster] workers, memory)"
    )


_ONE_AT_A_TIME = threading.Lock()
_children: list[subprocess.Popen[bytes]] = []  # that wait for studies: one, or none


def _told_by_child(task: Task, place: Place, share: float) -> bytes:
    """Return the line that a child says when a study is over; nothing if it was killed."""
    if share < 1 or not _children:
        free = available_memory(torch.device("cpu"))
        environment = os.environ | ({MEMORY: str(int(free * share))} if share < 1 else {})
        # Dask makes workers give back all memory at once, to ask for it again in the next layer.
        environment.pop("MALLOC_TRIM_THRESHOLD_", None)
        command = [sys.executable, "-c", CHILD]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        child = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
    else:
        child = _children.pop()
    told = b""
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(pickle.dumps((task, place)))
        child.stdin.flush()
        told = child.stdout.readline()
    if told and share == 1:
        _children.append(child)
    else:
        with child:
            child.kill()
    return bytes(told)


def child_main() -> None:
    """Run the studies that come over standard input, and tell of each what went wrong, in a line.

    When it closes, the worker is gone, and this process ends, whatever it is doing.
    """
    told, sys.stdout = sys.stdout, sys.stderr
    coming: SimpleQueue[tuple[Task, Place]] = SimpleQueue()

    def listen() -> None:
        with contextlib.suppress(EOFError):
            while True:
                coming.put(pickle.load(sys.stdin.buffer))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    from neurodl.study.sweep import run_task

    while True:
        try:
            said = run_task(*coming.get())
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        print(json.dumps(said), file=told, flush=True)


def job_script(section: ClusterSection, folder: Path) -> str:
    """Return the script that SLURM is given for each worker of a sweep in `folder`.

    Raises
    ------
    NeurodlError
        dask-jobqueue is not installed.
    """
    with _slurm(section, folder, dry=True) as cluster:
        return str(cluster.job_script())


def _dask() -> Any:
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise NeurodlError(
            "Workers need Dask: pip install 'neurodl[cluster]', or run without --on."
        ) from error
    for name in ("distributed", "distributed.client"):  # what matters is said by `run_on`
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed


@contextmanager
def _client(where: str, section: ClusterSection, folder: Path, n_tasks: int) -> Iterator[Any]:
    """Yield a client of a scheduler; one that was started here ends with its workers."""
    distributed = _dask()
    if where != DASK:
        try:
            client = distributed.Client(where, timeout=PATIENCE)
        except (OSError, ValueError, TimeoutError) as error:
            raise NeurodlError(
                f"No Dask scheduler answers at {where!r}. Give --on the address that `dask "
                "scheduler` prints, such as tcp://host:8786, or --on dask for workers here."
            ) from error
        with client:
            yield client
        return
    starting = _slurm(section, folder) if section.kind == "slurm" else _local(section, n_tasks)
    with starting as cluster, distributed.Client(cluster) as client:
        if section.kind == "slurm":
            (folder / LOGS).mkdir(parents=True, exist_ok=True)
            cluster.scale(jobs=min(section.workers or n_tasks, n_tasks))
        yield client


@contextmanager
def _local(section: ClusterSection, n_tasks: int) -> Iterator[Any]:
    """Yield workers on this machine, a process each; with GPUs, each has its own."""
    distributed = _dask()
    n_gpus = _count_gpus() if section.gpus else 0
    if section.gpus and n_gpus < section.gpus:
        raise NeurodlError(
            f"[cluster] gpus is {section.gpus}, but this machine has {n_gpus} CUDA GPUs."
        )
    most = n_gpus // section.gpus if section.gpus else n_tasks
    n_workers = max(1, min(section.workers or (most if section.gpus else 1), most, n_tasks))
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    n_threads = section.cores or max(1, (n_cores or 1) // n_workers)
    workers = {}
    for number in range(n_workers):
        environment = _environment(n_threads, section.memory)
        options: dict[str, Any] = {
            "nthreads": 1,
            "env": environment,
            "memory_limit": 0,
            "silence_logs": logging.CRITICAL,
        }
        if section.gpus:
            own = range(number * section.gpus, (number + 1) * section.gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, own))
            options["resources"] = {"GPU": section.gpus}
        workers[number] = {"cls": distributed.Nanny, "options": options}
    scheduler = {
        "cls": distributed.Scheduler,
        "options": NO_PAGES | {"host": "127.0.0.1", "port": 0},
    }
    logger.info("%d workers with %d threads each", n_workers, n_threads)
    with distributed.SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        yield cluster


def _environment(n_threads: int, memory: str | None) -> dict[str, str]:
    """Return what a worker must know before torch is imported."""
    threads = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(n_threads)
    )
    threads["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "passive")
    return threads | ({MEMORY: str(_n_bytes(memory))} if memory else {})


def _n_bytes(memory: str) -> int:
    """Return the number of bytes that a text such as 32GB stands for."""
    number = memory.rstrip("KMGTiB ")
    unit = memory.removeprefix(number).strip()
    return int(float(number) * (1024 if "i" in unit else 1000) ** (1 + "KMGT".index(unit[0])))


def _count_gpus() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


@contextmanager
def _slurm(section: ClusterSection, folder: Path, *, dry: bool = False) -> Iterator[Any]:
    """Yield a cluster whose workers are SLURM jobs: none yet, and if `dry`, none ever."""
    _dask()
    if not str(folder).isprintable():  # it is part of a script
        raise NeurodlError(f"The folder {str(folder)!r} cannot be named in a script for SLURM.")
    if not dry and shutil.which("sbatch") is None:
        raise NeurodlError(
            "SLURM's sbatch is not here: run it on a login node of the cluster, or say "
            "kind = 'local' in [cluster]."
        )
    try:
        from dask_jobqueue import SLURMCluster
    except ModuleNotFoundError as error:
        raise NeurodlError("SLURM needs dask-jobqueue: pip install 'neurodl[cluster]'.") from error
    cores = section.cores or 1
    wanted = [f'--output="{folder / LOGS}/%j.txt"']
    wanted += [f"--gres=gpu:{section.gpus}"] if section.gpus else []
    resources = ["--resources", f"GPU={section.gpus}"] if section.gpus else []
    exports = [
        f"export {key}={value}" for key, value in _environment(cores, section.memory).items()
    ]
    place = {"host": "127.0.0.1"} if dry else {}
    with SLURMCluster(
        queue=section.partition,
        account=section.account,
        walltime=section.walltime,
        cores=1,  # one study at a time, with all of the job's cores
        job_cpu=cores,
        memory=(section.memory or "16GB").replace(" ", ""),
        job_extra_directives=wanted,
        worker_extra_args=resources,
        job_script_prologue=exports,
        python=sys.executable,
        job_name="neurodl",
        scheduler_options=NO_PAGES | {"port": 0} | place,
    ) as cluster:
        yield cluster
