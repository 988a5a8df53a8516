"""How does a ledger lie in SQLite? Its tables in this version, and how those of the version before become them."""

from __future__ import annotations

import json
import sqlite3

VERSION = 3
BEFORE = 2  # read as it is, and brought to this version where it is written to
MEASURES = """
CREATE TABLE measures (
    number INTEGER NOT NULL, split TEXT NOT NULL, metric TEXT NOT NULL,
    value REAL NOT NULL, stderr REAL,               -- NULL: not known
    count INTEGER NOT NULL,
    PRIMARY KEY (number, split, metric)
) WITHOUT ROWID;
"""
SCHEMA = f"""{MEASURES}
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE questions (
    number INTEGER NOT NULL, split TEXT NOT NULL,   -- a question, and the items it is answered on
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


def upgrade(connection: sqlite3.Connection) -> None:
    """From version 2, where every standard error was a number; within the caller's transaction."""
    connection.execute("ALTER TABLE measures RENAME TO measures_before")
    connection.execute(MEASURES)
    connection.execute("INSERT INTO measures SELECT number, split, metric, value, stderr, count FROM measures_before")
    connection.execute("DROP TABLE measures_before")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'version'", (json.dumps(VERSION),))
