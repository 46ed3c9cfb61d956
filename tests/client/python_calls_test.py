"""What the Python clients ask a service and make of its answers: pages, lost connections, uploads that are taken up; against one that only pretends."""
import asyncio
import concurrent.futures
import json
import pathlib
import tempfile
import unittest
import unittest.mock

import grpc

from rlhf.v1 import (artifact_service_pb2, artifact_service_pb2_grpc, common_pb2, data_pb2, feedback_service_pb2, feedback_service_pb2_grpc, job_pb2, job_service_pb2,
                     job_service_pb2_grpc, oversight_service_pb2, oversight_service_pb2_grpc, state_pb2)
from rlhf_client import AsyncClient, Client, Context, RlhfError, load_context
from rlhf_client import _shared, aio, client as client_module
from rlhf_client.client import answers_in_batches

UNAVAILABLE, OUT_OF_RANGE, DENIED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.PERMISSION_DENIED


def event(sequence, job="job-1", message="on"):
    return state_pb2.JobEvent(job_id=job, sequence=sequence, message=message)


def bookmark(sequence):
    made = state_pb2.JobEvent(job_id="job-1", sequence=sequence)
    made.bookmark.SetInParent()
    return made


def page_of(request, items):
    """Two items a page; the token is where the next one begins."""
    begin = int(request.page.page_token or 0)
    end = min(begin + 2, len(items))
    return items[begin:end], str(end) if end < len(items) else ""


class Fake(job_service_pb2_grpc.JobServiceServicer, artifact_service_pb2_grpc.ArtifactServiceServicer, feedback_service_pb2_grpc.FeedbackServiceServicer,
           oversight_service_pb2_grpc.OversightServiceServicer):
    def __init__(self):
        self.requests, self.watches, self.states, self.uploads, self.times = [], [], [state_pb2.SUCCEEDED], [], []
        self.stored = b""

    def note(self, request, context):
        self.requests.append(request)
        self.times.append(context.time_remaining())

    def GetJob(self, request, context):
        self.note(request, context)
        return state_pb2.Job(id="job-1", state=self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def SubmitJob(self, request, context):
        self.note(request, context)
        return job_service_pb2.SubmitJobResponse(job=state_pb2.Job(id="job-1", state=state_pb2.QUEUED))

    def ValidateJob(self, request, context):
        self.note(request, context)
        return job_service_pb2.ValidateJobResponse()

    def ListJobs(self, request, context):
        self.note(request, context)
        jobs, token = page_of(request, [state_pb2.Job(id=f"job-{i}") for i in range(5)])
        return job_service_pb2.ListJobsResponse(jobs=jobs, next_page_token=token)

    def ListSamples(self, request, context):
        self.note(request, context)
        views, token = page_of(request, [job_service_pb2.SampleView(row=state_pb2.SampleRow(id=common_pb2.SampleId(index=i))) for i in range(3)])
        return job_service_pb2.ListSamplesResponse(samples=views, next_page_token=token)

    def ListMetrics(self, request, context):
        self.note(request, context)
        points, token = page_of(request, [data_pb2.MetricPoint(step=i, values={"kl": i / 2}) for i in range(3)])
        return job_service_pb2.ListMetricsResponse(points=points, next_page_token=token)

    def ListGates(self, request, context):
        self.note(request, context)
        gates, token = page_of(request, [state_pb2.GateRow(id=str(i)) for i in range(3)])
        return oversight_service_pb2.ListGatesResponse(gates=gates, next_page_token=token)

    def DecideGate(self, request, context):
        self.note(request, context)
        return state_pb2.GateRow(id=request.gate_id)

    def NextTasks(self, request, context):
        self.note(request, context)
        return feedback_service_pb2.NextTasksResponse()

    def SubmitFeedback(self, request, context):
        self.note(request, context)
        return feedback_service_pb2.SubmitFeedbackResponse(verdicts=[feedback_service_pb2.AnswerVerdict(accepted=True) for _ in request.answers])

    def WatchJob(self, request, context):
        self.note(request, context)
        for said in self.watches.pop(0):
            if isinstance(said, grpc.StatusCode):
                context.abort(said, "as the test wants it")
            yield said

    def StartUpload(self, request, context):
        self.note(request, context)
        return artifact_service_pb2.StartUploadResponse(upload_id="u", offsets=[len(self.stored)], digest="sha256:d",
                                                        complete=len(self.stored) == request.files[0].size)

    def UploadChunks(self, requests, context):
        for chunk in requests:
            self.uploads.append((chunk.upload_id, chunk.file, chunk.offset, len(chunk.data)))
            if chunk.offset != len(self.stored):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"expected {len(self.stored)}")
            self.stored += chunk.data
            if self.states[0] == state_pb2.PAUSED:  # the connection is lost after a piece
                self.states = [state_pb2.SUCCEEDED]
                context.abort(UNAVAILABLE, "lost")
        return artifact_service_pb2.UploadChunksResponse()

    def FinishUpload(self, request, context):
        return data_pb2.Artifact(digest="sha256:finished")

    def GetArtifact(self, request, context):
        self.note(request, context)
        return data_pb2.Artifact(digest=request.reference, project=request.project, files=[data_pb2.FileEntry(path=self.stored.decode(), size=0)])


class CallsTest(unittest.TestCase):
    def setUp(self):
        self.service = Fake()
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
        for add in (job_service_pb2_grpc.add_JobServiceServicer_to_server, artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server,
                    feedback_service_pb2_grpc.add_FeedbackServiceServicer_to_server, oversight_service_pb2_grpc.add_OversightServiceServicer_to_server):
            add(self.service, server)
        self.context = Context(address=f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}", insecure=True)
        server.start()
        self.addCleanup(server.stop, None)
        self.client = Client(self.context)
        self.addCleanup(self.client.close)
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = pathlib.Path(scratch.name)

    def asynchronously(self, use):
        async def run():
            async with AsyncClient(self.context) as other:
                return await use(other)

        return asyncio.run(run())

    def both(self, name, *arguments, **named):
        """What the synchronous and the asyncio client make of a call, and what each asked."""
        results = []
        for asyncio_s in (False, True):
            self.service.requests.clear()
            if not asyncio_s:
                found = getattr(self.client, name)(*arguments, **named)
                results.append(list(found) if hasattr(found, "__next__") else found)
            else:
                async def use(other):
                    found = getattr(other, name)(*arguments, **named)
                    return [item async for item in found] if hasattr(found, "__anext__") else await found

                results.append(self.asynchronously(use))
            results.append(list(self.service.requests))
        self.assertEqual(results[0], results[2])
        return results[0], results[1], results[3]

    def test_listings_have_all_their_pages(self):
        jobs, *asked = self.both("list", include_stages=True)
        self.assertEqual([job.id for job in jobs], [f"job-{i}" for i in range(5)])
        gates, *asked_gates = self.both("gates", [state_pb2.GATE_WAITING])
        self.assertEqual([gate.id for gate in gates], ["0", "1", "2"])
        metrics, *asked_metrics = self.both("metric_rows", "job-1")
        self.assertEqual([(row["step"], row["kl"]) for row in metrics], [(0, 0.0), (1, 0.5), (2, 1.0)])
        samples, *asked_samples = self.both("samples", "job-1", 0)
        self.assertEqual([view.row.id.index for view in samples], [0, 1, 2])
        for requests in asked:
            self.assertTrue(len(requests) == 3 and all(request.include_stages for request in requests))
        for requests in asked_gates:
            self.assertEqual([list(request.states) for request in requests], [[state_pb2.GATE_WAITING]] * 2)
        for requests in asked_samples:
            self.assertTrue(all(request.HasField("step") and request.step == 0 for request in requests), "step 0 is one")
        for requests in self.both("samples", "job-1")[1:]:
            self.assertFalse(any(request.HasField("step") for request in requests))

    def test_a_watch_goes_on_where_it_was_cut(self):
        for asyncio_s in (False, True):
            self.service.requests.clear()
            # The stage's numbers are its own; a bookmark moves on without being told.
            self.service.watches = [[event(3), event(90, "stage-2"), bookmark(7), UNAVAILABLE], [OUT_OF_RANGE], [event(11), grpc.StatusCode.DEADLINE_EXCEEDED], [event(12)]]
            if not asyncio_s:
                seen = list(self.client.watch("by-name", resume_token=2))
            else:
                async def use(other):
                    return [found async for found in other.watch("by-name", resume_token=2)]

                seen = self.asynchronously(use)
            self.assertEqual([(found.job_id, found.sequence) for found in seen], [("job-1", 3), ("stage-2", 90), ("job-1", 11), ("job-1", 12)])
            asked = [request for request in self.service.requests if isinstance(request, job_service_pb2.WatchJobRequest)]
            self.assertEqual([(request.job_id, request.resume_token, request.include_stages) for request in asked],
                             [("job-1", 2, True), ("job-1", 7, True), ("job-1", 0, True), ("job-1", 11, True)])

    def test_a_watch_ends_on_other_errors_and_without_patience(self):
        for said, patience, code, words in (([DENIED], 300.0, DENIED, "as the test wants it"), ([OUT_OF_RANGE], 300.0, OUT_OF_RANGE, "as the test wants it"),
                                            ([UNAVAILABLE], -1.0, UNAVAILABLE, "lost the coordinator while following job-1; the job goes on")):
            for asyncio_s in (False, True):
                self.service.watches = [said]
                with self.assertRaises(RlhfError) as caught:
                    if not asyncio_s:
                        list(self.client.watch("job-1", patience=patience))
                    else:
                        async def use(other):
                            return [found async for found in other.watch("job-1", patience=patience)]

                        self.asynchronously(use)
                self.assertIs(caught.exception.code, code)
                self.assertEqual(caught.exception.message, words)

    def test_patience_begins_anew_with_every_event(self):
        class Clock:
            now = 1000.0

            def monotonic(self):
                return self.now

            def sleep(self, _):
                self.now += 200.0

        class Loop(Clock):
            async def sleep(self, _):
                clock.now += 200.0

        clock = Clock()

        async def use(other):
            return [found async for found in other.watch("job-1", patience=300.0)]

        with unittest.mock.patch.object(client_module, "time", clock), unittest.mock.patch.object(aio, "time", clock), unittest.mock.patch.object(aio, "asyncio", Loop()):
            for watch in (lambda: list(self.client.watch("job-1", patience=300.0)), lambda: self.asynchronously(use)):
                self.service.watches = [[UNAVAILABLE], [event(1), UNAVAILABLE], [UNAVAILABLE], [event(2)]]
                self.assertEqual([found.sequence for found in watch()], [1, 2])
                self.service.watches = [[UNAVAILABLE], [UNAVAILABLE], [UNAVAILABLE], [event(1)]]
                with self.assertRaisesRegex(RlhfError, "lost the coordinator"):
                    watch()

    def test_waiting_goes_on_until_the_job_has_ended(self):
        for asyncio_s in (False, True):
            # Of the watch's own look, after it, of the second watch, after that.
            self.service.states = [state_pb2.RUNNING, state_pb2.RUNNING, state_pb2.RUNNING, state_pb2.CANCELLED]
            self.service.watches, seen = [[event(1)], [event(1), event(2)]], []
            if not asyncio_s:
                ended = self.client.submit(job_pb2.JobSpec(name="a"), follow=True, on_event=seen.append)
            else:
                ended = self.asynchronously(lambda other: other.submit(job_pb2.JobSpec(name="a"), follow=True, on_event=seen.append))
            self.assertEqual(ended.state, state_pb2.CANCELLED)
            self.assertEqual([found.sequence for found in seen], [1, 1, 2])

    def test_request_ids_are_the_callers_or_new(self):
        _, first, second = self.both("submit", job_pb2.JobSpec(name="a"))
        self.assertEqual(len({first[0].request_id, second[0].request_id, ""}), 3)
        answers = [feedback_service_pb2.Answer(task_id="t")]
        _, first, second = self.both("submit_feedback", answers)
        self.assertEqual(len({first[0].request_id, second[0].request_id, ""}), 3)
        for name, what in (("submit", job_pb2.JobSpec(name="a")), ("submit_feedback", answers)):
            _, *asked = self.both(name, what, request_id="mine")
            self.assertEqual([requests[0].request_id for requests in asked], ["mine"] * 2)

    def test_who_waits_for_tasks_waits_longer_for_the_answer(self):
        _, *asked = self.both("next_tasks", "job-1", 3, 40.0)
        for requests in asked:
            self.assertEqual((requests[0].job_id, requests[0].max_tasks, requests[0].wait_ms), ("job-1", 3, 40_000))
        self.assertTrue(all(60 < left < 75 for left in self.service.times), self.service.times)

    def test_a_gate_is_decided_by_its_report(self):
        _, *asked = self.both("decide_gate", "g", True, "abc", "read")
        for requests in asked:
            self.assertEqual(requests[0], oversight_service_pb2.DecideGateRequest(gate_id="g", approve=True, report_sha256="abc", comment="read"))

    def test_an_upload_is_taken_up_where_it_was_cut(self):
        file = self.dir / "data.jsonl"
        file.write_bytes(b"x" * (_shared.CHUNK_BYTES + 10))
        self.service.states = [state_pb2.PAUSED]
        made = self.client.upload(str(file), "data", project="red", alias="a")
        self.assertEqual(made.digest, "sha256:finished")
        self.assertEqual(self.service.stored, file.read_bytes())
        self.assertEqual(self.service.uploads, [("u", 0, 0, _shared.CHUNK_BYTES), ("u", 0, _shared.CHUNK_BYTES, 10)])
        first, second = [request for request in self.service.requests if isinstance(request, artifact_service_pb2.StartUploadRequest)]
        self.assertEqual((first.kind, first.project, first.alias, first.files[0].path), ("data", "red", "a", "data.jsonl"))
        self.assertNotEqual(first.request_id, second.request_id)
        # What is there is not sent again.
        self.assertEqual(self.client.upload(str(file), "data", project="red").project, "red")
        self.assertEqual(len(self.service.uploads), 2)
        # Other errors, and the last attempt's, are told.
        self.service.stored = b""
        self.service.states = [state_pb2.PAUSED]
        with self.assertRaisesRegex(RlhfError, "lost"):
            self.client.upload(str(file), "data", attempts=1)
        with unittest.mock.patch.object(client_module, "chunks_of", lambda files, started: iter([artifact_service_pb2.UploadChunk(offset=5)])):
            self.service.requests.clear()
            with self.assertRaisesRegex(RlhfError, "expected"):
                self.client.upload(str(file), "data")
            self.assertEqual(len(self.service.requests), 1, "it would fail again")

    def test_a_jobs_files_are_uploaded_or_named(self):
        (self.dir / "m").mkdir()
        (self.dir / "m" / "config.json").write_text("{}")
        (self.dir / "d.jsonl").write_text("{}\n")
        job = self.dir / "job.yaml"
        job.write_text("name: a\nproject: red\nsft: {model: \"file:m\", data: \"file:d.jsonl\"}\n")
        self.assertEqual(self.client.validate_file(str(job)), [])
        digests = [_shared.digest_of(str(self.dir / "m")), _shared.digest_of(str(self.dir / "d.jsonl"))]
        asked = self.service.requests[-1]
        self.assertEqual((list(asked.uploads), [asked.spec.sft.model, asked.spec.sft.data]), (digests, digests))
        with unittest.mock.patch.object(self.client, "upload", return_value=data_pb2.Artifact(digest="sha256:1")) as upload:
            self.client.submit_file(str(job))
        self.assertEqual(upload.mock_calls, [unittest.mock.call(str(self.dir / "m"), kind="model", project="red"),
                                             unittest.mock.call(str(self.dir / "d.jsonl"), kind="data", project="red")])
        self.assertEqual(self.service.requests[-1].spec.sft.data, "sha256:1")

    def test_a_download_stays_within_its_folder(self):
        for path in ("../outside", "/outside", "a/../../outside"):
            self.service.stored = path.encode()
            with self.assertRaisesRegex(RlhfError, "names a file outside itself"):
                self.client.download("a", str(self.dir / "out"))

    def test_answers_come_in_batches(self):
        answers = [feedback_service_pb2.Answer(task_id=str(i)) for i in range(7)]
        self.assertEqual([[answer.task_id for answer in batch] for batch in answers_in_batches(answers, 3)], [["0", "1", "2"], ["3", "4", "5"], ["6"]])
        self.assertEqual([len(batch) for batch in answers_in_batches(answers[:6], 3)], [3, 3])
        self.assertEqual(list(answers_in_batches([])), [])


class SharedTest(unittest.TestCase):
    def test_targets(self):
        for address, target in (("localhost:7001", "localhost:7001"), ("dns:///rlhf:7001", "dns:///rlhf:7001"), ("10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1"),
                                ("[fd00::1]:1,[fd00::2]:1", "ipv6:[fd00::1]:1,[fd00::2]:1")):
            self.assertEqual(Context(address=address).target(), target)
        for address in ("10.0.0.1:1,[fd00::2]:1", "one:1,10.0.0.2:1"):
            with self.assertRaisesRegex(RlhfError, "expected each as IP:PORT, all IPv4 or all IPv6"):
                Context(address=address).target()

    def test_of_several_coordinators_the_one_that_serves_is_asked(self):
        def options_of(**context):
            options = dict(Context(**context).options())
            return json.loads(options["grpc.service_config"]), options.get("grpc.ssl_target_name_override"), options

        one, name, options = options_of(address="localhost:7001")
        self.assertNotIn("healthCheckConfig", one)
        self.assertIsNone(name)
        self.assertEqual(options["grpc.max_receive_message_length"], 64 << 20)
        for address, expected in (("dns:///rlhf:7001", None), ("10.0.0.1:1,10.0.0.2:1", "coordinator.fleet.rlhf.internal"), ("10.0.0.1:1,10.0.0.1:2", "10.0.0.1")):
            several, name, options = options_of(address=address)
            self.assertEqual(several["healthCheckConfig"], {"serviceName": ""})
            self.assertEqual(several["methodConfig"], one["methodConfig"])
            self.assertEqual(name, expected)
            self.assertEqual(options["grpc.keepalive_time_ms"], 20_000)
        self.assertIsNone(options_of(address="10.0.0.1:1,10.0.0.2:1", insecure=True)[1])

    def test_only_calls_that_may_be_sent_twice_are(self):
        # A method of a misspelt name would be retried never.
        services = {module.DESCRIPTOR.services_by_name[name].full_name: module.DESCRIPTOR.services_by_name[name]
                    for module, name in ((job_service_pb2, "JobService"), (artifact_service_pb2, "ArtifactService"), (feedback_service_pb2, "FeedbackService"),
                                         (oversight_service_pb2, "OversightService"))}
        retried = {(entry["service"], entry["method"]) for entry in _shared._SERVICE_CONFIG["methodConfig"][0]["name"]}
        self.assertEqual(_shared._SERVICE_CONFIG["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"], ["UNAVAILABLE"])
        for service, method in retried:
            self.assertIn(method, services[service].methods_by_name)
        for service, method in (("JobService", "SubmitJob"), ("JobService", "GetJob"), ("FeedbackService", "SubmitFeedback"), ("ArtifactService", "GetArtifact")):
            self.assertIn((f"rlhf.v1.{service}", method), retried)
        for service, method in (("OversightService", "DecideGate"), ("ArtifactService", "FinishUpload"), ("JobService", "WatchJob")):
            self.assertNotIn((f"rlhf.v1.{service}", method), retried)

    def test_a_context_is_read_beside_its_file(self):
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            (folder / "ca.pem").write_bytes(b"ca")
            (folder / "token").write_text("secret\n")
            (folder / "client.json").write_text(json.dumps({"address": "a:1", "ca_file": "ca.pem", "token_file": "token", "insecure": True}))
            self.assertEqual(load_context(str(folder / "client.json")), Context(address="a:1", ca=b"ca", token="secret", insecure=True))
            (folder / "client.json").write_text(json.dumps({"address": "a:1"}))
            self.assertEqual(load_context(str(folder / "client.json")), Context(address="a:1"))

    def test_a_samples_row(self):
        view = job_service_pb2.SampleView(row=state_pb2.SampleRow(id=common_pb2.SampleId(step=3, ordinal=2, index=1), state=state_pb2.TRAINED))
        sample = view.sample
        sample.prompt.text, sample.prompt.category, sample.response_text, sample.worker_id = "Q", "known", "A", "rollout-0"
        sample.prompt.tags["topic"] = "cities"
        row = _shared.sample_row(view)
        self.assertEqual((row["score"], row["log_prob"], row["kl"]), (None, None, None), "not scored yet")
        sample.response_tokens.extend([5, 6])
        sample.version_low.step = 2
        sample.behaviour_log_probs.extend([-1.0, -2.0])
        sample.score.total = 0.5
        sample.score.components.add(name="letter", value=1.0)
        self.assertIsNone(_shared.sample_row(view)["kl"], "without a reference")
        sample.score.reference_log_probs.extend([-1.5, -3.0])
        self.assertEqual(_shared.sample_row(view), {
            "step": 3, "ordinal": 2, "index": 1, "state": "TRAINED", "prompt": "Q", "response": "A", "category": "known", "tokens": 2, "policy_step": 2,
            "worker": "rollout-0", "score": 0.5, "log_prob": -3.0, "kl": 1.5, "score/letter": 1.0, "tag/topic": "cities"})


if __name__ == "__main__":
    unittest.main()
