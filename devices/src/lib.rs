//! The fixed hardware of the guest: PCI root bus, serial port, reset, power and hot-plug.
//!
//! Each device sits on a bus of [`vm_device`] and knows neither KVM nor VFIO. An assigned function
//! joins the PCI root bus as a [`PciFunction`].
//!
//! The guest has no i8042, CMOS clock, PIT or VGA. The VMM's ACPI tables state that they are
//! absent, so that the guest spends no exits on probing for them.

#![cfg_attr(test, allow(clippy::arithmetic_side_effects, reason = "a test that overflows fails"))]

mod gpio;
mod hot_plug;
mod pci;
mod power;
mod serial;

pub use gpio::GpioButton;
pub use hot_plug::{EjectSink, HotPlug};
pub use pci::{
    ConfigPorts, DevFn, Ecam, FUNCTIONS, HostBridge, PciFunction, PciRoot, SLOTS, SlotError,
    SlotsFreed,
};
pub use power::{PowerControl, PowerRequest, PowerSink, RESET_VALUE, SLEEP_TYPE_S5};
pub use serial::{Serial, SerialError};

/// The README's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
