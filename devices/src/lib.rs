//! The fixed hardware of the guest: PCI root bus, serial port, reset and power.
