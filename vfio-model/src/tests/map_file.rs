//! `IOMMU_IOAS_MAP_FILE`, VF tokens at a bind, and overflows: what 6.12 does not have.

use super::cdevs::bound;
use super::iommufd::{everything, space};
use super::*;

const PAGE: u64 = 4096;

/// An attached device, and a map of two pages of a memfd of four.
fn attached(description: Description) -> (System, Fd, IoasMapFile) {
    let (system, iommufd, ioas) = space(description);
    let device = bound(&system, NVME, iommufd);
    system.attach_pt(device, &AttachPt { argsz: AttachPt::ARGSZ, flags: 0, id: ioas }).unwrap();
    let file = system.open_memory(4 * PAGE);
    (system, iommufd, IoasMapFile { flags: 7, ioas, file, start: PAGE, length: 2 * PAGE, iova: 0 })
}

#[test]
fn a_kernel_before_6_13_maps_no_files() {
    let (system, iommufd, map) = attached(host(Kernel::Linux6_12));
    fails(system.ioas_map_file(iommufd, &map), libc::ENOTTY);
    let mut argument = [40_u32, 7, 1, 0].map(u32::to_ne_bytes).concat();
    argument.resize(40, 0);
    fails(system.ioctl(iommufd, 43, &mut argument, &mut Fd), libc::ENOTTY);
}

#[test]
fn a_mapped_file_stays_after_its_close() {
    let (system, iommufd, map) = attached(host(Kernel::Linux7_3));
    assert_eq!(system.ioas_map_file(iommufd, &map).unwrap(), 0);
    system.close(map.file).unwrap();
    assert_eq!(system.locked_memory(), 2 * PAGE);
    let found = system.ioas_translate(iommufd, map.ioas, PAGE + 1).unwrap();
    assert_eq!(found, Some((2 * PAGE + 1, PAGE - 1)));
    assert_eq!(system.ioas_unmap(iommufd, &everything(map.ioas)).unwrap(), 2 * PAGE);
    assert_eq!(system.locked_memory(), 0);
}

#[test]
fn pages_behind_the_end_of_a_file_and_other_files_are_not_pinned() {
    let (system, iommufd, map) = attached(host(Kernel::Linux7_3));
    for bad in [
        IoasMapFile { length: 4 * PAGE, ..map },
        IoasMapFile { start: u64::MAX - 2 * PAGE, ..map },
        IoasMapFile { file: iommufd, ..map },
    ] {
        fails(system.ioas_map_file(iommufd, &bad), libc::EINVAL);
    }
    fails(system.ioas_map_file(iommufd, &IoasMapFile { file: Fd(99), ..map }), libc::EBADF);
    system.ioas_map_file(iommufd, &IoasMapFile { start: 2 * PAGE, ..map }).unwrap();
}

#[test]
fn a_virtual_function_is_bound_with_a_token_since_7_3() {
    for kernel in [Kernel::Linux6_12, Kernel::Linux7_3] {
        let takes = kernel.binds_with_tokens();
        let description = host(kernel).virtual_functions(at(NVME), [at(NIC)]);
        let (system, iommufd, _) = space(description);
        let (physical, virtual_) =
            (system.open_cdev(at(NVME)).unwrap(), system.open_cdev(at(NIC)).unwrap());
        let plain = BindIommufd::to(iommufd);
        let with = |token| BindIommufd {
            argsz: BindIommufd::TOKEN_ARGSZ,
            flags: BindIommufd::TOKEN,
            token: [token; 16],
            ..plain
        };
        if !takes {
            fails(system.bind_iommufd(physical, &with(1)), libc::EINVAL);
            system.bind_iommufd(virtual_, &plain).unwrap();
            continue;
        }
        let short = BindIommufd { argsz: BindIommufd::ARGSZ, ..with(1) };
        fails(system.bind_iommufd(physical, &short), libc::EFAULT);
        system.bind_iommufd(physical, &with(1)).unwrap();
        fails(system.bind_iommufd(virtual_, &plain), libc::EACCES);
        fails(system.bind_iommufd(virtual_, &with(2)), libc::EACCES);
        system.bind_iommufd(virtual_, &with(1)).unwrap();
        system.close(physical).unwrap();
        let again = system.open_cdev(at(NVME)).unwrap();
        fails(system.bind_iommufd(again, &plain), libc::EACCES);
        system.bind_iommufd(again, &with(1)).unwrap();
    }
}

#[test]
fn a_range_of_type1_that_ends_at_2_64_overlaps_mappings_since_7_3() {
    let all =
        UnmapDma { argsz: UnmapDma::ARGSZ, flags: 0, iova: 0, size: 0_u64.wrapping_sub(PAGE) };
    for kernel in [Kernel::Linux6_12, Kernel::Linux7_3] {
        let Ready { system, container, .. } = ready(host(kernel));
        let map =
            MapDma { argsz: MapDma::ARGSZ, flags: 3, vaddr: 0x10_0000, iova: PAGE, size: PAGE };
        system.map_dma(container, &map).unwrap();
        let (wraps, found) = match kernel.checks_overflow() {
            true => (libc::EOVERFLOW, PAGE),
            false => (libc::EINVAL, 0),
        };
        fails(system.unmap_dma(container, &UnmapDma { iova: 2 * PAGE, ..all }), wraps);
        fails(
            system.map_dma(
                container,
                &MapDma { iova: 0_u64.wrapping_sub(PAGE), size: 2 * PAGE, ..map },
            ),
            wraps,
        );
        let to_the_end = UnmapDma { iova: PAGE, ..all };
        assert_eq!(system.unmap_dma(container, &to_the_end).unwrap(), found, "{kernel:?}");
    }
}

#[test]
fn only_files_pass_to_another_process() {
    let (system, iommufd, map) = attached(host(Kernel::Linux7_3));
    let change = |reserved| system.ioctl(iommufd, 46, &mut words(&[8, reserved]), &mut Fd);
    system.ioas_map_file(iommufd, &map).unwrap();
    change(0).unwrap();
    fails(change(1), libc::EOPNOTSUPP);
    let memory =
        IoasMap { flags: 7, ioas: map.ioas, user_va: 1 << 20, length: 4096, iova: 1 << 30 };
    system.ioas_map(iommufd, &memory).unwrap();
    fails(change(0), libc::EINVAL);
    let older = host(Kernel::Linux6_12).build();
    let iommufd = older.open_iommufd().unwrap();
    fails(older.ioctl(iommufd, 46, &mut words(&[8, 0]), &mut Fd), libc::ENOTTY);
}
