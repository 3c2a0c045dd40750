//! MSI routing of KVM: eventfds, irqfds and one routing table for the whole VM.

mod deferred;
mod entries;
mod gsis;
mod own;
mod table;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use deferred::DeferredRoutes;
pub use own::KvmGsi;
use table::Table;

use crate::counters::KvmCalls;
use crate::host::{MsiMessage, MsiRouter, MsiVectors};

/// Routes MSIs into the guest by irqfds, and keeps the VM's routing table: those of functions, and the VMM's own.
///
/// `KVM_SET_GSI_ROUTING` replaces the whole table, so a VM has one of these, and nobody else makes that call. A VMM that
/// has routes of its own sets them here ([`set_routes`](Self::set_routes)); one that has a table of its own implements
/// [`MsiRouter`] instead (see the example `own_router`).
pub struct KvmRouter {
    shared: Arc<Shared>,
}

struct Shared(Mutex<Table>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock().fmt(f)
    }
}

impl fmt::Debug for KvmRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KvmRouter").field(&self.shared).finish()
    }
}

impl KvmRouter {
    /// For a VM whose local APICs are in the kernel. `gsis` are the numbers that vectors get; nobody else uses them, and
    /// no pin of an interrupt controller has one of them: on x86, 24 to 4095. Calls are counted in `calls`.
    pub fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let table = Table::new(vm, gsis, calls);
        Self { shared: Arc::new(Shared(Mutex::new(table))) }
    }

    /// Defers the routes of vectors that the guest unmasks one by one, so that they are committed together, when one of
    /// them fires or 16 are deferred. The VMM must poll the value until it drops it. A VMM that never calls this has
    /// each change committed at once.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` where there is one already; the errno of `epoll_create1`.
    pub fn defer_routes(&self) -> io::Result<DeferredRoutes> {
        DeferredRoutes::new(self.shared.clone())
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Vectors { shared: self.shared.clone(), count, vectors: BTreeMap::new() }))
    }
}

/// The vectors of one function. Each costs nothing until it is used.
struct Vectors {
    shared: Arc<Shared>,
    count: u16,
    vectors: BTreeMap<u16, Vector>,
}

struct Vector {
    eventfd: Arc<EventFd>,
    /// Taken when the vector is first delivered, and kept with its route: unmasking then costs an irqfd only.
    gsi: Option<u32>,
}

impl Vectors {
    fn vector(&mut self, vector: u16) -> io::Result<&mut Vector> {
        if vector >= self.count {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        match self.vectors.entry(vector) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
                Ok(entry.insert(Vector { eventfd, gsi: None }))
            }
        }
    }

    fn gsi(&self, vector: u16) -> Option<u32> {
        self.vectors.get(&vector).and_then(|vector| vector.gsi)
    }

    /// Gives each of these vectors a GSI that has none, or none of them.
    fn take_gsis(&mut self, vectors: impl Iterator<Item = u16>) -> io::Result<()> {
        let mut without = BTreeMap::new();
        for number in vectors {
            let vector = self.vector(number)?;
            if vector.gsi.is_none() {
                without.insert(number, vector.eventfd.clone());
            }
        }
        let eventfds: Vec<_> = without.values().cloned().collect();
        let gsis = self.shared.lock().take(&eventfds)?;
        for (number, gsi) in without.into_keys().zip(gsis) {
            self.vector(number)?.gsi = Some(gsi);
        }
        Ok(())
    }
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        Ok(self.vector(vector)?.eventfd.clone())
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let starting = changes.iter().filter(|(_, message)| message.is_some());
        self.take_gsis(starting.map(|(vector, _)| *vector))?;
        // A vector without a GSI was never delivered: there is nothing to stop.
        let changes: Vec<_> = changes
            .iter()
            .filter_map(|(vector, message)| Some((self.gsi(*vector)?, *message)))
            .collect();
        self.shared.lock().update(&changes)
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        let gsis: Vec<u32> = self.vectors.values().filter_map(|vector| vector.gsi).collect();
        self.shared.lock().release(&gsis);
    }
}

#[cfg(test)]
mod tests;
