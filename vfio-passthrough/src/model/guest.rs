//! A guest's side of the host traits: memory slots and interrupts that a test can look at.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Call, Faults, errno, lock};
use crate::address::ByteRange;
use crate::builder::Host;
use crate::host::{
    HostMemory, IntxConnection, IntxLine, MemorySlot, MemorySlots, MsiMessage, MsiRouter, MsiVectors,
};

/// A guest. Clones are the same one.
#[derive(Clone)]
pub struct Guest {
    faults: Arc<Faults>,
    slots: Arc<Mutex<BTreeMap<u64, u64>>>,
    delivered: Arc<Mutex<BTreeMap<u16, MsiMessage>>>,
    pins: Arc<Mutex<usize>>,
}

impl Guest {
    /// A guest with nothing in its memory.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self {
            faults,
            slots: Arc::default(),
            delivered: Arc::default(),
            pins: Arc::default(),
        }
    }

    /// The host traits that put things into this guest.
    pub fn host(&self) -> Host {
        let own = Arc::new(self.clone());
        Host {
            slots: own.clone(),
            msi: own.clone(),
            intx: Some(own),
        }
    }

    /// What memory slots cover.
    pub fn slots(&self) -> Vec<ByteRange> {
        lock(&self.slots)
            .iter()
            .filter_map(|(start, size)| ByteRange::new(*start, *size))
            .collect()
    }

    /// How many INTx pins are wired to the guest.
    pub fn pins(&self) -> usize {
        *lock(&self.pins)
    }

    /// The vectors that reach the guest, with their messages.
    pub fn delivered(&self) -> BTreeMap<u16, MsiMessage> {
        lock(&self.delivered).clone()
    }
}

impl MemorySlots for Guest {
    fn place(&self, gpa: u64, memory: Arc<dyn HostMemory>) -> io::Result<Box<dyn MemorySlot>> {
        self.faults.pass(Call::PlaceSlot)?;
        let range = ByteRange::new(gpa, memory.size()).ok_or_else(|| errno(libc::EINVAL))?;
        if self.slots().iter().any(|slot| slot.overlaps(range)) {
            return Err(errno(libc::EEXIST));
        }
        lock(&self.slots).insert(gpa, memory.size());
        Ok(Box::new(Slot {
            guest: self.clone(),
            gpa,
            memory: Some(memory),
        }))
    }
}

struct Slot {
    guest: Guest,
    gpa: u64,
    memory: Option<Arc<dyn HostMemory>>,
}

impl MemorySlot for Slot {
    fn remove(&mut self) -> io::Result<()> {
        if self.memory.is_some() {
            self.guest.faults.pass(Call::RemoveSlot)?;
            lock(&self.guest.slots).remove(&self.gpa);
            self.memory = None;
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            log::error!("the slot at {:#x} stays: {error}", self.gpa);
            #[expect(clippy::mem_forget, reason = "a failed undo leaks, it never frees")]
            std::mem::forget(self.memory.take());
        }
    }
}

impl MsiRouter for Guest {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        Ok(Box::new(Vectors {
            guest: self.clone(),
            count,
            eventfds: BTreeMap::new(),
        }))
    }
}

struct Vectors {
    guest: Guest,
    count: u16,
    eventfds: BTreeMap<u16, Arc<EventFd>>,
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        if vector >= self.count {
            return Err(errno(libc::EINVAL));
        }
        if let Some(eventfd) = self.eventfds.get(&vector) {
            return Ok(eventfd.clone());
        }
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        self.eventfds.insert(vector, eventfd.clone());
        Ok(eventfd)
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        self.guest.faults.pass(Call::Route)?;
        let mut delivered = lock(&self.guest.delivered);
        for (vector, message) in changes {
            match message {
                Some(message) => delivered.insert(*vector, *message),
                None => delivered.remove(vector),
            };
        }
        Ok(())
    }

    fn is_pending(&self, vector: u16) -> bool {
        let eventfd = self
            .eventfds
            .get(&vector)
            .filter(|_| !lock(&self.guest.delivered).contains_key(&vector));
        eventfd.is_some_and(|eventfd| eventfd.read().is_ok_and(|count| eventfd.write(count).is_ok()))
    }

    fn clear_pending(&mut self, vector: u16) {
        // EAGAIN: there was nothing.
        let _ = self.eventfds.get(&vector).map(|eventfd| eventfd.read());
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        self.eventfds.keys().for_each(|vector| {
            lock(&self.guest.delivered).remove(vector);
        });
    }
}

impl IntxLine for Guest {
    fn connect(&self) -> io::Result<Box<dyn IntxConnection>> {
        self.faults.pass(Call::Route)?;
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let connection = Pin {
            guest: self.clone(),
            trigger: eventfd()?,
            resample: eventfd()?,
        };
        let mut pins = lock(&self.pins);
        *pins = pins.saturating_add(1);
        Ok(Box::new(connection))
    }
}

struct Pin {
    guest: Guest,
    trigger: Arc<EventFd>,
    resample: Arc<EventFd>,
}

impl IntxConnection for Pin {
    fn trigger(&self) -> &Arc<EventFd> {
        &self.trigger
    }

    fn resample(&self) -> &Arc<EventFd> {
        &self.resample
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.guest.pins);
        *pins = pins.saturating_sub(1);
    }
}
