//! MSI routing of KVM: eventfds, irqfds and one routing table for the whole VM.

mod entries;
mod gsis;
mod software;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use software::SoftwareDelivery;
use table::Table;

use crate::counters::KvmCalls;
use crate::host::{MsiMessage, MsiRouter, MsiVectors};

/// Routes MSIs into the guest by irqfds, and keeps the VM's routing table.
pub struct KvmRouter {
    shared: Arc<Shared>,
}

struct Shared(Mutex<Table>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvmRouter {
    pub(super) fn new(vm: Arc<VmFd>, gsis: Range<u32>, calls: Arc<KvmCalls>) -> Self {
        let table = Table::new(vm, gsis, calls);
        Self { shared: Arc::new(Shared(Mutex::new(table))) }
    }

    pub(super) fn software_delivery(&self) -> io::Result<SoftwareDelivery> {
        SoftwareDelivery::new(self.shared.clone())
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
            std::collections::btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::btree_map::Entry::Vacant(entry) => {
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

    fn is_pending(&self, vector: u16) -> bool {
        let off = |gsi| self.shared.lock().is_off(gsi);
        let Some(vector) = self.vectors.get(&vector).filter(|vector| vector.gsi.is_none_or(off))
        else {
            return false;
        };
        // An eventfd can only be looked at by reading it; what was read is put back, and adds to what came
        // meanwhile.
        vector.eventfd.read().is_ok_and(|count| vector.eventfd.write(count).is_ok())
    }

    fn clear_pending(&mut self, vector: u16) {
        if let Some(vector) = self.vectors.get(&vector) {
            // EAGAIN: there was nothing.
            let _ = vector.eventfd.read();
        }
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
