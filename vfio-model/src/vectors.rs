//! MSI and MSI-X: vectors that signal an eventfd each (drivers/vfio/pci/vfio_pci_intrs.c).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::errno::{FewerVectors, errno};
use crate::events::Event;
use crate::irq_set::Call;

/// The number of vectors that the host has for a call that enables an index. If it has too few for
/// MSI, Linux tries one alone (pci_msi_domain_handle_error).
fn available(call: &Call<'_>, count: u32) -> u32 {
    match call.host.available {
        available if available >= count => count,
        available if call.set.index == sys::VFIO_PCI_MSI_IRQ_INDEX => available.min(1),
        available => available,
    }
}

fn fewer(call: &Call<'_>, available: u32) -> io::Error {
    match call.host.counts && available > 0 {
        true => io::Error::new(io::ErrorKind::StorageFull, FewerVectors(available)),
        false => errno(libc::ENOSPC),
    }
}

/// The vectors of MSI or MSI-X, while it is enabled.
#[derive(Debug)]
pub(crate) struct Vectors {
    pub index: u32,
    /// The number of vectors when it was enabled.
    count: u32,
    pub triggers: BTreeMap<u32, Event>,
    /// The vectors that have an interrupt of the host.
    pub allocated: BTreeSet<u32>,
}

impl Vectors {
    /// Allocates all vectors up to the last that the call names (`vfio_msi_enable`).
    pub fn enable(call: &Call<'_>) -> io::Result<Self> {
        let count = call.end();
        if count == 0 {
            // pci_alloc_irq_vectors allocates one vector at least.
            return Err(errno(libc::ERANGE));
        }
        let available = available(call, count);
        if available < count {
            return Err(fewer(call, available));
        }
        Ok(Self {
            index: call.set.index,
            count,
            triggers: BTreeMap::new(),
            allocated: (0..count).collect(),
        })
    }

    /// Binds vectors or unbinds them. After an error, the vectors that the call bound are unbound
    /// (`vfio_msi_set_block`).
    pub fn set_block(&mut self, call: &Call<'_>) -> io::Result<()> {
        let (start, end) = (call.set.start, call.end());
        // A kernel that can grow MSI-X checks no bounds here; it fails when it binds a vector that
        // it cannot add.
        if !call.host.kernel.grows_msix() && (start >= self.count || end > self.count) {
            return Err(errno(libc::EINVAL));
        }
        for (at, vector) in (start..end).enumerate() {
            self.triggers.remove(&vector);
            if let Err(error) = self.set_one(call, at, vector) {
                self.triggers.retain(|bound, _| *bound < start || *bound > vector);
                return Err(error);
            }
        }
        Ok(())
    }

    /// `vfio_msi_set_vector_signal`.
    fn set_one(&mut self, call: &Call<'_>, at: usize, vector: u32) -> io::Result<()> {
        let grows = call.host.grows_msix && self.index == sys::VFIO_PCI_MSIX_IRQ_INDEX;
        if call.fd(at) >= 0 && vector >= self.count && !grows {
            return Err(errno(libc::EINVAL));
        }
        if let Some(event) = call.eventfd(at)? {
            if !self.allocated.contains(&vector)
                && self.allocated.len() as u64 >= call.host.available.into()
            {
                return Err(errno(libc::ENOSPC));
            }
            self.allocated.insert(vector);
            self.triggers.insert(vector, event);
        }
        Ok(())
    }

    /// Signals eventfds as if their vectors had fired (`vfio_pci_set_msi_trigger`).
    pub fn loop_back(&self, call: &Call<'_>) -> io::Result<()> {
        let (start, end) = (call.set.start, call.end());
        if !call.host.kernel.grows_msix() && end > self.count {
            return Err(errno(libc::EINVAL));
        }
        let vectors = (start..end).enumerate().filter(|(at, _)| call.acts_on(*at));
        let events = vectors.filter_map(|(_, vector)| self.triggers.get(&vector));
        events.for_each(Event::signal);
        Ok(())
    }
}
