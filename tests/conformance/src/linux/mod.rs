//! A running Linux: the contract, implemented by raw ioctls.

mod ioctl;
mod iommufd;
mod kvm;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{IntoRawFd as _, RawFd};

use vfio_model::{Fd, IrqSet, Irqfd, MapDma, UnmapDma};

use crate::Core;
use ioctl::{Argument, ioctl};

/// linux/vfio.h: `_IO(';', 100 + n)`
const fn vfio(number: u32) -> u32 {
    0x3b64_u32.wrapping_add(number)
}

/// The running kernel. Files are plain numbers, because the checks pass closed ones, too.
#[derive(Debug, Default)]
pub struct Linux {
    /// The virtual machine of each VFIO device of KVM.
    machines: BTreeMap<Fd, RawFd>,
}

fn open(path: &str) -> io::Result<RawFd> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    Ok(file.into_raw_fd())
}

/// The size of the buffer of info ioctls.
const ROOM: usize = 4096;

impl Linux {
    /// Calls an info ioctl on a copy of the buffer with room for its `argsz`.
    fn info(fd: Fd, number: u32, buffer: &mut [u8]) -> io::Result<()> {
        let argsz = buffer.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word));
        if buffer.len().max(argsz as usize) > ROOM {
            return Err(io::Error::other("argsz is larger than the buffer of this program"));
        }
        let mut bytes = buffer.to_vec();
        bytes.resize(ROOM, 0);
        let result = ioctl(fd.0, vfio(number), Argument::Bytes(&mut bytes));
        buffer.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        result.map(|_| ())
    }
}

fn unsigned(value: i32) -> u32 {
    value.cast_unsigned()
}

fn unsigned_of(fd: Fd) -> u32 {
    fd.0.cast_unsigned()
}

impl Core for Linux {
    fn open_container(&mut self) -> io::Result<Fd> {
        open("/dev/vfio/vfio").map(Fd)
    }

    fn open_group(&mut self, group: u32) -> io::Result<Fd> {
        open(&format!("/dev/vfio/{group}")).map(Fd)
    }

    fn open_eventfd(&mut self) -> io::Result<Fd> {
        ioctl::eventfd().map(Fd)
    }

    fn open_kvm(&mut self) -> io::Result<Fd> {
        let (machine, device) = kvm::machine()?;
        self.machines.insert(Fd(device), machine);
        Ok(Fd(device))
    }

    fn open_memory(&mut self, size: u64) -> io::Result<Fd> {
        ioctl::memory(size).map(Fd)
    }

    fn close(&mut self, fd: Fd) -> io::Result<()> {
        ioctl::close(fd.0)?;
        match self.machines.remove(&fd) {
            Some(machine) => ioctl::close(machine),
            None => Ok(()),
        }
    }

    fn signals(&mut self, eventfd: Fd) -> io::Result<u64> {
        ioctl::read_eventfd(eventfd.0)
    }

    fn api_version(&mut self, container: Fd) -> io::Result<u32> {
        ioctl(container.0, vfio(0), Argument::Number(0)).map(unsigned)
    }

    fn check_extension(&mut self, container: Fd, extension: u64) -> io::Result<u32> {
        ioctl(container.0, vfio(1), Argument::Number(extension)).map(unsigned)
    }

    fn set_iommu(&mut self, container: Fd, kind: u64) -> io::Result<()> {
        ioctl(container.0, vfio(2), Argument::Number(kind)).map(|_| ())
    }

    fn map_dma(&mut self, container: Fd, call: &MapDma) -> io::Result<()> {
        let header = [call.argsz, call.flags].into_iter().flat_map(u32::to_ne_bytes);
        let rest = [call.vaddr, call.iova, call.size].into_iter().flat_map(u64::to_ne_bytes);
        let mut bytes: Vec<u8> = header.chain(rest).collect();
        ioctl(container.0, vfio(13), Argument::Bytes(&mut bytes)).map(|_| ())
    }

    fn unmap_dma(&mut self, container: Fd, call: &UnmapDma) -> io::Result<u64> {
        let header = [call.argsz, call.flags].into_iter().flat_map(u32::to_ne_bytes);
        let rest = [call.iova, call.size].into_iter().flat_map(u64::to_ne_bytes);
        let mut bytes: Vec<u8> = header.chain(rest).collect();
        ioctl(container.0, vfio(14), Argument::Bytes(&mut bytes))?;
        let size = bytes.get(16..).and_then(|bytes| bytes.first_chunk());
        Ok(size.map_or(0, |size| u64::from_ne_bytes(*size)))
    }

    fn iommu_info(&mut self, container: Fd, buffer: &mut [u8]) -> io::Result<()> {
        Self::info(container, 12, buffer)
    }

    fn group_status(&mut self, group: Fd, argsz: u32) -> io::Result<u32> {
        let mut bytes: Vec<u8> = [argsz, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        ioctl(group.0, vfio(3), Argument::Bytes(&mut bytes))?;
        let flags = bytes.get(4..).and_then(|bytes| bytes.first_chunk());
        Ok(flags.map_or(0, |flags| u32::from_ne_bytes(*flags)))
    }

    fn set_container(&mut self, group: Fd, container: Fd) -> io::Result<()> {
        let mut bytes = container.0.to_ne_bytes().to_vec();
        ioctl(group.0, vfio(4), Argument::Bytes(&mut bytes)).map(|_| ())
    }

    fn unset_container(&mut self, group: Fd) -> io::Result<()> {
        ioctl(group.0, vfio(5), Argument::Number(0)).map(|_| ())
    }

    fn open_device(&mut self, group: Fd, name: &str) -> io::Result<Fd> {
        let name = CString::new(name).map_err(io::Error::other)?;
        let mut bytes = name.into_bytes_with_nul();
        ioctl(group.0, vfio(6), Argument::Bytes(&mut bytes)).map(Fd)
    }

    fn link(&mut self, kvm: Fd, file: Fd) -> io::Result<()> {
        kvm::change_file(kvm, kvm::ADD, file)
    }

    fn unlink(&mut self, kvm: Fd, file: Fd) -> io::Result<()> {
        kvm::change_file(kvm, kvm::DEL, file)
    }

    fn irqfd(&mut self, kvm: Fd, call: &Irqfd) -> io::Result<()> {
        let machine = self.machines.get(&kvm).copied().unwrap_or(kvm.0);
        kvm::irqfd(machine, call)
    }

    fn device_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        Self::info(device, 7, buffer)
    }

    fn region_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        Self::info(device, 8, buffer)
    }

    fn irq_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        Self::info(device, 9, buffer)
    }

    fn set_irqs(&mut self, device: Fd, set: &IrqSet) -> io::Result<()> {
        let header = [set.argsz, set.flags, set.index, set.start, set.count];
        let header = header.into_iter().flat_map(u32::to_ne_bytes);
        let mut bytes: Vec<u8> = header.chain(set.data.bytes()).collect();
        // MSI-X has 2048 vectors at most, so the kernel reads no more.
        bytes.resize(bytes.len().max(16 << 10), 0);
        ioctl(device.0, vfio(10), Argument::Bytes(&mut bytes)).map(|_| ())
    }

    fn reset(&mut self, device: Fd) -> io::Result<()> {
        ioctl(device.0, vfio(11), Argument::Number(0)).map(|_| ())
    }
}
