"""What the Python client does against a live service: client_checks.py CONTEXT FOLDER. FOLDER holds model/ and prompts.jsonl."""
import asyncio
import pathlib
import sys
import time

import grpc

from rlhf.v1 import admin_service_pb2, job_pb2, state_pb2
from rlhf_client import AsyncClient, Client, Context, RlhfError, load_context


def spec(folder: pathlib.Path, name: str, model: str, prompts: str) -> job_pb2.JobSpec:
    job = job_pb2.JobSpec(name=name, seed=1)
    job.sample.model, job.sample.prompts, job.sample.num_prompts = model, prompts, 6
    job.sample.sampling.max_new_tokens = 8
    component = job.sample.scorer.components.add(name="letter_t")
    component.regex.pattern = "t"
    return job


def expect(condition: bool, what: object) -> None:
    if not condition:
        raise SystemExit(f"failed: {what}")


def synchronous(context: str, folder: pathlib.Path) -> str:
    with Client.from_context(context) as client:
        model = client.upload(str(folder / "model"), "model")
        prompts = client.upload(str(folder / "prompts.jsonl"), "data", alias="client-prompts")
        expect(client.upload(str(folder / "prompts.jsonl"), "data").digest == prompts.digest, "the same bytes have the same digest")
        seen = []
        unique = f"client-{int(time.time() * 1000)}"
        job = client.submit(spec(folder, unique, model.digest, "client-prompts"), request_id=unique, follow=True, on_event=seen.append)
        expect(job.state == state_pb2.SUCCEEDED, job)
        expect(any(event.WhichOneof("what") == "state" for event in seen), "events were seen")
        again = client.submit(spec(folder, unique, model.digest, "client-prompts"), request_id=unique)
        expect(again.id == job.id, "a request id submits once")
        rows = client.sample_rows(job.id)
        expect(len(rows) == 6 and all(row["score"] in (0.0, 1.0) and row["tokens"] > 0 for row in rows), rows)
        out = client.download(prompts.digest, str(folder / "downloaded"))
        expect((out / "prompts.jsonl").read_bytes() == (folder / "prompts.jsonl").read_bytes(), "downloaded bytes")
        try:
            client.get("no-such-job")
            expect(False, "an unknown job is an error")
        except RlhfError as error:
            expect(error.code == grpc.StatusCode.NOT_FOUND, error)
        problems = client.validate(job_pb2.JobSpec(name="Bad Name"))
        expect(any(problem.field == "name" for problem in problems), problems)
        return job.id


def overseen(context: str, sampled: str) -> None:
    """A gate opens when an overseer approves the report that was read, and for no other."""
    with Client.from_context(context) as client, Client.from_context(str(pathlib.Path(context).with_name("overseer.json"))) as overseer:
        job = job_pb2.JobSpec(name=f"gated-{int(time.time() * 1000)}", seed=1)
        stage = job.pipeline.stages.add(name="look")
        stage.evaluate.model, stage.evaluate.suite, stage.evaluate.limit = client.get(sampled).spec.sample.model, "client-prompts", 6
        stage.evaluate.sampling.max_new_tokens = 8
        stage.gate.required_approvals = 1
        pipeline = client.submit(job).id
        waiting = []
        deadline = time.monotonic() + 120
        while not waiting:
            expect(time.monotonic() < deadline, f"the gate waits: {client.get(pipeline)}")
            time.sleep(0.1)
            waiting = [gate for gate in overseer.gates([state_pb2.GATE_WAITING]) if gate.job_id == pipeline]
        gate = waiting[0]
        expect(f"rlhfctl gate approve {gate.id}" in client.get(pipeline).reason, "the job says what it waits for")
        for who, report, code in ((client, gate.report_sha256, grpc.StatusCode.PERMISSION_DENIED), (overseer, "00", grpc.StatusCode.FAILED_PRECONDITION)):
            try:
                who.decide_gate(gate.id, True, report)
                expect(False, "an approval by nobody, or of nothing")
            except RlhfError as error:
                expect(error.code == code, error)
        opened = overseer.decide_gate(gate.id, True, gate.report_sha256, "read")
        expect(opened.state == state_pb2.GATE_APPROVED and opened.approvals[0].comment == "read", opened)
        expect(client.wait(pipeline).state == state_pb2.SUCCEEDED, "the pipeline goes on")


def in_another_project(context: str, folder: pathlib.Path) -> None:
    """Nobody has to name the project of their own token."""
    with Client.from_context(str(pathlib.Path(context).with_name("admin.json"))) as admin:
        request = admin_service_pb2.CreateTokenRequest(subject="ada", project="red", roles=[state_pb2.SUBMITTER])
        token = admin.admin.CreateToken(request, timeout=30).secret
    (folder / "red.yaml").write_text("name: of-red\nseed: 1\nsample:\n  model: file:model\n  prompts: file:prompts.jsonl\n  num_prompts: 2\n"
                                     "  sampling: {max_new_tokens: 2}\n")
    where = load_context(context)
    red = Context(address=where.address, ca=where.ca, token=token)
    with Client(red) as client:
        expect(client.validate_file(str(folder / "red.yaml")) == [], "it is valid")
        job = client.submit_file(str(folder / "red.yaml"), follow=True)
        expect(job.state == state_pb2.SUCCEEDED and job.spec.project == "red", job)
        expect(client.get("of-red").id == job.id, "a job by its name")
        prompts = client.upload(str(folder / "prompts.jsonl"), "data", alias="asked")
        expect(prompts.project == "red" or "asked" in prompts.aliases, prompts)
        out = client.download("asked", str(folder / "of-red"))
        expect((out / "prompts.jsonl").read_bytes() == (folder / "prompts.jsonl").read_bytes(), "downloaded bytes")
        expect(len(list(client.watch("of-red"))) > 0, "events by its name")

    async def by_name() -> str:
        async with AsyncClient(red) as other:
            return str((await other.get("of-red")).id)

    expect(asyncio.run(by_name()) == job.id, "a job by its name, with coroutines")


async def asynchronous(context: str, folder: pathlib.Path, sampled: str) -> None:
    async with AsyncClient.from_context(context) as client:
        jobs, rows = await asyncio.gather(client.list(), client.sample_rows(sampled))
        expect(any(job.id == sampled for job in jobs) and len(rows) == 6, jobs)
        done = await client.get(sampled)
        name = f"async-{int(time.time() * 1000)}"
        job = await client.submit(spec(folder, name, done.spec.sample.model, "client-prompts"), follow=True)
        expect(job.state == state_pb2.SUCCEEDED, job)
        try:
            await client.get("no-such-job")
            expect(False, "an unknown job is an error")
        except RlhfError as error:
            expect(error.code == grpc.StatusCode.NOT_FOUND, error)
        expect(all(gate.state == state_pb2.GATE_APPROVED for gate in await client.gates([state_pb2.GATE_APPROVED])), "gates of a state")


def main() -> None:
    context, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    sampled = synchronous(context, folder)
    overseen(context, sampled)
    in_another_project(context, folder)
    asyncio.run(asynchronous(context, folder, sampled))
    import google.protobuf
    print(f"the client works with grpcio {grpc.__version__}, protobuf {google.protobuf.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
