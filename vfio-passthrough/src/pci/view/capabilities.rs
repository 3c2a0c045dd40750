//! Capabilities: which ones the guest sees, and what of them is emulated.

use std::io;
use std::ops::Range;

use super::View;
use crate::pci::caps::{self, Capability, ExtendedCapability, Walk};
use crate::pci::config::{Offsets, ResetBit};
use crate::pci::msi::{self, MsiLayout};
use crate::pci::msix::MsixLayout;
use crate::pci::regs::*;

/// Extended capabilities that only make sense with the host's topology, or that would change what
/// others rely on.
const HIDDEN_EXTENDED: [u16; 7] =
    [ext::ARI, ext::ATS, ext::SRIOV, ext::PRI, ext::REBAR, ext::PASID, ext::VF_REBAR];
/// BARs at fixed addresses cannot be in a guest.
const HIDDEN_STANDARD: [u8; 1] = [cap::EA];
/// A function has one of each at most (PCI 6.8.1, 6.8.2; PCIe 7.5.2, 7.5.3). One more would not be
/// emulated.
const AT_MOST_ONE: [u8; 5] = [cap::PM, cap::MSI, cap::EXPRESS, cap::MSIX, cap::AF];

/// FLR of PCI Express, relative to its capability.
const EXPRESS_RESET: ResetBit = ResetBit {
    initiate: (EXPRESS_CONTROL + 1, EXPRESS_FLR),
    capable: (EXPRESS_CAPABLE, EXPRESS_FLR_CAPABLE),
};
/// FLR of conventional PCI, relative to the capability of advanced features.
const AF_RESET: ResetBit =
    ResetBit { initiate: (AF_CONTROL, AF_FLR), capable: (AF_CAPABLE, AF_FLR_CAPABLE) };

/// Where the capability at `offset` ends at most: where the next one is.
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
            let fits = self.size_of(capability)? <= end.saturating_sub(capability.offset);
            if !fits {
                log::warn!(
                    "{}: capability {:#x} at {:#x} is hidden: it runs into {end:#x}",
                    self.address,
                    capability.id,
                    capability.offset
                );
            }
            let known = shown.iter().any(|known| known.id == capability.id);
            let once_more = known && AT_MOST_ONE.contains(&capability.id);
            if fits && !once_more && !HIDDEN_STANDARD.contains(&capability.id) {
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
            resets: [
                express
                    .map(|offset| self.express(offset, end_of(&all, offset)))
                    .transpose()?
                    .flatten(),
                find(cap::AF).map(|offset| self.reset_bit(offset, AF_RESET)).transpose()?.flatten(),
            ],
        })
    }

    /// How many bytes a capability has at least, of those whose registers are emulated.
    fn size_of(&mut self, capability: &Capability) -> io::Result<u16> {
        Ok(match capability.id {
            cap::MSI => {
                let control =
                    self.read_array(capability.offset.saturating_add(MsiLayout::CONTROL))?;
                MsiLayout::new(u16::from_le_bytes(control)).size()
            }
            cap::MSIX => MSIX_PBA.saturating_add(4),
            cap::EXPRESS => EXPRESS_CONTROL.saturating_add(4),
            cap::PM | cap::AF => 8,
            _ => 2,
        })
    }

    /// Makes the list lead through the shown capabilities only.
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

    /// An endpoint behind no port is one that is integrated in the root complex, as real ones on
    /// bus 0 are (PCIe 1.3.2.3). Such a one has no link and no slot: their registers are zero (PCIe
    /// 7.5.3).
    fn express(&mut self, offset: u16, end: u16) -> io::Result<Option<ResetBit>> {
        let flags = u16::from_le_bytes(self.read_array(offset.saturating_add(EXPRESS_FLAGS))?);
        if matches!(flags & EXPRESS_TYPE, EXPRESS_ENDPOINT | EXPRESS_LEGACY_ENDPOINT) {
            let [mask, _] = EXPRESS_TYPE.to_le_bytes();
            let [kind, _] = EXPRESS_INTEGRATED.to_le_bytes();
            self.emulate_bits(offset.saturating_add(EXPRESS_FLAGS), &[mask], &[kind]);
            let registers: &[Range<u16>] = match flags & EXPRESS_VERSION {
                0 | 1 => &[EXPRESS_LINK_1],
                _ => &[EXPRESS_LINK, EXPRESS_LINK_2],
            };
            for range in registers {
                let at = |register: u16| offset.saturating_add(register).min(end);
                self.hide(at(range.start), at(range.end));
            }
        }
        self.reset_bit(offset, EXPRESS_RESET)
    }

    /// A function level reset is ours to do, and its bit reads as zero (PCIe 7.5.3.4); nothing
    /// where the function says that it has none. `bits` are as those of a [`ResetBit`], relative to
    /// the capability.
    fn reset_bit(&mut self, capability: u16, bits: ResetBit) -> io::Result<Option<ResetBit>> {
        let at = |(register, bit): (u16, u8)| (capability.saturating_add(register), bit);
        let (initiate, capable) = (at(bits.initiate), at(bits.capable));
        self.emulate_bits(initiate.0, &[initiate.1], &[0]);
        let [capabilities] = self.read_array(capable.0)?;
        Ok((capabilities & capable.1 != 0).then_some(ResetBit { initiate, capable }))
    }

    pub(super) fn extended_capabilities(&mut self) -> io::Result<()> {
        let head: [u8; 4] = self.read_array(CONVENTIONAL_SIZE)?;
        let all = self.walk(|view, failed| {
            caps::extended(|offset| match offset {
                CONVENTIONAL_SIZE => u32::from_le_bytes(head),
                _ => view.long(offset, failed),
            })
        })?;
        if all.is_empty() {
            // The list's head is ours, as all heads are: Linux looks at it some 30 times.
            self.emulate(CONVENTIONAL_SIZE, &head);
        }
        let is_hidden = |capability: &&ExtendedCapability| HIDDEN_EXTENDED.contains(&capability.id);
        for hidden in all.iter().filter(is_hidden) {
            let next =
                all.iter().map(|other| other.offset).filter(|other| *other > hidden.offset).min();
            self.hide(hidden.offset, next.unwrap_or(EXTENDED_SIZE));
        }
        let shown: Vec<_> = all.iter().filter(|capability| !is_hidden(capability)).collect();
        // The list starts at 0x100 whatever is there: what is hidden becomes a link to the first
        // that is shown.
        let hidden_head = all.first().filter(is_hidden).map(|head| ExtendedCapability {
            id: ext::NULL,
            version: 0,
            ..*head
        });
        let list: Vec<&ExtendedCapability> = hidden_head.iter().chain(shown).collect();
        for (index, capability) in list.iter().enumerate() {
            let next = list.get(index.saturating_add(1)).map_or(0, |next| next.offset);
            let header = u32::from(capability.id)
                | u32::from(capability.version) << 16
                | u32::from(next) << 20;
            self.emulate(capability.offset, &header.to_le_bytes());
        }
        Ok(())
    }

    /// All registers of MSI; the capability's form is the device's.
    pub(super) fn msi(&mut self, offset: u16) -> io::Result<MsiLayout> {
        let control =
            u16::from_le_bytes(self.read_array(offset.saturating_add(MsiLayout::CONTROL))?);
        let control = control & !(msi::ENABLE | msi::MULTIPLE_ENABLE);
        let layout = MsiLayout::new(control);
        let at = |register: u16| offset.saturating_add(register);
        let body = layout.size().saturating_sub(MsiLayout::ADDRESS);
        self.emulate(at(MsiLayout::CONTROL), &control.to_le_bytes());
        self.emulate(at(MsiLayout::ADDRESS), &vec![0; usize::from(body)]);
        self.writable(at(MsiLayout::CONTROL), &(msi::ENABLE | msi::MULTIPLE_ENABLE).to_le_bytes());
        // A message is a dword: the lower two bits of its address are reserved (PCI 6.8.1.4).
        self.writable(at(MsiLayout::ADDRESS), &(!0b11_u32).to_le_bytes());
        self.writable(at(layout.data()), &[0xff; 2]);
        for register in layout.upper().into_iter().chain(layout.mask()) {
            self.writable(at(register), &[0xff; 4]);
        }
        Ok(layout)
    }

    /// Message control, table and PBA registers of MSI-X.
    pub(super) fn msix(&mut self, offset: u16) -> io::Result<Option<MsixLayout>> {
        let control =
            u16::from_le_bytes(self.read_array(offset.saturating_add(MSIX_CONTROL))?) & MSIX_SIZE;
        let table = u32::from_le_bytes(self.read_array(offset.saturating_add(MSIX_TABLE))?);
        let pba = u32::from_le_bytes(self.read_array(offset.saturating_add(MSIX_PBA))?);
        self.emulate(offset.saturating_add(MSIX_CONTROL), &control.to_le_bytes());
        self.writable(
            offset.saturating_add(MSIX_CONTROL),
            &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes(),
        );
        self.emulate(offset.saturating_add(MSIX_TABLE), &table.to_le_bytes());
        self.emulate(offset.saturating_add(MSIX_PBA), &pba.to_le_bytes());
        let layout = MsixLayout::new(control, table, pba);
        if layout.is_none() {
            log::warn!(
                "{}: the MSI-X capability at {offset:#x} names a BAR that cannot be: MSI-X will not work",
                self.address
            );
        }
        Ok(layout)
    }

    /// Runs a walk whose reads may fail, and gives the first failure.
    fn walk<T>(
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

    fn long(&mut self, offset: u16, failed: &mut Option<io::Error>) -> u32 {
        u32::from_le_bytes(self.read_array(offset).unwrap_or_else(|error| {
            *failed = Some(error);
            [0; 4]
        }))
    }
}
