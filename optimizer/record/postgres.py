"""How does a ledger lie in PostgreSQL? A schema a run, in the SQL that is written for SQLite."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.errors import RunError
from optimizer.record import files
from optimizer.record.connection import WRITER, Connection
from optimizer.record.schema import KEEP_META, SCHEMA
from optimizer.record.sqlite import SQLite

if TYPE_CHECKING:
    import psycopg

T = TypeVar("T")

TYPES = {"BLOB": "BYTEA", "REAL": "DOUBLE PRECISION", "INTEGER": "BIGINT", " WITHOUT ROWID": ""}  # SQLite's, and ours
COPIED = 100  # rows at a time: one has the gradient, or the values of all items, of a candidate


class Postgres:
    """The tables of one run, in a schema of its own on a server.

    What may be read is of the server's rights; passwords come from PGPASSWORD, ~/.pgpass or a service file, as libpq
    has them, and are kept nowhere.
    """

    def __init__(self, url: str, run: str, readonly: bool) -> None:
        self.url, self.run = url, run
        self._inside = False  # a transaction, whose statements cannot be repeated one by one
        self.connection = Connection(url, run, readonly)

    @classmethod
    def create(cls, note: Path, url: str, meta: Mapping[str, str]) -> Postgres:
        """A new schema with these rows of `meta`; `note`, a file, will say where it is. Raises RunError."""
        store = cls(url, secrets.token_hex(12), readonly=False)
        from psycopg import sql  # there, else the line before has said that it is missing

        def make() -> None:
            store._db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(store.connection.schema)))
            store._db.execute(translated(SCHEMA))
            store.executemany("INSERT INTO meta VALUES (?, ?)", list(meta.items()))
            store._enter()

        try:
            store.write(make, lambda: store._made())
            store.connection.entered = True
            note.write_text(json.dumps({"server": url, "run": store.run}))
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def open(cls, note: Path, readonly: bool) -> Postgres:
        """The schema that `note` names. Raises RunLocked where another process writes to it, RunError for none."""
        store = cls(*noted(note), readonly)
        try:
            if not store._made():
                raise RunError(
                    f"{note}: {store.url} has no run {store.run}; restore the database, or remove the run's folder"
                )
            if not readonly:
                store.write(store._enter, lambda: False)
                store.connection.entered = True
        except BaseException:
            store.close()
            raise
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

        drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(store.connection.schema))
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
                self.connection.recover(error)

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
                self.connection.recover(error)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        import psycopg

        try:
            with self._transaction():
                self._db.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                yield
        except psycopg.Error as error:
            raise self.connection.in_our_words(error) from error

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
    def _db(self) -> psycopg.Connection[Any]:
        return self.connection.db  # another one after each loss

    def _enter(self) -> None:
        """Say in `meta` that this is the writer now."""
        self._db.execute(translated(KEEP_META), (WRITER, json.dumps(self.connection.token)))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._inside = True
        try:
            with self._db.transaction():
                yield
        finally:
            self._inside = False

    def _made(self) -> bool:
        row = self.execute("SELECT count(*) FROM pg_namespace WHERE nspname = ?", (self.connection.schema,)).fetchone()
        return bool(row and row[0])


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
        data = json.loads(files.read(note, 10_000, links=True))
        url, run = server_url(data["server"]), str(data["run"])
        if not re.fullmatch(r"[0-9a-f]{24}", run):
            raise ValueError(f"{run!r} is no run of a server")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{note} does not say where a ledger is ({error}); restore it from a copy") from error
    return url, run
