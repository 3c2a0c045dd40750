//! Chooses the kernel's interface for the devices, and opens it.

use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::{IommuContext, PciAddress};

use crate::config::{Config, Iommu, Passthrough};
use crate::error::Error;
use crate::host::passed_fds::PassedFds;

/// Opens the address space of `devices`, which `--vfio` names in the same order. Returns the paths
/// of the devices' nodes too, if they are known.
pub(crate) fn open(
    config: &Config,
    devices: &[Found],
    passed: &mut PassedFds,
) -> Result<(IommuContext, Vec<PathBuf>), Error> {
    let (container, iommufd) = (config.container, config.iommufd);
    let choice = choose(config, devices, passed)?;
    let context = match (&choice, container, iommufd) {
        (Choice::Type1, None, _) => IommuContext::open()?,
        (Choice::Type1, Some(fd), _) => IommuContext::open_by(passed.remove(fd)?)?,
        (Choice::Iommufd(_), _, None) => IommuContext::open_iommufd()?,
        (Choice::Iommufd(_), _, Some(fd)) => IommuContext::open_iommufd_by(passed.remove(fd)?)?,
    };
    Ok(match choice {
        Choice::Type1 => (context, Vec::new()),
        Choice::Iommufd(nodes) => (context, nodes),
    })
}

/// A device at an address of the host, and its physical function if it is a virtual function.
pub(crate) type Found = (PciAddress, Option<PciAddress>);

/// Looks up the physical functions of devices.
pub(crate) fn found(addresses: &[PciAddress]) -> Vec<Found> {
    let sysfs = Sysfs::default();
    addresses.iter().map(|own| (*own, sysfs.physical_function(*own))).collect()
}

/// An interface of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Type1,
    /// With the paths of all devices' nodes, or of none.
    Iommufd(Vec<PathBuf>),
}

fn choose(config: &Config, devices: &[Found], passed: &PassedFds) -> Result<Choice, Error> {
    let contradiction = |option, iommu| Err(Error::OtherIommu { option, iommu });
    match (config.iommu, config.container, config.iommufd) {
        (Iommu::Type1, _, Some(_)) => contradiction("--iommufd", "type1"),
        (Iommu::Iommufd, Some(_), _) => contradiction("--container", "iommufd"),
        (Iommu::Type1, ..) | (Iommu::Auto, Some(_), _) => Ok(Choice::Type1),
        (Iommu::Iommufd, ..) | (Iommu::Auto, _, Some(_)) => Ok(Choice::Iommufd(Vec::new())),
        (Iommu::Auto, None, None) => {
            let nodes = nodes(&config.vfio, devices, passed);
            Ok(nodes.map_or(Choice::Type1, Choice::Iommufd))
        }
    }
}

/// The node of a device that `--iommu auto` may use by iommufd: the device has one, which passes
/// `may_open`. A virtual function that needs a VF token is used by type1: Linux 6.12 neither takes a
/// token by iommufd, nor asks for one.
pub(crate) fn iommufd_node(
    sysfs: &Sysfs,
    (address, physical): Found,
    may_open: impl Fn(&Path) -> bool,
) -> Option<PathBuf> {
    let needs_token = physical.is_some_and(|physical| sysfs.is_vfio(physical));
    sysfs.cdev(address).filter(|node| !needs_token && may_open(node))
}

/// The nodes of all devices, if this process may open iommufd, and each device is passed open or
/// suits it.
pub(crate) fn nodes(
    asked: &[Passthrough],
    devices: &[Found],
    passed: &PassedFds,
) -> Option<Vec<PathBuf>> {
    let sysfs = Sysfs::default();
    let may_open = |path: &Path| access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
    let node = |(asked, device): (&Passthrough, &Found)| match asked.file {
        _ if asked.vf_token.is_some() => None,
        Some(fd) => iommufd_node(&sysfs, *device, |_| {
            passed.get(fd).is_some_and(|file| sysfs.is_cdev_of(file, device.0))
        }),
        None => iommufd_node(&sysfs, *device, may_open),
    };
    let suits = may_open(Path::new("/dev/iommu"));
    suits.then(|| asked.iter().zip(devices).map(node).collect::<Option<_>>()).flatten()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;

    fn chosen(options: &str) -> Result<Choice, String> {
        let words = format!("vmm --kernel k --vfio 01:00.0 {options}");
        let args = CommandLine::try_parse_from(words.split_whitespace()).unwrap().guest.unwrap();
        let devices = [("01:00.0".parse().unwrap(), None)];
        let choice = choose(&args.into(), &devices, &PassedFds::default());
        choice.map_err(|error| error.to_string())
    }

    #[test]
    fn a_passed_descriptor_or_the_option_chooses_the_interface() {
        let cases = [
            ("--iommu type1", Choice::Type1),
            ("--iommu iommufd", Choice::Iommufd(Vec::new())),
            ("--container fd=3", Choice::Type1),
            ("--iommufd fd=3", Choice::Iommufd(Vec::new())),
            ("--iommu type1 --container fd=3", Choice::Type1),
            ("--iommu iommufd --iommufd fd=3", Choice::Iommufd(Vec::new())),
        ];
        cases.into_iter().for_each(|(options, choice)| {
            assert_eq!(chosen(options), Ok(choice), "{options}");
        });
    }

    #[test]
    fn reports_a_descriptor_of_the_other_interface() {
        let text = chosen("--iommu type1 --iommufd fd=3").unwrap_err();
        assert_eq!(text, "--iommufd is not used with --iommu type1: leave one of them out");
        assert!(chosen("--iommu iommufd --container fd=3").is_err());
    }

    #[test]
    fn auto_is_type1_for_a_device_without_a_node() {
        // This test's host has no such device.
        assert_eq!(chosen("--iommu auto"), Ok(Choice::Type1));
    }
}
