//! Tests of all locations of the MSI-X table and pending bits: a device may have them in any BAR,
//! at any multiple of 8 (PCI 6.8.2.4, 6.8.2.5).

use super::*;
use vfio_passthrough::backend::IrqInfo;
use vfio_passthrough::{ByteRange, Space};

/// A BAR, and an offset in it.
type Spot = (u8, u64);

struct Place {
    name: &'static str,
    vectors: u16,
    /// The size of each BAR. All are 32-bit BARs.
    sizes: [u64; 6],
    table: Spot,
    pba: Spot,
    /// The areas that the guest accesses without the VMM: BAR, start, end.
    direct: &'static [(u8, u64, u64)],
}

#[rustfmt::skip]
const PLACES: [Place; 11] = [
    Place { name: "BARs of their own", vectors: 8, sizes: [0x4000, 0x1000, 0x1000, 0, 0, 0],
        table: (1, 0), pba: (2, 0), direct: &[(0, 0, 0x4000)] },
    Place { name: "BAR5", vectors: 8, sizes: [0x4000, 0, 0, 0, 0, 0x2000],
        table: (5, 0x1000), pba: (5, 0), direct: &[(0, 0, 0x4000)] },
    Place { name: "a BAR of less than a page", vectors: 8, sizes: [0x4000, 0x100, 0, 0, 0, 0],
        table: (1, 0), pba: (1, 0x80), direct: &[(0, 0, 0x4000)] },
    Place { name: "one page, with registers", vectors: 8, sizes: [0x4000, 0, 0, 0, 0, 0],
        table: (0, 0x1100), pba: (0, 0x1800), direct: &[(0, 0, 0x1000), (0, 0x2000, 0x4000)] },
    Place { name: "one after the other", vectors: 65, sizes: [0x4000, 0, 0, 0, 0, 0],
        table: (0, 0x1000), pba: (0, 0x1410), direct: &[(0, 0, 0x1000), (0, 0x2000, 0x4000)] },
    Place { name: "multiples of 8 only", vectors: 65, sizes: [0x4000, 0, 0, 0, 0, 0],
        table: (0, 0x1008), pba: (0, 0x2018), direct: &[(0, 0, 0x1000), (0, 0x3000, 0x4000)] },
    Place { name: "across a page boundary", vectors: 65, sizes: [0x8000, 0, 0, 0, 0, 0],
        table: (0, 0x1ff8), pba: (0, 0x4ff8),
        direct: &[(0, 0, 0x1000), (0, 0x3000, 0x4000), (0, 0x6000, 0x8000)] },
    Place { name: "pending bits first, table at the BAR's end", vectors: 65,
        sizes: [0x4000, 0, 0, 0, 0, 0],
        table: (0, 0x3bf0), pba: (0, 0), direct: &[(0, 0x1000, 0x3000)] },
    Place { name: "pending bits at the BAR's end", vectors: 128, sizes: [0x4000, 0, 0, 0, 0, 0],
        table: (0, 0), pba: (0, 0x3ff0), direct: &[(0, 0x1000, 0x3000)] },
    Place { name: "2048 vectors", vectors: 2048, sizes: [0x2_0000, 0, 0, 0, 0, 0],
        table: (0, 0x8000), pba: (0, 0x1_8000),
        direct: &[(0, 0, 0x8000), (0, 0x1_0000, 0x1_8000), (0, 0x1_9000, 0x2_0000)] },
    Place { name: "2048 vectors, pending bits first, up to the BAR's end", vectors: 2048,
        sizes: [0x1_0000, 0, 0, 0, 0, 0],
        table: (0, 0x8000), pba: (0, 0x7f00), direct: &[(0, 0, 0x7000)] },
];

const CONTROL: u16 = 0x42;

fn home(bar: u8) -> u64 {
    0xe000_0000 + (u64::from(bar) << 24)
}

impl Place {
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 0x1000];
        let mut put = |offset: usize, bytes: &[u8]| {
            config[offset..offset + bytes.len()].copy_from_slice(bytes)
        };
        put(0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 0, 0, 2]);
        put(0x34, &[0x40]);
        let [low, high] = (self.vectors - 1).to_le_bytes();
        put(0x40, &[0x11, 0, low, high]);
        for (offset, (bar, at)) in [(0x44, self.table), (0x48, self.pba)] {
            put(offset, &(at as u32 | u32::from(bar)).to_le_bytes());
        }
        config
    }

    /// Makes a function whose BARs are all placed and decode.
    fn setup(&self, flags: IrqFlags) -> Setup {
        let faults = Arc::new(Faults::default());
        let irq = IrqInfo { index: ON_MSIX, flags, count: self.vectors.into() };
        let device = PciDevice::new(faults.clone(), self.config(), &self.sizes, vec![irq]).unwrap();
        let (device, guest) = (Arc::new(device), Guest::new(faults.clone()));
        let address = "01:00.0".parse().unwrap();
        let policy = ResetPolicy::Required;
        let function =
            PassthroughFunction::new(address, device.clone(), &guest.services(), policy).unwrap();
        for bar in 0..6 {
            let _ =
                function.config_write(0x10 + 4 * u16::from(bar), &(home(bar) as u32).to_le_bytes());
        }
        let _ = function.config_write(COMMAND, &[6, 0]);
        Setup { faults, device, guest, function }
    }

    fn direct(&self) -> Vec<ByteRange> {
        let ranges = self.direct.iter();
        ranges
            .map(|(bar, start, end)| ByteRange::new(home(*bar) + start, end - start).unwrap())
            .collect()
    }
}

/// An access of the guest by address, which a bus decodes.
fn at(setup: &Setup, (bar, offset): Spot, access: impl FnOnce(BarIndex, u64)) {
    let found = setup.function.decode(Space::Memory, home(bar) + offset);
    let (found, offset) = found.unwrap();
    assert_eq!(found.number(), bar);
    access(found, offset);
}

fn write(setup: &Setup, spot: Spot, data: &[u8]) {
    at(setup, spot, |bar, offset| {
        setup.function.bar_write(bar, offset, data);
    });
}

fn read<const N: usize>(setup: &Setup, spot: Spot) -> [u8; N] {
    let mut data = [0; N];
    at(setup, spot, |bar, offset| setup.function.bar_read(bar, offset, &mut data));
    data
}

/// Programs a masked vector by dwords or by qwords, and reads the entry in the other width.
fn program(setup: &Setup, (bar, offset): Spot, vector: u16, case: &str) {
    let entry = (bar, offset + u64::from(vector) * 16);
    let register = |register: u64| (entry.0, entry.1 + register);
    let (address, data) = (0xfee0_0000_u64, 1 << 32 | u64::from(vector));
    if vector % 2 == 0 {
        write(setup, register(0), &address.to_le_bytes());
        write(setup, register(8), &data.to_le_bytes());
        let words = [0, 4, 8, 12].map(|word| u32::from_le_bytes(read(setup, register(word))));
        assert_eq!(words, [0xfee0_0000, 0, vector.into(), 1], "{case}");
    } else {
        for (word, value) in [(0, 0xfee0_0000), (4, 0), (8, u32::from(vector)), (12, 1)] {
            write(setup, register(word), &u32::to_le_bytes(value));
        }
        let halves = [0, 8].map(|half| u64::from_le_bytes(read(setup, register(half))));
        assert_eq!(halves, [address, data], "{case}");
    }
}

fn pending(setup: &Setup, (bar, offset): Spot, vector: u16) -> bool {
    let [byte] = read(setup, (bar, offset + u64::from(vector / 8)));
    let whole: [u8; 8] = read(setup, (bar, offset + u64::from(vector / 64 * 8)));
    let bit = u64::from_le_bytes(whole) >> (vector % 64) & 1;
    assert_eq!(bit != 0, byte >> (vector % 8) & 1 != 0, "both widths agree");
    bit != 0
}

/// Checks that a masked vector is pending, before and after its first use, and that it is delivered
/// once when it is unmasked.
fn works(setup: &Setup, place: &Place, vector: u16, case: &str) {
    let control = (place.table.0, place.table.1 + u64::from(vector) * 16 + 12);
    for _ in 0..2 {
        setup.device.raise(vector).unwrap();
        let found = (setup.arrived(), pending(setup, place.pba, vector));
        assert_eq!(found, (times([]), true), "{case}: masked");
        write(setup, control, &[0; 4]);
        assert_eq!(setup.arrived(), times([(vector, 1)]), "{case}: unmasked");
        setup.device.raise(vector).unwrap();
        let found = (setup.arrived(), pending(setup, place.pba, vector));
        assert_eq!(found, (times([(vector, 1)]), false), "{case}: again");
        write(setup, control, &[1, 0, 0, 0]);
    }
}

#[test]
fn a_table_works_at_each_location_and_its_surroundings_reach_the_device() {
    for place in PLACES {
        for flags in [DYNAMIC, NORESIZE] {
            let case = format!("{}, {flags:?}", place.name);
            let setup = place.setup(flags);
            assert_eq!(setup.guest.slots(), place.direct(), "{case}");
            let _ = setup.function.config_write(CONTROL, &ENABLE.to_le_bytes());
            let written = setup.faults.made(Call::Write);
            for vector in [0, 1, 7, place.vectors / 2, place.vectors - 1] {
                program(&setup, place.table, vector, &case);
                works(&setup, &place, vector, &format!("{case}, vector {vector}"));
            }
            write(&setup, place.pba, &[0xff; 8]);
            assert!(!pending(&setup, place.pba, 0), "{case}: read-only");
            assert_eq!(
                setup.faults.made(Call::Write),
                written,
                "{case}: no write reaches the device"
            );
            around(&setup, &place, &case);
        }
    }
}

/// Checks that the dwords before and after the table and the pending bits reach the device, unless
/// they belong to the other of the two.
fn around(setup: &Setup, place: &Place, case: &str) {
    let parts = [
        (place.table, u64::from(place.vectors) * 16),
        (place.pba, u64::from(place.vectors).div_ceil(64) * 8),
    ];
    let is_ours = |bar: u8, offset: u64| {
        let within = |((own, start), size): (Spot, u64)| {
            own == bar && (start..start + size).contains(&offset)
        };
        parts.into_iter().any(within)
    };
    let edges =
        parts.map(|((bar, start), size)| [(bar, start.checked_sub(4)), (bar, Some(start + size))]);
    let inside =
        |(bar, offset): &Spot| *offset < place.sizes[usize::from(*bar)] && !is_ours(*bar, *offset);
    let edges = edges.into_iter().flatten();
    for spot in edges.filter_map(|(bar, offset)| Some((bar, offset?))).filter(inside) {
        let before = setup.faults.made(Call::Write);
        write(setup, spot, &[1, 2, 3, 4]);
        assert_eq!(read(setup, spot), [1, 2, 3, 4], "{case}, {spot:x?}");
        assert_eq!(setup.faults.made(Call::Write), before + 1, "{case}, {spot:x?}");
    }
}
