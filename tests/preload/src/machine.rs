//! The machine that the model imitates: its kernel and its devices, as text in a file.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use vfio_model::{Description, Driver, Kernel, PciAddress};

use crate::functions::Kind;

/// The environment variable with the folder of the machine.
pub const VARIABLE: &str = "VFIO_PRELOAD";

/// The file in the folder that describes the machine: a line with the kernel, and one per device.
pub const FILE: &str = "machine";

/// What follows the kernel where huge pages are ordinary memory.
const HUGE_PAGES: &str = " huge-pages";

const KERNELS: [Kernel; 4] =
    [Kernel::Linux5_4, Kernel::Linux6_1, Kernel::Linux6_12, Kernel::Linux7_3];

/// A device that is bound to vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its address.
    pub address: PciAddress,
    /// Its IOMMU group.
    pub group: u32,
    /// What it is.
    pub kind: Kind,
    /// The physical function of a virtual function.
    pub physical: Option<PciAddress>,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The kernel whose rules VFIO follows.
    pub kernel: Kernel,
    /// Whether each mapping with huge pages succeeds, as ordinary memory.
    pub huge_pages: bool,
    /// The devices. The number of a device's character device is its place here.
    pub devices: Vec<Device>,
}

impl Machine {
    /// Reads the machine of a folder.
    pub fn read(folder: &Path) -> io::Result<Self> {
        fs::read_to_string(folder.join(FILE))?.parse().map_err(io::Error::other)
    }

    /// The description for the model.
    pub fn describe(&self) -> Description {
        let mut description = Description::new(self.kernel);
        for Device { address, group, kind, .. } in &self.devices {
            description = description.device(*address, *group, Driver::Vfio, kind.function());
        }
        for physical in &self.devices {
            let virtuals = self.virtual_functions(physical.address);
            if !virtuals.is_empty() {
                description = description.virtual_functions(physical.address, virtuals);
            }
        }
        description
    }

    /// The virtual functions of a device.
    pub fn virtual_functions(&self, physical: PciAddress) -> Vec<PciAddress> {
        let virtuals = self.devices.iter().filter(|device| device.physical == Some(physical));
        virtuals.map(|device| device.address).collect()
    }
}

/// A kernel by its version, such as `7.3`.
pub fn kernel(version: &str) -> Result<Kernel, String> {
    let found = KERNELS.into_iter().find(|kernel| kernel.version() == version);
    let known = KERNELS.map(Kernel::version).join(", ");
    found.ok_or_else(|| format!("the model has no kernel {version}: {known}"))
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let huge_pages = if self.huge_pages { HUGE_PAGES } else { "" };
        writeln!(f, "{}{huge_pages}", self.kernel.version())?;
        self.devices.iter().try_for_each(|device| writeln!(f, "{device}"))
    }
}

impl FromStr for Machine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (version, devices) = text.split_once('\n').unwrap_or((text, ""));
        let without = version.strip_suffix(HUGE_PAGES);
        let devices = devices.lines().map(str::parse).collect::<Result<_, _>>()?;
        let kernel = kernel(without.unwrap_or(version))?;
        Ok(Self { kernel, huge_pages: without.is_some(), devices })
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, group, kind, physical } = self;
        write!(f, "{address},group={group},kind={kind}")?;
        physical.map_or(Ok(()), |physical| write!(f, ",vf-of={physical}"))
    }
}

/// `0000:01:00.0,group=1,kind=nvme`, with `,vf-of=ADDRESS` for a virtual function.
impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let address = parsed(words.next().unwrap_or_default())?;
        let mut device = Self { address, group: 0, kind: Kind::Card, physical: None };
        for word in words {
            match word.split_once('=') {
                Some(("group", value)) => device.group = parsed(value)?,
                Some(("kind", value)) => device.kind = value.parse()?,
                Some(("vf-of", value)) => device.physical = Some(parsed(value)?),
                _ => return Err(format!("{word} is not group=, kind= or vf-of=")),
            }
        }
        Ok(device)
    }
}

fn parsed<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "6.12\n0000:01:00.0,group=1,kind=card\n\
                        0000:01:10.0,group=2,kind=nvme,vf-of=0000:01:00.0\n";

    #[test]
    fn a_machine_is_read_as_it_is_written() {
        let machine: Machine = TEXT.parse().unwrap();
        assert_eq!(machine.to_string(), TEXT);
        assert_eq!((machine.kernel, machine.huge_pages), (Kernel::Linux6_12, false));
        let huge = TEXT.replacen("6.12", "6.12 huge-pages", 1);
        assert_eq!(huge.parse::<Machine>().unwrap().to_string(), huge);
        let [physical, virtuals] = &machine.devices[..] else { panic!("two devices") };
        assert_eq!(machine.virtual_functions(physical.address), [virtuals.address]);
    }

    #[test]
    fn wrong_text_is_reported() {
        for (text, reported) in [
            ("8.0", "no kernel 8.0"),
            ("7.3\n1:2,group=1", "1:2"),
            ("7.3\n0000:01:00.0,group=x", "x"),
            ("7.3\n0000:01:00.0,size=1", "size=1"),
        ] {
            let error = text.parse::<Machine>().unwrap_err();
            assert!(error.contains(reported), "{error}");
        }
    }
}
