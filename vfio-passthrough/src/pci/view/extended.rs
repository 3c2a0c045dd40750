//! Extended capabilities: decides which ones the guest sees.

use std::io;

use super::View;
use crate::pci::capability_table::{self, Kind};
use crate::pci::caps::{self, ExtendedCapability};
use crate::pci::regs::*;

/// The end of what belongs to the capability at `offset`: the next one.
fn end_of(all: &[ExtendedCapability], offset: u16) -> u16 {
    let later = all.iter().map(|other| other.offset).filter(|other| *other > offset);
    later.min().unwrap_or(EXTENDED_SIZE)
}

/// The smallest size in bytes of a capability that is shown.
fn size_of(id: u16) -> u16 {
    match id {
        ext::AER => 0x2c,
        ext::POWER_BUDGETING => 0x10,
        ext::VSEC => 8,
        _ => 0x0c,
    }
}

impl View<'_> {
    pub(super) fn extended_capabilities(&mut self) -> io::Result<()> {
        let head: [u8; 4] = self.read_array(CONVENTIONAL_SIZE)?;
        let all = self.walk(|view, failed| {
            caps::extended(|offset| match offset {
                CONVENTIONAL_SIZE => u32::from_le_bytes(head),
                _ => view.long(offset, failed),
            })
        })?;
        if all.is_empty() {
            // The first header is emulated, as all headers are: Linux reads it about 30 times.
            self.emulate(CONVENTIONAL_SIZE, &head);
        }
        let mut shown: Vec<ExtendedCapability> = Vec::new();
        for capability in &all {
            let end = end_of(&all, capability.offset);
            if self.is_extended_shown(capability, end)? {
                self.limit_extended_length(capability, end)?;
                shown.push(*capability);
            } else {
                self.hide(capability.offset, end);
            }
        }
        // The list must start at 0x100: a hidden first capability becomes a null capability.
        let head = all
            .first()
            .filter(|head| !shown.contains(head))
            .map(|head| ExtendedCapability { id: ext::NULL, version: 0, ..*head });
        self.link_extended(&head.into_iter().chain(shown).collect::<Vec<_>>());
        Ok(())
    }

    /// Links the capabilities to a list.
    fn link_extended(&mut self, list: &[ExtendedCapability]) {
        for (index, capability) in list.iter().enumerate() {
            let next = list.get(index.saturating_add(1)).map_or(0, |next| next.offset);
            // Only a null capability has version 0.
            let version = capability.version.max(u8::from(capability.id != ext::NULL));
            let header =
                u32::from(capability.id) | u32::from(version) << 16 | u32::from(next) << 20;
            self.emulate(capability.offset, &header.to_le_bytes());
        }
    }

    /// Whether the guest sees this extended capability, which ends at `end` at the latest. Logs a
    /// line if it is hidden because it has no room.
    fn is_extended_shown(&mut self, capability: &ExtendedCapability, end: u16) -> io::Result<bool> {
        let ExtendedCapability { id, offset, .. } = *capability;
        if capability_table::extended(id) == Kind::Hidden {
            return Ok(false);
        }
        if size_of(id) > end.saturating_sub(offset) {
            let address = self.address;
            log::warn!(
                "{address}: extended capability {id:#x} at {offset:#x} is hidden: it overlaps the \
                 one at {end:#x}"
            );
            return Ok(false);
        }
        if id == ext::DVSEC {
            let vendor = self.read_array(offset.saturating_add(DVSEC_VENDOR))?;
            // The memory and the caches of CXL are part of the host's memory.
            return Ok(u16::from_le_bytes(vendor) != CXL_VENDOR);
        }
        Ok(true)
    }

    /// Ends a vendor-specific capability where the next one begins: its length is a register, which
    /// the device can have wrong.
    fn limit_extended_length(
        &mut self,
        capability: &ExtendedCapability,
        end: u16,
    ) -> io::Result<()> {
        if [ext::VSEC, ext::DVSEC].contains(&capability.id) {
            let register = capability.offset.saturating_add(EXTENDED_LENGTH);
            let room = end.saturating_sub(capability.offset);
            let value = u16::from_le_bytes(self.read_array(register)?);
            if value >> 4 > room {
                self.emulate_bits(register, &[0xf0, 0xff], &(room << 4).to_le_bytes());
            }
        }
        Ok(())
    }
}
