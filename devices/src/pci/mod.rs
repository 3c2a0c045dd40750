//! The PCI root bus: configuration access by ECAM and by ports, and the functions on bus 0.

mod ecam;
mod host_bridge;
mod ports;
mod root;

pub use ecam::Ecam;
pub use host_bridge::HostBridge;
pub use ports::ConfigPorts;
pub use root::{PciRoot, SLOTS, SlotError};

/// What the root bus asks of a function on it.
///
/// A function decodes its own BARs, since a guest may move them at any time: an access to one of the
/// host bridge's windows goes to each function in turn until one answers `true`.
pub trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes (1, 2 or 4, not crossing a dword) of configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes `data.len()` bytes (1, 2 or 4, not crossing a dword) of configuration space. True where the
    /// function gave up guest memory by it, which another one may have been refused.
    fn config_write(&self, offset: u16, data: &[u8]) -> bool;

    /// Another function gave up guest memory: time to try again what was refused.
    fn place_again(&self) {}

    /// Reads guest physical memory; `false` if no memory BAR decodes `gpa`.
    fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let _ = (gpa, data);
        false
    }

    /// Writes guest physical memory; `false` if no memory BAR decodes `gpa`.
    fn memory_write(&self, gpa: u64, data: &[u8]) -> bool {
        let _ = (gpa, data);
        false
    }

    /// Reads a port; `false` if no I/O BAR decodes `port`.
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        let _ = (port, data);
        false
    }

    /// Writes a port; `false` if no I/O BAR decodes `port`.
    fn io_write(&self, port: u16, data: &[u8]) -> bool {
        let _ = (port, data);
        false
    }
}
