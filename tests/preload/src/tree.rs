//! The sysfs of a machine, and its device nodes, as files in a folder.
//!
//! A device node is an empty file: the library opens it in the model. A write of the program to a
//! file of sysfs changes the file, and nothing else.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use vfio_model::PciFunction;

use crate::machine::{Device, Machine};

/// Writes the files of a machine into a folder.
pub fn write(machine: &Machine, root: &Path) -> io::Result<()> {
    let tree = Tree { root };
    for folder in ["dev/vfio/devices", "sys/bus/pci/devices", "sys/bus/pci/drivers/vfio-pci"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for name in ["bind", "unbind", "new_id"] {
        tree.file(&format!("sys/bus/pci/drivers/vfio-pci/{name}"), "")?;
    }
    tree.file("dev/vfio/vfio", "")?;
    tree.file("sys/class/iommu/dmar0/name", "")?;
    if machine.describe().iommufd {
        tree.file("dev/iommu", "")?;
    }
    for (number, device) in machine.devices.iter().enumerate() {
        tree.device(machine, device, number)?;
        tree.group(device)?;
    }
    Ok(())
}

struct Tree<'a> {
    root: &'a Path,
}

impl Tree<'_> {
    fn file(&self, path: &str, contents: impl AsRef<[u8]>) -> io::Result<()> {
        fs::write(self.place(path)?, contents)
    }

    fn link(&self, path: &str, to: &str) -> io::Result<()> {
        symlink(to, self.place(path)?)
    }

    /// A path in the folder, whose own folder exists.
    fn place(&self, path: &str) -> io::Result<PathBuf> {
        let path = self.root.join(path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        Ok(path)
    }

    fn device(&self, machine: &Machine, device: &Device, number: usize) -> io::Result<()> {
        let Device { address, group, kind, physical } = device;
        let folder = format!("sys/devices/pci0000:00/{address}");
        for (name, contents) in attributes(&kind.function()) {
            self.file(&format!("{folder}/{name}"), contents)?;
        }
        self.file(&format!("{folder}/config"), kind.function().config)?;
        let link = |name: &str, to: &str| self.link(&format!("{folder}/{name}"), to);
        link("iommu_group", &format!("../../../kernel/iommu_groups/{group}"))?;
        link("driver", "../../../bus/pci/drivers/vfio-pci")?;
        link("subsystem", "../../../bus/pci")?;
        let virtuals = machine.virtual_functions(*address);
        for (number, function) in virtuals.iter().enumerate() {
            link(&format!("virtfn{number}"), &format!("../{function}"))?;
        }
        if let Some(physical) = physical {
            link("physfn", &format!("../{physical}"))?;
        }
        if !virtuals.is_empty() {
            self.file(&format!("{folder}/sriov_totalvfs"), format!("{}\n", virtuals.len()))?;
            self.file(&format!("{folder}/sriov_numvfs"), "0\n")?;
        }
        let of_bus = |to: &str| format!("{to}/devices/pci0000:00/{address}");
        self.link(&format!("sys/bus/pci/devices/{address}"), &of_bus("../../.."))?;
        self.link(&format!("sys/bus/pci/drivers/vfio-pci/{address}"), &of_bus("../../../.."))?;
        self.character_device(machine, &folder, number)
    }

    fn character_device(&self, machine: &Machine, folder: &str, number: usize) -> io::Result<()> {
        if !machine.describe().iommufd {
            return Ok(());
        }
        self.file(&format!("dev/vfio/devices/vfio{number}"), "")?;
        self.file(&format!("{folder}/vfio-dev/vfio{number}/dev"), format!("511:{number}\n"))
    }

    /// The group of a device, in which others may be.
    fn group(&self, Device { address, group, .. }: &Device) -> io::Result<()> {
        self.file(&format!("dev/vfio/{group}"), "")?;
        let folder = format!("sys/kernel/iommu_groups/{group}");
        self.file(&format!("{folder}/type"), "DMA\n")?;
        self.file(&format!("{folder}/reserved_regions"), "0xfee00000 0xfeefffff msi\n")?;
        let to = format!("../../../../devices/pci0000:00/{address}");
        self.link(&format!("{folder}/devices/{address}"), &to)
    }
}

/// The files of a device that are one line each.
fn attributes(function: &PciFunction) -> Vec<(&'static str, String)> {
    let byte = |at: usize| function.config.get(at).copied().unwrap_or(0);
    let word = |at: usize| u16::from_le_bytes([byte(at), byte(at.saturating_add(1))]);
    let class = [byte(0xb), byte(0xa), byte(9)].map(|byte| format!("{byte:02x}")).concat();
    let sizes = function.regions.iter().take(7).map(|region| region.size);
    let resource = sizes.map(|size| match size {
        0 => format!("{0:#018x} {0:#018x} {0:#018x}\n", 0),
        _ => format!("{0:#018x} {1:#018x} {2:#018x}\n", 0, size.saturating_sub(1), 0x40200),
    });
    vec![
        ("vendor", format!("{:#06x}\n", word(0))),
        ("device", format!("{:#06x}\n", word(2))),
        ("subsystem_vendor", format!("{:#06x}\n", word(0x2c))),
        ("subsystem_device", format!("{:#06x}\n", word(0x2e))),
        ("revision", format!("{:#04x}\n", byte(8))),
        ("class", format!("0x{class}\n")),
        ("resource", resource.collect()),
        ("irq", "0\n".into()),
        ("numa_node", "-1\n".into()),
        ("enable", "1\n".into()),
        ("driver_override", "vfio-pci\n".into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "7.3\n0000:01:00.0,group=1,kind=card\n\
                        0000:01:10.0,group=2,kind=card,vf-of=0000:01:00.0\n";

    #[test]
    fn programs_find_a_device_by_its_address() {
        let root = tempfile::tempdir().unwrap();
        write(&TEXT.parse().unwrap(), root.path()).unwrap();
        let device = root.path().join("sys/bus/pci/devices/0000:01:00.0");
        assert_eq!(fs::read_to_string(device.join("vendor")).unwrap(), "0x1b36\n");
        assert_eq!(fs::read_to_string(device.join("class")).unwrap(), "0x00ff00\n");
        assert_eq!(fs::read(device.join("config")).unwrap().len(), 4096);
        let resolved = |link: &str| fs::canonicalize(device.join(link)).unwrap();
        assert!(resolved("iommu_group").ends_with("sys/kernel/iommu_groups/1"));
        assert!(resolved("driver").ends_with("sys/bus/pci/drivers/vfio-pci"));
        assert!(resolved("virtfn0/physfn").ends_with("0000:01:00.0"));
        assert!(resolved("vfio-dev/vfio0/dev").is_file());
        assert!(resolved("iommu_group/devices/0000:01:00.0").join("driver/bind").is_file());
        assert!(root.path().join("dev/vfio/2").is_file());
    }

    #[test]
    fn kernels_without_iommufd_have_no_nodes_of_it() {
        let root = tempfile::tempdir().unwrap();
        write(&"6.1\n0000:01:00.0,group=1,kind=nvme".parse().unwrap(), root.path()).unwrap();
        assert!(!root.path().join("dev/iommu").exists());
        assert!(!root.path().join("sys/bus/pci/devices/0000:01:00.0/vfio-dev").exists());
    }
}
