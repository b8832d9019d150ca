"""The examples for Kubernetes: that their parts fit each other and the repository, no cluster."""

import math
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def read(name):
    return yaml.safe_load((ROOT / "launch" / "gke" / name).read_text())


def pod(name):
    """The pod template that runs the trainer."""
    spec = read(name)["spec"]
    if name == "jobset.yaml":
        (jobs,) = spec["replicatedJobs"]
        return jobs["template"]["spec"]["template"]
    return spec["controller"]["template"]


@pytest.mark.parametrize("name", ["jobset.yaml", "pathways.yaml"])
def test_pods_run_the_trainer_in_a_shared_bucket_whose_metadata_are_fresh(name):
    template = pod(name)
    (container,) = template["spec"]["containers"]
    supervise, trainer = " ".join(container["command"]).split(" -- ")
    assert supervise.startswith("bash launch/supervise.sh --max_restarts=")
    assert trainer.startswith("python -m launch.train ")
    flags = dict(re.findall(r"--(\w+)=(\S+)", trainer))
    assert (ROOT / flags["config"]).is_file()
    (mount,), (volume,) = container["volumeMounts"], template["spec"]["volumes"]
    assert flags["workdir"].startswith(mount["mountPath"] + "/") and mount["name"] == volume["name"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"implicit-dirs", "metadata-cache:ttl-secs:0"} < set(options)
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    # Kubernetes makes host names of it.
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", read(name)["metadata"]["name"])


def test_a_jobset_has_a_pod_for_each_host_of_its_slices():
    (jobs,) = read("jobset.yaml")["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    spec = job["template"]["spec"]
    topology = spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(size) for size in topology.split("x"))
    a_pod = spec["containers"][0]["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == chips // a_pod == 16


def test_a_jobset_ends_with_the_errors_of_the_trainer_and_restarts_after_all_else():
    policy = read("jobset.yaml")["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 10
    assert policy["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (jobs,) = read("jobset.yaml")["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = rule["onExitCodes"]
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert (codes["operator"], codes["values"]) == ("In", [1, 2])
    # What a policy of pods needs: https://kubernetes.io/docs/concepts/workloads/controllers/job/
    assert job["template"]["spec"]["restartPolicy"] == "Never" and job["backoffLimit"] == 0


def test_pathways_have_one_program_and_workers_of_a_known_type():
    spec = read("pathways.yaml")["spec"]
    (workers,) = spec["workers"]
    assert workers == {"type": "ct5p-hightpu-4t", "topology": "4x4x4", "numSlices": 2}
    assert spec["pathwaysDir"].startswith("gs://")
    controller = spec["controller"]
    assert controller["deploymentMode"] == "default"
    names = [each["name"] for each in controller["template"]["spec"]["containers"]]
    assert names == [controller["mainContainerName"]]
    assert "google.com/tpu" not in (ROOT / "launch" / "gke" / "pathways.yaml").read_text()
