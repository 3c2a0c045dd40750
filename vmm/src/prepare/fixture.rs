//! Fake trees of `/sys`, `/proc` and `/dev` for tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::inventory::Inventory;
use super::tree::Tree;

/// A fake host under construction.
pub(crate) struct Fixture(tempfile::TempDir);

impl Fixture {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn host(&self) -> Inventory {
        Inventory::new(self.tree())
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree::at(self.0.path())
    }

    /// Adds a file and its folders.
    pub(crate) fn file(self, name: &str, contents: impl AsRef<[u8]>) -> Self {
        write(&self.path(name), contents.as_ref());
        self
    }

    /// Adds a link to a folder of the tree.
    pub(crate) fn link(self, name: &str, target: &str) -> Self {
        let (link, target) = (self.path(name), self.path(target));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        fs::create_dir_all(&target).unwrap();
        symlink(target, link).unwrap();
        self
    }

    /// Adds a process that has a node open.
    pub(crate) fn process(self, id: u32, name: &str, node: &str) -> Self {
        let fd = self.path(&format!("proc/{id}/fd/3"));
        fs::create_dir_all(fd.parent().unwrap()).unwrap();
        symlink(node, fd).unwrap();
        self.file(&format!("proc/{id}/comm"), format!("{name}\n"))
    }

    /// Adds an NVMe on the first bus.
    pub(crate) fn nvme(self, address: &str, group: u32, driver: Option<&str>) -> Self {
        self.device(address, "0x010802", Some(group), driver)
    }

    /// Adds a device as sysfs shows it.
    pub(crate) fn device(
        self,
        address: &str,
        class: &str,
        group: Option<u32>,
        driver: Option<&str>,
    ) -> Self {
        let real = format!("sys/devices/pci0000:00/{address}");
        let mut fixture = self
            .link(&format!("sys/bus/pci/devices/{address}"), &real)
            .file(&format!("{real}/vendor"), "0x1b36\n")
            .file(&format!("{real}/device"), "0x0010\n")
            .file(&format!("{real}/modalias"), "pci:v00001B36d00000010sv00001AF4\n")
            .file(&format!("{real}/class"), format!("{class}\n"))
            .file(&format!("{real}/driver_override"), "(null)\n")
            .file(&format!("{real}/resource"), RESOURCE)
            .file(&format!("{real}/reset_method"), "flr bus\n")
            .file(&format!("{real}/config"), config());
        if let Some(driver) = driver {
            let place = format!("sys/bus/pci/drivers/{driver}");
            fixture = fixture.link(&format!("{real}/driver"), &place);
        }
        if let Some(group) = group {
            let place = format!("sys/kernel/iommu_groups/{group}");
            let regions = format!("{place}/reserved_regions");
            fixture = fixture
                .link(&format!("{real}/iommu_group"), &place)
                .link(&format!("{place}/devices/{address}"), &real)
                .file(&regions, "0x00000000fee00000 0x00000000feefffff msi\n")
                .file(&format!("dev/vfio/{group}"), "");
        }
        fixture
    }
}

const RESOURCE: &str = "0x00000000fe800000 0x00000000fe803fff 0x0000000000140204\n";

/// Config space of a function with 65 MSI-X vectors.
fn config() -> Vec<u8> {
    let mut config = header_of((0x1b36, 0x0010));
    config.resize(4096, 0);
    [(0x06, 0x10), (0x34, 0x40), (0x40, 0x11), (0x42, 64)]
        .into_iter()
        .for_each(|(offset, byte): (usize, u8)| config[offset] = byte);
    config
}

/// The header of a function with these IDs.
pub(crate) fn header_of((vendor, device): (u16, u16)) -> Vec<u8> {
    let mut header = [vendor.to_le_bytes(), device.to_le_bytes()].concat();
    header.resize(64, 0);
    header
}

pub(crate) fn write(path: &Path, contents: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}
