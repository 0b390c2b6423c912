"""Run the work of a stage in this process or on a Ray cluster."""

import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from threading import Lock
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from models.core.errors import ConfigError
from models.core.external import load_plugins
from tasks.engine.devices import on_device
from tasks.engine.settings import settings
from tasks.engine.store import Ref, store

R = TypeVar("R")
G = TypeVar("G")

_MOST_AT_ONCE = 32  # shards that one process waits for: each holds a lock
_LOST_NODES = 3  # that a shard outlives
MATCHED_PACKAGES = ("ninefold", "torch", "transformers")  # packages whose versions decide results
_PROBES, _PROBE_SECONDS, _CONNECT_SECONDS = "probes", 120.0, 10.0


def run_remote(work: "partial[R]", *, gpus: int = 1) -> R:
    """Return what the work returns, done on the settings' Ray cluster; here where there is none.

    `gpus` are those that it takes of a cluster that has any. A node that is lost is replaced by another, an OSError (the
    store, the network) is tried again there; other errors are raised here as they are.
    """
    if settings().ray_address is not None:
        done: R = _cluster().run(work, gpus)
        return done
    with on_device():
        return work()


def max_parallel() -> int:
    """Return how many shards to ask for at once: one here, and on a cluster some more than it has room for now."""
    return 1 if settings().ray_address is None else min(_MOST_AT_ONCE, _cluster().slots() + 2)  # nodes may join


def check_cluster(gpus: int, check: Callable[[], None] | None = None) -> str:
    """Return what there is of a Ray cluster, for people; "" without one.

    Raises ConfigError if the settings name one that is not there, whose nodes do not see what this process sees, none of
    which has as many GPUs as a shard of generation takes, or one of which has and fails the check.
    """
    if settings().ray_address is None:
        return ""
    _cluster().check_room(gpus)
    if check is not None:
        _cluster().check_nodes(gpus, check)
    return _cluster().described()


def cancel_all() -> None:
    """Give up all that is under way on the cluster; whoever waits for it is told."""
    if settings().ray_address is not None:
        _cluster().leave()
        _connected.cache_clear()


class NodeReport(NamedTuple):
    """What a node knows: the host, whether it finds in its store what was put there, and the versions that it runs."""

    host: str
    store: str
    found: bool
    versions: dict[str, str]


class _Cluster:
    """A Ray cluster that this process is connected to."""

    def __init__(self, address: str) -> None:
        if "://" in address:
            raise ConfigError(
                f"NINEFOLD_RAY_ADDRESS={address}: Ray's client is not used here: make this machine a node of the cluster "
                "(ray start --address=HOST:PORT, with --num-cpus=0 if it is to lend nothing), and name HOST:PORT"
            )
        if find_spec("ray") is None:
            raise ConfigError(f"NINEFOLD_RAY_ADDRESS={address} needs Ray: pip install 'ninefold[ray]', on every node")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # once let go of, no other cluster is started in its place
        import ray

        self._ray, self._under_way, self._stopping, self._guard = ray, set[Any](), False, Lock()
        self._versions = _versions()
        try:
            _answers(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"NINEFOLD_RAY_ADDRESS={address}: no Ray cluster answers there ({error}): start one (ray start --head) or "
                "unset it"
            ) from error
        # a process keeps its model for the next shard; not on a GPU, which others may be given meanwhile
        self._call = ray.remote(max_calls=1 if self._gpus() else 0)(_call)
        try:
            self._check()
        except BaseException:
            ray.shutdown()
            raise

    def run(self, work: "partial[Any]", gpus: int) -> Any:  # noqa: ANN401
        options = self._share(gpus) | {"max_retries": _LOST_NODES, "retry_exceptions": [OSError]}
        self.check_room(gpus)
        with self._guard:
            if self._stopping:
                raise InterruptedError("the work on the cluster was given up")
            task = self._call.options(name=work.func.__name__.strip("_"), **options).remote(work, self._versions)
            self._under_way.add(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause or error from error  # as it was raised there, and not as Ray's
        except KeyboardInterrupt:
            self._ray.cancel(task, force=True)
            raise
        finally:
            with self._guard:
                self._under_way.discard(task)

    def described(self) -> str:
        """Return how large the cluster is."""
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        return f"on the Ray cluster at {settings().ray_address}: {nodes} nodes, room for {self.slots()} at once"

    def leave(self) -> None:
        """Take back all that is under way; whoever waits for it is told, and nothing more is begun."""
        with self._guard:
            self._stopping = True
            for task in self._under_way:
                self._ray.cancel(task, force=True)

    def slots(self, gpus: int = 1) -> int:
        """Return how many shards the cluster has room for, that take so many GPUs of one node each."""
        return sum(self._room(gpus).values())

    def _room(self, gpus: int) -> dict[str, int]:
        """Return how many such shards each node that is alive has room for."""
        share = self._share(gpus)
        takes = {"CPU": share["num_cpus"], "GPU": share["num_gpus"]}
        return {
            node["NodeID"]: min(int(node["Resources"].get(name, 0) // each) for name, each in takes.items() if each)
            for node in self._ray.nodes()
            if node["Alive"]
        }

    def check_room(self, gpus: int) -> None:
        """Raise ConfigError if no node has what one shard takes: Ray would wait for one without a word."""
        if not self.slots(gpus):
            share = self._share(gpus)
            raise ConfigError(
                f"no node of the Ray cluster at {settings().ray_address} has the {share['num_cpus']} processors and "
                f"{share['num_gpus']} GPUs that a shard takes: lower NINEFOLD_RAY_CPUS or tensor_parallel, or add one"
            )

    def check_nodes(self, gpus: int, check: Callable[[], None]) -> None:
        """Raise ConfigError naming the first node that shards would run on now and that fails a check."""
        nodes = [node for node, shards in self._room(gpus).items() if shards]
        for host, refusal in self._ask(nodes, _refusal, check):
            if refusal:
                raise ConfigError(f"Ray node {host}: {refusal}")

    def _gpus(self) -> bool:
        return bool(self._ray.cluster_resources().get("GPU"))

    def _share(self, gpus: int) -> dict[str, int]:
        """Return what of a node one shard takes."""
        return {"num_cpus": settings().ray_cpus, "num_gpus": gpus if self._gpus() else 0}

    def _check(self) -> None:
        """Raise ConfigError naming the first node that would compute something else, or could not reach what it needs."""
        name, here = uuid4().hex, self._versions
        nodes = [node["NodeID"] for node in self._ray.nodes() if node["Alive"]]
        store().make_root()
        store().set_alias(_PROBES, name, Ref(uri=f"{_PROBES}/{name}", sha256=2 * name))
        try:
            answers = self._ask(nodes, _seen, name)
        finally:
            store().delete_alias(_PROBES, name)
        for seen in answers:
            if not seen.found:
                raise ConfigError(
                    f"Ray node {seen.host} keeps its artifacts in {seen.store}, and this process in {settings().store_url}: "
                    "start its Ray with the same NINEFOLD_STORE_URL"
                )
            if seen.versions != here:
                raise ConfigError(
                    f"Ray node {seen.host} runs {_named(seen.versions)}, and this process {_named(here)}: install the same"
                )

    def _ask(self, nodes: Sequence[str], look: Callable[[G], R], given: G) -> list[R]:
        """Return what each node sees; raise ConfigError if one does not say."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = [
            self._ray.remote(look)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
            .remote(given)
            for node in nodes
        ]
        try:
            answers: list[R] = self._ray.get(asked, timeout=_PROBE_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise ConfigError(
                f"NINEFOLD_RAY_ADDRESS={settings().ray_address}: a node cannot work for this project: {error}"
            ) from error
        return answers


def _answers(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT: Ray itself would go on asking for minutes."""
    place = urlsplit(f"ray://{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()


def _versions() -> dict[str, str]:
    plugins = {"plugins": ", ".join(load_plugins())} if load_plugins() else {}
    return {package: version(package) for package in MATCHED_PACKAGES} | plugins


def _call(work: "partial[Any]", versions: dict[str, str]) -> Any:  # noqa: ANN401
    """Do the work on a node; raise ConfigError if it runs other versions, as one may that joined later."""
    if (here := _versions()) != versions:
        raise ConfigError(
            f"Ray node {socket.gethostname()} runs {_named(here)}, not {_named(versions)}: install the same"
        )
    return work()


def _seen(name: str) -> NodeReport:
    """Look about on a node."""
    try:
        found = store().get_alias(_PROBES, name) is not None
    except OSError:
        found = False
    return NodeReport(socket.gethostname(), settings().store_url, found, _versions())


def _refusal(check: Callable[[], None]) -> tuple[str, str]:
    """Return what a check says against a node; "" if nothing."""
    try:
        check()
    except ValueError as error:
        return socket.gethostname(), str(error)
    return socket.gethostname(), ""


def _named(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {number}" for package, number in versions.items())


@lru_cache(maxsize=1)
def _connected(address: str) -> _Cluster:
    return _Cluster(address)


def _cluster() -> _Cluster:
    address = settings().ray_address
    if address is None:
        raise ConfigError("no Ray cluster is set: NINEFOLD_RAY_ADDRESS=auto or HOST:PORT")
    return _connected(address)
