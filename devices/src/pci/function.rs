//! What the root bus asks of a function on it.

/// Whether a write to a function removed memory slots. If so, the bus calls
/// [`PciFunction::retry_placement`] on each function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotsFreed(pub bool);

/// A PCI function, as the root bus calls it.
///
/// A function decodes its own BARs, because a guest may move them at any time. The bus offers an
/// access to a host bridge window to each function in turn until one of them decodes it.
pub trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes (1, 2 or 4, not crossing a dword) of configuration space.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes `data.len()` bytes (1, 2 or 4, not crossing a dword) of configuration space.
    fn config_write(&self, offset: u16, data: &[u8]) -> SlotsFreed;

    /// Retries the BARs whose memory slot was refused because of an overlap.
    fn retry_placement(&self) {}

    /// Reads from a memory BAR; `false` if no memory BAR decodes `gpa`.
    fn memory_read(&self, gpa: u64, data: &mut [u8]) -> bool {
        let _ = (gpa, data);
        false
    }

    /// Writes to a memory BAR; `None` if no memory BAR decodes `gpa`.
    fn memory_write(&self, gpa: u64, data: &[u8]) -> Option<SlotsFreed> {
        let _ = (gpa, data);
        None
    }

    /// Reads from an I/O BAR; `false` if no I/O BAR decodes `port`.
    fn io_read(&self, port: u16, data: &mut [u8]) -> bool {
        let _ = (port, data);
        false
    }

    /// Writes to an I/O BAR; `None` if no I/O BAR decodes `port`.
    fn io_write(&self, port: u16, data: &[u8]) -> Option<SlotsFreed> {
        let _ = (port, data);
        None
    }
}
