"""docker/ as far as it can be checked without an engine."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from sqlalchemy import make_url
from support.checkout import ROOT

from storage.roles import ROLES

DOCKER = ROOT / "docker"
OVERRIDES = ["compose.gpu.yaml", "compose.env-password.yaml"]
FILES = sorted(
    path
    for path in DOCKER.rglob("*")
    if path.is_file() and path.name != ".env" and "secrets" not in path.parts
)
TEXTS = [DOCKER / "README.md", ROOT / "docs" / "cluster.md"]


class ComposeLoader(yaml.SafeLoader):
    """YAML with Compose's tag !override."""


def _override(loader: ComposeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    return loader.construct_mapping(node, deep=True)


ComposeLoader.add_constructor("!override", _override)


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load((DOCKER / name).read_text(), ComposeLoader)
    return loaded


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OWN = {name: service for name, service in SERVICES.items() if "build" in service}


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), continued lines joined."""
    lines = [
        line
        for line in (DOCKER / "Dockerfile").read_text().splitlines()
        if line and not line.lstrip().startswith("#")
    ]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined]


INSTRUCTIONS = instructions()


def arguments(instruction: str) -> list[str]:
    return [text for name, text in INSTRUCTIONS if name == instruction]


def commands_in_texts() -> list[list[str]]:
    blocks = [
        block
        for path in TEXTS
        for block in re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines]


def commands_in_pods() -> list[list[str]]:
    manifests = [yaml.safe_load(path.read_text()) for path in (DOCKER / "k8s").glob("*.yaml")]
    return [
        container["args"]
        for manifest in manifests
        if manifest["kind"] == "Job"
        for container in manifest["spec"]["template"]["spec"]["containers"]
    ]


def commands_in_array_job() -> list[list[str]]:
    lines = (DOCKER / "slurm" / "worker.sbatch").read_text().splitlines()
    return [shlex.split(line.rstrip("& ")) for line in lines if line.startswith("densitune ")]


def invocations() -> list[list[str]]:
    """Every densitune command line in docker/ and its texts, without the program's name."""
    lines = [
        service["command"]
        for services in (OWN, compose("compose.gpu.yaml")["services"])
        for service in services.values()
        if "entrypoint" not in service
    ]
    lines += [
        words[words.index("densitune") + 1 :]
        for words in commands_in_texts() + commands_in_array_job()
        if "densitune" in words and words[:2] != ["docker", "build"] and words[0] != "kubectl"
    ]
    healthcheck = json.loads(arguments("HEALTHCHECK")[0].split("CMD", 1)[1])
    return [*lines, *commands_in_pods(), healthcheck[1:]]


def build_sources() -> set[str]:
    """Paths of the build context that the Dockerfile takes in; "." for all of it."""
    copied = [source for line in arguments("COPY") for source in line.split()[:-1]]
    mounts = re.findall(r"--mount=type=bind(\S*)", " ".join(arguments("RUN")))
    mounted = [
        found.group(1) if (found := re.search(r"source=([^,]+)", mount)) else "."
        for mount in mounts
    ]
    return {source.rstrip("/") for source in copied + mounted}


def build_context() -> set[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_image_does_not_run_as_root() -> None:
    user = max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "USER")
    assert int(INSTRUCTIONS[user][1].split(":")[0]) > 0
    assert all(name != "RUN" for name, _ in INSTRUCTIONS[user:])
    assert all("user" not in service and "privileged" not in service for service in OWN.values())


def test_build_context_is_an_allow_list_of_what_exists() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert [path for path in sorted(build_context()) if not (ROOT / path).exists()] == []


def test_build_context_holds_all_that_the_dockerfile_and_the_wheel_read() -> None:
    assert build_sources() - {"."} <= build_context()
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = pyproject["tool"]["setuptools"]["packages"]["find"]["include"]
    needed = {pyproject["project"]["readme"], *pyproject["project"]["license-files"]}
    assert needed | {package.rstrip("*") for package in packages} <= build_context()


def test_dockerfile_extracts_the_declared_dependencies() -> None:
    (script,) = re.findall(r'python -c "(.*?)"', " ".join(arguments("RUN")), re.DOTALL)
    script = script.replace("/tmp/pyproject.toml", str(ROOT / "pyproject.toml"))
    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert printed.splitlines() == project["dependencies"]


def test_base_images_are_pinned_to_a_version() -> None:
    images = arguments("FROM") + [
        service["image"] for name, service in SERVICES.items() if name not in OWN
    ]
    assert images
    assert [image for image in images if not re.search(r":\d", image)] == []


@pytest.mark.parametrize("words", invocations(), ids=" ".join)
def test_every_command_is_one_that_densitune_has(words: list[str]) -> None:
    group: Any = typer.main.get_command(importlib.import_module("optimizer.cli.main").app)
    name, *rest = words
    assert name in group.commands
    command = group.commands[name]
    parser = command.make_parser(command.context_class(command, info_name=name))
    values, leftover, _ = parser.parse_args(list(rest))  # raises on an unknown option
    assert leftover == []
    assert [p.name for p in command.params if p.required and values.get(p.name) is None] == []


def test_every_densitune_variable_is_read_by_the_code() -> None:
    used = set(re.findall(r"DENSITUNE_[A-Z_]+", "".join(path.read_text() for path in FILES)))
    code = "".join(
        path.read_text()
        for package in ("optimizer", "workers", "storage")
        for path in (ROOT / package).rglob("*.py")
    )
    assert used
    assert [name for name in sorted(used) if not re.search(rf"\b{name}\b", code)] == []


def test_example_environment_names_the_variables_of_compose() -> None:
    example = dict(re.findall(r"^(\w+)=(.*)$", (DOCKER / ".env.example").read_text(), re.MULTILINE))
    text = "".join((DOCKER / name).read_text() for name in ["compose.yaml", *OVERRIDES])
    assert set(example) == set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    study = yaml.safe_load((DOCKER / example["CONFIG"]).read_text())
    assert study["name"] == example["STUDY"]


def test_no_file_holds_a_password() -> None:
    for path in [*FILES, ROOT / ".dockerignore"]:
        text = path.read_text()
        assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), f"{path}: password in a URL"
    secret = re.compile("PASSWORD|SECRET|TOKEN|KEY")
    for name, service in SERVICES.items():
        files = [f"/run/secrets/{mounted}" for mounted in service["secrets"]]
        for variable, value in service["environment"].items():
            if secret.search(variable):
                assert value in files, f"{name}: {variable}"
    assert not [line for line in arguments("ENV") + arguments("ARG") if secret.search(line)]


def test_git_ignores_the_password_and_the_local_environment() -> None:
    ignored = (DOCKER / ".gitignore").read_text().splitlines()
    for secret in compose()["secrets"].values():
        assert f"{Path(secret['file']).parent.name}/" in ignored
    assert ".env" in ignored


def test_every_service_has_a_health_check() -> None:
    image_has_one = bool(arguments("HEALTHCHECK"))
    assert [
        name
        for name, service in SERVICES.items()
        if "healthcheck" not in service and not (name in OWN and image_has_one)
    ] == []


def test_postgres_is_probed_by_tcp() -> None:
    assert "--host=127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"]


def test_own_services_wait_for_a_healthy_postgres_with_roles() -> None:
    assert OWN["roles"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name, service in OWN.items():
        assert service["init"] is True
        if name != "roles":
            waited_for = {"roles": {"condition": "service_completed_successfully"}}
            assert service["depends_on"] == waited_for


def test_every_service_has_the_role_that_it_needs_and_no_other_password() -> None:
    needed = {"launch": "proposer", "worker": "worker", "dashboard": "reader", "roles": "postgres"}
    assert set(needed) == set(OWN)
    for name, role in needed.items():
        service = OWN[name]
        user = make_url(service["environment"]["DENSITUNE_STORAGE"]).username
        owner = SERVICES["postgres"]["environment"]["POSTGRES_USER"]
        assert user == (owner if role == "postgres" else f"densitune_{role}")
        given = service["environment"]["DENSITUNE_STORAGE_PASSWORD_FILE"]
        assert given == f"/run/secrets/{role}_password"
        assert name == "roles" or service["secrets"] == [f"{role}_password"]


def test_the_service_roles_sets_the_password_of_every_role_to_the_one_that_services_have() -> None:
    command = iter(OWN["roles"]["command"])
    told = {role: file for _, role, file in zip(command, command, command, strict=True)}
    assert told == {
        role: f"/run/secrets/{role.removeprefix('densitune_')}_password" for role in ROLES
    }
    program, *module = OWN["roles"]["entrypoint"]
    assert (program, module) == ("python", ["-m", "storage.roles"])
    assert set(OWN["roles"]["secrets"]) == set(compose()["secrets"])


def test_ports_are_published_on_loopback_only() -> None:
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert [name for name, listed in ports.items() if listed] == ["dashboard"]
    assert all(port.startswith("127.0.0.1:") for listed in ports.values() for port in listed)
    assert all("network_mode" not in service for service in SERVICES.values())


def test_data_lies_in_volumes() -> None:
    (home,) = re.findall(r"DENSITUNE_HOME=(\S+)", " ".join(arguments("ENV")))
    for name in ("launch", "worker"):
        assert f"data:{home}" in SERVICES[name]["volumes"]
    command = SERVICES["launch"]["command"]
    assert Path(command[command.index("--presets") + 1]).is_relative_to(home)
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert set(compose()["volumes"]) == {"data", "postgres"}


def test_gpus_are_asked_for_only_by_the_override() -> None:
    assert all("deploy" not in service for service in SERVICES.values())
    (worker,) = compose("compose.gpu.yaml")["services"].values()
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_overrides_change_only_what_exists() -> None:
    base = compose()
    for override in map(compose, OVERRIDES):
        for section, entries in override.items():
            assert set(entries) <= set(base[section])


def find_compose() -> list[str] | None:
    for candidate in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(candidate[0]):
            asked = subprocess.run(
                [*candidate, "version", "--short"], capture_output=True, text=True
            )
            if asked.returncode == 0 and not asked.stdout.startswith("1."):
                return candidate
    return None


@pytest.mark.parametrize("override", [None, *OVERRIDES])
def test_docker_compose_accepts_the_files(override: str | None) -> None:
    command = find_compose()
    if command is None:
        pytest.skip("Docker Compose 2 is not installed; it needs no engine for this check")
    files = ["--file", "compose.yaml", *(["--file", override] if override else [])]
    ended = subprocess.run(
        [*command, *files, "--env-file", ".env.example", "--profile", "*", "config", "--quiet"],
        cwd=DOCKER,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
