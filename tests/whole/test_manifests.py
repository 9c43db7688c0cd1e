"""docker/k8s against Kubernetes' schemas, and what the pods may and may not do."""

import copy
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.checkout import ROOT

from workers.service.notice import LEAVE_SECONDS

FOLDER = ROOT / "docker" / "k8s"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
VERSIONS = ["1.31", kubernetes_validate.latest_version()]
"""The first in which all that is used is stable, and the newest that is known."""

Manifest = dict[str, Any]
MANIFESTS: list[Manifest] = [yaml.safe_load(path.read_text()) for path in FILES]
KUSTOMIZATION: Manifest = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
JOBS = {m["metadata"]["name"]: m for m in MANIFESTS if m["kind"] == "Job"}
PODS: dict[str, Manifest] = {name: job["spec"]["template"] for name, job in JOBS.items()}
WORKER = PODS["densitune-worker"]
SECRETS: dict[str, list[str]] = {
    secret["name"]: secret["files"] for secret in KUSTOMIZATION["secretGenerator"]
}
ROLE_OF = {"launch": "proposer", "worker": "worker"}
"""Whose Secret the pods of a component have: one role's, and no other's."""


def container(pod: Manifest) -> Manifest:
    [only] = pod["spec"]["containers"]
    return dict(only)


pods = pytest.mark.parametrize("pod", PODS.values(), ids=list(PODS))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_manifests_match_the_schemas_of_kubernetes(path: Path, version: str) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_refuse_a_misspelt_field() -> None:
    wrong = copy.deepcopy(JOBS["densitune-worker"])
    spec = wrong["spec"]["template"]["spec"]
    spec["terminationGracePeriod"] = spec.pop("terminationGracePeriodSeconds")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kustomization_lists_every_manifest() -> None:
    assert sorted(KUSTOMIZATION["resources"]) == [path.name for path in FILES]


def test_kustomize_builds_what_the_manifests_say(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed; it needs no cluster for this check")
    shutil.copytree(FOLDER, tmp_path / "k8s")
    (tmp_path / "k8s" / "secrets").mkdir(exist_ok=True)
    for entry in (entry for secret in SECRETS.values() for entry in secret):
        (tmp_path / "k8s" / entry.partition("=")[2]).write_text("given")
    shutil.copy(ROOT / "configs" / "cifar100-vgg-k5.yaml", tmp_path / "k8s" / "study.yaml")
    built = subprocess.run(
        [kubectl, "kustomize", "k8s"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "KUBECONFIG": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    )
    manifests = list(yaml.safe_load_all(built.stdout))
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        assert manifest["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    secrets = [m["metadata"]["name"] for m in manifests if m["kind"] == "Secret"]
    assert len(secrets) == len(ROLE_OF)
    [study] = [m["metadata"]["name"] for m in manifests if m["kind"] == "ConfigMap"]
    for job in (m for m in manifests if m["kind"] == "Job"):
        pod = job["spec"]["template"]
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        assert volumes["storage"]["secret"]["secretName"] in secrets
        assert study in str(volumes) or "worker" in job["metadata"]["name"]
        assert re.fullmatch(r"registry\.example\.org/densitune:[\d.]+", container(pod)["image"])


def test_worker_trains_the_study_of_the_example() -> None:
    variables = {given["name"]: given.get("value") for given in container(WORKER)["env"]}
    study = yaml.safe_load((ROOT / "configs" / "cifar100-vgg-k5.yaml").read_text())
    assert variables["STUDY"] == study["name"]


@pods
def test_pods_are_not_root_and_write_to_volumes_only(pod: Manifest) -> None:
    shared, own = pod["spec"]["securityContext"], container(pod)["securityContext"]
    [user] = re.findall(r"^USER (\d+):(\d+)$", dockerfile(), re.MULTILINE)
    assert shared["runAsNonRoot"] is True
    assert (str(shared["runAsUser"]), str(shared["runAsGroup"])) == user
    assert shared["fsGroup"] == shared["runAsGroup"]
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False


@pods
def test_what_densitune_writes_lies_in_a_volume(pod: Manifest) -> None:
    [home] = re.findall(r"DENSITUNE_HOME=(\S+)", dockerfile())
    mounts = {mount["mountPath"]: mount for mount in container(pod)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    claim = volumes[mounts[home]["name"]]["persistentVolumeClaim"]["claimName"]
    assert claim in [m["metadata"]["name"] for m in MANIFESTS if m["kind"].endswith("Claim")]
    assert "emptyDir" in volumes[mounts["/tmp"]["name"]]


@pods
def test_url_and_password_come_from_the_secret(pod: Manifest) -> None:
    name = f"densitune-{ROLE_OF[pod['metadata']['labels']['app.kubernetes.io/component']]}"
    keys = {entry.partition("=")[0] for entry in SECRETS[name]}
    environment = {given["name"]: given for given in container(pod)["env"]}
    url = environment["DENSITUNE_STORAGE"]["valueFrom"]["secretKeyRef"]
    assert url["name"] == name
    assert url["key"] in keys
    [volume] = [volume["secret"] for volume in pod["spec"]["volumes"] if "secret" in volume]
    assert volume["secretName"] == name
    assert {item["key"] for item in volume["items"]} == keys - {url["key"]}
    assert volume["defaultMode"] & 0o007 == 0
    file = Path(environment["DENSITUNE_STORAGE_PASSWORD_FILE"]["value"])
    [mount] = [m for m in container(pod)["volumeMounts"] if m["mountPath"] == str(file.parent)]
    assert mount["readOnly"] is True
    assert file.name in keys


def test_secrets_and_the_users_study_are_ignored_by_git() -> None:
    ignored = (ROOT / "docker" / ".gitignore").read_text().splitlines()
    [study] = KUSTOMIZATION["configMapGenerator"]
    for entry in (entry for secret in SECRETS.values() for entry in secret):
        assert Path(entry.partition("=")[2]).parts[0] + "/" in ignored
    assert [f"k8s/{name}" for name in study["files"] if f"k8s/{name}" not in ignored] == []


@pods
def test_pods_have_time_to_leave(pod: Manifest) -> None:
    assert pod["spec"]["terminationGracePeriodSeconds"] >= 2 * LEAVE_SECONDS


def test_each_worker_asks_for_a_gpu_and_tolerates_its_taint() -> None:
    assert container(WORKER)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert [t["key"] for t in WORKER["spec"]["tolerations"]] == ["nvidia.com/gpu"]
    assert "nvidia.com/gpu" not in str(PODS["densitune-launch"])


@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
def test_evictions_do_not_count_as_failures_and_bad_usage_ends_the_job(job: Manifest) -> None:
    evicted, hopeless = job["spec"]["podFailurePolicy"]["rules"]
    assert evicted["action"] == "Ignore"
    assert evicted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert hopeless["action"] == "FailJob"
    assert 2 in hopeless["onExitCodes"]["values"]
    assert 3 not in hopeless["onExitCodes"]["values"]  # a storage that is away comes back
    name = hopeless["onExitCodes"]["containerName"]
    assert name == container(job["spec"]["template"])["name"]
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # as the policy demands


def test_worker_that_ends_well_is_not_started_again_and_others_are() -> None:
    spec = JOBS["densitune-worker"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] > 1


def test_disruption_budget_is_for_the_workers_and_in_a_form_that_jobs_allow() -> None:
    [budget] = [m["spec"] for m in MANIFESTS if m["kind"] == "PodDisruptionBudget"]
    wanted = budget["selector"]["matchLabels"].items()
    assert [name for name, pod in PODS.items() if wanted <= pod["metadata"]["labels"].items()] == [
        "densitune-worker"
    ]
    assert type(budget["minAvailable"]) is int
    assert budget["minAvailable"] < JOBS["densitune-worker"]["spec"]["completions"]


def dockerfile() -> str:
    return (ROOT / "docker" / "Dockerfile").read_text()
