//! The client.

use std::io;
use std::sync::Arc;

use build_engine_oci::{Descriptor, Reference};

use crate::api::Api;
use crate::blob::Blob;
use crate::download::Downloads;
use crate::pull::Sources;
use crate::push::Target;
use crate::{Credentials, Error, Settings};

/// Speaks to registries. Clones share connections and tokens.
#[derive(Clone)]
pub struct Client {
    api: Arc<Api>,
    sources: Sources,
}

/// Bytes that are to be pushed, readable from anywhere and more than once.
pub trait Content: Send + Sync {
    /// Opens the bytes from `offset` on. Blocks.
    ///
    /// # Errors
    /// When they cannot be read.
    fn open(&self, offset: u64) -> io::Result<Box<dyn io::Read + Send>>;
}

/// How a blob came to be in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another repository of its own.
    Mounted,
    /// It was sent.
    Uploaded,
}

impl Client {
    /// Makes a client.
    ///
    /// # Errors
    /// Settings that cannot be used, for example a file with certificates that has none.
    pub fn new(settings: Settings, credentials: Arc<dyn Credentials>) -> Result<Self, Error> {
        let api = Arc::new(Api::new(settings, credentials)?);
        Ok(Self { sources: Sources::new(api.clone()), api })
    }

    /// Asks for files that are no part of a registry, over the same connections and with the same limits.
    pub fn downloads(&self) -> Downloads {
        Downloads::new(self.api.transport())
    }

    /// Asks what a tag or digest stands for. Mirrors are asked first.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such thing.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, Error> {
        self.sources.resolve(reference).await
    }

    /// Reads a manifest, an index or a config of `repository`, whose tag and digest do not matter, and verifies it.
    ///
    /// # Errors
    /// When it cannot be had, or is not what `descriptor` says.
    pub async fn document(&self, repository: &Reference, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        self.sources.document(repository, descriptor).await
    }

    /// Reads a blob of `repository` from `offset` on. Large blobs come in several ranges at once; what breaks is resumed.
    ///
    /// # Errors
    /// When there is no such blob, or the registry gives it to nobody like us.
    pub async fn blob(&self, repository: &Reference, descriptor: &Descriptor, offset: u64) -> Result<Blob, Error> {
        Blob::open(self.sources.clone(), repository, descriptor, offset).await
    }

    /// Makes sure that `repository` has a blob: it is there, or is mounted from one of `others` (repositories of the
    /// same registry), or is sent. `progress` receives the bytes sent so far.
    ///
    /// # Errors
    /// When the registry does not take it, after the last retry.
    pub async fn push_blob(
        &self,
        repository: &Reference,
        descriptor: &Descriptor,
        others: &[Reference],
        content: Arc<dyn Content>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Pushed, Error> {
        Target::new(&self.api, repository).blob(descriptor, others, &content, progress).await
    }

    /// Puts a manifest or index under the tag or digest of `reference`; returns whether it was there already.
    ///
    /// # Errors
    /// When the registry does not take it, or says that it took something else.
    pub async fn push_document(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        bytes: Vec<u8>,
    ) -> Result<Pushed, Error> {
        Target::new(&self.api, reference).document(reference, descriptor, bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The engine spawns these; that it may is seen by the compiler.
    #[test]
    fn everything_can_go_to_another_thread() {
        fn moves<T: Send>(_: impl FnOnce() -> T) {}
        let client = Client::new(Settings::default(), Arc::new(crate::NoCredentials)).unwrap();
        let reference: Reference = "alpine".parse().unwrap();
        let descriptor = Descriptor::new("x", build_engine_oci::Digest::sha256(b""), 0);
        struct Empty;
        impl Content for Empty {
            fn open(&self, _offset: u64) -> io::Result<Box<dyn io::Read + Send>> {
                Ok(Box::new(io::empty()))
            }
        }
        moves(|| client.clone());
        moves(|| client.resolve(&reference));
        moves(|| client.document(&reference, &descriptor));
        moves(|| client.push_blob(&reference, &descriptor, &[], Arc::new(Empty), &|_| {}));
        moves(|| client.push_document(&reference, &descriptor, Vec::new()));
        moves(|| async {
            let mut blob = client.blob(&reference, &descriptor, 0).await?;
            blob.chunk().await
        });
    }
}
