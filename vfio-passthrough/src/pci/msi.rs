//! MSI, as the guest programs it (PCI 3.0, 6.8.1). Its registers are emulated bytes of config
//! space. This module interprets them.

use super::message::{MsiMessage, ProgrammedVectors};

/// Bit of message control: MSI is enabled.
pub const ENABLE: u16 = 1;
/// Bits of message control: the number of vectors that the guest enabled, as a power of two.
pub const MULTIPLE_ENABLE: u16 = 0b111 << 4;
/// Bits of message control: the number of vectors of the function, as a power of two.
const MULTIPLE_CAPABLE: u16 = 0b111 << 1;
/// Bit of message control: the message address has 64 bits.
const ADDRESS_64: u16 = 1 << 7;
/// Bit of message control: the capability has mask and pending bits.
const MASKING: u16 = 1 << 8;
/// The largest number of vectors, as a power of two (PCI 3.0, 6.8.1.3).
const MAX_POWER: u16 = 5;

/// The layout of the MSI capability. It depends on two bits of message control (PCI 3.0, 6.8.1,
/// figure 6-9). All offsets are relative to the capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiLayout {
    wide: bool,
    masking: bool,
    power: u16,
}

impl MsiLayout {
    /// The offset of message control.
    pub const CONTROL: u16 = 2;
    /// The offset of the message address.
    pub const ADDRESS: u16 = 4;

    /// The layout for a value of message control.
    pub fn new(control: u16) -> Self {
        let power = ((control & MULTIPLE_CAPABLE) >> 1).min(MAX_POWER);
        Self { wide: control & ADDRESS_64 != 0, masking: control & MASKING != 0, power }
    }

    /// The layout with at most `vectors` vectors, a power of two. `None` if there are none.
    pub fn limited_to(self, vectors: u32) -> Option<Self> {
        let power = u16::try_from(vectors.checked_ilog2()?).unwrap_or(MAX_POWER);
        Some(Self { power: self.power.min(power), ..self })
    }

    /// Message control of the layout, with MSI disabled. Extended Message Data is not served, so
    /// its bits are zero (PCIe 7.7.1.2).
    pub fn control(&self) -> u16 {
        let wide = if self.wide { ADDRESS_64 } else { 0 };
        let masking = if self.masking { MASKING } else { 0 };
        (self.power << 1) | wide | masking
    }

    /// The number of vectors of the function: 1 to 32.
    pub fn vectors(&self) -> u16 {
        1 << self.power
    }

    /// The offset of the message upper address, if the capability has it.
    pub fn upper(&self) -> Option<u16> {
        self.wide.then_some(8)
    }

    /// The offset of the message data.
    pub fn data(&self) -> u16 {
        if self.wide { 12 } else { 8 }
    }

    /// The offset of the mask bits, if the capability has them.
    pub fn mask(&self) -> Option<u16> {
        self.masking.then_some(if self.wide { 16 } else { 12 })
    }

    /// The offset of the pending bits, if the capability has them.
    pub fn pending(&self) -> Option<u16> {
        self.masking.then_some(if self.wide { 20 } else { 16 })
    }

    /// The size of the capability in bytes.
    pub fn size(&self) -> u16 {
        match (self.masking, self.wide) {
            (true, true) => 24,
            (true, false) => 20,
            (false, true) => 14,
            (false, false) => 10,
        }
    }

    /// The vectors that these register values program.
    pub fn programmed(&self, registers: MsiRegisters) -> ProgrammedVectors {
        let enabled = registers.control & ENABLE != 0;
        // The guest must not enable more vectors than the function has (PCI 3.0, 6.8.1.3).
        let power = ((registers.control & MULTIPLE_ENABLE) >> 4).min(self.power);
        let vectors = 1_u16 << power;
        let unmasked = |vector: &u16| enabled && registers.mask >> vector & 1 == 0;
        let message = |vector: u16| MsiMessage {
            address: registers.address & !0b11,
            // The lower bits of the data are the number of the vector (PCI 3.0, 6.8.1.6).
            data: u32::from(registers.data & !vectors.saturating_sub(1) | vector),
        };
        let unmasked =
            (0..vectors).filter(unmasked).map(|vector| (vector, message(vector))).collect();
        ProgrammedVectors { enabled, vectors, unmasked }
    }
}

/// The registers that the guest programmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiRegisters {
    /// Message control.
    pub control: u16,
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u16,
    /// Mask bits, one for each vector; 0 if the capability has none.
    pub mask: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_those_of_the_specification() {
        let cases = [
            (0x0000, (None, 8, None, None, 10)),
            (0x0080, (Some(8), 12, None, None, 14)),
            (0x0100, (None, 8, Some(12), Some(16), 20)),
            (0x0180, (Some(8), 12, Some(16), Some(20), 24)),
        ];
        for (control, expected) in cases {
            let it = MsiLayout::new(control);
            assert_eq!(
                (it.upper(), it.data(), it.mask(), it.pending(), it.size()),
                expected,
                "{control:#x}"
            );
        }
        assert_eq!(
            [0b0000, 0b0110, 0b1010, 0b1110].map(|control| MsiLayout::new(control).vectors()),
            [1, 8, 32, 32]
        );
    }

    #[test]
    fn message_control_has_the_vectors_of_both_and_no_reserved_bits() {
        let cases = [
            (0xffff, 32, Some(0x018a)),
            (0x060c, 64, Some(0x000a)),
            (0x018a, 5, Some(0x0184)),
            (0x0080, 32, Some(0x0080)),
            (0x018a, 0, None),
        ];
        for (control, vectors, expected) in cases {
            let layout = MsiLayout::new(control).limited_to(vectors);
            assert_eq!(layout.map(|layout| layout.control()), expected, "{control:#x}, {vectors}");
        }
    }

    #[test]
    fn limits_the_enabled_vectors_to_those_of_the_function() {
        let layout = MsiLayout::new(0b0110);
        for (control, vectors) in [(0x01, 1), (0x11, 2), (0x31, 8), (0x51, 8)] {
            let wanted = layout.programmed(MsiRegisters { control, ..MsiRegisters::default() });
            assert_eq!(
                (wanted.vectors, wanted.unmasked.len()),
                (vectors, usize::from(vectors)),
                "{control:#x}"
            );
        }
    }

    #[test]
    fn the_lower_bits_of_the_data_are_the_vector() {
        let registers =
            MsiRegisters { control: 0x21, address: 0xfee0_1003, data: 0x4047, mask: 0b0100 };
        let wanted = MsiLayout::new(0b0100).programmed(registers);
        let found: Vec<_> =
            wanted.unmasked.into_iter().map(|(vector, it)| (vector, it.address, it.data)).collect();
        assert_eq!(
            found,
            [(0, 0xfee0_1000, 0x4044), (1, 0xfee0_1000, 0x4045), (3, 0xfee0_1000, 0x4047)]
        );
    }

    #[test]
    fn a_disabled_msi_has_no_unmasked_vectors() {
        let wanted =
            MsiLayout::new(0).programmed(MsiRegisters { data: 0x40, ..MsiRegisters::default() });
        assert!(!wanted.enabled && wanted.unmasked.is_empty());
    }
}
