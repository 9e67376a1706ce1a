"""Stand-ins for what the scripts of launch/ call: gcloud, srun, squeue, scontrol, sbatch, docker, kubectl, Python.

Each is a program in a folder that goes first on PATH and writes what it was called with to calls.jsonl. Those of gcloud
and srun do what theirs do, on this machine: `ssh --worker=all` runs the command in a home of each worker, srun starts
the tasks with SLURM's variables. The program that they run is a stand-in too, which ends as `plan.json` says.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from waits import HANGS

ROOT = pathlib.Path(__file__).resolve().parents[1]

HOSTILE = (
    "two words", "it's \"quoted\"", "a;touch pwned;b", "$(touch pwned)", "`touch pwned`",
    "x && touch pwned | cat >pwned",
    "line\nbreak", "--", "-e", "--name=x", "-", "*", "~", "back\\slash", "", " ", "tab\there", "$HOME ${PATH} $'x'",
    "!!", "{a,b}", "#no", "üñí", "trailing\n", "--flag=$(touch pwned); touch pwned #'\"",
)  # fmt: skip
"""Arguments that a shell, given them unquoted, would make something else of."""

RECORD = """#!{python} -IS
import json, os, pathlib, signal, subprocess, sys, time
here = pathlib.Path({folder!r})
name, args = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
def record(**more):
    with open(here / "calls.jsonl", "a") as file:
        file.write(json.dumps({{"name": name, "args": args, **more}}) + "\\n")
def plan(key, default):
    '''The next of a list in plan.json, or its last.'''
    path = here / "plan.json"
    plans = json.loads(path.read_text())
    values = plans.get(key) or [default]
    if len(values) > 1:
        path.write_text(json.dumps({{**plans, key: values[1:]}}))
    return values[0]
"""

PLAIN = """
record()
print(plan(name, ""))
"""

# Answers describe from the plan; ssh runs the command on each worker, with the statuses of this attempt.
GCLOUD = """
record()
action = args[3]
if action == "describe":
    found = plan(args[2], "READY")
    if found == "NOT_FOUND":
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource not found")
    print(found)
elif action == "scp":
    for home in sorted(here.glob("worker-*")):
        (home / args[5].partition(":")[2]).write_bytes(pathlib.Path(args[4]).read_bytes())
elif action == "ssh":
    command = next(arg for arg in args if arg.startswith("--command=")).partition("=")[2]
    homes = sorted(here.glob("worker-*"))
    statuses = plan("attempts", []) if " run " in command else []
    running = []
    for number, home in enumerate(homes):
        environment = {**os.environ, "HOME": str(home), "VENV": str(here / "venv")}
        environment["PYTHON"] = str(here / "venv" / "bin" / "python")
        environment["ENDS_WITH"] = str(statuses[number]) if number < len(statuses) else "0"
        running.append(subprocess.Popen(["bash", "-c", command], env=environment, cwd=home))
    if "sleep" in statuses:  # the connection breaks off while the program runs
        while not all((home / ".crs_jax" / "pid").exists() for home in homes):
            time.sleep(0.05)
        sys.exit(255)
    sys.exit(max(each.wait() for each in running))
"""

# The tasks of a job step on this machine; a signal goes to all their processes, and the highest status is srun's own.
SRUN = """
record()
command = args[next(at for at, arg in enumerate(args) if not arg.startswith("-")):]
tasks = int(os.environ["SLURM_NTASKS"])
running = []
def spread(number, frame):
    for each in running:
        os.killpg(each.pid, number)
signal.signal(signal.SIGUSR1, lambda number, frame: spread(signal.SIGTERM, frame))  # the end of the job's time
(here / "srun.pid").write_text(str(os.getpid()))
for number in range(tasks):
    variables = {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_STEP_NODELIST": "localhost"}
    environment = {**os.environ, **{key: str(value) for key, value in variables.items()}}
    running.append(subprocess.Popen(command, env=environment, start_new_session=True))
codes = [each.wait() for each in running]
sys.exit(max(128 - code if code < 0 else code for code in codes))
"""

# The job at once, with what SLURM would give to its script.
SBATCH = """
record()
at = next(at for at, arg in enumerate(args) if not arg.startswith("-"))
variables = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "2", "SLURM_SUBMIT_DIR": os.getcwd()}
sys.exit(subprocess.call(["bash", *args[at:]], env={**os.environ, **variables}))
"""

# An interpreter whose crs_jax.main ends as it is told, or saves when it is asked to end.
PYTHON = """
if args[0] == "-c":
    sys.exit(0)
number = int(os.environ.get("SLURM_PROCID", 0))
record(process=number, job=os.environ.get("SLURM_JOB_ID"))
if args[:2] == ["-m", "crs_jax.main"]:
    def end(*_):
        print("saved", flush=True)
        sys.exit(143)
    signal.signal(signal.SIGTERM, end)
    statuses = os.environ.get("ENDS_WITH", "0").split(",")
    status = statuses[min(number, len(statuses) - 1)]
    print("started", flush=True)
    if status == "wait":
        (here / f"waiting-{os.getpid()}").touch()
        time.sleep(60)
    if status == "sleep":
        time.sleep(3)
        status = 0
    if status == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(status))
"""

NAMES = ("squeue", "scontrol", "docker", "kubectl", "sudo", "gcsfuse", "mount.nfs")
PROGRAMS = {"gcloud": GCLOUD, "srun": SRUN, "sbatch": SBATCH, **dict.fromkeys(NAMES, PLAIN)}


class Fakes:
    """A folder of stand-ins.

    Args:
      folder: an empty one.
      workers: machines of the TPU slice.
      plan: name of a program (or queued-resources, tpu-vm, attempts) to the list of what it answers, one a call.
    """

    def __init__(self, folder: pathlib.Path, workers: int = 2, **plan: list) -> None:
        self.folder, self.bin = folder, folder / "bin"
        self.venv = folder / "venv"
        (self.venv / "bin").mkdir(parents=True)
        self.bin.mkdir()
        head = RECORD.format(python=sys.executable, folder=str(folder))
        for name, body in PROGRAMS.items():
            self._write(self.bin / name, head + body)
        self._write(self.venv / "bin" / "python", head + PYTHON)
        for number in range(workers):
            (folder / f"worker-{number}").mkdir()
        (folder / "plan.json").write_text(json.dumps({name.replace("_", "-"): each for name, each in plan.items()}))
        self.environment = {
            **{name: each for name, each in os.environ.items() if not name.startswith(("SLURM_", "TPU_"))},
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "VENV": str(self.venv),
            "PAUSE": "0",
        }

    def _write(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a command to its end, a script of launch/ by its path from the repository's root."""
        return subprocess.run(
            [shutil.which("bash") or "bash", *command] if command[0].startswith("launch/") else command,
            cwd=ROOT, env={**self.environment, **environment}, capture_output=True, text=True, timeout=HANGS,
        )  # fmt: skip

    def calls(self, name: str = "") -> list[dict]:
        """What was called, in order; of one program, or all."""
        path = self.folder / "calls.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if name in ("", line["name"])]

    def slurm(self, tasks: int = 2, **more: str) -> dict[str, str]:
        """What SLURM sets for the job's script."""
        return {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": str(tasks), "SLURM_SUBMIT_DIR": str(ROOT), **more}
