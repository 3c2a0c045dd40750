//! Loads a kernel: detects its format, its address and its entry point.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, PvhBootCapability};
use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::addresses::{HIGH_RAM, PAGE_TABLES, START_INFO};
use super::{loader, page_tables};
use crate::error::Error;
use crate::host::files::Opened;

/// The first bytes of an ELF file.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// The offset of the 64-bit entry in a bzImage's protected-mode part (boot protocol, 64-bit).
const ENTRY_64: u64 = 0x200;
/// `xloadflags` bit 0: the kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;

/// A kernel in guest RAM.
#[derive(Debug)]
pub enum Kernel {
    /// A kernel for Linux's 64-bit boot protocol.
    Linux {
        /// The header of the image, which the zero page repeats.
        header: Box<setup_header>,
        /// The load address of the image.
        start: u64,
        /// The end of the kernel's memory after it has unpacked itself.
        end: u64,
    },
    /// A kernel for the PVH protocol, entered in 32-bit mode.
    Pvh {
        /// The entry point.
        entry: u64,
        /// The end of the image.
        end: u64,
    },
}

/// The entry state of the first CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Long mode, with page tables and the address of the zero page in RSI.
    Long {
        /// The instruction pointer.
        rip: u64,
        /// The address of the zero page.
        zero_page: u64,
        /// Page tables with an identity mapping of the first GiB.
        page_tables: u64,
    },
    /// Protected mode without paging, with the address of the start info in EBX.
    Protected {
        /// The instruction pointer.
        rip: u64,
        /// The address of the start info.
        start_info: u64,
    },
}

impl Kernel {
    /// Loads the kernel into guest RAM.
    pub fn load(image: &Opened, memory: &GuestMemoryMmap, layout: &Layout) -> Result<Self, Error> {
        let mut file = image.file();
        let room = layout.ram.first().map_or(0, |low| low.end());
        let size = image.size()?;
        if size > room {
            return Err(Error::DoesNotFit {
                what: "the kernel",
                needs: mib(size),
                has: room >> 20,
            });
        }
        let mut magic = [0; 4];
        let is_elf = file.read_exact_at(&mut magic, 0).is_ok() && magic == ELF_MAGIC;
        let loaded =
            if is_elf { load_elf(&mut file, memory) } else { load_bzimage(&mut file, memory) };
        let kernel =
            loaded.map_err(|why| Error::NotAKernel { path: image.path().to_owned(), why })?;
        match kernel.end() > room {
            true => Err(Error::DoesNotFit {
                what: "the kernel",
                needs: mib(kernel.end()),
                has: room >> 20,
            }),
            false => Ok(kernel),
        }
    }

    /// Loads the kernel as [`load`](Self::load) does, into RAM that a kernel has used. Memory
    /// that an ELF file does not contain must be zero (ELF, program header, `p_memsz`), and the
    /// loader does not clear it.
    pub fn load_again(
        image: &Opened,
        memory: &GuestMemoryMmap,
        layout: &Layout,
    ) -> Result<Self, Error> {
        match Self::load(image, memory, layout)? {
            Self::Pvh { end, .. } => {
                clear(memory, HIGH_RAM..end)?;
                Self::load(image, memory, layout)
            }
            // A bzImage clears its own memory.
            linux => Ok(linux),
        }
    }

    /// The first address after the kernel.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Linux { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// The exclusive limit of the initramfs's addresses.
    pub(super) fn initrd_limit(&self) -> u64 {
        match self {
            Self::Linux { header, .. } => u64::from(header.initrd_addr_max).saturating_add(1),
            Self::Pvh { .. } => 1 << 32,
        }
    }

    /// The maximum length of the command line, without its terminator.
    pub(super) fn cmdline_limit(&self) -> usize {
        match self {
            Self::Linux { header, .. } => {
                usize::try_from(header.cmdline_size).unwrap_or(usize::MAX)
            }
            // x86 Linux's COMMAND_LINE_SIZE; PVH has no field for the limit.
            Self::Pvh { .. } => 2047,
        }
    }

    /// Writes the data that the entry requires, and returns the entry.
    pub(super) fn entry(&self, memory: &GuestMemoryMmap) -> Result<Entry, Error> {
        match self {
            Self::Linux { start, .. } => {
                page_tables::write(memory)?;
                let rip = start.saturating_add(ENTRY_64);
                Ok(Entry::Long { rip, zero_page: START_INFO, page_tables: PAGE_TABLES })
            }
            Self::Pvh { entry, .. } => Ok(Entry::Protected { rip: *entry, start_info: START_INFO }),
        }
    }
}

/// Rounds up to MiB.
pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn clear(memory: &GuestMemoryMmap, range: Range<u64>) -> Result<(), Error> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    for start in range.clone().step_by(ZEROS.len()) {
        let left = usize::try_from(range.end.saturating_sub(start)).unwrap_or(usize::MAX);
        let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
        memory.write_slice(zeros, GuestAddress(start))?;
    }
    Ok(())
}

fn load_bzimage(file: &mut &File, memory: &GuestMemoryMmap) -> Result<Kernel, String> {
    let loaded = loader::load::<BzImage>(memory, Some(HIGH_RAM), file)?;
    let header = loaded.setup_header.ok_or("it has no setup header")?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err("it has no 64-bit entry point".into());
    }
    // The kernel unpacks itself to its preferred address and uses init_size bytes there.
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    let end = loaded.kernel_end.max(unpacked);
    Ok(Kernel::Linux { header: Box::new(header), start: loaded.kernel_load.0, end })
}

fn load_elf(file: &mut &File, memory: &GuestMemoryMmap) -> Result<Kernel, String> {
    let loaded = loader::load::<Elf>(memory, None, file)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Ok(Kernel::Pvh { entry: entry.0, end: loaded.kernel_end })
        }
        _ => Err("this ELF file has no PVH entry point".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use resources::AddressRange;

    use super::*;
    use crate::guest::memory::Ram;

    fn load(content: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let layout = Layout { ram: vec![AddressRange::new(0, 64 << 20)], ..Layout::default() };
        let ram = Ram::new(&layout.ram).unwrap();
        let image = Opened::open("kernel", file.path()).unwrap();
        Kernel::load(&image, ram.memory(), &layout).unwrap_err().to_string()
    }

    #[test]
    fn names_a_file_that_is_no_kernel_and_the_accepted_formats() {
        for content in [&b""[..], b"#!/bin/sh\n", &[0; 100_000], b"\x7fELF, or so it says"] {
            let text = load(content);
            assert!(text.contains("is not a kernel: ") && text.contains("bzImage"), "{text}");
        }
    }

    #[test]
    fn an_elf_program_is_not_a_kernel() {
        let text = load(&std::fs::read("/proc/self/exe").unwrap()[..4096]);
        assert!(text.contains("is not a kernel"), "{text}");
    }
}
