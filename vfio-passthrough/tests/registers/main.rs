//! Tests what a guest sees of each capability, and of registers that contradict the specification
//! or VFIO. The rows are those of `docs/devices.md`.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

mod bars;
mod capabilities;
mod contradictions;
mod header;
mod lists;
mod messages;

use std::cell::Cell;
use std::sync::Arc;

use vfio_passthrough::backend::{IrqFlags, IrqInfo};
use vfio_passthrough::function::Error;
use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::{PassthroughFunction, ResetPolicy};

/// Where the first capability is: MSI, MSI-X or any other. 0x40 bytes follow.
const FIRST: usize = 0x40;
/// The capabilities of a plain device: PCI Express with FLR, then power management.
const EXPRESS: usize = 0x80;
const POWER: usize = 0xc0;
/// The page of BAR0 that has the MSI-X table, and the page that has its pending bits.
const TABLE: u32 = 0x2000;
const PBA: u32 = 0x3000;

/// A device and VFIO's description of it, to be changed by a test.
struct Odd {
    config: Vec<u8>,
    /// The sizes of BAR0 to BAR5 and the ROM.
    regions: [u64; 7],
    /// The numbers of INTx, MSI and MSI-X vectors.
    irqs: [u32; 3],
    /// Whether VFIO can reset the function.
    resets: bool,
}

impl Odd {
    /// A device without contradictions: BAR0 with 64 bits and 16 KiB, INTx, and two capabilities.
    fn plain() -> Self {
        let config = vec![0; 0x1000];
        let mut plain =
            Self { config, regions: [0x4000, 0, 0, 0, 0, 0, 0], irqs: [1, 0, 0], resets: true };
        plain.put(0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1]);
        plain.put(0x10, &[4]);
        plain.put(0x34, &[EXPRESS as u8]);
        plain.put(0x3d, &[1]);
        plain.put(EXPRESS, &[0x10, POWER as u8, 2, 0, 0, 0, 0, 0x10]);
        plain.put(POWER, &[0x01, 0, 3, 0]);
        plain
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.config[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn put32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    /// Puts a capability before the two of a plain device.
    fn first(&mut self, id: u8, registers: &[u8]) {
        self.put(0x34, &[FIRST as u8]);
        self.put(FIRST, &[id, EXPRESS as u8]);
        self.put(FIRST + 2, registers);
    }

    /// Puts MSI with this message control, and as many vectors in VFIO.
    fn msi(&mut self, control: u16, vectors: u32) {
        self.first(0x05, &control.to_le_bytes());
        self.irqs[1] = vectors;
    }

    /// Puts MSI-X with these registers, and as many vectors in VFIO.
    fn msix(&mut self, control: u16, table: u32, pba: u32, vectors: u32) {
        self.first(0x11, &control.to_le_bytes());
        self.put32(FIRST + 4, table);
        self.put32(FIRST + 8, pba);
        self.irqs[2] = vectors;
    }

    /// Assigns the device to a guest.
    fn assign(self) -> Result<Seen, Error> {
        let faults = Arc::new(Faults::default());
        let irq = |index, count| IrqInfo { index, count, flags: IrqFlags::EVENTFD };
        let irqs = (0..).zip(self.irqs).map(|(index, count)| irq(index, count)).collect();
        let device = PciDevice::new(faults.clone(), self.config, &self.regions, irqs).unwrap();
        let device = if self.resets { device } else { device.without_reset(Vec::new()) };
        let (device, guest) = (Arc::new(device), Guest::new(faults));
        let address = "01:00.0".parse().unwrap();
        let policy = ResetPolicy::IfPossible;
        let function =
            PassthroughFunction::new(address, device.clone(), &guest.services(), policy)?;
        Ok(Seen { function, device, guest })
    }
}

/// The device in its guest.
struct Seen {
    function: PassthroughFunction,
    device: Arc<PciDevice>,
    guest: Guest,
}

impl Seen {
    fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        self.function.config_read(u16::try_from(offset).unwrap(), &mut data);
        data
    }

    fn u8(&self, offset: usize) -> u8 {
        self.read::<1>(offset)[0]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write(&self, offset: usize, data: &[u8]) {
        let _ = self.function.config_write(u16::try_from(offset).unwrap(), data);
    }

    fn real<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        self.device.config(offset as u64, &mut data).unwrap();
        data
    }

    /// The IDs of the capabilities that the guest finds.
    fn list(&self) -> Vec<u8> {
        let mut next = self.u8(0x34);
        let mut found = Vec::new();
        while next != 0 {
            assert!(found.len() < 48, "the guest's list loops: {found:x?}");
            let [id, after] = self.read(next.into());
            found.push(id);
            next = after;
        }
        found
    }

    /// The extended capabilities that the guest finds: IDs and versions.
    fn extended_list(&self) -> Vec<(u16, u8)> {
        let mut next = 0x100;
        let mut found = Vec::new();
        while next != 0 {
            assert!(found.len() < 960, "the guest's extended list loops: {found:x?}");
            let header = self.u32(next);
            if header == 0 || header == u32::MAX {
                break;
            }
            found.push((header as u16, (header >> 16) as u8 & 0xf));
            next = (header >> 20) as usize & 0xffc;
        }
        found
    }

    /// The size and the type bits of a BAR, which the guest gets as PCI says.
    fn size_of(&self, register: usize) -> (u32, u32) {
        self.write(register, &u32::MAX.to_le_bytes());
        let ones = self.u32(register);
        let bits = if ones & 1 != 0 { 0b11 } else { 0b1111 };
        ((!(ones & !bits)).wrapping_add(1), ones & bits)
    }
}

thread_local! {
    static LINES: Cell<usize> = const { Cell::new(0) };
}

/// Counts what this thread logs.
struct Counter;

impl log::Log for Counter {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        assert!(text.starts_with("0000:01:00.0: "), "the line names the device: {text}");
        LINES.set(LINES.get() + 1);
    }

    fn flush(&self) {}
}

/// The result of `work`, and the number of warnings that it logs.
fn logged<T>(work: impl FnOnce() -> T) -> (T, usize) {
    // The first test sets the logger. It fails in the others.
    let _ = log::set_logger(&Counter);
    log::set_max_level(log::LevelFilter::Warn);
    LINES.set(0);
    let result = work();
    (result, LINES.get())
}

/// The rows of the tables in a section of `docs/devices.md`, as cells.
fn rows_of(section: &str) -> Vec<Vec<&'static str>> {
    let devices = include_str!("../../../docs/devices.md");
    let after = devices.split(&format!("\n### {section}\n")).nth(1).expect("the section exists");
    let text = after.split("\n##").next().unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    lines.map(|line| line.split(" | ").collect()).collect()
}
