//! The PCI root bus: configuration access by ECAM and by ports, and the functions on bus 0.

mod ecam;
mod host_bridge;
mod ports;
mod root;

pub use ecam::Ecam;
pub use host_bridge::HostBridge;
pub use ports::ConfigPorts;
pub use root::{PciRoot, SLOTS, SlotError};

/// Whether a write to a function made it remove memory slots. Where it did, the bus lets each of its functions retry
/// the BARs whose memory slot was refused because of an overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsFreed(pub bool);

/// What the root bus asks of a function on it.
///
/// A function decodes its own BARs, since a guest may move them at any time: an access to one of the
/// host bridge's windows goes to each function in turn until one answers `true`.
pub trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes (1, 2 or 4, not crossing a dword) of configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes `data.len()` bytes (1, 2 or 4, not crossing a dword) of configuration space.
    fn config_write(&self, offset: u16, data: &[u8]) -> SlotsFreed;

    /// Retries the BARs whose memory slot was refused because of an overlap.
    fn retry_placement(&self) {}

    /// Reads guest physical memory; `false` if no memory BAR decodes `gpa`.
    fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let _ = (gpa, data);
        false
    }

    /// Writes guest physical memory; `None` if no memory BAR decodes `gpa`.
    fn memory_write(&self, gpa: u64, data: &[u8]) -> Option<SlotsFreed> {
        let _ = (gpa, data);
        None
    }

    /// Reads a port; `false` if no I/O BAR decodes `port`.
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        let _ = (port, data);
        false
    }

    /// Writes a port; `None` if no I/O BAR decodes `port`.
    fn io_write(&self, port: u16, data: &[u8]) -> Option<SlotsFreed> {
        let _ = (port, data);
        None
    }
}
