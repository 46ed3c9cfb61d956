"""Submits a job given as protobuf JSON and follows it to its end. Usage: submit_and_watch.py CONTEXT JOB.json"""
import sys

from google.protobuf import json_format

from rlhf.v1 import job_pb2, state_pb2
from rlhf_client import Client, RlhfError


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    with open(sys.argv[2], encoding="utf-8") as file:
        spec = json_format.Parse(file.read(), job_pb2.JobSpec())
    try:
        with Client.from_context(sys.argv[1]) as client:
            job = client.submit(spec)
            print(f"submitted {job.id}")
            for event in client.watch(job.id):
                if event.WhichOneof("what") == "metrics":
                    values = " ".join(f"{key}={value:.4g}" for key, value in sorted(event.metrics.values.items()))
                    print(f"step {event.metrics.step}: {values}")
                elif event.WhichOneof("what") == "message":
                    print(event.message)
            ended = client.get(job.id)
            print(state_pb2.JobState.Name(ended.state), ended.reason)
            return 0 if ended.state == state_pb2.SUCCEEDED else 3
    except RlhfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
