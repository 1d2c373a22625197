# SPDX-License-Identifier: Apache-2.0
"""The client of the queue's Redis. arq's own factory keeps ``%40`` in passwords and sets no time-outs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from arq.connections import ArqRedis
from redis.asyncio.connection import ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from app.errors import Invalid

PORT, SENTINEL_PORT = 6379, 26379
SOCKET_TIMEOUT, CONNECT_TIMEOUT, HEALTH_CHECK = 5.0, 2.0, 15.0
RETRIES, BACK_OFF, BACK_OFF_CAP = 3, 0.05, 0.5
HASTY_TIMEOUT = 0.25
MAX_PAYLOAD = 64 * 1024

encode = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: ``json.dumps`` makes an encoder for each text that is not its default form."""

Option = Callable[[str], Any]
Limits = dict[str, Any]


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("must be true or false")
    return text.lower() in {"true", "1", "yes"}


TLS_OPTIONS: Mapping[str, Option] = {
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": str,
    "ssl_check_hostname": _flag,
}
SENTINEL_OPTIONS: Mapping[str, Option] = {"sentinel_username": str, "sentinel_password": str}
PLAIN_OPTIONS: Mapping[str, Option] = {"db": int}


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """Where a Redis is. ``hosts`` are Sentinels when ``service`` is set; ``path`` is a UNIX socket."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    service: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_redis_url(url: str) -> RedisAddress:
    """Read ``redis://``, ``rediss://``, ``unix://`` or ``redis+sentinel://host,host/service/db``.

    User and password are percent-decoded; ``rediss`` takes ``ssl_…`` options, Sentinel ``sentinel_…``.

    Raises:
        Invalid: what is wrong with it; the URL itself is never repeated, it holds a password.
    """
    try:
        return _parse(urlsplit(url))
    except ValueError as error:
        raise Invalid(f"EUCORA_REDIS_URL: {error}") from None


def _parse(parts: SplitResult) -> RedisAddress:
    schemes = {"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"}
    if parts.scheme not in schemes:
        raise ValueError("must start with redis://, rediss://, unix:// or redis+sentinel://")
    tls, sentinel = parts.scheme.startswith("rediss"), parts.scheme.endswith("+sentinel")
    options = _options(parts.query, tls=tls, sentinel=sentinel)
    database = options.pop("db", None)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    known = RedisAddress(
        username=unquote(username) or None, password=unquote(password) or None, tls=tls, options=options
    )
    if parts.scheme == "unix":
        return replace(known, path=unquote(parts.path), database=database or 0)
    steps = [unquote(step) for step in parts.path.split("/") if step]
    service = _service(steps) if sentinel else None
    if len(steps) > 1:
        raise ValueError("has more after the host than a database number")
    return replace(
        known,
        hosts=_hosts(hosts, SENTINEL_PORT if sentinel else PORT),
        service=service,
        database=_number(steps[0]) if steps else database or 0,
    )


def _service(steps: list[str]) -> str:
    if not steps:
        raise ValueError("must name the Sentinel service: redis+sentinel://host:port/service")
    return steps.pop(0)


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("the database must be a number")
    return int(text)


def _hosts(text: str, default_port: int) -> tuple[tuple[str, int], ...]:
    hosts = [urlsplit(f"//{host}") for host in text.split(",") if host]
    return tuple((host.hostname or "localhost", host.port or default_port) for host in hosts) or (
        ("localhost", default_port),
    )


def _options(query: str, *, tls: bool, sentinel: bool) -> dict[str, Any]:
    known = {**PLAIN_OPTIONS, **(TLS_OPTIONS if tls else {}), **(SENTINEL_OPTIONS if sentinel else {})}
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"does not know the option {name!r} here; known: {', '.join(sorted(known))}")
        try:
            options[name] = known[name](text)
        except ValueError as error:
            raise ValueError(f"option {name}: {error}") from error
    return options


def open_redis(url: str) -> ArqRedis:
    """A client that gives up on a silent server and outlives a restart; connects at its first use.

    Raises:
        Invalid: the URL is none.
    """
    return _open(parse_redis_url(url), _limits())


def open_hasty_redis(url: str) -> ArqRedis:
    """A client for what is worth nothing later: it gives up at once and tries nothing twice.

    Raises:
        Invalid: the URL is none.
    """
    once: Limits = {"retry": Retry(NoBackoff(), 0), "retry_on_error": []}
    return _open(
        parse_redis_url(url),
        _limits() | once | {"socket_timeout": HASTY_TIMEOUT, "socket_connect_timeout": HASTY_TIMEOUT},
    )


def _open(address: RedisAddress, limits: Limits) -> ArqRedis:
    # from_pool has the pool closed with the client.
    client = (
        _through_sentinels(address, limits)
        if address.service
        else cast(ArqRedis, ArqRedis.from_pool(_pool(address, limits)))
    )
    client.job_serializer, client.job_deserializer = serialize, deserialize
    return client


def _limits() -> Limits:
    # A refused connection is a bare OSError, which redis-py's own list of errors to retry does not match.
    # Time-outs are not retried: redis-py nests its retries, a silent server would hold a caller for minutes.
    again: tuple[Any, ...] = (RedisConnectionError, OSError)
    return {
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK,
        "retry": Retry(ExponentialBackoff(cap=BACK_OFF_CAP, base=BACK_OFF), RETRIES, supported_errors=again),
        "retry_on_error": list(again),
    }


def _login(address: RedisAddress) -> dict[str, Any]:
    return {"db": address.database, "username": address.username, "password": address.password}


def _tls(address: RedisAddress) -> dict[str, Any]:
    options = {name: value for name, value in address.options.items() if name in TLS_OPTIONS}
    return {"ssl_check_hostname": True, **options}


def _pool(address: RedisAddress, limits: Limits) -> ConnectionPool:
    arguments = limits | _login(address)
    if address.path is not None:
        del arguments["socket_keepalive"]
        return ConnectionPool(connection_class=UnixDomainSocketConnection, path=address.path, **arguments)
    host, port = address.hosts[0]
    if address.tls:
        arguments |= {"connection_class": SSLConnection, **_tls(address)}
    return ConnectionPool(host=host, port=port, **arguments)


def _through_sentinels(address: RedisAddress, limits: Limits) -> ArqRedis:
    tls = {"ssl": True, **_tls(address)} if address.tls else {}
    asking = {
        "username": address.options.get("sentinel_username"),
        "password": address.options.get("sentinel_password"),
        "socket_timeout": CONNECT_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        **tls,
    }
    sentinel = Sentinel(list(address.hosts), sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
    client = sentinel.master_for(
        str(address.service), redis_class=ArqRedis, **limits, **_login(address), **tls
    )
    return cast(ArqRedis, client)


def serialize(job: Any) -> bytes:
    """JSON: what is in the queue must never be able to run code in a worker, as arq's default can."""
    return encode(job).encode()


def deserialize(payload: bytes) -> Any:
    """The reverse; refuses what is larger than a list of ids can be."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a queue entry of {len(payload)} bytes is not ours")
    return json.loads(payload)
