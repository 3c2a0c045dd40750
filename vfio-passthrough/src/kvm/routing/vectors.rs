//! The vectors of a function.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::entries::Msi;
use super::shared::Shared;
use crate::host::{MsiMessage, MsiVectors};

/// The vectors of one function. A vector takes nothing from the host until it is used.
pub(super) struct Vectors {
    shared: Arc<Shared>,
    device_id: Option<u32>,
    count: u16,
    vectors: BTreeMap<u16, Vector>,
}

struct Vector {
    eventfd: Arc<EventFd>,
    /// Allocated when the vector is first delivered, and kept with its route: unmasking then needs
    /// only one `KVM_IRQFD`.
    gsi: Option<u32>,
}

impl Vectors {
    pub(super) fn new(shared: Arc<Shared>, device_id: Option<u32>, count: u16) -> Self {
        Self { shared, device_id, count, vectors: BTreeMap::new() }
    }

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

    /// Allocates a GSI for each of these vectors that has none. After an error no vector has got
    /// one.
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
        let device_id = self.device_id;
        let msi = |message| Msi { message, device_id };
        // A vector without a GSI was never delivered: there is nothing to stop.
        let changes: Vec<_> = changes
            .iter()
            .filter_map(|(vector, message)| Some((self.gsi(*vector)?, message.map(msi))))
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
