"""Client of the RLHF training service: submit and follow jobs, answer comparisons, export samples.

    from rlhf_client import Client
    with Client.from_context(".rlhf/client.json") as client:
        job = client.submit_file("job.yaml", follow=True)
        rows = client.metric_rows(job.id)          # pandas.DataFrame(rows)

rlhf_client.aio.AsyncClient is the same with coroutines.
"""
from rlhf_client._shared import Context, RlhfError, load_context, load_spec
from rlhf_client.aio import AsyncClient
from rlhf_client.client import Client

__all__ = ["AsyncClient", "Client", "Context", "RlhfError", "load_context", "load_spec"]
__version__ = "0.1.0"
