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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(devices: Value) -> Vec<u8> {
        json!({ "iommu": "type1", "container": true, "devices": devices }).to_string().into_bytes()
    }

    fn device(vfio: &str, node: bool) -> Value {
        json!({ "vfio": vfio, "node": node, "sysfs": {} })
    }

    /// A file with this content.
    fn file(content: u8) -> File {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[content]).unwrap();
        file
    }

    fn content(file: &File) -> u8 {
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut byte, 0).unwrap();
        byte[0]
    }

    #[test]
    fn takes_files_in_the_order_of_the_request() {
        let devices = [
            device("0000:01:00.0,at=05", true),
            device("0000:01:00.1", false),
            device("0000:02:00.0,reset=none", true),
        ];
        let request = AddRequest::parse(&request(json!(devices))).unwrap();
        let addition = request.take([1, 2, 3].map(file).into()).unwrap();
        assert!(!addition.is_iommufd);
        assert_eq!(addition.context.as_ref().map(content), Some(1));
        let found: Vec<_> =
            addition.devices.iter().map(|own| own.node.as_ref().map(content)).collect();
        assert_eq!(found, [Some(2), None, Some(3)]);
        let addresses: Vec<_> =
            addition.devices.iter().map(|own| own.address.to_string()).collect();
        assert_eq!(addresses, ["0000:01:00.0", "0000:01:00.1", "0000:02:00.0"]);
        let [first, _, last] = &addition.devices[..] else { panic!("three devices") };
        assert_eq!(
            (first.asked.options(), last.asked.options()),
            (",at=05".into(), ",reset=none".into())
        );
    }

    #[test]
    fn names_what_is_wrong_with_a_request() {
        let take = |body: &[u8], files| AddRequest::parse(body)?.take(files).map(drop);
        let one = request(json!([device("0000:01:00.0", true)]));
        let other = String::from_utf8(one.clone()).unwrap().replace("type1", "vhost");
        let cases = [
            (b"{".to_vec(), vec![], "the body is not valid: EOF"),
            (b"{\"iommu\":\"type1\"}".to_vec(), vec![], "missing field `container`"),
            (other.into_bytes(), vec![1, 2], "iommu is vhost: give type1 or iommufd"),
            (one.clone(), vec![], "no descriptor of the container came"),
            (one, vec![1], "no descriptor of a device came"),
            (request(json!([device("nvme0", true)])), vec![1, 2], "nvme0: give an address"),
            (request(json!([device("fd=3", true)])), vec![1, 2], "fd=3: give an address"),
            (
                request(json!([device("01:00.0,p2p=on", true)])),
                vec![1, 2],
                "unknown option 'p2p=on'",
            ),
        ];
        for (body, files, part) in cases {
            let error = take(&body, files.into_iter().map(file).collect()).unwrap_err();
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }

    #[test]
    fn entries_of_sysfs_survive_the_way() {
        let entries = [
            Entry::File("0x8086\n".into()),
            Entry::Link("../../7".into()),
            Entry::Folder(vec!["vfio3".into()]),
        ];
        for entry in entries {
            let text = json!(SysfsEntry::from(entry.clone())).to_string();
            assert_eq!(Entry::from(serde_json::from_str::<SysfsEntry>(&text).unwrap()), entry);
        }
    }

    #[test]
    fn a_removal_waits_for_the_guest_unless_it_is_forced() {
        let device = |body: &str| RemoveRequest::parse(body.as_bytes())?.device();
        let address: PciAddress = "0000:01:00.0".parse().unwrap();
        assert_eq!(device("{\"address\":\"0000:01:00.0\"}"), Ok((address, false)));
        assert_eq!(device("{\"address\":\"01:00.0\",\"force\":true}"), Ok((address, true)));
        let error = device("{\"address\":\"nvme0\"}").unwrap_err();
        assert!(error.starts_with("nvme0: "), "{error}");
    }
}
