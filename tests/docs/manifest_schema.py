"""JSON schemas of the Kubernetes objects in deploy/, closed: a field that is not there is an error.

Kubernetes' own types come from the `lightkube-models` package, which is generated from the API that
Kubernetes publishes; its sources are read, not imported, since importing them needs a whole client.
KubeRay publishes no package, so the fields of its two resources are written down here, as of KubeRay
1.6. A field that a manifest needs and that is newer than that is added here.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
from pathlib import Path
from typing import Any

import jsonschema

Schema = dict[str, Any]

QUANTITY = r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
AMOUNTS: Schema = {
    "type": "object",
    "additionalProperties": {"type": ["string", "number"], "pattern": QUANTITY},
}
# The API calls all of these `dict`.
MAPS = {"limits": AMOUNTS, "requests": AMOUNTS, "capacity": AMOUNTS, "overhead": AMOUNTS}
PLAIN: dict[str, Schema] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "resource.Quantity": {"type": ["string", "number"], "pattern": QUANTITY},
    "util_intstr.IntOrString": {"type": ["string", "integer"]},
    "meta_v1.Time": {"type": "string"},
    "meta_v1.MicroTime": {"type": "string"},
    "meta_v1.FieldsV1": {"type": "object"},
    "runtime.RawExtension": {"type": "object"},
}


def kubernetes(name: str) -> Schema:
    """Name one of Kubernetes' own types, as `core_v1.PodTemplateSpec`."""
    return {"$ref": f"#/$defs/{name}"}


def closed(required: str, **fields: Schema) -> Schema:
    """Return an object with these fields and no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": required.split(),
        "additionalProperties": False,
    }


TEXT, COUNT, NUMBER, YES = (
    PLAIN["str"],
    {"type": "integer", "minimum": 0},
    PLAIN["float"],
    PLAIN["bool"],
)
POD = kubernetes("core_v1.PodTemplateSpec")
AUTOSCALER = closed(
    "",
    resources=kubernetes("core_v1.ResourceRequirements"),
    image=TEXT,
    imagePullPolicy=TEXT,
    securityContext=kubernetes("core_v1.SecurityContext"),
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    version={"enum": ["v1", "v2"]},
    env={"type": "array", "items": kubernetes("core_v1.EnvVar")},
    volumeMounts={"type": "array", "items": kubernetes("core_v1.VolumeMount")},
)
HEAD = closed(
    "template",
    template=POD,
    headService=kubernetes("core_v1.Service"),
    serviceType=TEXT,
    enableIngress=YES,
    rayStartParams=TEXTS,
)
WORKERS = closed(
    "groupName maxReplicas minReplicas template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=YES,
    autoscalerOptions=AUTOSCALER,
    authOptions=closed("", mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    headServiceAnnotations=TEXTS,
    suspend=YES,
)
RAY_JOB = closed(
    "",
    entrypoint=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    entrypointResources=TEXT,
    runtimeEnvYAML=TEXT,
    metadata=TEXTS,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    submitterPodTemplate=POD,
    submitterConfig=closed("", backoffLimit=COUNT),
    shutdownAfterJobFinishes=YES,
    ttlSecondsAfterFinished=COUNT,
    activeDeadlineSeconds=COUNT,
    preRunningDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    suspend=YES,
    rayClusterSpec=RAY_CLUSTER,
    clusterSelector=TEXTS,
    jobId=TEXT,
)
RAY_CRON_JOB = closed(
    "schedule jobTemplate", schedule=TEXT, timeZone=TEXT, suspend=YES, jobTemplate=RAY_JOB
)


def resource(version: str, kind: str, spec: Schema) -> Schema:
    """Return a resource of KubeRay's."""
    return closed(
        "apiVersion kind metadata spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=kubernetes("meta_v1.ObjectMeta"),
        spec=spec,
    )


KINDS = {
    ("ray.io/v1", "RayJob"): resource("ray.io/v1", "RayJob", RAY_JOB),
    ("ray.io/v1", "RayCronJob"): resource("ray.io/v1", "RayCronJob", RAY_CRON_JOB),
    ("batch/v1", "CronJob"): kubernetes("batch_v1.CronJob"),
    ("v1", "ServiceAccount"): kubernetes("core_v1.ServiceAccount"),
    ("rbac.authorization.k8s.io/v1", "Role"): kubernetes("rbac_v1.Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): kubernetes("rbac_v1.RoleBinding"),
}


def check(manifest: dict[str, Any]) -> None:
    """Hold a manifest against the schema of its kind.

    Raises:
        jsonschema.ValidationError: the field, and what is wrong with it.
    """
    kind = (manifest.get("apiVersion"), manifest.get("kind"))
    if kind not in KINDS:
        raise jsonschema.ValidationError(f"{kind}: no such kind among {sorted(KINDS)}")
    schema = {**KINDS[kind], "$defs": definitions()}
    raise_first(jsonschema.Draft202012Validator(schema), manifest)


def raise_first(validator: jsonschema.Draft202012Validator, manifest: dict[str, Any]) -> None:
    """Raise the first of the errors, with the path of its field in front."""
    for error in validator.iter_errors(manifest):
        path = ".".join(str(step) for step in error.absolute_path)
        raise jsonschema.ValidationError(f"{path}: {error.message}")


@functools.cache
def definitions() -> dict[str, Schema]:
    """Return every type that the kinds here lead to, as `module.Class`."""
    found: dict[str, Schema] = {}
    names = wanted(list(KINDS.values()))
    while names:
        name = names.pop()
        if name not in found:
            found[name] = definition(*name.split("."))
            names |= wanted(found[name])
    return found


def wanted(schema: Any) -> set[str]:
    """Return the names that a schema refers to."""
    return set(re.findall(r"'#/\$defs/([\w.]+)'", str(schema)))


def definition(module: str, name: str) -> Schema:
    """Return the schema of one class of lightkube's models."""
    fields = {}
    required = []
    for node in classes(module)[name].body:
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name) and isinstance(node.annotation, ast.Constant)
            # A name that Python keeps for itself, as `continue`, has an underscore behind it.
            field = node.target.id.rstrip("_")
            fields[field] = field_schema(module, field, node.annotation.value)
            if node.value is None:
                required.append(field)
    return closed(" ".join(required), **fields)


def field_schema(module: str, field: str, annotation: str) -> Schema:
    """Return the schema of `Optional[List[core_v1.EnvVar]]` and its like."""
    for wrapper in ("Optional", "List"):
        if inner := re.fullmatch(rf"{wrapper}\[(.+)\]", annotation):
            schema = field_schema(module, field, inner[1])
            return {"type": "array", "items": schema} if wrapper == "List" else schema
    if annotation == "dict":
        return MAPS.get(field, TEXTS)
    if annotation in PLAIN:
        return PLAIN[annotation]
    full = annotation if "." in annotation else f"{module}.{annotation}"
    # Neighbours in a module go without its name: `Time` in meta_v1.
    return PLAIN.get(full) or ({} if is_alias(full) else kubernetes(full))


def is_alias(name: str) -> bool:
    """Return True for a type that is no class: any object is taken for it."""
    module, _, own = name.partition(".")
    return own not in classes(module)


@functools.cache
def classes(module: str) -> dict[str, ast.ClassDef]:
    """Return the classes of one of lightkube's modules."""
    path = importlib.metadata.distribution("lightkube-models").locate_file(
        f"lightkube/models/{module}.py"
    )
    tree = ast.parse(Path(str(path)).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
