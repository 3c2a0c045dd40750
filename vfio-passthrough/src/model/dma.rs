//! A device that reads and writes memory by itself, through the IOMMU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::opened::ADDRESS;
use super::{Iommu, PciDevice, errno, lock};
use crate::address::{ByteRange, Iova};

impl PciDevice {
    /// The device reads memory, as far as its driver lets it: with bus mastering on.
    ///
    /// # Errors
    ///
    /// `EPERM` where bus mastering is off: nothing happens. `EFAULT` where the IOMMU has no
    /// mapping, or one to memory that is gone: that is an alarm
    /// ([`Faults::alarms`](super::Faults::alarms)), since it is never right.
    pub fn dma_read(&self, iommu: &Iommu, iova: Iova, data: &mut [u8]) -> io::Result<()> {
        let length = data.len();
        self.master(|| {
            let mut rest = data;
            iommu.each_piece("reads", iova, length, |memory, at, size| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(size);
                rest = later;
                memory.read_exact_at(now, at)
            })
        })
    }

    /// The device writes memory. As [`dma_read`](Self::dma_read).
    ///
    /// # Errors
    ///
    /// Those of [`dma_read`](Self::dma_read).
    pub fn dma_write(&self, iommu: &Iommu, iova: Iova, data: &[u8]) -> io::Result<()> {
        self.master(|| {
            let mut rest = data;
            iommu.each_piece("writes", iova, data.len(), |memory, at, size| {
                let (now, later) = rest.split_at(size);
                rest = later;
                memory.write_all_at(now, at)
            })
        })
    }

    /// DMA that is under way holds up a write of the command register: after that there is none.
    fn master(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _no_config_write = lock(&self.mmaps);
        match self.opened.system.masters_bus(ADDRESS) {
            true => act(),
            false => Err(errno(libc::EPERM)),
        }
    }
}

impl Iommu {
    /// Carries out DMA, mapping by mapping: `act` gets the place in the memory of this process, and
    /// how many bytes. By way of a file, so that memory that is gone is an error.
    fn each_piece(
        &self,
        what: &str,
        iova: Iova,
        length: usize,
        mut act: impl FnMut(&File, u64, usize) -> io::Result<()>,
    ) -> io::Result<()> {
        let memory = File::options().read(true).write(true).open("/proc/self/mem")?;
        let mut rest = ByteRange::new(iova.0, length as u64).ok_or_else(|| errno(libc::EFAULT))?;
        while !rest.is_empty() {
            let Some((at, size)) = self.translate(rest) else {
                return self.stray(what, rest, "no mapping");
            };
            let bytes = usize::try_from(size).map_err(|_| errno(libc::EFAULT))?;
            if act(&memory, at, bytes).is_err() {
                return self.stray(what, rest, "a mapping to memory that is gone");
            }
            rest = ByteRange::between(rest.start().saturating_add(size), rest.end());
        }
        Ok(())
    }

    fn stray(&self, what: &str, range: ByteRange, why: &str) -> io::Result<()> {
        self.faults.with_alarms(|alarms| {
            alarms.raised.push(format!("a device {what} {range}: there is {why}"))
        });
        Err(errno(libc::EFAULT))
    }
}
