//! How a function comes back to the state after power-on. Pure: from what VFIO says to a way, or to
//! the reason why there is none.

use std::io;

use crate::address::PciAddress;
use crate::backend::{BusMember, DeviceFlags};

/// What is asked of a device that cannot be reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResetPolicy {
    /// It is refused: a guest would find what the last user left, and the next user what the guest
    /// left.
    #[default]
    Required,
    /// It is taken as it is, with a warning. One that can be reset is reset all the same.
    IfPossible,
}

/// How a function is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// By itself (`VFIO_DEVICE_RESET`): FLR, power management, or a bus that it has to itself.
    Function,
    /// With its whole bus (`VFIO_DEVICE_PCI_HOT_RESET`), all of which is ours.
    Bus,
    /// Not at all.
    Nothing,
}

/// The call that resets a bus.
pub(crate) const BUS_RESET: &str = "VFIO_DEVICE_PCI_HOT_RESET";

/// The way to reset a function. `members` asks for all that is on its bus.
///
/// # Errors
///
/// Why it cannot be reset, in words.
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
    fn a_function_that_can_be_reset_alone_is() {
        let flags = DeviceFlags::PCI | DeviceFlags::RESET;
        let found = choose("03:00.0".parse().unwrap(), flags, || Err(io::ErrorKind::Other.into()));
        assert_eq!(found, Ok(Reset::Function));
    }

    #[test]
    fn a_bus_is_reset_where_all_of_it_is_ours() {
        let own = member("03:00.0", true, Some("vfio-pci"));
        let sibling = member("03:00.1", true, Some("vfio-pci"));
        assert_eq!(choice(Ok(vec![own.clone()])), Ok(Reset::Bus));
        assert_eq!(choice(Ok(vec![own, sibling])), Ok(Reset::Bus));
    }

    #[test]
    fn whoever_would_be_reset_too_is_named_with_its_driver() {
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
    fn a_bus_that_cannot_be_reset_is_told_and_so_is_a_failure() {
        let error = |errno| choice(Err(io::Error::from_raw_os_error(errno))).unwrap_err();
        assert!(error(libc::ENODEV).ends_with("its bus has none (ENODEV)"));
        assert!(error(libc::EPERM).contains("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO failed: "));
    }
}
