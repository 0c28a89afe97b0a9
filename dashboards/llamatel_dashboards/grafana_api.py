"""Grafana's HTTP API, as far as installing dashboards needs it: /api/health, /api/folders, /api/dashboards/db.

The token goes into a header and nowhere else: not into messages, not over a redirect.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from llamatel.errors import GrafanaError, HttpError, UsageError
from llamatel.inputs.http import HttpClient

OLDEST = 11
"""Grafana's oldest major version that the dashboards are made for."""
_TIMEOUT_S = 20.0


class Grafana:
    """One Grafana, at the URL of its start page."""

    def __init__(self, url: str, token: str | None = None) -> None:
        """Raises UsageError for anything but an HTTP URL without a password."""
        try:
            parts = urlsplit(url)
        except ValueError:  # a broken IPv6 address
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{url!r} is not the URL of a Grafana, such as http://127.0.0.1:3000")
        if parts.username is not None or parts.password is not None:
            raise UsageError("the URL contains a password, which other users of this machine can see: use a token")
        self.url = url.rstrip("/")
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        self._http = HttpClient(self.url, api_key=token, headers=headers)

    def version(self) -> str | None:
        """Its version; None where it hides it from anonymous clients. Raises GrafanaError."""
        version = self._object("/api/health").get("version")
        return version if isinstance(version, str) else None

    def ensure_folder(self, title: str, uid: str) -> str:
        """The uid of the folder of this title, made with ``uid`` if there is none. Raises GrafanaError."""
        found = self._call("/api/folders?limit=1000")
        for folder in found if isinstance(found, list) else []:
            if isinstance(folder, dict) and folder.get("title") == title:
                return str(folder.get("uid"))
        return str(self._object("/api/folders", {"title": title, "uid": uid}).get("uid"))

    def put_dashboard(self, model: Mapping[str, Any], folder_uid: str | None) -> str:
        """Create or replace a dashboard (by its uid); returns its URL. Raises GrafanaError."""
        body = {"dashboard": {**model, "id": None}, "overwrite": True, "message": "llamatel dashboards push"}
        if folder_uid is not None:
            body["folderUid"] = folder_uid
        saved = self._object("/api/dashboards/db", body)
        parts = urlsplit(self.url)  # Grafana's path includes its own sub-path
        return f"{parts.scheme}://{parts.netloc}{saved.get('url', '')}"

    def _object(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        response = self._call(path, body)
        if not isinstance(response, dict):
            raise GrafanaError(self._refusal(200, None))
        return response

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of the response to a GET, or to a POST of ``body``. Raises GrafanaError."""
        data = None if body is None else json.dumps(body).encode()
        try:
            response = self._http.request(path, body=data, total_s=_TIMEOUT_S)
        except HttpError as error:
            raise GrafanaError(f"cannot reach Grafana at {self.url}: {error}") from error
        try:
            content: Any = response.json()
        except ValueError:
            content = None
        if response.status != 200 or not isinstance(content, (dict, list)):
            raise GrafanaError(self._refusal(response.status, content))
        return content

    def _refusal(self, status: int, content: Any) -> str:
        message = content.get("message") if isinstance(content, dict) else None
        reason = f" ({message})" if message else ""
        if status == 401:
            return f"{self.url} needs a valid token{reason}: --token-file FILE, or GRAFANA_TOKEN"
        if status == 403:
            return f"{self.url} does not allow this token to do that{reason}: it needs the role Editor"
        if status == 400 and "provisioned" in str(message):
            return (
                f"{self.url} has this dashboard provisioned from a file, which cannot be pushed over{reason}: update "
                "the file with `llamatel dashboards export`, or remove its provider first"
            )
        if content is None:
            return f"{self.url} answers with status {status} and no JSON object: is it the URL of Grafana's start page?"
        return f"{self.url} refuses with status {status}{reason}"
