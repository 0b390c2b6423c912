"""One asyncio event loop in a background thread, for all calls to servers."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

_MOST_THREADS = 256  # for oracles that compute or block; they start as they are needed

Value = TypeVar("Value")


def event_loop() -> asyncio.AbstractEventLoop:
    """Return this process's loop; a forked child has one of its own."""
    return _loop_of(os.getpid())


def run(coroutine: Coroutine[Any, Any, Value], *, on_interrupt: Callable[[], object] | None = None) -> Value:
    """Run a coroutine on the loop and return its result; not to be called from the loop itself.

    On Ctrl-C `on_interrupt` is called on the loop, and the coroutine is waited for before the interrupt goes on.
    """
    future = asyncio.run_coroutine_threadsafe(coroutine, event_loop())
    try:
        return future.result()
    except BaseException:
        if on_interrupt is not None and not future.done():
            event_loop().call_soon_threadsafe(on_interrupt)
            future.exception()
        raise


# What makes the calls of a task wait no longer: set by whoever may have to stop them.
STOP: ContextVar[asyncio.Event | None] = ContextVar("stop", default=None)


async def unless_stopped(work: Awaitable[Value]) -> Value:
    """Return what `work` does; raise InterruptedError, having cancelled it, as soon as STOP is set."""
    if (stop := STOP.get()) is None:
        return await work
    doing, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if doing.done() and not stop.is_set():
        return doing.result()
    doing.cancel()
    raise InterruptedError("labelling was stopped before this call was made")


@cache
def _loop_of(_process: int) -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_default_executor(ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="oracle"))
    threading.Thread(target=loop.run_forever, name="event-loop", daemon=True).start()
    return loop
