//! The MSI-X table as the guest programs it (PCI 6.8.2). The table in the hardware belongs to the host's
//! kernel and is never touched.

use super::message::{MsiMessage, ProgrammedVectors};
use crate::address::{BarIndex, ByteRange};

use super::regs::{MSIX_ENABLE, MSIX_FUNCTION_MASK, MSIX_SIZE};

/// Bytes of a table entry: address, upper address, data, vector control (PCI 6.8.2.6).
const ENTRY_SIZE: u64 = 16;
/// Bit of vector control: the vector is masked. It is set after a reset (PCI 6.8.2.9).
const MASKED: u32 = 1;
/// The largest table there can be.
pub const MAX_VECTORS: u16 = 2048;

/// Where the table and the pending bit array are, and how many vectors there are: what the capability says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// How many vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR that holds the table.
    pub table_bar: BarIndex,
    /// Where the table is in that BAR.
    pub table: ByteRange,
    /// The BAR that holds the pending bit array.
    pub pba_bar: BarIndex,
    /// Where the pending bit array is in that BAR.
    pub pba: ByteRange,
}

impl MsixLayout {
    /// What the registers of the capability say; `None` where they name a BAR that cannot be.
    pub fn new(control: u16, table: u32, pba: u32) -> Option<Self> {
        let vectors = (control & MSIX_SIZE).saturating_add(1);
        let (table_bar, table_offset) = bar_and_offset(table)?;
        let (pba_bar, pba_offset) = bar_and_offset(pba)?;
        let table = ByteRange::new(table_offset, u64::from(vectors).saturating_mul(ENTRY_SIZE))?;
        // A bit a vector, in units of 64 bits.
        let pba = ByteRange::new(pba_offset, u64::from(vectors).div_ceil(64).saturating_mul(8))?;
        Some(Self { vectors, table_bar, table, pba_bar, pba })
    }

    /// What an access to a BAR touches, if it is not simply the device's.
    pub fn part_at(&self, bar: BarIndex, offset: u64) -> Option<MsixPart> {
        let within = |own_bar, range: ByteRange| range.offset_of(offset).filter(|_| own_bar == bar);
        let table = within(self.table_bar, self.table).map(MsixPart::Table);
        table.or_else(|| within(self.pba_bar, self.pba).map(MsixPart::Pba))
    }
}

/// A place in the structures of MSI-X, with the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsixPart {
    /// The table.
    Table(u64),
    /// The pending bit array.
    Pba(u64),
}

/// The lower three bits are the BAR, the others an offset of a multiple of 8 (PCI 6.8.2.4).
fn bar_and_offset(register: u32) -> Option<(BarIndex, u64)> {
    let bar = BarIndex::new(u8::try_from(register & 0b111).ok()?)?;
    Some((bar, u64::from(register & !0b111)))
}

/// An entry: four 32-bit registers.
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

/// What the guest programmed: the table, and the two bits of message control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MsixState {
    enabled: bool,
    masked: bool,
    entries: Vec<Entry>,
}

impl MsixState {
    /// As after a reset: off, every vector masked.
    pub fn new(vectors: u16) -> Self {
        Self {
            enabled: false,
            masked: false,
            entries: vec![RESET; usize::from(vectors.min(MAX_VECTORS))],
        }
    }

    /// Back to how it was after a reset.
    pub fn reset(&mut self) {
        self.enabled = false;
        self.masked = false;
        self.entries.fill(RESET);
    }

    /// Takes the guest's value of message control.
    pub fn write_control(&mut self, control: u16) {
        self.enabled = control & MSIX_ENABLE != 0;
        self.masked = control & MSIX_FUNCTION_MASK != 0;
    }

    /// No vector can be delivered whatever the entries say.
    pub fn is_masked_or_disabled(&self) -> bool {
        !self.enabled || self.masked
    }

    /// What the guest asks of the host.
    pub fn programmed(&self) -> ProgrammedVectors {
        // `new` made at most MAX_VECTORS.
        let vectors = u16::try_from(self.entries.len()).unwrap_or(MAX_VECTORS);
        let numbers = if self.enabled { 0..vectors } else { 0..0 };
        let unmasked =
            numbers.filter_map(|vector| Some((vector, self.deliverable(vector)?))).collect();
        ProgrammedVectors { enabled: self.enabled, vectors, unmasked }
    }

    /// Bytes of the table, as if it were memory. What lies behind the last entry reads as zero.
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

    /// A write of the guest. Aligned accesses of 4 and 8 bytes count, others have no defined effect (PCI
    /// 6.8.2) and are dropped. True where something changed.
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

    /// The message of a vector that may fire now, `None` for one that is masked, by itself, by the function
    /// or by MSI-X being off.
    pub fn deliverable(&self, vector: u16) -> Option<MsiMessage> {
        let entry = self.entries.get(usize::from(vector))?;
        let unmasked = self.enabled && !self.masked && entry.control & MASKED == 0;
        unmasked.then(|| MsiMessage {
            // The lower two bits are reserved: a message is a dword (PCI 6.8.2.7).
            address: u64::from(entry.upper) << 32 | u64::from(entry.address & !0b11),
            data: entry.data,
        })
    }
}

/// Offsets from `start` on, `step` apart, up to the last that there is.
fn positions(start: u64, step: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(start), move |position| position.checked_add(step))
}

/// The vectors whose bits are in these bytes of the pending bit array.
pub fn pba_vectors(offset: u64, length: usize) -> impl Iterator<Item = u16> {
    let bits = (length as u64).saturating_mul(8);
    let first = offset.saturating_mul(8);
    let vectors = first..first.saturating_add(bits);
    vectors.map_while(|vector| u16::try_from(vector).ok())
}

/// Replaces bits of the pending bit array by what `pending` says of a vector and its bit.
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
    fn the_capability_tells_where_things_are() {
        let found = layout(64, 0x2000, 0x3004);
        assert_eq!((found.vectors, found.table_bar.number(), found.pba_bar.number()), (65, 0, 4));
        assert_eq!(found.table, ByteRange::new(0x2000, 65 * 16).unwrap());
        assert_eq!(found.pba, ByteRange::new(0x3000, 16).unwrap());
        assert_eq!(layout(0x07ff, 0, 0).vectors, 2048);
        assert_eq!(MsixLayout::new(0, 6, 0), None);
        assert_eq!(MsixLayout::new(0, 0, 7), None);
    }

    #[test]
    fn table_and_pba_are_found_in_their_bars_only() {
        let found = layout(0, 0x2000, 0x3004);
        let bar = |number| BarIndex::new(number).unwrap();
        assert_eq!(found.part_at(bar(0), 0x200c), Some(MsixPart::Table(12)));
        assert_eq!(found.part_at(bar(0), 0x2010), None);
        assert_eq!(found.part_at(bar(4), 0x3007), Some(MsixPart::Pba(7)));
        assert_eq!(found.part_at(bar(0), 0x3000), None);
    }

    #[test]
    fn what_is_written_is_read_in_either_width() {
        let mut state = MsixState::new(2);
        assert!(state.write(16, &0xfee0_1003_u64.to_le_bytes()));
        assert!(state.write(24, &0x41_u32.to_le_bytes()));
        let mut bytes = [0; 16];
        state.read(16, &mut bytes);
        assert_eq!(u128::from_le_bytes(bytes), 1 << 96 | 0x41 << 64 | 0xfee0_1003);
        assert!(!state.write(24, &0x41_u32.to_le_bytes()), "an unchanged write changes nothing");
    }

    #[test]
    fn accesses_of_no_defined_effect_are_dropped() {
        let mut state = MsixState::new(1);
        for (offset, data) in
            [(0, &[1_u8][..]), (2, &[1; 4]), (4, &[1; 8]), (16, &[1; 4]), (u64::MAX - 3, &[1; 4])]
        {
            assert!(!state.write(offset, data), "{} bytes at {offset}", data.len());
        }
        assert_eq!(state, MsixState::new(1));
    }

    #[test]
    fn a_vector_fires_only_where_nothing_masks_it() {
        let mut state = MsixState::new(1);
        state.write(0, &0xfee0_1000_u64.to_le_bytes());
        state.write(8, &0x41_u64.to_le_bytes());
        assert_eq!(state.deliverable(0), None, "MSI-X is off");
        state.write_control(MSIX_ENABLE | MSIX_FUNCTION_MASK);
        assert_eq!(state.deliverable(0), None, "the function is masked");
        state.write_control(MSIX_ENABLE);
        assert_eq!(state.deliverable(0), Some(MsiMessage { address: 0xfee0_1000, data: 0x41 }));
        state.write(12, &MASKED.to_le_bytes());
        assert_eq!(state.deliverable(0), None, "the vector is masked");
        assert_eq!(state.deliverable(1), None, "there is no such vector");
    }

    #[test]
    fn pending_bits_are_numbered_from_the_lowest() {
        let mut bytes = [0; 8];
        overlay_pba(8, &mut bytes, |vector, _| matches!(vector, 64 | 67 | 2000));
        assert_eq!(bytes, [0b1001, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_bit_of_the_hardware_is_told_with_its_vector() {
        let mut bytes = [0b0100_0001, 0x80];
        overlay_pba(1, &mut bytes, |vector, hardware| hardware && vector != 14);
        assert_eq!(bytes, [1, 0x80]);
        assert_eq!(pba_vectors(1, 2).collect::<Vec<_>>(), (8..24).collect::<Vec<_>>());
    }
}
