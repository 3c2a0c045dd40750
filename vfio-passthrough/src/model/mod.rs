//! VFIO in memory: an IOMMU, devices and a guest, for tests without hardware. A test can make any
//! call fail.
//!
//! [`PciDevice`] and [`Iommu`] implement the traits of the backend. They make the calls that a VMM
//! makes to the kernel, on [`vfio_model`], which follows Linux's rules and errnos.
//!
//! A device has config bytes, BARs and interrupts ([`PciDevice::new`]). It fires interrupts and
//! does DMA, and decodes its memory as its command register and power state say. Any call can fail
//! ([`Faults`]). A test ends with an empty [`Ledger`]: nothing is held, and no alarm was raised
//! ([`Faults::alarms`]).
//!
//! ```
//! use std::sync::Arc;
//! use vfio_passthrough::backend::IrqFlags;
//! use vfio_passthrough::model::{Faults, Guest, PciDevice};
//! use vfio_passthrough::{VmmServices, PassthroughFunction, ResetPolicy};
//!
//! let faults = Arc::new(Faults::default());
//! let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD)?);
//! let guest = Guest::new(faults);
//! let (address, policy) = ("01:00.0".parse()?, ResetPolicy::Required);
//! let function = PassthroughFunction::new(address, device, &guest.services(), policy)?;
//! let mut vendor = [0; 2];
//! function.config_read(0, &mut vendor);
//! assert_eq!(vendor, [0x36, 0x1b]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod alarms;
mod dma;
mod faults;
mod guest;
mod iommu;
mod ledger;
mod messages;
mod mmaps;
mod opened;
mod pci;
mod presence;

pub use faults::{Call, Fault, Faults};
pub use guest::Guest;
pub use iommu::Iommu;
pub use ledger::Ledger;
pub use pci::PciDevice;
pub use vfio_model::AfterReset;
