"""Checks the Helm chart: lint, rendering in every shape, and each object against the schemas of Kubernetes.

`make chart` runs it with a Python that has kubernetes-validate; `helm` is on PATH, or its path is the first argument.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHART = Path(__file__).with_name("helm") / "ringfence"
KUBERNETES = ("1.28.0", "1.34.0")
"""The oldest that the chart is for, and a new one."""

SHAPES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "autoscaled": ("api.autoscaling.enabled=true", "scheduler.enabled=false"),
    "ray": ("ray.enabled=true", "ray.serveInference=true", "ray.tokenSecret=token", "networkPolicy.enabled=false"),
    "ray behind a policy": ("ray.enabled=true", "image.pullSecrets={registry}", "serviceAccount.create=false"),
}
REFUSED: dict[str, str] = {
    "settings.RINGFENCE_REDIS_PASSWORD=x": "a password among the settings",
    "existingSecrets=null": "no secret at all",
    "api.resources.limits=null": "no limits",
}


def main() -> None:
    """Check everything; exit with 1 and say what is wrong."""
    helm = sys.argv[1] if len(sys.argv) > 1 else "helm"
    run(helm, "lint", "--strict", "--quiet")
    problems = [problem for shape, values in SHAPES.items() for problem in wrong_with(helm, shape, values)]
    for value, what in REFUSED.items():
        if run(helm, "template", "x", values=(value,), may_fail=True).returncode == 0:
            problems.append(f"values with {what} are not refused")
    sys.stderr.write("".join(f"{problem}\n" for problem in problems))
    sys.exit(bool(problems))


def wrong_with(helm: str, shape: str, values: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with the objects of one shape."""
    import kubernetes_validate
    import yaml

    for version in KUBERNETES:
        rendered = run(helm, "template", "x", "--kube-version", version, values=values).stdout
        for document in filter(None, yaml.safe_load_all(rendered)):
            for checked in objects(document):
                try:
                    kubernetes_validate.validate(checked, version.rpartition(".")[0], strict=True)
                except kubernetes_validate.ValidationError as error:
                    name = f"{document['kind']} {document['metadata']['name']}"
                    yield f"{shape}, Kubernetes {version}, {name}: {error.message}"


def objects(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what has a schema of Kubernetes' own: of a RayCluster its pods."""
    if document["kind"] != "RayCluster":
        yield document
        return
    for group in (document["spec"]["headGroupSpec"], *document["spec"]["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "Pod", **group["template"]}


def run(
    helm: str, *command: str, values: tuple[str, ...] = (), may_fail: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run helm on the chart; say what it said when it must not fail."""
    settings = [argument for value in values for argument in ("--set", value)]
    if command[0] == "template" and "--kube-version" not in command:
        settings += ["--kube-version", KUBERNETES[-1]]
    done = subprocess.run([helm, *command, CHART, *settings], capture_output=True, text=True, check=False)
    if done.returncode and not may_fail:
        sys.stderr.write(done.stdout + done.stderr)
        sys.exit(1)
    return done


if __name__ == "__main__":
    main()
