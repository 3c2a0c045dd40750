//! What differs between the config space of a dump and the guest's view of it, by name. Each
//! difference has a name or is a fault.

use std::collections::BTreeSet;

use vfio_passthrough::pci::capability_table::{EXTENDED, STANDARD};

use crate::lists::{self, CONVENTIONAL, Capability};

/// The differences of a function.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The names of the capabilities that are hidden.
    pub hidden: Vec<String>,
    /// The names of the registers with other values.
    pub changed: BTreeSet<&'static str>,
    /// The differences without a name: offset, value in the dump, value in the view.
    pub faults: Vec<(usize, u8, u8)>,
}

/// A register: its first byte, the mask of its bits in each byte, and its name. Without a name it
/// is not told: the guest programs it, or it is the same in each function.
type Register = (usize, &'static [u8], &'static str);

const ALL: [u8; 64] = [0xff; 64];

const fn whole(length: usize) -> &'static [u8] {
    ALL.split_at(length).0
}

const HEADER: &[Register] = &[
    (0x04, &[0x10], "memory write and invalidate"),
    (0x04, &[0xa8, 0xfa], "other command bits"),
    (0x06, &[0x10], ""),
    (0x0e, &[0x80], ""),
    (0x0f, whole(1), "BIST"),
    (0x10, whole(24), ""),
    (0x28, whole(4), "CardBus pointer"),
    (0x31, &[0xf8, 0xff, 0xff], ""),
    (0x34, whole(1), ""),
    (0x3d, whole(1), "interrupt pin"),
];

const POWER: &[Register] = &[(2, &[7], "version"), (4, &[3], "power state")];

const MSI: &[Register] = &[
    (2, &[0x71], ""),
    (2, &[0x0e], "MSI vectors"),
    (3, &[0x06], "MSI extended data"),
    (4, whole(20), ""),
];

const EXPRESS: &[Register] = &[
    (2, whole(2), ""),
    (4, &[0x18], "phantom functions"),
    (7, &[0x10], "FLR"),
    (9, &[0x02], "phantom functions"),
    (0x0c, whole(8), ""),
    (0x14, whole(16), "slot and root"),
    (0x24, &[0x20, 0x08, 0x0e, 0x80], "LTR and others of the port"),
    (0x28, &[0x20, 0x74], "LTR and others of the port"),
    (0x2c, whole(16), ""),
];

const MSIX: &[Register] = &[
    (3, &[0xc0], ""),
    (2, &[0xff, 0x07], "MSI-X vectors"),
    (4, whole(4), "MSI-X table"),
    (8, whole(4), "MSI-X pending bits"),
];

const ADVANCED: &[Register] = &[(3, &[2], "FLR")];

const VENDOR: &[Register] = &[(2, whole(1), "vendor-specific length")];

const EXTENDED_VENDOR: &[Register] = &[(6, &[0xf0, 0xff], "vendor-specific length")];

/// The registers of a capability that may differ.
fn registers(capability: Capability) -> &'static [Register] {
    match (capability.id, capability.at < CONVENTIONAL) {
        (0x01, true) => POWER,
        (0x05, true) => MSI,
        (0x09, true) => VENDOR,
        (0x10, true) => EXPRESS,
        (0x11, true) => MSIX,
        (0x13, true) => ADVANCED,
        (0x0b | 0x23, false) => EXTENDED_VENDOR,
        _ => &[],
    }
}

/// The differences between a dump and the guest's view of it.
pub fn between(dump: &[u8], view: &[u8]) -> Difference {
    let (own, shown) = (lists::all(dump), lists::all(view));
    let hidden = own.iter().filter(|it| !shown.contains(it)).map(|it| name(*it)).collect();
    let mut found = Difference { hidden, ..Difference::default() };
    for (offset, (old, new)) in dump.iter().zip(view).enumerate().filter(|(_, (a, b))| a != b) {
        let owner = owner(&own, offset);
        let is_hidden = owner.is_some_and(|it| !shown.contains(&it));
        // A hidden capability is zero, but for the null one that begins a list.
        let is_expected = match owner {
            Some(owner) => (is_hidden && *new == 0) || offset < owner.at + header_size(owner),
            None => false,
        };
        if !is_expected {
            let (registers, start) = owner.map_or((HEADER, 0), |it| (registers(it), it.at));
            found.note(registers, offset - start, old ^ new);
            found.faults.extend(
                fault(registers, offset - start, old ^ new).then_some((offset, *old, *new)),
            );
        }
    }
    found
}

/// The capability before an offset, in the same space.
fn owner(own: &[Capability], offset: usize) -> Option<Capability> {
    let start = if offset < CONVENTIONAL { 0 } else { CONVENTIONAL };
    own.iter().copied().filter(|it| it.at >= start && it.at <= offset).max()
}

/// The bits of a register in the byte at an offset.
fn mask((first, masks, _): &Register, offset: usize) -> u8 {
    offset.checked_sub(*first).and_then(|at| masks.get(at)).copied().unwrap_or(0)
}

/// Whether a bit that differs belongs to no register that may differ.
fn fault(registers: &[Register], offset: usize, bits: u8) -> bool {
    registers.iter().fold(bits, |left, register| left & !mask(register, offset)) != 0
}

impl Difference {
    /// Notes the names of the registers that have these bits.
    fn note(&mut self, registers: &[Register], offset: usize, bits: u8) {
        let has = |register: &&Register| mask(register, offset) & bits != 0;
        let names = registers.iter().filter(has).map(|(_, _, name)| *name);
        self.changed.extend(names.filter(|name| !name.is_empty()));
    }
}

/// The size of ID and next pointer.
fn header_size(capability: Capability) -> usize {
    if capability.at < CONVENTIONAL { 2 } else { 4 }
}

/// The name of a capability, as in docs/devices.md.
pub fn name(capability: Capability) -> String {
    let rows = if capability.at < CONVENTIONAL { &STANDARD[..] } else { &EXTENDED[..] };
    let row = rows.iter().find(|row| row.id == capability.id);
    row.map_or_else(|| format!("reserved {:#x}", capability.id), |row| row.name.to_owned())
}
