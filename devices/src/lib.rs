//! The fixed hardware of the guest: PCI root bus, serial port, reset and power.
//!
//! Everything here sits on the buses of [`vm_device`] and knows neither KVM nor VFIO. What is assigned
//! to the guest joins the PCI root bus as a [`PciFunction`].
//!
//! A PC's other fixed hardware (i8042, CMOS clock, PIT, VGA) is absent on purpose, and the ACPI tables
//! of the VMM say so: a guest that is told does not spend exits on finding out.

#![cfg_attr(
    test,
    allow(clippy::arithmetic_side_effects, reason = "tests say what they expect by panicking")
)]

mod pci;
mod power;
mod serial;

pub use pci::{ConfigPorts, Ecam, HostBridge, PciFunction, PciRoot, SLOTS, SlotError, SlotsFreed};
pub use power::{PowerControl, PowerRequest, PowerSink, RESET_VALUE, SLEEP_TYPE_S5};
pub use serial::{Serial, SerialError};

/// The README's code is compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
