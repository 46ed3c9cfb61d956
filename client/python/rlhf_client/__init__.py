"""Client of the RLHF training service: submit and follow jobs, answer comparisons, export samples.

    from rlhf_client import Client
    with Client.from_context(".rlhf/client.json") as client:
        job = client.submit_file("job.yaml")
        print(client.wait(job.id).state)
"""
from rlhf_client.client import Client, RlhfError, load_context

__all__ = ["Client", "RlhfError", "load_context"]
__version__ = "0.1.0"
