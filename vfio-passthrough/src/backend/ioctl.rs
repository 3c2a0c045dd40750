//! VFIO ioctls on a borrowed fd: those that vfio-ioctls lacks, or whose result or errno it does not
//! return.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use vfio_bindings::bindings::vfio as sys;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};
use vmm_sys_util::ioctl_io_nr;

use super::description::{DeviceFlags, IommuInfo, IrqFlags, IrqInfo, RegionInfo};
use super::device::{FewerVectors, SetIrqs};
use super::info;
use crate::address::{ByteRange, PciAddress};
use crate::host::HostMemory;

ioctl_io_nr!(VFIO_GET_API_VERSION, sys::VFIO_TYPE as u32, sys::VFIO_BASE);
ioctl_io_nr!(VFIO_CHECK_EXTENSION, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 1);
ioctl_io_nr!(VFIO_SET_IOMMU, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 2);
ioctl_io_nr!(VFIO_GROUP_GET_STATUS, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 3);
ioctl_io_nr!(VFIO_GROUP_SET_CONTAINER, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 4);
ioctl_io_nr!(VFIO_GROUP_GET_DEVICE_FD, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 6);
ioctl_io_nr!(VFIO_DEVICE_GET_INFO, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 7);
ioctl_io_nr!(VFIO_DEVICE_GET_REGION_INFO, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 8);
ioctl_io_nr!(VFIO_DEVICE_GET_IRQ_INFO, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 9);
ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 10);
ioctl_io_nr!(VFIO_DEVICE_RESET, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 11);
ioctl_io_nr!(VFIO_IOMMU_GET_INFO, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 12);
ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 13);
ioctl_io_nr!(VFIO_IOMMU_UNMAP_DMA, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 14);

ioctl_io_nr!(VFIO_DEVICE_FEATURE, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 17);

ioctl_io_nr!(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 12);
ioctl_io_nr!(VFIO_DEVICE_PCI_HOT_RESET, sys::VFIO_TYPE as u32, sys::VFIO_BASE + 13);

/// The size of a struct, for its field `argsz`. The structs here are small: their sizes fit in 32
/// bits.
pub(super) const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

pub(super) fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `VFIO_GET_API_VERSION` and `VFIO_CHECK_EXTENSION`: whether a file is a container that supports a
/// type1v2 IOMMU.
pub(super) fn is_type1_container(file: &impl AsRawFd) -> bool {
    // SAFETY: the call takes no argument; the kernel accesses no memory of this process.
    let version = unsafe { ioctl(file, VFIO_GET_API_VERSION()) };
    let extension = sys::VFIO_TYPE1v2_IOMMU.into();
    // SAFETY: the argument is a number; the kernel accesses no memory of this process.
    let has_type1 = unsafe { ioctl_with_val(file, VFIO_CHECK_EXTENSION(), extension) };
    u32::try_from(version) == Ok(sys::VFIO_API_VERSION) && has_type1 > 0
}

/// `VFIO_IOMMU_MAP_DMA`, for reading and writing.
///
/// # Safety
///
/// The contract of [`AddressSpace::map`](super::AddressSpace::map).
pub(super) unsafe fn map_dma(
    container: &impl AsRawFd,
    iova: u64,
    memory: &dyn HostMemory,
) -> io::Result<()> {
    let call = sys::vfio_iommu_type1_dma_map {
        argsz: argsz::<sys::vfio_iommu_type1_dma_map>(),
        flags: sys::VFIO_DMA_MAP_FLAG_READ | sys::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: memory.host_address().expose_provenance() as u64,
        iova,
        size: memory.size(),
    };
    // SAFETY: the kernel reads the struct, which lives until the call returns. It lets devices
    // write to the memory, which the caller keeps by contract.
    check(unsafe { ioctl_with_ref(container, VFIO_IOMMU_MAP_DMA(), &call) })
}

/// `VFIO_IOMMU_UNMAP_DMA`. It is `EINVAL` if a part of the range was not mapped.
pub(super) fn unmap_dma(container: &impl AsRawFd, iova: u64, size: u64) -> io::Result<()> {
    let mut call = sys::vfio_iommu_type1_dma_unmap {
        argsz: argsz::<sys::vfio_iommu_type1_dma_unmap>(),
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the struct, which lives until the call returns.
    check(unsafe { ioctl_with_mut_ref(container, VFIO_IOMMU_UNMAP_DMA(), &mut call) })?;
    // The kernel writes the number of unmapped bytes.
    if call.size == size { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

/// `VFIO_GROUP_GET_STATUS`: whether the group is viable, which means that no device of it is bound
/// to another driver of the host.
pub(crate) fn group_is_viable(group: &impl AsRawFd) -> io::Result<bool> {
    Ok(group_status(group)? & sys::VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// `VFIO_GROUP_GET_STATUS`: whether the kernel has detached the group from its container, because
/// the host took all its devices. Newer kernels then have no such group any more (`ENODEV`).
pub(crate) fn group_is_detached(group: &impl AsRawFd) -> bool {
    match group_status(group) {
        Ok(flags) => flags & sys::VFIO_GROUP_FLAGS_CONTAINER_SET == 0,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

fn group_status(group: &impl AsRawFd) -> io::Result<u32> {
    let mut data =
        sys::vfio_group_status { argsz: argsz::<sys::vfio_group_status>(), ..Default::default() };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the size of the struct lent to it.
    check(unsafe { ioctl_with_mut_ref(group, VFIO_GROUP_GET_STATUS(), &mut data) })?;
    Ok(data.flags)
}

/// `VFIO_GROUP_SET_CONTAINER`.
pub(crate) fn set_container(group: &impl AsRawFd, container: &impl AsRawFd) -> io::Result<()> {
    let fd = container.as_raw_fd();
    // SAFETY: the kernel reads one int, which lives until the call returns.
    check(unsafe { ioctl_with_ref(group, VFIO_GROUP_SET_CONTAINER(), &fd) })
}

/// `VFIO_SET_IOMMU`, type1v2.
pub(crate) fn set_iommu(container: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the argument is a number; the kernel accesses no memory of this process.
    check(unsafe { ioctl_with_val(container, VFIO_SET_IOMMU(), sys::VFIO_TYPE1v2_IOMMU.into()) })
}

/// `VFIO_GROUP_GET_DEVICE_FD`. The name is an address, and may have options.
pub(crate) fn open_device(group: &impl AsRawFd, name: &str) -> io::Result<File> {
    // The name has no zero byte.
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: the kernel reads a string that ends with a zero byte, and `name` lives until the call
    // returns.
    let fd = unsafe { ioctl_with_ptr(group, VFIO_GROUP_GET_DEVICE_FD(), name.as_ptr()) };
    check(fd)?;
    // SAFETY: the kernel has just made this fd for this call, and no other code has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// `VFIO_DEVICE_GET_INFO`.
pub(crate) fn device_flags(device: &impl AsRawFd) -> io::Result<DeviceFlags> {
    let mut data =
        sys::vfio_device_info { argsz: argsz::<sys::vfio_device_info>(), ..Default::default() };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the size of the struct lent to it.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_GET_INFO(), &mut data) })?;
    Ok(DeviceFlags::from_bits_retain(data.flags))
}

/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub(crate) fn irq_info(device: &impl AsRawFd, index: u32) -> io::Result<IrqInfo> {
    let mut data =
        sys::vfio_irq_info { argsz: argsz::<sys::vfio_irq_info>(), index, ..Default::default() };
    // SAFETY: the kernel writes at most `argsz` bytes, which is the size of the struct lent to it.
    check(unsafe { ioctl_with_mut_ref(device, VFIO_DEVICE_GET_IRQ_INFO(), &mut data) })?;
    Ok(IrqInfo { index, flags: IrqFlags::from_bits_retain(data.flags), count: data.count })
}

/// `VFIO_DEVICE_RESET`.
pub(crate) fn reset(device: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument and accesses no memory of this process.
    check(unsafe { ioctl(device, VFIO_DEVICE_RESET()) })
}

/// `VFIO_DEVICE_GET_REGION_INFO` with its capabilities.
pub(crate) fn region_info(device: &impl AsRawFd, index: u32) -> io::Result<RegionInfo> {
    let request = VFIO_DEVICE_GET_REGION_INFO();
    let reply = info_call(device, request, size_of::<sys::vfio_region_info>(), index)?;
    Ok(RegionInfo::from_reply(&reply))
}

/// `VFIO_IOMMU_GET_INFO` of a container with its capabilities.
pub(crate) fn iommu_info(container: &impl AsRawFd) -> io::Result<IommuInfo> {
    let request = VFIO_IOMMU_GET_INFO();
    let reply = info_call(container, request, size_of::<sys::vfio_iommu_type1_info>(), 0)?;
    Ok(IommuInfo::from_reply(&reply))
}

/// `VFIO_DEVICE_FEATURE_DMA_BUF`: a dma-buf of a range of a region.
pub(crate) fn export_dma_buf(
    device: &impl AsRawFd,
    region: u32,
    range: ByteRange,
) -> io::Result<File> {
    #[repr(C)]
    struct Call {
        argsz: u32,
        flags: u32,
        region_index: u32,
        open_flags: u32,
        dma_buf_flags: u32,
        range_count: u32,
        range: sys::vfio_region_dma_range,
    }
    let call = Call {
        argsz: argsz::<Call>(),
        flags: sys::VFIO_DEVICE_FEATURE_GET | sys::VFIO_DEVICE_FEATURE_DMA_BUF,
        region_index: region,
        open_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
        dma_buf_flags: 0,
        range_count: 1,
        range: sys::vfio_region_dma_range { offset: range.start(), length: range.size() },
    };
    // SAFETY: the kernel reads `argsz` bytes, which is the size of the struct: `struct
    // vfio_device_feature`, `struct vfio_device_feature_dma_buf` and one range.
    let fd = unsafe { ioctl_with_ref(device, VFIO_DEVICE_FEATURE(), &call) };
    check(fd)?;
    // SAFETY: the kernel has just made this fd for this call, and no other code has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

const TRIGGER_EVENTFD: u32 = sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_TRIGGER;
const TRIGGER_NONE: u32 = sys::VFIO_IRQ_SET_DATA_NONE | sys::VFIO_IRQ_SET_ACTION_TRIGGER;
const UNMASK_EVENTFD: u32 = sys::VFIO_IRQ_SET_DATA_EVENTFD | sys::VFIO_IRQ_SET_ACTION_UNMASK;

/// `VFIO_DEVICE_SET_IRQS`.
pub(crate) fn set_irqs(device: &impl AsRawFd, call: SetIrqs<'_>) -> io::Result<()> {
    let resample;
    let (flags, index, start, eventfds) = match call {
        SetIrqs::Trigger { index, start, eventfds } => (TRIGGER_EVENTFD, index, start, eventfds),
        SetIrqs::UnmaskOn { index, eventfd } => {
            resample = [Some(eventfd.clone())];
            (UNMASK_EVENTFD, index, 0, resample.as_slice())
        }
        SetIrqs::Disable { index } => (TRIGGER_NONE, index, 0, [].as_slice()),
    };
    let too_many = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let count = u32::try_from(eventfds.len()).map_err(too_many)?;
    // The header's five words, `argsz` among them, and a word for each fd (linux/vfio.h, `struct
    // vfio_irq_set`).
    let size = size_of::<u32>()
        .saturating_mul(eventfds.len())
        .saturating_add(size_of::<sys::vfio_irq_set>());
    let argsz = u32::try_from(size).map_err(too_many)?;
    let header = [argsz, flags, index, start, count];
    let fd = |eventfd: &Option<Arc<EventFd>>| {
        let fd = eventfd.as_ref().map_or(-1, |eventfd| eventfd.as_raw_fd());
        fd as u32
    };
    let words: Vec<u32> = header.into_iter().chain(eventfds.iter().map(fd)).collect();
    // SAFETY: the kernel reads `argsz` bytes, which is the size of `words`: five words and one for
    // each fd.
    check_vectors(unsafe { ioctl_with_ptr(device, VFIO_DEVICE_SET_IRQS(), words.as_ptr()) })
}

/// Checks the result of `VFIO_DEVICE_SET_IRQS`. A result above zero is a failure too: it is the
/// number of vectors that the host has, and the index was not enabled (vfio_msi_enable).
fn check_vectors(result: i32) -> io::Result<()> {
    match u32::try_from(result) {
        Ok(had) if had > 0 => Err(FewerVectors(had).into()),
        _ => check(result),
    }
}

/// The most functions that a reply is fetched for: more than any hierarchy below one port has.
const MAX_BUS_MEMBERS: usize = 4096;

/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`: every function that a reset of the bus resets,
/// with its group. If the device is bound to iommufd, it is the function's id in that iommufd
/// instead: 0 if the function has no id and its group is owned, all-ones if it is not owned
/// (`VFIO_PCI_HOT_RESET_FLAG_DEV_ID`).
pub(crate) fn hot_reset_info(device: &impl AsRawFd) -> io::Result<Vec<(PciAddress, u32)>> {
    let header = size_of::<sys::vfio_pci_hot_reset_info>();
    let entry = size_of::<sys::vfio_pci_dependent_device>();
    let mut capacity = 0_usize;
    // The first call gets the number (ENOSPC), the second the functions. The third is for a number
    // that grew in between.
    for _ in 0..3 {
        let size = capacity.saturating_mul(entry).saturating_add(header);
        let argsz = u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut bytes = argsz.to_ne_bytes().to_vec();
        bytes.resize(size, 0);
        // SAFETY: the kernel copies at most `argsz` bytes in and out, which is the length of
        // `bytes`; it copies bytewise, so it requires no alignment.
        let result = check(unsafe {
            ioctl_with_mut_ptr(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(), bytes.as_mut_ptr())
        });
        let count = info::u32_at(&bytes, offset_of!(sys::vfio_pci_hot_reset_info, count)) as usize;
        match result {
            Ok(()) => {
                return Ok(info::bus_members(bytes.get(header..).unwrap_or_default(), count));
            }
            Err(error)
                if error.raw_os_error() == Some(libc::ENOSPC) && count <= MAX_BUS_MEMBERS =>
            {
                capacity = count
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::E2BIG))
}

/// `VFIO_DEVICE_PCI_HOT_RESET`: the files of `groups` prove that this process owns all functions
/// that are reset.
pub(crate) fn hot_reset(device: &impl AsRawFd, groups: &[&File]) -> io::Result<()> {
    let too_many = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let count = u32::try_from(groups.len()).map_err(too_many)?;
    // The header's three words, `argsz` among them, and a word for each fd (linux/vfio.h, `struct
    // vfio_pci_hot_reset`).
    let size = size_of::<u32>()
        .saturating_mul(groups.len())
        .saturating_add(size_of::<sys::vfio_pci_hot_reset>());
    let header = [u32::try_from(size).map_err(too_many)?, 0, count];
    let fds = groups.iter().map(|group| group.as_raw_fd() as u32);
    let words: Vec<u32> = header.into_iter().chain(fds).collect();
    // SAFETY: the kernel reads `argsz` bytes, which is the size of `words`: three words and one for
    // each fd.
    check(unsafe { ioctl_with_ptr(device, VFIO_DEVICE_PCI_HOT_RESET(), words.as_ptr()) })
}

/// A size in bytes that holds most info structs with their capabilities, so that one call is
/// enough.
const USUAL_INFO_SIZE: usize = 512;

/// The largest reply that is fetched, in bytes. A sparse-mmap capability with 4000 areas fits.
const MAX_INFO_SIZE: usize = 64 << 10;

/// Calls an info ioctl whose struct starts with `argsz`, `flags` and, for a region, its index. If
/// the kernel reports in `argsz` that the reply is larger, the ioctl is called again with that
/// size.
fn info_call(
    fd: &impl AsRawFd,
    request: libc::c_ulong,
    size: usize,
    index: u32,
) -> io::Result<Vec<u8>> {
    let mut size = size.max(USUAL_INFO_SIZE);
    // The first call gets the size, the second the reply. The third is for a size that grew in
    // between.
    for _ in 0..3 {
        let argsz = u32::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut bytes: Vec<u8> =
            [argsz, 0, index].iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.resize(size, 0);
        // SAFETY: the kernel copies at most `argsz` bytes in and out, which is the length of
        // `bytes`; it copies bytewise, so it requires no alignment.
        check(unsafe { ioctl_with_mut_ptr(fd, request, bytes.as_mut_ptr()) })?;
        match info::u32_at(&bytes, 0) as usize {
            needed if needed > size && needed <= MAX_INFO_SIZE => size = needed,
            _ => return Ok(bytes),
        }
    }
    Err(io::Error::from_raw_os_error(libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_vectors_than_requested_are_an_error() {
        assert!(check_vectors(0).is_ok());
        let text = check_vectors(1).unwrap_err().to_string();
        assert_eq!(text, "the host has only 1 vectors for the device");
    }
}
