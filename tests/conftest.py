"""Fixtures of all tests."""

import fcntl
import functools
import gc
import os
import pathlib
import shutil
import tempfile

import hypothesis
import pytest
import xdist.scheduler

from crs_jax.runtime.host_memory import keep_and_advise

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the hub; before `datasets` is first imported
# Most of the tests' time is LLVM's. What XLA makes of a program is the same, only its machine code is less polished.
# Without the emitters that go through MLIR a PPO iteration compiles in 13 CPU seconds, not 24, and runs as fast.
QUICK = ("backend_optimization_level=0", "llvm_disable_expensive_passes=true", "cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(f"--xla_{flag}" for flag in QUICK))

# New examples are for those who work on the code; a run that is to say whether a commit is good tries the same ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
FAULTY = tuple(f"tests/training/test_{name}.py" for name in ("checks", "halt", "resume"))
"""They share a program that cannot be kept, with calls of the host in it: one worker compiles it for all of them."""
FIRST = ("test_tpu_compile.py", "test_sharding.py", "test_pipeline.py", "tools/sweep/test_sweep.py", "tests/training/")
"""What takes longest: begun first, so that no worker is left alone with it at the end."""


def pytest_configure(config):
    """The same program is compiled once in a run of the tests, by whichever process comes first; as in a run, memory is
    kept, since fresh pages are a fifth of the time of some tests.
    """
    keep_and_advise()
    gc.set_threshold(20_000)  # a quarter of tracing is else spent looking for garbage
    if PROGRAMS not in os.environ:
        os.environ[PROGRAMS] = config.programs = tempfile.mkdtemp(prefix="programs-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((n for n, name in enumerate(FIRST) if name in str(item.path)), len(FIRST)))


def pytest_unconfigure(config):
    if hasattr(config, "programs"):
        shutil.rmtree(config.programs, ignore_errors=True)


class ByFile(xdist.scheduler.LoadFileScheduling):
    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return FAULTY[0] if file in FAULTY else file


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture
def fast_code(monkeypatch):
    """Programs of a test that runs longer than it compiles: machine code polished a little, half the time in all."""
    import jax

    options = {"xla_backend_optimization_level": 1}
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """Folder with the public data (redial, opendialkg, inspired): $CRS_JAX_DATA, else shared/data beside the repo.

    Without it a test is skipped; in CI (env CI set) it fails.
    """
    named = os.environ.get("CRS_JAX_DATA")
    folder = pathlib.Path(named) if named else pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "redial" / "test_data.jsonl").is_file():
        reason = f"no public data in {folder}: set CRS_JAX_DATA to a folder with redial, opendialkg and inspired"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> pathlib.Path:
    """Workdir of one small finished run of all stages, the same for all tests and workers; it is only read.

    Weights & Biases, offline, was told of it.
    """
    import small_run

    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    workdir, done = shared / "finished-run", shared / "finished-run.done"
    with open(shared / "finished-run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first to come makes it
        if not done.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("WANDB_MODE", "offline")
                made = small_run.run(workdir, **small_run.FINISHED, **{"wandb.project": "small"})
            assert made.returncode == 0, made.stdout + made.stderr
            assert str(workdir / "report.html") in made.stdout
            done.touch()
    return workdir
