"""Serialise GPU stages through a Prefect global concurrency limit."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from models.core.errors import ConfigError
from tasks.engine.settings import settings


@contextmanager
def on_device() -> Iterator[None]:
    """Hold a slot of the limit that NINEFOLD_DEVICE_LIMIT names, waiting for one to be free; nothing without it.

    Whoever dies gives up its slot when its lease ends, after five minutes at most. Raises ConfigError if Prefect's server
    knows no such limit.
    """
    name = settings().device_limit
    with ExitStack() as held:
        if name is not None:
            from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
            from prefect.concurrency.sync import concurrency

            try:
                # hours of training are not given up because the server did not answer for a minute
                held.enter_context(concurrency(name, strict=True, raise_on_lease_renewal_failure=False))
            except ConcurrencySlotAcquisitionError as error:
                if error.__cause__ is not None:  # the server did not answer, or not so
                    raise
                raise ConfigError(
                    f"NINEFOLD_DEVICE_LIMIT={name}: Prefect's server has no concurrency limit of this name: prefect gcl "
                    f"create {name} --limit 1"
                ) from error
        yield
