"""launch/tpu.sh and tpu_worker.sh: the commands they give, and what they do when workers or the whole slice go."""

import os
import pathlib
import shlex
import signal
import subprocess
import time

import pytest
from launch_fakes import HOSTILE, ROOT, Fakes
from waits import HANGS

SLICE = ("--zone=us-west4-a", "--type=v5litepod-16")
AT = "--zone=us-west4-a"
FLAGS = ("--config=configs/redial_ppo.py", "--workdir=/mnt/crs_jax/two words")
WORKER = "crs_jax/launch/tpu_worker.sh"
UNPACK = "mkdir -p crs_jax && tar -xzf crs_jax.tar.gz -C crs_jax && "


def ssh(command, which="all"):
    return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "crs-jax", AT, f"--worker={which}", f"--command={command}"]


def queued(action, *more):
    return ["gcloud", "compute", "tpus", "queued-resources", action, "crs-jax", AT, *more]


CREATE = queued(
    "create", "--node-id=crs-jax", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"
)
SCP = ["gcloud", "compute", "tpus", "tpu-vm", "scp", "/tmp/crs_jax.tar.gz", "crs-jax:crs_jax.tar.gz", AT]
SHARED = "SHARE=10.0.0.2:/runs "
RUN = f"{WORKER} run --config=configs/redial_ppo.py --workdir=/mnt/crs_jax/two\\ words"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["create"], [CREATE]),
        (["create", "--spot"], [[*CREATE, "--spot"]]),
        (["install"], [[*SCP, "--worker=all"], ssh(f"{UNPACK}EXTRAS=tpu {WORKER} install")]),
        (["run", "--share=10.0.0.2:/runs", "--", *FLAGS], [ssh(SHARED + RUN), ssh(f"{WORKER} status")]),
        (
            ["resume", "--share=10.0.0.2:/runs", "--spot", "--extras=tpu,roberta", "--", *FLAGS],
            [
                [*CREATE, "--spot"],
                [*SCP, "--worker=all"],
                ssh(f"{UNPACK}{SHARED}EXTRAS=tpu\\,roberta {WORKER} install"),
                ssh(SHARED + RUN),
                ssh(f"{WORKER} status"),
            ],
        ),
        (["status"], [ssh(f"{WORKER} status")]),
        (["stop"], [ssh(f"{WORKER} stop")]),
        (["logs"], [ssh(f"{WORKER} logs", "0")]),
        (["delete"], [queued("delete", "--force", "--quiet")]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else "",
)
def test_dry_run_prints_every_command_and_runs_none(tmp_path, arguments, expected):
    fakes = Fakes(tmp_path)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    done = fakes.run("launch/tpu.sh", *arguments[:at], *SLICE, "--dry-run", *arguments[at:])
    assert done.returncode == 0, done.stderr
    printed = [shlex.split(line) for line in (done.stdout + done.stderr).splitlines() if line.startswith("gcloud")]
    assert sorted(printed) == sorted(expected)
    assert not fakes.calls()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["launch"], "launch: expected create, install"),
        (["create", "--type=v5litepod-16"], "--zone is missing"),
        (["create", AT], "--type is missing"),
        (["create", AT, "--type=v99-8"], "--version=VERSION"),
        (["create", *SLICE, "--color=red"], "--color=red: no such flag"),
        (["run", *SLICE, "--config=configs/quickstart.py"], "come after --"),
        (["run", *SLICE], "the program's flags are missing"),
        (["status", *SLICE, "--", "--config=x"], "takes no flags"),
        (["run", *SLICE, "--", "--workdir=gs://bucket/run"], "--share=gs://BUCKET"),
        (["create", *SLICE, "--share=/home"], "--share=/home: expected"),
        (["create", *SLICE, "--share=-obind:/x"], "--share=-obind:/x: expected"),
        (["create", *SLICE, "--share=gs://-o"], "--share=gs://-o: expected"),
        (["create", *SLICE, "--name=--flags-file=x"], "--name=--flags-file=x: expected"),
        (["create", *SLICE, "--name=a;touch pwned"], "--name=a;touch pwned: expected"),
        (["install", *SLICE, "--extras=tpu;touch pwned"], "--extras=tpu;touch pwned: expected"),
        (["install", *SLICE, "--extras=tpu roberta"], "--extras=tpu roberta: expected"),
        (["resume", *SLICE, "--spot", "--", *FLAGS], "--spot without --share"),
        (["resume", *SLICE, "--retries=many", "--", *FLAGS], "--retries=many"),
    ],
)
def test_one_clear_line(tmp_path, arguments, said):
    fakes = Fakes(tmp_path)
    done = fakes.run("launch/tpu.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert not fakes.calls()


def test_without_gcloud_it_says_so(tmp_path):
    for tool in ("bash", "dirname", "sed"):
        (tmp_path / tool).symlink_to(pathlib.Path("/bin") / tool)
    done = Fakes(tmp_path / "fakes").run("launch/tpu.sh", "status", *SLICE, PATH=str(tmp_path))
    assert done.returncode == 2
    assert "gcloud is not installed" in done.stderr


def resume(fakes, *flags):
    return fakes.run("launch/tpu.sh", "resume", *SLICE, *flags, "--", *FLAGS)


def test_what_is_given_arrives_as_it_is(tmp_path):
    """Flags of the program at the workers' own, the share at mount, the slice's at gcloud; and nothing else is run."""
    fakes = Fakes(tmp_path, queued_resources=["ACTIVE"])
    share = "10.0.0.2:/a b;$(touch pwned)'\n\"*"
    given = [f"--{name}={value}" for name in ("project", "version") for value in HOSTILE if value]
    done = fakes.run("launch/tpu.sh", "resume", *SLICE, *given, f"--share={share}", "--", "--config=x", *HOSTILE)
    assert done.returncode == 0, done.stderr
    ran = [call["args"] for call in fakes.calls("python") if "crs_jax.main" in call["args"]]
    assert ran == [["-m", "crs_jax.main", "--distributed", "--config=x", *HOSTILE]] * 2
    mounts = [call["args"] for call in fakes.calls("sudo") if call["args"][0] == "mount"]
    assert {tuple(args[-2:]) for args in mounts} == {(share, "/mnt/crs_jax")}
    asked = [call["args"] for call in fakes.calls("gcloud")]
    assert all(f"--project={HOSTILE[-1]}" in args for args in asked)
    assert not [*tmp_path.rglob("pwned"), *ROOT.glob("pwned")]


def test_what_a_share_is_called_is_no_flag_of_mount(tmp_path):
    for number, share in enumerate(("-obind:/x", "gs://-o", "gs://")):
        done = worker(Fakes(tmp_path / str(number)), "run", "--config=x", SHARE=share)
        assert done.returncode == 2
        assert f"--share={share}: expected" in done.stderr


def did(fakes):
    """The gcloud commands in order, by action; the worker's for ssh."""
    found = []
    for call in fakes.calls("gcloud"):
        command = next((arg for arg in call["args"] if arg.startswith("--command=")), "")
        found.append(command.partition("tpu_worker.sh ")[2].split(" ")[0] or " ".join(call["args"][2:4]))
    return found


def test_resume_goes_on_until_the_run_is_done(tmp_path):
    """From nothing: a slice, an installation, a worker that is lost, a pre-emption, and the end."""
    fakes = Fakes(
        tmp_path,
        queued_resources=["NOT_FOUND", "WAITING_FOR_RESOURCES", "ACTIVE"],
        tpu_vm=["CREATING", "READY", "READY", "PREEMPTED", "READY"],
        attempts=[[75, "killed"], [143, 143], [0, 0]],
    )
    done = resume(fakes, "--spot", "--share=10.0.0.2:/runs")
    assert done.returncode == 0, done.stderr
    seen = [each for each in did(fakes) if not each.endswith("describe")]
    new = ["queued-resources create", "status", "tpu-vm scp", "install"]
    again = ["status", "run", "status"]
    assert seen == [*new, "run", "status", *again, "queued-resources delete", "queued-resources create", *again]
    assert "The slice crs-jax was taken away" in done.stderr
    ran = [call["args"] for call in fakes.calls("python") if "crs_jax.main" in call["args"]]
    assert ran == [["-m", "crs_jax.main", "--distributed", *FLAGS]] * 6  # two workers, three attempts
    mounts = [call["args"] for call in fakes.calls("sudo") if call["args"][0] == "mount"]
    assert mounts[0] == ["mount", "-t", "nfs", "-o", "hard,lookupcache=positive", "10.0.0.2:/runs", "/mnt/crs_jax"]


def test_what_would_come_again_is_not_tried_again(tmp_path):
    fakes = Fakes(tmp_path, queued_resources=["ACTIVE"], attempts=[[75, 74]])
    done = resume(fakes)
    assert done.returncode == 74
    assert "ended with status 74" in done.stderr
    assert did(fakes).count("run") == 1


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ("0 0", "done"),
        ("0 75", "again 75"),
        ("143 143", "again 143"),
        ("lost 0", "again lost"),
        ("134 2", "stop 2"),  # bad input in one process, which the other missed
        ("75 74", "stop 74"),
        ("1 75", "stop 1"),
        ("130 143", "stop 130"),
        ("137 137", "again 137"),
    ],
)
def test_verdict(statuses, expected):
    script = f"source launch/restart.sh; verdict {statuses}"
    assert subprocess.check_output(["bash", "-c", script], cwd=ROOT, text=True) == f"{expected}\n"


def test_retries_have_an_end(tmp_path):
    fakes = Fakes(tmp_path, queued_resources=["ACTIVE"], attempts=[[75, 75]])
    done = resume(fakes, "--retries=1")
    assert done.returncode == 75
    assert "ended 2 times" in done.stderr
    assert did(fakes).count("run") == 2


def test_a_connection_that_breaks_off_is_no_end(tmp_path):
    """The worker's process outlives its ssh, is followed again, and no try is counted."""
    fakes = Fakes(tmp_path, workers=1, queued_resources=["ACTIVE"], attempts=[["sleep"], [0]])
    done = resume(fakes, "--retries=0")
    assert done.returncode == 0, done.stderr
    assert "The connection broke off" in done.stderr
    assert did(fakes).count("run") >= 2
    assert sum("crs_jax.main" in call["args"] for call in fakes.calls("python")) == 1


def test_a_slice_deleted_behind_its_request_is_made_again(tmp_path):
    fakes = Fakes(tmp_path, workers=1, queued_resources=["ACTIVE"], tpu_vm=["NOT_FOUND", "READY"])
    assert resume(fakes).returncode == 0
    made = [each for each in did(fakes) if each in ("queued-resources delete", "queued-resources create")]
    assert made == ["queued-resources delete", "queued-resources create"]


def test_a_question_that_fails_ends_it(tmp_path):
    """No right to ask, or no network: nothing is made or deleted for that."""
    fakes = Fakes(tmp_path)
    (fakes.bin / "gcloud").write_text("#!/bin/sh\necho 'ERROR: PERMISSION_DENIED' >&2\nexit 1\n")
    done = resume(fakes)
    assert done.returncode == 1
    assert done.stderr == "ERROR: PERMISSION_DENIED\n"


def worker(fakes, *command, **environment):
    more = {"HOME": str(fakes.folder / "worker-0"), **environment}
    return fakes.run("launch/tpu_worker.sh", *command, **more)


def background(fakes, *command, **environment):
    more = {**fakes.environment, "HOME": str(fakes.folder / "worker-0"), **environment}
    return subprocess.Popen(
        ["bash", "launch/tpu_worker.sh", *command], cwd=ROOT, env=more, stdout=subprocess.PIPE, text=True
    )


def waiting(fakes):
    until = time.monotonic() + HANGS
    while not (found := list(fakes.folder.glob("waiting-*"))):
        assert time.monotonic() < until
        time.sleep(0.05)
    return int(found[0].name.partition("-")[2])


def test_a_worker_outlives_the_ssh_and_is_followed_again(tmp_path):
    fakes = Fakes(tmp_path)
    (fakes.venv / ".installed-core").touch()
    assert worker(fakes, "status").stdout == "crs_jax status: none\n"
    first = background(fakes, "run", "--config=x", ENDS_WITH="wait")
    process = waiting(fakes)
    first.kill()  # what a broken connection does to the command that ssh started
    first.wait()
    assert worker(fakes, "status").stdout == "crs_jax status: running\n"
    second = background(fakes, "run", "--config=x", ENDS_WITH="0")
    time.sleep(0.5)
    assert worker(fakes, "stop").returncode == 0
    assert "saved" in second.communicate(timeout=HANGS)[0]
    assert worker(fakes, "status").stdout == "crs_jax status: 130\n"  # asked for, so resume leaves it
    assert not pathlib.Path(f"/proc/{process}").exists()
    assert len(fakes.calls("python")) == 1


def test_a_worker_that_died_with_its_machine_is_lost(tmp_path):
    fakes = Fakes(tmp_path)
    (fakes.venv / ".installed-core").touch()
    run = background(fakes, "run", "--config=x", ENDS_WITH="wait")
    process = waiting(fakes)
    shell = int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shell, signal.SIGKILL)
    os.kill(process, signal.SIGKILL)
    run.communicate(timeout=HANGS)
    assert run.returncode == 75
    assert worker(fakes, "status").stdout == "crs_jax status: lost\n"


def test_a_bucket_is_mounted_for_checkpoints(tmp_path):
    """Folders can be renamed, and nothing of what another machine wrote is remembered as missing."""
    fakes = Fakes(tmp_path)
    done = worker(fakes, "run", "--config=x", SHARE="gs://runs-of-mine")
    assert done.returncode == 0, done.stderr
    (call,) = fakes.calls("gcsfuse")
    assert call["args"][-2:] == ["runs-of-mine", "/mnt/crs_jax"]
    assert {"--rename-dir-limit=1000000", "--metadata-cache-negative-ttl-secs=0"} <= set(call["args"])
