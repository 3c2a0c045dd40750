//! Chooses how a function is reset, and resets it. The choice is pure: from VFIO's description of
//! the device to a kind of reset, or to the reason why there is none.

use std::io;

use crate::address::PciAddress;
use crate::backend::{BusMember, DeviceFlags, retry_while_locked};
use crate::device::FunctionDevice;
use crate::error::Error;

/// Whether a device must have a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetPolicy {
    /// A device without a reset is refused. A guest would get it in the state in which its last
    /// user left it, and the next user in the guest's.
    #[default]
    Required,
    /// A device without a reset is accepted, and logged as information. A device with a reset is
    /// reset.
    IfPossible,
}

/// How a function is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The function alone is reset (`VFIO_DEVICE_RESET`): by FLR, by power management, or by a
    /// reset of a bus on which it is the only function.
    Function,
    /// The whole bus is reset (`VFIO_DEVICE_PCI_HOT_RESET`). All functions on it are in groups that
    /// this process has.
    Bus,
    /// The function is not reset.
    Nothing,
}

impl Reset {
    /// The ioctl, as text.
    fn call(self) -> &'static str {
        match self {
            Self::Function => "VFIO_DEVICE_RESET",
            Self::Bus => "VFIO_DEVICE_PCI_HOT_RESET",
            Self::Nothing => "no reset",
        }
    }

    /// The error of a reset.
    pub(super) fn error(self, device: &FunctionDevice, source: io::Error) -> Error {
        Error::Reset { address: device.address, call: self.call(), source }
    }

    /// When a device was found unfit.
    fn afterwards(self) -> &'static str {
        match self {
            Self::Function => "after VFIO_DEVICE_RESET",
            Self::Bus => "after VFIO_DEVICE_PCI_HOT_RESET",
            Self::Nothing => "without a reset",
        }
    }
}

/// Resets a function once.
pub(super) fn reset_once(device: &FunctionDevice, reset: Reset) -> io::Result<()> {
    match reset {
        Reset::Function => device.device.reset(),
        Reset::Bus => device.device.reset_bus(),
        Reset::Nothing => Ok(()),
    }
}

/// Resets a function, and checks that it is usable afterwards. The kernel waits for a slow device
/// for 60 s, and logs that (pci_dev_wait).
pub(super) fn reset_and_check(device: &FunctionDevice, reset: Reset) -> Result<(), Error> {
    let result = retry_while_locked(|| reset_once(device, reset));
    result.map_err(|source| reset.error(device, source))?;
    device.wait_until_usable(reset.afterwards()).map(drop)
}

/// Chooses the reset of a function. `members` gets the functions on its bus.
///
/// # Errors
///
/// The reason why it cannot be reset, as text.
pub(crate) fn choose(
    address: PciAddress,
    flags: DeviceFlags,
    members: impl FnOnce() -> io::Result<Vec<BusMember>>,
) -> Result<Reset, String> {
    if flags.contains(DeviceFlags::RESET) {
        return Ok(Reset::Function);
    }
    let members = members().map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => {
            "it has no reset of its own, and its bus has none (ENODEV)".to_owned()
        }
        _ => format!(
            "it has no reset of its own, and VFIO_DEVICE_GET_PCI_HOT_RESET_INFO failed: {error}"
        ),
    })?;
    let others: Vec<String> = members
        .iter()
        .filter(|member| !member.ours && member.address != address)
        .map(owner)
        .collect();
    match others.as_slice() {
        [] => Ok(Reset::Bus),
        _ => Err(format!(
            "it has no reset of its own, and a reset of its bus would also reset {}",
            others.join(", ")
        )),
    }
}

fn owner(member: &BusMember) -> String {
    match &member.driver {
        Some(driver) => format!("{} (bound to {driver})", member.address),
        None => format!("{} (bound to no driver)", member.address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(address: &str, ours: bool, driver: Option<&str>) -> BusMember {
        BusMember { address: address.parse().unwrap(), ours, driver: driver.map(str::to_owned) }
    }

    fn choice(members: io::Result<Vec<BusMember>>) -> Result<Reset, String> {
        choose("03:00.0".parse().unwrap(), DeviceFlags::PCI, || members)
    }

    #[test]
    fn chooses_the_reset_of_the_function_if_there_is_one() {
        let flags = DeviceFlags::PCI | DeviceFlags::RESET;
        let found = choose("03:00.0".parse().unwrap(), flags, || Err(io::ErrorKind::Other.into()));
        assert_eq!(found, Ok(Reset::Function));
    }

    #[test]
    fn chooses_the_reset_of_the_bus_if_all_its_groups_are_ours() {
        let own = member("03:00.0", true, Some("vfio-pci"));
        let sibling = member("03:00.1", true, Some("vfio-pci"));
        assert_eq!(choice(Ok(vec![own.clone()])), Ok(Reset::Bus));
        assert_eq!(choice(Ok(vec![own, sibling])), Ok(Reset::Bus));
    }

    #[test]
    fn names_the_other_functions_of_the_bus_with_their_drivers() {
        let members = vec![
            member("03:00.0", true, Some("vfio-pci")),
            member("03:00.1", false, Some("e1000")),
            member("03:01.0", false, None),
        ];
        assert_eq!(
            choice(Ok(members)).unwrap_err(),
            "it has no reset of its own, and a reset of its bus would also reset \
             0000:03:00.1 (bound to e1000), 0000:03:01.0 (bound to no driver)"
        );
    }

    #[test]
    fn reports_a_bus_without_a_reset_and_a_failed_ioctl() {
        let error = |errno| choice(Err(io::Error::from_raw_os_error(errno))).unwrap_err();
        assert!(error(libc::ENODEV).ends_with("its bus has none (ENODEV)"));
        assert!(error(libc::EPERM).contains("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO failed: "));
    }
}
