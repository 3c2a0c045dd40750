//! The PCI root bus: configuration access by ECAM and by ports, and the functions on bus 0.

mod devfn;
mod ecam;
mod function;
mod host_bridge;
mod ports;
mod root;

pub use devfn::{DevFn, FUNCTIONS, SLOTS};
pub use ecam::Ecam;
pub use function::{PciFunction, SlotsFreed};
pub use host_bridge::HostBridge;
pub use ports::ConfigPorts;
pub use root::{PciRoot, SlotError};
