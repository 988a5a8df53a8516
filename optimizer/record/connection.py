"""How is a PostgreSQL server reached, and who alone writes there? A connection that is lost is looked for, aloud."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any

from optimizer.errors import DiskFull, LedgerBusy, OptimizerError, RunError, RunLocked
from optimizer.record.store import PATIENCE_SECONDS
from optimizer.wording import redacted

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

LOCK_SECONDS = 3.0  # the server may need a moment to see that a killed writer is gone
RETRY_SECONDS = 0.3
FULL = "53100"  # SQLSTATE: disk full
WAITED = ("55P03", "57014")  # a lock was not to be had in time
DENIED = re.compile(r"authentication|password|pg_hba|permission denied|does not exist|SSL|certificate", re.IGNORECASE)
# what every connection says: a lost host is seen within a minute on either side, and no password is sent in the clear
# (keepalives are silent while something sent has not arrived: that has a time of its own, in ms)
CONNECTION = {
    **{"connect_timeout": 10, "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3},
    "tcp_user_timeout": 35_000,
}
SESSION = """
SET synchronous_commit = on; SET lock_timeout = '30s'; SET client_min_messages = warning;
SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 35000;
"""
WRITER = "writer"  # key of `meta`: which writer, of all that ever had this run open, was the last


class Connection:
    """The connection to one run's schema, `db`, and for a writer the run's lock, which lives as long as that.

    Raises RunError, RunLocked, LedgerBusy. `token` tells this writer from others; once `entered` says that it is the
    last who is named in `meta`, a new connection is refused where another has been since.
    """

    def __init__(self, url: str, run: str, readonly: bool) -> None:
        self.url, self.run = url, run
        self.schema = f"mergeopt_{run}"
        self.token = secrets.token_hex(4)
        self.entered = False
        self._readonly = readonly
        self.db = self._connected()

    def recover(self, error: psycopg.Error) -> None:
        """Be connected again, and return; or say in our words what is wrong."""
        if not self.db.closed:
            raise self.in_our_words(error) from error
        log.warning("lost the connection to the ledger at %s; looking for it for %g s", self.url, PATIENCE_SECONDS)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self.db = self._connected()
                log.warning("connected to the ledger at %s again", self.url)
                return
            except OptimizerError as again:
                if isinstance(again, RunLocked) or time.monotonic() > until:
                    raise
            time.sleep(RETRY_SECONDS)

    def in_our_words(self, error: psycopg.Error) -> OptimizerError:
        text = redacted(" ".join(str(error).split()))
        where = f"the ledger at {self.url}"
        if error.sqlstate == FULL:
            return DiskFull(f"no room left on the disk of {where}; free some and resume: nothing answered is lost")
        if error.sqlstate in WAITED:
            return LedgerBusy(f"{where} was locked by another process for 30 s; end it there and resume")
        if error.sqlstate is None and not DENIED.search(text):
            return LedgerBusy(f"cannot reach {where}: {text}; see that its server runs, then resume")
        if DENIED.search(text):
            may_not = "permission denied" in text
            text += "; its user needs CREATE on the database" if may_not else ""
            text += "" if may_not else "; a password comes from PGPASSWORD, ~/.pgpass or a service"
        return RunError(f"cannot use {where}: {text}")

    def _connected(self) -> psycopg.Connection[Any]:
        """A connection, and for a writer the run's lock. Raises RunError, RunLocked, LedgerBusy."""
        try:
            import psycopg
        except ImportError as error:
            raise RunError(
                "a ledger on PostgreSQL needs the package psycopg; pip install 'mergeopt[postgres]'"
            ) from error
        try:
            guarded = {**CONNECTION, "application_name": self._name, "require_auth": "!password"}
            db = psycopg.connect(self.url, autocommit=True, **guarded)
        except psycopg.Error as error:
            raise self.in_our_words(error) from error
        try:
            db.execute(SESSION)
            db.execute("SELECT set_config('search_path', %s, false)", (self.schema,))
            if self._readonly:
                db.execute("SET default_transaction_read_only = on")
            else:
                self._lock(db)
        except BaseException as error:
            db.close()
            if isinstance(error, psycopg.Error):
                raise self.in_our_words(error) from error
            raise
        return db

    @property
    def _name(self) -> str:
        """What a connection of this writer is called: program, host, process, token. A name has 63 bytes."""
        return f"mergeopt {socket.gethostname()[:32]} {os.getpid()} {self.token}"

    def _lock(self, db: psycopg.Connection[Any]) -> None:
        """One writer a run, as long as its connection lives. Raises RunLocked where another has it, or had it since."""
        key = int(self.run[:15], 16)
        until = time.monotonic() + LOCK_SECONDS
        while not db.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()[0]:
            pid, who, since = db.execute(
                "SELECT pid, application_name, to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS')"
                " FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted"
                " AND classid::bigint = %s AND objid::bigint = %s AND objsubid = 1",
                (key >> 32, key & 0xFFFFFFFF),
            ).fetchone() or (None, "somebody", "?")
            if who == self._name:  # our own, of before the network was cut: the server has not seen that it is gone
                db.execute("SELECT pg_terminate_backend(%s)", (pid,))
            if time.monotonic() > until:
                if who == self._name:
                    raise LedgerBusy(
                        f"the ledger at {self.url} is still locked by this process's own connection, which was lost; "
                        "wait a minute for its server to see that, then resume"
                    )
                raise RunLocked(
                    f"run {self.run} at {self.url} is being written by '{' '.join(str(who).split()[:3])}' since "
                    f"{since} (program, host, process); stop it there, or wait; 'mergeopt status' shows how it stands"
                )
            time.sleep(0.1)
        if self.entered and (last := self._last_writer(db)) != self.token:
            raise RunLocked(
                f"run {self.run} at {self.url} has been written by another process ({last}) while the connection was "
                "lost; 'mergeopt resume' goes on from what it wrote"
            )

    @staticmethod
    def _last_writer(db: psycopg.Connection[Any]) -> str | None:
        row = db.execute("SELECT value FROM meta WHERE key = %s", (WRITER,)).fetchone()
        return None if row is None else str(json.loads(row[0]))
