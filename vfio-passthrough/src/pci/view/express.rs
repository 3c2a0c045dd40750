//! The PCI Express capability: a function is shown as integrated in the root complex.

use std::io;
use std::ops::Range;

use super::View;
use crate::pci::config::ResetBit;
use crate::pci::regs::*;

/// The FLR bits of PCI Express, relative to its capability.
const RESET: ResetBit = ResetBit {
    initiate: (EXPRESS_CONTROL + 1, EXPRESS_FLR),
    capable: (EXPRESS_CAPABLE, EXPRESS_FLR_CAPABLE),
};

impl View<'_> {
    /// Presents a function as a Root Complex Integrated Endpoint (PCIe 1.3.2.3), since the guest
    /// has no port above it. Such an endpoint has no link and no slot: their registers are zero
    /// (PCIe 7.5.3). A port or a reserved type contradicts the header, which is not a bridge's.
    /// Returns the FLR bits.
    pub(super) fn express(&mut self, offset: u16, end: u16) -> io::Result<Option<ResetBit>> {
        let flags = u16::from_le_bytes(self.read_array(offset.saturating_add(EXPRESS_FLAGS))?);
        let at = |register: u16| offset.saturating_add(register).min(end);
        // A guest uses the second device registers of version 2, whatever follows the capability.
        let has_second = offset.saturating_add(EXPRESS_CONTROL_2).saturating_add(4) <= end;
        // Versions 0 and above 2 are reserved (PCIe 7.5.3.2).
        let own = (flags & EXPRESS_VERSION).clamp(1, 2);
        let version = if has_second { own } else { 1 };
        let shown = version | EXPRESS_INTEGRATED;
        self.emulate(at(EXPRESS_FLAGS), &shown.to_le_bytes());
        self.emulate_bits(at(EXPRESS_DEVICE), &[EXPRESS_PHANTOM], &[0]);
        self.withhold(at(EXPRESS_CONTROL), EXPRESS_PHANTOM_ENABLE)?;
        if flags & EXPRESS_TYPE != EXPRESS_INTEGRATED {
            let registers: &[Range<u16>] =
                if own == 1 { &[EXPRESS_LINK_1] } else { &[EXPRESS_LINK, EXPRESS_LINK_2] };
            for range in registers {
                self.hide(at(range.start), at(range.end));
            }
        }
        if version == 2 {
            self.emulate_bits(at(EXPRESS_CAPABLE_2), &EXPRESS_NEEDS_PORT.to_le_bytes(), &[0; 4]);
            self.withhold(at(EXPRESS_CONTROL_2), EXPRESS_NEEDS_PORT_ENABLE)?;
        }
        self.reset_bit(offset, RESET)
    }

    /// Shows bits of a register that the host uses as zero. They stay as the host set them.
    fn withhold(&mut self, offset: u16, bits: u16) -> io::Result<()> {
        let own = u16::from_le_bytes(self.read_array(offset)?) & bits;
        self.emulate_bits(offset, &bits.to_le_bytes(), &[0; 2]);
        let bytes = self.bytes.iter_mut().skip(usize::from(offset));
        bytes.zip(own.to_le_bytes()).for_each(|(byte, own)| byte.withheld |= own);
        Ok(())
    }
}
