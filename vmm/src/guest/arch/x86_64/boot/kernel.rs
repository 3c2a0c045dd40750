//! Loads a kernel: detects its format, its address and its entry point.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, PvhBootCapability};
use resources::Layout;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::addresses::{HIGH_RAM, PAGE_TABLES, START_INFO};
use super::page_tables;
use super::refusal::{Refusal, bzimage_size, memory_end};
use crate::error::Error;
use crate::guest::boot::format::HEAD;
use crate::guest::boot::{loader, mib};
use crate::host::files::Opened;

/// The first bytes of an ELF file.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// The offset of the 64-bit entry in a bzImage's protected-mode part (boot protocol, 64-bit).
const ENTRY_64: u64 = 0x200;
/// `xloadflags` bit 0: the kernel has a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// `xloadflags` bit 1: the kernel takes its initramfs above 4 GiB.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;

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
        let mut magic = [0; 4];
        let is_elf = file.read_exact_at(&mut magic, 0).is_ok() && magic == ELF_MAGIC;
        let loaded = match is_elf {
            true => load_elf(&mut file, memory),
            false => load_bzimage(&mut file, memory, size),
        };
        let kernel = loaded.map_err(|why| refusal(image, (size, room), &why))?;
        fits(kernel.end(), room)?;
        Ok(kernel)
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
    pub(in crate::guest) fn end(&self) -> u64 {
        match self {
            Self::Linux { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// The exclusive limit of the initramfs's addresses.
    pub(in crate::guest) fn initrd_limit(&self) -> u64 {
        match self {
            Self::Linux { header, .. } => u64::from(header.initrd_addr_max).saturating_add(1),
            Self::Pvh { .. } => 1 << 32,
        }
    }

    /// Whether the initramfs may also be above 4 GiB, whatever [`initrd_limit`](Self::initrd_limit)
    /// is.
    pub(in crate::guest) fn takes_high_initrd(&self) -> bool {
        match self {
            Self::Linux { header, .. } => header.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
            // Linux keeps 32 bits of the module's address (arch/x86/platform/pvh/enlighten.c).
            Self::Pvh { .. } => false,
        }
    }

    /// What helps if the initramfs does not fit below the kernel's limit.
    pub(in crate::guest) fn initrd_remedy(&self) -> &'static str {
        match self {
            Self::Linux { .. } => "give a kernel built with CONFIG_RELOCATABLE",
            Self::Pvh { .. } => "give the bzImage of this kernel instead of its ELF file",
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

fn clear(memory: &GuestMemoryMmap, range: Range<u64>) -> Result<(), Error> {
    static ZEROS: [u8; 4 << 10] = [0; 4 << 10];
    for start in range.clone().step_by(ZEROS.len()) {
        let left = usize::try_from(range.end.saturating_sub(start)).unwrap_or(usize::MAX);
        let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
        memory.write_slice(zeros, GuestAddress(start))?;
    }
    Ok(())
}

/// Why the file was not loaded as a kernel. `loader` is the cause that the loader reported.
fn refusal(image: &Opened, (size, room): (u64, u64), loader: &str) -> Error {
    if let Some(error) = image.shrunk(size) {
        return error;
    }
    let mut head = vec![0; HEAD];
    let length = image.file().read_at(&mut head, 0).unwrap_or(0);
    head.truncate(length);
    let path = image.path().to_owned();
    let Refusal { why, remedy, is_kernel } = Refusal::of(&path, &head, size, loader);
    match fits(memory_end(&head, size), room) {
        Err(error) if is_kernel => error,
        _ => Error::NotAKernel { path, why, remedy },
    }
}

fn fits(end: u64, room: u64) -> Result<(), Error> {
    let (what, needs, has) = ("the kernel", mib(end), room >> 20);
    match end > room {
        true => Err(Error::DoesNotFit { what, needs, has, least: needs.next_multiple_of(2) }),
        false => Ok(()),
    }
}

fn load_bzimage(file: &mut &File, memory: &GuestMemoryMmap, size: u64) -> Result<Kernel, String> {
    let loaded = loader::load::<BzImage>(memory, Some(HIGH_RAM), file)?;
    let header = loaded.setup_header.ok_or("it has no setup header")?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err("it has no 64-bit entry point".into());
    }
    if bzimage_size(header.setup_sects, header.syssize) > size {
        return Err("it is truncated".into());
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
mod tests;
