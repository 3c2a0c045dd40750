//! INTx: an interrupt pin, which vfio-pci masks whenever it fires
//! (drivers/vfio/pci/vfio_pci_intrs.c).

use std::io;

use crate::errno::errno;
use crate::events::Event;
use crate::irq_set::{Call, EVENTFD};

/// The pin, while INTx is enabled.
#[derive(Debug)]
pub(crate) struct Intx {
    pub trigger: Option<Event>,
    /// The eventfd that unmasks the pin.
    pub unmask: Option<Event>,
    masked: bool,
}

impl Intx {
    /// `vfio_intx_enable`.
    pub fn enable(call: &Call<'_>) -> io::Result<Self> {
        Ok(Self { trigger: call.eventfd(0)?, unmask: None, masked: false })
    }

    /// `vfio_pci_set_intx_mask`.
    pub fn mask(&mut self, call: &Call<'_>) -> io::Result<()> {
        if call.has(EVENTFD) {
            return Err(errno(libc::ENOTTY));
        }
        self.masked |= call.acts_on(0);
        Ok(())
    }

    /// `vfio_pci_set_intx_unmask`.
    pub fn unmask(&mut self, call: &Call<'_>) -> io::Result<()> {
        if !call.has(EVENTFD) {
            self.masked &= !call.acts_on(0);
            return Ok(());
        }
        let new = call.eventfd(0)?;
        if new.is_some() && self.unmask.is_some() {
            return Err(errno(libc::EBUSY));
        }
        self.unmask = new;
        Ok(())
    }

    /// `vfio_pci_set_intx_trigger`, while INTx is enabled.
    pub fn trigger(&mut self, call: &Call<'_>) -> io::Result<()> {
        match call.has(EVENTFD) {
            true => self.trigger = call.eventfd(0)?,
            false if call.acts_on(0) => self.trigger.iter().for_each(Event::signal),
            false => {}
        }
        Ok(())
    }

    /// The pin is asserted (`vfio_intx_handler`).
    pub fn fire(&mut self) {
        if !self.masked {
            self.masked = true;
            self.trigger.iter().for_each(Event::signal);
        }
    }

    /// Reads the eventfd that unmasks the pin (`vfio_pci_intx_unmask_handler`).
    pub fn poll_unmask(&mut self) {
        if self.unmask.as_ref().is_some_and(|event| event.0.take() != 0) {
            self.masked = false;
        }
    }
}
