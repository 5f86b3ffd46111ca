-- The log of every conversation, its members, and what is kept of users.

PRAGMA application_id = 0x74696465;  -- "tide": tells our databases, and backups of them, from others

CREATE TABLE conversations (
  key INTEGER PRIMARY KEY,             -- stands for the id in all other tables: 3 bytes instead of 26
  id TEXT NOT NULL UNIQUE,
  kind INTEGER NOT NULL,
  title TEXT NOT NULL,
  creator TEXT NOT NULL,
  created_us INTEGER NOT NULL,         -- microseconds since the Unix epoch
  epoch INTEGER NOT NULL,              -- of the present owner; never falls
  member_count INTEGER NOT NULL DEFAULT 0
) STRICT;

-- In order of arrival, so that a commit writes full pages at the end of one table.
CREATE TABLE entries (
  position INTEGER PRIMARY KEY,        -- place in the log of all conversations; without a gap
  conversation INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  encoded BLOB NOT NULL                -- msgpack of protocol.frames.Entry
) STRICT;

-- Written later than its entries, see store/embedded_recent.py.
CREATE TABLE entry_index (
  conversation INTEGER NOT NULL,
  seq INTEGER NOT NULL,
  position INTEGER NOT NULL,
  PRIMARY KEY (conversation, seq)
) STRICT, WITHOUT ROWID;

-- One row: all entries at this position or before are in entry_index, and some of those after it.
CREATE TABLE index_state (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  indexed_through INTEGER NOT NULL
) STRICT;
INSERT INTO index_state VALUES (1, 0);

CREATE TABLE members (
  conversation INTEGER NOT NULL,
  user TEXT NOT NULL,
  joined_seq INTEGER NOT NULL,
  delivered_seq INTEGER NOT NULL DEFAULT 0,
  read_seq INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (conversation, user)
) STRICT, WITHOUT ROWID;

CREATE INDEX members_by_user ON members (user);

CREATE TABLE last_seen (
  user TEXT PRIMARY KEY,
  seen_ms INTEGER NOT NULL             -- milliseconds since the Unix epoch
) STRICT, WITHOUT ROWID;

-- One row that the writer changes to learn whether the disk takes writes again.
CREATE TABLE write_probe (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  count INTEGER NOT NULL
) STRICT;
INSERT INTO write_probe VALUES (1, 0);
