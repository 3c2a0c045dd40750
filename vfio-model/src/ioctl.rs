//! Ioctls by number, for whoever stands between a program and the kernel.

use std::io;

use crate::files::Kind;
use crate::info::{put, word};
use crate::{Fd, IrqData, IrqSet, MapDma, System, UnmapDma, errno};

/// Sizes of `struct vfio_irq_set` and `struct vfio_pci_hot_reset` without what is behind them.
const IRQ_SET: usize = 20;
const HOT_RESET: usize = 12;

impl System {
    /// The ioctl that has the number `request` from `VFIO_BASE` on (`_IO(';', 100 + request)`), with
    /// the bytes of its argument: the struct and the room behind it that `argsz` speaks of, the 8
    /// bytes of a number, or a name without the zero at its end. The answer is written into it.
    ///
    /// A program has other numbers for its files than the system: `fds` translates those in the
    /// argument that are not negative. `VFIO_GROUP_GET_DEVICE_FD` gives the system's number.
    ///
    /// For a library that takes the place of the C library's `ioctl` in a program.
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
            10 => self.set_irqs(fd, &irq_set(argument, fds)).map(|()| 0),
            11 => self.reset(fd).map(|()| 0),
            12 if self.is_device(fd) => self.hot_reset_info(fd, argument).map(|()| 0),
            12 => self.iommu_info(fd, argument).map(|()| 0),
            13 if self.is_device(fd) => self.hot_reset_of(fd, argument, fds),
            13 => self.map_dma(fd, &map_of(argument)).map(|()| 0),
            14 => self.unmap_dma_of(fd, argument),
            _ => self.state().foreign(fd),
        }
    }

    fn is_device(&self, fd: Fd) -> bool {
        matches!(self.state().files.kind(fd), Ok(Kind::Device(_)))
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

    fn hot_reset_of(
        &self,
        fd: Fd,
        argument: &[u8],
        fds: &mut dyn FnMut(i32) -> Fd,
    ) -> io::Result<i32> {
        if argument.len() < HOT_RESET || word(argument, 4) != 0 {
            return Err(errno(libc::EINVAL));
        }
        let groups = fds_behind(argument, HOT_RESET, word(argument, 8), fds);
        self.hot_reset(fd, &groups).map(|()| 0)
    }
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

/// The data is what the flags say that it is, which are looked at later.
fn irq_set(argument: &[u8], fds: &mut dyn FnMut(i32) -> Fd) -> IrqSet {
    let (flags, count) = (word(argument, 4), word(argument, 16));
    let data = match flags & crate::irqs::DATA {
        crate::irqs::EVENTFD => IrqData::Eventfds(fds_behind(argument, IRQ_SET, count, fds)),
        crate::irqs::BOOL => IrqData::Bools(argument.get(IRQ_SET..).unwrap_or_default().to_vec()),
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

/// So many fds behind a struct of a size, or as many as there are.
fn fds_behind(argument: &[u8], size: usize, count: u32, fds: &mut dyn FnMut(i32) -> Fd) -> Vec<Fd> {
    let words = argument.get(size..).unwrap_or_default().chunks_exact(4).take(count as usize);
    words.map(|bytes| fd_at(bytes, 0, fds)).collect()
}

fn fd_at(argument: &[u8], offset: usize, fds: &mut dyn FnMut(i32) -> Fd) -> Fd {
    translate(word(argument, offset) as i32, fds)
}

fn translate(number: i32, fds: &mut dyn FnMut(i32) -> Fd) -> Fd {
    match number {
        ..0 => Fd(number),
        _ => fds(number),
    }
}

/// The 64-bit word of an argument at an offset; 0 beyond its end.
fn long(argument: &[u8], offset: usize) -> u64 {
    let bytes = argument.get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}
