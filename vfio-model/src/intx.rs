//! INTx: an interrupt pin, which vfio-pci masks each time that it fires
//! (drivers/vfio/pci/vfio_pci_intrs.c).

use std::io;

use vfio_bindings::bindings::vfio as sys;

use crate::events::Event;
use crate::irqs::{Call, EVENTFD, Interrupts, Irqs, NONE, On};
use crate::{PciAddress, State, System, errno};

/// The pin, while it is on.
#[derive(Debug, Default)]
pub(crate) struct Intx {
    trigger: Option<Event>,
    /// What unmasks it.
    unmask: Option<Event>,
    /// It has fired, or was masked by the program, and was not unmasked since.
    masked: bool,
}

impl System {
    /// A device asserts its pin, or stops doing so.
    pub fn assert_pin(&self, device: PciAddress, asserted: bool) -> io::Result<()> {
        let mut state = self.state();
        state.hardware(device)?.assert_pin(asserted);
        state.look_at_pin(device);
        Ok(())
    }

    /// The kernel looks whether the eventfd that unmasks a device's pin was signalled, as it is
    /// woken to do. A pin that is still asserted fires again.
    pub fn poll_unmask(&self, device: PciAddress) {
        let mut state = self.state();
        let is_signalled =
            |intx: &&mut Intx| intx.unmask.as_ref().is_some_and(|event| event.0.take() != 0);
        if let Some(intx) = state.intx(device).filter(is_signalled) {
            intx.masked = false;
            state.look_at_pin(device);
        }
    }
}

impl State {
    fn intx(&mut self, address: PciAddress) -> Option<&mut Intx> {
        match &mut self.devices.get_mut(&address)?.irqs.on {
            On::Intx(intx) => Some(intx),
            _ => None,
        }
    }

    /// Fires the pin where it is asserted and nothing keeps it from firing (`vfio_intx_handler`).
    pub fn look_at_pin(&mut self, address: PciAddress) {
        let hardware = self.hardware(address);
        let fires = hardware.is_ok_and(|own| own.asserted && !own.intx_is_disabled());
        if let Some(intx) = self.intx(address).filter(|intx| fires && !intx.masked) {
            intx.masked = true;
            intx.trigger.iter().for_each(Event::signal);
        }
    }
}

impl Intx {
    pub fn interrupts(&self) -> Interrupts {
        Interrupts {
            active: Some(sys::VFIO_PCI_INTX_IRQ_INDEX),
            bound: self.trigger.iter().map(|_| 0).collect(),
            allocated: [0].into(),
            unmasks: self.unmask.is_some(),
            ..Interrupts::default()
        }
    }
}

impl Irqs {
    /// The pin, for a call that masks or unmasks it.
    fn the_pin(&mut self, call: &Call<'_>) -> io::Result<&mut Intx> {
        match &mut self.on {
            On::Intx(intx) if call.is_the_pin() => Ok(intx),
            _ => Err(errno(libc::EINVAL)),
        }
    }

    pub fn mask_intx(&mut self, call: &Call<'_>) -> io::Result<()> {
        let intx = self.the_pin(call)?;
        if call.has(EVENTFD) {
            return Err(errno(libc::ENOTTY));
        }
        intx.masked |= call.has(NONE) || call.bool(0);
        Ok(())
    }

    pub fn unmask_intx(&mut self, call: &Call<'_>) -> io::Result<()> {
        let intx = self.the_pin(call)?;
        if !call.has(EVENTFD) {
            intx.masked &= !(call.has(NONE) || call.bool(0));
            return Ok(());
        }
        match (call.eventfd(0)?, &intx.unmask) {
            (Some(_), Some(_)) => Err(errno(libc::EBUSY)),
            (new, _) => {
                intx.unmask = new;
                Ok(())
            }
        }
    }

    pub fn trigger_intx(&mut self, call: &Call<'_>) -> io::Result<()> {
        let on = match &mut self.on {
            On::Nothing => None,
            On::Intx(intx) => Some(intx),
            On::Vectors(_) => return Err(errno(libc::EINVAL)),
        };
        if on.is_some() && call.set.count == 0 && call.has(NONE) {
            self.on = On::Nothing;
            return Ok(());
        }
        if !call.is_the_pin() {
            return Err(errno(libc::EINVAL));
        }
        match on {
            Some(intx) if call.has(EVENTFD) => intx.trigger = call.eventfd(0)?,
            None if call.has(EVENTFD) => {
                let trigger = call.eventfd(0)?;
                self.on = On::Intx(Intx { trigger, ..Intx::default() });
            }
            Some(intx) if call.has(NONE) || call.bool(0) => {
                intx.trigger.iter().for_each(Event::signal)
            }
            Some(_) => {}
            None => return Err(errno(libc::EINVAL)),
        }
        Ok(())
    }
}
