//! Why a container, a group or a device could not be opened.

use std::io;

use crate::address::PciAddress;
use crate::backend::{ContainerError, sysfs};
use crate::dma;

/// Why a container, a group or a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no container.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The device cannot be assigned as it is.
    #[error(transparent)]
    NotReady(sysfs::Error),
    /// The group is open in another process, or in this one a second time.
    #[error(
        "{address}: IOMMU group {group} is in use (EBUSY): a group can be open once; 'fuser -v /dev/vfio/{group}' names the process that has it"
    )]
    GroupBusy {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The group could not be opened.
    #[error("{address}: cannot open /dev/vfio/{group}: {source}; {}", group_hint(source, *group))]
    OpenGroup {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// Why.
        source: io::Error,
    },
    /// The file that was passed for its group is another's.
    #[error(
        "{address}: the file that was passed is that of {}, and the device is in group {group}: pass /dev/vfio/{group}",
        other.map_or_else(|| "no VFIO group".to_owned(), |other| format!("VFIO group {other}"))
    )]
    OtherGroup {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The group of the file; `None` where it is no group's.
        other: Option<u32>,
    },
    /// The group could not be made part of the container.
    #[error("{address}: IOMMU group {group}: {call}: {source}{}", attach_hint(call, source))]
    Attach {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The call that failed.
        call: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What is mapped already cannot be mapped for the group, which is in a container of its own.
    #[error("{address}: IOMMU group {group}: {source}")]
    Replay {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The mapping, and why.
        source: dma::Error,
    },
    /// The hypervisor did not take the group, or its VFIO device.
    #[error("IOMMU group {group}: KVM_DEV_VFIO_FILE_ADD: {source}")]
    Link {
        /// The group.
        group: u32,
        /// Why.
        source: io::Error,
    },
    /// The device could not be opened, or not be described.
    #[error("{address}: {call}: {source}")]
    OpenDevice {
        /// The device.
        address: PciAddress,
        /// The call that failed.
        call: &'static str,
        /// Why: `ENODEV` where the device has gone, `EPERM` where its driver refuses.
        source: io::Error,
    },
}

fn group_hint(error: &io::Error, group: u32) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => format!("run 'chown $USER /dev/vfio/{group}' as root"),
        io::ErrorKind::NotFound => format!(
            "without an IOMMU there is only /dev/vfio/noiommu-{group}, which cannot be given to a guest: turn on VT-d or AMD-Vi"
        ),
        _ => "see 'dmesg'".to_owned(),
    }
}

/// Why type1 refuses a group that it could isolate (vfio_iommu_type1_attach_group).
fn attach_hint(call: &str, error: &io::Error) -> &'static str {
    match (call, error.raw_os_error()) {
        (SET_IOMMU | SET_CONTAINER, Some(libc::EPERM)) => {
            "; interrupt remapping is off: turn it on in the firmware, or, for guests that you trust: \
             echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        }
        _ => "",
    }
}

pub(super) const SET_CONTAINER: &str = "VFIO_GROUP_SET_CONTAINER";
pub(super) const SET_IOMMU: &str = "VFIO_SET_IOMMU";
