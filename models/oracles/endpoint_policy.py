"""Policy of oracle endpoints (NINEFOLD_ENDPOINTS): which servers a worker may call, with which keys."""

import ipaddress
import os
import re
import socket
from urllib.parse import urlsplit

from models.core.errors import ConfigError

ALLOWED = "NINEFOLD_ENDPOINTS"  # of a worker: URLs, separated by spaces, that oracles' must begin with
_CREDENTIALS = ipaddress.ip_network("fd00:ec2::/32")  # AWS's, by IPv6
_OTHERS = re.compile(
    r"^(AWS|AZURE(?!_OPENAI_)|DATABRICKS|GOOGLE(?!_API_KEY$)|GCP|HF_|HUGGING|LABEL_STUDIO|MLFLOW|PG|POSTGRES|PREFECT|RAY_"
    r"|NINEFOLD_(STORE|LEDGER|MLFLOW|SETTINGS))"
)


def check_key_name(name: str) -> str:
    """Return the name of the variable that holds an oracle's key; raise ConfigError if it holds what is not for oracles."""
    if _OTHERS.match(name) or not name.endswith(("_KEY", "_TOKEN")):
        raise ConfigError(
            f"api_key_env={name} is no oracle's: it is sent to base_url, so its name must end in _KEY or _TOKEN and be none "
            "of the store's, the databases' or the servers' own"
        )
    return name


_PORTS = {"http": 80, "https": 443}


def canonical(url: str) -> str:
    """Return one spelling of a server's URL: without a default port or a last slash, this machine as 127.0.0.1."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    host = "127.0.0.1" if is_loopback(url) else f"[{host}]" if ":" in host else host
    port = "" if parts.port in {None, _PORTS.get(parts.scheme)} else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}"


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself, whatever a name server says."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(url: str) -> None:
    """Raise ConfigError if an oracle must not be asked at a URL, by where its host is now.

    Never link-local addresses, where clouds keep a machine's credentials; without encryption only this machine and private
    networks. Where NINEFOLD_ENDPOINTS is set, nothing that does not begin with one of its URLs.
    """
    allowed = os.environ.get(ALLOWED, "").split()
    if allowed and not any(_within(url, prefix) for prefix in allowed):
        raise ConfigError(f"base_url={url} is not among the servers that {ALLOWED} allows: {', '.join(allowed)}")
    parts = urlsplit(url)
    for address in _addresses(parts.hostname or ""):
        kept = address.version == 6 and address in _CREDENTIALS
        if kept or address.is_link_local or address.is_multicast or address.is_unspecified:
            raise ConfigError(f"base_url={url} is at {address}, where no oracle is: it is a machine's own network's")
        if parts.scheme == "http" and not address.is_private:
            raise ConfigError(
                f"base_url={url} would send key and questions unencrypted to {address}, outside of private networks: use "
                "https://"
            )


def _within(url: str, prefix: str) -> bool:
    """Whether a URL is a server's or lies under its path: not a host or a path that only begins alike."""
    ours, theirs = urlsplit(url), urlsplit(prefix)
    path = theirs.path.rstrip("/")
    same = (ours.scheme, ours.hostname, ours.port) == (theirs.scheme, theirs.hostname, theirs.port)
    return same and ".." not in ours.path and (ours.path.rstrip("/") == path or ours.path.startswith(f"{path}/"))


def _addresses(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Return where a host is; nowhere if nobody knows, which the call will say."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return [getattr(address, "ipv4_mapped", None) or address for address in addresses]
