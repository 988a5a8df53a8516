"""Which tables has a ledger? Those of this version, and how those of earlier versions become them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.record.store import Store

VERSION = 5
READ = (2, 3, 4, 5)  # versions that are read as they are, and brought to this one where they are written to
MEASURES = """
CREATE TABLE measures (
    number INTEGER NOT NULL, split TEXT NOT NULL, metric TEXT NOT NULL,
    value REAL NOT NULL, stderr REAL,               -- NULL: not known
    count INTEGER NOT NULL,
    PRIMARY KEY (number, split, metric)
) WITHOUT ROWID;
"""
TRIES = """(                                        -- attempts at a question that gave no answer
    number INTEGER NOT NULL, split TEXT NOT NULL,
    attempt INTEGER NOT NULL,                       -- 1, 2, ...
    worker TEXT NOT NULL, kind TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (number, split, attempt)
) WITHOUT ROWID;
"""
COPIES = """(                                       -- answers that no worker was asked for
    number INTEGER NOT NULL, split TEXT NOT NULL,
    of INTEGER NOT NULL,                            -- the question of the same recipe whose answer it is
    PRIMARY KEY (number, split)
);
"""
SHARES = """(                                       -- answers from some of the items: their measures are estimates
    number INTEGER NOT NULL, split TEXT NOT NULL,
    share REAL NOT NULL,                            -- of the items, scored
    PRIMARY KEY (number, split)
);
"""
ESTIMATES = """(                                    -- what was thought of scores on the way to them
    number INTEGER NOT NULL, split TEXT NOT NULL,
    share REAL NOT NULL, metric TEXT NOT NULL,
    value REAL NOT NULL, stderr REAL NOT NULL,
    PRIMARY KEY (number, split, share, metric)
) WITHOUT ROWID;
"""
LATER = {"tries": (TRIES, 4), "copies": (COPIES, 4), "shares": (SHARES, 5), "estimates": (ESTIMATES, 5)}
"""Tables that came with a version, and what they are."""

SCHEMA = f"""{MEASURES}
CREATE TABLE tries {TRIES}
CREATE TABLE copies {COPIES}
CREATE TABLE shares {SHARES}
CREATE TABLE estimates {ESTIMATES}
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE questions (
    number INTEGER NOT NULL, split TEXT NOT NULL,   -- a question, and the items it is answered on; below 0: a reference
    event INTEGER NOT NULL,                         -- place in the order of asks and tells
    requested INTEGER NOT NULL,                     -- the n of the driver's ask(n); 0 where no driver asked
    point BLOB NOT NULL,                            -- (dim,) little-endian float64
    wants TEXT NOT NULL, stage TEXT NOT NULL, recipe TEXT NOT NULL, at REAL NOT NULL,
    batch INTEGER NOT NULL, draw INTEGER NOT NULL,  -- which minibatch; 0, 0 for all items
    PRIMARY KEY (number, split)
);
CREATE TABLE answers (
    number INTEGER NOT NULL, split TEXT NOT NULL,
    event INTEGER NOT NULL UNIQUE,
    kind TEXT, reason TEXT,                         -- of a failure; NULL for scores
    seconds REAL NOT NULL, worker TEXT NOT NULL, attempts INTEGER NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (number, split)
);
CREATE TABLE gradients (
    number INTEGER NOT NULL, split TEXT NOT NULL,
    rows INTEGER NOT NULL, data BLOB NOT NULL,      -- (rows, dim) little-endian float64
    PRIMARY KEY (number, split)
);
CREATE TABLE item_values (
    number INTEGER NOT NULL, split TEXT NOT NULL, metric TEXT NOT NULL,
    data BLOB NOT NULL,                             -- (n,) little-endian float32
    PRIMARY KEY (number, split, metric)
);
"""
KEEP_META = "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"


def upgrade(store: Store, version: int) -> None:
    """From version 2, whose standard errors were all numbers, or a later one, which lacked tables.

    Within the caller's transaction.
    """
    if version == 2:
        store.execute("ALTER TABLE measures RENAME TO measures_before")
        store.execute(MEASURES)
        columns = "number, split, metric, value, stderr, count"
        store.execute(f"INSERT INTO measures SELECT {columns} FROM measures_before")
        store.execute("DROP TABLE measures_before")
    for name, columns in _lacking(version):
        store.execute(f"CREATE TABLE {name} {columns}")
    store.execute("UPDATE meta SET value = ? WHERE key = 'version'", (json.dumps(VERSION),))


def stand_in(store: Store, version: int) -> None:
    """What a ledger of an earlier version lacks, as empty tables of this connection alone: its file stays as it is."""
    for name, columns in _lacking(version):
        store.execute(f"CREATE TEMP TABLE {name} {columns}")


def _lacking(version: int) -> list[tuple[str, str]]:
    return [(name, columns) for name, (columns, since) in LATER.items() if version < since]
