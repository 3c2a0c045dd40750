//! Tests of BARs on the model: kinds, addresses, failures and resets.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that fails panics"
)]

mod config;
mod few;
mod kinds;
mod naive;
mod order;
mod p2p;
mod places;
mod presence;
mod reset;

use std::cell::Cell;
use std::sync::Arc;

use vfio_passthrough::backend::{IrqFlags, IrqInfo, RegionFlags};
use vfio_passthrough::function::Error;
use vfio_passthrough::model::{AfterReset, Call, Fault, Faults, Guest, Iommu, PciDevice};
use vfio_passthrough::{
    BarIndex, ByteRange, DmaSpace, PassthroughFunction, ResetPolicy, VmmServices,
};

const COMMAND: u16 = 0x04;
const PM_CONTROL: u16 = 0x44;
const EXPRESS: u16 = 0x50;
const EXPRESS_CONTROL: u16 = EXPRESS + 8;
const ROM_REGION: u32 = 6;

/// Bytes of config space, by offset.
type Extra<'a> = &'a [(usize, &'a [u8])];

/// Config space of a PCI Express endpoint with power management and FLR. `bars` are the host's BAR
/// registers. `extra` bytes overwrite others.
fn config_of(bars: [u32; 6], extra: Extra<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 0x1000];
    let mut put =
        |offset: usize, new: &[u8]| bytes[offset..offset + new.len()].copy_from_slice(new);
    put(0x00, &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1]);
    for (index, bar) in bars.into_iter().enumerate() {
        put(0x10 + index * 4, &bar.to_le_bytes());
    }
    put(0x34, &[0x40]);
    put(0x40, &[0x01, 0x50, 3, 0]);
    put(EXPRESS.into(), &[0x10, 0, 2, 0, 0, 0, 0, 0x10]);
    extra.iter().for_each(|(offset, new)| put(*offset, new));
    bytes
}

/// A function of the model, in a guest of the model.
struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    guest: Guest,
    iommu: Arc<Iommu>,
    function: PassthroughFunction,
}

impl Setup {
    fn new(config: Vec<u8>, regions: &[u64]) -> Self {
        Self::of(config, regions, |device| device)
    }

    fn of(config: Vec<u8>, regions: &[u64], change: impl FnOnce(PciDevice) -> PciDevice) -> Self {
        let faults = Arc::new(Faults::default());
        Self::assign(&faults, config, regions, change, ResetPolicy::Required).unwrap()
    }

    fn assign(
        faults: &Arc<Faults>,
        config: Vec<u8>,
        regions: &[u64],
        change: impl FnOnce(PciDevice) -> PciDevice,
        policy: ResetPolicy,
    ) -> Result<Self, Error> {
        // MSI and MSI-X with as many vectors as any of these devices has; no INTx.
        let irq = |index, count| IrqInfo { index, count, flags: IrqFlags::empty() };
        let irqs = vec![irq(1, 32), irq(2, 2048)];
        let device = PciDevice::new(faults.clone(), config, regions, irqs).unwrap();
        // VFIO does not allow a ROM to be mapped or written.
        let device = device.with_region(ROM_REGION, |region| region.flags = RegionFlags::READ);
        let device = Arc::new(change(device));
        let guest = Guest::new(faults.clone());
        let address = "01:00.0".parse().unwrap();
        let iommu = Arc::new(Iommu::new(faults.clone()));
        let host = VmmServices { p2p: Some(DmaSpace::new(iommu.clone())), ..guest.services() };
        Ok(Self {
            function: PassthroughFunction::new(address, device.clone(), &host, policy)?,
            iommu,
            faults: faults.clone(),
            device,
            guest,
        })
    }

    fn write16(&self, offset: u16, value: u16) {
        let _ = self.function.config_write(offset, &value.to_le_bytes());
    }

    fn write32(&self, offset: u16, value: u32) {
        let _ = self.function.config_write(offset, &value.to_le_bytes());
    }

    fn read16(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.function.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn read32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn bar_read32(&self, bar: u8, offset: u64) -> u32 {
        let bar = BarIndex::new(bar).unwrap_or(BarIndex::ROM);
        let mut data = [0; 4];
        self.function.bar_read(bar, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn real(&self, offset: u64, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        self.device.config(offset, &mut data).unwrap();
        data
    }

    fn slot_calls(&self) -> u64 {
        self.faults.made(Call::PlaceSlot) + self.faults.made(Call::RemoveSlot)
    }
}

fn range(start: u64, size: u64) -> ByteRange {
    ByteRange::new(start, size).unwrap()
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

    fn log(&self, _: &log::Record<'_>) {
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
    (work(), LINES.get())
}
