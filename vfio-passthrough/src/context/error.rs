//! Errors of opening containers, groups and devices.

use std::io;
use std::path::{Path, PathBuf};

use super::vf_token::VfTokenProblem;
use crate::address::PciAddress;
use crate::backend::{ContainerError, IommufdError, sysfs};
use crate::dma;
use crate::error::LOCKED;
use crate::pci::presence::remedy;

/// An error of opening a container, a group or a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container could be opened.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// iommufd could not be opened.
    #[error(transparent)]
    Iommufd(#[from] IommufdError),
    /// The device cannot be assigned in its present state.
    #[error(transparent)]
    NotReady(sysfs::Error),
    /// The group is already open, in this process or in another one.
    #[error(
        "{address}: IOMMU group {group} is in use (EBUSY): a group can be open only once; \
         'fuser -v /dev/vfio/{group}' names the process that has it open"
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
        /// The errno of `open`.
        source: io::Error,
    },
    /// The passed file is not that of the device's group.
    #[error(
        "{address}: the file that was passed is that of {}, and the device is in group {group}: \
         pass /dev/vfio/{group}",
        other.map_or_else(|| "no VFIO group".to_owned(), |other| format!("VFIO group {other}"))
    )]
    OtherGroup {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The group of the file, or `None` if the file is not a group's.
        other: Option<u32>,
    },
    /// The device's file was not passed to a process that may open none.
    #[error("{address}: the open file of {path} is needed, because this process may open no file")]
    NoFile {
        /// The device.
        address: PciAddress,
        /// The node of the device, or of its group.
        path: PathBuf,
    },
    /// The group could not be attached to the container.
    #[error("{address}: IOMMU group {group}: {call}: {source}{}", attach_hint(call, source))]
    Attach {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The failed ioctl.
        call: &'static str,
        /// Its errno.
        source: io::Error,
    },
    /// The existing mappings cannot be mapped in the group's own container.
    #[error("{address}: IOMMU group {group}: {source}")]
    Replay {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
        /// The failed mapping.
        source: dma::Error,
    },
    /// The device has no character device of VFIO.
    #[error(
        "{address}: the device has no node in /dev/vfio/devices: the kernel is built without \
         CONFIG_VFIO_DEVICE_CDEV; use type1"
    )]
    NoCdev {
        /// The device.
        address: PciAddress,
    },
    /// The passed file is not that of the device.
    #[error("{address}: the file that was passed is not that of the device: pass {}", path.display())]
    OtherCdev {
        /// The device.
        address: PciAddress,
        /// Its node.
        path: PathBuf,
    },
    /// The device's node could not be opened.
    #[error("{address}: cannot open {}: {source}; {}", path.display(), cdev_hint(source, path))]
    OpenCdev {
        /// The device.
        address: PciAddress,
        /// Its node.
        path: PathBuf,
        /// The errno of `open`.
        source: io::Error,
    },
    /// The device is open by its group or by its node.
    #[error(
        "{address}: the device is in use: it, or a device of its group, is open by /dev/vfio/{group}, or \
         it is open by its node; 'fuser -v /dev/vfio/{group} /dev/vfio/devices/*' names the processes"
    )]
    DeviceBusy {
        /// The device.
        address: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The hypervisor did not accept the group or the device.
    #[error("{what}: KVM_DEV_VFIO_FILE_ADD: {source}")]
    Link {
        /// The group or the device.
        what: String,
        /// The error of [`GroupLink::add`](crate::host::GroupLink::add).
        source: io::Error,
    },
    /// The device needs a VF token, or another one or none.
    #[error("{address}: {}", problem.describe(*physical))]
    VfToken {
        /// The device.
        address: PciAddress,
        /// The physical function, if the device is a virtual function.
        physical: Option<PciAddress>,
        /// What is wrong.
        problem: VfTokenProblem,
    },
    /// The device could not be opened or described.
    #[error("{address}: {call}: {source}{}", device_hint(*address, call, source))]
    OpenDevice {
        /// The device.
        address: PciAddress,
        /// The failed ioctl.
        call: &'static str,
        /// Its errno: `ENODEV` if the device was removed, `EPERM` if its driver refuses, or if
        /// iommufd does.
        source: io::Error,
    },
}

impl Error {
    fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Container(source) => source.kind(),
            Self::Iommufd(source) => source.kind(),
            Self::NotReady(source) => source.kind(),
            Self::Replay { source, .. } => source.kind(),
            Self::OpenGroup { source, .. }
            | Self::Attach { source, .. }
            | Self::Link { source, .. }
            | Self::OpenDevice { source, .. } => source.kind(),
            Self::OpenCdev { source, .. } => source.kind(),
            Self::NoCdev { .. } => io::ErrorKind::Unsupported,
            Self::GroupBusy { .. } | Self::DeviceBusy { .. } => io::ErrorKind::ResourceBusy,
            Self::OtherGroup { .. } | Self::OtherCdev { .. } | Self::NoFile { .. } => {
                io::ErrorKind::InvalidInput
            }
            Self::VfToken { problem, .. } => problem.kind(),
        }
    }
}

/// Keeps the error, and the kind of its errno if it has one.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

fn group_hint(error: &io::Error, group: u32) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES) => format!("run 'chown $USER /dev/vfio/{group}' as root"),
        Some(libc::EPERM) => format!(
            "the device cgroup of this process denies it: start the container with \
             '--device /dev/vfio/{group}', or set 'DeviceAllow=' in the systemd unit"
        ),
        Some(libc::ENOENT) => format!(
            "a container needs '--device /dev/vfio/{group}'; \
             without an IOMMU there is only /dev/vfio/noiommu-{group}, which cannot be given to a \
             guest: turn on VT-d or AMD-Vi"
        ),
        _ => "see 'dmesg'".to_owned(),
    }
}

fn cdev_hint(error: &io::Error, path: &Path) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("run 'chown $USER {}' as root", path.display())
        }
        _ => "see 'dmesg'".to_owned(),
    }
}

/// The remedy if the kernel cannot enable or reset a device (vfio_pci_core_enable), or if iommufd
/// refuses its group (iommufd_device_bind).
fn device_hint(address: PciAddress, call: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) if call == BIND => {
            "; another process has a device of its group with its own iommufd ('fuser -v \
             /dev/vfio/devices/*' names the processes), or interrupt remapping is off: turn it on \
             in the firmware, or, for guests that you trust: echo 1 > \
             /sys/module/iommufd/parameters/allow_unsafe_interrupts"
                .to_owned()
        }
        Some(libc::EIO | libc::ENODEV) => {
            format!("; the device does not respond: {}", remedy(address))
        }
        Some(libc::EAGAIN) => format!("; {LOCKED}"),
        _ => String::new(),
    }
}

/// The remedy if type1 refuses a group that it could isolate (vfio_iommu_type1_attach_group).
fn attach_hint(call: &str, error: &io::Error) -> &'static str {
    match (call, error.raw_os_error()) {
        (SET_IOMMU | SET_CONTAINER, Some(libc::EPERM)) => {
            "; interrupt remapping is off: turn it on in the firmware, or, for guests that you \
             trust: echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        }
        _ => "",
    }
}

pub(super) const SET_CONTAINER: &str = "VFIO_GROUP_SET_CONTAINER";
pub(super) const SET_IOMMU: &str = "VFIO_SET_IOMMU";
pub(super) const BIND: &str = "VFIO_DEVICE_BIND_IOMMUFD";

#[cfg(test)]
mod tests {
    use super::*;

    fn as_io(error: impl Into<io::Error>) -> (io::ErrorKind, String) {
        let error = error.into();
        (error.kind(), error.to_string())
    }

    #[test]
    fn errors_of_iommufd_name_the_device_and_the_remedy() {
        let (address, path) = (PciAddress::new(0, 1, 0), PathBuf::from("/dev/vfio/devices/vfio3"));
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let cases: [(Error, &[&str]); 6] = [
            (
                Error::Iommufd(IommufdError::Open(io::Error::from_raw_os_error(libc::ENOENT))),
                &["/dev/iommu", "modprobe iommufd", "CONFIG_IOMMUFD"],
            ),
            (Error::Iommufd(IommufdError::NoIommufd), &["pass /dev/iommu"]),
            (Error::NoCdev { address }, &["0000:01:00.0", "CONFIG_VFIO_DEVICE_CDEV"]),
            (Error::OtherCdev { address, path: path.clone() }, &["pass /dev/vfio/devices/vfio3"]),
            (
                Error::OpenCdev { address, path, source: denied() },
                &["0000:01:00.0", "chown $USER /dev/vfio/devices/vfio3"],
            ),
            (
                Error::DeviceBusy { address, group: 7 },
                &["0000:01:00.0", "in use", "fuser -v /dev/vfio/7"],
            ),
        ];
        for (error, parts) in cases {
            let text = error.to_string();
            parts.iter().for_each(|part| assert!(text.contains(part), "no {part:?} in: {text}"));
        }
    }

    #[test]
    fn each_errno_of_a_groups_node_has_its_remedy() {
        let cases = [
            (libc::EACCES, "chown $USER /dev/vfio/7"),
            (libc::EPERM, "the device cgroup of this process"),
            (libc::ENOENT, "--device /dev/vfio/7"),
            (libc::ENOENT, "/dev/vfio/noiommu-7"),
            (libc::EIO, "dmesg"),
        ];
        for (errno, part) in cases {
            let text = group_hint(&io::Error::from_raw_os_error(errno), 7);
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn an_io_error_keeps_text_and_kind() {
        let (address, group) = (PciAddress::new(0, 1, 0), 7);
        let denied = || io::Error::from_raw_os_error(libc::EACCES);
        let (kind, text) = as_io(Error::OpenGroup { address, group, source: denied() });
        assert_eq!(kind, io::ErrorKind::PermissionDenied);
        assert!(text.starts_with("0000:01:00.0: cannot open /dev/vfio/7: "), "{text}");
        let (kind, text) = as_io(Error::GroupBusy { address, group });
        assert_eq!(kind, io::ErrorKind::ResourceBusy);
        assert!(text.starts_with("0000:01:00.0: IOMMU group 7 is in use (EBUSY): "), "{text}");
        let source = dma::Error::Info(denied());
        let replay = Error::Replay { address, group, source };
        assert_eq!(as_io(replay).0, io::ErrorKind::PermissionDenied);
        let missing = Error::NotReady(sysfs::Error::NoDevice { address });
        assert_eq!(as_io(missing).0, io::ErrorKind::NotFound);
    }

    #[test]
    fn a_device_that_does_not_open_has_a_remedy() {
        let address = PciAddress::new(0, 1, 0);
        let text = |errno| {
            let (call, source) = ("CALL", io::Error::from_raw_os_error(errno));
            Error::OpenDevice { address, call, source }.to_string()
        };
        let remove = "; the device does not respond: make the host look for it again: echo 1 > \
                      /sys/bus/pci/devices/0000:01:00.0/remove; ";
        assert!(text(libc::EIO).contains(remove), "{}", text(libc::EIO));
        assert!(text(libc::ENODEV).contains(remove), "{}", text(libc::ENODEV));
        assert!(text(libc::EAGAIN).contains("; the host's kernel holds the device's lock: "));
        assert_eq!(text(libc::EPERM), "0000:01:00.0: CALL: Operation not permitted (os error 1)");
        let source = io::Error::from_raw_os_error(libc::EPERM);
        let text = Error::OpenDevice { address, call: BIND, source }.to_string();
        for part in ["(os error 1); another process ", "/sys/module/iommufd/parameters/allow_"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn an_io_error_of_a_container_keeps_text_and_kind() {
        let open = || ContainerError::Open(io::Error::from_raw_os_error(libc::ENOENT));
        let (kind, text) = as_io(open());
        assert_eq!(kind, io::ErrorKind::NotFound);
        assert!(text.starts_with("cannot open /dev/vfio/vfio: "), "{text}");
        assert_eq!(as_io(Error::Container(open())), (kind, text));
        assert_eq!(as_io(ContainerError::NoContainer).0, io::ErrorKind::InvalidInput);
    }
}
