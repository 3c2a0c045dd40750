//! The interrupts of a device: what the hardware does, and what vfio-pci makes of it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;
use vmm_sys_util::eventfd::EventFd;

use super::{PciDevice, errno, lock};
use crate::backend::{IrqFlags, IrqInfo, SetIrqs};
use crate::irq::IrqIndex;
use crate::pci::caps;
use crate::pci::msix::MsixLayout;
use crate::pci::regs::{
    CAPABILITIES, COMMAND, Command, MSIX_CONTROL, MSIX_PBA, MSIX_TABLE, STATUS, STATUS_INTERRUPT,
    cap,
};

/// What is bound to the interrupts of a device.
#[derive(Clone, Debug, Default)]
pub struct IrqsState {
    /// The index that is on; they exclude one another.
    pub active: Option<u32>,
    /// The eventfd of each of its vectors, up to the last that was ever given one.
    pub eventfds: Vec<Option<Arc<EventFd>>>,
    /// The vectors that the host's kernel has allocated.
    pub allocated: BTreeSet<usize>,
    /// What unmasks INTx.
    pub resample: Option<Arc<EventFd>>,
    /// The device asserts its pin.
    asserted: bool,
    /// vfio-pci has masked the pin, since it fired.
    masked: bool,
}

impl IrqsState {
    /// How many vectors have an eventfd.
    pub fn bound(&self) -> usize {
        self.eventfds.iter().flatten().count()
    }

    fn is_on(&self, kind: IrqIndex) -> bool {
        self.active == Some(kind.number())
    }

    fn eventfd(&self, vector: u16) -> Option<&EventFd> {
        self.eventfds.get(usize::from(vector))?.as_deref()
    }

    pub(super) fn off(&mut self) {
        *self = Self { asserted: self.asserted, ..Self::default() };
    }

    /// The rules of vfio_pci_set_msi_trigger and vfio_pci_set_intx_trigger.
    fn trigger(
        &mut self,
        info: IrqInfo,
        start: u32,
        eventfds: &[Option<Arc<EventFd>>],
    ) -> io::Result<()> {
        let start = usize::try_from(start).map_err(|_| errno(libc::EINVAL))?;
        let end = start.saturating_add(eventfds.len());
        let other = self.active.is_some_and(|active| active != info.index);
        // Once it is on, vectors beyond those it was turned on with need the kind that can grow.
        let grows = self.active.is_some() && end > self.eventfds.len();
        if other
            || end as u64 > u64::from(info.count)
            || grows && info.flags.contains(IrqFlags::NORESIZE)
        {
            return Err(errno(libc::EINVAL));
        }
        match self.active {
            // vfio_msi_enable allocates all of them, bound or not.
            None => self.allocated.extend(0..end),
            Some(_) => {
                let named = (start..end).zip(eventfds).filter(|(_, eventfd)| eventfd.is_some());
                self.allocated.extend(named.map(|(vector, _)| vector));
            }
        }
        let length = self.eventfds.len().max(end);
        self.eventfds.resize(length, None);
        self.active = Some(info.index);
        self.eventfds
            .iter_mut()
            .skip(start)
            .zip(eventfds)
            .for_each(|(old, new)| old.clone_from(new));
        Ok(())
    }
}

impl PciDevice {
    /// What is bound to its interrupts.
    pub fn irqs(&self) -> IrqsState {
        lock(&self.irqs).clone()
    }

    /// The device fires a vector of MSI or MSI-X, whichever is on: its eventfd is signalled. A vector of MSI-X
    /// without one is masked by the host's kernel: its pending bit is set. Nothing happens where neither is on, or
    /// for a vector that is not there.
    ///
    /// # Errors
    ///
    /// The eventfd or the pending bits could not be written.
    pub fn raise(&self, vector: u16) -> io::Result<()> {
        let irqs = lock(&self.irqs);
        match irqs.eventfd(vector).filter(|_| !irqs.is_on(IrqIndex::Intx)) {
            Some(eventfd) => eventfd.write(1),
            None if irqs.is_on(IrqIndex::Msix) && vector < self.msix_vectors() => {
                self.set_pending(vector, true)
            }
            None => Ok(()),
        }
    }

    /// The device asserts its pin, or stops doing so.
    ///
    /// # Errors
    ///
    /// The eventfd or the status register could not be written.
    pub fn assert_pin(&self, asserted: bool) -> io::Result<()> {
        let mut irqs = lock(&self.irqs);
        irqs.asserted = asserted;
        self.show_pin(asserted)?;
        self.signal_pin(&mut irqs)
    }

    /// vfio-pci looks whether the pin is to be unmasked, as it does when the resample eventfd is signalled.
    ///
    /// # Errors
    ///
    /// The eventfd could not be written.
    pub fn resample(&self) -> io::Result<()> {
        let mut irqs = lock(&self.irqs);
        if irqs.resample.as_ref().is_some_and(|eventfd| eventfd.read().is_ok()) {
            irqs.masked = false;
        }
        self.signal_pin(&mut irqs)
    }

    pub(super) fn signal_pin(&self, irqs: &mut IrqsState) -> io::Result<()> {
        let mut command = [0; 2];
        self.config(COMMAND.into(), &mut command)?;
        let disabled =
            Command::from_bits_retain(u16::from_le_bytes(command)).contains(Command::INTX_DISABLE);
        if !irqs.asserted || irqs.masked || disabled || !irqs.is_on(IrqIndex::Intx) {
            return Ok(());
        }
        irqs.masked = true;
        irqs.eventfd(0).map_or(Ok(()), |eventfd| eventfd.write(1))
    }

    /// Nothing is asserted or pending: as after a reset.
    pub(super) fn quiesce(&self) -> io::Result<()> {
        lock(&self.irqs).asserted = false;
        self.forget_pending()
    }

    pub(super) fn change_irqs(&self, call: SetIrqs<'_>) -> io::Result<()> {
        if let Some(result) = self.events.change(call) {
            return result;
        }
        let mut irqs = lock(&self.irqs);
        match call {
            SetIrqs::Trigger { index, start, eventfds } => {
                irqs.trigger(self.find_irq(index), start, eventfds)?;
                self.signal_pin(&mut irqs)?;
                self.fire_pending(&irqs)
            }
            SetIrqs::UnmaskOn { index, eventfd } if irqs.active == Some(index) => {
                irqs.resample = Some(eventfd.clone());
                Ok(())
            }
            SetIrqs::Disable { index } if irqs.active == Some(index) => {
                irqs.off();
                self.forget_pending()
            }
            _ => Err(errno(libc::EINVAL)),
        }
    }

    /// Vectors that were pending in the hardware fire when they are bound, which unmasks them there.
    fn fire_pending(&self, irqs: &IrqsState) -> io::Result<()> {
        if !irqs.is_on(IrqIndex::Msix) {
            return Ok(());
        }
        for vector in 0..self.msix_vectors() {
            let Some(eventfd) = irqs.eventfd(vector) else {
                continue;
            };
            if self.is_pending(vector)? {
                self.set_pending(vector, false)?;
                eventfd.write(1)?;
            }
        }
        Ok(())
    }

    fn msix_vectors(&self) -> u16 {
        self.msix.map_or(0, |layout| layout.vectors)
    }

    fn forget_pending(&self) -> io::Result<()> {
        (0..self.msix_vectors()).try_for_each(|vector| self.set_pending(vector, false))
    }

    fn is_pending(&self, vector: u16) -> io::Result<bool> {
        let (region, offset, bit) = self.pending_bit(vector)?;
        let mut byte = [0];
        self.peek(region, offset, &mut byte)?;
        Ok(byte[0] & bit != 0)
    }

    fn set_pending(&self, vector: u16, pending: bool) -> io::Result<()> {
        let (region, offset, bit) = self.pending_bit(vector)?;
        let mut byte = [0];
        self.peek(region, offset, &mut byte)?;
        byte[0] = if pending { byte[0] | bit } else { byte[0] & !bit };
        self.poke(region, offset, &byte)
    }

    /// Where the pending bit of a vector is: region, offset, bit.
    fn pending_bit(&self, vector: u16) -> io::Result<(u32, u64, u8)> {
        let layout = self.msix.filter(|layout| vector < layout.vectors);
        let layout = layout.ok_or_else(|| errno(libc::EINVAL))?;
        let offset = layout.pba.start().saturating_add(u64::from(vector / 8));
        Ok((layout.pba_bar.number().into(), offset, 1 << (vector % 8)))
    }

    /// Interrupt Status (PCI 6.2.3) tells of the pin whether or not it may fire.
    fn show_pin(&self, asserted: bool) -> io::Result<()> {
        let [bit, _] = STATUS_INTERRUPT.to_le_bytes();
        let mut status = [0];
        self.config(STATUS.into(), &mut status)?;
        status[0] = if asserted { status[0] | bit } else { status[0] & !bit };
        self.poke(VFIO_PCI_CONFIG_REGION_INDEX, STATUS.into(), &status)
    }
}

/// Where the structures of MSI-X are, of a function with this config space.
pub(super) fn msix_layout(config: &[u8]) -> Option<MsixLayout> {
    let bytes = |offset: u16| config.get(usize::from(offset)..).unwrap_or_default();
    let word = |offset: u16| bytes(offset).first_chunk().map_or(0, |it| u16::from_le_bytes(*it));
    let long = |offset: u16| bytes(offset).first_chunk().map_or(0, |it| u32::from_le_bytes(*it));
    let first = bytes(CAPABILITIES).first().copied()?;
    let all = caps::standard(first, word).found;
    let msix = all.iter().find(|capability| capability.id == cap::MSIX)?;
    let at = |register: u16| msix.offset.saturating_add(register);
    MsixLayout::new(word(at(MSIX_CONTROL)), long(at(MSIX_TABLE)), long(at(MSIX_PBA)))
}
