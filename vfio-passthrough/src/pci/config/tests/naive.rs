//! Tests random accesses to the device of these tests against a table of its bytes that was written
//! by hand.

use super::*;

/// Bytes with emulated bits: an offset, the masks of emulated bits and of writable bits, and the
/// values at power-on. All other bits are forwarded.
type Row = (usize, Vec<u8>, Vec<u8>, Vec<u8>);

fn fixed(offset: usize, values: &[u8]) -> Row {
    written(offset, &vec![0; values.len()], values)
}

fn written(offset: usize, writable: &[u8], values: &[u8]) -> Row {
    (offset, vec![0xff; values.len()], writable.to_vec(), values.to_vec())
}

fn some_bits(offset: usize, emulated: u8, value: u8) -> Row {
    (offset, vec![emulated], vec![0], vec![value])
}

/// The bits of Device Control and Device Control 2 that a forwarded write has as the host set them.
const WITHHELD: [(usize, u8); 3] = [(0x89, 0x02), (0xa8, 0x20), (0xa9, 0x74)];

fn rows() -> Vec<Row> {
    let mut rows = vec![
        fixed(0x00, &[0x86, 0x80, 0x45, 0x58]),
        // Command; the capability list bit of status.
        written(0x04, &[0x47, 0x05], &[0, 0]),
        some_bits(0x06, 0x10, 0x10),
        fixed(0x08, &[2, 2, 8, 1]),
        // Cache line size, latency timer, header type, BIST.
        written(0x0c, &[0xff, 0xff, 0, 0], &[16, 0, 0, 0]),
        // BAR0 with 64 bits and 16 KiB, BAR2 with 32 bits and 4 KiB, BAR3 with 32 ports.
        written(0x10, &[0, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[4, 0, 0, 0, 0, 0, 0, 0]),
        written(0x18, &[0, 0xf0, 0xff, 0xff], &[8, 0, 0, 0]),
        written(0x1c, &[0xe0, 0xff, 0xff, 0xff], &[1, 0, 0, 0]),
        fixed(0x20, &[0; 16]),
        // The ROM of 64 KiB.
        written(0x30, &[0x01, 0, 0xff, 0xff], &[0; 4]),
        fixed(0x34, &[0x50, 0, 0, 0, 0, 0, 0, 0]),
        // Interrupt line and pin.
        written(0x3c, &[0xff, 0, 0, 0], &[0, 1, 0, 0]),
    ];
    rows.extend([
        // MSI: control, address, its upper half, data.
        written(0x50, &[0, 0, 0x71, 0], &[0x05, 0x60, 0x84, 0]),
        written(0x54, &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0; 10]),
        // Extended Message Data, which is not served.
        fixed(0x5e, &[0; 2]),
        // MSI-X: control, table, pending bits.
        written(0x60, &[0, 0, 0, 0xc0], &[0x11, 0x80, 64, 0]),
        fixed(0x64, &[0, 0x20, 0, 0, 0, 0x30, 0, 0]),
        // PCI Express: its version and type, FLR, link, slot and root registers; phantom
        // functions; ARI forwarding, LTR, 10-bit tags, OBFF and FRS. Their enables.
        fixed(0x80, &[0x10, 0xc0, 0x92, 0]),
        some_bits(0x84, 0x18, 0),
        some_bits(0xa4, 0x20, 0),
        some_bits(0xa5, 0x08, 0),
        some_bits(0xa6, 0x0e, 0),
        some_bits(0xa7, 0x80, 0),
        some_bits(0xa8, 0x20, 0),
        some_bits(0xa9, 0x74, 0),
        some_bits(0x89, 0x82, 0),
        fixed(0x8c, &[0; 0x18]),
        fixed(0xac, &[0; 0x10]),
        fixed(0xc0, &[0x01, 0]),
        // SR-IOV hidden, AER shown as the last one, ATS hidden.
        fixed(0x100, &[0, 0, 0, 0x12]),
        fixed(0x104, &[0; 0x1c]),
        fixed(0x120, &[1, 0, 2, 0]),
        fixed(0x180, &[0; 0xe80]),
    ]);
    rows
}

#[derive(Clone, Copy, Default)]
struct NaiveByte {
    emulated: u8,
    writable: u8,
    value: u8,
}

struct Naive {
    bytes: Vec<NaiveByte>,
    /// The device's own bytes.
    device: Vec<u8>,
}

impl Naive {
    fn new() -> Self {
        let mut bytes = vec![NaiveByte::default(); 0x1000];
        for (offset, emulated, writable, values) in rows() {
            for index in 0..values.len() {
                let (emulated, writable, value) = (emulated[index], writable[index], values[index]);
                bytes[offset + index] = NaiveByte { emulated, writable, value };
            }
        }
        let device = device();
        Self { bytes, device }
    }

    fn read(&self, at: usize) -> u8 {
        let byte = self.bytes[at];
        (byte.value & byte.emulated) | (self.device[at] & !byte.emulated)
    }

    /// Applies a write, and returns the byte that is forwarded, if any.
    fn write(&mut self, at: usize, value: u8) -> Option<u8> {
        let byte = &mut self.bytes[at];
        byte.value = (byte.value & !byte.writable) | (value & byte.writable);
        let shown = (value & !byte.emulated) | (byte.value & byte.emulated);
        let withheld = WITHHELD.iter().find(|(offset, _)| *offset == at);
        let own = withheld.map_or(0, |(offset, bits)| device()[*offset] & bits);
        (byte.emulated != 0xff).then_some(shown | own)
    }
}

#[derive(Clone, Debug)]
enum Access {
    Read(usize, usize),
    Write(usize, Vec<u8>),
    /// The device changes one of its bytes.
    Device(usize, u8),
}

/// Prefers offsets with registers.
fn offset() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 0..0x100_usize, 2 => 0xf8..0x190_usize, 1 => 0x190..0x1000_usize]
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        (offset(), 1..9_usize).prop_map(|(at, length)| Access::Read(at, length.min(0x1000 - at))),
        (offset(), prop::collection::vec(prop_oneof![Just(0xff), any::<u8>()], 1..9)).prop_map(
            |(at, data)| {
                let length = data.len().min(0x1000 - at);
                Access::Write(at, data[..length].to_vec())
            }
        ),
        (offset(), any::<u8>()).prop_map(|(at, value)| Access::Device(at, value)),
    ]
}

proptest! {
    #[test]
    fn the_view_agrees_with_the_model(accesses in prop::collection::vec(access(), 1..80)) {
        let (mut view, mut naive) = (view(), Naive::new());
        for access in accesses {
            match access {
                Access::Device(at, value) => naive.device[at] = value,
                Access::Write(at, data) => {
                    let written = view.write(at as u16, &data);
                    let runs = written.forward.iter();
                    let flat: Vec<_> = runs
                        .flat_map(|(at, run)| (usize::from(*at)..).zip(run.clone()))
                        .collect();
                    let expected: Vec<_> = (at..).zip(&data)
                        .filter_map(|(at, value)| Some((at, naive.write(at, *value)?)))
                        .collect();
                    prop_assert_eq!(&flat, &expected);
                    flat.into_iter().for_each(|(at, value)| naive.device[at] = value);
                }
                Access::Read(at, length) => {
                    let asked = view.needs_device(at as u16, length);
                    let mut bytes = naive.bytes[at..at + length].iter();
                    prop_assert_eq!(asked, bytes.any(|byte| byte.emulated != 0xff));
                    let mut data = vec![0; length];
                    if asked {
                        data.copy_from_slice(&naive.device[at..at + length]);
                    }
                    view.overlay(at as u16, &mut data);
                    let expected: Vec<_> = (at..at + length).map(|at| naive.read(at)).collect();
                    prop_assert_eq!(data, expected, "{:#x}", at);
                }
            }
        }
    }
}
