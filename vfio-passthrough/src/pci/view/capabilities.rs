//! Capabilities: decides which ones the guest sees, and which of their bits are emulated.

use std::io;
use std::ops::Range;

use super::View;
use crate::pci::caps::{self, Capability, ExtendedCapability, Walk};
use crate::pci::config::{Offsets, ResetBit};
use crate::pci::msi::{self, MsiLayout};
use crate::pci::msix::MsixLayout;
use crate::pci::regs::*;

/// Extended capabilities that depend on the host's topology, or that would change the sizes of
/// BARs.
const HIDDEN_EXTENDED: [u16; 7] =
    [ext::ARI, ext::ATS, ext::SRIOV, ext::PRI, ext::REBAR, ext::PASID, ext::VF_REBAR];
/// Enhanced allocation describes BARs at fixed host addresses, which a guest cannot use.
const HIDDEN_STANDARD: [u8; 1] = [cap::EA];
/// A function has at most one of each (PCI 3.0, 6.8.1, 6.8.2; PCIe 7.5.2, 7.5.3). A second one
/// would not be emulated, so it is hidden.
const AT_MOST_ONE: [u8; 5] = [cap::PM, cap::MSI, cap::EXPRESS, cap::MSIX, cap::AF];

/// The FLR bits of PCI Express, relative to its capability.
const EXPRESS_RESET: ResetBit = ResetBit {
    initiate: (EXPRESS_CONTROL + 1, EXPRESS_FLR),
    capable: (EXPRESS_CAPABLE, EXPRESS_FLR_CAPABLE),
};
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
            let fits = self.size_of(capability)? <= end.saturating_sub(capability.offset);
            if !fits {
                log::warn!(
                    "{}: capability {:#x} at {:#x} is hidden: it overlaps the one at {end:#x}",
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

    /// The smallest size in bytes of a capability with emulated registers; 2 for others.
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

    /// Presents an endpoint as a Root Complex Integrated Endpoint (PCIe 1.3.2.3), since the guest
    /// has no port above it. Such an endpoint has no link and no slot: their registers are zero
    /// (PCIe 7.5.3). Returns the FLR bits.
    fn express(&mut self, offset: u16, end: u16) -> io::Result<Option<ResetBit>> {
        let flags = u16::from_le_bytes(self.read_array(offset.saturating_add(EXPRESS_FLAGS))?);
        if matches!(flags & EXPRESS_TYPE, EXPRESS_ENDPOINT | EXPRESS_LEGACY_ENDPOINT) {
            let [mask, _] = EXPRESS_TYPE.to_le_bytes();
            let [integrated, _] = EXPRESS_INTEGRATED.to_le_bytes();
            self.emulate_bits(offset.saturating_add(EXPRESS_FLAGS), &[mask], &[integrated]);
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

    /// Emulates the bit that initiates an FLR: it reads as zero (PCIe 7.5.3.4), and the write is
    /// not forwarded. Returns `None` if the function does not support FLR. `bits` are relative to
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
            // The first header is emulated, as all headers are: Linux reads it about 30 times.
            self.emulate(CONVENTIONAL_SIZE, &head);
        }
        let is_hidden = |capability: &&ExtendedCapability| HIDDEN_EXTENDED.contains(&capability.id);
        for hidden in all.iter().filter(is_hidden) {
            let next =
                all.iter().map(|other| other.offset).filter(|other| *other > hidden.offset).min();
            self.hide(hidden.offset, next.unwrap_or(EXTENDED_SIZE));
        }
        let shown: Vec<_> = all.iter().filter(|capability| !is_hidden(capability)).collect();
        // The list must start at 0x100: a hidden first capability becomes a null capability.
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

    /// Emulates all registers of MSI. The layout is that of the device's capability.
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
        // A message is a DWORD: the lower two bits of its address are reserved (PCI 3.0, 6.8.1.4).
        self.writable(at(MsiLayout::ADDRESS), &(!0b11_u32).to_le_bytes());
        self.writable(at(layout.data()), &[0xff; 2]);
        for register in layout.upper().into_iter().chain(layout.mask()) {
            self.writable(at(register), &[0xff; 4]);
        }
        Ok(layout)
    }

    /// Emulates message control, and the table and PBA registers of MSI-X.
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
                "{}: the MSI-X capability at {offset:#x} names a BAR that does not exist: MSI-X \
                 will not work",
                self.address
            );
        }
        Ok(layout)
    }

    /// Runs a walk, and returns an error if one of its reads failed.
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
