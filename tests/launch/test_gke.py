"""launch/gke.yaml and gke_storage.yaml: what Kubernetes, JobSet and GKE's TPUs ask of them.

Job, pods and claim are held against Kubernetes' own schemas (kubernetes-validate, strict: no unknown field), the JobSet
around the Job against the models that Kubeflow generates of JobSet's OpenAPI (kubeflow-trainer-api), which leave out
what they do not know. What neither says stands here, from the reference of jobset.x-k8s.io/v1alpha2.
"""

import copy
import math
import re

import kubernetes_validate
import pytest
import yaml
from jax._src.clusters import ClusterEnv, cloud_tpu_cluster, cluster
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
from launch_fakes import HOSTILE, ROOT

KUBERNETES = ("1.30", "1.33", "1.37")
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"}
CHIPS = {"tpu-v5-lite-podslice": 4, "tpu-v5p-slice": 4, "tpu-v6e-slice": 4}  # of a machine in a slice of several


def load(name):
    return yaml.safe_load((ROOT / "launch" / name).read_text())


@pytest.fixture
def jobset():
    return load("gke.yaml")


def job_of(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **replicated["template"]}


def pod_of(jobset):
    return job_of(jobset)["spec"]["template"]["spec"]


def without_template(jobset):
    kept = copy.deepcopy(jobset)
    for replicated in kept["spec"]["replicatedJobs"]:
        replicated.pop("template")
    return kept


def check_jobset(jobset):
    known = JobsetV1alpha2JobSet.from_dict(jobset).to_dict()
    assert without_template(known) == without_template(jobset)  # else there is a field that JobSet does not have
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        assert rule["action"] in ACTIONS
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


@pytest.mark.parametrize("version", KUBERNETES)
def test_manifests_meet_the_schemas(jobset, version):
    check_jobset(jobset)
    kubernetes_validate.validate(job_of(jobset), version, strict=True)
    kubernetes_validate.validate(load("gke_storage.yaml"), version, strict=True)


def test_the_schemas_catch_a_wrong_field(jobset):
    wrong = copy.deepcopy(jobset)
    wrong["spec"]["failurePolicy"]["maxRetries"] = 3
    with pytest.raises(AssertionError):
        check_jobset(wrong)
    wrong = job_of(jobset)
    wrong["spec"]["template"]["spec"]["containers"][0]["resource"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES[0], strict=True)


def test_pods_are_the_machines_of_the_slice(jobset):
    spec, pod = job_of(jobset)["spec"], pod_of(jobset)
    nodes = pod["nodeSelector"]
    accelerator, topology = (nodes[f"cloud.google.com/gke-tpu-{key}"] for key in ("accelerator", "topology"))
    resources = pod["containers"][0]["resources"]
    chips = resources["limits"]["google.com/tpu"]
    assert chips == resources["requests"]["google.com/tpu"] == CHIPS[accelerator]
    assert spec["parallelism"] == spec["completions"] == math.prod(map(int, topology.split("x"))) // chips
    assert spec["completionMode"] == "Indexed"
    assert jobset["spec"]["network"]["enableDNSHostnames"]  # the headless service of the coordinator


def test_how_a_pod_ends_decides(jobset):
    """1, 2 and 74 end the JobSet; any other status, or a pod that is taken away, starts all pods again."""
    spec, pod = job_of(jobset)["spec"], pod_of(jobset)
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    container = pod["containers"][0]["name"]
    assert rule["onExitCodes"] == {"containerName": container, "operator": "In", "values": [1, 2, 74]}
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    assert spec["backoffLimit"] == 0  # a pod alone cannot come back: the others wait in a computation with the old one
    policy = jobset["spec"]["failurePolicy"]
    (fails,) = [rule for rule in policy["rules"] if rule["action"] == "FailJobSet"]
    assert fails["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert policy["maxRestarts"] > 10
    assert pod["terminationGracePeriodSeconds"] >= 60


@pytest.mark.parametrize("value", [*HOSTILE, "x: y", "- z", "[a]", "null", "4"])
def test_what_is_put_between_the_quotes_is_a_flag_and_no_more(jobset, value):
    """Flags, image and node are in quotes, so that what stands there becomes no key and no other kind of value."""
    text = (ROOT / "launch" / "gke.yaml").read_text()
    pod = pod_of(jobset)
    container = pod["containers"][0]
    for flag in container["args"]:
        assert f"'{flag}'" in text
    for word in (container["image"], *pod["nodeSelector"].values()):
        assert f'"{word}"' in text
    written = value.replace("'", "''").replace("\n", "\n\n")  # which in quotes is one break
    changed = yaml.safe_load(text.replace("/runs/redial'", f"/runs/redial{written}'"))
    container["args"][-1] += value
    assert changed == jobset


def test_the_run_lies_on_the_shared_disk(jobset):
    pod, claim = pod_of(jobset), load("gke_storage.yaml")
    container = pod["containers"][0]
    source = {"claimName": claim["metadata"]["name"]}
    (volume,) = [volume for volume in pod["volumes"] if volume.get("persistentVolumeClaim") == source]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == volume["name"]]
    workdir = next(flag.partition("=")[2] for flag in container["args"] if flag.startswith("--workdir="))
    assert workdir.startswith(f"{mount['mountPath']}/")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    config = next(flag.partition("=")[2] for flag in container["args"] if flag.startswith("--config="))
    assert (ROOT / config).is_file()
    assert "--distributed" in container["args"]


def test_jax_finds_the_pods_by_what_gke_tells_them(jobset, monkeypatch):
    """GKE's webhook names the pods as JobSet does: name-job-0-number.name; the first is the coordinator."""
    name, replicated = jobset["metadata"]["name"], jobset["spec"]["replicatedJobs"][0]["name"]
    pods = job_of(jobset)["spec"]["parallelism"]
    hosts = [f"{name}-{replicated}-0-{number}.{name}" for number in range(pods)]
    for module in (cloud_tpu_cluster, cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)  # libtpu and chips are there
    monkeypatch.setattr(cloud_tpu_cluster.socket, "gethostbyname", lambda host: {hosts[0]: "10.0.0.1"}[host])
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value", lambda key: None)  # one slice: no MEGASCALE_ variables
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(hosts))
    monkeypatch.setenv("TPU_WORKER_ID", "2")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.254")  # every pod has it; jax must not ask its API
    (port,) = [each["containerPort"] for each in pod_of(jobset)["containers"][0]["ports"]]
    found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)
    assert found == (f"{hosts[0]}:{port}", pods, 2, None)
