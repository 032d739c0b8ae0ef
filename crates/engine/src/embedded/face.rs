//! The face, seen from the worker: what only it can find out is asked for over the frames.
//!
//! Files of the user, credential helpers, agents and the user's own programs are the face's (DESIGN §4). What the face
//! does with a question stands in [`super::answers`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use build_engine_registry::{self as registry, Credential, Credentials};
use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::frame::{Answer, Wanted};
use crate::BuildError;

/// The face at the other end of the connection.
pub(super) struct Face {
    answers: mpsc::UnboundedSender<Answer>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Value, BuildError>>>>,
    next: AtomicU64,
}

/// The session of one call: whoever started it is asked.
#[derive(Clone)]
pub(super) struct Caller {
    face: Arc<Face>,
    call: u64,
}

impl Face {
    pub(super) fn new(answers: mpsc::UnboundedSender<Answer>) -> Self {
        Self { answers, waiting: Mutex::default(), next: AtomicU64::new(1) }
    }

    /// The session of the call with this id.
    pub(super) fn caller(self: &Arc<Self>, call: u64) -> Caller {
        Caller { face: Arc::clone(self), call }
    }

    /// Takes the face's answer to a question.
    pub(super) fn told(&self, ask: u64, result: Result<Value, BuildError>) {
        if let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&ask) {
            // Whoever asked may have gone.
            let _ = waiting.send(result);
        }
    }

    async fn ask<T: DeserializeOwned>(&self, call: Option<u64>, wanted: Wanted) -> Result<T, BuildError> {
        let ask = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(ask, sender);
        let gone = || BuildError::internal("nobody is there to ask any more");
        self.answers.send(Answer::Ask { ask, call, wanted }).map_err(|_| gone())?;
        let value = answer.await.map_err(|_| gone())??;
        // Not the parser's message: it may quote what was answered.
        serde_json::from_value(value).map_err(|_| BuildError::internal("the face's answer has another shape"))
    }
}

impl Caller {
    /// Asks whoever started the call.
    pub(super) async fn ask<T: DeserializeOwned>(&self, wanted: Wanted) -> Result<T, BuildError> {
        self.face.ask(Some(self.call), wanted).await
    }
}

impl Credentials for Face {
    fn find<'a>(
        &'a self,
        host: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, registry::Error>> {
        Box::pin(async move {
            let wanted = Wanted::Credential { host: host.to_owned(), repository: repository.to_owned() };
            self.ask(None, wanted)
                .await
                .map_err(|error| registry::Error::Settings { what: error.to_string(), source: None })
        })
    }
}
