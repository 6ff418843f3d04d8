"""The fields of KubeRay's resources that its version 1.6.2 has, as far as Fovea's files may use them:
name -> kind.

Copied by hand, names only, from the project's generated reference (docs/reference/api.md of
ray-project/kuberay, and the page "KubeRay CRD API reference" of the Ray documentation, which says that its
fields are those of v1.6.2) and from the definition helm-chart/kuberay-operator/crds/ray.io_rayclusters.yaml.
Not a whole copy, and no operator has read our files. Fields of pods are those of Kubernetes' core v1.

A kind is a type, a list of allowed values, a table for an object, or [table] for a list of objects.
`REQUIRED` names what must be there.
"""

from __future__ import annotations

from typing import Any

TEXTS = "object of texts"
Kind = Any

REQUIRED = {
    "RayCluster": ["apiVersion", "kind", "metadata", "spec"],
    "RayJob": ["apiVersion", "kind", "metadata", "spec"],
    "cluster": ["headGroupSpec"],
    "head": ["rayStartParams", "template"],
    "worker": ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    "pod": ["containers"],
    "container": ["name", "image"],
}

METADATA = {"name": str, "namespace": str, "labels": TEXTS, "annotations": TEXTS}
RESOURCES = {"requests": TEXTS, "limits": TEXTS}
CONTAINER = {
    "name": str,
    "image": str,
    "imagePullPolicy": ["Always", "IfNotPresent", "Never"],
    "command": [str],
    "args": [str],
    "env": [{"name": str, "value": str, "valueFrom": dict}],
    "envFrom": [{"secretRef": dict, "configMapRef": dict}],
    "ports": [{"containerPort": int, "name": str, "protocol": str}],
    "resources": RESOURCES,
    "volumeMounts": [{"name": str, "mountPath": str, "subPath": str, "readOnly": bool}],
    "lifecycle": dict,
    "securityContext": dict,
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": ["", "Memory"], "sizeLimit": str},
    "secret": dict,
    "configMap": dict,
}
POD = {
    "containers": [CONTAINER],
    "initContainers": [CONTAINER],
    "volumes": [VOLUME],
    "nodeSelector": TEXTS,
    "tolerations": [
        {"key": str, "operator": ["Exists", "Equal"], "value": str, "effect": str, "tolerationSeconds": int}
    ],
    "affinity": dict,
    "serviceAccountName": str,
    "imagePullSecrets": [{"name": str}],
    "terminationGracePeriodSeconds": int,
    "priorityClassName": str,
    "runtimeClassName": str,
    "securityContext": {
        "fsGroup": int,
        "fsGroupChangePolicy": ["Always", "OnRootMismatch"],
        "runAsUser": int,
    },
}
TEMPLATE = {"metadata": METADATA, "spec": POD}
HEAD = {
    "rayStartParams": TEXTS,
    "template": TEMPLATE,
    "serviceType": ["ClusterIP", "NodePort", "LoadBalancer"],
    "headService": dict,
    "enableIngress": bool,
}
WORKER = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "idleTimeoutSeconds": int,
    "numOfHosts": int,
    "rayStartParams": TEXTS,
    "template": TEMPLATE,
    "scaleStrategy": dict,
    "suspend": bool,
}
AUTOSCALER = {
    "version": ["v1", "v2"],
    "upscalingMode": ["Default", "Aggressive", "Conservative"],
    "idleTimeoutSeconds": int,
    "image": str,
    "imagePullPolicy": str,
    "resources": RESOURCES,
    "env": list,
    "envFrom": list,
    "volumeMounts": list,
    "securityContext": dict,
}
CLUSTER = {
    "rayVersion": str,
    "authOptions": {"mode": ["disabled", "token"], "enableK8sTokenAuth": bool, "secretName": str},
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": AUTOSCALER,
    "gcsFaultToleranceOptions": dict,
    "headGroupSpec": HEAD,
    "workerGroupSpecs": [WORKER],
    "headServiceAnnotations": TEXTS,
    "managedBy": str,
    "suspend": bool,
}
JOB = {
    "entrypoint": str,
    "submissionMode": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"],
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": CLUSTER,
    "clusterSelector": TEXTS,
    "runtimeEnvYAML": str,
    "jobId": str,
    "metadata": TEXTS,
    "submitterPodTemplate": TEMPLATE,
    "submitterConfig": {"backoffLimit": int},
    "deletionStrategy": dict,
    "entrypointNumCpus": float,
    "entrypointNumGpus": float,
    "entrypointResources": str,
    "managedBy": str,
    "suspend": bool,
}
OBJECTS = {
    "RayCluster": {"apiVersion": ["ray.io/v1"], "kind": str, "metadata": METADATA, "spec": CLUSTER},
    "RayJob": {"apiVersion": ["ray.io/v1"], "kind": str, "metadata": METADATA, "spec": JOB},
}
_REQUIRED_OF = {
    id(OBJECTS["RayCluster"]): "RayCluster",
    id(OBJECTS["RayJob"]): "RayJob",
    id(CLUSTER): "cluster",
    id(HEAD): "head",
    id(WORKER): "worker",
    id(POD): "pod",
    id(CONTAINER): "container",
}


def problems(value: Any, kind: Kind, where: str = "") -> list[str]:
    """What is wrong with a file's value, each with its place in the file."""
    if kind is TEXTS:
        if not isinstance(value, dict):
            return [f"{where} is {value!r}, not an object"]
        return [
            f"{where}.{key} is {inner!r}, not a text"
            for key, inner in value.items()
            if not isinstance(inner, str)
        ]
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return [f"{where} is {value!r}, not an object"]
        found = [f"{where} has no field {key!r}" for key in value if key not in kind]
        required = REQUIRED.get(_REQUIRED_OF.get(id(kind), ""), [])
        found += [f"{where} lacks {key!r}" for key in required if key not in value]
        for key in value.keys() & kind.keys():
            found += problems(value[key], kind[key], f"{where}.{key}")
        return found
    if isinstance(kind, list) and isinstance(kind[0], str):
        return [] if value in kind else [f"{where} is {value!r}, not one of {kind}"]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{where} is {value!r}, not a list"]
        return [
            text
            for index, inner in enumerate(value)
            for text in problems(inner, kind[0], f"{where}[{index}]")
        ]
    right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return [] if right else [f"{where} is {value!r}, not {kind.__name__}"]
