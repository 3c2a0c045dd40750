//! The routing table and its lock.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::table::Table;

/// The table of one VM. The router, functions' vectors and the VMM's own GSIs share it.
pub(super) struct Shared(Mutex<Table>);

impl Shared {
    pub(super) fn new(table: Table) -> Self {
        Self(Mutex::new(table))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}
