//! QEMU's arguments for the devices.

use std::path::Path;

use super::{Device, FIRST_SLOT, IVSHMEM_SIZE, VFS, WIDE_VECTORS};

/// The arguments for device number `index`.
pub(super) fn arguments(index: usize, device: Device, image: &Path) -> Vec<String> {
    let slot = FIRST_SLOT.saturating_add(index);
    if device == Device::PluggedNvme {
        return plugged_nvme(index, slot, image);
    }
    if let Device::Model(model) = device {
        return model.arguments(index, slot, image);
    }
    if device.is_disk() {
        // Machines share the image of a Debian, so QEMU keeps what they write elsewhere.
        let snapshot = if matches!(device, Device::Debian(_)) { ",snapshot=on" } else { "" };
        let drive = format!("if=none,id=disk{index},format=raw,file={}{snapshot}", image.display());
        return [vec!["-drive".to_owned(), drive], disk(index, slot, device)].concat();
    }
    let on_root = |model| nic(model, &format!("net{index}"), &format!("addr={slot:x}"));
    match device {
        Device::E1000e => on_root("e1000e"),
        Device::Igb => {
            let port = devices([port(index, slot)]);
            [port, nic("igb", &format!("net{index}"), &format!("bus=port{index}"))].concat()
        }
        // Only QEMU's virtio devices have AER that can be turned on (PCIe 6.0, 7.5.3.4).
        Device::VirtioRng => devices([
            port(index, slot),
            format!(
                "virtio-rng-pci,id=device{index},bus=port{index},aer=on,disable-legacy=on,iommu_platform=on"
            ),
        ]),
        Device::Rtl8139 => on_root("rtl8139"),
        Device::Ne2k => on_root("ne2k_pci"),
        Device::Xhci => devices([
            port(index, slot),
            format!("nec-usb-xhci,id=usb{index},msi=on,msix=off,bus=port{index}"),
            format!("usb-tablet,bus=usb{index}.0"),
        ]),
        Device::TwoUhcis => devices([
            format!("ich9-usb-uhci1,id=usb{index}a,addr={slot:x}.0,multifunction=on"),
            format!("ich9-usb-uhci2,id=usb{index}b,addr={slot:x}.1"),
            format!("usb-tablet,bus=usb{index}a.0"),
            format!("usb-tablet,bus=usb{index}b.0"),
        ]),
        // With a DMA mask of 64 bits the device can be programmed for any address.
        Device::Edu => devices([format!("edu,dma_mask=0xffffffffffffffff,addr={slot:x}")]),
        Device::Ivshmem => {
            let memory =
                format!("memory-backend-ram,id=shared{index},share=on,size={IVSHMEM_SIZE}");
            let ivshmem = devices([format!("ivshmem-plain,memdev=shared{index},addr={slot:x}")]);
            [vec!["-object".to_owned(), memory], ivshmem].concat()
        }
        Device::SharedGroup => {
            let bridge = devices([format!("pcie-pci-bridge,id=bridge{index},addr={slot:x}")]);
            let behind = |slot: u8, model: &str| {
                let place = format!("bus=bridge{index},addr={slot}");
                nic(model, &format!("net{index}-{slot}"), &place)
            };
            [bridge, behind(1, "e1000"), behind(2, "e1000"), behind(3, "rtl8139")].concat()
        }
        _ => devices([format!("pci-testdev,addr={slot:x}")]),
    }
}

/// An NVMe that can be unplugged. `-blockdev` keeps its image open then; `-drive` would not.
fn plugged_nvme(index: usize, slot: usize, image: &Path) -> Vec<String> {
    let file = format!(
        "driver=raw,node-name=disk{index},file.driver=file,file.filename={}",
        image.display()
    );
    let properties = nvme(index).map(|(name, value)| format!("{name}={value}"));
    let device = devices([port(index, slot), properties.join(",")]);
    [vec!["-blockdev".to_owned(), file], device].concat()
}

/// A controller with its disk.
fn disk(index: usize, slot: usize, device: Device) -> Vec<String> {
    let behind = format!("bus=port{index}");
    match device {
        Device::NvmeWithVfs => devices([
            port(index, slot),
            format!("nvme-subsys,id=subsystem{index}"),
            // Each virtual function gets an admin queue and two others, and three vectors.
            format!(
                "nvme,id=nvme{index},serial=lab{index},subsys=subsystem{index},{behind},max_ioqpairs=50,\
                 msix_qsize=51,sriov_max_vfs={VFS},sriov_vq_flexible=48,sriov_vi_flexible=48"
            ),
            format!("nvme-ns,drive=disk{index},bus=nvme{index},shared=on"),
        ]),
        Device::Ahci => devices([
            port(index, slot),
            format!("ich9-ahci,id=sata{index},{behind}"),
            format!("ide-hd,drive=disk{index},bus=sata{index}.0"),
        ]),
        Device::UsbDisk => devices([
            port(index, slot),
            format!("qemu-xhci,id=usb{index},{behind}"),
            format!("usb-storage,drive=disk{index},bus=usb{index}.0"),
        ]),
        Device::WideNvme => devices([format!(
            "nvme,serial=lab{index},drive=disk{index},addr={slot:x},max_ioqpairs=64,\
             msix_qsize={WIDE_VECTORS}"
        )]),
        _ => devices([format!("nvme,serial=lab{index},drive=disk{index},addr={slot:x}")]),
    }
}

/// The properties of an NVMe behind port number `index`.
pub(super) fn nvme(index: usize) -> [(&'static str, String); 6] {
    [
        ("driver", "nvme".to_owned()),
        ("id", format!("device{index}")),
        ("serial", format!("lab{index}")),
        ("drive", format!("disk{index}")),
        ("bus", format!("port{index}")),
        // QEMU may still hold an unplugged NVMe and its image when the next one is plugged in.
        ("share-rw", "on".to_owned()),
    ]
}

fn port(index: usize, slot: usize) -> String {
    format!("pcie-root-port,id=port{index},chassis={slot},addr={slot:x}")
}

fn devices<const N: usize>(devices: [String; N]) -> Vec<String> {
    devices.into_iter().flat_map(|device| ["-device".to_owned(), device]).collect()
}

/// A NIC with its own network, which has only QEMU's router.
pub(super) fn nic(model: &str, network: &str, place: &str) -> Vec<String> {
    let netdev = format!("user,id={network},restrict=on");
    let device = format!("{model},netdev={network},{place}");
    vec!["-netdev".into(), netdev, "-device".into(), device]
}
