"""What is wrong with a cluster? Whether it is there, who may use it, and which versions it has."""

from __future__ import annotations

import ipaddress
import json
import socket
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.metadata import version

import psutil

from optimizer.doctor.finding import Finding
from optimizer.errors import ClusterError, JobError
from optimizer.remote.address import TOKEN, TOKEN_FILE, Endpoint, split, token_file

SECONDS = 5.0
TOKEN_MEND = "start Ray with RAY_AUTH_MODE=token, and give clients the token file"


def examine(address: str) -> Iterator[Finding]:
    """A cluster by the address of its dashboard (`http://host:8265`, `auto`) or of its head (`host:6379`)."""
    if address == "auto":
        try:
            address = Endpoint.of(address).url
        except ClusterError as error:
            yield Finding("reachable", "wrong", str(error), "mergeopt cluster up")
            return
    url, port = split(address, "ray")
    if not url.hostname or port is None:
        raise JobError(f"--address: expected http://HOST:PORT, HOST:PORT or auto, got {address!r}")
    yield own_token()
    try:
        with socket.create_connection((url.hostname, port), SECONDS) as found:
            peer = found.getpeername()[0]
    except OSError as error:
        mend = "start it (ray start --head), or forward its port: ssh -L 8265:localhost:8265 HOST"
        yield Finding("reachable", "wrong", f"{url.hostname}:{port}: {error}", mend)
        return
    yield Finding("reachable", "well", f"{url.hostname}:{port} answers")
    yield from _listening(port, peer)
    if url.scheme == "http" or url.scheme == "https":
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        base = f"{url.scheme}://{host}:{port}"
        yield from _api(address, base, local=ipaddress.ip_address(peer).is_loopback)


def own_token() -> Finding:
    """The file that holds this user's token: whoever reads it can run code on the cluster."""
    path = token_file()
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
    code, found = _ask(base, {})
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
        code, found = _ask(endpoint.url, endpoint.headers)
        yield Finding.of("access", code == 200, f"it asks for a token, and answers ours with {code}", copy)
    else:
        yield Finding("access", "wrong", f"{base}/api/version answers {code}: no dashboard of Ray", "check the port")
    if code == 200:
        there, here = str(found.get("ray_version")), version("ray")
        mend = f"install ray=={there} here, or ray=={here} there: both ends must be the same"
        yield Finding.of("versions", there == here, f"Ray {there} there, {here} here", mend)


class _Nowhere(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: a token is for the host that was named."""

    def redirect_request(self, *said: object) -> None:
        return None


def _ask(url: str, headers: Mapping[str, str]) -> tuple[int, dict[str, object]]:
    """Status and JSON of what tells the version; -1 where nothing comes."""
    request = urllib.request.Request(f"{url}/api/version", headers=dict(headers))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Nowhere)  # nor for anybody in between
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            found = json.loads(answer.read(1_000_000))
            return answer.status, found if isinstance(found, dict) else {}
    except urllib.error.HTTPError as error:
        return error.code, {}
    except (OSError, ValueError):
        return -1, {}
