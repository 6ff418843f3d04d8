"""Redirects of web addresses that come from data are followed,
except to addresses that only this machine should reach.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from functools import cache
from typing import Any

from cluster.errors import UserError
from cluster.secrets import masked

_allowed = False


def allow_local_redirects(allowed: bool = True) -> None:
    """From now on, in this process, redirects may lead to this machine and its network link."""
    global _allowed
    _allowed = allowed


def why_refused(scheme: str, host: str, addresses: list[str]) -> str | None:
    """Why a redirect may not be followed: to something that is no web address, or to this machine;
    None where it may.
    """
    if scheme not in ("http", "https"):
        return f"it redirects to {scheme or 'no'} address, which is not a web address"
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        if address.is_loopback or address.is_link_local or address.is_unspecified:
            return (
                f"it redirects to {host} ({address}), which is this machine or its link; "
                "--allow-local-redirects follows such"
            )
    return None


@cache
def guard() -> Any:
    """What aiohttp calls before it follows a redirect; one object, so that fsspec keeps one session."""
    import aiohttp

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_before_redirect)
    return trace


async def _before_redirect(session: Any, context: Any, params: Any) -> None:
    from yarl import URL

    if _allowed:
        return
    location = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
    try:
        target = params.url.join(URL(location))
    except ValueError as error:
        raise UserError(
            f"cannot read {masked(str(params.url))}: it redirects to {masked(location)!r}"
        ) from error
    addresses: list[str] = []
    if target.scheme in ("http", "https") and target.host:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                target.host, target.port, type=socket.SOCK_STREAM
            )
            addresses = [str(entry[4][0]) for entry in found]
        except OSError:
            addresses = []  # a host without an address is found out by the request
    if (reason := why_refused(target.scheme, target.host or "", addresses)) is not None:
        raise UserError(f"cannot read {masked(str(params.url))}: {reason}")
