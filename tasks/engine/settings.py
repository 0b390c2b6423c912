"""Settings of an installation: NINEFOLD_… variables or a settings file."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

from dotenv import dotenv_values
from pydantic import Field, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.core.errors import ConfigError
from models.ledger.purses import Budget, parse_budget

_RENAMED = {
    f"NINEFOLD_{before}": f"NINEFOLD_{now}"
    for before, now in {
        "STORE": "STORE_URL",
        "LEDGER": "LEDGER_URL",
        "MLFLOW": "MLFLOW_URI",
        "PREFECT": "PREFECT_URL",
        "DEVICE": "DEVICE_LIMIT",
        "SHARD": "SHARD_SIZE",
        "RAY": "RAY_ADDRESS",
    }.items()
}
_BUCKETS = ("s3://", "gs://")  # their URLs are a bucket and a path, without a user or a host


class Settings(BaseSettings):
    """Embedded defaults: one folder holds the artifact store, the ledger, MLflow's and Prefect's databases."""

    # what is set to nothing is not set, as compose.yaml leaves what it has no value for
    model_config = SettingsConfigDict(env_prefix="NINEFOLD_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Path("artifacts")
    store_url: str = Field(
        default_factory=lambda given: str(given["home"].absolute() / "store"),
        description="fsspec URL, or folder, of the artifact store",
    )
    ledger_url: str = Field(
        default_factory=lambda given: f"sqlite:///{given['home'].absolute() / 'ledger.sqlite'}",
        description="SQLAlchemy URL of the ledger",
    )
    budget: str | None = Field(None, description="most dollars that are paid in a period: 50 USD / month, 20/day, 100")
    mlflow_uri: str = Field(
        default_factory=lambda given: f"sqlite:///{given['home'].absolute() / 'mlflow.sqlite'}",
        description="MLflow tracking URI",
    )
    prefect_url: str | None = Field(
        None, description="URL of a Prefect server's API, for PREFECT_API_URL; else one's own"
    )
    mlflow_port: int = Field(5000, ge=1, le=65535, description="of `ninefold up`, on 127.0.0.1")
    prefect_port: int = Field(4200, ge=1, le=65535, description="of `ninefold up`, on 127.0.0.1")
    rewardbench: Path | None = Field(None, description="RewardBench's command, in an environment of its own")
    accelerate: Path | None = Field(None, description="accelerate configuration by which policies are trained")
    device_limit: str | None = Field(
        None, description="Prefect concurrency limit of which computing stages hold a slot"
    )
    ray_address: str | None = Field(
        None, description="address of a Ray cluster that generates, embeds and scores: auto, HOST:PORT"
    )
    ray_cpus: PositiveInt = Field(1, description="processors of a node that one shard takes")
    shard_size: PositiveInt = Field(
        2048, description="responses that are generated, embedded or scored at once, and then kept"
    )
    log: Literal["debug", "info", "warning"] = Field("info", description="least grave of the lines on the terminal")
    threads: PositiveInt | None = Field(None, description="torch threads; default: all cores")

    @field_validator("budget")
    @classmethod
    def _readable(cls, written: str | None) -> str | None:
        if written is not None:
            parse_budget(written)
        return written

    @property
    def lab_budget(self) -> Budget | None:
        """Return the most that this installation pays in a period; None without a limit."""
        return None if self.budget is None else parse_budget(self.budget)

    @property
    def shares_store(self) -> bool:
        """Whether the artifact store is in a bucket, where other machines, Prefect and MLflow see it too."""
        return self.store_url.startswith(_BUCKETS)

    @property
    def shares_stages(self) -> bool:
        """Whether other machines may compute the same stages: store and ledger are both where they see them."""
        return self.shares_store and self.ledger_url.startswith("postgresql")

    @property
    def shares_mlflow(self) -> bool:
        """Whether other machines see the same MLflow: a server, or a database of one."""
        return self.mlflow_is_remote or self.mlflow_uri.startswith(("postgresql", "mysql", "mssql", "databricks"))

    @property
    def results_url(self) -> str:
        """Return where the results of stages lie beside a store in a bucket; they are small and name artifacts."""
        return f"{self.store_url.rstrip('/')}/results"

    @property
    def cache(self) -> Path:
        """Return the folder of local copies and of artifacts being written."""
        return self.home.absolute() / "cache"

    @property
    def journal(self) -> Path:
        """Return the folder of what the ledger could not book while its database was away."""
        return self.home.absolute() / "journal"

    @property
    def mlflow_artifacts(self) -> str | None:
        """Return where MLflow's artifacts lie; None where a server decides."""
        if self.mlflow_is_remote or self.mlflow_uri.startswith("databricks"):
            return None
        return (
            f"{self.store_url.rstrip('/')}/mlflow" if self.shares_store else (self.home.absolute() / "mlflow").as_uri()
        )

    @property
    def mlflow_is_remote(self) -> bool:
        """Whether MLflow is a server that somebody else keeps."""
        return self.mlflow_uri.startswith(("http://", "https://"))

    @property
    def prefect_home(self) -> Path:
        """Return the folder of the embedded Prefect server's database and of task results."""
        return self.home.absolute() / "prefect"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process, read once: the environment's, and else those of the file NINEFOLD_SETTINGS."""
    for before, now in _RENAMED.items():
        if before in os.environ:  # ignored, it would send labels to another ledger
            raise ConfigError(f"{before} is called {now} now: rename it")
    named = os.environ.get("NINEFOLD_SETTINGS")
    if named and not Path(named).is_file():
        raise ConfigError(
            f"NINEFOLD_SETTINGS={named} does not exist: name a file of lines such as NINEFOLD_STORE_URL=s3://…"
        )
    known = {f"NINEFOLD_{name}".upper() for name in Settings.model_fields}
    if unknown := sorted({name.upper() for name in (dotenv_values(named) if named else {})} - known):
        raise ConfigError(f"NINEFOLD_SETTINGS={named} sets {unknown[0]}, and there are {', '.join(sorted(known))}")
    try:
        return Settings(_env_file=named or None)
    except ValidationError as error:
        first = error.errors()[0]
        name, said = f"NINEFOLD_{first['loc'][0]}".upper(), first["msg"].removeprefix("Value error, ")
        raise ConfigError(said if said.startswith(name) else f"{name}={first['input']!r}: {said}") from None
