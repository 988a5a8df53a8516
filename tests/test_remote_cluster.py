"""A search sent to a real Ray head: what it is given, what it answers, and who is not let in."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import worlds

from optimizer.errors import ClusterError
from optimizer.record.results import Results
from optimizer.remote import following, head, parcel
from optimizer.remote.address import Endpoint
from optimizer.remote.jobs import Cluster, Sent, explained
from optimizer.remote.shipping import shipped
from optimizer.remote.wire import Order

CANARY = "canary-5f0d"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a head of the tests' own."""
    pytest.importorskip("opencensus", reason="the job API needs Ray whole: pip install 'mergeopt[cluster]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        made = head.up(head._free_port(), cpus=2)
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)  # of who sends, not of the cluster
        yield made.url
        assert head.down() and not Path(made.files).exists()


@pytest.mark.slow
def test_a_head_of_ones_own_listens_on_loopback_alone_and_asks_for_its_token(address: str) -> None:
    found = head.running()
    assert found is not None and head.token_file().stat().st_mode & 0o777 == 0o600
    family = [psutil.Process(found.pid), *psutil.Process(found.pid).children(recursive=True)]
    heard = [c.laddr.ip for p in family for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert heard and all(ip.removeprefix("::ffff:").startswith("127.") for ip in heard)
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{address}/api/jobs/", headers=headers))
        assert refused.value.code in (401, 403)
        refused.value.close()
    with pytest.raises(ClusterError, match="is not the cluster's"):
        Cluster(Endpoint(address, "wrong"))
    with pytest.raises(ClusterError, match="a cluster is running at"):
        head.up()


@pytest.mark.slow
def test_a_search_that_was_sent_is_followed_fetched_and_has_nothing_of_the_environment(
    address: str, tmp_path: Path
) -> None:
    there = Cluster(Endpoint.of(address))
    path = worlds.classification(tmp_path / "world", evaluations=9)
    job = shipped(path, None, str(tmp_path / "world"))
    order = there.send(Order("run", job.name, str(tmp_path / "runs"), job=job.yaml()))
    assert there.answer(order)["folder"] == str(tmp_path / "runs" / "pico")
    assert there.find("pico").id == order == there.find(order).id
    said = "\n".join(following.log(there, order, follow=True))
    assert (
        "9/9" in said
        and "mergeopt fetch pico report --address ADDRESS" in said
        and there.state(order).status == "SUCCEEDED"
    )
    with (tmp_path / "parcel").open("w+b") as archive:
        fetch = there.send(Order("fetch", "pico", str(tmp_path / "runs")))
        there.receive(fetch, archive)
    parcel.unpack(tmp_path / "parcel", tmp_path / "here", run=("pico", "auto"))
    assert (tmp_path / "here" / "fetched.json").is_file() and len(Results(tmp_path / "here").candidates) == 9
    with pytest.raises(ClusterError, match=r"on the cluster: the cluster has a run at .*pico already") as refused:
        there.answer(there.send(Order("run", job.name, str(tmp_path / "runs"), job=job.yaml())))
    assert refused.value.exit_code == 2
    with pytest.raises(ClusterError, match="knows no run 'nobody'; it knows: pico"):
        there.find("nobody")
    kept = head.running()
    assert kept is not None
    logs = [f for f in Path(kept.files).rglob("*") if f.is_file() and f.stat().st_size < 10**7]
    assert logs and not [f for f in logs if CANARY.encode() in f.read_bytes()]
    end = time.monotonic() + 30
    while not there.state(fetch).over and time.monotonic() < end:
        time.sleep(0.2)
    assert "mergeopt-data" not in there.log(fetch), "what was fetched stays in no log"


def test_a_cluster_that_is_not_there_is_told_in_one_sentence() -> None:
    with pytest.raises(ClusterError, match=r"no cluster answers at http://127\.0\.0\.1:1; is it running"):
        Cluster(Endpoint("http://127.0.0.1:1"))


def test_a_python_without_mergeopt_is_told_by_what_is_missing() -> None:
    order = Sent("first-0", "run", "first", "runs", "FAILED", 0)
    assert "install mergeopt" in explained("python: No module named optimizer.remote", order)
    assert "install mergeopt" in explained("python: Error while finding module: No module named 'optimizer'", order)
    assert "ended as FAILED without an answer; the last that it said: a b" in explained("x\na\n\nb\n", order)
