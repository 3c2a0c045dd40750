//! A line is logged only where a person should act: an ordinary life of a function logs nothing.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

use std::sync::{Arc, Mutex};

use log::{Level, LevelFilter, Log, Metadata, Record};
use vfio_passthrough::backend::{IrqFlags, IrqInfo};
use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::{PassthroughFunction, ResetPolicy};

/// Keeps the warnings and errors.
static LOG: Lines = Lines(Mutex::new(Vec::new()));

struct Lines(Mutex<Vec<String>>);

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Config space of `size` bytes with capabilities: an ID and an offset each, linked in this order.
fn config(size: usize, capabilities: &[(u8, u8)]) -> Vec<u8> {
    let mut config = vec![0; size];
    let mut put = |offset: usize, bytes: &[u8]| {
        config[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &[0x36, 0x1b, 0x10, 0, 0, 0, 0x10, 0, 2, 0, 0, 2]);
    put(0x3d, &[1]);
    let mut next = 0;
    for (id, offset) in capabilities.iter().rev() {
        put(usize::from(*offset), &[*id, next]);
        next = *offset;
    }
    put(0x34, &[next]);
    config
}

const PM: u8 = 0x01;
const VPD: u8 = 0x03;
const MSI: u8 = 0x05;
const PCI_X: u8 = 0x07;
const VENDOR: u8 = 0x09;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;
const AF: u8 = 0x13;

/// A name, the size of config space, and the capabilities.
type Kind = (&'static str, usize, &'static [(u8, u8)]);

const DEVICES: [Kind; 10] = [
    // As the kernel's sample mtty (MTTY_CONFIG_SPACE_SIZE).
    ("one byte less than conventional", 255, &[(PM, 0x40)]),
    ("conventional", 256, &[]),
    ("conventional with power management", 256, &[(PM, 0x40)]),
    ("conventional with MSI", 256, &[(MSI, 0x50), (PM, 0xdc)]),
    ("conventional with MSI-X", 256, &[(MSIX, 0x40), (VPD, 0x60), (VENDOR, 0x70)]),
    ("conventional with FLR", 256, &[(AF, 0x98), (PCI_X, 0xe4)]),
    ("conventional, capabilities up to the end", 256, &[(PM, 0xf0), (AF, 0xf8)]),
    ("conventional, an empty capability at the end", 256, &[(PM, 0x40), (VENDOR, 0xfc)]),
    ("express", 4096, &[(PM, 0x40), (MSI, 0x50), (EXPRESS, 0x70)]),
    ("express with MSI-X", 4096, &[(PM, 0x40), (MSIX, 0x50), (EXPRESS, 0x70)]),
];

fn device(size: usize, capabilities: &[(u8, u8)]) -> PciDevice {
    let has = |id| u32::from(capabilities.iter().any(|(own, _)| *own == id));
    let irq = |index, flags, count| IrqInfo { index, flags, count };
    let irqs = vec![
        irq(0, IrqFlags::AUTOMASKED, 1),
        irq(1, IrqFlags::NORESIZE, has(MSI)),
        irq(2, IrqFlags::EVENTFD, has(MSIX)),
    ];
    let faults = Arc::new(Faults::default());
    PciDevice::new(faults, config(size, capabilities), &[0x4000], irqs).unwrap()
}

/// Reads and writes of several sizes at every offset of ECAM, and of all of it at once, as a VMM
/// that shows config space does. Each register is written with what was read.
fn access_everything(function: &PassthroughFunction) {
    for offset in 0..4096_u16 {
        for length in [1, 2, 4, 8] {
            access(function, offset, length);
        }
    }
    [256, 4096].into_iter().for_each(|length| access(function, 0, length));
}

fn access(function: &PassthroughFunction, offset: u16, length: usize) {
    let mut data = vec![0; length];
    function.config_read(offset, &mut data);
    let _ = function.config_write(offset, &data);
}

/// A read across the end of config space has the bytes before the end, and all-ones after it.
fn assert_ones_past_the_end(function: &PassthroughFunction, size: usize) {
    let mut data = [0; 4096 + 8];
    function.config_read(0, &mut data);
    assert_eq!(data[..4], [0x36, 0x1b, 0x10, 0]);
    assert!(data[size..].iter().all(|byte| *byte == 0xff), "{size}");
}

/// Sizes BAR0, places it, and enables decoding, bus mastering and MSI or MSI-X.
fn start(function: &PassthroughFunction, capabilities: &[(u8, u8)]) {
    let write = |offset: u16, value: u32| {
        let _ = function.config_write(offset, &value.to_le_bytes());
    };
    write(0x10, u32::MAX);
    write(0x10, 0xc000_0000);
    let _ = function.config_write(4, &6_u16.to_le_bytes());
    for (id, offset) in capabilities {
        let control = match *id {
            MSI => 1_u16,
            MSIX => 1 << 15,
            _ => continue,
        };
        let _ = function.config_write(u16::from(*offset) + 2, &control.to_le_bytes());
    }
}

#[test]
fn an_ordinary_life_logs_nothing() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(LevelFilter::Warn);
    for (name, size, capabilities) in DEVICES {
        let guest = Guest::new(Arc::new(Faults::default()));
        let device = Arc::new(device(size, capabilities));
        let address = "01:00.0".parse().unwrap();
        let services = guest.services();
        let function =
            PassthroughFunction::new(address, device, &services, ResetPolicy::Required).unwrap();
        access_everything(&function);
        assert_ones_past_the_end(&function, size);
        start(&function, capabilities);
        access_everything(&function);
        function.reset().1.unwrap();
        start(&function, capabilities);
        function.shutdown().unwrap();
        access_everything(&function);
        drop(function);
        let logged = std::mem::take(&mut *LOG.0.lock().unwrap());
        assert!(logged.is_empty(), "{name}: {logged:#?}");
    }
}
