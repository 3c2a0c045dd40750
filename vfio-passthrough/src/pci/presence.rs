//! Whether a function responds, as itself and awake: what its header and its power state say.

use std::fmt;

use super::caps::standard;
use super::regs::{CAPABILITIES, PM_CONTROL, PM_STATE, REVISION, STATUS, STATUS_CAPABILITIES, cap};
use crate::address::PciAddress;

/// Vendor and device ID (PCI 3.0, 6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The vendor ID.
    pub vendor: u16,
    /// The device ID.
    pub device: u16,
}

/// The fields of a header that a reset does not change: the IDs, and the dword of class code and
/// revision ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Vendor and device ID.
    pub identity: Identity,
    /// Class code in the upper 24 bits, revision ID in the lower 8.
    pub class: u32,
}

/// A power state (PM 1.2, 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerState {
    /// On.
    D0,
    /// Light sleep.
    D1,
    /// Deeper sleep.
    D2,
    /// Off, with a config space that responds.
    D3hot,
}

/// The reason why a function cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No device responds, so the root complex answers all-ones (PCIe 2.3.2).
    #[error("does not respond: its config space reads as all-ones")]
    Absent,
    /// The device responds that it is not ready (PCIe 2.3.2, Configuration Request Retry Status).
    #[error("is not ready: it answers config reads with Configuration Request Retry Status")]
    NotReady,
    /// Another device is at the address.
    #[error("is another one: it was {expected}, and it is {found}")]
    Other {
        /// What the host recorded, or what the function was before.
        expected: Header,
        /// What the function is now.
        found: Header,
    },
    /// The function does not wake.
    #[error("stays in {0}: it does not wake when D0 is written to its power state")]
    Asleep(PowerState),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { identity, class } = self;
        write!(f, "{identity} (class {:06x}, revision {:02x})", class >> 8, class & 0xff)
    }
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl PowerState {
    /// The state in the power management control/status register (PM 1.2, 3.2.4).
    pub fn of(control: u16) -> Self {
        match control & PM_STATE {
            0 => Self::D0,
            1 => Self::D1,
            2 => Self::D2,
            _ => Self::D3hot,
        }
    }
}

/// Whether the dword of class code and revision ID says that no device responds. vfio-pci answers
/// the vendor ID from memory (init_pci_cap_basic_perm), and a virtual function has none (SR-IOV
/// 3.4.1.1), so the vendor ID says less.
pub fn is_absent(class: u32) -> bool {
    class == u32::MAX
}

/// Reads the header of a function that responds.
///
/// # Errors
///
/// [`Fault::Absent`] or [`Fault::NotReady`].
pub fn header(config: &[u8]) -> Result<Header, Fault> {
    let (ids, class) = (dword(config, 0), dword(config, REVISION));
    let [v0, v1, d0, d1] = ids.to_le_bytes();
    let identity =
        Identity { vendor: u16::from_le_bytes([v0, v1]), device: u16::from_le_bytes([d0, d1]) };
    match identity.vendor {
        // The vendor ID of Configuration Request Retry Status is 0x0001, and all other bytes are
        // all-ones.
        1 if identity.device == u16::MAX => Err(Fault::NotReady),
        // No vendor has the ID 0xffff (PCI 3.0, 6.2.1).
        u16::MAX => Err(Fault::Absent),
        _ if is_absent(class) => Err(Fault::Absent),
        _ => Ok(Header { identity, class }),
    }
}

/// The offset and the value of the power management control/status register, if the function has
/// one. `config` is the first 256 bytes of config space.
pub fn power_control(config: &[u8]) -> Option<(u16, u16)> {
    if word(config, STATUS) & STATUS_CAPABILITIES == 0 {
        return None;
    }
    let first = config.get(usize::from(CAPABILITIES)).copied()?;
    let found = standard(first, |offset| word(config, offset)).found;
    let power = found.into_iter().find(|capability| capability.id == cap::PM)?;
    let offset = power.offset.checked_add(PM_CONTROL)?;
    Some((offset, word(config, offset)))
}

/// The commands that make the host's kernel look for a device again.
pub fn remedy(address: PciAddress) -> String {
    format!(
        "make the host look for it again: echo 1 > /sys/bus/pci/devices/{address}/remove; echo 1 > \
         /sys/bus/pci/rescan; if it does not come back, switch the host's power off and on"
    )
}

fn dword(config: &[u8], offset: u16) -> u32 {
    let bytes = config.get(usize::from(offset)..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(u32::MAX, u32::from_le_bytes)
}

fn word(config: &[u8], offset: u16) -> u16 {
    let bytes = config.get(usize::from(offset)..).and_then(<[u8]>::first_chunk);
    bytes.copied().map_or(u16::MAX, u16::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(bytes: &[(usize, &[u8])]) -> [u8; 256] {
        let mut config = [0; 256];
        for (offset, bytes) in bytes {
            config[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        config
    }

    #[test]
    fn a_header_shows_a_function_that_does_not_respond() {
        let nvme: &[u8] = &[0x36, 0x1b, 0x10, 0x00, 0, 0, 0x10, 0, 2, 2, 8, 1];
        let identity = Identity { vendor: 0x1b36, device: 0x10 };
        let good = Header { identity, class: 0x0108_0202 };
        let cases = [
            (config(&[(0, nvme)]), Ok(good)),
            ([0xff; 256], Err(Fault::Absent)),
            (config(&[(0, nvme), (8, &[0xff; 4])]), Err(Fault::Absent)),
            (config(&[(0, nvme), (0, &[0xff; 2])]), Err(Fault::Absent)),
            (config(&[(0, &[1, 0, 0xff, 0xff])]), Err(Fault::NotReady)),
        ];
        for (config, expected) in cases {
            assert_eq!(header(&config), expected);
        }
        assert_eq!(header(&[0; 8]), Err(Fault::Absent), "a short header");
        assert_eq!(good.to_string(), "1b36:0010 (class 010802, revision 02)");
    }

    #[test]
    fn finds_the_power_state() {
        let list: &[(usize, &[u8])] = &[(6, &[0x10]), (0x34, &[0x50]), (0x50, &[5, 0x60])];
        for (state, expected) in [
            (0, PowerState::D0),
            (1, PowerState::D1),
            (2, PowerState::D2),
            (3, PowerState::D3hot),
            (0x0b, PowerState::D3hot),
        ] {
            let mut config = config(list);
            config[0x60..0x66].copy_from_slice(&[1, 0, 3, 0, state, 0]);
            let (offset, control) = power_control(&config).unwrap();
            assert_eq!((offset, PowerState::of(control)), (0x64, expected));
        }
        assert_eq!(power_control(&config(list)), None, "no such capability");
        assert_eq!(power_control(&config(&[(0x34, &[0x50])])), None, "no list");
        assert_eq!(power_control(&[]), None);
    }
}
