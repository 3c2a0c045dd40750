//! DMA: a device reads and writes memory through the IOMMU.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::faults::errno;
use super::iommu::Iommu;
use super::opened::ADDRESS;
use super::pci::PciDevice;
use crate::address::{ByteRange, Iova};

impl PciDevice {
    /// The device reads memory.
    ///
    /// # Errors
    ///
    /// - `EPERM`: bus mastering is disabled.
    /// - `EFAULT`: the IOMMU has no mapping, or a mapping to memory that was freed. Such an access
    ///   raises an alarm ([`Faults::alarms`](super::Faults::alarms)).
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

    /// The device writes memory.
    ///
    /// # Errors
    ///
    /// The errors of [`dma_read`](Self::dma_read).
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

    /// Does DMA. A write of the command register waits for it.
    fn master(&self, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.mmaps.exclusively(|| match self.opened.system.masters_bus(ADDRESS) {
            true => act(),
            false => Err(errno(libc::EPERM)),
        })
    }
}

impl Iommu {
    /// Does DMA mapping by mapping: `act` gets the address in this process and the number of bytes.
    /// `/proc/self/mem` turns an access to freed memory into an error.
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
