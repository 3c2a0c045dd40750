//! MSI-X as the guest programs it (PCI 3.0, 6.8.2): the table and message control. The host's
//! kernel owns the table in the hardware. This crate never accesses that.

use super::message::{MsiMessage, ProgrammedVectors};
use crate::address::{BarIndex, ByteRange};

use super::regs::{MSIX_ENABLE, MSIX_FUNCTION_MASK, MSIX_SIZE};

/// The size of a table entry in bytes: address, upper address, data, vector control (PCI 3.0,
/// 6.8.2.6).
const ENTRY_SIZE: u64 = 16;
/// Bit of vector control: the vector is masked. A reset sets it (PCI 3.0, 6.8.2.9).
const MASKED: u32 = 1;
/// The largest number of table entries (PCI 3.0, 6.8.2.3).
pub const MAX_VECTORS: u16 = 2048;

/// The layout of MSI-X: the number of vectors, and the locations of the table and of the PBA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// The number of vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR that holds the table.
    pub table_bar: BarIndex,
    /// The table in that BAR, in bytes.
    pub table: ByteRange,
    /// The BAR that holds the PBA.
    pub pba_bar: BarIndex,
    /// The PBA in that BAR, in bytes.
    pub pba: ByteRange,
    /// The PBA is not where the device has it, so that must not be read.
    pub pba_is_moved: bool,
}

impl MsixLayout {
    /// The layout that the capability's registers describe. `None` if they name a BAR above 5.
    pub fn new(control: u16, table: u32, pba: u32) -> Option<Self> {
        let vectors = (control & MSIX_SIZE).saturating_add(1);
        let (table_bar, table_offset) = bar_and_offset(table)?;
        let (pba_bar, pba_offset) = bar_and_offset(pba)?;
        let table = ByteRange::new(table_offset, u64::from(vectors).saturating_mul(ENTRY_SIZE))?;
        // One bit for each vector, in units of 64 bits (PCI 3.0, 6.8.2.10).
        let pba = ByteRange::new(pba_offset, u64::from(vectors).div_ceil(64).saturating_mul(8))?;
        Some(Self { vectors, table_bar, table, pba_bar, pba, pba_is_moved: false })
    }

    /// The layout that a guest is shown for the registers message control, table and PBA. It has
    /// at most `available` vectors. `memory` returns the size of a memory BAR, 0 without one.
    ///
    /// A PBA that is outside its BAR, or on the table, follows the table: both are emulated, and
    /// devices are told to have nothing else in the pages of the table (PCI 3.0, 6.8.2).
    ///
    /// # Errors
    ///
    /// The reason why the capability cannot be served.
    pub fn served(
        (control, table, pba): (u16, u32, u32),
        available: u32,
        memory: impl Fn(BarIndex) -> u64,
    ) -> Result<Self, String> {
        let own = control & MSIX_SIZE;
        let last = available.checked_sub(1).ok_or("VFIO has no MSI-X vectors of the device")?;
        let control = u16::try_from(last).unwrap_or(MSIX_SIZE).min(own);
        let at_table = Self::new(control, table, table);
        let at_table = at_table.ok_or("its table is in a BAR above 5")?;
        let (bar, table_range) = (at_table.table_bar, at_table.table);
        if table_range.end() > memory(bar) {
            let size = memory(bar);
            return Err(format!(
                "its table {table_range} is not in {bar}: {size:#x} bytes of memory"
            ));
        }
        let is_usable = |layout: &Self| {
            let on_table = layout.pba_bar == bar && layout.pba.overlaps(table_range);
            layout.pba.end() <= memory(layout.pba_bar) && !on_table
        };
        let found = Self::new(control, table, pba).filter(is_usable);
        let moved = || {
            let pba = ByteRange::new(table_range.end(), at_table.pba.size())?;
            Some(Self { pba, pba_is_moved: true, ..at_table }).filter(is_usable)
        };
        found
            .or_else(moved)
            .ok_or_else(|| format!("its pending bits are not in a BAR, nor fit into {bar}"))
    }

    /// The part of MSI-X at an offset of a BAR, or `None` if the access is for the device.
    pub fn part_at(&self, bar: BarIndex, offset: u64) -> Option<MsixPart> {
        let within = |own_bar, range: ByteRange| range.offset_of(offset).filter(|_| own_bar == bar);
        let table = within(self.table_bar, self.table).map(MsixPart::Table);
        table.or_else(|| within(self.pba_bar, self.pba).map(MsixPart::Pba))
    }
}

/// A part of MSI-X, with an offset in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsixPart {
    /// The table.
    Table(u64),
    /// The PBA (pending bit array).
    Pba(u64),
}

/// Splits a register: the lower three bits are the BAR, the others the offset, a multiple of 8 (PCI
/// 3.0, 6.8.2.4).
fn bar_and_offset(register: u32) -> Option<(BarIndex, u64)> {
    let bar = BarIndex::new(u8::try_from(register & 0b111).ok()?)?;
    Some((bar, u64::from(register & !0b111)))
}

/// A table entry: four 32-bit registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    address: u32,
    upper: u32,
    data: u32,
    control: u32,
}

const RESET: Entry = Entry { address: 0, upper: 0, data: 0, control: MASKED };

impl Entry {
    fn bytes(self) -> [u8; 16] {
        let [address, upper, data, control] = [self.address, self.upper, self.data, self.control];
        (u128::from(address)
            | u128::from(upper) << 32
            | u128::from(data) << 64
            | u128::from(control) << 96)
            .to_le_bytes()
    }

    fn register(&mut self, offset: u64) -> Option<&mut u32> {
        match offset {
            0 => Some(&mut self.address),
            4 => Some(&mut self.upper),
            8 => Some(&mut self.data),
            12 => Some(&mut self.control),
            _ => None,
        }
    }
}

/// The state that the guest programmed: the table, and two bits of message control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MsixState {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
}

impl MsixState {
    /// The state after a reset: MSI-X is disabled, and every vector is masked.
    pub fn new(vectors: u16) -> Self {
        Self {
            enabled: false,
            masked: false,
            entries: vec![RESET; usize::from(vectors.min(MAX_VECTORS))],
        }
    }

    /// Sets the state after a reset.
    pub fn reset(&mut self) {
        self.enabled = false;
        self.masked = false;
        self.entries.fill(RESET);
    }

    /// Sets message control to the guest's value.
    pub fn write_control(&mut self, control: u16) {
        self.enabled = control & MSIX_ENABLE != 0;
        self.masked = control & MSIX_FUNCTION_MASK != 0;
    }

    /// Whether MSI-X is disabled or the function is masked: the entries of the table then have no
    /// effect.
    pub fn is_masked_or_disabled(&self) -> bool {
        !self.enabled || self.masked
    }

    /// The vectors that the guest programmed.
    pub fn programmed(&self) -> ProgrammedVectors {
        // `new` makes at most MAX_VECTORS entries.
        let vectors = u16::try_from(self.entries.len()).unwrap_or(MAX_VECTORS);
        self.programmed_of(if self.enabled { 0..vectors } else { 0..0 })
    }

    /// The same with these vectors only.
    pub fn programmed_of(&self, numbers: impl IntoIterator<Item = u16>) -> ProgrammedVectors {
        let vectors = u16::try_from(self.entries.len()).unwrap_or(MAX_VECTORS);
        let message = |vector| Some((vector, self.unmasked_message(vector)?));
        let unmasked = numbers.into_iter().filter_map(message).collect();
        ProgrammedVectors { enabled: self.enabled, vectors, unmasked }
    }

    /// Reads bytes of the table, with any size and alignment. Bytes after the last entry read as
    /// zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (position, byte) in positions(offset, 1).zip(data) {
            let entry = usize::try_from(position / ENTRY_SIZE)
                .ok()
                .and_then(|index| self.entries.get(index));
            let within = usize::try_from(position % ENTRY_SIZE).ok();
            *byte = entry
                .zip(within)
                .and_then(|(entry, at)| entry.bytes().get(at).copied())
                .unwrap_or(0);
        }
    }

    /// Applies a guest's write. Only aligned accesses of 4 and 8 bytes have a defined effect (PCI
    /// 3.0, 6.8.2): others are ignored. Returns whether a register changed.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let aligned =
            matches!(data.len(), 4 | 8) && offset.checked_rem(data.len() as u64) == Some(0);
        if !aligned {
            return false;
        }
        let words = data.chunks_exact(4).filter_map(|word| word.first_chunk());
        let mut changed = false;
        for (position, word) in positions(offset, 4).zip(words) {
            changed |= self.write_register(position, u32::from_le_bytes(*word));
        }
        changed
    }

    fn write_register(&mut self, offset: u64, value: u32) -> bool {
        let entry =
            usize::try_from(offset / ENTRY_SIZE).ok().and_then(|index| self.entries.get_mut(index));
        let Some(register) = entry.and_then(|entry| entry.register(offset % ENTRY_SIZE)) else {
            return false;
        };
        let changed = *register != value;
        *register = value;
        changed
    }

    /// The message of a vector, or `None` if the vector or the function is masked, or MSI-X is
    /// disabled.
    pub fn unmasked_message(&self, vector: u16) -> Option<MsiMessage> {
        let entry = self.entries.get(usize::from(vector))?;
        let unmasked = self.enabled && !self.masked && entry.control & MASKED == 0;
        unmasked.then(|| MsiMessage {
            // The lower two bits are reserved: a message is a DWORD (PCI 3.0, 6.8.2.7).
            address: u64::from(entry.upper) << 32 | u64::from(entry.address & !0b11),
            data: entry.data,
        })
    }
}

/// Offsets from `start` on, `step` apart, up to the last that fits in 64 bits.
fn positions(start: u64, step: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(start), move |position| position.checked_add(step))
}

/// The vector whose table entry has the byte at `offset`.
pub fn entry_vector(offset: u64) -> Option<u16> {
    u16::try_from(offset / ENTRY_SIZE).ok()
}

/// The vectors whose bits are in these bytes of the PBA.
pub fn pba_vectors(offset: u64, length: usize) -> impl Iterator<Item = u16> {
    let bits = (length as u64).saturating_mul(8);
    let first = offset.saturating_mul(8);
    let vectors = first..first.saturating_add(bits);
    vectors.map_while(|vector| u16::try_from(vector).ok())
}

/// Replaces bits of the PBA. `pending` gets a vector and its old bit, and returns the new bit.
pub fn overlay_pba(offset: u64, data: &mut [u8], pending: impl Fn(u16, bool) -> bool) {
    for (position, byte) in positions(offset, 1).zip(data) {
        let old = *byte;
        *byte = pba_vectors(position, 1)
            .zip(0..8)
            .filter(|(vector, bit)| pending(*vector, old >> bit & 1 != 0))
            .fold(0, |byte, (_, bit)| byte | 1 << bit);
    }
}

#[cfg(test)]
mod naive;

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(control: u16, table: u32, pba: u32) -> MsixLayout {
        MsixLayout::new(control, table, pba).unwrap()
    }

    #[test]
    fn parses_the_capability() {
        let found = layout(64, 0x2000, 0x3004);
        assert_eq!((found.vectors, found.table_bar.number(), found.pba_bar.number()), (65, 0, 4));
        assert_eq!(found.table, ByteRange::new(0x2000, 65 * 16).unwrap());
        assert_eq!(found.pba, ByteRange::new(0x3000, 16).unwrap());
        assert_eq!(layout(0x07ff, 0, 0).vectors, 2048);
        assert_eq!(MsixLayout::new(0, 6, 0), None);
        assert_eq!(MsixLayout::new(0, 0, 7), None);
    }

    #[test]
    fn shows_a_layout_that_its_bars_and_vfio_can_serve() {
        let memory = |bar: BarIndex| if bar.number() == 0 { 0x1000 } else { 0 };
        let served = |control, table, pba, available| {
            let found = MsixLayout::served((control, table, pba), available, memory).ok()?;
            Some((found.vectors, found.pba_bar.number(), found.pba.start(), found.pba_is_moved))
        };
        let cases = [
            ("as the device has it", (3, 0, 0x800, 4), Some((4, 0, 0x800, false))),
            ("reserved bits of message control", (0xf803, 0, 0x800, 4), Some((4, 0, 0x800, false))),
            ("fewer vectors in VFIO", (3, 0, 0x800, 2), Some((2, 0, 0x800, false))),
            ("more vectors in VFIO", (3, 0, 0x800, u32::MAX), Some((4, 0, 0x800, false))),
            ("no vectors in VFIO", (3, 0, 0x800, 0), None),
            ("the table in BAR6", (3, 6, 0x800, 4), None),
            ("the table in an absent BAR", (3, 1, 0x800, 4), None),
            ("the table beyond its BAR", (3, 0xfd0, 0x800, 4), None),
            ("the PBA in BAR7", (3, 0, 7, 4), Some((4, 0, 0x40, true))),
            ("the PBA in an absent BAR", (3, 0, 0x802, 4), Some((4, 0, 0x40, true))),
            ("the PBA beyond its BAR", (3, 0, 0x1000, 4), Some((4, 0, 0x40, true))),
            ("the PBA on the table", (3, 0x20, 0x58, 4), Some((4, 0, 0x60, true))),
            ("no room for a moved PBA", (3, 0xfc0, 0x1000, 4), None),
        ];
        for (name, (control, table, pba, available), expected) in cases {
            assert_eq!(served(control, table, pba, available), expected, "{name}");
        }
    }

    #[test]
    fn finds_table_and_pba_in_their_bars_only() {
        let found = layout(0, 0x2000, 0x3004);
        let bar = |number| BarIndex::new(number).unwrap();
        assert_eq!(found.part_at(bar(0), 0x200c), Some(MsixPart::Table(12)));
        assert_eq!(found.part_at(bar(0), 0x2010), None);
        assert_eq!(found.part_at(bar(4), 0x3007), Some(MsixPart::Pba(7)));
        assert_eq!(found.part_at(bar(0), 0x3000), None);
    }

    #[test]
    fn reads_back_writes_of_4_and_8_bytes() {
        let mut state = MsixState::new(2);
        assert!(state.write(16, &0xfee0_1003_u64.to_le_bytes()));
        assert!(state.write(24, &0x41_u32.to_le_bytes()));
        let mut bytes = [0; 16];
        state.read(16, &mut bytes);
        assert_eq!(u128::from_le_bytes(bytes), 1 << 96 | 0x41 << 64 | 0xfee0_1003);
        assert!(!state.write(24, &0x41_u32.to_le_bytes()), "an unchanged write changes nothing");
    }

    #[test]
    fn ignores_writes_without_a_defined_effect() {
        let mut state = MsixState::new(1);
        for (offset, data) in
            [(0, &[1_u8][..]), (2, &[1; 4]), (4, &[1; 8]), (16, &[1; 4]), (u64::MAX - 3, &[1; 4])]
        {
            assert!(!state.write(offset, data), "{} bytes at {offset}", data.len());
        }
        assert_eq!(state, MsixState::new(1));
    }

    #[test]
    fn a_vector_has_a_message_only_if_nothing_masks_it() {
        let mut state = MsixState::new(1);
        state.write(0, &0xfee0_1000_u64.to_le_bytes());
        state.write(8, &0x41_u64.to_le_bytes());
        assert_eq!(state.unmasked_message(0), None, "MSI-X is disabled");
        state.write_control(MSIX_ENABLE | MSIX_FUNCTION_MASK);
        assert_eq!(state.unmasked_message(0), None, "the function is masked");
        state.write_control(MSIX_ENABLE);
        assert_eq!(
            state.unmasked_message(0),
            Some(MsiMessage { address: 0xfee0_1000, data: 0x41 })
        );
        state.write(12, &MASKED.to_le_bytes());
        assert_eq!(state.unmasked_message(0), None, "the vector is masked");
        assert_eq!(state.unmasked_message(1), None, "no such vector exists");
    }

    #[test]
    fn pending_bits_are_numbered_from_the_lowest() {
        let mut bytes = [0; 8];
        overlay_pba(8, &mut bytes, |vector, _| matches!(vector, 64 | 67 | 2000));
        assert_eq!(bytes, [0b1001, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn passes_each_old_bit_with_its_vector() {
        let mut bytes = [0b0100_0001, 0x80];
        overlay_pba(1, &mut bytes, |vector, hardware| hardware && vector != 14);
        assert_eq!(bytes, [1, 0x80]);
        assert_eq!(pba_vectors(1, 2).collect::<Vec<_>>(), (8..24).collect::<Vec<_>>());
    }
}
