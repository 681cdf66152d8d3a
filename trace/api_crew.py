"""Several processes that send requests for one client.

An SDK takes milliseconds of processor time for a request (types, JSON, HTTP), a picture takes one more, and one event
loop is one core. A crew is a provider like any other to `api.Client`, which keeps the rate limit, the retries and the
cache to itself, in one process; each try of a request is handed to one of the crew's processes, which draws the
picture and sends it there.

The processes share nothing and hold nothing: when the client is killed, their sockets close and they end.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import socket
import struct
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from .api import Completion, Picture, Provider, Refused, Request, Transient, picture_of
from .command import InputError

_LENGTH = struct.Struct("!I")
_SLACK = 4  # requests more than the idlest process has, before an image is decoded in a second process
_REMEMBERED = 256  # images of which is known where they were sent last

# From the client to a process: (number, request), or (number, None) when nobody waits for it any longer.
# Back: (number, completion, None) or (number, None, error); the first message has number 0 and says that it is ready.
_Reply = tuple[int, Completion | None, BaseException | None]


@dataclass(slots=True)
class _Member:
    process: BaseProcess
    socket: socket.socket
    waiting: dict[int, asyncio.Future[Completion]] = field(default_factory=dict)
    writer: asyncio.StreamWriter | None = None
    reading: asyncio.Task[None] | None = None


class Crew:
    """A provider that is asked in `count` processes; `make` makes it in each of them and has to be picklable.

    InputError when a process does not start, and from `send` when one was killed.
    """

    makes_pictures = True

    def __init__(self, make: Callable[[], Provider], model: str, place: str, count: int) -> None:
        self.model, self.place = model, place
        self._members: list[_Member] = []
        self._numbers = 0
        self._connecting = asyncio.Lock()
        self._homes: OrderedDict[str, _Member] = OrderedDict()  # by picture, so that it is decoded once
        context = multiprocessing.get_context("spawn")
        try:
            for _ in range(count):
                ours, theirs = socket.socketpair()
                process = context.Process(target=_serve, args=(theirs, make), daemon=True)
                self._members.append(_Member(process, ours))
                process.start()
                theirs.close()
            for member in self._members:
                _await_ready(member.socket)
        except BaseException:
            self._end()
            raise

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        """Ask in one of the processes, which makes the picture; `picture` is None."""
        member = self._choose(request)
        self._numbers += 1
        number = self._numbers
        future = asyncio.get_running_loop().create_future()
        member.waiting[number] = future
        try:
            if member.writer is None:
                await self._connect(member)
            assert member.writer is not None
            member.writer.write(_packed((number, request)))
            return await future
        except asyncio.CancelledError:
            if member.writer is not None:
                member.writer.write(_packed((number, None)))
            raise
        finally:
            member.waiting.pop(number, None)

    async def _connect(self, member: _Member) -> None:
        async with self._connecting:
            if member.writer is None:
                reader, member.writer = await asyncio.open_connection(sock=member.socket)
                member.reading = asyncio.create_task(_receive(reader, member))

    def _choose(self, request: Request) -> _Member:
        idlest = min(self._members, key=lambda member: len(member.waiting))
        if request.picture is None:
            return idlest
        home = self._homes.pop(request.picture_name, idlest)
        if len(home.waiting) > len(idlest.waiting) + _SLACK:
            home = idlest
        self._homes[request.picture_name] = home
        if len(self._homes) > _REMEMBERED:
            self._homes.popitem(last=False)
        return home

    async def close(self) -> None:
        for member in self._members:
            if member.reading is not None:
                member.reading.cancel()
            if member.writer is not None:
                member.writer.close()
        self._end()

    def _end(self) -> None:
        for member in self._members:
            member.socket.close()  # at which the process ends
        for member in self._members:
            if member.process.pid is not None:
                member.process.join(5)
                if member.process.is_alive():
                    member.process.kill()
                    member.process.join()


async def _receive(reader: asyncio.StreamReader, member: _Member) -> None:
    """Hand every reply of a process to who waits for it; when the process is gone, tell all of them."""
    try:
        while True:
            number, completion, error = await _read(reader)
            future = member.waiting.get(number)
            if future is None or future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                assert completion is not None
                future.set_result(completion)
    except (EOFError, OSError):
        for future in member.waiting.values():
            if not future.done():
                future.set_exception(
                    InputError(
                        "a process that sends requests was killed (too little memory?); "
                        "the same command continues, with fewer --processes"
                    )
                )


def _packed(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


async def _read(reader: asyncio.StreamReader) -> _Reply:
    """The next message; IncompleteReadError (an EOFError) when the other side is gone."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    message: _Reply = pickle.loads(await reader.readexactly(length))
    return message


def _await_ready(ours: socket.socket) -> None:
    head = ours.recv(_LENGTH.size, socket.MSG_WAITALL)
    if len(head) < _LENGTH.size:
        raise InputError("a process that sends requests did not start; see above, or try --processes 1")
    (length,) = _LENGTH.unpack(head)
    _, _, error = pickle.loads(ours.recv(length, socket.MSG_WAITALL))
    if error is not None:
        raise error


# --- in a process of the crew -------------------------------------------------------------------------------


def _serve(theirs: socket.socket, make: Callable[[], Provider]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the client ends us
    asyncio.run(_answer(theirs, make))
    os._exit(0)  # at once: threads may be at work on pictures that nobody wants any longer


async def _answer(theirs: socket.socket, make: Callable[[], Provider]) -> None:
    reader, writer = await asyncio.open_connection(sock=theirs)
    try:
        provider = make()
    except InputError as error:
        writer.write(_packed((0, None, error)))
        return await writer.drain()
    writer.write(_packed((0, None, None)))
    running: dict[int, asyncio.Task[None]] = {}

    async def one(number: int, request: Request) -> None:
        try:
            # Drawn here and not in a thread: this process has nothing else to do, and threads would take turns.
            reply: _Reply = number, await provider.send(request, picture_of(request)), None
        except asyncio.CancelledError:
            raise
        except (Transient, Refused, InputError) as error:
            reply = number, None, error
        except BaseException:  # a defect: who waits in the client must hear of it
            told = RuntimeError(f"in a process that sends requests:\n{traceback.format_exc()}")
            writer.write(_packed((number, None, told)))
            raise
        finally:
            del running[number]
        writer.write(_packed(reply))

    while True:
        try:
            number, request, *_ = await _read(reader)
        except (EOFError, OSError):
            os._exit(0)
        if isinstance(request, Request):
            running[number] = asyncio.create_task(one(number, request))
        elif number in running:
            running[number].cancel()
