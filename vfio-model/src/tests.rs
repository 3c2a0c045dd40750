//! One test per rule. The conformance suite compares the rules with running kernels, too.

mod cdevs;
mod compat;
mod devices;
mod dma;
mod drivers;
mod groups;
mod hardware;
mod ioctl;
mod iommufd;
mod map_file;
mod unbinding;
mod vf_tokens;

use std::fmt::Debug;
use std::io;

use crate::*;

const NVME: &str = "0000:01:00.0";
const NIC: &str = "0000:02:01.0";
const NIC2: &str = "0000:02:02.0";
const TYPE1: u64 = 1;
const TYPE1V2: u64 = 3;
const NOIOMMU: u64 = 8;
const KERNELS: [Kernel; 4] =
    [Kernel::Linux5_4, Kernel::Linux6_1, Kernel::Linux6_12, Kernel::Linux7_3];

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// An NVMe in group 1; two NICs and their bridge in group 2; a NIC in group 3, which has no IOMMU.
fn host(kernel: Kernel) -> Description {
    Description::new(kernel)
        .device(at(NVME), 1, Driver::Vfio, PciFunction::nvme())
        .device(at("0000:00:04.0"), 2, Driver::Bridge, PciFunction::default())
        .device(at(NIC), 2, Driver::Vfio, PciFunction::nic())
        .device(at(NIC2), 2, Driver::Vfio, PciFunction::nic())
        .device(at("0000:03:00.0"), 3, Driver::Vfio, PciFunction::nic())
        .without_iommu(3)
}

/// A group in a container with a type1v2 IOMMU.
struct Ready {
    system: System,
    container: Fd,
    group: Fd,
}

fn ready(description: Description) -> Ready {
    let system = description.build();
    let container = system.open_container();
    let group = system.open_group(1).unwrap();
    system.set_container(group, container).unwrap();
    system.set_iommu(container, TYPE1V2).unwrap();
    Ready { system, container, group }
}

/// The bytes of words.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[track_caller]
fn fails<T: Debug>(result: io::Result<T>, errno: i32) {
    assert_eq!(result.unwrap_err().raw_os_error(), Some(errno));
}

#[test]
fn every_kernel_runs_a_program_to_its_end() {
    for kernel in KERNELS {
        let Ready { system, container, group } = ready(host(kernel));
        let device = system.open_device(group, NVME).unwrap();
        let page = MapDma { argsz: 32, flags: 3, vaddr: 4096, iova: 0, size: 4096 };
        system.map_dma(container, &page).unwrap();
        for fd in [device, group, container] {
            system.close(fd).unwrap();
        }
        assert_eq!(
            (system.open_fds(), system.containers(), system.locked_memory()),
            (vec![], 0, 0),
            "{}",
            kernel.version()
        );
    }
}
