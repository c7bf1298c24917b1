"""The first example of the client's README is a program: it is run as it stands there."""

import asyncio
import re
import sys
from pathlib import Path

from tests.client.fakes import Context, server
from twofold.memory.v1.context_pb2_grpc import add_ContextServiceServicer_to_server

README = Path(__file__).resolve().parents[2] / "clients/python/README.md"


async def test_the_first_example_runs_as_it_is_written() -> None:
    memory, running = Context(), server()
    add_ContextServiceServicer_to_server(memory, running)
    port = running.add_insecure_port("127.0.0.1:0")
    await running.start()
    (program, *_) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program.replace("127.0.0.1:50052", f"127.0.0.1:{port}"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    await running.stop(0)
    assert process.returncode == 0
    assert output.decode() == "remembered\n"
    assert [len(memory.requests), memory.metadata["twofold-actor"]] == [2, "my-agent"]
