//! MSI and MSI-X: the layouts that are shown, and their emulated registers.

use std::io;

use super::View;
use crate::address::{BarIndex, ByteRange};
use crate::pci::bar::Space;
use crate::pci::msi::{self, MsiLayout};
use crate::pci::msix::MsixLayout;
use crate::pci::regs::*;

impl View<'_> {
    /// The layout of MSI, with as many vectors as the device and VFIO both have; or the reason why
    /// there is none.
    pub(super) fn msi_layout(&mut self, offset: u16) -> io::Result<Result<MsiLayout, String>> {
        let control =
            u16::from_le_bytes(self.read_array(offset.saturating_add(MsiLayout::CONTROL))?);
        let layout = MsiLayout::new(control).limited_to(self.host.msi);
        Ok(layout.ok_or_else(|| "VFIO has no MSI vectors of the device".to_owned()))
    }

    /// Emulates all registers of MSI. The reserved bits of message control are zero, and so is
    /// Extended Message Data: KVM's message has 16 bits of data (PCIe 7.7.1).
    pub(super) fn msi(&mut self, offset: u16) -> io::Result<Option<MsiLayout>> {
        let Ok(layout) = self.msi_layout(offset)? else {
            return Ok(None);
        };
        let [low, high] = self.read_array(offset.saturating_add(MsiLayout::CONTROL))?;
        let own = MsiLayout::new(u16::from_le_bytes([low, high])).vectors();
        self.note_fewer("MSI", own, layout.vectors());
        let at = |register: u16| offset.saturating_add(register);
        // The last register of a form without mask bits is half a DWORD. No capability starts in
        // the other half, where Extended Message Data would be.
        let body = layout.size().next_multiple_of(4).saturating_sub(MsiLayout::ADDRESS);
        self.emulate(at(MsiLayout::CONTROL), &layout.control().to_le_bytes());
        self.emulate(at(MsiLayout::ADDRESS), &vec![0; usize::from(body)]);
        self.writable(at(MsiLayout::CONTROL), &(msi::ENABLE | msi::MULTIPLE_ENABLE).to_le_bytes());
        // A message is a DWORD: the lower two bits of its address are reserved (PCI 3.0, 6.8.1.4).
        self.writable(at(MsiLayout::ADDRESS), &(!0b11_u32).to_le_bytes());
        self.writable(at(layout.data()), &[0xff; 2]);
        for register in layout.upper().into_iter().chain(layout.mask()) {
            self.writable(at(register), &[0xff; 4]);
        }
        Ok(Some(layout))
    }

    /// The layout of MSI-X, with as many vectors as the device and VFIO both have; or the reason
    /// why it cannot be served.
    pub(super) fn msix_layout(&mut self, offset: u16) -> io::Result<Result<MsixLayout, String>> {
        let control = u16::from_le_bytes(self.read_array(offset.saturating_add(MSIX_CONTROL))?);
        let table = u32::from_le_bytes(self.read_array(offset.saturating_add(MSIX_TABLE))?);
        let pba = u32::from_le_bytes(self.read_array(offset.saturating_add(MSIX_PBA))?);
        let memory = |bar| self.memory_of(bar);
        Ok(MsixLayout::served((control, table, pba), self.host.msix, memory))
    }

    /// Emulates message control, and the table and PBA registers of MSI-X.
    pub(super) fn msix(&mut self, offset: u16) -> io::Result<Option<MsixLayout>> {
        let Ok(layout) = self.msix_layout(offset)? else {
            return Ok(None);
        };
        let at = |register: u16| offset.saturating_add(register);
        let control = u16::from_le_bytes(self.read_array(at(MSIX_CONTROL))?);
        self.note_fewer("MSI-X", (control & MSIX_SIZE).saturating_add(1), layout.vectors);
        self.emulate(at(MSIX_CONTROL), &layout.vectors.saturating_sub(1).to_le_bytes());
        self.writable(at(MSIX_CONTROL), &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
        self.emulate(at(MSIX_TABLE), &place_of(layout.table_bar, layout.table));
        self.emulate(at(MSIX_PBA), &place_of(layout.pba_bar, layout.pba));
        Ok(Some(layout))
    }

    /// Logs that the guest sees fewer vectors than the device has.
    fn note_fewer(&self, name: &str, own: u16, shown: u16) {
        if shown < own {
            let address = self.address;
            log::warn!(
                "{address}: the device has {own} {name} vectors, and VFIO fewer: {shown} are shown"
            );
        }
    }

    /// The size of a memory BAR's region in bytes: 0 if the function has no such BAR.
    fn memory_of(&self, index: BarIndex) -> u64 {
        let is_own =
            self.bars.iter().any(|bar| bar.index == index && bar.kind.space() == Space::Memory);
        let region = self.host.regions.get(usize::from(index.number()));
        region.copied().filter(|_| is_own).unwrap_or(0)
    }
}

/// The register that names a BAR and a place in it (PCI 3.0, 6.8.2.4).
fn place_of(bar: BarIndex, range: ByteRange) -> [u8; 4] {
    (u32::try_from(range.start()).unwrap_or(0) | u32::from(bar.number())).to_le_bytes()
}
