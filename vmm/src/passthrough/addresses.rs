//! Resolves the devices of `--vfio`.

use std::os::fd::RawFd;

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;

use crate::config::Passthrough;
use crate::error::Error;
use crate::host::passed_fds::PassedFds;
use crate::host::pci_path;

/// The addresses of the requested devices, given as addresses, sysfs folders or links to them.
pub(crate) fn addresses(
    asked: &[Passthrough],
    passed: &PassedFds,
) -> Result<Vec<PciAddress>, Error> {
    let mut addresses = Vec::with_capacity(asked.len());
    for passthrough in asked {
        let address = match (&passthrough.path, passthrough.file) {
            (Some(path), _) => pci_path::address(path)?,
            (None, Some(fd)) => only_device(fd, passed, &Sysfs::default())?,
            (None, None) => continue,
        };
        if addresses.contains(&address) {
            return Err(Error::DeviceTwice(address));
        }
        addresses.push(address);
    }
    Ok(addresses)
}

/// The device of a group that has no other device.
fn only_device(fd: RawFd, passed: &PassedFds, sysfs: &Sysfs) -> Result<PciAddress, Error> {
    let no_group = "the file is not a VFIO group\n  \
                    pass group 7 from a shell with: vmm --vfio fd=3 3<>/dev/vfio/7";
    let group = passed.get(fd).and_then(|file| sysfs.group_of(file));
    let group = group.ok_or_else(|| Error::passed_fd("--vfio", fd, no_group))?;
    let mut members = sysfs.members(group);
    // A bridge cannot be assigned.
    members.retain(|member| sysfs.is_vfio(*member));
    match members.as_slice() {
        [only] => Ok(*only),
        _ => {
            let names: Vec<_> = members.iter().map(PciAddress::to_string).collect();
            let names = names.join(", ");
            let why = format!(
                "group {group} has several devices on vfio-pci: {names}\n  \
                 choose one with: --vfio ADDRESS,fd={fd}"
            );
            Err(Error::passed_fd("--vfio", fd, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(paths: &[&str]) -> Vec<Passthrough> {
        paths.iter().map(|path| path.parse().unwrap()).collect()
    }

    #[test]
    fn resolves_names_and_refuses_a_device_given_twice() {
        let twice = addresses(
            &asked(&["0000:01:00.0", "/sys/bus/pci/devices/0000:01:00.0"]),
            &PassedFds::default(),
        )
        .unwrap_err();
        assert_eq!(twice.to_string(), "--vfio 0000:01:00.0: given twice");
        let two = addresses(&asked(&["0000:01:00.0", "02:00.0"]), &PassedFds::default()).unwrap();
        assert_eq!(
            two.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["0000:01:00.0", "0000:02:00.0"]
        );
    }

    #[test]
    fn names_a_text_that_is_no_address() {
        let text =
            addresses(&asked(&["/dev/null"]), &PassedFds::default()).unwrap_err().to_string();
        assert!(text.starts_with("--vfio: ") && text.contains("null"), "{text}");
    }
}
