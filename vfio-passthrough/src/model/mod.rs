//! VFIO as a program: an IOMMU, devices and a guest's side in memory, for tests without hardware, with
//! failures where a test wants them.
//!
//! The rules and errnos are those of Linux's type1v2 and vfio-pci as far as this crate calls them.
//!
//! ```
//! use std::sync::Arc;
//! use vfio_passthrough::backend::IrqFlags;
//! use vfio_passthrough::model::{Faults, Guest, PciDevice};
//! use vfio_passthrough::{Host, PassthroughFunction, ResetPolicy};
//!
//! let faults = Arc::new(Faults::default());
//! let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
//! let guest = Guest::new(faults);
//! let function = PassthroughFunction::new("01:00.0".parse()?, device, &guest.host(), ResetPolicy::Required)?;
//! let mut vendor = [0; 2];
//! function.config_read(0, &mut vendor);
//! assert_eq!(vendor, [0x36, 0x1b]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod core;
mod guest;
mod iommu;
mod irqs;
mod messages;
mod pci;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use guest::Guest;
pub use iommu::Iommu;
pub use irqs::IrqsState;
pub use pci::PciDevice;

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `VFIO_IOMMU_MAP_DMA`.
    MapDma,
    /// `VFIO_IOMMU_UNMAP_DMA`.
    UnmapDma,
    /// `VFIO_IOMMU_GET_INFO`.
    IommuInfo,
    /// `VFIO_DEVICE_GET_REGION_INFO`.
    RegionInfo,
    /// `VFIO_DEVICE_GET_IRQ_INFO`.
    IrqInfo,
    /// A read of a region.
    Read,
    /// A write of a region.
    Write,
    /// `mmap` of a region.
    Mmap,
    /// `VFIO_DEVICE_SET_IRQS`.
    SetIrqs,
    /// `VFIO_DEVICE_RESET`.
    Reset,
    /// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
    BusMembers,
    /// `VFIO_DEVICE_PCI_HOT_RESET`.
    ResetBus,
    /// The host VMM's memory slots: placing one.
    PlaceSlot,
    /// The host VMM's memory slots: removing one.
    RemoveSlot,
    /// The host VMM's routing of interrupts.
    Route,
}

/// Which calls fail, and how many were made.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    made: BTreeMap<Call, u64>,
    planned: BTreeMap<(Call, u64), i32>,
}

impl Faults {
    /// The `nth` call from now on (0 is the next) fails with `errno`.
    pub fn fail(&self, call: Call, nth: u64, errno: i32) {
        let mut state = lock(&self.state);
        let nth = state.made.get(&call).copied().unwrap_or(0).saturating_add(nth);
        state.planned.insert((call, nth), errno);
    }

    /// No call fails any more, whatever was asked for before.
    pub fn heal(&self) {
        lock(&self.state).planned.clear();
    }

    /// How many of these calls were made, failed ones included.
    pub fn made(&self, call: Call) -> u64 {
        lock(&self.state).made.get(&call).copied().unwrap_or(0)
    }

    fn pass(&self, call: Call) -> io::Result<()> {
        let mut state = lock(&self.state);
        let made = state.made.entry(call).or_default();
        let nth = *made;
        *made = made.saturating_add(1);
        match state.planned.remove(&(call, nth)) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
