//! `/dev/iommu`: objects, areas and options, without a device.

use super::*;

const PAGE: u64 = 4096;
/// Fixed IOVA, read and write.
pub const ALL: u32 = 7;

/// An iommufd with an address space.
pub fn space(description: Description) -> (System, Fd, u32) {
    let system = description.build();
    let iommufd = system.open_iommufd().unwrap();
    let ioas = system.ioas_alloc(iommufd, 0).unwrap();
    (system, iommufd, ioas)
}

pub fn page(ioas: u32, iova: u64) -> IoasMap {
    IoasMap { flags: ALL, ioas, user_va: 0x10_0000, length: PAGE, iova }
}

pub fn everything(ioas: u32) -> IoasUnmap {
    IoasUnmap { ioas, iova: 0, length: u64::MAX }
}

/// The reply of `IOMMU_IOAS_IOVA_RANGES`: the result, the ranges, and the alignment.
pub fn ranges(system: &System, iommufd: Fd, ioas: u32) -> (Vec<(u64, u64)>, u64) {
    let mut buffer = vec![0_u8; 32 + 8 * 16];
    buffer[..12].copy_from_slice(&[32, ioas, 8].map(u32::to_ne_bytes).concat());
    system.ioas_iova_ranges(iommufd, &mut buffer).unwrap();
    let long = |at: usize| u64::from_ne_bytes(buffer[at..at + 8].try_into().unwrap());
    let count = usize::from(buffer[8]);
    ((0..count).map(|n| (long(32 + 16 * n), long(40 + 16 * n))).collect(), long(24))
}

#[test]
fn kernels_without_iommufd_have_no_node() {
    for kernel in [Kernel::Linux5_4, Kernel::Linux6_1] {
        fails(host(kernel).build().open_iommufd(), libc::ENOENT);
        fails(host(kernel).build().open_cdev(at(NVME)), libc::ENOENT);
    }
    let mut description = host(Kernel::Linux6_12);
    description.iommufd = false;
    fails(description.build().open_iommufd(), libc::ENOENT);
}

#[test]
fn an_object_gets_the_lowest_free_number() {
    let (system, iommufd, first) = space(host(Kernel::Linux6_12));
    let second = system.ioas_alloc(iommufd, 0).unwrap();
    assert_eq!((first, second), (1, 2));
    system.iommu_destroy(iommufd, first).unwrap();
    fails(system.iommu_destroy(iommufd, first), libc::ENOENT);
    assert_eq!(system.ioas_alloc(iommufd, 0).unwrap(), 1);
    fails(system.ioas_alloc(iommufd, 1), libc::EOPNOTSUPP);
    let other = system.open_iommufd().unwrap();
    assert_eq!(system.ioas_alloc(other, 0).unwrap(), 1, "each iommufd counts on its own");
    fails(system.ioas_alloc(system.open_container(), 0), libc::EINVAL);
    fails(system.ioas_alloc(Fd(-1), 0), libc::EBADF);
}

#[test]
fn wrong_maps_are_refused() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let good = page(ioas, PAGE);
    for (bad, errno) in [
        (IoasMap { flags: 8 | ALL, ..good }, libc::EOPNOTSUPP),
        (IoasMap { iova: u64::MAX, ..good }, libc::EOVERFLOW),
        (IoasMap { length: u64::MAX, ..good }, libc::EOVERFLOW),
        (IoasMap { flags: 1, ..good }, libc::EINVAL),
        (IoasMap { ioas: 9, ..good }, libc::ENOENT),
        (IoasMap { length: 0, ..good }, libc::EINVAL),
        (IoasMap { length: u64::MAX - 1, ..good }, libc::EINVAL),
        (IoasMap { user_va: u64::MAX, ..good }, libc::EOVERFLOW),
        (IoasMap { iova: u64::MAX - 1, ..good }, libc::EOVERFLOW),
    ] {
        fails(system.ioas_map(iommufd, &bad), errno);
    }
    assert_eq!(system.ioas_map(iommufd, &good).unwrap(), PAGE);
    fails(system.ioas_map(iommufd, &good), libc::EEXIST);
    fails(system.ioas_map(iommufd, &IoasMap { iova: 1, ..good }), libc::EEXIST);
}

#[test]
fn without_a_device_nothing_is_pinned_and_nothing_is_aligned() {
    let mut description = host(Kernel::Linux6_12);
    description.memory = Vec::new();
    let (system, iommufd, ioas) = space(description);
    let odd = IoasMap { user_va: 0x1001, length: 3, iova: 5, ..page(ioas, 0) };
    system.ioas_map(iommufd, &odd).unwrap();
    assert_eq!(system.locked_memory(), 0);
    assert_eq!(ranges(&system, iommufd, ioas), (vec![(0, u64::MAX)], 1));
    assert_eq!(system.ioas_translate(iommufd, ioas, 6).unwrap(), Some((0x1002, 2)));
    assert_eq!(system.ioas_translate(iommufd, ioas, 8).unwrap(), None);
    assert_eq!(system.ioas_areas(iommufd, ioas).unwrap(), vec![5..=7; 1]);
}

#[test]
fn an_unmap_ends_at_the_first_area_that_it_would_split() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let unmap = |iova, length| system.ioas_unmap(iommufd, &IoasUnmap { ioas, iova, length });
    assert_eq!(unmap(0, u64::MAX).unwrap(), 0, "all of nothing");
    fails(unmap(0, PAGE), libc::ENOENT);
    for at in [0, 1, 3] {
        let pages = if at == 3 { 2 } else { 1 };
        let map = IoasMap { length: pages * PAGE, ..page(ioas, at * PAGE) };
        system.ioas_map(iommufd, &map).unwrap();
    }
    fails(unmap(0, 0), libc::EINVAL);
    fails(unmap(PAGE, u64::MAX), libc::EOVERFLOW);
    fails(unmap(u64::MAX, PAGE), libc::EOVERFLOW);
    fails(unmap(PAGE, u64::MAX - 1), libc::EOVERFLOW);
    fails(unmap(4 * PAGE, PAGE), libc::ENOENT);
    fails(unmap(PAGE, 3 * PAGE), libc::ENOENT);
    assert_eq!(
        system.ioas_areas(iommufd, ioas).unwrap(),
        [0..=PAGE - 1, 3 * PAGE..=5 * PAGE - 1],
        "the area before it is gone"
    );
    assert_eq!(unmap(0, 8 * PAGE).unwrap(), 3 * PAGE);
    fails(system.ioas_unmap(iommufd, &everything(9)), libc::ENOENT);
}

#[test]
fn the_kernel_chooses_an_iova_with_the_alignment_of_the_memory() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let choose = |user_va, length| {
        let map = IoasMap { flags: 6, user_va, length, ..page(ioas, 0) };
        system.ioas_map(iommufd, &map)
    };
    assert_eq!(choose(0x1000, PAGE).unwrap(), PAGE, "never 0");
    assert_eq!(choose(0x4000, 4 * PAGE).unwrap(), 4 * PAGE);
    assert_eq!(choose(0x4000, PAGE).unwrap(), 2 * PAGE, "the first hole");
    assert_eq!(choose(0x1234, 1).unwrap(), (3 * PAGE) | 0x234, "with the offset in the page");
    assert_eq!(choose(2 << 30, 4 << 30).unwrap(), 2 << 20, "a huge page at most");
    fails(choose(0x1000, u64::MAX / 2), libc::EOVERFLOW);
    system.ioas_unmap(iommufd, &everything(ioas)).unwrap();
    let allowed = [0x10_0000..=0x10_1fff];
    system.ioas_allow_iovas(iommufd, ioas, &allowed).unwrap();
    assert_eq!(choose(0x1000, PAGE).unwrap(), 0x10_0000);
    fails(choose(0x1000, 2 * PAGE), libc::ENOSPC);
}

#[test]
fn allowed_ranges_are_ordered_and_apart() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let allow =
        |ranges: &[std::ops::RangeInclusive<u64>]| system.ioas_allow_iovas(iommufd, ioas, ranges);
    fails(allow(&[5..=5]), libc::EINVAL);
    fails(allow(&[0..=5, 5..=9]), libc::EINVAL);
    allow(&[6..=9, 0..=5]).unwrap();
    allow(&[]).unwrap();
    fails(system.ioas_allow_iovas(iommufd, 7, &[]), libc::ENOENT);
}

#[test]
fn options_have_values_and_privileges() {
    let mut description = host(Kernel::Linux6_12);
    let option = |option, op, object, value| IommuOption { option, op, object, value };
    let mode = |op, value| option(IommuOption::RLIMIT_MODE, op, 0, value);
    let (set, get) = (IommuOption::SET, IommuOption::GET);
    let system = description.clone().build();
    let iommufd = system.open_iommufd().unwrap();
    let call = |call| system.iommu_option(iommufd, &call);
    assert_eq!(call(mode(get, 9)).unwrap(), 0);
    assert_eq!(call(mode(set, 1)).unwrap(), 1);
    assert_eq!(call(mode(get, 9)).unwrap(), 1);
    fails(call(mode(set, 2)), libc::EINVAL);
    fails(call(mode(2, 0)), libc::EOPNOTSUPP);
    fails(call(option(0, get, 1, 0)), libc::EOPNOTSUPP);
    fails(call(option(2, get, 0, 0)), libc::EOPNOTSUPP);
    fails(call(option(1, get, 1, 0)), libc::ENOENT);
    let ioas = system.ioas_alloc(iommufd, 0).unwrap();
    fails(call(mode(set, 1)), libc::EBUSY);
    let huge = |op, value| option(IommuOption::HUGE_PAGES, op, ioas, value);
    assert_eq!(call(huge(get, 9)).unwrap(), 1);
    fails(call(huge(set, 2)), libc::EINVAL);
    fails(call(huge(2, 0)), libc::EOPNOTSUPP);
    system.ioas_map(iommufd, &IoasMap { length: 1, ..page(ioas, 0) }).unwrap();
    fails(call(huge(set, 0)), libc::EADDRINUSE);
    system.ioas_unmap(iommufd, &everything(ioas)).unwrap();
    assert_eq!(call(huge(set, 0)).unwrap(), 0);
    assert_eq!(ranges(&system, iommufd, ioas).1, PAGE, "small pages are whole");
    assert_eq!(call(huge(set, 1)).unwrap(), 1);
    assert_eq!(ranges(&system, iommufd, ioas).1, 1);

    description.resource = false;
    let system = description.build();
    let iommufd = system.open_iommufd().unwrap();
    fails(system.iommu_option(iommufd, &mode(set, 1)), libc::EPERM);
}

#[test]
fn sizes_of_structs_are_checked_first() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let call = |fd, request, argument: &mut [u8]| system.ioctl(fd, request, argument, &mut Fd);
    for (request, size) in [(28, 8), (29, 12), (30, 24), (32, 32), (33, 40), (34, 24), (35, 24)] {
        let mut argument = words(&[size - 1]);
        argument.resize(64, 0);
        fails(call(iommufd, request, &mut argument), libc::EINVAL);
        argument[..4].copy_from_slice(&(size + 8).to_ne_bytes());
        argument[size as usize + 7] = 1;
        fails(call(iommufd, request, &mut argument), libc::E2BIG);
    }
    let mut alloc = words(&[16, 0, 0, 0]);
    call(iommufd, 29, &mut alloc).unwrap();
    assert_eq!(alloc, words(&[16, 0, 2, 0]));
    fails(call(iommufd, 33, &mut words(&[40, 7, ioas, 1, 0, 0, 0, 0, 0, 0])), libc::EOPNOTSUPP);
    fails(call(iommufd, 35, &mut words(&[24, 0, 1 << 16, 0, 0, 0])), libc::EOPNOTSUPP);
    fails(call(iommufd, 43, &mut words(&[64])), libc::ENOTTY);
    fails(call(system.open_eventfd(), 28, &mut words(&[8, 1])), libc::ENOTTY);
}

#[test]
fn a_program_uses_iommufd_by_numbers() {
    let (system, iommufd, ioas) = space(host(Kernel::Linux6_12));
    let call = |request, argument: &mut [u8]| system.ioctl(iommufd, request, argument, &mut Fd);
    let mut map = words(&[40, 7, ioas, 0, 0x1000, 0, 0x2000, 0, 0x4000, 0]);
    call(33, &mut map).unwrap();
    assert_eq!(map[32..40], 0x4000_u64.to_ne_bytes());
    let mut ranges = words(&[32, ioas, 0, 0, 0, 0, 0, 0]);
    fails(call(32, &mut ranges), libc::EMSGSIZE);
    assert_eq!(ranges, words(&[32, ioas, 1, 0, 0, 0, 1, 0]));
    let mut allow = words(&[24, ioas, 1, 0, 0, 0, 0x4000, 0, 0x8000, 0]);
    call(30, &mut allow).unwrap();
    let mut option = words(&[24, 1, 1, ioas, 9, 9]);
    call(35, &mut option).unwrap();
    assert_eq!(option[16..24], 1_u64.to_ne_bytes());
    let mut unmap = words(&[24, ioas, 0, 0, u32::MAX, u32::MAX]);
    call(34, &mut unmap).unwrap();
    assert_eq!(unmap[16..24], 0x2000_u64.to_ne_bytes());
    call(28, &mut words(&[8, ioas])).unwrap();
    fails(call(28, &mut words(&[8, ioas])), libc::ENOENT);
}
