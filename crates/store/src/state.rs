//! The database: names, cache records, forms of layers, history.
//!
//! SQLite in WAL mode, because several processes share one store. Writes do not wait for the disk, except for names,
//! which are what a user would miss; readers never wait at all. Losing the newest records in a power cut only makes the
//! next build slower.
//!
//! Invariant: everything in here can be thrown away. Records are made again by building, and names are read back from
//! `content/index.json`, which is kept up to date for that reason (and for other tools).

use std::fs;
use std::path::Path;
use std::time::Duration;

use build_engine_oci::layout::{IMAGE_NAME, INDEX_FILE, REF_NAME};
use build_engine_oci::{Descriptor, Digest, Index, Platform, Reference};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde_json::Value;

use crate::durable;
use crate::error::{Context, Error, Result};
use crate::layout::{Inner, Store, lock, lock_file, now};
use crate::snapshot::Snapshot;

/// The version of the tables below.
const SCHEMA: i64 = 2;

/// How long a writer waits for another process's transaction; prune's are the longest.
const BUSY: Duration = Duration::from_secs(30);
/// After how many pages the log is moved into the database.
const LOG_PAGES: u32 = 128;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS schema (version INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS names (
        reference TEXT PRIMARY KEY, descriptor TEXT NOT NULL, platforms TEXT NOT NULL, updated INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS records (
        key TEXT PRIMARY KEY, canonical TEXT NOT NULL, outputs TEXT NOT NULL, parts TEXT NOT NULL, step TEXT NOT NULL,
        created INTEGER NOT NULL, last_used INTEGER NOT NULL, hits INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS records_by_canonical ON records (canonical);
    CREATE INDEX IF NOT EXISTS records_by_step ON records (step, created);
    CREATE TABLE IF NOT EXISTS forms (
        layer TEXT NOT NULL, compression TEXT NOT NULL, epoch TEXT NOT NULL, diff_id TEXT NOT NULL,
        digest TEXT NOT NULL, descriptor TEXT NOT NULL, uncompressed_bytes INTEGER NOT NULL, base TEXT NOT NULL,
        PRIMARY KEY (layer, compression, epoch)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS forms_by_diff_id ON forms (diff_id);
    CREATE TABLE IF NOT EXISTS builds (
        id TEXT PRIMARY KEY, started INTEGER NOT NULL, ended INTEGER, status TEXT NOT NULL, document TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS builds_by_start ON builds (started);
    CREATE TABLE IF NOT EXISTS held (
        owner TEXT NOT NULL, lease TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (owner, lease, kind, value)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS resolved (
        reference TEXT PRIMARY KEY, descriptor TEXT NOT NULL, updated INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS origins (
        digest TEXT NOT NULL, repository TEXT NOT NULL, PRIMARY KEY (digest, repository)
    ) WITHOUT ROWID;
";

/// A reusable result, as it is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// The cache key.
    pub key: String,
    /// The key under which the result is known first; several keys may lead to one result.
    pub canonical: String,
    /// One text per output. Texts that are a [`Snapshot`] keep its layers alive, others are the caller's own.
    pub outputs: Vec<String>,
    /// The named parts that the key was hashed from.
    pub parts: Value,
    /// Which step of which project this was, to find what a later key should be compared with.
    pub step: String,
}

/// A reusable result, as it is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The cache key.
    pub key: String,
    /// The key under which the result is known first.
    pub canonical: String,
    /// One text per output.
    pub outputs: Vec<String>,
    /// The named parts that the key was hashed from.
    pub parts: Value,
    /// Which step of which project this was.
    pub step: String,
    /// When it was saved, in seconds since 1970.
    pub created: i64,
    /// When it was last reused, in seconds since 1970.
    pub last_used: i64,
    /// How often it was reused.
    pub hits: u64,
}

/// An image that has a name.
#[derive(Debug, Clone, PartialEq)]
pub struct Name {
    /// The canonical reference.
    pub reference: String,
    /// The manifest or index that it stands for.
    pub descriptor: Descriptor,
    /// The platforms inside.
    pub platforms: Vec<Platform>,
    /// When it was set, in seconds since 1970.
    pub updated: i64,
}

/// One build in the history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Who it is.
    pub id: String,
    /// Milliseconds since 1970.
    pub started_ms: i64,
    /// Milliseconds since 1970; `None` while it runs.
    pub ended_ms: Option<i64>,
    /// `running`, `success`, `failed` …
    pub status: String,
    /// Everything else.
    pub document: Value,
}

/// A blob that a layer exists as, or can be made into.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Form {
    pub(crate) layer: String,
    pub(crate) compression: String,
    pub(crate) epoch: String,
    pub(crate) diff_id: Digest,
    pub(crate) descriptor: Descriptor,
    pub(crate) uncompressed_bytes: u64,
    /// The stack that it was unpacked on, hashed; empty if what is below does not matter.
    pub(crate) base: String,
}

/// The compression of a form whose bytes came from outside.
pub(crate) const IMPORTED: &str = "imported";

impl Store {
    /// Returns the record saved under `key`, unless one of its layers is gone: that is a miss.
    ///
    /// Does not wait for the disk, and does not count as use: see [`Store::touch_record`]. While other processes may
    /// prune, hold its outputs with [`crate::Lease::hold`], which tells whether they are still there.
    pub fn record(&self, key: &str) -> Result<Option<Record>> {
        let found = self.database(|db| {
            db.prepare_cached("SELECT * FROM records WHERE key = ?1")?.query_row([key], record_of).optional()
        })?;
        Ok(found.filter(|record| self.outputs_exist(&record.outputs)))
    }

    /// Returns the records of a step, newest first, at most `limit`; for explaining a miss. Layers are not looked at.
    pub fn records_of_step(&self, step: &str, limit: usize) -> Result<Vec<Record>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.database(|db| {
            db.prepare_cached("SELECT * FROM records WHERE step = ?1 ORDER BY created DESC, key LIMIT ?2")?
                .query_map(params![step, limit], record_of)?
                .collect()
        })
    }

    /// Returns the records that share a canonical key, in the order of their keys. Layers are not looked at.
    pub fn records_of_canonical(&self, canonical: &str) -> Result<Vec<Record>> {
        self.database(|db| {
            db.prepare_cached("SELECT * FROM records WHERE canonical = ?1 ORDER BY key")?
                .query_map([canonical], record_of)?
                .collect()
        })
    }

    /// Saves records, all or none; a record with the same key is replaced.
    pub fn save_records(&self, records: &[NewRecord]) -> Result<()> {
        let now = now();
        self.write(|db| {
            let mut insert = db.prepare_cached(
                "INSERT INTO records (key, canonical, outputs, parts, step, created, last_used, hits)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, 0)
                 ON CONFLICT (key) DO UPDATE SET canonical = ?2, outputs = ?3, parts = ?4, step = ?5, created = ?6, last_used = ?6",
            )?;
            for record in records {
                let outputs = Value::from(record.outputs.clone()).to_string();
                insert.execute(params![record.key, record.canonical, outputs, record.parts.to_string(), record.step, now])?;
            }
            Ok(())
        })
    }

    /// Notes that a record was used. Written with the next write, or when the store is closed.
    pub fn touch_record(&self, key: &str) {
        lock(&self.inner.touched).insert(key.to_owned());
    }

    /// Forgets a record.
    pub fn remove_record(&self, key: &str) -> Result<()> {
        self.write(|db| db.execute("DELETE FROM records WHERE key = ?1", [key]).map(drop))
    }

    /// Gives `reference` to a manifest or index; whatever had the name loses it. On disk when this returns.
    pub fn set_name(&self, reference: &Reference, descriptor: &Descriptor, platforms: &[Platform]) -> Result<()> {
        let name = Name {
            reference: reference.to_string(),
            descriptor: descriptor.clone(),
            platforms: platforms.to_vec(),
            updated: now(),
        };
        // The same as before is only as new as now, which need not be on the disk.
        let is_known =
            self.name(reference)?.is_some_and(|known| known == Name { updated: known.updated, ..name.clone() });
        if is_known && self.path("content").join(INDEX_FILE).exists() {
            return self.write(|db| insert_names(db, std::slice::from_ref(&name)));
        }
        self.write_durably(|db| insert_names(db, std::slice::from_ref(&name)))?;
        self.project_names()
    }

    /// Returns what `reference` stands for.
    pub fn name(&self, reference: &Reference) -> Result<Option<Name>> {
        let reference = reference.to_string();
        self.database(|db| {
            db.prepare_cached("SELECT * FROM names WHERE reference = ?1")?.query_row([&reference], name_of).optional()
        })
    }

    /// All names, sorted.
    pub fn names(&self) -> Result<Vec<Name>> {
        self.database(|db| {
            db.prepare_cached("SELECT * FROM names ORDER BY reference")?.query_map([], name_of)?.collect()
        })
    }

    /// Remembers what a registry said that `reference` stands for.
    pub fn set_resolved(&self, reference: &Reference, descriptor: &Descriptor) -> Result<()> {
        let path = self.path("state.db");
        let (reference, now) = (reference.to_string(), now());
        let descriptor = serde_json::to_string(descriptor).map_err(|source| Error::Document { path, source })?;
        self.write(|db| {
            db.execute("INSERT OR REPLACE INTO resolved VALUES (?1, ?2, ?3)", params![reference, descriptor, now])
                .map(drop)
        })
    }

    /// What a registry last said that `reference` stands for, unless a name was set since: that is then what it is.
    pub fn resolved(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let reference = reference.to_string();
        self.database(|db| {
            db.prepare_cached(
                "SELECT descriptor FROM resolved WHERE reference = ?1
                 AND NOT EXISTS (SELECT 1 FROM names WHERE reference = ?1 AND names.updated >= resolved.updated)",
            )?
            .query_row([&reference], |row| json_column(row, 0))
            .optional()
        })
    }

    /// Remembers that a repository has these blobs.
    pub fn add_origins<'a>(&self, repository: &str, digests: impl IntoIterator<Item = &'a Digest>) -> Result<()> {
        let digests: Vec<String> = digests.into_iter().map(ToString::to_string).collect();
        if digests.is_empty() {
            return Ok(());
        }
        self.write(|db| {
            let mut insert = db.prepare_cached("INSERT OR IGNORE INTO origins VALUES (?1, ?2)")?;
            for digest in &digests {
                insert.execute(params![digest, repository])?;
            }
            Ok(())
        })
    }

    /// Repositories that had a blob when they were last spoken to.
    pub fn origins(&self, digest: &Digest) -> Result<Vec<String>> {
        let digest = digest.to_string();
        self.database(|db| {
            db.prepare_cached("SELECT repository FROM origins WHERE digest = ?1 ORDER BY repository")?
                .query_map([&digest], |row| row.get(0))?
                .collect()
        })
    }

    /// Takes a name away; whether there was one. The image goes with the next prune.
    pub fn remove_name(&self, reference: &Reference) -> Result<bool> {
        let reference = reference.to_string();
        let removed = self.write_durably(|db| db.execute("DELETE FROM names WHERE reference = ?1", [&reference]))? > 0;
        self.project_names()?;
        Ok(removed)
    }

    /// Writes `content/index.json` anew from the names, so that `content/` is an OCI image layout for other tools.
    ///
    /// Called by [`Store::set_name`] and [`Store::remove_name`]. Blobs that are made when first asked for may be missing.
    pub fn project_names(&self) -> Result<()> {
        // One at a time, so that an older list never replaces a newer one.
        let _turn = self.claim("content/index.json")?;
        let mut index = Index::new(
            self.names()?
                .into_iter()
                .map(|name| {
                    let mut descriptor = name.descriptor;
                    let tag = name.reference.parse::<Reference>().ok().and_then(|it| it.tag().map(str::to_owned));
                    descriptor.annotations.insert(REF_NAME.to_owned(), tag.unwrap_or_else(|| name.reference.clone()));
                    descriptor.annotations.insert(IMAGE_NAME.to_owned(), name.reference);
                    descriptor
                })
                .collect(),
        );
        index.media_type = Some(build_engine_oci::media_type::OCI_INDEX.to_owned());
        let path = self.path("content").join(INDEX_FILE);
        let bytes = serde_json::to_vec(&index).map_err(|source| Error::Document { path: path.clone(), source })?;
        durable::replace(&path, &self.temporary("ingest")?, &bytes, 0o600).context("write", &path)
    }

    /// Adds a build to the history, or replaces what was known of it.
    pub fn save_build(&self, build: &Build) -> Result<()> {
        self.write(|db| {
            db.execute(
                "INSERT INTO builds VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET started = ?2, ended = ?3, status = ?4, document = ?5",
                params![build.id, build.started_ms, build.ended_ms, build.status, build.document.to_string()],
            )
            .map(drop)
        })
    }

    /// The last `limit` builds, oldest first.
    pub fn builds(&self, limit: usize) -> Result<Vec<Build>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut builds: Vec<Build> = self.database(|db| {
            db.prepare_cached(
                "SELECT id, started, ended, status, document FROM builds ORDER BY started DESC, id DESC LIMIT ?1",
            )?
            .query_map([limit], |row| {
                Ok(Build {
                    id: row.get(0)?,
                    started_ms: row.get(1)?,
                    ended_ms: row.get(2)?,
                    status: row.get(3)?,
                    document: json_column(row, 4)?,
                })
            })?
            .collect()
        })?;
        builds.reverse();
        Ok(builds)
    }

    /// Whether every output that is a snapshot has all its layers.
    pub(crate) fn outputs_exist(&self, outputs: &[String]) -> bool {
        outputs.iter().filter_map(|output| output.parse::<Snapshot>().ok()).all(|snapshot| self.exists(&snapshot))
    }

    pub(crate) fn save_form(&self, form: &Form) -> Result<()> {
        let path = self.path("state.db");
        let descriptor = serde_json::to_string(&form.descriptor).map_err(|source| Error::Document { path, source })?;
        let size = i64::try_from(form.uncompressed_bytes).unwrap_or(i64::MAX);
        self.write(|db| {
            db.execute(
                "INSERT OR REPLACE INTO forms VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    form.layer,
                    form.compression,
                    form.epoch,
                    form.diff_id.to_string(),
                    form.descriptor.digest.to_string(),
                    descriptor,
                    size,
                    form.base
                ],
            )
            .map(drop)
        })
    }

    pub(crate) fn form(&self, layer: &str, compression: &str, epoch: &str) -> Result<Option<Form>> {
        self.database(|db| {
            db.prepare_cached("SELECT * FROM forms WHERE layer = ?1 AND compression = ?2 AND epoch = ?3")?
                .query_row([layer, compression, epoch], form_of)
                .optional()
        })
    }

    /// The forms with this diff ID, imported ones first.
    pub(crate) fn forms_of_diff_id(&self, diff_id: &Digest) -> Result<Vec<Form>> {
        self.database(|db| {
            db.prepare_cached("SELECT * FROM forms WHERE diff_id = ?1 ORDER BY compression <> 'imported', layer")?
                .query_map([diff_id.to_string()], form_of)?
                .collect()
        })
    }

    /// Runs `read` on the database, opening it first, and starting anew if it is corrupt.
    pub(crate) fn database<T>(&self, read: impl Fn(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.connected(|connection| read(connection))
    }

    /// Runs `write` in a transaction of its own. After a power cut it may turn out never to have happened.
    pub(crate) fn write<T>(&self, write: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        durable::point("commit").context("write", self.path("state.db"))?;
        self.connected(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = write(&transaction)?;
            flush(&transaction, &mut lock(&self.inner.touched))?;
            transaction.commit()?;
            Ok(result)
        })
    }

    /// As [`Store::write`], but on disk when it returns.
    pub(crate) fn write_durably<T>(&self, write: impl Fn(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        durable::point("commit").context("write", self.path("state.db"))?;
        self.connected(|connection| {
            connection.pragma_update(None, "synchronous", "FULL")?;
            let result = (|| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let result = write(&transaction)?;
                transaction.commit()?;
                Ok(result)
            })();
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            result
        })
    }

    fn connected<T>(&self, mut run: impl FnMut(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut slot = lock(&self.inner.database);
        let mut attempts = 0;
        loop {
            let result = match &mut *slot {
                Some(connection) => run(connection),
                None => match self.inner.connect() {
                    Ok(connection) => {
                        *slot = Some(connection);
                        continue;
                    }
                    Err(ConnectError::Sqlite(error)) => Err(error),
                    Err(ConnectError::Store(error)) => return Err(error),
                },
            };
            attempts += 1;
            match result {
                Err(error) if is_corrupt(&error) && attempts < 3 => {
                    *slot = None;
                    self.inner.set_aside(&error)?;
                }
                other => return other.map_err(|source| self.inner.database_error(source)),
            }
        }
    }
}

enum ConnectError {
    Sqlite(rusqlite::Error),
    Store(Error),
}

impl From<rusqlite::Error> for ConnectError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Inner {
    fn connect(&self) -> Result<Connection, ConnectError> {
        let mut db = Connection::open(self.root.join("state.db"))?;
        db.busy_timeout(BUSY)?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        // Closing would move the log into the database, and wait for the disk. The log stays, and is short enough to be
        // read again by whoever comes next.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
        let version = |db: &Connection| db.query_row("SELECT version FROM schema", [], |row| row.get::<_, i64>(0));
        let found = match version(&db) {
            Ok(found) => Some(found),
            Err(error) if is_corrupt(&error) => return Err(error.into()),
            // No such table, or no row: a new database.
            Err(_) => None,
        };
        match found {
            Some(SCHEMA) => {}
            // All that came since are new tables.
            Some(older) if older < SCHEMA => {
                let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(TABLES)?;
                transaction.execute("UPDATE schema SET version = ?1", [SCHEMA])?;
                transaction.commit()?;
            }
            Some(newer) => {
                let reason = format!("its database has schema {newer}, not {SCHEMA}");
                return Err(ConnectError::Store(Error::Incompatible { path: self.root.clone(), reason }));
            }
            None => {
                // Changing the journal's mode does not wait for others who do the same.
                let _turn = lock_file(&self.root.join("boot.lock"))
                    .and_then(|file| file.lock().context("lock", &self.root).map(|()| file))
                    .map_err(ConnectError::Store)?;
                db.pragma_update(None, "journal_mode", "WAL")?;
                let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(TABLES)?;
                let is_mine = transaction
                    .execute("INSERT INTO schema SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM schema)", [SCHEMA])?
                    > 0;
                if is_mine {
                    // After a database was lost, the names are what users would miss.
                    insert_names(&transaction, &self.projected_names())?;
                }
                transaction.commit()?;
            }
        }
        Ok(db)
    }

    /// Moves a database that cannot be read out of the way.
    fn set_aside(&self, error: &rusqlite::Error) -> Result<()> {
        let path = self.root.join("state.db");
        let aside = self.root.join("state.db.corrupt");
        tracing::warn!(%error, "the database is corrupt; it is set aside as `state.db.corrupt`, and the build cache starts anew");
        durable::rename(&path, &aside).context("set aside", &path)?;
        for suffix in ["-wal", "-shm"] {
            let path = self.root.join(format!("state.db{suffix}"));
            durable::remove_file(&path).context("remove", &path)?;
        }
        Ok(())
    }

    /// The names that `content/index.json` remembers.
    fn projected_names(&self) -> Vec<Name> {
        let path = self.root.join("content").join(INDEX_FILE);
        let Some(index) = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Index>(&bytes).ok()) else {
            return Vec::new();
        };
        index
            .manifests
            .into_iter()
            .filter_map(|mut descriptor| {
                let tag = descriptor.annotations.remove(REF_NAME);
                let reference = descriptor.annotations.remove(IMAGE_NAME).or(tag)?;
                let platforms = descriptor.platform.iter().cloned().collect();
                Some(Name { reference, descriptor, platforms, updated: now() })
            })
            .collect()
    }

    /// Writes what [`Store::touch_record`] collected.
    pub(crate) fn flush_touched(&self) -> Result<()> {
        // In this order, as `write` does.
        let mut slot = lock(&self.database);
        let mut touched = lock(&self.touched);
        let Some(db) = slot.as_mut().filter(|_| !touched.is_empty()) else { return Ok(()) };
        (|| {
            let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            flush(&transaction, &mut touched)?;
            transaction.commit()
        })()
        .map_err(|source| self.database_error(source))
    }

    fn database_error(&self, source: rusqlite::Error) -> Error {
        let path = self.root.join("state.db");
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Error::NoSpace {
                action: "write",
                path,
                source: std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()),
            },
            _ => Error::Database { path, source },
        }
    }
}

fn insert_names(db: &Connection, names: &[Name]) -> rusqlite::Result<()> {
    let json = |error: serde_json::Error| rusqlite::Error::ToSqlConversionFailure(Box::new(error));
    for Name { reference, descriptor, platforms, updated } in names {
        let descriptor = serde_json::to_string(descriptor).map_err(json)?;
        let platforms = serde_json::to_string(platforms).map_err(json)?;
        db.execute(
            "INSERT INTO names VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (reference) DO UPDATE SET descriptor = ?2, platforms = ?3, updated = ?4",
            params![reference, descriptor, platforms, updated],
        )?;
    }
    Ok(())
}

fn flush(db: &Connection, touched: &mut std::collections::BTreeSet<String>) -> rusqlite::Result<()> {
    if touched.is_empty() {
        return Ok(());
    }
    let now = now();
    let mut update = db.prepare_cached("UPDATE records SET last_used = ?2, hits = hits + 1 WHERE key = ?1")?;
    for key in touched.iter() {
        update.execute(params![key, now])?;
    }
    touched.clear();
    Ok(())
}

fn is_corrupt(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn json_column<T: serde::de::DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text: String = row.get(index)?;
    serde_json::from_str(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error)))
}

fn digest_column(row: &Row<'_>, index: usize) -> rusqlite::Result<Digest> {
    let text: String = row.get(index)?;
    text.parse()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, Box::new(error)))
}

fn record_of(row: &Row<'_>) -> rusqlite::Result<Record> {
    Ok(Record {
        key: row.get("key")?,
        canonical: row.get("canonical")?,
        outputs: json_column(row, 2)?,
        parts: json_column(row, 3)?,
        step: row.get("step")?,
        created: row.get("created")?,
        last_used: row.get("last_used")?,
        hits: row.get::<_, i64>("hits")?.try_into().unwrap_or(0),
    })
}

fn name_of(row: &Row<'_>) -> rusqlite::Result<Name> {
    Ok(Name {
        reference: row.get(0)?,
        descriptor: json_column(row, 1)?,
        platforms: json_column(row, 2)?,
        updated: row.get(3)?,
    })
}

fn form_of(row: &Row<'_>) -> rusqlite::Result<Form> {
    Ok(Form {
        layer: row.get("layer")?,
        compression: row.get("compression")?,
        epoch: row.get("epoch")?,
        diff_id: digest_column(row, 3)?,
        descriptor: json_column(row, 5)?,
        uncompressed_bytes: row.get::<_, i64>("uncompressed_bytes")?.try_into().unwrap_or(0),
        base: row.get("base")?,
    })
}

/// Checks the database itself; what is wrong with it, if anything.
pub(crate) fn integrity(db: &Connection, path: &Path) -> rusqlite::Result<Vec<String>> {
    let answers: Vec<String> =
        db.prepare("PRAGMA quick_check")?.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(answers.into_iter().filter(|answer| answer != "ok").map(|it| format!("`{}`: {it}", path.display())).collect())
}
