//! Tests random accesses to the table and the PBA, of any size and alignment, against a model that
//! handles single bytes and bits.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use proptest::prelude::*;

const VECTORS: usize = 5;
const SIZE: usize = VECTORS * 16;

#[derive(Clone, Debug)]
enum Access {
    Write(usize, Vec<u8>),
    Read(usize, usize),
    Control(u16),
    Reset,
}

/// The table as bytes, and message control.
struct Naive {
    table: [u8; SIZE],
    control: u16,
}

impl Naive {
    fn new() -> Self {
        let mut table = [0; SIZE];
        table.iter_mut().skip(12).step_by(16).for_each(|byte| *byte = 1);
        Self { table, control: 0 }
    }

    /// Software must use aligned DWORD or QWORD accesses; others have no defined effect (PCI 3.0,
    /// 6.8.2). Returns whether a byte changed.
    fn write(&mut self, at: usize, data: &[u8]) -> bool {
        let before = self.table;
        if matches!(data.len(), 4 | 8) && at % data.len() == 0 {
            for (place, byte) in self.table.iter_mut().skip(at).zip(data) {
                *place = *byte;
            }
        }
        self.table != before
    }

    fn word(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.table[at..at + 4].try_into().unwrap())
    }

    fn unmasked_messages(&self) -> BTreeMap<u16, MsiMessage> {
        let open = self.control >> 14 == 0b10;
        let unmasked = |vector: &usize| open && self.table[vector * 16 + 12] & 1 == 0;
        let message = |vector: usize| MsiMessage {
            address: u64::from(self.word(vector * 16 + 4)) << 32
                | u64::from(self.word(vector * 16) / 4 * 4),
            data: self.word(vector * 16 + 8),
        };
        (0..VECTORS).filter(unmasked).map(|vector| (vector as u16, message(vector))).collect()
    }
}

fn access() -> impl Strategy<Value = Access> {
    let bytes = |length| {
        prop::collection::vec(prop_oneof![3 => Just(0), 1 => Just(1), 1 => any::<u8>()], length)
    };
    let aligned = (0..SIZE / 4 + 2, prop_oneof![Just(4_usize), Just(8)]);
    let aligned = aligned
        .prop_flat_map(move |(word, length)| (Just(word * 4 / length * length), bytes(length)));
    let any =
        (0..SIZE + 8, 1..17_usize).prop_flat_map(move |(at, length)| (Just(at), bytes(length)));
    prop_oneof![
        8 => aligned.prop_map(|(at, data)| Access::Write(at, data)),
        3 => any.prop_map(|(at, data)| Access::Write(at, data)),
        3 => (0..SIZE + 8, 1..17_usize).prop_map(|(at, length)| Access::Read(at, length)),
        3 => (0..4_u16).prop_map(|bits| Access::Control(bits << 14 | 5)),
        1 => Just(Access::Reset),
    ]
}

proptest! {
    #[test]
    fn the_table_agrees_with_the_model(accesses in prop::collection::vec(access(), 0..60)) {
        let (mut state, mut naive) = (MsixState::new(VECTORS as u16), Naive::new());
        for access in accesses {
            match access {
                Access::Write(at, data) => {
                    prop_assert_eq!(state.write(at as u64, &data), naive.write(at, &data));
                }
                Access::Read(at, length) => {
                    let mut data = vec![0xee; length];
                    state.read(at as u64, &mut data);
                    let byte = |at: usize| naive.table.get(at).copied().unwrap_or(0);
                    prop_assert_eq!(data, (at..at + length).map(byte).collect::<Vec<_>>());
                }
                Access::Control(control) => {
                    naive.control = control;
                    state.write_control(control);
                }
                Access::Reset => {
                    naive = Naive::new();
                    state.reset();
                }
            }
            let wanted = state.programmed();
            prop_assert_eq!(wanted.enabled, naive.control >> 15 == 1);
            prop_assert_eq!(usize::from(wanted.vectors), VECTORS);
            prop_assert_eq!(wanted.unmasked, naive.unmasked_messages());
        }
    }

    #[test]
    fn the_pba_has_the_bits_of_its_vectors(
        pending in prop::collection::btree_set(0..300_u16, 0..40),
        ours in prop::collection::btree_set(0..300_u16, 0..40),
        hardware in prop::collection::vec(any::<u8>(), 1..17),
        offset in 0..40_usize,
    ) {
        let mut data = hardware.clone();
        let mut seen = BTreeSet::new();
        let is_pending = |vector: u16, bit: bool| match ours.contains(&vector) {
            true => pending.contains(&vector),
            false => bit,
        };
        overlay_pba(offset as u64, &mut data, is_pending);
        for (index, (found, hardware)) in data.iter().zip(&hardware).enumerate() {
            for bit in 0..8 {
                let vector = ((offset + index) * 8 + bit) as u16;
                seen.insert(vector);
                let expected = is_pending(vector, hardware >> bit & 1 != 0);
                prop_assert_eq!(found >> bit & 1 != 0, expected, "{}", vector);
            }
        }
        let vectors: BTreeSet<_> = pba_vectors(offset as u64, data.len()).collect();
        prop_assert_eq!(vectors, seen);
    }
}
