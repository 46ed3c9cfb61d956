"""The synchronous client: typed messages in and out, deadlines on every call, retries for idempotent methods."""
from __future__ import annotations

import hashlib
import os
import pathlib
import time
import uuid
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

import grpc

from rlhf.v1 import (admin_service_pb2_grpc, artifact_service_pb2, artifact_service_pb2_grpc, data_pb2, feedback_service_pb2,
                     feedback_service_pb2_grpc, job_pb2, job_service_pb2, job_service_pb2_grpc, oversight_service_pb2,
                     oversight_service_pb2_grpc, state_pb2)
from rlhf_client._shared import (CLOSED, ENDED, WATCH_SECONDS, Context, RlhfError, chunks_of, digest_of, file_references, load_context,
                                 load_spec, local_files, manifest_of, metric_row, not_open, sample_row)

OnEvent = Callable[[state_pb2.JobEvent], None]


class Client:
    """Thread-safe. Every method raises RlhfError."""

    def __init__(self, context: Context, timeout: float = 30.0):
        if context.insecure:
            self._channel = grpc.insecure_channel(context.target(), context.options())
        else:
            self._channel = grpc.secure_channel(context.target(), context.credentials(), context.options())
        self._timeout = timeout
        self._closed = False
        self._jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._artifacts = artifact_service_pb2_grpc.ArtifactServiceStub(self._channel)
        self._feedback = feedback_service_pb2_grpc.FeedbackServiceStub(self._channel)
        self._oversight = oversight_service_pb2_grpc.OversightServiceStub(self._channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(self._channel)

    @classmethod
    def from_context(cls, path: str = ".rlhf/client.json", timeout: float = 30.0) -> "Client":
        return cls(load_context(path), timeout)

    def close(self) -> None:
        self._closed = True
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _call(self, method: Any, request: Any, timeout: Optional[float] = None) -> Any:
        self._check_open()
        try:
            return method(request, timeout=timeout or self._timeout)
        except grpc.RpcError as error:
            raise RlhfError(error.code(), error.details()) from None
        except ValueError as error:
            raise not_open(error) from None

    def _check_open(self) -> None:
        if self._closed:
            raise RlhfError(CLOSED.code, CLOSED.message)

    # Jobs

    def submit(self, spec: job_pb2.JobSpec, request_id: Optional[str] = None, follow: bool = False,
               on_event: Optional[OnEvent] = None) -> state_pb2.Job:
        """Submits at most once under a request id (a fresh one by default). With follow, returns the ended job."""
        request = job_service_pb2.SubmitJobRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
        job = self._call(self._jobs.SubmitJob, request, 60).job
        return self.wait(job.id, on_event) if follow else job

    def submit_file(self, path: str, request_id: Optional[str] = None, follow: bool = False,
                    on_event: Optional[OnEvent] = None) -> state_pb2.Job:
        """Submits a job's YAML file; what it names as "file:PATH" (relative to it) is uploaded first."""
        spec = load_spec(path)
        for reference, replace in file_references(spec):
            target = pathlib.Path(path).parent / reference
            kind = "model" if (target / "config.json").exists() else "data"
            replace(self.upload(str(target), kind=kind, project=spec.project).digest)
        return self.submit(spec, request_id, follow, on_event)

    def validate(self, spec: job_pb2.JobSpec) -> List[job_service_pb2.SpecProblem]:
        """What is wrong with a specification; nothing is stored."""
        return list(self._call(self._jobs.ValidateJob, job_service_pb2.ValidateJobRequest(spec=spec)).problems)

    def validate_file(self, path: str) -> List[job_service_pb2.SpecProblem]:
        """What `submit_file` would find wrong with a job's YAML file; nothing is uploaded or stored."""
        spec = load_spec(path)
        request = job_service_pb2.ValidateJobRequest()
        for reference, replace in file_references(spec):
            request.uploads.append(digest_of(str(pathlib.Path(path).parent / reference)))
            replace(request.uploads[-1])
        request.spec.CopyFrom(spec)
        return list(self._call(self._jobs.ValidateJob, request).problems)

    def get(self, job: str, project: str = "") -> state_pb2.Job:
        """A job by id, or the newest of a name in the project (default: the token's)."""
        return self._call(self._jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job, project=project))

    def list(self, include_stages: bool = False) -> List[state_pb2.Job]:
        request = job_service_pb2.ListJobsRequest(include_stages=include_stages)
        jobs: List[state_pb2.Job] = []
        while True:
            page = self._call(self._jobs.ListJobs, request)
            jobs.extend(page.jobs)
            if not page.next_page_token:
                return jobs
            request.page.page_token = page.next_page_token

    def cancel(self, job: str) -> state_pb2.Job:
        return self._call(self._jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job))

    def watch(self, job: str, resume_token: int = 0, patience: float = 300.0) -> Iterator[state_pb2.JobEvent]:
        """Events from `resume_token` on until the job ends, across lost connections of up to `patience` seconds."""
        lost: Optional[float] = None
        watched = ""
        while True:
            try:
                watched = watched or self.get(job).id
                self._check_open()
                request = job_service_pb2.WatchJobRequest(job_id=watched, resume_token=resume_token, include_stages=True)
                for event in self._jobs.WatchJob(request, timeout=WATCH_SECONDS):
                    lost = None
                    # Stages count events of their own; the token is of the watched job's.
                    if event.job_id == watched:
                        resume_token = max(resume_token, event.sequence)
                    if event.WhichOneof("what") != "bookmark":
                        yield event
                return
            except (grpc.RpcError, RlhfError) as error:
                code = error.code() if isinstance(error, grpc.RpcError) else error.code
                if code == grpc.StatusCode.OUT_OF_RANGE and resume_token > 0:
                    resume_token = 0
                    continue
                if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise RlhfError(code, error.details() if isinstance(error, grpc.RpcError) else error.message) from None
                lost = lost or time.monotonic()
                if time.monotonic() - lost > patience:
                    raise RlhfError(code, f"lost the coordinator while following {job}; the job goes on") from None
                time.sleep(0.5)
            except ValueError as error:
                raise not_open(error) from None

    def wait(self, job: str, on_event: Optional[OnEvent] = None) -> state_pb2.Job:
        """Blocks until the job ended; on_event sees what happens meanwhile."""
        while True:
            for event in self.watch(job):
                if on_event:
                    on_event(event)
            found = self.get(job)
            if found.state in ENDED:
                return found

    def samples(self, job: str, step: Optional[int] = None) -> Iterator[job_service_pb2.SampleView]:
        request = job_service_pb2.ListSamplesRequest(job_id=job)
        request.page.page_size = 500
        if step is not None:
            request.step = step
        while True:
            page = self._call(self._jobs.ListSamples, request, 60)
            yield from page.samples
            if not page.next_page_token:
                return
            request.page.page_token = page.next_page_token

    def metrics(self, job: str) -> Iterator[Any]:
        request = job_service_pb2.ListMetricsRequest(job_id=job)
        request.page.page_size = 1000
        while True:
            page = self._call(self._jobs.ListMetrics, request)
            yield from page.points
            if not page.next_page_token:
                return
            request.page.page_token = page.next_page_token

    def sample_rows(self, job: str, step: Optional[int] = None) -> List[Dict[str, Any]]:
        """Flat rows: pandas.DataFrame(client.sample_rows("my-job"))."""
        return [sample_row(view) for view in self.samples(job, step)]

    def metric_rows(self, job: str) -> List[Dict[str, Any]]:
        """Flat rows, one a step: pandas.DataFrame(client.metric_rows("my-job")).set_index("step")."""
        return [metric_row(point) for point in self.metrics(job)]

    # Feedback

    def next_tasks(self, job: str = "", max_tasks: int = 1, wait_seconds: float = 5.0) -> feedback_service_pb2.NextTasksResponse:
        """Tasks handed out to this token's subject, first those in hand: answer or skip them before asking again. `job` may be a collect job, a pipeline with one, or empty."""
        request = feedback_service_pb2.NextTasksRequest(job_id=job, max_tasks=max_tasks, wait_ms=int(wait_seconds * 1000))
        return self._call(self._feedback.NextTasks, request, wait_seconds + self._timeout)

    def submit_feedback(self, answers: Sequence[feedback_service_pb2.Answer], request_id: Optional[str] = None) -> List[feedback_service_pb2.AnswerVerdict]:
        request = feedback_service_pb2.SubmitFeedbackRequest(request_id=request_id or uuid.uuid4().hex, answers=answers)
        return list(self._call(self._feedback.SubmitFeedback, request, 60).verdicts)

    # Oversight

    def gates(self, states: Sequence[int] = ()) -> List[state_pb2.GateRow]:
        """Gates that pipelines have come to, with their reports; by default of every state."""
        request = oversight_service_pb2.ListGatesRequest(states=states)
        request.page.page_size = 1000
        gates: List[state_pb2.GateRow] = []
        while True:
            page = self._call(self._oversight.ListGates, request)
            gates.extend(page.gates)
            if not page.next_page_token:
                return gates
            request.page.page_token = page.next_page_token

    def decide_gate(self, gate: str, approve: bool, report_sha256: str = "", comment: str = "") -> state_pb2.GateRow:
        """An overseer's decision. An approval names the report that it rests on: the `report_sha256` of the gate as it was read."""
        request = oversight_service_pb2.DecideGateRequest(gate_id=gate, approve=approve, report_sha256=report_sha256, comment=comment)
        return self._call(self._oversight.DecideGate, request)

    # Artifacts

    def upload(self, path: str, kind: str, project: str = "", alias: str = "", attempts: int = 5) -> data_pb2.Artifact:
        """Uploads a file or folder into the project (default: the token's); what is there already is not sent again, and a lost connection is taken up."""
        files, request = manifest_of(path)
        request.kind, request.project, request.alias = kind, project, alias
        for attempt in range(attempts):
            request.request_id = uuid.uuid4().hex
            try:
                started = self._call(self._artifacts.StartUpload, request, 60)
                if started.complete:
                    return self._call(self._artifacts.GetArtifact,
                                      artifact_service_pb2.GetArtifactRequest(reference=started.digest, project=project))
                self._call(self._artifacts.UploadChunks, chunks_of(files, started), 6 * 3600)
                return self._call(self._artifacts.FinishUpload, artifact_service_pb2.FinishUploadRequest(upload_id=started.upload_id), 1800)
            except RlhfError as error:
                if error.code != grpc.StatusCode.UNAVAILABLE or attempt + 1 == attempts:
                    raise
                time.sleep(0.5)
        raise AssertionError("unreachable")

    def download(self, reference: str, out: str, project: str = "") -> pathlib.Path:
        """Writes an artifact's files below `out`; every digest is checked."""
        artifact = self._call(self._artifacts.GetArtifact, artifact_service_pb2.GetArtifactRequest(reference=reference, project=project))
        root = pathlib.Path(out)
        for entry in artifact.files:
            if pathlib.PurePosixPath(entry.path).is_absolute() or ".." in pathlib.PurePosixPath(entry.path).parts:
                raise RlhfError(grpc.StatusCode.DATA_LOSS, f"artifact {artifact.digest} names a file outside itself: {entry.path!r}")
            with local_files():
                self._download_file(artifact.digest, entry, root / entry.path)
        return root

    def _download_file(self, artifact: str, entry: data_pb2.FileEntry, target: pathlib.Path) -> None:
        """Beside the file and renamed in the end: what is cut off leaves no short file under its name."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part-{os.getpid()}")
        digest = hashlib.sha256()
        try:
            with part.open("wb") as file:
                for chunk in self._artifacts.Download(artifact_service_pb2.DownloadRequest(digest=artifact, path=entry.path), timeout=3600):
                    file.write(chunk.data)
                    digest.update(chunk.data)
            if digest.hexdigest() != entry.sha256:
                raise RlhfError(grpc.StatusCode.DATA_LOSS, f"what came for {target} does not match its digest; download again")
            part.replace(target)
        except grpc.RpcError as error:
            raise RlhfError(error.code(), error.details()) from None
        finally:
            part.unlink(missing_ok=True)


def answers_in_batches(answers: Iterable[feedback_service_pb2.Answer], size: int = 500) -> Iterator[List[feedback_service_pb2.Answer]]:
    """Groups answers for submit_feedback, which takes at most 1000."""
    batch: List[feedback_service_pb2.Answer] = []
    for answer in answers:
        batch.append(answer)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
