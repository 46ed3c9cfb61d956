"""The asyncio client: as rlhf_client.Client, with coroutines and asynchronous iterators."""
from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any, AsyncIterator, Callable, Dict, List, Optional, Sequence

import grpc
import grpc.aio

from rlhf.v1 import (feedback_service_pb2, feedback_service_pb2_grpc, job_pb2, job_service_pb2, job_service_pb2_grpc, oversight_service_pb2,
                     oversight_service_pb2_grpc, state_pb2)
from rlhf_client._shared import CLOSED, ENDED, WATCH_SECONDS, Context, RlhfError, load_context, metric_row, sample_row


class AsyncClient:
    """For one event loop. Every method raises RlhfError.

        async with AsyncClient.from_context() as client:
            job = await client.submit(spec, follow=True)
    """

    def __init__(self, context: Context, timeout: float = 30.0):
        if context.insecure:
            self._channel = grpc.aio.insecure_channel(context.target(), context.options())
        else:
            self._channel = grpc.aio.secure_channel(context.target(), context.credentials(), context.options())
        self._timeout = timeout
        self._closed = False
        self._jobs = job_service_pb2_grpc.JobServiceStub(self._channel)
        self._feedback = feedback_service_pb2_grpc.FeedbackServiceStub(self._channel)
        self._oversight = oversight_service_pb2_grpc.OversightServiceStub(self._channel)

    @classmethod
    def from_context(cls, path: str = ".rlhf/client.json", timeout: float = 30.0) -> "AsyncClient":
        return cls(load_context(path), timeout)

    async def close(self) -> None:
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def _call(self, method: Any, request: Any, timeout: Optional[float] = None) -> Any:
        self._check_open()
        try:
            return await method(request, timeout=timeout or self._timeout)
        except grpc.aio.AioRpcError as error:
            raise RlhfError(error.code(), error.details()) from None

    def _check_open(self) -> None:
        if self._closed:
            raise RlhfError(CLOSED.code, CLOSED.message)

    async def submit(self, spec: job_pb2.JobSpec, request_id: Optional[str] = None, follow: bool = False,
                     on_event: Optional[Callable[[state_pb2.JobEvent], None]] = None) -> state_pb2.Job:
        """Submits at most once under a request id (a fresh one by default). With follow, returns the ended job."""
        request = job_service_pb2.SubmitJobRequest(request_id=request_id or uuid.uuid4().hex, spec=spec)
        job = (await self._call(self._jobs.SubmitJob, request, 60)).job
        return await self.wait(job.id, on_event) if follow else job

    async def get(self, job: str, project: str = "") -> state_pb2.Job:
        """A job by id, or the newest of a name in the project (default: the token's)."""
        return await self._call(self._jobs.GetJob, job_service_pb2.GetJobRequest(job_id=job, project=project))

    async def list(self, include_stages: bool = False) -> List[state_pb2.Job]:
        request = job_service_pb2.ListJobsRequest(include_stages=include_stages)
        jobs: List[state_pb2.Job] = []
        while True:
            page = await self._call(self._jobs.ListJobs, request)
            jobs.extend(page.jobs)
            if not page.next_page_token:
                return jobs
            request.page.page_token = page.next_page_token

    async def cancel(self, job: str) -> state_pb2.Job:
        return await self._call(self._jobs.CancelJob, job_service_pb2.CancelJobRequest(job_id=job))

    async def watch(self, job: str, resume_token: int = 0, patience: float = 300.0) -> AsyncIterator[state_pb2.JobEvent]:
        """Events from `resume_token` on until the job ends, across lost connections of up to `patience` seconds."""
        lost: Optional[float] = None
        watched = ""
        while True:
            try:
                watched = watched or (await self.get(job)).id
                self._check_open()
                request = job_service_pb2.WatchJobRequest(job_id=watched, resume_token=resume_token, include_stages=True)
                async for event in self._jobs.WatchJob(request, timeout=WATCH_SECONDS):
                    lost = None
                    # Stages count events of their own; the token is of the watched job's.
                    if event.job_id == watched:
                        resume_token = max(resume_token, event.sequence)
                    if event.WhichOneof("what") != "bookmark":
                        yield event
                return
            except (grpc.aio.AioRpcError, RlhfError) as error:
                code = error.code() if isinstance(error, grpc.aio.AioRpcError) else error.code
                if code == grpc.StatusCode.OUT_OF_RANGE and resume_token > 0:
                    resume_token = 0
                    continue
                if code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise RlhfError(code, error.details() if isinstance(error, grpc.aio.AioRpcError) else error.message) from None
                lost = lost or time.monotonic()
                if time.monotonic() - lost > patience:
                    raise RlhfError(code, f"lost the coordinator while following {job}; the job goes on") from None
                await asyncio.sleep(0.5)

    async def wait(self, job: str, on_event: Optional[Callable[[state_pb2.JobEvent], None]] = None) -> state_pb2.Job:
        """Returns when the job ended; on_event sees what happens meanwhile."""
        while True:
            async for event in self.watch(job):
                if on_event:
                    on_event(event)
            found = await self.get(job)
            if found.state in ENDED:
                return found

    async def samples(self, job: str, step: Optional[int] = None) -> AsyncIterator[job_service_pb2.SampleView]:
        request = job_service_pb2.ListSamplesRequest(job_id=job)
        request.page.page_size = 500
        if step is not None:
            request.step = step
        while True:
            page = await self._call(self._jobs.ListSamples, request, 60)
            for view in page.samples:
                yield view
            if not page.next_page_token:
                return
            request.page.page_token = page.next_page_token

    async def metrics(self, job: str) -> AsyncIterator[Any]:
        request = job_service_pb2.ListMetricsRequest(job_id=job)
        request.page.page_size = 1000
        while True:
            page = await self._call(self._jobs.ListMetrics, request)
            for point in page.points:
                yield point
            if not page.next_page_token:
                return
            request.page.page_token = page.next_page_token

    async def sample_rows(self, job: str, step: Optional[int] = None) -> List[Dict[str, Any]]:
        """Flat rows for pandas.DataFrame."""
        return [sample_row(view) async for view in self.samples(job, step)]

    async def metric_rows(self, job: str) -> List[Dict[str, Any]]:
        """Flat rows, one a step, for pandas.DataFrame."""
        return [metric_row(point) async for point in self.metrics(job)]

    async def next_tasks(self, job: str = "", max_tasks: int = 1, wait_seconds: float = 5.0) -> feedback_service_pb2.NextTasksResponse:
        """Tasks handed out to this token's subject, first those in hand: answer or skip them before asking again. `job` may be a collect job, a pipeline with one, or empty."""
        request = feedback_service_pb2.NextTasksRequest(job_id=job, max_tasks=max_tasks, wait_ms=int(wait_seconds * 1000))
        return await self._call(self._feedback.NextTasks, request, wait_seconds + self._timeout)

    async def submit_feedback(self, answers: Sequence[feedback_service_pb2.Answer],
                              request_id: Optional[str] = None) -> List[feedback_service_pb2.AnswerVerdict]:
        request = feedback_service_pb2.SubmitFeedbackRequest(request_id=request_id or uuid.uuid4().hex, answers=answers)
        return list((await self._call(self._feedback.SubmitFeedback, request, 60)).verdicts)

    async def gates(self, states: Sequence[int] = ()) -> List[state_pb2.GateRow]:
        """Gates that pipelines have come to, with their reports; by default of every state."""
        request = oversight_service_pb2.ListGatesRequest(states=states)
        request.page.page_size = 1000
        gates: List[state_pb2.GateRow] = []
        while True:
            page = await self._call(self._oversight.ListGates, request)
            gates.extend(page.gates)
            if not page.next_page_token:
                return gates
            request.page.page_token = page.next_page_token

    async def decide_gate(self, gate: str, approve: bool, report_sha256: str = "", comment: str = "") -> state_pb2.GateRow:
        """An overseer's decision. An approval names the report that it rests on: the `report_sha256` of the gate as it was read."""
        request = oversight_service_pb2.DecideGateRequest(gate_id=gate, approve=approve, report_sha256=report_sha256, comment=comment)
        return await self._call(self._oversight.DecideGate, request)
