//! The host bridge: function 00:00.0.

use super::{PciFunction, SlotsFreed};

/// A host bridge that has an identity and a class, and ignores writes.
///
/// Linux uses configuration mechanism #1 only if it finds a host bridge on bus 0.
#[derive(Debug, Default)]
pub struct HostBridge;

/// Vendor and device ID of Red Hat's generic PCI Express host bridge. No driver binds to it, and
/// every operating system accepts it.
const IDENTITY: u32 = 0x0008_1b36;
/// Class 06 (bridge), subclass 00 (host), interface 00 (PCI Code and ID Assignment 1.11, 1.7).
const CLASS: u32 = 0x0600_0000;

fn dword(offset: u16) -> u32 {
    match offset & !3 {
        0x00 => IDENTITY,
        0x08 => CLASS,
        _ => 0,
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        let bytes = dword(offset).to_le_bytes();
        let from = bytes.iter().skip(usize::from(offset & 3));
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn config_write(&self, _offset: u16, _data: &[u8]) -> SlotsFreed {
        SlotsFreed(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_as_a_host_bridge_at_any_width() {
        let read = |offset, data: &mut [u8]| HostBridge.config_read(offset, data);
        let mut id = [0; 4];
        read(0, &mut id);
        assert_eq!(id, [0x36, 0x1b, 0x08, 0x00]);
        let mut class = [0; 2];
        read(0x0a, &mut class);
        assert_eq!(class, [0x00, 0x06]);
        let mut header = [0xff];
        read(0x0e, &mut header);
        assert_eq!(header, [0]);
    }

    #[test]
    fn ignores_writes() {
        HostBridge.config_write(0, &[0xff; 4]);
        let mut id = [0; 2];
        HostBridge.config_read(0, &mut id);
        assert_eq!(id, [0x36, 0x1b]);
    }
}
