"""How does a ledger lie in PostgreSQL? A schema a run, one writer by an advisory lock, readers never blocked."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.errors import DiskFull, LedgerBusy, OptimizerError, RunError, RunLocked
from optimizer.record.schema import SCHEMA
from optimizer.record.sqlite import SQLite
from optimizer.record.store import PATIENCE_SECONDS
from optimizer.wording import redacted

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)
T = TypeVar("T")

TYPES = {"BLOB": "BYTEA", "REAL": "DOUBLE PRECISION", "INTEGER": "BIGINT", " WITHOUT ROWID": ""}  # SQLite's, and ours
LOCK_SECONDS = 3.0  # the server may need a moment to see that a killed writer is gone
RETRY_SECONDS = 0.3
COPIED = 100  # rows at a time: one has the gradient, or the values of all items, of a candidate
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


class Postgres:
    """The tables of one run, in a schema of its own on a server.

    A connection that is lost is looked for again for `PATIENCE_SECONDS`, aloud. What may be read is of the server's
    rights; passwords come from PGPASSWORD, ~/.pgpass or a service file, as libpq has them, and are kept nowhere.
    """

    def __init__(self, url: str, run: str, readonly: bool) -> None:
        self.url, self.run = url, run
        self._readonly = readonly
        self._inside = False  # a transaction, whose statements cannot be repeated one by one
        self._token = secrets.token_hex(4)  # of this writer; part of what its connections are called
        self._entered = False  # in `meta`, as the writer
        self._db = self._connected()

    @classmethod
    def create(cls, note: Path, url: str, meta: Mapping[str, str]) -> Postgres:
        """A new schema with these rows of `meta`; `note`, a file, will say where it is. Raises RunError."""
        store = cls(url, secrets.token_hex(12), readonly=False)
        from psycopg import sql  # there, else the line before has said that it is missing

        def make() -> None:
            store._db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(store._schema)))
            store._db.execute(translated(SCHEMA))
            store.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
            store._enter()

        try:
            store.write(make, lambda: store._made())
            store._entered = True
            note.write_text(json.dumps({"server": url, "run": store.run}))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, note: Path, readonly: bool) -> Postgres:
        """The schema that `note` names. Raises RunLocked where another process writes to it, RunError for none."""
        store = cls(*noted(note), readonly)
        if not store._made():
            store.close()
            raise RunError(
                f"{note}: {store.url} has no run {store.run}; restore the database, or remove the run's folder"
            )
        if not readonly:
            store.write(store._enter, lambda: False)
            store._entered = True
        return store

    @classmethod
    def usable(cls, url: str) -> str:
        """That a run could be kept there, in words. Raises RunError or LedgerBusy where it could not."""
        store = cls(url, secrets.token_hex(12), readonly=False)
        try:
            asked = "SELECT current_database(), current_user, has_database_privilege(current_database(), 'CREATE')"
            database, user, may = store.execute(asked).fetchone() or ("?", "?", False)
        finally:
            store.close()
        if not may:
            raise RunError(
                f"the ledger at {url}: user {user} may not make schemas in {database}; "
                f"GRANT CREATE ON DATABASE {database} TO {user}"
            )
        return f"{url} answers, and {user} may make schemas in {database}"

    @classmethod
    def remove(cls, note: Path) -> None:
        """Drop the schema that `note` names, and the note."""
        store = cls(*noted(note), readonly=False)
        from psycopg import sql

        drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(store._schema))
        try:
            store.write(lambda: store._db.execute(drop), lambda: not store._made())
        finally:
            store.close()
        note.unlink()

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> psycopg.Cursor[Any]:
        import psycopg

        while True:
            try:
                return self._db.execute(translated(sql), parameters)
            except psycopg.Error as error:
                if self._inside:
                    raise
                self._recover(error)

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]], /) -> None:
        with self._db.cursor() as cursor:
            cursor.executemany(translated(sql), rows)

    def write(self, work: Callable[[], T], landed: Callable[[], bool]) -> T:
        import psycopg

        made: list[T] = []  # what was made by a `work` whose commit may or may not have arrived
        while True:
            try:
                if made and landed():
                    return made[0]
                with self._transaction():
                    made[:] = [work()]
                return made[0]
            except psycopg.Error as error:
                self._recover(error)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        import psycopg

        try:
            with self._transaction():
                self._db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                yield
        except psycopg.Error as error:
            raise self._in_our_words(error) from error

    def check(self) -> list[str]:
        return []  # the server looks after its files

    def copy(self, path: Path) -> None:
        def take() -> None:
            for (table,) in made.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                columns = [name for _, name, *_ in made.execute(f"PRAGMA table_info({table})")]
                into = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"
                with self._db.cursor(name="copy") as rows:  # of the server's, which sends some at a time
                    rows.execute(translated(f"SELECT {', '.join(columns)} FROM {table}"))
                    while some := rows.fetchmany(COPIED):
                        made.executemany(into, some)

        with closing(SQLite.create(path, {})) as made, self.snapshot():
            made.write(take, lambda: False)

    def close(self) -> None:
        self._db.close()

    @property
    def _schema(self) -> str:
        return f"mergeopt_{self.run}"

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._inside = True
        try:
            with self._db.transaction():
                yield
        finally:
            self._inside = False

    def _made(self) -> bool:
        row = self.execute("SELECT count(*) FROM pg_namespace WHERE nspname = ?", (self._schema,)).fetchone()
        return bool(row and row[0])

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
            raise self._in_our_words(error) from error
        try:
            db.execute(SESSION)
            db.execute("SELECT set_config('search_path', %s, false)", (self._schema,))
            if self._readonly:
                db.execute("SET default_transaction_read_only = on")
            else:
                self._lock(db)
        except BaseException as error:
            db.close()
            if isinstance(error, psycopg.Error):
                raise self._in_our_words(error) from error
            raise
        return db

    @property
    def _name(self) -> str:
        """What a connection of this writer is called: program, host, process, token. A name has 63 bytes."""
        return f"mergeopt {socket.gethostname()[:32]} {os.getpid()} {self._token}"

    def _enter(self) -> None:
        """Say in `meta` that this is the writer now."""
        keep = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
        self._db.execute(translated(keep), (WRITER, json.dumps(self._token)))

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
        if self._entered and (last := self._last_writer(db)) != self._token:
            raise RunLocked(
                f"run {self.run} at {self.url} has been written by another process ({last}) while the connection was "
                "lost; 'mergeopt resume' goes on from what it wrote"
            )

    @staticmethod
    def _last_writer(db: psycopg.Connection[Any]) -> str | None:
        row = db.execute("SELECT value FROM meta WHERE key = %s", (WRITER,)).fetchone()
        return None if row is None else str(json.loads(row[0]))

    def _recover(self, error: psycopg.Error) -> None:
        """Be connected again, and return; or say in our words what is wrong."""
        if not self._db.closed:
            raise self._in_our_words(error) from error
        log.warning("lost the connection to the ledger at %s; looking for it for %g s", self.url, PATIENCE_SECONDS)
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                self._db = self._connected()
                log.warning("connected to the ledger at %s again", self.url)
                return
            except OptimizerError as again:
                if isinstance(again, RunLocked) or time.monotonic() > until:
                    raise
            time.sleep(RETRY_SECONDS)

    def _in_our_words(self, error: psycopg.Error) -> OptimizerError:
        text = redacted(" ".join(str(error).split()))
        where = f"the ledger at {self.url}"
        if error.sqlstate == FULL:
            return DiskFull(f"no room left on the disk of {where}; free some and resume: nothing answered is lost")
        if error.sqlstate in WAITED:
            return LedgerBusy(f"{where} was locked by another process for 30 s; end it there and resume")
        if error.sqlstate is None and not DENIED.search(text):
            return LedgerBusy(f"cannot reach {where}: {text}; see that its server runs, then resume")
        if DENIED.search(text):
            text += "; its user needs CREATE on the database; a password comes from PGPASSWORD, ~/.pgpass or a service"
        return RunError(f"cannot use {where}: {text}")


@lru_cache(maxsize=64)
def translated(sql: str) -> bytes:
    """A statement written for SQLite, as PostgreSQL and its driver want it."""
    for ours, theirs in TYPES.items():
        sql = re.sub(rf"(?<!\w){ours}\b" if ours.strip() == ours else ours, theirs, sql)
    return sql.replace("?", "%s").encode()


def noted(note: Path) -> tuple[str, str]:
    """Server and run that a note names. It may be somebody else's file: nothing in it is taken on trust."""
    from optimizer.wording import server_url

    try:
        data = json.loads(note.read_bytes()[:10_000])
        url, run = server_url(data["server"]), str(data["run"])
        if not re.fullmatch(r"[0-9a-f]{24}", run):
            raise ValueError(f"{run!r} is no run of a server")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{note} does not say where a ledger is ({error}); restore it from a copy") from error
    return url, run
