//! Tests of a function's interrupts on the model: the guest programs them, the device fires, and
//! the tests count the interrupts that arrive.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

mod again;
mod any_guest;
mod few;
#[path = "../failures/lines.rs"]
mod lines;
mod msi;
mod msix;
mod native;
mod pin;
mod places;

use std::collections::BTreeMap;
use std::sync::Arc;

use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::host::MsiMessage;
use vfio_passthrough::model::{Call, Faults, Guest, PciDevice};
use vfio_passthrough::{BarIndex, PassthroughFunction, ResetPolicy};

const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
const MSIX_CONTROL: u16 = 0x42;
const MSI: u16 = 0x50;
const EXPRESS_CONTROL: u16 = 0x88;
const TABLE: u64 = 0x1_0000;
const PBA: u64 = 0x1_8000;

/// Numbers of VFIO's indices.
const INTX: u32 = 0;
const ON_MSI: u32 = 1;
const ON_MSIX: u32 = 2;

/// Bits of MSI-X message control.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

const DYNAMIC: IrqFlags = IrqFlags::EVENTFD;
const NORESIZE: IrqFlags = IrqFlags::EVENTFD.union(IrqFlags::NORESIZE);

struct Setup {
    faults: Arc<Faults>,
    device: Arc<PciDevice>,
    guest: Guest,
    function: PassthroughFunction,
}

impl Setup {
    fn new(msi: Option<u16>, msix: Option<(u16, IrqFlags)>) -> Self {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(PciDevice::with_interrupts(faults.clone(), msi, msix).unwrap());
        Self::of(faults, device)
    }

    fn of(faults: Arc<Faults>, device: Arc<PciDevice>) -> Self {
        let guest = Guest::new(faults.clone());
        let address = "01:00.0".parse().unwrap();
        let function = PassthroughFunction::new(
            address,
            device.clone(),
            &guest.services(),
            ResetPolicy::Required,
        )
        .unwrap();
        Self { faults, device, guest, function }
    }

    fn msix(vectors: u16, flags: IrqFlags) -> Self {
        Self::new(None, Some((vectors, flags)))
    }

    fn write(&self, offset: u16, value: u16) {
        let _ = self.function.config_write(offset, &value.to_le_bytes());
    }

    fn read(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.function.config_read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn table_write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(BarIndex::new(0).unwrap(), TABLE + offset, data);
    }

    /// Programs a vector that sends its own number.
    fn program(&self, vector: u16) {
        let entry = u64::from(vector) * 16;
        self.table_write(entry, &0xfee0_0000_u64.to_le_bytes());
        self.table_write(entry + 8, &u32::from(vector).to_le_bytes());
    }

    fn mask(&self, vector: u16, masked: bool) {
        let control = u64::from(vector) * 16 + 12;
        self.table_write(control, &u32::from(masked).to_le_bytes());
    }

    fn pending(&self) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(BarIndex::new(0).unwrap(), PBA, &mut data);
        u64::from_le_bytes(data)
    }

    /// How often each number arrived since the last call.
    fn arrived(&self) -> BTreeMap<u16, u64> {
        let arrived = self.guest.arrived().into_iter();
        arrived.map(|(message, count)| (message.data as u16, count)).collect()
    }

    /// The number of calls that set the guest's interrupts. The calls for the device's two events
    /// are not counted.
    fn set_irqs(&self) -> u64 {
        self.faults.made(Call::SetIrqs) - 2
    }
}

fn times<const N: usize>(counts: [(u16, u64); N]) -> BTreeMap<u16, u64> {
    counts.into_iter().collect()
}
