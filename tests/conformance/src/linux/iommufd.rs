//! `/dev/iommu` and character devices of a running Linux.

use std::fs;
use std::io;

use vfio_model::{
    AttachPt, BindIommufd, Fd, IoasMap, IoasMapFile, IoasUnmap, IommuOption, MockDevice,
};

use super::ioctl::{Argument, ioctl};
use super::{Linux, ROOM, open, vfio};
use crate::contract::Iommufd;

/// The numbers of `IOMMU_IOAS_ALLOW_IOVAS` and `IOMMU_IOAS_IOVA_RANGES`, counted from `VFIO_BASE`.
const ALLOW_IOVAS: u32 = 30;
const IOVA_RANGES: u32 = 32;

/// `IOMMU_TEST_CMD` and two of its operations, of kernels with `CONFIG_IOMMUFD_TEST`.
const TEST: u32 = 60;
const MOCK_DOMAIN: u32 = 2;
const MOCK_DOMAIN_REPLACE: u32 = 10;

/// The PASID of attaches and detaches with that flag.
const PASID: u32 = 1;

/// `struct iommu_test_cmd`, with the first word of its union.
fn test_of(op: u32, id: u32, first: u32) -> Vec<u8> {
    let mut bytes = words(&[72, op, id, 0, first]);
    bytes.resize(72, 0);
    bytes
}

/// `VFIO_IOMMU_DIRTY_PAGES`
const DIRTY_PAGES: u32 = 17;

/// Where the struct of a call has the address of an array.
fn array_of(number: u32) -> Option<usize> {
    match number {
        ALLOW_IOVAS | IOVA_RANGES => Some(16),
        DIRTY_PAGES => Some(40),
        _ => None,
    }
}

/// The bytes of the words of a struct.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The same, with 64-bit words behind them.
fn longs(header: &[u32], rest: &[u64]) -> Vec<u8> {
    words(header).into_iter().chain(rest.iter().flat_map(|long| long.to_ne_bytes())).collect()
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| u32::from_ne_bytes(*word))
}

fn long_at(bytes: &[u8], at: usize) -> u64 {
    let long = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    long.map_or(0, |long| u64::from_ne_bytes(*long))
}

/// Calls with a struct of these bytes, and returns the struct with the reply.
fn call(fd: Fd, number: u32, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    raw(fd, number, &mut bytes)?;
    Ok(bytes)
}

/// Calls with a copy of the struct that has room behind it.
fn raw(fd: Fd, number: u32, argument: &mut [u8]) -> io::Result<()> {
    let size = word_at(argument, 0) as usize;
    if argument.len().max(size) > ROOM {
        return Err(io::Error::other("the struct is larger than the buffer of this program"));
    }
    let mut bytes = argument.to_vec();
    bytes.resize(2 * ROOM, 0);
    if let Some(at) = array_of(number) {
        let array = bytes.as_ptr().expose_provenance().wrapping_add(size) as u64;
        put(&mut bytes, at, &array.to_ne_bytes());
    }
    let result = ioctl(fd.0, vfio(number), Argument::Bytes(&mut bytes));
    if let Some(at) = array_of(number) {
        put(&mut bytes, at, argument.get(at..).unwrap_or_default());
    }
    argument.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    result.map(|_| ())
}

/// Writes the address of the array.
fn put(bytes: &mut [u8], at: usize, address: &[u8]) {
    let field = bytes.get_mut(at..).unwrap_or_default().iter_mut();
    field.zip(address.iter().take(8)).for_each(|(to, from)| *to = *from);
}

impl Iommufd for Linux {
    fn open_iommufd(&mut self) -> io::Result<Fd> {
        open("/dev/iommu").map(Fd)
    }

    fn open_cdev(&mut self, name: &str) -> io::Result<Fd> {
        let entries = fs::read_dir(format!("/sys/bus/pci/devices/{name}/vfio-dev"))?;
        let entry = entries.flatten().next().ok_or(io::ErrorKind::NotFound)?;
        open(&format!("/dev/vfio/devices/{}", entry.file_name().to_string_lossy())).map(Fd)
    }

    fn ioas_alloc(&mut self, iommufd: Fd, flags: u32) -> io::Result<u32> {
        Ok(word_at(&call(iommufd, 29, words(&[12, flags, 0]))?, 8))
    }

    fn iommu_destroy(&mut self, iommufd: Fd, id: u32) -> io::Result<()> {
        call(iommufd, 28, words(&[8, id])).map(|_| ())
    }

    fn ioas_map(&mut self, iommufd: Fd, map: &IoasMap) -> io::Result<u64> {
        let rest = [map.user_va, map.length, map.iova];
        let bytes = longs(&[40, map.flags, map.ioas, 0], &rest);
        Ok(long_at(&call(iommufd, 33, bytes)?, 32))
    }

    fn ioas_map_file(&mut self, iommufd: Fd, map: &IoasMapFile) -> io::Result<u64> {
        let header = [40, map.flags, map.ioas, map.file.0.cast_unsigned()];
        let bytes = longs(&header, &[map.start, map.length, map.iova]);
        Ok(long_at(&call(iommufd, 43, bytes)?, 32))
    }

    fn ioas_unmap(&mut self, iommufd: Fd, unmap: &IoasUnmap) -> io::Result<u64> {
        let bytes = longs(&[24, unmap.ioas], &[unmap.iova, unmap.length]);
        Ok(long_at(&call(iommufd, 34, bytes)?, 16))
    }

    fn iommu_option(&mut self, iommufd: Fd, option: &IommuOption) -> io::Result<u64> {
        let header = [24, option.option, option.op.into(), option.object];
        Ok(long_at(&call(iommufd, 35, longs(&header, &[option.value]))?, 16))
    }

    fn bind_iommufd(&mut self, device: Fd, bind: &BindIommufd) -> io::Result<u32> {
        let token = bind.token.as_ptr().expose_provenance() as u64;
        // The field is behind the struct of kernels without tokens.
        let token = if bind.argsz < BindIommufd::TOKEN_ARGSZ { 0 } else { token };
        let header = [bind.argsz, bind.flags, bind.iommufd.0.cast_unsigned(), 0];
        let bytes = longs(&header, &[token]);
        Ok(word_at(&call(device, 18, bytes)?, 12))
    }

    fn attach_pt(&mut self, device: Fd, attach: &AttachPt) -> io::Result<u32> {
        Ok(word_at(&call(device, 19, words(&[attach.argsz, attach.flags, attach.id, PASID]))?, 8))
    }

    fn detach_pt(&mut self, device: Fd, detach: &AttachPt) -> io::Result<()> {
        call(device, 20, words(&[detach.argsz, detach.flags, PASID])).map(|_| ())
    }

    fn hot_reset_info(&mut self, device: Fd, buffer: &mut [u8]) -> io::Result<()> {
        Self::info(device, 12, buffer)
    }

    fn hot_reset(&mut self, device: Fd, groups: &[Fd]) -> io::Result<()> {
        let fds = groups.iter().map(|group| group.0.cast_unsigned());
        let count = u32::try_from(groups.len()).unwrap_or(u32::MAX);
        let argsz = count.saturating_mul(4).saturating_add(12);
        let header = [argsz, 0, count].into_iter().chain(fds);
        call(device, 13, words(&header.collect::<Vec<_>>())).map(|_| ())
    }

    fn mock_attach(&mut self, iommufd: Fd, id: u32) -> io::Result<MockDevice> {
        let reply = call(iommufd, TEST, test_of(MOCK_DOMAIN, id, 0))?;
        let [mock, page_table, device] = [16, 20, 24].map(|at| word_at(&reply, at));
        Ok(MockDevice { mock, page_table, device })
    }

    fn mock_replace(&mut self, iommufd: Fd, mock: u32, id: u32) -> io::Result<u32> {
        Ok(word_at(&call(iommufd, TEST, test_of(MOCK_DOMAIN_REPLACE, mock, id))?, 16))
    }

    fn request(&mut self, fd: Fd, number: u32, argument: &mut [u8]) -> io::Result<()> {
        raw(fd, number, argument)
    }
}
