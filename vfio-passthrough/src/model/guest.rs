//! A guest's memory slots and interrupts, behind the host traits.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::faults::{Call, Faults, errno, lock};
use super::messages::{Messages, Vectors};
use crate::address::ByteRange;
use crate::host::{
    HostMemory, IntxConnection, IntxLine, MemorySlots, MsiMessage, MsiRouter, MsiVectors,
};
use crate::services::VmmServices;

/// The trigger and the resample eventfd of a connected pin.
type Wire = [Arc<EventFd>; 2];

/// A guest. A clone is the same guest.
#[derive(Clone, Debug)]
pub struct Guest {
    pub(super) faults: Arc<Faults>,
    slots: Arc<Mutex<BTreeMap<u64, u64>>>,
    messages: Arc<Mutex<Messages>>,
    pins: Arc<Mutex<Vec<Wire>>>,
}

impl Guest {
    /// A guest without memory slots and interrupts.
    pub fn new(faults: Arc<Faults>) -> Self {
        Self { faults, slots: Arc::default(), messages: Arc::default(), pins: Arc::default() }
    }

    /// The host traits, for this guest.
    pub fn services(&self) -> VmmServices {
        let own = Arc::new(self.clone());
        VmmServices { slots: own.clone(), msi: own.clone(), intx: Some(own), p2p: None }
    }

    /// The guest physical ranges of the memory slots.
    pub fn slots(&self) -> Vec<ByteRange> {
        lock(&self.slots).iter().filter_map(|(start, size)| ByteRange::new(*start, *size)).collect()
    }

    /// The number of INTx pins that are connected.
    pub fn pins(&self) -> usize {
        lock(&self.pins).len()
    }

    /// How often pins fired since the last call.
    pub fn pin_fired(&self) -> u64 {
        let pins = lock(&self.pins);
        let counts = pins.iter().filter_map(|[trigger, _]| trigger.read().ok());
        counts.fold(0, u64::saturating_add)
    }

    /// The vectors that have a route to the guest, with their messages.
    pub fn delivered(&self) -> BTreeMap<u16, MsiMessage> {
        lock(&self.messages).routes()
    }

    /// The messages that arrived since the last call, with their counts.
    pub fn arrived(&self) -> BTreeMap<MsiMessage, u64> {
        lock(&self.messages).take_arrived()
    }

    /// The number of eventfds for vectors.
    pub fn triggers(&self) -> usize {
        lock(&self.messages).triggers()
    }

    /// The guest acknowledges the interrupt of its pins.
    pub fn acknowledge_pin(&self) {
        for [_, resample] in lock(&self.pins).iter() {
            // EAGAIN: the counter is at its maximum.
            let _ = resample.write(1);
        }
    }
}

impl MemorySlots for Guest {
    /// The number is 0: a slot is known by its address.
    unsafe fn map(&self, gpa: u64, memory: &dyn HostMemory) -> io::Result<u32> {
        self.faults.pass(Call::PlaceSlot)?;
        let range = ByteRange::new(gpa, memory.size()).ok_or_else(|| errno(libc::EINVAL))?;
        let mut slots = lock(&self.slots);
        // No two slots overlap, so the last one that begins before the end does, or none.
        let before = slots.range(..range.end()).next_back();
        let before = before.and_then(|(start, size)| ByteRange::new(*start, *size));
        if before.is_some_and(|slot| slot.overlaps(range)) {
            return Err(errno(libc::EEXIST));
        }
        slots.insert(gpa, memory.size());
        drop(slots);
        let address = memory.host_address().addr();
        self.faults.with_alarms(|alarms| alarms.place(address, range));
        Ok(0)
    }

    fn unmap(&self, _: u32, gpa: u64, memory: &dyn HostMemory) -> io::Result<()> {
        let address = memory.host_address().addr();
        self.faults.with_alarms(|alarms| alarms.remove(address));
        self.faults.pass(Call::RemoveSlot)?;
        lock(&self.slots).remove(&gpa);
        Ok(())
    }
}

impl MsiRouter for Guest {
    fn allocate(&self, count: u16) -> io::Result<Box<dyn MsiVectors>> {
        self.faults.pass(Call::AllocateVectors)?;
        Ok(Box::new(Vectors::new(&self.faults, &self.messages, count)))
    }
}

impl IntxLine for Guest {
    fn connect(&self) -> io::Result<Box<dyn IntxConnection>> {
        self.faults.pass(Call::Route)?;
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let wire = [eventfd()?, eventfd()?];
        lock(&self.pins).push(wire.clone());
        Ok(Box::new(Pin { guest: self.clone(), wire }))
    }
}

struct Pin {
    guest: Guest,
    wire: Wire,
}

impl IntxConnection for Pin {
    fn trigger(&self) -> &Arc<EventFd> {
        let [trigger, _] = &self.wire;
        trigger
    }

    fn resample(&self) -> &Arc<EventFd> {
        let [_, resample] = &self.wire;
        resample
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let own = |[trigger, _]: &Wire| Arc::ptr_eq(trigger, self.trigger());
        lock(&self.guest.pins).retain(|wire| !own(wire));
    }
}
