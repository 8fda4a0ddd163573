"""Some of the callers of ``callers``: one thread, many calls on their way.

python -m measuring.callers_process '{"address": ..., ...}'    started by ``callers``
"""

import asyncio
import json
import sys
import time
from typing import Any

import grpc

from measuring.child import Parent

METHOD = "/metanas.v1.FewShot/Classify"
WARM_UP_SECONDS = 1.0


def main(text: str) -> int:
    """Carry out one order."""
    order = json.loads(text)
    Parent.wait_for_start()
    answer = asyncio.run(_call(order))
    Parent.tell_done()
    Parent.tell(answer)
    return 0


async def _call(order: dict[str, Any]) -> dict[str, Any]:
    requests = [bytes.fromhex(request) for request in order["requests"]]
    async with grpc.aio.insecure_channel(order["address"], [("grpc.use_local_subchannel_pool", 1)]) as channel:
        classify: Any = channel.unary_unary(METHOD)  # without serializers: bytes go in and come out
        begin = time.perf_counter() + WARM_UP_SECONDS
        end = begin + order["seconds"]

        async def caller(number: int) -> list[tuple[float, float]]:
            calls = []
            while (started := time.perf_counter()) < end:
                await classify(requests[number % len(requests)])
                calls.append((started, time.perf_counter()))
                number += 1
            return calls

        async def processor_seconds() -> float:
            await asyncio.sleep(WARM_UP_SECONDS)
            before = time.process_time()
            await asyncio.sleep(order["seconds"])
            return time.process_time() - before

        used = asyncio.create_task(processor_seconds())
        of_callers = await asyncio.gather(*(caller(number) for number in range(order["callers"])))
        processor = await used
    counted = [1000 * (stop - start) for calls in of_callers for start, stop in calls if begin <= stop < end]
    return {"milliseconds": counted, "seconds": order["seconds"], "processor_seconds": processor}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
