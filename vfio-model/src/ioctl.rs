//! Ioctls by number, for a library that a program calls instead of the kernel.

use std::io;

use crate::cdev::{AttachPt, BindIommufd};
use crate::errno::{FewerVectors, errno};
use crate::files::{Fd, Kind};
use crate::info::{put, word};
use crate::irq_set::{BOOL, DATA, EVENTFD, IrqData, IrqSet};
use crate::state::System;
use crate::type1::{MapDma, UnmapDma};

/// The sizes of `struct vfio_irq_set` and `struct vfio_pci_hot_reset` without their arrays.
const IRQ_SET: usize = 20;
const HOT_RESET: usize = 12;

impl System {
    /// The ioctl `_IO(VFIO_TYPE, VFIO_BASE + request)`, for a library that replaces the C library's
    /// `ioctl` in a program. The requests of iommufd are 28 (`IOMMU_DESTROY`) and more.
    ///
    /// `argument` holds the struct and the room behind it that `argsz` states, the 8 bytes of a
    /// number, or a name without its terminating zero; the reply is written into it. An array to
    /// which a struct of iommufd points, or the VF token of a bind, lies behind the struct, at its
    /// `size`. `fds`
    /// translates each fd in the argument that is not negative, since the program's numbers differ
    /// from the system's. `VFIO_GROUP_GET_DEVICE_FD` returns the system's number.
    ///
    /// # Errors
    ///
    /// The errors of the call that has this number. `ENOTTY`, or `EINVAL` from a container without
    /// an IOMMU: the file has no such ioctl.
    pub fn ioctl(
        &self,
        fd: Fd,
        request: u32,
        argument: &mut [u8],
        fds: &mut dyn FnMut(i32) -> Fd,
    ) -> io::Result<i32> {
        match request {
            0 => self.api_version(fd).map(|version| version as i32),
            1 => self.check_extension(fd, long(argument, 0)).map(|found| found as i32),
            2 => self.set_iommu(fd, long(argument, 0)).map(|()| 0),
            3 => self.group_status_of(fd, argument),
            4 => self.set_container(fd, fd_at(argument, 0, fds)).map(|()| 0),
            5 => self.unset_container(fd).map(|()| 0),
            6 => self.open_device(fd, &String::from_utf8_lossy(argument)).map(|fd| fd.0),
            7 => self.device_info(fd, argument).map(|()| 0),
            8 => self.region_info(fd, argument).map(|()| 0),
            9 => self.irq_info(fd, argument).map(|()| 0),
            10 => result_of(self.set_irqs(fd, &irq_set(argument, fds))),
            11 => self.reset(fd).map(|()| 0),
            12 if self.is_device(fd) => self.hot_reset_info(fd, argument).map(|()| 0),
            12 => self.iommu_info(fd, argument).map(|()| 0),
            13 if self.is_device(fd) => self.hot_reset_of(fd, argument, fds),
            13 => self.map_dma(fd, &map_of(argument)).map(|()| 0),
            14 => self.unmap_dma_of(fd, argument),
            17 if self.is_device(fd) => self.device_feature(fd, argument).map(|()| 0),
            17 => self.dirty_pages(fd, argument).map(|()| 0),
            18 => self.bind_iommufd_of(fd, argument, fds),
            19 => self.attach_pt_of(fd, argument),
            20 => self.detach_pt(fd, &attach_of(argument)).map(|()| 0),
            28.. => self.iommufd_ioctl(fd, request, argument, fds),
            _ => self.state().unknown_ioctl(fd),
        }
    }

    fn is_device(&self, fd: Fd) -> bool {
        matches!(self.state().files.kind(fd), Ok(Kind::Device(_) | Kind::Cdev(..)))
    }

    fn group_status_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<i32> {
        let flags = self.group_status(fd, word(argument, 0))?;
        put(argument, 4, &flags.to_ne_bytes());
        Ok(0)
    }

    fn unmap_dma_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<i32> {
        let call = UnmapDma {
            argsz: word(argument, 0),
            flags: word(argument, 4),
            iova: long(argument, 8),
            size: long(argument, 16),
        };
        let unmapped = self.unmap_dma(fd, &call)?;
        put(argument, 16, &unmapped.to_ne_bytes());
        Ok(0)
    }

    fn bind_iommufd_of(
        &self,
        fd: Fd,
        argument: &mut [u8],
        fds: &mut dyn FnMut(i32) -> Fd,
    ) -> io::Result<i32> {
        let argsz = word(argument, 0);
        let mut tail = argument.iter().take(argsz as usize).skip(BindIommufd::TOKEN_ARGSZ as usize);
        let takes_tokens = self.state().description.kernel.binds_with_tokens();
        if argsz >= BindIommufd::ARGSZ && takes_tokens && tail.any(|byte| *byte != 0) {
            return Err(errno(libc::E2BIG));
        }
        let token = argument.get(argsz as usize..).and_then(|behind| behind.first_chunk());
        let call = BindIommufd {
            argsz,
            flags: word(argument, 4),
            iommufd: fd_at(argument, 8, fds),
            token: token.copied().unwrap_or_default(),
        };
        let id = self.bind_iommufd(fd, &call)?;
        put(argument, 12, &id.to_ne_bytes());
        Ok(0)
    }

    fn attach_pt_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<i32> {
        let id = self.attach_pt(fd, &attach_of(argument))?;
        put(argument, 8, &id.to_ne_bytes());
        Ok(0)
    }

    fn hot_reset_of(
        &self,
        fd: Fd,
        argument: &[u8],
        fds: &mut dyn FnMut(i32) -> Fd,
    ) -> io::Result<i32> {
        self.state().device_of(fd)?;
        if (word(argument, 0) as usize) < HOT_RESET || word(argument, 4) != 0 {
            return Err(errno(libc::EINVAL));
        }
        let groups = fds_behind(argument, HOT_RESET, word(argument, 8), fds);
        self.hot_reset(fd, &groups).map(|()| 0)
    }
}

/// The result of `VFIO_DEVICE_SET_IRQS`: the number of vectors that the host has, if it is lower.
fn result_of(set: io::Result<()>) -> io::Result<i32> {
    set.map(|()| 0).or_else(|error| {
        let fewer = error.get_ref().and_then(|inner| inner.downcast_ref());
        let had = fewer.and_then(|FewerVectors(had)| i32::try_from(*had).ok());
        had.ok_or(error)
    })
}

fn map_of(argument: &[u8]) -> MapDma {
    MapDma {
        argsz: word(argument, 0),
        flags: word(argument, 4),
        vaddr: long(argument, 8),
        iova: long(argument, 16),
        size: long(argument, 24),
    }
}

fn attach_of(argument: &[u8]) -> AttachPt {
    AttachPt { argsz: word(argument, 0), flags: word(argument, 4), id: word(argument, 8) }
}

/// The flags say what the data is; `VFIO_DEVICE_SET_IRQS` checks them later.
fn irq_set(argument: &[u8], fds: &mut dyn FnMut(i32) -> Fd) -> IrqSet {
    let (flags, count) = (word(argument, 4), word(argument, 16));
    let data = match flags & DATA {
        EVENTFD => IrqData::Eventfds(fds_behind(argument, IRQ_SET, count, fds)),
        BOOL => IrqData::Bools(argument.get(IRQ_SET..).unwrap_or_default().to_vec()),
        _ => IrqData::None,
    };
    IrqSet {
        argsz: word(argument, 0),
        flags,
        index: word(argument, 8),
        start: word(argument, 12),
        count,
        data,
    }
}

/// Up to `count` fds behind a struct of `size` bytes.
fn fds_behind(argument: &[u8], size: usize, count: u32, fds: &mut dyn FnMut(i32) -> Fd) -> Vec<Fd> {
    let words = argument.get(size..).unwrap_or_default().chunks_exact(4).take(count as usize);
    words.map(|bytes| fd_at(bytes, 0, fds)).collect()
}

pub(crate) fn fd_at(argument: &[u8], offset: usize, fds: &mut dyn FnMut(i32) -> Fd) -> Fd {
    match word(argument, offset) as i32 {
        number @ ..0 => Fd(number),
        number => fds(number),
    }
}

/// The 64-bit word at an offset; 0 beyond the end.
pub(crate) fn long(argument: &[u8], offset: usize) -> u64 {
    let bytes = argument.get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
