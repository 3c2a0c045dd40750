//! The ioctls of `/dev/iommu` by number, and the rules for the sizes of their structs.

use std::io;
use std::ops::RangeInclusive;

use crate::errno::errno;
use crate::files::{Fd, Kind};
use crate::info::{put, word};
use crate::ioas::{IoasMap, IoasUnmap};
use crate::ioctl::{fd_at, long};
use crate::map_file::IoasMapFile;
use crate::objects::IommuOption;
use crate::state::System;

impl System {
    /// `iommufd_fops_ioctl`.
    pub(crate) fn iommufd_ioctl(
        &self,
        fd: Fd,
        request: u32,
        argument: &mut [u8],
        fds: &mut dyn FnMut(i32) -> Fd,
    ) -> io::Result<i32> {
        let kernel = self.state().description.kernel;
        let size = match request {
            28 => 8,
            46 if kernel.changes_process() => 8,
            29 | 36 => 12,
            30 | 34 | 35 => 24,
            32 => 32,
            33 => 40,
            43 if kernel.maps_files() => 40,
            _ => return self.state().unknown_ioctl(fd),
        };
        self.check_struct(fd, argument, size)?;
        match request {
            28 => self.iommu_destroy(fd, word(argument, 4))?,
            29 => {
                let id = self.ioas_alloc(fd, word(argument, 4))?;
                put(argument, 8, &id.to_ne_bytes());
            }
            30 => self.allow_iovas_of(fd, argument)?,
            32 => self.ioas_iova_ranges(fd, argument)?,
            33 => self.ioas_map_of(fd, argument)?,
            34 => self.ioas_unmap_of(fd, argument)?,
            35 => self.iommu_option_of(fd, argument)?,
            43 => self.ioas_map_file_of(fd, argument, fds)?,
            46 => {
                check_reserved(word(argument, 4))?;
                self.ioas_change_process(fd)?;
            }
            _ => self.vfio_ioas_of(fd, argument)?,
        }
        Ok(0)
    }

    /// A struct is not smaller than the kernel's, and is zero behind the kernel's.
    fn check_struct(&self, fd: Fd, argument: &[u8], size: usize) -> io::Result<()> {
        let state = self.state();
        let Kind::Iommufd(_) = state.files.kind(fd)? else {
            return state.unknown_ioctl(fd);
        };
        let stated = word(argument, 0) as usize;
        if stated < size {
            return Err(errno(libc::EINVAL));
        }
        let rest = argument.iter().take(stated).skip(size);
        match rest.into_iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(errno(libc::E2BIG)),
        }
    }

    fn allow_iovas_of(&self, fd: Fd, argument: &[u8]) -> io::Result<()> {
        check_reserved(word(argument, 12))?;
        let array = argument.get(word(argument, 0) as usize..).unwrap_or_default();
        let ranges = array.chunks_exact(16).take(word(argument, 8) as usize);
        let range = |bytes| RangeInclusive::new(long(bytes, 0), long(bytes, 8));
        self.ioas_allow_iovas(fd, word(argument, 4), &ranges.map(range).collect::<Vec<_>>())
    }

    fn ioas_map_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<()> {
        check_reserved(word(argument, 12))?;
        let call = IoasMap {
            flags: word(argument, 4),
            ioas: word(argument, 8),
            user_va: long(argument, 16),
            length: long(argument, 24),
            iova: long(argument, 32),
        };
        let iova = self.ioas_map(fd, &call)?;
        put(argument, 32, &iova.to_ne_bytes());
        Ok(())
    }

    fn ioas_map_file_of(
        &self,
        fd: Fd,
        argument: &mut [u8],
        fds: &mut dyn FnMut(i32) -> Fd,
    ) -> io::Result<()> {
        let call = IoasMapFile {
            flags: word(argument, 4),
            ioas: word(argument, 8),
            file: fd_at(argument, 12, fds),
            start: long(argument, 16),
            length: long(argument, 24),
            iova: long(argument, 32),
        };
        let iova = self.ioas_map_file(fd, &call)?;
        put(argument, 32, &iova.to_ne_bytes());
        Ok(())
    }

    fn ioas_unmap_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<()> {
        let call = IoasUnmap {
            ioas: word(argument, 4),
            iova: long(argument, 8),
            length: long(argument, 16),
        };
        let unmapped = self.ioas_unmap(fd, &call)?;
        put(argument, 16, &unmapped.to_ne_bytes());
        Ok(())
    }

    /// Only a read writes the number.
    fn vfio_ioas_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<()> {
        let [op, reserved] = halves(word(argument, 8));
        check_reserved(reserved.into())?;
        let id = self.vfio_ioas(fd, op, word(argument, 4))?;
        if op == 0 {
            put(argument, 4, &id.to_ne_bytes());
        }
        Ok(())
    }

    fn iommu_option_of(&self, fd: Fd, argument: &mut [u8]) -> io::Result<()> {
        let [op, reserved] = halves(word(argument, 8));
        check_reserved(reserved.into())?;
        let call = IommuOption {
            option: word(argument, 4),
            op,
            object: word(argument, 12),
            value: long(argument, 16),
        };
        let value = self.iommu_option(fd, &call)?;
        put(argument, 16, &value.to_ne_bytes());
        Ok(())
    }
}

/// The two 16-bit words of a word, in the order of memory.
fn halves(word: u32) -> [u16; 2] {
    let [a, b, c, d] = word.to_ne_bytes();
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])]
}

fn check_reserved(word: u32) -> io::Result<()> {
    match word {
        0 => Ok(()),
        _ => Err(errno(libc::EOPNOTSUPP)),
    }
}
