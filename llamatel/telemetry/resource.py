"""The resource of telemetry: service and process."""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from opentelemetry.sdk.resources import Resource

from llamatel.telemetry.settings import Settings

SERVICE = "llamatel"


def resource_of(settings: Settings, extra: Mapping[str, str | int] = MappingProxyType({})) -> Resource:
    """The environment overrides what is detected here, arguments override both.

    ``service.version`` is present only if one of them has it. Never the command line: it may hold an API key.
    """
    detected = Resource.create()
    attributes = {
        "service.name": SERVICE,
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
        "process.runtime.name": sys.implementation.name,
        "process.runtime.version": platform.python_version(),
        **detected.attributes,
        **extra,
    }
    attributes.setdefault("service.instance.id", str(uuid.uuid4()))
    if settings.service_name:
        attributes["service.name"] = settings.service_name
    elif str(attributes["service.name"]).startswith("unknown_service"):
        attributes["service.name"] = SERVICE
    return Resource(attributes, detected.schema_url)


def resource_after_fork(parent: Resource) -> Resource:
    """The resource of a forked child: another process, and another instance of the service."""
    detected = Resource.create()
    changed: dict[str, str | int] = {"process.pid": os.getpid()}
    given = detected.attributes.get("service.instance.id")
    same = given is None or given == parent.attributes.get("service.instance.id")
    changed["service.instance.id"] = str(uuid.uuid4()) if same else str(given)
    return Resource({**parent.attributes, **changed}, parent.schema_url)


def installed_version() -> str | None:
    """Llamatel's version."""
    try:
        return version("llamatel")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return None
