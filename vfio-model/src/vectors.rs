//! MSI and MSI-X: vectors, each of which signals an eventfd (drivers/vfio/pci/vfio_pci_intrs.c).

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::events::Event;
use crate::irqs::{Call, EVENTFD, Interrupts, Irqs, NONE, On};
use crate::{PciAddress, State, System, errno};

/// The vectors of one kind, while it is on.
#[derive(Debug)]
pub(crate) struct Vectors {
    index: u32,
    /// How many were asked for when it was turned on.
    room: u32,
    triggers: BTreeMap<u32, Event>,
    /// Those that the host's kernel has given a vector of its own.
    allocated: BTreeSet<u32>,
}

impl System {
    /// A device fires a vector of MSI or MSI-X, whichever is on. A vector of MSI-X without an
    /// eventfd is masked by the kernel: its pending bit is set, and it fires when it is bound.
    /// Nothing happens where neither is on.
    pub fn fire(&self, device: PciAddress, vector: u32) -> io::Result<()> {
        let mut state = self.state();
        let has_it = vector < state.entry(device)?.function.msix;
        let Some(On::Vectors(vectors)) = state.devices.get(&device).map(|own| &own.irqs.on) else {
            return Ok(());
        };
        match vectors.triggers.get(&vector) {
            Some(event) => event.signal(),
            None if vectors.index == sys::VFIO_PCI_MSIX_IRQ_INDEX && has_it => {
                state.hardware(device)?.set_pending(vector, true)?;
            }
            None => {}
        }
        Ok(())
    }
}

impl State {
    /// Vectors that fired while they were masked fire now that they are bound; while MSI-X is off,
    /// none is pending.
    pub fn look_at_pending(&mut self, address: PciAddress) -> io::Result<()> {
        self.hardware(address)?;
        let irqs = self.devices.get(&address).map(|own| &own.irqs.on);
        let hardware = self.hardware.get_mut(&address);
        match (irqs, hardware) {
            (Some(On::Vectors(vectors)), Some(hardware)) => {
                let pending = hardware.take_pending(vectors.triggers.keys().copied())?;
                let events = pending.iter().filter_map(|vector| vectors.triggers.get(vector));
                events.for_each(Event::signal);
                Ok(())
            }
            (_, Some(hardware)) => hardware.forget_pending(),
            _ => Ok(()),
        }
    }
}

impl Irqs {
    pub fn trigger_msi(&mut self, call: &Call<'_>) -> io::Result<()> {
        let set = call.set;
        let is_on = match &self.on {
            On::Nothing => false,
            On::Vectors(vectors) if vectors.index == set.index => true,
            _ => return Err(errno(libc::EINVAL)),
        };
        if is_on && set.count == 0 && call.has(NONE) {
            self.on = On::Nothing;
            return Ok(());
        }
        if !call.has(EVENTFD) {
            return self.vectors()?.loop_back(call);
        }
        if is_on {
            return self.vectors()?.set_block(call);
        }
        let mut vectors = Vectors::enable(call)?;
        vectors.set_block(call)?;
        self.on = On::Vectors(vectors);
        Ok(())
    }

    fn vectors(&mut self) -> io::Result<&mut Vectors> {
        match &mut self.on {
            On::Vectors(vectors) => Ok(vectors),
            _ => Err(errno(libc::EINVAL)),
        }
    }
}

impl Vectors {
    /// Turned on: the kernel allocates all vectors up to the last that is named
    /// (`vfio_msi_enable`).
    fn enable(call: &Call<'_>) -> io::Result<Self> {
        let room = call.end();
        if room == 0 {
            // The driver core has no room for none.
            return Err(errno(libc::ERANGE));
        }
        Ok(Self {
            index: call.set.index,
            room,
            triggers: BTreeMap::new(),
            allocated: (0..room).collect(),
        })
    }

    pub fn interrupts(&self) -> Interrupts {
        Interrupts {
            active: Some(self.index),
            bound: self.triggers.keys().copied().collect(),
            allocated: self.allocated.clone(),
            ..Interrupts::default()
        }
    }

    /// Binds vectors, or unbinds them; where one fails, those that were bound by this call are
    /// unbound.
    fn set_block(&mut self, call: &Call<'_>) -> io::Result<()> {
        let (start, end) = (call.set.start, call.end());
        // A kernel that adds vectors one by one has no bounds but the table's, and notices a vector
        // that it cannot add when it is to be bound.
        if !call.kernel.grows_msix() && (start >= self.room || end > self.room) {
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

    fn set_one(&mut self, call: &Call<'_>, at: usize, vector: u32) -> io::Result<()> {
        let grows = call.kernel.grows_msix() && self.index == sys::VFIO_PCI_MSIX_IRQ_INDEX;
        if call.fd(at) >= 0 && vector >= self.room && !grows {
            return Err(errno(libc::EINVAL));
        }
        if let Some(event) = call.eventfd(at)? {
            self.allocated.insert(vector);
            self.triggers.insert(vector, event);
        }
        Ok(())
    }

    /// Signals eventfds as if their vectors had fired.
    fn loop_back(&self, call: &Call<'_>) -> io::Result<()> {
        let (start, end) = (call.set.start, call.end());
        if !call.kernel.grows_msix() && end > self.room {
            return Err(errno(libc::EINVAL));
        }
        for (at, vector) in (start..end).enumerate() {
            let fires = call.has(NONE) || call.bool(at);
            if let Some(event) = self.triggers.get(&vector).filter(|_| fires) {
                event.signal();
            }
        }
        Ok(())
    }
}
