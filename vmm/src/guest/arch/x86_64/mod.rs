//! A PC without legacy devices: ports, IOAPIC and local APICs, ACPI tables.

mod boot;
mod cpuid;
mod exits;
mod machine;
mod msi;
mod registers;
mod vcpus;

pub use boot::Kernel;
pub(crate) use boot::{Entry, intx_gsi};
pub(crate) use cpuid::{Supported, reach, supported};
pub(crate) use exits::{place, power_request, resumed};
pub(crate) use machine::check;
pub(crate) use msi::{FIRST_MSI_GSI, msi_router};
pub(crate) use registers::set_up;
pub(crate) use vcpus::create;

/// The GSI of a change of slots.
pub(crate) const HOT_PLUG_GSI: Option<u32> = Some(boot::HOT_PLUG_PIN);
