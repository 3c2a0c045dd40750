//! Which of its memory a device decodes, and what vfio-pci makes of it: reads and writes of memory that is not decoded
//! are EIO, mappings of it fault (`__vfio_pci_memory_enabled`, `vfio_pci_zap_bars`).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_ROM_REGION_INDEX};

use super::{PciDevice, errno, lock};
use crate::pci::caps;
use crate::pci::regs::{BAR0, CAPABILITIES, COMMAND, Command, PM_CONTROL, PM_STATE, cap};

/// The mapped regions of a device, by number: where they are in this process.
#[derive(Debug, Default)]
pub(super) struct Mmaps {
    last: u64,
    addresses: BTreeMap<u64, usize>,
    /// They fault.
    pub zapped: bool,
}

/// Holds the device of a mapped region, and takes the region from the list at its end.
pub(super) struct Hold {
    device: Arc<PciDevice>,
    number: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(address) = lock(&self.device.mmaps).addresses.remove(&self.number) {
            self.device.faults.with_alarms(|alarms| alarms.zap(address, false));
        }
    }
}

impl PciDevice {
    /// What a mapped region is to hold.
    pub(super) fn hold(self: Arc<Self>) -> Arc<Hold> {
        let number = {
            let mut mmaps = lock(&self.mmaps);
            mmaps.last = mmaps.last.wrapping_add(1);
            mmaps.last
        };
        let hold = Arc::new(Hold { device: self.clone(), number });
        self.events.held(&hold);
        hold
    }

    /// A region is mapped at this address.
    pub(super) fn mapped(&self, hold: &Hold, address: usize) {
        let mut mmaps = lock(&self.mmaps);
        mmaps.addresses.insert(hold.number, address);
        let zapped = mmaps.zapped;
        self.faults.with_alarms(|alarms| alarms.zap(address, zapped));
    }

    /// EIO where it does not decode a region; I/O ports and config space are always reached.
    pub(super) fn reaches(&self, region: u32) -> io::Result<()> {
        match self.is_memory(region) && !self.decodes_memory()? {
            true => Err(errno(libc::EIO)),
            false => Ok(()),
        }
    }

    /// After whatever may have changed it: mappings fault, or do so no more.
    pub(super) fn zap(&self) -> io::Result<()> {
        let zapped = !self.decodes_memory()?;
        let mut mmaps = lock(&self.mmaps);
        if mmaps.zapped != zapped {
            mmaps.zapped = zapped;
            self.faults.with_alarms(|alarms| {
                for address in mmaps.addresses.values() {
                    alarms.zap(*address, zapped);
                }
            });
        }
        Ok(())
    }

    fn is_memory(&self, region: u32) -> bool {
        let register =
            u16::try_from(region).ok().map(|index| BAR0.saturating_add(index.saturating_mul(4)));
        let is_io = |register: u16| {
            self.power_on.get(usize::from(register)).is_some_and(|low| low & 1 != 0)
        };
        match region {
            ..VFIO_PCI_ROM_REGION_INDEX => !register.is_some_and(is_io),
            VFIO_PCI_ROM_REGION_INDEX => true,
            _ => false,
        }
    }

    /// Memory Space is enabled, and it is not in D3hot. A virtual function has no bit of its own for the first.
    fn decodes_memory(&self) -> io::Result<bool> {
        let register = |offset: u16| {
            let mut data = [0; 2];
            let read = self.peek(VFIO_PCI_CONFIG_REGION_INDEX, offset.into(), &mut data);
            read.map(|()| u16::from_le_bytes(data))
        };
        let memory = Command::MEMORY.bits();
        let is_virtual = self
            .zeros
            .iter()
            .any(|(offset, bits)| *offset == u64::from(COMMAND) && u16::from(*bits) & memory != 0);
        let state = self.power_control().map_or(Ok(0), register)? & PM_STATE;
        Ok((is_virtual || register(COMMAND)? & memory != 0) && state != PM_STATE)
    }

    fn power_control(&self) -> Option<u16> {
        let bytes = |offset: u16| self.power_on.get(usize::from(offset)..).unwrap_or_default();
        let word =
            |offset: u16| bytes(offset).first_chunk().map_or(0, |it| u16::from_le_bytes(*it));
        let all = caps::standard(*bytes(CAPABILITIES).first()?, word).found;
        let power = all.iter().find(|capability| capability.id == cap::PM)?;
        Some(power.offset.saturating_add(PM_CONTROL))
    }
}
