"""Sweeps: which studies a file with lists stands for, what runs again, and what does not."""

from __future__ import annotations

import contextlib
import ctypes
import io
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image

import neurodl as ndl
from neurodl.cli import main
from neurodl.errors import ConfigError, NeurodlError, StorageError
from neurodl.study import cluster, load_study, load_sweep
from neurodl.study import sweep as sweeping
from neurodl.study.results import Place
from neurodl.study.sweep import INDEX

SWEEP = """
[study]
name = "both"
[stimuli]
path = "images"
[responses]
path = "responses.npz"
dims = ["stimulus", "unit"]
[[features]]
backbone = ["pixels", "gabor"]
[[features]]
label = "control"
backbone = "torchvision:resnet18"
pretrained = false
layers = ["maxpool"]
pool = "avg"
[cv]
folds = 2
[run]
device = "cpu"
cache = "cache"
"""
TASKS = ["pixels", "gabor"]
# What a run imports: processes that have it from the start are quick to kill at anything else.
PRELOADED = [
    "neurodl.study",
    "dask.array",
    "distributed",
    "matplotlib.pyplot",
    "timm",
    "torchvision",
]
MAIN = "import sys; from neurodl.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def file(tmp_path):
    """A study file whose backbone is a list, with its stimuli and responses."""
    return write_study(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the same study in one go, beside the cache of its features."""
    return ndl.run_sweep(write_study(tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture
def whole(undisturbed):
    """The scores that any run of the study must come to."""
    return scores(undisturbed)


def write_study(folder):
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    names = [f"image{number:02d}.png" for number in range(24)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), "uint8")).save(folder / "images" / name)
    write_responses(folder, rng.standard_normal((24, 3)), names)
    (folder / "both.toml").write_text(SWEEP)
    return folder / "both.toml"


def write_responses(folder, values, names):
    np.savez(folder / "responses.npz", responses=values, ids=np.array(names))


def records(folder):
    return {name: json.loads((folder / name / "provenance.json").read_text()) for name in TASKS}


def scores(folder):
    return {name: ndl.load(folder / name / "scores.nc") for name in TASKS}


def states(path, out=None):
    return ndl.plan(path, out).set_index("task")["state"].to_dict()


def test_every_combination_is_a_study(file):
    text = SWEEP.replace('path = "responses.npz"\ndims = ["stimulus", "unit"]\n', "")
    text = text.replace(
        '[stimuli]\npath = "images"\n[responses]\n', "[dataset]\nname = 'simulated'\n"
    )
    file.write_text(text.replace("'simulated'", "'simulated'\nsubject = [1, 'zwei']"))
    tasks = load_sweep(file)
    names = ["1_pixels", "1_gabor", "zwei_pixels", "zwei_gabor"]
    assert [task.name for task in tasks] == names
    assert tasks[3].study.study.title == "both, zwei, gabor"
    assert tasks[3].study.features[0].backbone == "gabor"
    assert tasks[3].study.dataset.subject == "zwei"
    assert {task.study.features[1].label for task in tasks} == {"control"}
    file.write_text(text.replace('backbone = ["pixels", "gabor"]', 'backbone = "pixels"'))
    (one,) = load_sweep(file)
    assert (one.name, one.study) == ("", load_study(file))


def test_a_list_of_one_is_a_sweep(file, run):
    file.write_text(SWEEP.replace('["pixels", "gabor"]', '["pixels"]'))
    status, printed, _ = run("run", str(file), "--check")
    assert (status, printed) == (0, f"{file} is fine: a sweep of 1 (pixels).\n")
    status, printed, _ = run("run", str(file))
    assert status == 0
    assert printed.endswith("index.html\n")
    assert states(file) == {"pixels": "done"}


def test_what_is_wrong_is_said_once(file, run):
    file.write_text(SWEEP.replace("folds = 2", "folds = true"))
    status, printed, said = run("run", str(file))
    assert (status, printed) == (1, "")
    assert said.count("[cv] folds") == 1  # of both studies
    file.write_text(SWEEP.replace('"gabor"]', '"gabro", "resnet"]'))
    said = run("run", str(file))[2]
    assert "'gabro'" in said and "'resnet'" in said
    for listed, expected in (("[]", "empty list"), ('["pixels", "pixels"]', "listed twice")):
        file.write_text(SWEEP.replace('["pixels", "gabor"]', listed))
        with pytest.raises(ConfigError, match=expected):
            load_sweep(file)
    file.write_text(SWEEP)
    with pytest.raises(ConfigError, match="A list makes a sweep of several studies, for run_sweep"):
        ndl.run_study(file)
    assert not (file.parent / "results").exists()


@pytest.mark.slow
def test_only_what_changed_runs_again(file, run, monkeypatch):
    assert states(file) == dict.fromkeys(TASKS, "to do")
    would = ndl.plan(file, estimate=True).set_index("task")
    assert would.loc[TASKS, "stimuli"].tolist() == [48, 48]
    assert would.loc[TASKS, "cached"].tolist() == [0, 24]  # the control counts for the first
    assert not list(file.parent.glob("cache/features/*/c"))
    status, printed, _ = run("run", str(file))
    folder = file.parent / "results" / "both"
    chunks = (file.parent / "cache" / "features").glob("*/c/*/0")
    written = sum(chunk.stat().st_size for chunk in chunks) / 1e6
    assert would["disk_mb"].sum() == pytest.approx(written, rel=1e-3)
    assert status == 0
    assert printed.splitlines()[-1] == f"Report: {folder / 'index.html'}"
    page = (folder / "index.html").read_text()
    assert all(f"both ({name})" in page for name in TASKS)
    first = records(folder)

    assert ndl.run_sweep(file) == folder  # nothing to do
    assert records(folder) == first
    assert states(file) == dict.fromkeys(TASKS, "done")

    file.write_text(SWEEP.replace('"gabor"', '"gabor", "pixels_of_tomorrow"'))
    with pytest.raises(ConfigError, match="pixels_of_tomorrow"):
        ndl.run_sweep(file)

    file.write_text(SWEEP.replace('name = "both"', 'name = "both"\ntitle = "Renamed"'))
    assert states(file, folder) == dict.fromkeys(TASKS, "done")  # a title decides no number

    (folder / "gabor" / "provenance.json").unlink()
    assert states(file, folder) == {"pixels": "done", "gabor": "unfinished"}
    printed = run("plan", str(file), "--out", str(folder))[1]
    assert "The rest takes about 0 min in one process" in printed.splitlines()[-1]
    printed = run("plan", str(file), "--out", str(folder), "--estimate")[1].splitlines()
    assert printed[1].split()[:2] == ["pixels", "done"] and printed[1].split()[4:] == ["-"] * 5
    assert printed[2].split()[-5:-1] == ["48", "48", "0", "0.0"]
    assert printed[-1].startswith("Extraction takes about 0.0 min here and 0.00 GB of disk")
    ndl.run_sweep(file, folder)
    assert records(folder)["pixels"] == first["pixels"]
    assert records(folder)["gabor"]["key"] == first["gabor"]["key"]

    with np.load(file.parent / "responses.npz") as kept:
        write_responses(file.parent, kept["responses"] + 1, kept["ids"])
    assert states(file, folder) == dict.fromkeys(TASKS, "out of date")
    status, printed, _ = run("plan", str(file), "--out", str(folder))
    assert status == 0
    assert printed.splitlines()[-1] == "2 out of date"


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others(file, monkeypatch):
    real = sweeping.run_study

    def broken(study, out):
        if study.features[0].backbone == "pixels":
            raise OSError(28, "No space left on device")
        return real(study, out)

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "run_study", broken)
        with pytest.raises(NeurodlError, match=r"1 of 2 studies failed.*\n  pixels: .*No space"):
            ndl.run_sweep(file)
    assert states(file) == {"pixels": "to do", "gabor": "done"}
    folder = ndl.run_sweep(file)
    assert states(file) == dict.fromkeys(TASKS, "done")
    assert "both (pixels)" in (folder / "index.html").read_text()


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_to_the_same_results(file, whole):
    """Killed 20 times at random moments, or Ctrl-C twice, while the clock jumps.

    What is whole by then is removed, so that there is something to kill. Two processes finish it.
    """
    out = file.parent / "killed"
    rng = np.random.default_rng(0)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    n_killed = 0
    while n_killed < 20:
        process = forks.Process(target=run_while_the_clock_jumps, args=(file, out, n_killed))
        process.start()
        process.join(rng.uniform(0, 3))
        if process.is_alive():
            n_killed += 1
            if n_killed % 4 == 0:
                with contextlib.suppress(ProcessLookupError):
                    for _ in range(2):
                        os.kill(process.pid, signal.SIGINT)
                        process.join(0.02)
                process.join(20)
                assert not process.is_alive()
            process.kill()
            process.join()
        done = [name for name in TASKS if (out / name / "provenance.json").exists()]
        for name in done:  # what looks whole is whole
            assert ndl.load(out / name / "scores.nc")["r"].identical(whole[name]["r"])
        if done == TASKS:
            assert list((file.parent / "cache" / "scores").glob("*.scores"))
            shutil.rmtree(out)
            shutil.rmtree(file.parent / "cache")
    together = [started("run", file, "--out", out) for _ in range(2)]
    for process in together:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 0, said
    assert states(file, out) == dict.fromkeys(TASKS, "done")
    same_scores(out, whole)


def run_while_the_clock_jumps(file, out, number):
    """Run a sweep, by a clock that is days off and goes to and fro."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    now = time.time
    jumps = itertools.cycle([0, -2e5, 3e5])
    time.time = lambda: now() + next(jumps) * number
    main(["run", str(file), "--out", str(out)])


def ran_under(limit, *command):
    """The status of the command line in a process with a limit, and what it says."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    received, sent = forks.Pipe(duplex=False)
    process = forks.Process(target=run_under, args=(limit, sent, [*map(str, command)]))
    process.start()
    process.join()
    return received.recv()


def run_under(limit, sent, command):
    name, value = limit
    LIMITS[name](value)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        status = main(command)
    sent.send((status, said.getvalue()))


def no_file_beyond(n_bytes):
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (n_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    )


def only_as_modes_say(_):
    """Give up root's right to write whatever its mode says."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Capabilities(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    libc, header = ctypes.CDLL(None), Header(0x20080522, 0)
    own = (Capabilities * 2)()
    assert libc.capget(ctypes.byref(header), own) == 0
    own[0].effective &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    own[0].permitted &= ~0b110
    assert libc.capset(ctypes.byref(header), own) == 0


LIMITS = {"room": no_file_beyond, "modes": only_as_modes_say}


def same_scores(folder, whole):
    for name, found in scores(folder).items():
        assert all(found[one].identical(whole[name][one]) for one in found.data_vars), name


@pytest.mark.slow
def test_a_disk_without_room_leaves_nothing_that_looks_whole(file, undisturbed, whole):
    """A quota of so many bytes for each file stands in for a disk that fills up."""
    written, cached = (
        sorted(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for folder in (undisturbed / "pixels", undisturbed.parents[1] / "cache" / "features")
    )
    shutil.copytree(undisturbed.parents[1] / "cache", file.parent / "cache")
    out = file.parent / "full"
    # where features are cached, it comes as far as to the results
    for cache, size in (("new", written[0]), ("new", cached[-1]), ("cache", written[-1])):
        file.write_text(SWEEP.replace('"cache"', f'"{cache}"'))
        status, said = ran_under(("room", size * 9 // 10), "run", file, "--out", out)
        assert status == 1
        assert "Cannot write" in said and "make room" in said and "Traceback" not in said
        for name in TASKS:  # what looks whole is whole
            if (out / name / "provenance.json").exists():
                assert ndl.load(out / name / "scores.nc")["r"].identical(whole[name]["r"])
    ndl.run_sweep(file, out)
    same_scores(out, whole)


@pytest.mark.slow
def test_a_cache_that_is_read_only_serves_what_it_has(file, undisturbed, whole):
    shutil.copytree(undisturbed.parents[1] / "cache", file.parent / "cache")
    folders = [file.parent / "cache", *(file.parent / "cache").rglob("*")]
    for path in folders:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        status, said = ran_under(("modes", None), "run", file, "--out", file.parent / "again")
        assert status == 0, said
        same_scores(file.parent / "again", whole)
        file.write_text(SWEEP.replace('"maxpool"', '"avgpool"'))
        status, said = ran_under(("modes", None), "run", file, "--out", file.parent / "more")
        assert status == 1
        assert "Cannot write features" in said and "set NEURODL_CACHE to another disk" in said
        assert set(states(file, file.parent / "more").values()) == {"unfinished"}
    finally:
        for path in folders:
            path.chmod(0o755 if path.is_dir() else 0o644)
    ndl.run_sweep(file, file.parent / "more")
    assert states(file, file.parent / "more") == dict.fromkeys(TASKS, "done")


def studies_of(process):
    """The processes in which the workers of a process run studies."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if cluster.CHILD in one.cmdline():
                    found.append(one)
    return found


def wait_for_study(process, known=()):
    """The first process of a study that is none of the known ones."""
    for _ in range(1200):
        new = [one for one in studies_of(process) if one not in known]
        if new:
            return new[0]
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError("no study was begun")


def started(*command):
    """Run the command line in a process of its own, quietly."""
    environment = os.environ | {"PYTHONPATH": str(Path(ndl.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        # what runs in the background of a shell ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_workers_and_studies_that_are_killed_are_replaced(file, whole, monkeypatch, tmp_path):
    """On two workers, results in a store: a study is killed, then a worker."""
    monkeypatch.setenv("NEURODL_CACHE", str(tmp_path / "copies"))
    file.write_text(SWEEP + "[cluster]\nworkers = 2\n")
    bucket = tmp_path / "bucket"
    process = started("run", file, "--out", bucket.as_uri(), "--on", "dask")
    study = wait_for_study(process)
    study.kill()
    other = wait_for_study(process, known=[study])
    time.sleep(3)  # while torch is imported, or features are extracted
    with contextlib.suppress(psutil.NoSuchProcess):
        other.parent().kill()
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    same_scores(bucket, whole)
    assert sorted(path.name for path in bucket.iterdir()) == ["gabor", INDEX, "index.tsv", "pixels"]
    assert "distributed" not in said  # Dask's own messages
    shutil.rmtree(tmp_path / "copies")  # nothing is left to do, on any machine
    copy = ndl.run_sweep(file, bucket.as_uri(), on="tcp://nowhere:1")
    assert (copy / INDEX).read_text() == (bucket / INDEX).read_text()


@pytest.mark.slow
def test_nothing_outlives_a_run_that_is_killed(file):
    """Kill -9, Ctrl-C, and Ctrl-C twice."""
    many = {"killed": [signal.SIGKILL], "once": [signal.SIGINT], "twice": [signal.SIGINT] * 2}
    running = [started("run", file, "--on", "dask", "--out", file.parent / name) for name in many]
    families = []
    for process, stops in zip(running, many.values(), strict=True):
        wait_for_study(process)
        families.append(psutil.Process(process.pid).children(recursive=True))
        for stop in stops:
            process.send_signal(stop)
            time.sleep(0.1)
    for process, stops, family in zip(running, many.values(), families, strict=True):
        said = process.communicate(timeout=60)[0]
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive, alive
        assert process.returncode == (130 if signal.SIGINT in stops else -9), said
        assert ("Interrupted" in said) == (signal.SIGINT in stops)


@pytest.mark.slow
def test_a_scheduler_that_is_killed_is_an_error(file):
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(server("scheduler", "--port", "0", "--no-dashboard"))
        address = next(line.split()[-1] for line in scheduler.stdout if "Scheduler at" in line)
        worker = stack.enter_context(server("worker", address, "--no-dashboard", "--no-nanny"))
        process = started("run", file, "--on", address)
        wait_for_study(worker)
        scheduler.kill()
        said = process.communicate(timeout=60)[0]
        assert (process.returncode, "is gone" in said) == (1, True), said
    for _ in range(600):  # a worker without its scheduler ends, and its study with it
        if not studies_of(worker):
            break
        time.sleep(0.05)
    assert set(states(file).values()) <= {"to do", "unfinished"}


@contextlib.contextmanager
def server(*command):
    """A part of Dask in a process of its own, until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_study_without_memory_is_tried_with_half_of_it(monkeypatch, tmp_path):
    task = sweeping.Task("one", None)
    monkeypatch.setattr(cluster, "available_memory", lambda _: 1000)
    monkeypatch.delenv("NEURODL_MEMORY", raising=False)
    killed = "import os; os.kill(os.getpid(), 9)"
    told = f"import os; m = os.environ.get('NEURODL_MEMORY'); print(m) if m else {killed[11:]}"
    monkeypatch.setattr(cluster, "CHILD", told)
    place = Place.of(tmp_path)
    assert cluster.run_apart(task, place) == "500"
    monkeypatch.setattr(cluster, "CHILD", killed)
    assert "ended twice from outside" in cluster.run_apart(task, place)
    assert not cluster._children


@pytest.mark.slow
def test_one_process_runs_the_studies_of_a_worker(file):
    tasks = load_sweep(file)
    broken = tasks[0].study.responses.model_copy(update={"path": str(file)})
    wrong = sweeping.Task("wrong", tasks[0].study.model_copy(update={"responses": broken}))
    try:
        said = [cluster.run_apart(task, Place.of(file.parent)) for task in (wrong, tasks[1])]
        assert len(cluster._children) == 1
    finally:
        for child in cluster._children:
            with child:
                child.kill()
        cluster._children.clear()
    assert "both.toml" in said[0] and said[1] == ""
    assert (file.parent / "gabor" / "provenance.json").is_file()


def test_what_workers_fail_with_is_said(file, run, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 1)
    status, _, said = run("run", str(file), "--on", "tcp://127.0.0.1:1")
    assert (status, "No Dask scheduler answers at 'tcp://127.0.0.1:1'" in said) == (1, True)
    status, _, said = run("run", str(file), "--on", "dask", "--dry-run")
    assert (status, "say kind = 'slurm'" in said) == (1, True)
    file.write_text(SWEEP + '[cluster]\nkind = "slurm"\npartition = "gpu\\n#SBATCH --wrap=x"\n')
    assert "[cluster] partition" in run("run", str(file), "--check")[2]
    slurm = SWEEP + '[cluster]\nkind = "slurm"\n'
    file.write_text(slurm)
    monkeypatch.setattr(cluster.shutil, "which", lambda _: None)
    assert "SLURM's sbatch is not here" in run("run", str(file), "--on", "dask")[2]
    file.write_text(slurm.replace('name = "both"', 'name = "both"\noutput = "x\\nrm y"'))
    said = run("run", str(file), "--on", "dask", "--dry-run")[2]
    assert "cannot be named in a script" in said


def test_the_script_for_slurm(file, run):
    file.write_text(
        SWEEP + '[cluster]\nkind = "slurm"\npartition = "gpu"\naccount = "lab"\ncores = 4\n'
        'memory = "24GiB"\ngpus = 2\nwalltime = "1-00:00:00"\n'
    )
    status, printed, _ = run("run", str(file), "--on", "dask", "--dry-run")
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    wanted = ["-J neurodl", "-p gpu", "-A lab", "--cpus-per-task=4", "--mem=24G", "-t 1-00:00:00"]
    assert {f"#SBATCH {one}" for one in [*wanted, "--gres=gpu:2"]} <= set(lines)
    assert {"export OMP_NUM_THREADS=4", f"export NEURODL_MEMORY={24 * 1024**3}"} <= set(lines)
    assert lines[-1].startswith(f"{sys.executable} -m distributed.cli.dask_worker tcp://")
    assert lines[-1].count("--resources GPU=2") == 1
    assert not (file.parent / "results").exists()


def test_a_plan_says_what_would_fail(file, run):
    (file.parent / "responses.npz").write_bytes(b"no arrays")
    status, printed, said = run("plan", str(file), "--estimate")
    assert (status, printed.splitlines()[-2]) == (1, "2 to do")
    assert said.count("pixels would fail: ") == said.count("gabor would fail: ") == 1
    assert said.count("responses.npz") == 2
    assert "problem" not in ndl.plan(file)


def test_workers_change_no_key(file):
    before = [sweeping.study_key(task.study) for task in load_sweep(file)]
    file.write_text(SWEEP + "[cluster]\nworkers = 3\n")
    assert [sweeping.study_key(task.study) for task in load_sweep(file)] == before


def test_two_runs_do_not_write_to_one_folder(file):
    study = load_sweep(file)[0].study
    folder = file.parent / "one"
    held = FileLock(file.parent / ".one.lock")  # as another process holds it
    with held, pytest.raises(StorageError, match="Another run is writing to"):
        ndl.run_study(study, folder)
    assert not folder.exists()
