"""What `--distributed` alone finds: jax' own detection, with what SLURM and a TPU slice say of themselves."""

import pytest
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster, cluster

from crs_jax.runtime import processes
from crs_jax.runtime.errors import InputError, LostProcessError


def detect():
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("localhost", "localhost"), ("gpu[07-08,11]", "gpu07"), ("a100-3,a100-9", "a100-3")],
)
def test_slurm(monkeypatch, nodes, first):
    """Of two nodes with two tasks each, the second of the second."""
    variables = {"JOB_ID": "4097", "STEP_NODELIST": nodes, "NTASKS": "4", "PROCID": "3", "LOCALID": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert detect() == (f"{first}:{65536 - 4096 + 1}", 4, 3, [1])


def test_tpu_vm(monkeypatch):
    """Metadata of a v5litepod-16: four machines, of which this is the third."""
    metadata = {
        "agent-worker-number": "2",
        "worker-network-endpoints": ",".join(f"unknown:unknown:10.0.0.{number}" for number in range(1, 5)),
        "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\nWORKER_ID: '2'",
    }
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))
    assert detect() == ("10.0.0.1:8482", 4, 2, None)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("coordinator_address should be defined."), InputError, "--coordinator=HOST:PORT --processes=N"),
        (TypeError("process_id must be a nonnegative int."), InputError, "--distributed: process_id must be"),
        (RuntimeError("Failed to recognize coordinator address node1"), LostProcessError, "node1: give the same"),
        (RuntimeError("distributed.initialize should only be called once."), RuntimeError, "only be called once"),
    ],
)
def test_what_is_not_found_is_said(monkeypatch, error, kind, said):
    def initialize(**arguments):
        raise error

    monkeypatch.setattr(processes.jax.distributed, "initialize", initialize)
    with pytest.raises(kind, match=said):
        processes.join({})


def test_outside_of_a_cluster_it_is_one_line(monkeypatch):
    """The real jax, on a machine that says nothing."""
    monkeypatch.setattr(processes.jax._src.xla_bridge, "backends_are_initialized", lambda: False)
    with pytest.raises(InputError, match="coordinator_address should be defined; on a TPU slice"):
        processes.join({})


def test_one_process_needs_no_shared_folder(tmp_path):
    processes.refuse_unless_shared(tmp_path)
    assert not list(tmp_path.iterdir())
