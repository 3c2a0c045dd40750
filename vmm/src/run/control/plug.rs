//! `vmm add` and `vmm remove`: the client of hot-plug. It opens the nodes with its own rights,
//! because a running VMM can open no file, and passes them with what sysfs says.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::RawFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;
use vfio_passthrough::PciAddress;
use vfio_passthrough::context::{self, Nodes};

use super::client::{self, Client};
use super::messages::{AddRequest, AddedDevice, RemoveRequest};
use crate::config::{Iommu, Passthrough};
use crate::host::limits::{self, Shortage};
use crate::host::passed_fds::PassedFds;
use crate::host::pci_path;
use crate::passthrough::iommu;

/// How often the client asks whether a device is gone.
const INTERVAL: Duration = Duration::from_millis(10);

/// A device could not be added or removed.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The VMM could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A device cannot be opened.
    #[error(transparent)]
    Device(#[from] context::Error),
    /// A limit of the VMM is too low for the device.
    #[error("{what}\n  {remedy}")]
    Limit { what: String, remedy: String },
    /// The text is no device's.
    #[error("{0}")]
    Address(#[from] vfio_passthrough::address::ParsePciAddressError),
    /// The start has options that this command has not.
    #[error("--vfio fd={0}: this command opens the device: name the device, and leave fd=N out")]
    Descriptor(RawFd),
    /// The guest uses its devices by the other interface.
    #[error("the guest uses its devices by {is}: leave --iommu {asked} out")]
    OtherIommu { is: String, asked: &'static str },
    /// The guest did not answer.
    #[error(
        "{address}: the guest did not give the device back within {seconds} s\n  its driver may \
         still use it, or the guest has no ACPI hot-plug; --timeout waits longer, --force takes \
         the device"
    )]
    NoAnswer { address: PciAddress, seconds: u64 },
}

/// Adds devices to the running guest of the socket, all or none. Returns a line for each with its
/// place on the guest's bus.
pub(crate) fn add(socket: &Path, asked: &[Passthrough], iommu: Iommu) -> Result<String, Error> {
    let client = Client(socket);
    let guest = Guest::of(&client.get("vm.info")?);
    if guest.iommu.is_none() {
        guest.check_memory(&client)?;
    }
    let addresses = asked.iter().map(address).collect::<Result<Vec<_>, _>>()?;
    let nodes = guest.nodes(asked, &addresses, iommu)?;
    let mut opened = Opened::default();
    if guest.iommu.is_none() {
        opened.files.push(nodes.open_context()?);
    }
    let mut groups = guest.groups(&nodes);
    for (asked, address) in asked.iter().zip(addresses) {
        let is_new = groups.insert(nodes.sysfs().group(address)) || nodes.is_iommufd();
        // The guest has the group's file already, and the kernel opens a group once.
        let file = is_new.then(|| nodes.open(address)).transpose()?;
        opened.add(&nodes, (address, asked), file);
    }
    let request = AddRequest {
        iommu: if nodes.is_iommufd() { "iommufd" } else { "type1" }.to_owned(),
        container: guest.iommu.is_none(),
        devices: opened.devices,
    };
    Ok(places(&client.put("vm.add-device", &json!(request), opened.files)?))
}

/// What the client opened.
#[derive(Default)]
struct Opened {
    devices: Vec<AddedDevice>,
    files: Vec<File>,
}

impl Opened {
    fn add(
        &mut self,
        nodes: &Nodes,
        (address, asked): (PciAddress, &Passthrough),
        file: Option<File>,
    ) {
        let sysfs = nodes.sysfs().copy(address, file.as_ref());
        self.devices.push(AddedDevice {
            vfio: format!("{address}{}", asked.options()),
            node: file.is_some(),
            sysfs: sysfs.into_iter().map(|(path, entry)| (path, entry.into())).collect(),
        });
        self.files.extend(file);
    }
}

/// What the guest has.
struct Guest {
    iommu: Option<String>,
    devices: Vec<PciAddress>,
    /// The bytes of RAM in ordinary pages. Huge pages were checked at the start.
    ram: u64,
}

impl Guest {
    fn of(info: &Value) -> Self {
        let iommu = info.pointer("/configuration/iommu").and_then(Value::as_str);
        let devices = info.pointer("/configuration/devices");
        let huge = info.pointer("/configuration/hugepages").is_some_and(Value::is_string);
        let ram = info.pointer("/configuration/memory_bytes").and_then(Value::as_u64);
        Self {
            iommu: iommu.map(str::to_owned),
            devices: addresses(devices),
            ram: ram.filter(|_| !huge).unwrap_or(0),
        }
    }

    /// Checks the limits of the VMM's control group, above which the kernel would kill it. The VMM
    /// itself can read no file.
    fn check_memory(&self, client: &Client<'_>) -> Result<(), Error> {
        match limits::memory_left(Path::new("/"), client.pid()?, self.ram) {
            Ok(()) => Ok(()),
            Err(Shortage { what, remedy }) => Err(Error::Limit { what, remedy }),
        }
    }

    /// The nodes of the interface by which the guest uses its devices.
    fn nodes(
        &self,
        asked: &[Passthrough],
        addresses: &[PciAddress],
        iommu: Iommu,
    ) -> Result<Nodes, Error> {
        let chosen = match iommu {
            Iommu::Auto => None,
            Iommu::Type1 => Some("type1"),
            Iommu::Iommufd => Some("iommufd"),
        };
        let is_iommufd = match (self.iommu.as_deref(), chosen) {
            (Some(is), Some(asked)) if is != asked => {
                return Err(Error::OtherIommu { is: is.to_owned(), asked });
            }
            (Some(is), _) => is == "iommufd",
            (None, Some(asked)) => asked == "iommufd",
            (None, None) => {
                iommu::nodes(asked, &iommu::found(addresses), &PassedFds::default()).is_some()
            }
        };
        Ok(Nodes::new(is_iommufd))
    }

    fn groups(&self, nodes: &Nodes) -> BTreeSet<Option<u32>> {
        self.devices.iter().map(|device| nodes.sysfs().group(*device)).collect()
    }
}

fn address(asked: &Passthrough) -> Result<PciAddress, Error> {
    match (&asked.path, asked.file) {
        (Some(path), None) => Ok(pci_path::address(path)?),
        (_, fd) => Err(Error::Descriptor(fd.unwrap_or_default())),
    }
}

fn addresses(devices: Option<&Value>) -> Vec<PciAddress> {
    let devices = devices.and_then(Value::as_array).into_iter().flatten();
    devices.filter_map(|device| device.get("address")?.as_str()?.parse().ok()).collect()
}

/// A line for each device: its address on the host and in the guest.
fn places(added: &Value) -> String {
    let text = |device: &Value, name: &str| {
        device.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let devices = added.as_array().into_iter().flatten();
    let line = |device| {
        format!("{} is {} in the guest\n", text(device, "address"), text(device, "guest_address"))
    };
    devices.map(line).collect()
}

/// Asks the guest of the socket for a device, and waits until the host has it. With `force` it takes
/// the device at once.
pub(crate) fn remove(
    socket: &Path,
    address: PciAddress,
    force: bool,
    timeout: Duration,
) -> Result<String, Error> {
    let client = Client(socket);
    let begin = Instant::now();
    let request = RemoveRequest { address: address.to_string(), force };
    client.put("vm.remove-device", &json!(request), Vec::new())?;
    while has(&client, address)? {
        if begin.elapsed() >= timeout {
            return Err(Error::NoAnswer { address, seconds: timeout.as_secs() });
        }
        sleep(INTERVAL);
    }
    Ok(format!("{address} is free\n"))
}

/// Whether the VMM has the device. A VMM that ends closes its devices, and removes its socket then.
fn has(client: &Client<'_>, address: PciAddress) -> Result<bool, Error> {
    match client.get("vm.devices") {
        Ok(devices) => Ok(addresses(Some(&devices)).contains(&address)),
        Err(client::Error::Connect { .. }) => Ok(false),
        // It is about to end.
        Err(client::Error::Answer { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const DEVICE: &str = "0000:01:00.0";

    /// Removes the device from a VMM that answers each request with the next of `answers`, and then
    /// ends.
    fn removed(answers: &'static [&'static str]) -> Result<String, Error> {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let path = socket.clone();
        let vmm = thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 4096]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
            std::fs::remove_file(path).unwrap();
        });
        let result = remove(&socket, DEVICE.parse().unwrap(), false, Duration::from_secs(5));
        vmm.join().unwrap();
        result
    }

    const ASKED: &str = "HTTP/1.1 204 No Content\r\n\r\n";
    const HAS: &str = "HTTP/1.1 200 OK\r\n\r\n[{\"address\":\"0000:01:00.0\"}]";
    const HAS_NOT: &str = "HTTP/1.1 200 OK\r\n\r\n[]";

    #[test]
    fn waits_until_the_vmm_has_the_device_no_more() {
        assert_eq!(removed(&[ASKED, HAS, HAS_NOT]).unwrap(), "0000:01:00.0 is free\n");
    }

    #[test]
    fn a_device_is_free_when_the_vmm_has_ended() {
        assert_eq!(removed(&[ASKED, HAS, ""]).unwrap(), "0000:01:00.0 is free\n");
    }

    #[test]
    fn reports_why_the_vmm_refuses() {
        const REFUSAL: &str = "HTTP/1.1 422 x\r\n\r\n{\"error\":\"the guest does not have it\"}";
        assert_eq!(removed(&[REFUSAL]).unwrap_err().to_string(), "the guest does not have it");
        const REBOOTS: &str = "HTTP/1.1 409 x\r\n\r\n{\"error\":\"it reboots; try again\"}";
        assert_eq!(removed(&[REBOOTS]).unwrap_err().to_string(), "it reboots; try again");
    }
}
