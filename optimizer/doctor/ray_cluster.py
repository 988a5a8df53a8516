"""What is wrong with a cluster? Whether it is there, who may use it, and which versions it has."""

from __future__ import annotations

import ipaddress
import socket
import stat
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil

from optimizer.doctor.finding import Finding
from optimizer.errors import ClusterError, JobError
from optimizer.remote import asking
from optimizer.remote.address import TOKEN, TOKEN_FILE, Endpoint, named, split, token_file

TOKEN_MEND = "start Ray with RAY_AUTH_MODE=token, and give clients the token file"


def examine(address: str) -> Iterator[Finding]:
    """A cluster by the address of its dashboard (`http://host:8265`, `auto`) or of its head (`host:6379`)."""
    file: Path | None = None
    if address == "auto":
        try:
            endpoint = Endpoint.of(address)
            address, file = endpoint.url, endpoint.token_file
        except ClusterError as error:
            yield Finding("reachable", "wrong", str(error), "mergeopt cluster up")
            return
    url, port = split(address, "ray")
    if not url.hostname or port is None:
        raise JobError(f"--address: expected http://HOST:PORT, HOST:PORT or auto, got {address!r}")
    yield own_token(file or _token_file_for(address))
    try:
        with socket.create_connection((url.hostname, port), asking.SECONDS) as found:
            peer = found.getpeername()[0]
    except OSError as error:
        mend = "start it (ray start --head), or forward its port: ssh -L 8265:localhost:8265 HOST"
        yield Finding("reachable", "wrong", f"{url.hostname}:{port}: {error}", mend)
        return
    yield Finding("reachable", "well", f"{url.hostname}:{port} answers")
    yield from _listening(port, peer)
    if url.scheme in ("http", "https"):
        yield from _api(address, named(url, port), local=ipaddress.ip_address(peer).is_loopback)


def _token_file_for(address: str) -> Path | None:
    """The file of the token that this address would be shown; None where that is in no file, or none is."""
    try:
        return Endpoint.of(address).token_file
    except ClusterError:  # of what is no job API, or is refused: said below, once it asks for a token
        return None


def own_token(file: Path | None = None) -> Finding:
    """The file that holds the user's token, by default their own: whoever reads it can run code on the cluster."""
    path = file or token_file()
    if not path.is_file():
        return Finding("token", "well", f"no file {path}")
    mode = stat.S_IMODE(path.stat().st_mode)
    return Finding.of("token", not mode & 0o077, f"{path} has mode {mode:04o}", f"chmod 600 {path}")


def _listening(port: int, peer: str) -> Iterator[Finding]:
    """Where the port is one of this host: which addresses it is open on."""
    if not ipaddress.ip_address(peer).is_loopback:
        return
    try:
        there = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    except psutil.AccessDenied:
        return
    bound = {place.ip for place in there if place and place.port == port}
    everywhere = bound & {"0.0.0.0", "::"}
    said = f"port {port} listens on {', '.join(sorted(bound)) or peer}"
    mend = "anyone on the network reaches it: --dashboard-host=127.0.0.1, --node-ip-address=127.0.0.1"
    yield Finding.of("interfaces", not everywhere, said, mend)


def _api(address: str, base: str, local: bool) -> Iterator[Finding]:
    code, found = asking.version(base, {})
    if code == 200:
        said = "it asks for no token: whoever reaches it runs code there"
        yield Finding("access", "warning" if local else "wrong", said, TOKEN_MEND)
    elif code in (401, 403):
        copy = f"copy the cluster's token to {token_file()} (chmod 600)"
        try:
            endpoint = Endpoint.of(address)  # it alone says who is given a token
        except ClusterError as error:
            yield Finding("access", "wrong", str(error), f"{copy}, and name that file in {TOKEN_FILE}")
            return
        if endpoint.token is None:
            yield Finding("access", "wrong", "it asks for a token, and there is none here", f"{copy}, or set {TOKEN}")
            return
        code, found = asking.version(endpoint.url, endpoint.headers)
        yield Finding.of("access", code == 200, f"it asks for a token, and answers ours with {code}", copy)
    else:
        yield Finding("access", "wrong", f"{base}/api/version answers {code}: no dashboard of Ray", "check the port")
    if code == 200:
        there, here = str(found.get("ray_version")), version("ray")
        mend = f"install ray=={there} here, or ray=={here} there: both ends must be the same"
        yield Finding.of("versions", there == here, f"Ray {there} there, {here} here", mend)
