//! A machine that a device tree describes: GICv3 with ITS, PSCI, and all devices in memory.

mod boot;
mod cpus;
mod exits;
mod gic;
mod machine;
mod msi;
mod places;

pub use boot::Kernel;
pub(crate) use boot::{Entry, set_up};
pub(crate) use cpus::{Supported, create, reach, supported};
pub(crate) use exits::{place, power_request, resumed};
pub(crate) use machine::check;
pub(crate) use msi::msi_router;
pub(crate) use places::{FIRST_MSI_GSI, HOT_PLUG_GSI, intx_gsi};
