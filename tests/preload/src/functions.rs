//! The PCI functions that a machine can have.

use std::fmt;
use std::str::FromStr;

use vfio_model::PciFunction;

/// A kind of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An NVMe controller: MSI-X in BAR0.
    Nvme,
    /// A NIC of conventional PCI: a pin, and no reset.
    Nic,
    /// A card with MSI, MSI-X, an I/O BAR and a function-level reset.
    Card,
}

const KINDS: [(&str, Kind); 3] = [("nvme", Kind::Nvme), ("nic", Kind::Nic), ("card", Kind::Card)];

/// `VFIO_REGION_INFO_FLAG_READ` and `VFIO_REGION_INFO_FLAG_WRITE`.
const READ_WRITE: u32 = 3;

impl Kind {
    /// The function.
    pub fn function(self) -> PciFunction {
        match self {
            Self::Nvme => PciFunction::nvme(),
            Self::Nic => PciFunction::nic(),
            Self::Card => card(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = KINDS.iter().find(|(_, kind)| kind == self).map(|(name, _)| name);
        f.write_str(name.unwrap_or(&""))
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let found = KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
        found.ok_or_else(|| format!("no kind of device is called {name}: nvme, nic, card"))
    }
}

/// The shape of QEMU's igb: BAR0 is memory, BAR2 I/O, BAR3 has the MSI-X table. It is no igb, since
/// nothing is behind its registers.
fn card() -> PciFunction {
    let function = PciFunction::new(card_config(), &[128 << 10, 0, 32, 16 << 10]);
    let express = PciFunction { express: true, resets: true, ..function };
    let mut card = PciFunction { intx: true, msi: 1, msix: 10, ..express };
    for (region, index) in card.regions.iter_mut().zip(0..) {
        match index {
            2 => region.flags = READ_WRITE,
            3 => region.msix_mappable = true,
            _ => {}
        }
    }
    card
}

/// QEMU's `pci-testdev`, for which Linux has no driver, with capabilities: power management at
/// 0x40, MSI with 64-bit addresses at 0x50, MSI-X of 10 vectors at 0x70, PCI Express with FLR at
/// 0xa0.
fn card_config() -> Vec<u8> {
    let parts: [(usize, &[u8]); 9] = [
        (0x00, &[0x36, 0x1b, 0x05, 0x00, 0, 0, 0x10, 0, 1, 0, 0xff, 0]),
        (0x18, &[1]),
        (0x2c, &[0xf4, 0x1a, 0x00, 0x11]),
        (0x34, &[0x40]),
        (0x3d, &[1]),
        (0x40, &[0x01, 0x50, 3, 0]),
        (0x50, &[0x05, 0x70, 0x80, 0]),
        (0x70, &[0x11, 0xa0, 9, 0, 3, 0, 0, 0, 3, 0x20, 0, 0]),
        (0xa0, &[0x10, 0, 2, 0, 0, 0, 0, 0x10]),
    ];
    let mut config = vec![0; 0x1000];
    for (offset, bytes) in parts {
        config.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_as_it_is_written() {
        for (name, kind) in KINDS {
            assert_eq!(name.parse(), Ok(kind));
            assert_eq!(kind.to_string(), name);
        }
        assert!("igb".parse::<Kind>().unwrap_err().contains("igb"));
    }
}
