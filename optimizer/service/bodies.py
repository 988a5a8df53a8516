"""What was sent with a request? The whole of it, before anything is done: in time, and no longer than it may be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from optimizer.service.refusals import Refused

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

MOST_BYTES = 2 << 20  # of what is sent here; a job has at most half of that
BODY_SECONDS = 30.0  # in which all of a body has come
LEAVE_SECONDS = 2.0  # in which what is too long is read and let go: who is still sending reads no answer


async def body_of(receive: Receive) -> bytes | None:
    """What a request sends; None where nobody is there any more.

    Raises Refused with 408 where it does not come, and with 413 where it is longer than MOST_BYTES.
    """
    taken = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                taken += message.get("body", b"")
                if not message.get("more_body", False):
                    break
                if len(taken) > MOST_BYTES:
                    await _rest(receive)
                    break
    except TimeoutError:
        raise Refused(
            408, f"the body did not come within {BODY_SECONDS:g} s: {len(taken)} bytes did; send the request again"
        ) from None
    if len(taken) > MOST_BYTES:
        raise Refused(413, f"a body has at most {MOST_BYTES} bytes, and this one is longer; send less")
    return bytes(taken)


def sent_again(body: bytes, receive: Receive) -> Receive:
    """What an app receives of a request whose body was taken before."""
    left = [body]

    async def received() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return received


async def _rest(receive: Receive) -> None:
    """Let go what is still sent, for a while."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LEAVE_SECONDS):
            while (await receive()).get("more_body", False):
                pass
