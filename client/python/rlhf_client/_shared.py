"""What the synchronous and the asyncio client share: where a coordinator is, retries, errors, and the shape of exports."""
from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import ipaddress
import json
import os
import pathlib
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import grpc
from google.protobuf import json_format

from rlhf.v1 import artifact_service_pb2, job_pb2, job_service_pb2, state_pb2

ENDED = (state_pb2.SUCCEEDED, state_pb2.FAILED, state_pb2.CANCELLED)
CHUNK_BYTES = 1 << 20
# A stream's life is bounded, so that a connection that died silently is found; a watch goes on from its resume token.
WATCH_SECONDS = 600.0

# Calls that may be sent twice: they read, or they carry a request id.
_IDEMPOTENT = {
    "JobService": ["SubmitJob", "ValidateJob", "GetJob", "ListJobs", "CancelJob", "PauseJob", "ResumeJob", "GetLedger", "ListSamples",
                   "ListMetrics", "ExplainJob"],
    "FeedbackService": ["NextTasks", "SubmitFeedback", "GetFeedbackStats"],
    "ArtifactService": ["StartUpload", "GetArtifact", "ListArtifacts", "SetAlias"],
    "OversightService": ["ListGates", "GetServiceState"],
}
_SERVICE_CONFIG: Dict[str, Any] = {
    "methodConfig": [{
        "name": [{"service": f"rlhf.v1.{service}", "method": method} for service, methods in _IDEMPOTENT.items() for method in methods],
        "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "3s", "backoffMultiplier": 2,
                        "retryableStatusCodes": ["UNAVAILABLE"]},
    }]
}
# Of several coordinators one leads and the others stand by: calls go to those that say SERVING.
_SEVERAL = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
OPTIONS: List[Tuple[str, Any]] = [
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
]


class RlhfError(RuntimeError):
    """A call failed. `code` is the gRPC status code, `message` says what was expected, what was found and what to do."""

    def __init__(self, code: grpc.StatusCode, message: Optional[str]):
        super().__init__(f"{message or 'no further reason'} ({code.name})")
        self.code = code
        self.message = message or ""


CLOSED = RlhfError(grpc.StatusCode.FAILED_PRECONDITION, "the client is closed")


def not_open(error: ValueError) -> RlhfError:
    """gRPC's own error for a channel that is closed: by another thread meanwhile, or, with its support of forks, in a child process."""
    return RlhfError(grpc.StatusCode.FAILED_PRECONDITION, f"{error}; after a fork, make a client of its own in each process")


@contextlib.contextmanager
def local_files() -> Iterator[None]:
    """What goes wrong with files of this machine, as the one kind of error."""
    try:
        yield
    except FileNotFoundError as error:
        raise RlhfError(grpc.StatusCode.NOT_FOUND, f"no such file: {error.filename}") from None
    except OSError as error:
        code = grpc.StatusCode.PERMISSION_DENIED if isinstance(error, PermissionError) else grpc.StatusCode.FAILED_PRECONDITION
        raise RlhfError(code, f"{error.filename}: {error.strerror}" if error.filename else str(error)) from None


def _text_of(file: pathlib.Path) -> str:
    """A file's text, which is UTF-8, with or without a byte order mark."""
    with local_files():
        content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{file}:{line}: expected UTF-8, found the byte 0x{content[error.start]:02x}") from None


@dataclasses.dataclass(frozen=True)
class Context:
    """Where a coordinator is and how to speak to it.

    `address` is HOST:PORT; of several coordinators (one leads) IP:PORT,IP:PORT, or dns:///NAME:PORT for a name with all their addresses.
    """
    address: str
    ca: Optional[bytes] = None
    token: Optional[str] = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and not re.fullmatch(r"[A-Za-z0-9._~+/=-]*", self.token):
            raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, "token: expected letters, digits and -._~+/=, found others (they are not shown)")

    def target(self) -> str:
        """What gRPC is told to connect to."""
        if "," not in self.address:
            return self.address
        try:
            versions = {ipaddress.ip_address(host).version for host in self._hosts()}
        except ValueError:
            versions = set()
        if len(versions) != 1:
            raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"of several addresses, expected each as IP:PORT, all IPv4 or all IPv6, found "
                            f"{self.address!r}; for names: dns:///NAME:PORT, with a name that has all the addresses")
        return f"ipv{versions.pop()}:{self.address}"

    def options(self) -> List[Tuple[str, Any]]:
        """Arguments of a channel to it."""
        if "," not in self.address and not self.address.startswith("dns:"):
            return OPTIONS
        several = [(name, value) for name, value in OPTIONS if name != "grpc.service_config"]
        several.append(("grpc.service_config", json.dumps({**_SERVICE_CONFIG, **_SEVERAL})))
        if "," in self.address and not self.insecure:
            hosts = set(self._hosts())
            # Every certificate of a coordinator carries this name.
            several.append(("grpc.ssl_target_name_override", hosts.pop() if len(hosts) == 1 else "coordinator.fleet.rlhf.internal"))
        return several

    def _hosts(self) -> List[str]:
        return [address.rpartition(":")[0].strip("[]") for address in self.address.split(",")]

    def credentials(self) -> grpc.ChannelCredentials:
        credentials = grpc.ssl_channel_credentials(root_certificates=self.ca)
        if self.token:
            credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(self.token))
        return credentials


def load_context(path: str) -> Context:
    """Reads a context file as `rlhfctl up` writes it; paths in it are relative to the file."""
    file = pathlib.Path(path)
    if not file.exists():
        raise RlhfError(grpc.StatusCode.FAILED_PRECONDITION, f"no context file at {file}; `rlhfctl up` writes one")
    try:
        values = json.loads(_text_of(file))
    except json.JSONDecodeError as error:
        raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{file}: not JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("address"), str):
        raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{file}: expected a JSON object with \"address\"")
    ca, token = values.get("ca_file"), values.get("token_file")
    for key, value in (("ca_file", ca), ("token_file", token)):
        if not isinstance(value, (str, type(None))):
            raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{file}: {key}: expected a text, found {json.dumps(value)}")
    with local_files():
        root = (file.parent / ca).read_bytes() if ca else None
    return Context(address=values["address"], ca=root, token=_text_of(file.parent / token).strip() if token else None,
                   insecure=bool(values.get("insecure", False)))


def _enum_name(value: Any, enum: Any, where: str) -> str:
    """An enum's value as `rlhfctl` reads it: upper or lower case, with or without the enum's own name before it."""
    prefix = re.sub("(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
    shorts = []
    for known in enum.values:
        if known.name.endswith("_UNSPECIFIED"):
            continue
        short = known.name[len(prefix):] if known.name.startswith(prefix) else known.name
        if isinstance(value, str) and value.upper() in (known.name, short):
            return str(known.name)
        shorts.append(short.lower())
    raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{where}: expected one of {', '.join(shorts)}, found {json.dumps(value, default=str)}")


def _with_enum_names(content: Any, message: Any, where: str) -> Any:
    """A message's YAML content with every enum's value by its full name; the rest is left for the parser to judge."""
    if not isinstance(content, dict):
        return content
    fields = {name: field for field in message.fields for name in (field.name, field.json_name)}

    def convert(value: Any, field: Any, path: str) -> Any:
        if isinstance(value, list):
            return [convert(item, field, f"{path}[{i}]") for i, item in enumerate(value)]
        if field.enum_type is not None:
            return _enum_name(value, field.enum_type, path)
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            return value
        return _with_enum_names(value, field.message_type, path)

    return {key: convert(value, fields[key], f"{where}: {key}" if ": " not in where else f"{where}.{key}") if key in fields else value
            for key, value in content.items()}


def load_spec(path: str) -> job_pb2.JobSpec:
    """A job from its YAML file (PyYAML is needed: pip install rlhf_client[yaml]). References to files stay as they are."""
    try:
        import yaml
    except ImportError:
        raise RlhfError(grpc.StatusCode.FAILED_PRECONDITION, "reading YAML needs PyYAML: pip install rlhf_client[yaml]") from None

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined,misc]
        """As rlhfctl, refuses a key that is there twice: one of the two would be lost."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key.value, str):
                    continue
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key \"{key.value}\"", key.start_mark)
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    spec = job_pb2.JobSpec()
    try:
        content = yaml.load(_text_of(pathlib.Path(path)), Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else str(path)
        raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(content, dict):
        found = "an empty file" if content is None else json.dumps(content, default=str)[:60]
        raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{path}: expected a mapping, found {found}")
    try:
        json_format.ParseDict(_with_enum_names(content, job_pb2.JobSpec.DESCRIPTOR, path), spec)
    except (json_format.ParseError, TypeError) as error:
        raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{path}: {error}") from None
    return spec


def file_references(message: Any) -> List[Tuple[str, Callable[[str], None]]]:
    """Every string of a specification that says "file:PATH", also in lists of models (other lists are texts): (PATH, what puts another text in its place)."""
    found: List[Tuple[str, Callable[[str], None]]] = []
    for field, value in message.ListFields():
        if field.type == field.TYPE_STRING and isinstance(value, str):
            if value.startswith("file:"):
                found.append((value[len("file:"):], functools.partial(setattr, message, field.name)))
        elif field.type == field.TYPE_STRING and field.name == "models":
            found.extend((item[len("file:"):], functools.partial(value.__setitem__, i)) for i, item in enumerate(value) if item.startswith("file:"))
        elif field.type == field.TYPE_MESSAGE and not (field.message_type.has_options and field.message_type.GetOptions().map_entry):
            for child in (value if hasattr(value, "add") else [value]):
                found.extend(file_references(child))
    return found


def manifest_of(path: str) -> Tuple[List[pathlib.Path], artifact_service_pb2.StartUploadRequest]:
    """The files of a file or folder, in the order of the request that starts their upload."""
    root = pathlib.Path(path)
    if not root.exists():
        raise RlhfError(grpc.StatusCode.NOT_FOUND, f"expected a file or folder at {root}, found none")
    with local_files():
        return _manifest_of(root)


def _files_below(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """As rlhfctl: links to files count as files, and what is hidden (.cache, .gitattributes) is left out."""
    for path in root.rglob("*"):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if path.is_symlink() and not path.is_file():
            raise RlhfError(grpc.StatusCode.INVALID_ARGUMENT, f"{path}: expected a file, or a link to one, found a link to {os.readlink(path)}, "
                            + ("a folder; copy the folder" if path.is_dir() else
                               "which is no regular file" if path.exists() else "where there is nothing: was a download interrupted?"))
        if path.is_file():
            yield path


def _manifest_of(root: pathlib.Path) -> Tuple[List[pathlib.Path], artifact_service_pb2.StartUploadRequest]:
    files = [root] if root.is_file() else sorted(_files_below(root))
    request = artifact_service_pb2.StartUploadRequest()
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as content:
            for block in iter(lambda: content.read(CHUNK_BYTES), b""):
                digest.update(block)
        name = file.name if root.is_file() else file.relative_to(root).as_posix()
        request.files.add(path=name, size=file.stat().st_size, sha256=digest.hexdigest())
    order = sorted(range(len(files)), key=lambda i: request.files[i].path)
    ordered = artifact_service_pb2.StartUploadRequest(files=[request.files[i] for i in order])
    return [files[i] for i in order], ordered


def digest_of(path: str) -> str:
    """The digest that a file or folder has as an artifact."""
    _, request = manifest_of(path)
    canonical = "".join(f"{file.sha256} {file.size} {file.path}\n" for file in request.files)
    return "sha256:" + hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def chunks_of(files: List[pathlib.Path], started: artifact_service_pb2.StartUploadResponse) -> Any:
    """What the service does not have yet."""
    for index, file in enumerate(files):
        offset = started.offsets[index]
        with file.open("rb") as content:
            content.seek(offset)
            for block in iter(lambda: content.read(CHUNK_BYTES), b""):
                yield artifact_service_pb2.UploadChunk(upload_id=started.upload_id, file=index, offset=offset, data=block)
                offset += len(block)


def sample_row(view: job_service_pb2.SampleView) -> Dict[str, Any]:
    """A sample as a flat row, for pandas.DataFrame(client.sample_rows(job))."""
    sample = view.sample
    row: Dict[str, Any] = {
        "step": view.row.id.step, "ordinal": view.row.id.ordinal, "index": view.row.id.index,
        "state": state_pb2.SampleState.Name(view.row.state), "prompt": sample.prompt.text, "response": sample.response_text,
        "category": sample.prompt.category, "tokens": len(sample.response_tokens), "policy_step": sample.version_low.step,
        "worker": sample.worker_id, "score": sample.score.total if sample.HasField("score") else None,
    }
    policy, reference = sample.behaviour_log_probs, sample.score.reference_log_probs
    row["log_prob"] = sum(policy) if policy else None
    row["kl"] = sum(policy) - sum(reference) if policy and len(reference) == len(policy) else None
    for component in sample.score.components:
        row[f"score/{component.name}"] = component.value
    for name, value in sample.prompt.tags.items():
        row[f"tag/{name}"] = value
    return row


def metric_row(point: Any) -> Dict[str, Any]:
    """A step's metrics as a flat row, for pandas.DataFrame(client.metric_rows(job))."""
    return {"step": point.step, "at": point.at.ToDatetime(), **dict(point.values)}
