//! Whether a device responds, from its files in sysfs. A device that does not is not ready, whatever
//! its driver and its group are.

use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::Sysfs;
use vfio_passthrough::pci::presence::{Identity, header, remedy};

use super::tree::{Tree, attribute};

/// The standard header (PCI 3.0, 6.1). The kernel shows no less to any user.
const HEADER: usize = 64;
/// Header Type (PCI 3.0, 6.2.1), without its bit for several functions.
const HEADER_TYPE: usize = 0x0e;
const LAYOUT: u8 = 0x7f;

/// A finding that keeps a device from being assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) what: String,
    pub(crate) remedy: String,
}

/// The facts on which the findings depend, apart from the files of the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) address: PciAddress,
    /// A driver of VFIO has the device.
    pub(crate) has_driver: bool,
    pub(crate) is_bridge: bool,
}

impl Facts {
    /// The reason why the device cannot be used, if there is one.
    ///
    /// D3hot and D3cold are usual for a device that nobody uses. The kernel wakes a device when it
    /// is opened, and before its config space is read.
    pub(crate) fn finding(self, tree: &Tree, sysfs: &Sysfs) -> Option<Finding> {
        let power = tree.line(&attribute(self.address, "power_state")).unwrap_or_default();
        let found = match power.as_str() {
            "error" => Some(unpowered("error")),
            // The kernel knows the state of each device that has a driver.
            "unknown" if self.has_driver => Some(unpowered("unknown")),
            // A read would wake a device that the host put to sleep.
            "D3cold" if !self.has_driver => None,
            _ => match tree.read(&attribute(self.address, "config")) {
                Ok(config) => self.of_config(config, tree, sysfs),
                Err(error) => Some(format!("its config space cannot be read: {error}")),
            },
        };
        found.map(|what| Finding { what, remedy: remedy(self.address) })
    }

    fn of_config(self, mut config: Vec<u8>, tree: &Tree, sysfs: &Sysfs) -> Option<String> {
        if config.len() < HEADER {
            return Some(format!("its config space ends after {} bytes", config.len()));
        }
        let recorded = sysfs.identity(self.address);
        if tree.path(&attribute(self.address, "physfn")).exists() {
            // The IDs of a virtual function read as all-ones (SR-IOV 3.4.1.1).
            recorded.into_iter().for_each(|identity| put_ids(&mut config, identity));
        }
        let found = match header(&config) {
            Ok(found) => found.identity,
            Err(fault) => return Some(format!("the device {fault}")),
        };
        let kind = config.get(HEADER_TYPE).map_or(0, |kind| kind & LAYOUT);
        match recorded {
            Some(recorded) if recorded != found => Some(format!(
                "another device is there: the kernel found {recorded}, and now it is {found}"
            )),
            _ if kind != 0 && !self.is_bridge => {
                Some(format!("its header type is {kind:#04x}, and that of an endpoint is 0"))
            }
            _ => None,
        }
    }
}

fn unpowered(state: &str) -> String {
    format!("the kernel could not set its power state: power_state is '{state}'")
}

fn put_ids(config: &mut [u8], identity: Identity) {
    let ids = [identity.vendor, identity.device].into_iter().flat_map(u16::to_le_bytes);
    config.iter_mut().zip(ids).for_each(|(byte, id)| *byte = id);
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, header_of};
    use super::super::names::Names;

    const NVME: &str = "0000:00:02.0";
    const FOLDER: &str = "sys/bus/pci/devices/0000:00:02.0";

    fn good() -> Fixture {
        let [remapped, _] = crate::host::arch::INTERRUPTS;
        Fixture::new().nvme(NVME, 7, Some("vfio-pci")).file("proc/interrupts", remapped)
    }

    fn with(name: &str, contents: impl AsRef<[u8]>) -> Fixture {
        good().file(&format!("{FOLDER}/{name}"), contents)
    }

    /// The row of the NVMe in `vmm devices`: whether it is ready, and the obstacle.
    fn row(fixture: &Fixture) -> (bool, String) {
        let host = fixture.host();
        let device = host.device(NVME.parse().unwrap()).unwrap();
        let listed = host.listed(&device, &Names::of(&host.tree));
        (listed.ready, listed.why.unwrap_or_default())
    }

    fn header_with(bytes: &[(usize, u8)]) -> Vec<u8> {
        let mut header = header_of((0x1b36, 0x0010));
        bytes.iter().for_each(|(offset, byte)| header[*offset] = *byte);
        header
    }

    #[test]
    fn a_device_that_cannot_be_used_is_not_ready_and_has_a_remedy() {
        let silent = "the device does not respond: its config space reads as all-ones: ";
        let cases = [
            (with("config", vec![0xff; 4096]), silent),
            (with("config", vec![0xff; 64]), silent),
            (with("config", header_with(&[(0, 0xff), (1, 0xff)])), silent),
            (
                with("config", header_with(&[(0, 1), (1, 0), (2, 0xff), (3, 0xff)])),
                "the device is not ready: ",
            ),
            (
                with("config", header_of((0x8086, 0x0010))),
                "another device is there: the kernel found 1b36:0010, and now it is 8086:0010: ",
            ),
            (
                with("modalias", "pci:v00008086d00000010sv00001AF4\n"),
                "another device is there: the kernel found 8086:0010",
            ),
            (
                with("modalias", "pci:v00001B36d00000011sv00001AF4\n"),
                "another device is there: the kernel found 1b36:0011",
            ),
            (with("config", vec![0; 63]), "its config space ends after 63 bytes: "),
            (with("config", ""), "its config space ends after 0 bytes: "),
            (with("config", header_with(&[(0x0e, 1)])), "its header type is 0x01, and "),
            (with("config", header_with(&[(0x0e, 0x82)])), "its header type is 0x02, and "),
            (with("config", header_with(&[(0x0e, 0x7f)])), "its header type is 0x7f, and "),
            (with("power_state", "error\n"), "the kernel could not set its power state: "),
            (with("power_state", "unknown\n"), "the kernel could not set its power state: "),
        ];
        let rescan = "echo 1 > /sys/bus/pci/devices/0000:00:02.0/remove; echo 1 > \
                      /sys/bus/pci/rescan; ";
        for (fixture, expected) in cases {
            let (ready, why) = row(&fixture);
            assert!(!ready && why.starts_with(expected) && why.contains(rescan), "{why}");
        }
    }

    #[test]
    fn a_config_space_that_cannot_be_read_is_not_ready() {
        let fixture = good();
        let path = fixture.path(&format!("{FOLDER}/config"));
        std::fs::remove_file(&path).unwrap();
        let (ready, why) = row(&fixture);
        assert!(!ready && why.starts_with("its config space cannot be read: "), "{why}");
        std::fs::create_dir(&path).unwrap();
        assert!(!row(&fixture).0);
    }

    #[test]
    fn sleep_is_usual_and_a_virtual_function_has_no_ids() {
        for state in ["D0", "D1", "D2", "D3hot", "D3cold"] {
            assert_eq!(row(&with("power_state", format!("{state}\n"))), (true, String::new()));
        }
        let all_ones = [(0, 0xff), (1, 0xff), (2, 0xff), (3, 0xff)];
        let function = with("config", header_with(&all_ones))
            .link(&format!("{FOLDER}/physfn"), "sys/devices/pci0000:00/0000:00:01.0");
        assert_eq!(row(&function), (true, String::new()));
        let dead = function.file(&format!("{FOLDER}/config"), vec![0xff; 64]);
        assert!(!row(&dead).0, "a virtual function that does not respond");
        assert_eq!(row(&with("config", header_with(&[(0x0e, 0x80)]))), (true, String::new()));
    }

    #[test]
    fn a_sleeping_device_of_the_host_is_not_woken() {
        let fixture = Fixture::new()
            .nvme(NVME, 7, Some("nvme"))
            .file(&format!("{FOLDER}/power_state"), "D3cold\n")
            .file(&format!("{FOLDER}/config"), vec![0xff; 64]);
        assert_eq!(row(&fixture).1, "not bound to vfio-pci: vmm bind 0000:00:02.0");
        let awake = fixture.file(&format!("{FOLDER}/power_state"), "D0\n");
        assert!(row(&awake).1.starts_with("the device does not respond: "));
    }
}
