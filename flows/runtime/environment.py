"""Configure the process before Prefect and torch are imported: home, telemetry, threads, logging."""

import logging
import os
import sys
import warnings

from flows.runtime import prefect_server
from flows.runtime.servers import servers
from tasks.engine.settings import settings

# How OpenMP's threads wait for each other: a short spin, then asleep. By default they spin for a millisecond, which beside
# other work on the same cores costs many times what it saves (benchmarks/beside.py).
WAITING = {"GOMP_SPINCOUNT": "10000"}


class _Page(logging.Handler):
    """Prints what the project logs as plain lines on stdout, between the plan and the report."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            grave = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
            sys.stdout.write(f"{grave}{self.format(record)}\n")
            sys.stdout.flush()
        except Exception:
            self.handleError(record)


def configure_process() -> None:
    """Point Prefect at this project's home, unless the user has chosen a server or a profile of their own.

    Nothing is started, and nothing written. Whoever runs flows, or asks Prefect, calls `prepare_flows` instead.
    """
    # Every start logs a failed call on a closed network otherwise.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    if (named := settings().prefect_url) is not None:
        os.environ.setdefault("PREFECT_API_URL", named)
    if not {"PREFECT_HOME", "PREFECT_PROFILE", "PREFECT_API_URL"} & os.environ.keys():
        os.environ["PREFECT_HOME"] = str(settings().prefect_home)
        if (up := servers()) is not None:  # `ninefold up`: its server starts no second one, and shows runs as they go
            os.environ |= {"PREFECT_API_URL": up.api, "PREFECT_API_AUTH_STRING": up.password}
    # Prefect's own server for one command is open to every page of the user's browser.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOCAL_STORAGE_PATH", str(settings().prefect_home / "storage"))
    # The domain's log lines reach the Prefect UI; the terminal has its own, quieter view.
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "models,tasks,flows")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    prepare_libraries()
    from models.core.progress import keep_foot  # with tqdm, which reads the environment when it is imported

    keep_foot()
    handler = _Page()
    for name in ("models", "tasks", "flows"):
        logger = logging.getLogger(name)
        logger.setLevel(settings().log.upper())
        logger.handlers = [handler]
        logger.propagate = False


def prepare_flows() -> None:
    """`prepare`, and start this command's Prefect server where there is none; `prefect_server.admitted` lets it answer."""
    configure_process()
    if "PREFECT_API_URL" in os.environ:
        return
    home = settings().prefect_home
    if os.environ.get("PREFECT_HOME") != str(home):
        from prefect.settings import get_current_settings  # the user's own profile may name a server

        if get_current_settings().api.url is not None:
            return
        home = get_current_settings().home
    prefect_server.warm(home)


def prepare_libraries() -> None:
    """Set a thread count, which OpenMP reads when FAISS or torch is imported, and keep the libraries quiet and at home."""
    os.environ["PYTHONSAFEPATH"] = "1"  # of children: what lies in the working directory is not ours
    if "OMP_WAIT_POLICY" not in os.environ:  # the user's own choice
        for name, value in WAITING.items():
            os.environ.setdefault(name, value)
    os.environ.setdefault("OMP_NUM_THREADS", str(settings().threads or len(os.sched_getaffinity(0))))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # and transformers'
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # all others: `models.core.progress` says that its own are shown
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the libraries among themselves
    for told in (
        "Failed to create the Prefect home directory",  # `prefect_server.admit` makes it, when the plan is accepted
        "Hint: Inferred schema contains integer column",  # tables are logged for their digest; none is served from
        "The specified dataset source can be interpreted",
    ):
        warnings.filterwarnings("ignore", message=told)
