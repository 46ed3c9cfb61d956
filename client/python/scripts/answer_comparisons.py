"""Answers comparisons at the terminal. Usage: answer_comparisons.py CONTEXT [JOB]"""
import sys

from rlhf.v1 import data_pb2, feedback_service_pb2
from rlhf_client import Client, RlhfError

KEYS = {"1": data_pb2.FIRST, "2": data_pb2.SECOND, "=": data_pb2.TIE}


def ask(task) -> feedback_service_pb2.Answer:
    print(f"\n{task.prompt.text}\n  1: {task.first.text}")
    answer = feedback_service_pb2.Answer(task_id=task.id, job_id=task.job_id)
    if task.second.source == "written" and not task.second.text:
        answer.written = input("  a better answer, in your words: ")
        print(f"  2: {answer.written}")
    else:
        print(f"  2: {task.second.text}")
    while True:
        key = input("better [1, 2, =]: ").strip()
        if key in KEYS:
            answer.preference = KEYS[key]
            return answer


def main() -> int:
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with Client.from_context(sys.argv[1]) as client:
            while True:
                response = client.next_tasks(sys.argv[2] if len(sys.argv) == 3 else "")
                for task in response.tasks:
                    for verdict in client.submit_feedback([ask(task)]):
                        print("thank you" if verdict.accepted else f"not taken: {verdict.problem}")
                if response.closed:
                    print(f"all {response.answered} comparisons are answered")
                    return 0
    except RlhfError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
