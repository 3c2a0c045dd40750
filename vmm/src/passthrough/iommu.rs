//! Chooses the kernel's interface for the devices, and opens it.

use std::path::Path;

use nix::unistd::{AccessFlags, access};
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::{IommuContext, PciAddress};

use crate::config::{Config, Iommu, Passthrough};
use crate::error::Error;
use crate::host::passed_fds::PassedFds;

/// Opens the address space of the devices at `addresses`, which `--vfio` names in the same order.
pub(crate) fn open(
    config: &Config,
    addresses: &[PciAddress],
    passed: &mut PassedFds,
) -> Result<IommuContext, Error> {
    let (container, iommufd) = (config.container, config.iommufd);
    match choose(config, addresses, passed)? {
        Choice::Type1 => Ok(match container {
            None => IommuContext::open()?,
            Some(fd) => IommuContext::open_by(passed.remove(fd)?)?,
        }),
        Choice::Iommufd => Ok(match iommufd {
            None => IommuContext::open_iommufd()?,
            Some(fd) => IommuContext::open_iommufd_by(passed.remove(fd)?)?,
        }),
    }
}

/// An interface of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    Type1,
    Iommufd,
}

fn choose(config: &Config, addresses: &[PciAddress], passed: &PassedFds) -> Result<Choice, Error> {
    let contradiction = |option, iommu| Err(Error::OtherIommu { option, iommu });
    match (config.iommu, config.container, config.iommufd) {
        (Iommu::Type1, _, Some(_)) => contradiction("--iommufd", "type1"),
        (Iommu::Iommufd, Some(_), _) => contradiction("--container", "iommufd"),
        (Iommu::Type1, ..) | (Iommu::Auto, Some(_), _) => Ok(Choice::Type1),
        (Iommu::Iommufd, ..) | (Iommu::Auto, _, Some(_)) => Ok(Choice::Iommufd),
        (Iommu::Auto, None, None) => Ok(auto(&config.vfio, addresses, passed)),
    }
}

/// Whether `--iommu auto` may use a device by iommufd: it has a node of its own, which passes
/// `may_open`. A device with a VF token is used by type1: Linux 6.12 neither takes a token by
/// iommufd, nor asks for one.
pub(crate) fn suits_iommufd(
    sysfs: &Sysfs,
    address: PciAddress,
    may_open: impl Fn(&Path) -> bool,
) -> bool {
    sysfs.vf_token_of(address).is_none() && sysfs.cdev(address).is_some_and(|node| may_open(&node))
}

/// iommufd if this process may open it, and each device is passed open or suits it.
pub(crate) fn auto(asked: &[Passthrough], addresses: &[PciAddress], passed: &PassedFds) -> Choice {
    let sysfs = Sysfs::default();
    let may_open = |path: &Path| access(path, AccessFlags::R_OK | AccessFlags::W_OK).is_ok();
    let by_node = |(asked, address): (&Passthrough, &PciAddress)| match asked.file {
        _ if asked.vf_token.is_some() => false,
        Some(fd) => suits_iommufd(&sysfs, *address, |_| {
            passed.get(fd).is_some_and(|file| sysfs.is_cdev_of(file, *address))
        }),
        None => suits_iommufd(&sysfs, *address, may_open),
    };
    match may_open(Path::new("/dev/iommu")) && asked.iter().zip(addresses).all(by_node) {
        true => Choice::Iommufd,
        false => Choice::Type1,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::CommandLine;

    fn chosen(options: &str) -> Result<Choice, String> {
        let words = format!("vmm --kernel k --vfio 01:00.0 {options}");
        let args = CommandLine::try_parse_from(words.split_whitespace()).unwrap().guest.unwrap();
        let addresses = ["01:00.0".parse().unwrap()];
        let choice = choose(&args.into(), &addresses, &PassedFds::default());
        choice.map_err(|error| error.to_string())
    }

    #[test]
    fn a_passed_descriptor_or_the_option_chooses_the_interface() {
        let cases = [
            ("--iommu type1", Choice::Type1),
            ("--iommu iommufd", Choice::Iommufd),
            ("--container fd=3", Choice::Type1),
            ("--iommufd fd=3", Choice::Iommufd),
            ("--iommu type1 --container fd=3", Choice::Type1),
            ("--iommu iommufd --iommufd fd=3", Choice::Iommufd),
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
