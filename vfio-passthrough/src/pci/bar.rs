//! Base address registers as a guest sees them (PCI 3.0, 6.2.5.1). Their sizes are those of VFIO's
//! regions: this crate never writes all-ones to the hardware.

use super::regs::{BAR_64, BAR_IO, BAR_PREFETCHABLE, BAR_TYPE, BAR0, ROM, ROM_ENABLE};
use crate::address::BarIndex;

/// The end of the guest physical addresses for BARs: x86 has at most 52 address bits (Intel SDM 3A,
/// 4.1.4; AMD APM 2, 5.3).
const ADDRESS_END: u64 = 1 << 52;

/// The largest ROM, in bytes (PCI 3.0, 6.2.5.2).
pub const MAX_ROM: u64 = 16 << 20;

/// One of PCI's two address spaces for BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Memory: guest physical addresses.
    Memory,
    /// I/O ports, 16 bits on x86.
    Io,
}

/// The type of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory at any address. The next register is the upper half of the address.
    Memory64,
    /// The expansion ROM: memory below 4 GiB. It is decoded only while its own enable bit is set
    /// too.
    Rom,
}

impl BarKind {
    /// The address space of the BAR.
    pub fn space(self) -> Space {
        match self {
            Self::Io => Space::Io,
            Self::Memory32 | Self::Memory64 | Self::Rom => Space::Memory,
        }
    }

    /// The end of the addresses that the BAR can have.
    fn address_end(self) -> u64 {
        match self {
            Self::Io => 1 << 16,
            Self::Memory32 | Self::Rom => 1 << 32,
            Self::Memory64 => ADDRESS_END,
        }
    }
}

/// A BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// The register; the lower one of a 64-bit BAR.
    pub index: BarIndex,
    /// The type.
    pub kind: BarKind,
    /// The size in bytes: a power of two, at least 16 for memory, 4 for I/O, and 2048 for the ROM.
    pub size: u64,
    /// Reads of the memory have no side effects.
    pub prefetchable: bool,
}

impl Bar {
    /// The BAR whose register reads as `register` and whose region has `size` bytes, rounded up to a
    /// power of two. `None` if the size is 0, or more than half of the type's address space: such
    /// a BAR could only be at address 0.
    ///
    /// Reserved types of memory BARs, and 64 bits in the last register, count as 32 bits.
    pub fn new(index: BarIndex, register: u32, size: u64) -> Option<Self> {
        let kind = match register {
            _ if register & BAR_IO != 0 => BarKind::Io,
            _ if register & BAR_TYPE == BAR_64 && index.next().is_some() => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        let smallest = if kind == BarKind::Io { 4 } else { 16 };
        let size = size.checked_next_power_of_two().filter(|_| size != 0)?.max(smallest);
        let fits = size <= kind.address_end() / 2;
        let prefetchable = kind != BarKind::Io && register & BAR_PREFETCHABLE != 0;
        fits.then_some(Self { index, kind, size, prefetchable })
    }

    /// The expansion ROM whose region has `size` bytes. `None` if the size is 0 or above 16 MiB.
    pub fn rom(size: u64) -> Option<Self> {
        // The lower 11 bits of the register are not part of the address (PCI 3.0, 6.2.5.2).
        let size = size.checked_next_power_of_two().filter(|_| size != 0)?.max(1 << 11);
        let fits = size <= MAX_ROM;
        fits.then_some(Self { index: BarIndex::ROM, kind: BarKind::Rom, size, prefetchable: false })
    }

    /// Whether the BAR can be placed at an address: the address is a multiple of the BAR's size,
    /// and the BAR ends within its address space.
    pub fn fits(&self, address: u64) -> bool {
        let end = self.kind.address_end();
        let is_aligned = address & self.size.wrapping_sub(1) == 0;
        is_aligned && address.checked_add(self.size).is_some_and(|last| last <= end)
    }

    /// The offset of the register in config space. The upper half of a 64-bit BAR follows.
    pub fn register(&self) -> u16 {
        match self.kind {
            BarKind::Rom => ROM,
            _ => BAR0.saturating_add(u16::from(self.index.number()).saturating_mul(4)),
        }
    }

    /// The size of the register in bytes: 4, or 8 with an upper half.
    pub fn register_size(&self) -> usize {
        if self.kind == BarKind::Memory64 { 8 } else { 4 }
    }

    /// The read-only type bits of the register, upper half included.
    pub fn fixed_bits(&self) -> u64 {
        let prefetchable = if self.prefetchable { BAR_PREFETCHABLE } else { 0 };
        u64::from(match self.kind {
            BarKind::Io => BAR_IO,
            BarKind::Memory32 => prefetchable,
            BarKind::Rom => 0,
            BarKind::Memory64 => BAR_64 | prefetchable,
        })
    }

    /// The writable bits of the register, upper half included.
    pub fn writable_bits(&self) -> u64 {
        let enable = if self.kind == BarKind::Rom { ROM_ENABLE } else { 0 };
        self.address_bits() | u64::from(enable)
    }

    /// The address bits of the register, upper half included.
    pub fn address_bits(&self) -> u64 {
        // The size is a power of two. The bits below it read as zero: so a guest sizes the BAR.
        let bits = !self.size.saturating_sub(1);
        if self.kind == BarKind::Memory64 { bits } else { bits & u64::from(u32::MAX) }
    }

    /// The address in a register's value. `None` for zero, for all-ones (sizing), for an end above
    /// 2^52, and for a ROM that is not enabled.
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
    fn the_register_determines_the_type() {
        let cases = [
            (0, 0xfebf_0000, 0x4000, BarKind::Memory32, false),
            (0, 0xfebf_0004, 0x4000, BarKind::Memory64, false),
            (2, 0x0000_000c, 1 << 40, BarKind::Memory64, true),
            (4, 0x0000_c001, 0x20, BarKind::Io, false),
            // No register follows BAR5 that could be the upper half.
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
    fn the_read_only_bits_show_the_size() {
        let bar = Bar::new(index(0), 0xfebf_000c, 0x4000).unwrap();
        assert_eq!(bar.address_bits() | bar.fixed_bits(), 0xffff_ffff_ffff_c00c);
        let io = Bar::new(index(1), 1, 0x20).unwrap();
        assert_eq!(io.address_bits() | io.fixed_bits(), 0xffff_ffe1);
    }

    #[test]
    fn zero_and_sizing_values_are_no_addresses() {
        let bar = Bar::new(index(0), 4, 0x4000).unwrap();
        for register in [
            4,
            0xffff_ffff_ffff_c004,
            // The upper half is being sized; the end is above 2^52.
            0xffff_ffff_0000_4004,
            0x000f_ffff_ffff_c004 + 0x4000,
        ] {
            assert_eq!(bar.address(register), None, "{register:#x}");
        }
        assert_eq!(bar.address(0x38_0000_4004), Some(0x38_0000_4000));
        assert_eq!(bar.address(0x000f_ffff_ffff_c004), Some(0x000f_ffff_ffff_c000));
    }

    #[test]
    fn a_rom_is_decoded_only_while_it_is_enabled() {
        let rom = Bar::rom(0x400).unwrap();
        assert_eq!((rom.size, rom.register()), (0x800, ROM));
        assert_eq!(rom.writable_bits(), 0xffff_f801);
        assert_eq!(rom.address(0xfeb0_0000), None);
        assert_eq!(rom.address(0xfeb0_0001), Some(0xfeb0_0000));
        assert_eq!(Bar::rom(0), None);
    }
}
