"""Limits on the size, the number and the time of requests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOO_LARGE = "request-too-large"


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Args:
        max_megabytes: of a request.
        max_seconds: of its audio.
        timeout: seconds from the beginning of a request to its answer.
        max_waiting: requests that wait while another one is served.
    """

    max_megabytes: float = 100.0
    max_seconds: float = 3600.0
    timeout: float = 600.0
    max_waiting: int = 8


def refusal(status: int, what: str, code: str) -> JSONResponse:
    """The response to a request that is refused."""
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse({"error": what, "code": code}, status, headers)


class LimitedPost:
    """Middleware that applies limits to requests with a body.

    A request holds its place from its first byte to its answer, so that slow uploads count as well.

    Args:
        app: the application behind it.
        limits: to apply.

    Attributes:
        open: number of requests that are being received or served.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._bytes = int(limits.max_megabytes * 1_000_000)
        self._too_large = f"The request is larger than {limits.max_megabytes:g} MB."
        self.open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0")
        if self.open > self._limits.max_waiting:
            refused = refusal(503, "Too many requests wait.", "server-busy")
        elif announced.isdigit() and int(announced) > self._bytes:
            refused = refusal(413, self._too_large, TOO_LARGE)
        else:
            await self._counted(scope, receive, send)
            return
        if headers.get(b"expect", b"").lower() != b"100-continue":
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_read_to_end(receive), self._limits.timeout)
        await refused(scope, receive, send)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that holds a place."""
        self.open += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.open -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, began = 0, False

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._bytes:
                if message.get("more_body", False):
                    await _read_to_end(receive)
                raise HTTPException(413, self._too_large)
            return message

        async def watched_send(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await asyncio.wait_for(
                self._app(scope, limited_receive, watched_send), self._limits.timeout
            )
        except asyncio.TimeoutError:
            if not began:
                late = f"No answer within {self._limits.timeout:g} s."
                await refusal(504, late, "timeout")(scope, receive, send)


async def _read_to_end(receive: Receive) -> None:
    """Discard the rest of a body: a client that still sends would see no response."""
    while (await receive()).get("more_body", False):
        pass
