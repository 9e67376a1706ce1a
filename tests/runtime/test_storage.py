"""The run's folder: one run in it at a time, and one clear error where it cannot be written."""

import errno
import multiprocessing
import os

import pytest

from crs_jax.runtime.errors import InputError, StorageError
from crs_jax.runtime.storage import claimed, trouble, writing

OF_ORBAX = (
    'RESOURCE_EXHAUSTED: Error writing "step/0" in OCDBT database at local file "/w/checkpoints/sft/7/": '
    'Failed writing: "/w/checkpoints/sft/7/d/0e3f": Failed to write 320536 bytes to file 14: '
    "No space left on device [os_error_code='28']"
)


def hold(folder, held, end):
    with claimed(folder):
        held.set()
        end.wait(60)


def test_a_second_run_in_the_folder_is_refused_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, held, end))
    other.start()
    assert held.wait(60)
    refused = rf"--workdir={tmp_path}: a run is in this folder \(process {other.pid} on"
    with pytest.raises(InputError, match=refused), claimed(tmp_path):
        pass
    other.kill()  # which leaves the file, but no lock
    other.join()
    assert (tmp_path / ".lock").exists()
    with claimed(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_a_disk_says_becomes_one_error(tmp_path, number):
    with pytest.raises(StorageError) as met, writing(tmp_path):
        raise OSError(number, "whatever", str(tmp_path / "metrics.jsonl"))
    assert met.value.errno == number
    assert met.value.filename == str(tmp_path / "metrics.jsonl")
    assert met.value.strerror.startswith(os.strerror(number))
    assert "is whole" in met.value.strerror
    assert "same command again" in met.value.strerror


def test_what_orbax_says_of_a_full_disk_is_read(tmp_path):
    assert trouble(ValueError(OF_ORBAX)) == (errno.ENOSPC, "/w/checkpoints/sft/7/d/0e3f")
    with pytest.raises(StorageError, match="make room") as met, writing(tmp_path):
        raise ValueError(OF_ORBAX)
    assert met.value.filename == "/w/checkpoints/sft/7/d/0e3f"


@pytest.mark.parametrize("error", [ValueError("no"), FileNotFoundError(errno.ENOENT, "gone", "x"), ZeroDivisionError()])
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as met, writing(tmp_path):
        raise error
    assert met.value is error
