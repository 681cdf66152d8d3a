"""A provider for the processes of a crew: they are spawned, and import what they run by its name."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from parallel_workers import ENDS

from trace_vlm.remote.client import Completion, Picture, Provider, Refused, Request, Transient
from trace_vlm.remote.providers import make_provider
from trace_vlm.utils.command import InputError


class Here:
    """Runs in a process of the crew: says who it is, or does what the question says."""

    model, place = "m", "here"

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        if request.text == "transient" and request.attempt == 1:
            raise Transient("HTTP 429", wait=0.5)
        if request.text == "refused":
            raise Refused("refused with HTTP 400: too large")
        if request.text == "input":
            raise InputError("the key is wrong")
        if request.text == "defect":
            raise ZeroDivisionError("a defect")
        if request.text in ENDS:
            ENDS[request.text]()
        if request.text == "slow":
            await asyncio.sleep(1000)
        return Completion(f"{os.getpid()} {len(picture.data) if picture else 0}", "stop", 1, 1)

    async def close(self) -> None: ...


def make_wrong() -> Here:
    raise InputError("no key here")


def make_ending(how: str, item: str, *arguments: Any) -> Provider:
    """The provider of the command, but the process ends that sends the request of one item."""
    provider = make_provider(*arguments)
    send = provider.send

    async def ends(request: Request, picture: Picture | None) -> Completion:
        if request.item == item:
            ENDS[how]()
        return await send(request, picture)

    provider.send = ends  # type: ignore[method-assign]
    return provider
