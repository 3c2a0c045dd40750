//! Base address registers as a guest sees them (PCI 6.2.5.1). Sizes come from VFIO's regions: the
//! hardware is never sized again.

use super::regs::{BAR_64, BAR_IO, BAR_PREFETCHABLE, BAR_TYPE, BAR0, ROM, ROM_ENABLE};
use crate::address::BarIndex;

/// The end of what a BAR is placed in: x86 has 52 bits of physical address at most (Intel SDM 3A,
/// 4.1.4; AMD APM 2, 5.3).
const ADDRESS_END: u64 = 1 << 52;

/// Which of the two address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Memory: guest physical addresses.
    Memory,
    /// I/O ports, 16 bits on x86.
    Io,
}

/// What kind of address a BAR takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; the next register is the upper half.
    Memory64,
    /// The expansion ROM: memory below 4 GiB that is decoded while its own enable bit is set, too.
    Rom,
}

impl BarKind {
    /// The address space that it decodes.
    pub fn space(self) -> Space {
        match self {
            Self::Io => Space::Io,
            Self::Memory32 | Self::Memory64 | Self::Rom => Space::Memory,
        }
    }
}

/// A BAR that the function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Which register; the lower one of a 64-bit BAR.
    pub index: BarIndex,
    /// What it takes.
    pub kind: BarKind,
    /// How many bytes it decodes: a power of two, at least 16 (memory) or 4 (I/O).
    pub size: u64,
    /// Memory without side effects of reads.
    pub prefetchable: bool,
}

impl Bar {
    /// The BAR whose register reads as `register` and whose region has `size` bytes; `None` where
    /// it is not there.
    pub fn new(index: BarIndex, register: u32, size: u64) -> Option<Self> {
        let kind = match register {
            _ if register & BAR_IO != 0 => BarKind::Io,
            _ if register & BAR_TYPE == BAR_64 && index.next().is_some() => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        let smallest = if kind == BarKind::Io { 4 } else { 16 };
        let size = size.checked_next_power_of_two().filter(|_| size != 0)?.max(smallest);
        let fits = kind == BarKind::Memory64 || u32::try_from(size).is_ok();
        let prefetchable = kind != BarKind::Io && register & BAR_PREFETCHABLE != 0;
        fits.then_some(Self { index, kind, size, prefetchable })
    }

    /// The expansion ROM whose region has `size` bytes; `None` where there is none.
    pub fn rom(size: u64) -> Option<Self> {
        // The lower 11 bits of the register are no address (PCI 6.2.5.2).
        let size = size.checked_next_power_of_two().filter(|_| size != 0)?.max(1 << 11);
        let fits = u32::try_from(size).is_ok();
        fits.then_some(Self { index: BarIndex::ROM, kind: BarKind::Rom, size, prefetchable: false })
    }

    /// Whether the BAR can be at an address: a multiple of its size, within what its register
    /// holds.
    pub fn fits(&self, address: u64) -> bool {
        let end = match self.kind {
            BarKind::Io => 1 << 16,
            BarKind::Memory32 | BarKind::Rom => 1 << 32,
            BarKind::Memory64 => ADDRESS_END,
        };
        let is_aligned = address & self.size.wrapping_sub(1) == 0;
        is_aligned && address.checked_add(self.size).is_some_and(|last| last <= end)
    }

    /// Where the register is in config space; its upper half, if it has one, is behind it.
    pub fn register(&self) -> u16 {
        match self.kind {
            BarKind::Rom => ROM,
            _ => BAR0.saturating_add(u16::from(self.index.number()).saturating_mul(4)),
        }
    }

    /// How many bytes the register has: 4, or 8 with an upper half.
    pub fn register_size(&self) -> usize {
        if self.kind == BarKind::Memory64 { 8 } else { 4 }
    }

    /// The bits of the register, upper half included, that say what it is and cannot be written.
    pub fn fixed_bits(&self) -> u64 {
        let prefetchable = if self.prefetchable { BAR_PREFETCHABLE } else { 0 };
        u64::from(match self.kind {
            BarKind::Io => BAR_IO,
            BarKind::Memory32 => prefetchable,
            BarKind::Rom => 0,
            BarKind::Memory64 => BAR_64 | prefetchable,
        })
    }

    /// The bits of the register, upper half included, that a guest can write.
    pub fn writable_bits(&self) -> u64 {
        let enable = if self.kind == BarKind::Rom { ROM_ENABLE } else { 0 };
        self.address_bits() | u64::from(enable)
    }

    /// The bits of the register, upper half included, that are an address.
    pub fn address_bits(&self) -> u64 {
        // A power of two from 4 on: the bits below the size read as zero, which is how a guest
        // sizes the BAR.
        let bits = !self.size.saturating_sub(1);
        if self.kind == BarKind::Memory64 { bits } else { bits & u64::from(u32::MAX) }
    }

    /// The address in a register's value, or `None` where it is not one: zero, what sizing leaves
    /// behind, what no CPU reaches, a ROM that is not enabled.
    pub fn address(&self, register: u64) -> Option<u64> {
        let address = register & self.address_bits();
        let fits = address.checked_add(self.size).is_some_and(|end| end <= ADDRESS_END);
        let enabled = self.kind != BarKind::Rom || register & u64::from(ROM_ENABLE) != 0;
        (address != 0 && fits && enabled && address != self.address_bits()).then_some(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(number: u8) -> BarIndex {
        BarIndex::new(number).unwrap()
    }

    #[test]
    fn registers_tell_the_kind() {
        let cases = [
            (0, 0xfebf_0000, 0x4000, BarKind::Memory32, false),
            (0, 0xfebf_0004, 0x4000, BarKind::Memory64, false),
            (2, 0x0000_000c, 1 << 40, BarKind::Memory64, true),
            (4, 0x0000_c001, 0x20, BarKind::Io, false),
            // BAR5 has no register after it to be the upper half.
            (5, 0xfebf_0004, 0x1000, BarKind::Memory32, false),
        ];
        for (number, register, size, kind, prefetchable) in cases {
            let bar = Bar::new(index(number), register, size).unwrap();
            assert_eq!(
                (bar.kind, bar.size, bar.prefetchable),
                (kind, size, prefetchable),
                "BAR{number}"
            );
        }
        assert_eq!(Bar::new(index(0), 0, 0), None);
        assert_eq!(Bar::new(index(0), 0, 1 << 32), None);
    }

    #[test]
    fn a_guest_sizes_a_bar_by_what_it_cannot_write() {
        let bar = Bar::new(index(0), 0xfebf_000c, 0x4000).unwrap();
        assert_eq!(bar.address_bits() | bar.fixed_bits(), 0xffff_ffff_ffff_c00c);
        let io = Bar::new(index(1), 1, 0x20).unwrap();
        assert_eq!(io.address_bits() | io.fixed_bits(), 0xffff_ffe1);
    }

    #[test]
    fn neither_zero_nor_a_sizing_value_is_an_address() {
        let bar = Bar::new(index(0), 4, 0x4000).unwrap();
        for register in [
            4,
            0xffff_ffff_ffff_c004,
            // The upper half is being sized, or there is no such CPU.
            0xffff_ffff_0000_4004,
            0x000f_ffff_ffff_c004 + 0x4000,
        ] {
            assert_eq!(bar.address(register), None, "{register:#x}");
        }
        assert_eq!(bar.address(0x38_0000_4004), Some(0x38_0000_4000));
        assert_eq!(bar.address(0x000f_ffff_ffff_c004), Some(0x000f_ffff_ffff_c000));
    }

    #[test]
    fn a_rom_is_decoded_while_it_is_enabled() {
        let rom = Bar::rom(0x400).unwrap();
        assert_eq!((rom.size, rom.register()), (0x800, ROM));
        assert_eq!(rom.writable_bits(), 0xffff_f801);
        assert_eq!(rom.address(0xfeb0_0000), None);
        assert_eq!(rom.address(0xfeb0_0001), Some(0xfeb0_0000));
        assert_eq!(Bar::rom(0), None);
    }
}
