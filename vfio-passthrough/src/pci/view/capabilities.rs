//! Capabilities: decides which ones the guest sees, and which of their bits are emulated.

use std::io;

use super::View;
use crate::pci::capability_table::{self, Kind};
use crate::pci::caps::{self, Capability, Walk};
use crate::pci::config::{Offsets, ResetBit};
use crate::pci::msi::MsiLayout;
use crate::pci::regs::*;

/// A function has at most one of each (PCI 3.0, 6.8.1, 6.8.2; PCIe 7.5.2, 7.5.3). A second one
/// would not be emulated, so it is hidden.
const AT_MOST_ONE: [u8; 5] = [cap::PM, cap::MSI, cap::EXPRESS, cap::MSIX, cap::AF];

/// The FLR bits of conventional PCI, relative to the Advanced Features capability.
const AF_RESET: ResetBit =
    ResetBit { initiate: (AF_CONTROL, AF_FLR), capable: (AF_CAPABLE, AF_FLR_CAPABLE) };

/// The largest possible end of the capability at `offset`: the next capability.
fn end_of(all: &[Capability], offset: u16) -> u16 {
    let later = all.iter().map(|other| other.offset).filter(|other| *other > offset);
    later.min().unwrap_or(CONVENTIONAL_SIZE)
}

impl View<'_> {
    pub(super) fn capabilities(&mut self) -> io::Result<Offsets> {
        let [first] = self.read_array(CAPABILITIES)?;
        let status = u16::from_le_bytes(self.read_array(STATUS)?);
        let first = if status & STATUS_CAPABILITIES != 0 { first } else { 0 };
        let all =
            self.walk(|view, failed| caps::standard(first, |offset| view.word(offset, failed)))?;
        let mut shown: Vec<&Capability> = Vec::new();
        for capability in &all {
            let end = end_of(&all, capability.offset);
            let known = shown.iter().any(|known| known.id == capability.id);
            let once_more = known && AT_MOST_ONE.contains(&capability.id);
            if !once_more && self.is_shown(capability, end)? {
                self.limit_length(capability, end)?;
                shown.push(capability);
            } else {
                self.hide(capability.offset, end);
            }
        }
        self.link_standard(&shown);
        let find = |id| {
            shown.iter().find(|capability| capability.id == id).map(|capability| capability.offset)
        };
        let express = find(cap::EXPRESS);
        Ok(Offsets {
            msi: find(cap::MSI),
            msix: find(cap::MSIX),
            power: find(cap::PM),
            express,
            resets: [
                express
                    .map(|offset| self.express(offset, end_of(&all, offset)))
                    .transpose()?
                    .flatten(),
                find(cap::AF).map(|offset| self.reset_bit(offset, AF_RESET)).transpose()?.flatten(),
            ],
        })
    }

    /// Whether the guest sees this capability, which ends at `end` at the latest. Logs a line if it
    /// is hidden because its registers contradict themselves or VFIO.
    fn is_shown(&mut self, capability: &Capability, end: u16) -> io::Result<bool> {
        if capability_table::standard(capability.id) == Kind::Hidden {
            return Ok(false);
        }
        let fits = self.size_of(capability)? <= end.saturating_sub(capability.offset);
        let reason = match fits {
            true => self.contradiction(capability)?,
            false => Some(format!("it overlaps the one at {end:#x}")),
        };
        if let Some(reason) = &reason {
            let (address, Capability { id, offset }) = (self.address, capability);
            log::warn!("{address}: capability {id:#x} at {offset:#x} is hidden: {reason}");
        }
        Ok(reason.is_none())
    }

    /// Ends a vendor-specific capability where the next one begins: its length is a byte, which the
    /// device can have wrong.
    fn limit_length(&mut self, capability: &Capability, end: u16) -> io::Result<()> {
        let room = u8::try_from(end.saturating_sub(capability.offset)).unwrap_or(u8::MAX);
        if capability.id == cap::VENDOR {
            let register = capability.offset.saturating_add(VENDOR_LENGTH);
            let [length] = self.read_array(register)?;
            if length > room {
                self.emulate(register, &[room]);
            }
        }
        Ok(())
    }

    /// The reason why the registers of a capability cannot be served.
    fn contradiction(&mut self, capability: &Capability) -> io::Result<Option<String>> {
        Ok(match capability.id {
            cap::PM => self.power_management(capability.offset)?,
            cap::MSI => self.msi_layout(capability.offset)?.err(),
            cap::MSIX => self.msix_layout(capability.offset)?.err(),
            _ => None,
        })
    }

    /// Versions 1 to 3 are known, and have the same registers (PM 3.2.3). 0 is shown as 1. Of a
    /// later version the host's kernel uses nothing either (pci_pm_init).
    fn power_management(&mut self, offset: u16) -> io::Result<Option<String>> {
        let register = offset.saturating_add(PM_CAPABILITIES);
        let [low] = self.read_array(register)?;
        let version = low & PM_VERSION;
        if version == 0 {
            self.emulate_bits(register, &[PM_VERSION], &[1]);
        }
        Ok((version > PM_LAST_VERSION).then(|| format!("its version {version} is reserved")))
    }

    /// The smallest size in bytes of a capability that is shown.
    fn size_of(&mut self, capability: &Capability) -> io::Result<u16> {
        Ok(match capability.id {
            cap::MSI => {
                let control =
                    self.read_array(capability.offset.saturating_add(MsiLayout::CONTROL))?;
                MsiLayout::new(u16::from_le_bytes(control)).size()
            }
            cap::MSIX => MSIX_PBA.saturating_add(4),
            cap::EXPRESS => EXPRESS_CONTROL.saturating_add(4),
            cap::PM | cap::AF | cap::VPD | cap::PCI_X | cap::SATA => 8,
            _ => 4,
        })
    }

    /// Links the shown capabilities to a list.
    fn link_standard(&mut self, shown: &[&Capability]) {
        let offset_of = |capability: Option<&&Capability>| {
            capability.and_then(|capability| u8::try_from(capability.offset).ok()).unwrap_or(0)
        };
        self.emulate(CAPABILITIES, &[offset_of(shown.first())]);
        let [bit, _] = STATUS_CAPABILITIES.to_le_bytes();
        self.emulate_bits(STATUS, &[bit], &[if shown.is_empty() { 0 } else { bit }]);
        for (index, capability) in shown.iter().enumerate() {
            let next = offset_of(shown.get(index.saturating_add(1)));
            self.emulate(capability.offset, &[capability.id, next]);
        }
    }

    /// Emulates the bit that initiates an FLR: it reads as zero (PCIe 7.5.3.4), and the write is
    /// not forwarded. Returns `None` if the function does not support FLR. `bits` are relative to
    /// the capability.
    pub(super) fn reset_bit(
        &mut self,
        capability: u16,
        bits: ResetBit,
    ) -> io::Result<Option<ResetBit>> {
        let at = |(register, bit): (u16, u8)| (capability.saturating_add(register), bit);
        let (initiate, capable) = (at(bits.initiate), at(bits.capable));
        self.emulate_bits(initiate.0, &[initiate.1], &[0]);
        let [capabilities] = self.read_array(capable.0)?;
        Ok((capabilities & capable.1 != 0).then_some(ResetBit { initiate, capable }))
    }

    /// Runs a walk, and returns an error if one of its reads failed.
    pub(super) fn walk<T>(
        &mut self,
        walk: impl FnOnce(&mut Self, &mut Option<io::Error>) -> Walk<T>,
    ) -> io::Result<Vec<T>> {
        let mut failed = None;
        let walk = walk(self, &mut failed);
        if let Some(cut) = walk.cut {
            log::warn!("{}: {cut}", self.address);
        }
        failed.map_or(Ok(walk.found), Err)
    }

    fn word(&mut self, offset: u16, failed: &mut Option<io::Error>) -> u16 {
        u16::from_le_bytes(self.read_array(offset).unwrap_or_else(|error| {
            *failed = Some(error);
            [0; 2]
        }))
    }

    pub(super) fn long(&mut self, offset: u16, failed: &mut Option<io::Error>) -> u32 {
        u32::from_le_bytes(self.read_array(offset).unwrap_or_else(|error| {
            *failed = Some(error);
            [0; 4]
        }))
    }
}
