"""Does a search that is launched from the page onto a Ray cluster run there?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import served
import worlds
from browser import opened

from optimizer.record.results import Results
from optimizer.remote import following, head
from optimizer.remote.address import Endpoint
from optimizer.remote.jobs import Cluster

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The home of a head of the test's own, where it keeps runs."""
    pytest.importorskip("opencensus", reason="the job API needs Ray whole: pip install 'mergeopt[cluster]'")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    head.up(head._free_port(), cpus=2)
    yield tmp_path / "home"
    assert head.down()


@pytest.mark.slow
def test_a_search_is_launched_from_the_page_onto_a_cluster_and_runs_there(
    browser: Browser, home: Path, tmp_path: Path
) -> None:
    job, running = worlds.classification(tmp_path / "world", evaluations=9), head.running()
    assert running is not None
    (tmp_path / "runs").mkdir()
    with served.serving(tmp_path / "runs") as service:
        page = opened(browser, f"{service.url}/#token={served.TOKEN}").page
        page.wait_for_selector("main .empty")
        page.goto(f"{service.url}/#/new")
        page.locator("textarea").fill(f"root: {tmp_path / 'world'}\n{job.read_text()}")
        page.get_by_role("button", name="Check").click()
        page.wait_for_selector("#job .notice.good", timeout=120_000)
        page.get_by_label("name", exact=True).fill("afar")
        page.get_by_label("cluster").fill("http://127.0.0.1:1")
        page.get_by_role("button", name="Launch").click()
        page.wait_for_selector("#launch .notice.bad", timeout=120_000)
        assert "no cluster answers" in page.locator("#launch").inner_text()
        page.get_by_label("cluster").fill(running.url)
        page.get_by_role("button", name="Launch").click()
        page.locator("#launch .notice.good").filter(has_text=f"mergeopt watch afar --address {running.url}").wait_for(
            timeout=180_000
        )
        page.close()
        assert service.told("/api/runs")["runs"] == [], "the cluster has it"
    there = Cluster(Endpoint.of(running.url))
    said = "\n".join(following.log(there, there.find("afar").id, follow=True))
    assert "9/9" in said and len(Results(home / "runs" / "afar").candidates) == 9
