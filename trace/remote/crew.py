"""Several processes that send requests for one client.

An SDK takes milliseconds of processor time for a request (types, JSON, HTTP), a picture takes one more, and one event
loop is one core. A crew is a provider like any other to `api.Client`, which keeps the rate limit, the retries and the
cache to itself, in one process; each try of a request is handed to one of the crew's processes, which draws the
picture and sends it there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..utils.parallel import Pool, WorkerDied
from .client import Completion, Picture, Provider, Refused, Request, picture_of

LANES = 1024  # requests that a process has under way at most: the client's concurrency is the limit


class Crew:
    """A provider that is asked in `count` processes; `make` makes it in each of them and has to be picklable.

    Starting takes seconds, so it is over before the first request, whose time is limited, is sent.
    `given_up` are the requests whose process ended each time that it worked on them, with the reason.
    """

    makes_pictures = True

    def __init__(self, make: Callable[[], Provider], model: str, place: str, count: int) -> None:
        self.model, self.place = model, place
        self.given_up: dict[str, str] = {}
        self._pool = Pool(count, _sender, make, lanes=LANES)
        self._pool.wait_until_started()

    async def send(self, request: Request, picture: Picture | None) -> Completion:
        """Ask in one of the processes, which makes the picture; `picture` is None.

        Raises:
            Refused: also when the process ended each time that it worked on the request.
        """
        # An image is sent from the process that has decoded it before.
        home = request.picture_name if request.picture else None
        try:
            completion: Completion = await asyncio.wrap_future(self._pool.submit(request, home))
        except WorkerDied as error:
            self.given_up[request.item] = str(error)
            raise Refused(str(error)) from None
        return completion

    async def close(self) -> None:
        self._pool.close()


def _sender(make: Callable[[], Provider]) -> Callable[[Request], Awaitable[Completion]]:
    provider = make()

    async def send(request: Request) -> Completion:
        # Drawn here and not in a thread: this process has nothing else to do, and threads would take turns.
        return await provider.send(request, picture_of(request))

    return send
