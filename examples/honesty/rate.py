"""The simulated rater: answers a collect job's tasks through the public feedback API until the job needs no more.

Usage: rate.py --context .rlhf/rater.json [--job JOB] --seed N
"""
import argparse
import pathlib
import sys
import time

import grpc

from rlhf.v1 import data_pb2, feedback_service_pb2
from rlhf_client import Client, RlhfError

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import rater as honesty_rater  # noqa: E402  (beside this file)

PREFERENCES = {honesty_rater.FIRST: data_pb2.FIRST, honesty_rater.SECOND: data_pb2.SECOND, honesty_rater.TIE: data_pb2.TIE}


def answer(rater: honesty_rater.Rater, task) -> feedback_service_pb2.Answer:
    asked_to_write = task.second.source == "written" and not task.second.text
    judgement = rater.judge(honesty_rater.Task(
        id=task.id, prompt=task.prompt.text, category=task.prompt.category, reference=task.prompt.reference, first=task.first.text,
        second=None if asked_to_write else task.second.text, kind=task.prompt.tags.get("kind", "")))
    return feedback_service_pb2.Answer(task_id=task.id, job_id=task.job_id, preference=PREFERENCES[judgement.preference],
                                       written=judgement.written, strength=judgement.strength, tags={"pair": judgement.reason})


def rate(client: Client, job: str, rater: honesty_rater.Rater, patience: float) -> int:
    """Answers until the job is closed; returns how many answers were taken."""
    taken = 0
    deadline = time.monotonic() + patience
    while True:
        try:
            response = client.next_tasks(job, max_tasks=500, wait_seconds=5)
        except RlhfError as error:
            # The collect stage may not have begun, and the coordinator may be restarting.
            if error.code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNAVAILABLE) or time.monotonic() > deadline:
                raise
            time.sleep(1)
            continue
        if response.closed:
            return taken
        if response.tasks:
            accepted = sum(verdict.accepted for verdict in client.submit_feedback([answer(rater, task) for task in response.tasks]))
            taken += accepted
            if accepted:  # what was not taken stays in hand, and comes again
                deadline = time.monotonic() + patience
        if time.monotonic() > deadline:
            raise RlhfError(grpc.StatusCode.DEADLINE_EXCEEDED, f"no task was answered for {patience:.0f} s; does the job have a collect stage?")


def main() -> int:
    parser = argparse.ArgumentParser(description="The simulated rater of the honesty example.")
    parser.add_argument("--context", default=".rlhf/rater.json", help="context file with a rater's token")
    parser.add_argument("--job", default="", help="collect job or pipeline (default: any open one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=1800, help="seconds to wait for the first task")
    flags = parser.parse_args()
    try:
        with Client.from_context(flags.context) as client:
            taken = rate(client, flags.job, honesty_rater.Rater(flags.seed), flags.patience)
    except RlhfError as error:
        print(f"rate.py: error: {error}", file=sys.stderr)
        return 1
    print(f"rate.py: {taken} comparisons answered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
