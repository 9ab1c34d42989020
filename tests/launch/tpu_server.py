"""The HTTP API of Cloud TPU and Cloud Storage that a real `gcloud` talks to."""

import base64
from collections.abc import Iterator
import contextlib
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import threading
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.launch import fake_tpu


@contextlib.contextmanager
def serve(fake: fake_tpu.FakeTpu) -> Iterator[tuple[str, list[tuple[str, str]]]]:
  """Yields the server's address and a growing list of (authorization, request)."""
  requests: list[tuple[str, str]] = []

  class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
      pass

    def handle_one(self) -> None:
      url = urlsplit(self.path)
      requests.append(
        (self.headers.get("Authorization", ""), f"{self.command} {self.path}")
      )
      data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
      try:
        code, answer = 200, self.answer(url.path, parse_qs(url.query), data)
      except fake_tpu.ApiError as error:
        code, status, message = error.args
        answer = {"error": {"code": code, "status": status, "message": message}}
      content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
      self.send_response(code)
      is_json = not isinstance(answer, bytes)
      self.send_header(
        "Content-Type", "application/json" if is_json else "application/octet-stream"
      )
      self.send_header("Content-Length", str(len(content)))
      self.end_headers()
      self.wfile.write(content)

    do_GET = do_POST = do_DELETE = do_PUT = handle_one

    def answer(self, path: str, query: dict[str, list[str]], data: bytes) -> Any:
      parts = path.strip("/").split("/")
      match [self.command, *parts]:
        case ["POST", "v2", "projects", p, "locations", z, "queuedResources"]:
          name = query["queuedResourceId"][0]
          fake.create(name, json.loads(data))
          return operation(p, z, {"name": qualified(p, z, name)})
        case ["GET", "v2", "projects", p, "locations", z, "queuedResources", name]:
          return fake.describe(name) | {"name": qualified(p, z, name)}
        case ["DELETE", "v2", "projects", p, "locations", z, "queuedResources", name]:
          fake.delete(name, query.get("force") == ["True"])
          return operation(p, z, {})
        case ["GET", "v2", "projects", p, "locations", z, "operations", _]:
          return operation(p, z, {})
        case ["POST", "upload", "storage", "v1", "b", bucket, "o"]:
          return upload(bucket, self.headers["Content-Type"], data)
        case ["GET", "storage", "v1", "b", bucket]:
          return {"kind": "storage#bucket", "name": bucket}
        case ["GET", "storage", "v1", "b", bucket, "o"]:
          return {"items": [item(bucket, name) for name in fake.objects(bucket)]}
        case ["GET", "storage", "v1", "b", bucket, "o", name]:
          return item(bucket, unquote(name))
        case ["GET", "download", "storage", "v1", "b", bucket, "o", name]:
          return content_of(bucket, unquote(name))
      raise fake_tpu.ApiError(501, "UNIMPLEMENTED", f"{self.command} {path}")

  def qualified(project: str, zone: str, name: str) -> str:
    return f"projects/{project}/locations/{zone}/queuedResources/{name}"

  def operation(project: str, zone: str, response: dict[str, Any]) -> dict[str, Any]:
    kind = "type.googleapis.com/google.cloud.tpu.v2.QueuedResource"
    return {
      "name": f"projects/{project}/locations/{zone}/operations/operation-1",
      "done": True,
      "response": {"@type": kind, **response},
    }

  def content_of(bucket: str, name: str) -> bytes:
    found = fake.objects(bucket).get(name)
    if found is None:
      raise fake_tpu.ApiError(404, "NOT_FOUND", f"no object {name}")
    return found.read_bytes()

  def item(bucket: str, name: str) -> dict[str, Any]:
    content = content_of(bucket, name)
    return {
      "kind": "storage#object",
      "bucket": bucket,
      "name": name,
      "generation": "1",
      "metageneration": "1",
      "size": str(len(content)),
      "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
      "mediaLink": f"{address}/download/storage/v1/b/{bucket}/o/{quote(name, '')}",
      "storageClass": "STANDARD",
      "timeCreated": "2026-01-01T00:00:00Z",
      "updated": "2026-01-01T00:00:00Z",
    }

  def upload(bucket: str, kind: str, data: bytes) -> dict[str, Any]:
    """A multipart upload: the object's resource, then its bytes."""
    boundary = b"--" + kind.partition("boundary=")[2].strip("'\"").encode()
    _, resource, content, _ = data.split(boundary)
    name = json.loads(resource.split(b"\n\n", 1)[1])["name"]
    path = fake.path(f"gs://{bucket}/{name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.split(b"\n\n", 1)[1].removesuffix(b"\n"))
    return item(bucket, name)

  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  address = f"http://127.0.0.1:{server.server_port}"
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield address, requests
  finally:
    server.shutdown()
    server.server_close()


def gcloud_environment(address: str, config: Path) -> dict[str, str]:
  """The environment in which a real `gcloud` talks to `serve` alone."""
  config.mkdir(parents=True, exist_ok=True)
  (config / "token").write_text("a-token")
  return {
    **os.environ,
    "CLOUDSDK_CONFIG": str(config),
    "CLOUDSDK_CORE_PROJECT": "a-project",
    "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    "CLOUDSDK_CORE_CHECK_GCE_METADATA": "0",
    "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
    "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "1",
    "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(config / "token"),
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{address}/",
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{address}/storage/v1/",
  }
