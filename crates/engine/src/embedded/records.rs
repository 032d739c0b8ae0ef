//! The solver's records and claims, kept in the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use build_engine_graph::redact_url;
use build_engine_oci::Digest;
use build_engine_solver::{Claims, Failure, NewRecord, Record, Records};
use build_engine_store::Store;
use futures::future::BoxFuture;

use super::ops::StepError;

/// Records in the store's database.
pub(super) struct StoreRecords {
    store: Store,
}

impl StoreRecords {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Records for StoreRecords {
    fn lookup(&self, key: &Digest) -> Option<Record> {
        let key = key.to_string();
        let record = match self.store.record(&key) {
            Ok(record) => record?,
            Err(error) => {
                // Records are disposable: not to find one only costs time.
                tracing::warn!(%error, "a cache record cannot be read");
                return None;
            }
        };
        self.store.touch_record(&key);
        Some(Record { canonical: record.canonical.parse().ok()?, outputs: record.outputs })
    }

    fn save(&self, record: NewRecord) {
        // The key has the whole text in it; what is kept of it is for people.
        let parts = record.parts.iter().map(|part| serde_json::json!([part.name, redact_url(&part.value)])).collect();
        let saved = self.store.save_records(&[build_engine_store::NewRecord {
            key: record.key.to_string(),
            canonical: record.canonical.to_string(),
            outputs: record.outputs,
            parts,
            step: redact_url(&record.name),
        }]);
        if let Err(error) = saved {
            tracing::warn!(%error, "a cache record cannot be saved");
        }
    }
}

/// Claims as lock files in the store.
pub(super) struct StoreClaims {
    store: Store,
}

impl StoreClaims {
    pub(super) fn new(store: Store) -> Self {
        Self { store }
    }
}

/// Ends the wait for a claim that nobody waits for any more.
struct GiveUp(Arc<AtomicBool>);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Claims for StoreClaims {
    fn claim(&self, key: &Digest) -> BoxFuture<'static, Result<Box<dyn Send>, Failure>> {
        let (store, key) = (self.store.clone(), key.to_string());
        Box::pin(async move {
            let failed = |error| Failure::new(StepError::store("cannot claim a step", &error));
            // Nearly always free; then no thread is needed.
            if let Some(claim) = store.try_claim(&key).map_err(failed)? {
                return Ok(Box::new(claim) as Box<dyn Send>);
            }
            let given_up = Arc::new(AtomicBool::new(false));
            let _guard = GiveUp(Arc::clone(&given_up));
            let waiting = tokio::task::spawn_blocking(move || {
                store.claim_unless(&key, None, || given_up.load(Ordering::Relaxed))
            });
            let claim = waiting.await.map_err(Failure::new)?.map_err(failed)?;
            Ok(Box::new(claim) as Box<dyn Send>)
        })
    }
}
