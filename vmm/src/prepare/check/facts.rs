//! Parses the files of a device: BARs and interrupts. Pure functions from text and bytes to values;
//! invalid input is ignored.

use resources::{BarRequest, BarSpace};
use vfio_passthrough::pci::caps;
use vfio_passthrough::pci::regs::cap;

use super::super::tree::hex;

// Resource flags (linux/ioport.h).
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_MEM_64: u64 = 0x10_0000;

/// The number of BARs of a type 0 header; further lines are the ROM and bridge windows.
const BARS: usize = 6;

/// Parses a device's `resource` file: a line per BAR, with first address, last address and flags.
pub(crate) fn bars(function: &str, text: &str) -> Vec<BarRequest> {
    let bar = |(index, line): (usize, &str)| {
        let mut numbers = line.split_whitespace().map(hex);
        let (first, last, flags) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let size = last.checked_sub(first)?.checked_add(1)?;
        let space = match flags {
            _ if flags & IORESOURCE_IO != 0 => BarSpace::Io,
            _ if flags & IORESOURCE_MEM == 0 => return None,
            _ if flags & IORESOURCE_MEM_64 != 0 => BarSpace::Memory64,
            _ => BarSpace::Memory32,
        };
        Some(BarRequest {
            function: function.to_owned(),
            index: u8::try_from(index).ok()?,
            size,
            space,
        })
        .filter(|bar| bar.size.is_power_of_two())
    };
    text.lines().take(BARS).enumerate().filter_map(bar).collect()
}

/// The interrupts of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interrupts {
    /// The number of MSI-X vectors.
    pub(crate) msix: Option<u16>,
    /// The number of MSI vectors.
    pub(crate) msi: Option<u16>,
    /// Whether the function has an interrupt pin.
    pub(crate) pin: bool,
}

impl Interrupts {
    /// The maximum number of vectors that a guest can enable.
    pub(crate) fn most(self) -> u64 {
        let messages = self.msix.max(self.msi).unwrap_or_default();
        messages.max(u16::from(self.pin)).into()
    }
}

/// Status register and its capability-list bit (PCI 3.0, 6.2.3).
const STATUS: u16 = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Capabilities Pointer (PCI 3.0, 6.7).
const CAPABILITIES: usize = 0x34;
/// Interrupt Pin (PCI 3.0, 6.2.4).
const INTERRUPT_PIN: usize = 0x3d;

/// Parses the interrupts in config space; `None` if only the header is readable, as for a user
/// other than root.
pub(crate) fn interrupts(config: &[u8]) -> Option<Interrupts> {
    if config.len() < 256 {
        return None;
    }
    let byte = |offset: usize| config.get(offset).copied().unwrap_or(u8::MAX);
    let word = |offset: u16| {
        let offset = usize::from(offset);
        u16::from_le_bytes([byte(offset), byte(offset.saturating_add(1))])
    };
    let mut interrupts =
        Interrupts { pin: (1..=4).contains(&byte(INTERRUPT_PIN)), ..Interrupts::default() };
    if word(STATUS) & STATUS_CAPABILITIES == 0 {
        return Some(interrupts);
    }
    for capability in caps::standard(byte(CAPABILITIES), word).found {
        // Message Control follows the header in both capabilities.
        let control = word(capability.offset.saturating_add(2));
        match capability.id {
            // Table Size is the number minus one (PCI 3.0, 6.8.2.3).
            cap::MSIX => interrupts.msix = Some((control & 0x7ff).saturating_add(1)),
            // Multiple Message Capable is an exponent of at most 5 (PCI 3.0, 6.8.1.3).
            cap::MSI => interrupts.msi = Some(1 << ((control >> 1) & 0b111).min(5)),
            _ => {}
        }
    }
    Some(interrupts)
}

/// The address bits that an Intel IOMMU translates. MGAW of its capability register is one less
/// (VT-d 4.1, 11.4.2).
pub(crate) fn translated_bits(capability: u64) -> u8 {
    let [_, _, mgaw, ..] = capability.to_le_bytes();
    (mgaw & 0x3f).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_bars_of_the_kernels_resources() {
        let text = "\
0x00000000fe800000 0x00000000fe803fff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000c000 0x000000000000c01f 0x0000000000040101
0x00000000fe900000 0x00000000fe900fff 0x0000000000040200
0x00000000fe9fffff 0x00000000fe900000 0x0000000000040200
0x0000000000000000 0xffffffffffffffff 0x0000000000040200
0x00000000fe900000 0x00000000fe97ffff 0x0000000000046200
";
        let found = bars("d", text);
        let found: Vec<_> = found.iter().map(|bar| (bar.index, bar.size, bar.space)).collect();
        let expected = [
            (0, 0x4000, BarSpace::Memory64),
            (2, 0x20, BarSpace::Io),
            (3, 0x1000, BarSpace::Memory32),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn ignores_invalid_resources() {
        let garbage = [
            "",
            "\n\n\n",
            "0x0",
            "x y z",
            "0x1000 0x2fff",
            "0x1000 0x2fff 0x200",
            "0xffffffffffffffff1 0x0 0x200",
            "\u{fffd} 0x1fff 0x200",
        ];
        garbage.iter().for_each(|text| {
            assert_eq!(bars("d", &text.replace("0x2fff", "0x3ffe")), [], "{text:?}")
        });
    }

    /// Config space with these bytes.
    fn config(bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut config = vec![0; 256];
        bytes.iter().for_each(|(offset, byte)| config[*offset] = *byte);
        config
    }

    #[test]
    fn parses_interrupts_of_the_capabilities() {
        let list = (0x06, 0x10);
        let cases = [
            // MSI-X with 65 vectors, after power management.
            (
                config(&[list, (0x34, 0x40), (0x40, 0x01), (0x41, 0x60), (0x60, 0x11), (0x62, 64)]),
                (Some(65), None, false),
            ),
            // MSI with 8 vectors, and a pin.
            (
                config(&[list, (0x34, 0x50), (0x50, 0x05), (0x52, 0b0110), (0x3d, 1)]),
                (None, Some(8), true),
            ),
            // A list without the status bit.
            (config(&[(0x34, 0x50), (0x50, 0x05), (0x3d, 4)]), (None, None, true)),
            // A loop, and a reserved vector count.
            (
                config(&[
                    list,
                    (0x34, 0x50),
                    (0x50, 0x05),
                    (0x51, 0x50),
                    (0x52, 0b1110),
                    (0x3d, 5),
                ]),
                (None, Some(32), false),
            ),
            (vec![0xff; 256], (None, None, false)),
        ];
        for (config, (msix, msi, pin)) in cases {
            assert_eq!(interrupts(&config), Some(Interrupts { msix, msi, pin }));
        }
        assert_eq!(interrupts(&[0; 64]), None, "only root can read the rest");
        assert_eq!(interrupts(&[]), None);
    }

    #[test]
    fn parses_the_translated_bits_of_an_iommus_capability() {
        // QEMU's intel-iommu with aw-bits=39 and 48, and the limits of the field.
        let cases =
            [(0x00d2_008c_2226_0286, 39), (0x00d2_008c_222f_0686, 48), (u64::MAX, 64), (0, 1)];
        cases
            .into_iter()
            .for_each(|(capability, bits)| assert_eq!(translated_bits(capability), bits));
    }
}
