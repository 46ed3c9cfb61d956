"""Exports a job's samples as JSON lines. Usage: export_samples.py CONTEXT JOB > samples.jsonl"""
import json
import sys

from rlhf.v1 import state_pb2
from rlhf_client import Client, RlhfError


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with Client.from_context(sys.argv[1]) as client:
            job = client.get(sys.argv[2])
            for view in client.samples(job.id):
                print(json.dumps({
                    "step": view.row.id.step, "ordinal": view.row.id.ordinal, "index": view.row.id.index,
                    "state": state_pb2.SampleState.Name(view.row.state), "prompt": view.sample.prompt.text,
                    "response": view.sample.response_text, "category": view.sample.prompt.category,
                    "score": view.sample.score.total if view.sample.HasField("score") else None,
                }, ensure_ascii=False))
    except RlhfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
