//! The store under test: how to get one, and how to close and open it.

use atlas_kvs::{KeyValueService, KvsError};
use futures::future::BoxFuture;
use std::ops::Deref;
use std::sync::Arc;

/// Makes the stores that the cases run on. Every case gets a place of its own.
pub trait Factory: Send + Sync + 'static {
    /// What a store lies in and what must live as long as it, for example a temporary directory or a schema that is
    /// removed when it is dropped.
    type Place: Send + Sync + 'static;

    /// A new place, in which no store was ever opened.
    fn place(&self) -> impl Future<Output = Self::Place> + Send;

    /// Opens the store of a place. Called again for the same place after the store was closed: a persistent store
    /// then finds what it left, any other is empty.
    fn open(&self, place: &Self::Place) -> impl Future<Output = Arc<dyn KeyValueService>> + Send;
}

/// A store under test, used as the [`KeyValueService`] that it is.
pub struct TestStore {
    // Dropped before `open`, which owns the place that the store lies in.
    kvs: Arc<dyn KeyValueService>,
    open: Box<dyn Fn() -> BoxFuture<'static, Arc<dyn KeyValueService>> + Send + Sync>,
}

impl TestStore {
    /// A fresh store.
    pub async fn new(factory: impl Factory) -> TestStore {
        let place = factory.place().await;
        let shared = Arc::new((factory, place));
        let open = Box::new(move || -> BoxFuture<'static, Arc<dyn KeyValueService>> {
            let shared = Arc::clone(&shared);
            Box::pin(async move { shared.0.open(&shared.1).await })
        });
        TestStore { kvs: open().await, open }
    }

    /// The store itself, for tasks that run beside the case.
    pub fn share(&self) -> Arc<dyn KeyValueService> {
        Arc::clone(&self.kvs)
    }

    /// Closes the store and opens it again at the same place, as a restart of the process would.
    pub async fn close_and_open(&mut self) {
        self.kvs.close().await.expect("an open store can be closed");
        // The closed store is still alive here: closing alone must release what it held.
        self.kvs = (self.open)().await;
    }
}

impl Deref for TestStore {
    type Target = dyn KeyValueService;

    fn deref(&self) -> &Self::Target {
        &*self.kvs
    }
}

/// Runs a case on a fresh store and closes the store behind it.
///
/// The runtime has several threads, so that concurrent calls are concurrent.
///
/// # Panics
/// If the store breaks the contract.
pub fn run(factory: impl Factory, case: impl AsyncFnOnce(&mut TestStore)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .expect("a runtime can be built");
    runtime.block_on(async {
        let mut store = TestStore::new(factory).await;
        case(&mut store).await;
        match store.close().await {
            Ok(()) | Err(KvsError::Closed) => {}
            Err(error) => panic!("the store could not be closed: {error}"),
        }
    });
}
