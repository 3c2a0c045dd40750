//! Errors of a function.

use std::io;

use vfio_bindings::bindings::vfio::VFIO_PCI_CONFIG_REGION_INDEX;

use crate::address::{BarIndex, PciAddress};
use crate::dma;
use crate::irq::{self, IrqIndex};
use crate::pci::presence::{Fault, remedy};

/// An error of a function. Every variant names the device and the operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region could not be described, read or written.
    #[error("{address}: cannot {operation} region {region}: {source}{}", region_hint(*region, source))]
    Region {
        /// The device.
        address: PciAddress,
        /// The operation, as a verb.
        operation: &'static str,
        /// The region's index (`VFIO_PCI_*_REGION_INDEX`, linux/vfio.h).
        region: u32,
        /// The errno of the call. A short read is `UnexpectedEof`, a short write `WriteZero`.
        source: io::Error,
    },
    /// The device does not support the request: it is not a PCI function, or it cannot be reset
    /// alone.
    #[error("{address}: {reason}")]
    NotUsable {
        /// The device.
        address: PciAddress,
        /// The reason.
        reason: &'static str,
    },
    /// VFIO did not describe an interrupt index.
    #[error("{address}: VFIO_DEVICE_GET_IRQ_INFO ({index}): {source}")]
    DescribeInterrupts {
        /// The device.
        address: PciAddress,
        /// The interrupt index.
        index: IrqIndex,
        /// The errno of the ioctl.
        source: io::Error,
    },
    /// Interrupts could not be bound, unbound or routed.
    #[error("{address}: {source}")]
    Interrupts {
        /// The device.
        address: PciAddress,
        /// The failed step.
        source: irq::Error,
    },
    /// The VMM did not allocate the vectors of MSI or MSI-X.
    #[error("{address}: no room for {vectors} {index} vectors: {source}")]
    Vectors {
        /// The device.
        address: PciAddress,
        /// MSI or MSI-X.
        index: IrqIndex,
        /// The number of vectors that the function has.
        vectors: u16,
        /// The error of [`MsiRouter::allocate`](crate::host::MsiRouter::allocate).
        source: io::Error,
    },
    /// A memory slot of a BAR could not be placed or removed, or a BAR could not be unmapped from
    /// this process.
    #[error("{address}: cannot {operation} {bar}: {source}{}", slots_hint(source))]
    Window {
        /// The device.
        address: PciAddress,
        /// The operation, as a verb.
        operation: &'static str,
        /// The BAR.
        bar: BarIndex,
        /// The error of the hypervisor, or the errno of `mmap`.
        source: io::Error,
    },
    /// The VMM cannot place a BAR at this address.
    #[error(
        "{address}: cannot place {bar} at {place:#x}: the function has no such BAR, or it does \
         not fit there"
    )]
    Place {
        /// The device.
        address: PciAddress,
        /// The BAR.
        bar: BarIndex,
        /// The address.
        place: u64,
    },
    /// A BAR could not be mapped for DMA of the guest's other devices, or it could not be unmapped.
    #[error("{address}: {bar}, for the DMA of other devices: {source}")]
    P2p {
        /// The device.
        address: PciAddress,
        /// The BAR.
        bar: BarIndex,
        /// The failed operation.
        source: dma::Error,
    },
    /// The policy requires a reset, and the function has none.
    #[error(
        "{address}: {reason}; a guest would get it in the state in which its last user left it: \
         'reset=none' takes it so"
    )]
    NoReset {
        /// The device.
        address: PciAddress,
        /// Why the function cannot be reset.
        reason: String,
    },
    /// The function could not be reset.
    #[error("{address}: {call}: {source}{}", reset_hint(source))]
    Reset {
        /// The device.
        address: PciAddress,
        /// The ioctl.
        call: &'static str,
        /// The errno of the ioctl: `EAGAIN` while the kernel holds the device's lock
        /// (pci_try_reset_function).
        source: io::Error,
    },
    /// The device does not respond, does not wake, or is another one.
    #[error("{address}: {when}, the device {fault}; {}", fault_hint(*address, fault))]
    Unfit {
        /// The device.
        address: PciAddress,
        /// When this was found, such as `after VFIO_DEVICE_RESET`.
        when: &'static str,
        /// What was found.
        fault: Fault,
    },
}

/// The remedy if config space cannot be accessed (vfio_pci_config_rw).
fn region_hint(region: u32, source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EIO | libc::ENODEV) if region == VFIO_PCI_CONFIG_REGION_INDEX => {
            "; the device does not respond: see 'dmesg' and 'lspci'"
        }
        _ => "",
    }
}

/// The meaning of `EAGAIN` from a reset that was retried (pci_try_reset_function).
pub(crate) const LOCKED: &str = "the host's kernel holds the device's lock: it resets, unbinds or \
                                 recovers the device (see 'dmesg'), or a process writes to its \
                                 files in sysfs";

/// What the errnos of a reset mean (pci_try_reset_function, pci_dev_wait).
fn reset_hint(source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::EAGAIN) => format!("; {LOCKED}"),
        Some(libc::ENOTTY | libc::ETIMEDOUT | libc::EIO) => {
            let what = "the device did not come back from the reset: see 'dmesg'";
            format!("; {what}; if it stays away, switch the host's power off and on")
        }
        _ => String::new(),
    }
}

fn fault_hint(address: PciAddress, fault: &Fault) -> String {
    match fault {
        Fault::Asleep(_) => {
            let control = format!("/sys/bus/pci/devices/{address}/power/control");
            format!("keep the host from suspending it: echo on > {control}; or {}", remedy(address))
        }
        _ => remedy(address),
    }
}

impl Error {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Region { source, .. }
            | Self::DescribeInterrupts { source, .. }
            | Self::Vectors { source, .. }
            | Self::Window { source, .. }
            | Self::Reset { source, .. } => source.kind(),
            Self::Interrupts { source, .. } => source.kind(),
            Self::P2p { source, .. } => source.kind(),
            Self::NotUsable { .. } | Self::NoReset { .. } => io::ErrorKind::Unsupported,
            Self::Place { .. } => io::ErrorKind::InvalidInput,
            Self::Unfit { .. } => io::ErrorKind::NotConnected,
        }
    }
}

fn slots_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull => {
            "; the hypervisor has no free memory slot, so accesses are trapped, which is slow: assign \
             fewer devices to the guest"
        }
        _ => "",
    }
}

/// Keeps the error, and the kind of its errno if it has one.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_io(error: impl Into<io::Error>) -> (io::ErrorKind, String) {
        let error = error.into();
        (error.kind(), error.to_string())
    }

    #[test]
    fn an_io_error_keeps_text_and_kind() {
        let address = PciAddress::new(0, 1, 0);
        let busy = || io::Error::from_raw_os_error(libc::EBUSY);
        let call = "VFIO_DEVICE_RESET";
        let (kind, text) = as_io(Error::Reset { address, call, source: busy() });
        assert_eq!(kind, io::ErrorKind::ResourceBusy);
        assert!(text.starts_with("0000:01:00.0: VFIO_DEVICE_RESET: "), "{text}");
        let source = dma::Error::Info(busy());
        let (kind, text) = as_io(Error::P2p { address, bar: BarIndex::ROM, source });
        assert_eq!(kind, io::ErrorKind::ResourceBusy);
        assert!(text.starts_with("0000:01:00.0: ROM, "), "{text}");
        let source = irq::Error::Route { index: IrqIndex::Msi, source: busy() };
        assert_eq!(as_io(Error::Interrupts { address, source }).0, io::ErrorKind::ResourceBusy);
        let unfit = Error::Unfit { address, when: "now", fault: Fault::Absent };
        assert_eq!(as_io(unfit).0, io::ErrorKind::NotConnected);
        assert_eq!(
            as_io(Error::NotUsable { address, reason: "no" }),
            (io::ErrorKind::Unsupported, "0000:01:00.0: no".to_owned())
        );
    }

    #[test]
    fn an_io_error_of_dma_keeps_the_kind_of_the_kernels_errno() {
        let range = crate::address::ByteRange::between(0, 0x1000);
        let source = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(as_io(dma::Error::Map { range, source }).0, io::ErrorKind::StorageFull);
        let full = dma::Error::Full { needed: 2, available: 1 };
        assert_eq!(as_io(full).0, io::ErrorKind::StorageFull);
        let out_of_reach = dma::Error::OutOfReach { range, iova_ranges: Vec::new() };
        assert_eq!(as_io(out_of_reach).0, io::ErrorKind::InvalidInput);
    }
}
