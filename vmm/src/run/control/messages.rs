//! The bodies of requests about devices.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vfio_passthrough::PciAddress;
use vfio_passthrough::backend::sysfs::{Entry, Sysfs};

use crate::config::Passthrough;
use crate::passthrough::addition::{Addition, NewDevice};

/// The body of `vm.add-device`. The client opened the nodes, because a running VMM can open no file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddRequest {
    /// `type1` or `iommufd`: the kind of the nodes.
    pub(crate) iommu: String,
    /// Whether the first descriptor is that of a new container, or of iommufd.
    pub(crate) container: bool,
    pub(crate) devices: Vec<AddedDevice>,
}

/// A device of `vm.add-device`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AddedDevice {
    /// The address and options, as for `--vfio`.
    pub(crate) vfio: String,
    /// Whether a descriptor of its group, or of the device, comes next.
    pub(crate) node: bool,
    /// What the host's sysfs says about it; the paths are relative to `/sys`.
    pub(crate) sysfs: BTreeMap<PathBuf, SysfsEntry>,
}

/// An entry of sysfs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SysfsEntry {
    File(String),
    Link(PathBuf),
    Folder(Vec<String>),
}

/// The body of `vm.remove-device`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RemoveRequest {
    /// The address on the host.
    pub(crate) address: String,
    /// Take the device without the guest's consent.
    #[serde(default)]
    pub(crate) force: bool,
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("the body is not valid: {error}"))
}

impl RemoveRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        parse(body)
    }

    /// The device, and whether to take it.
    pub(super) fn device(&self) -> Result<(PciAddress, bool), String> {
        let address = self.address.parse();
        Ok((address.map_err(|error| format!("{}: {error}", self.address))?, self.force))
    }
}

impl AddRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        parse(body)
    }

    /// Takes the files that the request announces, in its order.
    pub(super) fn take(self, files: Vec<File>) -> Result<Addition, String> {
        let mut files = files.into_iter();
        let mut next = |what: &str| {
            let missing = || format!("no descriptor of {what} came with the request");
            files.next().ok_or_else(missing)
        };
        let is_iommufd = match self.iommu.as_str() {
            "type1" => false,
            "iommufd" => true,
            other => return Err(format!("iommu is {other}: give type1 or iommufd")),
        };
        let context = self.container.then(|| next("the container")).transpose()?;
        let device = |device: AddedDevice| {
            let asked: Passthrough =
                device.vfio.parse().map_err(|error| format!("{}: {error}", device.vfio))?;
            let address =
                asked.path.as_ref().and_then(|path| path.to_str()?.parse::<PciAddress>().ok());
            let address = address.ok_or_else(|| format!("{}: give an address", device.vfio))?;
            let node = device.node.then(|| next("a device")).transpose()?;
            let sysfs =
                Sysfs::of_copy(device.sysfs.into_iter().map(|(path, entry)| (path, entry.into())));
            Ok(NewDevice { address, asked, node, sysfs })
        };
        let devices = self.devices.into_iter().map(device).collect::<Result<Vec<_>, String>>()?;
        Ok(Addition { is_iommufd, context, devices })
    }
}

impl From<SysfsEntry> for Entry {
    fn from(entry: SysfsEntry) -> Self {
        match entry {
            SysfsEntry::File(text) => Self::File(text),
            SysfsEntry::Link(target) => Self::Link(target),
            SysfsEntry::Folder(names) => Self::Folder(names),
        }
    }
}

impl From<Entry> for SysfsEntry {
    fn from(entry: Entry) -> Self {
        match entry {
            Entry::File(text) => Self::File(text),
            Entry::Link(target) => Self::Link(target),
            Entry::Folder(names) => Self::Folder(names),
        }
    }
}
