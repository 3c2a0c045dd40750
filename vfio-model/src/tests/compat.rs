//! An iommufd as the container of groups.

use super::iommufd::ranges;
use super::*;

const PAGE: u64 = 4096;

/// The first group, whose container is an iommufd.
fn compat(description: Description) -> Ready {
    let system = description.build();
    let container = system.open_iommufd().unwrap();
    let group = system.open_group(1).unwrap();
    system.set_container(group, container).unwrap();
    Ready { system, container, group }
}

fn map_of(iova: u64, pages: u64) -> MapDma {
    MapDma { argsz: 32, flags: 3, vaddr: 0x10_0000, iova, size: pages * PAGE }
}

fn unmap_of(iova: u64, pages: u64) -> UnmapDma {
    UnmapDma { argsz: 24, flags: 0, iova, size: pages * PAGE }
}

#[test]
fn an_iommufd_answers_the_calls_of_a_container() {
    let system = host(Kernel::Linux6_12).build();
    let iommufd = system.open_iommufd().unwrap();
    assert_eq!(system.api_version(iommufd).unwrap(), 0);
    let asked =
        |extensions: [u64; 6]| extensions.map(|e| system.check_extension(iommufd, e).unwrap());
    assert_eq!(asked([0, TYPE1, TYPE1V2, 6, NOIOMMU, 9]), [0, 1, 1, 0, 1, 1]);
    fails(system.check_extension(iommufd, 4), libc::ENODEV);
    fails(system.set_iommu(iommufd, TYPE1V2), libc::ENODEV);
    fails(system.set_iommu(iommufd, 6), libc::EINVAL);
    fails(system.map_dma(iommufd, &map_of(0, 1)), libc::ENODEV);
    fails(system.unmap_dma(iommufd, &unmap_of(0, 1)), libc::ENODEV);
    fails(system.iommu_info(iommufd, &mut [16, 0, 0, 0]), libc::ENODEV);
    fails(system.group_status(iommufd, 8), libc::ENOTTY);
    let group = system.open_group(1).unwrap();
    system.set_container(group, iommufd).unwrap();
    assert_eq!(system.group_status(group, 8).unwrap(), 3);
    fails(system.set_container(group, iommufd), libc::EINVAL);
    system.set_iommu(iommufd, TYPE1V2).unwrap();
    assert_eq!(system.check_extension(iommufd, 4).unwrap(), 1, "no page table is incoherent");
    assert_eq!(system.ioas_alloc(iommufd, 0).unwrap(), 2, "the group made the first");
    system.unset_container(group).unwrap();
    fails(system.unset_container(group), libc::EINVAL);
    assert_eq!(system.group_status(group, 8).unwrap(), 1);
}

#[test]
fn a_device_is_attached_from_its_first_open_to_its_last_close() {
    let Ready { system, container, group } = compat(host(Kernel::Linux6_12));
    system.map_dma(container, &map_of(0, 2)).unwrap();
    fails(system.map_dma(container, &map_of(PAGE, 1)), libc::EEXIST);
    assert_eq!(system.locked_memory(), 0);
    let device = system.open_device(group, NVME).unwrap();
    let again = system.open_device(group, NVME).unwrap();
    assert_eq!((system.locked_memory(), ranges(&system, container, 1).1), (2 * PAGE, PAGE));
    fails(system.unmap_dma(container, &unmap_of(0, 1)), libc::ENOENT);
    assert_eq!(system.unmap_dma(container, &unmap_of(8 * PAGE, 1)).unwrap(), 0);
    let none = MapDma { flags: 0, ..map_of(8 * PAGE, 1) };
    fails(system.map_dma(container, &none), libc::EINVAL);
    system.close(device).unwrap();
    assert_eq!(system.locked_memory(), 2 * PAGE);
    system.close(again).unwrap();
    assert_eq!(system.locked_memory(), 0);
    system.iommu_destroy(container, 1).unwrap();
    fails(system.open_device(group, NVME), libc::ENODEV);
    for fd in [container, group] {
        system.close(fd).unwrap();
    }
    assert_eq!((system.iommufds(), system.open_fds()), (0, vec![]));
}

#[test]
fn a_device_does_not_hold_its_group_but_keeps_others_away() {
    let Ready { system, container, group } = compat(host(Kernel::Linux6_12));
    let device = system.open_device(group, NVME).unwrap();
    let bind = BindIommufd::to(container);
    let cdev = system.open_cdev(at(NVME)).unwrap();
    fails(system.bind_iommufd(cdev, &bind), libc::EBUSY);
    system.close(group).unwrap();
    fails(system.bind_iommufd(cdev, &bind), libc::EINVAL);
    let group = system.open_group(1).unwrap();
    assert_eq!(system.group_status(group, 8).unwrap(), 0, "not viable");
    fails(system.set_container(group, system.open_container()), libc::EPERM);
    system.close(device).unwrap();
    system.set_container(group, system.open_container()).unwrap();
}

#[test]
fn version_1_bisects_areas() {
    let Ready { system, container, .. } = compat(host(Kernel::Linux6_12));
    system.set_iommu(container, TYPE1).unwrap();
    system.map_dma(container, &map_of(0, 4)).unwrap();
    assert_eq!(system.unmap_dma(container, &unmap_of(PAGE, 2)).unwrap(), 2 * PAGE);
    assert_eq!(system.ioas_areas(container, 1).unwrap(), [0..=PAGE - 1, 3 * PAGE..=4 * PAGE - 1]);
    assert_eq!(
        system.ioas_translate(container, 1, 3 * PAGE).unwrap(),
        Some((0x10_0000 + 3 * PAGE, PAGE))
    );
    let all = UnmapDma { flags: 2, ..unmap_of(0, 0) };
    assert_eq!(system.unmap_dma(container, &all).unwrap(), 2 * PAGE);
    fails(system.unmap_dma(container, &UnmapDma { flags: 2, ..unmap_of(0, 1) }), libc::EINVAL);
    fails(system.unmap_dma(container, &UnmapDma { flags: 4, ..unmap_of(0, 1) }), libc::EINVAL);
    fails(system.unmap_dma(container, &unmap_of(0, 0)), libc::EINVAL);
}

#[test]
fn the_info_has_the_capabilities_that_fit() {
    let Ready { system, container, .. } = compat(host(Kernel::Linux6_12));
    let info = |room: u32| {
        let mut buffer = room.to_ne_bytes().to_vec();
        buffer.resize(80, 0xa5);
        system.iommu_info(container, &mut buffer).map(|()| buffer)
    };
    let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    fails(info(15), libc::EINVAL);
    let short = info(16).unwrap();
    assert_eq!((word(&short, 0), word(&short, 4)), (72, 3));
    assert_eq!(short[16..], [0xa5; 64]);
    let part = info(71).unwrap();
    assert_eq!((word(&part, 16), word(&part, 32), word(&part, 40)), (0, u32::MAX, 0xa5a5_a5a5));
    let full = info(72).unwrap();
    assert_eq!(word(&full, 16), 24);
    assert_eq!([24, 28, 40, 44, 48].map(|at| word(&full, at)), [0x1_0003, 40, 0x1_0001, 0, 1]);
    assert_eq!(full[8..16], (!0xfff_u64).to_ne_bytes());
    assert_eq!(full[64..72], u64::MAX.to_ne_bytes());
}

#[test]
fn groups_without_an_iommu_and_others_do_not_mix() {
    let mut description = host(Kernel::Linux6_12);
    description.noiommu_mode = true;
    let system = description.build();
    let iommufd = system.open_iommufd().unwrap();
    let (group, real) = (system.open_group(3).unwrap(), system.open_group(1).unwrap());
    system.set_container(group, iommufd).unwrap();
    fails(system.set_container(real, iommufd), libc::EINVAL);
    assert_eq!(system.check_extension(iommufd, TYPE1).unwrap(), 0);
    fails(system.set_iommu(iommufd, TYPE1), libc::EINVAL);
    system.set_iommu(iommufd, NOIOMMU).unwrap();
    system.open_device(group, "0000:03:00.0").unwrap();
    let other = system.open_iommufd().unwrap();
    system.set_container(real, other).unwrap();
    system.unset_container(group).unwrap();
    fails(system.set_container(group, other), libc::EINVAL);
}

#[test]
fn the_address_space_of_groups_can_be_set() {
    let Ready { system, container, group } = compat(host(Kernel::Linux6_12));
    let other = system.ioas_alloc(container, 0).unwrap();
    assert_eq!(system.vfio_ioas(container, 0, 0).unwrap(), 1);
    fails(system.vfio_ioas(container, 1, 9), libc::ENOENT);
    fails(system.vfio_ioas(container, 3, other), libc::EOPNOTSUPP);
    system.vfio_ioas(container, 1, other).unwrap();
    system.map_dma(container, &map_of(0, 1)).unwrap();
    assert_eq!(system.ioas_areas(container, other).unwrap().len(), 1);
    system.open_device(group, NVME).unwrap();
    assert_eq!(ranges(&system, container, other).1, PAGE);
    system.vfio_ioas(container, 2, 0).unwrap();
    fails(system.vfio_ioas(container, 0, 0), libc::ENODEV);
    let mut read = [12_u32, 5, 0].map(u32::to_ne_bytes).concat();
    fails(system.ioctl(container, 36, &mut read, &mut Fd), libc::ENODEV);
    let mut set = [12_u32, other, 1].map(u32::to_ne_bytes).concat();
    system.ioctl(container, 36, &mut set, &mut Fd).unwrap();
    system.ioctl(container, 36, &mut read, &mut Fd).unwrap();
    assert_eq!(read[4..8], other.to_ne_bytes());
}
