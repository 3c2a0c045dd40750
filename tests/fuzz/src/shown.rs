//! Nothing is shown that does nothing: what a guest finds in config space can be served.

use vfio_passthrough::backend::Device;
use vfio_passthrough::pci::capability_table::{Kind, extended, standard};
use vfio_passthrough::pci::msi::MsiLayout;
use vfio_passthrough::pci::msix::MsixLayout;
use vfio_passthrough::{BarIndex, ByteRange, PassthroughFunction, Space};

const POWER: u8 = 0x01;
const VPD: u8 = 0x03;
const MSI: u8 = 0x05;
const PCI_X: u8 = 0x07;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
const SATA: u8 = 0x12;

const AER: u16 = 0x0001;
const VSEC: u16 = 0x000b;
const DVSEC: u16 = 0x0023;

/// Reads config space of the guest.
pub fn read<const N: usize>(function: &PassthroughFunction, offset: u16) -> [u8; N] {
    let mut data = [0; N];
    function.config_read(offset, &mut data);
    data
}

/// The IDs and offsets of the capabilities that the guest finds.
pub fn list(function: &PassthroughFunction) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut next = read::<1>(function, 0x34)[0] & !3;
    while next != 0 {
        assert!(found.len() < 48, "the guest's list of capabilities loops");
        let [id, after] = read(function, next.into());
        found.push((id, next.into()));
        next = after & !3;
    }
    found
}

/// Checks all that a guest finds in config space against the table of capabilities and VFIO.
pub fn check(function: &PassthroughFunction, device: &dyn Device) {
    let count = |index| device.irq(index).map_or(0, |irq| irq.count);
    check_header(function, count(0));
    for (id, at) in list(function) {
        assert_ne!(standard(id), Kind::Hidden, "capability {id:#x} is shown");
        let control = u16::from_le_bytes(read(function, at + 2));
        match id {
            MSI => check_msi(control, count(1)),
            MSIX => check_msix(function, at, control, count(2)),
            EXPRESS => check_express(function, at, control),
            _ => {}
        }
    }
    let extended = extended_list(function);
    extended.iter().for_each(|(id, at)| check_extended(function, *id, *at));
    check_room(function, &extended);
}

/// No capability reaches into another one, or over the end of its space.
fn check_room(function: &PassthroughFunction, extended: &[(u16, u16)]) {
    let standard = list(function);
    let starts: Vec<u16> =
        standard.iter().map(|(_, at)| *at).chain(extended.iter().map(|(_, at)| *at)).collect();
    let ends =
        standard.iter().map(|(id, at)| (*at, at + size_of(function, *id, *at), 0x100)).chain(
            extended.iter().map(|(id, at)| (*at, at + extended_size(function, *id, *at), 0x1000)),
        );
    for (at, end, last) in ends {
        let next = starts.iter().copied().filter(|start| *start > at && *start < last).min();
        assert!(end <= next.unwrap_or(last), "the capability at {at:#x} ends at {end:#x}");
    }
}

/// The size of a capability in bytes, as the guest computes it.
fn size_of(function: &PassthroughFunction, id: u8, at: u16) -> u16 {
    let [_, _, low, high] = read::<4>(function, at);
    match id {
        MSI => MsiLayout::new(u16::from_le_bytes([low, high])).size(),
        MSIX => 12,
        VENDOR => low.into(),
        EXPRESS if low & 0xf == 1 => 12,
        EXPRESS => 0x2c,
        PCI_X | POWER | VPD | SATA => 8,
        _ => 4,
    }
}

fn extended_size(function: &PassthroughFunction, id: u16, at: u16) -> u16 {
    match id {
        AER => 0x2c,
        VSEC | DVSEC => u16::from_le_bytes(read(function, at + 6)) >> 4,
        _ => 4,
    }
}

/// The function is an integrated endpoint, and has nothing enabled that it is not capable of.
fn check_express(function: &PassthroughFunction, at: u16, flags: u16) {
    assert!([0x91, 0x92].contains(&flags), "PCI Express flags {flags:#x}");
    let [capable, control] =
        [4, 8].map(|register| u32::from_le_bytes(read(function, at + register)));
    assert!(capable & 0x18 == 0 && control & 0x200 == 0, "phantom functions");
    if flags & 0xf == 2 {
        let [capable, control] =
            [0x24, 0x28].map(|register| u32::from_le_bytes(read(function, at + register)));
        assert_eq!((capable & 0x800e_0820, control & 0x7420), (0, 0), "needs the port above");
    }
}

fn check_header(function: &PassthroughFunction, intx: u32) {
    let [.., kind, _] = read::<4>(function, 0x0c);
    let [_, pin] = read::<2>(function, 0x3c);
    assert_eq!(kind & 0x7f, 0, "header type");
    assert!(pin <= 4 && (pin == 0 || intx != 0), "pin {pin}, {intx} in VFIO");
    let identity = u32::from_le_bytes(read(function, 0));
    assert!(identity != 0 && identity & 0xffff != 0xffff, "{identity:#x}");
    for bar in function.bars() {
        let end = match bar.kind.space() {
            Space::Io => 1 << 15,
            Space::Memory if bar.register_size() == 4 => 1 << 31,
            Space::Memory => 1 << 51,
        };
        assert!(bar.size.is_power_of_two() && bar.size <= end, "{bar:x?}");
    }
}

fn check_msi(control: u16, count: u32) {
    let layout = MsiLayout::new(control);
    assert_eq!(layout.control(), control, "reserved bits of MSI");
    assert!(u32::from(layout.vectors()) <= count, "{control:#x}, {count} in VFIO");
}

fn check_msix(function: &PassthroughFunction, at: u16, control: u16, count: u32) {
    let [table, pba] = [4, 8].map(|register| u32::from_le_bytes(read(function, at + register)));
    assert_eq!(control & 0xf800, 0, "MSI-X is disabled, and reserved bits are zero");
    let layout = MsixLayout::new(control, table, pba).expect("table and PBA are in a BAR");
    assert!(u32::from(layout.vectors) <= count, "{layout:x?}, {count} in VFIO");
    let is_inside = |index: BarIndex, range: ByteRange| {
        let mut bars = function.bars().iter().filter(|bar| bar.kind.space() == Space::Memory);
        bars.any(|bar| bar.index == index && range.end() <= bar.size)
    };
    assert!(is_inside(layout.table_bar, layout.table), "{layout:x?}");
    assert!(is_inside(layout.pba_bar, layout.pba), "{layout:x?}");
    let apart = layout.table_bar != layout.pba_bar || !layout.table.overlaps(layout.pba);
    assert!(apart, "{layout:x?}");
}

/// The IDs and offsets of the extended capabilities that the guest finds.
fn extended_list(function: &PassthroughFunction) -> Vec<(u16, u16)> {
    let mut found = Vec::new();
    let mut next = 0x100;
    while next != 0 {
        assert!(found.len() < 960, "the guest's list of extended capabilities loops");
        let header = u32::from_le_bytes(read(function, next));
        if header == 0 || header == u32::MAX {
            break;
        }
        found.push((header as u16, next));
        next = (header >> 20) as u16 & 0xffc;
    }
    found
}

fn check_extended(function: &PassthroughFunction, id: u16, at: u16) {
    let version = read::<4>(function, at)[2] & 0xf;
    let is_head = at == 0x100 && id == 0;
    let is_served = extended(id) != Kind::Hidden && version != 0;
    assert!(is_head || is_served, "extended capability {id:#x} is shown");
}
