"""The work pools, rendered for a run by the job models of the workers that would start it."""

import asyncio
import json
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments.bootstrap import KINDS, POOL_NAMES, WORK_POOLS, PoolKindError, parse_kinds, read_work_pool
from mralign_core import __version__

SECRET = "door:5ecret"
SERVER = "http://prefect.example:4200/api"
USER = 10001
ASKED_BY_PREFECT = ("parallelism", "completions")
"""Of a job's pod, where Kubernetes has no such fields: prefect-kubernetes takes no manifest without them."""


def render(configuration, pool, **job_variables):
    """What a worker makes of a pool for one run, with secrets and a home of its own in its settings."""
    settings = {PREFECT_API_URL: SERVER, PREFECT_API_AUTH_STRING: SECRET, PREFECT_HOME: Path("/home/of-the-worker")}
    with temporary_settings(settings):
        rendering = configuration.from_template_and_values(
            pool["base_job_template"], job_variables, client=PrefectClient(SERVER)
        )
        rendered = asyncio.run(rendering)
        rendered.prepare_for_flow_run(FlowRun(id=uuid4(), name="brave-otter", flow_id=uuid4()))
    return rendered


@pytest.fixture(params=POOL_NAMES)
def name(request):
    return request.param


@pytest.fixture
def container(name):
    """Gives what Docker's API is asked to create for a run."""
    pytest.importorskip("prefect_docker", reason="prefect-docker is not installed")
    from docker.models.containers import _create_container_args
    from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

    def create(**job_variables):
        configuration = render(DockerWorkerJobConfiguration, read_work_pool(name, "docker"), **job_variables)
        asked = DockerWorker(work_pool_name=name)._build_container_settings(None, configuration)
        # As docker.containers.create does, which refuses what Docker does not know.
        return _create_container_args({**asked, "version": "1.50"})

    return create


@pytest.fixture
def job(name):
    """Gives the manifest of a run's job."""
    pytest.importorskip("prefect_kubernetes", reason="prefect-kubernetes is not installed")
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    def manifest(**job_variables):
        pool = read_work_pool(name, "kubernetes")
        return render(KubernetesWorkerJobConfiguration, pool, **job_variables).job_manifest

    return manifest


def validate(manifest):
    """Pass where Kubernetes would take the manifest.

    Raises:
        ValidationError: a field is unknown, or has another type.
    """
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    of_pod = manifest["spec"]["template"]["spec"]
    pod = {field: value for field, value in of_pod.items() if field not in ASKED_BY_PREFECT}
    as_taken = {**manifest, "spec": {**manifest["spec"], "template": {**manifest["spec"]["template"], "spec": pod}}}
    kubernetes_validate.validate(as_taken, "1.31", strict=True)


def test_every_file_is_a_pool_that_can_be_asked_for():
    stems = {path.stem for path in WORK_POOLS.glob("*.json")}
    assert stems == {name if kind == "process" else f"{name}-{kind}" for name in POOL_NAMES for kind in KINDS}
    for name in POOL_NAMES:
        for kind in KINDS:
            pool = read_work_pool(name, kind)
            assert (pool["name"], pool["type"]) == (name, kind)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_every_variable_is_explained_and_used(name, kind):
    template = read_work_pool(name, kind)["base_job_template"]
    used = json.dumps(template["job_configuration"])
    for variable, field in template["variables"]["properties"].items():
        assert f"{{{{ {variable} }}}}" in used, variable
        assert field["title"] and field["description"], variable
    assert template["variables"]["properties"]["image"]["default"] == f"mr-align:{__version__}"


def test_a_container_is_given_gpus_shared_memory_and_no_more_rights_than_it_needs(container, name):
    asked = container(mem_limit="64g")
    of_host = asked["host_config"]
    gpus = [{"Driver": "", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}]
    assert of_host.get("DeviceRequests") == (gpus if name == "a800" else None)
    assert of_host["ShmSize"] == (16 if name == "a800" else 1) * 2**30
    assert of_host["Memory"] == 64 * 2**30
    assert of_host["CapDrop"] == ["ALL"] and of_host["SecurityOpt"] == ["no-new-privileges:true"]
    assert not of_host.get("Privileged")
    assert asked["user"] == f"{USER}:{USER}"
    assert of_host["Binds"] == ["mr-align-hub:/hub", "/etc/mr-align/secrets:/run/secrets/mr-align:ro"]


def test_a_container_is_told_no_secret(container):
    asked = container()
    assert SECRET not in json.dumps(asked)
    told = asked["environment"]
    assert told["PREFECT_API_URL"] == SERVER
    assert told["PREFECT_HOME"] == "/tmp/prefect"
    assert "PREFECT_API_AUTH_STRING" not in told


def test_a_job_is_one_that_kubernetes_takes(job):
    validate(job())
    validate(job(node_selector={"pool": "spot"}, tolerations=[{"operator": "Exists"}], priority_class="low"))


def test_a_manifest_with_a_mistake_is_refused(job):
    pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    manifest = job()
    manifest["spec"]["template"]["spec"]["volumes"][0]["emptyDir"] = {"sizelimit": "1Gi"}
    with pytest.raises(Exception, match="sizelimit"):
        validate(manifest)


def test_a_pod_is_given_gpus_shared_memory_and_no_more_rights_than_it_needs(job, name):
    pod = job(**({"gpus": 4} if name == "a800" else {}))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (4 if name == "a800" else None)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert mounts["/hub"]["persistentVolumeClaim"]["claimName"] == "mr-align-hub"
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == USER
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["automountServiceAccountToken"] is False


def test_gpu_jobs_go_to_tainted_nodes_that_a_team_names(job, name):
    pod = job(node_selector={"nvidia.com/gpu.product": "NVIDIA-A800-SXM4-80GB"})["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-A800-SXM4-80GB"}
    assert [each["key"] for each in pod["tolerations"]] == (["nvidia.com/gpu"] if name == "a800" else [])


def test_a_pod_is_told_secrets_by_reference_only(job):
    manifest = job(secret="team-keys")
    assert SECRET not in json.dumps(manifest)
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "team-keys", "optional": True}}]
    told = {each["name"]: each["value"] for each in container["env"]}
    # What stands in `env` wins over what `envFrom` gives, so a secret must not be there even as an empty value.
    assert not {"PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"} & set(told)
    assert (told["PREFECT_API_URL"], told["PREFECT_HOME"]) == (SERVER, "/tmp/prefect")


def test_a_preempted_pod_is_started_again_and_not_counted(job):
    manifest = job()
    assert manifest["spec"]["backoffLimit"] == 3
    assert manifest["spec"]["podFailurePolicy"]["rules"] == [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    ]
    assert manifest["spec"]["template"]["spec"]["restartPolicy"] == "Never"  # the policy asks for it
    told = {each["name"]: each["value"] for each in manifest["spec"]["template"]["spec"]["containers"][0]["env"]}
    # The run is not over when its pod is told to end: the next pod goes on with it.
    assert told["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "relinquish"


def test_what_a_run_executes_is_prefects_own_command(job, container):
    assert job()["spec"]["template"]["spec"]["containers"][0]["args"] == ["prefect", "flow-run", "execute"]
    assert container()["command"] == "prefect flow-run execute"


def test_kinds_are_said_for_all_pools_or_for_each():
    assert parse_kinds([]) == {"cpu": "process", "a800": "process"}
    assert parse_kinds(["docker"]) == {"cpu": "docker", "a800": "docker"}
    assert parse_kinds(["docker", "a800=kubernetes"]) == {"cpu": "docker", "a800": "kubernetes"}
    for wrong in ("podman", "h100=docker", "=docker"):
        with pytest.raises(PoolKindError, match=f"{wrong!r}: say one of process, docker, kubernetes, or POOL=KIND"):
            parse_kinds([wrong])
