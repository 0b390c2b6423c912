"""Oracles are asked where oracles are: not in a machine's own network, not unencrypted far away, not with other secrets."""

import socket
from typing import Any

import pytest

from models.core.money import Prices
from models.oracles.chat_client import Endpoint
from models.oracles.endpoint_policy import check_address, check_key_name

PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.5"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Where hosts are, for the test."""
    known = {
        "api.lab.example": PUBLIC,
        "judge.lan": PRIVATE,
        "sly.example": "169.254.169.254",
        "localhost": "127.0.0.1",
    }

    def lookup(host: str, *_: object, **__: object) -> list[Any]:
        if host not in known and not host.replace(".", "").isdigit() and ":" not in host:
            raise OSError("nobody knows")
        return [(None, None, None, "", (known.get(host, host), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return known


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    "url",
    [
        "https://api.lab.example/v1",
        "http://judge.lan:8000/v1",
        "http://localhost:8000/v1",
        "http://127.0.0.1:8000/v1",
        "https://nobody.example/v1",
    ],
)
def test_oracles_servers_pass(url: str) -> None:
    check_address(url)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("http://169.254.169.254/latest", "is at 169.254.169.254, where no oracle is"),
        ("https://sly.example/v1", "is at 169.254.169.254"),
        ("http://[fe80::1]/v1", "is at fe80::1"),
        ("http://[fd00:ec2::254]/latest", "is at fd00:ec2::254"),
        ("http://[::ffff:169.254.169.254]/v1", "is at 169.254.169.254"),
        ("http://0.0.0.0/v1", "is at 0.0.0.0"),
        ("http://api.lab.example/v1", f"unencrypted to {PUBLIC}"),
    ],
)
def test_where_no_oracle_is_nothing_is_sent(url: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace(".", r"\.").replace("[", r"\[")):
        check_address(url)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("url", "passes"),
    [
        ("https://api.lab.example/v1", True),
        ("https://api.lab.example/v1/judge", True),
        ("https://api.lab.example/v10", False),
        ("https://api.lab.example.evil.example/v1", False),
        ("https://api.lab.example:444/v1", False),
        ("https://api.lab.example/v1/../admin", False),
        ("http://judge.lan:8000/v1", True),
        ("http://judge.lan:8001/v1", False),
    ],
)
def test_a_worker_may_be_told_which_servers_there_are(url: str, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NINEFOLD_ENDPOINTS", "https://api.lab.example/v1 http://judge.lan:8000")
    if passes:
        check_address(url)
    else:
        with pytest.raises(ValueError, match="is not among the servers that NINEFOLD_ENDPOINTS allows: https"):
            check_address(url)


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "PREFECT_API_KEY",
        "NINEFOLD_LEDGER_URL",
        "PATH",
        "PGPASSWORD",
        "HOME",
        "HF_TOKEN",
        "RAY_AUTH_TOKEN",
    ],
)
def test_other_secrets_are_not_sent(name: str) -> None:
    with pytest.raises(ValueError, match=f"api_key_env={name} is no oracle's"):
        check_key_name(name)


def test_an_endpoint_is_checked_before_anything_is_bought(monkeypatch: pytest.MonkeyPatch) -> None:
    prices = Prices(input=1, output=1)
    with pytest.raises(ValueError, match="is no oracle's"):
        Endpoint(model="m", api_key_env="AWS_SECRET_ACCESS_KEY", prices=prices)
    monkeypatch.setenv("JUDGE_KEY", "x")
    with pytest.raises(ValueError, match="where no oracle is"):
        Endpoint(model="m", base_url="http://169.254.169.254/v1", api_key_env="JUDGE_KEY", prices=prices).check()
